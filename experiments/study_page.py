"""The pages made from results/data/: RESULTS.md, docs/lengths.png, docs/retrieval.png and a section of docs/lengths.md.

python -m experiments.study --page
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import compare
import evaluate
from experiments.study import (
    BASES,
    SCALINGS,
    SCHEMES,
    TASKS,
    TASKS_TRAINED,
    TRAINED,
    TUNED_AT,
    TUNING_ROWS,
    TUNING_STEPS,
    TUNINGS,
    study,
)
from harness.files import write_whole
from harness.messages import BadInput
from harness.pictures import plotting
from harness.tasks import heat_map
from model import ModelConfig
from rope import RopeConfig, frequencies

HERE = Path(__file__).parents[1] / "results"
ROOT = HERE.parent
MARKS = "<!-- made by experiments/study.py -->", "<!-- end of what experiments/study.py makes -->"
REPRODUCED, NOT, OPEN = "reproduced", "NOT reproduced", "inconclusive at these seeds"

Rows = list[dict[str, Any]]


def load(part: str) -> Rows:
    """The results of a part of the study that are there."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted((HERE / "data" / part).glob("*.json"))]


def interval(values: Iterable[float]) -> str:
    """Mean and 95% t-interval over seeds, signed; a single seed says so by having none."""
    middle, half = compare.interval(values)
    return f"{middle:+.3f}" + (f" ± {half:.3f}" if half is not None else "")


def names(rows: Rows, key: str) -> list[Any]:
    """The values of a label in the order of the study."""
    order = [*SCHEMES, *SCALINGS, *TUNINGS, *sorted([*BASES, 10_000])]
    return sorted({row[key] for row in rows}, key=order.index)


def of(rows: Rows, **labels: Any) -> Rows:
    """The rows with these labels, by seed."""
    found = [row for row in rows if all(row[name] == value for name, value in labels.items())]
    return sorted(found, key=lambda row: row["seed"])


def paired(rows: Rows, others: Rows, value: Callable[[dict[str, Any]], float | None]) -> list[float]:
    """Differences of a figure, rows minus others, seed by seed; without the seeds where either has none."""
    by_seed = {other["seed"]: value(other) for other in others}
    pairs = [(value(row), by_seed.get(row["seed"])) for row in rows]
    return [a - b for a, b in pairs if a is not None and b is not None]


def cell(row: dict[str, Any], length: int) -> dict[str, Any] | None:
    """The fixed-target figures of an evaluated run at one length."""
    return next((r for r in row["results"] if r["length"] == length), None)


def over_crop(row: dict[str, Any], length: int) -> float | None:
    """How much worse than the crop a scaling is, nats per token."""
    figures = cell(row, length)
    return None if figures is None else figures["loss"] - figures["crop_loss"]


def accuracy(row: dict[str, Any], length: int, task: str | None = None, name: str = "accuracy") -> float | None:
    """Accuracy of whole answers at a length, over one task or the mean over all; None where positions have ended."""
    found = [
        r[name] for r in row["results"] if r["length"] == length and r["depth"] is None and task in (None, r["task"])
    ]
    return None if not found or None in found else mean(found)


def share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


# ---- tables ----------------------------------------------------------------------------------------------------------


def schemes_table(rows: Rows) -> list[str]:
    """Six schemes: loss inside, loss by length, paired differences to rope."""
    lengths = list(rows[0]["loss_by_length"])
    near, far = "256", "2048"
    head = ["scheme", "seeds", "bits per byte", "test loss", *(f"at {n}" for n in lengths)]
    table = [[*head, f"minus rope at {near}", f"minus rope at {far}"]]
    rope = of(rows, scheme="rope")
    for scheme in sorted(names(rows, "scheme"), key=lambda s: mean(r["val_loss"] for r in of(rows, scheme=s))):
        mine = of(rows, scheme=scheme)
        row = [scheme, str(len(mine)), *(compare.shown(r[n] for r in mine) for n in ("bits_per_byte", "test_loss"))]
        row += [compare.shown(r["loss_by_length"][n] for r in mine) for n in lengths]
        table.append([*row, *minus(mine, rope, near, far)])
    return evaluate.markdown(table)


def minus(mine: Rows, others: Rows, *lengths: str) -> list[str]:
    """Cells of the paired difference of two lines' losses at some lengths; empty ones for a line beside itself."""
    every = [paired(mine, others, lambda r, n=n: r["loss_by_length"][n]) for n in lengths]
    return [interval(found) if found else "n/a" for found in every] if mine != others else [""] * len(lengths)


