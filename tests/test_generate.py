"""Text from a trained run, and what happens where there is none.

.venv/bin/python -m pytest tests/test_generate.py
"""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

import data
import generate
import train
from checkpoint import load_run
from cli import BadInput
from model import Transformer
from positions import SCHEMES

ENDLESS = [scheme for scheme in SCHEMES if scheme != "learned"]


@pytest.fixture
def text_of(capsys):
    """Call generate.main and return what it printed."""

    def call(folder: Path, *flags: str) -> str:
        capsys.readouterr()
        generate.main([str(folder), *flags])
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def decided(small, tmp_path_factory):
    """The folder of a scheme's run with large first values, hardly trained: what it says is varied, and no near tie."""

    def folder(scheme: str) -> Path:
        path = tmp_path_factory.mktemp("decided") / scheme
        own = ["--model.position", scheme, "--model.init_std", "1", "--model.tie_embeddings", "false"]
        train.main([*small, *own, "--run.steps", "1", "--run.learning_rate", "1e-9", "--run.out", str(path)])
        return path

    return folder


@pytest.fixture
def broken(finished, tmp_path) -> Path:
    """A copy of a finished run, to be broken."""
    return Path(shutil.copytree(finished("rope"), tmp_path / "rope"))


@torch.no_grad()
def greedy(model: Transformer, ids: list[int], tokens: int) -> list[int]:
    """The likeliest token every time, by a full forward pass without a cache."""
    ids = list(ids)
    for _ in range(tokens):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[-tokens:]


@pytest.mark.parametrize("scheme", ENDLESS)
def test_temperature_0_is_the_argmax_of_full_passes_past_the_trained_length_too(decided, text_of, scheme):
    folder = decided(scheme)
    loaded = load_run(folder)
    drawn = greedy(loaded.model, loaded.tokenizer.encode("in the ").ids, 40)  # seq_len is 16
    assert len(set(drawn)) > 5
    expected = loaded.tokenizer.decode(drawn, skip_special_tokens=False)
    said = text_of(folder, "--prompt", "in the ", "--tokens", "40", "--temperature", "0")
    assert said == f"in the {expected}\n"


def test_one_seed_gives_one_text_and_another_seed_another(finished, text_of):
    flags = ["--prompt", "God", "--tokens", "40", "--temperature", "1"]
    texts = [text_of(finished("rope"), *flags, "--seed", seed) for seed in "001"]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("God")


def test_sampling_does_not_touch_the_global_generator(finished, text_of):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    text_of(finished("rope"), "--tokens", "5")
    assert torch.equal(torch.get_rng_state(), before)


def test_temperature_0_needs_no_seed(finished, text_of):
    flags = ["--prompt", "God", "--tokens", "20", "--temperature", "0"]
    assert text_of(finished("rope"), *flags, "--seed", "1") == text_of(finished("rope"), *flags, "--seed", "2")


def test_draws_follow_the_softmax_of_logits_over_temperature(finished):
    model, prompt = load_run(finished("rope")).model, [byte + 3 for byte in b"in "]
    with torch.no_grad():
        logits = model(torch.tensor([prompt]))[0, -1]
    plain = logits.softmax(-1)
    for temperature in (0.25, 1.0):
        expected = (logits / temperature).softmax(-1)
        draws = torch.tensor([next(generate.sample(model, prompt, 1, temperature, seed)) for seed in range(400)])
        seen = torch.bincount(draws, minlength=len(expected)) / len(draws)
        deviation = (expected * (1 - expected) / len(draws)).sqrt()
        assert ((seen - expected).abs() < 5 * deviation + 2 / len(draws)).all()
        if temperature != 1:  # and the draws could tell the two apart
            assert (seen - plain).abs().max() > 0.3


def test_the_number_of_tokens_is_what_was_asked(finished, text_of):
    loaded = load_run(finished("rope"))
    said = text_of(finished("rope"), "--prompt", "earth", "--tokens", "12", "--temperature", "0")
    assert len(loaded.tokenizer.encode(said.removesuffix("\n")).ids) == len("earth") + 12


def test_an_empty_prompt_starts_a_text(finished, text_of):
    loaded = load_run(finished("rope"))
    end = loaded.tokenizer.token_to_id(data.SPECIAL_TOKENS[0])
    expected = loaded.tokenizer.decode(greedy(loaded.model, [end], 6))
    assert text_of(finished("rope"), "--tokens", "6", "--temperature", "0") == f"{expected}\n"
    assert text_of(finished("rope"), "--prompt", "", "--tokens", "6", "--temperature", "0") == f"{expected}\n"


def test_any_unicode_is_a_prompt_and_the_text_of_a_special_token_is_ordinary(finished, text_of):
    for prompt in ("naïve 文字 \U0001f600", "<|endoftext|>", "a\nb", " "):
        assert text_of(finished("rope"), "--prompt", prompt, "--tokens", "3").startswith(prompt)


def test_the_end_of_text_ends_the_text_with_a_note(finished, capsys, monkeypatch):
    real = Transformer.forward

    def ends_soon(self, tokens, positions=None, cache=None, last=None):
        logits = real(self, tokens, positions, cache, last)
        logits[..., 0] = 1e9 if cache.used >= 5 else -1e9
        return logits

    monkeypatch.setattr(Transformer, "forward", ends_soon)
    generate.main([str(finished("rope")), "--prompt", "abc", "--tokens", "40"])
    said = capsys.readouterr().out
    assert "the model ended its text" in said
    assert "<|endoftext|>" not in said


def test_learned_positions_stop_at_their_wall_with_a_note(decided, at_the_shell):
    folder = decided("learned")
    outcome = at_the_shell(
        generate.main, [str(folder), "--prompt", "0123456789", "--tokens", "20", "--temperature", "0"]
    )
    assert outcome.code == 0
    text, note = outcome.out.rstrip("\n").rsplit("\n[", 1)
    loaded = load_run(folder)
    ids = loaded.tokenizer.encode("0123456789").ids
    assert text == "0123456789" + loaded.tokenizer.decode(greedy(loaded.model, ids, 7))  # the 17th token is the last
    assert "learned positions end at 16" in note


def test_learned_positions_within_their_wall_need_no_note(finished, text_of):
    assert "[" not in text_of(finished("learned"), "--prompt", "0123456789", "--tokens", "7", "--temperature", "0")


def test_a_prompt_beyond_learned_positions_is_bad_input(finished, at_the_shell):
    outcome = at_the_shell(generate.main, [str(finished("learned")), "--prompt", "x" * 17, "--tokens", "2"])
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    for word in ("--prompt", "17", "16", "rope"):
        assert word in line
    assert outcome.out == ""


def test_a_prompt_as_long_as_learned_positions_gets_one_token(finished, at_the_shell):
    outcome = at_the_shell(generate.main, [str(finished("learned")), "--prompt", "x" * 16, "--tokens", "2"])
    assert outcome.code == 0
    assert "learned positions end at 16" in outcome.out


# ---- runs that cannot be used ----------------------------------------------------------------------------------------


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
    loaded = load_run(tmp_path / "run")
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
        load_run(tmp_path)
