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
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import data
import train
from harness import devices
from harness.cluster import LAUNCHERS, Launcher, SlurmConfig
from harness.files import write_whole
from harness.folder import MAY_DIFFER, RunFolder, find_differences
from harness.jobs import Job, ProcessJob, read_lengths, run_jobs
from harness.messages import BadInput, first_paragraph, nearest, run
from harness.provenance import commit, versions
from harness.report import (
    describe_findings,
    draw_accuracies,
    draw_curves,
    format_accuracies,
    format_losses,
    format_report,
    is_on_tasks,
)
from harness.retrieval import empty_rows, measure_accuracy
from harness.run_options import fit_vocabulary, make_run_parser, parse_explicit, parse_run
from harness.runs import load_finished_run, read_result
from harness.scoring import measure_loss_by_length, score_targets
from harness.tasks import TaskCorpus
from positions import SCHEMES

TRIALS = 200  # per task and length, at least
# A run that is already in the folder is used if it differs only where a resumed run may, except in two options: another
# eval_every gives its curve other points, and bf16 against fp32 is a difference beyond the scheme.
MAY_DIFFER_HERE = {**MAY_DIFFER, "run": MAY_DIFFER["run"] - {"eval_every", "precision"}}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the comparison the command line asks for, and return its summary."""
    parser = make_run_parser("compare.py", first_paragraph(__doc__), train.RunConfig)
    parser.add_argument(
        "--schemes", type=str, nargs="+", default=[name for name, scheme in SCHEMES.items() if scheme.in_comparison]
    )
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
    given = parse_explicit(argv, parser)
    if start := given.get("run.init_from"):
        raise BadInput(f"--run.init_from {start}: the weights of one run fit one scheme; tune it with train.py")
    asked, data_config, model_config, run_config = parse_run(argv, parser)
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
        raise BadInput(parser.explain(error)) from error
    waiting = [job for job in jobs if not is_finished(job)]
    # Prepared here once, so that whatever is wrong with the text is said before anything starts.
    corpus = data.load(data_config, jobs[0].seed, run_config.batch_size, model_config.seq_len)
    fit_vocabulary(model_config, corpus)
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
        run_jobs(waiting, jobs_at_once, partial(launcher.start, work))
    elif jobs_at_once == 1:
        for job in waiting:
            work(job)
    else:
        run_jobs(waiting, jobs_at_once, partial(ProcessJob, work))

    summary = summarise(jobs)
    write_whole(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    draw_curves(summary, out / "curves.png", out)
    if is_on_tasks(summary):
        draw_accuracies(summary, out / "accuracy.png")
    write_whole(out / "report.md", format_report(summary))
    print("\n" + "\n".join([*format_losses(summary), "", *format_accuracies(summary), *describe_findings(summary)]))
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
    if (job.folder / "config.yaml").exists() and (found := find_differences(job.folder, configs, MAY_DIFFER_HERE)):
        raise BadInput(
            f"--out {job.folder.parent}: the {'' if finished else 'unfinished '}run {job.name} there has "
            f"{'; '.join(found)}: choose another --out, or --run.overwrite true"
        )
    return finished and list(read_lengths(job)) == [str(length) for length in job.lengths]


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
        figures = partial(score_targets, loaded.model, device=device, autocast=autocast)
        rows = accuracies(corpus, job.lengths, loaded.model.position.longest, figures)
        write_whole(job.folder / "accuracy.json", json.dumps(rows, indent=2) + "\n")
        losses = {length: mean_loss([row for row in rows if row["length"] == length]) for length in job.lengths}
    else:
        losses = measure_loss_by_length(loaded.model, corpus, "validation", job.lengths, device, autocast)
    write_whole(job.folder / "lengths.json", json.dumps(losses, indent=2) + "\n")


def begun_once(job: Job, corpus: data.Corpus) -> Job:
    """A job whose run is replaced here, if it is to be: the job may start several times, and must go on then."""
    if not job.run.overwrite:
        return job
    configs = {"data": job.data, "model": fit_vocabulary(job.model, corpus), "run": job.run}
    RunFolder(job.folder, configs, overwrite=True).close()
    return replace(job, run=replace(job.run, overwrite=False))


def accuracies(
    corpus: TaskCorpus, lengths: list[int], wall: int | None, figures: Callable[[Tensor, Tensor], Tensor]
) -> list[dict[str, Any]]:
    """Accuracy of every task at every length: None for lengths past the wall, or too short for an episode."""
    rows = []
    for task in corpus.tasks:
        for length in lengths:
            can = corpus.least <= length <= min(corpus.longest("validation"), wall or length)
            cells = measure_accuracy(corpus, task, "validation", length, TRIALS, figures) if can else empty_rows()
            rows += [{"task": task, "length": length, **cell} for cell in cells]
    return rows


def mean_loss(rows: list[dict[str, Any]]) -> float | None:
    """Nats per scored token over all tasks; None where there are none."""
    whole = [row for row in rows if row["depth"] is None]
    if any(row["loss"] is None for row in whole):
        return None
    return sum(row["loss"] * row["tokens"] for row in whole) / sum(row["tokens"] for row in whole)


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


if __name__ == "__main__":
    import compare  # itself, by the name under which a job on another machine finds what is sent there

    run(compare.main)
