"""Train one model: config -> data -> model -> optimiser loop -> run folder.

    python train.py --config configs/rope.yaml
    python train.py --config configs/alibi.yaml --model.d_model 256 --run.steps 2000 --run.name alibi-256

    python train.py --run.init_from runs/rope --model.seq_len 1024 --model.rope.scaling yarn --model.rope.factor 4 \\
        --run.steps 100

Values come from the defaults, then from config files and flags in the order they stand on the line. `--print_config`
shows the outcome, and every run folder keeps it (see harness/folder.py). The last command tunes a finished
run: its weights go on being trained, at another length or scaling, and its config lies under files and flags (see
harness/tuning.py).

A run that was stopped, by Ctrl-C, a cluster or a power cut, goes on from its last whole checkpoint
when the same command is given again with `--run.resume true`, or in short

    python train.py --config runs/rope/config.yaml --run.resume true

Started by torchrun, one run is spread over many processes, and computes the same: see harness/processes.py.

    torchrun --nproc_per_node=2 train.py --config configs/rope.yaml
"""

import hashlib
import math
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import data
from harness.curves import Curves
from harness.devices import (
    Autocast,
    pick_device,
    pick_precision,
    refuse_too_large,
    refuse_without_compiler,
    why_not_compiled,
)
from harness.folder import RunFolder, refuse_other_config, refuse_taken, verified
from harness.messages import BadInput, RunFailed, first_paragraph, run, silence
from harness.options import ConfigFile, Parser
from harness.processes import ALONE, World, assembled, begin, reducing, whole
from harness.provenance import shared_sha256, versions
from harness.runs import FinishedRun, read_metrics, weights_sha256
from harness.sampling import sample, trial
from harness.scoring import Score, score
from harness.signals import Signals
from harness.tasks import TaskCorpus, refuse_unknown_task
from harness.tuning import load_start, refuse_other_shape, refuse_other_tokenizer, start_from, tuned_name, under
from model import ModelConfig, Transformer
from positions import SCHEMES


