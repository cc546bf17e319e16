"""What do rope's scalings bring past the trained length, as they are and after a short fine-tuning?

    python -m experiments.scalings                      measure what is missing, and write the page and the picture
    python -m experiments.scalings --measure false      only write them, from the measurements that exist

The rope runs of experiments/lengths.py and experiments/retrieval.py are measured under every scaling, without training
(zero-shot) and after fine-tuning at four times the trained length. Writes its section of results/RESULTS.md, and
docs/scalings.png.
"""

from functools import partial
from pathlib import Path
from typing import Any

import evaluate
import train
from harness import evaluation, measurements, pages
from harness.measurements import SEEDS, TASKS_TRAINED, TRAINED, Measurement, TrainedRun
from harness.messages import run
from harness.pages import Rows, accuracy_at, format_share, judge, paired_differences, select
from harness.pictures import Line, draw_by_length, plotting
from harness.tables import format_mean, markdown

SCALINGS = {  # label -> options of evaluate.py; without a factor it is the length in use over the trained one
    "none": "",
    "linear": "--rope.scaling linear",
    "ntk": "--rope.scaling ntk",
    "ntk, factor 16": "--rope.scaling ntk --rope.factor 16",  # what 4 times the length needs: see results/SURPRISES.md
    "dynamic": "--rope.scaling dynamic --rope.factor 1",  # it stretches by the length in use already
    "yarn": "--rope.scaling yarn",
    "yarn, beta_fast 8": "--rope.scaling yarn --rope.beta_fast 8",
    "llama3": "--rope.scaling llama3",
    "proportional, 3/4 of the pairs": "--rope.scaling proportional --rope.fraction 0.75 --rope.factor 1",
    "longrope": "--rope.scaling longrope",  # with lists that fine-tuning has learned
}
TUNINGS = {  # label -> options of train.py
    "none": "",
    "linear": "--model.rope.scaling linear --model.rope.factor 4",
    "ntk": "--model.rope.scaling ntk --model.rope.factor 4",
    "dynamic": "--model.rope.scaling dynamic --model.rope.factor 1",
    "yarn": "--model.rope.scaling yarn --model.rope.factor 4",
    "yarn, beta_fast 8": "--model.rope.scaling yarn --model.rope.beta_fast 8 --model.rope.factor 4",
    "llama3": "--model.rope.scaling llama3 --model.rope.factor 4",
    "learned factors": "--model.rope.scaling linear --model.rope.learn_factors true --model.rope.factor 4",
}
ORDER = list(SCALINGS | TUNINGS)
TUNED_AT, TUNING_STEPS, TUNING_ROWS = 4 * TRAINED, 100, 8
UP_TO_8 = (1, 2, 4, 8)  # lengths to measure, in trained lengths


def tuned_run(label: str, start: TrainedRun, name: str, seq_len: int) -> TrainedRun:
    """A run fine-tuned under a scaling, at a longer length. All of them see the same tokens."""
    options = ("--model.seq_len", str(seq_len), "--run.steps", str(TUNING_STEPS), "--run.batch_size", str(TUNING_ROWS))
    return TrainedRun(f"tuned-{name}-seed{start.name[-1]}", (*options, *TUNINGS[label].split()), start)


def list_measurements() -> list[Measurement]:
    """Loss and retrieval under every scaling, zero-shot and fine-tuned."""
    found = []

    def add(part: str, name: str, one: TrainedRun, label: str, seed: int, options: list[str]) -> None:
        lists_of = learned if "longrope" in options else None
        measure = partial(
            measurements.measure_by_evaluating, evaluate=evaluate.main, options=tuple(options), lists_of=lists_of
        )
        found.append(Measurement(part, name, one, {"scaling": label, "seed": seed}, measure))

    def in_file_name(label: str) -> str:
        return label.replace(", ", "-").replace(" ", "-").replace("/", "-").replace("_", "")

    lengths, task_lengths = (
        ["--lengths", *(str(n * trained) for n in UP_TO_8)] for trained in (TRAINED, TASKS_TRAINED)
    )
    learned = tuned_run("learned factors", measurements.text_run("rope", 0), "learned-factors", TUNED_AT)
    tasks = measurements.tasks_run("rope")
    for seed in SEEDS:
        rope = measurements.text_run("rope", seed)
        for label in TUNINGS:
            one = tuned_run(label, rope, in_file_name(label), TUNED_AT)
            add("tuned", one.name, one, label, seed, lengths)
        for label, options in SCALINGS.items():
            add("zero-shot", f"{in_file_name(label)}-seed{seed}", rope, label, seed, [*lengths, *options.split()])
    for label, options in SCALINGS.items():
        add("zero-shot-retrieval", in_file_name(label), tasks, label, 0, options.split())
    for label in TUNINGS:
        one = tuned_run(label, tasks, f"tasks-{in_file_name(label)}", 4 * TASKS_TRAINED)
        add("tuned-retrieval", one.name, one, label, 0, task_lengths)
    return found


