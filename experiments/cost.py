"""What a transformer costs, by arithmetic alone: parameters, floating-point operations, memory, and what grows how.

Nothing here is measured. `python -m experiments.speed length` puts measurements beside it, and writes both as a page.

One multiplication and one addition are two operations (FLOPs). A matrix of n numbers costs a token 2 n of them forward,
and twice that backward, since there its input and its weights get a gradient each: 6 n. A causal layer's scores take
2 C operations for every query and key it may see, (T + 1) / 2 of them on average, and so does the sum over values:

    forward      2 N + 2 L C (T + 1)     per token: N numbers in matrices, L layers, C wide, T tokens of context
    training     6 N + 6 L C (T + 1)     three times that (Kaplan et al., 2001.08361)

PaLM (2204.02311) takes twice the second term, as if every token saw all others.
"""

from dataclasses import dataclass

import numpy as np

from harness.tables import markdown
from model import ModelConfig

PEAK = 989e12  # FLOP/s of one H100 SXM in dense bf16, as its maker states it
UTILISATION = 0.4  # assumed: the part of the peak that training reaches; published runs lie between 0.3 and 0.6
TOKENS_A_PARAMETER = 20  # about what Hoffmann et al. (2203.15556) found best for the operations spent
GPT2_ENTRIES = 50_304  # GPT-2's vocabulary, rounded up to a multiple of 64


def matrix_parameters(config: ModelConfig) -> int:
    """Numbers in the matrices that every token is multiplied by (N): blocks and head, without norms and look-ups."""
    C, heads = config.d_model, config.n_head + 2 * config.n_kv_head
    block = C * heads * config.d_head + C * C + 3 * C * config.d_ff
    return config.n_layer * block + config.vocab_size * C


def parameters(config: ModelConfig) -> int:
    """All trained numbers but a scheme's own: the matrices, two norms a block and a last one, an untied embedding."""
    untied = 0 if config.tie_embeddings else config.vocab_size * config.d_model
    return matrix_parameters(config) + untied + (2 * config.n_layer + 1) * config.d_model


def forward_flops(config: ModelConfig, length: int) -> float:
    """Operations of one token's forward pass, the mean over a window of `length` tokens."""
    return 2 * matrix_parameters(config) + 2 * config.n_layer * config.d_model * (length + 1)


def training_flops(config: ModelConfig, length: int) -> float:
    """Operations of training on one token, the mean over a window of `length` tokens."""
    return 3 * forward_flops(config, length)


def cache_bytes(config: ModelConfig, tokens: int, width: int) -> int:
    """A key and a value of every layer for every token, `width` bytes a number."""
    return 2 * config.n_layer * config.n_kv_head * config.d_head * tokens * width


def activation_bytes(config: ModelConfig, tokens: int) -> int:
    """What the backward pass needs of a forward pass over so many tokens in bf16, with attention fused.

    A layer keeps per token: both norms' inputs and outputs (4 C), queries and what attention gives (2 C), keys and
    values (2 C_kv), gate and up, silu(gate), and its product with up (4 d_ff): 2 bytes each. The head keeps its input,
    and logits once in bf16 and twice in float32, where the loss is taken.
    """
    C, kept = config.d_model, config.n_kv_head * config.d_head
    layer = 2 * (6 * C + 2 * kept + 4 * config.d_ff)
    return tokens * (config.n_layer * layer + 2 * 2 * C + (2 + 4 + 4) * config.vocab_size)


@dataclass(frozen=True)
class Budget:
    """Bytes of a training process on each device: weights, gradients and AdamW's two means, all in float32."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


def budget(config: ModelConfig, devices: int, tokens_at_once: int) -> Budget:
    """Memory of a device when weights, gradients and optimiser are shared out evenly over all devices."""
    mine = parameters(config) / devices
    return Budget(4 * mine, 4 * mine, 8 * mine, activation_bytes(config, tokens_at_once))


def training_seconds(config: ModelConfig, tokens: float, devices: int) -> float:
    """How long devices take to train on so many tokens at the assumed utilisation; no communication is counted."""
    return training_flops(config, config.seq_len) * tokens / (devices * PEAK * UTILISATION)


def growth(x: list[float], y: list[float]) -> float:
    """The power p of the line y ~ x^p that lies nearest in logarithms: 1 grows in proportion, 2 as the square."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


# ---- the page --------------------------------------------------------------------------------------------------------

GPU = ModelConfig(vocab_size=GPT2_ENTRIES, d_model=768, n_layer=12, n_head=12, seq_len=1024)
CLUSTER = ModelConfig(vocab_size=GPT2_ENTRIES, d_model=1600, n_layer=48, n_head=25, seq_len=2048)


