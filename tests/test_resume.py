"""A run that is stopped, killed, damaged or out of room, and goes on as if nothing had happened.

.venv/bin/python -m pytest tests/test_resume.py
"""

import errno
import hashlib
import io
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
import yaml
from filelock import FileLock
from safetensors.torch import load_file
from strikes import events, outcome

import compare
import train
from data import DataConfig
from harness import checkpoints, devices, files, progress, signals
from harness.checkpoints import last_whole, read_checkpoint, steps_saved
from harness.folder import RunFolder
from harness.messages import BadInput, RunFailed
from harness.run import Run
from harness.scoring import Score
from model import ModelConfig, Transformer

REPOSITORY = Path(train.__file__).parent
STEPS = ["--run.steps", "8", "--run.eval_every", "3", "--run.save_every", "2"]  # saves after 2, 3 (a look), 4, 6, 8
RESUME = ["--run.resume", "true"]
FILES = ["config.yaml", "manifest.json", "model.safetensors", "optimizer.pt"]


class Killed(BaseException):
    """Ends a run where it stands, as kill -9 would: there is no `except` for it."""


def run(small: list[str], folder: Path, *flags: str) -> Path:
    train.main([*small, *STEPS, "--run.out", str(folder), *flags])
    return folder


def at_step(monkeypatch, step: int, do: Callable[[], None]) -> None:
    """Call something in the middle of a step, counted from 1. The learning rate is asked for once a step."""
    real = train.learning_rate

    def learning_rate(index: int, config: train.RunConfig) -> float:
        if index + 1 == step:
            do()
        return real(index, config)

    monkeypatch.setattr(train, "learning_rate", learning_rate)


def kill() -> None:
    raise Killed


def killed(small: list[str], folder: Path, step: int, *flags: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, step, kill)
        with pytest.raises(Killed):
            run(small, folder, *flags)
    return folder


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def everything_in(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory) -> Callable[[str], Path]:
    """A scheme's run that was never stopped; only read."""
    folders: dict[str, Path] = {}

    def folder(scheme: str = "rope") -> Path:
        if scheme not in folders:
            folders[scheme] = run(small, tmp_path_factory.mktemp("whole") / scheme, "--model.position", scheme)
        return folders[scheme]

    folder()  # here, where no test has broken anything yet
    return folder


@pytest.fixture(scope="module")
def stopped(small, tmp_path_factory) -> Path:
    """A run that was killed in step 7, with checkpoints of 4 and 6, the best; only read, or copied first."""
    return killed(small, tmp_path_factory.mktemp("stopped") / "run", 7)


@pytest.fixture
def mine(stopped, tmp_path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


# ---- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, 4, 7], ids=["before any save", "after a look", "in between"])
@pytest.mark.parametrize("scheme", ["rope", "alibi", "t5", "learned"])
def test_a_run_that_was_killed_goes_on_to_the_bit_as_if_it_had_not_been(small, tmp_path, whole, scheme, step):
    folder = killed(small, tmp_path / "run", step, "--model.position", scheme)
    assert steps_saved(folder)[:1] == {2: [], 4: [3], 7: [6]}[step]
    run(small, folder, "--model.position", scheme, *RESUME)
    assert outcome(folder) == outcome(whole(scheme))


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("scheme", ["rope", "t5", "learned"])
def test_a_run_on_a_card_goes_on_to_the_bit_too(small, tmp_path, scheme, precision):
    flags = ["--run.device", "cuda", "--run.precision", precision, "--model.position", scheme]
    uninterrupted = run(small, tmp_path / "whole", *flags)
    folder = killed(small, tmp_path / "run", 4, *flags)
    assert outcome(run(small, folder, *flags, *RESUME)) == outcome(uninterrupted)


def test_a_run_that_is_killed_again_and_again_is_the_same_in_the_end(small, tmp_path, whole):
    folder = killed(small, tmp_path / "run", 3)
    for step in (4, 5, 6, 8):
        killed(small, folder, step, *RESUME)
    run(small, folder, *RESUME)
    assert outcome(folder) == outcome(whole())


def test_a_run_that_was_killed_after_its_last_step_is_only_finished(small, tmp_path, whole, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "save", lambda *_: kill())
        with pytest.raises(Killed):
            run(small, tmp_path / "run")
    at_step(monkeypatch, 8, lambda: pytest.fail("trained again"))
    run(small, tmp_path / "run", *RESUME)
    assert outcome(tmp_path / "run") == outcome(whole())


def test_each_step_is_logged_once_and_in_order_whatever_was_logged_after_the_checkpoint(small, mine):
    with open(mine / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 7, "split": "train", "loss": 99.0}) + '\n{"step": 8, "spl')
    run(small, mine, *RESUME)
    logged = [(event["step"], event["split"]) for event in events(mine)]
    looks = {3: [(3, "val")], 6: [(6, "val")], 8: [(8, "val")]}
    assert logged == [each for step in range(1, 9) for each in [(step, "train"), *looks.get(step, [])]]
    assert 99.0 not in [event["loss"] for event in events(mine)]


def test_resume_without_a_run_starts_one(small, tmp_path, whole):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()  # of a process that was killed before it wrote anything
    assert outcome(run(small, tmp_path / "run", *RESUME)) == outcome(whole())


def test_a_folder_with_nothing_but_a_lock_is_free(small, tmp_path, whole):
    (tmp_path / ".lock").touch()
    assert outcome(run(small, tmp_path)) == outcome(whole())


def test_a_run_goes_on_from_its_own_config_yaml(mine, whole):
    train.main(["--config", str(mine / "config.yaml"), "--run.out", str(mine), *RESUME])
    assert outcome(mine) == outcome(whole())


