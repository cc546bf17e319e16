"""Text becomes batches: windows of tokens, and a batch that is a pure function of (seed, step).

    text --tokenizer--> tokens: train 90 % | validation 5 % | test 5 % --windows--> inputs and targets, (B, T) each

Because a batch depends on nothing but seed and step, every scheme is trained on the same batches, a resumed run goes on
with the batch that would have come next, each of several processes takes its rows of one common batch, and evaluation
cannot disturb training. harness/corpora.py finds and reads the text; harness/preparing.py cuts it into the three splits
and writes their tokens to disk, once.

    python train.py --data.corpus 'books/*.txt' --data.tokenizer bytes
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from harness.copying import copy_spans
from harness.corpora import DataConfig
from harness.prepared import PreparedCorpus
from harness.preparing import find_or_prepare
from harness.tasks import TaskCorpus, load_task


def load(config: DataConfig, seed: int, batch_size: int, seq_len: int) -> "Corpus | TaskCorpus":
    """The corpus a config asks for, prepared now if it is not in the cache yet.

    Args:
        config: the corpus and how it becomes tokens.
        seed: together with the step, decides each batch; not negative.
        batch_size: rows of one optimiser step over all processes, B.
        seq_len: tokens in a training window, T.

    Raises:
        BadInput: a corpus, tokenizer or cache that cannot be used, or a split shorter than one window.
        OSError: no space left; nothing half made stays behind.
    """
    if config.corpus.startswith("task:"):
        return load_task(config, seed, batch_size, seq_len)
    corpus = Corpus(config.corpus, find_or_prepare(config, seq_len), seed, batch_size, seq_len)
    corpus.copied = config.copied
    return corpus


class Corpus(PreparedCorpus):
    """A prepared corpus, and the windows of tokens that training and evaluation take from it."""

    copied = 0.0  # the share of training windows in which a span comes again: harness/copying.py

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Training windows of one optimiser step, over all processes: a pure function of (seed, step).

        An epoch cuts the training split into windows that lie side by side, and reads each of them once, in a shuffled
        order. Where the first window begins, and the order, are drawn from a generator keyed by (seed, epoch). So no
        batch depends on the batches drawn before it, and nothing has to be kept between two of them.

        Returns:
            inputs and targets, (B, T) int64 each; targets are the inputs one token later.
        """
        n_tokens = len(self.tokens("train"))
        per_epoch = max(1, (n_tokens - 1) // self.seq_len - 1)  # one fewer than fit: room to move the first window
        spare = n_tokens - 1 - per_epoch * self.seq_len  # tokens that these windows leave over
        starts = np.empty(self.batch_size, np.int64)  # (B,)
        for row in range(self.batch_size):
            epoch, place = divmod(step * self.batch_size + row, per_epoch)
            draw = np.random.Generator(np.random.Philox(key=np.array([self.seed, epoch], np.uint64)))
            offset, *keys = draw.integers(2**32, size=5).tolist()
            starts[row] = offset % (spare + 1) + shuffled(place, per_epoch, keys) * self.seq_len
        windows = self.gather("train", starts, self.seq_len)
        return copy_spans(*windows, self.copied, self.seed, step) if self.copied else windows

    def windows(
        self, split: str, length: int, count: int | None = None, rows: int = 32
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """A split in non-overlapping windows, with each token but the first a target exactly once.

        Args:
            split: train, validation or test.
            length: tokens a window, T. The last one is filled with padding, whose targets are -100: never scored.
            count: only this many windows, evenly spaced over the split.
            rows: windows a batch, at most.

        Yields:
            inputs and targets, (<= rows, T) int64 each.
        """
        starts = np.arange(0, len(self.tokens(split)) - 1, length)
        if count is not None and count < len(starts):
            starts = starts[np.linspace(0, len(starts) - 1, count).round().astype(np.int64)]
        for first in range(0, len(starts), rows):
            yield self.gather(split, starts[first : first + rows], length)

    def longest(self, split: str) -> int:
        """The longest context that a split has, in tokens."""
        return len(self.tokens(split)) - 1

    def gather(self, split: str, starts: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
        """Windows of a split from their first tokens' places, (B,) -> inputs and targets, (B, length) int64 each."""
        tokens = self.tokens(split)
        places = starts[:, None] + np.arange(length + 1)  # (B, length + 1)
        beyond = torch.from_numpy(places >= len(tokens))
        block = torch.from_numpy(tokens[np.minimum(places, len(tokens) - 1)].astype(np.int64))  # (B, length + 1)
        inputs = block.masked_fill(beyond, self.padding)[:, :-1].contiguous()
        targets = block.masked_fill(beyond, -100)[:, 1:].contiguous()
        return inputs, targets


def shuffled(place: int, n: int, keys: Sequence[int]) -> int:
    """The entry at a place of the shuffled numbers 0 .. n-1, without storing them.

    A Feistel network (Luby and Rackoff 1988) is a permutation of the numbers of 2 * half bits, whatever function its
    rounds use. A round turns (left, right) into (right, left ^ f(right, key)). It can be undone, since the new left is
    the old right, so that f can be computed again; and what can be undone is a permutation. A result of n or more, as
    2^(2 * half) may exceed n, is sent through again until it is below n (cycle walking). That ends: a permutation that
    is applied again and again comes back to where it started, at `place`, which is below n. And it can be undone: by
    the inverse, applied until a number is below n.

    Args:
        place: 0 .. n-1.
        n: how many there are.
        keys: one number a round, below 2^32.
    """
    half = (max(n - 1, 1).bit_length() + 1) // 2  # so that 2^(2 * half) >= n
    while True:
        left, right = place >> half, place & ((1 << half) - 1)
        for key in keys:
            mixed = ((right + 1) * 0x9E3779B97F4A7C15) ^ (key * 0xD1B54A32D192ED03)
            mixed = ((mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
            left, right = right, left ^ (mixed >> (64 - half))  # f: the top bits, which are mixed best
        place = (left << half) | right
        if place < n:
            return place
