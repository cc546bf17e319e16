"""Rotary options laid over those of a trained run: which scalings are compared, and the scheme that each one makes."""

import sys
from dataclasses import asdict, replace
from typing import Any, Literal

from harness.messages import BadInput, refuse_unknown
from harness.options import Parser
from harness.ranges import explain
from harness.rotation import NO_LEARNED_FACTORS
from harness.runs import FinishedRun
from positions import SCHEMES, Position
from rope import OPTIONS, SCALING_FIELDS, RopeConfig, rotated_width


def overlay(own: RopeConfig, given: dict[str, Any], scaling: str, trained: int) -> dict[str, Any]:
    """The fields of a RopeConfig: what was given, over what the run has and this scaling takes.

    A factor that is needed and not there is `auto`; the original length, if not on record, is the trained one.
    """
    required, optional = OPTIONS[scaling]
    kept = {name: x for name, x in asdict(own).items() if name not in SCALING_FIELDS or name in required | optional}
    fields = kept | given | {"scaling": scaling}
    if fields.get("factor") is None and ("factor" in required or scaling == "longrope"):
        fields["factor"] = "auto"
    if fields["original_length"] is None:
        fields["original_length"] = trained
    return fields


def position_at(run_: FinishedRun, fields: dict[str, Any], length: int) -> Position:
    """The scheme rope at one length in use; a factor `auto` is that length over the original one, and at least 1.

    Raises:
        BadInput: for options that cannot be, by name.
    """
    if fields.get("factor") == "auto":
        fields = fields | {"factor": max(1.0, length / max(1, fields["original_length"]))}
    try:
        scheme = run_.model_config.position
        position = SCHEMES[scheme](replace(run_.model_config, **{scheme: RopeConfig(**fields)}))
        if (
            position.log_factor is not None
        ):  # learned factors are weights, and go on dividing whatever the scaling gives
            if (learned := run_.model.position.log_factor) is None:
                raise ValueError(f"rope.learn_factors true: {run_.path} has learned none")
            if len(learned) != len(position.log_factor):
                raise ValueError(
                    f"rope.fraction {fields['fraction']:g} does not fit the {len(learned)} learned factors"
                )
            position.load_state_dict(run_.model.position.state_dict())
        return position
    except ValueError as error:
        raise BadInput(f"--{explain(error)}") from error


def add_rope_options(parser: Parser) -> None:
    """Add `--rope.*` as a RopeConfig has it, with a factor that may be `auto`."""
    parser.add_class_arguments(RopeConfig, "rope", skip={"factor"})
    parser.add_argument(
        *("--rope.factor", "--factor"),
        type=Literal["auto"] | float | None,
        default=None,
        help="at least 1, or auto, each length over the original one; where a scaling needs one, auto if not given",
    )


def variants(run_: FinishedRun, given: dict[str, Any], several: list[str] | None) -> dict[str | None, dict[str, Any]]:
    """Scaling to the fields of its RopeConfig, for all that is compared; None, without fields, for other schemes.

    Args:
        run_: the run.
        given: `--rope.*` options by name.
        several: `--scalings`; options then go to those of them that take them.

    Raises:
        BadInput: for a run that does not rotate, or options that no scaling asked for takes.
    """
    config, own, trained = run_.model_config, run_.model_config.options, run_.model_config.seq_len
    if not isinstance(own, RopeConfig):
        if several or given:
            option, value = ("scalings", several[0]) if several else next((f"rope.{o}", x) for o, x in given.items())
            raise BadInput(
                f"--{option} {value}: {run_.path} has the scheme {config.position}; only rope has scalings: "
                "leave it out"
            )
        return {None: {}}
    if given.get("layout", own.layout) != own.layout:
        print(
            f"warning: {run_.path} was trained with rope.layout {own.layout}; another makes nonsense", file=sys.stderr
        )
    if several is None:
        scaling = given.get("scaling", own.scaling)
        return {scaling: overlay(own, given, scaling, trained) if given else asdict(own)}

    if "scaling" in given:
        raise BadInput(f"--rope.scaling {given['scaling']} and --scalings {' '.join(several)}: give one of the two")
    refuse_unknown("scalings", several, [*OPTIONS, "all"])
    names = list(OPTIONS) if "all" in several else list(dict.fromkeys(several))
    if "all" in several:
        fields = asdict(own) | given
        cannot = {
            "longrope": not (fields["short_factor"] and fields["long_factor"]) and "needs its lists of divisors",
            **dict.fromkeys(("ntk", "dynamic"), rotated_width(own, config.d_head) == 2 and "needs two pairs"),
        }
        cannot |= dict.fromkeys(
            NO_LEARNED_FACTORS if fields["learn_factors"] else (), "does not go with learned factors"
        )
        for name, why in cannot.items():
            if why:
                names.remove(name)
                print(f"{name} is left out: it {why}", file=sys.stderr)
    takes = {name: set.union(*OPTIONS[name]) | set(given).difference(SCALING_FIELDS) for name in names}
    for option in set(given).difference(*takes.values()):
        raise BadInput(f"--rope.{option} means nothing to --scalings {' '.join(names)}: leave it out")
    return {name: overlay(own, {o: x for o, x in given.items() if o in takes[name]}, name, trained) for name in names}
