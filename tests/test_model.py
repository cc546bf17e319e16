"""The transformer under every scheme: causality, cache, shifts, first values, and parity with the library's Llama.

.venv/bin/python -m pytest tests/test_model.py
"""

import copy
import math
import re
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.provenance import shared_sha256
from harness.ranges import explain
from harness.workloads import llama
from model import ModelConfig, Transformer
from positions import SCHEMES, PastTheEnd, Position, SinusoidalOptions
from rope import RopeConfig

V, L, T = 50, 32, 24
# first values ten times the default, so that attention is sharp and what a scheme does shows in the logits
SHAPE = {
    "vocab_size": V,
    "d_model": 32,
    "n_layer": 2,
    "n_head": 4,
    "seq_len": L,
    "init_std": 0.2,
    "sinusoidal": SinusoidalOptions(0.2),
}
BFLOAT16_TOLERANCE = 0.15  # absolute, on logits of standard deviation about 1: some ten roundings of 2^-9 each

ABSOLUTE = [name for name, scheme in SCHEMES.items() if scheme.embed is not Position.embed]  # not shift-invariant
every_scheme = pytest.mark.parametrize("position", SCHEMES)
cpu_and_card = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def build(position: str = "rope", seed: int = 0, **options: Any) -> Transformer:
    return Transformer(
        ModelConfig(**SHAPE | {"position": position, "sinusoidal": SinusoidalOptions(0.2)} | options), seed
    )