@dataclass(frozen=True)
class RunConfig:
    """How a run trains, and where it leaves what it made.

    Args:
        out: the run folder; runs/<name> if not given.
        name: the run's name; the scheme's if not given.
        seed: of first values and of batches.
        steps: optimiser steps.
        batch_size: rows of one optimiser step, over all processes.
        micro_batch_size: rows that go through the model at once, in each process; if not given, on a CPU as many as
            hold 2,048 tokens, elsewhere all.
        learning_rate: AdamW's, at its height.
        embedding_rate: the embedding's rate, as a multiple of the others': a token's row learns only where it occurs.
        schedule: how the rate falls after the warm-up, linear or cosine.
        final_rate: what it falls to, a fraction of learning_rate.
        warmup: the part of all steps in which the rate climbs, a fraction.
        weight_decay: AdamW's, on matrices and tables alone.
        beta1: AdamW's, of the mean gradient.
        beta2: AdamW's, of the mean square.
        grad_clip: largest norm of the whole gradient.
        eval_every: steps between two looks at the validation split.
        eval_windows: windows of seq_len tokens a look takes, always the same; the last look takes the whole split.
        save_every: steps between two checkpoints; there is one too after every look that finds the lowest validation
            loss yet, and after the last step. Those kept are the last, the one before it and the best. One of the
            default run has 11 MB and took 0.2 seconds on a busy machine of two cores, and there are 20 at most.
        on_nan: what a step does whose loss or gradient is infinite or no number: stop the run, or skip, which leaves
            the weights as they were, counts the step and goes on.
        precision: fp32, bf16 (autocast) or auto, which is bf16 where the hardware has it natively.
        device: cuda, mps, cpu or auto, the first of them there is.
        threads: of PyTorch on the CPU, in each process; if not given, its own choice, or of several processes that
            torchrun started on one machine each has its part of the cores.
        compile: whether torch.compile makes the model faster; it needs a C++ compiler and takes a minute.
        shard: whether each of the processes that torchrun started keeps only its part of the weights and of the
            optimiser's state (FSDP2), not all of it (DDP). The first values are still drawn whole on each.
        wandb: Weights & Biases: offline, online or disabled.
        overwrite: whether a run that is already in the folder is replaced.
        resume: whether a run that is already in the folder goes on from its last whole checkpoint, from step 0 if there
            is none. A finished one is only verified. All options must be those it was begun with but out, name,
            micro_batch_size, eval_every, save_every, on_nan, device, threads, compile, shard, wandb, model.attention
            and data.cache, which change where it works and what it shows, and its result by rounding at most, as
            another number of processes does. More steps than planned are a new run: see init_from.
        init_from: the folder of a finished run to tune: training starts from its weights, with a fresh optimiser. Its
            sections data and model lie under files and flags, and so do these of its section run: seed, batch_size, a
            third of learning_rate, embedding_rate, schedule, final_rate, warmup, weight_decay, beta1, beta2,
            grad_clip, eval_windows and precision; the others (steps, name, device, ...) belong to that one run or to
            its machine.
            Length, rope options but layout, and attention may change, all else of the model must stay. If no original
            length is on record, the old run's length becomes it. The name, if not given, is the old one with the length
            and scaling after it, rope-1024-yarn say.
        extend_learned: how learned positions grow when a tuned run is longer: repeat (the old table again and again),
            interpolate (the old table stretched, straight lines between its vectors) or new (past the old table,
            vectors as at initialisation). Without it a longer run is refused; a shorter one cuts the table.
    """

    out: str | None = None
    name: str | None = None
    seed: int = 0
    steps: int = 2000
    batch_size: int = 4
    micro_batch_size: int | None = None
    learning_rate: float = 3e-3
    embedding_rate: float = 3.0
    schedule: Literal["linear", "cosine"] = "linear"
    final_rate: float = 0.0
    warmup: float = 0.1
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.98
    grad_clip: float = 1.0
    eval_every: int = 100
    eval_windows: int = 32
    save_every: int = 400
    on_nan: Literal["stop", "skip"] = "stop"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    threads: int | None = None
    compile: bool = False
    shard: bool = False
    wandb: Literal["offline", "online", "disabled"] = "offline"
    overwrite: bool = False
    resume: bool = False
    init_from: str | None = None
    extend_learned: Literal["repeat", "interpolate", "new"] | None = None

    def __post_init__(self) -> None:
        whole = ("steps", "batch_size", "micro_batch_size", "eval_every", "eval_windows", "save_every", "threads")
        for name in whole:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"run.{name} {getattr(self, name)} must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"run.seed {self.seed} must be at least 0 and below 2^63")
        if self.steps > 10**12:
            raise ValueError(f"run.steps {self.steps} must be at most 10^12")
        if self.threads is not None and self.threads > 1024:
            raise ValueError(f"run.threads {self.threads} must be at most 1024")
        if self.out == "":
            raise ValueError("run.out '' must name a folder")
        if self.resume and self.overwrite:
            raise ValueError("run.resume true and run.overwrite true: a run can go on or be replaced, choose one")
        if self.init_from == "":
            raise ValueError("run.init_from '' must name the folder of a finished run")
        if self.extend_learned and not self.init_from:
            raise ValueError(f"run.extend_learned {self.extend_learned} needs run.init_from, a run to extend")
        for name, most in (("learning_rate", math.inf), ("embedding_rate", 1000.0), ("grad_clip", math.inf)):
            if not 0 < getattr(self, name) <= most or getattr(self, name) == math.inf:
                limit = "finite" if most == math.inf else f"at most {most:g}"
                raise ValueError(f"run.{name} {getattr(self, name):g} must be above 0 and {limit}")
        for name in ("final_rate", "warmup", "beta1", "beta2"):
            if not 0 <= getattr(self, name) <= 1 or (name.startswith("beta") and getattr(self, name) == 1):
                below = ", 1 itself left out" if name.startswith("beta") else ""
                raise ValueError(f"run.{name} {getattr(self, name):.8g} must lie between 0 and 1{below}")
        if not 0 <= self.weight_decay <= 1000:
            raise ValueError(f"run.weight_decay {self.weight_decay:g} must be at least 0 and at most 1000")
        if self.batch_size % (self.micro_batch_size or 1):
            raise ValueError(
                f"run.micro_batch_size {self.micro_batch_size} does not divide run.batch_size {self.batch_size}: "
                "choose one that does, 1 say"
            )
        if self.name is not None and (self.name in ("", ".", "..") or "/" in self.name):
            raise ValueError(f"run.name {self.name!r} must be a plain name; --run.out takes a path")


