"""Cost: the arithmetic of what larger models would need, the page, and the presets. Nothing here is timed.

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
from harness.pages import find_section
from harness.run_options import make_run_parser, parse_run
from harness.workloads import matrix_parameters, training_flops
from model import ModelConfig, Transformer
from positions import SCHEMES

REPOSITORY = Path(train.__file__).parent
PEAK = 989e12  # FLOP/s of one H100 SXM in dense bf16, as NVIDIA states it
UTILISATION = 0.4  # assumed: the part of the peak that training reaches; published runs lie between 0.3 and 0.6
TOKENS_PER_PARAMETER = 20  # about what Hoffmann et al. (2203.15556) found best for the operations spent
GPT2_ENTRIES = 50_304  # GPT-2's vocabulary, rounded up to a multiple of 64
GPU = ModelConfig(vocab_size=GPT2_ENTRIES, d_model=768, n_layer=12, n_head=12, seq_len=1024)
CLUSTER = ModelConfig(vocab_size=GPT2_ENTRIES, d_model=1600, n_layer=48, n_head=25, seq_len=2048)


# ---- what larger models would need -----------------------------------------------------------------------------------


def parameters(config: ModelConfig) -> int:
    """All trained numbers but a scheme's own: the matrices, two norms per block and a last one, an untied embedding."""
    untied = 0 if config.tie_embeddings else config.vocab_size * config.d_model
    return matrix_parameters(config) + untied + (2 * config.n_layer + 1) * config.d_model


def cache_bytes(config: ModelConfig, tokens: int, width: int) -> int:
    """A key and a value of every layer for every token, `width` bytes a number."""
    return 2 * config.n_layer * config.n_kv_head * config.d_head * tokens * width


def activation_bytes(config: ModelConfig, tokens: int) -> int:
    """Memory that the backward pass needs from a forward pass over `tokens` tokens in bf16, with fused attention.

    A layer keeps per token: both norms' inputs and outputs (4 C), queries and what attention gives (2 C), keys and
    values (2 C_kv), gate and up, silu(gate), and its product with up (4 d_ff): 2 bytes each. The head keeps its input,
    and logits once in bf16 and twice in float32, where the loss is taken.
    """
    C, kept = config.d_model, config.n_kv_head * config.d_head
    layer = 2 * (6 * C + 2 * kept + 4 * config.d_ff)
    return tokens * (config.n_layer * layer + 2 * 2 * C + (2 + 4 + 4) * config.vocab_size)


def memory_gigabytes(config: ModelConfig, devices: int, tokens_at_once: int) -> dict[str, float]:
    """Memory of a device when weights, gradients and AdamW's two means are shared out evenly, all in float32."""
    mine = parameters(config) / devices / 1e9
    activations = activation_bytes(config, tokens_at_once) / 1e9
    return {"weights": 4 * mine, "gradients": 4 * mine, "optimizer": 8 * mine, "activations": activations}


def training_seconds(config: ModelConfig, tokens: float, devices: int) -> float:
    """How long devices take to train on `tokens` tokens at the assumed utilisation, without communication."""
    return training_flops(config, config.seq_len) * tokens / (devices * PEAK * UTILISATION)


