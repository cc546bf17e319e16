"""How fast this machine trains, rotates, generates and prepares text, beside other libraries and the machine's limit.

    python -m experiments.speed                                  train, rope, generate, data and length
    python -m experiments.speed train rope --out bench.json      these two, and their figures as a file
    python -m experiments.speed train --d_model 512 --n_layer 8 --batch_size 8 --compile false
    python -m experiments.speed compare --train_seconds 120      the slow ones: the default comparison, the Trainer

    train      tokens a second of training, beside transformers' Llama and x-transformers; what rope costs over none
    rope       turning queries and keys of (8, 8, 1024, 64), beside the same libraries' ways and copying the two tensors
    generate   tokens a second with a cache, one text at a time, beside transformers' generate
    data       tokens a second of preparing a corpus, beside the tokenizers library alone; memory of preparing
    length     seconds and memory as length, width, depth and text grow, and what larger models need (cost.py)
    compare    seconds of `python compare.py`; bits per byte after some seconds, beside transformers' Trainer

All contenders of one case take turns, again and again, so that whatever else the machine does meets them alike; in
training they take the same optimiser, the same precision and the batch in the same parts, those of train.py. A
figure is the median of its rounds. A ratio says how many times better ours is than the best peer's (the one with the
best median), round by round: its median, and the span from the 10th to the 90th percentile. Where that span holds 1, no
difference is shown. The limit is measured in the same turns: a product of large matrices, or copying memory.
"""

import importlib.metadata
import importlib.util
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import resource
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import compare
import data
import train
from experiments import cost
from harness import devices
from harness.files import refuse_unwritable, write_whole
from harness.messages import BadInput, RunFailed, first_paragraph, nearest, run
from harness.options import Parser
from harness.provenance import commit, versions
from harness.sampling import compiled, sample, stored_by_columns
from harness.scoring import score, target_nats
from harness.tables import markdown
from model import ModelConfig, Transformer
from rope import Layout, RopeConfig, cos_sin, frequencies, turn

HIGHER_IS_BETTER = {"tokens/s"}  # units; of all others less is better
SHAPES = [(128, 4), (256, 6)]  # d_model and n_layer, with 4 heads
ENTRIES = 1024  # of the vocabulary, as the default corpus has
CPU = torch.device("cpu")

Rounds = dict[str, list[float]]
"""What every contender of a case measured, round by round: the i-th numbers were taken one after another."""


# ---- figures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One case of a benchmark, as it goes into the file.

    Args:
        bench: train, rope, generate, data, length or compare.
        case: what was measured.
        unit: of `ours`, `peers` and `limit`.
        ours: median over the rounds.
        peers: the same of every other library.
        limit: what the machine can do at best, if that was measured.
        ratio: how many times better ours is than the best peer's; None where there is no peer.
        ratio_low: its 10th percentile over the rounds.
        ratio_high: its 90th.
    """

    bench: str
    case: str
    unit: str
    ours: float
    peers: dict[str, float] = field(default_factory=dict)
    limit: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None


def compared(bench: str, case: str, unit: str, rounds: Rounds, ours: str, peers: list[str], limit: str = "") -> Row:
    """The row of a case, from what its contenders measured in `unit`; peers that took no part are left out."""
    medians = {name: statistics.median(values) for name, values in rounds.items()}
    there = {name: medians[name] for name in peers if name in medians}
    row = Row(bench, case, unit, medians[ours], there, medians.get(limit))
    if not there:
        return row
    best = (max if unit in HIGHER_IS_BETTER else min)(there, key=there.get)
    return replace(row, **times_better(rounds[ours], rounds[best], unit))


def times_better(ours: list[float], theirs: list[float], unit: str) -> dict[str, float]:
    """How many times better ours are, pair by pair: median, 10th and 90th percentile."""
    pairs = zip(ours, theirs, strict=True)
    ratios = [mine / other if unit in HIGHER_IS_BETTER else other / mine for mine, other in pairs]
    low, middle, high = np.percentile(ratios, [10, 50, 90]).tolist()
    return {"ratio": middle, "ratio_low": low, "ratio_high": high}


def verdict(row: Row) -> str:
    """What a row's ratio shows, in words; a difference only where the whole span lies on one side of 1."""
    if row.ratio is None:
        return ""
    if row.ratio_low == row.ratio_high:  # of one round, whose spread nobody knows
        return f"{row.ratio:.2f}x, once: no difference shown"
    span = f"{row.ratio:.2f}x ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
    return f"{span}, no difference shown" if row.ratio_low <= 1 <= row.ratio_high else span


