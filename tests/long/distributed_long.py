"""The long form of tests/test_processes.py, with figures: an hour on two busy cores.

    .venv/bin/python tests/long/distributed_long.py                         # loss curves, then kills
    .venv/bin/python tests/long/distributed_long.py --only accumulation     # some of the curves
    .venv/bin/python tests/long/distributed_long.py --only kills --tries 3

1. Losses of 100 steps at the default size and rate, in fp32 and once in float64, on 1, 2 and 4 processes, with DDP
   and FSDP2, with and without accumulation: the largest difference from the single process's, which may not be above
   1e-4.
2. Two processes under `torchrun --max-restarts`, one of them killed with SIGKILL at a random moment, again and again:
   the job has to complete with the weights of a run that was left alone, to the bit.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for processes.py
sys.path.insert(0, str(Path(__file__).parents[2]))

import harness.stops  # first: the rest takes seconds to import, and Ctrl-C ends even that without a traceback

import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable
from typing import Literal

from jsonargparse import auto_cli
from processes import REPOSITORY, run_on

from harness.messages import run_main

TOLERANCE = 1e-4  # nats
QUIET = ["--run.wandb", "disabled", "--run.precision", "fp32", "--run.device", "cpu", "--run.threads", "1"]
TINY = [
    *("--data.tokenizer", "bytes", "--data.max_bytes", "200000", "--model.d_model", "32", "--model.n_layer", "2"),
    *("--model.n_head", "2", "--model.seq_len", "64", "--run.steps", "600", "--run.save_every", "40"),
    *("--run.eval_every", "100", "--run.eval_windows", "4", *QUIET),
]


def losses(folder: Path) -> list[float]:
    """The loss of every training step."""
    events = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [event["loss"] for event in events if event["split"] == "train"]


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


# 8 rows give each of 4 processes rows to add up. They take the first 100 steps of the default 2,000: 100 steps by
# themselves climb to the whole rate in 10, and with 8 rows that lets rounding grow to 0.01 nats, in a single process
# too that only adds up two rows at once in place of one. In float64 it cannot grow that far.
EIGHT = ["--run.batch_size", "8", "--run.micro_batch_size", "1"]
CURVES = {
    "whole shares": [],
    "accumulation": ["--run.micro_batch_size", "1"],
    "accumulation of 8 rows": [*EIGHT, "--run.warmup", "1", "--run.learning_rate", "0.0015"],
    "accumulation of 8 rows in float64": EIGHT,
}
PARTS = (*CURVES, "kills")


def curves(folder: Path, names: Iterable[str], steps: int) -> float:
    """Compare loss curves over numbers of processes, and return the largest difference, nats."""
    common = ["--run.steps", str(steps), "--run.eval_every", str(steps), *QUIET]
    worst = 0.0
    for name in names:
        flags, single = CURVES[name], None
        for size, shard in ((1, False), (2, False), (2, True), (4, False), (4, True)):
            out = folder / f"{name}-{size}-{shard}"
            shares = ["--run.shard", str(shard).lower(), "--run.out", str(out)]
            began = time.monotonic()
            ended = run_on(size, [*common, *flags, *shares], folder / "logs", name.endswith("float64"))
            assert [each.code for each in ended] == [0] * size, ended
            curve, found = losses(out), result(out)
            single = single or (curve, found)
            assert len(curve) == steps
            assert found["batches_sha256"] == single[1]["batches_sha256"]
            assert found["shared_init_sha256"] == single[1]["shared_init_sha256"]
            apart = max(abs(a - b) for a, b in zip(curve, single[0], strict=True))
            validation = abs(found["val_loss"] - single[1]["val_loss"])
            worst = max(worst, apart, validation)
            print(
                f"{name}, {size} process{'es' * (size > 1)}, {'FSDP2' if shard else 'DDP' if size > 1 else 'plain'}: "
                f"losses of {steps} steps {curve[0]:.4f} to {curve[-1]:.4f}, at most {apart:.1e} from one process's, "
                f"validation {validation:.1e}; rows {found.get('rows_by_rank', 'all')}; "
                f"{time.monotonic() - began:.0f} s",
                flush=True,
            )
    return worst


def ranks_of(torchrun: int) -> dict[int, int]:
    """The processes that a torchrun has started and that still live: rank -> process id."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (process / "environ").read_bytes().split(b"\0") if parent == torchrun else []
        except (OSError, ValueError):
            continue
        found |= {int(each[5:]): int(process.name) for each in environment if each.startswith(b"RANK=")}
    return found


