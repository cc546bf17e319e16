"""What ours is measured beside: the transformers library's Llama in our model's shape."""

from typing import Any

import torch
from torch import Tensor, nn

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
