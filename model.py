"""The decoder-only transformer that every scheme of order shares: pre-norm RMSNorm, attention, SwiGLU, no biases.

With `position="rope"` it is the transformers library's Llama (which pairs features otherwise: see `Layout` in rope.py).
The scheme's hooks (embed, angles, rotate, bias) are called in one place each, and nothing asks which scheme it is.
"""

import hashlib
import math
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from positions import SCHEMES, Position

SIZE = Field(ge=1, le=10**6)


def with_scheme_options(config: type) -> type:
    """Add a field for every scheme that has options, named as the scheme, before `dataclass` looks."""
    for name, scheme in SCHEMES.items():
        if scheme.Options:
            config.__annotations__[name] = scheme.Options
            setattr(config, name, Field(default_factory=scheme.Options))
    return config


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
@with_scheme_options
class ModelConfig:
    """The model's shape and its way of knowing order.

    Args:
        vocab_size: rows of the embedding (V). From the tokenizer if not given; `Transformer` itself refuses None.
        d_model: width of the residual stream (C).
        n_layer: blocks.
        n_head: query heads (H); each is d_model / n_head wide (D).
        n_kv_head: key and value heads, a divisor of n_head; as many as n_head if not given.
        d_ff: width inside the SwiGLU; 8/3 d_model rounded down to a multiple of 32 if not given.
        seq_len: trained length, tokens (T); learned positions end there.
        position: the position scheme, by its name in positions.SCHEMES.
        tie_embeddings: whether the embedding is also the matrix that makes logits.
        init_std: standard deviation of first values.
        norm_eps: added to the mean square in RMSNorm.
        attention: fused (scaled_dot_product_attention) or explicit (written out).
    """

    vocab_size: Annotated[int | None, SIZE] = None
    d_model: Annotated[int, SIZE] = 128
    n_layer: Annotated[int, SIZE] = 4
    n_head: Annotated[int, SIZE] = 4
    n_kv_head: Annotated[int | None, SIZE] = None
    d_ff: Annotated[int | None, SIZE] = None
    seq_len: Annotated[int, Field(ge=1, le=10**9)] = 256
    position: str = "rope"
    tie_embeddings: bool = True
    init_std: Annotated[float, Field(ge=1e-6, le=100)] = 0.02
    norm_eps: Annotated[float, Field(ge=1e-12, le=1)] = 1e-5
    attention: Literal["fused", "explicit"] = "fused"

    def __post_init__(self) -> None:
        C, H, Hkv = self.d_model, self.n_head, self.n_kv_head or self.n_head
        if self.position not in SCHEMES:
            raise ValueError(f"model.position {self.position!r} is none of {', '.join(SCHEMES)}")
        if C % H:
            near = " or ".join(str(n) for n in (C - C % H, C - C % H + H) if n)
            raise ValueError(f"model.d_model {C} is not divisible by model.n_head {H}: {near} would be")
        if H % Hkv:
            divisors = ", ".join(str(n) for n in range(1, H + 1) if H % n == 0)
            raise ValueError(f"model.n_kv_head {Hkv} does not divide model.n_head {H}: {divisors} do")
        object.__setattr__(self, "n_kv_head", Hkv)
        object.__setattr__(self, "d_ff", self.d_ff or max(C * 8 // 3 // 32 * 32, 32))
        if options := SCHEMES[self.position].settle(self):
            object.__setattr__(self, self.position, options)

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_head

    @property
    def options(self) -> Any:
        return getattr(self, self.position, None)  # the scheme's own, if it has any


class Cache:
    """Keys, values, tokens and positions so far, allocated once and written in place."""

    def __init__(self, config: ModelConfig, d_key: int, batch_size: int, length: int, like: Tensor) -> None:
        shape = config.n_layer, batch_size, config.n_kv_head, length
        self.keys, self.values = (like.new_empty(*shape, width) for width in (d_key, config.d_head))
        self.tokens = torch.empty(batch_size, length, dtype=torch.long, device=like.device)
        self.positions = torch.empty(length, dtype=torch.long, device=like.device)
        self.start, self.used = 0, 0  # where the newest tokens begin and end

    def append(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """First take in tokens, (B, T), at positions, (T,), and return the positions of all so far, (Tk,)."""
        (B, T), (rows, length) = tokens.shape, self.tokens.shape
        if self.used + T > length or rows != B:
            raise ValueError(f"cache of {(rows, length)}, {length - self.used} free a row, cannot take {B} x {T} more")
        self.start, self.used = self.used, self.used + T
        self.tokens[:, self.start : self.used] = tokens
        self.positions[self.start : self.used] = positions
        return self.positions[: self.used]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Then store each layer's new keys and values, (B, Hkv, T, ...), and return all of them, (B, Hkv, Tk, ...)."""
        self.keys[layer, :, :, self.start : self.used] = k
        self.values[layer, :, :, self.start : self.used] = v
        return self.keys[layer, :, :, : self.used].to(k.dtype), self.values[layer, :, :, : self.used].to(v.dtype)


class Context(NamedTuple):
    """What all layers of one forward pass share."""

    position: Position
    angles: Any  # what position.rotate needs
    mask: Tensor | None  # (Tq, Tk) or (H, Tq, Tk), added to scores: the scheme's bias, -inf on later keys
    cache: Cache | None


class Attention(nn.Module):
    """Causal self-attention: softmax(q k^T / sqrt(D) + mask) v (RoFormer eq. 2); Hkv key heads serve H query heads."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.heads = config.n_head, config.n_kv_head, config.n_kv_head  # of q, k and v
        self.d_head, self.layer = config.d_head, layer
        self.attend = {"fused": fused_attention, "explicit": explicit_attention}[config.attention]
        self.qkv = nn.Linear(config.d_model, sum(self.heads) * config.d_head, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, -1, self.d_head).transpose(1, 2)  # (B, H + 2 Hkv, T, D)
        q, k, v = qkv.split(self.heads, dim=1)  # (B, H, T, D), (B, Hkv, T, D) twice
        q, k = context.position.rotate(q, k, context.angles, self.layer)  # (..., d_key); D for most schemes
        if context.cache is not None:
            k, v = context.cache.extend(self.layer, k, v)  # (B, Hkv, Tk, ...): all so far
        y = self.attend(q, k, v, context.mask, self.d_head**-0.5)  # (B, H, T, D)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention as it is defined: q (B, H, Tq, d_key), k (B, Hkv, Tk, d_key), v (B, Hkv, Tk, D) -> (B, H, Tq, D)."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))  # (B, H, Tk, ...) each
    scores = (q * scale) @ k.transpose(-2, -1) + mask  # (B, H, Tq, Tk)
    return scores.softmax(dim=-1).to(v.dtype) @ v


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The same through PyTorch's kernels, which never hold all scores. No mask: causal, by the kernel's own flag."""
    grouped, causal = q.shape[1] != k.shape[1], mask is None
    if q.shape[2] == 1:  # the last token sees every key; torch.compile takes an `if` here, but not `causal = ... > 1`
        causal = False
    if mask is not None:
        mask = mask.to(q.dtype).view(1, -1, *mask.shape[-2:])  # (1, 1 or H, Tq, Tk): of 3 dimensions it is slow
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=grouped)


class MLP(nn.Module):
    """SwiGLU (2002.05202): down(silu(gate x) * up x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.d_model, 2 * config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)

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
    """Tokens to logits: embedding, blocks, norm, head. The seed decides the initial weights."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("model.vocab_size is not known: give the tokenizer's number of entries")
        self.config = config
        with torch.random.fork_rng([]):  # layers draw weights, replaced below; the caller's generator stays as it was
            self.embedding = nn.Embedding(config.vocab_size, config.d_model)
            self.position = SCHEMES[config.position](config)
            self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
            self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
            self.head = None if config.tie_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.draw_first_values(seed)

    @torch.no_grad()
    def draw_first_values(self, seed: int) -> None:
        """Draw each parameter by (seed, its name), so that schemes start alike in all the weights they have in common.

        Norms start at one; all else has standard deviation init_std, divided by sqrt(2 n_layer) where a matrix writes
        to the residual stream (GPT-2's rule), unless the scheme says otherwise of its own parameters.
        """
        for name, parameter in self.named_parameters():
            key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little"))
            value = torch.ones(parameter.shape) if "norm" in name else None
            if name.startswith("position."):
                value = self.position.first_value(name.removeprefix("position."), parameter.shape, generator)
            if value is None:
                shrink = math.sqrt(2 * self.config.n_layer) if name.endswith(("out.weight", "down.weight")) else 1
                value = torch.empty(parameter.shape).normal_(0, self.config.init_std / shrink, generator=generator)
            parameter.copy_(value)

    def forward(
        self, tokens: Tensor, positions: Tensor | None = None, cache: Cache | None = None, last: int = 0
    ) -> Tensor:
        """Logits for the token after each token, (B, T) -> (B, T, V); or for the `last` ones alone, (B, last, V).

        Positions, (T,), are where these tokens stand; by default 0 .. T-1, or on from the farthest one in the cache. A
        cache holds what was computed for earlier tokens, and takes these in; ValueError if it has no room.
        """
        T, earlier = tokens.shape[1], 0 if cache is None else cache.used
        plainly_causal = positions is None and (not earlier or T == 1)  # Tq = Tk, or a last query: fused needs no mask
        if positions is None:
            begin = cache.positions[:earlier].max() + 1 if earlier else 0
            positions = torch.arange(T, device=tokens.device) + begin
        x = self.position.embed(self.embedding(tokens), positions)  # (B, T, C), or PastTheEnd, before the cache changes
        k_positions = positions if cache is None else cache.append(tokens, positions)  # (Tk,)
        if earlier and self.position.outdates_cache(earlier, k_positions):
            cache.used = 0  # its keys were turned at other frequencies (dynamic, longrope): compute all of it again
            return self(cache.tokens[:, : earlier + T].clone(), k_positions.clone(), cache, last or T)
        bias, mask = self.position.bias(positions, k_positions), None
        if bias is not None or not plainly_causal or self.config.attention == "explicit":
            later = k_positions > positions[:, None]  # (Tq, Tk)
            mask = (torch.zeros_like(later).float() if bias is None else bias).masked_fill(later, -math.inf)
        context = Context(self.position, self.position.angles(positions, x.dtype), mask, cache)
        for block in self.blocks:
            x = block(x, context)  # (B, T, C)
        return F.linear(self.norm(x[:, -last:]), (self.head or self.embedding).weight)

    def new_cache(self, batch_size: int, length: int) -> Cache:
        """An empty cache for `batch_size` sequences of up to `length` tokens."""
        return Cache(self.config, self.position.d_key, batch_size, length, self.embedding.weight)
