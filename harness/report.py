"""The summary of a comparison (summary.json), and the tables, sentences, pictures and report that are made from it."""

import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

from harness.files import write_whole
from harness.folder import MAY_DIFFER
from harness.jobs import FIGURES, SHARED, Job, is_trained, read_lengths
from harness.messages import BadInput, RunFailed
from harness.pictures import Line, draw_by_length, draw_heat_maps, frame_lines, picture
from harness.provenance import commit, versions
from harness.ranges import Above0, AtLeast0, Count, LossByLength, Seed, read_section
from harness.runs import read_accuracy, read_json, read_metrics, read_result, weights_sha256
from harness.tables import code, format_mean, group_by, interval, markdown
from model import ModelConfig
from positions import SCHEMES


class Best(TypedDict):
    """A scheme's best run of a sweep; it has more figures."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    bits_per_byte: AtLeast0
    learning_rate: Above0


class Sections(TypedDict):
    """Options by section."""

    data: dict[str, Any]
    model: dict[str, Any]
    run: dict[str, Any]


class Sweep(TypedDict):
    """What results/learning_rate.json says, as far as a report needs it."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    settings: Sections
    best: dict[str, Best]


class Compared(TypedDict):
    """A run of a summary.json, as far as its tables need it."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    scheme: str
    seed: Seed
    val_loss: AtLeast0
    test_loss: AtLeast0
    bits_per_byte: AtLeast0 | None
    position_parameters: Count
    precision: Literal["fp32", "bf16"]
    loss_by_length: Annotated[LossByLength, Field(min_length=1)]


class Summary(TypedDict):
    """A summary.json, as far as its tables need it."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    runs: Annotated[list[Compared], Field(min_length=1)]
    config: Sections
    versions: dict[str, str]
    commit: str | None


SWEEP, SUMMARY = TypeAdapter(Sweep), TypeAdapter(Summary)
Curves = dict[str, dict[int, list[float]]]  # scheme -> step -> the losses of its runs
BEST_RATES = Path(__file__).parents[1] / "results" / "learning_rate.json"


def summarise(jobs: list[Job]) -> dict[str, Any]:
    """All figures of a comparison, which become its summary.json.

    Raises:
        BadInput: if runs of one seed started from different weights or trained on different batches.
        RunFailed: if a run is no longer there, or not as it was left.
    """
    runs = []
    for job in jobs:
        if not is_trained(job) or not (losses := read_lengths(job)):
            raise RunFailed(f"{job.folder} is not as its job has left it: another program has changed it meanwhile")
        result = read_result(job.folder)
        run_ = {"scheme": job.model.position, "seed": job.run.seed, **{name: result[name] for name in FIGURES}}
        run_ |= {"bits_per_byte": result["bits_per_byte"], "learning_rate": job.run.learning_rate}
        run_ |= {"loss_by_length": losses}
        run_["weights_sha256"] = weights_sha256(job.folder)  # of what all these figures were measured on
        if job.data.corpus.startswith("task:"):
            rows = read_accuracy(job.folder)
            by_task = group_by((row for row in rows if row["depth"] is None), "task")
            accuracy = {task: {str(row["length"]): row["accuracy"] for row in of} for task, of in by_task.items()}
            run_ |= {"accuracy_by_length": accuracy, "accuracy": rows}
        runs.append(run_)
        first = next(other for other in runs if other["seed"] == job.run.seed)
        for name, what in SHARED.items():
            if run_[name] != first[name]:
                names = f"{first['scheme']}-seed{job.run.seed} and {job.run.name}"
                hashes = f"{first[name][:12]} and {run_[name][:12]}"
                raise BadInput(f"{names} differ in more than their scheme: their {what} have the hashes {hashes}")
    config = {"data": asdict(jobs[0].data), "model": asdict(jobs[0].model), "run": asdict(jobs[0].run)}
    return {"runs": runs, "config": config, "versions": versions(), "commit": commit()}


