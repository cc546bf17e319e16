"""How do time and memory grow with length, width, depth and text, and what would larger models need?

    python -m experiments.cost      measure (some minutes), and write COST.md; --measure false only writes it

Each piece of work is measured once, in its own process, into results/cost.json. The second half of results/COST.md is
arithmetic: parameters, operations (harness/workloads.py), memory and time of a model on one H100 and of one on 64.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import devices, workloads
from harness.files import write_whole
from harness.messages import first_paragraph, run_main
from harness.options import Parser
from harness.pages import ROOT
from harness.provenance import commit, versions
from harness.scoring import score_targets
from harness.tables import markdown
from harness.timing import run_apart, take_turns
from harness.workloads import ENTRIES, forward_flops, matrix_parameters, training_flops
from model import ModelConfig, Transformer

CPU, RESULTS = torch.device("cpu"), ROOT / "results"
SMALL = ModelConfig(vocab_size=ENTRIES)  # whose length, width, depth and text grow
LENGTHS, MEGABYTES, ROWS = [1024, 2048, 4096, 8192, 16384], [2, 5, 10], 8
PEAK = 989e12  # FLOP/s of one H100 SXM in dense bf16, as NVIDIA states it
UTILISATION = 0.4  # assumed: the part of the peak that training reaches; published runs lie between 0.3 and 0.6
TOKENS_PER_PARAMETER = 20  # about what Hoffmann et al. (2203.15556) found best for the operations spent
GPT2_ENTRIES = 50_304  # GPT-2's vocabulary, rounded up to a multiple of 64
GPU = ModelConfig(vocab_size=GPT2_ENTRIES, d_model=768, n_layer=12, n_head=12, seq_len=1024)
CLUSTER = ModelConfig(vocab_size=GPT2_ENTRIES, d_model=1600, n_layer=48, n_head=25, seq_len=2048)
SERIES = {  # what grows -> the work that is measured, and the unit of its size
    "length": ("evaluating one window", "tokens"),
    "width": ("a training step", "features"),
    "depth": ("a training step", "layers"),
    "text": ("preparing", "MB"),
}


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


def evaluate_once(config: ModelConfig, length: int) -> float:
    """Seconds of scoring every token of one window."""
    model = Transformer(config).eval()
    tokens = torch.randint(config.vocab_size, (1, length + 1), generator=torch.Generator().manual_seed(0))
    _, autocast = devices.pick_precision("fp32", CPU)
    began = time.perf_counter()
    score_targets(model, tokens[:, :-1], tokens[:, 1:], CPU, autocast)
    return time.perf_counter() - began


def train_once(config: ModelConfig, rows: int) -> float:
    """Seconds of the better of two training steps, after one that warms up."""
    _, autocast = devices.pick_precision("fp32", CPU)
    step = workloads.training_step(Transformer(config), config, rows, rows, autocast)
    return min(take_turns({"step": step}, 2, 0)["step"])


def prepare_once(text: Path, tokenizer: Path, cache: Path) -> float:
    """Seconds of preparing a text."""
    return workloads.prepare(text, tokenizer, cache)[1]


def measure() -> Iterator[dict[str, Any]]:
    """Points of all four series, smallest sizes first: seconds; MiB at the peak, and that the work added to; work.

    `work` is in operations, calculated; that of a text, which has none, is its size in MB.
    """
    jobs = [("length", n, n * forward_flops(SMALL, n), evaluate_once, SMALL, n) for n in LENGTHS]
    wide = [replace(SMALL, d_model=n * SMALL.d_model, d_ff=n * SMALL.d_ff) for n in (1, 2, 3, 4)]
    grown = [("width", config.d_model, config) for config in wide]
    grown += [("depth", n * SMALL.n_layer, replace(SMALL, n_layer=n * SMALL.n_layer)) for n in (1, 2, 3)]
    for what, size, config in grown:
        flops = ROWS * SMALL.seq_len * training_flops(config, SMALL.seq_len)
        jobs.append((what, size, flops, train_once, config, ROWS))
    with tempfile.TemporaryDirectory() as name:
        texts, tokenizer = workloads.write_texts(Path(name), MEGABYTES)
        for size, text in texts.items():
            jobs.append(("text", size, size, prepare_once, text, tokenizer, Path(name, f"cache-{size:g}")))
        for what, size, work, *call in jobs:
            seconds, before, peak, _ = run_apart(*call)
            yield {"what": what, "size": size, "seconds": seconds, "added": peak - before, "peak": peak, "work": work}


def growth(points: list[dict[str, Any]], name: str) -> float:
    """The power p of the line size^p that lies nearest a figure, in logarithms: 1 in proportion, 2 as the square."""
    figures = [max(0.1, point[name]) for point in points]
    return float(np.polyfit(np.log([point["size"] for point in points]), np.log(figures), 1)[0])


def page(content: dict[str, Any]) -> str:
    """How time and memory grew, with the powers that fit, and what larger models would need."""
    here, lines, newline = content["versions"], [], "\n"
    for what, (work, unit) in SERIES.items():
        points, is_text = [point for point in content["points"] if point["what"] == what], what == "text"
        head = [f"{what}, {unit}", "seconds", "memory added, MiB", "peak, MiB"]
        rows = [head + (["MB/s"] if is_text else ["GFLOP, calculated", "GFLOP/s"])]
        for point in points:
            row = [f"{point['size']:,g}", f"{point['seconds']:.3g}", f"{point['added']:,.0f}", f"{point['peak']:,.0f}"]
            speed = point["work"] / point["seconds"]
            rows.append(row + ([f"{speed:.2f}"] if is_text else [f"{point['work'] / 1e9:,.1f}", f"{speed / 1e9:,.1f}"]))
        seconds, added, flops = (f"{growth(points, name):.2f}" for name in ("seconds", "added", "work"))
        rows.append(["power", seconds, added, "", *([] if is_text else [flops]), ""])
        lines += [f"## {work.capitalize()}, by {what}", "", *markdown(rows), ""]
    return f"""\
