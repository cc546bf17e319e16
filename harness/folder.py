"""A run folder: what a run leaves behind, each file whole or not there at all. docs/running.md says what is in it.

A checkpoint is written under a name with a dot before it, flushed to disk and renamed, so `step-N` is whole or not
there, unless the disk damages it later: then its checksums tell. No place in the data is saved, since a batch follows
from seed and step, and no random state, since nothing else is drawn. A resumed run is to the bit what it would have
been, on the same machine, device, number of threads and processes, sharded as before; elsewhere sums round otherwise.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml
from filelock import FileLock, Timeout
from safetensors.torch import save as save_tensors
from tokenizers import Tokenizer
from torch import Tensor

from harness.checkpoints import Checkpoint, last_whole, read_checkpoint, steps_saved
from harness.files import remove, write_folder_whole, write_whole
from harness.messages import BadInput, tell
from harness.opening import Damaged, read_inside
from harness.plugins import LOADED
from harness.processes import ALONE, World, gather_tensor
from harness.ranges import read_section
from harness.runs import describe_progress, read_metrics, read_result, read_sections, weights_sha256
from harness.scalings import as_longrope
from model import Transformer

# What a new run removes of an old one, in this order: what says that it is finished first, checkpoints before metrics.
FILES = ("result.json", "checkpoints", "metrics.jsonl", "model.safetensors", "tokenizer.json", "measured.json")
FILES += ("lengths.json", "longrope.yaml", "accuracy.json", "evaluate.png", "wandb")

# A resumed run may change these: they say where it works and what it shows, and touch its result by rounding at most.
# The precision is compared as it came out, since `auto` may come out otherwise on another device.
MAY_DIFFER = {
    "data": {"cache"},
    "model": {"attention"},
    "run": {"out", "name", "micro_batch_size", "eval_every", "save_every", "on_nan", "precision", "device", "threads"}
    | {"compile", "shard", "wandb", "overwrite", "resume"},
}
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # what a disk says when it is at its end


def is_aside(path: Path) -> bool:
    """Whether a file is a temporary one of write_whole's, which is about to be renamed or was left behind."""
    return re.fullmatch(rf"\.({'|'.join(map(re.escape, (*FILES, 'config.yaml')))})\.\d+", path.name) is not None


def check_own(configs: dict[str, Any], result: dict[str, Any], folder: Path, found: Checkpoint) -> None:
    """Raise Damaged if a checkpoint, in this folder, is another run's than that of the configs and of result.json.

    A run draws an id when it begins, which its checkpoints have. Earlier versions drew none: then the config decides.
    """
    if (mine := result.get("run_id")) and (its := found.state.get("run_id")) != mine:
        raise Damaged(f"{folder} is a checkpoint of another run, {its or 'an earlier one'}, not of {mine}")
    try:
        differences = compare_sections(read_sections(found.config), configs)
    except Exception as error:  # each library has errors of its own, and all of them mean the same here
        raise Damaged(f"{folder / 'config.yaml'} is damaged: {' '.join(str(error).split())[:200]}") from error
    if (steps := found.state["steps"]) != configs["run"].steps:
        differences.append(f"run.steps {steps}, not {configs['run'].steps}")
    if differences:
        raise Damaged(f"{folder} is a checkpoint of another run, with {'; '.join(differences)}")


def verify_finished(path: Path, configs: dict[str, Any]) -> dict[str, Any] | None:
    """What result.json says of a finished run whose last checkpoint and weights are whole; None if it has to go on."""
    result, steps, damaged = read_result(path), steps_saved(path), {}
    if result.get("status") != "finished":
        return None
    for step in steps:
        try:
            folder = path / "checkpoints" / f"step-{step}"
            check_own(configs, result, folder, read_checkpoint(folder))
        except Damaged as error:
            damaged[step] = error
    if steps and steps[0] in damaged:
        return None
    weights = path / "model.safetensors"
    try:
        found = weights_sha256(path)
    except (FileNotFoundError, Damaged):
        found = None
    if found is None or found != result.get("weights_sha256", found):
        tell(f"{weights} is missing or damaged: making it again")
        return None
    for error in damaged.values():
        tell(error)
    whole = ", ".join(f"step-{step}" for step in reversed(steps) if step not in damaged) or "none there"
    print(f"{path} is finished at step {result['step']} of {result['steps']}; whole checkpoints: {whole}", flush=True)
    return result