# ---- the page --------------------------------------------------------------------------------------------------------


def labels_of(rows: Rows) -> list[str]:
    return sorted({row["scaling"] for row in rows}, key=ORDER.index)


def loss_at(row: dict[str, Any], length: int, name: str = "loss") -> float | None:
    """Loss on the last tokens of a window, or its crop_loss: with the last trained length of tokens alone."""
    return next((cell[name] for cell in row["results"] if cell["length"] == length), None)


def losses_over_crop(rows: Rows, label: str, length: int, untuned: Rows) -> list[float]:
    """Losses under a scaling minus that of the untuned run, which sees the last trained length alone; by seed."""
    crop = {row["seed"]: loss_at(row, length, "crop_loss") for row in select(untuned, scaling="none")}
    losses = [(loss_at(row, length), crop.get(row["seed"])) for row in select(rows, scaling=label)]
    return [loss - baseline for loss, baseline in losses if None not in (loss, baseline)]


def table(rows: Rows, retrieval: Rows, multiples: tuple[int, ...], untuned: Rows) -> str:
    """Loss minus the baseline, the crop_loss of `untuned`, and retrieval, by length in trained lengths."""
    head = ["scaling", "seeds", *(f"loss minus baseline at {n * TRAINED}" for n in multiples)]
    lines = [head + [f"retrieval at {n * TASKS_TRAINED}" for n in multiples if retrieval]]
    for label in labels_of(rows):
        mine, answers = select(rows, scaling=label), select(retrieval, scaling=label)
        line = [label, str(len(mine))]
        for n in multiples:
            found = losses_over_crop(rows, label, n * TRAINED, untuned)
            line.append(format_mean(found, sign="+") if found else "")
        if retrieval:
            line += [format_share(accuracy_at(answers[0], n * TASKS_TRAINED)) if answers else "" for n in multiples]
        lines.append(line)
    if retrieval and rows is untuned:
        shares = [accuracy_at(retrieval[0], n * TASKS_TRAINED, name="crop_accuracy") for n in multiples]
        lines.append(["the baseline", "", *[""] * len(multiples), *map(format_share, shares)])
    return "\n".join(markdown(lines))


def expected(zero_shot: Rows, tuned: Rows) -> list[list[str]]:
    """What published work, or an earlier model, leads one to expect of scalings: (what, verdict, figures)."""
    lines = []

    def lower(where: str, rows: Rows, a: str, b: str, length: int) -> None:
        mine, theirs = select(rows, scaling=a), select(rows, scaling=b)
        if found := paired_differences(mine, theirs, lambda row: loss_at(row, length)):
            lines.append([f"{where} at {length}: {a} has a lower loss than {b}", *judge(found)])

    lower("zero-shot", zero_shot, "none", "linear", 1024)
    lower("zero-shot", zero_shot, "none", "linear", 512)
    for a, b in (("ntk", "none"), ("ntk, factor 16", "none"), ("yarn", "ntk"), ("yarn, beta_fast 8", "yarn")):
        lower("zero-shot", zero_shot, a, b, 1024)
    for label in ("ntk", "yarn, beta_fast 8"):
        if over := losses_over_crop(zero_shot, label, 1024, zero_shot):
            what = f"zero-shot at 1024: the baseline has a lower loss than {label}"
            lines.append([what, *judge([-value for value in over])])
    for label in ("none", "ntk", "yarn, beta_fast 8"):
        if over := losses_over_crop(tuned, label, 1024, zero_shot):
            lines.append([f"fine-tuned at 1024: {label} is at most 0.03 nats above the baseline", *judge(over, 0.03)])
    for label in ("ntk", "yarn, beta_fast 8"):
        lower("fine-tuned", tuned, label, "linear", 1024)
    return lines


