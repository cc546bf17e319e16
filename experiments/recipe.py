"""Which is the cheapest recipe with which a small model gains from far context? The search for configs/study.yaml.

    python -m experiments.recipe      measure what is missing, and write the page; --measure false only writes it

Rope is trained on `code` in several ways. Of each: what context past 64 tokens gains, and whether the model copies what
it has read before, text and random tokens. Section of results/NOTES.md.
"""

import harness.stops  # first: the rest takes seconds to import, and Ctrl-C ends even that without a traceback

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import evaluate
import train
from data import Corpus
from harness import devices, pages
from harness.evaluation import load_corpus
from harness.measurements import Measurement, TrainedRun, run_experiment
from harness.messages import run_main
from harness.pages import Rows
from harness.retrieval import split_rows
from harness.runs import load_finished_run, read_result
from harness.scoring import cut_fixed, measure_loss_by_length, score_targets
from harness.tables import markdown

CONTEXTS = [32, 64, 128, 256]  # tokens
SPAN = 64  # tokens that come again
COMMON = ("--data.corpus", "code", "--run.batch_size", "8", "--run.learning_rate", "0.004", "--model.n_head", "8")
CANDIDATES = {
    "plain": ("--run.steps", "4500"),
    "quarter": ("--run.steps", "4500", "--data.copied", "0.25"),
    "all": ("--run.steps", "4500", "--data.copied", "1"),
    "all-2048": ("--run.steps", "4500", "--data.copied", "1", "--data.vocab_size", "2048"),
}


def list_measurements() -> list[Measurement]:
    """What each candidate gains from context."""
    found = []
    for name, options in CANDIDATES.items():
        run_ = TrainedRun(f"recipe-{name}", (*COMMON, *options))
        found.append(Measurement("recipe", name, run_, {"candidate": name, "seed": 0}, measure=measure_context))
    return found


def measure_context(folder: Path) -> dict[str, Any]:
    """Loss on the same targets after contexts of several lengths; and of spans at their first and second occurrence."""
    loaded, device = load_finished_run(folder), torch.device("cpu")
    corpus = load_corpus(loaded)
    _, autocast = devices.pick_precision(loaded.settings["precision"], device)

    def score(inputs: Tensor, targets: Tensor) -> tuple[float, float]:
        """Nats per target, and the share of targets that the model finds likeliest."""
        parts = [score_targets(loaded.model, *part, device, autocast) for part in split_rows(inputs, targets)]
        sums, scored = sum(part.sum((0, 1)) for part in parts), int((targets != -100).sum())
        return sums[0].item() / scored, sums[1].item() / scored

    losses = measure_loss_by_length(loaded.model, corpus, "validation", CONTEXTS, device, autocast)
    made = {"loss_by_context": losses, "batch_size": loaded.settings["batch_size"]}
    made["training_seconds"] = read_result(folder)["seconds"]
    for what, rows in (("text", spans_of_text(corpus)), ("random", spans_of_random_tokens(corpus))):
        for when, last in (("first", rows.shape[1] - 2 * SPAN), ("again", rows.shape[1])):
            inputs, targets = rows[:, :-1], rows[:, 1:].clone()  # (N, T - 1) each
            targets[:, : last - SPAN] = -100  # nor the span's first token: nothing says that it comes
            targets[:, last - 1 :] = -100
            loss, right = score(inputs, targets)
            made |= {f"{what}_{when}": loss, f"{what}_{when}_right": right}
    return made


def spans_of_text(corpus: Corpus) -> Tensor:
    """Windows of held-out text, (N, 4 SPAN), whose last quarter is their second one again."""
    rows = torch.cat([inputs for inputs, _ in cut_fixed(corpus, "validation", 4 * SPAN, CONTEXTS)])  # a copy
    rows[:, 3 * SPAN :] = rows[:, SPAN : 2 * SPAN]
    return rows


def spans_of_random_tokens(corpus: Corpus) -> Tensor:
    """The same of tokens drawn uniformly, (N, 4 SPAN): nothing but copying can help."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(corpus.vocab_size, (64, 4 * SPAN), generator=draw)
    rows[:, 3 * SPAN :] = rows[:, SPAN : 2 * SPAN]
    return rows


def table(rows: Rows) -> str:
    """A line per candidate, the largest gain first."""
    head = ["changed", "million tokens", "minutes of a core", "bits per byte", "loss after 64", "64 to 256 gains"]
    head += ["a span of text: first time", "again", "right", "random tokens again", "right"]
    lines = []
    for row in sorted(rows, key=lambda row: row["loss_by_context"]["256"] - row["loss_by_context"]["64"]):
        loss, options = row["loss_by_context"], CANDIDATES[row["candidate"]]
        changed = ", ".join(f"{flag.split('.')[-1]} {value}" for flag, value in zip(*[iter(options)] * 2, strict=True))
        tokens, minutes = row["steps"] * row["batch_size"] * CONTEXTS[-1] / 1e6, row["training_seconds"] / 60
        line = [changed, f"{tokens:.1f}", f"{minutes:.0f}", f"{row['bits_per_byte']:.3f}"]
        line += [f"{loss['64']:.3f}", f"{loss['64'] - loss['256']:.3f}"]
        line += [f"{row['text_first']:.2f}", f"{row['text_again']:.2f}", f"{row['text_again_right']:.0%}"]
        lines.append([*line, f"{row['random_again']:.2f}", f"{row['random_again_right']:.0%}"])
    return "\n".join(markdown([head, *lines]))


def section() -> str:
    """The part of results/NOTES.md that is made from the measurements."""
    rows = pages.load_rows("recipe")
    return f"""\
{table(rows)}

{pages.describe_machines(rows)}"""


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing, and write the page."""
    run_experiment(argv, __doc__, list_measurements(), train.main, evaluate.main)
    pages.replace_section("experiments/recipe.py", section())


if __name__ == "__main__":
    run_main(main)
