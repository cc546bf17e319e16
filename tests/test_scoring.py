"""Loss on windows: which windows and targets a protocol takes, and long windows in chunks.

.venv/bin/python -m pytest tests/test_scoring.py
"""

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from texts import load_corpus
from torch import Tensor
from torch.nn import functional as F

import data
from harness import scoring
from harness.messages import BadInput
from model import ModelConfig, Transformer
from positions import SCHEMES
from rope import OPTIONS, RopeConfig

L = 16  # a trained length
CPU = torch.device("cpu")


@pytest.mark.parametrize(("length", "stride"), [(8, 1), (8, 3), (8, 8), (30, 7), (99, 10), (100, 100), (40, 39)])
def test_sliding_covers_each_token_but_the_first_once(length, stride):
    class Text:
        padding, gather = 0, data.Corpus.gather

        def tokens(self, split):
            return torch.arange(101).numpy()

    seen = []
    for number, (inputs, targets) in enumerate(scoring.cut_sliding(Text(), "validation", length, stride)):
        assert torch.equal(inputs[:, 1:], inputs[:, :-1] + 1)
        for row, scored in enumerate(targets != -100):
            new = targets[row][scored]
            assert torch.equal(new, inputs[row][scored] + 1)
            assert len(new) <= (length if not (number or row) else stride)
            seen += new.tolist()
    assert seen == list(range(1, 101))


@pytest.mark.parametrize(("length", "trained"), [(1, 16), (16, 16), (17, 16), (100, 16), (100, 24), (7, 16), (64, 1)])
def test_buckets_cover_every_position_once_with_an_edge_at_the_trained_length(length, trained):
    spans = scoring.split_positions(length, trained)
    assert spans[0][0] == 1
    assert spans[-1][1] == length
    assert all(before[1] + 1 == after[0] for before, after in pairwise(spans))
    assert trained >= length or trained in [last for _, last in spans]


def test_shuffled_prefix_keeps_the_last_trained_length_tokens_and_the_targets():
    inputs = torch.arange(6 * 40).view(6, 40)
    targets = inputs + 1
    (shuffled, same), (again, _) = (next(scoring.shuffle_prefixes([(inputs, targets)], L, seed)) for seed in (3, 3))
    assert torch.equal(same, targets)
    assert torch.equal(shuffled[:, -L:], inputs[:, -L:])
    assert torch.equal(shuffled[:, :-L].sort(dim=1).values, inputs[:, :-L])  # each row its own tokens
    places = shuffled[:, :-L] - inputs[:, :1]
    assert all((row != torch.arange(40 - L)).any() for row in places)
    assert len({tuple(row.tolist()) for row in places}) == 6  # each in an order of its own
    assert torch.equal(shuffled, again)
    other, _ = next(scoring.shuffle_prefixes([(inputs, targets)], L, 4))
    assert not torch.equal(shuffled, other)
    short, _ = next(scoring.shuffle_prefixes([(inputs[:, :L], targets[:, :L])], L, 3))
    assert torch.equal(short, inputs[:, :L])


@pytest.mark.parametrize("stride", [1, 3, 5, 16])
@pytest.mark.parametrize("length", [17, 20, 33, 48])
def test_the_crop_sees_at_most_the_trained_length_and_little_less(length, stride):
    def context(inputs, targets):  # instead of nats: how many tokens the model is shown up to the target
        assert inputs.shape[1] == L
        assert torch.equal(inputs[targets != -100] + 1, targets[targets != -100])
        return torch.where(targets != -100, torch.arange(1, L + 1), 0).double()

    inputs = torch.arange(2 * length).view(2, length)
    evaluator = scoring.Evaluator(None, "validation", [length], L, stride, 1, context)
    seen = evaluator.score_cropped(inputs, inputs + 1, stride)
    assert seen.shape == (2, length)
    assert (seen <= L).all()
    assert (seen >= torch.arange(1, length + 1).clamp(max=L - stride + 1)).all()
    assert (seen[:, -1] == L).all()