def some_tokens(length: int = T, batch_size: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(V, (batch_size, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits_of(model: Transformer, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
    return model(tokens, positions)


@torch.no_grad()
def cached_logits(model: Transformer, tokens: Tensor, chunks: list[int], positions: Tensor | None = None) -> Tensor:
    """The same logits piece by piece through a cache; positions for the first piece only, later ones count on."""
    cache, logits, start = model.new_cache(*tokens.shape), [], 0
    for length in chunks:
        given = positions[:length] if positions is not None and start == 0 else None
        logits.append(model(tokens[:, start : start + length], given, cache))
        start += length
    assert start == tokens.shape[1]
    return torch.cat(logits, dim=1)


def assert_close(ours: Tensor, theirs: Tensor, atol: float) -> None:
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=atol)


def gap(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


# Order ----------------------------------------------------------------------------------------------------------------


@every_scheme
@both_dtypes
@pytest.mark.parametrize("attention", ["explicit", "fused"])
def test_a_later_token_changes_no_earlier_logits(position: str, dtype: torch.dtype, attention: str) -> None:
    model, tokens = build(position, attention=attention).to(dtype), some_tokens()
    before = logits_of(model, tokens)
    assert before.shape == (2, T, V)
    assert before.dtype == dtype
    for t in (1, 11, T - 1):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % V
        after = logits_of(model, changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert all(not torch.equal(after[:, later], before[:, later]) for later in range(t, T))


@every_scheme
@pytest.mark.parametrize("attention", ["explicit", "fused"])
def test_causality_compares_positions_and_not_places_in_the_row(position: str, attention: str) -> None:
    """Tokens in any order, each with its position, give the same logits in that order."""
    model, tokens = build(position, attention=attention), some_tokens()
    order = torch.randperm(T, generator=torch.Generator().manual_seed(1))
    assert_close(logits_of(model, tokens[:, order], order), logits_of(model, tokens)[:, order], atol=1e-5)


@every_scheme
@pytest.mark.parametrize("shift", [1, 7])
def test_shifting_all_positions_matters_only_to_absolute_schemes(position: str, shift: int) -> None:
    model, tokens = build(position), some_tokens()
    before = logits_of(model, tokens, torch.arange(T))
    after = logits_of(model, tokens, torch.arange(T) + shift)
    if position in ABSOLUTE:
        assert gap(after, before) > 0.05
    else:
        assert_close(after, before, atol=1e-5)


@pytest.mark.parametrize("position", [name for name in SCHEMES if name not in ABSOLUTE])
def test_a_shift_by_16k_changes_nothing_either(position: str) -> None:
    model, tokens = build(position), some_tokens()
    assert_close(logits_of(model, tokens, torch.arange(T) + 16384), logits_of(model, tokens), atol=2e-5)


@every_scheme
def test_every_scheme_but_none_tells_how_far_a_token_is(position: str) -> None:
    """The last token moves from 12 to 13 while the others stand still."""
    model, tokens = build(position), some_tokens(13)
    moved = torch.arange(13) + (torch.arange(13) == 12)
    change = gap(logits_of(model, tokens, moved)[:, -1], logits_of(model, tokens)[:, -1])
    assert change == 0 if position == "none" else change > 0.01


@pytest.mark.parametrize("position", [name for name in SCHEMES if name != "none"])
def test_a_bfloat16_model_tells_257_from_256(position: str) -> None:
    """The query stands 6 or 7 tokens past its keys; a position in bfloat16 could not say which."""
    model = build(position, seq_len=300).bfloat16()
    tokens = some_tokens(8)
    at_256, at_257 = (logits_of(model, tokens, torch.tensor([*range(244, 251), p]))[:, -1] for p in (256, 257))
    assert gap(at_256, at_257) > 0.01


@every_scheme
def test_a_bfloat16_model_far_out_agrees_with_its_float32_copy(position: str) -> None:
    narrow = build(position, seq_len=2100).bfloat16()
    wide = copy.deepcopy(narrow).float()
    positions, tokens = torch.arange(2001, 2001 + T), some_tokens()
    ours, theirs = logits_of(narrow, tokens, positions), logits_of(wide, tokens, positions)
    assert_close(ours, theirs, atol=BFLOAT16_TOLERANCE)


@every_scheme
def test_autocast_agrees_with_float32(position: str) -> None:
    model, tokens, positions = build(position, seq_len=2100), some_tokens(), torch.arange(2001, 2001 + T)
    with torch.autocast("cpu", torch.bfloat16):
        ours, ours_cached = logits_of(model, tokens, positions), cached_logits(model, tokens, [9, 1, 14], positions)
    theirs = logits_of(model, tokens, positions)
    assert_close(ours, theirs, atol=BFLOAT16_TOLERANCE)
    assert_close(ours_cached, theirs, atol=BFLOAT16_TOLERANCE)


@every_scheme
@pytest.mark.parametrize("n_layer", [1, 3])
def test_each_hook_is_called_in_one_place(position: str, n_layer: int) -> None:
    """Embed and bias once for all layers, rotate once in each."""
    model = build(position, n_layer=n_layer)
    hooks = {name: mock.Mock(wraps=getattr(model.position, name)) for name in ("embed", "rotate", "bias")}
    with mock.patch.multiple(model.position, **hooks):
        logits_of(model, some_tokens())
    assert {name: hook.call_count for name, hook in hooks.items()} == {"embed": 1, "rotate": n_layer, "bias": 1}


# Cache ----------------------------------------------------------------------------------------------------------------


CHUNKS = [[T], [7] + [1] * (T - 7), [1] * T, [1, 5, 3, 9, 6]]


@every_scheme
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, BFLOAT16_TOLERANCE)])
@pytest.mark.parametrize("chunks", CHUNKS, ids=["at-once", "prefill-then-steps", "steps", "odd-chunks"])
def test_cached_equals_full(position: str, dtype: torch.dtype, tolerance: float, chunks: list[int]) -> None:
    model, tokens = build(position).to(dtype), some_tokens()
    assert_close(cached_logits(model, tokens, chunks), logits_of(model, tokens), atol=tolerance)


@every_scheme
@pytest.mark.parametrize("attention", ["explicit", "fused"])
@pytest.mark.parametrize("n_kv_head", [1, 2])
def test_cached_equals_full_with_fewer_key_heads(position: str, attention: str, n_kv_head: int) -> None:
    model, tokens = build(position, n_kv_head=n_kv_head, attention=attention), some_tokens()
    assert model.new_cache(2, T).keys.shape == (2, 2, n_kv_head, T, 8)
    for chunks in CHUNKS[1::2]:
        assert_close(cached_logits(model, tokens, chunks), logits_of(model, tokens), atol=1e-5)


@every_scheme
def test_a_cache_counts_on_from_the_positions_it_was_given(position: str) -> None:
    model, tokens, positions = build(position), some_tokens(), torch.arange(T) + 5
    full = logits_of(model, tokens, positions)
    assert_close(cached_logits(model, tokens, [7, 1, 1, 15], positions), full, atol=1e-5)
    cache = model.new_cache(2, T + 9)  # more room than needed, and every piece's positions given
    with torch.no_grad():
        pieces = [model(tokens[:, t], positions[t], cache) for t in (slice(0, 3), slice(3, 4), slice(4, T))]
    assert_close(torch.cat(pieces, dim=1), full, atol=1e-5)
    assert torch.equal(cache.positions[: cache.used], positions)
    assert torch.equal(cache.tokens[:, : cache.used], tokens)


def test_a_single_token_that_stands_before_those_in_the_cache_does_not_see_them() -> None:
    """A token that goes on from the farthest one sees everything and needs no mask; one put elsewhere needs it."""
    model, tokens, late = build(), some_tokens(), []
    with torch.no_grad():
        for last in (None, torch.tensor([15])):  # the farthest stands at 14
            cache = model.new_cache(2, T)
            model(tokens[:, :5], torch.arange(5) + 10, cache)
            early = model(tokens[:, 5:6], torch.tensor([3]), cache)
            assert_close(early, model(tokens[:, 5:6], torch.tensor([3])), atol=1e-5)
            late.append(model(tokens[:, 6:7], last, cache))
    assert_close(*late, atol=1e-5)


@pytest.mark.parametrize("position", [name for name in SCHEMES if build(name).position.longest is None])
def test_a_cache_goes_on_past_the_trained_length(position: str) -> None:
    model, tokens = build(position), some_tokens(3 * L)
    assert_close(cached_logits(model, tokens, [L - 3, 1, 1, 1, 1, 2 * L - 1]), logits_of(model, tokens), atol=2e-5)


@pytest.mark.parametrize(
    "rope",
    [
        RopeConfig(layout="half-split", fraction=0.5),
        RopeConfig(scaling="linear", factor=4),
        RopeConfig(scaling="ntk", factor=4),
        RopeConfig(scaling="yarn", factor=4, original_length=L),
        RopeConfig(scaling="llama3", factor=4, original_length=L),
        RopeConfig(scaling="proportional", fraction=0.5),
        *(
            pytest.param(
                rope,
            )
            for rope in (
                RopeConfig(scaling="dynamic", factor=4, original_length=L),
                RopeConfig(
                    scaling="longrope", factor=4, original_length=L, short_factor=[1.0] * 4, long_factor=[2.0, 3, 4, 5]
                ),
            )
        ),
    ],
    ids=lambda rope: rope.scaling,
)
def test_cached_equals_full_for_every_scaling_across_the_trained_length(rope: RopeConfig) -> None:
    """Every cached step equals the full pass over the tokens up to it, since frequencies may depend on the length."""
    model, tokens = build(rope=rope), some_tokens(L + 4)
    cache, start = model.new_cache(2, L + 4), 0
    for length in (L - 2, 1, 1, 1, 1, 2):
        with torch.no_grad():
            ours = model(tokens[:, start : start + length], cache=cache)
        start += length
        assert_close(ours, logits_of(model, tokens[:, :start])[:, -length:], atol=1e-5)


@every_scheme
@pytest.mark.parametrize("attention", ["explicit", "fused"])
@pytest.mark.parametrize("n_layer", [1, 3])
def test_the_last_logits_alone_are_the_last_of_all(position: str, attention: str, n_layer: int) -> None:
    model, tokens = build(position, attention=attention, n_layer=n_layer, n_kv_head=2), some_tokens()
    full = logits_of(model, tokens)
    with torch.no_grad():
        for last in (1, 5, T):
            assert_close(model(tokens, last=last), full[:, -last:], atol=1e-5)
        cache = model.new_cache(2, T)
        model(tokens[:, :10], cache=cache, last=1)  # the cache takes in all ten
        assert_close(model(tokens[:, 10:], cache=cache, last=3), full[:, -3:], atol=1e-5)


def test_the_last_logits_spare_the_other_tokens_the_head() -> None:
    model, seen = build(n_layer=2), []
    for part in (model.blocks[1].mlp, model.norm):
        part.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    with torch.no_grad():
        model(some_tokens(), last=3)
    assert seen == [T, 3]


def test_learned_positions_end_at_the_table_with_a_cache_and_without() -> None:
    model, tokens = build("learned"), some_tokens(L + 1)
    with pytest.raises(PastTheEnd, match=f"end at {L}"):
        logits_of(model, tokens)
    with pytest.raises(PastTheEnd, match=f"no {L}"):
        logits_of(model, tokens[:, :1], torch.tensor([L]))
    assert cached_logits(model, tokens[:, :L], [L - 1, 1]).shape == (2, L, V)
    with pytest.raises(PastTheEnd, match=f"no {L}"):
        cached_logits(model, tokens, [L - 1, 1, 1])


def test_a_cache_without_room_says_so_and_keeps_what_it_has() -> None:
    model, tokens = build(), some_tokens(12)
    cache = model.new_cache(2, 10)
    with torch.no_grad():
        model(tokens[:, :8], cache=cache)
        with pytest.raises(ValueError, match=r"cache of \(2, 10\), 2 free a row, cannot take 2 x 3 more"):
            model(tokens[:, 8:11], cache=cache)
        ours = model(tokens[:, 8:10], cache=cache)
    assert_close(ours, logits_of(model, tokens[:, :10])[:, 8:], atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_cache_refuses_another_batch_size(batch_size: int) -> None:
    model = build()
    with pytest.raises(ValueError, match=rf"cache of \(2, 10\).*cannot take {batch_size} x 4 more"):
        model(some_tokens(4, batch_size), cache=model.new_cache(2, 10))


def test_a_refused_position_leaves_the_cache_as_it_was() -> None:
    model, tokens = build("learned"), some_tokens(L + 1)
    cache = model.new_cache(2, 2 * L)
    with torch.no_grad():
        model(tokens[:, :L], cache=cache)
        with pytest.raises(PastTheEnd):
            model(tokens[:, L:], cache=cache)
    assert cache.used == L


# Two ways to compute attention ----------------------------------------------------------------------------------------


@every_scheme
@pytest.mark.parametrize("n_kv_head", [4, 2])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, BFLOAT16_TOLERANCE)], ids=["float32", "bfloat16"]
)
def test_explicit_and_fused_attention_agree(
    position: str, n_kv_head: int, dtype: torch.dtype, tolerance: float
) -> None:
    explicit, fused = (
        build(position, n_kv_head=n_kv_head, attention=attention).to(dtype) for attention in ("explicit", "fused")
    )
    tokens, positions = some_tokens(), torch.arange(T) + 3
    assert_close(logits_of(fused, tokens), logits_of(explicit, tokens), atol=tolerance)
    assert_close(logits_of(fused, tokens, positions), logits_of(explicit, tokens, positions), atol=tolerance)
    chunks = [7, 1, 16]
    assert_close(cached_logits(fused, tokens, chunks), cached_logits(explicit, tokens, chunks), atol=tolerance)


