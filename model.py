"""The decoder-only transformer that every scheme of order shares: pre-norm RMSNorm, attention, SwiGLU, no biases.

With `position="rope"` and the half-split layout a block is exactly a Llama block; with the interleaved one, up to the
order of features. The model calls each hook of `positions.Position` in one place, and never asks which scheme it has.

Every parameter's first value is a pure function of (seed, its name) for a given shape, so models that differ in their
scheme start from bit-identical shared weights:

    matrices that write to the residual    normal, standard deviation init_std / sqrt(2 n_layer)   (out, down; GPT-2)
    embedding, head, all other matrices    normal, init_std
    norms                                  one
    a scheme's own parameters              what the scheme says, else normal, init_std
"""

import hashlib
import math
from dataclasses import field
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from positions import SCHEMES, Position

Size = Annotated[int, Field(ge=1, le=10**6)]
OptionalSize = Annotated[int | None, Field(ge=1, le=10**6)]


def with_scheme_options(config: type) -> type:
    """Give a config class a field for every scheme that has options, named as the scheme."""
    for name, scheme in SCHEMES.items():
        if scheme.Options:
            config.__annotations__[name] = scheme.Options
            setattr(config, name, field(default_factory=scheme.Options))
    return config


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
@with_scheme_options
class ModelConfig:
    """The model's shape and its way of knowing order. Every scheme that has options has a field here, named as it is.

    Args:
        vocab_size: rows of the embedding (V). The tokenizer's if not given; a model built without one must be told.
        d_model: width of the residual stream (C).
        n_layer: blocks.
        n_head: query heads (H); each is d_model / n_head wide (D).
        n_kv_head: key and value heads, a divisor of n_head; as many as n_head if not given.
        d_ff: width inside the SwiGLU; 8/3 d_model rounded down to a multiple of 32 if not given.
        seq_len: trained length, tokens; learned positions have no more than this.
        position: the scheme of order, by its name in positions.SCHEMES.
        tie_embeddings: whether the embedding is also the matrix that makes logits.
        init_std: standard deviation of first values, see the module's docstring.
        norm_eps: added to the mean square in RMSNorm.
        attention: fused (scaled_dot_product_attention) or explicit (written out).
    """

    vocab_size: OptionalSize = None
    d_model: Size = 128
    n_layer: Size = 4
    n_head: Size = 4
    n_kv_head: OptionalSize = None
    d_ff: OptionalSize = None
    seq_len: Annotated[int, Field(ge=1, le=10**9)] = 256
    position: str = "rope"
    tie_embeddings: bool = True
    init_std: Annotated[float, Field(ge=1e-6, le=1e2)] = 0.02
    norm_eps: Annotated[float, Field(ge=1e-12, le=1)] = 1e-5
    attention: Literal["fused", "explicit"] = "fused"

    def __post_init__(self) -> None:
        if self.position not in SCHEMES:
            raise ValueError(f"model.position {self.position!r} is none of {', '.join(SCHEMES)}")
        if self.d_model % self.n_head:
            below = self.d_model // self.n_head * self.n_head
            fits = f"{below} or {below + self.n_head}" if below else f"{self.n_head}"
            wrong = f"model.d_model {self.d_model} is not divisible by model.n_head {self.n_head}"
            raise ValueError(f"{wrong}: {fits} would be")
        if self.n_head % (self.n_kv_head or 1):
            divisors = ", ".join(str(n) for n in range(1, self.n_head + 1) if self.n_head % n == 0)
            wrong = f"model.n_kv_head {self.n_kv_head} does not divide model.n_head {self.n_head}"
            raise ValueError(f"{wrong}: {divisors} do")
        object.__setattr__(self, "n_kv_head", self.n_kv_head or self.n_head)
        object.__setattr__(self, "d_ff", self.d_ff or max(self.d_model * 8 // 3 // 32 * 32, 32))
        if (options := SCHEMES[self.position].settle(self)) is not None:
            object.__setattr__(self, self.position, options)

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_head

    @property
    def options(self) -> Any:
        """The scheme's own options; None if it has none."""
        return getattr(self, self.position) if SCHEMES[self.position].Options else None


class Matrix(nn.Linear):
    """A linear map without a bias, (..., n) -> (..., m), whose values `Transformer.draw_first_values` sets."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__(n, m, bias=False)

    def reset_parameters(self) -> None:
        """Draw nothing."""


class Cache:
    """Keys and values of the tokens so far, with the tokens and their positions, allocated once and written in place.

    Args:
        config: the model's.
        d_key: width of a rotated key.
        batch_size: sequences (B).
        length: room for this many tokens each.
        like: a tensor whose device and dtype the keys and values take.
    """

    def __init__(self, config: ModelConfig, d_key: int, batch_size: int, length: int, like: Tensor) -> None:
        shape = config.n_layer, batch_size, config.n_kv_head, length
        self.keys, self.values = like.new_empty(*shape, d_key), like.new_empty(*shape, config.d_head)
        self.tokens = torch.empty(batch_size, length, dtype=torch.long, device=like.device)
        self.positions = torch.empty(length, dtype=torch.long, device=like.device)
        self.start = self.used = 0  # where the newest tokens begin and end
        self.in_order = True  # token i stands at position i

    def append(self, tokens: Tensor, positions: Tensor, in_order: bool) -> Tensor:
        """Take in new tokens, (B, T), at their positions, (T,), and return the positions of all so far, (Tk,)."""
        (B, T), (rows, length) = tokens.shape, self.tokens.shape
        if length - self.used < T or rows != B:
            room = f"cache of {(rows, length)} tokens, {length - self.used} free a row"
            raise ValueError(f"{room}, cannot take {B} x {T} more")
        self.start, self.used, self.in_order = self.used, self.used + T, in_order
        self.tokens[:, self.start : self.used] = tokens
        self.positions[self.start : self.used] = positions
        return self.positions[: self.used]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values, (B, Hkv, T, ...), and return all of them, (B, Hkv, Tk, ...)."""
        self.keys[layer, :, :, self.start : self.used] = k
        self.values[layer, :, :, self.start : self.used] = v
        return self.keys[layer, :, :, : self.used].to(k.dtype), self.values[layer, :, :, : self.used].to(v.dtype)

    def clear(self) -> tuple[Tensor, Tensor]:
        """Forget everything, and return what it was: tokens, (B, Tk), and their positions, (Tk,)."""
        used, self.used = self.used, 0
        return self.tokens[:, :used].clone(), self.positions[:used].clone()


class Context(NamedTuple):
    """What all layers of one forward pass share."""

    position: Position
    angles: Any  # what position.rotate needs
    mask: Tensor | None  # (Tq, Tk) or (H, Tq, Tk), added to all scores; None: see fused_attention
    cache: Cache | None


class Attention(nn.Module):
    """Causal self-attention: softmax(q k / sqrt(D) + bias) v (RoFormer eq. 2), with grouped keys and values."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.d_head, self.layer = (config.n_head, config.n_kv_head, config.n_kv_head), config.d_head, layer
        self.attend = {"fused": fused_attention, "explicit": explicit_attention}[config.attention]
        self.qkv = Matrix(config.d_model, sum(self.heads) * config.d_head)
        self.out = Matrix(config.d_model, config.d_model)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, -1, self.d_head).transpose(1, 2)  # (B, H + 2 Hkv, T, D)
        q, k, v = qkv.split(self.heads, dim=1)  # (B, H, T, D), (B, Hkv, T, D) twice
        q, k = context.position.rotate(q, k, context.angles, self.layer)  # (..., d_key) each, which is D for most
        if context.cache is not None:
            k, v = context.cache.extend(self.layer, k, v)  # (B, Hkv, Tk, ...): all so far
        y = self.attend(q, k, v, context.mask, self.d_head**-0.5)  # (B, H, T, D)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention as it is defined: q (B, H, Tq, d_key), k (B, Hkv, Tk, d_key), v (B, Hkv, Tk, D) -> (B, H, Tq, D).

    The mask, (Tq, Tk) or (H, Tq, Tk), is added: 0 or the scheme's bias where a key may be seen, -inf elsewhere.
    """
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))  # (B, H, Tk, ...) each
    scores = (q * scale) @ k.transpose(-2, -1) + mask  # (B, H, Tq, Tk)
    return scores.softmax(dim=-1).to(v.dtype) @ v


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The same through PyTorch's kernels, which never hold all scores at once.

    No mask means plainly causal, as many queries as keys, or one query, the last, which sees every key.
    """
    dtype, grouped, causal = q.dtype, q.shape[1] != k.shape[1], mask is None
    if q.shape[2] == 1:  # spelt out, since a compiler's sizes are symbols and the kernel wants a bool
        causal = False
    if mask is not None:  # in the wider dtype: a bias in bfloat16 could not tell far distances apart
        wide = torch.promote_types(dtype, mask.dtype)
        q, k, v = q.to(wide), k.to(wide), v.to(wide)
        mask = mask.to(wide).view(1, -1, *mask.shape[-2:])  # (1, 1 or H, Tq, Tk): in 3 dimensions it takes a slow path
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=grouped).to(dtype)


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

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.attention = Attention(config, layer)
        self.mlp_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = x + self.attention(self.attention_norm(x), context)
        return x + self.mlp(self.mlp_norm(x))


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
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
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
            key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little"))
            value = None
            if name.startswith("position."):
                value = self.position.first_value(name.removeprefix("position."), parameter.shape, generator)
            if value is None:
                writes_to_residual = name.endswith(("out.weight", "down.weight"))
                std = self.config.init_std / (math.sqrt(2 * self.config.n_layer) if writes_to_residual else 1)
                value = torch.empty(parameter.shape).normal_(0, std, generator=generator)
            parameter.copy_(value)

    def forward(
        self, tokens: Tensor, positions: Tensor | None = None, cache: Cache | None = None, last: int | None = None
    ) -> Tensor:
        """Logits for the token after each token.

        Args:
            tokens: (B, T), integers.
            positions: where these tokens stand, absolute, (T,); 0 .. T-1, or on from the cache, if not given.
            cache: what was computed for earlier tokens; these are added to it.
            last: logits of this many last tokens only.

        Returns:
            (B, T, V), or (B, last, V).

        Raises:
            PastTheEnd: if learned positions are asked past their end.
            ValueError: if the cache has no room.
        """
        T, earlier = tokens.shape[1], 0 if cache is None else cache.used
        in_order = positions is None and (cache is None or cache.in_order)  # key i stands at position i
        if positions is None:
            begin = earlier if in_order or not earlier else cache.positions[earlier - 1] + 1
            positions = torch.arange(T, device=tokens.device) + begin
        # Embedding comes before the cache takes anything in: a refused position leaves it as it was.
        x = self.position.embed(self.embedding(tokens), positions)  # (B, T, C)
        k_positions = positions if cache is None else cache.append(tokens, positions, in_order)  # (Tk,)
        if earlier and self.position.outdates_cache(earlier, k_positions):
            # Deeper layers hold states computed under the old frequencies: only a full pass is exact.
            return self(*cache.clear(), cache, last=last or T)
        plainly_causal = in_order and (not earlier or T == 1)  # the fused kernel knows that by itself
        angles = self.position.angles(positions, x.dtype)
        context = Context(self.position, angles, self.mask(positions, k_positions, plainly_causal), cache)
        for block in self.blocks:
            x = block(x, context)  # (B, T, C)
        return F.linear(self.norm(x[:, -(last or T) :]), (self.head or self.embedding).weight)

    def mask(self, q_positions: Tensor, k_positions: Tensor, plainly_causal: bool) -> Tensor | None:
        """What is added to all scores, (Tq, Tk) or (H, Tq, Tk): the scheme's bias, and -inf on keys that come later.

        None where the fused kernel needs nothing.
        """
        bias = self.position.bias(q_positions, k_positions)
        if bias is None and plainly_causal and self.config.attention == "fused":
            return None
        later = k_positions > q_positions[:, None]  # (Tq, Tk)
        bias = torch.zeros(later.shape, device=later.device) if bias is None else bias
        return bias.masked_fill(later, -math.inf)

    def new_cache(self, batch_size: int, length: int) -> Cache:
        """An empty cache for `batch_size` sequences of up to `length` tokens."""
        return Cache(self.config, self.position.d_key, batch_size, length, self.embedding.weight)
