"""Text from a trained run, and what happens where there is none.

.venv/bin/python -m pytest tests/test_generate.py
"""

import io
import itertools
import os
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

import generate
import train
from harness import byte_level, devices, messages
from harness.messages import BadInput, RunFailed
from harness.runs import load_finished_run
from harness.scalings import make_position, override_options
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
    loaded = load_finished_run(folder)
    drawn = greedy(loaded.model, loaded.tokenizer.encode("in the ").ids, 40)  # seq_len is 16
    assert len(set(drawn)) > 5
    expected = loaded.tokenizer.decode(drawn, skip_special_tokens=False)
    said = text_of(folder, "--prompt", "in the ", "--tokens", "40", "--temperature", "0")
    assert said == f"in the {expected}\n"


@pytest.mark.parametrize(
    ("scheme", "flags"),
    [(scheme, []) for scheme in ENDLESS] + [("rope", ["--rope.scaling", "dynamic", "--rope.factor", "1"])],
)
def test_compiled_text_is_the_same_past_the_trained_length_too(decided, text_of, compiling, scheme, flags):
    graphs = []
    compiling(lambda graph, inputs: graphs.append(graph) or graph.forward)
    argv = [decided(scheme), "--prompt", "in the ", "--tokens", "24", "--temperature", "0.5", *flags]  # seq_len is 16
    assert text_of(*argv, "--compile", "true") == text_of(*argv)
    assert graphs


@pytest.mark.skipif(not devices.has_compiler(), reason="there is no C++ compiler")
def test_text_of_a_model_that_is_compiled_indeed_is_the_same(decided, text_of, compiling):
    argv = [decided("rope"), "--prompt", "in the ", "--tokens", "24", "--temperature", "0.5"]
    assert text_of(*argv, "--compile", "true") == text_of(*argv)


def test_without_a_compiler_compiled_text_is_refused(finished, monkeypatch):
    monkeypatch.setattr(devices, "has_compiler", lambda: False)
    with pytest.raises(BadInput, match=r"--compile true needs a C\+\+ compiler.*leave --compile out"):
        generate.main([str(finished("rope")), "--compile", "true"])


def test_a_compiler_that_fails_is_one_line(finished, compiling):
    def broken(graph, inputs):
        raise RuntimeError("fatal error: Python.h: No such file or directory")

    compiling(broken)
    with pytest.raises(RunFailed, match=r"^torch.compile failed: .*Python.h.*leave --compile out$"):
        generate.main([str(finished("rope")), "--compile", "true"])


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


def test_the_number_of_tokens_is_what_was_asked(finished, text_of):
    loaded = load_finished_run(finished("rope"))
    said = text_of(finished("rope"), "--prompt", "earth", "--tokens", "12", "--temperature", "0")
    assert len(loaded.tokenizer.encode(said.removesuffix("\n")).ids) == len("earth") + 12


def test_an_empty_prompt_starts_a_text(finished, text_of):
    loaded = load_finished_run(finished("rope"))
    end = loaded.tokenizer.token_to_id(byte_level.SPECIAL_TOKENS[0])
    expected = loaded.tokenizer.decode(greedy(loaded.model, [end], 6))
    assert text_of(finished("rope"), "--tokens", "6", "--temperature", "0") == f"{expected}\n"
    assert text_of(finished("rope"), "--prompt", "", "--tokens", "6", "--temperature", "0") == f"{expected}\n"


def test_any_unicode_is_a_prompt_and_the_text_of_a_special_token_is_ordinary(finished, text_of):
    for prompt in ("naïve 文字 \U0001f600", "<|endoftext|>", "a\nb", " "):
        assert text_of(finished("rope"), "--prompt", prompt, "--tokens", "3").startswith(prompt)


def test_the_end_of_text_ends_the_text_with_a_note(finished, capsys, monkeypatch):
    real = Transformer.forward

    def ends_soon(self, tokens, positions=None, cache=None, last=0):
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
    loaded = load_finished_run(folder)
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


def test_several_samples_stop_at_the_wall_of_learned_positions_each_with_its_text_and_the_note(decided, text_of):
    alone = text_of(decided("learned"), "--prompt", "0123456789", "--tokens", "20", "--seed", "4")
    said = samples_in(text_of(decided("learned"), "--prompt", "0123456789", "--tokens", "20", *THREE))
    assert len(said) == 3
    assert said[1] == alone
    assert all("\n[learned positions end at 16" in text for text in said)


