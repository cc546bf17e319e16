"""Text from a trained run, token by token, with a key-value cache.

    python generate.py runs/rope --prompt "In the beginning" --tokens 200 --temperature 0.8 --top_p 0.95 --seed 0
    python generate.py runs/rope --samples 4 --tokens 600 --rope.scaling yarn --rope.beta_fast 8

The next token is drawn from the logits l, (V,), in these steps, each applied to what the one before has left:

    temperature   l / temperature; 0 takes the likeliest token
    top_k         only the k likeliest
    top_p         only the nucleus: the fewest likeliest tokens with a total probability of at least p (1904.09751)
    draw          one uniform number u, and the first token at which the cumulative probability exceeds u

Sample i draws its numbers from seed + i alone: it is the text that `--seed` seed + i gives by itself. The last digits
of logits depend on the number of threads and samples, because sums are computed in another order. In float64, the
default, they differ by less than 1e-11, and a draw depends on that about as rarely. In float32 (`--precision fp32`,
faster for large models) they differ by about 1e-6: rarely too, but from such a draw on the two texts differ.
"""

import harness.stops  # first: the rest takes seconds to import, and Ctrl-C ends even that without a traceback

import sys
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from tokenizers.decoders import DecodeStream

from harness.byte_level import END_OF_TEXT, encode_texts, special_id
from harness.devices import refuse_without_compiler, why_not_compiled
from harness.evaluation import load_corpus
from harness.messages import BadInput, RunFailed, run_main, tell
from harness.options import Parser, is_decoded
from harness.ranges import AtLeast1, Seed
from harness.runs import FinishedRun, load_finished_run
from harness.sampling import compile_for_sampling, sample_several, trial
from harness.scalings import add_rope_options, choose_scalings, make_position, yarn_warning
from positions import PastTheEnd
from rope import DEPEND_ON_LENGTH

Temperature = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0, le=1)]
Tokens = Annotated[int, Field(ge=1, le=10**6)]
Samples = Annotated[int, Field(ge=1, le=1024)]  # all are drawn at once, each with a cache of its own


def main(argv: list[str] | None = None) -> None:
    """Print the prompt and the model's continuation, or for a run on tasks, a trial of each."""
    parser = make_parser()
    asked, given = parser.parse_args(argv), parser.parse_args(argv, defaults=False).get("rope")
    refuse_bad_options(asked)
    loaded = load_finished_run(asked.run)
    if loaded.data.corpus.startswith("task:") and not asked.prompt:
        print_trials(loaded, asked.seed, sys.argv[1:] if argv is None else argv)
        return
    try:
        (encoded,) = encode_texts(loaded.tokenizer, [asked.prompt])
    except ValueError as error:
        raise BadInput(
            f"{loaded.path / 'tokenizer.json'} {error}: give another --prompt, or name another run"
        ) from error
    ids = encoded.ids or [special_id(loaded.tokenizer, END_OF_TEXT)]
    if (longest := loaded.model.position.longest) is not None and len(ids) > longest:
        raise BadInput(f"--prompt: {len(ids)} tokens, and learned positions end at {longest}: shorten it or use rope")
    rescale(loaded, vars(given) if given else {}, len(ids) + asked.tokens - 1)  # the last token drawn is not fed
    if asked.precision == "fp64":
        loaded.model.double()
    if asked.compile:
        loaded = replace(loaded, model=compile_for_sampling(loaded.model))
    try:
        print_samples(loaded, ids, asked)
    except Exception as error:
        if why := why_not_compiled(error):
            raise RunFailed(f"{why}: leave --compile out") from error
        raise


