"""A finished run read back from its folder, and folders from which none can be read.

.venv/bin/python -m pytest tests/test_runs.py
"""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import data
import evaluate
import generate
import train
from harness.messages import BadInput
from harness.runs import describe_progress, load_finished_run, read_lengths, read_metrics, read_result


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


@pytest.mark.parametrize(
    "changes",
    [{"n_layer": 10**6}, {"position": "learned", "seq_len": 10**6}, {"d_model": 10**6}, {"vocab_size": 10**6}],
)
def test_a_config_whose_model_is_larger_than_the_weights_is_refused_before_it_is_made(broken, at_the_shell, changes):
    sections = yaml.safe_load((broken / "config.yaml").read_text())
    sections["model"] |= changes
    (broken / "config.yaml").write_text(yaml.safe_dump(sections))
    assert "numbers, and a model of config.yaml has" in refused(at_the_shell, broken)


@pytest.mark.parametrize(
    "change", [lambda w: w * float("nan"), lambda w: w / 0, lambda w: w.double(), lambda w: w.long()]
)
def test_weights_that_no_run_writes_are_refused(broken, at_the_shell, change):
    save_file({name: change(w) for name, w in load_file(broken / "model.safetensors").items()}, broken / "m")
    (broken / "m").replace(broken / "model.safetensors")
    (broken / "result.json").unlink()  # with the hash of the true ones
    assert "not all finite and in float32" in refused(at_the_shell, broken)


def test_weights_whose_logits_are_not_finite_end_generating_in_one_line(broken, at_the_shell):
    weights = load_file(broken / "model.safetensors")
    weights = {name: torch.full_like(w, 1e38 if "norm" in name else 1e15) for name, w in weights.items()}
    save_file(weights, broken / "m")
    (broken / "m").replace(broken / "model.safetensors")
    (broken / "result.json").unlink()
    outcome = at_the_shell(generate.main, [str(broken), "--precision", "fp32"])
    assert outcome.code == 3
    assert "logits are not finite" in outcome.err


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(broken, at_the_shell):
    tokens = json.loads((broken / "tokenizer.json").read_text())
    tokens["model"]["vocab"]["aa"] = 5000
    (broken / "tokenizer.json").write_text(json.dumps(tokens))
    assert "the id 5,000, and 259 entries are the most" in refused(at_the_shell, broken)


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


# ---- a folder from a stranger ----------------------------------------------------------------------------------------

SECTIONS = {  # a config.yaml with another value -> what the line names
    ("data", "corpus", 3): "data.corpus",
    ("data", "cache", None): "data.cache",
    ("model", "seq_len", 16.5): "model.seq_len",
    ("run", "seed", "x"): "run.seed",
    ("run", "batch_size", 0): "run.batch_size",
    ("run", "precision", "fp8"): "run.precision",
    ("run", "name", 3): "run.name",
}


@pytest.mark.parametrize("script", [generate, evaluate])
@pytest.mark.parametrize("place", SECTIONS, ids=str)
def test_a_config_of_wrong_types_is_refused_by_the_option(broken, at_the_shell, script, place):
    section, option, value = place
    sections = yaml.safe_load((broken / "config.yaml").read_text())
    sections[section][option] = value
    (broken / "config.yaml").write_text(yaml.safe_dump(sections))
    outcome = at_the_shell(script.main, [str(broken)])
    assert (outcome.code, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert "config.yaml is damaged" in line
    assert SECTIONS[place] in line


@pytest.mark.parametrize("name", ["1e5", "08", "true", "1:30"])
def test_a_run_whose_name_looks_like_something_else_is_loaded(small, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    train.main([*small, "--run.steps", "1", "--run.name", name])
    assert load_finished_run(f"runs/{name}").settings["name"] == name
    train.main([*small, "--config", f"runs/{name}/config.yaml", "--run.resume", "true"])  # and is the same as a config


@pytest.mark.parametrize("option", ["seed", "batch_size", "precision", "name"])
def test_a_config_without_an_option_that_is_needed_is_refused(broken, at_the_shell, option):
    sections = yaml.safe_load((broken / "config.yaml").read_text())
    del sections["run"][option]
    (broken / "config.yaml").write_text(yaml.safe_dump(sections))
    assert option in refused(at_the_shell, broken)


@pytest.mark.parametrize("name", ["config.yaml", "tokenizer.json", "model.safetensors"])
def test_a_fifo_or_a_link_out_of_the_folder_is_refused_without_waiting(broken, at_the_shell, tmp_path, name):
    (broken / name).rename(tmp_path / name)
    os.mkfifo(broken / name)
    assert refused(at_the_shell, broken)
    (broken / name).unlink()
    (broken / name).symlink_to(tmp_path / name)
    assert "leads out of" in refused(at_the_shell, broken)


def test_references_in_a_config_are_refused_as_a_few_can_stand_for_more_than_memory_holds(broken, at_the_shell):
    with open(broken / "config.yaml", "a") as file:
        file.write("a: &a [x, x]\nb: *a\n")
    assert "write the value out" in refused(at_the_shell, broken)


WHOLE = {"status": "finished", "step": 4, "steps": 4, "parameters": 1, "position_parameters": 0, "seconds": 1.0}
WHOLE |= {"val_loss": 2.0, "bits_per_byte": None, "test_loss": 2.0}


def test_a_result_that_can_be_is_read(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(WHOLE))
    assert read_result(tmp_path) == WHOLE


@pytest.mark.parametrize(
    "content",
    [
        *('{"status": "finished"}', "[" * 100_000, '{"status": 3}', "[]", "", '{"status": "running", "step": "x"}'),
        *('{"status": "finished", "step": 1, "steps": 0}', '{"status": "finished", "val_loss": "low"}'),
        *(json.dumps(WHOLE | {"step": step}) for step in (-1, 0, 3, 5, 10**400)),
        *(
            json.dumps(WHOLE | {name: value})
            for name in ("val_loss", "seconds")
            for value in (-1.0, math.nan, math.inf)
        ),
        *(json.dumps(WHOLE | {"val_loss": "?"}).replace('"?"', "1e999"), json.dumps(WHOLE | {"device": "\x1b[31m"})),
        *(json.dumps(WHOLE | {"weights_sha256": "x" * 64}), json.dumps(WHOLE | {"parameters": -1})),
    ],
)
def test_a_result_that_cannot_be_is_none(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    assert read_result(tmp_path) == {}
    assert describe_progress(tmp_path) == "unfinished"


@pytest.mark.parametrize(
    "content",
    [
        *(
            "[1]",
            '{"64": "x"}',
            '{"x": 1.0}',
            "[" * 100_000,
            '{"64": {}}',
            '{"64": NaN}',
            '{"64": -1}',
            '{"64": 1e999}',
        ),
        f'{{"{"9" * 5000}": 1.0}}',
    ],
)
def test_lengths_that_cannot_be_are_none(tmp_path, content):
    (tmp_path / "lengths.json").write_text(content)
    assert read_lengths(tmp_path) == {}


def test_only_whole_events_are_read(tmp_path):
    good = '{"step": 1, "split": "train", "loss": 2, "seconds": 0.5}'
    lines = ["[" * 100_000, '{"step": "1", "split": "val", "loss": 1.0}', '{"step": 1, "split": "val"}', good, "\x00"]
    lines += [good.replace("0.5", '"x"'), good.replace("0.5", "-1"), good.replace("2", "NaN"), good.replace("1", "0")]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert list(read_metrics(tmp_path)) == [{"step": 1, "split": "train", "loss": 2, "seconds": 0.5}]
