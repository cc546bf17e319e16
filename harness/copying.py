"""Copied spans: rows of training text in which a stretch comes again later, so that it pays to look far back.

This changes the data, equally for every scheme: what was trained with it says so wherever its results stand.

    python train.py --data.corpus code --data.copied 0.25
"""

import numpy as np
import torch
from torch import Tensor

SHORTEST, LONGEST = 16, 127  # tokens of a span; fewer where half a row is shorter
OTHER = 1 << 62  # set in the key, so that these draws are none of those that order the windows


def copy_spans(inputs: Tensor, targets: Tensor, share: float, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Write a span of a row over a later place of it, in about this share of the rows.

    Which rows, how long (log-uniform) and where to (uniform, without overlap) is a pure function of (seed, step).

    Inputs and targets, (B, T) each, are training windows, and so are those returned: targets are one token later.
    """
    rows = torch.cat((inputs, targets[:, -1:]), dim=1)  # (B, T + 1)
    draw = np.random.Generator(np.random.Philox(key=np.array([seed, step | OTHER], np.uint64)))
    for row in rows:
        whether, how_long, first, second = draw.random(4)
        if whether < share:
            width = min(int(SHORTEST * ((LONGEST + 1) / SHORTEST) ** how_long), len(row) // 2)
            source = int(first * (len(row) - 2 * width + 1))
            place = source + width + int(second * (len(row) - source - 2 * width + 1))
            row[place : place + width] = row[source : source + width].clone()
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