@every_scheme
@pytest.mark.parametrize("attention", ["explicit", "fused"])
def test_the_model_works_in_float64(position: str, attention: str) -> None:
    """Rotation included: relative schemes are shift-invariant far beyond what float32 could show."""
    single, tokens = build(position, attention=attention), some_tokens()
    double = copy.deepcopy(single).double()
    assert all(value.dtype == torch.float64 for value in double.state_dict().values())
    ours = logits_of(double, tokens)
    assert ours.dtype == torch.float64
    assert_close(ours, logits_of(single, tokens), atol=1e-5)
    if position not in ABSOLUTE:
        explicit = build(position, attention="explicit").double()
        assert_close(logits_of(explicit, tokens, torch.arange(T) + 16384), logits_of(explicit, tokens), atol=1e-10)


@every_scheme
def test_fused_attention_with_a_mask_keeps_float64(position: str) -> None:
    explicit, fused = (build(position, attention=attention).double() for attention in ("explicit", "fused"))
    tokens, positions = some_tokens(), torch.arange(T) + 3
    assert_close(logits_of(fused, tokens, positions), logits_of(explicit, tokens, positions), atol=1e-12)


# A card ---------------------------------------------------------------------------------------------------------------


def gradients(model: Transformer, device: str, precision: str) -> list[Tensor]:
    """Loss and gradients of a step on the same tokens, on the CPU."""
    model, tokens = model.to(device), some_tokens().to(device)
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(tokens[:, :-1])
    loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
    return [loss.detach().cpu(), *(g.cpu() for g in torch.autograd.grad(loss, list(model.parameters())))]


