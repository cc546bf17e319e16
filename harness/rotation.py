"""What tools know of rotary options: learned factors as longrope's lists, and when yarn is hardly yarn."""

from dataclasses import replace

from positions import Rope
from rope import SCALING_FIELDS, RopeConfig, frequencies

NO_LEARNED_FACTORS = {  # scalings that learned factors do not go with
    "dynamic": "whose frequencies change with every length",
    "proportional": "which has pairs that do not turn, at any factor",
}


def as_longrope(position: Rope, seq_len: int) -> RopeConfig:
    """The config of a rope that is turned as this one without learning anything: its factors as longrope's lists.

    Both lists are the same, since every scaling that factors are learned on top of turns all lengths alike; only
    longrope's own two differ.

    Args:
        position: with learned factors.
        seq_len: the trained length, tokens; the original length where none is on record.
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
