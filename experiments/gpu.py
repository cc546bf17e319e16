"""What does a CUDA card make of all this? Tests, speed, memory and flex_attention on one, in at most ten minutes.

    python -m experiments.gpu                        all parts; a part that was cut short goes on where it was
    python -m experiments.gpu flex long --publish true

A part named anew is measured anew. Each runs in a process of its own, for so many seconds at most, and keeps what it
has found in runs/gpu/; what fails is reported with its reason, and the others go on. `--publish true` puts all that is
there into results/gpu.json and docs/speed.md. Tokens are random: no data is needed.
"""

import harness.stops  # first: the rest takes seconds to import, and Ctrl-C ends even that without a traceback

import importlib.metadata
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
import yaml
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from harness import devices
from harness.cases import PART, Case, Cases, Part, measure_part, table
from harness.files import write_whole
from harness.messages import BadInput, RunFailed, refuse_unknown, run_main
from harness.options import Parser
from harness.pages import ROOT, read_figures, replace_section
from harness.provenance import commit, versions
from harness.timing import take_turns
from harness.workloads import ENTRIES, Logits, llama, training_flops, training_step
from model import ModelConfig, Transformer, explicit_attention, fused_attention
from positions import SCHEMES, Alibi, Position

FOUND, SECONDS = Path("runs", "gpu"), {"tests": 100, "schemes": 140, "flex": 80, "gpt2": 180, "long": 90}  # 590 in all
PRESET = yaml.safe_load((ROOT / "configs" / "gpu.yaml").read_text(encoding="utf-8"))
GPT2 = ModelConfig(vocab_size=PRESET["data"]["vocab_size"], **PRESET["model"])
SMALL = replace(GPT2, n_layer=2, vocab_size=ENTRIES)  # trained with every scheme
ROWS, STEPS, LONG, MATRIX = 16, 30, 16_384, 8192  # rows and steps of training; tokens; a large matrix's side
COMPARED, TIMED = (2, 12, 1024, 64), (2, 12, 4096, 64)  # (B, H, T, D) of queries for flex_attention
OFF = {torch.float32: 1e-3, torch.bfloat16: 5e-2}  # by how much flex_attention may differ, of the largest number
REPEATS, TURN = 5, 0.3  # how often each piece of work is timed, and for how many seconds at least

# Dense bf16 products with sums in fp32, FLOP/s, by the name that PyTorch reports. NVIDIA's tables for data centres give
# those with sparsity, twice as many.
PEAKS = {
    # NVIDIA H100 datasheet: SXM 1,979 TFLOP/s with sparsity, PCIe 1,513, NVL 1,671
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA H100 PCIe": 756.5e12,
    "NVIDIA H100 NVL": 835.5e12,
    # NVIDIA H200 datasheet: SXM 1,979, NVL 1,671
    "NVIDIA H200": 989.5e12,
    "NVIDIA H200 NVL": 835.5e12,
    # NVIDIA A100 datasheet: 312 without sparsity, in all its forms
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    # NVIDIA Ada and Ampere (GA102) architecture whitepapers, appendix A
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA GeForce RTX 3090": 71e12,
}


def measure(work: Callable[[], Any], device: torch.device) -> tuple[float, float | None]:
    """Seconds that a call takes, the median, and the most memory that was allocated on the card meanwhile, GiB."""
    on_card = device.type == "cuda"
    work()  # which may compile
    if on_card:
        torch.cuda.reset_peak_memory_stats(device)
    wait = partial(torch.cuda.synchronize, device) if on_card else lambda: None
    seconds = statistics.median(take_turns({"": work}, REPEATS, TURN, wait)[""])
    return seconds, torch.cuda.max_memory_allocated(device) / 2**30 if on_card else None


def make_ready(model: nn.Module, way: str, device: torch.device) -> nn.Module:
    """The model on its device, and compiled if asked for; what was compiled before counts no more."""
    model = model.to(device)
    if way == "eager":
        return model
    torch.compiler.reset()
    return torch.compile(model)


# ---- the parts -------------------------------------------------------------------------------------------------------


def list_tests(device: torch.device) -> Iterator[Case]:
    """The tests that need a card (`pytest -m cuda`): each compares it with a CPU, or two ways to compute the same."""
    files = [
        file for file in sorted((ROOT / "tests").glob("test_*.py")) if "pytest.mark.cuda" in file.read_text("utf-8")
    ]
    yield "tests", partial(run_tests, files)


