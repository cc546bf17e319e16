"""Runs read back from their folders: how far they got, what they logged, finished ones with their models."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load
from tokenizers import Tokenizer

from harness.byte_level import read_tokenizer
from harness.corpora import DataConfig
from harness.messages import BadInput
from harness.plugins import load_plugins
from harness.ranges import explain, read_section
from model import ModelConfig, Transformer


def read_result(path: Path) -> dict[str, Any]:
    """The content of a run's result.json; empty if the file is missing or cannot be read."""
    try:
        content = json.loads((path / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_metrics(path: Path, tail: int | None = None) -> Iterator[dict[str, Any]]:
    """The events in a run's metrics.jsonl, or in its last `tail` bytes; half-written and damaged lines are left out."""
    log = path / "metrics.jsonl"
    with contextlib.suppress(FileNotFoundError), open(log, encoding="utf-8", errors="replace") as file:
        if tail is not None and (size := os.fstat(file.fileno()).st_size) > tail:
            file.seek(size - tail)
            file.readline()  # the line that was cut
        for line in file:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                event = json.loads(line)
                if isinstance(event["step"], int) and event["split"] in ("train", "val"):
                    yield event


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
    return hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()


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
        sections = yaml.safe_load((path / file).read_text(encoding="utf-8"))
        load_plugins(sections.get("plugin"), f"{path / file}: plugin")
        config = read_section(ModelConfig, sections["model"])
        data, settings = read_section(DataConfig, sections["data"]), dict(sections["run"])
        file = "tokenizer.json"
        tokenizer = read_tokenizer(path / file)
        file = "model.safetensors"
        content = (path / file).read_bytes()
        sha256 = read_result(path).get("weights_sha256")  # not there yet if the run was stopped just before its end
        if sha256 and sha256 != hashlib.sha256(content).hexdigest():
            raise ValueError("its sha256 is not the one in result.json")
        model = Transformer(config)
        model.load_state_dict(load(content))
    except BadInput:
        raise
    except (PermissionError, MemoryError) as error:  # it may be whole
        why = getattr(error, "strerror", None) or "not enough memory"
        raise BadInput(f"{path / file} cannot be read ({why}): name a run that can") from error
    except Exception as error:  # each library has errors of its own, and all of them mean the same here
        why = " ".join(explain(error).split())[:200]
        again = "make it again with train.py --run.resume true" if "safetensors" in file else "train the run again"
        raise BadInput(f"{path / file} is damaged: {why}; restore it from a copy, or {again}") from error
    return FinishedRun(path, data, config, settings, model.to(device).eval(), tokenizer)