def table(rows: list[Row]) -> list[str]:
    """The rows as a Markdown table."""
    lines = [["what", "case", "ours", "best peer", "times better", "limit"]]
    for row in rows:
        best = min(
            row.peers, key=lambda name: row.peers[name] * (-1 if row.unit in HIGHER_IS_BETTER else 1), default=""
        )
        peer = f"{shown(row.peers[best], row.unit)}, {best}" if best else ""
        limit = ""
        if row.limit:
            share = row.ours / row.limit
            limit = f"{share:.0%} of it" if row.unit in HIGHER_IS_BETTER else f"{share:.1f} times it"
        lines.append([row.bench, row.case, shown(row.ours, row.unit), peer, verdict(row), limit])
    return markdown(lines)


def shown(value: float, unit: str) -> str:
    """A figure with its unit, to three digits or whole."""
    return f"{value:,.0f} {unit}" if abs(value) >= 100 else f"{value:.3g} {unit}"


def take_turns(contenders: dict[str, Callable[[], Any]], repeats: int, seconds: float) -> Rounds:
    """Seconds a call of every contender takes, `repeats` rounds of a turn each; a turn lasts about so many seconds.

    The first two calls of each, which may compile, are not counted.
    """
    calls = {}
    for name, work in contenders.items():
        work()
        began = time.perf_counter()
        work()
        calls[name] = max(1, round(seconds / max(time.perf_counter() - began, 1e-9)))
    taken: Rounds = {name: [] for name in contenders}
    for _ in tqdm(range(repeats), unit="round", leave=False, disable=not sys.stderr.isatty()):
        for name, work in contenders.items():
            began = time.perf_counter()
            for _ in range(calls[name]):
                work()
            taken[name].append((time.perf_counter() - began) / calls[name])
    return taken


def rates(rounds: Rounds, amount: float) -> Rounds:
    """Seconds turned into amounts a second."""
    return {name: [amount / seconds for seconds in values] for name, values in rounds.items()}


# ---- peers -----------------------------------------------------------------------------------------------------------

PEERS = {"transformers": "transformers", "x-transformers": "x_transformers"}
PEERS |= {"rotary-embedding-torch": "rotary_embedding_torch", "accelerate": "accelerate"}  # library: its module


def installed(library: str) -> bool:
    """Whether a peer is there; if not, that is said, once."""
    there = importlib.util.find_spec(PEERS[library]) is not None
    if not there and library not in missing:
        missing.append(library)
        print(f"{library} is not installed and takes no part: pip install -e '.[bench]' brings it", flush=True)
    return there


missing: list[str] = []


class Logits(nn.Module):
    """A model of another library as ours are called: tokens, (B, T), to logits, (B, T, V)."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, tokens: Tensor) -> Tensor:
        out = self.model(tokens, **self.options)
        return out if isinstance(out, Tensor) else out.logits


def llama(config: ModelConfig, attention: str = "sdpa", length: int | None = None, **more: Any) -> nn.Module:
    """transformers' Llama of our model's shape, for so many positions, with more options of its config."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.d_ff,
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_key_value_heads=config.n_kv_head,
            max_position_embeddings=length or config.seq_len,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tie_embeddings,
            attn_implementation=attention,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
            **more,
        )
    )


def x_transformer(config: ModelConfig) -> nn.Module:
    """x-transformers' decoder of our model's shape: RMSNorm, SwiGLU, rotary, its own fused attention.

    It has a bias more, on the gate and up of the SwiGLU, and turns features in float32 as it comes.
    """
    os.environ.setdefault("LOGURU_LEVEL", "ERROR")
    from x_transformers import Decoder, TransformerWrapper

    torch.manual_seed(0)
    layers = Decoder(
        dim=config.d_model,
        depth=config.n_layer,
        heads=config.n_head,
        attn_dim_head=config.d_head,
        attn_flash=True,
        rotary_pos_emb=True,
        rotary_emb_dim=config.d_head,
        use_rmsnorm=True,
        ff_glu=True,
        ff_swish=True,
        ff_no_bias=True,
        ff_mult=config.d_ff / config.d_model,
    )
    return TransformerWrapper(
        num_tokens=config.vocab_size,
        max_seq_len=config.seq_len,
        attn_layers=layers,
        use_abs_pos_emb=False,
        tie_embedding=config.tie_embeddings,
    )


