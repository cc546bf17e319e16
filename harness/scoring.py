"""Loss and accuracy of a model on windows of tokens, and the protocols that cut windows and choose their targets."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data import Corpus
from harness.devices import Autocast
from harness.messages import BadInput
from harness.retrieval import TOKENS_AT_ONCE, measure_accuracy, split_rows
from harness.tasks import TaskCorpus
from model import Transformer
from positions import PastTheEnd

CHUNK = 256  # tokens of a long window per pass, so that a bias is (H, CHUNK, Tk) and never (H, T, T)
FIXED_TARGETS = 32
APART = 64  # windows
SHUFFLING = 0  # seed of shuffled prefixes

Model = Callable[[Tensor], Tensor]  # tokens (B, T) to logits (B, T, V)
Batches = Iterable[tuple[Tensor, Tensor]]  # inputs and targets, (B, T) each; a target of -100 is not scored


@dataclass
class Score:
    """Sums over all scored targets, because a mean of means would weigh them unequally."""

    nats: float = 0.0
    targets: int = 0
    bytes: int = 0
    right: int = 0  # targets that were the likeliest token

    @property
    def accuracy(self) -> float:
        return self.right / self.targets

    @property
    def loss(self) -> float:
        """Mean cross-entropy, nats per target."""
        return self.nats / self.targets

    @property
    def bits_per_byte(self) -> float:
        """Nats of all targets / ln 2 / UTF-8 bytes of the same targets, which makes tokenizers comparable."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan


def score(model: Model, batches: Batches, token_bytes: Tensor, device: torch.device, autocast: Autocast) -> Score:
    """Score a model; token_bytes, (V,), has the number of UTF-8 bytes of each token of the vocabulary."""
    total = Score()
    for inputs, targets in batches:
        scored = targets[targets != -100]  # (N,)
        figures = score_targets(model, inputs, targets, device, autocast)  # (B, T, 2)
        total.nats += figures[..., 0].contiguous().sum().item()
        total.right += int(figures[..., 1].sum())
        total.targets += len(scored)
        total.bytes += int(token_bytes[scored].sum())
    return total


@torch.no_grad()
def score_targets(model: Model, inputs: Tensor, targets: Tensor, device: torch.device, autocast: Autocast) -> Tensor:
    """Each target's cross-entropy in nats, and 1 if it is the likeliest token, otherwise 0: (B, T, 2) float64.

    Both are 0 where the target is -100. Only the logits of scored targets are kept in memory.
    """
    figures = torch.zeros(*targets.shape, 2, dtype=torch.float64)
    columns = (targets != -100).any(0).nonzero()  # (N, 1), columns with a scored target in any row
    first = int(columns[0]) if len(columns) else targets.shape[1] - 1
    with autocast():
        for part, logits in forward_in_chunks(model, inputs.to(device), first):
            here = targets[:, part]  # (B, t)
            scored = here != -100
            kept, wanted = logits[scored.to(device)].float(), here[scored].to(device)  # (N, V), (N,)
            loss = F.cross_entropy(kept, wanted, reduction="none")  # (N,)
            right = kept.argmax(-1) == wanted  # (N,)
            figures[:, part][scored] = torch.stack((loss, right.to(loss.dtype)), dim=-1).cpu().double()
    return figures


def forward_in_chunks(model: Model, tokens: Tensor, first: int = 0) -> Iterator[tuple[slice, Tensor]]:
    """A forward pass over (B, T) in chunks along time: slices of T from `first` on, and the logits there, (B, t, V).

    If frequencies change with the length (dynamic, longrope), the keys of earlier chunks would be rotated by outdated
    ones. Such a scheme has no bias, so a single pass is exact and fits in memory.
    """
    T = tokens.shape[1]
    if not isinstance(model, Transformer):  # a compiled one, which would be recompiled for each shape
        yield slice(0, T), model(tokens)
    elif T <= CHUNK or model.position.outdates_cache(1, torch.arange(T)):
        yield slice(first, T), model(tokens, last=T - first)
    else:
        cache = model.new_cache(*tokens.shape)
        for start in range(0, T, CHUNK):
            end = min(start + CHUNK, T)
            wanted = max(1, end - max(start, first))
            logits = model(tokens[:, start:end], cache=cache, last=wanted)
            if end > first:
                yield slice(end - wanted, end), logits