def torchrun(out: Path, *flags: str) -> subprocess.Popen:
    """Two processes that are started again when one of them dies, all that they say in a log beside the run."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--max-restarts=5"]
    command += ["--master_port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "train.py", *TINY]
    with open(out.with_suffix(".log"), "a") as log:
        return subprocess.Popen(
            [*command, "--run.out", str(out), "--run.resume", "true", *flags], cwd=REPOSITORY, stdout=log, stderr=log
        )


def kills(folder: Path, tries: int, draw: random.Random) -> int:
    """Kill one of two processes at a random moment, `tries` times; how often the run ended as if left alone."""
    same, alone = 0, {}
    for number in range(tries):
        shard = ["--run.shard", ("false", "true")[number % 2]]
        kind = ("DDP", "FSDP2")[number % 2]
        if kind not in alone:
            began = time.monotonic()
            assert torchrun(folder / kind, *shard).wait() == 0, (folder / f"{kind}.log").read_text()
            alone[kind] = result(folder / kind)["weights_sha256"], len(losses(folder / kind))
            print(f"{kind} left alone: {alone[kind][0][:12]}, {time.monotonic() - began:.0f} s", flush=True)
        out = folder / f"try-{number}"
        job, victim, moment = torchrun(out, *shard), draw.randrange(2), draw.randrange(-40, 560)
        while job.poll() is None:  # a moment is a number of logged steps, or for one below 0 the begin of the process
            logged = len(losses(out)) if (out / "metrics.jsonl").exists() else -1
            found = ranks_of(job.pid)
            if victim in found and logged >= max(moment, -1):
                break
            time.sleep(0.02)
        time.sleep(draw.random() * 0.2)
        os.kill(found[victim], signal.SIGKILL)
        code = job.wait()
        ended = (result(out)["weights_sha256"], len(losses(out))) if code == 0 else None
        said = out.with_suffix(".log").read_text()
        resumed = said.count("going on after step")
        same += ended == alone[kind]
        print(
            f"try {number}, {kind}: rank {victim} killed with {max(logged, 0)} steps logged; exit code {code}, "
            f"{'went on from a checkpoint' if resumed else 'began again'}, "
            f"{'the same weights and metrics' if ended == alone[kind] else 'NOT the same'}",
            flush=True,
        )
    return same


def main(
    only: Literal[PARTS] | None = None,
    steps: int = 100,
    tries: int = 10,
    seed: int = 0,
) -> None:
    """Measure, say the figures, and end with 1 if one of them is not as promised.

    Args:
        only: one part of it, not all of them.
        steps: of each curve.
        tries: how often a process is killed.
        seed: of the moments and ranks of the kills.
    """
    kept = True
    with tempfile.TemporaryDirectory() as folder:
        if names := [name for name in CURVES if only in (None, name)]:
            worst = curves(Path(folder), names, steps)
            kept = worst <= TOLERANCE
            print(f"largest difference between loss curves: {worst:.1e} (promised: at most {TOLERANCE:g})", flush=True)
        if only in (None, "kills"):
            same = kills(Path(folder), tries, random.Random(seed))
            kept &= same == tries
            print(f"the same result after a killed process: {same} of {tries}", flush=True)
    sys.exit(not kept)


if __name__ == "__main__":
    run_main(lambda argv: auto_cli(main, args=argv, as_positional=False))
