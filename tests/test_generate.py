"""Text from a trained run, and what happens where there is none.

.venv/bin/python -m pytest tests/test_generate.py
"""

import io
import itertools
import math
import os
import random
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import data
import generate
import train
from harness import byte_level, devices, messages, sampling
from harness.messages import BadInput, RunFailed
from harness.runs import load_finished_run
from harness.scalings import make_position, override_options
from model import ModelConfig, Transformer
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


def test_draws_follow_the_softmax_of_logits_over_temperature(finished):
    model, prompt = load_finished_run(finished("rope")).model, [byte + 3 for byte in b"in "]
    with torch.no_grad():
        logits = model(torch.tensor([prompt]))[0, -1]
    plain = logits.softmax(-1)
    for temperature in (0.25, 1.0):
        expected = (logits / temperature).softmax(-1)
        draws = torch.tensor([next(sampling.sample(model, prompt, 1, temperature, seed)) for seed in range(400)])
        seen = torch.bincount(draws, minlength=len(expected)) / len(draws)
        deviation = (expected * (1 - expected) / len(draws)).sqrt()
        assert ((seen - expected).abs() < 5 * deviation + 2 / len(draws)).all()
        if temperature != 1:  # and the draws could tell the two apart
            assert (seen - plain).abs().max() > 0.3


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


# ---- which tokens may be drawn ---------------------------------------------------------------------------------------


def kept(logits: torch.Tensor) -> list[int]:
    return logits.isfinite().nonzero().flatten().tolist()


HALVES = torch.tensor([0.125, 0.5, 0.125, 0.25], dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("k", "left"), [(1, [1]), (2, [1, 3]), (3, [0, 1, 2, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])]
)
def test_top_k_keeps_the_k_likeliest_and_what_equals_the_last_of_them(k, left):
    assert kept(sampling.keep_top_k(HALVES, k)) == left


@pytest.mark.parametrize(("p", "left"), [(1e-9, [1]), (0.49, [1]), (0.51, [1, 3]), (0.74, [1, 3]), (0.76, [0, 1, 3])])
def test_top_p_keeps_the_fewest_that_hold_p_and_the_first_of_equals(p, left):
    assert kept(sampling.keep_top_p(HALVES, p)) == left


def test_top_p_of_equal_tokens_keeps_as_many_as_it_needs():
    assert kept(sampling.keep_top_p(torch.zeros(4), 0.5)) == [0, 1]  # both sums are exact here
    assert kept(sampling.keep_top_p(torch.zeros(4), 0.51)) == [0, 1, 2]


@pytest.mark.parametrize(("p", "left"), [(0.51, [1]), (0.49, [1, 3]), (0.26, [1, 3]), (0.24, [0, 1, 2, 3])])
def test_min_p_keeps_those_with_that_share_of_the_largest_probability(p, left):
    assert kept(sampling.keep_min_p(HALVES, p)) == left


def test_what_leaves_nothing_out_changes_nothing():
    logits = torch.cat((torch.zeros(5), torch.full((5,), -300.0), torch.tensor([-math.inf])))
    for same in (sampling.keep_top_k(logits, 11), sampling.keep_top_p(logits, 1), sampling.keep_min_p(logits, 0)):
        assert torch.equal(same, logits)


def test_one_token_is_always_left():
    rows = torch.stack((torch.zeros(50), torch.randn(50, generator=torch.Generator().manual_seed(0)) * 100))
    strictest = sampling.keep_min_p(sampling.keep_top_p(sampling.keep_top_k(rows, 1), 1e-12), 1 - 1e-12)
    assert strictest.isfinite().any(-1).all()
    assert strictest[1].argmax() == rows[1].argmax()


