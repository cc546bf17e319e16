"""The runs of a comparison as jobs: several at a time, each in a process of its own, with a progress bar for each."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from tqdm import tqdm

from harness.cluster import SubmittedJob
from harness.corpora import DataConfig
from harness.messages import RunFailed, run_main
from harness.plugins import LOADED
from harness.runs import read_metrics
from model import ModelConfig


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a comparison."""

    lengths: list[int]  # context lengths at which its loss is measured, tokens
    data: DataConfig
    model: ModelConfig
    run: Any  # train.py's RunConfig
    plugins: list[str] = field(default_factory=LOADED.copy)  # for a process of its own to load

    @property
    def folder(self) -> Path:
        return Path(self.run.out)


def read_lengths(job: Job) -> dict[str, float | None]:
    """Loss by context length, as the job has written it; empty if it has not measured it yet."""
    file = job.folder / "lengths.json"
    return json.loads(file.read_text()) if file.exists() else {}


class ProcessJob(SpawnProcess):
    """A job started in a process on this machine; `cluster.SubmittedJob` has the methods that are used here."""

    pause = 0.5  # seconds between two polls

    def __init__(self, work: Callable[[Job], None], job: Job) -> None:
        super().__init__(name=job.run.name)
        self.work, self.job, self.log = work, job, job.folder.parent / f"{job.run.name}.log"
        self.start()

    def run(self) -> None:
        """Do the work, with all output in the log file."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; compare.py passes it on
        file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        run_main(lambda argv: self.work(self.job))

    def poll(self) -> str | None:
        """None while it runs, "" if it has succeeded, otherwise how it ended."""
        code = self.exitcode
        return None if code is None else f"ended with code {code}" if code else ""


def run_jobs(jobs: list[Job], at_once: int, start: Callable[[Job], ProcessJob | SubmittedJob]) -> None:
    """Run jobs, at most `at_once` of them at a time, and show the progress of each.

    Raises:
        RunFailed: if any job failed, after the others have finished.
    """
    on_screen = sys.stderr.isatty()
    width = max((len(job.run.name) for job in jobs), default=0)
    bars = {
        job: tqdm(total=job.run.steps, desc=job.run.name.ljust(width), position=i, unit="step", disable=not on_screen)
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
                if (end := started.poll()) is not None:
                    del running[job]
                    bars[job].set_postfix_str("failed" if end else "done")
                    if end:
                        log = started.log.read_text(errors="replace").strip() if started.log.exists() else ""
                        said = log.split("\n")[-1].strip() or "it printed nothing"
                        failed.append(f"{job.run.name} {end}: {said} (log: {started.log})")
    finally:
        for started, _ in running.values():
            started.terminate()
        for started, _ in running.values():
            started.join()
        for bar in bars.values():
            bar.close()
    if failed:
        raise RunFailed("; ".join(failed))


def show_progress(job: Job, bar: tqdm, started: float, on_screen: bool) -> None:
    """Advance a job's bar to the last step its run has logged; without a screen, print a line every tenth."""
    if not (job.folder / "metrics.jsonl").exists() or (job.folder / "metrics.jsonl").stat().st_mtime < started - 1:
        return  # the log of an earlier run
    # A step whose loss is NaN has no loss here; the run itself reports it when it ends.
    events = [e for e in read_metrics(job.folder, tail=2000) if e["split"] == "train" and e["loss"] is not None]
    if not events or events[-1]["step"] == bar.n:
        return
    before, step, loss = bar.n, events[-1]["step"], events[-1]["loss"]
    bar.set_postfix_str(f"loss {loss:.3f}" + (", measuring lengths" if step == job.run.steps else ""), refresh=False)
    bar.update(step - before) if on_screen else setattr(bar, "n", step)
    if not on_screen and step * 10 // job.run.steps > before * 10 // job.run.steps:
        left = (job.run.steps - step) * events[-1]["seconds"] / step
        print(f"  {job.run.name}: step {step} of {job.run.steps}, loss {loss:.3f}, about {left:.0f} s left", flush=True)