def estimate(title: str, config: ModelConfig, devices: int, rows: int) -> str:
    """What a model would need on H100 GPUs, as a section that shows the arithmetic."""
    N, matrices, T = parameters(config), matrix_parameters(config), config.seq_len
    C, L, F, V = config.d_model, config.n_layer, config.d_ff, config.vocab_size
    per_token, tokens, speed = training_flops(config, T), TOKENS_PER_PARAMETER * N, devices * PEAK * UTILISATION
    seconds, memory = training_seconds(config, tokens, devices), memory_gigabytes(config, devices, rows * T)
    share = f" / {devices}" if devices > 1 else ""
    return f"""\
### {title}

{L} layers, {C} wide, {config.n_head} heads, d_ff {F}, {V:,} entries, length {T:,}.

| what | arithmetic | comes to |
| --- | --- | --- |
| numbers in matrices, N | {L} (4 x {C}^2 + 3 x {C} x {F}) + {V:,} x {C} | {matrices / 1e6:,.1f}M |
| parameters | N + {2 * L + 1} norms of {C} | {N / 1e6:,.1f}M |
| operations per token | 6 N + 6 x {L} x {C} x {T + 1:,} | {per_token / 1e9:,.2f} GFLOP |
| tokens | {TOKENS_PER_PARAMETER} per parameter | {tokens / 1e9:,.1f}B |
| operations | both multiplied | {per_token * tokens:.2e} FLOP |
| speed | {devices} x 989 TFLOP/s x {UTILISATION:g} | {speed / 1e12:,.0f} TFLOP/s |
| tokens per second | speed / operations per token | {speed / per_token:,.0f} |
| time | operations / speed | {seconds / 3600:,.1f} hours |
| weights, float32 | 4 bytes x parameters{share} | {memory["weights"]:,.2f} GB per device |
| gradients, float32 | 4 bytes x parameters{share} | {memory["gradients"]:,.2f} GB |
| optimiser, two means in float32 | 8 bytes x parameters{share} | {memory["optimizer"]:,.2f} GB |
| activations, {rows} x {T:,} tokens at once | {L} x 2 bytes x (8 x {C} + 4 x {F}) per token, and logits 10 bytes x \
{V:,} | {memory["activations"]:,.1f} GB |
| together | | {sum(memory.values()):,.1f} GB of 80 |
| cache, bf16, one text of {T:,} tokens | 2 x {L} x {C} x 2 bytes per token | \
{cache_bytes(config, T, 2) / 1e6:,.0f} MB |
"""


@pytest.mark.parametrize(
    ("title", "config", "devices", "rows"),
    [
        ("124M parameters on one H100 (configs/gpu.yaml)", GPU, 1, 16),
        ("1.5B parameters on 64 H100", CLUSTER, 64, 4),
    ],
)
def test_the_estimates_on_the_page_are_those_of_the_arithmetic(title, config, devices, rows):
    assert estimate(title, config, devices, rows) in (REPOSITORY / "results" / "COST.md").read_text()


def test_parameters_of_the_124m_model_by_hand():
    """GPT-2's shape. SwiGLU at 8/3 C costs what its MLP at 4 C did: 3 x 768 x 2048 = 2 x 768 x 3072."""
    by_hand = 12 * (4 * 768 * 768 + 3 * 768 * 2048) + 25 * 768 + 50304 * 768
    assert by_hand == 123_587_328
    assert parameters(GPU) == by_hand
    # GPT-2 itself: 124,439,808 with biases, LayerNorm's second half, 1,024 positions and 50,257 rows
    gpt2 = by_hand - (50304 - 50257) * 768 + 1024 * 768 + 25 * 768 + 12 * (3 * 768 + 768 + 3072 + 768)
    assert gpt2 == 124_439_808


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("n_kv_head", [4, 2])
def test_parameters_are_those_of_the_model(tied, n_kv_head):
    config = ModelConfig(vocab_size=50, d_model=32, n_layer=3, n_kv_head=n_kv_head, tie_embeddings=tied)
    assert parameters(config) == sum(p.numel() for p in Transformer(config).parameters())


def test_memory_by_hand():
    config = ModelConfig(vocab_size=10, d_model=4, n_layer=2, n_head=2, d_ff=8)
    assert cache_bytes(config, tokens=3, width=2) == 2 * 2 * 4 * 3 * 2
    cache = Transformer(config).new_cache(1, 3)
    assert cache_bytes(config, 3, 4) == 4 * (cache.keys.numel() + cache.values.numel())
    assert activation_bytes(config, 5) == 5 * (2 * 2 * (6 * 4 + 2 * 4 + 4 * 8) + 4 * 4 + 10 * 10)
    shared = memory_gigabytes(config, devices=4, tokens_at_once=5)
    by_hand = [n * parameters(config) / 4 for n in (4, 4, 8)] + [activation_bytes(config, 5)]
    assert [1e9 * gigabytes for gigabytes in shared.values()] == pytest.approx(by_hand)


