"""Which tokens may be drawn, and which are.

.venv/bin/python -m pytest tests/test_sampling.py
"""

import math

import pytest
import torch

from harness import sampling
from harness.runs import load_finished_run
from model import ModelConfig, Transformer
from positions import SCHEMES


def kept(logits: torch.Tensor) -> list[int]:
    return logits.isfinite().nonzero().flatten().tolist()


HALVES = torch.tensor([0.125, 0.5, 0.125, 0.25], dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("k", "left"), [(1, [1]), (2, [1, 3]), (3, [0, 1, 2, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])]
)
def test_top_k_keeps_the_k_likeliest_and_what_equals_the_last_of_them(k, left):
    assert kept(sampling.keep_top_k(HALVES, k)) == left


@pytest.mark.parametrize(("p", "left"), [(1e-9, [1]), (0.49, [1]), (0.51, [1, 3]), (0.74, [1, 3]), (0.76, [0, 1, 3])])
def test_top_p_keeps_the_fewest_that_hold_p_and_the_first_of_equals(p, left):
    assert kept(sampling.keep_top_p(HALVES, p)) == left


def test_top_p_of_equal_tokens_keeps_as_many_as_it_needs():
    assert kept(sampling.keep_top_p(torch.zeros(4), 0.5)) == [0, 1]  # both sums are exact here
    assert kept(sampling.keep_top_p(torch.zeros(4), 0.51)) == [0, 1, 2]


def test_what_leaves_nothing_out_changes_nothing():
    logits = torch.cat((torch.zeros(5), torch.full((5,), -300.0), torch.tensor([-math.inf])))
    for same in (sampling.keep_top_k(logits, 11), sampling.keep_top_p(logits, 1)):
        assert torch.equal(same, logits)


def test_one_token_is_always_left():
    rows = torch.stack((torch.zeros(50), torch.randn(50, generator=torch.Generator().manual_seed(0)) * 100))
    strictest = sampling.keep_top_p(sampling.keep_top_k(rows, 1), 1e-12)
    assert strictest.isfinite().any(-1).all()
    assert strictest[1].argmax() == rows[1].argmax()