def estimate(title: str, config: ModelConfig, devices: int, rows: int) -> str:
    """What a model would need on so many H100, as a section with the arithmetic shown."""
    N, matrices, T = parameters(config), matrix_parameters(config), config.seq_len
    C, L, F, V = config.d_model, config.n_layer, config.d_ff, config.vocab_size
    per_token, tokens = training_flops(config, T), TOKENS_A_PARAMETER * N
    seconds, at_once = training_seconds(config, tokens, devices), rows * T
    memory, GB = budget(config, devices, at_once), 1e9
    speed = devices * PEAK * UTILISATION
    share = f" / {devices}" if devices > 1 else ""
    lines = [
        f"### {title}",
        "",
        f"{L} layers, {C} wide, {config.n_head} heads, d_ff {F}, {V:,} entries, length {T:,}.",
        "",
        "| what | arithmetic | comes to |",
        "| --- | --- | --- |",
        f"| numbers in matrices, N | {L} (4 x {C}^2 + 3 x {C} x {F}) + {V:,} x {C} | {matrices / 1e6:,.1f}M |",
        f"| parameters | N + {2 * L + 1} norms of {C} | {N / 1e6:,.1f}M |",
        f"| operations a token | 6 N + 6 x {L} x {C} x {T + 1:,} | {per_token / 1e9:,.2f} GFLOP |",
        f"| tokens | {TOKENS_A_PARAMETER} a parameter | {tokens / 1e9:,.1f}B |",
        f"| operations | both multiplied | {per_token * tokens:.2e} FLOP |",
        f"| speed | {devices} x 989 TFLOP/s x {UTILISATION:g} | {speed / 1e12:,.0f} TFLOP/s |",
        f"| tokens a second | speed / operations a token | {speed / per_token:,.0f} |",
        f"| time | operations / speed | {seconds / 3600:,.1f} hours |",
        f"| weights, float32 | 4 bytes x parameters{share} | {memory.weights / GB:,.2f} GB a device |",
        f"| gradients, float32 | 4 bytes x parameters{share} | {memory.gradients / GB:,.2f} GB |",
        f"| optimiser, two means in float32 | 8 bytes x parameters{share} | {memory.optimizer / GB:,.2f} GB |",
        f"| activations, {rows} x {T:,} tokens at once | {L} x 2 bytes x (8 x {C} + 4 x {F}) a token, and logits "
        f"10 bytes x {V:,} | {memory.activations / GB:,.1f} GB |",
        f"| together | | {memory.total / GB:,.1f} GB of 80 |",
        f"| cache, bf16, one text of {T:,} tokens | 2 x {L} x {C} x 2 bytes a token | "
        f"{cache_bytes(config, T, 2) / 1e6:,.0f} MB |",
    ]
    return "\n".join(lines)


def estimates() -> str:
    """The part of the page that is arithmetic: one model on one H100, one on 64."""
    return "\n\n".join(
        [
            "## What larger models would need: an estimate, not a measurement",
            "Nobody ran these. The arithmetic is that of experiments/cost.py, its assumptions are two: a GPU of 989 "
            f"TFLOP/s in dense bf16 (H100 SXM, its maker's figure) of which training reaches {UTILISATION:.0%}, and "
            f"{TOKENS_A_PARAMETER} tokens a parameter. Autocast's bf16 copies of weights, the allocator's waste and "
            "communication are left out. Shared out over 64 devices, every step also moves about 2 x 2 bytes a "
            "parameter to gather weights (forward and backward) and 4 to reduce gradients, which has to hide behind "
            "the computing.",
            estimate("124M parameters on one H100 (configs/gpu.yaml)", GPU, devices=1, rows=16),
            estimate("1.5B parameters on 64 H100", CLUSTER, devices=64, rows=4),
        ]
    )


# ---- what was measured -----------------------------------------------------------------------------------------------

WORK = {"length": "evaluating one window", "width": "a training step", "depth": "a training step", "text": "preparing"}
UNITS = {"length": "tokens", "width": "features", "depth": "layers", "text": "MB"}


@dataclass(frozen=True)
class Point:
    """One measurement of a series in which one thing grows.

    Args:
        what: length, width, depth or text.
        size: how large it is, in its unit.
        seconds: of the work.
        added: memory that the work added to the process at its peak, MiB.
        peak: all memory of the process, MiB.
        work: operations by the arithmetic above; for text, which has none, its size in MB.
    """

    what: str
    size: float
    seconds: float
    added: float
    peak: float
    work: float


def page(how: str, points: list[Point]) -> str:
    """How time and memory grew, with the powers that fit, and what larger models would need.

    Args:
        how: where and with what that was measured.
        points: the series, one after another.
    """
    lines = [
        "# How the cost grows",
        "",
        "Made by `python -m experiments.speed length --report results/COST.md`.",
        "",
        how,
    ]
    lines += [
        "`power` is p of the line size^p that fits best: 1 grows in proportion, 2 as the square. Memory is what the"
    ]
    lines += ["work added to the process at its peak."]
    for what in WORK:
        mine = [point for point in points if point.what == what]
        sizes, has_flops = [point.size for point in mine], what != "text"
        rows = [[f"{what}, {UNITS[what]}", "seconds", "memory added, MiB", "peak, MiB"]]
        rows[0] += ["GFLOP by arithmetic", "GFLOP/s"] if has_flops else ["MB/s"]
        for point in mine:
            row = [f"{point.size:,g}", f"{point.seconds:.3g}", f"{point.added:,.0f}", f"{point.peak:,.0f}"]
            speed = point.work / point.seconds
            rows.append(row + ([f"{point.work / 1e9:,.1f}", f"{speed / 1e9:,.1f}"] if has_flops else [f"{speed:.2f}"]))
        seconds, added = [point.seconds for point in mine], [max(0.1, point.added) for point in mine]
        powers = ["power", f"{growth(sizes, seconds):.2f}", f"{growth(sizes, added):.2f}", ""]
        rows.append(powers + ([f"{growth(sizes, [p.work for p in mine]):.2f}", ""] if has_flops else [""]))
        lines += ["", f"## {WORK[what].capitalize()}, by {what}", "", *markdown(rows)]
    return "\n".join([*lines, "", estimates(), ""])
