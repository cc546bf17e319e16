"""Compare position schemes: train each with several seeds, and show which is better, where, and how sure that is.

    python compare.py                                            every scheme of the default comparison, one seed
    python compare.py --schemes rope alibi --seeds 0 1 2         with intervals
    python compare.py --schemes rope none --model.d_model 256 --out runs/wide
    python compare.py --data.corpus task:all --out runs/tasks    accuracy on tasks instead of loss on text
    python compare.py --launcher slurm --slurm.partition gpu     on a cluster, one job per run (harness/cluster.py)

Takes every option of train.py. All schemes train side by side, and a first table and picture are there after some 100
steps. Finished runs are not repeated, so a stopped comparison continues when the same command is given again, each run
from its last whole checkpoint.
"""

import harness.stops  # first: the rest takes seconds to import, and Ctrl-C ends even that without a traceback

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import data
import train
from harness import devices, report
from harness.cluster import Launcher, SlurmConfig
from harness.early import EarlyReport
from harness.files import write_whole
from harness.folder import MAY_DIFFER, RunFolder, find_differences
from harness.jobs import Job, ProcessJob, called, is_trained, own, read_lengths, run_here, run_jobs, wait_for_orphans
from harness.messages import BadInput, refuse_unknown, run_main
from harness.options import Parser
from harness.plugins import load_plugins
from harness.ranges import AtLeast1, Multiple, Seed
from harness.retrieval import empty_rows, measure_accuracy
from harness.run import Run
from harness.run_options import fit_vocabulary, make_run_parser, parse_explicit, parse_run
from harness.runs import load_finished_run, read_result, weights_sha256
from harness.scoring import measure_loss_by_length, score_targets
from harness.tables import group_by
from harness.tasks import TaskCorpus
from model import ModelConfig
from positions import SCHEMES

SET_HERE = {"model.position": "schemes", "run.seed": "seeds", "run.out": "out", "run.name": "out"}  # -> the flag for it
TRIALS = 200  # per task and length, at least
# A run that is already in the folder is used if it differs only where a resumed run may, except in two options: another
# eval_every gives its curve other points, and bf16 against fp32 is a difference beyond the scheme.
MAY_DIFFER_HERE = {**MAY_DIFFER, "run": MAY_DIFFER["run"] - {"eval_every", "precision"}}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the comparison that the command line asks for; returns its summary."""
    parser = make_parser()
    given = parse_explicit(argv, parser)
    if start := given.get("run.init_from"):
        raise BadInput(f"--run.init_from {start}: its weights fit one scheme only; fine-tune it with train.py")
    asked, *configs = parse_run(argv, parser, given.get("schemes") or parser.get_default("schemes"))
    refuse_bad_options(asked, given, parser)
    out, slurm = Path(asked.out), SlurmConfig(**vars(asked.slurm))
    launcher = Launcher(slurm, out) if asked.launcher else None
    with called(SET_HERE), own(out) as take:
        try:
            jobs, at_once = plan_jobs(asked, *configs)
        except ValueError as error:
            raise BadInput(parser.explain(error)) from error
        wait_for_orphans(jobs)
        waiting = [job for job in jobs if not is_finished(job)]
        accepted = [refuse_impossible(job, on_cluster=bool(launcher)) for job in waiting]
        # Prepared once, before anything starts, so that a problem with the text is reported now.
        corpus = data.load(jobs[0].data, jobs[0].run.seed, jobs[0].run.batch_size, jobs[0].model.seq_len)
        fit_vocabulary(jobs[0].model, corpus)
        for run_ in filter(None, accepted):
            run_.complete_model_config(corpus, min(at_once, len(waiting)))
        take()
        names, done = ", ".join(job.run.name for job in jobs), len(jobs) - len(waiting)
        before = f"; {done} finished before" if done else ""
        print(f"{len(jobs)} runs of {jobs[0].run.steps} steps ({names}), {at_once} at a time{before}", flush=True)
        print(corpus.describe(), flush=True)
        early = EarlyReport(jobs, out)
        if launcher and waiting:
            launcher.open()
            run_jobs([begin_job(job, corpus) for job in waiting], at_once, partial(launcher.start, work), early.renew)
        elif at_once == 1:
            run_here(waiting, work)
        else:
            run_jobs(waiting, at_once, partial(ProcessJob, work), early.renew)
        return report.write_report(jobs, out)


def make_parser() -> Parser:
    """The command line of compare.py: its own options and all of train.py's."""
    parser = make_run_parser("compare.py", __doc__)
    parser.essential = parser.essential - {*SET_HERE, "run.init_from"}
    default = [name for name, scheme in SCHEMES.items() if scheme.in_comparison]
    parser.add_argument("--schemes", type=str, nargs="+", default=default, help="which to compare")
    parser.add_argument("--seeds", type=Seed, nargs="+", default=[0], help="one run per scheme and seed")
    parser.add_argument(
        "--jobs", type=AtLeast1 | None, default=None, help="runs at a time; if not given, one per core or scheme"
    )
    parser.add_argument(
        "--launcher", type=Literal["slurm"] | None, default=None, help="slurm: runs are jobs of a cluster"
    )
    parser.add_class_arguments(SlurmConfig, "slurm")
    parser.add_argument("--out", type=str, default="runs/compare", help="folder of the runs, pictures and report")
    multiples, what = [1 / 4, 1 / 2, 1, 2, 4, 8], "context lengths to score, in trained lengths"
    parser.add_argument("--multiples", type=Multiple, nargs="+", default=multiples, help=what)
    parser.set_defaults({"model.position": "none"})  # fits any shape; plan_jobs checks the schemes that are compared
    return parser


