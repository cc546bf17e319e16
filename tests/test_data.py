"""python -m pytest tests/test_data.py"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from texts import load_corpus, write

import data


def test_batches_are_a_function_of_seed_and_step(corpus):
    seeded = [seeded_copy(corpus, seed) for seed in (0, 0, 1)]
    forward = [seeded[0].batch(step)[0] for step in range(5)]
    backward = [seeded[1].batch(step)[0] for step in reversed(range(5))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert len({tuple(batch.flatten().tolist()) for batch in forward}) == 5
    assert not torch.equal(seeded[0].batch(3)[0], seeded[2].batch(3)[0])


def seeded_copy(corpus: data.Corpus, seed: int) -> data.Corpus:
    return data.Corpus(corpus.name, corpus.folder, seed, 4, 16)


def test_batches_do_not_touch_the_global_generators(corpus):
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    corpus.batch(0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


def test_a_batch_holds_windows_of_the_training_split_and_their_next_tokens(corpus):
    inputs, targets = corpus.batch(7)
    assert inputs.shape == targets.shape == (4, 16)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    train = np.lib.stride_tricks.sliding_window_view(corpus.tokens("train"), 17)
    for row in torch.cat([inputs, targets[:, -1:]], 1).numpy():
        assert (train == row).all(1).any()


def test_every_window_of_the_training_split_can_be_drawn(tmp_path):
    source = write(tmp_path / "a.txt", "".join(map(chr, range(32, 96))))
    corpus = load_corpus(tmp_path, source, tokenizer="bytes", seq_len=2, batch_size=4000)
    inputs, targets = corpus.batch(0)
    assert set(inputs[:, 0].tolist()) == set(corpus.tokens("train")[:-2].tolist())
    assert targets[:, -1].max() == corpus.tokens("train")[-1]


def windows_of_an_epoch(corpus: data.Corpus, epoch: int) -> tuple[list[int], int]:
    """Where in the training split an epoch's windows start, in the order read, and how many there are."""
    train, rows = corpus.tokens("train"), corpus.batch_size
    count = (len(train) - 1) // corpus.seq_len - 1
    places = {tuple(row): i for i, row in enumerate(np.lib.stride_tricks.sliding_window_view(train, 40).tolist())}
    first, end = epoch * count, (epoch + 1) * count
    starts = []
    for step in range(first // rows, -(-end // rows)):
        inputs, targets = corpus.batch(step)
        for row, (x, y) in enumerate(zip(inputs.tolist(), targets.tolist(), strict=True)):
            if first <= step * rows + row < end:
                starts.append(places[(*x, y[-1])[:40]])
    return starts, count


def test_copied_spans_are_a_function_of_seed_and_step_and_come_again_later(corpus):
    asked = data.DataConfig(corpus.name, vocab_size=300, cache=str(corpus.folder.parent))
    plain, copying = (data.load(replace(asked, copied=share), 3, 64, 256) for share in (0.0, 0.25))
    assert plain.folder == copying.folder  # the text is prepared once
    (inputs, targets), (before, _) = copying.batch(5), plain.batch(5)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert all(torch.equal(*pair) for pair in zip((inputs, targets), copying.batch(5), strict=True))
    changed = (inputs != before).any(dim=1)
    assert 8 <= changed.sum() <= 24  # of 64 rows a quarter
    for row, text in zip(inputs[changed], before[changed], strict=True):
        places = (row != text).nonzero()[:, 0]
        first, last = int(places[0]), int(places[-1]) + 1
        assert last - first <= 127
        span, earlier = row[first:last], text.unfold(0, last - first, 1)[: first - (last - first) + 1]
        assert (earlier == span).all(dim=1).any()  # it stood before, and the text there is still there


def test_an_epoch_reads_every_window_once_in_another_order_and_from_another_beginning(corpus):
    longer = data.Corpus(corpus.name, corpus.folder, 0, 5, 48)
    orders = []
    for epoch in range(3):
        starts, count = windows_of_an_epoch(longer, epoch)
        assert len(starts) == count > 20
        assert set(np.diff(sorted(starts)).tolist()) == {48}  # side by side: none twice, none left out between
        assert starts != sorted(starts)
        orders.append(starts)
    assert len({min(starts) for starts in orders}) > 1
    assert len({tuple(np.argsort(starts)) for starts in orders}) == 3


@pytest.mark.parametrize("n", [*range(1, 20), 64, 1000, 4097])
def test_a_shuffled_order_holds_every_number_once(n):
    orders = [[data.shuffled(place, n, keys) for place in range(n)] for keys in ([1, 2, 3, 4], [4, 3, 2, 1])]
    assert all(sorted(order) == list(range(n)) for order in orders)
    if n > 20:
        assert orders[0] != orders[1]
        assert abs(np.corrcoef(orders[0], range(n))[0, 1]) < 4 / n**0.5  # four standard deviations of a random order's
        assert abs(np.corrcoef(orders[0][1:], orders[0][:-1])[0, 1]) < 4 / n**0.5


def test_a_training_split_of_a_single_window_can_be_read_for_ever(tmp_path):
    corpus = load_corpus(
        tmp_path, write(tmp_path / "a.txt", "abcdefghij" * 40), tokenizer="bytes", seq_len=16, batch_size=3
    )
    corpus._tokens["train"] = corpus.tokens("train")[:17]
    for step in (0, 1, 7):
        assert torch.equal(
            corpus.batch(step)[0], torch.from_numpy(corpus.tokens("train")[:16].astype(np.int64)).expand(3, 16)
        )


@pytest.mark.parametrize("length", [1, 7, 16, 100, 10_000])
def test_windows_score_every_token_but_the_first_exactly_once(corpus, length):
    tokens = corpus.tokens("validation")
    scored, contexts = [], []
    for inputs, targets in corpus.windows("validation", length):
        assert inputs.shape == targets.shape
        assert inputs.shape[1] == length
        scored.append(targets[targets != -100])
        contexts.append(inputs[targets != -100])
    assert torch.cat(scored).tolist() == tokens[1:].tolist()
    assert torch.cat(contexts).tolist() == tokens[:-1].tolist()


def test_padding_fills_the_last_window_and_is_not_scored(corpus):
    n_tokens = len(corpus.tokens("test"))
    ((inputs, targets),) = corpus.windows("test", n_tokens + 5)
    assert (inputs[0, n_tokens:] == corpus.padding).all()
    assert (targets[0, n_tokens - 1 :] == -100).all()


def test_a_count_of_windows_is_spaced_evenly_over_the_split(corpus):
    every = torch.cat([inputs for inputs, _ in corpus.windows("train", 16)])
    some = torch.cat([inputs for inputs, _ in corpus.windows("train", 16, count=5, rows=2)])
    assert torch.equal(some, every[np.linspace(0, len(every) - 1, 5).round().astype(int)])
    assert len(torch.cat([inputs for inputs, _ in corpus.windows("train", 16, count=10**9)])) == len(every)