def test_time_falls_with_devices_and_grows_with_tokens():
    seconds = training_seconds(GPU, 1e9, 1)
    assert seconds == pytest.approx(training_flops(GPU, 1024) * 1e9 / (989e12 * 0.4))
    assert training_seconds(GPU, 4e9, 2) == pytest.approx(2 * seconds)


def test_growth_finds_the_power():
    for power in (0, 1, 2):
        points = [{"size": size, "seconds": 3 * size**power} for size in (1.0, 2.0, 4.0, 8.0)]
        assert cost.growth(points, "seconds") == pytest.approx(power, abs=1e-9)


def test_every_scheme_costs_the_same_matrices():
    for scheme in SCHEMES:
        config = ModelConfig(vocab_size=20, d_model=16, n_layer=1, n_head=2, position=scheme, seq_len=8)
        model = Transformer(config)
        own = sum(p.numel() for p in model.position.parameters())
        assert sum(p.numel() for p in model.parameters()) - own == parameters(config)


# ---- the page --------------------------------------------------------------------------------------------------------


def test_every_series_is_measured_and_stands_on_the_page(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cost, "run_apart", lambda work, *arguments: (work(*arguments), 1.0, 3.0))
    monkeypatch.setattr(cost, "SMALL", ModelConfig(vocab_size=1024, d_model=16, n_layer=1, seq_len=16))
    for name, value in (("LENGTHS", [16, 32]), ("MEGABYTES", [0.1, 0.2]), ("ROWS", 2), ("RESULTS", tmp_path)):
        monkeypatch.setattr(cost, name, value)
    pages = {}
    monkeypatch.setattr(cost, "replace_section", pages.__setitem__)
    cost.main([])
    content, page = json.loads((tmp_path / "cost.json").read_text()), pages["experiments/cost.py"]
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


def test_the_section_is_the_one_made_from_the_committed_figures():
    made = cost.section(json.loads((REPOSITORY / "results" / "cost.json").read_text()))
    assert find_section("experiments/cost.py")[2] == made


# ---- presets ---------------------------------------------------------------------------------------------------------


def preset(name: str) -> tuple[data.DataConfig, ModelConfig, train.RunConfig]:
    path = str(REPOSITORY / "configs" / f"{name}.yaml")
    return parse_run(["--config", path], make_run_parser("train.py", ""))[1:]


def test_the_gpu_preset_is_124m_parameters_on_fineweb_edu_compiled_in_bf16():
    texts, shape, run_ = preset("gpu")
    config = replace(shape, vocab_size=texts.vocab_size)
    assert (texts.corpus, texts.vocab_size) == ("HuggingFaceFW/fineweb-edu", GPT2_ENTRIES)
    assert 123e6 < parameters(config) < 125e6
    assert config == GPU  # what the page of costs speaks of
    assert (run_.compile, run_.precision, run_.device) == (True, "bf16", "cuda")
    assert run_.steps * run_.batch_size * shape.seq_len == pytest.approx(20 * parameters(config), rel=0.03)


def test_the_laptop_preset_needs_neither_network_nor_bf16_nor_a_compiler():
    texts, shape, run_ = preset("laptop")
    assert (texts.corpus, run_.precision, run_.compile) == ("kjv", "fp32", False)
    assert parameters(replace(shape, vocab_size=texts.vocab_size)) < 10e6


@pytest.mark.parametrize("name", ["gpu", "laptop"])
def test_a_step_of_a_preset_at_reduced_size(name, small, tmp_path):
    stated = yaml.safe_load((REPOSITORY / "configs" / f"{name}.yaml").read_text())
    assert stated
    out = tmp_path / "run"
    reduced = ["--run.steps", "1", "--run.micro_batch_size", "2", "--run.compile", "false", "--run.out", str(out)]
    finished = train.main(["--config", str(REPOSITORY / "configs" / f"{name}.yaml"), *small, *reduced])
    assert (finished["status"], finished["step"]) == ("finished", 1)
