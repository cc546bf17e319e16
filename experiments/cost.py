"""How do time and memory grow with length, width, depth and text?

    python -m experiments.cost      measure (some minutes), and write the tables; --measure false only writes them

Each piece of work is measured once, in its own process with one thread, into results/cost.json; the tables of
results/COST.md are made from it.
"""

import harness.stops  # first: the rest takes seconds to import, and Ctrl-C ends even that without a traceback

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import workloads
from harness.files import write_whole
from harness.messages import run_main
from harness.options import Parser
from harness.pages import ROOT, replace_section
from harness.provenance import commit, versions
from harness.scoring import score_targets
from harness.tables import markdown
from harness.timing import run_apart, take_turns
from harness.workloads import ENTRIES, forward_flops, training_flops
from model import ModelConfig, Transformer

CPU, RESULTS = torch.device("cpu"), ROOT / "results"
SMALL = ModelConfig(vocab_size=ENTRIES)  # whose length, width, depth and text grow
LENGTHS, MEGABYTES, ROWS = [1024, 2048, 4096, 8192, 16384], [2, 5, 10], 8
SERIES = {  # what grows -> the work that is measured, and the unit of its size
    "length": ("evaluating one window", "tokens"),
    "width": ("a training step", "features"),
    "depth": ("a training step", "layers"),
    "text": ("preparing", "MB"),
}


def evaluate_once(config: ModelConfig, length: int) -> float:
    """Seconds of scoring every token of one window."""
    model = Transformer(config).eval()
    tokens = torch.randint(config.vocab_size, (1, length + 1), generator=torch.Generator().manual_seed(0))
    began = time.perf_counter()
    score_targets(model, tokens[:, :-1], tokens[:, 1:], CPU, nullcontext)
    return time.perf_counter() - began


def train_once(config: ModelConfig, rows: int) -> float:
    """Seconds of the better of two training steps, after one that warms up."""
    step = workloads.training_step(Transformer(config), config, rows, rows, nullcontext)
    return min(take_turns({"step": step}, 2, 0)["step"])


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
            jobs.append(("text", size, size, workloads.prepare, text, tokenizer, Path(name, f"cache-{size:g}")))
        for what, size, work, *call in jobs:
            seconds, before, peak = run_apart(*call)
            yield {"what": what, "size": size, "seconds": seconds, "added": peak - before, "peak": peak, "work": work}


def growth(points: list[dict[str, Any]], name: str) -> float:
    """The power p of the line size^p that lies nearest a figure, in logarithms: 1 in proportion, 2 as the square."""
    figures = [max(0.1, point[name]) for point in points]
    return float(np.polyfit(np.log([point["size"] for point in points]), np.log(figures), 1)[0])


def section(content: dict[str, Any]) -> str:
    """What results/COST.md shows of the measurements: how time and memory grew, with the powers that fit."""
    here, lines = content["versions"], []
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
        lines += ["", f"## {work.capitalize()}, by {what}", "", *markdown(rows)]
    made = f"Measured on {here['cores']} cores ({here['cpu']}), PyTorch {here['torch']}"
    return "\n".join([f"{made}, commit {(content['commit'] or 'unknown')[:10]}.", *lines])


def main(argv: list[str] | None = None) -> None:
    """Measure all series, and write their tables."""
    parser = Parser(prog="experiments/cost.py", description=__doc__)
    what = "false: only write the tables, from results/cost.json"
    parser.add_argument("--measure", type=bool, default=True, help=what)
    if parser.parse_args(argv).measure:
        torch.set_num_threads(1)
        content: dict[str, Any] = {"versions": versions(), "commit": commit(), "points": []}
        for point in measure():
            content["points"].append(point)
            (work, unit), what = SERIES[point["what"]], f"{point['what']} {point['size']:,g}"
            print(f"{work}, {what} {unit}: {point['seconds']:.3g} s, {point['peak']:,.0f} MiB", flush=True)
        write_whole(RESULTS / "cost.json", json.dumps(content, indent=2) + "\n")
    replace_section("experiments/cost.py", section(json.loads((RESULTS / "cost.json").read_text(encoding="utf-8"))))


if __name__ == "__main__":
    run_main(main)