# How the cost grows

Made by `python -m experiments.cost` from results/cost.json.

Each measured once, in fp32, in its own process with one thread: {here["cores"]} cores ({here["cpu"]}), PyTorch
{here["torch"]}, commit {(content["commit"] or "unknown")[:10]}. Where it does not say otherwise, the model is
{SMALL.d_model} wide with {SMALL.n_layer} layers and {SMALL.n_head} heads, and a training step is one optimiser step on
{ROWS} x {SMALL.seq_len} tokens.

`power` is the exponent p of the size^p that fits best: with 1 a cost grows in proportion, with 2 as the square.
`memory added` is what the work added to the memory of its process, at the peak.

{newline.join(lines)}
## What larger models would need: an estimate, not a measurement

Nobody ran these. They are calculated as experiments/cost.py and harness/workloads.py say, on two assumptions: a GPU of
989 TFLOP/s in dense bf16 (H100 SXM, NVIDIA's figure), of which training reaches {UTILISATION:.0%}, and
{TOKENS_PER_PARAMETER} tokens per parameter. Autocast's bf16 copies of the weights, memory that the allocator wastes,
and communication are left out. Shared out over 64 devices, every step also moves about 2 x 2 bytes per parameter to
gather weights (forward and backward) and 4 to reduce gradients, all of which has to overlap with the computation.

{estimate("124M parameters on one H100 (configs/gpu.yaml)", GPU, devices=1, rows=16)}
{estimate("1.5B parameters on 64 H100", CLUSTER, devices=64, rows=4)}"""


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


def main(argv: list[str] | None = None) -> None:
    """Measure all series, and write the page."""
    parser = Parser(prog="experiments/cost.py", description=first_paragraph(__doc__))
    parser.add_argument("--measure", type=bool, default=True, help="false: only write the page, from results/cost.json")
    if parser.parse_args(argv).measure:
        torch.set_num_threads(1)
        content: dict[str, Any] = {"versions": versions(), "commit": commit(), "points": []}
        for point in measure():
            content["points"].append(point)
            (work, unit), what = SERIES[point["what"]], f"{point['what']} {point['size']:,g}"
            print(f"{work}, {what} {unit}: {point['seconds']:.3g} s, {point['peak']:,.0f} MiB", flush=True)
        write_whole(RESULTS / "cost.json", json.dumps(content, indent=2) + "\n")
    write_whole(RESULTS / "COST.md", page(json.loads((RESULTS / "cost.json").read_text(encoding="utf-8"))))


if __name__ == "__main__":
    run_main(main)
