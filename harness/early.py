"""The first figures of a comparison while its runs still train: a table and a picture, renewed as they go on.

The final report (report.py) replaces both.
"""

import time
from pathlib import Path
from statistics import mean

from tqdm import tqdm

from harness.files import write_whole
from harness.jobs import Job
from harness.pictures import picture
from harness.report import Curves, draw_learning, read_curves
from harness.tables import format_mean, markdown

EVERY = 20.0  # seconds between two looks, at least
COLUMNS = 8  # of a table, at most: the newest step, and of the others those that halve


class EarlyReport:
    """Writes report.md and curves.png anew whenever every scheme has got to another evaluation."""

    def __init__(self, jobs: list[Job], out: Path) -> None:
        self.jobs, self.out = jobs, out
        self.next, self.seen, self.said = 0.0, 0, 0  # when to look again, losses that are shown, step that was said

    def renew(self) -> None:
        """Look from time to time whether there is something new; say the losses each time steps have doubled."""
        began = time.monotonic()
        if began >= self.next:
            self.look()
            took = time.monotonic() - began  # logs become long: looking takes 2% of the time of a core at most
            self.next = began + max(EVERY, 50 * took)

    def look(self) -> None:
        """Renew the page and the picture, if there are new losses to show."""
        curves = read_shared(self.jobs)
        seen = sum(len(losses) for points in curves.values() for losses in points.values())
        if seen == self.seen:
            return
        self.seen = seen
        with picture(self.out / "curves.png", 1, 1, (6.5, 4.8)) as ((axis,),):
            draw_learning(axis, curves, self.jobs[0].run.eval_windows)
        write_whole(self.out / "report.md", format_early(curves, self.jobs[0].run.steps))
        newest = max(next(iter(curves.values())))
        if newest >= 2 * self.said:
            self.said = newest
            losses = ", ".join(f"{scheme} {mean(points[newest]):.3f}" for scheme, points in rank(curves, newest))
            tqdm.write(f"  validation loss at step {newest}: {losses}   ({self.out / 'report.md'})")


def read_shared(jobs: list[Job]) -> Curves:
    """Validation losses by scheme and step, over those seeds alone of which every scheme has got to the step."""
    by_seed = [read_curves([job for job in jobs if job.run.seed == seed]) for seed in {job.run.seed for job in jobs}]
    shared: Curves = {}
    for curves in by_seed:
        if len(curves) == len({job.model.position for job in jobs}):
            for step in set.intersection(*(set(points) for points in curves.values())):
                for scheme, points in curves.items():
                    shared.setdefault(scheme, {}).setdefault(step, []).extend(points[step])
    return {scheme: dict(sorted(points.items())) for scheme, points in shared.items()}


def rank(curves: Curves, step: int) -> list[tuple[str, dict[int, list[float]]]]:
    """The schemes with their losses, lowest at a step first."""
    return sorted(curves.items(), key=lambda item: mean(item[1][step]))


def format_early(curves: Curves, planned: int) -> str:
    """The page of a comparison that is not finished."""
    steps = list(next(iter(curves.values())))
    shown = [steps[-1]]
    while len(shown) < COLUMNS and (earlier := [step for step in steps if step <= shown[0] / 2]):
        shown.insert(0, earlier[-1])
    rows = [["scheme", *(f"step {step}" for step in shown)]]
    rows += [[scheme, *(format_mean(points[step]) for step in shown)] for scheme, points in rank(curves, steps[-1])]
    return f"""\
# Not finished: {steps[-1]} of {planned} steps

Validation loss, nats per token, lowest first. This page and its picture are renewed while the runs train; the report
replaces them. Early orders change.

{chr(10).join(markdown(rows))}

![validation loss against steps](curves.png)
"""