def test_each_leaves_what_the_transformers_library_leaves():
    from transformers.generation.logits_process import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(200, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    for ours, theirs in (
        (sampling.keep_top_k(logits, 7), TopKLogitsWarper(7)(None, logits)),
        (sampling.keep_top_p(logits, 0.8), TopPLogitsWarper(0.8)(None, logits)),
        (sampling.keep_min_p(logits, 0.1), MinPLogitsWarper(0.1)(None, logits)),
    ):
        assert torch.equal(ours, theirs)
        assert 0 < ours.isfinite().sum() < ours.numel()


def test_the_number_drawn_falls_on_the_sum_of_probabilities():
    u = torch.tensor([[0.0], [0.124], [0.126], [0.624], [0.626], [0.749], [0.751], [1 - 2**-53]], dtype=torch.float64)
    drawn = sampling.choose_tokens(HALVES.expand(len(u), -1), u, temperature=1)
    assert drawn.flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    middle = torch.tensor([-math.inf, 0, -math.inf, 0, -math.inf])  # and what has no probability is never drawn
    ends = torch.tensor([[0.0], [0.5], [1 - 2**-53]], dtype=torch.float64)
    assert sampling.choose_tokens(middle.expand(3, -1), ends, temperature=1).flatten().tolist() == [1, 3, 3]


def test_temperature_comes_first_then_top_k_then_top_p():
    u = torch.tensor([[0.999]], dtype=torch.float64)  # draws the last token that is left
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert sampling.choose_tokens(logits, u, 1, top_p=0.5) == 1
    assert sampling.choose_tokens(logits, u, 1, top_k=2, top_p=0.5) == 0  # 0.4 is 0.57 of what top-k has left
    assert sampling.choose_tokens(logits, u, 0.25, top_p=0.5) == 0  # 0.4^4 is 0.72 of all fourth powers
    assert sampling.choose_tokens(logits, u, 2, min_p=0.65) == 2  # sqrt(0.2 / 0.4) is 0.71
    assert sampling.choose_tokens(logits, u, 1, min_p=0.65) == 1


def test_a_temperature_near_0_is_the_likeliest_token():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    for temperature in (1e-300, 1e-5):
        assert sampling.choose_tokens(logits, torch.tensor([[0.9]], dtype=torch.float64), temperature) == 1


def test_top_k_1_is_greedy_and_the_options_reach_the_draws(decided, text_of):
    flags = ["--prompt", "in", "--tokens", "30", "--temperature", "3"]
    likeliest = text_of(decided("rope"), "--prompt", "in", "--tokens", "30", "--temperature", "0")
    assert text_of(decided("rope"), *flags) != likeliest
    for option in (("--top_k", "1"), ("--top_p", "1e-6"), ("--min_p", "0.999999")):
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


def test_asking_for_more_tokens_goes_on_with_the_same_text(finished):
    model = load_finished_run(finished("rope")).model
    long = list(sampling.sample(model, [70, 80], 60, temperature=1, seed=2))
    assert list(sampling.sample(model, [70, 80], 20, temperature=1, seed=2)) == long[:20]


def test_all_samples_go_through_one_pass_a_token_that_computes_the_last_logits_alone(finished, text_of, passes):
    text_of(finished("rope"), "--prompt", "in the", "--tokens", "5", *THREE)
    assert [tuple(tokens.shape) for tokens, _ in passes] == [(3, 6), (3, 1), (3, 1), (3, 1), (3, 1)]
    assert {tuple(logits.shape[:2]) for _, logits in passes} == {(3, 1)}


def test_the_cache_is_allocated_once_and_written_in_place(finished, monkeypatch):
    model, caches, places = load_finished_run(finished("rope")).model, [], set()
    real = model.new_cache
    monkeypatch.setattr(model, "new_cache", lambda *size: caches.append(real(*size)) or caches[-1])
    for _ in sampling.sample(model, [70, 80], 20, temperature=1, seed=0):
        (cache,) = caches
        places.add((cache.keys.data_ptr(), cache.values.data_ptr(), cache.tokens.data_ptr()))
    assert len(places) == 1
    assert cache.keys.shape[-2] == cache.used == 21  # the last token drawn is not needed


# ---- text as it comes ------------------------------------------------------------------------------------------------


def test_weights_lie_by_columns_while_one_sample_is_drawn_and_can_be_trained_on_after_it(finished):
    model = load_finished_run(finished("rope")).model
    tensors = dict(model.named_parameters())
    before = {name: weight.detach().clone() for name, weight in tensors.items()}

    def by_columns() -> list[str]:
        return [name for name, weight in tensors.items() if not weight.is_contiguous()]

    drawing = sampling.sample(model, [1, 2], 8, temperature=0, seed=0)
    next(drawing)
    wide = [name for name, weight in tensors.items() if weight.dim() == 2 and weight.shape[0] > weight.shape[1]]
    assert by_columns() == wide
    assert "blocks.0.mlp.gate_up.weight" in wide
    drawing.close()  # before it was through
    assert by_columns() == []
    assert all(torch.equal(weight, before[name]) for name, weight in tensors.items())
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    assert all(weight.grad is not None for weight in tensors.values())
    several = sampling.sample_several(model, [1, 2], 8, temperature=0, seed=0, number=2)
    next(several)
    assert by_columns() == []


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


@pytest.fixture(scope="module")
def tokenizers_of(finished, text):
    """A tokenizer of bytes, and one of pairs of bytes with an added token that has a space."""
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer, pairs.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = list(byte_level.SPECIAL_TOKENS[:1])
    pairs.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    )
    pairs.add_tokens(["naïve deep"])
    return load_finished_run(finished("rope")).tokenizer, pairs


def test_pieces_are_whole_characters_and_nothing_is_lost(tokenizers_of):
    original = "naïve 文字 \U0001f600, e\u0301\r\n"
    for tokenizer in tokenizers_of:
        whole = sampling.Text(tokenizer, [])
        pieces = [whole.add(token) for token in tokenizer.encode(original).ids]
        assert "".join(pieces) == whole.said == original
        assert not any("\ufffd" in piece for piece in pieces)
        assert whole.add(None) == ""