def run_tests(files: list[Path]) -> dict[str, Any]:
    """How many of the marked tests passed. Raises RunFailed, naming those that failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider", f"--junitxml={report}"]
        ended = subprocess.run([*command, *map(str, files)], cwd=ROOT, capture_output=True, text=True, check=False)
        tests = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    if not tests:
        raise RunFailed(f"pytest ran no test: {(ended.stderr or ended.stdout).strip()[-200:]}")
    skipped = sum(test.find("skipped") is not None for test in tests)
    failed = [test.get("name") for test in tests if test.find("failure") is not None or test.find("error") is not None]
    if failed:
        raise RunFailed(f"{len(failed)} of {len(tests)} tests: {', '.join(map(str, failed))}")
    return {"passed": len(tests) - skipped, "skipped": skipped}


def list_schemes(device: torch.device) -> Iterator[Case]:
    """Every scheme trained for some steps on the same tokens, in fp32 and eager, and in bf16 and compiled."""
    for scheme in SCHEMES:
        yield scheme, partial(train_scheme, replace(SMALL, position=scheme), device)


def train_scheme(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    """Losses, speed and memory of training. Raises RunFailed for a loss that is no number."""
    row: dict[str, Any] = {}
    for precision, way in (("fp32", "eager"), ("bf16", "compiled")):
        model, (_, autocast) = make_ready(Transformer(config), way, device), devices.pick_precision(precision, device)
        step = training_step(model, config, ROWS, ROWS, autocast)
        loss = [float(step()) for _ in range(STEPS)][-1]
        if not math.isfinite(loss):
            raise RunFailed(f"the loss in {precision} is {loss}")
        seconds, memory = measure(step, device)
        speed = ROWS * config.seq_len / seconds
        row |= {f"loss, {precision}": loss, f"tokens/s, {precision}": speed, f"GiB, {precision}": memory}
    return row


def list_biases(device: torch.device) -> Iterator[Case]:
    """Biases inside flex_attention's kernel, never written out, beside our mask in scaled_dot_product_attention.

    `off` is the largest difference from the written-out form, of its largest number: of the output and of all
    gradients, the bias's own included. Times are forward and backward of one layer in bf16, its mask made before.
    """
    for scheme in ("alibi", "t5"):
        yield scheme, partial(compare_biases, scheme, device, device.type == "cuda")


def compare_biases(scheme: str, device: torch.device, backward: bool) -> dict[str, Any]:
    """Differences, speed and memory. Raises RunFailed for a difference that rounding does not explain."""
    row: dict[str, Any] = {}
    for dtype, most in OFF.items():
        name = str(dtype).removeprefix("torch.")
        row[f"off, {name}"] = off = largest_difference(scheme, dtype, device, backward)
        if not off <= most:
            raise RunFailed(f"flex_attention is off by {off:.2g} in {name}: {most:g} at most is rounding")
    _, autocast = devices.pick_precision("bf16", device)
    for way, name in (("flex", "flex"), ("fused", "mask")):
        attend, inputs = make_attention(way, scheme, TIMED, torch.bfloat16, device)

        def work(attend: Callable = attend, inputs: list[Tensor] = inputs) -> None:
            with autocast():
                run_attention(attend, inputs, backward)

        seconds, memory = measure(work, device)
        row |= {f"ms, {name}": 1000 * seconds, f"GiB, {name}": memory}
    return row


def largest_difference(scheme: str, dtype: torch.dtype, device: torch.device, backward: bool) -> float:
    """Of flex_attention from the written-out form in fp32, in output and gradients, each of its largest number."""
    made = [make_attention(way, scheme, COMPARED, dtype, device) for way in ("flex", "explicit")]
    pairs = zip(*(run_attention(*each, backward) for each in made), strict=True)
    return max(float((ours.float() - theirs).abs().max() / theirs.abs().max()) for ours, theirs in pairs)


def make_attention(
    way: str, scheme: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """Attention with a scheme's bias, and what its gradients are for: q, k, v (B, H, T, D) and the scheme's own."""
    _, H, T, D = shape
    torch.manual_seed(0)
    position = SCHEMES[scheme](replace(GPT2, d_model=H * D, n_head=H, n_kv_head=H, position=scheme)).to(device)
    for parameter in position.parameters():
        nn.init.normal_(parameter)
    q, k, v = (torch.randn(shape, device=device).to(dtype) for _ in range(3))
    if way == "flex":
        causal = create_block_mask(lambda b, h, q, k: q >= k, None, None, T, T, device=device)
        torch.compiler.reset()
        # Not compiled on a CPU: there it gives a wrong first row at length 40 (PyTorch 2.13).
        flex = torch.compile(flex_attention, dynamic=False) if device.type == "cuda" else flex_attention
        options = {"score_mod": write_score_mod(position, device), "block_mask": causal, "scale": D**-0.5}
        return partial(flex, q, k, v, **options), [q, k, v, *position.parameters()]
    at = torch.arange(T, device=device)
    mask = position.bias(at, at).masked_fill(at > at[:, None], -math.inf)  # (H, T, T)
    if way == "fused":  # as often as there are layers; the mask is made once
        mask = mask.detach().requires_grad_(mask.requires_grad)
        return partial(fused_attention, q, k, v, mask, D**-0.5), [q, k, v, *[mask] * mask.requires_grad]
    q, k, v = (x.float() for x in (q, k, v))
    return partial(explicit_attention, q, k, v, mask, D**-0.5), [q, k, v, *position.parameters()]


def write_score_mod(position: Position, device: torch.device) -> Callable[..., Tensor]:
    """The scheme's bias as flex_attention wants it: what becomes of one score, given its batch, head, query and key."""
    if isinstance(position, Alibi):
        slopes = position.slopes.to(device).float()  # (H,)
        return lambda score, b, h, q, k: score - slopes[h] * (q - k)
    table, bucket = position.table, position.bucket.to(device)  # (32, H), (129,)
    farthest = position.MAX_DISTANCE
    return lambda score, b, h, q, k: score + table[bucket[(q - k).clamp(0, farthest)], h]


