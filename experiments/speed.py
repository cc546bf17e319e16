"""How fast does this machine train, rotate, generate and prepare text, beside other libraries and its own limit?

    python -m experiments.speed                                  train, rope, generate and data
    python -m experiments.speed train rope --out bench.json      these two, and their figures as a file
    python -m experiments.speed train --d_model 512 --n_layer 8 --batch_size 8 --compile false
    python -m experiments.speed trainer --train_seconds 120      bits per byte after 120 seconds of training

    train      tokens per second of training, beside transformers' Llama; what rope costs over no positions
    rope       turning queries and keys of (8, 8, 1024, 64), beside transformers and copying the two tensors
    generate   tokens per second with a cache, one text at a time, beside transformers' generate
    data       tokens per second of preparing a corpus, beside the tokenizers library alone; memory of preparing
    trainer    bits per byte after some seconds of training, beside transformers' Trainer

The contenders of a case take turns, so that whatever else the machine does affects them alike; in training they have
the same optimiser, the same precision and the batch in the same parts. A figure is the median of its rounds. A ratio
says how many times better ours is than the best peer's, round by round: its median, and in brackets the 10th to 90th
percentile. If that range contains 1, no difference is shown. The limit, a product of large matrices or copying memory,
is measured in the same turns. `python -m experiments.publish bench.json` puts the figures into docs/speed.md.
"""

import importlib.metadata
import importlib.util
import itertools
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

import data
import train
from harness import devices
from harness.files import refuse_unwritable, write_whole
from harness.messages import BadInput, first_paragraph, nearest, run_main
from harness.options import Parser
from harness.peers import Logits, llama, train_theirs
from harness.provenance import commit, versions
from harness.ranges import explain
from harness.runs import load_finished_run
from harness.sampling import compile_for_sampling, sample, store_by_columns
from harness.scoring import score
from harness.timing import Rounds, Row, compare_rounds, rates, run_apart, table, take_turns
from harness.workloads import ENTRIES, learn_tokenizer, prepare, training_flops, training_step, write_text
from model import ModelConfig, Transformer
from rope import Layout, RopeConfig, cos_sin, frequencies, turn

SHAPES = [(128, 4), (256, 6)]  # d_model and n_layer, with 4 heads
LENGTH, TURN = 256, 0.5  # tokens per row of training; seconds that a turn lasts at least
TOKENS, MEGABYTES = [200, 2000], [10, 200]  # to generate; of text to prepare, the speed of the smallest
TRAINER_FLAGS = ["--run.wandb", "disabled"]  # options of train.py
PEERS = ("transformers", "accelerate")
CPU = torch.device("cpu")

Cases = Iterator[tuple[Row, Rounds]]
missing: list[str] = []  # what was not there to be measured


# ---- peers -----------------------------------------------------------------------------------------------------------


def is_installed(library: str) -> bool:
    """Whether a peer is installed; if not, a message says so, once."""
    there = importlib.util.find_spec(library) is not None
    if not there and library not in missing:
        missing.append(library)
        print(f"{library} is not installed and takes no part: pip install -e '.[bench]' brings it", flush=True)
    return there


# ---- train -----------------------------------------------------------------------------------------------------------


def list_shapes(asked: Any, default: list[tuple[int, int]]) -> Iterator[ModelConfig]:
    """The models to measure: those of the default, or the one that the command line describes."""
    if asked.d_model or asked.n_layer:
        default = [(asked.d_model or SHAPES[0][0], asked.n_layer or SHAPES[0][1])]
    for d_model, n_layer in default:
        try:
            config = ModelConfig(vocab_size=ENTRIES, d_model=d_model, n_layer=n_layer, seq_len=LENGTH)
        except ValueError as error:
            raise BadInput(f"--{explain(error).replace('model.', '')}") from error
        yield config


def can_compile(asked: Any) -> bool:
    """Whether to measure compiled models; if there is no C++ compiler, a message says so, once."""
    there = devices.has_compiler()
    if asked.compile and not there and "a C++ compiler" not in missing:
        missing.append("a C++ compiler")
        print("There is no C++ compiler: nothing compiled is measured", flush=True)
    return asked.compile and there