def test_config_yaml_never_says_what_to_do_with_a_folder(small, mine):
    run(small, mine, *RESUME)
    assert yaml.safe_load((mine / "config.yaml").read_text())["run"]["resume"] is False
    run(small, mine, "--run.overwrite", "true")
    assert yaml.safe_load((mine / "config.yaml").read_text())["run"]["overwrite"] is False


def test_the_wall_clock_goes_on(small, mine):
    run(small, mine, *RESUME)
    seconds = [json.loads(line)["seconds"] for line in (mine / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds)
    assert result(mine)["seconds"] >= seconds[-1]


def test_a_tuned_run_goes_on_too(small, tmp_path, whole):
    own = ["--run.init_from", str(whole()), "--model.seq_len", "24"]
    expected = outcome(run(small, tmp_path / "whole", *own))
    folder = killed(small, tmp_path / "run", 6, *own)
    run(small, folder, *own, *RESUME)
    assert outcome(folder) == expected
    assert result(folder)["init_from_sha256"] == result(whole())["weights_sha256"]


def test_a_run_on_tasks_goes_on_too(small, tmp_path):
    own = ["--data.corpus", "task:copy", "--model.seq_len", "32"]
    expected = outcome(run(small, tmp_path / "whole", *own))
    folder = killed(small, tmp_path / "run", 6, *own)
    run(small, folder, *own, *RESUME)
    assert outcome(folder) == expected


def test_learned_factors_go_on_too(small, tmp_path):
    own = ["--model.rope.learn_factors", "true"]
    expected = run(small, tmp_path / "whole", *own)
    folder = killed(small, tmp_path / "run", 6, *own)
    run(small, folder, *own, *RESUME)
    assert outcome(folder) == outcome(expected)
    assert (folder / "longrope.yaml").read_text() == (expected / "longrope.yaml").read_text()


def test_wandb_goes_on_with_the_same_run(small, tmp_path, monkeypatch):
    asked = []

    class Fake:
        def log(self, values, step):
            pass

        def finish(self, exit_code):
            pass

    monkeypatch.setattr(wandb, "init", lambda **settings: asked.append(settings) or Fake())
    folder = killed(small, tmp_path / "run", 5, "--run.wandb", "online")
    run(small, folder, "--run.wandb", "online", *RESUME)
    other = run(small, tmp_path / "other", "--run.wandb", "offline")
    ids = [settings["id"] for settings in asked]
    assert ids[0] == ids[1] != ids[2]
    assert ids[0] == result(folder)["wandb_id"] != result(other)["wandb_id"]
    assert [settings["resume"] for settings in asked] == ["allow", "allow", None]


# ---- what a checkpoint is --------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_weights_optimiser_config_and_sums_by_plain_names(stopped):
    folder = stopped / "checkpoints" / "step-6"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    model = Transformer(ModelConfig(vocab_size=259, d_model=16, n_layer=1, n_head=2, seq_len=16))
    assert load_file(folder / "model.safetensors").keys() == model.state_dict().keys()
    kept = torch.load(folder / "optimizer.pt", weights_only=True)
    assert kept["optimizer"].keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert kept["optimizer"][name].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert kept["optimizer"][name]["step"] == 6
        assert kept["optimizer"][name]["exp_avg"].shape == parameter.shape
    assert (kept["state"]["step"], kept["state"]["steps"], kept["state"]["skipped"]) == (6, 8, 0)
    assert (folder / "config.yaml").read_bytes() == (stopped / "config.yaml").read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in FILES[:1] + FILES[2:]:
        content = (folder / name).read_bytes()
        assert manifest["files"][name] == {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def looks(monkeypatch, *losses: float) -> None:
    """What the looks at the validation split find, one after the other."""
    found = iter(losses)
    monkeypatch.setattr("harness.run.score", lambda *_: Score(next(found, 9.0), 1, 1))


def test_the_best_the_last_and_the_one_before_are_kept(small, tmp_path, monkeypatch):
    looks(monkeypatch, 5.0, 3.0, 4.0, 3.5, 3.0)
    folder = run(small, tmp_path / "run", "--run.eval_every", "1", "--run.save_every", "1")
    assert steps_saved(folder) == [8, 7, 2]
    assert result(folder)["best"] == {"step": 2, "loss": 3.0}


def test_what_could_not_be_removed_at_once_is_removed_later(small, tmp_path, monkeypatch):
    real, refused = shutil.rmtree, []

    def rmtree(path, *args, **kwargs):
        if Path(path).name.startswith(".old-") and Path(path).exists() and len(refused) < 2:
            refused.append(path)  # a disk that is read-only for a moment: ignore_errors hides it
            return
        real(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    folder = run(small, tmp_path / "run", "--run.save_every", "1")
    assert len(refused) == 2
    assert {each.name for each in (folder / "checkpoints").iterdir()} == {f"step-{n}" for n in steps_saved(folder)}


def test_the_lowest_look_is_saved_though_no_save_was_due(small, tmp_path, monkeypatch):
    looks(monkeypatch, 5.0, math.nan, 4.0, 6.0)
    folder = run(small, tmp_path / "run", "--run.eval_every", "2", "--run.save_every", "5")
    assert steps_saved(folder) == [8, 6]  # 2 and 5 went when they were neither
    assert result(folder)["best"] == {"step": 6, "loss": 4.0}


def test_the_best_so_far_is_remembered_by_a_run_that_goes_on(small, tmp_path, monkeypatch):
    looks(monkeypatch, 3.0, 4.0)
    folder = killed(small, tmp_path / "run", 7, "--run.eval_every", "2")
    looks(monkeypatch, 3.5, 3.5)
    run(small, folder, "--run.eval_every", "2", *RESUME)
    assert steps_saved(folder) == [8, 6, 2]
    assert result(folder)["best"] == {"step": 2, "loss": 3.0}


def test_overwrite_removes_the_checkpoints_of_the_run_before(small, mine):
    run(small, mine, "--run.overwrite", "true", "--run.steps", "1")
    assert steps_saved(mine) == [1]


def test_saving_does_not_change_training_by_a_bit(small, tmp_path, whole):
    often = run(small, tmp_path / "often", "--run.save_every", "1")
    assert outcome(often) == outcome(whole())


# ---- damage ----------------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip, empty, Path.unlink])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(mine, capsys, file, damage):
    assert last_whole(mine).state["step"] == 6
    assert capsys.readouterr().err == ""
    damage(mine / "checkpoints" / "step-6" / file)
    assert last_whole(mine).state["step"] == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert f"checkpoints/step-6/{file} is " in line
    assert ("missing" if damage is Path.unlink else "damaged") in line


# ---- checkpoints of somebody else ------------------------------------------------------------------------------------

OTHERS = {  # what another run differs by -> its options
    "another rate": ["--run.learning_rate", "0.01"],
    "another scheme": ["--model.position", "none"],
    "another number of steps": ["--run.steps", "40"],
    "nothing but its id": [],
}


def plant_checkpoint(small: list[str], folder: Path, flags: list[str]) -> None:
    """Put the checkpoint of step 6 of another run in the place of this run's."""
    theirs = killed(small, folder.parent / "theirs", 8, *flags)
    shutil.rmtree(folder / "checkpoints" / "step-6")
    shutil.copytree(theirs / "checkpoints" / "step-6", folder / "checkpoints" / "step-6")


@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_another_run_is_named_and_not_gone_on_from(small, mine, whole, capsys, other):
    plant_checkpoint(small, mine, OTHERS[other])
    capsys.readouterr()
    run(small, mine, *RESUME)
    said = capsys.readouterr()
    assert "checkpoints/step-6 is a checkpoint of another run" in said.err
    assert "going on after step 4" in said.out
    assert outcome(mine) == outcome(whole())


def test_a_finished_run_does_not_list_the_checkpoint_of_another_as_whole(small, whole, tmp_path, capsys):
    folder = Path(shutil.copytree(whole(), tmp_path / "run"))
    plant_checkpoint(small, folder, OTHERS["another rate"])
    capsys.readouterr()
    run(small, folder, *RESUME)
    said = capsys.readouterr()
    assert "step-6 is a checkpoint of another run" in said.err
    assert "whole checkpoints: step-8" in said.out.replace("step-3, ", "")


def test_a_run_without_an_id_from_before_there_were_any_still_goes_on_and_says_so_once(small, mine, whole, capsys):
    for step in steps_saved(mine):
        reseal(mine / "checkpoints" / f"step-{step}", lambda found: found.state.pop("run_id"))
    old = result(mine)
    del old["run_id"]
    (mine / "result.json").write_text(json.dumps(old))
    capsys.readouterr()
    run(small, mine, *RESUME)
    assert capsys.readouterr().out.count("from before runs had ids") == 1
    assert "run_id" not in result(mine)  # or the older ones of its checkpoints would be another run's
    assert outcome(mine) == outcome(whole())


def reseal(folder: Path, change: Callable[[checkpoints.Checkpoint], Any]) -> None:
    """Change what a checkpoint holds, and seal it again, as whoever can write there may do."""
    found = read_checkpoint(folder)
    change(found)
    for name, content in found.pack().items():
        (folder / name).write_bytes(content)


def first(tensors: dict[str, Any]) -> Any:
    return next(iter(tensors))


SEALED = {  # what is wrong in a sealed checkpoint -> how it comes about, and a word of the line
    "moments of another shape": (
        lambda c: c.optimizer[first(c.optimizer)].update(exp_avg=torch.zeros(3)),
        "exp_avg is",
    ),
    "moments of another type": (
        lambda c: c.optimizer[first(c.optimizer)].update(exp_avg_sq=torch.zeros(3).long()),
        "exp_avg_sq is",
    ),
    "no count of steps": (lambda c: c.optimizer[first(c.optimizer)].pop("step"), "step is not there"),
    "moments of nothing": (lambda c: c.optimizer.update(nothing={"step": torch.tensor(1.0)}), "nothing"),
    "no tensor": (lambda c: c.optimizer[first(c.optimizer)].update(step=3), "something else than tensors"),
    "a weight too few": (lambda c: c.weights.pop(first(c.weights)), "is not there"),
    "a weight too many": (lambda c: c.weights.update(more=torch.zeros(1)), "more is"),
    "a weight of another shape": (lambda c: c.weights.update({first(c.weights): torch.zeros(2, 2)}), "is (torch.Size"),
    "no hash of batches": (lambda c: c.state.pop("batches_sha256"), "batches_sha256"),
    "a hash that is none": (lambda c: c.state.update(batches_sha256="xyz"), "batches_sha256"),
    "a step in words": (lambda c: c.state.update(seconds="many"), "seconds"),
    "more steps than there are": (lambda c: c.state.update(steps=5), "step 6 of 5"),
    "another number of steps": (lambda c: c.state.update(steps=10**9), "run.steps 1000000000, not 8"),
    "a word of result.json": (lambda c: c.state.update(status="finished"), "status"),
    "a tensor for result.json": (lambda c: c.state["best"].update(more=torch.zeros(1)), "more"),
    "a path for W&B": (lambda c: c.state.update(wandb_id="../../elsewhere"), "wandb_id"),
    "no config": (lambda c: setattr(c, "config", b"data: 3"), "config.yaml is damaged"),
}


@pytest.mark.parametrize("wrong", SEALED)
def test_a_sealed_checkpoint_that_does_not_fit_is_named_and_the_one_before_is_used(small, mine, whole, capsys, wrong):
    change, word = SEALED[wrong]
    reseal(mine / "checkpoints" / "step-6", change)
    run(small, mine, *RESUME)
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if "looking for the checkpoint before" in line]
    assert "step-6" in line
    assert word in line
    assert "going on after step 4" in said.out
    assert outcome(mine) == outcome(whole())


@pytest.mark.parametrize("way", ["compressed", "a part twice"])
def test_a_small_file_that_would_fill_the_memory_is_refused_before_it_is_unpacked(mine, capsys, way):
    buffer, packed = io.BytesIO(), io.BytesIO()
    torch.save({"state": {}, "optimizer": {"x": {"exp_avg": torch.zeros(1 << 20)}}}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist() * (1 if way == "compressed" else 2):
            with warnings.catch_warnings(action="ignore"):  # zipfile's, about the second
                new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED if way == "compressed" else zipfile.ZIP_STORED)
    plant(mine / "checkpoints" / "step-6", packed.getvalue())
    assert last_whole(mine).state["step"] == 4
    assert "compressed, or has a part twice" in capsys.readouterr().err


ODD = {  # what may stand in a run's folder -> how it comes there
    "a file for a checkpoint": lambda folder: (folder / "checkpoints" / "step-9").write_text(""),
    "a link to itself for a checkpoint": lambda folder: (folder / "checkpoints" / "step-9").symlink_to("step-9"),
    "a link elsewhere for a checkpoint": lambda folder: (folder / "checkpoints" / "step-9").symlink_to("/"),
    "a file where the next is written": lambda folder: (folder / "checkpoints" / ".step-8").write_text(""),
    "a link where the next is written": lambda folder: (folder / "checkpoints" / ".step-8").symlink_to("/"),
    "a file where an old one goes": lambda folder: (folder / "checkpoints" / ".old-4").write_text(""),
    "a folder like a file half written": lambda folder: (folder / ".config.yaml.1").mkdir(),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_things_in_a_run_folder_do_not_stop_it(small, mine, whole, odd):
    ODD[odd](mine)
    run(small, mine, *RESUME)
    assert outcome(mine) == outcome(whole())
    assert not [each.name for each in mine.rglob(".*") if each.name != ".lock"]


def test_a_folder_that_is_made_and_cannot_be_locked_is_not_left_behind(small, tmp_path, monkeypatch):
    class Denied(FileLock):
        def acquire(self) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")  # as under umask 777

    monkeypatch.setattr("harness.folder.FileLock", Denied)
    with pytest.raises(BadInput, match=r"new/run cannot be written \(Permission denied\)"):
        run(small, tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("way", ["removed", "renamed", "replaced", "its lock removed"])
def test_a_run_whose_folder_is_taken_from_it_stops_and_writes_into_no_others(
    small, stopped, tmp_path, monkeypatch, way
):
    folder, before = tmp_path / "run", {}

    def take() -> None:
        folder.rename(tmp_path / "away") if way != "its lock removed" else (folder / ".lock").unlink()
        if way == "replaced":
            shutil.copytree(stopped, folder)
        if way == "removed":
            shutil.rmtree(tmp_path / "away")
        before.update(everything_in(tmp_path))

    at_step(monkeypatch, 5, take)
    with pytest.raises(RunFailed, match=r"not the folder any more that this run has locked.*of step 4"):
        run(small, folder)
    now = everything_in(tmp_path)
    changed = [Path(name).name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
    assert set(changed) <= {"metrics.jsonl"}  # its own, which it has open


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "result.json", "wandb", ".lock"])
def test_a_link_in_a_run_folder_is_refused_and_nothing_elsewhere_is_touched(small, mine, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    if (mine / name).exists():
        (mine / name).rename(elsewhere)
    else:
        elsewhere.write_text("theirs")
    (mine / name).symlink_to(elsewhere)
    before = everything_in(tmp_path)
    for flags in (RESUME, ["--run.overwrite", "true"]):
        with pytest.raises(BadInput, match=rf"{name} in it is a link"):
            run(small, mine, *flags)
    assert everything_in(tmp_path) == before


def test_every_bit_of_the_manifest_counts(mine):
    path = mine / "checkpoints" / "step-6" / "manifest.json"
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(checkpoints.Damaged):
            read_checkpoint(path.parent)


def test_a_run_that_goes_on_with_other_threads_says_that_sums_round_otherwise(small, mine, capsys, monkeypatch):
    machine = progress.describe_machine
    monkeypatch.setattr(progress, "describe_machine", lambda run: f"{machine(run)} more")
    run(small, mine, *RESUME)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "ran on" in line]
    assert "ran on cpu, 1 thread so far and goes on on cpu, 1 thread more: sums round otherwise" in line


def test_a_clock_that_stands_still_costs_a_run_its_rates_alone(small, tmp_path, whole, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: 5.0)
    run(small, tmp_path / "run")
    assert result(tmp_path / "run")["tokens_per_second"] is None
    assert result(tmp_path / "run")["weights_sha256"] == result(whole())["weights_sha256"]


def test_a_checkpoint_under_another_steps_name_is_damaged(mine):
    shutil.copytree(mine / "checkpoints" / "step-4", mine / "checkpoints" / "step-7")
    assert last_whole(mine).state["step"] == 6


def test_a_run_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before(small, mine, whole, capsys):
    flip(mine / "checkpoints" / "step-6" / "optimizer.pt")
    run(small, mine, *RESUME)
    said = capsys.readouterr()
    assert "step-6/optimizer.pt is damaged" in said.err
    assert "going on after step 4" in said.out
    assert outcome(mine) == outcome(whole())
    assert read_checkpoint(mine / "checkpoints" / "step-6").state["step"] == 6  # made again


def test_a_run_without_a_whole_checkpoint_starts_at_step_0_and_says_so(small, mine, whole, capsys):
    for step in steps_saved(mine):
        truncate(mine / "checkpoints" / f"step-{step}" / "model.safetensors")
    run(small, mine, *RESUME)
    said = capsys.readouterr()
    assert [said.err.count(f"step-{step}/model.safetensors is damaged") for step in (4, 6)] == [1, 1]
    assert "from step 0" in said.out
    assert outcome(mine) == outcome(whole())


def plant(folder: Path, payload: bytes) -> None:
    """Put a file in the optimiser's place, with sums that fit."""
    (folder / "optimizer.pt").write_bytes(payload)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["optimizer.pt"] = {"sha256": hashlib.sha256(payload).hexdigest(), "size": len(payload)}
    manifest.pop("sha256")
    (folder / "manifest.json").write_bytes(checkpoints.seal(manifest))


@pytest.mark.parametrize("way", ["torch.save", "plain pickle"])
def test_a_planted_pickle_is_refused_and_never_run(mine, tmp_path, capsys, way):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "run_by_pickle",)

    buffer = io.BytesIO()
    torch.save({"state": {"step": 6}, "optimizer": Evil()}, buffer)
    warnings.simplefilter("ignore")  # PyTorch's, about a file that it did not write
    payload = buffer.getvalue() if way == "torch.save" else pickle.dumps({"state": {"step": 6}, "optimizer": Evil()})
    torch.load(io.BytesIO(payload), weights_only=False) if way == "torch.save" else pickle.loads(payload)
    assert (tmp_path / "run_by_pickle").exists()  # it works on whoever lets it
    (tmp_path / "run_by_pickle").unlink()

    plant(mine / "checkpoints" / "step-6", payload)
    assert last_whole(mine).state["step"] == 4
    assert not (tmp_path / "run_by_pickle").exists()
    assert "step-6/optimizer.pt is damaged" in capsys.readouterr().err


def test_nothing_of_a_run_folder_is_read_as_a_free_pickle():
    for path in REPOSITORY.glob("*.py"):
        source = path.read_text()
        assert "pickle" not in source.replace("unpickled", ""), path
        assert source.count("torch.load(") == source.count("weights_only=True)"), path


# ---- a disk that refuses ---------------------------------------------------------------------------------------------


def saved_twice(path: Path, break_second: Callable[[], None]) -> None:
    """Two checkpoints of a tiny model, by hand; something breaks before the second."""
    config = ModelConfig(vocab_size=9, d_model=4, n_layer=1, n_head=1, seq_len=4)
    model = Transformer(config)
    optimizer = train.make_optimizer(model, train.RunConfig())
    folder = RunFolder({"data": DataConfig(), "model": config, "run": train.RunConfig(out=str(path))})
    state = {"steps": 2, "batches_sha256": "", "seconds": 0.0, "data_sha256": "", "shared_init_sha256": ""}
    try:
        for step in (1, 2):
            model(torch.zeros(1, 4, dtype=torch.long)).square().sum().backward()
            optimizer.step()
            if step == 2:
                break_second()
            folder.checkpoint(model, optimizer, {"step": step, "precision": "fp32", **state})
    finally:
        folder.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["write_flushed", "flush_folder", "os.replace", "os.fsync", "os.mkdir"])
def test_whichever_write_of_a_checkpoint_fails_the_one_before_is_whole(tmp_path, monkeypatch, name, code):
    owner, _, attribute = name.rpartition(".")
    target = os if owner else files
    real, n, failures = getattr(target, attribute), 0, 0
    while True:
        calls = iter(range(1000))

        def fails(*args, calls=calls, n=n, **kwargs):
            if next(calls) == n:
                if attribute == "write_flushed":
                    args[0].write_bytes(args[1][: len(args[1]) // 2])  # what did fit
                raise OSError(code, os.strerror(code), str(args[0]))
            return real(*args, **kwargs)

        path = tmp_path / str(n)
        with monkeypatch.context() as patch:
            try:
                saved_twice(path, lambda patch=patch, fails=fails: patch.setattr(target, attribute, fails))
                break  # there is no n-th write
            except OSError as error:
                if error.errno != code:
                    raise
        assert last_whole(path).state["step"] in ((1, 2) if name in ("flush_folder", "os.fsync") else (1,))
        assert read_checkpoint(path / "checkpoints" / "step-1").state["step"] == 1
        assert not list((path / "checkpoints").glob(".*"))
        n, failures = n + 1, failures + 1
    assert failures >= {"write_flushed": 4, "flush_folder": 2, "os.replace": 1, "os.fsync": 7, "os.mkdir": 1}[name]
    assert steps_saved(path) == [2, 1]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
def test_a_run_whose_disk_fills_up_says_what_it_has_and_goes_on_when_there_is_room(
    small, tmp_path, whole, at_the_shell, monkeypatch, code
):
    real, folder = files.write_flushed, tmp_path / "run"

    def full(path: Path, content: bytes) -> None:
        if path.parent.name == ".step-4":
            raise OSError(code, os.strerror(code), str(path))
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_flushed", full)
        ended = at_the_shell(train.main, [*small, *STEPS, "--run.out", str(folder)])
    assert ended.code == 3
    (line,) = [line for line in ended.err.splitlines() if line.strip()]
    for word in (os.strerror(code), "step-4", "last whole checkpoint is of step 3"):
        assert word in line
    assert result(folder)["status"] == "failed"
    assert steps_saved(folder) == [3, 2]
    run(small, folder, *RESUME)
    assert outcome(folder) == outcome(whole())


# ---- another config --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--run.learning_rate", "0.01"], ["run.learning_rate 0.003, not 0.01"]),
        (
            ["--run.seed", "1", "--model.d_model", "32"],
            ["run.seed 0, not 1", "model.d_model 16, not 32", "model.d_ff 32, not 64"],
        ),
        (["--model.rope.base", "500"], ["model.rope.base 10000.0, not 500.0"]),
        (["--model.position", "alibi"], ["model.position rope, not alibi"]),
        (["--data.tokenizer", "bpe"], ["data.tokenizer bytes, not bpe"]),
        (["--run.steps", "9"], ["run.steps 8, not 9", "--run.init_from"]),
    ],
)
def test_a_config_that_changes_the_result_is_refused_by_name_and_changes_nothing(small, mine, flags, names):
    before = everything_in(mine)
    with pytest.raises(BadInput) as refused:
        run(small, mine, *RESUME, *flags)
    for name in names:
        assert name in str(refused.value)
    assert str(refused.value).count(", not ") == len([name for name in names if "not" in name])
    assert everything_in(mine) == before


def test_harmless_options_may_change(small, mine, whole):
    flags = ["--run.save_every", "5", "--run.name", "other", "--run.device", "auto", "--run.on_nan", "skip"]
    run(small, mine, *RESUME, *flags, "--run.wandb", "offline")
    assert outcome(mine) == outcome(whole())
    assert yaml.safe_load((mine / "config.yaml").read_text())["run"]["save_every"] == 5


def test_a_head_that_only_its_own_rope_options_can_pair_goes_on(small, tmp_path):
    odd = ["--model.d_model", "20", "--model.n_head", "4", "--model.rope.fraction", "0.8"]  # 4 of 5 features turn
    folder = killed(small, tmp_path / "run", 7, *odd)
    run(small, folder, *odd, *RESUME)
    assert result(folder)["status"] == "finished"


def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_damaged(small, mine, monkeypatch):
    before, real = everything_in(mine), checkpoints.read_inside

    def failing(folder: Path, name: str) -> bytes:
        if name.endswith("optimizer.pt"):
            raise OSError(errno.EIO, "Input/output error", name)
        return real(folder, name)

    monkeypatch.setattr(checkpoints, "read_inside", failing)
    with pytest.raises(BadInput, match=r"optimizer\.pt cannot be read \(Input/output error\)"):
        run(small, mine, *RESUME)
    monkeypatch.undo()
    assert everything_in(mine) == before


def test_another_rule_for_first_values_is_refused(small, mine, monkeypatch):
    monkeypatch.setattr("harness.run.shared_sha256", lambda model: "another")
    with pytest.raises(BadInput, match=r"started with shared_init_sha256 .*, not another"):
        run(small, mine, *RESUME)


def test_looks_at_other_steps_change_no_weight(small, mine, whole):
    run(small, mine, *RESUME, "--run.eval_every", "7")
    assert [event["step"] for event in events(mine) if event["split"] == "val"] == [3, 6, 7, 8]
    assert result(mine)["weights_sha256"] == result(whole())["weights_sha256"]


def test_a_folder_that_was_moved_goes_on(small, mine, tmp_path, whole):
    moved = mine.rename(tmp_path / "moved")
    assert outcome(run(small, moved, *RESUME)) == outcome(whole())


def test_a_text_or_a_precision_that_changed_is_refused(small, tmp_path, text, monkeypatch):
    corpus = tmp_path / "text.txt"
    corpus.write_text(text)
    own = ["--data.corpus", str(corpus), "--run.precision", "auto"]
    folder = killed(small, tmp_path / "run", 5, *own)
    before = (folder / "metrics.jsonl").read_bytes(), steps_saved(folder)
    native = devices.bf16_is_native(torch.device("cpu"))
    with monkeypatch.context() as patch:
        patch.setattr(devices, "bf16_is_native", lambda device: not native)
        with pytest.raises(BadInput, match=r"started with precision \w+, not \w+"):
            run(small, folder, *own, *RESUME)
    corpus.write_text(text.replace("God", "gods"))
    with pytest.raises(BadInput, match="started with data_sha256"):
        run(small, folder, *own, *RESUME)
    assert ((folder / "metrics.jsonl").read_bytes(), steps_saved(folder)) == before


# ---- a finished run --------------------------------------------------------------------------------------------------


def test_a_finished_run_is_verified_and_not_touched(small, whole, at_the_shell):
    before = everything_in(whole())
    ended = at_the_shell(train.main, [*small, *STEPS, "--run.out", str(whole()), *RESUME])
    assert (ended.code, ended.err) == (0, "")
    assert "finished at step 8 of 8; whole checkpoints: step-6, step-8" in ended.out
    assert everything_in(whole()) == before


@pytest.mark.parametrize("file", ["checkpoints/step-8/optimizer.pt", "model.safetensors"])
def test_a_finished_run_that_was_damaged_is_named_and_made_whole_again(small, whole, tmp_path, at_the_shell, file):
    folder = Path(shutil.copytree(whole(), tmp_path / "run"))
    flip(folder / file)
    ended = at_the_shell(train.main, [*small, *STEPS, "--run.out", str(folder), *RESUME])
    assert ended.code == 0
    assert f"{file} is " in ended.err
    assert outcome(folder) == outcome(whole())
    assert read_checkpoint(folder / "checkpoints" / "step-8")


def test_an_older_damaged_checkpoint_of_a_finished_run_is_named(small, whole, tmp_path, at_the_shell):
    folder = Path(shutil.copytree(whole(), tmp_path / "run"))
    flip(folder / "checkpoints" / "step-6" / "model.safetensors")
    ended = at_the_shell(train.main, [*small, *STEPS, "--run.out", str(folder), *RESUME])
    assert ended.code == 0
    assert "step-6/model.safetensors is damaged" in ended.err


# ---- signals ---------------------------------------------------------------------------------------------------------


def send(*numbers: int) -> Callable[[], None]:
    def signal_myself() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    return signal_myself


@pytest.mark.parametrize(
    ("number", "code", "step"),
    [
        *((signal.SIGINT, 130, 5), (signal.SIGTERM, 143, 5), (signal.SIGTERM, 143, 3), (signal.SIGINT, 130, 8)),
        (signal.SIGHUP, 129, 5),
    ],
    ids=["Ctrl-C", "SIGTERM", "before a look", "in the last step", "a closed terminal"],
)
def test_a_stop_finishes_its_step_saves_and_exits_with_its_code(
    small, tmp_path, whole, at_the_shell, monkeypatch, number, code, step
):
    folder = tmp_path / "run"
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGUSR1)]
    with monkeypatch.context() as patch:
        at_step(patch, step, send(number))
        ended = at_the_shell(train.main, [*small, *STEPS, "--run.out", str(folder)])
    assert ended.code == code
    assert (result(folder)["status"], result(folder)["step"]) == ("interrupted", step)
    assert events(folder) == [event for event in events(whole()) if event["step"] <= step]
    assert steps_saved(folder)[0] == step
    assert f"interrupted at step {step} of 8; the last whole checkpoint is of step {step}" in ended.err
    assert signal.getsignal(signal.SIGINT) == before[0]
    run(small, folder, *RESUME)
    assert outcome(folder) == outcome(whole())