def find_differences(path: Path, configs: dict[str, Any], may_differ: dict[str, set[str]] = MAY_DIFFER) -> list[str]:
    """How the options of the run in a folder differ from those asked for, each as `run.steps 4, not 5`.

    Options in may_differ, by section, are ignored. Raises BadInput if config.yaml cannot be read.
    """
    file = path / "config.yaml"
    try:
        return compare_sections(read_sections(read_inside(path, "config.yaml")), configs, may_differ)
    except PermissionError as error:
        raise BadInput(f"{file} cannot be read ({error.strerror}): name another folder") from error
    except Exception as error:
        raise BadInput(f"{file} is damaged: {' '.join(str(error).split())[:200]}") from error


def compare_sections(
    sections: dict[str, Any], configs: dict[str, Any], may_differ: dict[str, set[str]] = MAY_DIFFER
) -> list[str]:
    """`find_differences` of the sections of a config.yaml. Raises ValueError if they cannot be used."""
    # through the dataclass, so that options that came later than the record stand at their defaults
    recorded = {name: asdict(read_section(type(config), sections[name])) for name, config in configs.items()}
    found = []
    for section, config in configs.items():
        for name, now in asdict(config).items():
            was = recorded[section][name]
            if name in may_differ[section] or (name == "vocab_size" and now is None):
                continue
            if isinstance(now, dict):
                found += [f"{section}.{name}.{key} {was[key]}, not {now[key]}" for key in now if was[key] != now[key]]
            elif was != now:
                found.append(f"{section}.{name} {was}, not {now}")
    return found


def refuse_taken(configs: dict[str, Any]) -> None:
    """Raise BadInput if the folder holds something else than a run, or a run that can neither go on nor be replaced."""
    config = configs["run"]
    path = Path(config.out)
    if path.exists() and not path.is_dir():
        raise BadInput(f"--run.out {path} is a file: name a folder")
    if not (path / "config.yaml").exists():
        there = path.iterdir() if path.exists() else ()
        others = [each for each in there if each.name != ".lock" and not is_aside(each)]
        if others:
            raise BadInput(f"--run.out {path} is a folder with other things in it: name a new one")
    elif config.resume:
        if found := find_differences(path, configs):
            wrong = f"--run.resume true: {path} was started with {'; '.join(found)}"
            longer = f"; more steps are a new run, --run.init_from {path}" * any("run.steps" in each for each in found)
            raise BadInput(f"{wrong}: give what it was started with, or choose another --run.name{longer}")
    elif not config.overwrite:
        cures = "choose another --run.name, go on with --run.resume true, or replace it with --run.overwrite true"
        raise BadInput(f"--run.out {path} already holds a run ({describe_progress(path)}): {cures}")


def refuse_links(path: Path) -> None:
    """Raise BadInput if a file of a run is a link: what is written or removed there would be elsewhere."""
    for name in (".lock", "config.yaml", *FILES):
        if (path / name).is_symlink():
            raise BadInput(
                f"--run.out {path}: {name} in it is a link to another place: remove it, or name a new folder"
            )


