"""Pieces of work whose cost experiments measure, the operations (FLOPs) that they take, and a peer that does the same.

Each of the N numbers in matrices costs a token a multiplication and an addition forward, and twice that backward, for
the gradients of its input and of its weights. In each of L layers, scores take 2 C operations for every key that a
query may see, (T + 1) / 2 on average, and so does the sum over values (Kaplan et al., 2001.08361; PaLM, 2204.02311,
counts T keys).
"""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import data
from harness import corpora
from harness.devices import Autocast
from model import ModelConfig

ENTRIES = 1024  # of the vocabulary, as the default corpus has


def matrix_parameters(config: ModelConfig) -> int:
    """Numbers in the matrices that every token is multiplied by (N): blocks and head, without norms and look-ups."""
    C, heads = config.d_model, config.n_head + 2 * config.n_kv_head
    block = C * heads * config.d_head + C * C + 3 * C * config.d_ff
    return config.n_layer * block + config.vocab_size * C


def forward_flops(config: ModelConfig, length: int) -> float:
    """Operations of one token's forward pass, the mean over a window of T = `length` tokens: 2 N + 2 L C (T + 1)."""
    return 2 * matrix_parameters(config) + 2 * config.n_layer * config.d_model * (length + 1)


def training_flops(config: ModelConfig, length: int) -> float:
    """Operations of training on one token, the mean over a window of `length` tokens."""
    return 3 * forward_flops(config, length)


def training_step(
    model: nn.Module, config: ModelConfig, batch_size: int, rows: int, autocast: Autocast
) -> Callable[[], Tensor]:
    """One optimiser step on random tokens, as train.py makes it, whatever the model: `rows` rows at a time.

    The step returns the loss before it, still on the model's device. Its tokens are the same each time.
    """
    draw = torch.Generator().manual_seed(0)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    block = torch.randint(config.vocab_size, (batch_size, config.seq_len + 1), generator=draw).to(parameters[0].device)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.98), fused=True)

    def step() -> Tensor:
        loss = torch.zeros((), device=block.device)
        for part in block.split(rows):  # (rows, T + 1) each
            with autocast():
                logits = model(part[:, :-1].contiguous())  # (rows, T, V)
                nats = F.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten(), reduction="sum")
                nats = nats / block[:, 1:].numel()
            nats.backward()
            loss += nats.detach()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


class Logits(nn.Module):
    """A model of the transformers library, called as ours are: tokens, (B, T), to logits, (B, T, V)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens, use_cache=False).logits


def llama(config: ModelConfig, attention: str = "sdpa", length: int | None = None, **more: Any) -> nn.Module:
    """transformers' Llama in our model's shape, for `length` positions, with more options of its config."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": config.d_model, "intermediate_size": config.d_ff, "num_hidden_layers": config.n_layer}
    shape |= {"num_attention_heads": config.n_head, "num_key_value_heads": config.n_kv_head}
    shape |= {"vocab_size": config.vocab_size, "tie_word_embeddings": config.tie_embeddings}
    rest = {"max_position_embeddings": length or config.seq_len, "rms_norm_eps": config.norm_eps}
    rest |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0, "attn_implementation": attention}
    return LlamaForCausalLM(LlamaConfig(**shape, **rest, **more))


def write_text(path: Path, megabytes: float) -> None:
    """Write text of this size: the King James verses, repeated in a new random order each time."""
    verses = next(corpora.read_kjv())["text"].splitlines(keepends=True)
    draw, left = random.Random(0), int(megabytes * 1e6)
    with open(path, "wb") as file:
        while left > 0:
            draw.shuffle(verses)
            for verse in verses:
                left -= file.write(verse) if left > 0 else 0


def write_texts(folder: Path, sizes: list[float]) -> tuple[dict[float, Path], Path]:
    """Texts of these sizes in MB, by size, and a BPE learned from the smallest."""
    texts = {size: folder / f"{size:g}.txt" for size in sizes}
    for size, text in texts.items():
        write_text(text, size)
    config = data.DataConfig(str(texts[min(sizes)]), vocab_size=ENTRIES, cache=str(folder / "learned"))
    data.load(config, 0, 1, 1).tokenizer.save(str(folder / "tokenizer.json"))
    return texts, folder / "tokenizer.json"


def prepare(text: Path, tokenizer: Path, cache: Path) -> float:
    """Prepare a corpus with an existing tokenizer; the seconds it took."""
    began = time.perf_counter()
    data.load(data.DataConfig(str(text), tokenizer=str(tokenizer), cache=str(cache)), 0, 1, 1)
    return time.perf_counter() - began
