"""What a training run, a harness.run.Run, says on the screen: what it will do, what came out, why it ended early."""

import math
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from harness.devices import why_not_compiled
from harness.opening import Damaged
from harness.provenance import chain_sha256
from harness.runs import read_metrics
from harness.sampling import sample, trial
from harness.tasks import TaskCorpus


def describe_plan(run: Any) -> str:
    """What the run is about to do."""
    config, shape, corpus = run.config, run.bare.config, run.corpus
    parameters, own = (sum(p.numel() for p in part.parameters()) for part in (run.bare, run.bare.position))
    tokens = config.steps * config.batch_size * shape.seq_len
    epochs = tokens / len(corpus.tokens("train"))
    shares = enumerate(run.world.shares(config.batch_size))
    how = ", compiled" * config.compile
    passes = "no episode twice" if isinstance(corpus, TaskCorpus) else f"{epochs:.1f} epochs"
    lines = [
        f"{config.name} -> {config.out}" + f", from the weights of {config.init_from}" * bool(config.init_from),
        f"model    {shape.position}: {parameters:,} parameters, {own:,} of them the scheme's; {shape.n_layer} layers, "
        f"{shape.d_model} wide, {shape.n_head} heads, length {shape.seq_len}",
        f"data     {corpus.describe()}",
        f"training {config.steps} steps of {config.batch_size} x {shape.seq_len} are {tokens / 1e6:.2f}M tokens, "
        f"{passes}; rate {config.learning_rate:g}, seed {config.seed}",
        f"machine  {describe_machine(run)}, {run.precision}{how}",
        f"hashes   shared first weights {run.facts['shared_init_sha256'][:12]}, first batch "
        f"{chain_sha256('', *corpus.batch(0))[:12]}, data {corpus.sha256[:12]}",
    ]
    if run.world.size > 1:
        lines.append("ranks    " + "; ".join(f"{rank}: rows {a} to {b - 1}" for rank, (a, b) in shares))
    return "\n  ".join(lines)


def describe_machine(run: Any) -> str:
    """What decides how sums round: the device, the threads, and the processes and how they share the weights."""
    n_threads, n_processes = torch.get_num_threads(), run.world.size
    several = f", {n_processes} processes" * (n_processes > 1) + ", sharded" * run.config.shard
    return f"{run.device.type}, {n_threads} thread{'s' * (n_threads > 1)}{several}"


def per_second(n: int, seconds: float) -> float:
    """A rate; not a number where a clock has stood still."""
    return n / seconds if seconds else math.nan


def describe_figures(bits_per_byte: float, accuracy: float | None) -> str:
    """What is shown beside a loss: bits per byte, or for tasks, where bytes mean nothing, the accuracy."""
    return f"{accuracy:.3f} of the tokens right" if math.isnan(bits_per_byte) else f"{bits_per_byte:.4f} bits per byte"


def describe_outcome(run: Any) -> str:
    """The outcome of the run: its figures, a sample of text and the next command."""
    config, corpus, room, result = run.config, run.corpus, run.bare.config.seq_len, run.result
    model = run.bare.eval()
    skipped = f", {result['skipped']} step{'s' * (result['skipped'] > 1)} skipped" if result["skipped"] else ""
    figures = (
        f"\n{config.name}: validation loss {result['val_loss']:.4f} "
        f"({describe_figures(result['bits_per_byte'], result.get('val_accuracy'))}), "
        f"test loss {result['test_loss']:.4f}, {result['seconds']:.0f} s, "
        f"{result['tokens_per_second']:,.0f} tokens a second{skipped}\n"
    )
    if isinstance(corpus, TaskCorpus):
        tried = "\n".join(trial(model, corpus, task, config.seed) for task in corpus.tasks)
        return f"{figures}\n{tried}\n\nNext: python evaluate.py {config.out}"
    opening = " ".join(corpus.decode(corpus.tokens("validation")[:64].tolist()).split()[1:7])  # the first may be cut
    prompt = corpus.encode(opening)[: max(1, room // 2)] or [corpus.end_of_text]
    drawn = sample(model, prompt, min(80, max(1, room // 2)), temperature=0.8, seed=config.seed)
    text = corpus.decode([*prompt, *takewhile(lambda token: token != corpus.end_of_text, drawn)])
    lists = Path(config.out) / "longrope.yaml"
    learned = f"\nLearned factors, as longrope's lists: {lists}" if lists.exists() else ""
    return (
        f"{figures}\nA sample, continuing {corpus.decode(prompt)!r}:\n{text}\n{learned}\n"
        f'Next: python generate.py {config.out} --prompt "In the beginning" --tokens 200'
    )


def describe_bad_step(run: Any, step: int, loss: float, norm: float) -> str:
    """What to say of a step whose loss or gradient is not finite: what came before, and what may have led to it."""
    before = [event["loss"] for event in read_metrics(run.folder.path) if event["split"] == "train"][-6:-1]
    history = ", ".join("none" if value is None else f"{value:.4g}" for value in before) or "none, it is the first"
    at = run.folder.saved
    saved = f"The last whole checkpoint is of step {at}" if at else "There is no checkpoint yet"
    return (
        f"the loss is {loss:g} and the gradient's norm {norm:g} at step {step + 1} of {run.config.steps}, after losses "
        f"of {history}. Likely causes: a learning rate that is too high (try a lower --run.learning_rate than "
        f"{run.config.learning_rate:g}, or a longer --run.warmup), numbers too large for bf16 (--run.precision fp32), "
        f"or odd text at that point (--run.on_nan skip passes over it). {saved}; what was logged is in {run.config.out}"
    )


def describe_failure(run: Any, error: BaseException, saved: str) -> str | None:
    """What to say of an error that is the machine's: memory, compiler, disk or output; None for any other."""
    again = f"{saved}: go on with --run.resume true"
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):  # a CPU's
        names = ("seq_len", "d_model", "n_layer")
        shape = ", ".join(f"--model.{name} {getattr(run.bare.config, name)}" for name in names)
        return (
            f"out of memory with {run.rows} rows at once: try a smaller --run.micro_batch_size with --run.resume true "
            f"({saved}), or a smaller model: {shape}"
        )
    if why := why_not_compiled(error):
        return f"{why}; {again} and --run.compile false"
    if isinstance(error, BrokenPipeError):
        return f"whoever read the output has closed it: send it to a file, with > FILE; {again}"
    if isinstance(error, Damaged):  # a file of the run, changed while it trains
        return f"{error}; {saved}"
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or 'the disk'}; {saved}"
    return None
