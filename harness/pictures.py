"""What pictures share."""

import os
from dataclasses import dataclass
from typing import Any

from harness.tables import interval


def plotting() -> Any:
    """matplotlib's pyplot, for pictures that go to files: no screen is needed, nor what a notebook's MPLBACKEND names.

    Here and not above: it takes a second, and most scripts draw nothing.
    """
    os.environ["MPLBACKEND"] = "Agg"  # before the import, which refuses a name that is not installed
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


@dataclass(frozen=True)
class Line:
    """A line of a picture: values over seeds at each length of context, and its look."""

    label: str
    points: dict[int, list[float]]
    color: str
    dash: Any
    marker: str


def draw_by_length(axis: Any, lines: list[Line], trained: int) -> None:
    """Means against length of context, with bars for their intervals; lines stand side by side, so equal ones are seen.

    Args:
        axis: of matplotlib.
        lines: what to draw; a line of one seed says so in the legend.
        trained: the trained length, which is marked.
    """
    for i, line in enumerate(lines):
        middles, halves = zip(*(interval(values) for values in line.points.values()), strict=True)
        label = line.label + " (1 seed)" * (set(halves) == {None})
        places = [length * 2 ** (0.04 * (i - (len(lines) - 1) / 2)) for length in line.points]
        axis.plot(places, middles, color=line.color, linestyle=line.dash, marker=line.marker, label=label)
        if None not in halves:
            edges = [[m + sign * h for m, h in zip(middles, halves, strict=True)] for sign in (-1, 1)]
            axis.vlines(places, *edges, color=line.color, alpha=0.6, linewidth=1.5)
    lengths = sorted({length for line in lines for length in line.points})
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [str(length) for length in lengths])
    axis.axvline(trained, color="black", linewidth=0.8, linestyle=":")
    axis.set_xlabel("tokens of context")
    axis.grid(alpha=0.25)
    if lines:
        frame_lines(axis)
        axis.legend(fontsize=8, handlelength=3, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)


def frame_lines(axis: Any) -> None:
    """Let the frame hold the lines, and cut bars that reach out of it: those of two seeds would dwarf the rest."""
    values = [value for line in axis.get_legend_handles_labels()[0] for value in line.get_ydata()]
    margin = 0.06 * (max(values) - min(values)) or 0.1
    axis.set_ylim(min(values) - margin, max(values) + margin)
