"""Pages with generated sections: finding and replacing them, reading measurements for them, and verdicts."""

import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any, Literal, Required, TypeVar

from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict

from harness.files import write_whole
from harness.messages import BadInput
from harness.opening import Damaged, parse_json, read_inside
from harness.ranges import AtLeast0, AtLeast1, LossByLength, Seed, Share
from harness.tables import format_mean, interval, markdown

ROOT = Path(__file__).parent.parent
REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "NOT reproduced", "inconclusive"

Rows = list[dict[str, Any]]
"""Measurements of one part of results/data/, as their files have them."""

T = TypeVar("T")


class Machine(TypedDict):
    """Where a measurement was made, as far as the pages say it."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    cpu: str
    torch: str


class Cell(TypedDict, total=False):
    """What evaluate.py found at a length; it has more figures."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    length: Required[AtLeast1]
    loss: Required[AtLeast0 | None]
    crop_loss: AtLeast0 | None
    accuracy: Required[Share | None]
    depth: Share | None
    task: str


class Row(TypedDict, total=False):
    """A file of results/data/; it has more labels and figures."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    seed: Required[Seed]
    scheme: str
    scaling: str
    base: AtLeast1
    val_loss: Required[AtLeast0]
    test_loss: Required[AtLeast0]
    bits_per_byte: Required[AtLeast0 | None]
    precision: Required[Literal["fp32", "bf16"]]
    commit: Required[str | None]
    versions: Required[Machine]
    loss_by_length: LossByLength
    curve: list[tuple[AtLeast1, AtLeast0 | None]]
    results: list[Cell]


ROW = TypeAdapter(Row)
Figure = Callable[[dict[str, Any]], float | None]
"""Takes a figure from a row; None where it has none."""


def find_section(maker: str) -> tuple[Path, str, str, str]:
    """The page that has the section between `<!-- made by MAKER -->` and `<!-- end -->`: path, before, section, after.

    Raises:
        BadInput: if no page, or more than one, has such a section.
    """
    begin, found = f"<!-- made by {maker} -->\n", []
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("results/*.md")]:
        text = page.read_text(encoding="utf-8") if page.exists() else ""
        for match in re.finditer(re.escape(begin) + "(.*?)\n<!-- end -->", text, re.DOTALL):
            found.append((page, text[: match.start(1)], match[1], text[match.end(1) :]))
    if len(found) != 1:
        where = f"one section between {begin.strip()} and <!-- end -->"
        raise BadInput(f"README.md and the pages in docs/ and results/ must have {where}, and they have {len(found)}")
    return found[0]


def replace_section(maker: str, section: str) -> None:
    """Write a maker's section into the page that has it."""
    page, before, _, after = find_section(maker)
    write_whole(page, before + section + after)


def load_rows(part: str) -> Rows:
    """All measurements of a part. Raises BadInput for a file that cannot be one."""
    files = sorted(ROOT.glob(f"results/data/{part}/*.json"))
    return [read_figures(file, ROW, "remove it, and the same command measures it again") for file in files]


def read_figures(file: Path, schema: TypeAdapter[T], cure: str) -> T:
    """A JSON file of figures. Raises BadInput for one that does not fit its schema, with what would help."""
    try:
        return parse_json(schema, read_inside(file.parent, file.name), file)
    except Damaged as error:
        raise BadInput(f"{error}; {cure}") from error


def select(rows: Rows, **labels: Any) -> Rows:
    """The rows with these labels, ordered by seed."""
    found = [row for row in rows if all(row[name] == value for name, value in labels.items())]
    return sorted(found, key=lambda row: row["seed"])


def paired_differences(rows: Rows, others: Rows, value: Figure, other_value: Figure | None = None) -> list[float]:
    """A figure of `rows` minus that of `others`, seed by seed; seeds where either has none are left out."""
    by_seed = {other["seed"]: (other_value or value)(other) for other in others}
    pairs = [(value(row), by_seed.get(row["seed"])) for row in rows]
    return [a - b for a, b in pairs if a is not None and b is not None]


def format_losses(rows: Rows, reference: Rows, differences: tuple[str, ...]) -> list[str]:
    """Cells of a table: mean loss at every length, and minus that of the reference, seed by seed, at some of them."""
    cells = [format_mean(row["loss_by_length"][n] for row in rows) for n in rows[0]["loss_by_length"]]
    for n in differences:
        found = paired_differences(rows, reference, lambda row, n=n: row["loss_by_length"][n])
        cells.append("" if rows == reference else format_mean(found, sign="+") if found else "n/a")
    return cells


def accuracy_at(row: dict[str, Any], length: int, task: str | None = None, name: str = "accuracy") -> float | None:
    """Accuracy of whole answers at a length, of one task or the mean over all; None where positions have ended."""
    cells = [cell for cell in row["results"] if cell["length"] == length and cell["depth"] is None]
    found = [cell[name] for cell in cells if task in (None, cell["task"])]
    return None if not found or None in found else mean(found)


def describe_machines(rows: Rows) -> str:
    """Processors, PyTorch versions, precisions and commits with which the rows were measured, as a sentence."""
    made = {(row["versions"]["cpu"], row["versions"]["torch"], row["precision"]) for row in rows}
    hardware = "; ".join(f"{cpu}, PyTorch {version}, {precision}" for cpu, version, precision in sorted(made))
    commits = ", ".join(sorted({(row["commit"] or "unknown")[:10] for row in rows}))
    return f"Measured on: {hardware}, one thread per run; commits {commits}."


def judge(what: str, differences: list[float], bound: float = 0.0) -> list[list[str]]:
    """Whether differences lie below a bound: their whole 95% interval must be on one side of it.

    Returns:
        A line of `table_of_verdicts`: what is expected, the verdict, mean and interval. No line without differences.
    """
    if not differences:
        return []
    (middle, half), figures = interval(differences), format_mean(differences, sign="+")
    if half is None:
        return [[what, INCONCLUSIVE, f"{figures} (one seed)"]]
    verdict = REPRODUCED if middle + half < bound else NOT_REPRODUCED if middle - half > bound else INCONCLUSIVE
    return [[what, verdict, figures]]


def judge_pairs(where: str, rows: Rows, label: str, pairs: list[tuple[str, str]], loss: Figure) -> list[list[str]]:
    """Whether of each pair of values of a label, the first has a lower loss than the second."""
    lines = []
    for a, b in pairs:
        differences = paired_differences(select(rows, **{label: a}), select(rows, **{label: b}), loss)
        lines += judge(f"{where}: {a} has a lower loss than {b}", differences)
    return lines


def table_of_verdicts(lines: list[list[str]]) -> str:
    """What one expects beside what came out: a count, and a table of (what is expected, verdict, figures)."""
    verdicts = [line[1] for line in lines]
    table = "\n".join(markdown([["expected", "verdict", "figures"], *lines]))
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE) if v in verdicts)
    return f"""\
Expected from published work, or from an earlier model of this size: {counts}. A difference is `{REPRODUCED}`
if its whole 95% interval lies on the expected side, and `{NOT_REPRODUCED}` if it lies wholly on the other side.

{table}"""