# ---- train -----------------------------------------------------------------------------------------------------------


def shapes(asked: Any, default: list[tuple[int, int]]) -> Iterator[ModelConfig]:
    """The models to measure: those of the default, or the one the command line describes."""
    if asked.d_model or asked.n_layer:
        default = [(asked.d_model or SHAPES[0][0], asked.n_layer or SHAPES[0][1])]
    for d_model, n_layer in default:
        try:
            config = ModelConfig(vocab_size=ENTRIES, d_model=d_model, n_layer=n_layer, seq_len=asked.seq_len)
        except ValueError as error:
            raise BadInput(f"--{str(error).replace('model.', '')}") from error
        yield config


def precisions(asked: str) -> list[tuple[str, devices.Autocast]]:
    """The precisions to measure; auto is fp32, and bf16 too where the hardware has it."""
    every = ["bf16", "fp32"] if devices.bf16_is_native(CPU) else ["fp32"]
    return [devices.pick_precision(name, CPU) for name in (every if asked == "auto" else [asked])]


def can_compile(asked: Any) -> bool:
    """Whether to measure compiled models; without a C++ compiler that is said, once, and left out."""
    there = devices.has_compiler()
    if asked.compile and not there and "a C++ compiler" not in missing:
        missing.append("a C++ compiler")
        print("There is no C++ compiler: nothing compiled is measured", flush=True)
    return asked.compile and there


