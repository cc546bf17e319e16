"""Which scheme finds again what it has read, inside the trained length and past it?

    python -m experiments.retrieval                      measure what is missing, and write the page and the picture
    python -m experiments.retrieval --measure false      only write them, from the measurements that exist

One model per scheme is trained on all tasks at once (harness/tasks.py), and its answers are scored at one to eight
times the trained length. Writes its section of results/RESULTS.md, and docs/retrieval.png. What was tried before is in
results/TASKS.md.
"""

from functools import partial
from pathlib import Path

import evaluate
import train
from harness import measurements, pages
from harness.measurements import TASKS, TASKS_TRAINED, Measurement
from harness.messages import run
from harness.pages import Rows, accuracy_at, format_share, select
from harness.pictures import draw_heat_maps
from harness.tables import markdown
from positions import SCHEMES

STUDIED = ("none", "sinusoidal", "learned", "alibi", "t5", "rope")  # kerple came after the study


def list_measurements() -> list[Measurement]:
    """The accuracy of every scheme by task and length, one seed."""
    measure = partial(measurements.measure_by_evaluating, evaluate=evaluate.main, options=())
    runs = {scheme: measurements.tasks_run(scheme) for scheme in STUDIED}
    return [Measurement("retrieval", run.name, run, {"scheme": s, "seed": 0}, measure) for s, run in runs.items()]


def by_task(rows: Rows) -> dict[str, dict[tuple[str, int], float | None]]:
    """Accuracy by scheme and length, for each task."""
    schemes = sorted({row["scheme"] for row in rows}, key=list(SCHEMES).index)
    tasks, lengths = (list(dict.fromkeys(cell[key] for cell in rows[0]["results"])) for key in ("task", "length"))
    of_scheme = {scheme: select(rows, scheme=scheme)[0] for scheme in schemes}
    return {task: {(s, n): accuracy_at(of_scheme[s], n, task) for s in schemes for n in lengths} for task in tasks}


def table(rows: Rows) -> str:
    """Accuracy of whole answers by task, scheme and length."""
    accuracy = by_task(rows)
    lengths = list(dict.fromkeys(n for _, n in next(iter(accuracy.values()))))
    lines = [["task", "scheme", *(f"at {n}" for n in lengths)]]
    for task, cells in accuracy.items():
        for scheme in dict.fromkeys(scheme for scheme, _ in cells):
            lines.append([task, scheme, *(format_share(cells[scheme, n]) for n in lengths)])
    return "\n".join(markdown(lines))


def expected(rows: Rows) -> list[list[str]]:
    """What published work leads one to expect of copying past the trained length: (what, verdict, figures)."""
    lines, past = [], 2 * TASKS_TRAINED
    for row in (row for scheme in ("rope", "sinusoidal") for row in select(rows, scheme=scheme)[:1]):
        inside, outside = (accuracy_at(row, length, "copy") for length in (TASKS_TRAINED, past))
        if None not in (inside, outside):
            verdict = (
                pages.INCONCLUSIVE if inside < 0.5 else pages.REPRODUCED if outside < 0.05 else pages.NOT_REPRODUCED
            )
            what = f"copy: {row['scheme']} fails past the trained length (accuracy below 0.05 at {past})"
            lines.append([what, verdict, f"{inside:.2f} at {TASKS_TRAINED}, {outside:.2f} at {past} (one seed)"])
    return lines


def draw(rows: Rows, path: Path) -> None:
    """A heat map per task: accuracy by scheme and length."""
    draw_heat_maps([list(by_task(rows).items())], TASKS_TRAINED, path)


def section(rows: Rows) -> str:
    """The experiment's section of results/RESULTS.md."""
    return f"""\
## Retrieval

One model per scheme was trained on all five tasks at once ({TASKS}, episodes of up to {TASKS_TRAINED} tokens).
The table shows the share of answers that are entirely right, over at least 200 trials per cell, one seed.

![accuracy by scheme and length, a heat map per task](../docs/retrieval.png)

{table(rows)}

{pages.table_of_verdicts(expected(rows))}

{pages.describe_machines(rows)}"""


def write_pages() -> None:
    rows = pages.load_rows("retrieval")
    pages.replace_section("experiments/retrieval.py", section(rows))
    draw(rows, pages.ROOT / "docs" / "retrieval.png")


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing, and write the page."""
    measurements.run_experiment(argv, __doc__, list_measurements(), train.main, write_pages)


if __name__ == "__main__":
    run(main)
