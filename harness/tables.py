"""Figures as tables: Markdown, and means with their intervals over seeds."""

import math
from collections.abc import Iterable
from statistics import mean, stdev
from typing import Any

from harness.messages import one_line


def markdown(rows: list[list[str]]) -> list[str]:
    """Rows, the first of them the head, as the lines of a Markdown table; what stands in a cell stays in it."""
    rows = [[one_line(cell).replace("|", r"\|").replace("<", "&lt;") for cell in row] for row in rows]
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]


def code(text: str) -> str:
    """A name as Markdown shows it, whatever is in it."""
    return f"`{one_line(text).replace('`', chr(39))}`"


def interval(values: Iterable[float]) -> tuple[float, float | None]:
    """Mean, and half the width of the 95% t-interval over seeds; None for a single seed, which has no interval."""
    values = list(values)
    if len(values) < 2:
        return values[0], None
    from scipy.stats import t as student  # not above: each job's process imports this file and needs none

    return mean(values), float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def format_mean(values: Iterable[float | None], digits: int = 3, sign: str = "") -> str:
    """Mean and interval as a table's cell, with a + before what is positive if `sign` is +; n/a if a value is None."""
    values = list(values)
    if None in values:
        return "n/a"
    middle, half = interval(values)
    return f"{middle:{sign}.{digits}f}" + (f" ± {half:.{digits}f}" if half is not None else "")


def group_by(rows: Iterable[dict[str, Any]], name: str) -> dict[Any, list[dict[str, Any]]]:
    """Rows by one of their values, in the order in which the values appear."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[name], []).append(row)
    return groups
