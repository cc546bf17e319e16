"""What do rope's scalings bring past the trained length, as they are and after a short fine-tuning?

    python -m experiments.scalings      measure what is missing, and write the page; --measure false only writes it

The rope runs of experiments/lengths.py and retrieval.py are measured under every scaling, without training (zero-shot)
and after fine-tuning at four times the trained length. Sections of results/RESULTS.md, and docs/scalings.png.
"""

import harness.stops  # first: the rest takes seconds to import, and Ctrl-C ends even that without a traceback

import re
from pathlib import Path

import evaluate
import train
from harness import evaluation, measurements, pages
from harness.measurements import SEEDS, TASKS_TRAINED, TRAINED, Measurement, TrainedRun, tasks_run, text_run
from harness.messages import run_main
from harness.pages import Figure, Rows, accuracy_at, judge, judge_pairs, load_rows, select
from harness.pictures import Line, draw_by_length, picture
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


def in_file_name(label: str) -> str:
    return re.sub(r"\W+", "-", label.replace("_", ""))


def tuned_run(label: str, start: TrainedRun, seq_len: int) -> TrainedRun:
    """A run fine-tuned under a scaling, at a longer length. All of them see the same tokens."""
    options = ("--model.seq_len", str(seq_len), "--run.steps", str(TUNING_STEPS), "--run.batch_size", str(TUNING_ROWS))
    name = start.name.replace("rope", in_file_name(label))
    return TrainedRun(f"tuned-{name}", (*options, *TUNINGS[label].split()), start)


def list_measurements() -> list[Measurement]:
    """Loss and retrieval under every scaling, zero-shot and fine-tuned."""
    learned = tuned_run("learned factors", text_run("rope", 0), TUNED_AT)
    starts = [(text_run("rope", seed), seed, TRAINED, "") for seed in SEEDS]
    starts += [(tasks_run("rope"), 0, TASKS_TRAINED, "-retrieval")]
    found = []
    for start, seed, trained, part in starts:
        lengths = ("--lengths", *(str(n * trained) for n in UP_TO_8))
        for label in TUNINGS:
            one = tuned_run(label, start, 4 * trained)
            found.append(Measurement(f"tuned{part}", one.name, one, {"scaling": label, "seed": seed}, lengths))
        for label, options in SCALINGS.items():
            name = in_file_name(label) + ("" if part else f"-seed{seed}")
            labels, factors = {"scaling": label, "seed": seed}, learned if label == "longrope" else None
            options = (*lengths, *options.split())
            found.append(Measurement(f"zero-shot{part}", name, start, labels, options, factors))
    return found


def labels_of(rows: Rows) -> list[str]:
    return sorted({row["scaling"] for row in rows}, key=ORDER.index)


def loss_at(length: int, name: str = "loss") -> Figure:
    """The loss on the last tokens of a window, or its crop_loss: with the last trained length of tokens alone."""
    return lambda row: next((cell[name] for cell in row["results"] if cell["length"] == length), None)


def losses_over_crop(rows: Rows, label: str, length: int, untuned: Rows) -> list[float]:
    """Losses under a scaling minus that of the untuned run, which sees the last trained length alone; by seed."""
    mine, baseline = select(rows, scaling=label), select(untuned, scaling="none")
    return pages.paired_differences(mine, baseline, loss_at(length), loss_at(length, "crop_loss"))


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
            line += [format_mean([accuracy_at(answers[0], n * TASKS_TRAINED)], 2) if answers else "" for n in multiples]
        lines.append(line)
    if retrieval and rows is untuned:
        shares = [accuracy_at(retrieval[0], n * TASKS_TRAINED, name="crop_accuracy") for n in multiples]
        lines.append(["the baseline", "", *[""] * len(multiples), *(format_mean([share], 2) for share in shares)])
    return "\n".join(markdown(lines))


def expected(zero_shot: Rows, tuned: Rows) -> list[list[str]]:
    """What published work, or an earlier model, leads one to expect of scalings: (what, verdict, figures)."""
    now, later = "zero-shot at 1024", "fine-tuned at 1024"
    lines = judge_pairs(now, zero_shot, "scaling", [("none", "linear")], loss_at(1024))
    lines += judge_pairs("zero-shot at 512", zero_shot, "scaling", [("none", "linear")], loss_at(512))
    order = [("ntk", "none"), ("ntk, factor 16", "none"), ("yarn", "ntk"), ("yarn, beta_fast 8", "yarn")]
    lines += judge_pairs(now, zero_shot, "scaling", order, loss_at(1024))
    for label in ("ntk", "yarn, beta_fast 8"):
        below = [-value for value in losses_over_crop(zero_shot, label, 1024, zero_shot)]
        lines += judge(f"{now}: the baseline has a lower loss than {label}", below)
    for label in ("none", "ntk", "yarn, beta_fast 8"):
        over = losses_over_crop(tuned, label, 1024, zero_shot)
        lines += judge(f"{later}: {label} is at most 0.03 nats above the baseline", over, 0.03)
    order = [("ntk", "linear"), ("yarn, beta_fast 8", "linear")]
    return lines + judge_pairs(later, tuned, "scaling", order, loss_at(1024))


def draw(zero_shot: Rows, tuned: Rows, path: Path) -> None:
    """Loss minus the baseline's against length, a line per scaling: zero-shot beside fine-tuned."""
    with picture(path, 1, 2, (11, 5.4), dpi=130) as (axes,):
        for axis, rows in zip(axes, (zero_shot, tuned), strict=True):
            lines = []
            for label in labels_of(rows):
                over = {n * TRAINED: losses_over_crop(rows, label, n * TRAINED, zero_shot) for n in UP_TO_8}
                scaling = "longrope" if label == "learned factors" else label.split(",")[0]
                color, dash, marker = evaluation.STYLE[scaling]
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


def section() -> str:
    """The part of results/RESULTS.md that is made from the measurements."""
    parts = ("zero-shot", "zero-shot-retrieval", "tuned", "tuned-retrieval")
    zero_shot, answers, tuned, tuned_answers = (load_rows(part) for part in parts)
    return f"""\
{table(zero_shot, answers, (2, 4, 8), zero_shot)}

## Scalings of rope, fine-tuned

The same after {TUNING_STEPS} steps of {TUNING_ROWS} x {TUNED_AT:,} tokens. All runs saw the same tokens; `none` is the
control without scaling. The baseline is the run before fine-tuning, given its last {TRAINED} tokens, on the same
targets.

{table(tuned, tuned_answers, UP_TO_8, zero_shot)}

{pages.table_of_verdicts(expected(zero_shot, tuned))}

{pages.describe_machines([*zero_shot, *answers, *tuned, *tuned_answers])}"""


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing, and write the page and the picture."""
    measurements.run_experiment(argv, __doc__, list_measurements(), train.main, evaluate.main)
    pages.replace_section("experiments/scalings.py", section())
    draw(load_rows("zero-shot"), load_rows("tuned"), pages.ROOT / "docs" / "scalings.png")


if __name__ == "__main__":
    run_main(main)
