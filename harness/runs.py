"""Runs read back from their folders: how far they got, what they logged, finished ones with their models."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, Required, TypeVar

import torch
import yaml
from pydantic import ConfigDict, TypeAdapter
from safetensors.torch import load
from tokenizers import Tokenizer
from typing_extensions import TypedDict

from harness.byte_level import MOST_ENTRIES, parse_tokenizer
from harness.corpora import DataConfig
from harness.devices import count_parameters
from harness.messages import BadInput
from harness.opening import Damaged, open_inside, parse_json, read_inside
from harness.options import PlainLoader
from harness.plugins import load_plugins
from harness.ranges import AtLeast0, AtLeast1, Count, LossByLength, Seed, Sha256, Share, explain, read_section
from model import ModelConfig, Transformer

T = TypeVar("T")


class Result(TypedDict, total=False):
    """What result.json may say, as far as anything of ours reads it."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    status: Required[Literal["running", "finished", "interrupted", "failed"]]
    step: Count
    steps: AtLeast1
    run_id: str
    parameters: Count
    position_parameters: Count
    val_loss: AtLeast0
    bits_per_byte: AtLeast0 | None
    test_loss: AtLeast0
    seconds: AtLeast0 | None
    tokens_per_second: AtLeast0 | None
    weights_sha256: Sha256
    data_sha256: Sha256
    batches_sha256: Sha256
    shared_init_sha256: Sha256
    precision: Literal["fp32", "bf16"]
    device: Literal["cpu", "cuda", "mps"]
    threads: AtLeast1
    versions: dict[str, str]


class Event(TypedDict):
    """A line of metrics.jsonl; it has more figures, each a number or null."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    step: AtLeast1
    split: Literal["train", "val"]
    loss: AtLeast0 | None
    seconds: NotRequired[AtLeast0 | None]


class Accuracy(TypedDict):
    """A row of accuracy.json; it has more figures."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    task: str
    length: AtLeast1
    depth: Share | None
    loss: AtLeast0 | None
    accuracy: Share | None
    trials: Count | None
    tokens: Count | None


class RunOptions(TypedDict):
    """The section run of a config.yaml, as far as a finished run needs it; it has more options."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    name: str
    seed: Seed
    batch_size: AtLeast1
    precision: Literal["auto", "fp32", "bf16"]


RESULT, EVENT, SETTINGS = TypeAdapter(Result), TypeAdapter(Event), TypeAdapter(RunOptions)
LENGTHS, ACCURACY = TypeAdapter(LossByLength), TypeAdapter(list[Accuracy])
FINISHED = {"step", "steps", "parameters", "position_parameters", "val_loss", "bits_per_byte", "test_loss"}


def read_json(path: Path, name: str, schema: TypeAdapter[T]) -> T | None:
    """A JSON file of a run; None if it is missing, cannot be read or does not fit its schema."""
    try:
        return parse_json(schema, read_inside(path, name), path / name)
    except (OSError, Damaged):
        return None


def read_result(path: Path) -> dict[str, Any]:
    """The content of a run's result.json; empty if there is none that can be used."""
    result = read_json(path, "result.json", RESULT) or {}
    whole = result.get("status") != "finished" or (result.keys() >= FINISHED and result["step"] == result["steps"])
    return result if whole else {}


def read_lengths(path: Path) -> dict[str, float | None]:
    """A run's loss by context length, as lengths.json has it; empty if it is not measured."""
    return read_json(path, "lengths.json", LENGTHS) or {}


def read_accuracy(path: Path) -> list[dict[str, Any]]:
    """A run's accuracy on tasks by length and depth, as accuracy.json has it; empty if it is not measured."""
    return read_json(path, "accuracy.json", ACCURACY) or []


def read_metrics(path: Path, tail: int | None = None) -> Iterator[dict[str, Any]]:
    """The events in a run's metrics.jsonl, or in its last `tail` bytes; half-written and damaged lines are left out."""
    with contextlib.suppress(FileNotFoundError, Damaged), open_inside(path, "metrics.jsonl") as file:
        if tail is not None and (size := os.fstat(file.fileno()).st_size) > tail:
            file.seek(size - tail)
            file.readline()  # the line that was cut
        for line in file:
            with contextlib.suppress(Damaged):
                parse_json(EVENT, line, path)
                yield json.loads(line)  # every figure as it stands there