def test_a_run_whose_terminal_is_closed_saves_its_step(small, tmp_path):
    command = [sys.executable, "train.py", *small, *STEPS, "--run.steps", "100000", "--run.out", str(tmp_path / "run")]
    terminal, inside = os.openpty()
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=inside, stderr=inside, start_new_session=True) as process:
        os.close(inside)
        wait_for(lambda: steps_saved(tmp_path / "run"), process)
        os.close(terminal)
        process.send_signal(signal.SIGHUP)  # the kernel's own, were it the terminal of its session
    assert process.returncode == 129
    assert result(tmp_path / "run")["step"] == steps_saved(tmp_path / "run")[0]


def test_a_second_stop_exits_at_once(small, tmp_path, monkeypatch):
    codes = []

    def leave(code: int) -> None:
        codes.append(code)
        raise Killed

    monkeypatch.setattr(os, "_exit", leave)
    at_step(monkeypatch, 5, send(signal.SIGTERM, signal.SIGINT))
    with pytest.raises(Killed):
        run(small, tmp_path / "run")
    assert codes == [130]
    assert steps_saved(tmp_path / "run") == [4, 3]  # and nothing of step 5


def test_a_stop_that_reaches_a_run_of_a_comparison_twice_is_one(small, tmp_path, monkeypatch):
    monkeypatch.setattr(signals.Signals, "ALONE", False)  # as in a process that compare.py started
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("left at once"))
    at_step(monkeypatch, 5, send(signal.SIGTERM, signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        run(small, tmp_path / "run")
    assert ended.value.code == 143
    assert steps_saved(tmp_path / "run")[0] == 5


def test_a_stop_outside_the_steps_stops_at_once(small, tmp_path, whole, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(progress, "describe_plan", lambda *_: send(signal.SIGINT)())
        with pytest.raises(KeyboardInterrupt):
            run(small, tmp_path / "run")
    assert result(tmp_path / "run")["status"] == "interrupted"
    assert steps_saved(tmp_path / "run") == []
    run(small, tmp_path / "run", *RESUME)
    assert outcome(tmp_path / "run") == outcome(whole())


def test_sigusr1_saves_and_goes_on(small, tmp_path, whole, monkeypatch):
    seen = []
    at_step(monkeypatch, 5, send(signal.SIGUSR1))
    at_step(monkeypatch, 6, lambda: seen.extend(steps_saved(tmp_path / "run")))
    run(small, tmp_path / "run")
    assert seen[0] == 5
    assert outcome(tmp_path / "run") == outcome(whole())


def test_a_run_in_another_thread_leaves_signals_alone(small, tmp_path, whole):
    thread = threading.Thread(target=run, args=(small, tmp_path / "run"))
    thread.start()
    thread.join()
    assert outcome(tmp_path / "run") == outcome(whole())


SLOW = """
import time
import train
from harness import messages, signals
rate = train.learning_rate
train.learning_rate = lambda *args: (time.sleep(0.1), rate(*args))[1]
messages.run_main(train.main)
"""


@pytest.fixture
def slow(small, tmp_path):
    """A run in a process of its own, with at least a tenth of a second a step, once it has logged two steps."""
    folder, processes = tmp_path / "run", []

    def start(*flags: str) -> tuple[Path, subprocess.Popen]:
        argv = [*small, *STEPS, "--run.steps", "30", "--run.out", str(folder), *flags]
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW, *argv], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        wait_for(lambda: (folder / "metrics.jsonl").exists() and len(events(folder)) >= 2, process)
        return folder, process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_kill_9_loses_no_more_than_the_steps_since_the_last_save_and_the_lock_dies_too(small, tmp_path, slow):
    seldom = ["--run.steps", "30", "--run.eval_every", "30", "--run.save_every", "30"]
    folder, process = slow(*seldom)
    process.send_signal(signal.SIGUSR1)
    wait_for(lambda: steps_saved(folder), process)
    for flag in ("resume", "overwrite"):
        with pytest.raises(BadInput, match="is being written by another process"):
            run(small, folder, *seldom, f"--run.{flag}", "true")
    process.kill()
    process.wait()
    (step,) = steps_saved(folder)
    assert 2 <= step < 30
    assert result(folder)["status"] == "running"
    run(small, folder, *seldom, *RESUME)
    assert outcome(folder) == outcome(run(small, tmp_path / "whole", *seldom))


def test_sigterm_to_a_real_process_saves_and_ends_with_143(small, tmp_path, slow):
    folder, process = slow()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 143
    assert "Traceback" not in err
    assert result(folder)["status"] == "interrupted"
    assert steps_saved(folder)[0] == result(folder)["step"] == events(folder)[-1]["step"]
    run(small, folder, "--run.steps", "30", *RESUME)
    assert outcome(folder) == outcome(run(small, tmp_path / "whole", "--run.steps", "30"))


# ---- one writer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [["--run.overwrite", "true"], RESUME], ids=["overwrite", "resume"])
def test_a_second_writer_is_refused_in_one_line(small, mine, at_the_shell, flags):
    before = everything_in(mine)
    with FileLock(mine / ".lock"):
        ended = at_the_shell(train.main, [*small, *STEPS, "--run.out", str(mine), *flags])
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert str(mine) in line
    assert "another process" in line
    assert everything_in(mine) == before
    FileLock(mine / ".lock", timeout=0).acquire().lock.release()  # nobody holds it


# ---- numbers that are none -------------------------------------------------------------------------------------------


def spoil(monkeypatch, step: int, value: float = math.nan) -> None:
    """A step's loss becomes another, and all of its gradient infinite."""
    here, add, norm = [False], Run.sum, train.get_total_norm
    at_step(monkeypatch, step, lambda: here.__setitem__(0, True))

    def get_total_norm(gradients):
        for gradient in gradients if here[0] else ():
            gradient.fill_(math.inf)
        here[0] = False
        return norm(gradients)

    monkeypatch.setattr(Run, "sum", lambda self, loss: value if here[0] else add(self, loss))
    monkeypatch.setattr(train, "get_total_norm", get_total_norm)


@pytest.mark.parametrize("value", [math.nan, math.inf, 2.5], ids=["nan", "infinite", "only the gradient"])
def test_a_bad_step_stops_the_run_with_history_causes_and_the_last_checkpoint(
    small, tmp_path, at_the_shell, monkeypatch, value
):
    spoil(monkeypatch, 6, value)
    folder = tmp_path / "run"
    ended = at_the_shell(train.main, [*small, *STEPS, "--run.out", str(folder)])
    assert ended.code == 3
    (line,) = [line for line in ended.err.splitlines() if line.strip()]
    losses = [event["loss"] for event in events(folder) if event["split"] == "train"]
    for word in ("at step 6 of 8", *(f"{loss:.4g}" for loss in losses[:5]), "of step 4"):
        assert word in line
    for cause in ("--run.learning_rate", "--run.warmup", "--run.precision", "--run.on_nan skip"):
        assert cause in line
    assert last_whole(folder).state["step"] == 4


def test_skip_leaves_the_weights_of_that_step_and_counts_it(small, tmp_path, whole, monkeypatch, capsys):
    assert result(whole())["skipped"] == 0
    spoil(monkeypatch, 6)
    folder = run(small, tmp_path / "run", "--run.on_nan", "skip", "--run.save_every", "1", "--run.steps", "6")
    weights = [read_checkpoint(folder / "checkpoints" / f"step-{step}") for step in (5, 6)]
    for name, before in weights[0].weights.items():
        assert torch.equal(before, weights[1].weights[name])
    assert result(folder)["skipped"] == 1
    assert "step     6  skipped: the loss is nan" in (said := capsys.readouterr().out)
    assert "1 step skipped" in said
    (skipped,) = [event for event in events(folder) if "skipped" in event]
    assert (skipped["step"], skipped["skipped"], skipped["loss"]) == (6, 1, None)
    assert [event["step"] for event in events(folder) if event["split"] == "train"] == [1, 2, 3, 4, 5, 6]


def test_a_run_whose_last_weights_give_no_number_is_not_called_finished(small, tmp_path, monkeypatch):
    looks(monkeypatch, 5.0, 4.0, 4.0, math.nan)
    with pytest.raises(RunFailed, match=r"validation loss is nan after the last step"):
        run(small, tmp_path / "run", "--run.on_nan", "skip")
    assert result(tmp_path / "run")["status"] == "failed"


def test_a_run_that_stopped_at_a_bad_step_may_go_on_past_it(small, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        spoil(patch, 6)
        expected = outcome(run(small, tmp_path / "skipped", "--run.on_nan", "skip"))
    with monkeypatch.context() as patch:
        spoil(patch, 6)
        with pytest.raises(RunFailed):
            run(small, tmp_path / "run")
    spoil(monkeypatch, 6)
    run(small, tmp_path / "run", "--run.on_nan", "skip", *RESUME)
    assert outcome(tmp_path / "run") == expected
    assert result(tmp_path / "run")["skipped"] == 1


def test_out_of_memory_keeps_the_checkpoint_and_fewer_rows_at_once_may_go_on(small, tmp_path, whole, monkeypatch):
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        at_step(patch, 5, full)
        with pytest.raises(RunFailed) as failed:
            run(small, tmp_path / "run")
    for word in (
        "--run.micro_batch_size",
        "--model.seq_len 16",
        "--model.d_model 16",
        "of step 4",
        "--run.resume true",
    ):
        assert word in str(failed.value)
    run(small, tmp_path / "run", "--run.micro_batch_size", "1", *RESUME)
    assert result(tmp_path / "run")["val_loss"] == pytest.approx(result(whole())["val_loss"], rel=1e-4)


# ---- the comparison --------------------------------------------------------------------------------------------------


def test_a_comparison_that_was_stopped_goes_on_by_itself_to_the_bit(small, tmp_path, whole, monkeypatch):
    out = tmp_path / "out"
    argv = [*small, *STEPS, "--schemes", "rope", "alibi", "--jobs", "1", "--out", str(out), "--multiples", "1"]
    with monkeypatch.context() as patch:
        at_step(patch, 5, send(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            compare.main(argv)
    assert steps_saved(out / "rope-seed0")[0] == 5
    with pytest.raises(BadInput, match=r"unfinished run rope-seed0 there has run.learning_rate 0.003, not 0.02"):
        compare.main([*argv, "--run.learning_rate", "0.02"])
    at_step(monkeypatch, 5, lambda: seen.append(5))
    seen: list[int] = []
    compare.main(argv)
    assert seen == [5]  # alibi's, and not again rope's
    for scheme in ("rope", "alibi"):
        assert outcome(out / f"{scheme}-seed0")[0] == outcome(whole(scheme))[0]
        assert events(out / f"{scheme}-seed0") == events(whole(scheme))
