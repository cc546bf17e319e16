"""One run: its folder, its arithmetic, what it repeats exactly, and how it ends when something goes wrong.

.venv/bin/python -m pytest tests/test_train.py
"""

import contextlib
import errno
import hashlib
import http.server
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
import yaml
from safetensors import safe_open
from tokenizers import Tokenizer
from torch.nn import functional as F

import data
import train
from harness import devices, files, messages
from harness.byte_level import SPECIAL_TOKENS
from harness.messages import BadInput, RunFailed
from harness.run_options import make_run_parser, parse_run
from harness.runs import load_finished_run
from model import ModelConfig, Transformer
from positions import SCHEMES
from rope import RopeConfig
from train import RunConfig

REPOSITORY = Path(train.__file__).parent
CPU = torch.device("cpu")

every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def exact():
    """The context of fp32: no autocast."""
    return torch.autocast("cpu", torch.bfloat16, enabled=False)


def run(small: list[str], folder: Path, *flags: str) -> Path:
    train.main([*small, "--run.out", str(folder), *flags])
    return folder


def events(folder: Path, split: str | None = None) -> list[dict]:
    """The lines of metrics.jsonl, strictly JSON: no NaN, nothing half-written."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line, parse_constant=refuse) for line in lines]
    return [event for event in found if split in (None, event["split"])]


def losses(folder: Path, split: str = "train") -> list[float]:
    return [event["loss"] for event in events(folder, split)]


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def weights_hash(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def everything_in(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# ---- the run folder --------------------------------------------------------------------------------------------------


def test_a_run_folder_holds_its_files_and_nothing_else(finished):
    names = {path.name for path in finished("rope").iterdir()}
    files = {"config.yaml", "metrics.jsonl", "model.safetensors", "tokenizer.json", "result.json"}
    assert names == {*files, "checkpoints", ".lock"}


def test_config_yaml_is_complete(finished):
    sections = yaml.safe_load((finished("rope") / "config.yaml").read_text())
    for name, config in (("data", data.DataConfig), ("model", ModelConfig), ("run", RunConfig)):
        assert list(sections[name]) == [field.name for field in fields(config)]
    assert list(sections["model"]["rope"]) == [field.name for field in fields(RopeConfig)]
    assert sections["model"]["vocab_size"] == 259
    assert sections["run"]["steps"] == 40


def test_a_run_made_again_from_its_config_yaml_has_the_same_weights(small, tmp_path):
    first = run(small, tmp_path / "first", "--model.position", "t5", "--run.learning_rate", "0.007")
    train.main(["--config", str(first / "config.yaml"), "--run.out", str(tmp_path / "again")])
    assert weights_hash(tmp_path / "again") == weights_hash(first)


def test_metrics_has_one_json_line_per_event(small, tmp_path):
    folder = run(small, tmp_path / "run", "--run.steps", "5", "--run.eval_every", "2")
    assert [event["step"] for event in events(folder, "train")] == [1, 2, 3, 4, 5]
    assert [event["step"] for event in events(folder, "val")] == [2, 4, 5]
    assert len(events(folder)) == 8
    for event in events(folder, "train"):
        names = {"step", "split", "loss", "bits_per_byte", "learning_rate", "tokens_per_second", "seconds"}
        assert names <= event.keys()
        assert event["tokens_per_second"] > 0
    assert all({"step", "split", "loss", "bits_per_byte", "seconds"} <= event.keys() for event in events(folder, "val"))
    times = [event["seconds"] for event in events(folder)]
    assert times == sorted(times)
    assert times[0] > 0


def test_weights_are_safetensors_without_metadata_under_the_bare_models_names(finished):
    with safe_open(finished("learned") / "model.safetensors", "pt") as file:
        assert file.metadata() is None
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    config = ModelConfig(vocab_size=259, d_model=16, n_layer=1, n_head=2, seq_len=16, position="learned")
    assert shapes == {name: tuple(value.shape) for name, value in Transformer(config).state_dict().items()}


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_tokenizer_json_is_read_by_the_tokenizers_library_and_exact(small, tmp_path, text, kind):
    folder = run(small, tmp_path / "run", "--data.tokenizer", kind)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [tokenizer.token_to_id(name) for name in SPECIAL_TOKENS] == [0, 1, 2]
    assert tokenizer.get_vocab_size() == (259 if kind == "bytes" else 300)
    assert tokenizer.decode(tokenizer.encode(text[:500]).ids, skip_special_tokens=False) == text[:500]


def test_result_json_says_finished_with_every_figure(finished):
    found = result(finished("t5"))
    assert (found["status"], found["step"], found["steps"]) == ("finished", 40, 40)
    assert found["position_parameters"] == 32 * 2
    assert found["parameters"] == sum(tensor.numel() for tensor in load_finished_run(finished("t5")).model.parameters())
    assert (found["device"], found["precision"], found["threads"]) == ("cpu", "fp32", 1)
    assert found["versions"]["torch"] == torch.__version__
    for name in ("val_loss", "bits_per_byte", "test_loss", "test_bits_per_byte", "seconds", "tokens_per_second"):
        assert found[name] > 0
    for name in ("shared_init_sha256", "batches_sha256", "data_sha256"):
        assert len(found[name]) == 64


def test_the_run_folder_is_runs_and_the_name_unless_told_otherwise(small, tmp_path):
    asked = [parse_run([*small, *flags], make_run_parser("train.py", ""))[3] for flags in ([], ["--run.name", "x"])]
    assert [(config.name, config.out) for config in asked] == [("rope", "runs/rope"), ("x", "runs/x")]


def test_the_end_says_what_came_out_and_the_next_command(small, tmp_path, capsys):
    run(small, tmp_path / "run")
    said = capsys.readouterr().out
    assert f"{result(tmp_path / 'run')['val_loss']:.4f}" in said
    assert f"python generate.py {tmp_path / 'run'} --prompt" in said
    for word in ("parameters", "epochs", "hashes", "about", "A sample"):
        assert word in said


# ---- what repeats exactly --------------------------------------------------------------------------------------------


def test_one_seed_gives_the_same_weights_to_the_bit_and_another_seed_others(small, tmp_path):
    hashes = [weights_hash(run(small, tmp_path / str(i), "--run.seed", seed)) for i, seed in enumerate("001")]
    assert hashes[0] == hashes[1] != hashes[2]


def test_evaluation_does_not_change_training_by_a_bit(small, tmp_path):
    often = run(small, tmp_path / "often", "--run.eval_every", "1", "--run.eval_windows", "3")
    once = run(small, tmp_path / "once", "--run.eval_every", "999", "--run.eval_windows", "40")
    assert weights_hash(often) == weights_hash(once)
    assert losses(often) == losses(once)
    assert (len(losses(often, "val")), len(losses(once, "val"))) == (4, 1)


@pytest.mark.parametrize("rows", ["1", "2"])
def test_gradient_accumulation_changes_no_loss_beyond_rounding(small, tmp_path, rows):
    whole = run(small, tmp_path / "whole", "--run.steps", "8", "--run.micro_batch_size", "4")
    parts = run(small, tmp_path / "parts", "--run.steps", "8", "--run.micro_batch_size", rows)
    assert losses(parts) == pytest.approx(losses(whole), rel=2e-5)
    norms = [[event["grad_norm"] for event in events(folder, "train")] for folder in (whole, parts)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)


def test_every_scheme_starts_from_the_same_shared_weights_and_reads_the_same_batches(finished):
    results = [result(finished(scheme)) for scheme in SCHEMES]
    for name in ("shared_init_sha256", "batches_sha256", "data_sha256"):
        assert len({found[name] for found in results}) == 1
    assert len({weights_hash(finished(scheme)) for scheme in SCHEMES}) == len(SCHEMES)


def test_the_hash_of_batches_is_the_chain_over_what_was_read(small, tmp_path, finished):
    found = result(run(small, tmp_path / "run"))
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]
    corpus, chain = data.load(data.DataConfig(**config), 0, 4, 16), b""
    for step in range(4):
        inputs, targets = corpus.batch(step)
        chain = hashlib.sha256(chain + inputs.numpy().tobytes() + targets.numpy().tobytes()).digest()
    assert found["batches_sha256"] == chain.hex()
    other = result(run(small, tmp_path / "other", "--run.seed", "1"))
    assert other["batches_sha256"] != found["batches_sha256"]
    assert other["shared_init_sha256"] != found["shared_init_sha256"]


def test_the_first_loss_is_that_of_the_first_weights_on_the_first_batch(small, tmp_path, text):
    folder = run(small, tmp_path / "run")
    corpus = data.load(data.DataConfig(**yaml.safe_load((folder / "config.yaml").read_text())["data"]), 0, 4, 16)
    inputs, targets = corpus.batch(0)
    model = Transformer(ModelConfig(vocab_size=259, d_model=16, n_layer=1, n_head=2, seq_len=16), seed=0)
    assert losses(folder)[0] == pytest.approx(F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item())


# ---- the arithmetic of training --------------------------------------------------------------------------------------


@every_scheme
def test_the_loss_falls(finished, scheme):
    found = losses(finished(scheme))
    assert found[0] == pytest.approx(math.log(259), abs=0.1)
    assert sum(found[-5:]) / 5 < found[0] - 1.5
    assert losses(finished(scheme), "val")[-1] < found[0] - 1.5


@pytest.mark.parametrize(
    ("schedule", "falling"),
    [("linear", [0.01, 0.008, 0.006, 0.004]), ("cosine", [0.01, 0.008828427, 0.006, 0.003171573])],
)
def test_the_learning_rate_climbs_in_a_line_and_falls_as_the_schedule_says(small, tmp_path, schedule, falling):
    flags = ["--run.steps", "8", "--run.warmup", "0.5", "--run.learning_rate", "0.01", "--run.final_rate", "0.2"]
    folder = run(small, tmp_path / "run", *flags, "--run.schedule", schedule)
    rates = [event["learning_rate"] for event in events(folder, "train")]
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, *falling])
    config = RunConfig(steps=1000, learning_rate=0.01, final_rate=0.2, schedule=schedule)
    assert train.learning_rate(1000, config) == pytest.approx(0.002)  # where it ends
    assert train.learning_rate(999, config) == pytest.approx(0.002, rel=5e-3)
    assert max(train.learning_rate(step, config) for step in range(1000)) == pytest.approx(0.01)


@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 1), (0.0, 5), (1.0, 1), (1.0, 5), (0.1, 3)])
def test_the_learning_rate_is_above_zero_however_short_the_run(warmup, steps):
    config = RunConfig(steps=steps, warmup=warmup)
    assert all(0 < train.learning_rate(step, config) <= config.learning_rate for step in range(steps))


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_the_embedding_learns_at_its_own_multiple_of_the_rate(small, tmp_path, monkeypatch, tie_embeddings):
    made, make = [], train.make_optimizer
    monkeypatch.setattr(train, "make_optimizer", lambda *given: made.append((given[0], make(*given))) or made[-1][1])
    flags = ["--run.embedding_rate", "7", "--run.steps", "1", "--run.learning_rate", "0.002"]
    run(small, tmp_path / "run", *flags, "--model.tie_embeddings", str(tie_embeddings).lower())
    ((model, optimizer),) = made
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.014 if name == "embedding.weight" else 0.002), name


@every_scheme
def test_weight_decay_pulls_on_matrices_and_tables_but_not_on_norms(scheme):
    model = Transformer(ModelConfig(vocab_size=50, d_model=16, n_layer=1, n_head=2, seq_len=16, position=scheme))
    optimizer = train.make_optimizer(model, RunConfig(learning_rate=0.1, weight_decay=0.5))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 1.0 if parameter.dim() < 2 else 1 - 0.1 * 0.5  # norms, and numbers that a scheme has for each head
        torch.testing.assert_close(parameter.detach(), kept * before[name], msg=name)


def test_the_gradient_is_clipped_as_a_whole(small, tmp_path, monkeypatch):
    norms, make = [], train.make_optimizer

    def watched(model, config):
        optimizer = make(model, config)
        step = optimizer.step

        def look_and_step():
            gradients = [parameter.grad.flatten() for parameter in model.parameters()]
            norms.append(torch.cat(gradients).norm().item())
            step()

        optimizer.step = look_and_step
        return optimizer

    monkeypatch.setattr(train, "make_optimizer", watched)
    folder = run(small, tmp_path / "run", "--run.grad_clip", "0.25")
    assert norms == pytest.approx([0.25] * 4, rel=1e-4)
    assert all(event["grad_norm"] > 0.5 for event in events(folder, "train"))  # what it was before
    norms.clear()
    folder = run(small, tmp_path / "free", "--run.grad_clip", "1000")
    assert norms == pytest.approx([event["grad_norm"] for event in events(folder, "train")], rel=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_loss_and_gradient_are_means_over_the_scored_targets_alone(small, tmp_path, monkeypatch, rows):
    made, ours = [], []

    def watched(model, config):
        optimizer = torch.optim.SGD([{"params": list(model.parameters()), "rate": 1.0}])
        optimizer.step = lambda: ours.extend(parameter.grad.clone() for parameter in model.parameters())
        made.append(model)
        return optimizer

    draw = torch.Generator().manual_seed(0)
    inputs, targets = torch.randint(50, (2, 4, 16), generator=draw)
    targets[0, 3:] = -100
    targets[1] = -100  # a part with nothing to score
    monkeypatch.setattr(train, "make_optimizer", watched)
    monkeypatch.setattr(data.Corpus, "batch", lambda *_: (inputs, targets))
    flags = ["--run.steps", "1", "--run.micro_batch_size", str(rows), "--run.grad_clip", "1e9"]
    folder = run(small, tmp_path / "run", *flags)
    model, kept = made[0], targets != -100  # still at its first values
    theirs = F.cross_entropy(model(inputs)[kept], targets[kept])
    theirs.backward()
    assert losses(folder)[0] == pytest.approx(theirs.item(), rel=1e-6)
    for mine, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-7)


def split_of(text: str, split: str) -> bytes:
    """The issue's contiguous 90/5/5 by characters, worked out here from the text alone."""
    n = len(text)
    return {"validation": text[n * 90 // 100 : n * 95 // 100], "test": text[n * 95 // 100 :]}[split].encode()


@torch.no_grad()
def nats(model: Transformer, ids: list[int], length: int = 16) -> float:
    """The nats of all tokens but the first, each scored once in windows that do not overlap."""
    windows = [ids[start : start + length + 1] for start in range(0, len(ids) - 1, length)]
    total = 0.0
    for block in (windows[:-1], windows[-1:]):  # the last one is shorter, and no padding is needed here
        if block:
            window = torch.tensor(block)
            logits = model(window[:, :-1]).double().log_softmax(-1)  # (N, T, V)
            total -= logits.gather(2, window[:, 1:, None]).sum().item()
    return total


@every_scheme
def test_final_losses_are_over_whole_splits_in_windows_that_do_not_overlap(finished, text, scheme):
    found, model = result(finished(scheme)), load_finished_run(finished(scheme)).model
    ids = [byte + 3 for byte in split_of(text, "validation")]
    assert found["val_loss"] == pytest.approx(nats(model, ids) / (len(ids) - 1), rel=1e-5)
    ids = [*(byte + 3 for byte in split_of(text, "test")), 0]  # the document's end is scored too, and has no bytes
    total = nats(model, ids)
    assert found["test_loss"] == pytest.approx(total / (len(ids) - 1), rel=1e-5)
    assert found["test_bits_per_byte"] == pytest.approx(total / math.log(2) / (len(ids) - 2), rel=1e-5)


def test_bits_per_byte_of_bytes_are_nats_per_byte_over_ln_2(finished):
    for event in events(finished("rope")):
        assert event["bits_per_byte"] == pytest.approx(event["loss"] / math.log(2))
    found = result(finished("rope"))
    assert found["bits_per_byte"] == pytest.approx(found["val_loss"] / math.log(2))


def test_bits_per_byte_of_bpe_count_the_bytes_of_the_scored_targets(small, tmp_path, text):
    folder = run(small, tmp_path / "run", "--data.tokenizer", "bpe")
    loaded, found, valid = load_finished_run(folder), result(folder), split_of(text, "validation")
    ids = loaded.tokenizer.encode(valid.decode()).ids
    first = len(loaded.tokenizer.decode(ids[:1]).encode())
    assert 0 < first < 10
    total = nats(loaded.model, ids)
    assert found["val_loss"] == pytest.approx(total / (len(ids) - 1), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(total / math.log(2) / (len(valid) - first), rel=1e-5)
    for event, step in zip(events(folder, "train"), range(4), strict=True):  # and so for a batch
        corpus = data.load(loaded.data, 0, 4, 16)
        targets = corpus.batch(step)[1].flatten().tolist()
        spelt = [token for id in targets for token in loaded.tokenizer.id_to_token(id)]  # one character a byte
        assert event["bits_per_byte"] == pytest.approx(event["loss"] * 64 / math.log(2) / len(spelt))


def test_a_look_in_between_takes_evenly_spaced_windows_always_the_same(small, tmp_path, text):
    flags = ["--run.learning_rate", "1e-12", "--run.weight_decay", "0", "--run.eval_every", "1"]
    looks = losses(run(small, tmp_path / "run", *flags, "--run.eval_windows", "3"), "val")
    assert looks == pytest.approx([looks[0]] * 4, abs=1e-5)  # weights hardly move, and neither do the windows
    model = load_finished_run(tmp_path / "run").model
    ids = [byte + 3 for byte in split_of(text, "validation")]
    starts = list(range(0, len(ids) - 1, 16))
    chosen = [starts[0], starts[round((len(starts) - 1) / 2)], starts[-1]]
    windows = [ids[start : start + 17] for start in chosen]
    expected = sum(nats(model, window) for window in windows) / sum(len(window) - 1 for window in windows)
    assert looks[-1] == pytest.approx(expected, abs=1e-4)


# ---- configs ---------------------------------------------------------------------------------------------------------


def parsed(*argv: str) -> tuple[data.DataConfig, ModelConfig, RunConfig]:
    return parse_run(list(argv), make_run_parser("train.py", ""))[1:]


def config_file(path: Path, **sections: dict) -> str:
    path.write_text(yaml.safe_dump(sections))
    return str(path)


def test_flags_and_config_files_take_precedence_in_the_order_they_stand(tmp_path):
    wide = config_file(tmp_path / "wide.yaml", model={"d_model": 64, "n_layer": 3})
    deep = config_file(tmp_path / "deep.yaml", model={"n_layer": 7}, run={"steps": 9})

    def shape(*argv: str) -> tuple[int, int, int]:
        _, model, config = parsed(*argv)
        return model.d_model, model.n_layer, config.steps

    width, depth, steps = ModelConfig().d_model, ModelConfig().n_layer, RunConfig().steps
    assert shape() == (width, depth, steps)
    assert shape("--config", wide) == (64, 3, steps)  # a file over defaults
    assert shape("--config", wide, "--model.d_model", "16") == (16, 3, steps)  # a later flag over the file
    assert shape("--model.d_model", "16", "--config", wide) == (64, 3, steps)  # a later file over the flag
    assert shape("--config", wide, "--config", deep) == (64, 7, 9)  # the later of two files
    assert shape("--config", deep, "--config", wide) == (64, 3, 9)
    assert shape("--config", wide, "--model.n_layer", "5", "--config", deep) == (64, 7, 9)
    assert shape("--model.d_model", "16", "--model.d_model", "32") == (32, depth, steps)


def test_a_config_file_sets_single_options_of_rope_and_leaves_the_others(tmp_path):
    path = config_file(tmp_path / "a.yaml", model={"rope": {"base": 500.0}})
    assert asdict(parsed("--config", path)[1].rope) == asdict(RopeConfig(base=500.0))
    rope = parsed("--model.rope.layout", "half-split", "--config", path, "--model.rope.fraction", "0.5")[1].rope
    assert rope == RopeConfig(base=500.0, layout="half-split", fraction=0.5)


def test_print_config_prints_yaml_that_can_be_read_back(small, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        train.main([*small, "--model.rope.base", "321", "--print_config"])
    assert not ended.value.code
    printed = capsys.readouterr().out
    sections = yaml.safe_load(printed)
    assert sections["model"]["rope"]["base"] == 321
    assert sections["run"]["steps"] == 4
    (tmp_path / "printed.yaml").write_text(printed)
    assert parsed("--config", str(tmp_path / "printed.yaml")) == parsed(*small, "--model.rope.base", "321")


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--help", "all"])
    assert not ended.value.code
    said = capsys.readouterr().out
    for section, config in (("data", data.DataConfig), ("model", ModelConfig), ("run", RunConfig)):
        for field in fields(config):
            if not is_dataclass(getattr(config(), field.name)):
                assert f"--{section}.{field.name} " in said
    for field in fields(RopeConfig):
        assert f"--model.rope.{field.name} " in said


def test_a_model_may_have_more_rows_than_the_tokenizer_has_entries(small, tmp_path):
    folder = run(small, tmp_path / "run", "--model.vocab_size", "512")
    assert load_finished_run(folder).model.embedding.weight.shape == (512, 16)


def test_bytes_take_a_corpus_that_is_not_utf_8(small, tmp_path):
    (tmp_path / "latin1.txt").write_bytes("caf\xe9 cr\xe8me ".encode("latin-1") * 300)
    folder = run(small, tmp_path / "run", "--data.corpus", str(tmp_path / "latin1.txt"))
    assert result(folder)["status"] == "finished"


# ---- devices and precisions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_precision_is_bf16_only_where_the_hardware_has_it(small, tmp_path, monkeypatch, native, precision):
    monkeypatch.setattr(devices, "bf16_is_native", lambda device: native)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = run(small, tmp_path / "run", "--run.precision", "auto")
    assert result(folder)["precision"] == precision


@pytest.mark.parametrize("scheme", ["rope", "alibi"])
def test_bf16_runs_where_it_is_emulated_and_warns(small, tmp_path, monkeypatch, scheme):
    monkeypatch.setattr(devices, "bf16_is_native", lambda device: False)
    flags = ["--model.position", scheme, "--run.steps", "2"]
    with pytest.warns(UserWarning, match="only emulates bf16"):
        bf16 = run(small, tmp_path / "bf16", *flags, "--run.precision", "bf16")
    fp32 = run(small, tmp_path / "fp32", *flags)
    assert result(bf16)["precision"] == "bf16"
    assert losses(bf16) == pytest.approx(losses(fp32), abs=0.05)
    assert losses(bf16) != losses(fp32)
    assert load_finished_run(bf16).model.embedding.weight.dtype == torch.float32  # autocast leaves the weights alone


def test_the_warning_about_bf16_names_the_flag_on_one_line_without_python_in_it(
    small, tmp_path, monkeypatch, at_the_shell
):
    monkeypatch.setattr(devices, "bf16_is_native", lambda device: False)
    argv = [*small, "--run.steps", "1", "--run.precision", "bf16", "--run.out", str(tmp_path / "run")]

    def show(message, category, filename, lineno, file=None, line=None):
        """Python's own: pytest has put another in its place."""
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))

    monkeypatch.setattr(warnings, "showwarning", show)
    outcome = at_the_shell(train.main, argv)
    assert outcome.code == 0
    assert "only emulates bf16" in the_line(outcome)
    assert "--run.precision" in the_line(outcome)
    assert "UserWarning" not in the_line(outcome)


def test_a_compiled_run_saves_the_bare_models_weights(small, tmp_path, compiling):
    compiling("eager")  # which goes through all of torch.compile but the C++ compiler
    compiled = run(small, tmp_path / "compiled", "--run.compile", "true")
    plain = run(small, tmp_path / "plain")
    with safe_open(compiled / "model.safetensors", "pt") as file:
        assert "embedding.weight" in file.keys()  # noqa: SIM118
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.01)])
def test_a_compiled_run_on_a_card_has_the_losses_of_one_on_a_cpu(small, tmp_path, precision, tolerance):
    flags = ["--run.device", "cuda", "--run.compile", "true", "--run.precision", precision]
    compiled, plain = run(small, tmp_path / "compiled", *flags), run(small, tmp_path / "plain")
    assert losses(compiled) == pytest.approx(losses(plain), rel=tolerance)