def scalings_table(rows: Rows, retrieval: Rows, lengths: list[int], baseline: Rows) -> list[str]:
    """Scalings: loss above the crop baseline and accuracy of retrieval, by length.

    Args:
        rows: the text runs' results.
        retrieval: the task runs' results.
        lengths: in use, tokens; of the task runs, which were trained shorter, as many trained lengths.
        baseline: results whose crop_loss is the baseline's, of untuned runs.
    """
    crop = {(r["seed"], n): cell(r, n)["crop_loss"] for r in baseline for n in lengths}
    fetching = [n * TASKS_TRAINED // TRAINED for n in lengths] if retrieval else []
    table = [["scaling", "seeds", *(f"loss over crop at {n}" for n in lengths)]]
    table[0] += [f"retrieval at {n}" for n in fetching]
    for label in names(rows, "scaling"):
        mine, fetched = of(rows, scaling=label), of(retrieval, scaling=label)
        row = [label, str(len(mine))]
        for n in lengths:
            over = [cell(r, n)["loss"] - crop[r["seed"], n] for r in mine if (r["seed"], n) in crop]
            row.append(interval(over) if over else "")
        row += [share(accuracy(fetched[0], n)) if fetched else "" for n in fetching]
        table.append(row)
    if retrieval and baseline is rows:
        cropped = [share(accuracy(retrieval[0], n, name="crop_accuracy")) for n in fetching]
        table.append(["cropped to the trained length", "", *[""] * len(lengths), *cropped])
    return evaluate.markdown(table)


def bases_table(rows: Rows, retrieval: Rows) -> list[str]:
    """Bases: loss by length, paired differences to the default, and retrieval inside and past the trained length."""
    lengths = list(rows[0]["loss_by_length"])
    differences, near_far = ("512", "1024", "2048"), (TASKS_TRAINED, 2 * TASKS_TRAINED)
    table = [["base", "pairs that turn once", "seeds", "bits per byte", *(f"at {n}" for n in lengths)]]
    table[0] += [f"minus 10,000 at {n}" for n in differences] + [f"retrieval at {n}" for n in near_far]
    d_head, default = ModelConfig().d_head, of(rows, base=10_000)
    for base in names(rows, "base"):
        mine, fetched = of(rows, base=base), of(retrieval, base=base)
        theta, _ = frequencies(RopeConfig(base=base), d_head, TRAINED)  # (D_rot/2,)
        turning = f"{int((theta * TRAINED >= 2 * math.pi).sum())} of {len(theta)}"
        row = [f"{base:,}", turning, str(len(mine)), compare.shown(r["bits_per_byte"] for r in mine)]
        row += [compare.shown(r["loss_by_length"][n] for r in mine) for n in lengths]
        row += minus(mine, default, *differences)
        table.append([*row, *(share(accuracy(fetched[0], n)) if fetched else "" for n in near_far)])
    return evaluate.markdown(table)


def tasks_of(rows: Rows) -> list[str]:
    return list(dict.fromkeys(r["task"] for r in rows[0]["results"]))


def retrieval_table(rows: Rows) -> list[str]:
    """Six schemes: accuracy of whole answers by task and length."""
    lengths = list(dict.fromkeys(r["length"] for r in rows[0]["results"]))
    table = [["task", "scheme", *(f"at {n}" for n in lengths)]]
    for task in tasks_of(rows):
        for scheme in names(rows, "scheme"):
            (mine, *_) = of(rows, scheme=scheme)
            table.append([task, scheme, *(share(accuracy(mine, n, task)) for n in lengths)])
    return evaluate.markdown(table)


# ---- the checker: what REFERENCE expects, and what came out ----------------------------------------------------------


def verdict(differences: list[float], below: float = 0.0) -> tuple[str, str]:
    """Whether paired differences are surely below a bound: the 95% t-interval has to lie on one side of it."""
    middle, half = compare.interval(differences)
    shown = f"{middle:+.3f}" + (f" ± {half:.3f}" if half is not None else " (one seed)")
    if half is None:
        return OPEN, shown
    return (REPRODUCED if middle + half < below else NOT if middle - half > below else OPEN), shown


def expected(schemes: Rows, zero_shot: Rows, tuned: Rows, retrieval: Rows) -> list[list[str]]:
    """Each shape that published work, or the prototype, leads one to expect: shape, verdict, figures."""
    lines = []

    def at(length: int) -> Callable[[dict[str, Any]], float | None]:
        return lambda row: row["loss_by_length"][str(length)]

    def less(what: str, a: str, b: str, length: int, bound: float = 0.0) -> None:
        mine, theirs = of(schemes, scheme=a), of(schemes, scheme=b)
        if found := paired(mine, theirs, at(length)):
            lines.append([what, *verdict(found, bound)])

    lines_of_order = [("rope", "t5"), ("alibi", "t5"), ("t5", "sinusoidal"), ("t5", "learned")]
    for a, b in [*lines_of_order, ("sinusoidal", "none"), ("learned", "none")]:
        less(f"inside (256): {a} below {b}", a, b, 256)
    if close := paired(of(schemes, scheme="rope"), of(schemes, scheme="alibi"), at(256)):
        middle, half = compare.interval(close)
        said = (
            OPEN
            if half is None
            else REPRODUCED
            if abs(middle) + half < 0.1
            else NOT
            if abs(middle) - half > 0.1
            else OPEN
        )
        lines.append(["inside (256): rope and alibi within 0.1 nats", said, interval(close)])
    for a, b in (("alibi", "t5"), ("t5", "none"), ("none", "rope"), ("rope", "sinusoidal")):
        less(f"8 times the length (2048): {a} below {b}", a, b, 2048)
    if change := [at(2048)(r) - at(256)(r) for r in of(schemes, scheme="alibi")]:
        lines.append(["alibi at 2048 not more than 0.02 above 256", *verdict(change, 0.02)])
    if mine := of(schemes, scheme="rope"):
        lines.append(
            [
                "rope at 2048 above rope at 256 (a negative difference)",
                *verdict([at(256)(r) - at(2048)(r) for r in mine]),
            ]
        )
    if of(schemes, scheme="learned"):
        none = all(at(512)(r) is None for r in of(schemes, scheme="learned"))
        lines.append(["learned does not exist past 256", REPRODUCED if none else NOT, "null" if none else "has losses"])
    if faster := steps_to(schemes, "rope", "learned"):
        what = "rope needs fewer steps than learned to learned's last loss (ratio of steps, minus 1)"
        never = sum(map(math.isinf, faster))
        said = (OPEN, f"not reached in {never} of {len(faster)} seeds") if never else verdict(faster)
        lines.append([what, *said])

    def between(what: str, rows: Rows, a: str, b: str, length: int) -> None:
        if found := paired(of(rows, scaling=a), of(rows, scaling=b), lambda r: cell(r, length)["loss"]):
            lines.append([what, *verdict(found)])

    eight = "yarn, beta_fast 8"
    between("zero-shot at 1024: none below linear", zero_shot, "none", "linear", 1024)
    between("zero-shot at 512: none below linear", zero_shot, "none", "linear", 512)
    between("zero-shot at 1024: ntk below none", zero_shot, "ntk", "none", 1024)
    between("zero-shot at 1024: ntk with factor 16 below none", zero_shot, "ntk, factor 16", "none", 1024)
    between("zero-shot at 1024: yarn below ntk", zero_shot, "yarn", "ntk", 1024)
    between("zero-shot at 1024: yarn with beta_fast 8 below yarn with 32", zero_shot, eight, "yarn", 1024)
    for label in ("ntk", eight):
        over = [x for r in of(zero_shot, scaling=label) if (x := over_crop(r, 1024)) is not None]
        if over:
            lines.append(
                [f"zero-shot at 1024: {label} not below the crop (crop minus {label})", *verdict([-x for x in over])]
            )
    crop = {r["seed"]: cell(r, 1024)["crop_loss"] for r in of(zero_shot, scaling="none")}
    for label in ("none", "ntk", eight):
        over = [cell(r, 1024)["loss"] - crop[r["seed"]] for r in of(tuned, scaling=label) if r["seed"] in crop]
        if over:
            lines.append([f"tuned at 1024: {label} within 0.03 of the crop or better", *verdict(over, 0.03)])
    between("tuned at 1024: ntk below linear", tuned, "ntk", "linear", 1024)
    between("tuned at 1024: yarn with beta_fast 8 below linear", tuned, eight, "linear", 1024)
    if retrieval:
        for scheme in ("rope", "sinusoidal"):
            for mine in of(retrieval, scheme=scheme)[:1]:
                n = TASKS_TRAINED
                inside, outside = accuracy(mine, n, "copy"), accuracy(mine, 2 * n, "copy")
                if None in (inside, outside):
                    continue
                said = OPEN if inside < 0.5 else REPRODUCED if outside < 0.05 else NOT
                lines.append(
                    [
                        f"copy: {scheme} does not go past the trained length (below .05 at {2 * n})",
                        said,
                        f"{inside:.2f} inside, {outside:.2f} at {2 * n}, one seed",
                    ]
                )
    return lines


def steps_to(schemes: Rows, fast: str, slow: str) -> list[float]:
    """Steps of one scheme until it has the other's last validation loss, over the other's steps, minus 1; by seed."""
    found = []
    for mine in of(schemes, scheme=fast):
        for other in (row for row in of(schemes, scheme=slow) if row["seed"] == mine["seed"]):
            steps, target = other["curve"][-1]
            reached = next((step for step, loss in mine["curve"] if loss is not None and loss <= target), math.inf)
            found.append(reached / steps - 1)
    return found


# ---- pictures --------------------------------------------------------------------------------------------------------


def draw_lengths(schemes: Rows, zero_shot: Rows, tuned: Rows, path: Path) -> None:
    """Loss on the same targets against length: schemes, then scalings over the crop, as trained and tuned."""
    plt = plotting()
    figure, axes = plt.subplots(1, 3, figsize=(15, 5.4), layout="constrained")
    lengths: dict[Any, set[int]] = {axis: set() for axis in axes}

    def line(
        axis: Any,
        points: dict[int, list[float]],
        look: tuple[Any, ...],
        label: str,
        beside: float,
        hollow: bool = False,
    ) -> None:
        """A line with bars for its intervals, `beside` octaves to the right of where it belongs."""
        color, dash, marker = look
        middles, halves = zip(*(compare.interval(values) for values in points.values()), strict=True)
        face = "white" if hollow else color
        label += " (1 seed)" * all(half is None for half in halves)
        places = [length * 2**beside for length in points]
        axis.plot(places, middles, color=color, linestyle=dash, marker=marker, markerfacecolor=face, label=label)
        if None not in halves:
            edges = [[m + sign * h for m, h in zip(middles, halves, strict=True)] for sign in (-1, 1)]
            axis.vlines(places, *edges, color=color, alpha=0.6, linewidth=1.5)
        lengths[axis] |= set(points)

    def apart(labels: list[str]) -> Iterator[tuple[str, float]]:
        """Labels, each with octaves to stand aside, so that equal lines are seen side by side."""
        for i, label in enumerate(labels):
            yield label, 0.04 * (i - (len(labels) - 1) / 2)

    for scheme, beside in apart(names(schemes, "scheme")):
        points: dict[int, list[float]] = {}
        for row in of(schemes, scheme=scheme):
            for length, loss in row["loss_by_length"].items():
                if loss is not None:
                    points.setdefault(int(length), []).append(loss)
        line(axes[0], points, compare.STYLE[scheme], scheme, beside, scheme in compare.HOLLOW)
    crop = {(r["seed"], x["length"]): x["crop_loss"] for r in of(zero_shot, scaling="none") for x in r["results"]}
    for axis, rows in ((axes[1], zero_shot), (axes[2], tuned)):
        for label, beside in apart(names(rows, "scaling")):
            points = {}
            for row in of(rows, scaling=label):
                for figures in row["results"]:
                    if (row["seed"], figures["length"]) in crop:
                        over = figures["loss"] - crop[row["seed"], figures["length"]]
                        points.setdefault(figures["length"], []).append(over)
            look = evaluate.STYLE[label.split(",")[0] if label != "learned factors" else "longrope"]
            if label in ("ntk, factor 16", "yarn, beta_fast 8"):  # beside the same scaling as it comes
                look = ("#000000", *look[1:])
            if points:
                line(axis, points, look, label, beside)
        axis.axhline(0, color="black", linewidth=0.8, linestyle=":")
    titles = (
        "Schemes as trained",
        "rope, scaled, nothing trained",
        f"rope, scaled and tuned {TUNING_STEPS} steps at {TUNED_AT}",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set_xscale("log", base=2)
        axis.axvline(256, color="black", linewidth=0.8, linestyle=":")
        axis.set_xticks(sorted(lengths[axis]), [str(length) for length in sorted(lengths[axis])])
        axis.set(title=title, xlabel="tokens of context")
        axis.grid(alpha=0.25)
        if axis.get_legend_handles_labels()[0]:
            compare.frame_lines(axis)
            axis.legend(fontsize=8, handlelength=3, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)
    axes[0].set_ylabel("loss on the same last tokens, nats")
    axes[1].set_ylabel("loss above cropping to 256, nats")
    ticks = [-0.1, -0.05, 0, 0.05, 0.1, 0.2, 0.5, 1]  # what tuning gains is a hundredth of what is lost farther out
    axes[2].set_yscale("symlog", linthresh=0.1)
    axes[2].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes[2].set_ylabel("the same, but logarithmic above 0.1")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_retrieval(rows: Rows, path: Path) -> None:
    """A heat map a task: accuracy by scheme and length."""
    panels = []
    for task in tasks_of(rows):
        lengths = list(dict.fromkeys(r["length"] for r in rows[0]["results"]))
        cells = {(s, n): accuracy(of(rows, scheme=s)[0], n, task) for s in names(rows, "scheme") for n in lengths}
        panels.append((task, cells))
    heat_map([panels], TASKS_TRAINED, path)


# ---- pages -----------------------------------------------------------------------------------------------------------


def machines(rows: Rows) -> str:
    """Processors, PyTorch versions, precisions and commits that the results were made with."""
    made = {(r["versions"]["cpu"], r["versions"]["torch"], r["precision"]) for r in rows}
    commits = sorted({(r["commit"] or "unknown")[:10] for r in rows})
    hardware = "; ".join(f"{cpu}, PyTorch {version}, {precision}" for cpu, version, precision in sorted(made))
    return f"{hardware}, one thread a run; commits {', '.join(commits)}"


def progress() -> str:
    """How much of the study there is, a sentence."""
    results = study()[1]
    left: dict[str, int] = {}
    for one in results:
        if not one.file.exists():
            left[one.part] = left.get(one.part, 0) + 1
    if not left:
        return f"All {len(results)} measurements are there."
    missing = ", ".join(f"{count} of {part}" for part, count in left.items())
    return f"{len(results) - sum(left.values())} of {len(results)} measurements are there; missing: {missing}."


def main() -> None:
    """Write the pages from what is there."""
    parts = {name: load(name) for name in ("schemes", "zero-shot", "tuned", "bases", "retrieval")}
    parts |= {name: load(name) for name in ("zero-shot-retrieval", "tuned-retrieval", "bases-retrieval")}
    schemes, zero_shot, tuned = parts["schemes"], parts["zero-shot"], parts["tuned"]
    if not schemes:
        raise BadInput("results/data/schemes is empty: run `make results` first")
    bases = parts["bases"] and [*({**row, "base": 10_000} for row in of(schemes, scheme="rope")), *parts["bases"]]
    fetched = [{**row, "base": 10_000} for row in of(parts["retrieval"], scheme="rope")] + parts["bases-retrieval"]
    checks = expected(schemes, zero_shot, tuned, parts["retrieval"])
    explained = (HERE / "SURPRISES.md").read_text(encoding="utf-8") if (HERE / "SURPRISES.md").exists() else ""

    def part(title: str, text: str, table: list[str]) -> list[str]:
        return [f"## {title}", "", text, "", *table, ""] if table else []

    seeds = (
        "± is the half width of a 95% t-interval over seeds; without it there is one seed, which cannot tell luck. In "
        "pictures it is a bar, cut at the frame, and lines stand side by side so that equal ones are seen."
    )
    page = [
        "# Past the trained length",
        "",
        "Made by `make results` (experiments/study.py) from one JSON file a measurement in results/data/, each with",
        "the command that makes it again. Models of the default size, 256 tokens long, on the King James text. Losses",
        "are nats per token on the same targets, the last 32 tokens of up to 256 shared validation windows: within a",
        "table the same ones, but those of schemes and bases lie in windows of 4,096 tokens and the others' in 2,048.",
        seeds,
        "",
        progress(),
        "",
        "![loss against length for schemes, scalings, and scalings after tuning](../docs/lengths.png)",
        "",
        *part("Schemes", "All as trained at 256, paired by seed.", schemes_table(schemes)),
        *part(
            "Scalings of the rope runs, nothing trained",
            "Loss above the baseline that merely crops to the last 256 tokens; below 0 the far context helps. "
            "Factors are the length in use over 256 where none is named. `longrope` has the lists learned by the "
            "tuned run `learned factors` (seed 0, at 1024) past 256 and ones up to it; `dynamic` has factor 1, "
            "since it stretches by the length in use already. Retrieval is the part of whole answers right, the "
            "mean over the tasks, of the rope run trained on `task:all` (one seed, at 64 tokens) under the same "
            "scaling, at as many times the trained length.",
            zero_shot and scalings_table(zero_shot, parts["zero-shot-retrieval"], [512, 1024, 2048], zero_shot),
        ),
        *part(
            f"The same after {TUNING_STEPS} steps of tuning at {TUNED_AT}",
            f"{TUNING_ROWS} rows a step. Every line has seen the same tokens; `none` is the control without a scaling. "
            "The baseline is the untuned run, cropped to 256, on the same targets.",
            tuned
            and zero_shot
            and scalings_table(tuned, parts["tuned-retrieval"], [256, 512, 1024, 2048], of(zero_shot, scaling="none")),
        ),
        *part(
            "Bases",
            f"Trained from the start at each base. Turns are within {TRAINED} tokens; differences go seed by seed.",
            bases and bases_table(bases, fetched),
        ),
        *part(
            "Retrieval",
            f"One model a scheme, trained on all five tasks at once ({TASKS}, lengths up to {TASKS_TRAINED}): the part "
            "of whole answers that are right, at least 200 trials a cell, one seed.\n\n"
            "![heat maps](../docs/retrieval.png)",
            parts["retrieval"] and retrieval_table(parts["retrieval"]),
        ),
        *part(
            "Expected shapes",
            "What published work and the first prototype lead one to expect, and what came out here. A difference is "
            f"`{REPRODUCED}` when its 95% interval lies wholly on the expected side, `{NOT}` when wholly on the other.",
            evaluate.markdown([["expected", "verdict", "figures"], *checks]),
        ),
        *([explained] if explained else []),
        f"Made with {machines([row for rows in parts.values() for row in rows])}.",
        "",
    ]
    write_whole(HERE / "RESULTS.md", "\n".join(page))
    draw_lengths(schemes, zero_shot, tuned, ROOT / "docs" / "lengths.png")
    if parts["retrieval"]:
        draw_retrieval(parts["retrieval"], ROOT / "docs" / "retrieval.png")
    publish(section(schemes, zero_shot, tuned, parts, checks))
    tally = [f"{sum(line[1] == said for line in checks)} {said}" for said in (REPRODUCED, NOT, OPEN)]
    print("\n".join(evaluate.markdown([["expected", "verdict", "figures"], *checks])))
    print(f"\n{', '.join(tally)}; pages: results/RESULTS.md, docs/lengths.png, docs/lengths.md")


def section(schemes: Rows, zero_shot: Rows, tuned: Rows, parts: dict[str, Rows], checks: list[list[str]]) -> list[str]:
    """What docs/lengths.md says of these results."""
    counts = {said: sum(line[1] == said for line in checks) for said in (REPRODUCED, NOT, OPEN)}
    lines = ["![loss against length for schemes, scalings, and scalings after tuning](lengths.png)", ""]
    lines += [*schemes_table(schemes), ""]
    if zero_shot:
        lines += ["Scalings of the rope runs, nothing trained, nats above merely cropping to the last 256 tokens:", ""]
        lines += [*scalings_table(zero_shot, parts["zero-shot-retrieval"], [512, 1024, 2048], zero_shot), ""]
    if tuned and zero_shot:
        how = f"{TUNING_STEPS} steps of {TUNING_ROWS} x {TUNED_AT} tokens"
        lines += [f"After tuning for {how}, nats above the untuned run cropped to 256:", ""]
        base = of(zero_shot, scaling="none")
        lines += [*scalings_table(tuned, parts["tuned-retrieval"], [256, 512, 1024, 2048], base), ""]
    lines.append(
        f"Of {len(checks)} shapes that published work leads one to expect, {counts[REPRODUCED]} are reproduced, "
        f"{counts[NOT]} are not, {counts[OPEN]} are open at these seeds: "
        "[results/RESULTS.md](../results/RESULTS.md) has them all, and what surprised us. " + progress()
    )
    return lines


def publish(lines: list[str]) -> None:
    """Put the section between its marks in docs/lengths.md."""
    path, (begin, end) = ROOT / "docs" / "lengths.md", MARKS
    text = path.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1:
        raise BadInput(f"docs/lengths.md must have one line {begin} and one line {end}")
    before, rest = text.split(begin)
    write_whole(path, "\n".join([f"{before}{begin}", *lines, f"{end}{rest.split(end)[1]}"]))
