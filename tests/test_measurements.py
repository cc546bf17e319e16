"""Measurements: that each trains what it needs once, goes on where it was, and says how it was made.

.venv/bin/python -m pytest tests/test_measurements.py
"""

import json
from importlib import import_module

import pytest

import evaluate
import train
from harness import measurements, pages
from harness.measurements import Measurement, TrainedRun
from harness.messages import BadInput, RunFailed

EXPERIMENTS = ("lengths", "scalings", "retrieval", "bases", "recipe")
ALL = [one for name in EXPERIMENTS for one in import_module(f"experiments.{name}").list_measurements()]


def test_every_measurement_has_a_file_of_its_own():
    assert len({one.file for one in ALL}) == len(ALL)


def test_runs_of_one_name_are_one_run():
    by_name = {}
    for run in (run for one in ALL for run in (one.run, one.run.start) if run):
        assert by_name.setdefault(run.name, run) == run


def test_every_committed_measurement_belongs_to_an_experiment_and_says_how_it_was_made():
    known = {one.file: one for one in ALL}
    files = list(measurements.DATA.glob("*/*.json"))
    assert len(files) >= 108
    for file in files:
        assert file in known, f"{file} belongs to no experiment"
        content = json.loads(file.read_text())
        assert known[file].labels.items() <= content.items()
        assert content["train"][:2] == ["python", "train.py"]
        assert {"versions", "commit", "shared_init_sha256", "batches_sha256", "precision"} <= set(content)


def test_committed_runs_of_one_seed_differ_by_their_scheme_alone():
    for part in ("schemes", "retrieval", "bases"):
        rows = pages.load_rows(part)
        for row in rows:
            first = next(other for other in rows if other["seed"] == row["seed"])
            for name in ("shared_init_sha256", "batches_sha256", "data_sha256", "steps"):
                assert row[name] == first[name], (part, row["run"], name)


@pytest.fixture
def tiny(small, tmp_path, monkeypatch):
    """Measurements of two schemes and of a fine-tuned run, in seconds."""
    monkeypatch.setattr(measurements, "DATA", tmp_path / "data")
    monkeypatch.setattr(measurements, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(measurements, "LENGTHS", [8, 16, 32])
    rope, learned = (TrainedRun(name, (*small, "--model.position", name)) for name in ("rope", "learned"))
    tuned = TrainedRun("tuned", ("--model.seq_len", "32", "--run.steps", "2"), rope)
    return [
        Measurement("schemes", "rope", rope, {"scheme": "rope", "seed": 0}),
        Measurement("schemes", "learned", learned, {"scheme": "learned", "seed": 0}),
        Measurement("tuned", "tuned", tuned, {"scaling": "none", "seed": 0}, ("--lengths", "16", "32")),
    ]


def test_a_measurement_trains_what_it_needs_once_and_writes_its_figures(tiny):
    trained = []

    def count_and_train(argv: list[str]) -> dict:
        trained.append(argv)
        return train.main(argv)

    for one in reversed(tiny):  # the fine-tuned run comes first, and needs the rope run
        measurements.write_measurement(one, (count_and_train, evaluate.main))
    assert len(trained) == 3
    rope, learned, tuned = (json.loads(one.file.read_text()) for one in tiny)
    assert rope["shared_init_sha256"] == learned["shared_init_sha256"]
    assert list(rope["loss_by_length"]) == ["8", "16", "32"]
    assert learned["loss_by_length"]["32"] is None
    assert rope["curve"][-1][0] == rope["steps"]
    assert tuned["init_from"] == "rope"
    assert [row["length"] for row in tuned["results"]] == [16, 32]


def test_what_is_there_is_not_measured_again(tiny, capsys):
    for one in tiny:
        one.file.parent.mkdir(parents=True, exist_ok=True)
        one.file.write_text("{}")
    measurements.run_missing(tiny, (train.main, evaluate.main), at_once=1)
    assert capsys.readouterr().out == ""


def fail(argv: list[str]) -> dict:
    raise RunFailed("the disk is full")


def test_a_failure_is_named_after_everything_else_was_tried(tiny, capsys):
    failing = [Measurement("part", name, tiny[0].run, {}) for name in "ab"]
    with pytest.raises(RunFailed, match=r"part [ab]: the disk is full .*; part [ab]: the disk is full"):
        measurements.run_missing(failing, (fail, fail), at_once=1)
    assert "2 of 2" in capsys.readouterr().out


def test_without_any_measurement_there_is_no_page_to_write():
    with pytest.raises(BadInput, match=r"--measure false: .* no measurement"):
        measurements.run_experiment(["--measure", "false"], "A question.", [], fail, fail)
