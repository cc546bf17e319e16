"""The runs of a comparison as jobs: their progress, and what is said of one that fails.

.venv/bin/python -m pytest tests/test_jobs.py
"""

import json
from pathlib import Path

import pytest
from tqdm import tqdm

import data
import train
from harness import jobs
from harness.messages import RunFailed
from model import ModelConfig


def job_at(out: Path) -> jobs.Job:
    return jobs.Job([16], data.DataConfig(), ModelConfig(), train.RunConfig(out=str(out), name="rope-seed0", steps=10))


def test_progress_passes_over_a_step_whose_loss_is_no_number(tmp_path, capsys):
    job = job_at(tmp_path)
    steps = [{"step": 3, "split": "train", "loss": 2.0, "seconds": 3.0}, {"step": 4, "split": "train", "loss": None}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in steps))
    with tqdm(total=10, disable=True) as bar:
        jobs.show_progress(job, bar, started=0, on_screen=False)
    assert "step 3 of 10, loss 2.000, about 7 s left" in capsys.readouterr().out


class Fake:
    """A job that ended."""

    pause = 0.0

    def __init__(self, log: Path, how: str) -> None:
        self.log, self.how = log, how

    def poll(self) -> str:
        return self.how


def test_a_job_that_fails_is_named_with_its_last_line_and_its_log(tmp_path):
    job = job_at(tmp_path)
    log = tmp_path / "7_0_log.out"
    log.write_text("going on after step 3\nslurmstepd: error: Detected 1 oom_kill event\n\n")
    with pytest.raises(RunFailed) as failed:
        jobs.run_jobs([job], 1, lambda job: Fake(log, "(job 7) did not finish, FAILED"))
    said = "rope-seed0 (job 7) did not finish, FAILED: slurmstepd: error: Detected 1 oom_kill event (log: "
    assert str(failed.value) == f"{said}{log})"
    log.unlink()
    with pytest.raises(RunFailed, match="it printed nothing"):
        jobs.run_jobs([job], 1, lambda job: Fake(log, "(job 7) did not finish, CANCELLED"))
