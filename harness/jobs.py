"""The runs of a comparison as jobs: several at a time, each in a process of its own, with a progress bar for each.

The processes belong to the one that started them: when it ends, even by `kill -9`, they save and end too.
"""

import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter
from tqdm import tqdm
from typing_extensions import TypedDict

from harness import runs
from harness.cluster import SubmittedJob
from harness.corpora import DataConfig
from harness.files import open_new
from harness.messages import BadInput, RunFailed, run_main
from harness.opening import Damaged
from harness.plugins import LOADED
from harness.runs import read_json, read_metrics, read_result, weights_sha256
from model import ModelConfig

MADE = ("summary.json", "curves.png", "accuracy.png", "report.md")  # beside the runs' folders
NAME = "compare.py"  # with which a job's messages begin
PATIENCE = 30.0  # seconds in which a run whose comparison was killed may finish its step and save


class Measured(TypedDict):
    """What measured.json says, beside lengths.json and accuracy.json."""

    weights_sha256: str  # of the weights that they were measured on


MEASURED = TypeAdapter(Measured)
SHARED = {  # hashes that runs with the same seed must share
    "shared_init_sha256": "shared first weights",
    "batches_sha256": "batches",
    "data_sha256": "prepared corpus",
}
FIGURES = (*SHARED, "seconds", "tokens_per_second", "precision", "device", "threads", "versions")
FIGURES += ("steps", "parameters", "position_parameters", "val_loss", "test_loss")  # of result.json, all needed


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


def hash_weights(job: Job) -> str | None:
    """The hash of a job's weights; None if there are none that can be read."""
    try:
        return weights_sha256(job.folder)
    except (OSError, Damaged):
        return None


def is_trained(job: Job) -> bool:
    """Whether a job's folder holds its finished run, with the weights that its result.json was measured on.

    Raises:
        BadInput: if it does, and result.json lacks what a comparison shows.
    """
    result, found = read_result(job.folder), hash_weights(job)
    if result.get("status") == "finished":
        lacks = [f"no {name}" for name in FIGURES if result.get(name) is None]
        if result["steps"] != job.run.steps:
            lacks.append(f"steps {result['steps']}, not {job.run.steps}")
        if lacks:
            file = job.folder / "result.json"
            raise BadInput(f"{file} is damaged, it has {lacks[0]}: restore it from a copy, or --run.overwrite true")
    return result.get("status") == "finished" and found is not None and result.get("weights_sha256", found) == found


def read_lengths(job: Job) -> dict[str, float | None]:
    """Loss by context length, if the job has measured it on the weights that are there; empty otherwise."""
    measured = read_json(job.folder, "measured.json", MEASURED)
    if measured is None or measured["weights_sha256"] != hash_weights(job):
        return {}
    if job.data.corpus.startswith("task:") and not runs.read_accuracy(job.folder):
        return {}
    return runs.read_lengths(job.folder)


@contextmanager
def called(flags: dict[str, str]) -> Iterator[None]:
    """In what is refused, call a run's flags by those of the comparison, which sets them itself: run.out is out."""
    try:
        yield
    except BadInput as error:
        names = "|".join(map(re.escape, flags))
        line = re.sub(rf"--({names})(?![\w.])", lambda found: f"--{flags[found[1]]}", str(error))
        raise BadInput(line) from error


# ---- who may write ---------------------------------------------------------------------------------------------------


@contextmanager
def own(out: Path) -> Iterator[Callable[[], None]]:
    """Keep other comparisons out of a comparison's folder.

    Yields a function that makes the folder, if need be, and locks it: call it before anything is written there. If a
    comparison was there before, the lock is taken at once; otherwise what is refused would leave a lock behind.

    Raises:
        BadInput: if another process holds the lock, or the folder cannot be written.
    """
    lock = FileLock(out / ".lock", timeout=0, fallback_to_soft=False)

    def take() -> None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            for path in out.iterdir():
                if (path.name in MADE or path.suffix == ".log") and path.exists() and not path.is_file():
                    what = f"{path.name} in it is no plain file: remove it, or choose another --out"
                    raise BadInput(f"--out {out}: {what}")
        except Timeout as error:
            what = "is being written by another process: wait until that has ended, or choose another --out"
            raise BadInput(f"--out {out} {what}") from error
        except OSError as error:
            raise BadInput(f"--out {out} cannot be written ({error.strerror}): name a folder that can") from error

    try:
        if os.path.isfile(out / ".lock"):  # unlike Path.is_file, false for a name too long to be one
            take()
        yield take
    finally:
        lock.release(force=True)


def wait_for_orphans(jobs: list[Job]) -> None:
    """Wait for runs of these jobs that are still being saved, because their comparison was killed.

    Raises:
        BadInput: if one is still written after `PATIENCE` seconds.
    """
    until = time.monotonic() + PATIENCE
    for job in jobs:
        if (job.folder / ".lock").is_file() and not (job.folder / ".lock").is_symlink():  # a run refuses links
            lock = FileLock(job.folder / ".lock", fallback_to_soft=False)
            try:
                lock.acquire(timeout=max(0.0, until - time.monotonic()))
            except Timeout as error:
                what = f"the run {job.run.name} there is being written by another process: wait until that has ended"
                raise BadInput(f"--out {job.folder.parent}: {what}, or choose another --out") from error
            lock.release()


