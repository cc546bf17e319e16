"""Rotary position embedding (RoPE) as pure functions: which frequencies, and the rotation itself.

RoFormer (Su et al., arXiv 2104.09864, section 3) asks for a map of queries and keys such that their product knows where
the two tokens stand only through the distance between them (eq. 11):

    <f(q, m), f(k, n)> = g(q, k, m - n)

In two dimensions, read a pair of features as one complex number. Turning it by an angle proportional to its position,

    f(q, m) = q e^{i m theta},

solves the equation, because a score is Re[f(q, m) f(k, n)*] = Re[q k* e^{i (m - n) theta}] (eq. 12): the two turns meet
and only their difference is left. For a head of d features, d/2 pairs turn independently, each at its own frequency
(eq. 14, 15), fast ones for near order and slow ones for far order:

    theta_i = base^(-2i/d),  i = 0 .. d/2 - 1        (radians per token)

No parameter is added, a vector's length is kept, and position 0 is not turned at all. A `scaling` slows frequencies,
each in its own way, so that a model can be used past the length it was trained on; yarn and longrope also lengthen
what they rotate, by an attention factor.

Print a table of the pairs: how far does each turn inside a length?

    python rope.py --d_head 32 --length 256 --rope.scaling yarn --rope.factor 4 --rope.original_length 256
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Layout = Literal["interleaved", "half-split"]
"""Which two features form a pair.

