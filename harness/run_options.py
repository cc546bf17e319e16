"""What a training run can be told about where it lives and how, and how a command line becomes its three configs.

python train.py --help run
"""

import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from data import Corpus, DataConfig
from harness.messages import BadInput
from harness.options import ConfigFile, Parser, is_decoded
from harness.plugins import load_plugins
from harness.ranges import STRICT, Above0, AtLeast1, Seed, Share
from harness.tuning import defaults_from, load_start, name_tuned_run, refuse_other_shape
from model import ModelConfig
from positions import SCHEMES

NAME_BYTES = 255  # of a file's or folder's name, on all common file systems
ESSENTIAL = {  # what `--help` shows
    *("data.corpus", "data.tokenizer", "data.vocab_size", "model.position", "model.d_model", "model.n_layer"),
    *("model.n_head", "model.seq_len", "model.rope.scaling", "model.rope.factor", "run.out", "run.name", "run.seed"),
    *("run.steps", "run.batch_size", "run.learning_rate", "run.eval_every", "run.precision", "run.device"),
    *("run.threads", "run.compile", "run.wandb", "run.overwrite", "run.resume", "run.init_from"),
}


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """Where a run lives, what it shows, on what it computes and how it trains.

    Args:
        out: the run folder; runs/<name> if not given.
        name: the run's name; the scheme's if not given.
        eval_every: steps between two evaluations on the validation split.
        eval_windows: windows of seq_len tokens that an evaluation takes, always the same; the last one takes the whole
            split.
        save_every: steps between two checkpoints. There is one too after every evaluation that finds the lowest
            validation loss yet, and after the last step. The last, the one before it and the best are kept.
        on_nan: what happens at a step whose loss or gradient is infinite or not a number: stop ends the run, skip
            leaves the weights as they were, counts the step and goes on.
        precision: fp32, bf16 (autocast) or auto, which is bf16 where the hardware has it natively.
        device: cuda, mps, cpu or auto, the first of them that is available.
        threads: how many threads PyTorch uses on the CPU, in each process. If not given, PyTorch chooses; processes
            that torchrun started on one machine share its cores.
        compile: whether torch.compile makes the model faster; it needs a C++ compiler and takes a minute.
        shard: whether each of the processes that torchrun started keeps only its part of the weights and of the
            optimiser's state (FSDP2), not all of it (DDP). The first values are still drawn whole on each.
        wandb: Weights & Biases: offline, online or disabled.
        overwrite: whether a run that is already in the folder is replaced.
        resume: whether a run that is already in the folder goes on from its last whole checkpoint, from step 0 if there
            is none. A finished run is only verified. All options must be those it began with, except those that change
            where it computes and what it shows, and its result by rounding at most (docs/running.md lists them). More
            steps than planned are a new run: see init_from.
        init_from: the folder of a finished run to tune: training starts from its weights, with a fresh optimiser. Its
            sections data and model become the defaults, below config files and flags, and of its section run seed,
            batch_size, eval_windows, precision and what AdamW and the schedule take, with a third of learning_rate.
            The length, the scheme's own options but a layout, and attention may change; the rest of the model must
            not. If no original length is on record, the old run's length becomes it. The name, if not given, is the old
            one with the length and scaling appended, rope-1024-yarn for example.
        extend_learned: how a learned table grows when a tuned run is longer: repeat (the old table again and again) or
            interpolate (the old table stretched, straight lines between its vectors). Without it a longer run is
            refused; a shorter one cuts the table.
        seed: seed of the initial weights and of the batches.
        steps: optimiser steps.
        batch_size: rows of one optimiser step, over all processes.
        micro_batch_size: rows that go through the model at once, in each process; if not given, on a CPU as many as
            hold 2,048 tokens, elsewhere all.
        learning_rate: AdamW's learning rate after the warm-up.
        embedding_rate: the learning rate of the embedding, as a multiple of learning_rate.
        schedule: how the rate falls after the warm-up, linear or cosine.
        final_rate: what it falls to, a fraction of learning_rate.
        warmup: the fraction of all steps in which the rate climbs.
        weight_decay: AdamW's weight decay, on matrices and tables alone.
        beta1: AdamW's decay rate of the mean gradient.
        beta2: AdamW's decay rate of the mean squared gradient.
        grad_clip: the largest norm that the whole gradient may have.
    """

    out: str | None = None
    name: str | None = None
    eval_every: AtLeast1 = 100
    eval_windows: AtLeast1 = 32
    save_every: AtLeast1 = 400
    on_nan: Literal["stop", "skip"] = "stop"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    threads: Annotated[int | None, Field(ge=1, le=1024)] = None
    compile: bool = False
    shard: bool = False
    wandb: Literal["offline", "online", "disabled"] = "offline"
    overwrite: bool = False
    resume: bool = False
    init_from: str | None = None
    extend_learned: Literal["repeat", "interpolate"] | None = None
    seed: Seed = 0
    steps: AtLeast1 = 2000
    batch_size: AtLeast1 = 4
    micro_batch_size: AtLeast1 | None = None
    learning_rate: Above0 = 3e-3
    embedding_rate: Annotated[float, Field(gt=0, le=1000)] = 3.0
    schedule: Literal["linear", "cosine"] = "linear"
    final_rate: Share = 0.0
    warmup: Share = 0.1
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 0.1
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.98
    grad_clip: Above0 = 1.0

    def __post_init__(self) -> None:
        if self.out == "":
            raise ValueError("run.out '' must name a folder")
        if self.name is not None and (self.name in ("", ".", "..") or "/" in self.name):
            raise ValueError(f"run.name {self.name!r} must be a plain name; --run.out takes a path")
        for option, path in (("name", self.name), ("out", self.out)):  # else the folders above it would be made first
            for name in Path(path or "").parts:
                if (n := len(name.encode(errors="replace"))) > NAME_BYTES:
                    raise ValueError(f"run.{option} {name!r} has {n} bytes: a name has {NAME_BYTES} at most")
        if self.resume and self.overwrite:
            raise ValueError("run.resume true and run.overwrite true: a run can go on or be replaced, choose one")
        if self.extend_learned and not self.init_from:
            raise ValueError(f"run.extend_learned {self.extend_learned} needs run.init_from, a run to extend")
        if self.batch_size % (self.micro_batch_size or 1):
            wrong = f"run.micro_batch_size {self.micro_batch_size} does not divide run.batch_size {self.batch_size}"
            raise ValueError(f"{wrong}: choose one that does, 1 for example")


