"""What ours is measured beside: the transformers library's Llama in our model's shape, its Trainer on our batches."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import data
from model import ModelConfig


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


class TrainingRows(torch.utils.data.IterableDataset):
    """The rows of a corpus's training batches in order, as transformers' Trainer takes them."""

    def __init__(self, corpus: data.Corpus) -> None:
        self.corpus = corpus

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for step in itertools.count():
            inputs, _ = self.corpus.batch(step)  # (B, T)
            yield from ({"input_ids": row, "labels": row} for row in inputs)


def train_theirs(
    model: nn.Module, corpus: data.Corpus, settings: dict[str, Any], steps: int, bf16: bool, folder: Path
) -> float:
    """Train with transformers' Trainer and a run's settings, where it has them; the seconds it took."""
    from transformers import Trainer, TrainingArguments

    betas = {"adam_beta1": settings["beta1"], "adam_beta2": settings["beta2"]}
    same = {name: settings[name] for name in ("learning_rate", "weight_decay")} | betas
    same |= {"max_grad_norm": settings["grad_clip"], "per_device_train_batch_size": settings["batch_size"]}
    schedule = {"lr_scheduler_type": "linear", "warmup_steps": round(settings["warmup"] * steps), "max_steps": steps}
    here = {"optim": "adamw_torch_fused", "bf16": bf16, "use_cpu": True, "dataloader_pin_memory": False}
    quiet = {"save_strategy": "no", "logging_strategy": "no", "report_to": [], "disable_tqdm": True}
    arguments = TrainingArguments(str(folder), **same, **schedule, **here, **quiet)
    return Trainer(model=model, args=arguments, train_dataset=TrainingRows(corpus)).train().metrics["train_runtime"]
