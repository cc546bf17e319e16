"""Loss and accuracy of a model on batches of windows, and the protocols that choose windows and targets."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data import Corpus
from harness.devices import Autocast
from harness.retrieval import TOKENS_AT_ONCE
from harness.tasks import TaskCorpus
from model import Transformer
from positions import PastTheEnd

CHUNK = 256  # tokens of a long window at a time, so that a bias is (H, CHUNK, Tk) and never (H, T, T)

FIXED_TARGETS = 32

Batches = Iterable[tuple[Tensor, Tensor]]
"""Inputs and targets, (B, T) each; a target of -100 is not scored."""


@dataclass
class Score:
    """Sums over the scored targets: never a mean of means."""

    nats: float = 0.0
    targets: int = 0
    bytes: int = 0
    right: int = 0  # targets that were the likeliest token

    @property
    def accuracy(self) -> float:
        """The part of all targets that were the likeliest token."""
        return self.right / self.targets

    @property
    def loss(self) -> float:
        """Mean cross-entropy, nats per target."""
        return self.nats / self.targets

    @property
    def bits_per_byte(self) -> float:
        """Nats over the scored targets / ln 2 / UTF-8 bytes of those same targets, so that tokenizers compare."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan


def score(
    model: Callable[[Tensor], Tensor], batches: Batches, token_bytes: Tensor, device: torch.device, autocast: Autocast
) -> Score:
    """The model's loss on batches of (inputs, targets), (B, T) each; targets of -100 are not scored.

    Args:
        model: tokens (B, T) to logits (B, T, V).
        batches: what to score.
        token_bytes: UTF-8 bytes of every token of the vocabulary, (V,).
        device: where the model is.
        autocast: makes the precision's context.
    """
    total = Score()
    for inputs, targets in batches:
        scored = targets[targets != -100]  # (N,)
        figures = target_figures(model, inputs, targets, device, autocast)  # (B, T, 2)
        total.nats += figures[..., 0].contiguous().sum().item()
        total.right += int(figures[..., 1].sum())
        total.targets += len(scored)
        total.bytes += int(token_bytes[scored].sum())
    return total


def target_nats(
    model: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor, device: torch.device, autocast: Autocast
) -> Tensor:
    """Cross-entropy of every target, nats, (B, T) float64; 0 where it is -100."""
    return target_figures(model, inputs, targets, device, autocast)[..., 0].contiguous()


@torch.no_grad()
def target_figures(
    model: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor, device: torch.device, autocast: Autocast
) -> Tensor:
    """Of every target its cross-entropy, nats, and whether it is the likeliest token, 1 or 0: (B, T, 2) float64.

    Both are 0 where the target is -100. Only scored logits are kept.
    """
    figures = torch.zeros(*targets.shape, 2, dtype=torch.float64)
    columns = (targets != -100).any(0).nonzero()  # (N, 1), the places where any row is scored
    first = int(columns[0]) if len(columns) else targets.shape[1] - 1
    with autocast():
        for part, logits in in_chunks(model, inputs.to(device), first):
            here = targets[:, part]  # (B, t)
            scored = here != -100
            kept, wanted = logits[scored.to(device)].float(), here[scored].to(device)  # (N, V), (N,)
            loss = F.cross_entropy(kept, wanted, reduction="none")  # (N,)
            right = kept.argmax(-1) == wanted  # (N,)
            figures[:, part][scored] = torch.stack((loss, right.to(loss.dtype)), dim=-1).cpu().double()
    return figures