def make_parser(prog: str, description: str) -> Parser:
    """A command line with every option of a run."""
    parser = Parser(prog=prog, description=description)
    parser.add_argument("--config", action=ConfigFile, help="a YAML file of values; may be given several times")
    parser.add_class_arguments(data.DataConfig, "data")
    parser.add_class_arguments(ModelConfig, "model")
    parser.add_class_arguments(RunConfig, "run")
    return parser


def parse(argv: list[str] | None, parser: Parser) -> tuple[Any, data.DataConfig, ModelConfig, RunConfig]:
    """What a command line asks for, checked: all of it, then its sections data, model and run, name and out filled in.

    Raises:
        BadInput: for whatever is wrong with it, by name.
    """
    given = explicit(argv, parser)
    folder = given.get("run.init_from")
    old = load_start(folder) if folder else None
    if old:
        parser.set_defaults(under(old, given, RunConfig))
    asked = parser.parse_args(argv)
    if old:  # before the sections are made, whose own complaints would hide what is wrong
        unset = {name: value for name, value in asdict(old.model_config).items() if asked.model[name] is None}
        refuse_other_shape(old, vars(asked.model) | unset)
        scheme = old.model_config.position
        factor = getattr(asked.model.get(scheme), "factor", None)
        if factor and asked.model.seq_len > old.model_config.seq_len and not given.get(f"model.{scheme}.factor"):
            text = f"--model.{scheme}.factor {factor:g} is the old run's, for {old.model_config.seq_len} tokens"
            warnings.warn(f"{text}, and --model.seq_len is {asked.model.seq_len}: give one", stacklevel=2)
    try:
        made = parser.instantiate(asked)
    except ValueError as error:
        raise BadInput(parser.explain(error)) from error
    name = made.run.name or (tuned_name(old, made.model) if old else made.model.position)
    return asked, made.data, made.model, replace(made.run, name=name, out=made.run.out or str(Path("runs") / name))


def explicit(argv: list[str] | None, parser: Parser) -> Any:
    """What files and flags give, without the defaults."""
    words = [word for word in (sys.argv[1:] if argv is None else argv) if not word.startswith("--print_config")]
    return parser.parse_args(words, defaults=False)


def with_vocabulary(config: ModelConfig, corpus: data.Corpus) -> ModelConfig:
    """The model's config with rows for every entry of the tokenizer.

    Raises:
        BadInput: if it asks for fewer.
    """
    if (config.vocab_size or corpus.vocab_size) < corpus.vocab_size:
        raise BadInput(
            f"--model.vocab_size {config.vocab_size} is below the tokenizer's {corpus.vocab_size} entries: leave it out"
        )
    return replace(config, vocab_size=config.vocab_size or corpus.vocab_size)