def test_without_a_compiler_a_compiled_run_is_refused_before_anything_is_made(
    small, tmp_path, monkeypatch, at_the_shell
):
    monkeypatch.setattr(devices, "has_compiler", lambda: False)
    outcome = at_the_shell(train.main, [*small, "--run.compile", "true", "--run.out", str(tmp_path / "run")])
    assert outcome.code == 2
    assert "--run.compile true needs a C++ compiler" in the_line(outcome)
    assert not (tmp_path / "run").exists()


def test_a_compiler_that_fails_ends_the_run_with_one_line_and_it_goes_on_without(
    small, tmp_path, compiling, at_the_shell
):
    def broken(graph, inputs):
        raise RuntimeError("fatal error: Python.h: No such file or directory")

    argv = [*small, "--run.out", str(tmp_path / "run")]
    compiling(broken)
    outcome = at_the_shell(train.main, [*argv, "--run.compile", "true"])
    assert outcome.code == 3
    assert "torch.compile failed" in the_line(outcome)
    assert "Python.h" in the_line(outcome)
    assert "--run.resume true and --run.compile false" in the_line(outcome)
    assert train.main([*argv, "--run.resume", "true"])["status"] == "finished"


# ---- a folder that is taken ------------------------------------------------------------------------------------------


def test_a_finished_run_is_never_overwritten_unasked(small, finished):
    before = everything_in(finished("rope"))
    with pytest.raises(BadInput, match=r"already holds a run \(finished at step 40 of 40\).*--run.overwrite true"):
        train.main([*small, "--run.out", str(finished("rope"))])
    assert everything_in(finished("rope")) == before


