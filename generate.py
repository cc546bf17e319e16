"""Text from a trained run, a token at a time, with a key-value cache.

    python generate.py runs/rope --prompt "In the beginning" --tokens 200 --temperature 0.8 --top_p 0.95 --seed 0
    python generate.py runs/rope --samples 4 --stop "\\n\\n" --tokens 600 --rope.scaling yarn --rope.beta_fast 8

How the next token comes out of the logits l, (V,), in this order, each step on what the one before has left:

    temperature   l / temperature, where 0 stands for the likeliest token
    top_k         only the k likeliest
    top_p         only the nucleus: the fewest likeliest whose probability is at least p together (1904.09751)
    min_p         only those with at least min_p times the probability of the likeliest (2407.01082)
    draw          one uniform number u, and the first token up to which the probabilities sum to more than u

Sample i draws the numbers of seed + i, whatever the others do: it is the text that `--seed` seed + i gives alone. The
last digits of logits depend on the number of threads and samples, since sums are taken in another order. The command
line computes in float64, where they differ by less than 1e-11, and a draw turns on that about as rarely; in float32
(`--precision fp32`, faster for large models) by some 1e-6: rarely too, but from such a draw on two texts differ.
"""

import codecs
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

import data
from data import END_OF_TEXT, byte_characters, special_id
from evaluate import add_rope_options, position_at, variants
from harness.devices import refuse_without_compiler, why_not_compiled
from harness.messages import BadInput, RunFailed, first_paragraph, run
from harness.options import Parser
from harness.runs import FinishedRun, load_finished_run
from harness.tasks import TaskCorpus
from model import Transformer
from positions import PastTheEnd
from rope import DEPEND_ON_LENGTH, yarn_warning