def refuse_bad_options(asked: Any, given: Any, parser: Parser) -> None:
    """Raise BadInput for options that mean nothing here or that a comparison sets itself."""
    if given.get("slurm") and not asked.launcher:
        raise BadInput(f"--slurm.{next(iter(vars(given.slurm)))} does nothing without --launcher slurm")
    if not asked.out:
        raise BadInput("--out '' must name a folder")
    refuse_unknown("schemes", asked.schemes, SCHEMES)
    for name, instead in SET_HERE.items():
        if asked[name] != parser.get_default(name):
            raise BadInput(f"--{name} is set by the comparison for each run: use --{instead}")


def plan_jobs(
    asked: Any, data_config: data.DataConfig, model_config: ModelConfig, run_config: train.RunConfig
) -> tuple[list[Job], int]:
    """The jobs of a comparison, and how many of them run at a time.

    Raises:
        ValueError: for a model that one of the schemes does not fit.
    """
    lengths = sorted({max(1, int(multiple * model_config.seq_len)) for multiple in [*asked.multiples, 1]})
    seeds, schemes = dict.fromkeys(asked.seeds), dict.fromkeys(asked.schemes)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_cluster = bool(asked.launcher)
    default = sys.maxsize if on_cluster else max(cores, len(schemes))  # so that all schemes advance side by side
    at_once = min(asked.jobs or default, len(schemes) * len(seeds))
    if not on_cluster and devices.pick_device(run_config.device).type != "cpu" and asked.jobs is None:
        at_once = 1  # they share one accelerator
    share = asked.slurm.cpus if on_cluster else max(1, cores // at_once) if at_once > 1 else None
    jobs = []
    for seed in seeds:
        for scheme in schemes:
            name = f"{scheme}-seed{seed}"
            own = {"seed": seed, "name": name, "out": str(Path(asked.out) / name)}
            run_ = replace(run_config, **own, threads=run_config.threads or share)
            jobs.append(Job(lengths, data_config, replace(model_config, position=scheme), run_))
    return jobs, at_once


def is_finished(job: Job) -> bool:
    """Whether a job's folder already holds its finished and measured run.

    Raises:
        BadInput: if it holds another run that may not be replaced.
    """
    if job.run.overwrite:
        return False
    finished = read_result(job.folder).get("status") == "finished"
    configs = {"data": job.data, "model": job.model, "run": job.run}
    if (finished or (job.folder / "config.yaml").exists()) and (
        found := find_differences(job.folder, configs, MAY_DIFFER_HERE)
    ):
        raise BadInput(
            f"--out {job.folder.parent}: the {'' if finished else 'unfinished '}run {job.run.name} there has "
            f"{'; '.join(found)}: choose another --out, or --run.overwrite true"
        )
    return is_trained(job) and list(read_lengths(job)) == [str(length) for length in job.lengths]


def refuse_impossible(job: Job, on_cluster: bool) -> Run | None:
    """Raise BadInput for a job whose run would be refused, before any job starts or leaves a log.

    The run that is returned can tell whether memory will hold it, once the text is there. On a cluster, devices and
    memory are another machine's; and a finished run has been accepted before.
    """
    if not job.run.overwrite and read_result(job.folder).get("status") == "finished":
        return None
    elsewhere = {"device": "cpu", "precision": "fp32", "compile": False} if on_cluster else {}
    run_ = Run(job.data, job.model, replace(job.run, **elsewhere, resume=not job.run.overwrite))
    return None if on_cluster else run_


def begin_job(job: Job, corpus: data.Corpus) -> Job:
    """Clear the folder of a job that is to be overwritten, so that the job resumes if it is started again."""
    if not job.run.overwrite:
        return job
    configs = {"data": job.data, "model": fit_vocabulary(job.model, corpus), "run": job.run}
    RunFolder(configs).close()
    return replace(job, run=replace(job.run, overwrite=False))


def work(job: Job) -> None:
    """Train a job's run, unless that is done, and measure it; measured.json, written last, says on which weights."""
    load_plugins(job.plugins)
    if job.run.threads:
        torch.set_num_threads(job.run.threads)
    if job.run.overwrite or not is_trained(job):  # a finished run whose weights are damaged is made again
        train.train(job.data, job.model, replace(job.run, resume=not job.run.overwrite))
    (job.folder / "measured.json").unlink(missing_ok=True)
    device, measured = devices.pick_device(job.run.device), {"weights_sha256": weights_sha256(job.folder)}
    _, autocast = devices.pick_precision(job.run.precision, device)
    model = load_finished_run(job.folder, str(device)).model
    corpus = data.load(job.data, job.run.seed, job.run.batch_size, job.model.seq_len)
    if isinstance(corpus, TaskCorpus):
        score = partial(score_targets, model, device=device, autocast=autocast)
        losses = measure_tasks(job, corpus, score)
    else:
        losses = measure_loss_by_length(model, corpus, "validation", job.lengths, device, autocast)
    write_whole(job.folder / "lengths.json", json.dumps(losses, indent=2) + "\n")
    write_whole(job.folder / "measured.json", json.dumps(measured, indent=2) + "\n")


def measure_tasks(job: Job, corpus: TaskCorpus, score: Callable[[Tensor, Tensor], Tensor]) -> dict[int, float | None]:
    """Write a job's accuracy.json; returns the mean loss over all tasks by length.

    Both are None at lengths past the end of learned positions, or too short for an episode.
    """
    rows = []
    for task in corpus.tasks:
        for length in job.lengths:
            cells = empty_rows()
            if corpus.least <= length <= corpus.longest("validation"):
                cells = measure_accuracy(corpus, task, "validation", length, TRIALS, score)
            rows += [{"task": task, "length": length, **cell} for cell in cells]
    write_whole(job.folder / "accuracy.json", json.dumps(rows, indent=2) + "\n")
    losses = dict.fromkeys(job.lengths)
    for length, whole in group_by((row for row in rows if row["depth"] is None and row["tokens"]), "length").items():
        losses[length] = sum(row["loss"] * row["tokens"] for row in whole) / sum(row["tokens"] for row in whole)
    return losses


if __name__ == "__main__":
    import compare  # itself, by the name under which a job on another machine finds what is sent there

    run_main(compare.main)
