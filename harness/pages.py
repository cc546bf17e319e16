"""Pages with generated sections: finding and replacing them, reading measurements for them, and verdicts."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from harness.files import write_whole
from harness.messages import BadInput
from harness.tables import interval, markdown

ROOT = Path(__file__).parent.parent
REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "NOT reproduced", "inconclusive"

Rows = list[dict[str, Any]]
"""Measurements of one part of results/data/, as their files have them."""


# ---- sections --------------------------------------------------------------------------------------------------------


def find_section(maker: str) -> tuple[Path, str, tuple[int, int]]:
    """The page that has the section between `<!-- made by MAKER -->` and `<!-- end -->`: path, text, start and end.

    Raises:
        BadInput: if no page, or more than one, has such a section.
    """
    begin, found = f"<!-- made by {maker} -->\n", []
    for page in sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("results/*.md")]):
        text = page.read_text(encoding="utf-8") if page.exists() else ""
        pattern = re.escape(begin) + "(.*?)\n<!-- end -->"
        found += [(page, text, match.span(1)) for match in re.finditer(pattern, text, re.DOTALL)]
    if len(found) != 1:
        raise BadInput(
            f"README.md and the pages in docs/ and results/ must have one section between {begin.strip()} and "
            f"<!-- end -->, and they have {len(found)}"
        )
    return found[0]


def read_section(maker: str) -> str:
    """The present text of a maker's section."""
    _, text, (first, last) = find_section(maker)
    return text[first:last]


def replace_section(maker: str, section: str) -> Path:
    """Write a maker's section, and return the path of its page."""
    page, text, (first, last) = find_section(maker)
    write_whole(page, text[:first] + section + text[last:])
    return page


# ---- measurements ----------------------------------------------------------------------------------------------------


def load_rows(part: str) -> Rows:
    """All measurements of a part."""
    return [json.loads(file.read_text("utf-8")) for file in sorted(ROOT.glob(f"results/data/{part}/*.json"))]


def select(rows: Rows, **labels: Any) -> Rows:
    """The rows with these labels, ordered by seed."""
    found = [row for row in rows if all(row[name] == value for name, value in labels.items())]
    return sorted(found, key=lambda row: row["seed"])


def paired_differences(rows: Rows, others: Rows, value: Callable[[dict[str, Any]], float | None]) -> list[float]:
    """A figure of `rows` minus that of `others`, seed by seed; seeds where either has none are left out."""
    by_seed = {other["seed"]: value(other) for other in others}
    pairs = [(value(row), by_seed.get(row["seed"])) for row in rows]
    return [a - b for a, b in pairs if a is not None and b is not None]


def accuracy_at(row: dict[str, Any], length: int, task: str | None = None, name: str = "accuracy") -> float | None:
    """Accuracy of whole answers at a length, of one task or the mean over all; None where positions have ended."""
    cells = [cell for cell in row["results"] if cell["length"] == length and cell["depth"] is None]
    found = [cell[name] for cell in cells if task in (None, cell["task"])]
    return None if not found or None in found else mean(found)


def format_share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


def describe_machines(rows: Rows) -> str:
    """Processors, PyTorch versions, precisions and commits with which the rows were measured, as a sentence."""
    made = {(row["versions"]["cpu"], row["versions"]["torch"], row["precision"]) for row in rows}
    hardware = "; ".join(f"{cpu}, PyTorch {version}, {precision}" for cpu, version, precision in sorted(made))
    commits = ", ".join(sorted({(row["commit"] or "unknown")[:10] for row in rows}))
    return f"Measured on: {hardware}, one thread per run; commits {commits}."


# ---- verdicts --------------------------------------------------------------------------------------------------------


def judge(differences: list[float], bound: float = 0.0) -> list[str]:
    """Whether differences lie below a bound, and their mean: the whole 95% interval must be on one side of it."""
    middle, half = interval(differences)
    if half is None:
        return [INCONCLUSIVE, f"{middle:+.3f} (one seed)"]
    verdict = REPRODUCED if middle + half < bound else NOT_REPRODUCED if middle - half > bound else INCONCLUSIVE
    return [verdict, f"{middle:+.3f} ± {half:.3f}"]


def table_of_verdicts(lines: list[list[str]]) -> str:
    """What one expects beside what came out: a count, and a table of (what, verdict, figures)."""
    verdicts = [line[1] for line in lines]
    table = "\n".join(markdown([["expected", "verdict", "figures"], *lines]))
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE) if v in verdicts)
    return f"""\
Expected from published work, or from an earlier model of this size: {counts}. A difference is `{REPRODUCED}`
if its whole 95% interval lies on the expected side, and `{NOT_REPRODUCED}` if it lies wholly on the other side.

{table}"""
