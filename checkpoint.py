"""A run folder: what a run leaves behind, each file whole or not there at all.

runs/<name>/config.yaml         what was asked, complete
           /metrics.jsonl       one line an event: step, split, loss, bits_per_byte, ...
           /model.safetensors   weights after the last step, no metadata: its hash is the run's identity
           /tokenizer.json      readable by the tokenizers library
           /longrope.yaml       learned factors (rope.learn_factors) as longrope's lists, a file for --config
           /result.json         how far it got: status (running, finished, interrupted, failed), steps done, results
           /lengths.json        loss by length of context, where compare.py measured it
           /accuracy.json       accuracy by task, length and place, where compare.py measured a run on tasks
           /evaluate.png        the same as a picture for the scalings that evaluate.py was last asked for
           /wandb/              the same curves, offline unless asked otherwise
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml
from safetensors.torch import load_file, save
from tokenizers import Tokenizer

from cli import BadInput
from data import DataConfig, load_tokenizer
from model import ModelConfig, Transformer
from positions import extend_table
from rope import RopeConfig

FILES = (
    *("config.yaml", "metrics.jsonl", "model.safetensors", "tokenizer.json", "result.json", "lengths.json"),
    *("longrope.yaml", "accuracy.json", "evaluate.png", "wandb"),
)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that whoever looks sees the old one or the new one, never a part: write aside, flush, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class RunFolder:
    """The folder of a run that is being trained.

    Args:
        path: where it will be.
        configs: the sections data, model and run, as dataclasses.
        overwrite: whether a run that is already there may be replaced.

    Raises:
        BadInput: if another run is there, or the folder cannot be made.
    """

    def __init__(self, path: Path, configs: dict[str, Any], overwrite: bool) -> None:
        self.path = path
        refuse_taken(path, overwrite)
        try:
            path.mkdir(parents=True, exist_ok=True)
            for name in FILES:  # only what a run leaves behind: anything else in the folder is the user's
                old = path / name
                shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink(missing_ok=True)
            sections = {name: asdict(config) for name, config in configs.items()}
            write_whole(path / "config.yaml", yaml.safe_dump(sections, sort_keys=False))
            self.metrics: TextIO = open(path / "metrics.jsonl", "w", encoding="utf-8", buffering=1)  # noqa: SIM115
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            raise BadInput(f"--run.out {path} cannot be written ({error.strerror}): name a folder that can") from error

    def log(self, step: int, split: str, **values: float) -> None:
        """Add one event to metrics.jsonl. A value that is no finite number becomes null: JSON has no NaN."""
        values = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.metrics.write(json.dumps({"step": step, "split": split, **values}) + "\n")

    def result(self, status: str, **values: Any) -> None:
        """Say how far the run got: running, finished, interrupted or failed. What is no number becomes null."""
        values = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}
        write_whole(self.path / "result.json", json.dumps({"status": status, **values}, indent=2) + "\n")

    def save(self, model: Transformer, tokenizer: Tokenizer) -> None:
        """Write the weights and the tokenizer, and what rope's factors came to where they were learned."""
        write_whole(self.path / "tokenizer.json", tokenizer.to_str(pretty=True))
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        if model.config.position == "rope" and model.config.rope.learn_factors:
            rope = asdict(model.position.as_longrope(model.config.seq_len))
            rope = {name: value for name, value in rope.items() if value is not None}
            write_whole(self.path / "longrope.yaml", yaml.safe_dump({"model": {"rope": rope}}, sort_keys=False))
        write_whole(self.path / "model.safetensors", save(weights))


def refuse_taken(path: Path, overwrite: bool) -> None:
    """Raise BadInput if a run, or something that is no run, stands where a new run should go."""
    if path.exists() and not path.is_dir():
        raise BadInput(f"--run.out {path} is a file: name a folder")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not (path / "config.yaml").exists():
        raise BadInput(f"--run.out {path} is a folder with other things in it: name a new one")
    if not overwrite:
        result = read_result(path)
        state = result.get("status", "unfinished")
        how_far = f" at step {result['step']} of {result['steps']}" if {"step", "steps"} <= result.keys() else ""
        raise BadInput(
            f"--run.out {path} already holds a run ({state}{how_far}): choose another --run.name, "
            f"or replace it with --run.overwrite true"
        )