def measure_loss_by_length(
    model: Transformer, corpus: Corpus, split: str, lengths: list[int], device: torch.device, autocast: Autocast
) -> dict[int, float | None]:
    """Loss on the same targets, the last 32 tokens of 256 shared windows, with every context length, nats per token.

    It is None for a length that the scheme or the split does not reach.
    """
    usable = [length for length in lengths if length <= corpus.longest(split)]
    losses: dict[int, float | None] = dict.fromkeys(sorted(lengths))
    for length in usable:
        batches = cut_fixed(corpus, split, length, usable)
        with contextlib.suppress(PastTheEnd):
            losses[length] = score(model, batches, corpus.token_bytes, device, autocast).loss
    return losses


# ---- protocols: which windows, and which of their targets ------------------------------------------------------------

PROTOCOLS = ("fixed", "windows", "sliding", "by-position", "shuffled-prefix")  # for runs on text
RETRIEVAL = "retrieval"  # for runs on a task


def cut_fixed(corpus: Corpus, split: str, length: int, lengths: list[int], count: int = 256) -> Batches:
    """Windows of one of these lengths; the targets scored, the last ones of each, are the same tokens for all lengths.

    There are `count` windows, evenly spaced; fewer in a split too short for so many without a target twice.
    """
    longest, n_targets = max(lengths), min(FIXED_TARGETS, *lengths)
    if longest > (most := corpus.longest(split)):
        what = f"a context of {longest} tokens is longer than its {split} split allows ({most})"
        raise BadInput(f"--data.corpus {corpus.name!r}: {what}: use a longer text or shorter lengths")
    starts, room = find_room(corpus, split, longest)
    upto = room.cumsum()
    picked = np.linspace(0, upto[-1] - 1, min(count, (upto[-1] - 1) // n_targets + 1)).astype(np.int64)  # (count,)
    document = np.searchsorted(upto, picked, side="right")
    ends = starts[document] + longest + picked - (upto - room)[document]  # (count,), each window's last target
    inputs, targets = corpus.gather(split, ends - length, length)
    targets[:, :-n_targets] = -100
    return split_rows(inputs, targets)


def find_room(corpus: Corpus, split: str, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each document of a split starts, and how many of its tokens have `longest` others of it before them.

    Far context is then of the same document. Where all documents together have no room for `APART` windows, the whole
    split counts as one, and windows cross documents, as those of training do.
    """
    tokens = corpus.tokens(split)
    starts = np.flatnonzero(tokens[:-1] == corpus.end_of_text) + 1
    starts = np.concatenate(([0], starts))  # (documents,)
    room = np.maximum(0, np.diff(starts, append=len(tokens)) - longest)
    if room.sum() < APART * FIXED_TARGETS:
        starts, room = np.array([0]), np.array([len(tokens) - longest])
    return starts, room


def cut_sliding(corpus: Corpus, split: str, length: int, stride: int) -> Batches:
    """A full window, then windows `stride` tokens further that score what is new: each token but the first once."""
    last, rows = len(corpus.tokens(split)) - 1, max(1, TOKENS_AT_ONCE // length)
    ends = np.array([*range(length, last, stride), last])  # (N,), the place of each window's last target
    old = torch.from_numpy(length - np.diff(ends, prepend=0))[:, None]  # (N, 1), targets that were scored before
    for first in range(0, len(ends), rows):
        part = slice(first, first + rows)
        inputs, targets = corpus.gather(split, ends[part] - length, length)  # (B, T) each
        yield inputs, targets.masked_fill(torch.arange(length) < old[part], -100)


def shuffle_prefixes(batches: Batches, trained: int, seed: int = SHUFFLING) -> Batches:
    """The same windows with all tokens before the last `trained` in random order, a new order for each window.

    Each window keeps its own tokens, so the distant context has the same words in no order. Targets stay as they are,
    and so do windows no longer than `trained`.
    """
    generator = torch.Generator().manual_seed(seed)
    for inputs, targets in batches:
        far = max(0, inputs.shape[1] - trained)
        order = torch.rand(len(inputs), far, generator=generator).argsort(dim=1)  # (B, far)
        yield torch.cat((inputs[:, :far].gather(1, order), inputs[:, far:]), dim=1), targets


def split_positions(length: int, trained: int) -> list[tuple[int, int]]:
    """Positions 1 .. length in ranges that double in width, first and last of each; one ends at the trained length.

    A target's position is the number of tokens before it in its window.
    """
    edges = [trained]
    while edges[0] > 1:
        edges.insert(0, edges[0] // 2)
    while edges[-1] < length:
        edges.append(edges[-1] * 2)
    edges = [0, *(edge for edge in edges if edge < length), length]
    return [(low + 1, high) for low, high in pairwise(edges)]


@dataclass(frozen=True)
class Evaluator:
    """What all measurements of one evaluation share; lengths are in tokens."""

    corpus: Corpus | TaskCorpus
    split: str
    lengths: list[int]  # of context, all of them
    trained: int  # the length at which the run was trained
    stride: int  # of sliding windows, and of the windows that crop
    trials: int  # of a task, at least so many per cell
    score: Callable[[Tensor, Tensor], Tensor]  # the model's score_targets: inputs and targets to (B, T, 2)

    def cut(self, protocol: str, length: int) -> Batches:
        """The windows of a protocol."""
        if protocol == "sliding":
            return cut_sliding(self.corpus, self.split, length, self.stride)
        if protocol in ("windows", "by-position"):  # adjacent: every token but the first is a target once
            return self.corpus.windows(self.split, length, rows=max(1, TOKENS_AT_ONCE // length))
        batches = cut_fixed(self.corpus, self.split, length, [*self.lengths, self.trained])
        return shuffle_prefixes(batches, self.trained) if protocol == "shuffled-prefix" else batches

    def measure(self, protocol: str, task: str | None, length: int, crop: bool = False) -> list[dict[str, Any]]:
        """Loss and number of tokens on a protocol's windows: one cell; by-position, one per range of positions.

        For a task, `retrieval.measure_accuracy`. With `crop`, each target is scored from at most the last
        trained-length tokens before it.
        """
        if task is not None:
            score = partial(self.score_cropped, stride=self.stride) if crop else self.score
            return measure_accuracy(self.corpus, task, self.split, length, self.trials, score)
        nats, tokens = torch.zeros(length, dtype=torch.float64), torch.zeros(length, dtype=torch.long)
        # The few targets at the end of a `fixed` window fit into one cropped window.
        stride = min(FIXED_TARGETS, self.trained) if protocol in ("fixed", "shuffled-prefix") else self.stride
        for inputs, targets in self.cut(protocol, length):
            scores = self.score_cropped(inputs, targets, stride) if crop else self.score(inputs, targets)
            nats += scores[..., 0].sum(0)
            tokens += (targets != -100).sum(0)
        by_position = protocol == "by-position"
        cells = []
        for first, last in split_positions(length, self.trained) if by_position else [(1, length)]:
            count = tokens[first - 1 : last].sum().item()
            cells.append({"loss": nats[first - 1 : last].sum().item() / count, "tokens": count})
            cells[-1] |= {"positions": [first, last]} if by_position else {}
        return cells

    def score_cropped(self, inputs: Tensor, targets: Tensor, stride: int) -> Tensor:
        """As `score`, but each target is scored from at most the last trained-length tokens before it.

        Each row is cut into windows of the trained length, `stride` apart, that end where the row ends. Each scores its
        last `stride` targets; the first window of all scores those that remain.
        """
        T, L = inputs.shape[1], self.trained
        if T <= L:
            return self.score(inputs, targets)
        offset = (T - L) % stride
        early = L - stride + offset  # targets of the first window
        rows, scored = (
            torch.cat((x[:, None, :L], x[:, offset:].unfold(1, L, stride)), dim=1) for x in (inputs, targets)
        )  # (B, 1 + K, L) each
        scored[:, 0, early:] = -100
        scored[:, 1:, :-stride] = -100
        wanted = (scored != -100).any(-1)  # (B, 1 + K)
        found = torch.cat([self.score(*part) for part in split_rows(rows[wanted], scored[wanted])])
        scores = found.new_zeros(*scored.shape, *found.shape[2:])  # (B, 1 + K, L, 2)
        scores[wanted] = found
        return torch.cat((scores[:, 0, :early], scores[:, 1:, -stride:].flatten(1, 2)), dim=1)  # (B, T, 2)