def make_optimizer(model: Transformer, config: RunConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW (1711.05101). Weight decay pulls on matrices and tables, not on the norms' gains.

    Each group carries `rate`, what the learning rate of a step is multiplied by for it.
    """
    embedding = model.embedding.weight
    rest = [p for p in model.parameters() if p is not embedding]
    groups = [
        {"params": [embedding], "weight_decay": config.weight_decay, "rate": config.embedding_rate},
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": config.weight_decay, "rate": 1.0},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0, "rate": 1.0},
    ]
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=fused)


def learning_rate(step: int, config: RunConfig) -> float:
    """The rate of step 0 .. steps - 1: a linear climb, then a line, or half a cosine, down to final_rate of the height.

    On short runs the line did better: 0.016 bits per byte after 1.3M tokens (results/NOTES.md).
    """
    climb = max(1, round(config.warmup * config.steps))
    if step < climb:
        return config.learning_rate * (step + 1) / climb
    done = (step - climb) / max(1, config.steps - climb)  # 0 .. 1
    left = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2  # 1 .. 0
    return config.learning_rate * (config.final_rate + (1 - config.final_rate) * left)


def gradients(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    rows: int,
    device: torch.device,
    autocast: Autocast,
    world: World = ALONE,
) -> float:
    """Add the gradient of the batch's mean loss, `rows` rows at a time, and return that loss, nats per scored target.

    Every part is divided by the scored targets of the whole batch, so the sum over parts, and over the processes that
    have parts of the batch, is the mean over targets.
    """
    scored, total = int((targets != -100).sum()), 0.0
    parts = world.parts(inputs, targets, rows)
    for i, part in enumerate(parts, 1):
        x, y = (each.to(device) for each in part)  # (rows, T) each
        with reducing(model, now=i == len(parts)):
            with autocast():
                logits = model(x)  # (rows, T, V)
                nats = F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), ignore_index=-100, reduction="sum")
                loss = nats / scored
            loss.backward()
        total += loss.item()
    return world.sum(total)[0]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train one model as the command line says, and return what its result.json says."""
    with begin() as world:
        parser = make_parser("train.py", first_paragraph(__doc__))
        _, data_config, model_config, config = world.together(parse, argv, parser)
        for name, scheme in SCHEMES.items():
            if scheme.Options and name != model_config.position and getattr(model_config, name) != scheme.Options():
                warnings.warn(
                    f"--model.{name}.* means nothing to --model.position {model_config.position}", stacklevel=2
                )
        return train(data_config, model_config, config, world)


@dataclass(frozen=True)
class Setup:
    """What a run works with."""

    config: RunConfig
    bare: Transformer
    model: nn.Module  # bare, or what trains it: compiled, or on many processes
    corpus: data.Corpus
    device: torch.device
    precision: str
    autocast: Autocast
    rows: int  # that go through the model at once
    world: World

    def rows_of(self, inputs: Tensor) -> int:
        """How many rows of a batch go through the model at once: more where a task's episodes are short."""
        return self.rows * max(1, len(inputs) // self.config.batch_size)

    def look(self, split: str, count: int | None = None) -> Score:
        """The score of a split in windows of the trained length. It draws nothing, so it cannot change training.

        Each process scores its rows of every batch of windows.
        """
        self.model.eval()
        # a sharded model as any function of tokens: a cache, which long windows would go through, cannot be sharded
        model = (lambda tokens: self.model(tokens)) if self.config.shard else self.model
        batches = self.corpus.windows(split, self.bare.config.seq_len, count)
        windows = (part for batch in batches for part in self.world.parts(*batch, rows=len(batch[0])))
        result = score(model, windows, self.corpus.token_bytes, self.device, self.autocast)
        self.model.train()
        nats, *counts = self.world.sum(result.nats, result.targets, result.bytes, result.right)
        return Score(nats, *map(int, counts))

    def rehearse(self, steps: int) -> float:
        """Seconds that steps will take, from one forward and backward pass, warmed up. Nothing of it stays."""
        inputs, targets = self.corpus.batch(0)  # (B, T) each
        rows = self.rows_of(inputs)
        inputs, targets = inputs[: rows * self.world.size], targets[: rows * self.world.size]
        for _ in range(2):
            began = time.perf_counter()
            gradients(self.model, inputs, targets, rows, self.device, self.autocast, self.world)
            seconds = time.perf_counter() - began
        self.model.zero_grad(set_to_none=True)
        return seconds * steps * max(1, self.config.batch_size / (self.rows * self.world.size))


def begun(configs: dict[str, Any], old: FinishedRun | None) -> dict[str, Any] | None:
    """What result.json says, if the run to resume is finished.

    Raises:
        BadInput: if the run folder is taken, or the run in it was begun otherwise.
    """
    config = configs["run"]
    if old and Path(config.out).resolve() == old.path.resolve():
        raise BadInput(f"--run.out {config.out} holds the run that --run.init_from starts from: name another folder")
    refuse_unknown_task(configs["data"].corpus)
    for outer in Path(config.out).absolute().parents:
        if (outer / "config.yaml").is_file() and (outer / "metrics.jsonl").is_file():
            raise BadInput(f"--run.out {config.out} lies inside another run, {outer}: name a folder outside of it")
    refuse_taken(Path(config.out), config.overwrite, config.resume)
    if not config.resume:
        return None
    refuse_other_config(Path(config.out), configs)
    return verified(Path(config.out))


def prepare(
    data_config: data.DataConfig, model_config: ModelConfig, config: RunConfig, old: FinishedRun | None, world: World
) -> Setup:
    """All that a run works with, on one of its processes.

    Raises:
        BadInput: for what cannot be done.
    """
    if config.batch_size < world.size:
        raise BadInput(
            f"--run.batch_size {config.batch_size} is below the {world.size} processes, and each needs a row: raise "
            "it, or start fewer"
        )
    if threads := world.threads(config.threads):
        torch.set_num_threads(threads)
    device = world.own(pick_device(config.device))
    if config.compile:
        refuse_without_compiler("--run.compile", device)
    precision, autocast = pick_precision(config.precision, device)
    corpus = data.load(data_config, config.seed, config.batch_size, model_config.seq_len)
    if old:
        refuse_other_tokenizer(old, corpus.tokenizer)
    model_config = with_vocabulary(model_config, corpus)
    fitting = max(1, 2048 // model_config.seq_len) if device.type == "cpu" else config.batch_size
    rows = config.micro_batch_size or min(fitting, config.batch_size)
    refuse_too_large(model_config, config.batch_size, rows, device, world.size if config.shard else 1)
    bare = Transformer(model_config, config.seed)
    if old:
        start_from(old, bare, config.extend_learned)
    bare.to(device)
    return Setup(config, bare, bare, corpus, device, precision, autocast, rows, world)


def train(
    data_config: data.DataConfig, model_config: ModelConfig, config: RunConfig, world: World = ALONE
) -> dict[str, Any]:
    """Train one model into its run folder, and return what its result.json says.

    Raises:
        BadInput: for what cannot be done; nothing is written then.
        RunFailed: when the loss is no longer finite, or memory or space runs out; checkpoints and what was logged stay.
        KeyboardInterrupt, SystemExit: when the run was told to stop; it has finished its step and saved.
    """
    configs = {"data": data_config, "model": model_config, "run": config}
    old = world.together(load_start, config.init_from) if config.init_from else None
    if result := world.lead(begun, configs, old):
        return result
    setup = world.together(prepare, data_config, model_config, config, old, world)
    bare, corpus = setup.bare, setup.corpus
    configs["model"] = bare.config  # which knows the vocabulary
    facts = {"data_sha256": corpus.sha256, "precision": setup.precision, "shared_init_sha256": shared_sha256(bare)}
    given = {f"--{part}.{name}": value for part, each in configs.items() for name, value in asdict(each).items()}
    world.refuse_unlike({**given, **facts})
    setup = replace(setup, model=world.spread(bare, setup.device, config.shard, config.compile))
    folder = RunFolder(Path(config.out), configs, config.overwrite, config.resume, facts, world)
    state = {"step": 0, "steps": config.steps, "skipped": 0, "batches_sha256": "", "seconds": 0.0, "looked": 0.0}
    state |= facts
    if old:
        state |= {"init_from": str(old.path), "init_from_sha256": weights_sha256(old.path)}
    if folder.last:
        state |= folder.last.state
    curves, status, signals = None, "failed", Signals()
    try:
        folder.result("running", **state, **ranks(setup))
        print(plan(setup, state), flush=True)
        everything = {name: asdict(part) for name, part in configs.items()}
        curves = Curves(
            config.wandb if world.leads else "disabled", folder.path, config.name, everything, state.get("wandb_id")
        )
        state["wandb_id"] = curves.run_id
        outcome = fit(setup, folder, curves, signals, state)
        setup = replace(setup, bare=assembled(bare))
        outcome["weights_sha256"] = world.lead(folder.save, setup.bare, corpus.tokenizer)
        folder.result("finished", **outcome)
        status = "finished"
    except BaseException as error:
        saved = f"the last whole checkpoint is of step {folder.saved}" if folder.saved else "there is no checkpoint yet"
        if isinstance(error, KeyboardInterrupt | SystemExit):
            status = "interrupted"
            how_far = f"{status} at step {state['step']} of {config.steps}; {saved}: go on with --run.resume true"
            tqdm.write(how_far, file=sys.stderr)
        with suppress(OSError):  # a full disk is said once, below
            folder.result(status, **state, why=" ".join(str(error).split()) or status)
        out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if out_of_memory:  # the CPU's has no class of its own
            shape = ", ".join(
                f"--model.{name} {getattr(bare.config, name)}" for name in ("seq_len", "d_model", "n_layer")
            )
            raise RunFailed(
                f"out of memory with {setup.rows} rows at once: try a smaller --run.micro_batch_size with "
                f"--run.resume true ({saved}), or a smaller model: {shape}"
            ) from error
        if why := why_not_compiled(error):
            raise RunFailed(f"{why}; {saved}: go on with --run.resume true and --run.compile false") from error
        if isinstance(error, BrokenPipeError):
            silence()
            why = "whoever read the output has closed it: send it to a file, with > FILE"
            raise RunFailed(f"{why}; {saved}: go on with --run.resume true") from error
        if isinstance(error, OSError):
            raise RunFailed(f"{error.strerror or error}: {error.filename or 'the disk'}; {saved}") from error
        raise
    finally:
        if curves is not None:
            curves.finish(exit_code=int(status != "finished"))
        folder.close()
        signals.let_go()
    if world.leads:
        print(closing(setup, outcome), flush=True)
    return {"status": status, **outcome}


def fit(setup: Setup, folder: RunFolder, curves: Curves, signals: Signals, state: dict[str, Any]) -> dict[str, Any]:
    """The optimiser loop, and what came out of it. How far it got stands in state all along, and in every checkpoint.

    Raises:
        RunFailed: at the step whose loss or gradient is no longer finite; its weights are not updated.
        KeyboardInterrupt, SystemExit: after the step, and its checkpoint, in which the run was told to stop.
    """
    config, corpus, bare, world = setup.config, setup.corpus, setup.bare, setup.world
    optimizer = make_optimizer(bare, config, setup.device)
    if folder.last:
        folder.last.restore(bare, optimizer)
        folder.last = None  # its memory is needed
    start = time.perf_counter() - state["seconds"]

    def log(split: str, **values: float) -> None:
        folder.log(state["step"], split, **values)
        curves.log(state["step"], split, **values)

    steps = range(state["step"], config.steps)
    bar = tqdm(steps, config.name, initial=state["step"], total=config.steps, unit="step", disable=None)
    signals.between_steps = True
    for step in bar:
        began = time.perf_counter()
        rate = learning_rate(step, config)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        inputs, targets = corpus.batch(step)  # (B, T) each
        loss = gradients(setup.model, inputs, targets, setup.rows_of(inputs), setup.device, setup.autocast, world)
        norm = whole(nn.utils.get_total_norm([p.grad for p in bare.parameters() if p.grad is not None]))
        nn.utils.clip_grads_with_norm_(bare.parameters(), config.grad_clip, norm)
        norm = float(norm)
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            optimizer.step()
        elif config.on_nan == "stop":
            folder.log(step + 1, "train", loss=loss, grad_norm=norm)
            world.end(RunFailed(not_finite(loss, norm, step, config, folder)))
        else:
            state["skipped"] += 1
            tqdm.write(f"  step {step + 1:>5}  skipped: the loss is {loss:g} and the gradient's norm {norm:g}")
        optimizer.zero_grad(set_to_none=True)
        now = time.perf_counter()
        state |= {"step": step + 1, "seconds": now - start}
        state["batches_sha256"] = batch_sha256(bytes.fromhex(state["batches_sha256"]), inputs, targets).hex()

        scored = targets[targets != -100]  # (N,)
        log(
            "train",
            loss=loss,
            bits_per_byte=Score(loss * len(scored), len(scored), int(corpus.token_bytes[scored].sum())).bits_per_byte,
            learning_rate=rate,
            grad_norm=norm,
            tokens_per_second=inputs.numel() / (now - began),
            seconds=now - start,
            **({} if finite else {"skipped": state["skipped"]}),
        )
        bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        last, best = step + 1 == config.steps, False
        if (step + 1) % config.eval_every == 0 or last:
            val = setup.look("validation", config.eval_windows)
            state["looked"] += time.perf_counter() - now
            state["seconds"] = time.perf_counter() - start
            log("val", loss=val.loss, bits_per_byte=val.bits_per_byte, seconds=state["seconds"])
            tqdm.write(
                f"  step {step + 1:>5}  validation loss {val.loss:.4f}, {beside(val.bits_per_byte, val.accuracy)}"
            )
            if best := val.loss < state.get("best", {"loss": math.inf})["loss"]:
                state["best"] = {"step": step + 1, "loss": val.loss}
        stop, save = world.heard(signals)
        if best or last or save or stop or (step + 1) % config.save_every == 0:
            signals.save = False
            folder.checkpoint(bare, optimizer, state)
        signals.leave(stop)
    signals.between_steps = False
    signals.leave(world.heard(signals)[0])

    seconds = time.perf_counter() - start
    val, test = setup.look("validation"), setup.look("test")
    if not math.isfinite(val.loss):
        why = f"the validation loss is {val.loss:g} after the last step, {state['skipped']} steps were skipped"
        world.end(RunFailed(why))
    return {
        **state,
        **ranks(setup),
        "parameters": sum(p.numel() for p in bare.parameters()),
        "position_parameters": sum(p.numel() for p in bare.position.parameters()),
        "val_loss": val.loss,
        "bits_per_byte": val.bits_per_byte,
        **({"val_accuracy": val.accuracy} if isinstance(corpus, TaskCorpus) else {}),
        "test_loss": test.loss,
        "test_bits_per_byte": test.bits_per_byte,
        "seconds": seconds,
        "tokens_per_second": config.steps * config.batch_size * bare.config.seq_len / (seconds - state["looked"]),
        "device": setup.device.type,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def not_finite(loss: float, norm: float, step: int, config: RunConfig, folder: RunFolder) -> str:
    """What to say of a step whose loss or gradient is not finite: what came before, and what may have led to it."""
    before = [event["loss"] for event in read_metrics(folder.path) if event["split"] == "train"][-6:-1]
    history = ", ".join("none" if value is None else f"{value:.4g}" for value in before) or "none, it is the first"
    return (
        f"the loss is {loss:g} and the gradient's norm {norm:g} at step {step + 1} of {config.steps}, after losses of "
        f"{history}. Likely causes: a rate that is too high (try a lower --run.learning_rate than "
        f"{config.learning_rate:g}, or a longer --run.warmup), numbers that bf16 is too coarse for (--run.precision "
        f"fp32), or a text that is odd there (--run.on_nan skip passes over it). "
        + (f"The last whole checkpoint is of step {folder.saved}" if folder.saved else "There is no checkpoint yet")
        + f"; what was logged is in {config.out}"
    )


def batch_sha256(before: bytes, inputs: Tensor, targets: Tensor) -> bytes:
    """A link of the chain of hashes over all batches so far: two runs whose chains end alike read the same batches."""
    return hashlib.sha256(before + inputs.numpy().tobytes() + targets.numpy().tobytes()).digest()


def beside(bits_per_byte: float, accuracy: float | None) -> str:
    """What stands beside a loss on the screen: bits per byte, and for tasks, where bytes mean nothing, accuracy."""
    return f"{accuracy:.3f} of the tokens right" if math.isnan(bits_per_byte) else f"{bits_per_byte:.4f} bits per byte"


def ranks(setup: Setup) -> dict[str, Any]:
    """What result.json says of the processes of a run that has several: how many, and whose rows of a batch are whose.

    Rows are counted from 0, from the first up to the one before the second number.
    """
    if setup.world.size == 1:
        return {}
    return {"processes": setup.world.size, "rows_by_rank": setup.world.shares(setup.config.batch_size)}


def plan(setup: Setup, state: dict[str, Any]) -> str:
    """What the run is about to do, for the screen."""
    config, shape, corpus = setup.config, setup.bare.config, setup.corpus
    parameters, own = (sum(p.numel() for p in part.parameters()) for part in (setup.bare, setup.bare.position))
    tokens = config.steps * config.batch_size * shape.seq_len
    first, shared = batch_sha256(b"", *corpus.batch(0)).hex(), state["shared_init_sha256"]
    minutes, rest = divmod(round(setup.rehearse(config.steps - state["step"])), 60)
    epochs = tokens / len(corpus.tokens("train"))
    shares = "; ".join(
        f"{rank}: rows {a} to {b - 1}" for rank, (a, b) in enumerate(setup.world.shares(config.batch_size))
    )
    lines = [
        f"{config.name} -> {config.out}" + (f", from the weights of {config.init_from}" if config.init_from else ""),
        f"model    {shape.position}: {parameters:,} parameters, {own:,} of them the scheme's; {shape.n_layer} layers, "
        f"{shape.d_model} wide, {shape.n_head} heads, length {shape.seq_len}",
        f"data     {corpus.describe()}",
        f"training {config.steps} steps of {config.batch_size} x {shape.seq_len} are {tokens / 1e6:.2f}M tokens, "
        + ("no episode twice" if isinstance(corpus, TaskCorpus) else f"{epochs:.1f} epochs")
        + f"; rate {config.learning_rate:g}, seed {config.seed}",
        f"machine  {setup.device.type}, {torch.get_num_threads()} threads, {setup.precision}"
        + (", compiled" if config.compile else "")
        + (", sharded" if config.shard else ""),
        *([f"ranks    {shares}"] if setup.world.size > 1 else []),
        f"hashes   shared first weights {shared[:12]}, first batch {first[:12]}, data {corpus.sha256[:12]}",
        f"time     about {minutes} min {rest} s of training",
    ]
    return "\n  ".join(lines)


def closing(setup: Setup, outcome: dict[str, Any]) -> str:
    """What came out, for the screen: the figures, some sampled text, the next command."""
    config, corpus, room = setup.config, setup.corpus, setup.bare.config.seq_len
    skipped = f", {outcome['skipped']} step{'s' * (outcome['skipped'] > 1)} skipped" if outcome["skipped"] else ""
    figures = (
        f"\n{config.name}: validation loss {outcome['val_loss']:.4f} "
        f"({beside(outcome['bits_per_byte'], outcome.get('val_accuracy'))}), "
        f"test loss {outcome['test_loss']:.4f}, {outcome['seconds']:.0f} s, "
        f"{outcome['tokens_per_second']:,.0f} tokens a second{skipped}\n"
    )
    if isinstance(corpus, TaskCorpus):
        tried = "\n".join(trial(setup.bare.eval(), corpus, task, config.seed) for task in corpus.tasks)
        return f"{figures}\n{tried}\n\nNext: python evaluate.py {config.out}"
    opening = " ".join(corpus.decode(corpus.tokens("validation")[:64].tolist()).split()[1:7])  # the first may be cut
    prompt = corpus.encode(opening)[: max(1, room // 2)] or [corpus.end_of_text]
    drawn = sample(setup.bare.eval(), prompt, min(80, max(1, room // 2)), temperature=0.8, seed=config.seed)
    text = corpus.decode([*prompt, *takewhile(lambda token: token != corpus.end_of_text, drawn)])
    lists = Path(config.out) / "longrope.yaml"
    learned = f"\nLearned factors, as longrope's lists: {lists}" if lists.exists() else ""
    return (
        f"{figures}\nA sample, going on from {corpus.decode(prompt)!r}:\n{text}\n{learned}\n"
        f'Next: python generate.py {config.out} --prompt "In the beginning" --tokens 200'
    )


if __name__ == "__main__":
    run(main)
