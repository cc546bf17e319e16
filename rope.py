"""Rotary position embedding (RoPE): which frequencies, and the rotation itself.

RoFormer (Su et al., arXiv 2104.09864, section 3) asks for a map f of queries and keys, each at its position, such that
their product depends on the two positions through the distance between them alone (eq. 11):

    <f(q, m), f(k, n)> = g(q, k, m - n)

Take two features first, (x, y), and read them as the complex number x + iy. Turn it in proportion to its position:

    f(q, m) = q e^{i m theta}                                                              (eq. 12)

The dot product of two pairs a and b is Re[a b*], so a score is

    <f(q, m), f(k, n)> = Re[ q e^{i m theta}  (k e^{i n theta})* ]
                       = Re[ q e^{i m theta}  k* e^{-i n theta} ]      conjugating turns the key the other way
                       = Re[ q k*  e^{i (m - n) theta} ]               and only the distance is left: that is g

A head of d features has d/2 pairs, each with a frequency of its own. A pair is back where it was after 2 pi / theta
tokens, so fast pairs tell near tokens apart, slow pairs far ones:

    theta_j = base^(-2j/d),  j = 0 .. d/2 - 1                                              (radians per token)

In real numbers a turn is a 2 x 2 matrix, rows (cos m theta, -sin m theta) and (sin m theta, cos m theta), and all turns
of a head are one block-diagonal matrix R_m (eq. 14, 15). A query is q = W_q x_m and a key k = W_k x_n, of tokens with
features x_m and x_n. Since R_m^T R_n = R_{n-m}, only the distance is left (k turned by n - m is q turned by m - n):

    (R_m W_q x_m)^T (R_n W_k x_n) = x_m^T W_q^T R_{n-m} W_k x_n                             (eq. 16)

No parameter is added, a vector keeps its norm, and position 0 is not turned. R_m is never built: `turn` works pair by
pair (eq. 34). Past the trained length slow pairs come to angles never seen in training; a `scaling` slows them. Two of
the scalings have an attention factor too, by which positions.Rope multiplies cos and sin.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

Layout = Literal["interleaved", "half-split"]
"""Which two features form a pair: 2j with 2j + 1, neighbours, as in the paper; or j with j + d/2, as in GPT-NeoX, Llama
and the transformers library. Interleaved weights become half-split ones when each head's rows of W_q and W_k are put in
the order 0, 2, 4, ..., 1, 3, 5, ...; run with the other layout as they are, they give nonsense, without an error.
"""


def frequencies(config: "RopeConfig", d_head: int, length: int) -> tuple[Tensor, float]:
    """How fast each pair of features turns, and the attention factor. What the options mean: see `RopeConfig`.

    Args:
        config: base, fraction, scaling and its options.
        d_head: width of a head, features.
        length: the length in use, the largest position + 1, tokens. Only dynamic and longrope look at it.

    Returns:
        theta, one frequency per rotated pair, radians per token, (D_rot / 2,), float64; and the attention factor.

    Raises:
        ValueError: naming the option that does not fit the head's width.
    """
    d = rotated_width(config, d_head)  # D_rot: d_head, or less where only a part is rotated
    j = torch.arange(d // 2, dtype=torch.float64)
    base, s, L = config.base, config.factor or 1.0, config.original_length
    theta = base ** (-2 * j / d)

    match config.scaling:
        case "linear":  # Position Interpolation (2306.15595): squeezes positions, m / s, and so slows all pairs alike
            return theta / s, 1.0
        case "ntk":  # NTK-aware: a larger base. Pair j is slowed by s^(2j/(d-2)): the first not at all, the last by s
            return (base * s ** (d / (d - 2))) ** (-2 * j / d), 1.0
        case "dynamic":  # dynamic NTK: unchanged up to L, past it a base that grows with the length in use
            stretch = s * length / L - (s - 1) if length > L else 1.0  # 1 at L, and s more for every L past it
            return (base * stretch ** (d / (d - 2))) ** (-2 * j / d), 1.0
        case "yarn":  # YaRN (2309.00071): fast pairs keep their speed, slow ones are divided by s, a ramp lies between
            turns = config.option("beta_fast"), config.option("beta_slow")  # r = L theta_j / (2 pi) from fast to slow
            first, last = (d * math.log(L / (2 * math.pi * r)) / (2 * math.log(base)) for r in turns)  # solved for j
            if config.option("truncate"):
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, d - 1)  # the authors' d - 1, though pairs end at d/2 - 1
            if first > last:
                raise ValueError(f"rope.scaling yarn has no ramp at rope.base {base:g} and rope.original_length {L}")
            slow = ((j - first) / (last - first or 0.001)).clamp(0, 1)  # 0 fast, 1 slow; no division by 0
            return theta / s * slow + theta * (1 - slow), config.attention_factor or 0.1 * math.log(s) + 1
        case "longrope":  # LongRoPE (2402.13753): a divisor for each pair, found by search, and other ones past L
            divisors = torch.tensor(config.long_factor if length > L else config.short_factor, dtype=torch.float64)
            return theta / divisors, config.attention_factor or math.sqrt(1 + math.log(s) / math.log(L))
        case "llama3":  # Llama 3.1: as yarn, with a blend in turns within L instead of a ramp in pairs
            few, many = config.option("low_freq_factor"), config.option("high_freq_factor")
            fast = ((L * theta / (2 * math.pi) - few) / (many - few)).clamp(0, 1)  # 0 slow, 1 fast
            return (1 - fast) * theta / s + fast * theta, 1.0
        case "proportional":  # the first (fastest) `fraction` of all pairs turns, by theta / s, the others not at all
            n_turned = int((config.fraction * d_head + 1e-9) // 2)  # 1e-9: 0.58 * 100 is 57.99...
            return torch.where(j < n_turned, theta, 0.0) / s, 1.0
    return theta, 1.0


def rotate(x: Tensor, positions: Tensor, theta: Tensor, layout: Layout = "interleaved") -> Tensor:
    """Turn every pair of features by its angle, position times frequency (RoFormer eq. 34). No attention factor.

    The model calls the two lines apart: `cos_sin` once per forward pass, `turn` in every layer.

    Args:
        x: queries or keys, (B, H, T, D).
        positions: absolute token positions, integers, (T,).
        theta: one frequency per rotated pair, radians per token, (D_rot / 2,), float32 or wider.
        layout: which features form a pair.

    Returns:
        A tensor like x, in x's dtype; features past D_rot are untouched.
    """
    cos, sin = cos_sin(positions, theta)  # (T, D_rot/2) each
    return turn(x, cos, sin, layout)


def cos_sin(positions: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """The cosine and sine of every angle, position times frequency: (T,), (D_rot / 2,) -> (T, D_rot / 2) each."""
    if theta.dtype not in (torch.float32, torch.float64) or positions.is_floating_point():
        raise TypeError(f"need integer positions and float32 or 64 for theta, not {positions.dtype}, {theta.dtype}")
    angle = positions[:, None] * theta  # (T, D_rot/2), never below float32: a bfloat16 cannot tell 257 from 256
    return angle.cos(), angle.sin()


def turn(x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
    """The products and sums of RoFormer eq. 34: pairs (a, b) become (a cos - b sin, b cos + a sin), counter-clockwise.

    Shapes and result are those of `rotate`; cos and sin, (T, D_rot / 2) each, are those of its angles. Computed in
    float32, or in float64 for x in float64, and only then cast to x's dtype.
    """
    width = 2 * cos.shape[-1]
    if width < x.shape[-1]:  # partial rotation
        return torch.cat((turn(x[..., :width], cos, sin, layout), x[..., width:]), dim=-1)
    dtype = torch.promote_types(x.dtype, torch.float32)
    cos, sin, wide = cos.to(dtype), sin.to(dtype), x.to(dtype)
    if layout == "half-split":
        a, b = wide.chunk(2, dim=-1)  # (B, H, T, D_rot/2) each
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)  # (B, H, T, D_rot)
    elif torch.compiler.is_compiling():  # the compiler fuses only real arithmetic
        a, b = wide.unflatten(-1, (-1, 2)).unbind(-1)  # (B, H, T, D_rot/2) each
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)  # (B, H, T, D_rot)
    else:  # neighbours are a complex number in memory: eq. 12 in one pass, 4% less time for a training step on a CPU
        wide = wide.clone(memory_format=torch.contiguous_format)  # pairs must begin at even places, whatever x is
        pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))  # (B, H, T, D_rot/2)
        turned = torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)  # (B, H, T, D_rot): x e^{i m theta}
    return turned.to(x.dtype)


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
Factor = Annotated[float, Field(ge=1e-6, le=10**6)]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class RopeConfig:
    """The rotation's choices. An option that the chosen scaling does not take is refused by name.

    Args:
        base: the frequencies' base. A larger one turns the slow pairs slower.
        layout: which features form a pair: interleaved (the paper) or half-split (Llama).
        fraction: share of each head's features that are rotated; the others pass through.
        scaling: how frequencies are slowed to reach past the trained length.
        factor: how many times longer than trained (s). If longrope has none, a model sets its own seq_len / L.
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
    factor: Annotated[float | None, Field(ge=1, le=10**6)] = None
    original_length: Annotated[int | None, Field(ge=2, le=10**12)] = None
    beta_fast: Factor | None = None
    beta_slow: Factor | None = None
    truncate: bool | None = None
    attention_factor: Annotated[float | None, Field(ge=1e-6, le=1000)] = None
    low_freq_factor: Factor | None = None
    high_freq_factor: Factor | None = None
    short_factor: list[Factor] | None = None
    long_factor: list[Factor] | None = None
    learn_factors: bool = False

    def __post_init__(self) -> None:
        needs, also = OPTIONS[self.scaling]
        for name in SCALING_FIELDS:
            if getattr(self, name) is not None and name not in needs | also:
                takes = ", ".join(sorted(needs | also)) or "no options"
                raise ValueError(f"rope.{name} means nothing to rope.scaling {self.scaling}, which takes {takes}")
            if getattr(self, name) is None and name in needs:
                raise ValueError(f"rope.scaling {self.scaling} needs rope.{name}: give it too")
        for low, high in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
            if self.option(low) >= self.option(high):
                raise ValueError(f"rope.{low} {self.option(low):g} must be below rope.{high} {self.option(high):g}")
        if self.learn_factors and self.scaling in ("dynamic", "proportional"):  # divisors change or are infinite
            raise ValueError(f"rope.learn_factors true does not go with rope.scaling {self.scaling}: choose another")

    def option(self, name: str) -> float:
        """The value given for an option, or its published default."""
        return PUBLISHED[name] if getattr(self, name) is None else getattr(self, name)


def rotated_width(config: RopeConfig, d_head: int) -> int:
    """How many of a head's d_head features are rotated: all for proportional, whose last pairs have frequency 0.

    Raises:
        ValueError: for options that do not fit that many features, by name.
    """
    scaling, asked = config.scaling, f"rope.fraction {config.fraction:g} of a head {d_head} wide"
    d = int((1.0 if scaling == "proportional" else config.fraction) * d_head + 1e-9)
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
