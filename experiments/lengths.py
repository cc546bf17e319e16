"""How does each scheme fare past the length it was trained at?

    python -m experiments.lengths                      measure what is missing, and write the page and the picture
    python -m experiments.lengths --measure false      only write them, from the measurements that exist

Every scheme is trained at 256 tokens over three seeds, and its loss taken on the same targets with 64 to 4,096 tokens
of context. Writes its section of results/RESULTS.md, and docs/lengths.png.
"""

import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import train
from harness import measurements, pages
from harness.measurements import SEEDS, TRAINED, Measurement
from harness.messages import run
from harness.pages import Rows, judge, paired_differences, select
from harness.pictures import Line, draw_by_length, plotting
from harness.tables import format_mean, markdown
from positions import SCHEMES

Figure = Callable[[dict[str, Any]], float | None]

STUDIED = ("none", "sinusoidal", "learned", "alibi", "t5", "rope")  # kerple came after the study


def list_measurements() -> list[Measurement]:
    """The loss of every scheme and seed by length."""
    runs = {(scheme, seed): measurements.text_run(scheme, seed) for seed in SEEDS for scheme in STUDIED}
    return [
        Measurement("schemes", run.name, run, {"scheme": scheme, "seed": seed}, measurements.measure_losses)
        for (scheme, seed), run in runs.items()
    ]


def loss_at(length: int) -> Figure:
    return lambda row: row["loss_by_length"][str(length)]


def by_scheme(rows: Rows) -> dict[str, Rows]:
    """The rows of each scheme, lowest validation loss first."""
    groups = {scheme: select(rows, scheme=scheme) for scheme in dict.fromkeys(row["scheme"] for row in rows)}
    return dict(sorted(groups.items(), key=lambda group: mean(row["val_loss"] for row in group[1])))


def table(rows: Rows) -> str:
    """Figures inside the trained length, loss by length, and differences from rope seed by seed."""
    lengths = [int(length) for length in rows[0]["loss_by_length"]]
    head = ["scheme", "seeds", "bits per byte", "test loss", *(f"at {n}" for n in lengths)]
    lines = [[*head, "minus rope at 256", "minus rope at 2048"]]
    rope = select(rows, scheme="rope")
    for scheme, mine in by_scheme(rows).items():
        line = [scheme, str(len(mine)), *(format_mean(r[n] for r in mine) for n in ("bits_per_byte", "test_loss"))]
        line += [format_mean(loss_at(n)(r) for r in mine) for n in lengths]
        for n in (256, 2048):
            found = paired_differences(mine, rope, loss_at(n))
            line.append("" if scheme == "rope" else format_mean(found, sign="+") if found else "n/a")
        lines.append(line)
    return "\n".join(markdown(lines))


def steps_to_reach(rows: Rows, fast: str, slow: str) -> list[float]:
    """Steps that one scheme takes to the other's last validation loss, over the other's steps, minus 1; by seed."""
    found = []
    for mine in select(rows, scheme=fast):
        for other in select(rows, scheme=slow, seed=mine["seed"]):
            steps, target = other["curve"][-1]
            reached = next((step for step, loss in mine["curve"] if loss is not None and loss <= target), math.inf)
            found.append(reached / steps - 1)
    return found


def expected(rows: Rows) -> list[list[str]]:
    """What published work leads one to expect of the schemes: (what, verdict, figures)."""
    lines = []

    def lower(a: str, b: str, length: int, where: str) -> None:
        if found := paired_differences(select(rows, scheme=a), select(rows, scheme=b), loss_at(length)):
            lines.append([f"{where}: {a} has a lower loss than {b}", *judge(found)])

    order = [("rope", "t5"), ("alibi", "t5"), ("t5", "sinusoidal"), ("t5", "learned")]
    for a, b in [*order, ("sinusoidal", "none"), ("learned", "none")]:
        lower(a, b, 256, "at the trained length, 256")
    rope, alibi, learned = (select(rows, scheme=name) for name in ("rope", "alibi", "learned"))
    if close := paired_differences(rope, alibi, loss_at(256)):
        verdict, _ = judge([math.copysign(1, mean(close)) * value for value in close], 0.1)
        what = "at the trained length, 256: rope and alibi are within 0.1 nats of each other"
        lines.append([what, verdict, format_mean(close, sign="+")])
    for a, b in (("alibi", "t5"), ("t5", "none"), ("none", "rope"), ("rope", "sinusoidal")):
        lower(a, b, 2048, "at 8 times the trained length, 2,048")
    if alibi:
        change = [loss_at(2048)(row) - loss_at(256)(row) for row in alibi]
        lines.append(["alibi loses at most 0.02 nats from 256 to 2,048", *judge(change, 0.02)])
    if rope:
        change = [loss_at(256)(row) - loss_at(2048)(row) for row in rope]
        lines.append(["rope has a lower loss at 256 than at 2,048", *judge(change)])
    if learned:
        ends = all(loss_at(512)(row) is None for row in learned)
        verdict = [pages.REPRODUCED, "no losses"] if ends else [pages.NOT_REPRODUCED, "has losses"]
        lines.append(["learned has no positions past 256, and so no loss there", *verdict])
    if faster := steps_to_reach(rows, "rope", "learned"):
        never = sum(map(math.isinf, faster))
        verdict = [pages.INCONCLUSIVE, f"not reached in {never} of {len(faster)} seeds"] if never else judge(faster)
        lines.append(["rope reaches the final loss of learned in fewer steps (their ratio minus 1)", *verdict])
    return lines


def draw(rows: Rows, path: Path) -> None:
    """Loss on the same targets against length, a line per scheme."""
    lines = []
    for scheme, mine in by_scheme(rows).items():
        points: dict[int, list[float]] = {}
        for length, loss in ((int(n), loss) for row in mine for n, loss in row["loss_by_length"].items()):
            if loss is not None:
                points.setdefault(length, []).append(loss)
        look = SCHEMES[scheme]
        lines.append(Line(scheme, points, look.color, look.dash, look.marker))
    plt = plotting()
    figure, axis = plt.subplots(figsize=(7, 5.4), layout="constrained")
    draw_by_length(axis, lines, TRAINED)
    axis.set(title="Schemes, trained at 256 tokens", ylabel="loss on the same last tokens, nats per token")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def section(rows: Rows) -> str:
    """The experiment's section of results/RESULTS.md."""
    return f"""\
## Schemes

Each scheme was trained at {TRAINED} tokens. The last two columns are differences from rope with the same seed.

![loss against length of context, a line per scheme](../docs/lengths.png)

{table(rows)}

{pages.table_of_verdicts(expected(rows))}

{pages.describe_machines(rows)}"""


def write_pages() -> None:
    rows = pages.load_rows("schemes")
    pages.replace_section("experiments/lengths.py", section(rows))
    draw(rows, pages.ROOT / "docs" / "lengths.png")


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing, and write the page."""
    measurements.run_experiment(argv, __doc__, list_measurements(), train.main, write_pages)


if __name__ == "__main__":
    run(main)
