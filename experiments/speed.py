"""How fast does this machine train, rotate, generate and prepare text, beside other libraries and its own limit?

    python -m experiments.speed train rope --repeats 5      all four, if none is named

The contenders of a case take turns; docs/speed.md, into which `--publish true` puts the figures, says how to read them.
In training all have the same optimiser, precision and parts of the batch.
"""

import harness.stops  # first: the rest takes seconds to import, and Ctrl-C ends even that without a traceback

import importlib.metadata
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
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import data
from harness import devices
from harness.files import write_whole
from harness.messages import refuse_unknown, run_main
from harness.options import Parser
from harness.pages import ROOT, replace_section
from harness.prepared import SPLITS
from harness.provenance import commit, versions
from harness.ranges import AtLeast1
from harness.sampling import compile_for_sampling, sample, store_by_columns
from harness.timing import Rounds, Row, compare_rounds, rates, run_apart, table, take_turns
from harness.workloads import ENTRIES, Logits, llama, prepare, training_flops, training_step, write_texts
from model import ModelConfig, Transformer
from rope import Layout, RopeConfig, cos_sin, frequencies, turn

SHAPES = [(128, 4), (256, 6)]  # d_model and n_layer, with 4 heads; the last of them generates
ROWS, LENGTH, TURN = 32, 256, 0.5  # of a training step; tokens per row; seconds that a turn lasts at least
TOKENS, MEGABYTES = [200, 2000], [10, 200]  # to generate; of text to prepare, the speed of the smallest
CPU = torch.device("cpu")

Cases = Iterator[tuple[Row, Rounds]]


def list_ways() -> list[str]:
    """The ways to run a model here: nothing is compiled where there is no C++ compiler."""
    return ["eager", "compiled"] if devices.has_compiler() else ["eager"]


