"""What a comparison shows while its runs still train.

.venv/bin/python -m pytest tests/test_early.py
"""

import json

import pytest

import data
import train
from harness import early
from harness.jobs import Job
from model import ModelConfig


@pytest.fixture
def jobs(tmp_path) -> list[Job]:
    """Two schemes and two seeds, of which nothing has begun."""
    made = []
    for seed in (0, 1):
        for scheme in ("rope", "none"):
            out = tmp_path / f"{scheme}-seed{seed}"
            run_ = train.RunConfig(out=str(out), name=out.name, seed=seed, steps=1000)
            made.append(Job([16], data.DataConfig(), ModelConfig(position=scheme), run_))
            out.mkdir()
    return made


def log(job: Job, losses: dict[int, float]) -> None:
    """Write a run's log with these validation losses."""
    lines = [json.dumps({"step": step, "split": "val", "loss": loss}) for step, loss in losses.items()]
    (job.folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_nothing_is_shown_until_every_scheme_has_a_figure(jobs, tmp_path):
    log(jobs[0], {100: 3.0, 200: 2.5})
    early.EarlyReport(jobs, tmp_path).renew()
    assert not (tmp_path / "report.md").exists()


def test_a_table_compares_schemes_at_steps_and_seeds_that_all_have(jobs, tmp_path, capsys):
    report = early.EarlyReport(jobs, tmp_path)
    log(jobs[0], {100: 3.0, 200: 2.5, 300: 2.0})
    log(jobs[1], {100: 3.5, 200: 2.25})
    log(jobs[2], {100: 1.0})  # whose scheme has no rival with this seed yet
    report.look()
    page, said = (tmp_path / "report.md").read_text(), capsys.readouterr().out
    assert "# Not finished: 200 of 1000 steps" in page
    assert "| none   | 3.500    | 2.250    |\n| rope   | 3.000    | 2.500    |" in page
    assert "validation loss at step 200: none 2.250, rope 2.500" in said
    drawn = (tmp_path / "curves.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    log(jobs[3], {100: 2.0})
    report.look()
    assert "| rope   | 2.000 ± 12.706 | 2.500    |" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "curves.png").read_bytes() != drawn
    assert not capsys.readouterr().out  # until steps have doubled


def test_the_table_halves_its_steps(jobs, tmp_path):
    for job in jobs[:2]:
        log(job, dict.fromkeys(range(10, 1000, 10), 5.0))
    early.EarlyReport(jobs, tmp_path).look()
    head = next(line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| scheme"))
    assert [word for word in head.split() if word.isdigit()] == ["10", "30", "60", "120", "240", "490", "990"]


def test_a_look_that_takes_long_is_not_soon_repeated(jobs, tmp_path, monkeypatch):
    clock, looks = iter([100.0, 100.1, 119.0, 120.0, 123.0, 269.0, 270.0, 270.0]), []
    monkeypatch.setattr(early.time, "monotonic", lambda: next(clock))
    report = early.EarlyReport(jobs, tmp_path)
    monkeypatch.setattr(report, "look", lambda: looks.append(1))
    for so_far in (1, 1, 2, 2, 3):  # at 100, 119, 120, 269 and 270 seconds
        report.renew()
        assert len(looks) == so_far