BYTE_OF = {character: byte for byte, character in enumerate(byte_characters())}


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits, (..., V), with -inf on all but the k largest; those that equal the k-th stay too."""
    kth = logits.topk(min(k, logits.shape[-1])).values[..., -1:]  # (..., 1)
    return logits.masked_fill(logits < kth, -math.inf)  # keep i: l_i >= the k-th largest


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits, (..., V), with -inf outside the nucleus of probability p; of equals the first in the vocabulary stay."""
    if p >= 1:  # else a sum that rounds to 1 early would cut the tail
        return logits
    ordered, token = logits.sort(descending=True, stable=True)  # (..., V)
    upto = ordered.softmax(-1).cumsum(-1)  # (..., V)
    before = torch.nn.functional.pad(upto[..., :-1], (1, 0))  # (..., V): the sum of p_j over all likelier j
    kept = torch.empty_like(token, dtype=torch.bool).scatter(-1, token, before < p)  # keep i: sum before i < p
    return logits.masked_fill(~kept, -math.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Logits, (..., V), with -inf on tokens less than p times as probable as the likeliest one."""
    if p == 0:
        return logits
    largest = logits.amax(-1, keepdim=True)  # (..., 1)
    return logits.masked_fill(logits - largest < math.log(p), -math.inf)  # keep i: p_i >= p max(p), and p ~ exp(l)


def choose(
    logits: Tensor, u: Tensor, temperature: float, top_k: int | None = None, top_p: float = 1, min_p: float = 0
) -> Tensor:
    """One token for every row of logits, (N, V), and of uniform numbers in [0, 1), (N, 1): (N, 1), see the module."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    logits = logits.double()  # (N, V), so that a sum over a large vocabulary is exact enough
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # l / temperature, where exp cannot overflow
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    logits = keep_min_p(keep_top_p(logits, top_p), min_p)
    upto = logits.softmax(-1).cumsum(-1)  # (N, V)
    return torch.searchsorted(upto / upto[:, -1:], u, right=True)  # the first i with p_1 + ... + p_i > u


@contextmanager
def stored_by_columns(model: Transformer) -> Iterator[None]:
    """On a CPU, keep matrices of more outputs than inputs in memory column by column for a while.

    For a single row x the product W x = sum_j x_j W[:, j] then reads memory in order and fills whole vectors of
    outputs, which took half to a third of the time (results/NOTES.md); for several rows it gains nothing. Values and
    shapes are the same all along.
    """
    wide = [p for p in model.parameters() if p.dim() == 2 and p.shape[0] > p.shape[1] and p.device.type == "cpu"]

    def lay(by_columns: bool) -> None:
        with torch.inference_mode(False):  # tensors made in it could never be trained on again
            for weight in wide:
                weight.data = weight.data.t().contiguous().t() if by_columns else weight.data.contiguous()

    lay(by_columns=True)
    try:
        yield
    finally:
        lay(by_columns=False)


def compiled(model: Transformer) -> nn.Module:
    """The model as torch.compile makes it faster to write with: on a CPU some twice as fast, after a minute or two.

    Whatever calls the compiled parts is compiled too (`cpp_wrapper`): a token has some sixty of them, of a few
    microseconds each, where Python takes about as long to call one (results/NOTES.md).
    """
    return torch.compile(model, options={"cpp_wrapper": True})


@torch.inference_mode()
def samples(
    model: Transformer, prompt: list[int], tokens: int, temperature: float, seed: int, number: int, **kept: Any
) -> Iterator[list[int]]:
    """Draw a token for each sample, N of them, given all before it, again and again.

    Args:
        model: in evaluation mode.
        prompt: tokens that every sample goes on from, at least one.
        tokens: how many to draw for each.
        temperature: what logits are divided by; 0 takes the likeliest token every time.
        seed: of the first sample's draws; sample i has seed + i.
        number: of samples (N), which one forward pass serves together.
        kept: top_k, top_p and min_p, where they are to leave tokens out.

    Raises:
        PastTheEnd: when learned positions are used up.
    """
    device = model.embedding.weight.device
    generators = [torch.Generator().manual_seed(seed + i) for i in range(number)]
    cache = model.new_cache(number, len(prompt) + tokens - 1)  # the last token drawn is not fed
    fed = torch.tensor([prompt], device=device).expand(number, -1)  # (N, T)
    with stored_by_columns(model) if number == 1 else nullcontext():
        for _ in range(tokens):
            logits = model(fed, cache=cache, last=1)[:, -1].cpu()  # (N, V)
            u = torch.cat([torch.rand(1, 1, generator=g, dtype=torch.float64) for g in generators])  # (N, 1)
            drawn = choose(logits, u, temperature, **kept)  # (N, 1)
            yield drawn[:, 0].tolist()
            fed = drawn.to(device)


def sample(
    model: Transformer, prompt: list[int], tokens: int, temperature: float, seed: int, **kept: Any
) -> Iterator[int]:
    """The tokens of one sample, as they are drawn: see `samples`."""
    for (token,) in samples(model, prompt, tokens, temperature, seed, 1, **kept):
        yield token


class Text:
    """One sample's text as it grows: whole characters, up to a stop text or the end of text.

    A character may be spread over several tokens, and so may a stop text, which is not part of the text. What could
    still become one of them is held back until that is known.

    Args:
        tokenizer: byte-level.
        stops: texts that end it, none of them empty; looked for in what the model adds, not in the prompt.
    """

    def __init__(self, tokenizer: Tokenizer, stops: list[str]) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.end = special_id(tokenizer, END_OF_TEXT)
        self.added = tokenizer.get_added_tokens_decoder()  # spelt as they are, all others in byte characters
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.held = self.said = self.note = ""
        self.over = False

    def add(self, token: int | None) -> str:
        """Take in a token, None when there are no more, and return the text that is certain now and was not before."""
        if self.over:
            return ""
        last = token is None or token == self.end
        spelt = "" if last else self.tokenizer.id_to_token(token) or ""
        in_bytes = spelt.encode() if token in self.added else bytes(BYTE_OF[character] for character in spelt)
        text = self.held + self.decoder.decode(in_bytes, final=last)
        found = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        begun = [n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
        certain = min(found) if found else len(text) - (0 if last else max(begun, default=0))
        if token == self.end and not found:
            self.note = "the model ended its text"
        self.over = last or bool(found)
        self.held = text[certain:]
        self.said += text[:certain]
        return text[:certain]


def write(loaded: FinishedRun, ids: list[int], asked: Any) -> None:
    """Print the prompt, whose tokens are `ids`, and what the model makes of it, as the command line has asked.

    One sample is printed as it comes, and every piece flushed, for a screen and a pipe alike; several one by one.
    """
    how = {name: getattr(asked, name) for name in ("tokens", "temperature", "seed", "top_k", "top_p", "min_p")}
    stops = [stop.replace("\\n", "\n").replace("\\t", "\t") for stop in asked.stop]  # as shells hand them on
    texts, wall, live = [Text(loaded.tokenizer, stops) for _ in range(asked.samples)], "", asked.samples == 1
    if live:
        print(asked.prompt, end="", flush=True)
    try:
        for row in samples(loaded.model, ids, number=asked.samples, **how):
            pieces = [text.add(token) for text, token in zip(texts, row, strict=True)]
            if live:
                print(pieces[0], end="", flush=True)
            if all(text.over for text in texts):
                break
    except PastTheEnd as error:
        wall = str(error)
    for i, text in enumerate(texts):
        note = text.note if text.over else wall
        rest = text.add(None)
        if not live:
            print(f"--- sample {i + 1} of {asked.samples} (alone: --seed {asked.seed + i})")
        print(rest if live else asked.prompt + text.said)
        if note:
            print(f"[{note}]")


def rescale(loaded: FinishedRun, given: dict[str, Any], length: int) -> None:
    """Lay `--rope.*` options over the run's own for contexts of up to `length` tokens; warn where that is too far."""
    ((scaling, fields),) = variants(loaded, given, None).items()
    if given:
        loaded.model.position = position_at(loaded, fields, length)
    if scaling is None:
        return
    config, trained = loaded.model.position.config, loaded.model_config.seq_len
    warning, factor = yarn_warning(config, loaded.model_config.d_head), config.factor or 1
    if length > max(trained, factor * (config.original_length or trained)) and scaling not in DEPEND_ON_LENGTH:
        warning = (
            f"{loaded.path} was trained at {trained} tokens, the text may need {length}, and rope.scaling {scaling} "
            f"(factor {factor:g}) does not reach that far: add --rope.scaling yarn --rope.factor auto"
        )
    if warning:
        print(f"generate.py: warning: {warning}", file=sys.stderr)


def trial(model: Transformer, corpus: TaskCorpus, task: str, row: int) -> str:
    """An episode of a task, up to its last question, and what the model makes of that: the likeliest tokens."""
    (episode,) = corpus.episodes(task, "validation", min(64, corpus.seq_len), range(row, row + 1))
    asked = np.flatnonzero(episode.answer == episode.answer.max())
    prompt, right = episode.tokens[: asked[0]].tolist(), episode.tokens[asked].tolist()
    drawn = list(sample(model, prompt, len(right), temperature=0, seed=0))
    return f"{task}: {corpus.decode(prompt)}\n  right: {corpus.decode(right)}\n  model: {corpus.decode(drawn)}"


def main(argv: list[str] | None = None) -> None:
    """Command line: print the prompt and what the model makes of it."""
    parser = Parser(prog="generate.py", description=first_paragraph(__doc__))
    parser.add_argument("run", type=str, help="a run folder that train.py made, runs/rope say")
    parser.add_argument("--prompt", type=str, default="", help="to go on from; empty: the start of a text, or a trial")
    parser.add_argument("--tokens", type=int, default=200, help="how many tokens to draw")
    parser.add_argument("--temperature", type=float, default=0.8, help="below 1 is safer, above is wilder, 0 is greedy")
    parser.add_argument("--top_k", type=int | None, default=None, help="draw from this many likeliest tokens only")
    parser.add_argument("--top_p", type=float, default=1.0, help="draw from the fewest that hold this probability")
    parser.add_argument("--min_p", type=float, default=0.0, help="draw from those this probable beside the likeliest")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--samples", type=int, default=1, help="texts at once; sample i is that of seed + i")
    parser.add_argument("--stop", type=str, action="append", default=[], help="end before this text; may be repeated")
    parser.add_argument("--precision", type=Literal["fp64", "fp32"], default="fp64", help="fp32 is faster if large")
    parser.add_argument(
        "--compile", type=bool, default=False, help="faster after a minute or two; needs a C++ compiler"
    )
    add_rope_options(parser)
    asked, given = parser.parse_args(argv), parser.parse_args(argv, defaults=False).get("rope")
    for name, fine, limits in (
        ("tokens", asked.tokens >= 1, "at least 1"),
        ("temperature", 0 <= asked.temperature < math.inf, "0 or more"),
        ("top_k", asked.top_k is None or asked.top_k >= 1, "at least 1"),
        ("top_p", 0 < asked.top_p <= 1, "above 0 and at most 1"),
        ("min_p", 0 <= asked.min_p < 1, "at least 0 and below 1"),
        ("samples", asked.samples >= 1, "at least 1"),
        ("seed", 0 <= asked.seed <= 2**63 - asked.samples, "at least 0 and below 2^63, and that of every sample too"),
    ):
        if not fine:
            raise BadInput(f"--{name} {getattr(asked, name)} must be {limits}")
    for name, text in (("prompt", asked.prompt), *(("stop", stop) for stop in asked.stop)):
        if any("\ud800" <= character <= "\udfff" for character in text):  # Python's stand-ins for bytes it cannot read
            raise BadInput(f"--{name} {text!r} is not UTF-8: write it in a terminal, or a file, that is")
    if not all(asked.stop):
        raise BadInput("--stop '' must not be empty: every text holds that")
    if asked.compile:
        refuse_without_compiler("--compile", torch.device("cpu"))
    loaded = load_finished_run(asked.run)
    if loaded.data.corpus.startswith("task:") and not asked.prompt:
        words = sys.argv[1:] if argv is None else argv
        if ignored := sorted({word.split("=")[0] for word in words if word.startswith("--")} - {"--seed"}):
            print(
                f"generate.py: warning: {', '.join(ignored)} means nothing to a trial of {loaded.data.corpus}, whose "
                "answers are the likeliest tokens: give a --prompt",
                file=sys.stderr,
            )
        settings = loaded.settings
        corpus = data.load(loaded.data, settings["seed"], settings["batch_size"], loaded.model_config.seq_len)
        print("\n".join(trial(loaded.model, corpus, task, asked.seed) for task in corpus.tasks))
        return
    encoded = loaded.tokenizer.encode(asked.prompt, add_special_tokens=False).ids
    ids = encoded or [special_id(loaded.tokenizer, END_OF_TEXT)]
    if (longest := loaded.model.position.longest) is not None and len(ids) > longest:
        raise BadInput(f"--prompt: {len(ids)} tokens, and learned positions end at {longest}: shorten it or use rope")
    rescale(loaded, vars(given) if given else {}, len(ids) + asked.tokens - 1)  # the last token drawn is not fed
    if asked.precision == "fp64":
        loaded.model.double()
    if asked.compile:
        loaded = replace(loaded, model=compiled(loaded.model))
    try:
        write(loaded, ids, asked)
    except Exception as error:
        if why := why_not_compiled(error):
            raise RunFailed(f"{why}: leave --compile out") from error
        raise


if __name__ == "__main__":
    run(main, prints=True)