def test_overwrite_replaces_the_runs_own_files_and_nothing_else(small, tmp_path):
    folder = run(small, tmp_path / "run", "--run.steps", "6")
    (folder / "wandb").mkdir()
    (folder / "wandb" / "old").write_text("of the run before")
    (folder / "notes.txt").write_text("the user's")
    (folder / "mine").mkdir()
    (folder / "mine" / "paper.tex").write_text("the user's")
    run(small, folder, "--run.steps", "3", "--run.overwrite", "true")
    assert len(losses(folder)) == 3
    assert not (folder / "wandb").exists()
    assert (folder / "notes.txt").read_text() == (folder / "mine" / "paper.tex").read_text() == "the user's"


@pytest.mark.parametrize("overwrite", ["true", "false"])
def test_a_folder_of_other_things_is_refused_even_with_overwrite(small, tmp_path, overwrite):
    (tmp_path / "model.safetensors").write_text("not made by a run: there is no config.yaml")
    before = everything_in(tmp_path)
    with pytest.raises(BadInput, match="other things in it"):
        train.main([*small, "--run.out", str(tmp_path), "--run.overwrite", overwrite])
    assert everything_in(tmp_path) == before


def test_an_empty_folder_is_taken(small, tmp_path):
    (tmp_path / "empty").mkdir()
    assert result(run(small, tmp_path / "empty"))["status"] == "finished"


