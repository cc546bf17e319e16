"""Tables and pictures of what evaluate.py measures."""

from pathlib import Path
from typing import Any

from harness.pictures import plotting
from harness.retrieval import heat_map, shown_depth
from harness.tables import markdown

STYLE = {  # one look per scaling, told apart without colour by dash and marker; None: a scheme that does not rotate
    None: ("#56B4E9", "-", "o"),
    "none": ("#999999", (0, (1, 1)), "x"),
    "linear": ("#E69F00", "--", "s"),
    "ntk": ("#009E73", "-.", "^"),
    "dynamic": ("#0072B2", (0, (5, 1, 1, 1, 1, 1)), "D"),
    "yarn": ("#D55E00", "-", "o"),
    "longrope": ("#CC79A7", ":", "v"),
    "llama3": ("#56B4E9", (0, (5, 1)), "P"),
    "proportional": ("#F0E442", (0, (3, 1, 1, 1)), "*"),
}


def tables(results: list[dict[str, Any]], scheme: str, trained: int) -> list[str]:
    """The figures as Markdown: a table a protocol, for by-position one a length; differences are to the crop."""
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
        for scaling in dict.fromkeys(row["scaling"] for row in rows):
            mine = [row for row in rows if row["scaling"] == scaling]
            factors = {row["factor"] for row in mine}
            factor = "" if factors == {None} else "auto" if len(factors) > 1 else f"{factors.pop():g}"
            losses = [f"{row['loss']:.3f} ({row['loss'] - row['crop_loss']:+.3f})" for row in mine]
            table.append([scaling or scheme, factor, *losses])
        what = "tokens before the target" if title.startswith("by-position") else "tokens of context"
        lines += [f"{title}: loss in nats per token by {what}, in brackets against the crop", ""]
        lines += [*markdown(table), ""]
    return lines


def retrieval_tables(results: list[dict[str, Any]], scheme: str, trained: int) -> list[str]:
    """Accuracies as Markdown, a table a task: all answers, then by the quarter in which what is asked for stands."""

    def cells(rows: list[dict[str, Any]], name: str) -> list[str]:
        return ["n/a" if row[name] is None else f"{row[name]:.3f}" for row in rows]

    lines = []
    for task in dict.fromkeys(row["task"] for row in results):
        of_task = [row for row in results if row["task"] == task]
        scalings = list(dict.fromkeys(row["scaling"] for row in of_task))
        table = [["scaling" if scalings[0] else "scheme", "where", *dict.fromkeys(str(r["length"]) for r in of_task)]]
        crop = [row for row in of_task if row["depth"] is None and row["scaling"] == scalings[0]]
        table.append([f"cropped to {trained}", "all", *cells(crop, "crop_accuracy")])
        for scaling in scalings:
            mine = [row for row in of_task if row["scaling"] == scaling]
            whole = [row for row in mine if row["depth"] is None]
            table.append([scaling or scheme, "all", *cells(whole, "accuracy")])
            table.append(["", "token by token", *cells(whole, "token_accuracy")])
            for depth in dict.fromkeys(row["depth"] for row in mine if row["depth"] is not None):
                rows = [row for row in mine if row["depth"] == depth]
                table.append(["", shown_depth(depth), *cells(rows, "accuracy")])
        trials = min(row["trials"] for row in of_task if row["trials"] is not None)
        what = f"part of all answers that are right as a whole, by tokens of context; {trials} trials or more a cell"
        lines += [f"{task}: {what}", "", *markdown(table), ""]
    return lines


def draw_retrieval(results: list[dict[str, Any]], scheme: str, trained: int, path: Path) -> None:
    """Heat maps, a column a task and a row a scaling: accuracy by length and by quarter of what is asked for."""
    panels = []
    for scaling in dict.fromkeys(row["scaling"] for row in results):
        panels.append([])
        for task in dict.fromkeys(row["task"] for row in results):
            rows = [row for row in results if (row["task"], row["scaling"]) == (task, scaling)]
            cells = {(shown_depth(row["depth"]), row["length"]): row["accuracy"] for row in rows}
            panels[-1].append((f"{task}, {scaling or scheme}", cells))
    heat_map(panels, trained, path)


def draw(results: list[dict[str, Any]], scheme: str, trained: int, path: Path) -> None:
    """A panel a protocol: loss against context for every scaling and the crop. By-position: the longest length."""
    plt = plotting()
    protocols = list(dict.fromkeys(row["protocol"] for row in results))
    figure, axes = plt.subplots(
        1, len(protocols), figsize=(5.5 * len(protocols), 4.4), layout="constrained", squeeze=False
    )
    longest = max(row["length"] for row in results)
    for axis, protocol in zip(axes[0], protocols, strict=True):
        by_position = protocol == "by-position"
        rows = [row for row in results if row["protocol"] == protocol]
        rows = [row | {"x": row["positions"][1] if by_position else row["length"]} for row in rows]
        rows = [row for row in rows if not by_position or row["length"] == longest]
        crops = {row["x"]: row["crop_loss"] for row in rows}
        axis.plot(list(crops), list(crops.values()), color="black", linewidth=1, label=f"cropped to {trained}")
        for scaling in dict.fromkeys(row["scaling"] for row in rows):
            color, dash, marker = STYLE[scaling]
            mine = {row["x"]: row["loss"] for row in rows if row["scaling"] == scaling}
            look = {"color": color, "linestyle": dash, "marker": marker, "markersize": 4, "linewidth": 1.6}
            axis.plot(list(mine), list(mine.values()), **look, label=scaling or scheme)
        axis.axvline(trained, color="black", linewidth=0.8, linestyle=":")  # the trained length
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(crops), [str(x) for x in crops], fontsize=8)
        axis.minorticks_off()
        axis.set_xlabel(f"tokens before the target, windows of {longest}" if by_position else "tokens of context")
        axis.set(ylabel="loss, nats per token", title=protocol)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