def test_top_k_1_is_greedy_and_the_options_reach_the_draws(decided, text_of):
    flags = ["--prompt", "in", "--tokens", "30", "--temperature", "3"]
    likeliest = text_of(decided("rope"), "--prompt", "in", "--tokens", "30", "--temperature", "0")
    assert text_of(decided("rope"), *flags) != likeliest
    for option in (("--top_k", "1"), ("--top_p", "1e-6")):
        assert text_of(decided("rope"), *flags, *option) == likeliest


# ---- one text for one seed -------------------------------------------------------------------------------------------

THREE = ["--samples", "3", "--seed", "3"]


def samples_in(said: str) -> list[str]:
    """The texts of several samples, without their headers."""
    return re.split(r"(?m)^--- sample \d+ of \d+ \(alone: --seed \d+\)\n", said)[1:]


@pytest.fixture
def passes(monkeypatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every forward pass from here on: tokens and logits."""
    real, seen = Transformer.forward, []

    def forward(self, tokens, positions=None, cache=None, last=0):
        logits = real(self, tokens, positions, cache, last)
        seen.append((tokens, logits))
        return logits

    monkeypatch.setattr(Transformer, "forward", forward)
    return seen


def test_one_seed_gives_one_text_on_one_thread_and_two_alone_and_beside_others(decided, text_of, passes):
    flags = ["--prompt", "in the beginning God created the heaven", "--tokens", "30", "--temperature", "1"]
    texts, logits = [], []
    for threads, samples in ((1, 1), (2, 1), (1, 4), (2, 4)):
        torch.set_num_threads(threads)
        passes.clear()
        said = text_of(decided("rope"), *flags, "--seed", "3", "--samples", str(samples))
        texts.append(said if samples == 1 else samples_in(said)[0])
        logits.append(torch.stack([row[0, -1] for _, row in passes]))
    assert len(set(texts)) == 1
    assert all(row.dtype == torch.float64 for row in logits)
    assert max((row - logits[0]).abs().max() for row in logits) < 1e-11  # in float32 1e-6: too near for a long text


def test_sample_i_is_the_text_of_seed_plus_i_however_many_there_are(finished, text_of):
    flags = ["--prompt", "God", "--tokens", "30", "--temperature", "1", "--top_k", "20"]
    three = samples_in(text_of(finished("rope"), *flags, *THREE))
    assert len(set(three)) == 3
    assert three == [text_of(finished("rope"), *flags, "--seed", seed) for seed in "345"]
    assert samples_in(text_of(finished("rope"), *flags, "--samples", "2", "--seed", "3")) == three[:2]


def test_all_samples_go_through_one_pass_a_token_that_computes_the_last_logits_alone(finished, text_of, passes):
    text_of(finished("rope"), "--prompt", "in the", "--tokens", "5", *THREE)
    assert [tuple(tokens.shape) for tokens, _ in passes] == [(3, 6), (3, 1), (3, 1), (3, 1), (3, 1)]
    assert {tuple(logits.shape[:2]) for _, logits in passes} == {(3, 1)}


# ---- text as it comes ------------------------------------------------------------------------------------------------


def test_one_sample_is_printed_and_flushed_before_the_next_token_is_computed(finished, monkeypatch):
    class Screen(io.StringIO):
        flushed = ""

        def flush(self):
            self.flushed = self.getvalue()

    screen, seen, real = Screen(), [], Transformer.forward

    def forward(self, *args, **kwargs):
        seen.append(screen.flushed)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Transformer, "forward", forward)
    monkeypatch.setattr(sys, "stdout", screen)
    generate.main([str(finished("rope")), "--prompt", "in the ", "--tokens", "12", "--temperature", "0"])
    whole = screen.getvalue().removesuffix("\n")
    assert whole.isascii()  # so that every token is a character
    assert seen == [whole[: len("in the ") + i] for i in range(12)]


def test_a_reader_that_leaves_early_is_no_error(finished, monkeypatch):
    argv = [str(finished("rope")), "--prompt", "in", "--tokens", "3"]
    read, written = os.pipe()
    os.close(read)
    with monkeypatch.context() as patch:
        pipe = os.fdopen(written, "w")
        patch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit) as ended:
            messages.run_main(generate.main, argv, prints=True)  # as generate.py does
        pipe.close()  # which flushes: the pipe would complain again
    assert ended.value.code == 0


def test_pieces_are_whole_characters_and_together_what_the_tokenizer_decodes(finished, monkeypatch):
    loaded = load_finished_run(finished("rope"))  # whose tokens are bytes
    pieces: list[str] = []

    class Screen(io.StringIO):
        def flush(self):
            pieces.append(self.getvalue()[len("".join(pieces)) :])

    words, broken = "na\u00efve \u6587\u5b57 \U0001f600, e\u0301", [byte + 3 for byte in (0xE6, ord("a"), 0xFF, 0xC3)]
    monkeypatch.setattr(sys, "stdout", Screen())
    for ids in (loaded.tokenizer.encode(words).ids, broken):
        pieces.clear()
        monkeypatch.setattr(generate, "sample_several", lambda *_, ids=ids, **__: ([token] for token in ids))
        sys.stdout = Screen()
        generate.main([str(finished("rope")), "--prompt", "in "])
        said = sys.stdout.getvalue()
        assert said == f"in {loaded.tokenizer.decode(ids)}\n"
        assert [piece for piece in pieces[1:] if piece] == (list(words) if ids is not broken else ["\ufffda"])


# ---- past the trained length -----------------------------------------------------------------------------------------

LISTS = ["--rope.short_factor", "[1, 1, 1, 1]", "--rope.long_factor", "[1, 2, 3, 4]"]


@pytest.mark.parametrize(
    "flags",
    [
        ["linear"],
        ["ntk"],
        ["dynamic"],
        ["dynamic", "--rope.factor", "2"],
        ["yarn", "--rope.beta_fast", "2"],
        ["yarn", "--rope.factor", "4", "--rope.attention_factor", "1.5"],
        ["longrope", *LISTS],
        ["llama3", "--rope.factor", "auto"],
        ["proportional", "--rope.fraction", "0.5"],
        ["none", "--rope.base", "500"],
    ],
    ids=" ".join,
)
def test_every_scaling_draws_what_full_passes_draw_across_the_trained_length(decided, text_of, flags):
    folder, prompt, tokens = decided("rope"), "in the ", 40  # seq_len is 16
    loaded = load_finished_run(folder)
    ids = loaded.tokenizer.encode(prompt).ids
    unscaled = greedy(loaded.model, ids, tokens)
    flags = ["--rope.scaling", *flags]
    given = dict(
        zip([flag.removeprefix("--rope.") for flag in flags[::2]], map(yaml.safe_load, flags[1::2]), strict=True)
    )
    fields = override_options(loaded.model_config.rope, given, given["scaling"], 16)
    loaded.model.position = make_position(loaded, fields, len(ids) + tokens - 1)
    drawn = greedy(loaded.model, ids, tokens)
    shown = list(itertools.takewhile(loaded.tokenizer.token_to_id(byte_level.SPECIAL_TOKENS[0]).__ne__, drawn))
    note = "[the model ended its text]\n" if len(shown) < tokens else ""
    said = text_of(folder, "--prompt", prompt, "--tokens", str(tokens), "--temperature", "0", *flags)
    assert said == prompt + loaded.tokenizer.decode(shown, skip_special_tokens=False) + "\n" + note
    assert len(shown) > 20  # past the trained length
    assert drawn != unscaled  # and the options did something


def test_factor_auto_is_the_longest_context_over_the_trained_length(decided, text_of):
    flags = ["--prompt", "in the ", "--tokens", "42", "--temperature", "0", "--rope.scaling", "linear"]  # 7 + 42 - 1
    assert text_of(decided("rope"), *flags) == text_of(decided("rope"), *flags, "--rope.factor", "3")
    assert text_of(decided("rope"), *flags) != text_of(decided("rope"), *flags, "--rope.factor", "3.5")


@pytest.mark.parametrize(
    ("scheme", "flags", "warned"),
    [
        ("rope", ["--tokens", "10"], False),  # 7 + 10 tokens, of which the last is not fed
        ("rope", ["--tokens", "11"], True),
        ("alibi", ["--tokens", "11"], False),
        ("rope", ["--tokens", "26", "--rope.scaling", "linear"], False),
        ("rope", ["--tokens", "26", "--rope.scaling", "linear", "--rope.factor", "2"], False),
        ("rope", ["--tokens", "27", "--rope.scaling", "linear", "--rope.factor", "2"], True),
        ("rope", ["--tokens", "27", "--rope.scaling", "dynamic", "--rope.factor", "2"], False),
    ],
)
def test_rope_that_is_not_scaled_far_enough_is_warned_of_in_one_line(finished, at_the_shell, scheme, flags, warned):
    outcome = at_the_shell(generate.main, [str(finished(scheme)), "--prompt", "in the ", *flags])
    assert outcome.code == 0
    lines = outcome.err.splitlines()
    assert len(lines) == warned
    if warned:
        for word in ("warning", "16 tokens", str(6 + int(flags[1])), "--rope.scaling yarn"):
            assert word in lines[0]
