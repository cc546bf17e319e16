"""How does each scheme fare past the length it was trained at?

    python -m experiments.lengths      measure what is missing, and write the page; --measure false only writes it

Every scheme is trained at 256 tokens over three seeds, and its loss taken on the same targets with 64 to 4,096 tokens
of context. Section of results/RESULTS.md, and docs/lengths.png.
"""

import harness.stops  # first: the rest takes seconds to import, and Ctrl-C ends even that without a traceback

import math
from pathlib import Path
from statistics import mean

import evaluate
import train
from harness import pages
from harness.measurements import SEEDS, TRAINED, Measurement, run_experiment, text_run
from harness.messages import run_main
from harness.pages import Figure, Rows, format_losses, judge, judge_pairs, paired_differences, select
from harness.pictures import Line, draw_by_length, picture
from harness.report import group_by_scheme
from harness.tables import format_mean, markdown
from positions import SCHEMES

STUDIED = ("none", "sinusoidal", "learned", "alibi", "t5", "rope")  # kerple came after the study


def list_measurements() -> list[Measurement]:
    """The loss of every scheme and seed by length."""
    runs = {(scheme, seed): text_run(scheme, seed) for seed in SEEDS for scheme in STUDIED}
    return [Measurement("schemes", one.name, one, {"scheme": s, "seed": seed}) for (s, seed), one in runs.items()]


def loss_at(length: int) -> Figure:
    return lambda row: row["loss_by_length"][str(length)]


def table(rows: Rows) -> str:
    """Figures inside the trained length, loss by length, and differences from rope seed by seed."""
    head = ["scheme", "seeds", "bits per byte", "test loss", *(f"at {n}" for n in rows[0]["loss_by_length"])]
    lines = [[*head, "minus rope at 256", "minus rope at 2048"]]
    for scheme, mine in group_by_scheme(rows).items():
        line = [scheme, str(len(mine)), *(format_mean(r[n] for r in mine) for n in ("bits_per_byte", "test_loss"))]
        lines.append(line + format_losses(mine, select(rows, scheme="rope"), ("256", "2048")))
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
    rope, alibi, learned = (select(rows, scheme=scheme) for scheme in ("rope", "alibi", "learned"))
    inside, past = "at the trained length, 256", "at 8 times the trained length, 2,048"
    order = [("rope", "t5"), ("alibi", "t5"), ("t5", "sinusoidal"), ("t5", "learned")]
    order += [("sinusoidal", "none"), ("learned", "none")]
    lines = judge_pairs(inside, rows, "scheme", order, loss_at(256))
    if close := paired_differences(rope, alibi, loss_at(256)):
        what = f"{inside}: rope and alibi are within 0.1 nats of each other"
        [[_, verdict, _]] = judge(what, [math.copysign(1, mean(close)) * value for value in close], 0.1)
        lines.append([what, verdict, format_mean(close, sign="+")])
    order = [("alibi", "t5"), ("t5", "none"), ("none", "rope"), ("rope", "sinusoidal")]
    lines += judge_pairs(past, rows, "scheme", order, loss_at(2048))
    lost = paired_differences(alibi, alibi, loss_at(2048), loss_at(256))
    lines += judge("alibi loses at most 0.02 nats from 256 to 2,048", lost, 0.02)
    gained = paired_differences(rope, rope, loss_at(256), loss_at(2048))
    lines += judge("rope has a lower loss at 256 than at 2,048", gained)
    if learned:
        ends = all(loss_at(512)(row) is None for row in learned)
        verdict = [pages.REPRODUCED, "no losses"] if ends else [pages.NOT_REPRODUCED, "has losses"]
        lines.append(["learned has no positions past 256, and so no loss there", *verdict])
    if faster := steps_to_reach(rows, "rope", "learned"):
        what = "rope reaches the final loss of learned in fewer steps (their ratio minus 1)"
        never = sum(map(math.isinf, faster))
        unclear = [[what, pages.INCONCLUSIVE, f"not reached in {never} of {len(faster)} seeds"]]
        lines += unclear if never else judge(what, faster)
    return lines


def draw(rows: Rows, path: Path) -> None:
    """Loss on the same targets against length, a line per scheme."""
    lines = []
    for scheme, mine in group_by_scheme(rows).items():
        of_length = {n: [row["loss_by_length"][n] for row in mine] for n in mine[0]["loss_by_length"]}
        points = {int(n): losses for n, losses in of_length.items() if None not in losses}
        look = SCHEMES[scheme]
        lines.append(Line(scheme, points, look.color, look.dash, look.marker))
    with picture(path, 1, 1, (7, 5.4), dpi=130) as ((axis,),):
        draw_by_length(axis, lines, TRAINED)
        axis.set(title="Schemes, trained at 256 tokens", ylabel="loss on the same last tokens, nats per token")


def section() -> str:
    """The part of results/RESULTS.md that is made from the measurements."""
    rows = pages.load_rows("schemes")
    return f"""\
{table(rows)}

{pages.table_of_verdicts(expected(rows))}

{pages.describe_machines(rows)}"""


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing, and write the page and the picture."""
    run_experiment(argv, __doc__, list_measurements(), train.main, evaluate.main)
    pages.replace_section("experiments/lengths.py", section())
    draw(pages.load_rows("schemes"), pages.ROOT / "docs" / "lengths.png")


if __name__ == "__main__":
    run_main(main)
