"""Every way of telling a transformer about order, behind one interface of three hooks.

    1 embed   x + p(positions)          sinusoidal, learned      once, at the bottom
    2 rotate  q, k by their positions   rope                     in every attention layer
    3 bias    scores + b(q_pos, k_pos)  alibi, t5                in every attention layer

A scheme acts through one hook and inherits the others, which do nothing; `none` overrides nothing. (Rope also prepares
its angles in `embed`, and says through `changes` when a cache has to be rebuilt.) One instance serves all layers.
Positions are absolute integers, so a cache, a shift or a shard is only another tensor of positions.

Tables that depend on positions are computed when asked for, in float32 or wider. They are never module buffers, since
`model.bfloat16()` would round a buffer, and a bfloat16 cannot tell position 257 from 256.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rope import DEPEND_ON_LENGTH, RopeConfig, cos_sin, frequencies, rotated_width, turn

if TYPE_CHECKING:
    from model import ModelConfig


class Position(nn.Module):
    """How a transformer knows order. A scheme overrides one hook and inherits the others; `none` overrides nothing.

    Without any of it a causal decoder still is no bag of words: its mask lets token 5 see four tokens before it, and
    that count alone can tell position (NoPE: 2203.16634, 2305.19466).
    """

    longest: int | None = None
    """The number of positions there are; None where positions never end."""

    def __init__(self, config: "ModelConfig") -> None:
        super().__init__()

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Token embeddings with what the scheme adds to them: (B, T, C), (T,) -> (B, T, C)."""
        return x

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys at these positions, (B, H, T, D) each, turned by the scheme; keys may have fewer heads."""
        return q, k

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor | None:
        """What is added to every score after the division by sqrt(D): (Tq,), (Tk,) -> (H, Tq, Tk), or None."""
        return None

    def changes(self, used: int, positions: Tensor) -> bool:
        """Whether what the scheme did for the first `used` of these positions, (T,), is another thing now."""
        return False


class Sinusoidal(Position):
    """Fixed waves added to the embeddings once (Attention is all you need, 1706.03762, section 3.5).

        PE[p, 2i] = sin(p theta_i),  PE[p, 2i+1] = cos(p theta_i),  theta_i = 10000^(-2i/d_model)

    These are RoPE's frequencies over the whole width of the model, added where RoPE multiplies. The waves have
    amplitude 1 in the paper, where embeddings are multiplied by sqrt(d_model) first. Here embeddings start at
    `init_std`, and waves of amplitude 1 would drown them for most of a short training, so they are scaled by
    `sinusoidal_amplitude`; what that is worth is measured in results/.
    """

    def __init__(self, config: "ModelConfig") -> None:
        super().__init__(config)
        self.theta, _ = frequencies(RopeConfig(), config.d_model, config.seq_len)  # (C/2,)
        self.amplitude = config.sinusoidal_amplitude

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        cos, sin = cos_sin(positions, on_device(self.theta, x))  # (T, C/2) each
        waves = torch.stack((sin, cos), dim=-1).flatten(-2)  # (T, C): sin, cos, sin, cos, ...
        return x + (self.amplitude * waves).to(x.dtype)


class Learned(Position):
    """One trained vector per position, added to the embeddings once (GPT-2, BERT). Past the table there is nothing."""

    def __init__(self, config: "ModelConfig") -> None:
        super().__init__(config)
        self.longest = config.seq_len
        self.table = nn.Parameter(torch.empty(config.seq_len, config.d_model))

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():  # looking at values would break a compiled graph in two
            first, last = int(positions.min()), int(positions.max())
            if first < 0:
                raise ValueError(f"position {first} is below 0, where learned positions start")
            if last >= self.longest:
                raise PastTheEnd(
                    f"learned positions end at {self.longest}, the seq_len trained at, and position {last} was asked "
                    f"for: stay within {self.longest} tokens or use a scheme that has no end (rope, alibi)"
                )
        return x + self.table[positions].to(x.dtype)


def extend_table(old: Tensor, fresh: Tensor, way: str) -> Tensor:
    """A trained table for another number of positions: (L, C), (L', C) -> (L', C). A shorter one is cut.

    Args:
        old: the trained vectors of positions 0 .. L - 1.
        fresh: what the longer table would be at initialisation.
        way: `repeat`: position p has the vector of p mod L. `interpolate`: the old vectors are spread evenly over the
            longer table, its first and last being the old ones, with straight lines between. `new`: old vectors as they
            are, and past them the fresh ones.
    """
    L, longer = len(old), len(fresh)
    if longer <= L:
        return old[:longer]
    if way == "repeat":
        return old[torch.arange(longer) % L]
    if way == "interpolate":
        place = torch.linspace(0, L - 1, longer, dtype=torch.float64)  # (L',), where each row falls among the old
        below = place.long().clamp(max=max(0, L - 2))  # (L',)
        return torch.lerp(old[below], old[(below + 1).clamp(max=L - 1)], (place - below)[:, None].to(old))
    return torch.cat((old, fresh[L:]))


class PastTheEnd(ValueError):
    """A position was asked for that a learned table does not have."""


class Alibi(Position):
    """A penalty that grows linearly with distance, at another slope for every head (Press et al., 2108.12409).

    score += -slope_h |m - k|, not divided by sqrt(D). Nothing is trained.
    """

    def __init__(self, config: "ModelConfig") -> None:
        super().__init__(config)
        self.slopes = alibi_slopes(config.n_head)  # (H,)

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        distance = (q_positions[:, None] - k_positions).abs()  # (Tq, Tk)
        return -on_device(self.slopes, q_positions).float()[:, None, None] * distance  # (H, Tq, Tk)


def alibi_slopes(n_head: int) -> Tensor:
    """ALiBi's slopes for any number of heads, float64, (H,).

    For H = 2^a heads slope_h = 2^(-8h/H), h = 1 .. H: a geometric row that ends at 1/256. Otherwise the row of the next
    smaller power of two, and then every second slope of the next larger one (as in the authors' code).
    """
    power = 2 ** math.floor(math.log2(n_head))

    def row(heads: int) -> list[float]:
        return [2 ** (-8 * h / heads) for h in range(1, heads + 1)]

    return torch.tensor(row(power) + row(2 * power)[::2][: n_head - power], dtype=torch.float64)


class T5(Position):
    """A trained bias per head and bucket of distance, shared by all layers (T5, 1910.10683, section 2.1).

    T5 itself leaves scores undivided by sqrt(D); here they are divided, as for every other scheme, and the bias is
    added after that. The table starts as small noise, so that at first all distances count nearly alike.
    """

    BUCKETS, MAX_DISTANCE = 32, 128

    def __init__(self, config: "ModelConfig") -> None:
        super().__init__(config)
        self.table = nn.Parameter(torch.empty(self.BUCKETS, config.n_head))
        self.bucket = torch.tensor([t5_bucket(n) for n in range(self.MAX_DISTANCE + 1)])  # (129,), exact integers

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        distance = (q_positions[:, None] - k_positions).clamp(0, self.MAX_DISTANCE)  # (Tq, Tk); later keys are masked
        bucket = self.bucket.to(q_positions.device)[distance]  # (Tq, Tk)
        return self.table[bucket].permute(2, 0, 1)  # (H, Tq, Tk)


def t5_bucket(distance: int, buckets: int = T5.BUCKETS, max_distance: int = T5.MAX_DISTANCE) -> int:
    """Which bucket a distance in tokens (query minus key, at least 0) falls into, for a causal decoder.

    The first half of the buckets holds one distance each, the second half is spaced logarithmically up to max_distance,
    and the last one holds everything farther: past it, T5's bias cannot tell distances apart.
    """
    exact = buckets // 2
    if distance < exact:
        return distance
    return min(exact + int(math.log(distance / exact) / math.log(max_distance / exact) * exact), buckets - 1)


class Rope(Position):
    """Queries and keys turned by their positions in every layer (RoFormer, 2104.09864); the mathematics is in rope.py.

    The angles depend on positions alone, so `embed`, which runs once at the bottom, computes them for all layers. The
    attention factor of yarn and longrope multiplies cos and sin, so it reaches the rotated features only.

    With `learn_factors` every pair has one trained number more, the logarithm of a factor that divides its frequency:

        theta_i' = theta_i exp(-log_factor_i)

    so all factors stay above 0, and at 0, where they start, the frequencies are exactly those of the scaling.
    """

    def __init__(self, config: "ModelConfig") -> None:
        super().__init__(config)
        self.config, self.d_head = config.rope, config.d_model // config.n_head
        self.positions, self.cos_sin = None, None
        self.fixed = None if self.config.scaling in DEPEND_ON_LENGTH else frequencies(self.config, self.d_head, 0)
        pairs = rotated_width(self.config, self.d_head) // 2
        self.log_factor = nn.Parameter(torch.zeros(pairs)) if self.config.learn_factors else None  # (D_rot/2,)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        self.positions, self.cos_sin = positions, tuple(part.to(wide) for part in self.table(positions))
        return x

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.cos_sin if positions is self.positions else self.table(positions)
        return turn(q, cos, sin, self.config.layout), turn(k, cos, sin, self.config.layout)

    def changes(self, used: int, positions: Tensor) -> bool:
        if self.config.scaling not in DEPEND_ON_LENGTH:
            return False
        return not torch.equal(self.theta(positions[:used])[0], self.theta(positions)[0])

    def theta(self, positions: Tensor) -> tuple[Tensor, float]:
        """Frequencies and attention factor at the length these positions reach."""
        return self.fixed or frequencies(self.config, self.d_head, int(positions.max()) + 1)

    def table(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of all angles, times the attention factor: (T, D_rot / 2) each."""
        theta, attention_factor = self.theta(positions)
        theta = on_device(theta, positions)
        if self.log_factor is not None:
            theta = theta * torch.exp(-self.log_factor.to(theta.dtype))  # (D_rot/2,); the gradient goes through here
        cos, sin = cos_sin(positions, theta)
        return attention_factor * cos, attention_factor * sin

    def as_longrope(self, seq_len: int) -> RopeConfig:
        """The config of a rope that is turned as this one without learning anything: its factors as longrope's lists.

        Both lists are the same, since every scaling that factors are learned on top of turns all lengths alike; only
        longrope's own two differ.

        Args:
            seq_len: the trained length, tokens; the original length where none is on record.
        """
        config, L = self.config, self.config.original_length or seq_len
        kept = {"base": config.base, "layout": config.layout, "fraction": config.fraction}
        plain, _ = frequencies(RopeConfig(**kept), self.d_head, 0)  # (D_rot/2,)
        learned = self.log_factor.detach().cpu().double().exp()  # (D_rot/2,)
        (short, attention_factor), (long, _) = (frequencies(config, self.d_head, length) for length in (L, L + 1))
        return RopeConfig(
            **kept,
            scaling="longrope",
            original_length=L,
            attention_factor=attention_factor,
            short_factor=(plain / short * learned).tolist(),
            long_factor=(plain / long * learned).tolist(),
        )


def on_device(table: Tensor, like: Tensor) -> Tensor:
    """A float64 table on another tensor's device; in float32 on Apple's MPS, which has no float64."""
    return table.to(like.device, torch.float32 if like.device.type == "mps" else torch.float64)


SCHEMES: dict[str, type[Position]] = {
    "none": Position,
    "sinusoidal": Sinusoidal,
    "learned": Learned,
    "alibi": Alibi,
    "t5": T5,
    "rope": Rope,
}
