"""Put measured figures where readers see them.

python -m experiments.publish runs/compare    a comparison: results/compare.json, docs/compare.png, the README's table
python -m experiments.publish bench.json      what experiments.speed wrote: results/bench.json, docs/speed.md
"""

import json
import shutil
from pathlib import Path
from typing import Any

from harness import report
from harness.files import write_whole
from harness.messages import BadInput, run_main
from harness.options import Parser
from harness.pages import ROOT, replace_section
from harness.timing import Row, table


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


def speed_section(content: dict[str, Any]) -> str:
    """What docs/speed.md says of speed: where it was measured, beside what, and the table."""
    machine, peers = content["versions"], ", ".join(f"{name} {version}" for name, version in content["peers"].items())
    made = f"{machine['cores']} cores ({machine['cpu']}), {machine['threads']} threads, PyTorch {machine['torch']}, "
    made += f"commit {(content['commit'] or 'unknown')[:10]}" + f"; beside {peers}" * bool(peers)
    made += f"; not there: {', '.join(content['missing'])}" * bool(content["missing"])
    note = f" {content['note']}" * bool(content["note"])
    return "\n".join([f"{made}.{note}", "", *table([Row(**row) for row in content["rows"]])])


def main(argv: list[str] | None = None) -> None:
    """Publish the comparison, or the speeds, named on the command line."""
    parser = Parser(prog="experiments.publish", description=__doc__)
    what = "a comparison's folder, or speeds as .json"
    parser.add_argument("made", type=str, nargs="?", default="nothing", help=what)
    named = Path(parser.parse_args(argv).made)
    if named.is_file() and named.suffix == ".json":
        file, make, maker, kept, place = named, speed_section, "experiments.speed", "bench.json", "experiments/speed.py"
    elif all((named / name).is_file() for name in ("summary.json", "curves.png")):
        file, make, maker, kept = named / "summary.json", section, "compare.py", "compare.json"
        place = "experiments/publish.py"
    else:
        what = "neither the folder of a comparison nor a .json of experiments.speed"
        raise BadInput(f"{named} is {what}: name one, runs/compare for example")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        body = make(content)
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file} is damaged ({error}): make it again with {maker}") from error
    write_whole(ROOT / "results" / kept, json.dumps(content, indent=2) + "\n")
    if make is section:
        shutil.copy(named / "curves.png", ROOT / "docs" / "compare.png")
    replace_section(place, body)


if __name__ == "__main__":
    run_main(main)