def read_result(path: Path) -> dict[str, Any]:
    """What a run's result.json says; empty if it has none or it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads((path / "result.json").read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def read_metrics(path: Path, tail: int | None = None) -> Iterator[dict[str, Any]]:
    """The events of a run's metrics.jsonl, a half-written last line left out.

    Args:
        path: the run folder.
        tail: only those in this many bytes at its end.
    """
    with contextlib.suppress(FileNotFoundError), open(path / "metrics.jsonl", encoding="utf-8") as file:
        if tail is not None and (size := os.fstat(file.fileno()).st_size) > tail:
            file.seek(size - tail)
            file.readline()  # the line that was cut
        for line in file:
            with contextlib.suppress(ValueError):
                yield json.loads(line)


@dataclass
class Run:
    """A finished run, loaded: its configs, its model in evaluation mode, its tokenizer."""

    path: Path
    data: DataConfig
    model_config: ModelConfig
    settings: dict[str, Any]  # the section run of config.yaml
    model: Transformer
    tokenizer: Tokenizer


def load_run(path: str | Path, device: str = "cpu") -> Run:
    """Load a finished run from its folder.

    Raises:
        BadInput: if the folder is no run, or one that is not finished, or one that is damaged.
    """
    path = Path(path)
    if not (path / "config.yaml").is_file():
        raise BadInput(
            f"{path} is not a run folder (it has no config.yaml): name one that train.py made, runs/rope say"
        )
    if not (path / "model.safetensors").is_file():
        result = read_result(path)
        raise BadInput(
            f"{path} has no weights: its run is {result.get('status', 'unfinished')} at step {result.get('step', 0)} "
            f"of {result.get('steps', 'an unknown number')}; train it again with --run.overwrite true"
        )
    file = "config.yaml"
    try:
        sections = yaml.safe_load((path / file).read_text(encoding="utf-8"))
        rope = RopeConfig(**sections["model"].pop("rope"))
        config = ModelConfig(**sections["model"], rope=rope)
        data, settings = DataConfig(**sections["data"]), dict(sections["run"])
        file = "tokenizer.json"
        tokenizer = load_tokenizer(path / file)
        file = "model.safetensors"
        model = Transformer(config)
        model.load_state_dict(load_file(path / file))
    except Exception as error:  # each library has errors of its own, and all of them mean the same here
        raise BadInput(f"{path / file} is damaged: {' '.join(str(error).split())[:200]}") from error
    return Run(path, data, config, settings, model.to(device).eval(), tokenizer)


def load_start(path: str | Path) -> Run:
    """Load the run that another one is to start from.

    Raises:
        BadInput: as `load_run`, naming the flag.
    """
    try:
        return load_run(path)
    except BadInput as error:
        raise BadInput(f"--run.init_from {error}") from error


MAY_CHANGE = {"seq_len", "rope", "attention", "init_std"}  # in a run that starts from another's weights


def weights_sha256(path: Path) -> str:
    """The hash of a run's weights, its identity."""
    return hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()


def refuse_other_shape(old: Run, model: dict[str, Any]) -> None:
    """Raise BadInput if a finished run's weights do not fit a section model, or were trained to mean something else."""
    before = asdict(old.model_config)
    kept = [(name, was, model[name]) for name, was in before.items() if name not in MAY_CHANGE]
    if before["position"] == "rope":
        kept.append(("rope.layout", before["rope"]["layout"], model["rope"]["layout"]))
    for name, was, now in kept:
        if was != now:
            raise BadInput(
                f"--model.{name} {now} does not fit the weights of --run.init_from {old.path}, which were trained with "
                f"{was}: leave it out"
            )