def draw(zero_shot: Rows, tuned: Rows, path: Path) -> None:
    """Loss minus the baseline's against length, a line per scaling: zero-shot beside fine-tuned."""
    plt = plotting()
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.4), layout="constrained")
    for axis, rows in zip(axes, (zero_shot, tuned), strict=True):
        lines = []
        for label in labels_of(rows):
            over = {n * TRAINED: losses_over_crop(rows, label, n * TRAINED, zero_shot) for n in UP_TO_8}
            color, dash, marker = evaluation.STYLE["longrope" if label == "learned factors" else label.split(",")[0]]
            if label in ("ntk, factor 16", "yarn, beta_fast 8"):  # beside the same scaling with other options
                color = "#000000"
            lines.append(Line(label, {n: found for n, found in over.items() if found}, color, dash, marker))
        draw_by_length(axis, [line for line in lines if line.points], TRAINED)
        axis.axhline(0, color="black", linewidth=0.8, linestyle=":")
    axes[0].set(title="Scalings of rope, zero-shot", ylabel="loss minus that of the baseline, nats per token")
    axes[1].set_title(f"Scalings of rope, fine-tuned for {TUNING_STEPS} steps at {TUNED_AT}")
    ticks = [-0.1, -0.05, 0, 0.05, 0.1, 0.2, 0.5, 1]  # what tuning gains is a hundredth of what is lost farther out
    axes[1].set_yscale("symlog", linthresh=0.1)
    axes[1].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes[1].set_ylabel("the same, logarithmic above 0.1")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def load_parts() -> list[Rows]:
    return [pages.load_rows(part) for part in ("zero-shot", "zero-shot-retrieval", "tuned", "tuned-retrieval")]


def section(zero_shot: Rows, zero_shot_retrieval: Rows, tuned: Rows, tuned_retrieval: Rows) -> str:
    """The experiment's section of results/RESULTS.md."""
    return f"""\
## Scalings of rope, zero-shot

No weight is trained here. The baseline is the unscaled model, given only the last {TRAINED} tokens of the context. The
table has the loss minus that of the baseline, in nats per token: where it is negative, the context before those tokens
helps. A factor that is not named is the length in use divided by {TRAINED}. `dynamic` has factor 1, since it already
stretches with the length in use. Past {TRAINED} tokens `longrope` uses the factors that the fine-tuned run
`learned factors` has learned (seed 0, at {TUNED_AT:,} tokens), and ones up to there. Retrieval is the share of answers
that are entirely right, averaged over the tasks, for a rope model that was trained on all tasks (one seed,
{TASKS_TRAINED} tokens), under the same scaling and at the same multiples of its trained length.

![loss minus that of the baseline, by length of context, zero-shot and fine-tuned](../docs/scalings.png)

{table(zero_shot, zero_shot_retrieval, (2, 4, 8), zero_shot)}

## Scalings of rope, fine-tuned

The same after {TUNING_STEPS} steps of {TUNING_ROWS} x {TUNED_AT:,} tokens. All runs saw the same tokens; `none` is the
control without scaling. The baseline is the run before fine-tuning, given its last {TRAINED} tokens, on the same
targets.

{table(tuned, tuned_retrieval, UP_TO_8, zero_shot)}

{pages.table_of_verdicts(expected(zero_shot, tuned))}

{pages.describe_machines([*zero_shot, *zero_shot_retrieval, *tuned, *tuned_retrieval])}"""


def write_pages() -> None:
    parts = load_parts()
    pages.replace_section("experiments/scalings.py", section(*parts))
    draw(parts[0], parts[2], pages.ROOT / "docs" / "scalings.png")


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing, and write the page."""
    measurements.run_experiment(argv, __doc__, list_measurements(), train.main, write_pages)


if __name__ == "__main__":
    run(main)
