"""Put measured figures where readers see them: a file in results/, and a table in the README or docs/speed.md.

python -m experiments.publish runs/compare    a comparison: results/compare.json, docs/compare.png, the README's table
python -m experiments.publish bench.json      what experiments.speed wrote: results/bench.json, docs/speed.md
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from experiments import speed
from harness import report
from harness.files import write_whole
from harness.messages import BadInput, run
from harness.pages import ROOT, replace_section


def section(summary: dict[str, Any]) -> str:
    """What the README says of a comparison: how it was made, the table, and what it shows."""
    runs, config = summary["runs"], summary["config"]
    seeds = sorted({one["seed"] for one in runs})
    machine = summary["versions"]
    run_ = config["run"]
    made = (
        f"{run_['steps']} steps of {run_['batch_size']} x {config['model']['seq_len']} tokens at rate "
        f"{run_['learning_rate']:g}, seed {', '.join(map(str, seeds))}, {runs[0]['precision']} on "
        f"{machine['cores']} cores "
        f"({machine['cpu']}), PyTorch {machine['torch']}, commit {(summary['commit'] or 'unknown')[:10]}."
    )
    return "\n".join([made, "", *report.table(summary), "", *(f"- {line}" for line in report.findings(summary))])


def speed_section(content: dict[str, Any]) -> str:
    """What docs/speed.md says of speed: where it was measured, beside what, and the table."""
    machine, rows = content["versions"], [speed.Row(**row) for row in content["rows"]]
    made = f"{machine['cores']} cores ({machine['cpu']}), {machine['threads']} threads, PyTorch {machine['torch']}"
    peers = ", ".join(f"{name} {version}" for name, version in content["peers"].items())
    beside = f"; beside {peers}" if peers else ""
    missing = f"; not there: {', '.join(content['missing'])}" if content["missing"] else ""
    note = f" {content['note']}" if content["note"] else ""
    made += f", commit {(content['commit'] or 'unknown')[:10]}{beside}{missing}.{note}"
    shown = [row for row in rows if row.bench != "length"]  # what grows how has a page of its own
    return "\n".join([made, "", *speed.table(shown)])


def main(argv: list[str] | None = None) -> None:
    """Publish the comparison, or the speeds, named on the command line."""
    argv = sys.argv[1:] if argv is None else argv
    speeds = len(argv) == 1 and argv[0].endswith(".json") and Path(argv[0]).is_file()
    if not speeds and (
        len(argv) != 1 or not all(Path(argv[0], name).is_file() for name in ("summary.json", "curves.png"))
    ):
        what = " ".join(argv) or "nothing"
        raise BadInput(
            f"{what} is not the folder of a comparison and no .json of experiments/speed.py: name one, runs/compare say"
        )
    file = Path(argv[0]) if speeds else Path(argv[0], "summary.json")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        body = speed_section(content) if speeds else section(content)
    except (ValueError, KeyError, TypeError) as error:
        maker = "experiments/speed.py" if speeds else "compare.py"
        raise BadInput(f"{file} is damaged ({error}): make it again with {maker}") from error
    write_whole(ROOT / "results" / ("bench.json" if speeds else "compare.json"), json.dumps(content, indent=2) + "\n")
    if not speeds:
        shutil.copy(Path(argv[0], "curves.png"), ROOT / "docs" / "compare.png")
    replace_section("experiments/speed.py" if speeds else "experiments/publish.py", body)


if __name__ == "__main__":
    run(main)
