"""Tables, sentences, pictures and the report of a comparison, all made from its summary."""

import json
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from harness.folder import MAY_DIFFER
from harness.pictures import draw_heat_maps, frame_lines, plotting
from harness.ranges import with_todays_names
from harness.runs import read_metrics
from harness.tables import format_mean, interval, markdown
from model import ModelConfig
from positions import SCHEMES

TRIALS = 200  # of a task, at least so many a cell
BEST_RATES = Path(__file__).parents[1] / "results" / "learning_rate.json"


def by_scheme(summary: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The runs of each scheme, best validation loss first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run_ in summary["runs"]:
        groups.setdefault(run_["scheme"], []).append(run_)
    return dict(sorted(groups.items(), key=lambda group: mean(r["val_loss"] for r in group[1])))


def complete_model(section: dict[str, Any]) -> dict[str, Any]:
    """A recorded section model under today's names; options that came later than the record are at their defaults."""
    defaults = asdict(ModelConfig())
    return {
        name: defaults.get(name, {}) | value if isinstance(value, dict) else value
        for name, value in with_todays_names(section).items()
    }


def best_rates(summary: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Each scheme's best rate of the committed sweep, if that was made with this comparison's settings."""
    if not BEST_RATES.exists():
        return {}
    sweep, here = json.loads(BEST_RATES.read_text()), settings(summary["config"])
    was = sweep["settings"] | {"model": complete_model(sweep["settings"]["model"])}
    here["model"] = complete_model(here["model"])
    same = all(
        here[section][name] == value
        for section in here
        for name, value in was[section].items()
        if name in here[section]
    )
    return sweep["best"] if same else {}


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """What two comparisons must share for their figures to stand side by side: all but scheme, seed and rate."""
    aside = {"position", "seed", "learning_rate", "eval_windows"}
    return {
        section: {k: v for k, v in values.items() if k not in aside | MAY_DIFFER[section]}
        for section, values in config.items()
    }


def table(summary: dict[str, Any]) -> list[str]:
    """The figures as a Markdown table."""
    trained = summary["config"]["model"]["seq_len"]
    lengths = list(summary["runs"][0]["loss_by_length"])
    best = best_rates(summary)
    head = ["scheme", "bits per byte", "validation loss", "test loss", "added parameters"]
    head += ["bits per byte at its best rate"] * bool(best)
    head += [f"loss at {length}" + (" (trained)" if int(length) == trained else "") for length in lengths]
    rows = [head]
    for scheme, runs in by_scheme(summary).items():
        row = [scheme, *(format_mean(r[name] for r in runs) for name in ("bits_per_byte", "val_loss", "test_loss"))]
        row.append(f"{runs[0]['position_parameters']:,}")
        if best:
            row.append(
                f"{best[scheme]['bits_per_byte']:.3f} ({best[scheme]['learning_rate']:g})" if scheme in best else ""
            )
        row += [format_mean(r["loss_by_length"][length] for r in runs) for length in lengths]
        rows.append(row)
    return markdown(rows)


def on_tasks(summary: dict[str, Any]) -> bool:
    """Whether the comparison is on tasks and not on text."""
    return summary["config"]["data"]["corpus"].startswith("task:")


def accuracy_table(summary: dict[str, Any]) -> list[str]:
    """Accuracy by task, scheme and length as a Markdown table; nothing for a comparison on text."""
    if not on_tasks(summary):
        return []
    trained, by_length = summary["config"]["model"]["seq_len"], summary["runs"][0]["accuracy_by_length"]
    lengths = list(next(iter(by_length.values())))
    rows = [["task", "scheme", *(f"at {n}" + (" (trained)" if int(n) == trained else "") for n in lengths)]]
    for task in by_length:
        for scheme, runs in by_scheme(summary).items():
            cells = [format_mean((r["accuracy_by_length"][task][length] for r in runs), 2) for length in lengths]
            rows.append([task, scheme, *cells])
    return [*markdown(rows), ""]


def task_findings(summary: dict[str, Any]) -> list[str]:
    """What the accuracies say, a sentence a task."""
    trained, by_length = str(summary["config"]["model"]["seq_len"]), summary["runs"][0]["accuracy_by_length"]
    lines = []
    for task, lengths in by_length.items():
        far, parts = list(lengths)[-1], []
        for scheme, runs in by_scheme(summary).items():
            inside, outside = (format_mean((r["accuracy_by_length"][task][n] for r in runs), 2) for n in (trained, far))
            parts.append(f"{scheme} {inside}, {outside}")
        lines.append(f"{task}, whole answers right at {trained} and at {far} tokens: {'; '.join(parts)}.")
    return lines


def findings(summary: dict[str, Any]) -> list[str]:
    """What the figures say, in sentences."""
    if on_tasks(summary):
        return task_findings(summary)
    groups, trained = by_scheme(summary), summary["config"]["model"]["seq_len"]
    lengths = list(summary["runs"][0]["loss_by_length"])
    order = ", ".join(f"{scheme} {format_mean(r['bits_per_byte'] for r in runs)}" for scheme, runs in groups.items())
    lines = [f"At the trained length of {trained}, bits per byte from best to worst: {order}."]
    far = lengths[-1]
    long_enough = any(r["loss_by_length"][far] is not None for r in summary["runs"])  # the text, for this length
    for scheme, runs in groups.items() if int(far) > trained else ():
        change = [
            r["loss_by_length"][far] and r["loss_by_length"][far] - r["loss_by_length"][str(trained)] for r in runs
        ]
        if None in change:
            lines.append(
                f"{scheme} has no loss at {far}: "
                + (f"its positions end at {trained}." if long_enough else "the validation text is too short.")
            )
            continue
        middle, _ = interval(change)
        verdict = "holds" if abs(middle) < 0.02 else "loses" if middle > 0 else "gains"
        lines.append(
            f"{scheme} {verdict} from {trained} to {far} tokens of context: {format_mean(change)} nats a token."
        )
    return lines


def draw(summary: dict[str, Any], path: Path, out: Path) -> None:
    """Two pictures: validation loss against steps, and loss on the same targets against the length of context."""
    plt = plotting()
    trained = summary["config"]["model"]["seq_len"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for scheme, runs in by_scheme(summary).items():
        color, dash, marker, name = (getattr(SCHEMES[scheme], part) for part in ("color", "dash", "marker", "label"))
        look = {"color": color, "linestyle": dash, "marker": marker, "markersize": 5, "linewidth": 1.6, "label": name}
        curves: dict[int, list[float]] = {}
        for run_ in runs:
            for event in read_metrics(out / f"{scheme}-seed{run_['seed']}"):
                if event["split"] == "val" and event["loss"] is not None:
                    curves.setdefault(event["step"], []).append(event["loss"])
        lengths: dict[int, list[float]] = {}
        for run_ in runs:
            for length, loss in run_["loss_by_length"].items():
                if loss is not None:
                    lengths.setdefault(int(length), []).append(loss)
        for axis, points in ((left, curves), (right, lengths)):
            middles, halves = zip(*(interval(values) for values in points.values()), strict=True)
            axis.plot(list(points), middles, **look)
            if None not in halves:
                low, high = ([m + sign * h for m, h in zip(middles, halves, strict=True)] for sign in (-1, 1))
                axis.fill_between(list(points), low, high, color=color, alpha=0.15, linewidth=0)
    seeds, windows = len({run_["seed"] for run_ in summary["runs"]}), summary["config"]["run"]["eval_windows"]
    over = f"mean of {seeds} seeds, band: 95% t-interval" if seeds > 1 else "one seed"
    left.set(xlabel="steps", ylabel=f"validation loss on {windows} windows, nats per token", title=f"Learning ({over})")
    right.axvline(trained, color="black", linewidth=0.8, linestyle=":")
    right.annotate(
        f"trained length {trained}",
        (trained, 0.98),
        xycoords=("data", "axes fraction"),
        ha="right",
        va="top",
        rotation=90,
        fontsize=8,
        xytext=(-3, 0),
        textcoords="offset points",
    )
    right.set_xscale("log", base=2)
    ticks = [int(length) for length in summary["runs"][0]["loss_by_length"]]
    right.set_xticks(ticks, [str(tick) for tick in ticks])
    scored, title = (
        ("answers", "Other lengths") if on_tasks(summary) else ("the same last tokens", "Same targets, other lengths")
    )
    right.set(xlabel="tokens of context", ylabel=f"loss on {scored}, nats", title=title)
    for axis in (left, right):
        frame_lines(axis)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8, handlelength=4.5)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_accuracy(summary: dict[str, Any], path: Path) -> None:
    """Heat maps, one a task: accuracy by scheme and length, means over seeds."""
    panels = []
    for task in summary["runs"][0]["accuracy_by_length"]:
        cells: dict[tuple[str, int], float | None] = {}
        for scheme, runs in by_scheme(summary).items():
            for length in runs[0]["accuracy_by_length"][task]:
                values = [run_["accuracy_by_length"][task][length] for run_ in runs]
                cells[scheme, int(length)] = None if None in values else mean(values)
        panels.append((task, cells))
    draw_heat_maps([panels], summary["config"]["model"]["seq_len"], path)


REPORT = """\
# How should a transformer know order?

The question: {n_layer} layers, {d_model} wide, {n_head} heads, trained on {corpus} for {steps} steps of {rows} x
{trained} tokens, once for each way of knowing order: {schemes}. {question} inside the trained length,
and which past it?

## What came out

{findings}

{table}

{explained} {certainty} {rates}

![validation loss against steps, and loss against context length](curves.png)

## Only the scheme differs

Runs of one seed start from bit-identical shared weights and read the same batches. The hashes are of what each run
really used; a comparison in which they differ is refused.

{proof}

## What this does not show

- Small models, short training, one text: the order at scale may be another. Gaps inside the trained length are known to
  shrink with training.
{limit}
- {scaling}

Made at commit {commit} with {machine}; {how}.
"""

ON_TEXT = {
    "question": "Which predicts text better",
    "explained": """\
Bits per byte, validation and test loss are over whole splits in non-overlapping windows of the trained length, weights
of the last step. `loss at` columns score the same targets, the last {scored} tokens of up to 256 shared windows of
the validation split, under every length of context, in nats per token.""",
    "limit": """\
- A low loss far out shows that a model survives long contexts, not that it uses them: alibi, say, looks at near tokens
  and scores much the same when the far ones are cut off.""",
}

ON_TASKS = {
    "question": "Which fetches what it has read more surely",
    "explained": """\
![accuracy by scheme and length of context, a heat map a task](accuracy.png)

{accuracy}
Accuracy is the part of all answers of which every token is the model's likeliest, each after the right ones before it
(teacher forcing), over at least {trials} trials a cell, the same for all schemes. summary.json has it by where in the
context the source stands, with the distance in tokens, too. Losses are nats per token of the answers; bits per byte
mean nothing here.""",
    "limit": """\
- A scheme that did not learn a task inside the trained length says nothing about length: look there first. Such tasks
  are learned abruptly, and when that happens differs from seed to seed.""",
}


def report(summary: dict[str, Any]) -> str:
    """The comparison as a page."""
    config, runs = summary["config"], summary["runs"]
    model, seeds = config["model"], {run_["seed"] for run_ in runs}
    words = ON_TASKS if on_tasks(summary) else ON_TEXT
    proof = [["scheme", "seed", "shared first weights", "batches", "parameters", "rate", "seconds", "tokens a second"]]
    proof += [
        [
            run_["scheme"],
            str(run_["seed"]),
            *(f"`{run_[name][:16]}`" for name in ("shared_init_sha256", "batches_sha256")),
            f"{run_['parameters']:,}",
            *(f"{run_[name]:g}" for name in ("learning_rate",)),
            *(f"{run_[name]:,.0f}" for name in ("seconds", "tokens_per_second")),
        ]
        for run_ in runs
    ]
    scaling, factor = model["rope"]["scaling"], model["rope"]["factor"]
    factor = f" by {factor:g}" if factor else ""
    return REPORT.format(
        **{name: model[name] for name in ("n_layer", "d_model", "n_head")},
        corpus=config["data"]["corpus"],
        steps=config["run"]["steps"],
        rows=config["run"]["batch_size"],
        trained=model["seq_len"],
        question=words["question"],
        explained=words["explained"].format(
            scored=min(32, *(int(length) for length in runs[0]["loss_by_length"])),
            accuracy="\n".join(accuracy_table(summary)),
            trials=TRIALS,
        ),
        limit=words["limit"],
        schemes=", ".join(by_scheme(summary)),
        scaling="RoPE is shown as trained, without any of the scalings made for longer contexts."
        if scaling == "none"
        else f"RoPE is trained and shown with the scaling {scaling}{factor} alone: others may do better or worse.",
        findings="\n".join(f"- {line}" for line in findings(summary)),
        table="\n".join(table(summary)),
        certainty=f"Figures are means over {len(seeds)} seeds with 95% t-intervals."
        if len(seeds) > 1
        else "There is one seed, so nothing here says how much is luck: `--seeds 0 1 2` gives intervals.",
        rates="All schemes train at one learning rate; "
        + ("a column gives each one's best of the sweep." if best_rates(summary) else "one may do better at another."),
        proof="\n".join(markdown(proof)),
        commit=summary["commit"] or "unknown",
        machine=", ".join(f"{name} {value}" for name, value in summary["versions"].items()),
        how=f"{runs[0]['precision']} on {runs[0]['device']}, {runs[0]['threads']} threads a run",
    )
