"""The rotation and its frequencies, against the paper's equations, published values and the transformers library.

.venv/bin/python -m pytest tests/test_rope.py
"""

import math
import re
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from harness.ranges import explain
from rope import Layout, RopeConfig, cos_sin, frequencies, rotate, rotated_width

LAYOUTS = ["interleaved", "half-split"]
D = 16
POSITIONS = torch.tensor([0, 1, 2, 7, 300, 16384])

both_layouts = pytest.mark.parametrize("layout", LAYOUTS)


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def plain_theta(d: int, base: float = 10000.0) -> Tensor:
    """The paper's frequencies, in a formula of the test's own."""
    return torch.tensor([math.exp(-math.log(base) * 2 * i / d) for i in range(d // 2)], dtype=torch.float64)


def pairs(d: int, layout: Layout) -> list[tuple[int, int]]:
    return [(2 * i, 2 * i + 1) if layout == "interleaved" else (i, i + d // 2) for i in range(d // 2)]


def rotation_matrix(position: int, d: int, layout: Layout = "interleaved", base: float = 10000.0) -> Tensor:
    """R_m written out entry by entry, (d, d) (RoFormer eq. 15)."""
    matrix = torch.zeros(d, d, dtype=torch.float64)
    for i, (a, b) in enumerate(pairs(d, layout)):
        angle = position * base ** (-2 * i / d)
        matrix[a, a], matrix[a, b] = math.cos(angle), -math.sin(angle)
        matrix[b, a], matrix[b, b] = math.sin(angle), math.cos(angle)
    return matrix


def close(ours: Tensor, theirs: Tensor, atol: float = 0.0, rtol: float = 0.0) -> None:
    torch.testing.assert_close(ours, theirs.to(ours.dtype), atol=atol, rtol=rtol)


# The rotation ---------------------------------------------------------------------------------------------------------


@both_layouts
def test_eq14_eq15_rotation_is_the_block_diagonal_matrix(layout: Layout) -> None:
    x = normal(2, 3, len(POSITIONS), D)
    theta, _ = frequencies(RopeConfig(layout=layout), D, 1)
    ours = rotate(x, POSITIONS, theta, layout)
    for t, position in enumerate(POSITIONS.tolist()):
        theirs = x[:, :, t] @ rotation_matrix(position, D, layout).T
        close(ours[:, :, t], theirs, atol=1e-11)


def half_split_order(d_rot: int) -> Tensor:
    """Indices that put interleaved features into half-split order, (D,): 0, 2, 4, ..., 1, 3, 5, ..., then the rest."""
    return torch.cat((torch.arange(0, d_rot, 2), torch.arange(1, d_rot, 2), torch.arange(d_rot, D)))


def test_eq15_blocks_in_the_half_split_order_are_the_interleaved_ones() -> None:
    """The paper's matrix, neighbours paired, also describes half-split, its rows put in `half_split_order` order."""
    x, order = normal(2, 3, len(POSITIONS), D), half_split_order(D)
    ours = rotate(x[..., order], POSITIONS, plain_theta(D), "half-split")
    for t, position in enumerate(POSITIONS.tolist()):
        theirs = (x[:, :, t] @ rotation_matrix(position, D, "interleaved").T)[..., order]
        close(ours[:, :, t], theirs, atol=1e-11)


@both_layouts
def test_a_quarter_turn_is_counter_clockwise(layout: Layout) -> None:
    """Position 1 at pi/2 radians per token takes (1, 0) to (0, 1): the textbook's sign, and not its opposite."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    ours = rotate(x[None, None], torch.tensor([1, 1, 2]), torch.tensor([math.pi / 2], dtype=torch.float64), layout)
    by_hand = torch.tensor([[0.0, 1.0], [-1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    close(ours[0, 0], by_hand, atol=1e-15)


@both_layouts
def test_eq12_in_two_dimensions_the_rotation_is_a_complex_product(layout: Layout) -> None:
    theta = torch.tensor([0.37], dtype=torch.float64)
    x = normal(1, 1, len(POSITIONS), 2)
    ours = rotate(x, POSITIONS, theta, layout)
    theirs = torch.view_as_complex(x) * torch.exp(1j * POSITIONS * theta)
    close(ours, torch.view_as_real(theirs), atol=1e-11)


def test_eq12_score_is_the_real_part_of_the_complex_form() -> None:
    theta, q, k = 0.37, normal(1, 1, 1, 2, seed=1), normal(1, 1, 1, 2, seed=2)
    frequency = torch.tensor([theta], dtype=torch.float64)
    complex_q, complex_k = complex(*q.flatten().tolist()), complex(*k.flatten().tolist())
    for m, n in product([0, 3, 41], repeat=2):
        ours = (rotate(q, torch.tensor([m]), frequency) * rotate(k, torch.tensor([n]), frequency)).sum()
        theirs = (
            complex_q * complex_k.conjugate() * complex(math.cos((m - n) * theta), math.sin((m - n) * theta))
        ).real
        assert ours.item() == pytest.approx(theirs, abs=1e-12)


@both_layouts
def test_eq16_relative_form(layout: Layout) -> None:
    """R_m^T R_n = R_{n-m}, so a score of rotated q and k is q^T R_{n-m} k."""
    theta = plain_theta(D)

    def ours(position: int) -> Tensor:  # rotating the unit vectors gives R's columns, as rows
        return rotate(torch.eye(D, dtype=torch.float64)[:, None], torch.tensor([position]), theta, layout)[:, 0].T

    q, k = normal(D, seed=1), normal(D, seed=2)
    for m, n in [(0, 0), (5, 3), (3, 5), (100, 1000), (16000, 15)]:
        relative = rotation_matrix(n - m, D, layout)
        close(ours(m).T @ ours(n), relative, atol=1e-11)
        score = (ours(m) @ q) @ (ours(n) @ k)
        assert score.item() == pytest.approx((q @ relative @ k).item(), abs=1e-10)


def scores_after_shifts(dtype: torch.dtype, theta: Tensor, layout: Layout = "interleaved") -> Tensor:
    """Scores of 64 pairs of standard-normal q and k, d = 64, at several shifts of both positions: (shifts, 64)."""
    q, k = normal(64, 1, 1, 64, dtype=dtype, seed=1), normal(64, 1, 1, 64, dtype=dtype, seed=2)
    shifts = (0, 1, 17, 1000, 16384)
    rotated = [[rotate(x, torch.tensor([p + s]), theta, layout) for x, p in ((q, 40), (k, 3))] for s in shifts]
    return torch.stack([(q_m * k_n).sum(-1).flatten() for q_m, k_n in rotated])


@both_layouts
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 3e-5)])
def test_score_depends_only_on_distance(layout: Layout, dtype: torch.dtype, tolerance: float) -> None:
    """Eq. 11. Angles are float64, so what is left at float32 is the rounding of 64 products, at any position."""
    scores = scores_after_shifts(dtype, plain_theta(64), layout)
    assert (scores - scores[0]).abs().max() < tolerance


def test_score_drifts_when_angles_are_float32() -> None:
    """Why `frequencies` gives float64: at position 16k an angle in float32 is a thousandth of a radian coarse."""
    ours = scores_after_shifts(torch.float64, plain_theta(64))
    theirs = scores_after_shifts(torch.float64, plain_theta(64).float())
    assert (theirs - theirs[0]).abs().max() > 1e-4 > 1e-9 > (ours - ours[0]).abs().max()


@both_layouts
def test_norms_are_kept_pair_by_pair(layout: Layout) -> None:
    x = normal(2, 3, len(POSITIONS), D)
    turned = rotate(x, POSITIONS, plain_theta(D), layout)
    for a, b in pairs(D, layout):
        close(turned[..., a].hypot(turned[..., b]), x[..., a].hypot(x[..., b]), atol=1e-13)


@both_layouts
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_position_0_is_the_identity(layout: Layout, dtype: torch.dtype) -> None:
    x = normal(2, 3, 1, D, dtype=dtype)
    turned = rotate(x, torch.tensor([0]), plain_theta(D), layout)
    assert turned.dtype == dtype
    assert torch.equal(turned, x)


@pytest.mark.parametrize("d_rot", [D, 6])
def test_layouts_agree_after_the_permutation(d_rot: int) -> None:
    order, theta = half_split_order(d_rot), plain_theta(d_rot)
    assert sorted(order.tolist()) == list(range(D))
    q, k = normal(2, 3, len(POSITIONS), D, seed=1), normal(2, 3, len(POSITIONS), D, seed=2)
    interleaved = [rotate(x, POSITIONS, theta, "interleaved") for x in (q, k)]
    half_split = [rotate(x[..., order], POSITIONS, theta, "half-split") for x in (q, k)]
    for ours, theirs in zip(half_split, interleaved, strict=True):
        close(ours, theirs[..., order], atol=1e-14)  # products may be rounded once or twice: see `turn`
    scores = [q_m @ k_n.transpose(-1, -2) for q_m, k_n in (interleaved, half_split)]
    close(*scores, atol=1e-12)
    wrong = rotate(q, POSITIONS, theta, "half-split")  # weights of one layout run with the other: fluent nonsense
    assert not torch.allclose(wrong, interleaved[0])


@pytest.mark.parametrize("width", [D, 6])
def test_the_compilers_real_form_of_the_rotation_equals_the_complex_one(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, theta = normal(2, 3, len(POSITIONS), D), plain_theta(width)
    complex_form = rotate(x, POSITIONS, theta)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(torch, "view_as_complex", None)  # it would fail if it were still called
    close(rotate(x, POSITIONS, theta), complex_form, atol=1e-14)


def test_rotation_takes_features_that_lie_anywhere_in_memory() -> None:
    wide = normal(2, 3, len(POSITIONS), 2 * D + 1)  # rows of odd length, so that pairs start at odd places
    whole = wide.flatten()[1 : 1 + 6 * len(POSITIONS) * D].view(2, 3, -1, D)  # contiguous, yet from an odd place on
    strided = wide[..., :D], wide[..., 1 : D + 1], wide[..., : 2 * D : 2], wide.transpose(1, 2)[:, :9, :3, :D]
    for x in (*strided, whole, wide[:1, :1, :1, 1 : D + 1]):
        positions = POSITIONS[: x.shape[2]]
        for width in (D, 6):
            theta = plain_theta(width)
            close(rotate(x, positions, theta), rotate(x.clone(), positions, theta), atol=1e-14)


def test_eq34_elementwise_form() -> None:
    x = normal(2, 3, len(POSITIONS), D)
    angle = torch.tensor(
        [[m * 10000 ** (-2 * (j // 2) / D) for j in range(D)] for m in POSITIONS.tolist()], dtype=torch.float64
    )
    swapped = torch.empty_like(x)  # -x2, x1, -x4, x3, ...
    for i in range(0, D, 2):
        swapped[..., i], swapped[..., i + 1] = -x[..., i + 1], x[..., i]
    ours = rotate(x, POSITIONS, plain_theta(D))
    theirs = x * angle.cos() + swapped * angle.sin()
    close(ours, theirs, atol=1e-11)


@both_layouts
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_partial_rotation_leaves_the_other_features_bit_equal(layout: Layout, dtype: torch.dtype) -> None:
    config = RopeConfig(fraction=0.5, layout=layout)
    theta, _ = frequencies(config, D, 1)
    assert theta.shape == (D // 4,)
    x = normal(2, 3, len(POSITIONS), D, dtype=dtype)
    turned = rotate(x, POSITIONS, theta, layout)
    assert torch.equal(turned[..., D // 2 :], x[..., D // 2 :])
    assert torch.equal(turned[..., : D // 2], rotate(x[..., : D // 2], POSITIONS, theta, layout))
    assert not torch.equal(turned[..., : D // 2], x[..., : D // 2])


# The frequencies ------------------------------------------------------------------------------------------------------


def theta_of(d_head: int, length: int = 1, **options: Any) -> Tensor:
    return frequencies(RopeConfig(**options), d_head, length)[0]


def recovered_bases(theta: Tensor) -> Tensor:
    """The base that each pair but the first came from: theta_i = b^(-2i/d) solved for b."""
    i = torch.arange(1, len(theta), dtype=torch.float64)
    return theta[1:] ** (-len(theta) / i)


@pytest.mark.parametrize("d", [2, 32, 48, 128])
@pytest.mark.parametrize("base", [100.0, 10000.0, 500000.0])
def test_frequencies_fall_geometrically_from_1(d: int, base: float) -> None:
    theta, attention_factor = frequencies(RopeConfig(base=base), d, 1)
    assert theta.dtype == torch.float64
    assert theta[0] == 1
    assert attention_factor == 1
    close(theta, plain_theta(d, base), rtol=1e-13)


def test_partial_rotation_has_the_frequencies_of_a_narrower_head() -> None:
    ours = theta_of(80, fraction=0.4)
    assert torch.equal(ours, theta_of(32))
    assert rotated_width(RopeConfig(fraction=0.4), 80) == 32


@pytest.mark.parametrize("scaling", ["linear", "ntk", "dynamic", "yarn", "llama3"])
def test_with_a_scaling_d_means_the_rotated_width(scaling: str) -> None:
    options = {"scaling": scaling, "factor": 4.0, "original_length": 256}
    assert torch.equal(theta_of(80, 1024, fraction=0.4, **options), theta_of(32, 1024, **options))


def test_linear_equals_dividing_positions() -> None:
    x, factor = normal(1, 2, len(POSITIONS), D), 4
    ours = rotate(x, factor * POSITIONS, theta_of(D, scaling="linear", factor=factor))
    theirs = rotate(x, POSITIONS, plain_theta(D))
    close(ours, theirs, atol=1e-10)


@pytest.mark.parametrize(
    ("d", "factor", "published_base"),
    [(64, 4, 41829.366), (64, 2, 20452.229), (32, 4, 43872.999), (128, 8, 82684.623)],
)
def test_ntk_has_the_published_base(d: int, factor: float, published_base: float) -> None:
    bases = recovered_bases(theta_of(d, scaling="ntk", factor=factor))
    close(bases, torch.full_like(bases, published_base), rtol=1e-7)


@pytest.mark.parametrize(("d", "factor"), [(4, 3.0), (64, 4.0), (128, 8.0)])
def test_ntk_leaves_the_fastest_pair_alone_and_slows_the_slowest_by_exactly_the_factor(d: int, factor: float) -> None:
    theta = theta_of(d, scaling="ntk", factor=factor)
    assert theta[0] == 1
    assert (plain_theta(d)[-1] / theta[-1]).item() == pytest.approx(factor, rel=1e-12)


def test_ntk_slows_a_pair_in_the_middle_by_less_than_the_factor() -> None:
    slowed = plain_theta(32) / theta_of(32, scaling="ntk", factor=4)
    close(slowed, 4 ** (2 * torch.arange(16, dtype=torch.float64) / 30), rtol=1e-12)
    assert slowed[7] == pytest.approx(1.90968, rel=1e-5)  # the first whose wavelength is longer than 256 tokens
    enough = plain_theta(32) / theta_of(32, scaling="ntk", factor=19.5042)
    assert enough[7] == pytest.approx(4, rel=1e-5)


def test_dynamic_has_the_published_base() -> None:
    bases = recovered_bases(theta_of(64, 4096, scaling="dynamic", factor=2, original_length=2048))
    close(bases, torch.full_like(bases, 31082.237), rtol=1e-7)


def test_dynamic_is_none_up_to_the_trained_length_and_slows_with_every_token_past_it() -> None:
    options = {"scaling": "dynamic", "factor": 4, "original_length": 256}
    for length in (1, 100, 255, 256):
        assert torch.equal(theta_of(64, length, **options), theta_of(64))
    slowest = [theta_of(64, length, **options)[-1].item() for length in (256, 257, 300, 1024, 10000)]
    assert slowest == sorted(slowest, reverse=True)
    assert len(set(slowest)) == len(slowest)
    # past L the slowest pair is slowed by exactly s n/L - (s - 1): 13 at n = 4 L
    assert (theta_of(64)[-1] / theta_of(64, 1024, **options)[-1]).item() == pytest.approx(13, rel=1e-12)


def test_yarn_has_the_published_frequencies() -> None:
    first = theta_of(32, base=100, scaling="yarn", original_length=4096, factor=4)
    assert first[15].item() == pytest.approx(0.0094885, abs=5e-8)  # its ramp ends at d - 1, and not at d/2 - 1
    second = theta_of(32, scaling="yarn", original_length=128, factor=4)
    assert second[1].item() == pytest.approx(0.492049, abs=5e-7)


def test_yarn_leaves_the_fast_pairs_alone_and_divides_the_slow_ones() -> None:
    """The trap: with the ramp inverted, near order is destroyed and far order still runs past what was trained."""
    plain, theta = theta_of(64), theta_of(64, scaling="yarn", original_length=4096, factor=4)
    slowed_by = plain / theta
    untouched, divided = (slowed_by - 1).abs() < 1e-12, (slowed_by - 4).abs() < 1e-12
    assert untouched.tolist() == [True] * 11 + [False] * 21
    assert divided.tolist() == [False] * 23 + [True] * 9
    assert (slowed_by.diff() > -1e-12).all()


def test_yarn_betas_are_rotations_within_the_trained_length() -> None:
    """Untruncated, pairs that turn more than beta_fast times are untouched, and less than beta_slow times, divided."""
    plain = theta_of(64)
    theta = theta_of(64, scaling="yarn", original_length=1024, factor=8, beta_fast=20, beta_slow=2, truncate=False)
    turns, slowed_by = 1024 * plain / (2 * math.pi), plain / theta
    assert torch.equal((slowed_by - 1).abs() < 1e-12, turns > 20)
    assert torch.equal((slowed_by - 8).abs() < 1e-12, turns < 2)


def test_yarn_default_betas_nearly_interpolate_a_small_model() -> None:
    """At d = 32, L = 256 one pair of 16 turns more than 32 times; beta_fast 8 leaves more of them alone."""
    plain, options = theta_of(32), {"scaling": "yarn", "original_length": 256, "factor": 4, "truncate": False}
    assert ((plain / theta_of(32, **options) - 1).abs() < 1e-12).sum() == 1
    assert ((plain / theta_of(32, beta_fast=8, **options) - 1).abs() < 1e-12).sum() > 1


def test_yarn_attention_factor() -> None:
    options = {"scaling": "yarn", "original_length": 4096}
    assert frequencies(RopeConfig(factor=4, **options), 64, 1)[1] == pytest.approx(1.13863, abs=5e-6)
    assert frequencies(RopeConfig(factor=1, **options), 64, 1)[1] == 1
    assert frequencies(RopeConfig(factor=4, attention_factor=0.7, **options), 64, 1)[1] == 0.7


@pytest.mark.parametrize("scaling", ["linear", "ntk", "dynamic", "yarn", "llama3", "proportional"])
def test_factor_1_changes_nothing(scaling: str) -> None:
    theta, attention_factor = frequencies(RopeConfig(scaling=scaling, factor=1, original_length=256), 64, 256)
    close(theta, theta_of(64), rtol=1e-14)
    assert attention_factor == 1


def test_longrope_divides_each_pair_by_its_own_number_and_switches_past_the_trained_length() -> None:
    short, long = [1.0 + i for i in range(8)], [10.0 + 3 * i for i in range(8)]
    options = {"scaling": "longrope", "short_factor": short, "long_factor": long, "original_length": 256, "factor": 4}
    for length, divisors in ((1, short), (256, short), (257, long), (10000, long)):
        close(theta_of(16, length, **options), plain_theta(16) / torch.tensor(divisors), rtol=1e-14)


@pytest.mark.parametrize(("original_length", "published"), [(256, 1.11803), (4096, 1.08012)])
def test_longrope_attention_factor_does_not_switch_with_the_length(original_length: int, published: float) -> None:
    options = {"scaling": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    config = RopeConfig(original_length=original_length, factor=4, **options)
    for length in (1, original_length, original_length + 1):
        assert frequencies(config, 16, length)[1] == pytest.approx(published, abs=5e-6)
    assert frequencies(RopeConfig(original_length=original_length, factor=1, **options), 16, 1)[1] == 1
    given = RopeConfig(original_length=original_length, factor=4, attention_factor=1.5, **options)
    assert frequencies(given, 16, 1)[1] == 1.5


def test_llama3_blends_between_the_pairs_it_keeps_and_those_it_divides() -> None:
    plain = theta_of(128, base=500000)
    theta = theta_of(128, base=500000, scaling="llama3", factor=8, original_length=8192)
    close(theta[:29], plain[:29], rtol=1e-14)
    close(theta[35:], plain[35:] / 8, rtol=1e-14)
    assert theta[29].item() == pytest.approx(0.00216657, abs=5e-9)
    assert theta[34].item() == pytest.approx(0.000178508, abs=5e-10)
    assert (plain[29:35] / theta[29:35] > 1).all()
    assert (plain[29:35] / theta[29:35] < 8).all()


@both_layouts
def test_proportional_turns_the_first_share_of_the_pairs(layout: Layout) -> None:
    config = RopeConfig(scaling="proportional", fraction=0.25, layout=layout)
    theta, _ = frequencies(config, 16, 1)
    by_hand = torch.tensor([1, 0.31623] + [0] * 6, dtype=torch.float64)
    close(theta, by_hand, atol=5e-6)
    x = normal(1, 1, 2, 16)
    turned = rotate(x, torch.tensor([1, 2]), theta, layout)
    changed = [feature for feature in range(16) if not torch.equal(turned[..., feature], x[..., feature])]
    assert changed == ([0, 1, 2, 3] if layout == "interleaved" else [0, 1, 8, 9])
    close(theta_of(16, scaling="proportional", fraction=0.25, factor=4), theta / 4, rtol=1e-14)


# Ours against the transformers library --------------------------------------------------------------------------------


GRID = list(product([32, 48, 64, 96, 128], [100.0, 10000.0, 500000.0], [128, 4096], [1.0, 2.0, 5.5]))


def theirs_of(config: LlamaConfig, length: int) -> tuple[Tensor, float]:
    """The library's own frequencies and attention factor, in its float32."""
    rope_type = config.rope_parameters["rope_type"]
    if rope_type == "default":
        return LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    return ROPE_INIT_FUNCTIONS[rope_type](config, "cpu", seq_len=length)


def no_options(d: int) -> Iterator[dict[str, Any]]:
    yield {}


def fractions(d: int) -> Iterator[dict[str, Any]]:
    yield from ({"fraction": fraction} for fraction in (1.0, 0.5, 0.25))


def yarn_options(d: int) -> Iterator[dict[str, Any]]:
    yield {}
    yield {"beta_fast": 8.0, "beta_slow": 2.0, "truncate": False}
    yield {"truncate": False, "attention_factor": 1.25}
    yield {"beta_fast": 1000.0, "beta_slow": 0.01, "fraction": 0.5}


def longrope_options(d: int) -> Iterator[dict[str, Any]]:
    lists = {"short_factor": [1 + 0.01 * i for i in range(d // 2)], "long_factor": [1 + 0.5 * i for i in range(d // 2)]}
    yield lists
    yield lists | {"attention_factor": 1.25}


def llama3_options(d: int) -> Iterator[dict[str, Any]]:
    yield {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    yield {"low_freq_factor": 2.5, "high_freq_factor": 30.0, "fraction": 0.5}


@pytest.mark.parametrize(
    ("scaling", "options_for"),
    [
        ("none", no_options),
        ("linear", fractions),
        ("dynamic", fractions),
        ("yarn", yarn_options),
        ("longrope", longrope_options),
        ("llama3", llama3_options),
        ("proportional", fractions),
    ],
)
def test_ours_equals_the_transformers_library(
    scaling: str, options_for: Callable[[int], Iterator[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.modeling_rope_utils.logger, "warning", lambda *_: None)
    monkeypatch.setattr(transformers.modeling_rope_utils.logger, "warning_once", lambda *_: None)
    compared = 0
    for d, base, L, factor in GRID:
        for options in options_for(d):
            ours_config = RopeConfig(
                base=base,
                scaling=scaling,
                factor=None if scaling == "none" else factor,
                original_length=L,
                **options,
            )
            parameters = {k: v for k, v in options.items() if k != "fraction"}
            parameters |= {"rope_type": "default" if scaling == "none" else scaling, "rope_theta": base}
            if "fraction" in options:
                parameters["partial_rotary_factor"] = options["fraction"]
            if scaling in ("yarn", "longrope", "llama3"):
                parameters["original_max_position_embeddings"] = L
            if scaling != "none":
                parameters["factor"] = factor
            theirs_config = LlamaConfig(
                hidden_size=d,
                num_attention_heads=1,
                max_position_embeddings=L if scaling == "dynamic" else int(L * factor),  # dynamic's L has this name
                rope_parameters=parameters,
            )
            lengths = [L // 2, L, L + 1, 8 * L] if scaling in ("dynamic", "longrope") else [L + 1]
            for length in lengths:
                ours, our_factor = frequencies(ours_config, d, length)
                theirs, their_factor = theirs_of(theirs_config, length)
                close(ours, theirs, rtol=1e-6)
                assert our_factor == pytest.approx(their_factor, rel=1e-12)
                compared += 1
    assert compared >= len(GRID)


# Precision ------------------------------------------------------------------------------------------------------------


@both_layouts
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_x_is_rotated_in_float32_and_rounded_once(layout: Layout, dtype: torch.dtype) -> None:
    x = normal(2, 3, 1024, D, dtype=dtype)
    positions = torch.arange(1024)
    ours = rotate(x, positions, plain_theta(D), layout)
    theirs = rotate(x.float(), positions, plain_theta(D), layout).to(dtype)
    assert ours.dtype == dtype
    assert torch.equal(ours, theirs)


def test_positions_past_256_stay_distinct_in_bfloat16() -> None:
    """With positions in bfloat16, 1024 of them would collapse to 513."""
    x = normal(1, 1, 1, 64, dtype=torch.bfloat16).expand(1, 1, 1024, 64)
    turned = rotate(x, torch.arange(1024), plain_theta(64))
    assert len(turned[0, 0].float().unique(dim=0)) == 1024


def test_a_bfloat16_call_leaves_later_float32_calls_right() -> None:
    """There is no cache of tables which one bfloat16 call could poison."""
    x, theta = normal(1, 1, 1024, D, dtype=torch.float32), plain_theta(D)
    before = rotate(x, torch.arange(1024), theta)
    rotate(x.bfloat16(), torch.arange(1024), theta)
    assert torch.equal(rotate(x, torch.arange(1024), theta), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float16_could_not_hold_position_65520_but_angles_can(dtype: torch.dtype) -> None:
    cos, sin = cos_sin(torch.tensor([65520, 10**6]), plain_theta(D).to(dtype))
    assert cos.dtype == sin.dtype == dtype
    assert torch.cat((cos, sin)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_theta_below_float32_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=str(dtype)):
        cos_sin(torch.arange(4), plain_theta(D).to(dtype))
    with pytest.raises(TypeError, match=str(dtype)):
        rotate(normal(1, 1, 4, D), torch.arange(4), plain_theta(D).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_positions_that_are_not_integers_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"integer positions.*{dtype}"):
        cos_sin(torch.arange(4).to(dtype), plain_theta(D))


# Everything at once ---------------------------------------------------------------------------------------------------


def scaled_config(scaling: str, layout: Layout, fraction: float, factor: float, d_rot: int) -> RopeConfig:
    options: dict[str, Any] = {"scaling": scaling, "layout": layout, "fraction": fraction, "original_length": 256}
    if scaling == "longrope":
        options |= {"short_factor": [1.0] * (d_rot // 2), "long_factor": [factor + i for i in range(d_rot // 2)]}
    elif scaling != "none":
        options["factor"] = factor
    return RopeConfig(**options)


@settings(max_examples=40, deadline=None)
@given(
    scaling=st.sampled_from(["none", "linear", "ntk", "dynamic", "yarn", "longrope", "llama3", "proportional"]),
    layout=st.sampled_from(LAYOUTS),
    fraction=st.sampled_from([0.25, 0.5, 0.75, 1.0]),
    factor=st.floats(1, 64),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    position=st.integers(0, 2000),
    distance=st.integers(0, 2000),
    shift=st.integers(0, 16384),
    seed=st.integers(0, 2**16),
)
def test_layout_fraction_scaling_and_dtype_compose(
    scaling: str,
    layout: Layout,
    fraction: float,
    factor: float,
    dtype: torch.dtype,
    position: int,
    distance: int,
    shift: int,
    seed: int,
) -> None:
    """Whatever is chosen: position 0 is the identity, norms are kept, and scores depend on the distance alone."""
    d_rot = D if scaling == "proportional" else int(fraction * D)
    config = scaled_config(scaling, layout, fraction, factor, d_rot)
    theta, attention_factor = frequencies(config, D, position + distance + shift + 1)
    assert theta.shape == (d_rot // 2,)
    assert (theta >= 0).all()
    assert theta.max() <= 1
    assert attention_factor >= 1

    q, k = normal(1, 2, 1, D, dtype=dtype, seed=seed), normal(1, 2, 1, D, dtype=dtype, seed=seed + 1)
    assert torch.equal(rotate(q, torch.tensor([0]), theta, layout), q)

    def turned(x: Tensor, at: int) -> Tensor:
        y = rotate(x, torch.tensor([at]), theta, layout)
        assert y.dtype == dtype
        assert torch.equal(y[..., d_rot:], x[..., d_rot:])
        return y.double()

    # rotated q and k are rounded to dtype once: each of D products is off by at most about two roundings
    rounding = 8 * torch.finfo(dtype).eps if dtype != torch.bfloat16 else 2**-8
    q_m, k_n = turned(q, position + distance), turned(k, position)
    q_s, k_s = turned(q, position + distance + shift), turned(k, position + shift)
    norm = q.double().norm(dim=-1)
    close(q_m.norm(dim=-1), norm, rtol=rounding if dtype != torch.float64 else 1e-12)
    bound = 4 * rounding * norm * k.double().norm(dim=-1) + 1e-10
    assert (((q_m * k_n).sum(-1) - (q_s * k_s).sum(-1)).abs() <= bound).all()


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": 1.0}, r"rope\.base 1 "),
        ({"base": 0.0}, r"rope\.base 0 "),
        ({"base": -10000.0}, r"rope\.base -10000 "),
        ({"base": math.inf}, r"rope\.base inf "),
        ({"base": math.nan}, r"rope\.base nan "),
        ({"fraction": 0.0}, r"rope\.fraction 0 must be above 0"),
        ({"fraction": -0.5}, r"rope\.fraction -0\.5 "),
        ({"fraction": 1.01}, r"rope\.fraction 1\.01 "),
        ({"layout": "interleave"}, r"rope\.layout 'interleave' .*interleaved, half-split"),
        ({"scaling": "yam"}, r"rope\.scaling 'yam' .*yarn"),
        ({"scaling": "linear", "factor": 0.5}, r"rope\.factor 0\.5 must be at least 1"),
        ({"scaling": "yarn", "factor": math.nan}, r"rope\.factor nan"),
        ({"scaling": "linear"}, r"rope\.scaling linear needs rope\.factor"),
        ({"scaling": "ntk"}, r"rope\.scaling ntk needs rope\.factor"),
        ({"scaling": "dynamic"}, r"rope\.scaling dynamic needs rope\.factor"),
        ({"scaling": "yarn"}, r"rope\.scaling yarn needs rope\.factor"),
        ({"scaling": "llama3"}, r"rope\.scaling llama3 needs rope\.factor"),
        ({"scaling": "longrope", "short_factor": [1.0]}, r"rope\.scaling longrope needs rope\.long_factor"),
        ({"scaling": "longrope", "long_factor": [1.0]}, r"rope\.scaling longrope needs rope\.short_factor"),
        ({"factor": 2.0}, r"rope\.factor means nothing to rope\.scaling none"),
        ({"scaling": "linear", "factor": 2.0, "beta_fast": 8.0}, r"rope\.beta_fast .*linear, which takes factor"),
        ({"scaling": "linear", "factor": 2.0, "truncate": False}, r"rope\.truncate means nothing"),
        ({"scaling": "ntk", "factor": 2.0, "attention_factor": 1.0}, r"rope\.attention_factor means nothing"),
        ({"scaling": "yarn", "factor": 2.0, "low_freq_factor": 1.0}, r"rope\.low_freq_factor means nothing"),
        ({"scaling": "llama3", "factor": 2.0, "beta_slow": 1.0}, r"rope\.beta_slow means nothing"),
        ({"scaling": "yarn", "factor": 2.0, "long_factor": [1.0]}, r"rope\.long_factor means nothing"),
        (
            {"scaling": "yarn", "factor": 2.0, "beta_fast": 1.0, "beta_slow": 2.0},
            r"rope\.beta_slow 2 .*rope\.beta_fast 1",
        ),
        ({"scaling": "yarn", "factor": 2.0, "beta_fast": 0.5}, r"rope\.beta_slow 1 .*rope\.beta_fast 0\.5"),
        ({"scaling": "yarn", "factor": 2.0, "beta_slow": 0.0}, r"rope\.beta_slow 0 must be at least 1e-06"),
        ({"scaling": "yarn", "factor": 2.0, "attention_factor": 0.0}, r"rope\.attention_factor 0 "),
        (
            {"scaling": "llama3", "factor": 2.0, "low_freq_factor": 4.0},
            r"rope\.low_freq_factor 4 .*rope\.high_freq_factor 4",
        ),
        ({"scaling": "longrope", "short_factor": [1.0, 0.0], "long_factor": [1.0, 1.0]}, r"rope\.short_factor"),
        ({"scaling": "longrope", "short_factor": [1.0, 1.0], "long_factor": [1.0, -1.0]}, r"rope\.long_factor"),
        ({"original_length": 1}, r"rope\.original_length 1 "),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        RopeConfig(**options)
    assert re.search(message, explain(refused.value))


LISTS = {"scaling": "longrope", "original_length": 256}


@pytest.mark.parametrize(
    ("options", "d_head", "length", "message"),
    [
        ({"fraction": 0.3}, 32, 1, r"rope\.fraction 0\.3 of a head 32 wide rotates 9 features"),
        ({}, 15, 1, r"rope\.fraction 1 of a head 15 wide rotates 15 features"),
        ({"fraction": 0.01}, 32, 1, r"rope\.fraction 0\.01 .*rotates 0 features"),
        ({"scaling": "proportional", "fraction": 0.5}, 15, 1, r"a head 15 wide"),
        ({"scaling": "ntk", "factor": 2.0}, 2, 1, r"rope\.scaling ntk needs a rotated width of at least 4"),
        ({"scaling": "ntk", "factor": 2.0, "fraction": 0.25}, 8, 1, r"rope\.scaling ntk .*at least 4"),
        ({"scaling": "dynamic", "factor": 2.0, "original_length": 9}, 2, 1, r"rope\.scaling dynamic .*at least 4"),
        ({"scaling": "dynamic", "factor": 2.0}, 32, 1, r"rope\.scaling dynamic needs rope\.original_length"),
        ({"scaling": "yarn", "factor": 2.0}, 32, 1, r"rope\.scaling yarn needs rope\.original_length"),
        ({"scaling": "llama3", "factor": 2.0}, 32, 1, r"rope\.scaling llama3 needs rope\.original_length"),
        (
            {"scaling": "longrope", "short_factor": [1.0] * 16, "long_factor": [1.0] * 16},
            32,
            1,
            r"rope\.scaling longrope needs rope\.original_length",
        ),
        (
            LISTS | {"short_factor": [1.0] * 15, "long_factor": [1.0] * 16},
            32,
            1,
            r"rope\.short_factor has 15 .* 16 pairs",
        ),
        (
            LISTS | {"short_factor": [1.0] * 16, "long_factor": [1.0] * 17},
            32,
            257,
            r"rope\.long_factor has 17 .* 16 pairs",
        ),
    ],
)
def test_options_that_do_not_fit_the_head_are_refused_by_name(
    options: dict[str, Any], d_head: int, length: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        frequencies(RopeConfig(**options), d_head, length)


@pytest.mark.parametrize("scaling", ["none", "linear", "ntk", "proportional"])
def test_original_length_is_a_record_that_every_scaling_accepts(scaling: str) -> None:
    factor = None if scaling == "none" else 2.0
    with_record = theta_of(D, scaling=scaling, factor=factor, original_length=256)
    assert torch.equal(with_record, theta_of(D, scaling=scaling, factor=factor))


# The paper's decay ----------------------------------------------------------------------------------------------------


def mean_partial_sums(theta: Tensor, distances: Tensor) -> Tensor:
    """The relative size of the bound in eq. 37, (2/d) sum_i |S_i|, S_j = sum_{i<j} e^{i (m-n) theta_i} (figure 2)."""
    turns = torch.exp(1j * distances[:, None] * theta)  # (distances, d/2)
    return turns.cumsum(dim=1).abs().mean(dim=1)


def test_eq35_to_eq37_bound_decays_with_distance_as_in_figure_2() -> None:
    published = {0: 32.50, 1: 31.54, 10: 17.95, 50: 12.63, 100: 10.23, 250: 6.55}
    ours = mean_partial_sums(frequencies(RopeConfig(base=10000), 128, 1)[0], torch.tensor(list(published)))
    close(ours, torch.tensor(list(published.values())), atol=0.005)


@pytest.mark.parametrize("longest", [256, 1024, 4096])
def test_the_bound_is_not_monotonic(longest: int) -> None:
    """A claim often repeated: the bound decays 'smoothly'. It rises on 45 to 49% of the unit steps."""
    bound = mean_partial_sums(frequencies(RopeConfig(base=10000), 128, 1)[0], torch.arange(longest + 1))
    assert 0.445 <= (bound.diff() > 0).double().mean() <= 0.495


def test_eq35_to_eq37_no_score_exceeds_the_bound() -> None:
    """Abel summation: |score| <= max_i |h_{i+1} - h_i| * sum_i |S_{i+1}|, with h of the features themselves."""
    theta = frequencies(RopeConfig(), 64, 1)[0]
    q, k = normal(64, 1, 1, 64, seed=1), normal(64, 1, 1, 64, seed=2)
    h = torch.view_as_complex(q.unflatten(-1, (-1, 2))) * torch.view_as_complex(k.unflatten(-1, (-1, 2))).conj()
    h = torch.cat((h, torch.zeros_like(h[..., :1])), dim=-1)  # h_{d/2} = 0
    steepest = h.diff(dim=-1).abs().amax(dim=-1).flatten()  # (64,)
    distances = torch.tensor([0, 1, 10, 100, 1000])
    bound = mean_partial_sums(theta, distances) * len(theta)
    for distance, limit in zip(distances.tolist(), bound.tolist(), strict=True):
        score = (rotate(q, torch.tensor([distance]), theta) * k).sum(-1).flatten()
        assert (score.abs() <= steepest * limit).all()