def in_chunks(model: Callable[[Tensor], Tensor], tokens: Tensor, first: int = 0) -> Iterator[tuple[slice, Tensor]]:
    """A full pass in chunks of the time axis: slices of T, and the logits there, (B, <= CHUNK, V).

    Where frequencies at this length are not those of its beginning (dynamic, longrope), earlier keys would have been
    turned by others. Such a scheme has no bias, so one pass over everything is exact and small enough.

    Args:
        model: tokens (B, T) to logits (B, T, V).
        tokens: (B, T).
        first: logits before this place are not wanted: the last block and the head leave them out.
    """
    T = tokens.shape[1]
    if not isinstance(model, Transformer):  # a compiled one: another shape would be compiled anew
        yield slice(0, T), model(tokens)
    elif T <= CHUNK or model.position.changes(1, torch.arange(T)):
        yield slice(first, T), model(tokens, last=T - first)
    else:
        cache = model.new_cache(*tokens.shape)
        for start in range(0, T, CHUNK):
            end = min(start + CHUNK, T)
            wanted = max(1, end - max(start, first))
            logits = model(tokens[:, start:end], cache=cache, last=wanted)
            if end > first:
                yield slice(end - wanted, end), logits


def in_parts(inputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows, (N, T), in parts of about TOKENS_AT_ONCE tokens."""
    rows = max(1, TOKENS_AT_ONCE // inputs.shape[1])
    return zip(inputs.split(rows), targets.split(rows), strict=True)


def loss_by_length(
    model: Transformer, corpus: Corpus, split: str, lengths: Iterable[int], device: torch.device, autocast: Autocast
) -> dict[int, float | None]:
    """Loss on the same targets, the last 32 tokens of 256 shared windows, under every context length.

    Returns:
        Length to loss, nats per token; None for a length the scheme cannot do, or the split is too short for.
    """
    lengths = sorted(lengths)
    usable = [length for length in lengths if length <= corpus.longest(split)]
    losses: dict[int, float | None] = dict.fromkeys(lengths)
    for length in usable:
        try:
            losses[length] = score(
                model, fixed(corpus, split, length, usable), corpus.token_bytes, device, autocast
            ).loss
        except PastTheEnd:
            losses[length] = None
    return losses


def fixed(corpus: Corpus, split: str, length: int, lengths: list[int]) -> Batches:
    """Windows of one length whose scored targets, the last ones, are the same for all these lengths."""
    _, inputs, targets = next(corpus.fixed_targets(split, [length, *lengths], n_targets=FIXED_TARGETS))
    return in_parts(inputs, targets)


def windows(corpus: Corpus, split: str, length: int) -> Batches:
    """Non-overlapping windows: every token of the split but the first is a target once."""
    return corpus.windows(split, length, rows=max(1, TOKENS_AT_ONCE // length))


def sliding(corpus: Corpus, split: str, length: int, stride: int) -> Batches:
    """A full window, then windows `stride` tokens on that score what is new: every token but the first once."""
    tokens = corpus.tokens(split)
    ends = [*range(length, len(tokens) - 1, stride), len(tokens) - 1]  # where each window's last target stands
    rows, before = max(1, TOKENS_AT_ONCE // length), 0
    for first in range(0, len(ends), rows):
        these = ends[first : first + rows]
        block = torch.from_numpy(np.stack([tokens[end - length : end + 1] for end in these]).astype(np.int64))
        inputs, targets = block[:, :-1], block[:, 1:].clone()  # (B, T) each
        for row, end in enumerate(these):
            targets[row, : length - (end - before)] = -100
            before = end
        yield inputs, targets


def shuffled_prefix(batches: Batches, trained: int, seed: int) -> Batches:
    """The same windows with all tokens but the last `trained` in random order, drawn for each window anew.

    Each window keeps its own tokens: the far context says the same words in no order. Windows that are not longer than
    `trained` stay as they are, and so do all targets.
    """
    generator = torch.Generator().manual_seed(seed)
    for inputs, targets in batches:
        far = max(0, inputs.shape[1] - trained)
        order = torch.rand(len(inputs), far, generator=generator).argsort(dim=1)  # (B, far)
        yield torch.cat((inputs[:, :far].gather(1, order), inputs[:, far:]), dim=1), targets


def buckets(length: int, trained: int) -> list[tuple[int, int]]:
    """Runs of positions that double in width, first and last of each; the trained length is always an edge.

    A target's position is the number of tokens before it in its window, 1 .. length.
    """
    edges = [trained]
    while edges[0] > 1:
        edges.insert(0, edges[0] // 2)
    while edges[-1] < length:
        edges.append(edges[-1] * 2)
    edges = [0, *(edge for edge in edges if edge < length), length]
    return [(low + 1, high) for low, high in pairwise(edges)]


PROTOCOLS = ("fixed", "windows", "sliding", "by-position", "shuffled-prefix")  # of runs on text

RETRIEVAL = "retrieval"  # of runs on a task


@dataclass(frozen=True)
class Ruler:
    """What all figures of one evaluation share.

    Args:
        corpus: the run's, text or tasks.
        split: train, validation or test.
        lengths: all lengths of context, tokens.
        trained: the length the run was trained at, tokens.
        stride: of sliding windows, and of the windows that crop, tokens.
        seed: of shuffled-prefix.
        nats: a model's target_nats: inputs and targets, (B, T) each, to (B, T). For tasks its target_figures.
    """

    corpus: Corpus | TaskCorpus
    split: str
    lengths: list[int]
    trained: int
    stride: int
    seed: int
    nats: Callable[[Tensor, Tensor], Tensor]

    def batches(self, protocol: str, length: int) -> Batches:
        """The windows of a protocol."""
        if protocol == "sliding":
            return sliding(self.corpus, self.split, length, self.stride)
        if protocol in ("windows", "by-position"):
            return windows(self.corpus, self.split, length)
        batches = fixed(self.corpus, self.split, length, [*self.lengths, self.trained])
        return shuffled_prefix(batches, self.trained, self.seed) if protocol == "shuffled-prefix" else batches

    def measure(self, protocol: str, length: int, crop: bool = False) -> list[dict[str, Any]]:
        """Loss and tokens of a protocol's windows under the model as it now is: one cell, or one a bucket.

        Args:
            protocol: one of PROTOCOLS.
            length: of the windows, tokens.
            crop: score every target from at most the last trained-length tokens before it.
        """
        nats, tokens = torch.zeros(length, dtype=torch.float64), torch.zeros(length, dtype=torch.long)
        # Where a window's few targets all stand at its end, one cropped window holds them.
        stride = min(FIXED_TARGETS, self.trained) if protocol in ("fixed", "shuffled-prefix") else self.stride
        for inputs, targets in self.batches(protocol, length):
            nats += (self.cropped(inputs, targets, stride) if crop else self.nats(inputs, targets)).sum(0)
            tokens += (targets != -100).sum(0)
        if protocol == "by-position":
            spans = buckets(length, self.trained)
            shown = [{"positions": [first, last]} for first, last in spans]
        else:
            spans, shown = [(1, length)], [{}]
        cells = [(nats[first - 1 : last].sum().item(), tokens[first - 1 : last].sum().item()) for first, last in spans]
        return [{"loss": n / t, "tokens": t, **which} for (n, t), which in zip(cells, shown, strict=True)]

    def cropped(self, inputs: Tensor, targets: Tensor, stride: int) -> Tensor:
        """As `nats`, (B, T) or (B, T, 2), with every target scored from at most its last trained-length tokens.

        The first window of that length scores as many targets as needed for the others, each `stride` further, to end
        where the row ends; they score their last `stride` targets.
        """
        T, L = inputs.shape[1], self.trained
        if T <= L:
            return self.nats(inputs, targets)
        offset = (T - L) % stride
        early = L - stride + offset  # targets of the first window
        rows, scored = (
            torch.cat((x[:, None, :L], x[:, offset:].unfold(1, L, stride)), dim=1) for x in (inputs, targets)
        )  # (B, 1 + K, L) each
        scored[:, 0, early:] = -100
        scored[:, 1:, :-stride] = -100
        wanted = (scored != -100).any(-1)  # (B, 1 + K)
        found = torch.cat([self.nats(*part) for part in in_parts(rows[wanted], scored[wanted])])
        nats = found.new_zeros(*scored.shape, *found.shape[2:])  # (B, 1 + K, L) or (B, 1 + K, L, 2)
        nats[wanted] = found
        return torch.cat((nats[:, 0, :early], nats[:, 1:, -stride:].flatten(1, 2)), dim=1)  # (B, T) or (B, T, 2)
