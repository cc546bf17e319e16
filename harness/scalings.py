"""Rotary options that override those of a trained run, and what tools know of them.

They are the scalings to compare, with the position scheme of each, and learned factors as longrope's lists.
"""

from dataclasses import asdict, replace
from typing import Any, Literal

from harness.messages import BadInput, refuse_unknown, tell
from harness.options import Parser
from harness.ranges import explain
from harness.runs import FinishedRun
from positions import SCHEMES, Position, Rope
from rope import OPTIONS, SCALING_FIELDS, RopeConfig, frequencies


def add_rope_options(parser: Parser) -> None:
    """Add the options of a RopeConfig as `--rope.*`, with a factor that may be `auto`."""
    parser.add_class_arguments(RopeConfig, "rope", skip={"factor"})
    what = "at least 1, or auto: each length over the original one; auto if a scaling needs a factor and none is given"
    parser.add_argument("--rope.factor", "--factor", type=Literal["auto"] | float | None, default=None, help=what)


def override_options(own: RopeConfig, given: dict[str, Any], scaling: str, trained: int) -> dict[str, Any]:
    """The fields of a RopeConfig: the given ones, over those of the run that apply to the scaling.

    A missing factor that the scaling needs is `auto`; a missing original length is the trained one.
    """
    required, optional = OPTIONS[scaling]
    kept = {name: x for name, x in asdict(own).items() if name not in SCALING_FIELDS or name in required | optional}
    fields = kept | given | {"scaling": scaling}
    if fields.get("factor") is None and ("factor" in required or scaling == "longrope"):
        fields["factor"] = "auto"
    if fields["original_length"] is None:
        fields["original_length"] = trained
    return fields


def make_position(run_: FinishedRun, fields: dict[str, Any], length: int) -> Position:
    """The run's scheme with other rotary options; a factor `auto` is the length over the original one, at least 1.

    Raises:
        BadInput: for impossible options, by name.
    """
    if fields.get("factor") == "auto":
        fields = fields | {"factor": max(1.0, length / max(1, fields["original_length"]))}
    try:
        scheme = run_.model_config.position
        position = SCHEMES[scheme](replace(run_.model_config, **{scheme: RopeConfig(**fields)}))
        if position.log_factor is not None:  # learned factors are weights: they divide the frequencies of any scaling
            if (learned := run_.model.position.log_factor) is None:
                raise ValueError(f"rope.learn_factors true: {run_.path} has learned none")
            if (n := len(learned)) != len(position.log_factor):
                raise ValueError(f"rope.fraction {fields['fraction']:g} does not fit the {n} learned factors")
            position.load_state_dict(run_.model.position.state_dict())
        return position
    except ValueError as error:
        raise BadInput(f"--{explain(error)}") from error


def choose_scalings(
    run_: FinishedRun, given: dict[str, Any], several: list[str] | None
) -> dict[str | None, dict[str, Any]]:
    """The scalings to compare, each with the fields of its RopeConfig; {None: {}} for a scheme that has no scalings.

    `given` has the `--rope.*` options by name; each of `several`, from `--scalings`, takes those that apply to it.

    Raises:
        BadInput: for a run without scalings, or an option that applies to none of them.
    """
    config, own, trained = run_.model_config, run_.model_config.options, run_.model_config.seq_len
    if not isinstance(own, RopeConfig):
        if several or given:
            option, value = ("scalings", several[0]) if several else next((f"rope.{o}", x) for o, x in given.items())
            why = f"{run_.path} has the scheme {config.position}; only rope has scalings"
            raise BadInput(f"--{option} {value}: {why}: leave it out")
        return {None: {}}
    if given.get("layout", own.layout) != own.layout:
        what = f"{run_.path} was trained with rope.layout {own.layout}; with another its output makes no sense"
        tell(f"warning: {what}")
    if several is None:
        scaling = given.get("scaling", own.scaling)
        return {scaling: override_options(own, given, scaling, trained) if given else asdict(own)}

    if "scaling" in given:
        raise BadInput(f"--rope.scaling {given['scaling']} and --scalings {' '.join(several)}: give one of the two")
    refuse_unknown("scalings", several, OPTIONS)
    names = list(dict.fromkeys(several))
    takes = {name: set.union(*OPTIONS[name]) | set(given).difference(SCALING_FIELDS) for name in names}
    for option in set(given).difference(*takes.values()):
        raise BadInput(f"--rope.{option} means nothing to --scalings {' '.join(names)}: leave it out")
    own_options = {name: {o: x for o, x in given.items() if o in takes[name]} for name in names}
    return {name: override_options(own, options, name, trained) for name, options in own_options.items()}


def as_longrope(position: Rope, seq_len: int) -> RopeConfig:
    """The config of a rope that is turned as this one without learning anything: its factors as longrope's lists.

    Both lists are the same, since every scaling that factors are learned on top of turns all lengths alike; only
    longrope's own two differ.
    `seq_len`, the trained length in tokens, is the original one where none is on record.
    """
    config, L = position.config, position.config.original_length or seq_len
    kept = {"base": config.base, "layout": config.layout, "fraction": config.fraction}
    plain, _ = frequencies(RopeConfig(**kept), position.d_head, 0)  # (D_rot/2,)
    learned = position.log_factor.detach().cpu().double().exp()  # (D_rot/2,)
    (short, attention_factor), (long, _) = (frequencies(config, position.d_head, length) for length in (L, L + 1))
    return RopeConfig(
        **kept,
        scaling="longrope",
        original_length=L,
        attention_factor=attention_factor,
        short_factor=(plain / short * learned).tolist(),
        long_factor=(plain / long * learned).tolist(),
    )


def yarn_warning(config: RopeConfig, d_head: int) -> str:
    """What to say when yarn's betas leave fewer than two pairs at their speed; nothing where that is not so."""
    if config.scaling != "yarn" or config.factor == 1:
        return ""
    theta, _ = frequencies(config, d_head, 0)
    plain, _ = frequencies(replace(config, **dict.fromkeys(SCALING_FIELDS), scaling="none"), d_head, 0)
    untouched = int((theta == plain).sum())
    if untouched >= 2:
        return ""
    return (
        f"rope.beta_fast {config.option('beta_fast'):g} leaves {untouched} of the pairs untouched, so yarn is "
        f"nearly plain interpolation here: a lower one, 8 say, keeps more of the fast pairs"
    )