class RecordLoader(PlainLoader):
    """A recorded config.yaml: what is text and what a number is as the library that wrote it has it (`name: 1e5`)."""

    yaml_implicit_resolvers = yaml.SafeLoader.yaml_implicit_resolvers


def read_sections(content: bytes) -> dict[str, Any]:
    """The sections of a config.yaml. Raises ValueError if it has none, or what no config needs, as references."""
    sections = yaml.load(content.decode(), RecordLoader)
    if not isinstance(sections, dict) or not all(isinstance(sections.get(n), dict) for n in ("data", "model", "run")):
        raise ValueError("it has no sections data, model and run")
    return sections


def describe_progress(path: Path) -> str:
    """How far a run got, in words. After kill -9, result.json still has the first step, so the log is read too."""
    result = read_result(path)
    status = result.get("status", "unfinished")
    step = result.get("step", 0)
    if status in ("running", "unfinished"):
        step = max([step, *(event["step"] for event in read_metrics(path, tail=2000))])
    where = f" at step {step} of {result['steps']}" if "steps" in result else ""
    return ("still running, or killed," if status == "running" else status) + where


def weights_sha256(path: Path) -> str:
    """The hash of a run's weights, its identity."""
    with open_inside(path, "model.safetensors") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_misfit(config: ModelConfig, weights: dict[str, torch.Tensor]) -> str | None:
    """Why a model of this config could not have these weights, or None; found without memory for the model.

    So no config makes a model that is larger than the file that came with it. Names and shapes are compared later.
    """
    if config.vocab_size is None:
        return "model.vocab_size is not there"
    if (here := sum(tensor.numel() for tensor in weights.values())) != (wanted := count_parameters(config, "cpu")):
        return f"it has {here:,} numbers, and a model of config.yaml has {wanted:,}"
    if not all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in weights.values()):
        return "its numbers are not all finite and in float32"
    return None


@dataclass
class FinishedRun:
    """A finished run, loaded: its configs, its model in evaluation mode, its tokenizer."""

    path: Path
    data: DataConfig
    model_config: ModelConfig
    settings: dict[str, Any]  # the section run of config.yaml
    model: Transformer
    tokenizer: Tokenizer


def load_finished_run(path: str | Path, device: str = "cpu") -> FinishedRun:
    """Load a finished run from its folder. Raises BadInput if it holds none, or one that is unfinished or damaged."""
    # unlike Path.is_file, os.path.isfile is false for a name too long to be one
    if not str(path) or not os.path.isfile(os.path.join(path, "config.yaml")):
        wrong = f"{str(path) or repr('')} is not a run folder (it has no config.yaml)"
        raise BadInput(f"{wrong}: name one that train.py made, runs/rope say")
    path = Path(path)
    if not (path / "model.safetensors").is_file():
        how_far = describe_progress(path)
        raise BadInput(f"{path} has no weights: its run is {how_far}; go on with train.py --run.resume true")
    file = "config.yaml"
    try:
        sections = read_sections(read_inside(path, file))
        load_plugins(sections.get("plugin"), f"{path / file}: plugin")
        config = read_section(ModelConfig, sections["model"])
        data, settings = read_section(DataConfig, sections["data"]), SETTINGS.validate_python(sections["run"])
        file = "tokenizer.json"
        tokenizer = parse_tokenizer(read_inside(path, file), config.vocab_size or MOST_ENTRIES)
        file = "model.safetensors"
        content = read_inside(path, file)
        sha256 = read_result(path).get("weights_sha256")  # not there yet if the run was stopped just before its end
        if sha256 and sha256 != hashlib.sha256(content).hexdigest():
            raise ValueError("its sha256 is not the one in result.json")
        weights = load(content)
        if misfit := find_misfit(config, weights):
            raise ValueError(misfit)
        model = Transformer(config)
        model.load_state_dict(weights)
    except BadInput:
        raise
    except Damaged as error:
        raise BadInput(f"{error}; restore it from a copy, or train the run again") from error
    except (PermissionError, MemoryError) as error:  # it may be whole
        why = getattr(error, "strerror", None) or "not enough memory"
        raise BadInput(f"{path / file} cannot be read ({why}): name a run that can") from error
    except Exception as error:  # each library has errors of its own, and all of them mean the same here
        why = " ".join(explain(error).split())[:200]
        again = "make it again with train.py --run.resume true" if "safetensors" in file else "train the run again"
        raise BadInput(f"{path / file} is damaged: {why}; restore it from a copy, or {again}") from error
    return FinishedRun(path, data, config, settings, model.to(device).eval(), tokenizer)