def group_by_scheme(runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The runs of each scheme, lowest mean validation loss first."""
    groups = group_by(runs, "scheme")
    return dict(sorted(groups.items(), key=lambda group: mean(r["val_loss"] for r in group[1])))


def is_on_tasks(summary: dict[str, Any]) -> bool:
    """Whether the comparison is on tasks instead of text."""
    return summary["config"]["data"]["corpus"].startswith("task:")


def select_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that two comparisons must share to be comparable: all but scheme, seed and rate."""
    left_out = {"position", "seed", "learning_rate", "eval_windows"}
    return {
        section: {k: v for k, v in values.items() if k not in left_out | MAY_DIFFER[section]}
        for section, values in config.items()
    }


def read_best_rates(summary: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Each scheme's best rate in the committed sweep, if the sweep had this comparison's settings."""
    sweep, ours = read_json(BEST_RATES.parent, BEST_RATES.name, SWEEP), select_settings(summary["config"])
    if sweep is None:
        return {}
    theirs = sweep["settings"]
    try:
        for settings in (ours, theirs):  # under today's names, with the defaults of options added since
            fits_any_shape = settings["model"] | {"position": "none"}
            settings["model"] = asdict(read_section(ModelConfig, fits_any_shape))
    except ValueError:  # an option that is none today, say
        return {}
    same = all(ours[part].get(name, value) == value for part in ours for name, value in theirs[part].items())
    return sweep["best"] if same else {}


# ---- tables and sentences --------------------------------------------------------------------------------------------


def format_losses(summary: dict[str, Any]) -> list[str]:
    """Losses and bits per byte by scheme as a Markdown table."""
    trained = summary["config"]["model"]["seq_len"]
    lengths = list(summary["runs"][0]["loss_by_length"])
    best = read_best_rates(summary)
    head = ["scheme", "bits per byte", "validation loss", "test loss", "added parameters"]
    head += ["bits per byte at its best rate"] * bool(best)
    head += [f"loss at {length}" + (" (trained)" if int(length) == trained else "") for length in lengths]
    rows = [head]
    for scheme, runs in group_by_scheme(summary["runs"]).items():
        row = [scheme, *(format_mean(r[name] for r in runs) for name in ("bits_per_byte", "val_loss", "test_loss"))]
        row.append(f"{runs[0]['position_parameters']:,}")
        if best:
            found = best.get(scheme)
            row.append(f"{found['bits_per_byte']:.3f} ({found['learning_rate']:g})" if found else "")
        row += [format_mean(r["loss_by_length"][length] for r in runs) for length in lengths]
        rows.append(row)
    return markdown(rows)


def format_accuracies(summary: dict[str, Any]) -> list[str]:
    """Accuracy by task, scheme and length as a Markdown table; empty for a comparison on text."""
    if not is_on_tasks(summary):
        return []
    trained, by_length = summary["config"]["model"]["seq_len"], summary["runs"][0]["accuracy_by_length"]
    lengths = list(next(iter(by_length.values())))
    rows = [["task", "scheme", *(f"at {n}" + (" (trained)" if int(n) == trained else "") for n in lengths)]]
    for task in by_length:
        for scheme, runs in group_by_scheme(summary["runs"]).items():
            cells = [format_mean((r["accuracy_by_length"][task][length] for r in runs), 2) for length in lengths]
            rows.append([task, scheme, *cells])
    return markdown(rows)


def describe_findings(summary: dict[str, Any]) -> list[str]:
    """What the losses show, in sentences; none for a comparison on tasks, whose table of accuracies shows it."""
    if is_on_tasks(summary):
        return []
    groups, trained = group_by_scheme(summary["runs"]), summary["config"]["model"]["seq_len"]
    order = ", ".join(f"{scheme} {format_mean(r['bits_per_byte'] for r in runs)}" for scheme, runs in groups.items())
    lines = [f"At the trained length of {trained}, bits per byte from best to worst: {order}."]
    far = list(summary["runs"][0]["loss_by_length"])[-1]
    text_reaches = any(r["loss_by_length"][far] is not None for r in summary["runs"])
    for scheme, runs in groups.items() if int(far) > trained else ():
        losses = [r["loss_by_length"] for r in runs]
        if any(None in (loss[far], loss[str(trained)]) for loss in losses):
            why = f"its positions end at {trained}" if text_reaches else "the validation text is too short"
            lines.append(f"{scheme} cannot be scored at {far} tokens: {why}.")
            continue
        change = [loss[far] - loss[str(trained)] for loss in losses]
        middle, _ = interval(change)
        verdict = "hardly changes" if abs(middle) < 0.02 else "rises" if middle > 0 else "falls"
        by = f"{format_mean(change, sign='+')} nats per token"
        lines.append(f"The loss of {scheme} {verdict} from {trained} to {far} tokens of context: {by}.")
    return lines


# ---- pictures --------------------------------------------------------------------------------------------------------


def read_curves(jobs: list[Job]) -> Curves:
    """Validation losses by scheme and step, one of each run that has got there."""
    curves: Curves = {}
    for job in jobs:
        for event in read_metrics(job.folder):
            if event["split"] == "val" and event["loss"] is not None:
                curves.setdefault(job.model.position, defaultdict(list))[event["step"]].append(event["loss"])
    return curves


def draw_learning(axis: Any, curves: Curves, windows: int) -> None:
    """Validation loss, over so many windows, against steps: a line per scheme, with a band if there are seeds."""
    seeds = max(len(losses) for points in curves.values() for losses in points.values()) if curves else 1
    for scheme, points in curves.items():
        look = SCHEMES[scheme]
        line = Line(look.label, points, look.color, look.dash, look.marker)
        line.draw(axis, list(points), axis.fill_between, alpha=0.15, linewidth=0)
    over = f"mean of {seeds} seeds, band: 95% t-interval" if seeds > 1 else "one seed"
    ylabel = f"validation loss on {windows} windows, nats per token"
    axis.set(xlabel="steps", ylabel=ylabel, title=f"Learning ({over})")
    frame_lines(axis)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, handlelength=4)


def draw_curves(summary: dict[str, Any], jobs: list[Job], path: Path) -> None:
    """Two panels: validation loss against steps, and loss on the same targets against context length."""
    what, title = "the same last tokens", "Same targets, other lengths"
    if is_on_tasks(summary):
        what, title = "answers", "Other lengths"
    curves = read_curves(jobs)
    with picture(path, 1, 2, (11, 4.8)) as ((left, right),):
        lines = []
        for scheme, runs in group_by_scheme(summary["runs"]).items():
            lengths = defaultdict(list)
            for run_ in runs:
                for length, loss in run_["loss_by_length"].items():
                    if loss is not None:
                        lengths[int(length)].append(loss)
            look = SCHEMES[scheme]
            lines.append(Line(look.label, lengths, look.color, look.dash, look.marker))
        ranked = {scheme: curves.get(scheme, {}) for scheme in group_by_scheme(summary["runs"])}
        draw_learning(left, ranked, summary["config"]["run"]["eval_windows"])
        draw_by_length(right, lines, summary["config"]["model"]["seq_len"])
        right.set(ylabel=f"loss on {what}, nats", title=title)


def draw_accuracies(summary: dict[str, Any], path: Path) -> None:
    """Heat maps, one per task: mean accuracy over seeds by scheme and length."""
    panels = []
    for task in summary["runs"][0]["accuracy_by_length"]:
        cells: dict[tuple[str, int], float | None] = {}
        for scheme, runs in group_by_scheme(summary["runs"]).items():
            for length in runs[0]["accuracy_by_length"][task]:
                values = [run_["accuracy_by_length"][task][length] for run_ in runs]
                cells[scheme, int(length)] = None if None in values else mean(values)
        panels.append((task, cells))
    draw_heat_maps([panels], summary["config"]["model"]["seq_len"], path)


# ---- the files -------------------------------------------------------------------------------------------------------


def write_report(jobs: list[Job], out: Path) -> dict[str, Any]:
    """Write and print what came out of a comparison; returns the summary."""
    summary = summarise(jobs)
    write_whole(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    draw_curves(summary, jobs, out / "curves.png")
    if is_on_tasks(summary):
        draw_accuracies(summary, out / "accuracy.png")
    write_whole(out / "report.md", format_report(summary))
    tables = [*format_losses(summary), "", *format_accuracies(summary)]
    print("\n" + "\n".join([*tables, *describe_findings(summary)]))
    print(f"\nReport: {out / 'report.md'}   Picture: {out / 'curves.png'}   Figures: {out / 'summary.json'}")
    return summary


# ---- the page --------------------------------------------------------------------------------------------------------

ON_TEXT = """\
Bits per byte, validation loss and test loss are measured with the last step's weights on whole splits, in
non-overlapping windows of the trained length. `loss at` columns score the same targets with each context length: the
last {scored} tokens of up to 256 shared windows of the validation split, in nats per token."""
ON_TASKS = """\
![accuracy by scheme and context length, one heat map per task](accuracy.png)

Accuracy is the share of answers that are entirely right: each token is the model's likeliest, given the right tokens
before it (teacher forcing), over at least {trials} trials per cell, the same for all schemes. summary.json also has it
by the place of the source in the context, with the distance in tokens. Losses are nats per token of the answers; bits
per byte have no meaning here."""
LIMIT_ON_TEXT = """\
- A low loss at a long context shows that a model does not fail there, not that it uses the context: alibi, for example,
  attends mostly to near tokens, and scores about the same when the far ones are cut off."""
LIMIT_ON_TASKS = """\
- If a scheme did not learn a task within the trained length, its result says nothing about length: check that first.
  Such tasks are learned abruptly, at a step that differs from seed to seed."""


def format_report(summary: dict[str, Any]) -> str:
    """The comparison as a page."""
    config, runs, on_tasks = summary["config"], summary["runs"], is_on_tasks(summary)
    model, steps, rows = config["model"], config["run"]["steps"], config["run"]["batch_size"]
    better = "retrieves what it has read more reliably" if on_tasks else "predicts text better"
    seeds = len({run_["seed"] for run_ in runs})
    trials = min((row["trials"] for run_ in runs for row in run_.get("accuracy", []) if row["trials"]), default=0)
    scored = min(32, *(int(length) for length in runs[0]["loss_by_length"]))
    explained = ON_TASKS.format(trials=trials) if on_tasks else ON_TEXT.format(scored=scored)
    certainty = "With one seed, nothing here shows how much is chance: `--seeds 0 1 2` gives intervals."
    if seeds > 1:
        certainty = f"Figures are means over {seeds} seeds with 95% t-intervals."
    proof = [["scheme", "seed", "shared first weights", "batches", "parameters", "rate", "seconds", "tokens/s"]]
    for run_ in runs:
        hashes = [f"`{run_[name][:16]}`" for name in ("shared_init_sha256", "batches_sha256")]
        speed = [f"{run_[name]:,.0f}" for name in ("seconds", "tokens_per_second")]
        row = [run_["scheme"], str(run_["seed"]), *hashes, f"{run_['parameters']:,}", f"{run_['learning_rate']:g}"]
        proof.append(row + speed)
    return f"""\
# How should a transformer represent order?

The question: {model["n_layer"]} layers, {model["d_model"]} wide, {model["n_head"]} heads, trained on
{code(config["data"]["corpus"])} for {steps} steps of {rows} x {model["seq_len"]} tokens, once with each of these
position schemes: {", ".join(group_by_scheme(summary["runs"]))}. Which {better}
within the trained length, and which beyond it?

## Results

{chr(10).join([*format_accuracies(summary), *(f"- {line}" for line in describe_findings(summary))])}

{chr(10).join(format_losses(summary))}

{explained} {certainty} All schemes train at the same learning rate, which may suit some of them better than others.

![validation loss against steps, and loss against context length](curves.png)

## Only the scheme differs

Runs with the same seed start from bit-identical shared weights and train on the same batches. The hashes are computed
from what each run used; a comparison whose hashes differ is refused.

{chr(10).join(markdown(proof))}

## What this does not show

- These are small models, short training and one text: at scale the order may differ. Gaps within the trained length are
  known to shrink with more training.
{LIMIT_ON_TASKS if on_tasks else LIMIT_ON_TEXT}
- RoPE is trained and shown with the scaling `{model["rope"]["scaling"]}` alone: others may do better at other lengths.

Made at commit {summary["commit"] or "unknown"} with {", ".join(map(" ".join, summary["versions"].items()))};
{runs[0]["precision"]} on {runs[0]["device"]}, {runs[0]["threads"]} threads per run.
"""
