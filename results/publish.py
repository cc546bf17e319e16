"""Put a comparison's figures where readers see them: results/compare.json, docs/compare.png and the README's table.

python results/publish.py runs/compare
"""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import compare  # noqa: E402
from checkpoint import write_whole  # noqa: E402
from cli import BadInput, run  # noqa: E402

MARKS = "<!-- made by results/publish.py -->", "<!-- end -->"


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
    return "\n".join([made, "", *compare.table(summary), "", *(f"- {line}" for line in compare.findings(summary))])


def main(argv: list[str] | None = None) -> None:
    """Publish the comparison in the folder named on the command line."""
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) != 1 or not all(Path(argv[0], name).is_file() for name in ("summary.json", "curves.png")):
        raise BadInput(f"{' '.join(argv) or 'nothing'} is not the folder of a comparison: name one, runs/compare say")
    try:
        summary = json.loads(Path(argv[0], "summary.json").read_text(encoding="utf-8"))
        section(summary)
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{argv[0]}/summary.json is damaged ({error}): make it again with compare.py") from error
    write_whole(ROOT / "results" / "compare.json", json.dumps(summary, indent=2) + "\n")
    shutil.copy(Path(argv[0], "curves.png"), ROOT / "docs" / "compare.png")
    readme, (begin, end) = ROOT / "README.md", MARKS
    text = readme.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1:
        raise BadInput(f"README.md must have one line {begin} and one line {end}")
    body = f"{begin}\n{section(summary)}\n{end}"
    write_whole(readme, re.sub(re.escape(begin) + ".*" + re.escape(end), lambda _: body, text, flags=re.DOTALL))


if __name__ == "__main__":
    run(main)
