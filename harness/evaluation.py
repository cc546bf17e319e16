"""What evaluate.py measures on: a run's corpus; and how it shows what it has measured: tables and pictures."""

from pathlib import Path
from typing import Any

from data import Corpus, load
from harness.pictures import Line, draw_by_length, draw_heat_maps, picture
from harness.preparing import choose_cache
from harness.retrieval import name_quarter
from harness.runs import FinishedRun
from harness.tables import format_mean, group_by, markdown
from harness.tasks import TaskCorpus
from positions import SCHEMES

STYLE = {  # colour, dash and marker of each scaling
    "none": ("#999999", (0, (1, 1)), "x"),
    "linear": ("#E69F00", "--", "s"),
    "ntk": ("#009E73", "-.", "^"),
    "dynamic": ("#0072B2", (0, (5, 1, 1, 1, 1, 1)), "D"),
    "yarn": ("#D55E00", "-", "o"),
    "longrope": ("#CC79A7", ":", "v"),
    "llama3": ("#56B4E9", (0, (5, 1)), "P"),
    "proportional": ("#F0E442", (0, (3, 1, 1, 1)), "*"),
}


def load_corpus(run_: FinishedRun) -> Corpus | TaskCorpus:
    """The corpus that a run was trained on, as it is now. What it raises, see `preparing.choose_cache`, `data.load`."""
    settings, seq_len = run_.settings, run_.model_config.seq_len
    return load(choose_cache(run_.data), settings["seed"], settings["batch_size"], seq_len)


def format_losses(results: list[dict[str, Any]], scheme: str, trained: int) -> list[str]:
    """Losses as Markdown, each with its difference from cropping: a table per protocol; by-position, one per length."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in results:
        by_length = "positions" not in row
        title = row["protocol"] if by_length else f"by-position, windows of {row['length']}"
        column = str(row["length"]) if by_length else "-".join(map(str, dict.fromkeys(row["positions"])))
        groups.setdefault(title, []).append({**row, "column": column})
    lines = []
    for title, rows in groups.items():
        crops = {row["column"]: row["crop_loss"] for row in rows}
        table = [["scaling" if rows[0]["scaling"] else "scheme", "factor", *crops]]
        table.append([f"cropped to {trained}", "", *(f"{loss:.3f}" for loss in crops.values())])
        for scaling, group in group_by(rows, "scaling").items():
            factors = {row["factor"] for row in group}
            factor = "" if factors == {None} else "auto" if len(factors) > 1 else f"{factors.pop():g}"
            losses = [f"{row['loss']:.3f} ({row['loss'] - row['crop_loss']:+.3f})" for row in group]
            table.append([scaling or scheme, factor, *losses])
        what = "number of tokens before the target" if title.startswith("by-position") else "context length"
        lines += [f"{title}: loss in nats per token by {what}; in brackets, the difference from cropping", ""]
        lines += [*markdown(table), ""]
    return lines


def format_accuracies(results: list[dict[str, Any]], scheme: str, trained: int) -> list[str]:
    """Accuracies as Markdown, one table per task: over all answers, then by the quarter that holds the source."""

    def cells(rows: list[dict[str, Any]], name: str) -> list[str]:
        return [format_mean([row[name]]) for row in rows]

    lines = []
    for task, of_task in group_by(results, "task").items():
        scalings = group_by(of_task, "scaling")
        first = next(iter(scalings))
        table = [["scaling" if first else "scheme", "where", *dict.fromkeys(str(row["length"]) for row in of_task)]]
        crop = [row for row in scalings[first] if row["depth"] is None]
        table.append([f"cropped to {trained}", "all", *cells(crop, "crop_accuracy")])
        for scaling, rows in scalings.items():
            by_depth = group_by(rows, "depth")
            whole = by_depth.pop(None)
            table.append([scaling or scheme, "all", *cells(whole, "accuracy")])
            table.append(["", "per token", *cells(whole, "token_accuracy")])
            table += [["", name_quarter(depth), *cells(group, "accuracy")] for depth, group in by_depth.items()]
        trials = min(row["trials"] for row in of_task if row["trials"] is not None)
        what = f"share of answers that are entirely right, by context length; at least {trials} trials per cell"
        lines += [f"{task}: {what}", "", *markdown(table), ""]
    return lines


def draw_accuracies(results: list[dict[str, Any]], scheme: str, trained: int, path: Path) -> None:
    """Heat maps of accuracy by length and quarter: one column per task, one row per scaling."""
    panels = []
    for scaling, of_scaling in group_by(results, "scaling").items():
        panels.append([])
        for task, rows in group_by(of_scaling, "task").items():
            cells = {(name_quarter(row["depth"]), row["length"]): row["accuracy"] for row in rows}
            panels[-1].append((f"{task}, {scaling or scheme}", cells))
    draw_heat_maps(panels, trained, path)


def draw_losses(results: list[dict[str, Any]], scheme: str, trained: int, path: Path) -> None:
    """One panel per protocol: loss by context length, for each scaling and for cropping; by-position, one length."""
    protocols, longest = group_by(results, "protocol"), max(row["length"] for row in results)
    with picture(path, 1, len(protocols), (5.5 * len(protocols), 4.4)) as (axes,):
        for axis, (protocol, rows) in zip(axes, protocols.items(), strict=True):
            by_position = protocol == "by-position"
            rows = [row for row in rows if not by_position or row["length"] == longest]
            rows = [row | {"x": row["positions"][1] if by_position else row["length"]} for row in rows]
            lines = [Line(f"cropped to {trained}", {row["x"]: [row["crop_loss"]] for row in rows}, "black", "-", "")]
            for scaling, group in group_by(rows, "scaling").items():
                own = SCHEMES[scheme]
                label, *style = (scaling, *STYLE[scaling]) if scaling else (own.label, own.color, own.dash, own.marker)
                lines.append(Line(label, {row["x"]: [row["loss"]] for row in group}, *style))
            draw_by_length(axis, lines, trained)
            if by_position:
                axis.set_xlabel(f"tokens before the target, windows of {longest}")
            axis.set(ylabel="loss, nats per token", title=protocol)
