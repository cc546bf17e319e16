"""What pictures share: the figure itself, lines by context length, heat maps."""

import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.files import write_whole
from harness.tables import interval


@contextmanager
def picture(path: Path, rows: int, columns: int, size: tuple[float, float], dpi: int = 150) -> Iterator[Any]:
    """matplotlib's axes, (rows, columns), of a figure of this size in inches, which is written to a file at the end.

    matplotlib is imported here because that takes a second, and most scripts draw nothing. A user's own settings for it
    are not taken: the pictures are those of the pages, and a $ in a name is a $.
    """
    os.environ["MPLBACKEND"] = "Agg"  # the import refuses a name that is not installed, as a notebook may have set
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # a home that it cannot write in, say, does no harm
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "text.parse_math": False, "backend": "Agg"}):
        figure = Figure(size, layout="constrained")
        yield figure.subplots(rows, columns, squeeze=False)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=dpi)
    write_whole(path, drawn.getvalue())


@dataclass(frozen=True)
class Line:
    """A line of a picture: the values of all seeds at each step or context length, and its look."""

    label: str
    points: dict[int, list[float]]
    color: str
    dash: Any
    marker: str

    def draw(self, axis: Any, places: Iterable[float], draw_interval: Callable[..., Any], **how: float) -> None:
        """Draw the means, and their intervals if there are any."""
        if not self.points:  # nothing is known: a log was lost, say
            return
        middles, halves = zip(*(interval(values) for values in self.points.values()), strict=True)
        look = {"linestyle": self.dash, "marker": self.marker, "markersize": 5}
        axis.plot(places, middles, color=self.color, **look, label=self.label)
        if None not in halves:
            edges = [[m + sign * h for m, h in zip(middles, halves, strict=True)] for sign in (-1, 1)]
            draw_interval(places, *edges, color=self.color, **how)


def draw_by_length(axis: Any, lines: list[Line], trained: int) -> None:
    """Means against context length, with bars for their intervals; lines are set apart, so that equal ones are seen.

    A line of one seed among others of several says so in the legend. The trained length is marked.
    """
    alone = [all(len(values) == 1 for values in line.points.values()) for line in lines]
    for i, line in enumerate(lines):
        places = [length * 2 ** (0.04 * (i - (len(lines) - 1) / 2)) for length in line.points]
        named = replace(line, label=line.label + " (1 seed)" * (alone[i] and not all(alone)))
        named.draw(axis, places, axis.vlines, alpha=0.6, linewidth=1.5)
    lengths = sorted({length for line in lines for length in line.points})
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [str(length) for length in lengths], fontsize=8)
    axis.minorticks_off()
    axis.axvline(trained, color="black", linewidth=0.8, linestyle=":")
    axis.set_xlabel("tokens of context (dotted: trained length)")
    axis.grid(alpha=0.25)
    if lines:
        frame_lines(axis)
        axis.legend(fontsize=8, handlelength=3, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)


def frame_lines(axis: Any) -> None:
    """Fit the frame to the lines and cut off bars beyond it, because those of two seeds would dwarf the lines."""
    values = [value for line in axis.get_legend_handles_labels()[0] for value in line.get_ydata()]
    if not values:
        return
    margin = 0.06 * (max(values) - min(values)) or 0.1
    axis.set_ylim(min(values) - margin, max(values) + margin)


def draw_heat_maps(
    panels: list[list[tuple[str, dict[tuple[str, int], float | None]]]], trained: int, path: Path
) -> None:
    """Rows of panels, each a title and accuracy by (row, length). Each cell shows its number, or n/a for None."""
    height = sum(0.9 + 0.42 * len({row for row, _ in cells}) for (_, cells), *_ in panels)
    with picture(path, len(panels), len(panels[0]), (4.3 * len(panels[0]) + 0.6, height)) as axes:
        for axis, (title, cells) in zip(axes.ravel(), (panel for line in panels for panel in line), strict=True):
            rows, lengths = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
            values = np.array([[cells[row, n] for n in lengths] for row in rows], dtype=float)  # None becomes NaN
            axis.imshow(values, cmap="Greys", vmin=0, vmax=1.3, aspect="auto")  # never quite black: numbers are read
            for (i, j), value in np.ndenumerate(values):
                word = "n/a" if np.isnan(value) else f"{value:.2f}"
                axis.text(j, i, word, ha="center", va="center", fontsize=8, color="white" if value > 0.6 else "black")
            axis.set_xticks(range(len(lengths)), [f"{n}*" if n == trained else str(n) for n in lengths], fontsize=8)
            axis.set_yticks(range(len(rows)), rows, fontsize=8)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("tokens of context (* trained)", fontsize=8)
