"""Schemes x seeds -> runs -> curves, table, report: which way of knowing order is better, where, and how sure that is.

    python compare.py                                            sinusoidal, learned, alibi and rope, one seed
    python compare.py --schemes rope alibi --seeds 0 1 2         with intervals
    python compare.py --schemes rope none --model.d_model 256 --out runs/wide
    python compare.py --data.corpus task:all --out runs/tasks    accuracy on tasks instead of loss on text
    python compare.py --launcher slurm --slurm.partition gpu     on a cluster, a job a run (harness/cluster.py)

Takes every option of train.py. Runs go side by side, one per core. Runs that are already finished are not repeated,
so a stopped comparison goes on where it was, each run from its last whole checkpoint.
"""

import json
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import data
import train
from harness import devices
from harness.cluster import LAUNCHERS, Launcher, SlurmConfig, Submitted
from harness.files import write_whole
from harness.folder import MAY_DIFFER, RunFolder, other_values
from harness.messages import BadInput, RunFailed, first_paragraph, nearest, run
from harness.pictures import frame_lines, plotting
from harness.provenance import commit, versions
from harness.runs import load_finished_run, read_metrics, read_result
from harness.scoring import loss_by_length, target_figures
from harness.tables import format_mean, interval, markdown
from harness.tasks import TaskCorpus, heat_map, measure, missing
from model import ModelConfig
from positions import SCHEMES
from rope import RopeConfig

STYLE = {  # one look per scheme everywhere: colours of Okabe and Ito, told apart without colour by dash and marker
    "none": ("#999999", (0, (1, 1)), "x"),
    "sinusoidal": ("#E69F00", "--", "s"),
    "learned": ("#009E73", "-.", "^"),
    "alibi": ("#0072B2", (0, (5, 1, 1, 1, 1, 1)), "D"),
    "t5": ("#CC79A7", ":", "v"),
    "rope": ("#D55E00", "-", "o"),
}
HOLLOW = {"alibi", "learned", "t5"}  # markers, so that neighbours differ in grey too
# A run in the folder, finished or not, stands for the one that is asked for if no more differs than a resumed run may
# change. Two of these make it another run here: its curve has other points at another eval_every, and bf16 beside fp32
# is more than a scheme apart.
MAY_DIFFER_HERE = {**MAY_DIFFER, "run": MAY_DIFFER["run"] - {"eval_every", "precision"}}
TRIALS = 200  # of a task, at least so many a cell
BEST_RATES = Path(__file__).parent / "results" / "learning_rate.json"