@every_scheme
@cpu_and_card
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.1)])
def test_a_training_step_equals_one_in_fp32_on_a_cpu(
    position: str, device: str, precision: str, tolerance: float
) -> None:
    """Loss and every gradient, but for a part of its largest number."""
    ours, theirs = gradients(build(position), device, precision), gradients(build(position), "cpu", "fp32")
    for mine, other in zip(ours, theirs, strict=True):
        assert gap(mine, other) <= tolerance * other.abs().max()


@every_scheme
@cpu_and_card
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, BFLOAT16_TOLERANCE)], ids=["float32", "bfloat16"]
)
def test_fused_explicit_and_cached_agree_on_each_device(
    position: str, device: str, dtype: torch.dtype, tolerance: float
) -> None:
    fused, explicit = (build(position, attention=a).to(device, dtype) for a in ("fused", "explicit"))
    tokens = some_tokens().to(device)
    theirs = logits_of(explicit, tokens)
    assert_close(logits_of(fused, tokens), theirs, atol=tolerance)
    for model in (fused, explicit):
        assert_close(cached_logits(model, tokens, [7, 1, 16]), theirs, atol=tolerance)


# First values ---------------------------------------------------------------------------------------------------------


def shared(model: Transformer) -> dict[str, Tensor]:
    return {name: value for name, value in model.named_parameters() if not name.startswith("position.")}


