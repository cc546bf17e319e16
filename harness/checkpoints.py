"""A run after some steps, on disk: read back only if its checksums fit. docs/running.md says what is in its folder."""

import io
import json
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from harness.messages import BadInput
from harness.processes import shard_like
from model import Transformer


class Damaged(ValueError):
    """A checkpoint cannot be used. The message names the file and what is wrong with it."""


@dataclass
class Checkpoint:
    """A run after some steps, with whole tensors on the CPU."""

    state: dict[str, Any]  # how far it got: see harness/run.py's `begin`
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, dict[str, torch.Tensor]]  # by the parameter's name

    def pack(self, config: bytes) -> dict[str, bytes]:
        """The files of the checkpoint, content by name. The content of config.yaml is passed in."""
        buffer = io.BytesIO()
        torch.save({"state": self.state, "optimizer": self.optimizer}, buffer)
        files = {"model.safetensors": save(self.weights), "optimizer.pt": buffer.getvalue(), "config.yaml": config}
        sums = {name: {"sha256": sha256(content).hexdigest(), "size": len(content)} for name, content in files.items()}
        return {**files, "manifest.json": seal({"step": self.state["step"], "files": sums})}

    def restore(self, model: Transformer, optimizer: torch.optim.Optimizer) -> None:
        """Put the weights into a model, and what the optimiser kept into its new one; each rank takes its shards."""
        parameters = dict(model.named_parameters())
        model.load_state_dict({name: shard_like(tensor, parameters[name]) for name, tensor in self.weights.items()})
        for name, kept in self.optimizer.items():
            like = parameters[name]
            optimizer.state[like] = {key: shard_like(value, like) for key, value in kept.items()}


def seal(manifest: dict[str, Any]) -> bytes:
    """A manifest as a file, with its own sha256 in its last line."""
    own = sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**manifest, "sha256": own}, indent=2) + "\n").encode()


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint, each file once: what is loaded is what was checked. Nothing in it can run code.

    Raises:
        Damaged: if a file is missing, is not what was written, or holds more than tensors, numbers and texts.
    """
    file = folder / "manifest.json"
    try:
        sealed = file.read_bytes()
        manifest = json.loads(sealed)
        if seal({name: value for name, value in manifest.items() if name != "sha256"}) != sealed:
            raise ValueError("it does not have its own sha256")
        contents = {}
        for name, expected in manifest["files"].items():
            file = folder / name
            content = contents[name] = file.read_bytes()
            if len(content) != expected["size"]:
                raise ValueError(f"it has {len(content)} of {expected['size']} bytes")
            if sha256(content).hexdigest() != expected["sha256"]:
                raise ValueError("its sha256 is not the one in manifest.json")
        file = folder / "optimizer.pt"
        rest = torch.load(io.BytesIO(contents["optimizer.pt"]), map_location="cpu", weights_only=True)
        file = folder / "model.safetensors"
        found = Checkpoint(rest["state"], load(contents["model.safetensors"]), rest["optimizer"])
        file = folder
        if f"step-{found.state['step']}" != folder.name:
            raise ValueError(f"it holds step {found.state['step']}")
    except FileNotFoundError as error:
        raise Damaged(f"{file} is missing") from error
    except (OSError, MemoryError) as error:  # it may be whole, and readable later: nothing must be built on its absence
        why = getattr(error, "strerror", None) or "out of memory"
        raise BadInput(f"{file} cannot be read ({why}): nothing was changed, try again") from error
    except Exception as error:  # each library has errors of its own, and all of them mean the same here
        raise Damaged(f"{file} is damaged: {' '.join(str(error).split())[:200]}") from error
    return found


def steps_saved(path: Path) -> list[int]:
    """The steps at which a run folder has checkpoints, the latest first."""
    names = [folder.name for folder in (path / "checkpoints").glob("step-*")]
    return sorted((int(name[5:]) for name in names if name[5:].isdecimal()), reverse=True)


def last_whole(path: Path) -> Checkpoint | None:
    """The latest undamaged checkpoint of a run, if there is one. Damaged later ones are named on stderr."""
    for step in steps_saved(path):
        try:
            return read_checkpoint(path / "checkpoints" / f"step-{step}")
        except Damaged as error:
            print(f"{error}; looking for the checkpoint before", file=sys.stderr)
    return None
