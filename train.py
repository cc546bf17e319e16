"""Train one model: configs -> data -> model -> optimiser loop -> run folder.

    python train.py --config configs/rope.yaml
    python train.py --config configs/alibi.yaml --model.d_model 256 --run.steps 2000 --run.name alibi-256

Values come from the defaults (harness/run_options.py), then from config files and flags, of which a later one wins;
`--print_config` shows the outcome. The run folder stores that and everything the run makes (harness/folder.py). A run
that was stopped, by Ctrl-C, a cluster or a power cut, goes on from its last whole checkpoint:

    python train.py --config runs/rope/config.yaml --run.resume true

Training can continue from a finished run at another length or scaling (harness/tuning.py), and torchrun spreads one run
over many processes, which together compute what one would (harness/processes.py):

    python train.py --run.init_from runs/rope --model.seq_len 1024 --model.rope.scaling yarn --model.rope.factor 4
    torchrun --nproc_per_node=2 train.py --config configs/rope.yaml
"""

import harness.stops  # first: the rest takes seconds to import, and Ctrl-C ends even that without a traceback

import math
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

import data
from harness.messages import run_main
from harness.processes import ALONE, World, meet_processes
from harness.run import Run
from harness.run_options import RunConfig, make_run_parser, parse_run
from model import ModelConfig, Transformer


def make_optimizer(model: Transformer, config: RunConfig) -> torch.optim.Optimizer:
    """AdamW (1711.05101). Weight decay pulls on matrices and tables, not on the norms' gains.

    Each group has a `rate` of its own, a multiple of the step's learning rate.
    """
    embedding = model.embedding.weight
    rest = [p for p in model.parameters() if p is not embedding]
    groups = [
        {"params": [embedding], "weight_decay": config.weight_decay, "rate": config.embedding_rate},
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": config.weight_decay, "rate": 1.0},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0, "rate": 1.0},
    ]
    fused = embedding.device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=fused)


def learning_rate(step: int, config: RunConfig) -> float:
    """The rate at a step, 0 .. steps - 1: a linear climb, then a line or half a cosine down to its final fraction."""
    climb = max(1, round(config.warmup * config.steps))
    if step < climb:
        return config.learning_rate * (step + 1) / climb
    done = (step - climb) / max(1, config.steps - climb)  # 0 .. 1
    ahead = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2  # 1 .. 0
    return config.learning_rate * (config.final_rate + (1 - config.final_rate) * ahead)


def train(
    data_config: data.DataConfig, model_config: ModelConfig, config: RunConfig, world: World = ALONE
) -> dict[str, Any]:
    """Train one model into its run folder, and return what its result.json says.

    Raises:
        BadInput: for what cannot be done; nothing is written then.
        RunFailed: when the loss is no longer finite, or memory or space runs out; checkpoints and logs stay.
    """
    run = Run(data_config, model_config, config, world)  # refuses what cannot be done, before any work
    if run.result:  # the run has finished already, and was asked to go on
        return run.result
    # on every process; what fails on one ends all of them
    corpus = run.together(data.load, data_config, config.seed, config.batch_size, model_config.seq_len)
    model_config = run.together(run.complete_model_config, corpus)  # with the tokenizer's vocab_size
    model = run.together(Transformer, model_config, config.seed)
    run.place(model)  # on its device; run.model is the same one, compiled or spread over processes if asked for
    optimizer = make_optimizer(model, config)

    with run.begin(optimizer):  # takes the folder, loads a stopped run's checkpoint; at the end scores, writes results
        for step in run.steps():  # from 0, or from where the run was stopped
            rate = learning_rate(step, config)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate"]
            inputs, targets = corpus.batch(step)  # (B, T) each; a target of -100 is not scored
            scored = int((targets != -100).sum())
            loss = 0.0  # mean nats per scored target
            for x, y in run.micro_batches(inputs, targets):  # this process's rows, on its device: (rows, T) each
                with run.autocast():
                    logits = run.model(x)  # (rows, T, V)
                    nats = cross_entropy(logits.float().flatten(0, 1), y.flatten(), ignore_index=-100, reduction="sum")
                    part = nats / scored  # all parts, on all processes, add up to the mean over the batch
                part.backward()  # of several processes the gradients are added up, not averaged
                loss += part.item()
            loss = run.sum(loss)
            norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            norm = run.gather(norm)  # if weights are split over processes: their norms, combined
            clip_grads_with_norm_(model.parameters(), config.grad_clip, norm)
            if run.is_finite(step, loss, float(norm)):  # else the run stops or, if asked to, leaves out this update
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            # logs the step and its batch's hash, evaluates and saves when it is time, ends the run if a signal asked
            run.after(step, inputs, targets, loss=loss, learning_rate=rate, grad_norm=float(norm))
    return run.result


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train one model as the command line says, and return what its result.json says."""
    with meet_processes() as world:  # those that torchrun has started; one otherwise
        parser = make_run_parser("train.py", __doc__)
        _, data_config, model_config, config = world.together(parse_run, argv, parser)
        return train(data_config, model_config, config, world)


if __name__ == "__main__":
    run_main(main)
