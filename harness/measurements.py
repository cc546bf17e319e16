"""Measurements that can be stopped and continued: one JSON file each, in results/data/PART/NAME.json.

What has a file is not measured again. The run that a measurement needs is trained unless its folder under runs/results/
is finished; weights are not committed. Measurements run side by side, one per core, with one thread each.
"""

import contextlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock

from harness import devices
from harness.evaluation import load_corpus
from harness.files import open_new, write_whole
from harness.messages import BadInput, RunFailed
from harness.opening import read_inside
from harness.options import Parser
from harness.pages import ROOT
from harness.provenance import commit
from harness.runs import RecordLoader, load_finished_run, read_metrics, read_result
from harness.scoring import measure_loss_by_length
from model import ModelConfig

DATA, RUNS = ROOT / "results" / "data", Path("runs", "results")
SEEDS = (0, 1, 2)
TRAINED = ModelConfig.seq_len
LENGTHS = [TRAINED // 4, TRAINED // 2, *(TRAINED * n for n in (1, 2, 4, 8, 16))]  # whose loss is taken
TASKS = "configs/tasks.yaml"  # of the runs on tasks, which are shorter than those on text: see results/TASKS.md
TASKS_TRAINED = yaml.safe_load((ROOT / TASKS).read_text(encoding="utf-8"))["model"]["seq_len"]
RECORDED = ("steps", "val_loss", "bits_per_byte", "test_loss", "parameters", "position_parameters")  # of result.json
RECORDED += ("shared_init_sha256", "batches_sha256", "data_sha256", "precision", "threads", "versions")

Mains = tuple[Callable[[list[str]], Any], Callable[[list[str]], Any]]
"""The main functions of train.py and evaluate.py, which the harness does not import."""


@dataclass(frozen=True)
class TrainedRun:
    """A run that measurements need."""

    name: str  # of its folder
    options: tuple[str, ...]  # of train.py
    start: "TrainedRun | None" = None  # the run that it is fine-tuned from

    @property
    def folder(self) -> Path:
        return RUNS / self.name

    @property
    def command(self) -> list[str]:
        """The options of train.py that make this run."""
        start = () if self.start is None else ("--run.init_from", str(self.start.folder))
        where = ["--run.out", str(self.folder), "--run.name", self.name]
        return [*start, *self.options, *where, "--run.threads", "1", "--run.wandb", "disabled"]


@dataclass(frozen=True)
class Measurement:
    """One measurement of one run: what evaluate.py finds with some options, or else what a function makes of it."""

    part: str  # folder of its file in results/data/
    name: str  # of its file
    run: TrainedRun
    labels: dict[str, Any]  # what distinguishes it within its part: scheme, seed, scaling, ...
    options: tuple[str, ...] | None = None  # of evaluate.py
    factors: TrainedRun | None = None  # the run whose learned factors longrope takes
    measure: Callable[[Path], dict[str, Any]] | None = None  # of the run's folder; the loss by length if not given

    @property
    def file(self) -> Path:
        return DATA / self.part / f"{self.name}.json"


def text_run(scheme: str, seed: int) -> TrainedRun:
    """A run on text with the default options."""
    return TrainedRun(f"{scheme}-seed{seed}", ("--model.position", scheme, "--run.seed", str(seed)))


def tasks_run(scheme: str, name: str = "", *options: str) -> TrainedRun:
    """A run on all tasks at once, a thousand steps for each task."""
    mixture = ("--config", TASKS, "--data.corpus", "task:all", "--run.learning_rate", "0.002", "--run.steps", "5000")
    return TrainedRun(f"tasks-{name or scheme}-seed0", (*mixture, "--model.position", scheme, *options))


def train_if_missing(run: TrainedRun, mains: Mains) -> Path:
    """Train a run unless it is finished, its start first, once even if several processes need it; its folder."""
    if run.start is not None:
        train_if_missing(run.start, mains)
    RUNS.mkdir(parents=True, exist_ok=True)
    with FileLock(RUNS / f"{run.name}.lock"):
        if read_result(run.folder).get("status") != "finished":
            mains[0]([*run.command, "--run.resume", "true"])
    return run.folder


def measure_losses(folder: Path) -> dict[str, Any]:
    """Loss on the same targets at every length, and the curve of validation losses."""
    loaded, device = load_finished_run(folder), torch.device("cpu")
    corpus = load_corpus(loaded)
    _, autocast = devices.pick_precision(loaded.settings["precision"], device)
    losses = measure_loss_by_length(loaded.model, corpus, "validation", LENGTHS, device, autocast)
    curve = [[event["step"], event["loss"]] for event in read_metrics(folder) if event["split"] == "val"]
    return {"loss_by_length": losses, "curve": curve}


def measure_by_evaluating(one: Measurement, mains: Mains) -> dict[str, Any]:
    """What evaluate.py finds with the measurement's options."""
    flags = [*one.options, *(longrope_options(train_if_missing(one.factors, mains)) if one.factors else ())]
    picture = RUNS / f"{one.part}-{one.name}.png"  # another process may measure the same run
    results = mains[1]([str(one.run.folder), *flags, "--picture", str(picture)])["results"]
    return {"evaluate": ["python", "evaluate.py", str(one.run.folder), *flags], "results": results}


def longrope_options(folder: Path) -> list[str]:
    """Options for longrope: ones up to the trained length, and past it what a run with learned factors has learned."""
    learned = yaml.load(read_inside(folder, "longrope.yaml"), RecordLoader)["model"]["rope"]
    values = {"short_factor": [1.0] * len(learned["long_factor"])}
    values |= {name: learned[name] for name in ("long_factor", "attention_factor")}
    return [word for name, value in values.items() for word in (f"--rope.{name}", str(value))]


def write_measurement(one: Measurement, mains: Mains) -> None:
    """Take one measurement, and write its file: labels, how the run was made, and what was found."""
    began = time.perf_counter()
    folder = train_if_missing(one.run, mains)
    measure = one.measure or measure_losses
    found = measure(folder) if one.options is None else measure_by_evaluating(one, mains)
    result = read_result(folder)
    made = {
        **one.labels,
        "run": one.run.name,
        "train": ["python", "train.py", *one.run.command],
        "init_from": one.run.start and one.run.start.name,
        **{name: result[name] for name in RECORDED},
        "commit": commit(),
        **found,
        "seconds": time.perf_counter() - began,
    }
    one.file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(one.file, json.dumps(made, indent=1) + "\n")


def write_in_process(one: Measurement, mains: Mains) -> None:
    """`write_measurement` in a worker process, with everything it prints in a log file."""
    torch.set_num_threads(1)
    RUNS.mkdir(parents=True, exist_ok=True)
    log = RUNS / f"{one.part}-{one.name}.log"
    with open_new(log) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            write_measurement(one, mains)
        except (BadInput, RunFailed) as error:
            raise RuntimeError(f"{one.part} {one.name}: {error} (see {log})") from None


def run_missing(measurements: list[Measurement], mains: Mains, at_once: int) -> None:
    """Take the measurements that have no file yet, and print the progress.

    Raises:
        RunFailed: naming what failed, once everything else has been tried.
    """
    missing = [one for one in measurements if not one.file.exists()]
    began, failed = time.perf_counter(), []
    with ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        try:
            waiting = {pool.submit(write_in_process, one, mains): one for one in missing}
            for done, future in enumerate(as_completed(waiting), 1):
                one, error = waiting[future], future.exception()
                failed += [str(error)] if error else []
                what = f"{one.part} {one.name}" + (f": {error}" if error else "")
                print(f"{done} of {len(missing)}, {(time.perf_counter() - began) / 60:.0f} min: {what}", flush=True)
        except BaseException:  # interrupted: start nothing more, and tell what is running to save and stop
            for process in multiprocessing.active_children():  # an experiment starts none but the pool's
                process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    if failed:
        raise RunFailed("; ".join(failed))


def run_experiment(argv: list[str] | None, doc: str, measurements: list[Measurement], *mains: Any) -> None:
    """Measure what an experiment with this docstring is missing, unless its options say not to.

    Raises:
        BadInput: if there is no measurement to write a page from.
    """
    parser = Parser(description=doc)
    what = "false: only write the page, from the measurements that exist"
    parser.add_argument("--measure", type=bool, default=True, help=what)
    if parser.parse_args(argv).measure:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        run_missing(measurements, mains, cores)
    there = sum(one.file.exists() for one in measurements)
    if not there:
        raise BadInput("--measure false: results/data/ has no measurement of this experiment; leave it out")
    print(f"{there} of {len(measurements)} measurements exist: results/RESULTS.md and its pictures are made from them")