def make_parser() -> Parser:
    """The command line of generate.py."""
    parser = Parser(prog="generate.py", description=__doc__)
    parser.add_argument("run", type=str, help="a run folder, such as runs/rope")
    parser.add_argument("--prompt", type=str, default="", help="text to continue; if empty, a new text, or a trial")
    parser.add_argument("--tokens", type=Tokens, default=200, help="how many tokens to draw")
    parser.add_argument("--temperature", type=Temperature, default=0.8, help="lower is safer, higher wilder, 0 greedy")
    parser.add_argument("--top_k", type=AtLeast1 | None, default=None, help="draw only from this many likeliest tokens")
    parser.add_argument("--top_p", type=Probability, default=1.0, help="draw from the fewest with this probability")
    parser.add_argument("--seed", type=Seed, default=0, help="seed of the draws")
    parser.add_argument("--samples", type=Samples, default=1, help="texts to draw; sample i is that of seed + i")
    parser.add_argument("--precision", type=Literal["fp64", "fp32"], default="fp64", help="fp32 is faster")
    parser.add_argument("--compile", type=bool, default=False, help="faster after a minute; needs a C++ compiler")
    add_rope_options(parser)
    return parser


def refuse_bad_options(asked: Any) -> None:
    """Raise BadInput for a prompt that is no text, or for compiling without a compiler."""
    if not is_decoded(asked.prompt):
        raise BadInput(f"--prompt {asked.prompt!r} is not UTF-8: type it in a terminal that uses UTF-8")
    if asked.compile:
        refuse_without_compiler("--compile", torch.device("cpu"))


def print_trials(loaded: FinishedRun, seed: int, words: list[str]) -> None:
    """Print a trial of each task; options given in `words` that do not apply get a warning."""
    corpus = load_corpus(loaded)
    if ignored := sorted({word.split("=")[0] for word in words if word.startswith("--")} - {"--seed"}):
        why = f"{loaded.data.corpus} is answered with the likeliest tokens; to continue a text, give a --prompt"
        tell(f"generate.py: warning: {', '.join(ignored)} does not apply: {why}")
    print("\n".join(trial(loaded.model, corpus, task, seed) for task in corpus.tasks))


def print_samples(loaded: FinishedRun, ids: list[int], asked: Any) -> None:
    """Print the prompt, whose tokens are `ids`, and its continuations.

    A single sample is printed as it is drawn, each piece flushed, on a screen and in a pipe alike; several, in turn.
    """
    how = {name: getattr(asked, name) for name in ("tokens", "temperature", "seed", "top_k", "top_p")}
    tokenizer, end, live = loaded.tokenizer, special_id(loaded.tokenizer, END_OF_TEXT), asked.samples == 1
    stream, said, wall = DecodeStream(skip_special_tokens=False), "", ""
    texts: list[list[int]] = [[] for _ in range(asked.samples)]  # tokens, up to the end of text
    if live:
        print(asked.prompt, end="", flush=True)
    try:
        for row in sample_several(loaded.model, ids, number=asked.samples, **how):
            for text, token in zip(texts, row, strict=True):
                text += [token] * (text[-1:] != [end])
            if live and row[0] != end:
                piece = stream.step(tokenizer, row[0]) or ""  # none within a character of several tokens
                print(piece, end="", flush=True)
                said += piece
            if all(text[-1] == end for text in texts):
                break
    except PastTheEnd as error:
        wall = str(error)
    for i, text in enumerate(texts):
        note = "the model ended its text" if text[-1:] == [end] else wall
        whole = tokenizer.decode(text[:-1] if text[-1:] == [end] else text, skip_special_tokens=False)
        if not live:
            print(f"--- sample {i + 1} of {asked.samples} (alone: --seed {asked.seed + i})")
        print(whole[len(said) :] if live else asked.prompt + whole)
        if note:
            print(f"[{note}]")


def rescale(loaded: FinishedRun, given: dict[str, Any], length: int) -> None:
    """Override the run's rotary options for contexts of up to `length` tokens; warn if they do not reach that far."""
    ((scaling, fields),) = choose_scalings(loaded, given, None).items()
    if given:
        loaded.model.position = make_position(loaded, fields, length)
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
        tell(f"generate.py: warning: {warning}")


if __name__ == "__main__":
    run_main(main, prints=True)