def training_step(
    model: nn.Module, config: ModelConfig, batch_size: int, rows: int, autocast: devices.Autocast
) -> Callable:
    """One optimiser step of train.py on random tokens: gradients, clipping, AdamW. The same for every contender."""
    settings = train.RunConfig()
    draw = torch.Generator().manual_seed(0)
    block = torch.randint(config.vocab_size, (batch_size, config.seq_len + 1), generator=draw)
    inputs, targets = block[:, :-1].contiguous(), block[:, 1:].contiguous()  # (B, T) each
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(settings.beta1, settings.beta2), fused=True)

    def step() -> float:
        loss = train.gradients(model, inputs, targets, rows, CPU, autocast)
        nn.utils.clip_grad_norm_(parameters, settings.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


def matrix_product(precision: str, size: int = 2048) -> Callable[[], Tensor]:
    """The product of two large matrices, 2 size^3 operations: as fast as a step could be if it were nothing else."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    return lambda: a @ b


def bench_train(asked: Any) -> Iterator[tuple[Row, Rounds]]:
    for config, (precision, autocast) in itertools.product(list(shapes(asked, SHAPES)), precisions(asked.precision)):
        fitting = max(1, 2048 // config.seq_len)  # rows at once: what train.py itself takes on a CPU
        rows = math.gcd(asked.batch_size, fitting)
        ways = ["eager", "compiled"] if can_compile(asked) else ["eager"]
        models: dict[str, nn.Module] = {}
        for scheme, way in itertools.product(("rope", "none"), ways):
            model = Transformer(replace(config, position=scheme))
            models[f"{scheme} {way}"] = torch.compile(model) if way == "compiled" else model
        if installed("transformers"):
            for attention in ("eager", "sdpa"):
                models[f"transformers {attention}"] = Logits(llama(config, attention), use_cache=False)
        if installed("x-transformers"):
            models["x-transformers"] = Logits(x_transformer(config))
        step = partial(training_step, config=config, batch_size=asked.batch_size, rows=rows, autocast=autocast)
        contenders = {name: step(model) for name, model in models.items()}
        size = min(2048, 8 * config.d_model)
        contenders["matrix product"] = matrix_product(precision, size)
        seconds = take_turns(contenders, asked.repeats, asked.seconds)
        tokens = rates(seconds, asked.batch_size * config.seq_len)
        possible = 2 * size**3 / cost.training_flops(config, config.seq_len)  # tokens a matrix product is worth
        tokens["matrix product"] = [possible / s for s in seconds["matrix product"]]
        others = [name for name in models if "transformers" in name]
        case = f"{config.d_model} wide, {config.n_layer} layers, {precision}"
        for way in ways:
            row = partial(compared, "train", unit="tokens/s", rounds=tokens, limit="matrix product")
            yield row(case=f"{case}, {way}", ours=f"rope {way}", peers=others), tokens
        for way in ways:
            row = compared(
                "train", f"rope beside none, {case}, {way}", "tokens/s", tokens, f"rope {way}", [f"none {way}"]
            )
            yield row, tokens


# ---- rope ------------------------------------------------------------------------------------------------------------


def bench_rope(asked: Any) -> Iterator[tuple[Row, Rounds]]:
    shape = min(8, asked.batch_size), 8, min(1024, 4 * asked.seq_len), 64  # (B, H, T, D): (8, 8, 1024, 64) by default
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)
    positions = torch.arange(shape[2])
    theta, _ = frequencies(RopeConfig(), shape[3], shape[2])
    cos, sin = (part.float() for part in cos_sin(positions, theta))  # (T, D/2) each

    def turn_both(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        return turn(q, cos, sin, layout), turn(k, cos, sin, layout)

    layouts, ways = ("interleaved", "half-split"), {"eager": turn_both}
    if can_compile(asked):
        ways["compiled"] = torch.compile(turn_both)
    contenders: dict[str, Callable] = {
        f"{layout}, {way}": partial(both, q, k, cos, sin, layout) for layout in layouts for way, both in ways.items()
    }
    if installed("transformers"):
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        twice = [torch.cat((part, part), dim=-1)[None] for part in (cos, sin)]  # (1, T, D) each, as it wants them
        contenders["transformers"] = partial(apply_rotary_pos_emb, q, k, *twice)
    if installed("rotary-embedding-torch"):
        from rotary_embedding_torch import RotaryEmbedding

        other = RotaryEmbedding(dim=shape[3])
        contenders["rotary-embedding-torch"] = lambda: [other.rotate_queries_or_keys(x) for x in (q, k)]
    contenders["copying"] = lambda: (q.clone(), k.clone())
    with torch.inference_mode():
        seconds = take_turns(contenders, asked.repeats, asked.seconds)
    milliseconds = {name: [1000 * s for s in values] for name, values in seconds.items()}
    peers = ["transformers", "rotary-embedding-torch"]
    for layout, way in itertools.product(layouts, ways):
        name = f"{layout}, {way}"
        yield compared("rope", f"q and k of {shape}, {name}", "ms", milliseconds, name, peers, "copying"), milliseconds


# ---- generate --------------------------------------------------------------------------------------------------------


def bench_generate(asked: Any) -> Iterator[tuple[Row, Rounds]]:
    prompt = list(range(1, 9))
    for config, tokens in itertools.product(list(shapes(asked, SHAPES[1:])), asked.tokens):
        model = Transformer(config).eval()
        weights = [parameter for parameter in model.parameters() if parameter.dim() == 2]

        def write(model: nn.Module, tokens: int = tokens) -> list[int]:
            return list(sample(model, prompt, tokens, temperature=0, seed=0))

        def bare(model: Transformer = model, weights: list[Tensor] = weights, tokens: int = tokens) -> None:
            vectors = {weight.shape[1]: torch.ones(1, weight.shape[1]) for weight in weights}
            with torch.inference_mode(), stored_by_columns(model):  # as fast as the products are known to go
                for _, weight in itertools.product(range(tokens), weights):
                    F.linear(vectors[weight.shape[1]], weight)

        contenders: dict[str, Callable] = {"eager": partial(write, model)}
        if can_compile(asked):
            contenders["compiled"] = partial(write, compiled(model))
        if installed("transformers"):
            other = llama(config, length=len(prompt) + tokens).eval()
            options = {"max_new_tokens": tokens, "do_sample": False, "use_cache": True}
            contenders["transformers"] = partial(other.generate, torch.tensor([prompt]), **options)
        contenders["one vector times all matrices"] = bare
        speeds = rates(take_turns(contenders, asked.repeats, asked.seconds), tokens)
        for way in ("eager", "compiled"):
            if way in speeds:
                case = f"{tokens} tokens, {config.d_model} wide, {config.n_layer} layers, fp32, {way}"
                limit = "one vector times all matrices"
                yield compared("generate", case, "tokens/s", speeds, way, ["transformers"], limit), speeds


# ---- work in a process of its own, whose memory can be told ----------------------------------------------------------


@dataclass(frozen=True)
class Apart:
    """What a piece of work took in a process of its own.

    Args:
        result: what it returned.
        before: memory in use when it began, the libraries above all, MiB.
        peak: most memory in use while it worked, pages of mapped files included, MiB.
        anonymous: most memory that no file stands behind, MiB; None where there is no /proc.
    """

    result: Any
    before: float
    peak: float
    anonymous: float | None


def apart(work: Callable, *arguments: Any) -> Apart:
    """Call work(*arguments) in a fresh process, and watch its memory.

    Raises:
        RunFailed: if it did not come to its end.
    """
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=in_child, args=(sender, torch.get_num_threads(), work, arguments))
    process.start()
    sender.close()
    anonymous, rollup = None, Path(f"/proc/{process.pid}/smaps_rollup")
    while not receiver.poll(0.02):
        with suppress(OSError):
            anonymous = max(anonymous or 0, memory_line(rollup, "Anonymous"))
    try:
        result, before, peak = receiver.recv()
    except EOFError as error:
        raise RunFailed(f"{work.__name__}{arguments} ended early: out of memory?") from error
    finally:
        process.join()
    return Apart(result, before, peak, anonymous)


def in_child(sender: Any, threads: int, work: Callable, arguments: tuple) -> None:
    """The other end of `apart`."""
    torch.set_num_threads(threads)
    before = peak_memory()
    with suppress(OSError):  # the peak from here on; Linux alone can forget the one before
        Path("/proc/self/clear_refs").write_text("5")
        before = memory_line(Path("/proc/self/status"), "VmRSS")
    result = work(*arguments)
    sender.send((result, before, peak_memory()))


def peak_memory() -> float:
    """The most memory this process had in use, MiB.

    ru_maxrss, where there is nothing better: on Linux it begins with the peak of the process that started this one.
    """
    with suppress(OSError):
        return memory_line(Path("/proc/self/status"), "VmHWM")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10


def memory_line(path: Path, name: str) -> float:
    """A line of a file below /proc, MiB."""
    return int(re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)[1]) / 2**10


# ---- data ------------------------------------------------------------------------------------------------------------


def write_text(path: Path, megabytes: float, seed: int = 0) -> None:
    """So many megabytes of text: the King James verses again and again, each time in another order."""
    verses = next(data.read_kjv())["text"].splitlines(keepends=True)
    draw, left = random.Random(seed), int(megabytes * 1e6)
    with open(path, "wb") as file:
        while left > 0:
            draw.shuffle(verses)
            for verse in verses:
                left -= file.write(verse)
                if left <= 0:
                    break


def train_tokenizer(text: Path, folder: Path) -> Path:
    """A BPE learned from a text, in a file of the folder."""
    config = data.DataConfig(str(text), vocab_size=ENTRIES, cache=str(folder / "learned"))
    data.load(config, 0, 1, 1).tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def prepare(text: Path, tokenizer: Path, cache: Path) -> tuple[int, float]:
    """Prepare a corpus with a tokenizer that is there already: tokens written, and seconds."""
    began = time.perf_counter()
    corpus = data.load(data.DataConfig(str(text), tokenizer=str(tokenizer), cache=str(cache)), 0, 1, 1)
    seconds = time.perf_counter() - began
    return sum(len(corpus.tokens(split)) for split in data.SPLITS), seconds


def bench_data(asked: Any) -> Iterator[tuple[Row, Rounds]]:
    with tempfile.TemporaryDirectory() as name:
        folder, count = Path(name), itertools.count()
        smallest = min(asked.megabytes)
        texts = {size: folder / f"{size:g}.txt" for size in asked.megabytes}
        for size, text in texts.items():
            write_text(text, size)
        tokenizer = train_tokenizer(texts[smallest], folder)
        alone = data.load_tokenizer(tokenizer)
        tokens, _ = prepare(texts[smallest], tokenizer, folder / "first")

        # The same text in the same pieces, of up to 16 KiB, which is how it goes to the library here.
        raw = texts[smallest].read_bytes()
        spool = data.Spool(texts[smallest], len(raw), 0, 0, np.array([len(raw)]))
        pieces = [piece.decode() for piece, _ in data.read_pieces(spool, 0, len(raw))]
        contenders = {
            "ours": lambda: prepare(texts[smallest], tokenizer, folder / str(next(count))),
            "tokenizers": lambda: alone.encode_batch_fast(pieces, add_special_tokens=False),
        }
        speeds = rates(take_turns(contenders, min(3, asked.repeats), asked.seconds), tokens)
        yield compared("data", f"preparing {smallest:g} MB", "tokens/s", speeds, "ours", ["tokenizers"]), speeds
        for size, text in texts.items():
            taken = apart(prepare, text, tokenizer, folder / f"apart-{size:g}")
            if taken.anonymous is not None:
                yield Row("data", f"anonymous memory, preparing {size:g} MB", "MiB", taken.anonymous), {}


# ---- length ----------------------------------------------------------------------------------------------------------


def evaluate_once(config: ModelConfig, length: int) -> float:
    """Seconds of scoring every token of one window."""
    model = Transformer(config).eval()
    tokens = torch.randint(config.vocab_size, (1, length + 1), generator=torch.Generator().manual_seed(0))
    _, autocast = devices.pick_precision("fp32", CPU)
    began = time.perf_counter()
    target_nats(model, tokens[:, :-1], tokens[:, 1:], CPU, autocast)
    return time.perf_counter() - began


def train_once(config: ModelConfig, rows: int) -> float:
    """Seconds of the better of two training steps, after one that warms up."""
    _, autocast = devices.pick_precision("fp32", CPU)
    step = training_step(Transformer(config), config, rows, rows, autocast)
    return min(take_turns({"step": step}, 2, 0)["step"])


def bench_length(asked: Any) -> Iterator[tuple[Row, Rounds]]:
    (config,) = shapes(asked, SHAPES[:1])
    rows = max(1, 2048 // config.seq_len)
    points: list[tuple[str, float, Apart, float]] = []  # what grows, its size, what it took, operations (of text: MB)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for length in asked.lengths:
            flops = length * cost.forward_flops(config, length)
            points.append(("length", length, apart(evaluate_once, config, length), flops))
        for n in (1, 2, 3, 4):
            wide = replace(config, d_model=n * config.d_model, d_ff=n * config.d_ff)
            flops = rows * config.seq_len * cost.training_flops(wide, config.seq_len)
            points.append(("width", wide.d_model, apart(train_once, wide, rows), flops))
        for n in (1, 2, 3):
            deep = replace(config, n_layer=n * config.n_layer)
            flops = rows * config.seq_len * cost.training_flops(deep, config.seq_len)
            points.append(("depth", deep.n_layer, apart(train_once, deep, rows), flops))
        texts = {n * min(asked.megabytes) / 10: folder / f"{n}.txt" for n in (2, 5, 10)}
        for megabytes, text in texts.items():
            write_text(text, megabytes)
        tokenizer = train_tokenizer(texts[min(texts)], folder)
        for megabytes, text in texts.items():
            taken = apart(prepare, text, tokenizer, folder / f"cache-{megabytes:g}")
            points.append(("text", megabytes, replace(taken, result=taken.result[1]), megabytes))
    for what, size, taken, _ in points:
        case = f"{cost.WORK[what]}, {what} {size:,g} {cost.UNITS[what]}"
        yield Row("length", case, "s", taken.result), {}
        yield Row("length", case, "MiB", taken.peak), {}
    if asked.report:
        here = versions()
        how = (
            f"Measured on {here['cores']} cores ({here['cpu']}), {torch.get_num_threads()} threads, fp32, "
            f"PyTorch {here['torch']}, commit {(commit() or 'unknown')[:10]}; each figure once, in a process of "
            f"its own. The model is {config.d_model} wide with {config.n_layer} layers and {config.n_head} heads "
            f"where nothing else is said; a training step is {rows} x {config.seq_len} tokens and one optimiser step."
        )
        grown = [
            cost.Point(what, size, taken.result, taken.peak - taken.before, taken.peak, work)
            for what, size, taken, work in points
        ]
        write_whole(Path(asked.report), cost.page(how, grown))


# ---- compare ---------------------------------------------------------------------------------------------------------


class Rows(torch.utils.data.IterableDataset):
    """The rows of a corpus's training batches in order, as transformers' Trainer takes them."""

    def __init__(self, corpus: data.Corpus) -> None:
        self.corpus = corpus

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for step in itertools.count():
            inputs, _ = self.corpus.batch(step)  # (B, T)
            yield from ({"input_ids": row, "labels": row} for row in inputs)


def trainer_run(
    model: nn.Module, corpus: data.Corpus, config: train.RunConfig, steps: int, precision: str, folder: Path
) -> float:
    """Train with transformers' Trainer, its settings those of our run where it has them; the seconds it took."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(config.warmup * steps),
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        max_grad_norm=config.grad_clip,
        optim="adamw_torch_fused",
        bf16=precision == "bf16",
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows(corpus))
    began = time.perf_counter()
    trainer.train()
    return time.perf_counter() - began