def bench_train(asked: Any) -> Cases:
    precision, autocast = devices.pick_precision("auto", CPU)
    for config in list_shapes(asked, SHAPES):
        rows = math.gcd(asked.batch_size, max(1, 2048 // config.seq_len))  # at once: what train.py takes on a CPU
        ways = ["eager", "compiled"] if can_compile(asked) else ["eager"]
        models: dict[str, nn.Module] = {}
        for scheme, way in itertools.product(("rope", "none"), ways):
            model = Transformer(replace(config, position=scheme))
            models[f"{scheme} {way}"] = torch.compile(model) if way == "compiled" else model
        if is_installed("transformers"):
            models["transformers sdpa"] = Logits(llama(config))
        contenders: dict[str, Callable] = {
            name: training_step(model, config, asked.batch_size, rows, autocast) for name, model in models.items()
        }
        size = min(2048, 8 * config.d_model)
        a, b = (torch.ones(size, size, dtype={"bf16": torch.bfloat16}.get(precision)) for _ in range(2))
        contenders["matrix product"] = partial(torch.matmul, a, b)
        seconds = take_turns(contenders, asked.repeats, TURN)
        tokens = rates(seconds, asked.batch_size * config.seq_len)
        worth = 2 * size**3 / training_flops(config, config.seq_len)  # tokens, in operations, of a matrix product
        tokens["matrix product"] = [worth / s for s in seconds["matrix product"]]
        case = f"{config.d_model} wide, {config.n_layer} layers, {precision}"
        row = partial(compare_rounds, "train", unit="tokens/s", rounds=tokens)
        for way in ways:
            peers = ["transformers sdpa"]
            yield row(case=f"{case}, {way}", ours=f"rope {way}", peers=peers, limit="matrix product"), tokens
        for way in ways:
            yield row(case=f"rope beside none, {case}, {way}", ours=f"rope {way}", peers=[f"none {way}"]), tokens


# ---- rope ------------------------------------------------------------------------------------------------------------


def bench_rope(asked: Any) -> Cases:
    shape = min(8, asked.batch_size), 8, min(1024, 4 * LENGTH), 64  # (B, H, T, D): (8, 8, 1024, 64) by default
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)
    theta, _ = frequencies(RopeConfig(), shape[3], shape[2])
    cos, sin = (part.float() for part in cos_sin(torch.arange(shape[2]), theta))  # (T, D/2) each

    def turn_both(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        return turn(q, cos, sin, layout), turn(k, cos, sin, layout)

    ways = {"eager": turn_both} | ({"compiled": torch.compile(turn_both)} if can_compile(asked) else {})
    ours: dict[str, Callable] = {
        f"{layout}, {way}": partial(both, q, k, cos, sin, layout)
        for layout, (way, both) in itertools.product(("interleaved", "half-split"), ways.items())
    }
    contenders = ours | {"copying": lambda: (q.clone(), k.clone())}
    if is_installed("transformers"):
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        twice = [torch.cat((part, part), dim=-1)[None] for part in (cos, sin)]  # (1, T, D) each, as it wants them
        contenders["transformers"] = partial(apply_rotary_pos_emb, q, k, *twice)
    with torch.inference_mode():
        seconds = take_turns(contenders, asked.repeats, TURN)
    milliseconds = {name: [1000 * s for s in values] for name, values in seconds.items()}
    for name in ours:
        case = f"q and k of {shape}, {name}"
        yield compare_rounds("rope", case, "ms", milliseconds, name, ["transformers"], "copying"), milliseconds


# ---- generate --------------------------------------------------------------------------------------------------------


def bench_generate(asked: Any) -> Cases:
    prompt, limit = list(range(1, 9)), "one vector times all matrices"
    for config, tokens in itertools.product(list(list_shapes(asked, SHAPES[1:])), TOKENS):
        model = Transformer(config).eval()
        weights = [parameter for parameter in model.parameters() if parameter.dim() == 2]

        def write(model: nn.Module, tokens: int = tokens) -> list[int]:
            return list(sample(model, prompt, tokens, temperature=0, seed=0))

        def multiply(model: Transformer = model, weights: list[Tensor] = weights, tokens: int = tokens) -> None:
            vectors = {weight.shape[1]: torch.ones(1, weight.shape[1]) for weight in weights}
            with torch.inference_mode(), store_by_columns(model):  # as fast as the products are known to go
                for _, weight in itertools.product(range(tokens), weights):
                    F.linear(vectors[weight.shape[1]], weight)

        ours: dict[str, Callable] = {"eager": partial(write, model)}
        if can_compile(asked):
            ours["compiled"] = partial(write, compile_for_sampling(model))
        contenders = ours | {limit: multiply}
        if is_installed("transformers"):
            other = llama(config, length=len(prompt) + tokens).eval()
            options = {"max_new_tokens": tokens, "do_sample": False, "use_cache": True}
            contenders["transformers"] = partial(other.generate, torch.tensor([prompt]), **options)
        speeds = rates(take_turns(contenders, asked.repeats, TURN), tokens)
        for way in ours:
            case = f"{tokens} tokens, {config.d_model} wide, {config.n_layer} layers, fp32, {way}"
            yield compare_rounds("generate", case, "tokens/s", speeds, way, ["transformers"], limit), speeds


# ---- data ------------------------------------------------------------------------------------------------------------


def bench_data(asked: Any) -> Cases:
    with tempfile.TemporaryDirectory() as name:
        folder, count, smallest = Path(name), itertools.count(), min(MEGABYTES)
        texts = {size: folder / f"{size:g}.txt" for size in MEGABYTES}
        for size, text in texts.items():
            write_text(text, size)
        tokenizer = learn_tokenizer(texts[smallest], folder)
        tokens, _ = prepare(texts[smallest], tokenizer, folder / "first")
        text = texts[smallest].read_text(encoding="utf-8")
        pieces = [text[i : i + 2**14] for i in range(0, len(text), 2**14)]  # as long as those that we hand to it
        contenders = {
            "ours": lambda: prepare(texts[smallest], tokenizer, folder / str(next(count))),
            "tokenizers": partial(
                Tokenizer.from_file(str(tokenizer)).encode_batch_fast, pieces, add_special_tokens=False
            ),
        }
        speeds = rates(take_turns(contenders, min(3, asked.repeats), TURN), tokens)
        case = f"preparing {smallest:g} MB"
        yield compare_rounds("data", case, "tokens/s", speeds, "ours", ["tokenizers"]), speeds
        for size, path in texts.items():
            taken = run_apart(prepare, path, tokenizer, folder / f"apart-{size:g}")
            if taken.anonymous is not None:
                yield Row("data", f"anonymous memory, preparing {size:g} MB", "MiB", taken.anonymous), {}


# ---- trainer ---------------------------------------------------------------------------------------------------------


def train_for(
    seconds: float, train_steps: Callable[[int], tuple[float, Any]], steps: int = 50
) -> tuple[int, float, Any]:
    """Train anew, with as many steps as the run before suggests, until a run takes `seconds`, to a thirtieth.

    A short run has another speed than a long one, and a busy machine never the same; after four runs the last counts.
    `train_steps` returns seconds and an outcome; the last run's steps, seconds and outcome come back.
    """
    taken, made = train_steps(steps)
    for _ in range(4):
        steps = max(1, round(steps * seconds / taken))
        taken, made = train_steps(steps)
        if abs(taken - seconds) <= seconds / 30:
            break
    return steps, taken, made


def bench_trainer(asked: Any) -> Cases:
    """Bits per byte of the validation split after equal times of training, ours and the Trainer's."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name, "ours")

        def ours(steps: int) -> tuple[float, float]:
            flags = [f"--run.{option}={steps}" for option in ("steps", "save_every", "eval_every")]
            flags += ["--run.threads", str(torch.get_num_threads())]
            result = train.main([*TRAINER_FLAGS, *flags, "--run.out", str(out), "--run.overwrite", "true"])
            return result["seconds"], result["bits_per_byte"]

        def theirs(steps: int) -> tuple[float, float]:
            run_ = load_finished_run(out)
            model, length, settings = llama(run_.model_config), run_.model_config.seq_len, run_.settings
            corpus = data.load(run_.data, settings["seed"], settings["batch_size"], length)
            precision, autocast = devices.pick_precision(settings["precision"], CPU)
            seconds = train_theirs(model, corpus, settings, steps, precision == "bf16", Path(name, "trainer"))
            windows = corpus.windows("validation", length)
            return seconds, score(Logits(model.eval()), windows, corpus.token_bytes, CPU, autocast).bits_per_byte

        sides, bits = {"ours": ours}, {}
        if is_installed("transformers") and is_installed("accelerate"):
            sides["transformers Trainer"] = theirs
        for side, train_steps in sides.items():
            steps, seconds, found = train_for(asked.train_seconds, train_steps)
            bits[side] = [found]
            print(f"{side}: {steps} steps in {seconds:.1f} s, {found:.4f} bits per byte", flush=True)
    case = f"after {asked.train_seconds:g} s of training"
    yield compare_rounds("trainer", case, "bits/byte", bits, "ours", ["transformers Trainer"]), bits


# ---- the command line ------------------------------------------------------------------------------------------------

BENCHES = {"train": bench_train, "rope": bench_rope, "generate": bench_generate}
BENCHES |= {"data": bench_data, "trainer": bench_trainer}
OPTIONS = ("repeats", "d_model", "n_layer", "batch_size", "compile")  # kept in the file


def refuse_wrong(asked: Any) -> None:
    """Raise BadInput for what cannot be measured, or written, before anything is."""
    for name in asked.benches:
        if name not in BENCHES:
            raise BadInput(f"{name} is none of {', '.join(BENCHES)}{nearest(name, BENCHES)}")
    for name in ("repeats", "d_model", "n_layer", "batch_size", "threads"):
        if (value := getattr(asked, name)) is not None and value < 1:
            raise BadInput(f"--{name} {value} must be at least 1")
    if not 0 < asked.train_seconds < math.inf:
        raise BadInput(f"--train_seconds {asked.train_seconds:g} must be above 0 and finite")
    list(list_shapes(asked, SHAPES))  # refuses widths that cannot be
    if asked.out is not None:
        refuse_unwritable("out", Path(asked.out))


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmarks that the command line names, and return what goes into the file."""
    parser = Parser(prog="experiments/speed.py", description=first_paragraph(__doc__))
    parser.add_argument(
        "benches", type=str, nargs="*", default=[], help=f"{', '.join(BENCHES)}; all but trainer if none"
    )
    parser.add_argument("--out", type=str | None, default=None, help="write the figures to this .json")
    parser.add_argument("--note", type=str, default="", help="a remark that is kept with the figures")
    parser.add_argument("--repeats", type=int, default=7, help="rounds in which all contenders take turns")
    parser.add_argument("--d_model", type=int | None, default=None, help="width; 128 and 256 if not given")
    parser.add_argument("--n_layer", type=int | None, default=None, help="layers; 4 and 6 if not given")
    parser.add_argument("--batch_size", type=int, default=32, help="rows of a training step")
    parser.add_argument("--threads", type=int | None, default=None, help="of PyTorch; if not given, it chooses")
    parser.add_argument("--compile", type=bool, default=True, help="whether to measure compiled models too")
    parser.add_argument("--train_seconds", type=float, default=120, help="of trainer: how long each side trains")
    asked = parser.parse_args(argv)
    refuse_wrong(asked)
    missing.clear()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    rows, details = [], []
    for name in dict.fromkeys(asked.benches) or [name for name in BENCHES if name != "trainer"]:
        for row, rounds in BENCHES[name](asked):
            rows.append(row)
            details.append(rounds)
            print("\n".join(table([row])[2:]), flush=True)
    print("\n" + "\n".join(table(rows)))
    peers = {name: importlib.metadata.version(name) for name in PEERS if importlib.util.find_spec(name)}
    content = {
        "rows": [asdict(row) for row in rows],
        "rounds": details,
        "missing": list(missing),
        "versions": versions() | {"threads": torch.get_num_threads()},
        "peers": peers,
        "commit": commit(),
        "note": asked.note,
        "options": {name: getattr(asked, name) for name in OPTIONS},
    }
    if asked.out:
        write_whole(Path(asked.out), json.dumps(content, indent=2) + "\n")
    return content


if __name__ == "__main__":
    run_main(main)