def test_shared_weights_are_bit_identical_across_schemes() -> None:
    theirs = shared(build("none"))
    for position in SCHEMES:
        ours = shared(build(position))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_shared_sha256_is_one_for_all_schemes_and_another_for_another_seed(tie_embeddings: bool) -> None:
    hashes = {shared_sha256(build(position, tie_embeddings=tie_embeddings)) for position in SCHEMES}
    assert len(hashes) == 1
    assert shared_sha256(build(seed=1, tie_embeddings=tie_embeddings)) not in hashes
    changed = build(tie_embeddings=tie_embeddings)
    with torch.no_grad():
        changed.blocks[1].mlp.down.weight[0, 0] += 1e-3
    assert shared_sha256(changed) not in hashes


@every_scheme
def test_seeds_differ_and_repeat(position: str) -> None:
    first, again, other = (dict(build(position, seed).named_parameters()) for seed in (0, 0, 1))
    scheme = build(position).position
    for name, value in first.items():
        assert torch.equal(value, again[name])
        fixed = "norm" in name
        if name.startswith("position."):  # a scheme may choose values that no seed changes
            draws = (torch.Generator().manual_seed(seed) for seed in (0, 1))
            own = [scheme.first_value(name.removeprefix("position."), value.shape, draw) for draw in draws]
            fixed = own[0] is not None and torch.equal(*own)
        assert torch.equal(value, other[name]) == fixed


@every_scheme
def test_building_a_model_leaves_the_global_generator_alone_and_ignores_it(position: str) -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = build(position)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), build(position).parameters(), strict=True))


def test_a_first_value_is_a_function_of_seed_and_name_alone() -> None:
    """More layers, a longer table, another vocabulary, an untied head: what both models have is the same."""
    small = build("learned")
    large = build("learned", n_layer=3, tie_embeddings=False, n_kv_head=4, d_ff=64)
    ours, theirs = dict(small.named_parameters()), dict(large.named_parameters())
    assert set(theirs) - set(ours) == {"head.weight"} | {name for name in theirs if name.startswith("blocks.2.")}
    for name, value in ours.items():
        if name.endswith(("out.weight", "down.weight")):  # these write to the residual: std init_std / sqrt(2 n_layer)
            torch.testing.assert_close(value * math.sqrt(2 / 3), theirs[name])
        else:
            assert torch.equal(value, theirs[name])
    for position in ("none", "t5"):
        assert torch.equal(
            build(position, vocab_size=70).blocks[0].attention.qkv.weight, ours["blocks.0.attention.qkv.weight"]
        )


def test_parameters_of_one_shape_start_from_different_values() -> None:
    model = build("learned", tie_embeddings=False, vocab_size=L)  # embedding, head and table all of one shape
    values = [value for name, value in model.named_parameters() if "norm" not in name]
    assert not any(torch.equal(a, b) for i, a in enumerate(values) for b in values[:i] if a.shape == b.shape)


