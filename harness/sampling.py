"""Tokens drawn from a model one by one, with a key-value cache."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.messages import RunFailed
from harness.tasks import TaskCorpus
from model import Transformer


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits, (..., V), with -inf on all but the k largest; ties with the k-th are kept too."""
    kth = logits.topk(min(k, logits.shape[-1])).values[..., -1:]  # (..., 1)
    return logits.masked_fill(logits < kth, -math.inf)  # keep i: l_i >= the k-th largest


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits, (..., V), with -inf outside the nucleus of probability p; of equals, the first in the vocabulary stay."""
    if p >= 1:  # a sum that rounds to 1 early would cut the tail
        return logits
    ordered, token = logits.sort(descending=True, stable=True)  # (..., V)
    upto = ordered.softmax(-1).cumsum(-1)  # (..., V)
    before = torch.nn.functional.pad(upto[..., :-1], (1, 0))  # (..., V): the sum of p_j over all likelier j
    kept = torch.empty_like(token, dtype=torch.bool).scatter(-1, token, before < p)  # keep i: sum before i < p
    return logits.masked_fill(~kept, -math.inf)


def choose_tokens(logits: Tensor, u: Tensor, temperature: float, top_k: int | None = None, top_p: float = 1) -> Tensor:
    """One token for each row of logits, (N, V), and uniform number in [0, 1), (N, 1), as generate.py says: (N, 1)."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    logits = logits.double()  # (N, V); sums over a large vocabulary need it
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # l / temperature, where exp cannot overflow
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    upto = keep_top_p(logits, top_p).softmax(-1).cumsum(-1)  # (N, V)
    return torch.searchsorted(upto / upto[:, -1:], u, right=True)  # the first i with p_1 + ... + p_i > u


@contextmanager
def store_by_columns(model: Transformer) -> Iterator[None]:
    """On a CPU, store matrices with more outputs than inputs column by column, and restore them at the end.

    For one row x the product W x = sum_j x_j W[:, j] then reads memory in order and fills whole vectors of outputs.
    That saves a third of a token's time (results/NOTES.md); several rows gain nothing. Values and shapes do not change.
    """
    wide = [p for p in model.parameters() if p.dim() == 2 and p.shape[0] > p.shape[1] and p.device.type == "cpu"]

    def store(by_columns: bool) -> None:
        with torch.inference_mode(False):  # tensors made in inference mode could never be trained again
            for weight in wide:
                weight.data = weight.data.t().contiguous().t() if by_columns else weight.data.contiguous()

    store(by_columns=True)
    try:
        yield
    finally:
        store(by_columns=False)


def compile_for_sampling(model: Transformer) -> nn.Module:
    """Compile a model so that drawing tokens is about twice as fast on a CPU, after a minute or two.

    `cpp_wrapper` also compiles the calls of the compiled parts: a token needs some sixty of them (results/NOTES.md).
    """
    return torch.compile(model, options={"cpp_wrapper": True})


@torch.inference_mode()
def sample_several(
    model: Transformer, prompt: list[int], tokens: int, temperature: float, seed: int, number: int, **kept: Any
) -> Iterator[list[int]]:
    """Draw one token for each of `number` samples (N), given all tokens before it, again and again.

    All begin with the same prompt and share each forward pass; sample i draws from seed + i. `kept` may have top_k,
    top_p. Raises PastTheEnd when learned positions are used up, and RunFailed if a logit is not finite.
    """
    device = model.embedding.weight.device
    generators = [torch.Generator().manual_seed(seed + i) for i in range(number)]
    cache = model.new_cache(number, len(prompt) + tokens - 1)  # the last token drawn is not fed
    fed = torch.tensor([prompt], device=device).expand(number, -1)  # (N, T)
    with store_by_columns(model) if number == 1 else nullcontext():
        for _ in range(tokens):
            logits = model(fed, cache=cache, last=1)[:, -1].cpu()  # (N, V)
            if not logits.isfinite().all():
                raise RunFailed(
                    "the model's logits are not finite, so no token can be drawn: its weights are too large"
                )
            u = torch.cat([torch.rand(1, 1, generator=g, dtype=torch.float64) for g in generators])  # (N, 1)
            drawn = choose_tokens(logits, u, temperature, **kept)  # (N, 1)
            yield drawn[:, 0].tolist()
            fed = drawn.to(device)


def sample(model: Transformer, prompt: list[int], tokens: int, temperature: float, seed: int) -> Iterator[int]:
    """Draw the tokens of one sample: see `sample_several`."""
    return (token for (token,) in sample_several(model, prompt, tokens, temperature, seed, 1))


def trial(model: Transformer, corpus: TaskCorpus, task: str, row: int) -> str:
    """An episode of a task up to its last question, the right answer, and the model's: the likeliest tokens."""
    (episode,) = corpus.episodes(task, "validation", min(64, corpus.seq_len), range(row, row + 1))
    asked = np.flatnonzero(episode.answer == episode.answer.max())
    prompt, right = episode.tokens[: asked[0]].tolist(), episode.tokens[asked].tolist()
    drawn = list(sample(model, prompt, len(right), temperature=0, seed=0))
    return f"{task}: {corpus.decode(prompt)}\n  right: {corpus.decode(right)}\n  model: {corpus.decode(drawn)}"
