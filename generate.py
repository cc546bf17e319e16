"""Text from a trained run, a token at a time, with a key-value cache.

python generate.py runs/rope --prompt "In the beginning" --tokens 200 --temperature 0.8 --seed 0
"""

from collections.abc import Iterator

import numpy as np
import torch

import data
from checkpoint import Run, load_run
from cli import BadInput, Parser, run
from data import END_OF_TEXT, special_id
from model import Transformer
from positions import PastTheEnd
from tasks import TaskCorpus


@torch.no_grad()
def sample(model: Transformer, prompt: list[int], tokens: int, temperature: float, seed: int) -> Iterator[int]:
    """Draw tokens one after the other, each given all before it.

    Args:
        model: in evaluation mode.
        prompt: tokens to go on from, at least one.
        tokens: how many to draw.
        temperature: what logits are divided by; 0 takes the likeliest token every time.
        seed: of the draws.

    Raises:
        PastTheEnd: when learned positions are used up.
    """
    device = model.embedding.weight.device
    generator = torch.Generator().manual_seed(seed)
    cache = model.new_cache(1, len(prompt) + tokens)
    fed = torch.tensor([prompt], device=device)  # (1, T)
    for _ in range(tokens):
        logits = model(fed, cache=cache)[0, -1].float().cpu()  # (V,)
        if temperature == 0:
            token = int(logits.argmax())
        else:
            token = int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
        yield token
        fed = torch.tensor([[token]], device=device)


def continuation(loaded: Run, prompt: str, tokens: int, temperature: float, seed: int) -> tuple[str, str]:
    """The prompt continued, and a word on why it ended early, empty if it did not."""
    end = special_id(loaded.tokenizer, END_OF_TEXT)
    ids = loaded.tokenizer.encode(prompt, add_special_tokens=False).ids or [0 if end is None else end]
    drawn, note = [], ""
    try:
        for token in sample(loaded.model, ids, tokens, temperature, seed):
            if token == end:
                note = "the model ended its text"
                break
            drawn.append(token)
    except PastTheEnd as wall:
        if not drawn:
            raise BadInput(f"--prompt is {len(ids)} tokens long: {wall}") from wall
        note = str(wall)
    return prompt + loaded.tokenizer.decode(drawn, skip_special_tokens=False), note


def trial(model: Transformer, corpus: TaskCorpus, task: str, row: int) -> str:
    """An episode of a task, up to its last question, and what the model makes of that: the likeliest tokens."""
    (episode,) = corpus.episodes(task, "validation", min(64, corpus.seq_len), range(row, row + 1))
    asked = np.flatnonzero(episode.answer == episode.answer.max())
    prompt, right = episode.tokens[: asked[0]].tolist(), episode.tokens[asked].tolist()
    drawn = list(sample(model, prompt, len(right), temperature=0, seed=0))
    return f"{task}: {corpus.decode(prompt)}\n  right: {corpus.decode(right)}\n  model: {corpus.decode(drawn)}"


def main(argv: list[str] | None = None) -> None:
    """Command line: print the prompt and what the model makes of it."""
    parser = Parser(prog="generate.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=str, help="a run folder that train.py made, runs/rope say")
    parser.add_argument(
        "--prompt", type=str, default="", help="text to go on from; empty: the start of a text, or a trial"
    )
    parser.add_argument("--tokens", type=int, default=200, help="how many tokens to draw")
    parser.add_argument("--temperature", type=float, default=0.8, help="below 1 is safer, above is wilder, 0 is greedy")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    asked = parser.parse_args(argv)
    if asked.tokens < 1:
        raise BadInput(f"--tokens {asked.tokens} must be at least 1")
    if not 0 <= asked.temperature < float("inf"):
        raise BadInput(f"--temperature {asked.temperature:g} must be 0 or more")
    if not 0 <= asked.seed < 2**63:
        raise BadInput(f"--seed {asked.seed} must be at least 0 and below 2^63")
    loaded = load_run(asked.run)
    if loaded.data.corpus.startswith("task:") and not asked.prompt:
        settings = loaded.settings
        corpus = data.load(loaded.data, settings["seed"], settings["batch_size"], loaded.model_config.seq_len)
        print("\n".join(trial(loaded.model, corpus, task, asked.seed) for task in corpus.tasks))
        return
    text, note = continuation(loaded, asked.prompt, asked.tokens, asked.temperature, asked.seed)
    print(text)
    if note:
        print(f"[{note}]")


if __name__ == "__main__":
    run(main)
