"""Which device a run takes, and whether its memory can hold the run; precisions are tested with whole runs.

.venv/bin/python -m pytest tests/test_devices.py
"""

import sys
from types import SimpleNamespace

import pytest
import torch

from harness import devices
from harness.messages import BadInput
from model import ModelConfig, Transformer
from positions import SCHEMES


def test_auto_device_is_the_first_there_is(monkeypatch):
    there = {"cuda": False, "mps": False}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there["cuda"])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there["mps"])
    assert devices.pick_device("auto").type == "cpu"
    there["mps"] = True
    assert devices.pick_device("auto").type == "mps"
    there["cuda"] = True
    assert devices.pick_device("auto").type == "cuda"
    assert devices.pick_device("cpu").type == "cpu"
    there["cuda"] = False
    with pytest.raises(BadInput, match=r"--run.device cuda is not on this machine: use mps or cpu"):
        devices.pick_device("cuda")


@pytest.mark.parametrize(("device", "shards", "fits"), [("cuda", 1, False), ("cuda", 8, True), ("cpu", 8, False)])
def test_gpus_that_shard_a_model_hold_what_one_cannot_and_processes_of_one_cpu_do_not(
    monkeypatch, device, shards, fits
):
    """A model of 10 GB in float32 is 40 GB with gradients and AdamW, on devices of 24."""
    gigabytes = 24 * 10**9
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=gigabytes))
    monkeypatch.setattr(devices.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": gigabytes}[name])
    shape = ModelConfig(vocab_size=50_000, d_model=4096, n_layer=12)
    assert 9e9 < 4 * devices.count_parameters(shape) < 11e9
    if fits:
        devices.refuse_too_large(shape, 8, 1, torch.device(device), shards)
        return
    with pytest.raises(BadInput, match=rf"would need \d+ GB of memory at least, and this machine's {device} has 24"):
        devices.refuse_too_large(shape, 8, 1, torch.device(device), shards)


def test_runs_at_a_time_must_fit_together(monkeypatch):
    monkeypatch.setattr(devices.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 100 * 10**9}[name])
    shape = ModelConfig(vocab_size=50_000, d_model=4096, n_layer=12)
    devices.refuse_too_large(shape, 8, 1, torch.device("cpu"), 1, jobs=2)
    with pytest.raises(BadInput, match=r"^--jobs 3, --model.vocab_size 50000, .* would need 1\d\d GB .* has 100:"):
        devices.refuse_too_large(shape, 8, 1, torch.device("cpu"), 1, jobs=3)


@pytest.mark.parametrize("position", SCHEMES)
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_parameters_are_counted_without_making_them(position, tie_embeddings):
    config = ModelConfig(
        vocab_size=50, d_model=32, n_layer=2, n_kv_head=2, seq_len=16, position=position, tie_embeddings=tie_embeddings
    )
    assert devices.count_parameters(config) == sum(p.numel() for p in Transformer(config).parameters())


def test_a_compiler_is_the_one_that_cxx_names_or_the_systems(monkeypatch, tmp_path):
    compiler = tmp_path / "mine"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert not devices.has_compiler()
    monkeypatch.setenv("CXX", "mine")
    assert devices.has_compiler()
    monkeypatch.delenv("CXX")
    compiler.rename(tmp_path / ("clang++" if sys.platform == "darwin" else "g++"))
    assert devices.has_compiler()
