"""A finished run read back from its folder, and folders from which none can be read.

.venv/bin/python -m pytest tests/test_runs.py
"""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

import data
import generate
import train
from harness.messages import BadInput
from harness.runs import load_finished_run


@pytest.fixture
def broken(finished, tmp_path) -> Path:
    """A copy of a finished run, to be broken."""
    return Path(shutil.copytree(finished("rope"), tmp_path / "rope"))


def refused(at_the_shell, folder: Path) -> str:
    """The one line with which a run is refused."""
    outcome = at_the_shell(generate.main, [str(folder), "--tokens", "2"])
    assert outcome.code == 2
    assert outcome.out == ""
    (line,) = outcome.err.splitlines()
    assert str(folder) in line
    return line


def cut(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


@pytest.mark.parametrize("keep", [0, 0.001, 0.5, 0.999])
def test_cut_weights_are_refused(broken, at_the_shell, keep):
    cut(broken / "model.safetensors", keep)
    line = refused(at_the_shell, broken)
    assert "damaged" in line
    assert "model.safetensors" in line


@pytest.mark.parametrize(
    "content",
    [
        "",
        "model: [",
        "- a\n- b\n",
        "hello",
        "model: {}\n",
        "model:\n  rope: 3\n",
        "model:\n  rope: {}\n",
        "model:\n  rope:\n    based: 3\n",
        "\x00\x01",
    ],
)
def test_a_broken_config_is_refused(broken, at_the_shell, content):
    (broken / "config.yaml").write_text(content)
    line = refused(at_the_shell, broken)
    assert "damaged" in line
    assert "config.yaml" in line


def test_a_config_that_is_not_utf_8_is_refused(broken, at_the_shell):
    (broken / "config.yaml").write_bytes(b"\xff\xfe\x00")
    assert "config.yaml" in refused(at_the_shell, broken)


def test_a_config_that_does_not_fit_the_weights_is_refused(broken, at_the_shell):
    sections = yaml.safe_load((broken / "config.yaml").read_text())
    sections["model"]["d_model"] = 32
    (broken / "config.yaml").write_text(yaml.safe_dump(sections))
    assert "damaged" in refused(at_the_shell, broken)


@pytest.mark.parametrize("content", ["", "{}", "no tokenizer", '{"model": 3}'])
def test_a_broken_tokenizer_is_refused(broken, at_the_shell, content):
    (broken / "tokenizer.json").write_text(content)
    line = refused(at_the_shell, broken)
    assert "damaged" in line
    assert "tokenizer.json" in line


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(broken, at_the_shell, name):
    (broken / name).unlink()
    line = refused(at_the_shell, broken)
    assert name in line or (name == "model.safetensors" and "no weights" in line)


def test_a_run_that_never_finished_says_how_far_it_got(broken, at_the_shell):
    (broken / "model.safetensors").unlink()
    (broken / "result.json").write_text('{"status": "interrupted", "step": 17, "steps": 40}')
    assert "interrupted at step 17 of 40" in refused(at_the_shell, broken)
    (broken / "result.json").write_text('{"stat')
    assert "unfinished" in refused(at_the_shell, broken)


def test_a_folder_that_is_no_run_is_refused(tmp_path, at_the_shell):
    assert "no config.yaml" in refused(at_the_shell, tmp_path)
    assert "no config.yaml" in refused(at_the_shell, tmp_path / "nothing")


def test_a_run_is_loaded_as_it_was_trained(small, tmp_path):
    """Grouped heads, untied embeddings, half-split layout: every choice comes back from config.yaml."""
    flags = ["--model.n_kv_head", "1", "--model.tie_embeddings", "false", "--model.rope.layout", "half-split"]
    outcome = train.main([*small, *flags, "--run.out", str(tmp_path / "run")])
    loaded = load_finished_run(tmp_path / "run")
    assert loaded.model_config.rope.layout == "half-split"
    assert loaded.model.head is not None
    config = loaded.data
    corpus = data.load(config, 0, 4, 16)
    nats = targets = 0.0
    for x, y in corpus.windows("validation", 16):
        with torch.no_grad():
            logits = loaded.model(x)
        nats += torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum").item()
        targets += int((y != -100).sum())
    assert nats / targets == pytest.approx(outcome["val_loss"], rel=1e-5)
    with pytest.raises(BadInput):
        load_finished_run(tmp_path)
