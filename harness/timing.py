"""What work costs: its time, measured in turns with that of other libraries, and its memory, in its own process."""

import multiprocessing
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from harness.messages import RunFailed
from harness.tables import markdown

HIGHER_IS_BETTER = {"tokens/s"}  # units; of all others less is better

Rounds = dict[str, list[float]]
"""What every contender of a case measured, round by round: the i-th numbers were taken one after another."""


@dataclass(frozen=True)
class Row:
    """One case of a benchmark, as it goes into the file. Figures are medians over the rounds."""

    bench: str
    case: str
    unit: str  # of ours, peers and limit
    ours: float
    peers: dict[str, float] = field(default_factory=dict)  # other libraries
    limit: float | None = None  # what the machine can do at best
    ratio: float | None = None  # how many times better ours is than the best peer's
    ratio_low: float | None = None  # its 10th percentile over the rounds
    ratio_high: float | None = None  # its 90th


def take_turns(
    contenders: dict[str, Callable[[], Any]], repeats: int, seconds: float, wait: Callable[[], Any] = lambda: None
) -> Rounds:
    """Seconds that a call of every contender takes: `repeats` rounds, in which each has a turn of about `seconds`.

    The first two calls of each, which may compile, are not counted. `wait` ends a turn where calls return before their
    work is done: torch.cuda.synchronize on a card.
    """

    def time_calls(work: Callable[[], Any], calls: int) -> float:
        wait()
        began = time.perf_counter()
        for _ in range(calls):
            work()
        wait()
        return (time.perf_counter() - began) / calls

    calls = {}
    for name, work in contenders.items():
        work()
        calls[name] = max(1, round(seconds / max(time_calls(work, 1), 1e-9)))
    taken: Rounds = {name: [] for name in contenders}
    for _ in tqdm(range(repeats), unit="round", leave=False, disable=not sys.stderr.isatty()):
        for name, work in contenders.items():
            taken[name].append(time_calls(work, calls[name]))
    return taken


def rates(rounds: Rounds, amount: float) -> Rounds:
    """Amounts per second, for rounds in seconds."""
    return {name: [amount / seconds for seconds in values] for name, values in rounds.items()}


def compare_rounds(
    bench: str, case: str, unit: str, rounds: Rounds, ours: str, peers: list[str], limit: str = ""
) -> Row:
    """The row of a case, from what its contenders measured in `unit`; peers that took no part are left out."""
    medians = {name: statistics.median(values) for name, values in rounds.items()}
    there = {name: medians[name] for name in peers if name in medians}
    ratios = times_better(rounds[ours], rounds[best_peer(there, unit)], unit) if there else {}
    return Row(bench, case, unit, medians[ours], there, medians.get(limit), **ratios)


def best_peer(peers: dict[str, float], unit: str) -> str:
    """The peer with the best median; empty if there is no peer."""
    return (max if unit in HIGHER_IS_BETTER else min)(peers, key=peers.get, default="")


def times_better(ours: list[float], theirs: list[float], unit: str) -> dict[str, float]:
    """How many times better ours are, round by round: median, 10th and 90th percentile."""
    pairs = zip(ours, theirs, strict=True)
    ratios = [mine / other if unit in HIGHER_IS_BETTER else other / mine for mine, other in pairs]
    low, middle, high = np.percentile(ratios, [10, 50, 90]).tolist()
    return {"ratio": middle, "ratio_low": low, "ratio_high": high}


def describe_ratio(row: Row) -> str:
    """What a row's ratio shows, in words; a difference only where the whole range lies on one side of 1."""
    if row.ratio is None:
        return ""
    if row.ratio_low == row.ratio_high:  # of one round, whose spread nobody knows
        return f"{row.ratio:.2f}x, once: no difference shown"
    span = f"{row.ratio:.2f}x ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
    return f"{span}, no difference shown" if row.ratio_low <= 1 <= row.ratio_high else span


def format_figure(value: float, unit: str) -> str:
    """A figure with its unit, to three digits or whole."""
    return f"{value:,.0f} {unit}" if abs(value) >= 100 else f"{value:.3g} {unit}"


def table(rows: list[Row]) -> list[str]:
    """The rows as a Markdown table."""
    lines = [["what", "case", "ours", "best peer", "times better", "limit"]]
    for row in rows:
        best, limit = best_peer(row.peers, row.unit), ""
        peer = f"{format_figure(row.peers[best], row.unit)}, {best}" if best else ""
        if row.limit:
            share = row.ours / row.limit
            limit = f"{share:.0%} of it" if row.unit in HIGHER_IS_BETTER else f"{share:.1f} times it"
        lines.append([row.bench, row.case, format_figure(row.ours, row.unit), peer, describe_ratio(row), limit])
    return markdown(lines)


def run_apart(work: Callable, *arguments: Any) -> tuple[Any, float, float]:
    """Call work(*arguments) in a fresh process, and measure its memory.

    Returns:
        What the work returned; then the memory in use when it began, mostly by libraries, and at its peak, MiB.

    Raises:
        RunFailed: if the process ended before the work did.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        try:
            return pool.submit(work_in_child, work, arguments).result()
        except BrokenProcessPool as error:
            raise RunFailed(f"{work.__name__}{arguments} ended early: out of memory?") from error


def work_in_child(work: Callable, arguments: tuple) -> tuple[Any, float, float]:
    """What the work returned, and the memory of this process when it began and at its peak, MiB."""
    before = peak_memory()
    with suppress(OSError):  # the peak from here on; Linux alone can forget the one before
        Path("/proc/self/clear_refs").write_text("5")
        before = read_mebibytes(Path("/proc/self/status"), "VmRSS")
    return work(*arguments), before, peak_memory()


def peak_memory() -> float:
    """The most memory this process had in use, MiB."""
    with suppress(OSError):  # ru_maxrss would, on Linux, begin with the peak of the parent process
        return read_mebibytes(Path("/proc/self/status"), "VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def read_mebibytes(path: Path, name: str) -> float:
    """A line of a file below /proc, MiB."""
    return int(re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)[1]) / 2**10