class RunFolder:
    """The folder of a run that is being trained; no other process may write there meanwhile.

    Of several processes each has one and calls the same methods. Rank 0 alone reads and writes, and what fails for it
    fails for all.

    Args:
        configs: the sections data, model and run, as dataclasses; run says where, and whether to resume or overwrite.
        facts: what a resumed run must share with its checkpoint besides the config, by the name in its state.
        world: the processes of the run.
        model: the model that a checkpoint must fit.

    Attributes:
        last: the checkpoint to go on from, None at step 0.

    Raises:
        BadInput: if the folder is taken, another process writes there, or it cannot be made.
    """

    def __init__(
        self,
        configs: dict[str, Any],
        facts: dict[str, Any] | None = None,
        world: World = ALONE,
        model: Transformer | None = None,
    ) -> None:
        self.path, self.world = Path(configs["run"].out), world
        self.last: Checkpoint | None = world.lead(self.take, configs, facts or {}, model)  # None at step 0
        self.saved = self.last.state["step"] if self.last else 0  # the step of the last checkpoint

    def take(self, configs: dict[str, Any], facts: dict[str, Any], model: Transformer | None) -> Checkpoint | None:
        """Lock the folder, prepare it, and return the checkpoint to go on from."""
        refuse_taken(configs)
        refuse_links(self.path)
        # no stand-in where the file system has no locks: that would be a file that outlives its owner
        self.lock = FileLock(self.path / ".lock", timeout=0, fallback_to_soft=False)
        new = [path for path in (self.path, *self.path.parents) if not path.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
            self.locked = os.stat(self.path / ".lock")
            refuse_taken(configs)  # again, now that nobody else writes
            return self.prepare(configs, facts, model)
        except BaseException as error:
            self.lock.release()
            if not isinstance(error, OSError) or error.errno in NO_ROOM:
                raise
            what = f"cannot be written ({error.strerror}): name a folder that can"
            if isinstance(error, Timeout):
                what = "is being written by another process: wait until that has ended, or choose another --run.name"
            for made in new:
                with contextlib.suppress(OSError):
                    made.rmdir()
            raise BadInput(f"--run.out {self.path} {what}") from error

    def prepare(self, configs: dict[str, Any], facts: dict[str, Any], model: Transformer | None) -> Checkpoint | None:
        """Put the folder back to its last whole checkpoint, and return that; without one, remove the old run."""
        last = None
        if configs["run"].resume and (self.path / "config.yaml").exists():
            result = read_result(self.path)

            def check(folder: Path, found: Checkpoint) -> None:
                check_own(configs, result, folder, found)
                if model is not None and (misfit := found.find_misfit(model)):
                    raise Damaged(f"{folder} is damaged: {misfit}")

            last = last_whole(self.path, check)
            for name, now in facts.items() if last else ():
                if (was := last.state[name]) != now:
                    raise BadInput(f"--run.resume true: {self.path} was started with {name} {was}, not {now}")
            where = f"going on after step {last.state['step']}" if last else "no whole checkpoint: from step 0"
            if last and "run_id" not in last.state:
                where += ", of a checkpoint from before runs had ids: its config says whose it is"
            print(f"{self.path}: {where}", flush=True)
        for rubbish in filter(is_aside, self.path.iterdir()):  # of a process that was killed while it wrote
            remove(rubbish)
        logged = ""
        if last:
            self.remove()  # and what that process has left of checkpoints
            # whatever was logged after the checkpoint will be logged again
            step = last.state["step"]
            logged = "".join(json.dumps(event) + "\n" for event in read_metrics(self.path) if event["step"] <= step)
            sha256 = hashlib.sha256(logged.encode()).hexdigest()
            if last.state.get("metrics_sha256", sha256) != sha256:
                what = f"{self.path / 'metrics.jsonl'} is damaged: it is not what was logged up to step {step}"
                tell(f"{what}; the run itself does not depend on it")
            write_whole(self.path / "metrics.jsonl", logged)
        else:
            # Only what a run leaves behind: anything else in the folder is the user's. config.yaml stays until the new
            # one takes its place: without it, should this process be killed here, the rest would be no run any more.
            for name in FILES:
                remove(self.path / name)
        self.logged = hashlib.sha256(logged.encode())
        # overwrite and resume say what to do with a folder, once: config.yaml, used again, must not do it again
        sections = {name: asdict(config) for name, config in configs.items()}
        sections["run"] |= {"overwrite": False, "resume": False}
        sections |= {"plugin": LOADED} if LOADED else {}
        write_whole(self.path / "config.yaml", yaml.safe_dump(sections, sort_keys=False))
        self.metrics: TextIO = open(self.path / "metrics.jsonl", "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        return last

    def refuse_replaced(self) -> None:
        """Raise OSError if the folder was removed, renamed or replaced meanwhile: another run may live there now."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.path / ".lock"), self.locked):
                return
        raise OSError(errno.ESTALE, "not the folder any more that this run has locked", str(self.path))

    def close(self) -> None:
        """Close the log and release the lock."""
        if not self.world.leads:
            return
        with contextlib.suppress(OSError):  # a full disk, which was said at the line that did not fit
            self.metrics.close()
        self.lock.release()

    def log(self, step: int, split: str, **values: float) -> None:
        """Add one event to metrics.jsonl. A value that is no finite number becomes null: JSON has no NaN."""
        if not self.world.leads:
            return
        values = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"step": step, "split": split, **values}) + "\n"
        self.metrics.write(line)
        self.logged.update(line.encode())

    def result(self, status: str, **values: Any) -> None:
        """Say how far the run got: running, finished, interrupted or failed. What is no number becomes null."""
        if not self.world.leads:
            return
        self.refuse_replaced()
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        write_whole(self.path / "result.json", json.dumps({"status": status, **values}, indent=2) + "\n")

    def checkpoint(self, model: Transformer, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Save the run as it stands, then remove the checkpoints that are no longer kept. Every rank has to call it.

        The state says how far the run got: its `step`, and its `best` evaluation if there was one. The hash of what was
        logged up to here is added. If the checkpoint cannot be written, OSError; the earlier ones are still there then.
        """
        if state["step"] == self.saved:
            return
        weights = self.gather_on_rank_0(model.state_dict())
        parameters = {name: parameter for name, parameter in model.named_parameters() if parameter in optimizer.state}
        kept = {name: self.gather_on_rank_0(optimizer.state[parameter]) for name, parameter in parameters.items()}
        self.world.lead(self.write, state, weights, kept)
        self.saved = state["step"]

    def gather_on_rank_0(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Whole tensors on the CPU of rank 0, and none elsewhere, where they would only need room."""
        whole = ((name, gather_tensor(tensor.detach())) for name, tensor in tensors.items())
        return {name: tensor.cpu().contiguous() for name, tensor in whole if self.world.leads}

    def write(self, state: dict[str, Any], weights: dict[str, Tensor], kept: dict[str, dict[str, Tensor]]) -> None:
        """Write a checkpoint, and then remove those that are no longer kept."""
        self.refuse_replaced()
        step = state["step"]
        state["metrics_sha256"] = self.logged.hexdigest()
        files = Checkpoint(state, weights, kept, read_inside(self.path, "config.yaml")).pack()
        os.fsync(self.metrics.fileno())  # the events up to here must outlive a power cut if the checkpoint does
        self.remove(step)  # a damaged one, which was not gone on from
        write_folder_whole(self.path / "checkpoints" / f"step-{step}", files)
        best = (state.get("best") or {}).get("step")
        self.remove(*set(steps_saved(self.path)).difference((step, self.saved, best)))

    def remove(self, *steps: int) -> None:
        """Remove checkpoints, if they are there, and what is left of others, written or removed only in part."""
        folder = self.path / "checkpoints"
        for step in steps:
            if os.path.lexists(folder / f"step-{step}"):  # renamed first, so that a half-removed one is never read
                remove(folder / f".old-{step}")
                os.replace(folder / f"step-{step}", folder / f".old-{step}")
        for rest in folder.glob(".*"):
            with contextlib.suppress(OSError):  # the next save tries again
                remove(rest)

    def save(self, model: Transformer, tokenizer: Tokenizer) -> str:
        """Write the final weights, the tokenizer and any learned factors, as lists; return the weights' sha256."""
        self.refuse_replaced()
        write_whole(self.path / "tokenizer.json", tokenizer.to_str(pretty=True))
        self.remove()
        if getattr(model.position, "log_factor", None) is not None:
            options = asdict(as_longrope(model.position, model.config.seq_len))
            given = {name: value for name, value in options.items() if value is not None}
            lists = {"model": {model.config.position: given}}
            write_whole(self.path / "longrope.yaml", yaml.safe_dump(lists, sort_keys=False))
        weights = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
        # without metadata: the file's hash is the run's identity
        write_whole(self.path / "model.safetensors", save_tensors(weights))
        return weights_sha256(self.path)