def fitted(run: Callable[[int], tuple[float, Any]], steps: int, seconds: float) -> tuple[int, float, Any]:
    """Train anew, with as many steps as the run before says, until a run takes the seconds asked for, to a thirtieth.

    The speed of a short rehearsal is not that of a long run, nor is a busy machine's the same twice; after four runs
    the last one counts, as it came out.

    Args:
        run: trains so many steps from the start, and returns the seconds they took and what came out.
        steps: of the rehearsal.
        seconds: asked for.

    Returns:
        The last run's steps, seconds and what came out.
    """
    taken, made = run(steps)
    for _ in range(4):
        steps = max(1, round(steps * seconds / taken))
        taken, made = run(steps)
        if abs(taken - seconds) <= seconds / 30:
            break
    return steps, taken, made


def against_trainer(asked: Any, flags: list[str], folder: Path) -> Iterator[tuple[Row, Rounds]]:
    """Bits per byte of the validation split after so many seconds of training, ours and the Trainer's."""
    _, texts, shape, config = train.parse(
        ["--run.wandb", "disabled", *flags], train.make_parser("experiments/speed.py", "")
    )
    config = replace(config, eval_every=10**9, threads=torch.get_num_threads())
    corpus = data.load(texts, config.seed, config.batch_size, shape.seq_len)
    shape = train.with_vocabulary(shape, corpus)
    precision, autocast = devices.pick_precision(config.precision, CPU)
    rehearsal = max(2, asked.rehearsal)  # steps, of each, that say how many fit into the seconds

    def ours(steps: int) -> tuple[float, dict[str, Any]]:
        again = replace(config, steps=steps, save_every=steps, out=str(folder / "ours"), overwrite=True)
        result = train.train(texts, shape, again)
        return result["seconds"], result

    def theirs(steps: int) -> tuple[float, nn.Module]:
        model = llama(shape)
        return trainer_run(model, corpus, config, steps, precision, folder / "trainer"), model

    steps, seconds, result = fitted(ours, rehearsal, asked.train_seconds)
    bits, taken = {"ours": [result["bits_per_byte"]]}, {"ours": (steps, seconds)}
    if installed("transformers") and installed("accelerate"):
        steps, seconds, model = fitted(theirs, rehearsal, asked.train_seconds)
        windows = corpus.windows("validation", shape.seq_len)
        scored = score(Logits(model.eval(), use_cache=False), windows, corpus.token_bytes, CPU, autocast)
        bits["transformers Trainer"], taken["transformers Trainer"] = [scored.bits_per_byte], (steps, seconds)
    for name, (steps, seconds) in taken.items():
        print(f"{name}: {steps} steps in {seconds:.1f} s, {bits[name][0]:.4f} bits per byte", flush=True)
    case = f"after {asked.train_seconds:g} s of training"
    yield compared("compare", case, "bits/byte", bits, "ours", ["transformers Trainer"]), bits