def test_pieces_of_any_tokens_are_together_what_the_tokenizer_decodes(tokenizers_of):
    draw = random.Random(0)
    for tokenizer in tokenizers_of:
        end = tokenizer.token_to_id(byte_level.SPECIAL_TOKENS[0])
        ids = [i for i in range(tokenizer.get_vocab_size()) if i != end]
        broken = [i for i in ids if "\ufffd" in tokenizer.decode([i])]
        for trial in range(200):
            tokens = draw.choices(broken if trial % 2 else ids, k=draw.randrange(1, 12))
            text = sampling.Text(tokenizer, [])
            pieces = [text.add(token) for token in [*tokens, None]]
            assert "".join(pieces) == text.said == tokenizer.decode(tokens, skip_special_tokens=False)


def test_a_byte_that_begins_no_character_is_printed_at_once(tokenizers_of):
    text = sampling.Text(tokenizers_of[0], [])
    assert text.add(0xFF + 3) == "\ufffd"
    assert text.add("é".encode()[0] + 3) == ""
    assert text.add(None) == "\ufffd"


def test_a_reader_that_leaves_early_is_no_error(finished, monkeypatch):
    argv = [str(finished("rope")), "--prompt", "in", "--tokens", "3"]
    read, written = os.pipe()
    os.close(read)
    with monkeypatch.context() as patch:
        pipe = os.fdopen(written, "w")
        patch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit) as ended:
            messages.run(generate.main, argv, prints=True)  # as generate.py does
        pipe.close()  # which flushes: the pipe would complain again
    assert ended.value.code == 0


# ---- stop texts ------------------------------------------------------------------------------------------------------


def fed(tokenizer, stops: list[str], words: str) -> tuple[list[str], sampling.Text]:
    """The pieces that come of a text's bytes, one by one and with an end, and the text they make."""
    text = sampling.Text(tokenizer, stops)
    return [text.add(token) for token in [*tokenizer.encode(words).ids, None]], text


def test_a_stop_text_ends_the_text_before_it_and_is_not_part_of_it(tokenizers_of):
    for tokenizer in tokenizers_of:
        _, text = fed(tokenizer, ["\n\n", "deep"], "in the\nbeginning\n\nGod and the deep")
        assert text.said == "in the\nbeginning"
        assert (text.over, text.note) == (True, "")
        _, text = fed(tokenizer, ["\n\n", "beginning"], "in the\nbeginning\n\nGod")
        assert text.said == "in the\n"


def test_what_might_become_a_stop_text_is_held_back_and_given_when_it_does_not(tokenizers_of):
    pieces, text = fed(tokenizers_of[0], ["aab", "xyz"], "aaaac xy")
    assert pieces == ["", "", "a", "a", "aac", " ", "", "", "xy"]
    assert text.said == "aaaac xy"
    pieces, text = fed(tokenizers_of[0], ["aab"], "aaabc")
    assert (pieces, text.said) == (["", "", "a", "", "", ""], "a")


def test_a_stop_text_may_have_characters_of_several_bytes(tokenizers_of):
    assert fed(tokenizers_of[0], ["ï文"], "naï naï文字")[1].said == "naï na"


def test_of_two_stop_texts_in_one_token_the_first_to_stand_there_counts(tokenizers_of):
    assert fed(tokenizers_of[1], ["deep", "ï", "p"], "in the naïve deep")[1].said == "in the na"


def test_generation_ends_at_a_stop_text(decided, text_of, passes):
    flags = ["--prompt", "in the ", "--tokens", "40", "--temperature", "0"]
    loaded = load_finished_run(decided("rope"))
    drawn = loaded.tokenizer.decode(greedy(loaded.model, loaded.tokenizer.encode("in the ").ids, 40))
    stop = drawn[10:13]
    passes.clear()
    assert text_of(decided("rope"), *flags, "--stop", "nowhere", "--stop", stop) == f"in the {drawn.split(stop)[0]}\n"
    assert len(passes) < 40


def test_a_stop_text_in_the_prompt_stops_nothing(finished, text_of):
    flags = ["--prompt", "in the ", "--tokens", "8", "--temperature", "0"]
    assert text_of(finished("rope"), *flags, "--stop", "in the ") == text_of(finished("rope"), *flags)


def test_samples_stop_each_at_its_own_place(finished, text_of):
    flags = ["--prompt", "in", "--tokens", "40", "--temperature", "1"]
    whole = samples_in(text_of(finished("rope"), *flags, *THREE))
    stopped = samples_in(text_of(finished("rope"), *flags, *THREE, "--stop", "e", "--stop", r"\n"))
    assert stopped == [re.split("[e\n]", text[2:])[0].join(("in", "\n")) for text in whole]
    assert len({len(text) for text in stopped}) > 1


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


def test_compiled_generation_writes_the_same_tokens_with_one_graph_for_the_prompt_and_one_for_all_others():
    """Were the length of the cache compiled in, every token would be compiled anew. The graphs are run as they are."""
    graphs = []
    model = Transformer(ModelConfig(vocab_size=64, d_model=32, n_layer=2, n_head=2)).eval()
    compiled = torch.compile(model, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    ours, theirs = ([*sampling.sample(m, [1, 2, 3], 30, temperature=0, seed=0)] for m in (compiled, model))
    assert ours == theirs
    assert len(graphs) == 2