SCALED = {
    "none": RopeConfig(),
    "linear": RopeConfig(scaling="linear", factor=3),
    "ntk": RopeConfig(scaling="ntk", factor=3),
    "dynamic": RopeConfig(scaling="dynamic", factor=2, original_length=L),
    "yarn": RopeConfig(scaling="yarn", factor=3, original_length=L, beta_fast=2),
    "longrope": RopeConfig(
        scaling="longrope", factor=3, original_length=L, short_factor=[1.0] * 4, long_factor=[1.0, 2.0, 3.0, 4.0]
    ),
    "llama3": RopeConfig(scaling="llama3", factor=3, original_length=L),
    "proportional": RopeConfig(scaling="proportional", fraction=0.5),
}


def sharp_model(**options) -> Transformer:
    """A model whose logits depend strongly on everything before."""
    shape = {"vocab_size": 50, "d_model": 32, "n_layer": 2, "n_head": 4, "seq_len": 64, "init_std": 0.5}
    return Transformer(ModelConfig(**shape | options), seed=1).eval()


def nats_full_and_chunked(model, monkeypatch) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Losses of 2 x 50 targets in one pass and in chunks of 16, and how many tokens each pass of the latter took."""
    tokens = torch.randint(50, (2, 51), generator=torch.Generator().manual_seed(0))
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    targets[:, 3:9] = -100
    full = scoring.score_targets(model, inputs, targets, CPU, torch.no_grad)[..., 0]
    with torch.no_grad():
        by_hand = F.cross_entropy(model(inputs).transpose(1, 2), targets, reduction="none")
    torch.testing.assert_close(full.float(), by_hand, rtol=1e-5, atol=1e-5)
    passes = []
    model.register_forward_pre_hook(lambda module, args: passes.append(args[0].shape[1]))
    monkeypatch.setattr(scoring, "CHUNK", 16)
    return full, scoring.score_targets(model, inputs, targets, CPU, torch.no_grad)[..., 0], passes


@pytest.mark.parametrize("scheme", SCHEMES)
def test_chunked_equals_full_for_every_scheme(scheme, monkeypatch):
    full, chunked, passes = nats_full_and_chunked(sharp_model(position=scheme), monkeypatch)
    torch.testing.assert_close(chunked, full, rtol=1e-4, atol=1e-4)
    assert passes == [16, 16, 16, 2]


def test_every_scaling_is_tried():
    assert set(SCALED) == set(OPTIONS)


@pytest.mark.parametrize("scaling", SCALED)
def test_chunked_equals_full_for_every_scaling_past_the_trained_length(scaling, monkeypatch):
    full, chunked, passes = nats_full_and_chunked(sharp_model(rope=SCALED[scaling]), monkeypatch)
    torch.testing.assert_close(chunked, full, rtol=1e-4, atol=1e-4)
    assert passes == ([50] if scaling in ("dynamic", "longrope") else [16, 16, 16, 2])


@pytest.mark.parametrize("attention", ["explicit", "fused"])
def test_chunked_equals_full_with_grouped_heads(attention, monkeypatch):
    model = sharp_model(position="alibi", n_kv_head=2, attention=attention)
    full, chunked, _ = nats_full_and_chunked(model, monkeypatch)
    torch.testing.assert_close(chunked, full, rtol=1e-4, atol=1e-4)


MEMORY = """
import resource, torch
from harness import scoring
from model import ModelConfig, Transformer
torch.set_num_threads(1)
def peak(T):
    tokens = torch.zeros(1, T, dtype=torch.long)
    targets = torch.full((1, T), -100)
    targets[:, -32:] = 1
    for scheme in ("alibi", "t5"):
        model = Transformer(ModelConfig(vocab_size=64, d_model=16, n_layer=1, n_head=8, seq_len=32, position=scheme))
        scoring.score_targets(model, tokens, targets, torch.device("cpu"), torch.no_grad)[..., 0]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
