"""How well a model predicts text: over a whole split, and under contexts of other lengths than it was trained at.

Short windows have more tokens with little context, so a loss over windows of each length rewards mere length. The
honest figure is `loss_by_length`: the same last tokens of the same windows, scored under every context length.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from data import Corpus
from model import Transformer
from positions import PastTheEnd

TOKENS_AT_ONCE = 16_384  # in one forward pass, so that memory does not grow with the text


@dataclass
class Score:
    """Sums over the scored targets: never a mean of means."""

    nats: float = 0.0
    targets: int = 0
    bytes: int = 0

    @property
    def loss(self) -> float:
        """Mean cross-entropy, nats per target."""
        return self.nats / self.targets

    @property
    def bits_per_byte(self) -> float:
        """Nats over the scored targets / ln 2 / UTF-8 bytes of those same targets, so that tokenizers compare."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan


Autocast = Callable[[], torch.autocast]
"""Makes the context in which a model runs, its precision."""


@torch.no_grad()
def score(
    model: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    token_bytes: Tensor,
    device: torch.device,
    autocast: Autocast,
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
        with autocast():
            logits = model(inputs.to(device))  # (B, T, V)
        scored = targets != -100  # (B, T)
        targets = targets[scored]  # (N,)
        loss = F.cross_entropy(logits[scored.to(device)].float(), targets.to(device), reduction="sum")
        total.nats += loss.item()
        total.targets += len(targets)
        total.bytes += int(token_bytes[targets].sum())
    return total


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
    n_targets = min(32, lengths[0])
    for length, inputs, targets in corpus.fixed_targets(split, usable, n_targets=n_targets):
        try:
            losses[length] = score(model, in_parts(inputs, targets), corpus.token_bytes, device, autocast).loss
        except PastTheEnd:
            losses[length] = None
    return losses