def make_run_parser(prog: str, description: str) -> Parser:
    """A command line with every option of a run."""
    parser = Parser(prog=prog, description=description, essential=ESSENTIAL)
    parser.add_argument("--config", action=ConfigFile, help="a YAML file of values; may be given several times")
    what = "experiments.NAME, a module of this tree that adds a scheme or a task; may be given several times"
    parser.add_argument("--plugin", action="extend", nargs="+", type=str, help=what)
    parser.add_class_arguments(DataConfig, "data")
    parser.add_class_arguments(ModelConfig, "model")
    parser.add_class_arguments(RunConfig, "run")
    return parser


def parse_run(
    argv: list[str] | None, parser: Parser, schemes: list[str] | None = None
) -> tuple[Any, DataConfig, ModelConfig, RunConfig]:
    """What a command line asks for, checked: all of it, then its sections data, model and run, name and out filled in.

    Args:
        argv: the command line's words.
        parser: from make_run_parser.
        schemes: those that the options are for, if not model.position alone.

    Raises:
        BadInput: for whatever is wrong with it, by name.
    """
    given = parse_explicit(argv, parser)
    load_plugins(given.get("plugin"))
    folder = given.get("run.init_from")
    old = None if folder is None else load_start(folder)
    if old:
        parser.set_defaults(defaults_from(old, given, parser.sections["run"]))
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
        name = made.run.name or (name_tuned_run(old, made.model) if old else made.model.position)
        run = replace(made.run, name=name, out=made.run.out or str(Path("runs") / name))
    except ValueError as error:
        raise BadInput(parser.explain(error)) from error
    refuse_undecodable({"data": made.data, "model": made.model, "run": run})
    for name, scheme in SCHEMES.items():
        used = schemes or [made.model.position]
        if scheme.Options and name not in used and getattr(made.model, name) != scheme.Options():
            warnings.warn(f"--model.{name}.* has no effect on {', '.join(used)}", stacklevel=2)
    return asked, made.data, made.model, run


def refuse_undecodable(sections: dict[str, Any]) -> None:
    """Raise BadInput for a text that is not UTF-8, a path say: config.yaml could not be read again."""
    for section, options in sections.items():
        for name, value in vars(options).items():
            if isinstance(value, str) and not is_decoded(value):
                raise BadInput(f"--{section}.{name} {value!r} is not UTF-8: name another")


def parse_explicit(argv: list[str] | None, parser: Parser) -> Any:
    """What files and flags give, without the defaults."""
    words = [word for word in (sys.argv[1:] if argv is None else argv) if not word.startswith("--print_config")]
    return parser.parse_args(words, defaults=False)


def fit_vocabulary(config: ModelConfig, corpus: Corpus) -> ModelConfig:
    """The model's config with a row for every entry of the tokenizer.

    Raises:
        BadInput: if it asks for fewer rows.
    """
    if (config.vocab_size or corpus.vocab_size) < corpus.vocab_size:
        raise BadInput(
            f"--model.vocab_size {config.vocab_size} is below the tokenizer's {corpus.vocab_size} entries: leave it out"
        )
    return replace(config, vocab_size=config.vocab_size or corpus.vocab_size)
