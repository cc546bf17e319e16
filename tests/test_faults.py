"""The short form of tests/long/faults.py: every campaign that tries to break a run, with a few tries each.

.venv/bin/python -m pytest tests/test_faults.py
"""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import faults
import pytest
import yaml
from filelock import FileLock

import train
from harness import preparing
from harness.checkpoints import steps_saved
from harness.folder import RunFolder
from harness.messages import BadInput
from harness.runs import load_finished_run

REPOSITORY = Path(train.__file__).parent
PAGE = REPOSITORY / "docs" / "reliability.md"
FIGURES = REPOSITORY / "results" / "faults.json"


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> dict[str, Any]:
    """What all campaigns count, in a process that may fork: this one has threads of other tests."""
    out = tmp_path_factory.mktemp("faults") / "figures.json"
    script = [sys.executable, str(REPOSITORY / "tests" / "long" / "faults.py"), "--short", "true", "--out", str(out)]
    done = subprocess.run(script, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert out.exists(), done.stderr
    return json.loads(out.read_text())


@pytest.mark.parametrize("campaign", faults.CAMPAIGNS)
def test_nothing_is_lost_in_the_short_form_of_a_campaign(figures, campaign):
    assert figures[campaign]["lost"] == []
    assert figures[campaign]["tries"] >= {"kills": 12, "damage": 300, "soak": 400}.get(campaign, 2)


def test_a_campaign_that_loses_something_says_so_and_ends_with_3(monkeypatch, at_the_shell):
    def loses(count: faults.Count, *_: Any) -> None:
        count.check(False, "one byte")

    monkeypatch.setitem(faults.CAMPAIGNS, "kills", (loses, 5, 5))
    monkeypatch.setattr(faults, "training", lambda argv: lambda _: None)
    ended = at_the_shell(faults.main, ["kills"])
    assert ended.code == 3
    assert "1 losses" in ended.err
    assert '"lost": ["one byte"]' in ended.out


def test_a_campaign_that_is_none_is_refused(at_the_shell):
    ended = at_the_shell(faults.main, ["kill"])
    assert ended.code == 2
    assert "did you mean kills?" in ended.err


def looks_of(bytes_a_step: float = 0, files_a_step: float = 0, entries: int = 20) -> list[faults.Look]:
    """What the soak sees of a run of 20,000 steps that leaks: memory comes in whole pages."""
    steps = range(4000, 20_000, 50)
    return [
        faults.Look(n, (90_000 + int(bytes_a_step * n) // 4096) * 4096, 0, 12 + int(files_a_step * n), entries, 270_000)
        for n in steps
    ]


@pytest.mark.parametrize(
    ("leak", "says"),
    [
        ({}, None),
        ({"bytes_a_step": 4096 / 15_000}, None),  # one page
        ({"bytes_a_step": 16}, "memory grew by 16.0 bytes a step"),  # Python's smallest object
        ({"files_a_step": 1 / 5000}, "open files grew from 12"),
        ({"entries": 40}, "40 entries in the folder"),
    ],
    ids=["flat", "one page", "an object a step", "a file in 5,000 steps", "checkpoints that stay"],
)
def test_the_soak_sees_the_smallest_leak_of_every_step(leak, says):
    _, wrong = faults.not_flat(looks_of(**leak), faults.MOST_A_STEP["disabled"])
    assert [re.match(says, each) is not None for each in wrong] == [True] if says else wrong == []


# ---- what the campaigns found, each by itself ------------------------------------------------------------------------


def test_a_run_that_was_killed_while_it_wrote_its_first_file_goes_on(small, tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.yaml.123").write_text("model:")
    train.main([*small, "--run.out", str(tmp_path), "--run.resume", "true"])
    assert not (tmp_path / ".config.yaml.123").exists()
    assert load_finished_run(tmp_path)


def test_a_run_that_was_killed_while_it_replaced_another_is_still_a_run(small, tmp_path, finished, monkeypatch):
    argv = [*small, "--run.out", str(tmp_path / "run"), "--run.steps", "2"]
    train.main(argv)
    with monkeypatch.context() as patch:
        patch.setattr(yaml, "safe_dump", lambda *_, **__: 1 / 0)  # all old files are gone, none is new
        with pytest.raises(ZeroDivisionError):
            train.main([*argv, "--run.overwrite", "true", "--run.seed", "1"])
    assert steps_saved(tmp_path / "run") == []
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["run"]["seed"] == 0
    train.main([*argv, "--run.overwrite", "true", "--run.seed", "1"])
    assert load_finished_run(tmp_path / "run").settings["seed"] == 1


def test_what_killed_runs_left_aside_is_removed_and_what_is_the_users_is_not(small, tmp_path):
    argv = [*small, "--run.out", str(tmp_path)]
    train.main(argv)
    ours, users = [".result.json.77", ".model.safetensors.1"], [".result.json", ".gitignore", ".notes.77"]
    for name in (*ours, *users):
        (tmp_path / name).touch()
    train.main([*argv, "--run.overwrite", "true"])
    assert [(tmp_path / name).exists() for name in (*ours, *users)] == [False, False, True, True, True]


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"loss": ', b'"loss": 1'), (b'"step": 2', b'"step": 3'), (b"train", b"tr\xe1in"), (b"{", b"[")],
    ids=["another figure", "another step", "not UTF-8", "not JSON"],
)
def test_metrics_that_were_damaged_before_the_checkpoint_are_told_and_the_run_goes_on(
    small, tmp_path, capsys, monkeypatch, old, new
):
    argv = [*small, "--run.out", str(tmp_path / "run"), "--run.save_every", "3"]
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train.main(argv)
    file = tmp_path / "run" / "metrics.jsonl"
    file.write_bytes(file.read_bytes().replace(old, new, 1))
    train.main([*argv, "--run.resume", "true"])
    assert f"{file} is damaged: it is not what was logged up to step 4" in capsys.readouterr().err
    assert load_finished_run(tmp_path / "run")


def test_a_finished_run_whose_weights_were_changed_is_not_loaded(finished, tmp_path):
    folder = Path(shutil.copytree(finished("rope"), tmp_path / "run"))
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BadInput, match=r"model\.safetensors is damaged: its sha256 is not the one in result\.json"):
        load_finished_run(folder)
    result = json.loads((folder / "result.json").read_text())
    del result["weights_sha256"]  # a run that was killed after its weights were written, and before its result
    (folder / "result.json").write_text(json.dumps(result))
    assert load_finished_run(folder)


def test_a_killed_run_is_not_called_running_at_the_step_where_it_began(small, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        real = RunFolder.result

        def killed_before_it_says_more(folder: RunFolder, status: str, **values: Any) -> None:
            if status == "running":
                real(folder, status, **values)

        patch.setattr(RunFolder, "result", killed_before_it_says_more)
        patch.setattr(RunFolder, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train.main([*small, "--run.out", str(folder)])
    with pytest.raises(BadInput, match=r"already holds a run \(still running, or killed, at step 4 of 4\)"):
        train.main([*small, "--run.out", str(folder)])
    with pytest.raises(BadInput, match=r"has no weights: its run is still running, or killed, at step 4 of 4"):
        load_finished_run(folder)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC], ids=errno.errorcode.get)
def test_a_disk_that_refuses_while_data_are_prepared_is_one_line(small, tmp_path, monkeypatch, at_the_shell, code):
    def refuses(*_: Any) -> None:
        raise OSError(code, os.strerror(code), "tokens")

    monkeypatch.setattr(preparing, "write_spool", refuses)
    ended = at_the_shell(train.main, [*small, "--run.out", str(tmp_path / "run"), "--data.cache", str(tmp_path / "c")])
    assert ended.code == (3 if code == errno.ENOSPC else 2)  # another place would do
    (line,) = ended.err.splitlines()
    assert os.strerror(code) in line
    assert not list(tmp_path.glob("c/*.tmp"))
    FileLock(next(tmp_path.glob("c/*.lock")), timeout=0).acquire().lock.release()  # nobody holds it
    assert not (tmp_path / "run").exists()


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_figures_on_the_page_are_those_of_the_committed_results():
    committed = json.loads(FIGURES.read_text())
    assert f"{faults.BEGIN}\n{faults.table(committed)}\n{faults.END}" in PAGE.read_text(encoding="utf-8")
    assert {
        name: committed[name]["losses"] for name in committed if name in faults.CAMPAIGNS and committed[name]["losses"]
    } == {}


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"`(test_\w+)`", PAGE.read_text())
    sources = "".join(path.read_text() for path in (REPOSITORY / "tests").glob("test_*.py"))
    assert len(named) > 10
    assert [name for name in named if f"def {name}(" not in sources] == []
