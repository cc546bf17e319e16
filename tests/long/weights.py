"""Do runs still end with the weights that they ended with? Run by hand before and after a change of the code.

    .venv/bin/python tests/long/weights.py                 # prints the hashes, and what differs from weights.json
    .venv/bin/python tests/long/weights.py --record true   # writes weights.json anew

Twelve steps of every scheme, fp32 and one thread; a run that was stopped after six and resumed; a run of two
processes; and a tuned run. Rounding differs from one kind of processor to another, so nothing asserts these hashes
anywhere else.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import harness.stops  # first: the rest takes seconds to import, and Ctrl-C ends even that without a traceback

import argparse
import json
import os
import subprocess
import tempfile

from harness.messages import run_main
from positions import SCHEMES

REPOSITORY = Path(__file__).parents[2]
RECORD = Path(__file__).with_suffix(".json")
COMMON = ["--run.precision", "fp32", "--run.threads", "1", "--run.wandb", "disabled", "--run.eval_windows", "4"]
STOP_AFTER_SIX = """\
import os, signal, sys, train
from harness.messages import run_main
rate = train.learning_rate
def stopping(step, config):
    if step == 5:
        os.kill(os.getpid(), signal.SIGTERM)
    return rate(step, config)
train.learning_rate = stopping
run_main(train.main)
"""


def trained(out: Path, *flags: str, program: tuple[str, ...] = (sys.executable, "train.py"), code: int = 0) -> dict:
    """What result.json says of a run of twelve steps, and the losses of its steps."""
    command = [*program, "--run.steps", "12", *COMMON, "--run.out", str(out), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    if code:
        return {}
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["split"] == "train"]
    return {"weights": json.loads((out / "result.json").read_text())["weights_sha256"], "losses": losses}


def measure(folder: Path) -> dict[str, dict]:
    """Every run's figures, by its name."""
    found = {scheme: trained(folder / scheme, "--model.position", scheme) for scheme in SCHEMES}
    stopped = (sys.executable, "-c", STOP_AFTER_SIX)
    trained(folder / "resumed", program=stopped, code=143)
    found["resumed"] = trained(folder / "resumed", "--run.resume", "true")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py")
    found["two processes"] = trained(folder / "two", program=torchrun)
    longer = ["--model.seq_len", "512", "--model.rope.scaling", "yarn", "--model.rope.factor", "2"]
    found["tuned"] = trained(folder / "tuned", "--run.init_from", str(folder / "rope"), *longer)
    return found


def main(argv: list[str] | None = None) -> None:
    """Measure, and compare with the record or replace it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--record", choices=["true", "false"], default="false")
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for name, now in found.items():
        was = record.get(name)
        same = "not recorded" if was is None else "the same" if was["weights"] == now["weights"] else "OTHER WEIGHTS"
        apart = 0 if was is None else max(abs(a - b) for a, b in zip(was["losses"], now["losses"], strict=True))
        print(f"{name:15} {now['weights'][:16]}  {same}, losses differ by {apart:.1e} at most", flush=True)
    if asked.record == "true":
        RECORD.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
