"""Put the figures of a comparison where readers see them: results/compare.json, docs/compare.png, the README's table.

python -m experiments.publish runs/compare
"""

import harness.stops  # first: the rest takes seconds to import, and Ctrl-C ends even that without a traceback

import json
import shutil
from pathlib import Path
from typing import Any

from harness import report
from harness.files import write_whole
from harness.messages import BadInput, run_main
from harness.opening import Damaged, parse_json, read_inside
from harness.options import Parser
from harness.pages import ROOT, replace_section


def section(summary: dict[str, Any]) -> str:
    """What the README says of a comparison: how it was made, the table, and what it shows."""
    runs, machine, model, how = summary["runs"], summary["versions"], *(summary["config"][n] for n in ("model", "run"))
    seeds = ", ".join(map(str, sorted({one["seed"] for one in runs})))
    made = (
        f"{how['steps']} steps of {how['batch_size']} x {model['seq_len']} tokens at rate {how['learning_rate']:g}, "
        f"seed {seeds}, {runs[0]['precision']} on {machine['cores']} cores ({machine['cpu']}), PyTorch "
        f"{machine['torch']}, commit {(summary['commit'] or 'unknown')[:10]}."
    )
    findings = [f"- {line}" for line in report.describe_findings(summary)]
    return "\n".join([made, "", *report.format_losses(summary), "", *findings])


def main(argv: list[str] | None = None) -> None:
    """Publish the comparison that the command line names."""
    parser = Parser(prog="experiments.publish", description=__doc__)
    parser.add_argument("made", type=str, nargs="?", default="runs/compare", help="the folder of a comparison")
    made = Path(parser.parse_args(argv).made)
    if not all((made / name).is_file() for name in ("summary.json", "curves.png")):
        raise BadInput(f"{made} is not the folder of a comparison: name one that compare.py made")
    try:
        summary = parse_json(report.SUMMARY, read_inside(made, "summary.json"), made / "summary.json")
        body = section(summary)
    except Damaged as error:
        raise BadInput(f"{error}: make it again with compare.py") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{made / 'summary.json'} is damaged ({error}): make it again with compare.py") from error
    write_whole(ROOT / "results" / "compare.json", json.dumps(summary, indent=2) + "\n")
    shutil.copy(made / "curves.png", ROOT / "docs" / "compare.png")
    replace_section("experiments/publish.py", body)


if __name__ == "__main__":
    run_main(main)
