"""Rotary position embedding (RoPE): which frequencies, and the rotation itself.

RoFormer (Su et al., arXiv 2104.09864, section 3) asks for a map f of queries and keys, each at its position, such that
their product depends on the two positions through the distance between them alone (eq. 11):

    <f(q, m), f(k, n)> = g(q, k, m - n)

Take two features first, and read the pair as one complex number. Turn it by an angle proportional to its position:

    f(q, m) = q e^{i m theta}                                                              (eq. 12)

The product of two real vectors is Re[a b*] of the complex numbers that they are, so a score is

    <f(q, m), f(k, n)> = Re[ q e^{i m theta}  (k e^{i n theta})* ]
                       = Re[ q e^{i m theta}  k* e^{-i n theta} ]      conjugating turns the key the other way
                       = Re[ q k*  e^{i (m - n) theta} ]               and only the distance is left: that is g

In real numbers the turn is a 2 x 2 matrix, rows (cos m theta, -sin m theta) and (sin m theta, cos m theta). A head of d
features has d/2 pairs, each with a frequency of its own: fast pairs tell near tokens apart, slow pairs far ones. All
turns together are a block-diagonal matrix R_m (eq. 14, 15), and since R_m^T R_n = R_{n-m},

    q_m . k_n = (R_m W_q x_m)^T (R_n W_k x_n) = x_m^T W_q^T R_{n-m} W_k x_n                 (eq. 16)
    theta_i   = base^(-2i/d),  i = 0 .. d/2 - 1                                            (radians per token)

No parameter is added, a vector keeps its length, and position 0 is not turned. A matrix of mostly zeros is never
multiplied: `turn` does eq. 34, elementwise. A `scaling` slows frequencies, so that a model can be used past the length
that it was trained on; yarn and longrope also make what they rotate longer, by an attention factor.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

Layout = Literal["interleaved", "half-split"]
"""Which two features form a pair: 2i with 2i + 1, neighbours, as in the paper; or i with i + d/2, as in GPT-NeoX, Llama
and the transformers library. They are one function up to a fixed reordering of features (`to_half_split`), but weights
trained with one and run with the other give fluent nonsense.
"""


def frequencies(config: "RopeConfig", d_head: int, length: int) -> tuple[Tensor, float]:
    """How fast each pair of features turns, and what its cos and sin are multiplied by.

    Args:
        config: base, fraction, scaling and its options.
        d_head: width of a head, features.
        length: the length in use (n), the largest position + 1, tokens. Only dynamic and longrope look at it.

    Returns:
        theta, one frequency per rotated pair, radians per token, (D_rot / 2,), float64; and the attention factor.

    Raises:
        ValueError: for options that do not fit the width of the head, by name.
    """
    d = rotated_width(config, d_head)
    i = torch.arange(d // 2, dtype=torch.float64)
    b, s, L, n = config.base, config.factor or 1.0, config.original_length, length
    theta = b ** (-2 * i / d)

    match config.scaling:
        case "linear":  # Position Interpolation (2306.15595): squeezes positions, m / s, and so slows all pairs alike
            return theta / s, 1.0
        case "ntk":  # NTK-aware: a base b' that slows the slowest pair by s, the fastest not at all, i by s^(2i/(d-2))
            return (b * s ** (d / (d - 2))) ** (-2 * i / d), 1.0
        case "dynamic":  # dynamic NTK: unchanged up to L, past it a base that grows with the length in use
            stretch = s * n / L - (s - 1) if n > L else 1.0
            return (b * stretch ** (d / (d - 2))) ** (-2 * i / d), 1.0
        case "yarn":  # YaRN (2309.00071): fast pairs keep their speed, slow ones are divided by s, a ramp lies between
            turns = config.option("beta_fast"), config.option("beta_slow")  # within L
            low, high = (d * math.log(L / (2 * math.pi * r)) / (2 * math.log(b)) for r in turns)
            if config.option("truncate"):
                low, high = math.floor(low), math.ceil(high)
            low, high = max(low, 0), min(high, d - 1)  # indices of pairs, and d - 1 as the authors have it
            if low > high:
                raise ValueError(f"rope.scaling yarn has no pair to slow at rope.base {b:g}: choose a larger base")
            ramp = ((i - low) / (high - low if high != low else 0.001)).clamp(0, 1)  # 0 fast, 1 slow
            return theta / s * ramp + theta * (1 - ramp), config.attention_factor or 0.1 * math.log(s) + 1
        case "longrope":  # LongRoPE (2402.13753): a searched divisor for each pair, one list up to L, another past it
            divisors = torch.tensor(config.long_factor if n > L else config.short_factor, dtype=torch.float64)
            return theta / divisors, config.attention_factor or math.sqrt(1 + math.log(s) / math.log(L))
        case "llama3":  # Llama 3.1: short wavelengths unchanged, long ones divided by s, a blend between
            low, high = config.option("low_freq_factor"), config.option("high_freq_factor")
            wavelength = 2 * math.pi / theta
            kept = ((L / wavelength - low) / (high - low)).clamp(0, 1)  # 1 short wavelengths, 0 long ones
            return (1 - kept) * theta / s + kept * theta, 1.0
        case "proportional":  # the first share of all pairs turns as usual, the others not at all
            turned = int((config.fraction * d_head + 1e-9) // 2)
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
    cos, sin = cos_sin(positions, theta)  # (T, D_rot/2) each
    return turn(x, cos, sin, layout)


def cos_sin(positions: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """The cosine and sine of every angle, position times frequency: (T,), (D_rot / 2,) -> (T, D_rot / 2) each.

    A bfloat16 holds every whole number only up to 256: a position or an angle in it would be that of another token.
    """
    if theta.dtype not in (torch.float32, torch.float64) or positions.is_floating_point():
        raise TypeError(f"need integer positions and float32 or 64 for theta, not {positions.dtype}, {theta.dtype}")
    angle = positions[:, None] * theta  # (T, D_rot/2), never below float32
    return angle.cos(), angle.sin()


def turn(x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
    """Rotate pairs (a, b) counter-clockwise: (a cos - b sin, b cos + a sin), the second half of RoFormer eq. 34.

    Shapes and result are those of `rotate`; cos and sin, (T, D_rot / 2) each, are those of its angles. Computed in
    float32, or in float64 for x in float64, and only then cast to x's dtype.
    """
    width = 2 * cos.shape[-1]
    if width < x.shape[-1]:  # partial rotation
        return torch.cat((turn(x[..., :width], cos, sin, layout), x[..., width:]), dim=-1)
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin, pairs = cos.to(wide), sin.to(wide), x.to(wide)
    if layout == "half-split":
        a, b = pairs.chunk(2, dim=-1)  # (B, H, T, D_rot/2) each
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)  # (B, H, T, D_rot)
    elif torch.compiler.is_compiling():  # the compiler fuses real arithmetic alone
        a, b = pairs.unflatten(-1, (-1, 2)).unbind(-1)  # (B, H, T, D_rot/2) each
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)  # (B, H, T, D_rot)
    else:  # neighbours lie in memory as a complex number, and eq. 12 as it stands is one pass: 5% off a training step
        turned = as_complex(pairs) * torch.complex(cos, sin)  # (B, H, T, D_rot/2): x e^{i m theta}
        turned = torch.view_as_real(turned).flatten(-2)  # (B, H, T, D_rot)
    return turned.to(x.dtype)


def as_complex(x: Tensor) -> Tensor:
    """Neighbouring features as one complex number, (..., D) -> (..., D/2); copied where pairs start at odd places."""
    odd = x.stride(-1) != 1 or x.storage_offset() % 2 or any(stride % 2 for stride in x.stride()[:-1])
    return torch.view_as_complex((x.contiguous() if odd else x).unflatten(-1, (-1, 2)))


def to_half_split(d_rot: int, d_head: int) -> Tensor:
    """The order in which interleaved features stand in the half-split layout: indices, (d_head,).

    Rows of W_q and W_k taken in this order, head by head, make a half-split model that computes what the interleaved
    one did: `rotate(x, ...)[..., order]` equals `rotate(x[..., order], ..., layout="half-split")`.
    """
    even = torch.arange(0, d_rot, 2)
    return torch.cat((even, even + 1, torch.arange(d_rot, d_head)))


# ---- the options -----------------------------------------------------------------------------------------------------

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
SCALING_FIELDS = sorted(set().union(*(needs | also for needs, also in OPTIONS.values())))
PUBLISHED = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "low_freq_factor": 1, "high_freq_factor": 4}
NEEDS_ORIGINAL_LENGTH = {"dynamic", "yarn", "longrope", "llama3"}
DEPEND_ON_LENGTH = {"dynamic", "longrope"}  # frequencies change with the length in use
Turns = Annotated[float | None, Field(ge=1e-6, le=1e6)]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class RopeConfig:
    """The rotation's choices. An option that the chosen scaling does not take is refused by name.

    Args:
        base: the frequencies' base. A larger one turns the slow pairs slower.
        layout: which features form a pair: interleaved (the paper) or half-split (Llama).
        fraction: share of each head's features that are rotated; the others pass through.
        scaling: how frequencies are slowed past the trained length.
        factor: how many times longer than trained (s); for longrope seq_len / original_length if not given.
        original_length: the length the weights were first trained at (L), tokens.
        beta_fast: yarn: pairs that turn more often than this within L are left alone. 32 if not given.
        beta_slow: yarn: pairs that turn less often than this within L are slowed by the whole factor. 1 if not given.
        truncate: yarn: round the ramp's ends to whole pairs. True if not given.
        attention_factor: yarn, longrope: what cos and sin are multiplied by, instead of the paper's formula.
        low_freq_factor: llama3: wavelengths above L / this are slowed by the whole factor. 1 if not given.
        high_freq_factor: llama3: wavelengths below L / this are left alone. 4 if not given.
        short_factor: longrope: one divisor per pair for lengths up to L.
        long_factor: longrope: one divisor per pair for lengths past L.
        learn_factors: train one more divisor per pair, on top of any scaling but dynamic and proportional.
    """

    base: Annotated[float, Field(gt=1, le=1e18)] = 10000.0
    layout: Layout = "interleaved"
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    scaling: Literal["none", "linear", "ntk", "dynamic", "yarn", "longrope", "llama3", "proportional"] = "none"
    factor: Annotated[float | None, Field(ge=1, le=1e6)] = None
    original_length: Annotated[int | None, Field(ge=2, le=10**12)] = None
    beta_fast: Turns = None
    beta_slow: Turns = None
    truncate: bool | None = None
    attention_factor: Annotated[float | None, Field(ge=1e-6, le=1e3)] = None
    low_freq_factor: Turns = None
    high_freq_factor: Turns = None
    short_factor: list[float] | None = None
    long_factor: list[float] | None = None
    learn_factors: bool = False

    def __post_init__(self) -> None:
        needs, also = OPTIONS[self.scaling]
        for name in SCALING_FIELDS:
            if getattr(self, name) is not None and name not in needs | also:
                takes = ", ".join(sorted(needs | also)) or "no options"
                raise ValueError(f"rope.{name} means nothing to rope.scaling {self.scaling}, which takes {takes}")
            if getattr(self, name) is None and name in needs:
                raise ValueError(f"rope.scaling {self.scaling} needs rope.{name}: give it too")
        for name in ("short_factor", "long_factor"):
            if wrong := [each for each in getattr(self, name) or () if not 1e-6 <= each <= 1e6]:
                raise ValueError(f"rope.{name} holds {wrong[0]:g}: each divisor must lie between 1e-6 and 1e6")
        for low, high in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
            if self.option(low) >= self.option(high):
                raise ValueError(f"rope.{low} {self.option(low):g} must be below rope.{high} {self.option(high):g}")
        if self.learn_factors and self.scaling in ("dynamic", "proportional"):  # no fixed list of divisors is like them
            raise ValueError(f"rope.learn_factors true does not go with rope.scaling {self.scaling}: choose another")

    def option(self, name: str) -> float:
        """The value given for an option, or its published default."""
        return PUBLISHED[name] if getattr(self, name) is None else getattr(self, name)


def rotated_width(config: RopeConfig, d_head: int) -> int:
    """How many of a head's d_head features are rotated: all for proportional, which turns some of the pairs by nothing.

    Raises:
        ValueError: for options that do not fit that many features, by name.
    """
    scaling, asked = config.scaling, f"rope.fraction {config.fraction:g} of a head {d_head} wide"
    d = int((1.0 if scaling == "proportional" else config.fraction) * d_head + 1e-9)  # 0.58 * 100 is 57.99...
    if d < 2 or d % 2:
        raise ValueError(f"{asked} rotates {d} features, not pairs of them: change n_head, d_model or rope.fraction")
    if config.original_length is None and scaling in NEEDS_ORIGINAL_LENGTH:
        raise ValueError(f"rope.scaling {scaling} needs rope.original_length, the length trained at first")
    if d == 2 and scaling in ("ntk", "dynamic"):
        raise ValueError(f"rope.scaling {scaling} needs a rotated width of at least 4, and this one is 2")
    for name in ("short_factor", "long_factor") if scaling == "longrope" else ():
        if len(getattr(config, name)) != d // 2:
            raise ValueError(f"rope.{name} has {len(getattr(config, name))} numbers, and {d // 2} pairs are rotated")
    if scaling == "proportional" and config.fraction * d_head + 1e-9 < 2:
        raise ValueError(f"{asked} leaves no pair to rotate: choose a larger one")
    return d