def bench_train(asked: Any) -> Cases:
    """Tokens per second of training, beside transformers' Llama; what rope costs over no positions."""
    precision, autocast = devices.pick_precision("auto", CPU)
    for d_model, n_layer in SHAPES:
        config = ModelConfig(vocab_size=ENTRIES, d_model=d_model, n_layer=n_layer, seq_len=LENGTH)
        rows = math.gcd(ROWS, max(1, 2048 // config.seq_len))  # at once: what train.py takes on a CPU
        models: dict[str, nn.Module] = {}
        for scheme, way in itertools.product(("rope", "none"), list_ways()):
            model = Transformer(replace(config, position=scheme))
            models[f"{scheme} {way}"] = torch.compile(model) if way == "compiled" else model
        models["transformers sdpa"] = Logits(llama(config))
        contenders = {name: training_step(model, config, ROWS, rows, autocast) for name, model in models.items()}
        size = min(2048, 8 * d_model)
        a, b = (torch.ones(size, size, dtype={"bf16": torch.bfloat16}.get(precision)) for _ in range(2))
        contenders["matrix product"] = partial(torch.matmul, a, b)
        seconds = take_turns(contenders, asked.repeats, TURN)
        worth = 2 * size**3 / training_flops(config, config.seq_len)  # tokens, in operations, of a matrix product
        tokens = rates(seconds, ROWS * config.seq_len) | rates({"matrix product": seconds["matrix product"]}, worth)
        case = f"{d_model} wide, {n_layer} layers, {precision}"
        row = partial(compare_rounds, "train", unit="tokens/s", rounds=tokens)
        for way in list_ways():
            peers = ["transformers sdpa"]
            yield row(case=f"{case}, {way}", ours=f"rope {way}", peers=peers, limit="matrix product"), tokens
        for way in list_ways():
            yield row(case=f"rope beside none, {case}, {way}", ours=f"rope {way}", peers=[f"none {way}"]), tokens


def bench_rope(asked: Any) -> Cases:
    """Milliseconds to turn queries and keys, beside transformers and copying the two tensors."""
    shape = min(8, ROWS), 8, min(1024, 4 * LENGTH), 64  # (B, H, T, D): (8, 8, 1024, 64) by default
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)
    theta, _ = frequencies(RopeConfig(), shape[3], shape[2])
    cos, sin = (part.float() for part in cos_sin(torch.arange(shape[2]), theta))  # (T, D/2) each

    def turn_both(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        return turn(q, cos, sin, layout), turn(k, cos, sin, layout)

    contenders: dict[str, Callable] = {}
    for layout, way in itertools.product(("interleaved", "half-split"), list_ways()):
        both = torch.compile(turn_both) if way == "compiled" else turn_both
        contenders[f"{layout}, {way}"] = partial(both, q, k, cos, sin, layout)
    ours = list(contenders)
    contenders["copying"] = lambda: (q.clone(), k.clone())
    twice = [torch.cat((part, part), dim=-1)[None] for part in (cos, sin)]  # (1, T, D) each, as the library wants them
    contenders["transformers"] = partial(apply_rotary_pos_emb, q, k, *twice)
    with torch.inference_mode():
        milliseconds = take_turns(contenders, asked.repeats, TURN)
    milliseconds = {name: [1000 * s for s in values] for name, values in milliseconds.items()}
    for name in ours:
        case = f"q and k of {shape}, {name}"
        yield compare_rounds("rope", case, "ms", milliseconds, name, ["transformers"], "copying"), milliseconds


def bench_generate(asked: Any) -> Cases:
    """Tokens per second with a cache, one text at a time, beside transformers' generate."""
    prompt, limit = list(range(1, 9)), "one vector times all matrices"
    config = ModelConfig(vocab_size=ENTRIES, d_model=SHAPES[-1][0], n_layer=SHAPES[-1][1], seq_len=LENGTH)
    for tokens in TOKENS:
        model = Transformer(config).eval()
        weights = [parameter for parameter in model.parameters() if parameter.dim() == 2]

        def write(model: nn.Module, tokens: int = tokens) -> list[int]:
            return list(sample(model, prompt, tokens, temperature=0, seed=0))

        def multiply(model: Transformer = model, weights: list[Tensor] = weights, tokens: int = tokens) -> None:
            vectors = {weight.shape[1]: torch.ones(1, weight.shape[1]) for weight in weights}
            with torch.inference_mode(), store_by_columns(model):  # as fast as the products are known to go
                for _, weight in itertools.product(range(tokens), weights):
                    F.linear(vectors[weight.shape[1]], weight)

        models = {way: compile_for_sampling(model) if way == "compiled" else model for way in list_ways()}
        contenders: dict[str, Callable] = {way: partial(write, model) for way, model in models.items()}
        contenders[limit] = multiply
        other = llama(config, length=len(prompt) + tokens).eval()
        options = {"max_new_tokens": tokens, "do_sample": False, "use_cache": True}
        contenders["transformers"] = partial(other.generate, torch.tensor([prompt]), **options)
        speeds = rates(take_turns(contenders, asked.repeats, TURN), tokens)
        for way in models:
            case = f"{tokens} tokens, {config.d_model} wide, {config.n_layer} layers, fp32, {way}"
            yield compare_rounds("generate", case, "tokens/s", speeds, way, ["transformers"], limit), speeds


def bench_data(asked: Any) -> Cases:
    """Tokens per second of preparing a corpus, beside the tokenizers library alone; memory of preparing."""
    with tempfile.TemporaryDirectory() as name:
        folder, count, smallest = Path(name), itertools.count(), min(MEGABYTES)
        texts, tokenizer = write_texts(folder, MEGABYTES)
        config = data.DataConfig(str(texts[smallest]), tokenizer=str(tokenizer), cache=str(folder / "first"))
        corpus = data.load(config, 0, 1, 1)
        tokens = sum(len(corpus.tokens(split)) for split in SPLITS)
        text = texts[smallest].read_text(encoding="utf-8")
        pieces = [text[i : i + 2**14] for i in range(0, len(text), 2**14)]  # as long as those that we hand to it
        encode = Tokenizer.from_file(str(tokenizer)).encode_batch_fast
        contenders = {
            "ours": lambda: prepare(texts[smallest], tokenizer, folder / str(next(count))),
            "tokenizers": partial(encode, pieces, add_special_tokens=False),
        }
        speeds = rates(take_turns(contenders, min(3, asked.repeats), TURN), tokens)
        case = f"preparing {smallest:g} MB"
        yield compare_rounds("data", case, "tokens/s", speeds, "ours", ["tokenizers"]), speeds
        for size, path in texts.items():
            _, before, peak = run_apart(prepare, path, tokenizer, folder / f"apart-{size:g}")
            yield Row("data", f"memory added, preparing {size:g} MB", "MiB", peak - before), {}


BENCHES = {"train": bench_train, "rope": bench_rope, "generate": bench_generate, "data": bench_data}


def section(content: dict[str, Any]) -> str:
    """What docs/speed.md says of speed: where it was measured, beside what, and the table."""
    machine, peers = content["versions"], ", ".join(f"{name} {version}" for name, version in content["peers"].items())
    made = f"{machine['cores']} cores ({machine['cpu']}), {machine['threads']} threads, PyTorch {machine['torch']}, "
    made += f"commit {(content['commit'] or 'unknown')[:10]}; beside {peers}."
    return "\n".join([made, "", *table([Row(**row) for row in content["rows"]])])


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmarks that the command line names, and return what goes into the file."""
    parser = Parser(prog="experiments/speed.py", description=__doc__)
    parser.add_argument("benches", type=str, nargs="*", default=[], help=f"{', '.join(BENCHES)}; all if none is named")
    parser.add_argument("--publish", type=bool, default=False, help="write results/bench.json and docs/speed.md")
    parser.add_argument("--repeats", type=AtLeast1, default=7, help="rounds in which all contenders take turns")
    parser.add_argument("--threads", type=AtLeast1 | None, default=None, help="of PyTorch; if not given, it chooses")
    asked = parser.parse_args(argv)
    refuse_unknown("benches", asked.benches, BENCHES)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    rows, details = [], []
    for name in dict.fromkeys(asked.benches or BENCHES):
        for row, rounds in BENCHES[name](asked):
            rows.append(row)
            details.append(rounds)
            print("\n".join(table([row])[2:]), flush=True)
    print("\n" + "\n".join(table(rows)))
    content = {
        "rows": [asdict(row) for row in rows],
        "rounds": details,
        "versions": versions() | {"threads": torch.get_num_threads()},
        "peers": {"transformers": importlib.metadata.version("transformers")},
        "commit": commit(),
        "options": {"repeats": asked.repeats},
    }
    if asked.publish:
        write_whole(ROOT / "results" / "bench.json", json.dumps(content, indent=2) + "\n")
        replace_section("experiments/speed.py", section(content))
    return content


if __name__ == "__main__":
    run_main(main)