def test_each_leaves_what_the_transformers_library_leaves():
    from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(200, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    for ours, theirs in (
        (sampling.keep_top_k(logits, 7), TopKLogitsWarper(7)(None, logits)),
        (sampling.keep_top_p(logits, 0.8), TopPLogitsWarper(0.8)(None, logits)),
    ):
        assert torch.equal(ours, theirs)
        assert 0 < ours.isfinite().sum() < ours.numel()


def test_the_number_drawn_falls_on_the_sum_of_probabilities():
    u = torch.tensor([[0.0], [0.124], [0.126], [0.624], [0.626], [0.749], [0.751], [1 - 2**-53]], dtype=torch.float64)
    drawn = sampling.choose_tokens(HALVES.expand(len(u), -1), u, temperature=1)
    assert drawn.flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    middle = torch.tensor([-math.inf, 0, -math.inf, 0, -math.inf])  # and what has no probability is never drawn
    ends = torch.tensor([[0.0], [0.5], [1 - 2**-53]], dtype=torch.float64)
    assert sampling.choose_tokens(middle.expand(3, -1), ends, temperature=1).flatten().tolist() == [1, 3, 3]


def test_temperature_comes_first_then_top_k_then_top_p():
    u = torch.tensor([[0.999]], dtype=torch.float64)  # draws the last token that is left
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert sampling.choose_tokens(logits, u, 1, top_p=0.5) == 1
    assert sampling.choose_tokens(logits, u, 1, top_k=2, top_p=0.5) == 0  # 0.4 is 0.57 of what top-k has left
    assert sampling.choose_tokens(logits, u, 0.25, top_p=0.5) == 0  # 0.4^4 is 0.72 of all fourth powers


def test_a_temperature_near_0_is_the_likeliest_token():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    for temperature in (1e-300, 1e-5):
        assert sampling.choose_tokens(logits, torch.tensor([[0.9]], dtype=torch.float64), temperature) == 1


def test_draws_follow_the_softmax_of_logits_over_temperature(finished):
    model, prompt = load_finished_run(finished("rope")).model, [byte + 3 for byte in b"in "]
    with torch.no_grad():
        logits = model(torch.tensor([prompt]))[0, -1]
    plain = logits.softmax(-1)
    for temperature in (0.25, 1.0):
        expected = (logits / temperature).softmax(-1)
        draws = torch.tensor([next(sampling.sample(model, prompt, 1, temperature, seed)) for seed in range(400)])
        seen = torch.bincount(draws, minlength=len(expected)) / len(draws)
        deviation = (expected * (1 - expected) / len(draws)).sqrt()
        assert ((seen - expected).abs() < 5 * deviation + 2 / len(draws)).all()
        if temperature != 1:  # and the draws could tell the two apart
            assert (seen - plain).abs().max() > 0.3


def test_asking_for_more_tokens_goes_on_with_the_same_text(finished):
    model = load_finished_run(finished("rope")).model
    long = list(sampling.sample(model, [70, 80], 60, temperature=1, seed=2))
    assert list(sampling.sample(model, [70, 80], 20, temperature=1, seed=2)) == long[:20]


def test_the_cache_is_allocated_once_and_written_in_place(finished, monkeypatch):
    model, caches, places = load_finished_run(finished("rope")).model, [], set()
    real = model.new_cache
    monkeypatch.setattr(model, "new_cache", lambda *size: caches.append(real(*size)) or caches[-1])
    for _ in sampling.sample(model, [70, 80], 20, temperature=1, seed=0):
        (cache,) = caches
        places.add((cache.keys.data_ptr(), cache.values.data_ptr(), cache.tokens.data_ptr()))
    assert len(places) == 1
    assert cache.keys.shape[-2] == cache.used == 21  # the last token drawn is not needed


def test_weights_lie_by_columns_while_one_sample_is_drawn_and_can_be_trained_on_after_it(finished):
    model = load_finished_run(finished("rope")).model
    tensors = dict(model.named_parameters())
    before = {name: weight.detach().clone() for name, weight in tensors.items()}

    def by_columns() -> list[str]:
        return [name for name, weight in tensors.items() if not weight.is_contiguous()]

    drawing = sampling.sample(model, [1, 2], 8, temperature=0, seed=0)
    next(drawing)
    wide = [name for name, weight in tensors.items() if weight.dim() == 2 and weight.shape[0] > weight.shape[1]]
    assert by_columns() == wide
    assert "blocks.0.mlp.gate_up.weight" in wide
    drawing.close()  # before it was through
    assert by_columns() == []
    assert all(torch.equal(weight, before[name]) for name, weight in tensors.items())
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    assert all(weight.grad is not None for weight in tensors.values())
    several = sampling.sample_several(model, [1, 2], 8, temperature=0, seed=0, number=2)
    next(several)
    assert by_columns() == []


def test_compiled_generation_writes_the_same_tokens_with_one_graph_for_the_prompt_and_one_for_all_others():
    """Were the length of the cache compiled in, every token would be compiled anew. The graphs are run as they are."""
    graphs = []
    model = Transformer(ModelConfig(vocab_size=64, d_model=32, n_layer=2, n_head=2)).eval()
    compiled = torch.compile(model, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    ours, theirs = ([*sampling.sample(m, [1, 2, 3], 30, temperature=0, seed=0)] for m in (compiled, model))
    assert ours == theirs
    assert len(graphs) == 2


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("position", SCHEMES)
def test_a_greedy_text_is_the_argmax_of_full_passes_on_each_device(position, device):
    config = ModelConfig(vocab_size=64, d_model=32, n_layer=2, n_head=2, position=position, init_std=0.2)
    model, tokens = Transformer(config).eval().to(device), [1, 2, 3]
    drawn = list(sampling.sample(model, tokens, 20, temperature=0, seed=0))
    for token in drawn:
        with torch.no_grad():
            assert model(torch.tensor([tokens], device=device))[0, -1].argmax() == token
        tokens = [*tokens, token]
