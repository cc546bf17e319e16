"""Where a measurement was made and what it began with: versions, processor, commit, hashes of weights and batches."""

import hashlib
import os
import platform
import re
import subprocess
from pathlib import Path

import torch
from torch import Tensor, nn


def versions() -> dict[str, str]:
    """What a result depends on besides its config: the versions of Python and PyTorch, the processor and the GPU."""
    on_linux = Path("/proc/cpuinfo").read_text() if os.access("/proc/cpuinfo", os.R_OK) else ""
    named = re.search(r"^model name\s*: *(.*\S)", on_linux, re.MULTILINE)
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": named[1] if named else platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        **gpu,
    }


def commit() -> str | None:
    """The commit of this code, with a + if files were changed since; None outside a git checkout."""
    ask = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.check_output(ask, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def shared_sha256(model: nn.Module) -> str:
    """A hash of every weight that models of all schemes have in common, to show that they start alike."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not name.startswith("position."):
            digest.update(f"{name} {tuple(parameter.shape)} ".encode())
            digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def chain_sha256(before: str, inputs: Tensor, targets: Tensor) -> str:
    """A link of the chain of hashes over all batches so far: two runs whose chains end alike read the same batches."""
    return hashlib.sha256(bytes.fromhex(before) + inputs.numpy().tobytes() + targets.numpy().tobytes()).hexdigest()