@pytest.mark.parametrize(("init_std", "n_layer"), [(0.02, 2), (0.1, 3)])
def test_first_values_have_the_documented_spread(init_std: float, n_layer: int) -> None:
    options = {"vocab_size": 1000, "d_model": 128, "seq_len": 256, "tie_embeddings": False}
    for position in ("learned", "t5"):
        model = build(position, init_std=init_std, n_layer=n_layer, **options)
        for name, value in model.named_parameters():
            if "norm" in name:
                assert (value == 1).all()
                continue
            writes_to_residual = name.split(".")[-2] in ("out", "down")
            std = init_std / math.sqrt(2 * n_layer) if writes_to_residual else init_std
            tolerance = 5 / math.sqrt(2 * value.numel())  # five standard errors
            assert value.std().item() == pytest.approx(std, rel=tolerance), name
            assert abs(value.mean().item()) < 5 * std / math.sqrt(value.numel()), name


def test_a_tied_head_is_the_embedding_and_an_untied_one_is_not() -> None:
    tied, untied, tokens = build(), build(tie_embeddings=False), some_tokens()
    assert "head.weight" not in tied.state_dict()
    assert untied.head.weight.shape == (V, 32)
    assert gap(logits_of(tied, tokens), logits_of(untied, tokens)) > 0.1
    with torch.no_grad():
        untied.head.weight.copy_(untied.embedding.weight)
    assert torch.equal(logits_of(tied, tokens), logits_of(untied, tokens))


@pytest.mark.parametrize(
    ("position", "added"),
    [("none", 0), ("sinusoidal", 0), ("alibi", 0), ("rope", 0), ("learned", L * 32), ("t5", 32 * 4), ("kerple", 2 * 4)],
)
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_a_scheme_adds_its_parameters_and_no_more(position: str, added: int, tie_embeddings: bool) -> None:
    model = build(position, tie_embeddings=tie_embeddings, n_kv_head=2)
    C, d_ff, kv = 32, 64, 16  # 8/3 * 32 = 85, rounded down to a multiple of 32
    block = C * (C + 2 * kv) + C * C + 3 * C * d_ff + 2 * C
    by_hand = V * C * (1 if tie_embeddings else 2) + 2 * block + C
    assert model.config.d_ff == d_ff
    assert sum(p.numel() for p in model.parameters()) == by_hand + added
    assert sum(p.numel() for p in model.position.parameters()) == added


@every_scheme
def test_a_state_dict_carries_everything(position: str) -> None:
    model, other, tokens = build(position), build(position, seed=1), some_tokens()
    assert gap(logits_of(model, tokens), logits_of(other, tokens)) > 0.1
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(logits_of(model, tokens), logits_of(other, tokens))


# Training -------------------------------------------------------------------------------------------------------------