@dataclass(frozen=True, eq=False)
class Job:
    """One run of the comparison."""

    scheme: str
    seed: int
    lengths: list[int]  # of context, tokens, to score
    data: data.DataConfig
    model: ModelConfig
    run: train.RunConfig

    @property
    def name(self) -> str:
        return f"{self.scheme}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        return Path(self.run.out)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the comparison the command line asks for, and return its summary."""
    parser = train.make_parser("compare.py", first_paragraph(__doc__))
    parser.add_argument("--schemes", type=str, nargs="+", default=["sinusoidal", "learned", "alibi", "rope"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run per scheme and seed")
    parser.add_argument(
        "--jobs", type=int, default=None, help="runs side by side; if not given one per core, with slurm all"
    )
    parser.add_argument(
        "--launcher",
        type=str,
        default=None,
        help="local or slurm: each run is a job of submitit, on this machine or on a cluster; else a process here",
    )
    parser.add_class_arguments(SlurmConfig, "slurm")
    parser.add_argument(
        "--out", type=str, default="runs/compare", help="folder of the runs, the pictures and the report"
    )
    parser.add_argument(
        "--multiples",
        type=float,
        nargs="+",
        default=[1 / 4, 1 / 2, 1, 2, 4, 8],
        help="context lengths to score, in trained lengths",
    )
    parser.set_defaults({"model.position": "none"})  # fits any shape; the schemes' own demands are checked below
    given = train.explicit(argv, parser)
    if start := given.get("run.init_from"):
        raise BadInput(f"--run.init_from {start}: the weights of one run fit one scheme; tune it with train.py")
    asked, data_config, model_config, run_config = train.parse(argv, parser)
    if asked.launcher not in (None, *LAUNCHERS):
        raise BadInput(
            f"--launcher {asked.launcher} is none of {', '.join(LAUNCHERS)}{nearest(asked.launcher, LAUNCHERS)}"
        )
    if given.get("slurm") and asked.launcher != "slurm":
        raise BadInput(f"--slurm.{next(iter(vars(given.slurm)))} means nothing without --launcher slurm")
    if not asked.out:
        raise BadInput("--out '' must name a folder")
    for scheme in asked.schemes:
        if scheme not in SCHEMES:
            raise BadInput(
                f"--schemes {scheme or repr(scheme)} is none of {', '.join(SCHEMES)}{nearest(scheme, SCHEMES)}"
            )
    if min(asked.seeds) < 0:
        raise BadInput(f"--seeds {min(asked.seeds)} must be at least 0")
    if max(asked.seeds) >= 2**63:
        raise BadInput(f"--seeds {max(asked.seeds)} must be below 2^63")
    if asked.jobs is not None and asked.jobs < 1:
        raise BadInput(f"--jobs {asked.jobs} must be at least 1")
    for multiple in asked.multiples:
        if not 0 < multiple < math.inf:
            raise BadInput(f"--multiples {multiple:g} must be above 0 and finite: lengths are in trained lengths")
    lengths = sorted({max(1, int(multiple * model_config.seq_len)) for multiple in [*asked.multiples, 1]})
    for name, value, instead in (
        ("model.position", model_config.position != "none", "--schemes"),
        ("run.seed", run_config.seed != train.RunConfig.seed, "--seeds"),
        ("run.out", asked.run.out is not None, "--out"),
        ("run.name", asked.run.name is not None, "--out"),
    ):
        if value:
            raise BadInput(f"--{name} is what a comparison sets for each run: use {instead}")

    out = Path(asked.out)
    slurm = SlurmConfig(**vars(asked.slurm))
    launcher = Launcher(asked.launcher, slurm, out) if asked.launcher else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs_at_once = min(asked.jobs or cores, len(asked.schemes) * len(asked.seeds))
    if asked.launcher == "slurm":  # its machines are not this one
        jobs_at_once = min(asked.jobs or sys.maxsize, len(asked.schemes) * len(asked.seeds))
        threads = run_config.threads or slurm.cpus
    else:
        if devices.pick_device(run_config.device).type != "cpu" and asked.jobs is None:
            jobs_at_once = 1  # one accelerator
        threads = run_config.threads or (max(1, cores // jobs_at_once) if jobs_at_once > 1 else None)
    try:
        jobs = [
            Job(
                scheme,
                seed,
                lengths,
                data_config,
                replace(model_config, position=scheme),
                replace(
                    run_config,
                    seed=seed,
                    name=f"{scheme}-seed{seed}",
                    out=str(out / f"{scheme}-seed{seed}"),
                    threads=threads,
                ),
            )
            for seed in dict.fromkeys(asked.seeds)
            for scheme in dict.fromkeys(asked.schemes)
        ]
    except ValueError as error:
        raise BadInput(f"--{'model.' if str(error).startswith('rope.') else ''}{error}") from error
    waiting = [job for job in jobs if not is_finished(job)]
    # Prepared here once, so that whatever is wrong with the text is said before anything starts.
    corpus = data.load(data_config, jobs[0].seed, run_config.batch_size, model_config.seq_len)
    train.with_vocabulary(model_config, corpus)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / ".writable", "")
        (out / ".writable").unlink()
    except OSError as error:
        raise BadInput(f"--out {out} cannot be written ({error.strerror}): name a folder that can") from error
    done = len(jobs) - len(waiting)
    print(
        f"{len(jobs)} runs of {run_config.steps} steps ({', '.join(job.name for job in jobs)}), {jobs_at_once} at "
        "a time"
        f"{f'; {done} finished before' if done else ''}\n{corpus.describe()}",
        flush=True,
    )
    if launcher and waiting:
        launcher.open()
        waiting = [begun_once(job, corpus) for job in waiting]
        side_by_side(waiting, jobs_at_once, partial(launcher.start, work))
    elif jobs_at_once == 1:
        for job in waiting:
            work(job)
    else:
        side_by_side(waiting, jobs_at_once)

    summary = summarise(jobs)
    write_whole(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    draw(summary, out / "curves.png", out)
    if on_tasks(summary):
        draw_accuracy(summary, out / "accuracy.png")
    write_whole(out / "report.md", report(summary))
    print("\n" + "\n".join([*table(summary), "", *accuracy_table(summary), *findings(summary)]))
    print(f"\nReport: {out / 'report.md'}   Picture: {out / 'curves.png'}   Figures: {out / 'summary.json'}")
    return summary


def is_finished(job: Job) -> bool:
    """Whether a job's folder already holds its finished run.

    Raises:
        BadInput: if it holds another run, and that may not be replaced.
    """
    if job.run.overwrite:
        return False
    finished = read_result(job.folder).get("status") == "finished"
    configs = {"data": job.data, "model": job.model, "run": job.run}
    if (job.folder / "config.yaml").exists() and (found := other_values(job.folder, configs, MAY_DIFFER_HERE)):
        raise BadInput(
            f"--out {job.folder.parent}: the {'' if finished else 'unfinished '}run {job.name} there has "
            f"{'; '.join(found)}: choose another --out, or --run.overwrite true"
        )
    return finished and list(read_lengths(job)) == [str(length) for length in job.lengths]


def complete(name: str, value: Any) -> Any:
    """A recorded value; rope's options with those that came later than the record, at their defaults."""
    return asdict(RopeConfig(**value)) if name == "rope" and value else value


def read_lengths(job: Job) -> dict[str, float | None]:
    """Loss by length of context, as a job has left it; empty if it has not come to that."""
    file = job.folder / "lengths.json"
    return json.loads(file.read_text()) if file.exists() else {}


def work(job: Job) -> None:
    """Train one job, unless that is done, and score it under the other lengths."""
    if job.run.threads:
        torch.set_num_threads(job.run.threads)
    if job.run.overwrite or read_result(job.folder).get("status") != "finished":
        train.train(job.data, job.model, replace(job.run, resume=not job.run.overwrite))
    device = devices.pick_device(job.run.device)
    _, autocast = devices.pick_precision(job.run.precision, device)
    loaded = load_finished_run(job.folder, str(device))
    corpus = data.load(job.data, job.seed, job.run.batch_size, job.model.seq_len)
    if isinstance(corpus, TaskCorpus):
        figures = partial(target_figures, loaded.model, device=device, autocast=autocast)
        rows = accuracies(corpus, job.lengths, loaded.model.position.longest, figures)
        write_whole(job.folder / "accuracy.json", json.dumps(rows, indent=2) + "\n")
        losses = {length: mean_loss([row for row in rows if row["length"] == length]) for length in job.lengths}
    else:
        losses = loss_by_length(loaded.model, corpus, "validation", job.lengths, device, autocast)
    write_whole(job.folder / "lengths.json", json.dumps(losses, indent=2) + "\n")


def begun_once(job: Job, corpus: data.Corpus) -> Job:
    """A job whose run is replaced here, if it is to be: the job may start several times, and must go on then."""
    if not job.run.overwrite:
        return job
    configs = {"data": job.data, "model": train.with_vocabulary(job.model, corpus), "run": job.run}
    RunFolder(job.folder, configs, overwrite=True).close()
    return replace(job, run=replace(job.run, overwrite=False))


def accuracies(
    corpus: TaskCorpus, lengths: list[int], wall: int | None, figures: Callable[[Tensor, Tensor], Tensor]
) -> list[dict[str, Any]]:
    """`tasks.measure` of every task and length: None for lengths past the wall, or too short for an episode."""
    rows = []
    for task in corpus.tasks:
        for length in lengths:
            can = corpus.least <= length <= min(corpus.longest("validation"), wall or length)
            cells = measure(corpus, task, "validation", length, TRIALS, figures) if can else missing()
            rows += [{"task": task, "length": length, **cell} for cell in cells]
    return rows


def mean_loss(rows: list[dict[str, Any]]) -> float | None:
    """Nats per scored token over all tasks; None where there are none."""
    whole = [row for row in rows if row["depth"] is None]
    if any(row["loss"] is None for row in whole):
        return None
    return sum(row["loss"] * row["tokens"] for row in whole) / sum(row["tokens"] for row in whole)


def work_alone(job: Job, log: Path) -> None:
    """`work` in a process of its own, with all it says in a log file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal's processes; compare.py hands it on
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    run(lambda argv: work(job))


class Beside:
    """A job in a process of its own on this machine. launch.Submitted is the same to who waits for it."""

    pause = 0.5  # seconds between two looks at it

    def __init__(self, job: Job) -> None:
        self.log = job.folder.parent / f"{job.name}.log"
        spawn = multiprocessing.get_context("spawn")
        self.process = spawn.Process(target=work_alone, args=(job, self.log), name=job.name)
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


def side_by_side(jobs: list[Job], at_once: int, start: Callable[[Job], Beside | Submitted] = Beside) -> None:
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


def summarise(jobs: list[Job]) -> dict[str, Any]:
    """All figures of the comparison.

    Raises:
        BadInput: if runs of one seed did not start from the same weights or did not read the same batches.
    """
    runs = []
    for job in jobs:
        result = read_result(job.folder)
        names = ["steps", "parameters", "position_parameters", "val_loss", "bits_per_byte", "test_loss"]
        hashes = ["shared_init_sha256", "batches_sha256", "data_sha256"]
        runs.append(
            {
                "scheme": job.scheme,
                "seed": job.seed,
                **{name: result[name] for name in names},
                "learning_rate": job.run.learning_rate,
                "loss_by_length": read_lengths(job),
                **{name: result[name] for name in hashes},
                **{name: result[name] for name in ("seconds", "tokens_per_second", "precision", "device", "threads")},
                "versions": result["versions"],
            }
        )
        if job.data.corpus.startswith("task:"):
            rows = json.loads((job.folder / "accuracy.json").read_text())
            by_length: dict[str, dict[str, float | None]] = {}
            for row in rows:
                if row["depth"] is None:
                    by_length.setdefault(row["task"], {})[str(row["length"])] = row["accuracy"]
            runs[-1] |= {"accuracy_by_length": by_length, "accuracy": rows}
    for run_ in runs:
        first = next(other for other in runs if other["seed"] == run_["seed"])
        for name, what in (
            ("shared_init_sha256", "shared first weights"),
            ("batches_sha256", "batches"),
            ("data_sha256", "prepared corpus"),
        ):
            if run_[name] != first[name]:
                raise BadInput(
                    f"{first['scheme']}-seed{first['seed']} and {run_['scheme']}-seed{run_['seed']} differ in "
                    "more than their "
                    f"scheme: their {what} have the hashes {first[name][:12]} and {run_[name][:12]}"
                )
    job = jobs[0]
    config = {"data": asdict(job.data), "model": asdict(job.model), "run": asdict(job.run)}
    return {"runs": runs, "config": config, "versions": versions(), "commit": commit()}


def by_scheme(summary: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The runs of each scheme, best validation loss first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run_ in summary["runs"]:
        groups.setdefault(run_["scheme"], []).append(run_)
    return dict(sorted(groups.items(), key=lambda group: mean(r["val_loss"] for r in group[1])))


def best_rates(summary: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Each scheme's best rate of the committed sweep, if that was made with this comparison's settings."""
    if not BEST_RATES.exists():
        return {}
    sweep, here = json.loads(BEST_RATES.read_text()), settings(summary["config"])
    same = all(
        complete(name, here[section][name]) == complete(name, value)
        for section in here
        for name, value in sweep["settings"][section].items()
        if name in here[section]
    )
    return sweep["best"] if same else {}


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """What two comparisons must share for their figures to stand side by side: all but scheme, seed and rate."""
    aside = {"position", "seed", "learning_rate", "eval_windows"}
    return {
        section: {k: v for k, v in values.items() if k not in aside | MAY_DIFFER[section]}
        for section, values in config.items()
    }


def table(summary: dict[str, Any]) -> list[str]:
    """The figures as a Markdown table."""
    trained = summary["config"]["model"]["seq_len"]
    lengths = list(summary["runs"][0]["loss_by_length"])
    best = best_rates(summary)
    head = ["scheme", "bits per byte", "validation loss", "test loss", "added parameters"]
    head += ["bits per byte at its best rate"] * bool(best)
    head += [f"loss at {length}" + (" (trained)" if int(length) == trained else "") for length in lengths]
    rows = [head]
    for scheme, runs in by_scheme(summary).items():
        row = [scheme, *(format_mean(r[name] for r in runs) for name in ("bits_per_byte", "val_loss", "test_loss"))]
        row.append(f"{runs[0]['position_parameters']:,}")
        if best:
            row.append(
                f"{best[scheme]['bits_per_byte']:.3f} ({best[scheme]['learning_rate']:g})" if scheme in best else ""
            )
        row += [format_mean(r["loss_by_length"][length] for r in runs) for length in lengths]
        rows.append(row)
    return markdown(rows)


def on_tasks(summary: dict[str, Any]) -> bool:
    """Whether the comparison is on tasks and not on text."""
    return summary["config"]["data"]["corpus"].startswith("task:")


def accuracy_table(summary: dict[str, Any]) -> list[str]:
    """Accuracy by task, scheme and length as a Markdown table; nothing for a comparison on text."""
    if not on_tasks(summary):
        return []
    trained, by_length = summary["config"]["model"]["seq_len"], summary["runs"][0]["accuracy_by_length"]
    lengths = list(next(iter(by_length.values())))
    rows = [["task", "scheme", *(f"at {n}" + (" (trained)" if int(n) == trained else "") for n in lengths)]]
    for task in by_length:
        for scheme, runs in by_scheme(summary).items():
            cells = [format_mean((r["accuracy_by_length"][task][length] for r in runs), 2) for length in lengths]
            rows.append([task, scheme, *cells])
    return [*markdown(rows), ""]


def task_findings(summary: dict[str, Any]) -> list[str]:
    """What the accuracies say, a sentence a task."""
    trained, by_length = str(summary["config"]["model"]["seq_len"]), summary["runs"][0]["accuracy_by_length"]
    lines = []
    for task, lengths in by_length.items():
        far, parts = list(lengths)[-1], []
        for scheme, runs in by_scheme(summary).items():
            inside, outside = (format_mean((r["accuracy_by_length"][task][n] for r in runs), 2) for n in (trained, far))
            parts.append(f"{scheme} {inside}, {outside}")
        lines.append(f"{task}, whole answers right at {trained} and at {far} tokens: {'; '.join(parts)}.")
    return lines


def findings(summary: dict[str, Any]) -> list[str]:
    """What the figures say, in sentences."""
    if on_tasks(summary):
        return task_findings(summary)
    groups, trained = by_scheme(summary), summary["config"]["model"]["seq_len"]
    lengths = list(summary["runs"][0]["loss_by_length"])
    order = ", ".join(f"{scheme} {format_mean(r['bits_per_byte'] for r in runs)}" for scheme, runs in groups.items())
    lines = [f"At the trained length of {trained}, bits per byte from best to worst: {order}."]
    far = lengths[-1]
    for scheme, runs in groups.items() if int(far) > trained else ():
        change = [
            r["loss_by_length"][far] and r["loss_by_length"][far] - r["loss_by_length"][str(trained)] for r in runs
        ]
        if None in change:
            lines.append(
                f"{scheme} has no loss at {far}: "
                + (f"its positions end at {trained}." if scheme == "learned" else "the validation text is too short.")
            )
            continue
        middle, _ = interval(change)
        verdict = "holds" if abs(middle) < 0.02 else "loses" if middle > 0 else "gains"
        lines.append(
            f"{scheme} {verdict} from {trained} to {far} tokens of context: {format_mean(change)} nats a token."
        )
    return lines


def draw(summary: dict[str, Any], path: Path, out: Path) -> None:
    """Two pictures: validation loss against steps, and loss on the same targets against the length of context."""
    plt = plotting()
    trained = summary["config"]["model"]["seq_len"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for scheme, runs in by_scheme(summary).items():
        color, dash, marker = STYLE[scheme]
        look = {"color": color, "linestyle": dash, "marker": marker, "markersize": 5, "linewidth": 1.6, "label": scheme}
        look["markerfacecolor"] = "white" if scheme in HOLLOW else color
        curves: dict[int, list[float]] = {}
        for run_ in runs:
            for event in read_metrics(out / f"{scheme}-seed{run_['seed']}"):
                if event["split"] == "val" and event["loss"] is not None:
                    curves.setdefault(event["step"], []).append(event["loss"])
        lengths: dict[int, list[float]] = {}
        for run_ in runs:
            for length, loss in run_["loss_by_length"].items():
                if loss is not None:
                    lengths.setdefault(int(length), []).append(loss)
        for axis, points in ((left, curves), (right, lengths)):
            middles, halves = zip(*(interval(values) for values in points.values()), strict=True)
            axis.plot(list(points), middles, **look)
            if None not in halves:
                low, high = ([m + sign * h for m, h in zip(middles, halves, strict=True)] for sign in (-1, 1))
                axis.fill_between(list(points), low, high, color=color, alpha=0.15, linewidth=0)
    seeds, windows = len({run_["seed"] for run_ in summary["runs"]}), summary["config"]["run"]["eval_windows"]
    over = f"mean of {seeds} seeds, band: 95% t-interval" if seeds > 1 else "one seed"
    left.set(xlabel="steps", ylabel=f"validation loss on {windows} windows, nats per token", title=f"Learning ({over})")
    right.axvline(trained, color="black", linewidth=0.8, linestyle=":")
    right.annotate(
        f"trained length {trained}",
        (trained, 0.98),
        xycoords=("data", "axes fraction"),
        ha="right",
        va="top",
        rotation=90,
        fontsize=8,
        xytext=(-3, 0),
        textcoords="offset points",
    )
    right.set_xscale("log", base=2)
    ticks = [int(length) for length in summary["runs"][0]["loss_by_length"]]
    right.set_xticks(ticks, [str(tick) for tick in ticks])
    scored, title = (
        ("answers", "Other lengths") if on_tasks(summary) else ("the same last tokens", "Same targets, other lengths")
    )
    right.set(xlabel="tokens of context", ylabel=f"loss on {scored}, nats", title=title)
    for axis in (left, right):
        frame_lines(axis)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8, handlelength=4.5)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_accuracy(summary: dict[str, Any], path: Path) -> None:
    """Heat maps, one a task: accuracy by scheme and length, means over seeds."""
    panels = []
    for task in summary["runs"][0]["accuracy_by_length"]:
        cells: dict[tuple[str, int], float | None] = {}
        for scheme, runs in by_scheme(summary).items():
            for length in runs[0]["accuracy_by_length"][task]:
                values = [run_["accuracy_by_length"][task][length] for run_ in runs]
                cells[scheme, int(length)] = None if None in values else mean(values)
        panels.append((task, cells))
    heat_map([panels], summary["config"]["model"]["seq_len"], path)


REPORT = """\
# How should a transformer know order?

The question: {n_layer} layers, {d_model} wide, {n_head} heads, trained on {corpus} for {steps} steps of {rows} x
{trained} tokens, once for each way of knowing order: {schemes}. {question} inside the trained length,
and which past it?

## What came out

{findings}

{table}

{explained} {certainty} {rates}

![validation loss against steps, and loss against context length](curves.png)

## Only the scheme differs

Runs of one seed start from bit-identical shared weights and read the same batches. The hashes are of what each run
really used; a comparison in which they differ is refused.

{proof}

## What this does not show

- Small models, short training, one text: the order at scale may be another. Gaps inside the trained length are known to
  shrink with training.
{limit}
- {scaling}

Made at commit {commit} with {machine}; {how}.
"""


ON_TEXT = {
    "question": "Which predicts text better",
    "explained": """\
Bits per byte, validation and test loss are over whole splits in non-overlapping windows of the trained length, weights
of the last step. `loss at` columns score the same targets, the last {scored} tokens of up to 256 shared windows of
the validation split, under every length of context, in nats per token.""",
    "limit": """\
- A low loss far out shows that a model survives long contexts, not that it uses them: alibi, say, looks at near tokens
  and scores much the same when the far ones are cut off.""",
}
ON_TASKS = {
    "question": "Which fetches what it has read more surely",
    "explained": """\
![accuracy by scheme and length of context, a heat map a task](accuracy.png)

{accuracy}
Accuracy is the part of all answers of which every token is the model's likeliest, each after the right ones before it
(teacher forcing), over at least {trials} trials a cell, the same for all schemes. summary.json has it by where in the
context the source stands, with the distance in tokens, too. Losses are nats per token of the answers; bits per byte
mean nothing here.""",
    "limit": """\
- A scheme that did not learn a task inside the trained length says nothing about length: look there first. Such tasks
  are learned abruptly, and when that happens differs from seed to seed.""",
}


def report(summary: dict[str, Any]) -> str:
    """The comparison as a page."""
    config, runs = summary["config"], summary["runs"]
    model, seeds = config["model"], {run_["seed"] for run_ in runs}
    words = ON_TASKS if on_tasks(summary) else ON_TEXT
    proof = [["scheme", "seed", "shared first weights", "batches", "parameters", "rate", "seconds", "tokens a second"]]
    proof += [
        [
            run_["scheme"],
            str(run_["seed"]),
            *(f"`{run_[name][:16]}`" for name in ("shared_init_sha256", "batches_sha256")),
            f"{run_['parameters']:,}",
            *(f"{run_[name]:g}" for name in ("learning_rate",)),
            *(f"{run_[name]:,.0f}" for name in ("seconds", "tokens_per_second")),
        ]
        for run_ in runs
    ]
    scaling, factor = model["rope"]["scaling"], model["rope"]["factor"]
    factor = f" by {factor:g}" if factor else ""
    return REPORT.format(
        **{name: model[name] for name in ("n_layer", "d_model", "n_head")},
        corpus=config["data"]["corpus"],
        steps=config["run"]["steps"],
        rows=config["run"]["batch_size"],
        trained=model["seq_len"],
        question=words["question"],
        explained=words["explained"].format(
            scored=min(32, *(int(length) for length in runs[0]["loss_by_length"])),
            accuracy="\n".join(accuracy_table(summary)),
            trials=TRIALS,
        ),
        limit=words["limit"],
        schemes=", ".join(by_scheme(summary)),
        scaling="RoPE is shown as trained, without any of the scalings made for longer contexts."
        if scaling == "none"
        else f"RoPE is trained and shown with the scaling {scaling}{factor} alone: others may do better or worse.",
        findings="\n".join(f"- {line}" for line in findings(summary)),
        table="\n".join(table(summary)),
        certainty=f"Figures are means over {len(seeds)} seeds with 95% t-intervals."
        if len(seeds) > 1
        else "There is one seed, so nothing here says how much is luck: `--seeds 0 1 2` gives intervals.",
        rates="All schemes train at one learning rate; "
        + ("a column gives each one's best of the sweep." if best_rates(summary) else "one may do better at another."),
        proof="\n".join(markdown(proof)),
        commit=summary["commit"] or "unknown",
        machine=", ".join(f"{name} {value}" for name, value in summary["versions"].items()),
        how=f"{runs[0]['precision']} on {runs[0]['device']}, {runs[0]['threads']} threads a run",
    )


if __name__ == "__main__":
    import compare  # itself, by the name under which a job on another machine finds what is sent there

    run(compare.main)
