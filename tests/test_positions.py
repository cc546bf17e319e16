"""Every scheme of order by itself: its table against published values, and which hook it overrides.

.venv/bin/python -m pytest tests/test_positions.py
"""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model import ModelConfig
from positions import SCHEMES, PastTheEnd, Position, SinusoidalOptions, t5_bucket
from rope import RopeConfig, frequencies, rotate

B, H, HKV, T, C = 2, 4, 2, 6, 32
D = C // H
every_scheme = pytest.mark.parametrize("name", SCHEMES)
POSITIONS = torch.tensor([0, 1, 5, 200, 257, 299])


def config_of(position: str, **options: Any) -> ModelConfig:
    return ModelConfig(**{"vocab_size": 50, "d_model": C, "n_head": H, "seq_len": 300, "position": position} | options)


def scheme(position: str, **options: Any) -> Any:
    """A scheme as a model owns it, with first values of its own or else normal ones, drawn from a fixed seed."""
    built = SCHEMES[position](config_of(position, **options))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in built.named_parameters():
        own = built.first_value(name, parameter.shape, generator)
        parameter.data = nn.init.normal_(parameter.data, generator=generator) if own is None else own
    return built


def hook_of(name: str) -> str | None:
    """The hook that a scheme overrides, None if it overrides nothing."""
    own = (hook for hook in ("embed", "rotate", "bias") if getattr(SCHEMES[name], hook) is not getattr(Position, hook))
    return next(own, None)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@torch.no_grad()