def loss_of(model: Transformer, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


@every_scheme
@pytest.mark.parametrize("attention", ["explicit", "fused"])
def test_gradient_flows_into_every_parameter(position: str, attention: str) -> None:
    model = build(position, tie_embeddings=False, attention=attention)
    loss_of(model, some_tokens(L)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-5, name


@every_scheme
def test_one_step_lowers_the_loss_on_its_batch(position: str) -> None:
    model, tokens = build(position, init_std=0.02, sinusoidal=SinusoidalOptions(0.02)), some_tokens(L)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = loss_of(model, tokens)
    assert before.item() == pytest.approx(math.log(V), abs=0.05)  # knows nothing yet
    before.backward()
    optimizer.step()
    assert loss_of(model, tokens).item() < before.item() - 0.02


# Ours against the transformers library's Llama ------------------------------------------------------------------------


def their_llama(ours: Transformer, **rope_parameters: Any) -> nn.Module:
    """The library's model with our weights: q and k rows in half-split order, whatever ours is."""
    c = ours.config
    rope_parameters = {"rope_type": "default", "rope_theta": c.rope.base} | rope_parameters
    theirs = llama(c, "eager", 4 * c.seq_len, rope_parameters=rope_parameters).eval()
    order = torch.arange(c.d_head)
    if c.rope.layout == "interleaved":
        order = torch.cat((order[::2], order[1::2]))
    weights = {"model.embed_tokens.weight": ours.embedding.weight, "model.norm.weight": ours.norm.weight}
    weights["lm_head.weight"] = (ours.embedding if c.tie_embeddings else ours.head).weight
    for layer, block in enumerate(ours.blocks):
        q, k, v = block.attention.qkv.weight.split([heads * c.d_head for heads in block.attention.heads])
        gate, up = block.mlp.gate_up.weight.chunk(2)
        for name, value in {
            "self_attn.q_proj": q.unflatten(0, (c.n_head, -1))[:, order].flatten(0, 1),
            "self_attn.k_proj": k.unflatten(0, (c.n_kv_head, -1))[:, order].flatten(0, 1),
            "self_attn.v_proj": v,
            "self_attn.o_proj": block.attention.out.weight,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": block.mlp.down.weight,
            "input_layernorm": block.attention_norm.weight,
            "post_attention_layernorm": block.mlp_norm.weight,
        }.items():
            weights[f"model.layers.{layer}.{name}.weight"] = value
    theirs.load_state_dict(weights, strict=True)
    return theirs


def with_trained_norms(model: Transformer) -> Transformer:
    """Norms start at one, which would hide a norm that is missing or in the wrong place."""
    generator = torch.Generator().manual_seed(3)
    for name, value in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(value, 0.5, 1.5, generator=generator)
    return model


@pytest.mark.parametrize("layout", ["interleaved", "half-split"])
@pytest.mark.parametrize("n_kv_head", [4, 2])
@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("attention", ["explicit", "fused"])
def test_ours_with_rope_is_the_librarys_llama(
    layout: str, n_kv_head: int, tie_embeddings: bool, attention: str
) -> None:
    options = {"n_kv_head": n_kv_head, "tie_embeddings": tie_embeddings, "attention": attention, "norm_eps": 1e-3}
    ours = with_trained_norms(build(rope=RopeConfig(layout=layout, base=500.0), **options))
    theirs, tokens = their_llama(ours), some_tokens()
    with torch.no_grad():
        assert_close(ours(tokens), theirs(tokens).logits, atol=2e-5)
        shifted = torch.arange(T) + 40
        assert_close(ours(tokens, shifted), theirs(tokens, position_ids=shifted[None]).logits, atol=2e-5)
        spread = torch.arange(T) * 3  # a shift alone would not show wrong positions
        assert_close(ours(tokens, spread), theirs(tokens, position_ids=spread[None]).logits, atol=2e-5)
        assert gap(ours(tokens, spread), ours(tokens)) > 0.1


def test_running_weights_in_the_wrong_layout_is_another_function() -> None:
    """So that the parity above can fail: the same weights without the permutation."""
    ours = build(rope=RopeConfig(layout="interleaved"))
    wrong = build(rope=RopeConfig(layout="half-split"))
    assert gap(logits_of(wrong, some_tokens()), logits_of(their_llama(ours), some_tokens()).logits) > 0.1


@pytest.mark.parametrize("layout", ["interleaved", "half-split"])
@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"scaling": "yarn", "factor": 4.0}, {"rope_type": "yarn", "factor": 4.0}),
        (
            {"scaling": "llama3", "factor": 4.0, "high_freq_factor": 8.0},
            {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 8.0},
        ),
    ],
    ids=["yarn", "llama3"],
)
def test_ours_with_a_scaling_is_the_librarys_llama(
    layout: str, options: dict[str, Any], parameters: dict[str, Any]
) -> None:
    """Attention factor included, past the trained length."""
    ours = with_trained_norms(build(rope=RopeConfig(layout=layout, original_length=L, **options)))
    theirs = their_llama(ours, original_max_position_embeddings=L, **parameters)
    tokens = some_tokens(3 * L)
    with torch.no_grad():
        assert_close(ours(tokens), theirs(tokens).logits, atol=3e-5)
        unscaled = with_trained_norms(build(rope=RopeConfig(layout=layout)))
        assert gap(ours(tokens), unscaled(tokens)) > 0.05


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 30}, r"model\.d_model 30 is not divisible by model\.n_head 4: 28 or 32 would be"),
        ({"d_model": 3}, r"model\.d_model 3 is not divisible by model\.n_head 4: 4 would be"),
        ({"n_kv_head": 3}, r"model\.n_kv_head 3 does not divide model\.n_head 4: 1, 2, 4 do"),
        ({"n_kv_head": 8}, r"model\.n_kv_head 8 does not divide model\.n_head 4"),
        ({"position": "ropes"}, r"model\.position 'ropes' is none of"),
        ({"position": "sinusoid"}, r"model\.position 'sinusoid' is none of"),
        ({"position": "alibaba"}, r"model\.position 'alibaba' is none of"),
        ({"position": "xyz"}, rf"model\.position 'xyz' is none of {', '.join(SCHEMES)}$"),
        *(
            ({name: value}, rf"model\.{name} {value} must be at least 1")
            for name in ("vocab_size", "d_model", "n_layer", "n_head", "n_kv_head", "d_ff", "seq_len")
            for value in (0, -1)
        ),
        ({"position": "sinusoidal", "d_model": 33, "n_head": 3}, r"model\.d_model 33 must be even"),
        ({"init_std": 0.0}, r"model\.init_std 0 must be at least 1e-06"),
        ({"norm_eps": -1.0}, r"model\.norm_eps -1 must be at least 1e-12"),
        ({"d_model": 36}, r"rope\.fraction 1 of a head 9 wide .*n_head, d_model or rope\.fraction"),
        ({"rope": RopeConfig(fraction=0.4)}, r"rope\.fraction 0\.4 of a head 8 wide rotates 3 features"),
        ({"rope": RopeConfig(scaling="yarn", factor=2)}, r"rope\.scaling yarn needs rope\.original_length"),
        (
            {"rope": RopeConfig(scaling="longrope", original_length=L, short_factor=[1.0] * 3, long_factor=[1.0] * 4)},
            r"rope\.short_factor has 3 numbers, and 4 pairs",
        ),
    ],
)
def test_shapes_that_cannot_be_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        ModelConfig(**SHAPE | options)
    assert re.search(message, explain(refused.value))


