"""The decoder-only transformer that every scheme of order shares: pre-norm RMSNorm, attention, SwiGLU, no biases.

With `position="rope"` and the half-split layout a block is exactly a Llama block; with the interleaved one, up to the
order of features. The model calls the hooks of `positions.Position` in one place each, and never asks which
scheme it has.

Every parameter's initial value is a pure function of (seed, its name) for a given shape, so models that differ in
their scheme start from bit-identical shared weights:

    embedding, and head where it is not tied    normal, standard deviation init_std
    every matrix that writes to the residual    normal, init_std / sqrt(2 n_layer)   (out, down; GPT-2's rule)
    every other matrix, and a scheme's tables   normal, init_std
    norms                                       one
    rope's learned log factors                  zero, so that they change nothing at first
"""

import difflib
import hashlib
import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from positions import SCHEMES, Position
from rope import RopeConfig, frequencies, with_default_factor

MOST_PARAMETERS = 10**12  # that 4,000 GB of float32 would hold: more is a slip of the pen
EXPLICIT_UP_TO = 512  # keys; above, the memory of all (T, T) scores makes explicit attention the slower one


@dataclass(frozen=True)
class ModelConfig:
    """The model's shape and its way of knowing order.

    Args:
        vocab_size: rows of the embedding (V). The tokenizer's if not given; a model built without one must be told.
        d_model: width of the residual stream (C).
        n_layer: blocks.
        n_head: query heads (H); each is d_model / n_head wide (D).
        n_kv_head: key and value heads, a divisor of n_head; as many as n_head if not given.
        d_ff: width inside the SwiGLU; 8/3 d_model rounded down to a multiple of 32 if not given.
        seq_len: trained length, tokens; learned positions have no more than this.
        position: the scheme of order: none, sinusoidal, learned, alibi, t5 or rope.
        rope: the rotation's choices, used by the scheme rope.
        tie_embeddings: whether the embedding is also the matrix that makes logits.
        sinusoidal_amplitude: what the sinusoidal waves are multiplied by before they meet the embeddings.
        init_std: standard deviation of first values, see the module's docstring.
        norm_eps: added to the mean square in RMSNorm.
        attention: explicit (written out), fused (scaled_dot_product_attention) or auto, the faster of the two.
    """

    vocab_size: int | None = None
    d_model: int = 128
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int | None = None
    d_ff: int | None = None
    seq_len: int = 256
    position: str = "rope"
    rope: RopeConfig = field(default_factory=RopeConfig)
    tie_embeddings: bool = True
    sinusoidal_amplitude: float = 0.14
    init_std: float = 0.02
    norm_eps: float = 1e-5
    attention: Literal["auto", "explicit", "fused"] = "auto"

    def __post_init__(self) -> None:
        if self.position not in SCHEMES:
            close = difflib.get_close_matches(self.position, SCHEMES, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"model.position {self.position!r} is none of {', '.join(SCHEMES)}{hint}")
        for name in ("vocab_size", "d_model", "n_layer", "n_head", "n_kv_head", "d_ff", "seq_len"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"model.{name} {value} must be at least 1")
        if self.attention not in ("auto", "explicit", "fused"):
            raise ValueError(f"model.attention {self.attention!r} is none of auto, explicit, fused")
        sizes = ["vocab_size", "d_model", "n_layer", "seq_len"] + ["d_ff"] * (self.d_ff is not None)
        if self.d_ff is None:
            object.__setattr__(self, "d_ff", max(self.d_model * 8 // 3 // 32 * 32, 32))
        if self.parameters() > MOST_PARAMETERS:  # before anything is made of that size
            largest = max(sizes, key=lambda name: getattr(self, name) or 0)
            raise ValueError(
                f"model.{largest} {getattr(self, largest)} makes {self.parameters():.2g} parameters, which would need "
                f"{4e-9 * self.parameters():.2g} GB of memory: choose a smaller one"
            )
        if self.d_model % self.n_head:
            smaller, larger = self.d_model // self.n_head * self.n_head, -(-self.d_model // self.n_head) * self.n_head
            raise ValueError(
                f"model.d_model {self.d_model} is not divisible by model.n_head {self.n_head}: "
                f"{f'{smaller} or ' if smaller else ''}{larger} would be"
            )
        if self.n_head % (self.n_kv_head or 1):
            divisors = [str(n) for n in range(1, self.n_head + 1) if self.n_head % n == 0]
            raise ValueError(
                f"model.n_kv_head {self.n_kv_head} does not divide model.n_head {self.n_head}: {', '.join(divisors)} do"
            )
        if self.position == "sinusoidal" and self.d_model % 2:
            raise ValueError(f"model.d_model {self.d_model} must be even: sinusoidal waves come as sine and cosine")
        # within these no sum of squares leaves float32, and no zero is divided by zero
        for name, least, most in (
            ("sinusoidal_amplitude", 1e-6, 1e3),
            ("init_std", 1e-6, 1e2),
            ("norm_eps", 1e-12, 1.0),
        ):
            if not least <= getattr(self, name) <= most:
                raise ValueError(
                    f"model.{name} {getattr(self, name):g} must be above 0, between {least:g} and {most:g}"
                )
        if self.n_kv_head is None:
            object.__setattr__(self, "n_kv_head", self.n_head)
        if self.position == "rope":
            object.__setattr__(self, "rope", with_default_factor(self.rope, self.seq_len))
            frequencies(self.rope, self.d_head, self.seq_len)  # refuses what cannot be rotated, by name

    def parameters(self) -> int:
        """How many numbers the weights are, the few of t5 and of learned factors left out; V counts as 1 if unknown."""
        n_kv_head = min(self.n_kv_head or self.n_head, self.n_head)
        attention = 2 * self.d_model**2 + 2 * self.d_model * max(1, self.d_model * n_kv_head // self.n_head)
        block = attention + 3 * self.d_model * self.d_ff + 2 * self.d_model
        tables = (1 if self.tie_embeddings else 2) * (self.vocab_size or 1) + (
            self.position == "learned"
        ) * self.seq_len
        return self.n_layer * block + self.d_model * (tables + 1)

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_head


class Matrix(nn.Linear):
    """A linear map without a bias, (..., n) -> (..., m), whose values `Transformer.draw_first_values` sets.

    (`skip_init` would do the same, but imports PyTorch's compiler: seconds at every start.)
    """

    def __init__(self, n: int, m: int) -> None:
        super().__init__(n, m, bias=False)

    def reset_parameters(self) -> None:
        """Draw nothing."""


class Attention(nn.Module):
    """Causal self-attention: softmax(q k / sqrt(D) + bias) v (RoFormer eq. 2), with grouped keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.n_head, config.n_kv_head, config.n_kv_head
        self.d_head = config.d_head
        self.qkv = Matrix(config.d_model, sum(self.heads) * config.d_head)
        self.out = Matrix(config.d_model, config.d_model)

    def forward(self, x: Tensor, scene: "Scene", layer: int) -> Tensor:
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, -1, self.d_head).transpose(1, 2)  # (B, H + 2 Hkv, T, D)
        q, k, v = qkv.split(self.heads, dim=1)  # (B, H, T, D), (B, Hkv, T, D) twice
        q, k = scene.position.rotate(q, k, scene.positions)
        if scene.cache is not None:
            k, v = scene.cache.extend(layer, k, v)  # (B, Hkv, Tk, D): all so far
        if scene.wanted < T:  # a slice of everything would cost the backward pass a copy
            q = q[:, :, -scene.wanted :]  # (B, H, wanted, D)
        if scene.explicit:
            y = explicit_attention(q, k, v, scene.mask, scene.triangular)  # (B, H, wanted, D)
        else:
            y = fused_attention(q, k, v, scene.mask)  # (B, H, wanted, D)
        return self.out(y.transpose(1, 2).reshape(B, -1, C))


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, triangular: bool = False) -> Tensor:
    """Attention as it is defined, (B, H, Tq, D), (B, Hkv, Tk, D) twice -> (B, H, Tq, D).

    The mask, (Tq, Tk) or (H, Tq, Tk), is added: 0 or the scheme's bias where a key may be seen, -inf elsewhere.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: see above.
        triangular: whether Tq = Tk and query i sees keys 0 .. i at most. Then queries go in four blocks, each with the
            keys up to its last query's own, and three eighths of the scores, all of them masked, are never computed.
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)  # (B, H, Tk, D)
    if triangular:
        T = q.shape[2]
        ends = [T * block // 4 for block in range(5)]
        blocks = [(a, b) for a, b in pairwise(ends) if a < b]
        parts = [explicit_attention(q[:, :, a:b], k[:, :, :b], v[:, :, :b], mask[..., a:b, :b]) for a, b in blocks]
        return torch.cat(parts, dim=2)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + mask  # (B, H, Tq, Tk)
    return scores.softmax(dim=-1).to(v.dtype) @ v


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The same through PyTorch's kernels, which never hold all scores at once.

    No mask means plainly causal, as many queries as keys, or one query, the last, which sees every key.
    """
    dtype = q.dtype
    if mask is not None:  # in the wider dtype: a bias in bfloat16 could not tell far distances apart
        wide = torch.promote_types(dtype, mask.dtype)
        q, k, v = q.to(wide), k.to(wide), v.to(wide)
        mask = mask.to(wide).view(1, -1, *mask.shape[-2:])  # (1, 1 or H, Tq, Tk): in 3 dimensions it takes a slow path
    grouped, causal = q.shape[1] != k.shape[1], mask is None
    if q.shape[2] == 1:  # asked in so many words, since a compiler's sizes are symbols and the kernel wants a bool
        causal = False
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
    return y.to(dtype)


class MLP(nn.Module):
    """SwiGLU (2002.05202): down(silu(gate x) * up x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = Matrix(config.d_model, 2 * config.d_ff)
        self.down = Matrix(config.d_ff, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # (B, T, d_ff) each
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, scene: "Scene", layer: int) -> Tensor:
        y = self.attention(self.attention_norm(x), scene, layer)  # (B, wanted, C)
        x = (x if y.shape == x.shape else x[:, -scene.wanted :]) + y
        return x + self.mlp(self.mlp_norm(x))


@dataclass
class Scene:
    """What all layers of one forward pass share: who stands where, who may see whom, and what was seen before."""

    position: Position
    positions: Tensor  # (T,)
    mask: Tensor | None  # (wanted, Tk) or (H, wanted, Tk), added to the scores; None: see fused_attention
    explicit: bool
    triangular: bool  # key i stands at position i, and so does query i
    cache: "Cache | None"
    wanted: int  # the block's outputs: T, or fewer in the last one


class Cache:
    """Keys and values of the tokens so far, with the tokens and their positions, allocated once and written in place.

    Args:
        config: the model's.
        batch_size: sequences (B).
        length: room for this many tokens each.
        like: a tensor whose device and dtype the keys and values take.
    """

    def __init__(self, config: ModelConfig, batch_size: int, length: int, like: Tensor) -> None:
        shape = config.n_layer, batch_size, config.n_kv_head, length, config.d_head
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        self.layers = [(self.keys[i], self.values[i]) for i in range(config.n_layer)]  # views, (B, Hkv, length, D)
        self.tokens = torch.empty(batch_size, length, dtype=torch.long, device=like.device)
        self.positions = torch.empty(length, dtype=torch.long, device=like.device)
        self.used = 0
        self.start = 0
        self.in_order = True  # key i stands at position i

    def append(self, tokens: Tensor, positions: Tensor, in_order: bool) -> Tensor:
        """Take in new tokens, (B, T), at their positions, (T,), and return the positions of all so far, (Tk,).

        Args:
            tokens: (B, T).
            positions: (T,).
            in_order: whether these and all before them stand at 0, 1, 2, ...

        Raises:
            ValueError: when there is no room left, or the batch is another.
        """
        B, T = tokens.shape
        room = self.tokens.shape[1] - self.used
        if room < T or self.tokens.shape[0] != B:
            raise ValueError(
                f"cache of {tuple(self.tokens.shape)} tokens, {room} free a row, cannot take {B} x {T} more"
            )
        self.start, self.used, self.in_order = self.used, self.used + T, in_order
        self.tokens[:, self.start : self.used] = tokens
        self.positions[self.start : self.used] = positions
        return self.positions[: self.used]

    def next_position(self) -> Tensor | int:
        """One past the position of the last token; 0 if empty."""
        return self.used if self.in_order or not self.used else self.positions[self.used - 1] + 1

    def clear(self) -> tuple[Tensor, Tensor]:
        """Forget everything, and return what it was: tokens, (B, Tk), and their positions, (Tk,)."""
        used, self.used = self.used, 0
        return self.tokens[:, :used].clone(), self.positions[:used].clone()

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values, (B, Hkv, T, D), and return all of them, (B, Hkv, Tk, D)."""
        keys, values = self.layers[layer]
        keys[:, :, self.start : self.used] = k
        values[:, :, self.start : self.used] = v
        return keys[:, :, : self.used].to(k.dtype), values[:, :, : self.used].to(v.dtype)


class Transformer(nn.Module):
    """Tokens to logits.

    Args:
        config: shape and scheme; its vocab_size must be known.
        seed: of the first values.
    """

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("model.vocab_size is not known: give the tokenizer's number of entries")
        self.config = config
        self.embedding = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.d_model), freeze=False)
        self.position = SCHEMES[config.position](config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.head = None if config.tie_embeddings else Matrix(config.d_model, config.vocab_size)
        self.draw_first_values(seed)

    @torch.no_grad()
    def draw_first_values(self, seed: int) -> None:
        """Set every parameter from a generator of its own, keyed by (seed, name): see the module's docstring."""
        for name, parameter in self.named_parameters():
            if "norm" in name:
                nn.init.ones_(parameter)
                continue
            if name == "position.log_factor":
                nn.init.zeros_(parameter)
                continue
            writes_to_residual = name.endswith(("out.weight", "down.weight"))
            std = self.config.init_std / (math.sqrt(2 * self.config.n_layer) if writes_to_residual else 1)
            key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little"))
            parameter.copy_(torch.empty(parameter.shape).normal_(0, std, generator=generator))

    def forward(
        self, tokens: Tensor, positions: Tensor | None = None, cache: Cache | None = None, last: int | None = None
    ) -> Tensor:
        """Logits for the token after each token.

        Args:
            tokens: (B, T), integers.
            positions: where these tokens stand, absolute, (T,); 0 .. T-1, or on from the cache, if not given.
            cache: what was computed for earlier tokens; these are added to it.
            last: logits of this many last tokens only, which spares the others the last block and the head.

        Returns:
            (B, T, V), or (B, last, V).

        Raises:
            PastTheEnd: if learned positions are asked past their end.
            ValueError: if the cache has no room, or `last` is not between 1 and T.
        """
        T = tokens.shape[1]
        in_order = positions is None and (cache is None or cache.in_order)  # key i stands at position i
        if positions is None:
            positions = torch.arange(T, device=tokens.device) + (0 if cache is None else cache.next_position())
        if not T or positions.shape != (T,):
            raise ValueError(
                f"tokens {tuple(tokens.shape)} and positions {tuple(positions.shape)} are not (B, T) and (T,)"
            )
        wanted = T if last is None else last
        if not 1 <= wanted <= T:
            raise ValueError(f"last {last} must be between 1 and the {T} tokens there are")
        # Embedding comes before the cache takes anything in: a refused position leaves it as it was.
        x = self.position.embed(self.embedding(tokens), positions)  # (B, T, C)
        k_positions = positions if cache is None else cache.append(tokens, positions, in_order)  # (Tk,)
        if cache is not None and cache.start and self.position.changes(cache.start, k_positions):
            # Deeper layers hold states computed under the old frequencies: only a full pass is exact.
            return self(*cache.clear(), cache, last=wanted)
        explicit = self.explicit(k_positions)
        triangular = in_order and len(k_positions) == T
        unmasked = triangular or (in_order and T == 1)  # the kernel knows what is causal, and the last token sees all
        mask = self.mask(positions, k_positions, optional=unmasked and not explicit)
        scene = Scene(self.position, positions, mask, explicit, triangular, cache, T)
        for layer, block in enumerate(self.blocks):
            if wanted < T and layer == len(self.blocks) - 1:
                if mask is None and wanted > 1:
                    mask = self.mask(positions, k_positions, optional=False)
                mask = None if mask is None else mask[..., -wanted:, :]
                scene = replace(scene, mask=mask, triangular=False, wanted=wanted)
            x = block(x, scene, layer)
        return F.linear(self.norm(x), (self.head or self.embedding).weight)

    def explicit(self, k_positions: Tensor) -> bool:
        """Whether attention is written out: what the config says, else where that is faster.

        That is in bf16 on a CPU that has it, for short lengths. In fp32 the fused kernel won by 7 to 13% at length 256.
        """
        if self.config.attention != "auto":
            return self.config.attention == "explicit"
        return torch.is_autocast_enabled("cpu") and len(k_positions) <= EXPLICIT_UP_TO

    def mask(self, q_positions: Tensor, k_positions: Tensor, optional: bool) -> Tensor | None:
        """What is added to all scores, (Tq, Tk) or (H, Tq, Tk): the scheme's bias, and -inf on keys that come later.

        None, if that is allowed, where there is no bias.
        """
        bias = self.position.bias(q_positions, k_positions)
        if bias is None and optional:
            return None
        later = k_positions > q_positions[:, None]  # (Tq, Tk)
        if bias is None:
            bias = torch.zeros(later.shape, device=later.device)
        return bias.masked_fill(later, -math.inf)

    def new_cache(self, batch_size: int, length: int) -> Cache:
        """An empty cache for `batch_size` sequences of up to `length` tokens."""
        return Cache(self.config, batch_size, length, self.embedding.weight)


def shared_sha256(model: Transformer) -> str:
    """A hash of every weight that models of all schemes have in common, to show that they start alike."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not name.startswith("position."):
            digest.update(f"{name} {tuple(parameter.shape)} ".encode())
            digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
