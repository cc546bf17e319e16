"""The runs of a comparison as jobs: their progress, what is said of one that fails, and who may write.

.venv/bin/python -m pytest tests/test_jobs.py
"""

import json
import os
from pathlib import Path

import pytest
from filelock import FileLock
from tqdm import tqdm

import data
import train
from harness import jobs
from harness.messages import BadInput, RunFailed
from model import ModelConfig


def job_at(out: Path) -> jobs.Job:
    return jobs.Job([16], data.DataConfig(), ModelConfig(), train.RunConfig(out=str(out), name="rope-seed0", steps=10))


def test_progress_passes_over_steps_whose_loss_or_gradient_is_no_number(tmp_path, capsys):
    job = job_at(tmp_path)
    steps = [{"step": 3, "split": "train", "loss": 2.0, "seconds": 3.0}, {"step": 4, "split": "train", "loss": None}]
    steps += [{"step": 5, "split": "train", "loss": 2.5, "grad_norm": None}]  # the run's last words
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in steps))
    with tqdm(total=10, disable=True) as bar:
        jobs.show_progress(job, bar, started=0, on_screen=False)
    assert "step 3 of 10, loss 2.000, about 7 s left" in capsys.readouterr().out


class Fake:
    """A job that ended."""

    pause = 0.0

    def __init__(self, log: Path, how: str, code: int | None = None, left: int = 0) -> None:
        self.log, self.how, self.code, self.left = log, how, code, left

    def poll(self) -> str | None:
        self.left -= 1
        return self.how if self.left < 0 else None


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


REFUSED = "--run.out a cannot be written (Is a directory): name a folder that can"


@pytest.mark.parametrize(
    ("ends", "error", "said"),
    [
        ([(2, f"compare.py: {REFUSED}")], BadInput, REFUSED),
        ([(2, f"compare.py: warning: slow\ncompare.py: {REFUSED}\nprinted late")], BadInput, REFUSED),
        ([(3, "compare.py: no space left")], RunFailed, "run0 ended with code 3: no space left"),
        ([(-9, "step 7")], RunFailed, "run0 ended with code -9: step 7 (log: {log})"),
        ([(3, "compare.py: the loss is nan"), (2, f"compare.py: {REFUSED}")], BadInput, "run0 * nan; " + REFUSED),
        ([(2, f"compare.py: {REFUSED}"), (2, f"compare.py: {REFUSED}"), (0, "")], BadInput, REFUSED),
    ],
    ids=["refused", "refused after a warning", "failed", "killed", "one of each", "refused twice"],
)
def test_what_jobs_report_decides_the_code_of_the_comparison_and_its_line(tmp_path, ends, error, said):
    made, looks = {}, []
    for i, (code, text) in enumerate(ends):
        job = jobs.Job([16], data.DataConfig(), ModelConfig(), train.RunConfig(out=str(tmp_path), name=f"run{i}"))
        made[job] = Fake(
            tmp_path / f"run{i}.log", f"ended with code {code}" * bool(code), code, left=len(ends) - i
        )  # the last is first
        made[job].log.write_text(text + "\n")
    with pytest.raises(error) as failed:
        jobs.run_jobs(list(made), 2, made.__getitem__, lambda: looks.append(1))
    assert len(looks) >= 1
    assert str(failed.value) == said.replace(" * ", " ended with code 3: the loss is ").format(
        log=tmp_path / "run0.log"
    )
    for fake in made.values():  # what was refused did nothing, and leaves no log
        assert fake.log.exists() == (fake.code != 2)


def test_a_folder_is_one_comparisons_at_a_time_and_a_refusal_leaves_nothing_in_it(tmp_path):
    out = tmp_path / "out"
    with jobs.own(out):
        assert not out.exists()  # until it is taken
    with jobs.own(out) as take:
        take()
        with pytest.raises(BadInput, match=r"--out .*out is being written by another process"), jobs.own(out):
            pytest.fail("two at a time")
    with jobs.own(out) as take:
        take()
    with jobs.own(tmp_path) as other:
        assert not (tmp_path / ".lock").exists()
        with FileLock(tmp_path / ".lock"), pytest.raises(BadInput, match="another process"):  # it came in between
            other()


@pytest.mark.parametrize("name", ["report.md", "summary.json", "rope-seed0.log"])
def test_what_a_comparison_could_not_write_is_refused_before_it_begins(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with jobs.own(tmp_path) as take, pytest.raises(BadInput, match=f"--out {tmp_path}: {name} in it is no plain file"):
        take()


def test_a_run_is_refused_in_the_comparisons_words():
    flags = {"run.out": "out", "run.name": "out"}
    with pytest.raises(BadInput) as refused, jobs.called(flags):
        raise BadInput("--run.out a: choose another --run.name, or --run.names b, --run.out.c")
    assert str(refused.value) == "--out a: choose another --out, or --run.names b, --run.out.c"
