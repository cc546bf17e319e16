"""A run after some steps, on disk: read back only if its checksums fit. docs/running.md says what is in its folder."""

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import torch
from pydantic import ConfigDict, Field, TypeAdapter
from safetensors.torch import load, save
from typing_extensions import TypedDict

from harness.messages import BadInput, tell
from harness.opening import Damaged, parse_json, read_inside
from harness.processes import shard_like
from harness.ranges import AtLeast1, Count
from model import Transformer


class State(TypedDict):
    """How far a run got, as harness/run.py's `begin` makes it. Nothing else: all of it goes into result.json."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    step: Count
    steps: AtLeast1
    skipped: NotRequired[Count]
    batches_sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
    seconds: float
    looked: NotRequired[float]
    best: NotRequired["Best"]
    wandb_id: NotRequired[Annotated[str, Field(pattern="^[0-9a-z]{1,64}$")] | None]  # becomes part of a folder's name
    run_id: NotRequired[str]
    machine: NotRequired[str]
    metrics_sha256: NotRequired[str]
    init_from: NotRequired[str]
    init_from_sha256: NotRequired[str]
    data_sha256: str
    shared_init_sha256: str
    precision: Literal["fp32", "bf16"]


class Best(TypedDict):
    """The evaluation with the lowest loss so far."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    step: Count
    loss: float


class Sum(TypedDict):
    """What a manifest says of a file."""

    sha256: str
    size: Annotated[int, Field(ge=0)]


class Manifest(TypedDict):
    """What manifest.json says of a checkpoint."""

    step: Count
    files: dict[Literal["model.safetensors", "optimizer.pt", "config.yaml"], Sum]
    sha256: str


MANIFEST, STATE = TypeAdapter(Manifest), TypeAdapter(State)


@dataclass
class Checkpoint:
    """A run after some steps, with whole tensors on the CPU."""

    state: dict[str, Any]  # how far it got: a `State`
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, dict[str, torch.Tensor]]  # by the parameter's name
    config: bytes = b""  # the run's config.yaml at that time

    def find_misfit(self, model: Transformer) -> str | None:
        """The first tensor that this model, or AdamW of it, could not have; None if all fit."""

        def describe(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
            return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}

        parameters, count = dict(model.named_parameters()), (torch.Size(), torch.float32)
        pairs = [("model.safetensors", describe(model.state_dict()), describe(self.weights))]
        for name, kept in self.optimizer.items():
            like = parameters.get(name)
            moments = {} if like is None else describe({"exp_avg": like, "exp_avg_sq": like}) | {"step": count}
            pairs.append((f"optimizer.pt, {name}", moments, describe(kept)))
        for where, wanted, found in pairs:
            for name in wanted.keys() | found.keys():
                if wanted.get(name) != found.get(name):
                    return f"{where}: {name} is {found.get(name, 'not there')}, not {wanted.get(name, 'to be there')}"
        return None

    def pack(self) -> dict[str, bytes]:
        """The files of the checkpoint, content by name."""
        buffer = io.BytesIO()
        torch.save({"state": self.state, "optimizer": self.optimizer}, buffer)
        files = {"model.safetensors": save(self.weights), "optimizer.pt": buffer.getvalue(), "config.yaml": self.config}
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


def refuse_growing(content: bytes) -> None:
    """Raise ValueError if an archive of torch.save's would need more memory than it has bytes: if it is compressed."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = archive.infolist()
    names = {file.filename.lower() for file in files}  # as torch.load looks for them
    plain = all(file.compress_type == zipfile.ZIP_STORED for file in files)
    if not plain or len(names) < len(files) or sum(file.file_size for file in files) > len(content):
        raise ValueError("its archive is compressed, or has a part twice")


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint, each file once: what is loaded is what was checked. Nothing in it can run code.

    Raises:
        Damaged: if a file is missing, is not what was written, or holds more than tensors, numbers and texts.
    """
    run_folder, place = folder.parent.parent, f"{folder.parent.name}/{folder.name}"
    file = folder / "manifest.json"
    try:
        sealed = read_inside(run_folder, f"{place}/manifest.json")
        manifest = parse_json(MANIFEST, sealed, file)
        if seal({name: value for name, value in manifest.items() if name != "sha256"}) != sealed:
            raise ValueError("it does not have its own sha256")
        contents = {}
        for name, expected in manifest["files"].items():
            file = folder / name
            content = contents[name] = read_inside(run_folder, f"{place}/{name}")
            if len(content) != expected["size"]:
                raise ValueError(f"it has {len(content)} of {expected['size']} bytes")
            if sha256(content).hexdigest() != expected["sha256"]:
                raise ValueError("its sha256 is not the one in manifest.json")
        file = folder / "optimizer.pt"
        refuse_growing(contents["optimizer.pt"])
        rest = torch.load(io.BytesIO(contents["optimizer.pt"]), map_location="cpu", weights_only=True)
        state, optimizer = STATE.validate_python(rest["state"], strict=True), rest["optimizer"]
        for kept in optimizer.values():
            if not all(isinstance(each, torch.Tensor) and each.layout == torch.strided for each in kept.values()):
                raise ValueError("it holds something else than tensors")
        file = folder / "model.safetensors"
        found = Checkpoint(state, load(contents["model.safetensors"]), optimizer, contents["config.yaml"])
        file = folder
        if f"step-{found.state['step']}" != folder.name or state["step"] > state["steps"]:
            raise ValueError(f"it holds step {found.state['step']} of {state['steps']}")
    except Damaged:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
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


def last_whole(path: Path, check: Callable[[Path, Checkpoint], None] = lambda *_: None) -> Checkpoint | None:
    """The latest undamaged checkpoint of a run, if there is one. Damaged later ones are named on stderr.

    `check` is given each that is whole, with its folder, and raises Damaged for one that is another run's.
    """
    for step in steps_saved(path):
        try:
            found = read_checkpoint(folder := path / "checkpoints" / f"step-{step}")
            check(folder, found)
            return found
        except Damaged as error:
            tell(f"{error}; looking for the checkpoint before")
    return None
