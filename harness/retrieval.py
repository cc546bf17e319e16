"""Accuracy on tasks: of whole answers, at every length, by the quarter of the context that holds the source.

python evaluate.py runs/recall --lengths 64 256 1024 --scalings none ntk yarn
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.tasks import CELLS, Episode, TaskCorpus, questions_per_quarter, stack_episodes
from positions import PastTheEnd

TOKENS_AT_ONCE = 16_384  # in one forward pass of an evaluation
QUARTERS = ("first", "second", "third", "last")
DEPTHS = (None, *((quarter + 0.5) / CELLS for quarter in range(CELLS)))  # of a table's rows: all, then by quarter


def split_rows(inputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows, (N, T), in batches of about TOKENS_AT_ONCE tokens."""
    rows = max(1, TOKENS_AT_ONCE // inputs.shape[1])
    return zip(inputs.split(rows), targets.split(rows), strict=True)


def count_episodes(task: str, length: int, trials: int) -> int:
    """The number of episodes that gives every cell at least this many trials."""
    return trials if task not in ("recall", "induction") else -(-trials // questions_per_quarter(length + 1))


def tabulate_accuracy(episodes: list[Episode], nats: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """Accuracy of whole answers: of all of them first, then by the quarter in which their source stands.

    Args:
        episodes: all of one task and length, E of n tokens.
        nats: cross-entropy of every target, (E, n - 1).
        right: whether the likeliest token was the target, (E, n - 1).

    Returns:
        A row per depth: the quarter's middle, from 0 at the beginning of what there was to remember to 1 at its end.
        Distance is the mean, in tokens. Copy and reverse have one answer per episode; a quarter scores its part of it.
    """
    answer, cell, distance = (np.stack([part[1:] for part in parts]) for parts in list(zip(*episodes, strict=True))[1:])
    row = np.broadcast_to(np.arange(len(answer))[:, None], answer.shape)
    found = empty_rows()
    for quarter, figures in enumerate(found, start=-1):
        here = cell == quarter if quarter >= 0 else answer >= 0  # (E, n - 1)
        _, whole = np.unique(np.stack((row[here], answer[here])), axis=1, return_inverse=True)  # an answer's number
        wrong = np.bincount(whole.ravel(), weights=~right[here])  # (answers,) tokens of each that are wrong
        figures.update(loss=float(nats[here].mean()), accuracy=float((wrong == 0).mean()), trials=len(wrong))
        figures.update(token_accuracy=float(right[here].mean()), tokens=int(here.sum()))
        if quarter >= 0:
            figures["distance"] = round(float(distance[here].mean()), 1)
    return found


def measure_accuracy(
    corpus: TaskCorpus, task: str, split: str, length: int, trials: int, figures: Callable[[Tensor, Tensor], Tensor]
) -> list[dict[str, Any]]:
    """`tabulate_accuracy` of a task's episodes with `length` tokens of context, T, and at least `trials` per cell.

    All is None if a model has no positions for them.
    `figures` takes inputs and targets, (B, T) each, and gives the nats of each target and whether it was the likeliest
    token, (B, T, 2).
    """
    episodes = corpus.episodes(task, split, length, range(count_episodes(task, length, trials)))
    try:
        found = torch.cat([figures(*part) for part in split_rows(*stack_episodes(episodes))])  # (E, T, 2)
    except PastTheEnd:
        return empty_rows()
    return tabulate_accuracy(episodes, found[..., 0].numpy(), found[..., 1].numpy() > 0)


def empty_rows() -> list[dict[str, Any]]:
    """The rows of `measure_accuracy` where a model has no positions: None in every cell."""
    names = ("loss", "accuracy", "token_accuracy", "trials", "depth", "distance", "tokens")
    return [dict.fromkeys(names) | {"depth": depth} for depth in DEPTHS]


def name_quarter(depth: float | None) -> str:
    """A row's quarter in words."""
    return "all" if depth is None else f"{QUARTERS[int(depth * CELLS)]} quarter"
