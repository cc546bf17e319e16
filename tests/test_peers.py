"""Peers: that the library's model does the same work as ours.

.venv/bin/python -m pytest tests/test_peers.py
"""

import pytest
import torch

from experiments.speed import SHAPES
from harness import peers
from harness.sampling import sample
from harness.workloads import ENTRIES
from model import ModelConfig, Transformer
from rope import RopeConfig


def test_ours_and_transformers_generate_the_same_tokens_from_the_same_weights():
    """So that the speeds compared are those of the same work: greedy, cache and all."""
    config = ModelConfig(vocab_size=64, d_model=32, n_layer=2, n_head=2, rope=RopeConfig(layout="half-split"))
    ours, theirs = Transformer(config).eval().double(), peers.llama(config, length=64).eval().double()
    weights = theirs.state_dict()
    with torch.no_grad():
        for i, block in enumerate(ours.blocks):
            of = f"model.layers.{i}."
            qkv = [weights[f"{of}self_attn.{name}_proj.weight"] for name in "qkv"]
            block.attention.qkv.weight.copy_(torch.cat(qkv))
            block.attention.out.weight.copy_(weights[f"{of}self_attn.o_proj.weight"])
            gate_up = [weights[f"{of}mlp.{name}_proj.weight"] for name in ("gate", "up")]
            block.mlp.gate_up.weight.copy_(torch.cat(gate_up))
            block.mlp.down.weight.copy_(weights[f"{of}mlp.down_proj.weight"])
        ours.embedding.weight.copy_(weights["model.embed_tokens.weight"])
    prompt = [1, 2, 3]
    their_tokens = theirs.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0, 3:].tolist()
    assert list(sample(ours, prompt, 20, temperature=0, seed=0)) == their_tokens


@pytest.mark.parametrize(("d_model", "n_layer"), SHAPES)
def test_a_peer_has_our_shape(d_model, n_layer):
    config = ModelConfig(vocab_size=ENTRIES, d_model=d_model, n_layer=n_layer)
    ours, theirs = Transformer(config), peers.llama(config)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    tokens = torch.zeros(1, 4, dtype=torch.long)
    assert peers.Logits(theirs)(tokens).shape == ours(tokens).shape == (1, 4, ENTRIES)
