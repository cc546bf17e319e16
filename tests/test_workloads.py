"""Workloads: the arithmetic of operations, and that what is timed is the work it says.

.venv/bin/python -m pytest tests/test_workloads.py
"""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from experiments.speed import SHAPES
from harness import corpora, workloads
from harness.sampling import sample
from harness.workloads import ENTRIES, forward_flops, matrix_parameters, training_flops
from model import ModelConfig, Transformer
from rope import RopeConfig


def test_operations_by_hand():
    config = ModelConfig(vocab_size=10, d_model=4, n_layer=2, n_head=2, d_ff=8)
    N = 2 * (3 * 4 * 4 + 4 * 4 + 3 * 4 * 8) + 10 * 4
    assert matrix_parameters(config) == N
    assert forward_flops(config, 1) == 2 * N + 2 * 2 * 4 * 2  # one key: 2 x 4 for the score, 2 x 4 for the value
    assert training_flops(config, 7) == 6 * N + 6 * 2 * 4 * 8


def test_operations_are_what_pytorch_counts():
    """Where positions might be anything every query meets all T keys, and not the (T + 1) / 2 that it may see."""
    from torch.utils.flop_counter import FlopCounterMode

    config = ModelConfig(vocab_size=40, d_model=32, n_layer=2, n_head=2, attention="explicit")
    model, T = Transformer(config), 12
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, T, dtype=torch.long), torch.arange(T)).sum().backward()
    unmasked = 6 * config.n_layer * config.d_model * 2 * T
    assert counter.get_total_flops() == T * (6 * matrix_parameters(config) + unmasked)


def test_a_step_is_one_of_adamw_on_the_mean_over_the_batch_however_many_rows_go_at_once():
    config = ModelConfig(vocab_size=20, d_model=16, n_layer=1, n_head=2, seq_len=8)
    ours, by_hand = Transformer(config), Transformer(config)
    for rows in (4, 1):
        workloads.training_step(ours, config, 4, rows, nullcontext)()
    block = torch.randint(20, (4, 9), generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-4, betas=(0.9, 0.98), fused=True)
        F.cross_entropy(by_hand(block[:, :-1]).flatten(0, 1), block[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for mine, theirs in zip(ours.parameters(), by_hand.parameters(), strict=True):
        assert (
            mine.tolist() == pytest.approx(theirs.tolist(), abs=1e-6)
            if mine.dim() == 1
            else torch.allclose(mine, theirs, atol=1e-6)
        )


def test_text_is_made_of_verses_in_another_order_every_time(tmp_path):
    verses = next(corpora.read_kjv())["text"].splitlines(keepends=True)
    workloads.write_text(tmp_path / "text", 0.2)
    written = (tmp_path / "text").read_bytes().splitlines(keepends=True)
    assert 0.2e6 <= (tmp_path / "text").stat().st_size < 0.21e6
    assert set(written) <= set(verses)
    assert written != verses[: len(written)]


# ---- the peer: that the library's model does the same work as ours ---------------------------------------------------


def test_ours_and_transformers_generate_the_same_tokens_from_the_same_weights():
    """So that the speeds compared are those of the same work: greedy, cache and all."""
    config = ModelConfig(vocab_size=64, d_model=32, n_layer=2, n_head=2, rope=RopeConfig(layout="half-split"))
    ours, theirs = Transformer(config).eval().double(), workloads.llama(config, length=64).eval().double()
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
    ours, theirs = Transformer(config), workloads.llama(config)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    tokens = torch.zeros(1, 4, dtype=torch.long)
    assert workloads.Logits(theirs)(tokens).shape == ours(tokens).shape == (1, 4, ENTRIES)