def refuse_other_tokenizer(old: Run, tokenizer: Tokenizer) -> None:
    """Raise BadInput if a text was prepared with another tokenizer than a finished run's: its tokens mean others."""
    if tokenizer.to_str() != old.tokenizer.to_str():
        ours, theirs = (each.get_vocab_size() for each in (tokenizer, old.tokenizer))
        raise BadInput(
            f"--data.tokenizer gives another tokenizer ({ours} entries) than --run.init_from {old.path} was trained "
            f"with ({theirs}): use --data.tokenizer {old.path / 'tokenizer.json'}"
        )


def start_from(old: Run, model: Transformer, extend_learned: str | None) -> None:
    """Put a finished run's weights into a new model, whose length and rotation may be others.

    Args:
        old: the finished run.
        model: the new one, at its first values.
        extend_learned: how learned positions grow: see `positions.extend_table`.

    Raises:
        BadInput: where the weights would not fit, or would mean something else.
    """
    here = f"--run.init_from {old.path}"
    refuse_other_shape(old, asdict(model.config))
    weights, scheme = old.model.state_dict(), model.config.position
    if extend_learned and scheme != "learned":
        raise BadInput(f"--run.extend_learned {extend_learned} means nothing to {here}, whose scheme is {scheme}")
    if scheme == "learned":
        table, fresh = weights["position.table"], model.position.table.detach()
        if len(fresh) > len(table) and not extend_learned:
            raise BadInput(
                f"--model.seq_len {len(fresh)} is longer than the learned positions of {here}, which end at "
                f"{len(table)}: say how they grow, --run.extend_learned repeat, interpolate or new"
            )
        weights["position.table"] = extend_table(table, fresh, extend_learned)
    if scheme == "rope":
        learned = weights.pop("position.log_factor", None)
        if model.position.log_factor is not None:
            mine = model.position.log_factor.detach()
            learned = mine if learned is None else learned
            if len(learned) != len(mine):
                raise BadInput(
                    f"--model.rope.fraction {model.config.rope.fraction:g} rotates {len(mine)} pairs, and {here} has "
                    f"learned factors for {len(learned)}: leave it out"
                )
            weights["position.log_factor"] = learned
        elif learned is not None and model.config.rope.scaling != "longrope":
            raise BadInput(
                f"--model.rope.learn_factors false would drop the factors that {here} has learned: leave it out, or "
                f"take them as lists, --config {old.path / 'longrope.yaml'}"
            )
    model.load_state_dict(weights)


class Curves:
    """Curves for Weights & Biases, which never end a run: after the first failure they say so once and fall silent.

    Args:
        mode: offline (files under the run folder), online or disabled.
        folder: the run folder.
        name: the run's name.
        config: everything that was asked, for W&B's table.
    """

    def __init__(self, mode: str, folder: Path, name: str, config: dict[str, Any]) -> None:
        self.run = None
        if mode == "disabled":
            return
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # no reports of crashes to anyone
        with self.surviving("start"):
            import wandb

            # W&B's own process is slow to start on a busy machine: half a minute, its default, was not always enough
            settings = wandb.Settings(silent=True, console="off", init_timeout=60, x_service_wait=120)
            self.run = wandb.init(
                project="minroformer",
                name=name,
                dir=folder,
                mode=mode,
                config=config,
                settings=settings,
                reinit="create_new",
            )

    @contextlib.contextmanager
    def surviving(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.run = None
            print(
                f"W&B could not {what} ({' '.join(str(error).split())[:200]}); training goes on without it",
                file=sys.stderr,
            )

    def log(self, step: int, split: str, **values: float) -> None:
        if self.run is not None:
            with self.surviving("log"):
                self.run.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def finish(self, exit_code: int = 0) -> None:
        if self.run is not None:
            with self.surviving("finish"):
                self.run.finish(exit_code=exit_code)
                self.run = None


def versions() -> dict[str, str]:
    """What a result depends on besides its config: Python and PyTorch versions, the processor, its number type."""
    import platform

    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": cpu,
        "cores": str(os.cpu_count()),
        **gpu,
    }
