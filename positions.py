"""Ways of telling a transformer about order, behind one interface of three hooks.

    1 embed   x + p(positions)          sinusoidal, learned      once, before the first layer
    2 rotate  q, k by their positions   rope                     in every layer, by angles computed once
    3 bias    scores + b(q_pos, k_pos)  alibi, t5, kerple        computed once, added in every layer

Positions are absolute integers, so a cache, a shift or a shard is only another tensor of positions. What depends on
them is computed when asked for, in float32 or wider, never kept in a buffer: a bfloat16 cannot tell 257 from 256.

To add a scheme: its class here, its line in `SCHEMES`, and a file like configs/kerple.yaml. `Kerple` is an example.
"""

import math
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from rope import DEPEND_ON_LENGTH, RopeConfig, cos_sin, frequencies, rotated_width, turn


class Position(nn.Module):
    """How a transformer knows order. A scheme overrides one hook and inherits the others; `none` overrides nothing.

    One instance serves all layers; its config is a `model.ModelConfig`. Even with `none` a causal decoder is no bag of
    words: the token at position p sees p others, and that count alone can tell p (NoPE: 2203.16634, 2305.19466).
    """

    Options: type | None = None  # a dataclass of its own options: --model.NAME.* for users, config.options here
    label, color, dash, marker = "none", "#999999", (0, (1, 1)), "x"  # how pictures show it
    in_comparison = False  # whether compare.py trains it by default

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.longest: int | None = None  # positions are 0 .. longest - 1; None where they never end
        self.d_key = config.d_head  # the width of q and k after `rotate`; a scheme may widen them

    @classmethod
    def settle(cls, config: Any) -> Any:
        """For ModelConfig to call: the options completed from the model, None to keep them. ValueError: no fit."""

    def first_value(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor | None:
        """What the parameter self.NAME starts as; None for the model's own rule, N(0, init_std)."""

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Token embeddings with what the scheme adds to them: (B, T, C), (T,) -> (B, T, C)."""
        return x

    def angles(self, positions: Tensor, dtype: torch.dtype) -> Any:
        """What `rotate` is handed in every layer: computed from the positions, (T,), once per forward pass."""

    def rotate(self, q: Tensor, k: Tensor, angles: Any, layer: int) -> tuple[Tensor, Tensor]:
        """Queries (B, H, T, D) and keys (B, Hkv, T, D) of the same positions, turned: (..., d_key). Layers: from 0."""
        return q, k

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor | None:
        """What is added to every score after the division by sqrt(D): (Tq,), (Tk,) -> (H, Tq, Tk), or None."""

    def outdates_cache(self, used: int, positions: Tensor) -> bool:
        """Whether keys cached for positions[:used] would be other keys if computed now, for all the positions, (T,)."""
        return False


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class SinusoidalOptions:
    """Options of the scheme sinusoidal.

    Args:
        amplitude: what the waves are multiplied by before they meet the embeddings.
    """

    amplitude: Annotated[float, Field(ge=1e-6, le=1000)] = 0.14


class Sinusoidal(Position):
    """Fixed waves added to the embeddings once (Attention is all you need, 1706.03762, section 3.5).

        PE[p, 2i] = sin(p theta_i),  PE[p, 2i+1] = cos(p theta_i),  theta_i = 10000^(-2i/d_model)

    RoPE's frequencies, added where RoPE rotates. The paper's amplitude is 1; here less does better (results/SWEEPS.md).
    """

    Options = SinusoidalOptions
    label, color, dash, marker, in_comparison = "sinusoidal", "#E69F00", "--", "s", True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.theta, _ = frequencies(RopeConfig(), config.d_model, config.seq_len)  # (C/2,)
        self.amplitude = config.options.amplitude

    @classmethod
    def settle(cls, config: Any) -> SinusoidalOptions:
        if config.d_model % 2:
            raise ValueError(f"model.d_model {config.d_model} must be even: sinusoidal waves are sines and cosines")
        return config.options

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        cos, sin = cos_sin(positions, on_device(self.theta, x))  # (T, C/2) each
        waves = torch.stack((sin, cos), dim=-1).flatten(-2)  # (T, C): sin, cos, sin, cos, ...
        return x + (self.amplitude * waves).to(x.dtype)


class PastTheEnd(ValueError):
    """A position was asked for that a learned table does not have."""


class Learned(Position):
    """One trained vector per position, added to the embeddings once (GPT-2, BERT). Past the table there is none."""

    label, color, dash, marker, in_comparison = "learned", "#009E73", "-.", "^", True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.longest = config.seq_len
        self.table = nn.Parameter(torch.empty(config.seq_len, config.d_model))

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        outside = (positions < 0) | (positions >= self.longest)  # (T,)
        if not torch.compiler.is_compiling() and outside.any():  # not checked there: it would break the graph in two
            raise PastTheEnd(f"learned positions end at {self.longest}: there is no {int(positions[outside][0])}")
        return x + self.table[positions].to(x.dtype)


class Alibi(Position):
    """A penalty that grows linearly with distance, at another slope for every head (Press et al., 2108.12409).

    score += -slope_h |m - k| for a query at m and a key at k, not divided by sqrt(D). For H = 2^a heads slope_h is
    2^(-8h/H), h = 1 .. H; for others those of the power of two below H, then the 1st, 3rd, ... of the power above.
    """

    label, color, dash, marker, in_comparison = "ALiBi", "#0072B2", (0, (5, 1, 1, 1, 1, 1)), "D", True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        power = 2 ** math.floor(math.log2(config.n_head))
        row, finer = ([2 ** (-8 * h / heads) for h in range(1, heads + 1)] for heads in (power, 2 * power))
        self.slopes = torch.tensor(row + finer[::2][: config.n_head - power], dtype=torch.float64)  # (H,)

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        distance = (q_positions[:, None] - k_positions).abs()  # (Tq, Tk)
        return -on_device(self.slopes, q_positions).float()[:, None, None] * distance  # (H, Tq, Tk)


class Kerple(Position):
    """A penalty that grows with the logarithm of distance, its scale and its bend trained for each head (2205.09921).

    score += -p_h ln(1 + a_h (m - k)), p and a the same in all layers. Where used they are 0.01 at least, and their
    gradient passes as if nothing held them there, so that they can come back.
    """

    label, color, dash, marker = "KERPLE", "#56B4E9", (0, (3, 1, 1, 1)), "P"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.p, self.a = (nn.Parameter(torch.empty(config.n_head)) for _ in range(2))  # (H,) each

    def first_value(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        return torch.rand(shape, generator=generator) * (2 if name == "p" else 1)  # p in [0, 2), a in [0, 1)

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        distance = (q_positions[:, None] - k_positions).clamp(min=0)  # (Tq, Tk); later keys are masked
        p, a = (x.float() + (x.clamp(min=0.01) - x).float().detach() for x in (self.p, self.a))  # (H,) each
        return -p[:, None, None] * torch.log1p(a[:, None, None] * distance)  # (H, Tq, Tk)


class T5(Position):
    """A trained bias per head and bucket of distance, shared by all layers (T5, 1910.10683, section 2.1).

    T5 itself leaves scores undivided by sqrt(D); here they are divided, as for all schemes, and then the bias is added.
    """

    BUCKETS, MAX_DISTANCE = 32, 128
    label, color, dash, marker = "T5", "#CC79A7", ":", "v"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.table = nn.Parameter(torch.empty(self.BUCKETS, config.n_head))
        self.bucket = torch.tensor([t5_bucket(n) for n in range(self.MAX_DISTANCE + 1)])  # (129,), exact integers

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        distance = (q_positions[:, None] - k_positions).clamp(0, self.MAX_DISTANCE)  # (Tq, Tk); later keys are masked
        bucket = self.bucket.to(q_positions.device)[distance]  # (Tq, Tk)
        return self.table[bucket].permute(2, 0, 1)  # (H, Tq, Tk)


def t5_bucket(distance: int, buckets: int = T5.BUCKETS, max_distance: int = T5.MAX_DISTANCE) -> int:
    """Which bucket a distance in tokens (query minus key, at least 0) falls into, for a causal decoder.

    Half of the buckets hold one distance each; then a bucket's number grows with log(distance); the last has the rest.
    """
    exact = buckets // 2
    far = exact + int(math.log(max(distance, exact) / exact) / math.log(max_distance / exact) * exact)
    return distance if distance < exact else min(far, buckets - 1)


class Rope(Position):
    """Queries and keys turned by their positions in every layer (RoFormer, 2104.09864); the mathematics is in rope.py.

    The attention factor of yarn and longrope multiplies cos and sin, so it reaches the rotated features only. With
    `learn_factors` theta_j becomes theta_j exp(-log_factor_j), trained from 0, for all heads and layers alike.
    """

    Options = RopeConfig
    label, color, dash, marker, in_comparison = "RoPE", "#D55E00", "-", "o", True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.config, self.d_head = config.options, config.d_head
        self.fixed = None if self.config.scaling in DEPEND_ON_LENGTH else frequencies(self.config, self.d_head, 0)
        log_factor = torch.zeros(rotated_width(self.config, self.d_head) // 2)  # (D_rot/2,)
        self.log_factor = nn.Parameter(log_factor) if self.config.learn_factors else None

    @classmethod
    def settle(cls, config: Any) -> RopeConfig:
        rope, L = config.options, config.options.original_length
        if rope.scaling == "longrope" and L and not (rope.factor or rope.attention_factor):
            rope = replace(rope, factor=max(1.0, config.seq_len / L))  # lists divide theta; this sets attention_factor
        frequencies(rope, config.d_head, config.seq_len)  # a ValueError for options that do not fit, or no L
        return rope

    def first_value(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        return torch.zeros(shape)

    def angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin of all angles, times the attention factor: (T, D_rot / 2) each."""
        theta, attention_factor = self.frequencies_at(positions)
        theta = on_device(theta, positions)
        if self.log_factor is not None:
            theta = theta * torch.exp(-self.log_factor.to(theta.dtype))  # (D_rot/2,); the gradient goes through here
        wide = torch.promote_types(dtype, torch.float32)
        return tuple((attention_factor * part).to(wide) for part in cos_sin(positions, theta))

    def rotate(self, q: Tensor, k: Tensor, angles: tuple[Tensor, Tensor], layer: int) -> tuple[Tensor, Tensor]:
        return turn(q, *angles, self.config.layout), turn(k, *angles, self.config.layout)

    def outdates_cache(self, used: int, positions: Tensor) -> bool:
        then, now = (self.frequencies_at(part)[0] for part in (positions[:used], positions))
        return self.fixed is None and not torch.equal(then, now)

    def frequencies_at(self, positions: Tensor) -> tuple[Tensor, float]:
        return self.fixed or frequencies(self.config, self.d_head, int(positions.max()) + 1)


def on_device(table: Tensor, like: Tensor) -> Tensor:
    """A table in float64 on another tensor's device; in float32 on Apple's MPS, which has no float64."""
    return table.to(like.device, torch.float32 if like.device.type == "mps" else torch.float64)


SCHEMES: dict[str, type[Position]] = {
    "none": Position,
    "sinusoidal": Sinusoidal,
    "learned": Learned,
    "alibi": Alibi,
    "kerple": Kerple,
    "t5": T5,
    "rope": Rope,
}
