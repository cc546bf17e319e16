"""Accuracy on tasks: of whole answers, at every length, by the quarter in which what is asked for stands.

python evaluate.py runs/recall --lengths 64 256 1024 --scalings none ntk yarn
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.tasks import CELLS, Episode, TaskCorpus, asked_a_quarter, scored

TOKENS_AT_ONCE = 16_384  # in one forward pass of an evaluation


def count_of_episodes(task: str, length: int, trials: int) -> int:
    """How many episodes give every cell at least this many trials."""
    return trials if task not in ("recall", "induction") else -(-trials // asked_a_quarter(length + 1))


def tally(episodes: list[Episode], nats: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """Accuracy of whole answers, of all of them first and then by the quarter in which their source stands.

    Args:
        episodes: all of one task and length, E of n tokens.
        nats: cross-entropy of every target, (E, n - 1).
        right: whether the likeliest token was the target, (E, n - 1).

    Returns:
        Rows of loss, accuracy, token_accuracy, trials, depth, distance and tokens. Depth is where the quarter's middle
        stands between the beginning, 0, and the end, 1, of what there was to remember. Distance is the mean in tokens.
        Copy and reverse have one answer an episode; by quarter, that quarter's part of it counts.
    """
    answer, cell, distance = (np.stack([part[1:] for part in parts]) for parts in list(zip(*episodes, strict=True))[1:])
    row = np.broadcast_to(np.arange(len(answer))[:, None], answer.shape)
    found = []
    for quarter in (None, *range(CELLS)):
        here = answer >= 0 if quarter is None else cell == quarter  # (E, n - 1)
        _, whole = np.unique(np.stack((row[here], answer[here])), axis=1, return_inverse=True)  # an answer's number
        wrong = np.bincount(whole.ravel(), weights=~right[here])  # (answers,) tokens of each that are wrong
        found.append(
            {
                "loss": float(nats[here].mean()),
                "accuracy": float((wrong == 0).mean()),
                "token_accuracy": float(right[here].mean()),
                "trials": len(wrong),
                "depth": None if quarter is None else (quarter + 0.5) / CELLS,
                "distance": None if quarter is None else round(float(distance[here].mean()), 1),
                "tokens": int(here.sum()),
            }
        )
    return found


def measure(
    corpus: TaskCorpus, task: str, split: str, length: int, trials: int, figures: Callable[[Tensor, Tensor], Tensor]
) -> list[dict[str, Any]]:
    """`tally` of a task's episodes at one length.

    Args:
        corpus: with the task among its own.
        task: its name.
        split: train, validation or test.
        length: of the context, tokens, T.
        trials: the least number a cell.
        figures: of inputs and targets, (B, T) each, the targets' nats and whether each is the likeliest, (B, T, 2).
    """
    count, rows, all_of, found = count_of_episodes(task, length, trials), max(1, TOKENS_AT_ONCE // length), [], []
    for first in range(0, count, rows):
        episodes = corpus.episodes(task, split, length, range(first, min(first + rows, count)))
        all_of += episodes
        found.append(figures(*scored(episodes)))
    nats, right = torch.cat(found).unbind(-1)  # (E, T) each
    return tally(all_of, nats.numpy(), right.numpy() > 0)


def missing() -> list[dict[str, Any]]:
    """What `measure` gives where a model has no positions: nothing, in every cell."""
    names = ("loss", "accuracy", "token_accuracy", "trials", "depth", "distance", "tokens")
    return [
        dict.fromkeys(names) | {"depth": None if quarter is None else (quarter + 0.5) / CELLS}
        for quarter in (None, *range(CELLS))
    ]


def shown_depth(depth: float | None) -> str:
    """A row's quarter in words."""
    return "all" if depth is None else ("first", "second", "third", "last")[int(depth * CELLS)] + " quarter"
