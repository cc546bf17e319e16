"""Which scheme finds again what it has read, inside the trained length and past it?

    python -m experiments.retrieval      measure what is missing, and write the page; --measure false only writes it

One model per scheme is trained on all tasks at once, and scored at one to eight times the trained length. What was
tried before is in results/TASKS.md. Section of results/RESULTS.md, and docs/retrieval.png.
"""

import harness.stops  # first: the rest takes seconds to import, and Ctrl-C ends even that without a traceback

import evaluate
import train
from harness import pages
from harness.measurements import TASKS_TRAINED, Measurement, run_experiment, tasks_run
from harness.messages import run_main
from harness.pages import Rows, accuracy_at, select
from harness.pictures import draw_heat_maps
from harness.tables import format_mean, markdown
from positions import SCHEMES

STUDIED = ("none", "sinusoidal", "learned", "alibi", "t5", "rope")  # kerple came after the study


def list_measurements() -> list[Measurement]:
    """The accuracy of every scheme by task and length, one seed."""
    runs = {scheme: tasks_run(scheme) for scheme in STUDIED}
    return [Measurement("retrieval", run.name, run, {"scheme": s, "seed": 0}, ()) for s, run in runs.items()]


def by_task(rows: Rows) -> dict[str, dict[tuple[str, int], float | None]]:
    """Accuracy by scheme and length, for each task."""
    schemes = sorted({row["scheme"] for row in rows}, key=list(SCHEMES).index)
    tasks, lengths = (list(dict.fromkeys(cell[key] for cell in rows[0]["results"])) for key in ("task", "length"))
    of_scheme = {scheme: select(rows, scheme=scheme)[0] for scheme in schemes}
    return {task: {(s, n): accuracy_at(of_scheme[s], n, task) for s in schemes for n in lengths} for task in tasks}


def table(rows: Rows) -> str:
    """Accuracy of whole answers by task, scheme and length."""
    accuracy = by_task(rows)
    schemes, lengths = (list(dict.fromkeys(key[i] for key in accuracy["copy"])) for i in (0, 1))
    lines = [["task", "scheme", *(f"at {n}" for n in lengths)]]
    for task, cells in accuracy.items():
        lines += [[task, scheme, *(format_mean([cells[scheme, n]], 2) for n in lengths)] for scheme in schemes]
    return "\n".join(markdown(lines))


def expected(rows: Rows) -> list[list[str]]:
    """What published work leads one to expect of copying past the trained length: (what, verdict, figures)."""
    lines, past = [], 2 * TASKS_TRAINED
    for row in (row for scheme in ("rope", "sinusoidal") for row in select(rows, scheme=scheme)[:1]):
        inside, outside = (accuracy_at(row, length, "copy") for length in (TASKS_TRAINED, past))
        if None not in (inside, outside):
            verdict = pages.REPRODUCED if outside < 0.05 else pages.NOT_REPRODUCED
            verdict = pages.INCONCLUSIVE if inside < 0.5 else verdict
            what = f"copy: {row['scheme']} fails past the trained length (accuracy below 0.05 at {past})"
            lines.append([what, verdict, f"{inside:.2f} at {TASKS_TRAINED}, {outside:.2f} at {past} (one seed)"])
    return lines


def section() -> str:
    """The part of results/RESULTS.md that is made from the measurements."""
    rows = pages.load_rows("retrieval")
    return f"""\
{table(rows)}

{pages.table_of_verdicts(expected(rows))}

{pages.describe_machines(rows)}"""


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing, and write the page and the picture."""
    run_experiment(argv, __doc__, list_measurements(), train.main, evaluate.main)
    pages.replace_section("experiments/retrieval.py", section())
    panels = list(by_task(pages.load_rows("retrieval")).items())
    draw_heat_maps([panels], TASKS_TRAINED, pages.ROOT / "docs" / "retrieval.png")


if __name__ == "__main__":
    run_main(main)