def hook_outputs(built: Position, positions: Tensor, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """What the three hooks are given and return, called in the model's order."""
    T = len(positions)
    x = normal(B, T, C, dtype=dtype)
    q, k = normal(B, H, T, D, dtype=dtype, seed=1), normal(B, HKV, T, D, dtype=dtype, seed=2)
    embedded = built.embed(x, positions)
    layers = [built.rotate(q, k, built.angles(positions, dtype), layer) for layer in range(4)]
    rotated = next((turned for turned in layers if not torch.equal(turned[0], q)), layers[0])  # some act in some layers
    return {"x": x, "q": q, "k": k, "embed": embedded, "rotate": rotated, "bias": built.bias(positions, positions)}


# The interface --------------------------------------------------------------------------------------------------------


def test_the_schemes_have_their_fixed_names() -> None:
    assert {"none", "sinusoidal", "learned", "alibi", "t5", "rope"} <= set(SCHEMES)


def test_none_overrides_nothing() -> None:
    assert SCHEMES["none"] is Position


@pytest.mark.parametrize(
    ("name", "overridden"),
    [
        ("none", set()),
        ("sinusoidal", {"embed"}),
        ("learned", {"embed"}),
        ("alibi", {"bias"}),
        ("t5", {"bias"}),
        ("kerple", {"bias"}),
        ("rope", {"rotate"}),
    ],
)
def test_each_scheme_overrides_its_hook_and_no_other(name: str, overridden: set[str]) -> None:
    hooks = {"embed", "rotate", "bias"}
    assert {hook for hook in hooks if getattr(SCHEMES[name], hook) is not getattr(Position, hook)} == overridden


@every_scheme
def test_each_scheme_acts_in_one_place_only(name: str) -> None:
    out = hook_outputs(scheme(name), POSITIONS)
    acts = {
        "embed": not torch.equal(out["embed"], out["x"]),
        "rotate": not torch.equal(out["rotate"][0], out["q"]) and not torch.equal(out["rotate"][1], out["k"]),
        "bias": out["bias"] is not None,
    }
    assert acts == {hook: hook == hook_of(name) for hook in acts}
    assert sum(acts.values()) <= 1


@every_scheme
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hooks_keep_shapes_and_dtypes(name: str, dtype: torch.dtype) -> None:
    built = scheme(name).to(dtype)
    out = hook_outputs(built, POSITIONS, dtype)
    assert (out["embed"].shape, out["embed"].dtype) == ((B, T, C), dtype)
    assert [(y.shape, y.dtype) for y in out["rotate"]] == [((B, H, T, D), dtype), ((B, HKV, T, D), dtype)]
    bias = built.bias(POSITIONS[-2:], POSITIONS)
    assert (bias is None) == (hook_of(name) != "bias")
    if bias is not None:  # keys may be more than queries: the rows of a cached step are rows of the full bias
        assert bias.shape == (H, 2, T)
        assert torch.equal(bias, built.bias(POSITIONS, POSITIONS)[:, -2:])


@every_scheme
def test_only_learned_positions_end(name: str) -> None:
    assert scheme(name).longest == (300 if name == "learned" else None)


@every_scheme
def test_nothing_but_parameters_is_saved_or_cast(name: str) -> None:
    """A table in a buffer would be rounded by `.bfloat16()` and change the checkpoints' keys from scheme to scheme."""
    built = scheme(name)
    assert not list(built.buffers())
    assert set(built.state_dict()) == {parameter for parameter, _ in built.named_parameters()}


@every_scheme
def test_tables_stay_right_after_bfloat16(name: str) -> None:
    """Same inputs to the scheme before and after the cast: only a trained table may be rounded, and only once."""
    before = scheme(name)
    after = copy.deepcopy(before).bfloat16()
    with torch.no_grad():
        for parameter in before.parameters():  # what rounding does to a trained table is no fault of the scheme
            parameter.copy_(parameter.bfloat16().float())
    positions = torch.tensor([0, 255, 256, 257, 258, 299])
    for dtype in (torch.float32, torch.bfloat16):  # a bf16 model may also be given float32 activations, under autocast
        theirs, ours = hook_outputs(before, positions, dtype), hook_outputs(after, positions, dtype)
        assert torch.equal(ours["embed"], theirs["embed"])
        assert all(torch.equal(a, b) for a, b in zip(ours["rotate"], theirs["rotate"], strict=True))
        assert (ours["bias"] is None and theirs["bias"] is None) or torch.equal(ours["bias"].float(), theirs["bias"])


@pytest.mark.parametrize("name", [name for name in SCHEMES if name != "none"])
def test_a_bfloat16_scheme_tells_257_from_256(name: str) -> None:
    built = scheme(name, sinusoidal=SinusoidalOptions(1.0)).bfloat16()
    place = hook_of(name)
    at_256, at_257 = (hook_outputs(built, torch.tensor([250, p]), torch.bfloat16)[place] for p in (256, 257))
    if place == "rotate":
        assert not any(torch.equal(a[:, :, 1], b[:, :, 1]) for a, b in zip(at_256, at_257, strict=True))
    else:
        assert not torch.equal(at_256[:, 1], at_257[:, 1])


# sinusoidal -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amplitude", [1.0, 0.02])
def test_sinusoidal_table_is_the_papers_formula(amplitude: float) -> None:
    positions = torch.tensor([0, 1, 2, 100, 257, 100000])
    built = scheme("sinusoidal", sinusoidal=SinusoidalOptions(amplitude))
    ours = built.embed(torch.zeros(1, T, C, dtype=torch.float64), positions)[0]
    theirs = torch.empty(T, C, dtype=torch.float64)
    for t, p in enumerate(positions.tolist()):
        for i in range(C // 2):
            angle = p / 10000 ** (2 * i / C)
            theirs[t, 2 * i], theirs[t, 2 * i + 1] = amplitude * math.sin(angle), amplitude * math.cos(angle)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10 * amplitude)


def test_sinusoidal_is_added_to_every_row_of_the_batch() -> None:
    built, x = scheme("sinusoidal"), normal(B, T, C)
    added = built.embed(x, POSITIONS) - x
    torch.testing.assert_close(added[0], added[1], rtol=0, atol=1e-6)
    assert added.abs().max() == pytest.approx(0.14, abs=1e-2)  # the default amplitude


def test_sinusoidal_waves_are_ropes_frequencies_over_the_whole_width() -> None:
    """Rotating (0, 1) in every pair by -p theta gives (sin, cos): one table, added here and multiplied there."""
    built = scheme("sinusoidal", sinusoidal=SinusoidalOptions(1.0))
    ours = built.embed(torch.zeros(1, T, C, dtype=torch.float64), POSITIONS)[0]
    theta, _ = frequencies(RopeConfig(), C, 1)
    unit = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(C // 2).expand(1, 1, T, C)
    theirs = rotate(unit, -POSITIONS, theta)[0, 0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


# learned --------------------------------------------------------------------------------------------------------------


def test_learned_looks_its_table_up() -> None:
    built, x = scheme("learned"), normal(B, T, C)
    assert built.table.shape == (300, C)
    ours = built.embed(x, POSITIONS)
    for t, p in enumerate(POSITIONS.tolist()):
        assert torch.equal(ours[:, t], x[:, t] + built.table[p])


@pytest.mark.parametrize("first_missing", [256, 257, 100000])
def test_learned_positions_end_at_a_wall(first_missing: int) -> None:
    built = scheme("learned", seq_len=256)
    x = normal(1, 2, C)
    built.embed(x, torch.tensor([0, 255]))
    with pytest.raises(PastTheEnd, match=rf"end at 256: there is no {first_missing}"):
        built.embed(x, torch.tensor([first_missing, 0]))
    assert issubclass(PastTheEnd, ValueError)


# alibi ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_head", "published"),
    [
        (1, [1 / 256]),
        (2, [1 / 16, 1 / 256]),
        (4, [1 / 4, 1 / 16, 1 / 64, 1 / 256]),
        (8, [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]),
        (16, [2 ** (-h / 2) for h in range(1, 17)]),
        (3, [1 / 16, 1 / 256, 1 / 4]),
        (6, [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]),
    ],
)
def test_alibi_slopes_are_the_published_ones(n_head: int, published: list[float]) -> None:
    slopes = scheme("alibi", n_head=n_head, d_model=n_head * D).slopes
    assert slopes.dtype == torch.float64
    assert slopes.tolist() == pytest.approx(published, rel=1e-15)


def test_alibi_slopes_of_12_heads_end_as_published() -> None:
    slopes = scheme("alibi", n_head=12, d_model=12 * D).slopes.tolist()
    assert slopes[:8] == scheme("alibi", n_head=8).slopes.tolist()
    assert slopes[8:] == pytest.approx([0.7071, 0.3536, 0.1768, 0.0884], abs=5e-5)


def test_alibi_bias_is_minus_slope_times_distance() -> None:
    """Not divided by sqrt(D): heads 8 wide have the same bias as heads 64 wide."""
    q_positions, k_positions = torch.tensor([3, 1000]), torch.tensor([0, 3, 999])
    by_hand = torch.tensor([[3.0, 0.0, 996.0], [1000.0, 997.0, 1.0]])  # |m - k|
    for d_model in (32, 256):
        ours = scheme("alibi", d_model=d_model).bias(q_positions, k_positions)
        assert ours.dtype == torch.float32
        for h, slope in enumerate([1 / 4, 1 / 16, 1 / 64, 1 / 256]):
            assert torch.equal(ours[h], -slope * by_hand)


def test_alibi_has_the_models_number_of_heads() -> None:
    built = scheme("alibi", d_model=48, n_head=6)
    ours = built.bias(torch.tensor([10]), torch.tensor([0])).flatten()
    assert ours.tolist() == [-2.5, -0.625, -0.15625, -0.0390625, -5.0, -1.25]


# kerple ---------------------------------------------------------------------------------------------------------------


def test_kerple_bias_is_the_published_one() -> None:
    built = scheme("kerple")
    with torch.no_grad():
        built.p.fill_(1.0)
        built.a.fill_(1.0)
    ours = built.bias(torch.tensor([100, 1]), torch.tensor([0, 1, 100]))
    by_hand = torch.tensor([[-4.615121, -4.605170, 0.0], [-0.693147, 0.0, 0.0]])  # later keys count as distance 0
    torch.testing.assert_close(ours, by_hand.expand(H, 2, 3), rtol=0, atol=1e-6)


def test_kerple_keeps_its_parameters_above_a_hundredth_where_it_uses_them() -> None:
    built = scheme("kerple")
    with torch.no_grad():
        built.p.copy_(torch.tensor([-1.0, 0.0, 0.005, 2.0]))
        built.a.copy_(torch.tensor([0.5, 0.5, 0.5, -3.0]))
    ours = built.bias(torch.tensor([10]), torch.tensor([0])).flatten()
    by_hand = [-0.01 * math.log(6)] * 3 + [-2 * math.log(1.1)]
    assert ours.tolist() == pytest.approx(by_hand, rel=1e-5)
    ours = built.bias(torch.tensor([10]), torch.tensor([0]))
    ours.sum().backward()
    assert (built.p.grad < 0).all()  # a parameter below the bound can still come back
    assert (built.a.grad != 0).all()


def test_kerple_starts_as_its_authors_do() -> None:
    from model import Transformer

    position = Transformer(config_of("kerple", n_head=16, d_model=256), seed=3).position
    for values, most in ((position.p, 2), (position.a, 1)):
        assert values.min() >= 0
        assert values.max() < most
        assert most * 0.25 < values.mean() < most * 0.75
    assert not torch.equal(position.p / 2, position.a)


# t5 -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distance", "published"),
    [(16, 16), (20, 17), (32, 21), (64, 26), (112, 30), (113, 31), (128, 31), (129, 31), (10**6, 31)],
)
def test_t5_buckets_are_the_published_ones(distance: int, published: int) -> None:
    assert t5_bucket(distance) == published


def test_t5_buckets_follow_the_formula_at_every_boundary() -> None:
    """One bucket a distance below 16; from there bucket b begins at the first n with n >= 16 * 8^((b - 16) / 16)."""
    assert [t5_bucket(n) for n in range(16)] == list(range(16))
    for bucket in range(17, 32):
        first = next(n for n in range(16, 200) if n**16 >= 16**16 * 8 ** (bucket - 16))  # in exact integers
        assert t5_bucket(first) == bucket
        assert t5_bucket(first - 1) == bucket - 1


def test_t5_bias_is_the_tables_entry_for_head_and_bucket() -> None:
    built = scheme("t5")
    assert built.table.shape == (32, H)
    q_positions, k_positions = torch.tensor([200, 7]), torch.tensor([0, 7, 87, 88, 136, 199, 200])
    buckets = [[31, 31, 31, 30, 26, 1, 0], [7, 0, 0, 0, 0, 0, 0]]  # the published ones; later keys count as distance 0
    ours = built.bias(q_positions, k_positions)
    for h in range(H):
        assert torch.equal(ours[h], built.table[torch.tensor(buckets), h])


def test_t5_far_distances_share_a_bucket() -> None:
    built = scheme("t5")
    far = built.bias(torch.tensor([5000]), torch.tensor([0, 1000, 4800, 4872, 4887]))
    assert torch.equal(far, far[:, :, :1].expand_as(far))
    assert not torch.equal(far[:, :, :1], built.bias(torch.tensor([112]), torch.tensor([0])))


def test_t5_bias_depends_on_distance_alone() -> None:
    built, near = scheme("t5"), torch.arange(40)
    assert torch.equal(built.bias(near, near), built.bias(near + 10**6, near + 10**6))


def test_t5_trains_its_table() -> None:
    built = scheme("t5")
    built.bias(torch.arange(300), torch.arange(300)).sum().backward()
    assert (built.table.grad > 0).all()


# rope -----------------------------------------------------------------------------------------------------------------


ROPES = [
    RopeConfig(),
    RopeConfig(layout="half-split", base=500.0),
    RopeConfig(fraction=0.5),
    RopeConfig(scaling="yarn", factor=4, original_length=64),
    RopeConfig(scaling="yarn", factor=4, original_length=64, fraction=0.5, layout="half-split"),
    RopeConfig(scaling="dynamic", factor=2, original_length=64),
    RopeConfig(scaling="longrope", factor=4, original_length=64, short_factor=[1.0] * 4, long_factor=[4.0] * 4),
    RopeConfig(scaling="proportional", fraction=0.5, factor=2),
]
every_rope = pytest.mark.parametrize("rope", ROPES, ids=lambda rope: f"{rope.scaling}-{rope.layout}-{rope.fraction:g}")


@every_rope
def test_rope_rotates_with_its_frequencies_and_attention_factor(rope: RopeConfig) -> None:
    """The attention factor reaches rotated features only."""
    built = scheme("rope", seq_len=64, rope=rope)
    q, k = normal(B, H, T, D, dtype=torch.float64, seed=1), normal(B, HKV, T, D, dtype=torch.float64, seed=2)
    for positions in (POSITIONS, torch.arange(T)):  # past the trained length, and within it
        theta, attention_factor = frequencies(rope, D, int(positions.max()) + 1)
        width = 2 * len(theta)
        angles = built.angles(positions, torch.float64)
        for ours, x in zip(built.rotate(q, k, angles, 0), (q, k), strict=True):
            theirs = rotate(x, positions, theta, rope.layout)
            theirs[..., :width] *= attention_factor
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
            assert torch.equal(ours[..., width:], x[..., width:])


def test_rope_scales_logits_by_the_square_of_the_attention_factor() -> None:
    """YaRN's temperature: q and k are each longer by 1.13863 at s = 4."""
    options = {"scaling": "yarn", "factor": 4, "original_length": 64}
    q, k, ratio = normal(B, H, T, D, seed=1), normal(B, HKV, T, D, seed=2), []
    for rope in (RopeConfig(**options), RopeConfig(**options, attention_factor=1.0)):
        built = scheme("rope", seq_len=64, rope=rope)
        q_m, k_n = built.rotate(q, k, built.angles(POSITIONS, torch.float32), 0)
        ratio.append((q_m[:, :HKV] * k_n).sum(-1))
    torch.testing.assert_close(ratio[0], 1.13863**2 * ratio[1], rtol=2e-5, atol=1e-5)