short = peak(64)
print(peak(4096) - short)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
def test_a_long_window_never_holds_a_bias_of_all_pairs():
    command = [sys.executable, "-c", MEMORY]
    done = subprocess.run(command, cwd=Path(scoring.__file__).parents[1], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 400  # megabytes; one float32 (8, 4096, 4096) has 537, and masking it makes another


def all_of(batches: scoring.Batches) -> tuple[Tensor, Tensor]:
    """Batches as one."""
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def test_fixed_targets_are_the_same_tokens_under_every_length(corpus, monkeypatch):
    monkeypatch.setattr(scoring, "FIXED_TARGETS", 8)
    tokens = torch.from_numpy(corpus.tokens("validation").astype(int))
    seen = {}
    for length in (lengths := [32, 64, 256]):
        inputs, targets = all_of(scoring.cut_fixed(corpus, "validation", length, lengths, count=20))
        assert inputs.shape == targets.shape == (20, length)
        assert ((targets != -100).sum(1) == 8).all()
        assert (targets[:, -8:] != -100).all()
        assert torch.equal(inputs[:, -7:], targets[:, -8:-1])  # the scored tokens follow their own context
        seen[length] = targets[:, -8:], inputs[:, -32:]
    for targets, nearest_context in seen.values():
        assert torch.equal(targets, seen[32][0])
        assert torch.equal(nearest_context, seen[32][1])
    assert seen[256][0][-1, -1] == tokens[-1]  # the last end is the split's end


def test_a_fixed_window_lies_in_one_document_where_documents_are_long_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "FIXED_TARGETS", 4)
    lines = [json.dumps({"text": chr(97 + i % 26) * (20 + i)}) for i in range(220)]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    corpus = load_corpus(tmp_path, str(tmp_path / "lines.jsonl"), tokenizer="bytes", seq_len=8)
    inputs, _ = all_of(scoring.cut_fixed(corpus, "validation", 128, [128, 16], count=20))
    assert inputs.shape == (20, 128)
    assert not (inputs == corpus.end_of_text).any()  # which would be of the document before
    assert torch.equal(all_of(scoring.cut_fixed(corpus, "validation", 16, [128, 16], count=20))[0], inputs[:, -16:])
    assert (all_of(scoring.cut_fixed(corpus, "validation", 512, [512]))[0] == corpus.end_of_text).any()


def test_fixed_targets_score_no_token_twice_and_are_fewer_in_a_short_split(corpus, monkeypatch):
    longest = corpus.longest("test")
    _, targets = all_of(scoring.cut_fixed(corpus, "test", longest, [longest]))
    assert len(targets) == 1
    wrong = rf"a context of {longest + 1} tokens is longer .* test split allows \({longest}\)"
    with pytest.raises(BadInput, match=wrong):
        scoring.cut_fixed(corpus, "test", 8, [8, longest + 1])
    monkeypatch.setattr(scoring, "FIXED_TARGETS", 16)
    n_tokens = len(corpus.tokens("test"))
    _, targets = all_of(scoring.cut_fixed(corpus, "test", 16, [16], count=10**6))
    assert targets[targets != -100].numel() <= n_tokens - 1
    assert len(targets) == (n_tokens - 1 - 16) // 16 + 1


def test_the_targets_are_the_last_32_tokens_of_at_least_256_windows(tmp_path, monkeypatch):
    (tmp_path / "long.txt").write_text("".join(chr(97 + (i * i) % 26) for i in range(400_000)))
    config = data.DataConfig(str(tmp_path / "long.txt"), tokenizer="bytes", cache=str(tmp_path / "cache"))
    corpus, seen = data.load(config, 0, 4, 256), {}
    ids = corpus.tokens("validation").astype(int)

    def model(inputs):
        return torch.zeros(*inputs.shape, 259)

    def cut(corpus, split, length, lengths, real=scoring.cut_fixed):
        inputs, targets = all_of(real(corpus, split, length, lengths))
        seen[length] = targets[targets != -100].view(len(targets), -1)
        return [(inputs, targets)]

    monkeypatch.setattr(scoring, "cut_fixed", cut)
    losses = scoring.measure_loss_by_length(
        model, corpus, "validation", [64, 256, 2048], torch.device("cpu"), torch.no_grad
    )
    assert losses == pytest.approx({length: math.log(259) for length in (64, 256, 2048)})
    assert {tuple(targets.shape) for targets in seen.values()} == {(256, 32)}  # 8,192 targets
    assert torch.equal(seen[64], seen[256])
    assert torch.equal(seen[64], seen[2048])
    assert seen[64][-1].tolist() == ids[-32:].tolist()
