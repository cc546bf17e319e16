"""Runs side by side on this machine, each in a process of its own, and how far each of them is."""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from harness.cluster import Submitted
from harness.corpora import DataConfig
from harness.messages import RunFailed, run
from harness.runs import read_metrics
from model import ModelConfig


@dataclass(frozen=True, eq=False)
class Job:
    """One run of the comparison."""

    scheme: str
    seed: int
    lengths: list[int]  # of context, tokens, to score
    data: DataConfig
    model: ModelConfig
    run: Any  # train.py's options

    @property
    def name(self) -> str:
        return f"{self.scheme}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        return Path(self.run.out)


def read_lengths(job: Job) -> dict[str, float | None]:
    """Loss by length of context, as a job has left it; empty if it has not come to that."""
    file = job.folder / "lengths.json"
    return json.loads(file.read_text()) if file.exists() else {}


def work_alone(work: Callable[[Job], None], job: Job, log: Path) -> None:
    """`work` in a process of its own, with all it says in a log file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal's processes; compare.py hands it on
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    run(lambda argv: work(job))


class Beside:
    """A job in a process of its own on this machine. launch.Submitted is the same to who waits for it."""

    pause = 0.5  # seconds between two looks at it

    def __init__(self, work: Callable[[Job], None], job: Job) -> None:
        self.log = job.folder.parent / f"{job.name}.log"
        spawn = multiprocessing.get_context("spawn")
        self.process = spawn.Process(target=work_alone, args=(work, job, self.log), name=job.name)
        self.process.start()

    def ended(self) -> str | None:
        """None while it runs, "" once it went well, or else how it ended."""
        code = self.process.exitcode
        if code is None:
            return None
        return f"ended with code {code}" if code else ""

    def stop(self) -> None:
        """Have the run save and end."""
        self.process.terminate()

    def join(self) -> None:
        """Wait for the end of what was stopped."""
        self.process.join()


def side_by_side(jobs: list[Job], at_once: int, start: Callable[[Job], Beside | Submitted]) -> None:
    """Run jobs elsewhere, `at_once` of them at a time, and show how far each is.

    Raises:
        RunFailed: if any of them failed; the others are finished first.
    """
    on_screen = sys.stderr.isatty()
    width = max((len(job.name) for job in jobs), default=0)
    bars = {
        job: tqdm(total=job.run.steps, desc=job.name.ljust(width), position=i, unit="step", disable=not on_screen)
        for i, job in enumerate(jobs)
    }
    waiting, running, failed = list(jobs), {}, []
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                running[job] = start(job), time.time()
                bars[job].reset()
            time.sleep(max(started.pause for started, _ in running.values()))
            for job, (started, since) in list(running.items()):
                show_progress(job, bars[job], since, on_screen)
                if (how := started.ended()) is not None:
                    del running[job]
                    bars[job].set_postfix_str("failed" if how else "done")
                    if how:
                        lines = started.log.read_text(errors="replace").split("\n") if started.log.exists() else []
                        last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
                        failed.append(f"{job.name} {how}: {last.strip()} (log: {started.log})")
    finally:
        for started, _ in running.values():
            started.stop()
        for started, _ in running.values():
            started.join()
        for bar in bars.values():
            bar.close()
    if failed:
        raise RunFailed("; ".join(failed))


def show_progress(job: Job, bar: tqdm, started: float, on_screen: bool) -> None:
    """Bring a job's bar up to the last event of its run; where there is no screen, a line at every tenth of the way."""
    if not (job.folder / "metrics.jsonl").exists() or (job.folder / "metrics.jsonl").stat().st_mtime < started - 1:
        return  # the folder of a run before
    # a step whose loss is no number has none here: what it means is said when the run ends
    events = [e for e in read_metrics(job.folder, tail=2000) if e["split"] == "train" and e["loss"] is not None]
    if not events or events[-1]["step"] == bar.n:
        return
    before, step, loss = bar.n, events[-1]["step"], events[-1]["loss"]
    bar.set_postfix_str(f"loss {loss:.3f}" + (", measuring lengths" if step == job.run.steps else ""), refresh=False)
    bar.update(step - before) if on_screen else setattr(bar, "n", step)
    if not on_screen and step * 10 // job.run.steps > before * 10 // job.run.steps:
        left = (job.run.steps - step) * events[-1]["seconds"] / step
        print(f"  {job.name}: step {step} of {job.run.steps}, loss {loss:.3f}, about {left:.0f} s left", flush=True)