def end_with_parent() -> None:
    """Once the process that started this one is gone, however it ended, tell this one to save and end."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


# ---- the jobs --------------------------------------------------------------------------------------------------------


class ProcessJob(SpawnProcess):
    """A job started in a process on this machine; `cluster.SubmittedJob` has the methods that are used here."""

    pause = 0.5  # seconds between two polls

    def __init__(self, work: Callable[[Job], None], job: Job) -> None:
        super().__init__(name=job.run.name)
        self.work, self.job, self.log = work, job, job.folder.parent / f"{job.run.name}.log"
        self.start()

    def run(self) -> None:
        """Do the work, with all output in the log file."""
        threading.Thread(target=end_with_parent, daemon=True).start()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; compare.py passes it on
        with open_new(self.log) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = [NAME]
        run_main(lambda argv: self.work(self.job))

    @property
    def code(self) -> int | None:
        """The exit code, once it has ended."""
        return self.exitcode

    def poll(self) -> str | None:
        """None while it runs, "" if it has succeeded, otherwise how it ended."""
        code = self.exitcode
        return None if code is None else f"ended with code {code}" if code else ""


def run_here(jobs: list[Job], work: Callable[[Job], None]) -> None:
    """Run jobs one after the other in this process; what fails is reported as by `run_jobs`."""
    failed = []
    for job in jobs:
        try:
            work(job)
        except BadInput as error:
            failed.append((2, str(error)))
        except RunFailed as error:
            failed.append((3, f"{job.run.name} ended with code 3: {error}"))
    report_failures(failed)


def run_jobs(
    jobs: list[Job],
    at_once: int,
    start: Callable[[Job], ProcessJob | SubmittedJob],
    look: Callable[[], None] = lambda: None,
) -> None:
    """Run jobs, at most `at_once` of them at a time, and show the progress of each; `look` is called now and then.

    Raises:
        BadInput: if any job was refused, after the others have finished.
        RunFailed: if any job failed otherwise.
    """
    on_screen = sys.stderr.isatty()
    width = max((len(job.run.name) for job in jobs), default=0)
    bars = {
        job: tqdm(total=job.run.steps, desc=job.run.name.ljust(width), position=i, unit="step", disable=not on_screen)
        for i, job in enumerate(jobs)
    }
    waiting, running, failed = list(jobs), {}, {}
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
                        failed[job] = started.code, describe_end(job, started, end)
            look()
    finally:
        for started, _ in running.values():
            started.terminate()
        for started, _ in running.values():
            started.join()
        for bar in bars.values():
            bar.close()
    report_failures([failed[job] for job in jobs if job in failed])  # in their order, whichever ended first


def describe_end(job: Job, started: ProcessJob | SubmittedJob, end: str) -> str:
    """What went wrong with a job, in a line: what it reported itself, or else the last line of its log."""
    lines = started.log.read_text(errors="replace").strip().splitlines() if started.log.exists() else []
    if started.code in (2, 3):
        reports = [line.removeprefix(f"{NAME}: ") for line in lines if line.startswith(f"{NAME}: ")]
        said = next((line for line in reversed(reports) if not line.startswith("warning: ")), "it printed nothing")
        if started.code == 2:
            started.log.unlink(missing_ok=True)  # nothing was done, and all is said
        return said if started.code == 2 else f"{job.run.name} {end}: {said}"
    return f"{job.run.name} {end}: {lines[-1].strip() if lines else 'it printed nothing'} (log: {started.log})"


def report_failures(failed: list[tuple[int | None, str]]) -> None:
    """Raise one error for all jobs that failed, each with its exit code and a line: BadInput if one was refused."""
    if failed:
        refused = any(code == 2 for code, _ in failed)
        raise (BadInput if refused else RunFailed)("; ".join(dict.fromkeys(line for _, line in failed)))


def show_progress(job: Job, bar: tqdm, started: float, on_screen: bool) -> None:
    """Advance a job's bar to the last step its run has logged; without a screen, print a line every tenth."""
    if not (job.folder / "metrics.jsonl").exists() or (job.folder / "metrics.jsonl").stat().st_mtime < started - 1:
        return  # the log of an earlier run
    # A step whose loss or gradient is NaN has no loss or no seconds here; the run itself reports it when it ends.
    events = [event for event in read_metrics(job.folder, tail=2000) if event["split"] == "train"]
    events = [event for event in events if event["loss"] is not None and "seconds" in event]
    if not events or events[-1]["step"] == bar.n:
        return
    before, step, loss = bar.n, events[-1]["step"], events[-1]["loss"]
    bar.set_postfix_str(f"loss {loss:.3f}" + (", measuring lengths" if step == job.run.steps else ""), refresh=False)
    bar.update(step - before) if on_screen else setattr(bar, "n", step)
    if not on_screen and step * 10 // job.run.steps > before * 10 // job.run.steps:
        left = (job.run.steps - step) * events[-1]["seconds"] / step
        print(f"  {job.run.name}: step {step} of {job.run.steps}, loss {loss:.3f}, about {left:.0f} s left", flush=True)