@pytest.mark.parametrize("position", [name for name, scheme in SCHEMES.items() if scheme.Options is not RopeConfig])
def test_only_rope_needs_an_even_head(position: str) -> None:
    model = build(position, d_model=36)
    assert logits_of(model, some_tokens()).shape == (2, T, V)


def test_a_model_without_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.vocab_size is not known"):
        Transformer(ModelConfig())


def test_left_out_sizes_are_filled_in() -> None:
    config = ModelConfig(d_model=128, n_head=8)
    assert (config.d_ff, config.n_kv_head, config.d_head, config.position) == (320, 8, 16, "rope")
    assert ModelConfig(d_model=8, n_head=2).d_ff == 32


# ---- fast and plain paths --------------------------------------------------------------------------------------------


def losses_of_50_steps(text: str, **how: Any) -> list[float]:
    """Losses of 50 training steps of a tiny model on the bytes of a text, a batch of 4 x 16 each."""
    model = Transformer(ModelConfig(vocab_size=256, d_model=32, n_layer=2, n_head=2, seq_len=16, **how))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    blocks = torch.tensor(list(text.encode()[: 50 * 4 * 17])).view(50, 4, 17)
    losses = []
    for block in blocks:
        loss = F.cross_entropy(model(block[:, :-1]).flatten(0, 1), block[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_explicit_and_fused_attention_have_the_same_losses_over_50_steps(text: str) -> None:
    explicit, fused = (losses_of_50_steps(text, attention=attention) for attention in ("explicit", "fused"))
    assert fused == pytest.approx(explicit, abs=2e-3)
    assert explicit[-1] < explicit[0] - 0.5  # it learns


def test_complex_and_real_rotation_have_the_same_losses_over_50_steps(text: str, monkeypatch) -> None:
    made, complex_ = [], torch.complex
    monkeypatch.setattr(torch, "complex", lambda *parts: made.append(1) or complex_(*parts))
    fast, calls = losses_of_50_steps(text), len(made)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # the compiler's form, in real numbers
    plain = losses_of_50_steps(text)
    assert calls == len(made) == 50 * 2 * 2  # two ways indeed: a step turns q and k in both layers
    assert fast == pytest.approx(plain, abs=2e-3)
