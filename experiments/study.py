"""Everything this project says about lengths, scalings, bases and retrieval, measured again by one command.

    make results                                     all of it
    python -m experiments.study schemes zero-shot         these parts only
    python -m experiments.study --page                    the pages and pictures alone, from what is there

A result is one small JSON file in results/data/. What is there is not measured again, so a stopped `make results` goes
on where it was, on any machine. Weights are not committed: a run that a missing result needs is trained when its folder
under runs/results/ is not there. Jobs go side by side, one per core, one thread each.
"""

import contextlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

import compare
import data
import evaluate
import train
from harness import devices, scoring
from harness.files import write_whole
from harness.messages import BadInput, RunFailed, nearest, run
from harness.runs import load_finished_run, read_metrics, read_result

HERE = Path(__file__).parents[1] / "results"
DATA, RUNS = HERE / "data", Path("runs", "results")
SCHEMES = ["rope", "alibi", "t5", "none", "sinusoidal", "learned"]
SEEDS = [0, 1, 2]
BASES = [100, 1000, 1_000_000]  # 10,000 is the default, and part of the schemes
TRAINED = train.ModelConfig.seq_len
LENGTHS = [TRAINED // 4, TRAINED // 2, *(TRAINED * n for n in (1, 2, 4, 8, 16))]
PAST = [TRAINED * n for n in (1, 2, 4, 8)]
TUNED_AT, TUNING_STEPS, TUNING_ROWS = 4 * TRAINED, 100, 8
TASKS = Path("configs", "tasks.yaml")  # of the runs on tasks: shorter than those on text, see results/TASKS.md
TASKS_TRAINED = yaml.safe_load((HERE.parent / TASKS).read_text(encoding="utf-8"))["model"]["seq_len"]
MIXTURE = ["--data.corpus", "task:all", "--run.learning_rate", "0.002", "--run.steps", "5000"]  # a thousand a task

SCALINGS = {  # label -> options of evaluate.py; factors are auto, the length in use over the trained one
    "none": [],
    "linear": ["--rope.scaling", "linear"],
    "ntk": ["--rope.scaling", "ntk"],
    "ntk, factor 16": ["--rope.scaling", "ntk", "--rope.factor", "16"],  # what 4 times the length wants: SURPRISES.md
    "dynamic": ["--rope.scaling", "dynamic", "--rope.factor", "1"],  # it stretches by the length in use already
    "yarn": ["--rope.scaling", "yarn"],
    "yarn, beta_fast 8": ["--rope.scaling", "yarn", "--rope.beta_fast", "8"],
    "llama3": ["--rope.scaling", "llama3"],
    "proportional, 3/4 of the pairs": [
        "--rope.scaling",
        "proportional",
        "--rope.fraction",
        "0.75",
        "--rope.factor",
        "1",
    ],
    "longrope": ["--rope.scaling", "longrope"],  # with the lists that `longrope` adds
}
FOUR = ["--model.rope.factor", "4"]
TUNINGS = {  # label -> options of train.py
    "none": [],
    "linear": ["--model.rope.scaling", "linear", *FOUR],
    "ntk": ["--model.rope.scaling", "ntk", *FOUR],
    "dynamic": ["--model.rope.scaling", "dynamic", "--model.rope.factor", "1"],
    "yarn": ["--model.rope.scaling", "yarn", *FOUR],
    "yarn, beta_fast 8": ["--model.rope.scaling", "yarn", "--model.rope.beta_fast", "8", *FOUR],
    "llama3": ["--model.rope.scaling", "llama3", *FOUR],
    "learned factors": ["--model.rope.scaling", "linear", "--model.rope.learn_factors", "true", *FOUR],
}


@dataclass(frozen=True)
class Run:
    """A run that results need.

    Args:
        name: of its folder.
        options: of train.py.
        start: the name of the run it is tuned from.
    """

    name: str
    options: tuple[str, ...]
    start: str | None = None

    @property
    def folder(self) -> Path:
        return RUNS / self.name

    @property
    def command(self) -> list[str]:
        """Options of train.py that make this run."""
        start = () if self.start is None else ("--run.init_from", str(RUNS / self.start))
        flags = ["--run.out", str(self.folder), "--run.name", self.name, "--run.threads", "1"]
        return [*start, *self.options, *flags, "--run.wandb", "disabled"]


@dataclass(frozen=True)
class Result:
    """One measurement of one run.

    Args:
        part: of this study.
        name: of its file, results/data/<part>/<name>.json.
        run: the run's name.
        labels: what tells it from others of its part: scheme, seed, scaling, ...
        options: of evaluate.py; None: loss by length, as compare.py takes it.
    """

    part: str
    name: str
    run: str
    labels: tuple[tuple[str, Any], ...]
    options: tuple[str, ...] | None = None

    @property
    def file(self) -> Path:
        return DATA / self.part / f"{self.name}.json"


def plain(label: str) -> str:
    """A label as part of a file's name."""
    return label.replace(", ", "-").replace(" ", "-").replace("/", "-").replace("_", "")


def study() -> tuple[dict[str, Run], list[Result]]:
    """All runs by name, and all results in the order in which they are worth having."""
    runs: dict[str, Run] = {}
    results: list[Result] = []
    at = [str(length) for length in PAST]

    def add(name: str, *options: str, start: str | None = None) -> str:
        runs[name] = Run(name, options, start)
        return name

    tasks = ["--config", str(TASKS), *MIXTURE]
    longer = ["--model.seq_len", str(TUNED_AT), "--run.steps", str(TUNING_STEPS)]
    longer += ["--run.batch_size", str(TUNING_ROWS)]
    longer_tasks = ["--model.seq_len", str(4 * TASKS_TRAINED), "--run.steps", str(TUNING_STEPS)]
    for seed in SEEDS:
        for scheme in SCHEMES:
            name = add(f"{scheme}-seed{seed}", "--model.position", scheme, "--run.seed", str(seed))
            results.append(Result("schemes", name, name, (("scheme", scheme), ("seed", seed))))
        for label, options in TUNINGS.items():
            name = add(f"tuned-{plain(label)}-seed{seed}", *longer, *options, start=f"rope-seed{seed}")
            labels = (("scaling", label), ("seed", seed))
            results.append(Result("tuned", name, name, labels, ("--lengths", *at)))
        for label, options in SCALINGS.items():
            labels = (("scaling", label), ("seed", seed))
            name = f"{plain(label)}-seed{seed}"
            results.append(Result("zero-shot", name, f"rope-seed{seed}", labels, ("--lengths", *at, *options)))
        if seed:
            continue
        for scheme in SCHEMES:
            name = add(f"tasks-{scheme}-seed0", *tasks, "--model.position", scheme)
            results.append(Result("retrieval", name, name, (("scheme", scheme), ("seed", 0)), ()))
        for label, options in SCALINGS.items():
            labels = (("scaling", label), ("seed", 0))
            results.append(Result("zero-shot-retrieval", plain(label), "tasks-rope-seed0", labels, tuple(options)))
    for label, options in TUNINGS.items():
        name = add(f"tuned-tasks-{plain(label)}-seed0", *longer_tasks, *options, start="tasks-rope-seed0")
        labels = (("scaling", label), ("seed", 0))
        lengths = [str(TASKS_TRAINED * n) for n in (1, 2, 4, 8)]
        results.append(Result("tuned-retrieval", name, name, labels, ("--lengths", *lengths)))
    for seed in SEEDS:
        for base in BASES:
            options = ["--model.position", "rope", "--model.rope.base", str(base), "--run.seed", str(seed)]
            name = add(f"base-{base}-seed{seed}", *options)
            results.append(Result("bases", name, name, (("base", base), ("seed", seed))))
    for base in BASES:
        name = add(f"tasks-base-{base}-seed0", *tasks, "--model.position", "rope", "--model.rope.base", str(base))
        results.append(Result("bases-retrieval", name, name, (("base", base), ("seed", 0)), ()))
    return runs, results


def ensure(name: str, runs: dict[str, Run]) -> Run:
    """Train a run unless it is there, its start first. Two that need it at once train it once."""
    one = runs[name]
    if one.start is not None:
        ensure(one.start, runs)
    RUNS.mkdir(parents=True, exist_ok=True)
    with FileLock(RUNS / f"{name}.lock"):
        if read_result(one.folder).get("status") != "finished":
            train.main([*one.command, "--run.resume", "true"])
    return one


def longrope(runs: dict[str, Run]) -> list[str]:
    """Options for longrope: ones up to the trained length, past it what tuning the first seed has learned."""
    lists = ensure("tuned-learned-factors-seed0", runs).folder / "longrope.yaml"
    learned = yaml.safe_load(lists.read_text(encoding="utf-8"))["model"]["rope"]
    ones = [1.0] * len(learned["long_factor"])
    values = {"short_factor": ones, "long_factor": learned["long_factor"]}
    values["attention_factor"] = learned["attention_factor"]
    return [word for name, value in values.items() for word in (f"--rope.{name}", str(value))]


def measure(one: Result, runs: dict[str, Run]) -> None:
    """Measure one result, training what it needs, and write its file."""
    began, folder = time.perf_counter(), ensure(one.run, runs).folder
    out = read_result(folder)
    made = {
        **dict(one.labels),
        "run": one.run,
        "train": ["python", "train.py", *runs[one.run].command],
        "init_from": runs[one.run].start,
        **{name: out[name] for name in ("steps", "val_loss", "bits_per_byte", "test_loss", "parameters")},
        **{name: out[name] for name in ("position_parameters", "shared_init_sha256", "batches_sha256", "data_sha256")},
        **{name: out[name] for name in ("precision", "threads", "versions")},
        "commit": compare.commit(),
    }
    if one.options is None:
        loaded = load_finished_run(folder)
        seed, rows = loaded.settings["seed"], loaded.settings["batch_size"]
        corpus = data.load(loaded.data, seed, rows, loaded.model_config.seq_len)
        _, autocast = devices.pick_precision(loaded.settings["precision"], devices.pick_device("cpu"))
        losses = scoring.loss_by_length(
            loaded.model, corpus, "validation", LENGTHS, devices.pick_device("cpu"), autocast
        )
        curve = [[event["step"], event["loss"]] for event in read_metrics(folder) if event["split"] == "val"]
        made |= {"loss_by_length": losses, "curve": curve}
    else:
        options = [*one.options, *(longrope(runs) if "longrope" in one.options else ())]
        made["evaluate"] = ["python", "evaluate.py", str(folder), *options]
        picture = RUNS / f"{one.part}-{one.name}.png"  # of its own: others measure the same run beside this
        made["results"] = evaluate.main([str(folder), *options, "--picture", str(picture)])["results"]
    one.file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(one.file, json.dumps({**made, "seconds": time.perf_counter() - began}, indent=1) + "\n")


def work(one: Result) -> None:
    """`measure` in a process of its own, with all it says in a log file."""
    import torch

    torch.set_num_threads(1)
    RUNS.mkdir(parents=True, exist_ok=True)
    log = RUNS / f"{one.part}-{one.name}.log"
    with open(log, "w", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            measure(one, study()[0])
        except (BadInput, RunFailed) as error:
            raise RuntimeError(f"{one.part} {one.name}: {error} (see {log})") from None


@contextlib.contextmanager
def cancelled(pool: ProcessPoolExecutor) -> Iterator[None]:
    """On the way out after an interruption: what has not begun never does, and what has is told to save and stop."""
    try:
        yield
    except BaseException:
        for process in multiprocessing.active_children():  # this script starts none but the pool's
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        raise


def run_all(results: Iterable[Result], at_once: int) -> None:
    """Measure what is not there yet, and say what is done and what is left.

    Raises:
        RunFailed: naming what failed, after everything else was tried.
    """
    missing = [one for one in results if not one.file.exists()]
    began, failed = time.perf_counter(), []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_once, mp_context=spawn, max_tasks_per_child=1) as pool, cancelled(pool):
        waiting = {pool.submit(work, one): one for one in missing}
        for done, future in enumerate(as_completed(waiting), 1):
            one, error = waiting[future], future.exception()
            failed += [str(error)] * (error is not None)
            minutes = (time.perf_counter() - began) / 60
            print(
                f"{done} of {len(missing)}, {minutes:.0f} min: {one.part} {one.name}" + (f": {error}" if error else ""),
                flush=True,
            )
    if failed:
        raise RunFailed("; ".join(failed))


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing of the parts named on the command line, then write the pages."""
    asked = list(sys.argv[1:] if argv is None else argv)
    results = study()[1]
    parts = list(dict.fromkeys(one.part for one in results))
    chosen = [word for word in asked if word != "--page"]
    for word in chosen:
        if word not in parts:
            raise BadInput(f"{word} is no part of the study, which has {', '.join(parts)}{nearest(word, parts)}")
    if "--page" not in asked:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        run_all([one for one in results if one.part in (chosen or parts)], cores)
    from experiments import study_page

    study_page.main()


if __name__ == "__main__":
    run(main)