`interleaved`: 2i with 2i + 1, neighbours, as in the paper. `half-split`: i with i + d/2, as in GPT-NeoX, Llama and the
transformers library. They are one function up to a fixed reordering of features (`to_half_split`); what must never
happen is that weights trained with one are run with the other.
"""

Scaling = Literal["none", "linear", "ntk", "dynamic", "yarn", "longrope", "llama3", "proportional"]

OPTIONS: dict[str, tuple[set[str], set[str]]] = {  # scaling -> (options it cannot do without, options it also takes)
    "none": (set(), set()),
    "linear": ({"factor"}, set()),
    "ntk": ({"factor"}, set()),
    "dynamic": ({"factor"}, set()),
    "yarn": ({"factor"}, {"beta_fast", "beta_slow", "truncate", "attention_factor"}),
    "longrope": ({"short_factor", "long_factor"}, {"factor", "attention_factor"}),
    "llama3": ({"factor"}, {"low_freq_factor", "high_freq_factor"}),
    "proportional": (set(), {"factor"}),
}
# Far beyond what makes sense, and near enough that no frequency and no score overflows.
SMALLEST = 1e-6
LARGEST = {"base": 1e18, "factor": 1e6, "original_length": 10**12, "turns": 1e6, "attention_factor": 1e3}
SCALING_FIELDS = sorted({option for pair in OPTIONS.values() for option in pair[0] | pair[1]})
NEEDS_ORIGINAL_LENGTH = {"dynamic", "yarn", "longrope", "llama3"}
DEPEND_ON_LENGTH = {"dynamic", "longrope"}  # frequencies change with the length in use
NO_LEARNED_FACTORS = {  # what these do cannot be written out as longrope's lists
    "dynamic": "whose frequencies change with every length",
    "proportional": "which has pairs that do not turn, at any factor",
}


@dataclass(frozen=True)
class RopeConfig:
    """The rotation's choices. An option that the chosen scaling does not take is refused by name.

    Args:
        base: the frequencies' base, above 1. Larger turns the slow pairs slower.
        layout: which features form a pair: interleaved (the paper) or half-split (Llama).
        fraction: share of each head's features that are rotated, in (0, 1]; the others pass through.
        scaling: how frequencies are slowed past the trained length; none, linear, ntk, dynamic, yarn, longrope, llama3
            or proportional.
        factor: how many times longer than trained (s), at least 1; for longrope seq_len / original_length if not given.
        original_length: the length the weights were first trained at (L), tokens; a record that every scaling accepts
            and dynamic, yarn, longrope and llama3 need.
        beta_fast: yarn: pairs that turn more often than this within L are left alone. 32 if not given.
        beta_slow: yarn: pairs that turn less often than this within L are slowed by the whole factor. 1 if not given.
        truncate: yarn: round the ramp's ends to whole pairs. True if not given.
        attention_factor: yarn, longrope: what cos and sin are multiplied by, instead of the paper's formula.
        low_freq_factor: llama3: wavelengths above L / this are slowed by the whole factor. 1 if not given.
        high_freq_factor: llama3: wavelengths below L / this are left alone. 4 if not given.
        short_factor: longrope: one divisor per pair for lengths up to L.
        long_factor: longrope: one divisor per pair for lengths past L.
        learn_factors: whether one more divisor per pair is trained, on top of any scaling but dynamic and proportional;
            all start at 1. A run leaves them as longrope's lists in longrope.yaml.
    """

    base: float = 10000.0
    layout: Layout = "interleaved"
    fraction: float = 1.0
    scaling: Scaling = "none"
    factor: float | None = None
    original_length: int | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    truncate: bool | None = None
    attention_factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    short_factor: list[float] | None = None
    long_factor: list[float] | None = None
    learn_factors: bool = False

    def __post_init__(self) -> None:
        if not 1 < self.base <= LARGEST["base"]:
            raise ValueError(f"rope.base {self.base:g} must be above 1, 10000 say, and at most {LARGEST['base']:g}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"rope.fraction {self.fraction:g} must lie in (0, 1]; 1 rotates every feature")
        for name, value, choices in (
            ("layout", self.layout, ("interleaved", "half-split")),
            ("scaling", self.scaling, OPTIONS),
        ):
            if value not in choices:
                raise ValueError(f"rope.{name} {value!r} is none of {', '.join(choices)}")
        required, optional = OPTIONS[self.scaling]
        for name in SCALING_FIELDS:
            if name not in required | optional and getattr(self, name) is not None:
                takes = ", ".join(sorted(required | optional)) or "no options"
                raise ValueError(
                    f"rope.{name} means nothing to rope.scaling {self.scaling}, which takes {takes}: leave out "
                    f"{getattr(self, name)}, or choose a rope.scaling that takes it"
                )
        for name in sorted(required):
            if getattr(self, name) is None:
                raise ValueError(f"rope.scaling {self.scaling} needs rope.{name}: give it too")
        if self.factor is not None and not 1 <= self.factor <= LARGEST["factor"]:
            raise ValueError(
                f"rope.factor {self.factor:g} must be at least 1: it is the used length over the trained one, and at "
                f"most {LARGEST['factor']:g}"
            )
        if self.original_length is not None and not 2 <= self.original_length <= LARGEST["original_length"]:
            raise ValueError(
                f"rope.original_length {self.original_length} must be at least 2 tokens, and at most "
                f"{LARGEST['original_length']:g}"
            )
        for low, high in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
            if not SMALLEST <= self.option(low) < self.option(high) <= LARGEST["turns"]:
                raise ValueError(
                    f"rope.{low} {self.option(low):g} must be above 0 and below rope.{high} {self.option(high):g}, "
                    f"both between {SMALLEST:g} and {LARGEST['turns']:g}"
                )
        if self.attention_factor is not None and not SMALLEST <= self.attention_factor <= LARGEST["attention_factor"]:
            raise ValueError(
                f"rope.attention_factor {self.attention_factor:g} must be above 0, between {SMALLEST:g} and "
                f"{LARGEST['attention_factor']:g}"
            )
        for name in ("short_factor", "long_factor"):
            for value in getattr(self, name) or ():
                if not SMALLEST <= value <= LARGEST["factor"]:
                    raise ValueError(
                        f"rope.{name} holds {value:g}, a divisor that is not above 0: each must lie between "
                        f"{SMALLEST:g} and {LARGEST['factor']:g}"
                    )
        if self.learn_factors and self.scaling in NO_LEARNED_FACTORS:
            raise ValueError(
                f"rope.learn_factors true does not go with rope.scaling {self.scaling}, "
                f"{NO_LEARNED_FACTORS[self.scaling]}: choose another scaling"
            )

    def option(self, name: str) -> float:
        """The value given for an option, or its published default."""
        defaults = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "low_freq_factor": 1, "high_freq_factor": 4}
        given = getattr(self, name)
        return defaults[name] if given is None else given


def with_default_factor(config: RopeConfig, length: int) -> RopeConfig:
    """The config with longrope's factor filled in, extended length over original length, if nothing else decides it."""
    decided = config.scaling != "longrope" or config.factor or config.attention_factor or not config.original_length
    return config if decided else replace(config, factor=max(1.0, length / config.original_length))


