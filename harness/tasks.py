"""Tasks whose answers are known: can a model retrieve what it has read, from how far? (--data.corpus task:recall)

A training batch holds episodes of one length, drawn log-uniformly up to model.seq_len, as many as fill the step: short
ones teach the algorithm early, and no position can be memorised. An episode of evaluation depends on task, split and
length alone: every scheme sees the same. It begins with its task's sign; only answers, below in [], are scored.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.corpora import DataConfig
from harness.messages import BadInput, nearest
from harness.prepared import PreparedCorpus, hash_of
from harness.preparing import find_or_prepare

SMALL, CAPITALS = np.arange(ord("a"), ord("q")), np.arange(ord("A"), ord("Q"))
LETTERS, DIGITS = np.concatenate((SMALL, CAPITALS)), np.arange(ord("0"), ord("9") + 1)  # few: each has to be learned
CELLS = 4  # the source of an answer stands in the first, second, third or last quarter of what there is to remember
KEY = 5  # digits of a passkey, all different
WINDOWS = 256  # episodes that the loss of a split is taken over
EVALUATION = 1 << 63  # set in every key of evaluation; seeds are smaller, so training never draws with such a key


class Episode(NamedTuple):
    """A context of n tokens with its answers, (n,) each; a token of no answer has answer, cell and distance -1."""

    tokens: np.ndarray  # ids
    answer: np.ndarray  # which answer of the episode a token belongs to: 0, 1, ...
    cell: np.ndarray  # the quarter in which its source stands, 0 .. CELLS - 1
    distance: np.ndarray  # tokens from the source to it


def empty_episode(n: int) -> Episode:
    """An episode without content."""
    return Episode(np.zeros(n, np.int64), *(np.full(n, -1) for _ in range(3)))


def ask(episode: Episode, asked: np.ndarray, every: int, width: int, scored: int) -> None:
    """Repeat spans of `width` tokens that start at `asked`, (Q,), at the episode's end; the last `scored` are answers.

    One span ends every `every` tokens. A quarter is one of what comes between the sign and the first question.
    """
    n, Q = len(episode.tokens), len(asked)
    at, body = n - width - every * np.arange(Q)[::-1], n - 1 - every * Q  # at: (Q,)
    for i in range(width):
        episode.tokens[at + i] = episode.tokens[asked + i]
    for i in range(width - scored, width):
        episode.answer[at + i], episode.distance[at + i] = np.arange(Q), at - asked
        episode.cell[at + i] = (asked - 1) * CELLS // body


def copy(draw: np.random.Generator, n: int, ids: np.ndarray, *_: Any, step: int = 1) -> Episode:
    """A string of random letters again, `>kEbo=[kEbo]`; with step -1 backwards, `<kEbo=[obEk]`."""
    episode, k = empty_episode(n), (n - 2) // 2
    start = n - 2 * k - 1
    episode.tokens[:start] = ids[ord(">" if step == 1 else "<")]
    episode.tokens[start : start + k] = ids[draw.choice(LETTERS, k)]
    episode.tokens[start + k] = ids[ord("=")]
    order = np.arange(k)[::step]  # of the string's letters in the answer
    episode.tokens[-k:] = episode.tokens[start + order]
    episode.answer[-k:], episode.cell[-k:] = 0, order * CELLS // k
    episode.distance[-k:] = k + 1 + np.arange(k) - order
    return episode


def draw_places(draw: np.random.Generator, body: int, cells: int, count: int, width: int) -> np.ndarray:
    """Where `count` spans of `width` tokens start in each of `cells` equal parts of the body, (cells, count)."""
    edges = 1 + -(-np.arange(cells + 1) * body // cells)  # the first place of each part, after the sign
    starts = [np.sort(draw.permutation(b - a - count * (width - 1))[:count]) + a for a, b in pairwise(edges)]
    return np.stack(starts) + np.arange(count) * (width - 1)


def questions_per_quarter(n: int) -> int:
    """How many pairs of each quarter an episode of evaluation with n tokens asks for."""
    return 2 if n >= 48 else 1


def draw_amounts(draw: np.random.Generator, n: int, width: int, spare: bool, evaluating: bool) -> tuple[int, int, int]:
    """The number of parts of the body, of pairs in each part, and of these the number asked for, each once.

    In evaluation every quarter has the same number of pairs. In training any number may stand anywhere, so that short
    episodes consist of little else: a model first learns from them which value belongs to which key.
    """
    if evaluating:
        return CELLS, questions_per_quarter(n) + spare, questions_per_quarter(n)
    pairs = int(draw.integers(1, min(12, (n - 1) // (2 + width)) + 1))
    return 1, pairs, pairs - spare * (pairs // 5)


def recall(draw: np.random.Generator, n: int, ids: np.ndarray, text: np.ndarray, evaluating: bool) -> Episode:
    """Keys and their values, then keys again: `*dAkffKcpBhoB[h]A[k]K[c]`; other letters and keys distract.

    At least one key per quarter is never asked for.
    """
    episode, (cells, pairs, q) = empty_episode(n), draw_amounts(draw, n, 2, True, evaluating)
    keys = draw_places(draw, n - 1 - 2 * cells * q, cells, pairs, 2)  # (cells, pairs)
    episode.tokens[:] = ids[draw.choice(SMALL, n)]
    episode.tokens[0] = ids[ord("*")]
    episode.tokens[keys.ravel()] = ids[draw.permutation(CAPITALS)[: keys.size]]
    ask(episode, draw.permutation(draw.permuted(keys, axis=1)[:, :q].ravel()), every=2, width=2, scored=1)
    return episode


def induction(draw: np.random.Generator, n: int, ids: np.ndarray, text: np.ndarray, evaluating: bool) -> Episode:
    """Letters that stood just once before: what followed them then? `~kJbpMMmeKOpJ[b]ge[K]`."""
    episode, (cells, pairs, _) = empty_episode(n), draw_amounts(draw, n, 3, False, evaluating)
    Q, letters = cells * pairs, draw.permutation(LETTERS)
    episode.tokens[:] = ids[draw.choice(letters[Q:], n)]
    episode.tokens[0] = ids[ord("~")]
    first = draw_places(draw, n - 1 - 3 * Q, cells, pairs, 2).ravel()  # (Q,)
    episode.tokens[first] = ids[letters[:Q]]
    ask(episode, draw.permutation(first), every=3, width=2, scored=1)
    return episode


def passkey(draw: np.random.Generator, n: int, ids: np.ndarray, text: np.ndarray, evaluating: bool) -> Episode:
    """Keys in real text, asked for at the end in another order: `^And he#A52871 went@A[52871]`.

    In evaluation one key stands in each quarter, in training 1 to 4 anywhere.
    """
    episode, width = empty_episode(n), 2 + KEY
    cells, keys = (CELLS, 1) if evaluating else (1, int(draw.integers(1, min(4, (n - 1) // (2 * width)) + 1)))
    body = n - 1 - cells * keys * width
    stated = draw_places(draw, body, cells, keys, width).ravel()  # (Q,)
    asked = draw.permutation(stated)
    inside = np.arange(1, 1 + body)
    inside = inside[~np.isin(inside, stated[:, None] + np.arange(width))]  # where the passage's tokens go
    passage = int(draw.integers(len(text) - len(inside) + 1))
    episode.tokens[0] = ids[ord("^")]
    episode.tokens[inside] = text[passage : passage + len(inside)]
    for start, name in zip(stated, draw.permutation(CAPITALS), strict=False):
        key = [ord("#"), name, *draw.permutation(DIGITS)[:KEY]]
        episode.tokens[start : start + width] = ids[key]
    ask(episode, asked, every=width, width=width, scored=KEY)
    episode.tokens[1 + body :: width] = ids[ord("@")]
    return episode


class Task(NamedTuple):
    """A function that makes an episode, and the shortest contexts, in tokens, of training and of evaluation."""

    make: Callable[..., Episode]
    least_in_training: int
    least_in_evaluation: int


TASKS = {
    "copy": Task(copy, 6, 24),
    "reverse": Task(partial(copy, step=-1), 6, 24),
    "recall": Task(recall, 6, 24),
    "induction": Task(induction, 6, 24),
    "passkey": Task(passkey, 16, 64),
}


class TaskCorpus(PreparedCorpus):
    """Episodes as a corpus: `batch`, `windows`, `tokenizer` and so on mean what they mean in `data.Corpus`.

    It is made on a prepared text, whose tokenizer it uses and whose passages hide passkeys. Its token_bytes are zeros:
    bits per byte has no meaning here and comes out as null. `least` is the shortest context to evaluate, in tokens.
    """

    def __init__(self, name: str, text: Path, seed: int, batch_size: int, seq_len: int) -> None:
        super().__init__(name, text, seed, batch_size, seq_len)
        self.tasks = list(TASKS) if name == "task:all" else [name.removeprefix("task:")]
        self.least = max(TASKS[task].least_in_evaluation for task in self.tasks)
        if seq_len < self.least:
            raise BadInput(f"--model.seq_len {seq_len} is too short for --data.corpus {name}: {self.least} is enough")
        self.token_bytes = torch.zeros_like(self.token_bytes)
        spelt = [self.encode(chr(code)) for code in range(128)]
        if any(len(ids) != 1 for ids in spelt[ord("!") :]):
            raise BadInput("--data.tokenizer has no token for each letter, digit and sign: use bpe or bytes for tasks")
        self._ids = np.array([ids[0] for ids in spelt])  # (128,) ASCII to token
        samples = [episode for task in self.tasks for episode in self.episodes(task, "validation", 64, range(4))]
        self.sha256 = hash_of([name, self.sha256, [episode.tokens.tolist() for episode in samples]])

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Training episodes of one step, a pure function of (seed, step): one task, one length.

        Returns:
            inputs and targets, (batch_size * (seq_len // T), T) int64 each, for a length T drawn log-uniformly.
        """
        key, task = np.array([self.seed, step], np.uint64), self.tasks[step % len(self.tasks)]
        low, high = math.log(TASKS[task].least_in_training), math.log(self.seq_len + 1)
        T = int(math.exp(np.random.Generator(np.random.Philox(key=key)).uniform(low, high)))
        rows = range(self.batch_size * (self.seq_len // T))
        return stack_episodes([self._episode(task, "train", T, key, row, evaluating=False) for row in rows])

    def episodes(self, task: str, split: str, length: int, rows: range) -> list[Episode]:
        """Episodes of evaluation, length + 1 tokens each: a pure function of (task, split, length, row)."""
        digest = hashlib.sha256(f"{task} {split} {length}".encode()).digest()
        key = np.frombuffer(digest, np.uint64, 2) | np.array([EVALUATION, 0], np.uint64)
        return [self._episode(task, split, length, key, row, evaluating=True) for row in rows]

    def windows(
        self, split: str, length: int, count: int | None = None, rows: int = 32
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets, (<= rows, length) each, of `count` episodes of evaluation, evenly over the tasks."""
        count = WINDOWS if count is None else min(count, WINDOWS)
        which = [(self.tasks[i % len(self.tasks)], i // len(self.tasks)) for i in range(count)]
        for first in range(0, count, rows):
            made = (self.episodes(task, split, length, range(i, i + 1)) for task, i in which[first : first + rows])
            yield stack_episodes([episode for (episode,) in made])

    def longest(self, split: str) -> int:
        """The longest context, in tokens, for which the split has a passage."""
        return len(self.tokens(split))

    def describe(self) -> str:
        """One line: the tasks, their lengths, and the text that they use."""
        tasks = f"{', '.join(self.tasks)}; episodes of up to {self.seq_len} tokens, one length per step"
        text = f"{self.vocab_size:,} entries and passages of {self.manifest['corpus']}"
        return f"{self.name}: {tasks}, only answers are scored; {text}"

    def _episode(self, task: str, split: str, length: int, key: np.ndarray, row: int, evaluating: bool) -> Episode:
        draw = np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, row + 1], np.uint64)))
        return TASKS[task].make(draw, length + 1, self._ids, self.tokens(split), evaluating)


def load_task(config: DataConfig, seed: int, batch_size: int, seq_len: int) -> TaskCorpus:
    """The corpus of `--data.corpus task:NAME`; tokenizer, vocab_size, max_bytes and cache are options of its text."""
    if config.corpus not in (names := [f"task:{name}" for name in (*TASKS, "all")]):
        close = nearest(config.corpus, names)
        raise BadInput(f"--data.corpus {config.corpus!r} is none of {', '.join(names)}{close}")
    for option in ("subset", "split", "column"):
        if (value := getattr(config, option)) != getattr(DataConfig, option):
            raise BadInput(f"--data.{option} {value!r} means nothing to --data.corpus {config.corpus}: leave it out")
    text = find_or_prepare(replace(config, corpus="kjv"), seq_len)
    return TaskCorpus(config.corpus, text, seed, batch_size, seq_len)


def stack_episodes(episodes: list[Episode]) -> tuple[Tensor, Tensor]:
    """Inputs and targets of B episodes of n tokens, (B, n - 1) int64 each: only answers are targets."""
    tokens, answer = (torch.from_numpy(np.stack(part)) for part in list(zip(*episodes, strict=True))[:2])  # (B, n) each
    return tokens[:, :-1].contiguous(), tokens.masked_fill(answer < 0, -100)[:, 1:].contiguous()
