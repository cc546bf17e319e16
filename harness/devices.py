"""What a run works on: which device, in which precision, and whether its memory can hold the run at all."""

import os
import shutil
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from harness.messages import BadInput
from model import ModelConfig
from positions import SCHEMES

Autocast = Callable[[], AbstractContextManager]  # makes the context in which a model runs


def pick_device(asked: str) -> torch.device:
    """The device asked for, or the best there is. Raises BadInput if this machine has none of that kind."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return torch.device(next(name for name, available in there.items() if available))
    if not there[asked]:
        raise BadInput(f"--run.device {asked} is not on this machine: use {' or '.join(n for n in there if there[n])}")
    return torch.device(asked)


def bf16_is_native(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware. Where it only emulates it, fp32 is many times faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def pick_precision(asked: str, device: torch.device) -> tuple[str, Autocast]:
    """fp32 or bf16, and a maker of the context in which the model then runs."""
    native = bf16_is_native(device)
    precision = asked if asked != "auto" else "bf16" if native else "fp32"
    if precision == "bf16" and not native:
        slow = f"this {device.type} only emulates bf16, which is slow"
        warnings.warn(f"{slow}: --run.precision fp32 is faster", stacklevel=2)
    return precision, lambda: torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def has_compiler() -> bool:
    """Whether the C++ compiler is there that torch.compile calls for a CPU: $CXX, else g++, or on macOS clang++."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None


def refuse_without_compiler(flag: str, device: torch.device) -> None:
    """Raise BadInput if what the flag asks torch.compile to make for a CPU cannot be made."""
    if device.type == "cpu" and not has_compiler():
        cures = "install one (g++; on macOS xcode-select --install), name yours in the environment variable CXX"
        raise BadInput(f"{flag} true needs a C++ compiler, and there is none: {cures}, or leave {flag} out")


def why_not_compiled(error: BaseException) -> str | None:
    """What torch.compile's own errors come down to, a line; None for errors of any other kind."""
    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "error: " in line] or lines  # a compiler's own complaint, among much else
    return f"torch.compile failed: {told[0][:300] if told else type(error).__name__}"


def count_parameters(shape: ModelConfig, device: str = "meta") -> int:
    """How many numbers the weights are, without making them.

    On the device meta the first call takes seconds, for an import. On cpu the memory of the scheme's own is reserved,
    though not written to: RuntimeError if there is not as much.
    """
    block = shape.d_model * (2 * shape.d_model + 2 * shape.d_head * shape.n_kv_head + 3 * shape.d_ff + 2)
    with torch.device(device):
        scheme = sum(p.numel() for p in SCHEMES[shape.position](shape).parameters())
    tables = 1 if shape.tie_embeddings else 2
    return shape.n_layer * block + (tables * shape.vocab_size + 1) * shape.d_model + scheme


def refuse_too_large(
    shape: ModelConfig, batch_size: int, rows: int, device: torch.device, shards: int, jobs: int = 1
) -> None:
    """Raise BadInput, before anything is allocated, if so many jobs of a kind need more memory than the device has.

    Only what no implementation can avoid is counted, at 4 bytes a number: the weights, their gradients and AdamW's two
    means; the batch's token ids (inputs and targets, 8 bytes each); and, for the `rows` that go through the model at
    once, the logits with their gradient and what each block keeps for the backward pass. Of a model in several shards
    each GPU holds one, but processes on a CPU share its memory.
    """
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    else:
        there, shards = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 1
    kept = 2 * shape.vocab_size + shape.n_layer * (4 * shape.d_model + 3 * shape.d_ff)  # numbers per token
    needs = {
        "model.vocab_size model.d_model model.n_layer model.d_ff model.seq_len": 16 * count_parameters(shape) // shards,
        "run.batch_size model.seq_len": 16 * batch_size * shape.seq_len,
        "run.micro_batch_size model.seq_len model.d_model model.n_layer": 4 * kept * rows * shape.seq_len,
    }
    values = {"run.batch_size": batch_size, "run.micro_batch_size": rows, "jobs": jobs}
    values |= {f"model.{name}": value for name, value in vars(shape).items()}
    for flags, needed in needs.items():
        if jobs * needed > there:
            given = ", ".join(f"--{flag} {values[flag]}" for flag in ("jobs " * (jobs > 1) + flags).split())
            least = f"{jobs * needed / 1e9:,.0f} GB of memory at least"
            has = f"this machine's {device.type} has {there / 1e9:,.0f}"
            raise BadInput(f"{given} would need {least}, and {has}: choose smaller ones")