def rotated_width(config: RopeConfig, d_head: int) -> int:
    """How many of a head's d_head features are rotated; even.

    Raises:
        ValueError: if that many features cannot be paired.
    """
    # `proportional` has a pair for every two features and gives the unrotated ones frequency 0
    share = 1.0 if config.scaling == "proportional" else config.fraction
    width = int(share * d_head + 1e-9)  # a little more, since 0.58 * 100 is 57.99...
    if width < 2 or width % 2:
        raise ValueError(
            f"rope.fraction {config.fraction:g} of a head {d_head} wide rotates {width} features, but features turn in "
            f"pairs: choose n_head, d_model or rope.fraction so that the rotated width is even"
        )
    return width


def frequencies(config: RopeConfig, d_head: int, length: int) -> tuple[Tensor, float]:
    """How fast each pair of features turns, and what its cos and sin are multiplied by.

    Args:
        config: base, fraction, scaling and its options.
        d_head: width of a head, features.
        length: the length in use (n), the largest position + 1, tokens. Only dynamic and longrope look at it.

    Returns:
        theta, one frequency per rotated pair, radians per token, (D_rot / 2,), float64; and the attention factor.

    Raises:
        ValueError: for a rotated width that cannot be paired, or options that do not fit the width.
    """
    d = rotated_width(config, d_head)
    i = torch.arange(d // 2, dtype=torch.float64)
    b, s, L, n = config.base, config.factor or 1.0, config.original_length, length
    if L is None and config.scaling in NEEDS_ORIGINAL_LENGTH:
        raise ValueError(f"rope.scaling {config.scaling} needs rope.original_length, the length trained at first")
    if d == 2 and config.scaling in ("ntk", "dynamic"):
        raise ValueError(f"rope.scaling {config.scaling} needs a rotated width of at least 4, and this one is 2")
    theta = b ** (-2 * i / d)

    match config.scaling:
        case "linear":
            # Position Interpolation (2306.15595): squeeze the positions, m / s. Every pair is slowed alike.
            return theta / s, 1.0
        case "ntk":
            # NTK-aware: a larger base, chosen so that the slowest pair is slowed by exactly s and the fastest not at
            # all: pair i by s^(2i / (d - 2)). Those in the middle get less than s, so without tuning a text n times as
            # long as the trained ones wants a factor well above n (results/SURPRISES.md).
            return (b * s ** (d / (d - 2))) ** (-2 * i / d), 1.0
        case "dynamic":
            # Dynamic NTK: nothing up to L, then a base that grows with the length in use.
            stretch = s * n / L - (s - 1) if n > L else 1.0
            return (b * stretch ** (d / (d - 2))) ** (-2 * i / d), 1.0
        case "yarn":
            # YaRN (2309.00071): fast pairs, which count near tokens, keep their speed; slow ones, which never turned
            # once in training, are interpolated; a ramp over the pair's index lies between.
            low, high = (
                d * math.log(L / (2 * math.pi * config.option(r))) / (2 * math.log(b))
                for r in ("beta_fast", "beta_slow")
            )
            if config.option("truncate"):
                low, high = math.floor(low), math.ceil(high)
            low, high = max(low, 0), min(high, d - 1)
            if low > high:
                raise ValueError(
                    f"rope.scaling yarn has no pair to interpolate with rope.base {b:g}, rope.original_length {L} "
                    f"and its betas: choose a larger base or length"
                )
            ramp = ((i - low) / (high - low if high != low else 0.001)).clamp(0, 1)  # 0 fast, 1 slow
            default_factor = 0.1 * math.log(s) + 1
            return theta / s * ramp + theta * (1 - ramp), config.attention_factor or default_factor
        case "longrope":
            # LongRoPE (2402.13753): one searched divisor per pair, one list up to L and another past it.
            for name in ("short_factor", "long_factor"):
                if len(getattr(config, name)) != d // 2:
                    raise ValueError(
                        f"rope.{name} has {len(getattr(config, name))} numbers, and {d // 2} pairs are rotated"
                    )
            divisors = config.long_factor if n > L else config.short_factor
            default_factor = math.sqrt(1 + math.log(s) / math.log(L))
            return theta / torch.tensor(divisors, dtype=torch.float64), config.attention_factor or default_factor
        case "llama3":
            # Llama 3.1: short wavelengths unchanged, long ones divided by s, a blend between.
            wavelength = 2 * math.pi / theta
            low, high = config.option("low_freq_factor"), config.option("high_freq_factor")
            kept = ((L / wavelength - low) / (high - low)).clamp(0, 1)  # 1 short wavelengths, 0 long ones
            return (1 - kept) * theta / s + kept * theta, 1.0
        case "proportional":
            # The first share of the pairs turns as usual, the others not at all.
            turned = int((config.fraction * d_head + 1e-9) // 2)
            if not turned:
                raise ValueError(f"rope.fraction {config.fraction:g} of a head {d_head} wide leaves no pair to rotate")
            return torch.where(i < turned, theta, 0.0) / s, 1.0
    return theta, 1.0


def rotate(x: Tensor, positions: Tensor, theta: Tensor, layout: Layout = "interleaved") -> Tensor:
    """Turn every pair of features by its angle, position times frequency (RoFormer eq. 34).

    Args:
        x: queries or keys, (B, H, T, D).
        positions: absolute token positions, integers, (T,).
        theta: one frequency per rotated pair, radians per token, (D_rot / 2,), float32 or wider.
        layout: which features form a pair, see `Layout`.

    Returns:
        A tensor like x, in x's dtype; features past D_rot are untouched.
    """
    return turn(x, *cos_sin(positions, theta), layout)


def cos_sin(positions: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """The cosine and sine of every angle, position times frequency: (T, D_rot / 2) each, in theta's dtype.

    A bfloat16 holds every whole number only up to 256, so a position or an angle in it would already be another
    position.

    Raises:
        TypeError: if theta is below float32 or the positions are not integers.
    """
    if theta.dtype not in (torch.float32, torch.float64) or positions.is_floating_point():
        raise TypeError(
            f"angles need integer positions and theta in float32 or wider, not {positions.dtype}, {theta.dtype}"
        )
    angle = positions[:, None] * theta  # (T, D_rot/2), never below float32
    return angle.cos(), angle.sin()


def turn(x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
    """Rotate pairs (a, b) counter-clockwise: (a cos - b sin, b cos + a sin), RoFormer eq. 34.

    Computed in float32, or in float64 for x in float64, and only then cast to x's dtype.

    Args:
        x: queries or keys, (B, H, T, D).
        cos: (T, D_rot / 2).
        sin: (T, D_rot / 2).
        layout: which features form a pair.

    Returns:
        A tensor like x, in x's dtype; features past D_rot are untouched.
    """
    width = 2 * cos.shape[-1]
    if width < x.shape[-1]:  # partial rotation
        return torch.cat((turn(x[..., :width], cos, sin, layout), x[..., width:]), dim=-1)
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin, rotated = cos.to(wide), sin.to(wide), x.to(wide)
    if layout == "interleaved" and not torch.compiler.is_compiling():
        # Neighbours are already a complex number in memory, and this is eq. 12 as it stands: x e^{i m theta}. In one
        # pass over memory, it is several times faster than the two lines below.
        if any(stride % 2 for stride in rotated.stride()[:-1]) or rotated.stride(-1) != 1 or x.storage_offset() % 2:
            rotated = rotated.contiguous()  # else a pair does not start at an even place, as a complex number must
        turned = torch.view_as_complex(rotated.unflatten(-1, (-1, 2))) * torch.complex(cos, sin)  # (B, H, T, D_rot/2)
        turned = torch.view_as_real(turned).flatten(-2)  # (B, H, T, D_rot)
    elif layout == "interleaved":  # the compiler fuses real arithmetic alone
        a, b = rotated.unflatten(-1, (-1, 2)).unbind(-1)  # (B, H, T, D_rot/2) each
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)  # (B, H, T, D_rot)
    else:
        a, b = rotated.chunk(2, dim=-1)  # (B, H, T, D_rot/2) each
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)  # (B, H, T, D_rot)
    return turned.to(x.dtype)


def to_half_split(d_rot: int, d_head: int) -> Tensor:
    """The order in which interleaved features stand in the half-split layout.

    Rows of W_q and W_k taken in this order, head by head, make a half-split model that computes what the interleaved
    one did: `rotate(x, ...)[..., order]` equals `rotate(x[..., order], ..., layout="half-split")`.

    Args:
        d_rot: rotated features.
        d_head: all features of the head.

    Returns:
        Indices into the interleaved features, (d_head,).
    """
    even = torch.arange(0, d_rot, 2)
    return torch.cat((even, even + 1, torch.arange(d_rot, d_head)))


def pairs(config: RopeConfig, d_head: int, length: int) -> list[str]:
    """A line per pair: its frequency, wavelength and turns inside `length` tokens, before and after scaling."""
    theta, attention_factor = frequencies(config, d_head, length)
    unscaled = replace(config, **dict.fromkeys(SCALING_FIELDS), scaling="none", fraction=2 * len(theta) / d_head)
    plain, _ = frequencies(unscaled, d_head, length)
    lines = [f"{'pair':>4} {'theta':>12} {'wavelength':>12} {'turns':>9}    scaled: theta, as a share, turns"]
    for i, (before, after) in enumerate(zip(plain.tolist(), theta.tolist(), strict=True)):
        turns = length / (2 * math.pi)
        wave = 2 * math.pi / before
        lines.append(
            f"{i:>4} {before:>12.6g} {wave:>12.6g} {turns * before:>9.4g}    "
            f"{after:>12.6g} {after / before:>7.3f} {turns * after:>9.4g}"
        )
    lines.append(f"cos and sin are multiplied by {attention_factor:.6g}")
    if warning := yarn_warning(config, d_head):
        lines.append(f"warning: {warning}")
    return lines


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


def main(argv: list[str] | None = None) -> None:
    """Print the table of pairs for the options of the command line."""
    from harness.messages import BadInput
    from harness.options import Parser

    parser = Parser(prog="rope.py", description="How fast each pair of features turns, and how far inside a length.")
    parser.add_class_arguments(RopeConfig, "rope")
    parser.add_argument("--d_head", type=int, default=32, help="width of a head, features")
    parser.add_argument("--length", type=int, default=256, help="length in use, tokens")
    asked = parser.parse_args(argv)
    for name, least, most in (("length", 1, LARGEST["original_length"]), ("d_head", 2, 65536)):
        if not least <= getattr(asked, name) <= most:
            raise BadInput(f"--{name} {getattr(asked, name)} must be at least {least} and at most {most}")
    try:
        config = with_default_factor(parser.instantiate(asked).rope, asked.length)
        print("\n".join(pairs(config, asked.d_head, asked.length)))
    except ValueError as error:
        raise BadInput(f"--{error}") from error


if __name__ == "__main__":
    from harness.messages import run

    run(main, prints=True)
