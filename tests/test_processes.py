"""One run on several processes: the same losses, the same files, one voice, and no process that waits for a dead one.

.venv/bin/python -m pytest tests/test_processes.py

The long form, at the default size and with more kills, is tests/long/distributed_long.py.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import REPOSITORY, Ended, Processes, run_on
from safetensors.torch import load_file

import train
from harness.checkpoints import last_whole, read_checkpoint, steps_saved
from harness.messages import BadInput
from harness.processes import World

# 5 rows by 2 processes are shares of 2 and 3, which at 2 rows at once take 1 pass and 2
STEPS = ["--run.steps", "8", "--run.eval_every", "4", "--run.save_every", "2", "--run.batch_size", "5"]
RESUME = ["--run.resume", "true"]
SHARD = ["--run.shard", "true"]


def training(folder: Path) -> list[float]:
    events = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [event["loss"] for event in events if event["split"] == "train"]


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def codes(ended: list[Ended]) -> list[int]:
    return [each.code for each in ended]


@pytest.fixture(scope="module")
def flags(small) -> list[str]:
    return [*small, *STEPS, "--model.position", "t5"]  # whose table is shared by all layers


@pytest.fixture(scope="module")
def finished_on(flags, tmp_path_factory) -> Callable[[str], Path]:
    """A finished run of one plain process, or of two with DDP or FSDP2; only read, or copied first."""
    folders: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp("finished") / kind
            argv = [*flags, "--run.micro_batch_size", "1", "--run.out", str(folders[kind])]
            if kind == "one":
                train.main(argv)
            else:
                ended = run_on(2, argv + SHARD * (kind == "FSDP2"), folders[kind].parent / "logs")
                assert codes(ended) == [0, 0], ended
                assert f"{kind}: validation loss" not in ended[0].said
                assert ended[1].said == ""
        return folders[kind]

    return folder


def unfinished(folder: Path, copy: Path, step: int) -> Path:
    """A copy of a finished run as it stood after a step that was saved."""
    shutil.copytree(folder, copy)
    for name in ("result.json", "model.safetensors"):
        (copy / name).unlink()
    for later in [each for each in steps_saved(copy) if each > step]:
        shutil.rmtree(copy / "checkpoints" / f"step-{later}")
    assert steps_saved(copy)[0] == step
    return copy


# ---- the same run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["DDP", "FSDP2"])
def test_two_processes_train_as_one_does(finished_on, kind):
    ours, theirs = finished_on(kind), finished_on("one")
    assert training(ours) == pytest.approx(training(theirs), abs=1e-5)
    found, expected = result(ours), result(theirs)
    assert found["status"] == "finished"
    for name in ("batches_sha256", "shared_init_sha256", "data_sha256", "parameters", "step"):
        assert found[name] == expected[name], name
    for name in ("val_loss", "test_loss", "bits_per_byte", "test_bits_per_byte"):
        assert found[name] == pytest.approx(expected[name], abs=1e-5)
    assert found["rows_by_rank"] == [[0, 2], [2, 5]]
    assert "processes" not in expected


@pytest.mark.parametrize("kind", ["DDP", "FSDP2"])
def test_what_they_leave_has_one_format(finished_on, kind):
    ours, theirs = finished_on(kind), finished_on("one")
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    a, b = (read_checkpoint(each / "checkpoints" / "step-8") for each in (ours, theirs))
    assert set(a.state) == set(b.state)
    assert list(a.optimizer) == list(b.optimizer)
    for name, kept in b.optimizer.items():
        assert set(a.optimizer[name]) == set(kept)
        for key, value in kept.items():
            assert type(a.optimizer[name][key]) is torch.Tensor
            assert a.optimizer[name][key].shape == value.shape
            assert a.optimizer[name][key].dtype == value.dtype
    for x, y in ((a.weights, b.weights), (load_file(ours / "model.safetensors"), b.weights)):
        assert set(x) == set(y)
        assert all(torch.allclose(x[name], y[name], atol=1e-4) for name in y)


def test_one_process_may_be_sharded_too_and_is_the_same_to_the_bit(flags, finished_on, tmp_path):
    train.main([*flags, *SHARD, "--run.micro_batch_size", "1", "--run.out", str(tmp_path / "run")])
    assert result(tmp_path / "run")["weights_sha256"] == result(finished_on("one"))["weights_sha256"]
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("before", "after"), [("FSDP2", "one"), ("one", "FSDP2"), ("one", "DDP")])
def test_a_checkpoint_goes_on_on_any_number_of_processes(flags, finished_on, tmp_path, before, after):
    folder = unfinished(finished_on(before), tmp_path / "run", 6)
    argv = [*flags, *RESUME, *(SHARD * (after == "FSDP2")), "--run.out", str(folder)]
    if after == "one":
        train.main(argv)
    else:
        assert codes(run_on(2, argv, tmp_path / "logs")) == [0, 0]
    assert training(folder) == pytest.approx(training(finished_on("one")), abs=1e-5)
    assert result(folder)["batches_sha256"] == result(finished_on("one"))["batches_sha256"]


def test_as_many_processes_go_on_to_the_bit_as_if_they_had_not_stopped(flags, finished_on, tmp_path):
    folder = unfinished(finished_on("FSDP2"), tmp_path / "run", 6)
    argv = [*flags, *RESUME, *SHARD, "--run.micro_batch_size", "1", "--run.out", str(folder)]
    assert codes(run_on(2, argv, tmp_path / "logs")) == [0, 0]
    assert result(folder)["weights_sha256"] == result(finished_on("FSDP2"))["weights_sha256"]
    assert training(folder) == training(finished_on("FSDP2"))


def test_tasks_whose_rows_vary_from_step_to_step_are_spread_too(small, tmp_path):
    argv = [*small, *STEPS, "--data.corpus", "task:all", "--data.max_bytes", "60000", "--model.seq_len", "64"]
    train.main([*argv, "--run.out", str(tmp_path / "one")])
    ended = run_on(2, [*argv, *SHARD, "--run.out", str(tmp_path / "two")], tmp_path / "logs")
    assert codes(ended) == [0, 0], ended
    assert training(tmp_path / "two") == pytest.approx(training(tmp_path / "one"), abs=1e-5)
    assert result(tmp_path / "two")["val_accuracy"] == pytest.approx(result(tmp_path / "one")["val_accuracy"], abs=0.01)


# ---- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "size", "rows"), [(4, 1, 3), (4, 2, 1), (5, 2, 2), (7, 3, 2), (2, 4, 32), (1, 3, 1)])
def test_each_row_is_scored_by_exactly_one_process_in_as_many_passes_on_each(n, size, rows):
    inputs, targets = torch.arange(n).repeat(3, 1).T, torch.arange(n).repeat(3, 1).T  # (n, 3), each row its number
    every = [World(rank, size).parts(inputs, targets, rows) for rank in range(size)]
    assert len({len(parts) for parts in every}) == 1
    assert all(1 <= len(x) <= rows and x.shape == y.shape for parts in every for x, y in parts)
    scored = [y[:, 0].tolist() for parts in every for _, y in parts]
    assert [row for part in scored for row in part if row != -100] == list(range(n))
    assert [tuple(range(*share)) for share in World(0, size).shares(n)] == [
        tuple(row for _, y in parts for row in y[:, 0].tolist() if row != -100) for parts in every
    ]


def test_processes_of_one_machine_share_its_cores_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as torchrun sets it
    assert World(0, 4, 0, 4).choose_threads(None) == 2
    assert World(0, 16, 0, 16).choose_threads(None) == 1
    assert World(0, 4, 0, 4).choose_threads(3) == 3
    assert World().choose_threads(None) is None
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # as a user does
    assert World(0, 4, 0, 4).choose_threads(None) is None


def test_each_process_has_a_gpu_of_its_own_or_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert World(3, 4, 1, 2).choose_device(torch.device("cuda")) == torch.device("cuda", 1)
    assert taken == [1]
    assert World().choose_device(torch.device("cuda")) == torch.device("cuda")
    with pytest.raises(BadInput, match="nproc_per_node 3 is more than the 2 GPUs"):
        World(2, 3, 2, 3).choose_device(torch.device("cuda"))
    with pytest.raises(BadInput, match=r"--run\.device mps"):
        World(0, 2, 0, 2).choose_device(torch.device("mps"))


# ---- one voice -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "code", "says"),
    [
        ([["--run.stepz", "5"]] * 2, 2, "--run.steps"),
        ([["--run.batch_size", "1"]] * 2, 2, "--run.batch_size 1 is below the 2 processes"),
        ([[], ["--run.seed", "1"]], 2, "--run.seed 1 on rank 1, and 0 on rank 0"),
        ([[], ["--data.corpus", "nowhere.txt"]], 2, "on rank 1: --data.corpus 'nowhere.txt'"),
        ([["--run.learning_rate", "10", "--run.weight_decay", "1000", "--model.init_std", "100"]] * 2, 3, "at step"),
    ],
    ids=["a wrong flag", "a process without rows", "another command", "one that cannot begin", "a bad number"],
)
def test_what_goes_wrong_is_one_line_of_rank_0_and_one_exit_code(flags, tmp_path, own, code, says):
    out = tmp_path / "run"
    ended = Processes([[*flags, "--run.out", str(out), *each] for each in own], tmp_path / "logs").wait()
    assert codes(ended) == [code, code], ended
    lines = [line for line in ended[0].said.splitlines() if line.startswith("train.py: ")]
    assert len(lines) == 1
    assert says in lines[0]
    assert "Traceback" not in ended[0].said
    assert ended[1].said == ""
    assert out.exists() == (code == 3)


def test_a_signal_to_one_process_is_everyones(flags, tmp_path):
    out = tmp_path / "run"
    forever = ["--run.steps", "1000000", "--run.eval_every", "1000000", "--run.save_every", "1000000"]
    processes = Processes([[*flags, *forever, "--run.out", str(out)]] * 2, tmp_path / "logs")

    def until(there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 200
        while not there():
            assert all(each.is_alive() for each in processes.ranks), processes.wait()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    until(lambda: (out / "metrics.jsonl").exists() and len(training(out)) > 2)
    os.kill(processes.ranks[1].pid, signal.SIGUSR1)
    until(lambda: bool(steps_saved(out)))
    os.kill(processes.ranks[1].pid, signal.SIGTERM)
    ended = processes.wait()
    assert codes(ended) == [143, 143], ended
    assert result(out)["status"] == "interrupted"
    assert result(out)["step"] == steps_saved(out)[0] == len(training(out))
    assert len(steps_saved(out)) == 2
    assert ended[1].said == ""


# ---- a process that dies ---------------------------------------------------------------------------------------------


def test_a_killed_process_ends_the_others_with_one_line_and_torchrun_starts_all_again(flags, finished_on, tmp_path):
    """Rank 1 kills itself at step 7 of its first start."""
    script = tmp_path / "once.py"
    script.write_text(
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "import train\nfrom harness import messages\n"
        "rate = train.learning_rate\n"
        "def learning_rate(step, config):\n"
        "    if step == 6 and os.environ['RANK'] == '1' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return rate(step, config)\n"
        "train.learning_rate = learning_rate\n"
        "messages.run_main(train.main)\n"
    )
    out = tmp_path / "run"
    argv = [*flags, *RESUME, "--run.micro_batch_size", "1", "--run.out", str(out)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=2"]
    with open(tmp_path / "log", "w") as log:
        code = subprocess.run([*torchrun, str(script), *argv], stdout=log, stderr=log, timeout=900).returncode
    said = (tmp_path / "log").read_text()
    assert code == 0, said
    assert "another process of this run has ended: go on with --run.resume true" in said
    assert "going on after step 6" in said
    assert result(out)["weights_sha256"] == result(finished_on("DDP"))["weights_sha256"]
    assert training(out) == training(finished_on("DDP"))
    assert last_whole(out).state["step"] == 8
