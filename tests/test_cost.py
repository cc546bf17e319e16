"""Cost: the arithmetic by hand, the page, and the presets that it speaks of. Nothing here is timed.

.venv/bin/python -m pytest tests/test_cost.py
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import data
import train
from experiments import cost
from harness.run_options import make_run_parser, parse_run
from harness.workloads import training_flops
from model import ModelConfig, Transformer
from positions import SCHEMES

REPOSITORY = Path(train.__file__).parent


# ---- the arithmetic --------------------------------------------------------------------------------------------------


def test_parameters_of_the_124m_model_by_hand():
    """GPT-2's shape. SwiGLU at 8/3 C costs what its MLP at 4 C did: 3 x 768 x 2048 = 2 x 768 x 3072."""
    by_hand = 12 * (4 * 768 * 768 + 3 * 768 * 2048) + 25 * 768 + 50304 * 768
    assert by_hand == 123_587_328
    assert cost.parameters(cost.GPU) == by_hand
    # GPT-2 itself: 124,439,808 with biases, LayerNorm's second half, 1,024 positions and 50,257 rows
    gpt2 = by_hand - (50304 - 50257) * 768 + 1024 * 768 + 25 * 768 + 12 * (3 * 768 + 768 + 3072 + 768)
    assert gpt2 == 124_439_808


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("n_kv_head", [4, 2])
def test_parameters_are_those_of_the_model(tied, n_kv_head):
    config = ModelConfig(vocab_size=50, d_model=32, n_layer=3, n_kv_head=n_kv_head, tie_embeddings=tied)
    assert cost.parameters(config) == sum(p.numel() for p in Transformer(config).parameters())


def test_memory_by_hand():
    config = ModelConfig(vocab_size=10, d_model=4, n_layer=2, n_head=2, d_ff=8)
    assert cost.cache_bytes(config, tokens=3, width=2) == 2 * 2 * 4 * 3 * 2
    cache = Transformer(config).new_cache(1, 3)
    assert cost.cache_bytes(config, 3, 4) == 4 * (cache.keys.numel() + cache.values.numel())
    assert cost.activation_bytes(config, 5) == 5 * (2 * 2 * (6 * 4 + 2 * 4 + 4 * 8) + 4 * 4 + 10 * 10)
    shared = cost.memory_gigabytes(config, devices=4, tokens_at_once=5)
    by_hand = [n * cost.parameters(config) / 4 for n in (4, 4, 8)] + [cost.activation_bytes(config, 5)]
    assert [1e9 * gigabytes for gigabytes in shared.values()] == pytest.approx(by_hand)


def test_time_falls_with_devices_and_grows_with_tokens():
    seconds = cost.training_seconds(cost.GPU, 1e9, 1)
    assert seconds == pytest.approx(training_flops(cost.GPU, 1024) * 1e9 / (989e12 * 0.4))
    assert cost.training_seconds(cost.GPU, 4e9, 2) == pytest.approx(2 * seconds)


def test_growth_finds_the_power():
    for power in (0, 1, 2):
        points = [{"size": size, "seconds": 3 * size**power} for size in (1.0, 2.0, 4.0, 8.0)]
        assert cost.growth(points, "seconds") == pytest.approx(power, abs=1e-9)


def test_every_scheme_costs_the_same_matrices():
    for scheme in SCHEMES:
        config = ModelConfig(vocab_size=20, d_model=16, n_layer=1, n_head=2, position=scheme, seq_len=8)
        model = Transformer(config)
        own = sum(p.numel() for p in model.position.parameters())
        assert sum(p.numel() for p in model.parameters()) - own == cost.parameters(config)


# ---- the page --------------------------------------------------------------------------------------------------------


def test_every_series_is_measured_and_stands_on_the_page(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cost, "run_apart", lambda work, *arguments: (work(*arguments), 1.0, 3.0, None))
    monkeypatch.setattr(cost, "SMALL", ModelConfig(vocab_size=1024, d_model=16, n_layer=1, seq_len=16))
    for name, value in (("LENGTHS", [16, 32]), ("MEGABYTES", [0.1, 0.2]), ("ROWS", 2), ("RESULTS", tmp_path)):
        monkeypatch.setattr(cost, name, value)
    cost.main([])
    content, page = json.loads((tmp_path / "cost.json").read_text()), (tmp_path / "COST.md").read_text()
    assert [point["what"] for point in content["points"]] == [
        *["length"] * 2,
        *["width"] * 4,
        *["depth"] * 3,
        *["text"] * 2,
    ]
    assert all(point["added"] == 2 and point["seconds"] > 0 for point in content["points"])
    assert "evaluating one window, length 16 tokens" in capsys.readouterr().out
    for what in cost.SERIES:
        assert f", by {what}\n" in page
    assert page.count("| power") == 4


def test_the_page_is_the_one_made_from_the_committed_figures():
    results = REPOSITORY / "results"
    assert (results / "COST.md").read_text() == cost.page(json.loads((results / "cost.json").read_text()))


# ---- presets ---------------------------------------------------------------------------------------------------------


def preset(name: str) -> tuple[data.DataConfig, ModelConfig, train.RunConfig]:
    path = str(REPOSITORY / "configs" / f"{name}.yaml")
    return parse_run(["--config", path], make_run_parser("train.py", ""))[1:]


def test_the_gpu_preset_is_124m_parameters_on_fineweb_edu_compiled_in_bf16():
    texts, shape, run_ = preset("gpu")
    config = replace(shape, vocab_size=texts.vocab_size)
    assert (texts.corpus, texts.vocab_size) == ("HuggingFaceFW/fineweb-edu", cost.GPT2_ENTRIES)
    assert 123e6 < cost.parameters(config) < 125e6
    assert config == cost.GPU  # what the page of costs speaks of
    assert (run_.compile, run_.precision, run_.device) == (True, "bf16", "cuda")
    assert run_.steps * run_.batch_size * shape.seq_len == pytest.approx(20 * cost.parameters(config), rel=0.03)


def test_the_laptop_preset_needs_neither_network_nor_bf16_nor_a_compiler():
    texts, shape, run_ = preset("laptop")
    assert (texts.corpus, run_.precision, run_.compile) == ("kjv", "fp32", False)
    assert cost.parameters(replace(shape, vocab_size=texts.vocab_size)) < 10e6


@pytest.mark.parametrize("name", ["gpu", "laptop"])
def test_a_step_of_a_preset_at_reduced_size(name, small, tmp_path):
    stated = yaml.safe_load((REPOSITORY / "configs" / f"{name}.yaml").read_text())
    assert stated
    out = tmp_path / "run"
    reduced = ["--run.steps", "1", "--run.micro_batch_size", "2", "--run.compile", "false", "--run.out", str(out)]
    finished = train.main(["--config", str(REPOSITORY / "configs" / f"{name}.yaml"), *small, *reduced])
    assert (finished["status"], finished["step"]) == ("finished", 1)
