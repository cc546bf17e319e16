"""Which base should rope have, inside the trained length and past it?

    python -m experiments.bases      measure what is missing, and write the page; --measure false only writes it

Rope is trained from the start with each base, over three seeds on text and one on tasks. Section of results/RESULTS.md.
"""

import harness.stops  # first: the rest takes seconds to import, and Ctrl-C ends even that without a traceback

import math

import evaluate
import train
from harness import pages
from harness.measurements import SEEDS, TASKS_TRAINED, TRAINED, Measurement, TrainedRun, run_experiment, tasks_run
from harness.messages import run_main
from harness.pages import Rows, accuracy_at, format_losses, load_rows, select
from harness.tables import format_mean, markdown
from model import ModelConfig
from rope import RopeConfig, frequencies

BASES = [100, 1000, 1_000_000]  # beside 10,000, the default, which experiments/lengths.py and retrieval.py measure


def list_measurements() -> list[Measurement]:
    """Loss by length of every base and seed, and retrieval of every base."""
    found = []
    for base in BASES:
        for seed in SEEDS:
            options = ("--model.position", "rope", "--model.rope.base", str(base), "--run.seed", str(seed))
            one = TrainedRun(f"base-{base}-seed{seed}", options)
            found.append(Measurement("bases", one.name, one, {"base": base, "seed": seed}))
        one = tasks_run("rope", f"base-{base}", "--model.rope.base", str(base))
        found.append(Measurement("bases-retrieval", one.name, one, {"base": base, "seed": 0}, ()))
    return found


def table(rows: Rows, retrieval: Rows) -> str:
    """Loss by length, differences from base 10,000 seed by seed, and retrieval inside and past the trained length."""
    differences, inside_and_past = ("512", "1024", "2048"), (TASKS_TRAINED, 2 * TASKS_TRAINED)
    head = ["base", "pairs that turn once", "seeds", "bits per byte", *(f"at {n}" for n in rows[0]["loss_by_length"])]
    head += [f"minus 10,000 at {n}" for n in differences] + [f"retrieval at {n}" for n in inside_and_past]
    lines = [head]
    for base in sorted({row["base"] for row in rows}):
        mine, answers = select(rows, base=base), select(retrieval, base=base)
        theta, _ = frequencies(RopeConfig(base=base), ModelConfig().d_head, TRAINED)  # (D_rot/2,)
        turning = f"{int((theta * TRAINED >= 2 * math.pi).sum())} of {len(theta)}"
        line = [f"{base:,}", turning, str(len(mine)), format_mean(row["bits_per_byte"] for row in mine)]
        line += format_losses(mine, select(rows, base=10_000), differences)
        lines.append(
            [*line, *(format_mean([accuracy_at(answers[0], n)], 2) if answers else "" for n in inside_and_past)]
        )
    return "\n".join(markdown(lines))


def load_bases(part: str, default: str) -> Rows:
    """The measurements of a part, and those of base 10,000 from the part of another experiment."""
    return [row | {"base": 10_000} for row in select(load_rows(default), scheme="rope")] + load_rows(part)


def section() -> str:
    """The part of results/RESULTS.md that is made from the measurements."""
    rows, retrieval = load_bases("bases", "schemes"), load_bases("bases-retrieval", "retrieval")
    return f"""\
{table(rows, retrieval)}

{pages.describe_machines([*rows, *retrieval])}"""


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing, and write the page."""
    run_experiment(argv, __doc__, list_measurements(), train.main, evaluate.main)
    pages.replace_section("experiments/bases.py", section())


if __name__ == "__main__":
    run_main(main)