# ---- Weights & Biases ------------------------------------------------------------------------------------------------


def wandb_run(small: list[str], tmp_path: Path, at_the_shell, mode: str = "offline"):
    folder = tmp_path / "run"
    return folder, at_the_shell(train.main, [*small, "--run.out", str(folder), "--run.wandb", mode])


def test_an_offline_run_leaves_its_curves_in_the_run_folder(small, tmp_path, at_the_shell):
    before = set(Path().glob("wandb/*"))
    folder, outcome = wandb_run(small, tmp_path, at_the_shell)
    assert outcome.code == 0
    assert "W&B" not in outcome.err, outcome.err
    wandb.teardown()  # W&B's own process writes on for a moment after a run has ended, as it may when ours is gone
    (curves,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    assert b"val/bits_per_byte" in curves.read_bytes()
    assert set(Path().glob("wandb/*")) == before


def test_wandb_that_cannot_start_does_not_end_the_run(small, tmp_path, at_the_shell, monkeypatch):
    def init(**_):
        raise OSError("no way\nout")

    monkeypatch.setattr(wandb, "init", init)
    folder, outcome = wandb_run(small, tmp_path, at_the_shell, "online")
    assert outcome.code == 0
    assert outcome.err.count("\n") == outcome.err.count("W&B could not start (no way out); training goes on") == 1
    assert result(folder)["status"] == "finished"


def test_wandb_that_is_not_installed_does_not_end_the_run(small, tmp_path, at_the_shell, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    folder, outcome = wandb_run(small, tmp_path, at_the_shell)
    assert outcome.code == 0
    assert outcome.err.count("\n") == 1
    assert result(folder)["status"] == "finished"


class BrokenRun:
    """Stands in for W&B's run and breaks after some events."""

    def __init__(self, after: int = 10**9, finishes: bool = True):
        self.logged, self.after, self.finishes, self.finished = [], after, finishes, False

    def log(self, values, step):
        if len(self.logged) >= self.after:
            raise ConnectionError("the server has gone")
        self.logged.append((step, values))

    def finish(self, exit_code=0):
        self.finished = True
        if not self.finishes:
            raise ConnectionError("the server has gone")


def test_wandb_gets_every_event_in_order(small, tmp_path, at_the_shell, monkeypatch):
    fake = BrokenRun()
    monkeypatch.setattr(wandb, "init", lambda **settings: fake)
    folder, _ = wandb_run(small, tmp_path, at_the_shell)
    assert fake.finished
    assert [(step, values[f"{e['split']}/loss"]) for (step, values), e in zip(fake.logged, events(folder), strict=True)]
    assert [step for step, _ in fake.logged] == [event["step"] for event in events(folder)]
    assert {"train/loss", "train/bits_per_byte", "train/learning_rate"} <= fake.logged[0][1].keys()


@pytest.mark.parametrize("fake", [BrokenRun(after=2), BrokenRun(finishes=False)], ids=["log", "finish"])
def test_wandb_that_breaks_midway_does_not_end_the_run(small, tmp_path, at_the_shell, monkeypatch, fake):
    monkeypatch.setattr(wandb, "init", lambda **settings: fake)
    folder, outcome = wandb_run(small, tmp_path, at_the_shell)
    assert outcome.code == 0
    assert outcome.err.count("W&B could not") == 1  # said once
    assert result(folder)["status"] == "finished"
    assert len(losses(folder)) == 4


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds W&B's process by Linux's /proc")
def test_a_wandb_process_that_is_killed_does_not_end_the_run(small, tmp_path, at_the_shell, monkeypatch):
    real, killed = train.learning_rate, []

    def kill_wandbs_process(step: int, config: train.RunConfig) -> float:
        for file in Path("/proc").glob("[0-9]*/stat") if step == 2 else ():
            with contextlib.suppress(OSError):  # a process that has just ended
                name, _, rest = file.read_text().partition("(")[2].rpartition(")")
                if name == "wandb-core" and int(rest.split()[1]) == os.getpid():
                    killed.append(os.kill(int(file.parent.name), signal.SIGKILL))
        return real(step, config)

    monkeypatch.setattr(train, "learning_rate", kill_wandbs_process)
    folder, outcome = wandb_run(small, tmp_path, at_the_shell)
    assert len(killed) == 1
    assert outcome.code == 0
    assert outcome.err.count("\n") == outcome.err.count("W&B could not") == 1, outcome.err
    assert result(folder)["weights_sha256"] == result(run(small, tmp_path / "other"))["weights_sha256"]


class WandbServer(http.server.BaseHTTPRequestHandler):
    """Stands in for W&B's server: it has no run yet, takes whatever is sent, and at some moment falls silent."""

    silent = threading.Event()
    ended = threading.Event()

    def do_POST(self):
        asked = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.silent.is_set():
            self.ended.wait()
        project = {"id": "p", "name": "minroformer", "entity": {"id": "e", "name": "me"}}
        bucket = {"id": "r", "name": "r", "displayName": "r", "config": "{}", "historyLineCount": 0, "project": project}
        data = {"model": {"bucket": None}, "upsertBucket": {"bucket": bucket, "inserted": True}}
        if b"CreateRunFiles" in asked:
            there = f"http://127.0.0.1:{self.server.server_port}/"
            files = [{"name": name, "uploadUrl": there} for name in json.loads(asked)["variables"]["files"]]
            data["createRunFiles"] = {"runID": "r", "uploadHeaders": [], "files": files}
        answer = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_POST

    def log_message(self, *_):
        pass


def test_a_wandb_server_that_no_longer_answers_does_not_hold_a_finished_run(small, tmp_path, at_the_shell, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), WandbServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    real_settings, real_rate = wandb.Settings, train.learning_rate
    limits = []

    def settings(finish_timeout: float, **others: Any) -> wandb.Settings:
        limits.append(finish_timeout)
        return real_settings(finish_timeout=2, **others)  # seconds, and not minutes

    def rate(step: int, config: train.RunConfig) -> float:
        if step == 2:
            WandbServer.silent.set()
        return real_rate(step, config)

    monkeypatch.setattr(wandb, "Settings", settings)
    monkeypatch.setattr(train, "learning_rate", rate)
    try:
        folder, outcome = wandb_run(small, tmp_path, at_the_shell, "online")
    finally:
        WandbServer.ended.set()
        server.shutdown()
        server.server_close()
    assert WandbServer.silent.is_set()
    assert limits == [300]
    assert outcome.code == 0
    assert outcome.err.count("W&B could not finish (Timed out") == outcome.err.count("W&B could not") == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert result(folder)["status"] == "finished"
    assert list(folder.glob("wandb/run-*/run-*.wandb"))  # what `wandb sync` sends later


# ---- runs that end badly ---------------------------------------------------------------------------------------------


def the_line(outcome) -> str:
    """The one line on stderr."""
    (line,) = [line for line in outcome.err.splitlines() if line.strip()]
    assert "Traceback" not in line
    return line


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_that_is_no_number_ends_the_run_and_names_the_step(
    small, tmp_path, at_the_shell, monkeypatch, precision
):
    monkeypatch.setattr(devices, "bf16_is_native", lambda device: True)  # so that nothing warns
    folder = tmp_path / "run"
    monkeypatch.setattr(train, "learning_rate", lambda step, config: 1e30)
    outcome = at_the_shell(train.main, [*small, "--run.precision", precision, "--run.out", str(folder)])
    assert outcome.code == 3
    found, logged = result(folder), events(folder, "train")
    assert found["status"] == "failed"
    assert found["step"] == len(logged) - 1 >= 1  # steps that were done; the last line is of the one that failed
    assert f"at step {logged[-1]['step']} of 4" in the_line(outcome)
    assert "--run.learning_rate" in the_line(outcome)
    assert logged[0]["loss"] == pytest.approx(math.log(259), abs=0.1)
    assert None in (logged[-1]["loss"], logged[-1]["grad_norm"])
    assert not (folder / "model.safetensors").exists()
    with pytest.raises(BadInput, match="failed at step"):
        load_finished_run(folder)


def test_bad_numbers_raise_run_failed(small, tmp_path, monkeypatch):
    real, step = train.cross_entropy, iter(range(100))
    monkeypatch.setattr(train, "cross_entropy", lambda *a, **kw: real(*a, **kw) * (math.nan if next(step) == 2 else 1))
    with pytest.raises(RunFailed, match=r"the loss is nan .* at step 3 of 4"):
        run(small, tmp_path / "run")
    assert [event["step"] for event in events(tmp_path / "run", "train")] == [1, 2, 3]


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_no_space_left_at_the_end_is_one_line_and_keeps_what_was_logged(
    small, tmp_path, at_the_shell, monkeypatch, file
):
    write = files.write_whole

    def full(path, content):
        if path.name == file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, content)

    monkeypatch.setattr("harness.folder.write_whole", full)
    outcome = at_the_shell(train.main, [*small, "--run.out", str(tmp_path / "run")])
    assert outcome.code == 3
    assert "No space left" in the_line(outcome)
    assert file in the_line(outcome)
    assert len(losses(tmp_path / "run")) == 4
    assert result(tmp_path / "run")["status"] == "failed"


def test_no_space_left_for_anything_is_one_line(small, tmp_path, at_the_shell, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run(small, tmp_path / "before")  # prepares the corpus
    monkeypatch.setattr(os, "fsync", full)  # also for result.json, which is to say that the run failed
    outcome = at_the_shell(train.main, [*small, "--run.out", str(tmp_path / "run")])
    assert outcome.code == 3
    assert "No space left" in the_line(outcome)
    assert not [
        path for path in (tmp_path / "run").rglob("*") if path.name.startswith(".") and path.name != ".lock"
    ]  # nothing half-written


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_no_space_left_while_logging_is_one_line(small, tmp_path, at_the_shell, monkeypatch):
    def open_full(path, *args, **kwargs):
        return open("/dev/full" if Path(path).name == "metrics.jsonl" else path, *args, **kwargs)

    monkeypatch.setattr("harness.folder.open", open_full, raising=False)
    outcome = at_the_shell(train.main, [*small, "--run.out", str(tmp_path / "run")])
    assert outcome.code == 3
    assert "No space left" in the_line(outcome)
    assert result(tmp_path / "run")["status"] == "failed"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 64000000000064 bytes. Error code 12 (Cannot allocate memory)"
        ),
    ],
    ids=["cuda", "python", "cpu"],
)
def test_out_of_memory_is_one_line_that_names_the_flag(small, tmp_path, at_the_shell, monkeypatch, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(train, "cross_entropy", fails)
    outcome = at_the_shell(train.main, [*small, "--run.out", str(tmp_path / "run")])
    assert outcome.code == 3
    assert "out of memory" in the_line(outcome)
    assert "--run.micro_batch_size" in the_line(outcome)
    assert result(tmp_path / "run")["status"] == "failed"


def test_a_bug_is_not_dressed_up_as_bad_input(small, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "cross_entropy", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        messages.run_main(train.main, [*small, "--run.out", str(tmp_path / "run")])
    assert result(tmp_path / "run")["status"] == "failed"


@pytest.fixture(scope="module")
def interrupted(small, tmp_path_factory):
    """Two long runs in processes of their own, stopped by Ctrl-C and by SIGTERM once they have logged some steps."""
    runs = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        folder = tmp_path_factory.mktemp("interrupted") / number.name
        flags = ["--run.steps", "1000000", "--run.eval_every", "1000000", "--run.out", str(folder)]
        process = subprocess.Popen(
            [sys.executable, REPOSITORY / "train.py", *small, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # a shell's background jobs, and what they start, ignore Ctrl-C
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        runs[number] = folder, process
    ends = {}
    try:
        deadline = time.monotonic() + 100
        for number, (folder, process) in runs.items():
            while not (folder / "metrics.jsonl").exists() or (folder / "metrics.jsonl").stat().st_size < 1000:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(number)
        for number, (folder, process) in runs.items():
            _, err = process.communicate(timeout=60)
            ends[number] = folder, process.returncode, err
    finally:
        for _, process in runs.values():
            process.kill()
    return ends


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_says_how_far_it_got(interrupted, small, number, code):
    folder, returned, err = interrupted[number]
    assert returned == code
    found, logged = result(folder), events(folder, "train")
    assert found["status"] == "interrupted"
    assert found["steps"] == 1000000
    assert [event["step"] for event in logged] == list(range(1, len(logged) + 1))
    assert abs(found["step"] - len(logged)) <= 1
    assert "Traceback" not in err
    assert f"interrupted at step {found['step']} of 1000000" in err
    assert not (folder / "model.safetensors").exists()
    with pytest.raises(BadInput, match=f"interrupted at step {found['step']} of 1000000"):
        train.main([*small, "--run.out", str(folder)])


def test_a_stop_before_the_folder_is_made_leaves_nothing(small, tmp_path, monkeypatch, at_the_shell):
    def load(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "load", load)
    assert at_the_shell(train.main, [*small, "--run.out", str(tmp_path / "run")]).code == 130
    assert not (tmp_path / "run").exists()
