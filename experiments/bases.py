"""Which base should rope have, inside the trained length and past it?

    python -m experiments.bases                      measure what is missing, and write the page
    python -m experiments.bases --measure false      only write it, from the measurements that exist

Rope is trained from the start with bases from 100 to 1,000,000, over three seeds on text and one on tasks, and measured
as experiments/lengths.py and experiments/retrieval.py measure base 10,000. Writes its section of results/RESULTS.md.
"""

import math
from functools import partial

import evaluate
import train
from harness import measurements, pages
from harness.measurements import SEEDS, TASKS_TRAINED, TRAINED, Measurement, TrainedRun
from harness.messages import run
from harness.pages import Rows, accuracy_at, format_share, paired_differences, select
from harness.tables import format_mean, markdown
from model import ModelConfig
from rope import RopeConfig, frequencies

BASES = [100, 1000, 1_000_000]  # beside 10,000, the default, which the experiments named above measure


def list_measurements() -> list[Measurement]:
    """Loss by length of every base and seed, and retrieval of every base."""
    answers = partial(measurements.measure_by_evaluating, evaluate=evaluate.main, options=())
    found = []
    for seed in SEEDS:
        for base in BASES:
            options = ("--model.position", "rope", "--model.rope.base", str(base), "--run.seed", str(seed))
            one = TrainedRun(f"base-{base}-seed{seed}", options)
            labels = {"base": base, "seed": seed}
            found.append(Measurement("bases", one.name, one, labels, measurements.measure_losses))
    for base in BASES:
        one = measurements.tasks_run("rope", f"base-{base}", "--model.rope.base", str(base))
        found.append(Measurement("bases-retrieval", one.name, one, {"base": base, "seed": 0}, answers))
    return found


def table(rows: Rows, retrieval: Rows) -> str:
    """Loss by length, differences from base 10,000 seed by seed, and retrieval inside and past the trained length."""
    lengths, differences = list(rows[0]["loss_by_length"]), ("512", "1024", "2048")
    inside_and_past, default = (TASKS_TRAINED, 2 * TASKS_TRAINED), select(rows, base=10_000)
    head = ["base", "pairs that turn once", "seeds", "bits per byte", *(f"at {n}" for n in lengths)]
    head += [f"minus 10,000 at {n}" for n in differences] + [f"retrieval at {n}" for n in inside_and_past]
    lines = [head]
    for base in sorted({row["base"] for row in rows}):
        mine, answers = select(rows, base=base), select(retrieval, base=base)
        theta, _ = frequencies(RopeConfig(base=base), ModelConfig().d_head, TRAINED)  # (D_rot/2,)
        turning = f"{int((theta * TRAINED >= 2 * math.pi).sum())} of {len(theta)}"
        line = [f"{base:,}", turning, str(len(mine)), format_mean(row["bits_per_byte"] for row in mine)]
        line += [format_mean(row["loss_by_length"][n] for row in mine) for n in lengths]
        for n in differences:
            found = paired_differences(mine, default, lambda row, n=n: row["loss_by_length"][n])
            line.append("" if base == 10_000 else format_mean(found, sign="+") if found else "n/a")
        lines.append([*line, *(format_share(accuracy_at(answers[0], n)) if answers else "" for n in inside_and_past)])
    return "\n".join(markdown(lines))


def load_bases() -> tuple[Rows, Rows]:
    """Losses and retrieval of every base, those of base 10,000 from the runs of other experiments."""
    return tuple(
        [
            *({**row, "base": 10_000} for row in select(pages.load_rows(default), scheme="rope")),
            *pages.load_rows(part),
        ]
        for default, part in (("schemes", "bases"), ("retrieval", "bases-retrieval"))
    )


def section(rows: Rows, retrieval: Rows) -> str:
    """The experiment's section of results/RESULTS.md."""
    return f"""\
## Bases

Each model was trained from the start with its base. `pairs that turn once` counts the pairs of features that turn at
least once within the trained length of {TRAINED} tokens. Differences are from base 10,000 with the same seed. Retrieval
is the share of answers that are entirely right, averaged over the tasks (one seed).

{table(rows, retrieval)}

{pages.describe_machines([*rows, *retrieval])}"""


def write_pages() -> None:
    pages.replace_section("experiments/bases.py", section(*load_bases()))


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing, and write the page."""
    measurements.run_experiment(argv, __doc__, list_measurements(), train.main, write_pages)


if __name__ == "__main__":
    run(main)