def run_attention(attend: Callable[[], Tensor], inputs: list[Tensor], backward: bool) -> list[Tensor]:
    """The output, (B, H, T, D), and, if asked for, every input's gradient of the sum of it times v."""
    if not backward:
        with torch.no_grad():
            return [attend()]
    for tensor in inputs:
        tensor.requires_grad_()
    y = attend()
    return [y.detach(), *torch.autograd.grad(y, inputs, inputs[2].detach().to(y.dtype))]


def list_gpt2(device: torch.device) -> Iterator[Case]:
    """Training of 124M parameters at length 1,024 in bf16 (configs/gpu.yaml), and of transformers' Llama beside it.

    One after the other, not in turns. The shares are of the card's peak, where it is known, and of what it does in a
    large matrix product in bf16.
    """
    fits = torch.cuda.get_device_properties(device).total_memory / 2**32 if device.type == "cuda" else ROWS
    rows = min(ROWS, 2 ** int(math.log2(max(1, fits))))  # one for 4 GiB
    for make, way in itertools.product((Transformer, lambda config: Logits(llama(config))), ("eager", "compiled")):
        name = "rope" if make is Transformer else "transformers sdpa"
        yield f"{name}, {way}, {rows} rows", partial(train_large, make, way, rows, device)


def train_large(make: Callable, way: str, rows: int, device: torch.device) -> dict[str, Any]:
    model, (_, autocast) = make_ready(make(GPT2), way, device), devices.pick_precision("bf16", device)
    seconds, memory = measure(training_step(model, GPT2, rows, rows, autocast), device)
    flops = rows * GPT2.seq_len * training_flops(GPT2, GPT2.seq_len) / seconds
    a, b = (torch.randn(MATRIX, MATRIX, device=device, dtype=torch.bfloat16) for _ in range(2))
    limit = 2 * MATRIX**3 / measure(partial(torch.matmul, a, b), device)[0]
    peak = PEAKS.get(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    row = {
        "tokens/s": rows * GPT2.seq_len / seconds,
        "TFLOP/s": flops / 1e12,
        "share of the peak": peak and flops / peak,
    }
    return row | {"share of a matrix product": flops / limit, "GiB": memory}


def list_long(device: torch.device) -> Iterator[Case]:
    """One row of 16,384 tokens through 124M parameters with rope, in bf16, with fused attention."""
    for way, what in itertools.product(("eager", "compiled"), ("forward", "training step")):
        yield f"{what}, {way}", partial(run_long, what, way, device)


def run_long(what: str, way: str, device: torch.device) -> dict[str, Any]:
    config, (_, autocast) = replace(GPT2, seq_len=LONG), devices.pick_precision("bf16", device)
    model = make_ready(Transformer(config), way, device)
    tokens = torch.randint(config.vocab_size, (1, LONG), device=device)

    def forward() -> None:
        with torch.no_grad(), autocast():
            model(tokens)  # (1, T, V)

    seconds, memory = measure(forward if what == "forward" else training_step(model, config, 1, 1, autocast), device)
    return {"tokens/s": LONG / seconds, "ms": 1000 * seconds, "GiB": memory}


PARTS: dict[str, Cases] = {
    "tests": list_tests,
    "schemes": list_schemes,
    "flex": list_biases,
    "gpt2": list_gpt2,
    "long": list_long,
}


# ---- the page --------------------------------------------------------------------------------------------------------


def section(parts: dict[str, Part]) -> str:
    """What docs/speed.md says of cards: each part with what it was measured on, its table, and what went wrong."""
    if not parts:
        return "This command has never been run on a card, so there are no figures."
    lines = []
    for name, part in parts.items():
        made = ", ".join(f"{what} {value}" for what, value in part["made"].items())
        about = " ".join((PARTS[name].__doc__ or "").split())
        lines += [f"**{name}**: {about} ({made})", *[f"\nNot whole: {part['failed']}."] * bool(part["failed"])]
        lines += ["", *(table(part["rows"]) if part["rows"] else []), ""]
    return "\n".join(lines).strip()


def pick_card() -> torch.device:
    """The card. Raises BadInput where there is none."""
    if not torch.cuda.is_available():
        needs = "an NVIDIA card with its driver, and PyTorch with CUDA (pip install torch==2.13.0, not its CPU build)"
        raise BadInput(f"experiments.gpu needs {needs}: this machine has no CUDA card")
    return torch.device("cuda")


def describe_card(device: torch.device) -> dict[str, str | None]:
    """What the figures depend on."""
    found = {name: versions().get(name) for name in ("gpu", "torch")} | {"cuda": torch.version.cuda}
    return found | {"transformers": importlib.metadata.version("transformers"), "commit": commit()}


def main(argv: list[str] | None = None) -> dict[str, Part]:
    """Measure the parts that the command line names, and return what is found of all."""
    parser = Parser(prog="experiments/gpu.py", description=__doc__)
    parser.add_argument("parts", type=str, nargs="*", default=[], help=f"{', '.join(PARTS)}; all if none is named")
    parser.add_argument("--publish", type=bool, default=False, help="write results/gpu.json and docs/speed.md")
    asked = parser.parse_args(argv)
    refuse_unknown("parts", asked.parts, PARTS)
    device, cure = pick_card(), "remove it, and the same command measures it again"
    files, made, wrong = {name: FOUND / f"{name}.json" for name in PARTS}, describe_card(device), []
    parts = {name: read_figures(file, PART, cure) for name, file in files.items() if file.exists()}
    FOUND.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(asked.parts or PARTS):
        if asked.parts or name not in parts or parts[name]["made"] != made:
            parts[name] = {"made": made, "rows": {}, "failed": ""}
        part = parts[name]
        with closing(measure_part(PARTS[name], SECONDS[name], device, part)) as cases:
            for case in cases:
                print("\n".join(table({f"{name}: {case}": part["rows"][case]})), flush=True)
                write_whole(files[name], json.dumps(part, indent=1) + "\n")
        write_whole(files[name], json.dumps(part, indent=1) + "\n")
        wrong += [f"{name}: {part['failed']}"] * bool(part["failed"])
        wrong += [f"{name} {case}: {row['failed']}" for case, row in part["rows"].items() if "failed" in row]
    parts = {name: parts[name] for name in PARTS if name in parts}
    if asked.publish:
        write_whole(ROOT / "results" / "gpu.json", json.dumps(parts, indent=1) + "\n")
        replace_section("experiments/gpu.py", section(parts))
    if wrong:
        raise RunFailed("; ".join(wrong))
    return parts


if __name__ == "__main__":
    run_main(main)