def bench_compare(asked: Any) -> Iterator[tuple[Row, Rounds]]:
    flags = shlex.split(asked.flags)
    with tempfile.TemporaryDirectory() as name:
        yield from against_trainer(asked, flags, Path(name))
        began = time.perf_counter()
        compare.main(["--out", str(Path(name) / "compare"), "--run.wandb", "disabled", *flags])
        yield Row("compare", "the default comparison", "s", time.perf_counter() - began), {}


# ---- the command line ------------------------------------------------------------------------------------------------

BENCHES = {"train": bench_train, "rope": bench_rope, "generate": bench_generate}
BENCHES |= {"data": bench_data, "length": bench_length, "compare": bench_compare}
SLOW = {"compare"}
OPTIONS = ("repeats", "seconds", "d_model", "n_layer", "batch_size", "seq_len", "precision", "compile")  # kept on file


def refuse_wrong(asked: Any) -> None:
    """Raise BadInput for what cannot be measured, or written, before anything is."""
    for name in asked.benches:
        if name not in BENCHES:
            raise BadInput(f"{name} is none of {', '.join(BENCHES)}{nearest(name, BENCHES)}")
    for name in ("repeats", "d_model", "n_layer", "batch_size", "seq_len", "threads", "rehearsal"):
        if (value := getattr(asked, name)) is not None and value < 1:
            raise BadInput(f"--{name} {value} must be at least 1")
    for name in ("seconds", "train_seconds"):
        if not 0 < getattr(asked, name) < math.inf:
            raise BadInput(f"--{name} {getattr(asked, name):g} must be above 0 and finite")
    for name in ("tokens", "lengths", "megabytes"):
        values = getattr(asked, name)
        if not values or not all(0 < value < math.inf for value in values):
            raise BadInput(f"--{name} {values} must be one or more numbers above 0")
    if len(set(asked.lengths)) < 2 and "length" in asked.benches:
        raise BadInput(f"--lengths {asked.lengths} must be two or more, to see what grows")
    list(shapes(asked, SHAPES))  # refuses widths that cannot be
    for name in ("out", "report"):
        if getattr(asked, name) is not None:
            refuse_unwritable(name, Path(getattr(asked, name)))


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmarks that the command line names, and return what goes into the file."""
    parser = Parser(prog="experiments/speed.py", description=first_paragraph(__doc__))
    parser.add_argument(
        "benches", type=str, nargs="*", default=[], help=f"{', '.join(BENCHES)}; all but compare if none"
    )
    parser.add_argument("--out", type=str | None, default=None, help="write the figures to this .json")
    parser.add_argument("--note", type=str, default="", help="a word on the measurement, kept with it")
    parser.add_argument("--repeats", type=int, default=7, help="rounds in which all contenders take turns")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long a turn lasts at least")
    parser.add_argument("--d_model", type=int | None, default=None, help="width; 128 and 256 if not given")
    parser.add_argument("--n_layer", type=int | None, default=None, help="layers; 4 and 6 if not given")
    parser.add_argument("--batch_size", type=int, default=32, help="rows of a training step")
    parser.add_argument("--seq_len", type=int, default=256, help="tokens a row")
    parser.add_argument("--tokens", type=list[int], default=[200, 2000], help="to generate: [200,2000]")
    parser.add_argument("--precision", type=Literal["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--threads", type=int | None, default=None, help="of PyTorch; its own choice if not given")
    parser.add_argument("--compile", type=bool, default=True, help="whether to measure compiled models too")
    parser.add_argument("--lengths", type=list[int], default=[1024, 2048, 4096, 8192, 16384], help="of length, tokens")
    parser.add_argument("--megabytes", type=list[float], default=[10, 200], help="texts of data: speed at the smallest")
    parser.add_argument("--report", type=str | None, default=None, help="write the page of length to this .md")
    parser.add_argument("--train_seconds", type=float, default=120, help="of compare: how long each side trains")
    parser.add_argument("--rehearsal", type=int, default=50, help="of compare: steps that tell how many fit into them")
    parser.add_argument("--flags", type=str, default="", help="of compare: options of train.py, in quotes")
    asked = parser.parse_args(argv)
    refuse_wrong(asked)
    missing.clear()
    names = list(dict.fromkeys(asked.benches)) or [name for name in BENCHES if name not in SLOW]
    if asked.threads:
        torch.set_num_threads(asked.threads)
    rows, details = [], []
    for name in names:
        for row, rounds in BENCHES[name](asked):
            rows.append(row)
            details.append(rounds)
            print("\n".join(table([row])[2:]), flush=True)
    print("\n" + "\n".join(table(rows)))
    content = {"rows": [asdict(row) for row in rows], "rounds": details, "missing": list(missing)}
    there = {
        library: importlib.metadata.version(library) for library in PEERS if importlib.util.find_spec(PEERS[library])
    }
    content |= {"versions": versions() | {"threads": torch.get_num_threads()}, "peers": there, "commit": commit()}
    content |= {"note": asked.note, "options": {name: getattr(asked, name) for name in OPTIONS}}
    if asked.out:
        write_whole(Path(asked.out), json.dumps(content, indent=2) + "\n")
    return content


if __name__ == "__main__":
    run(main)
