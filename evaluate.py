"""How well a trained run predicts text at other lengths, and under other rotary scalings, than it was trained with.

    python evaluate.py runs/rope --lengths 256 512 1024 2048 4096 --rope.scaling yarn --rope.factor 4
    python evaluate.py runs/rope --scalings none ntk yarn --protocols fixed sliding by-position --out results.json

Nothing is trained. `--rope.*` options override the run's own. Learned factors (rope.learn_factors) divide the
frequencies of every scaling, unless `--rope.learn_factors false` leaves them out. Losses are in nats per token, under
one of these protocols:

    fixed             the same targets, the last 32 tokens of up to 256 shared windows, with every context length
    windows           the whole split in adjacent windows; longer windows have fewer targets with little context, so
                      this favours length as such
    sliding           the whole split, each target once: a full window, then `--stride` new targets per window
    by-position       as windows, by the number of tokens before the target, in ranges that double
    shuffled-prefix   as fixed, but the tokens before the last trained-length ones are shuffled within each window: if
                      the loss stays the same, the model makes no use of the order of distant tokens
    retrieval         for runs trained on a task, and the only protocol for them: the share of answers that are entirely
                      right, each token predicted after the right ones, by length and by where the source stands

Each loss and accuracy comes with that of cropping the context to the trained length, which tells a gain from longer
context apart from merely not failing: the run as it was trained, without the scaling, scores the same targets,
each from at most the last trained-length tokens before it. Where a window holds many targets, the cropped windows slide
by the stride, so a late target sees between trained length - stride + 1 and trained length tokens. A fine-tuned run's
trained length is the one it was tuned at. The targets of `fixed` depend on the longest length given, so compare figures
only if it was the same.
"""

import harness.stops  # first: the rest takes seconds to import, and Ctrl-C ends even that without a traceback

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from data import Corpus
from harness.devices import pick_device, pick_precision
from harness.evaluation import draw_accuracies, draw_losses, format_accuracies, format_losses, load_corpus
from harness.files import refuse_unwritable, write_whole
from harness.messages import BadInput, refuse_unknown, run_main, tell
from harness.options import Parser
from harness.provenance import versions
from harness.ranges import AtLeast1
from harness.runs import FinishedRun, load_finished_run, read_result
from harness.scalings import add_rope_options, choose_scalings, make_position, yarn_warning
from harness.scoring import PROTOCOLS, RETRIEVAL, SHUFFLING, Evaluator, score_targets
from harness.tasks import TaskCorpus
from model import Transformer
from positions import Position


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure what the command line asks for; returns the content of the JSON file."""
    parser = make_parser()
    asked, given = parser.parse_args(argv), parser.parse_args(argv, defaults=False).get("rope")
    refuse_unknown("protocols", asked.protocols or [], [*PROTOCOLS, RETRIEVAL])
    device = pick_device("auto")
    loaded = load_finished_run(asked.run, str(device))
    trained, settings, scheme = loaded.model_config.seq_len, loaded.settings, loaded.model_config.position
    on_task = loaded.data.corpus.startswith("task:")
    protocols = list(dict.fromkeys(asked.protocols or [RETRIEVAL if on_task else "fixed"]))
    refuse_unfit(asked, protocols, loaded, on_task)
    compared = choose_scalings(loaded, vars(given) if given else {}, asked.scalings)
    corpus = load_corpus(loaded)
    if read_result(loaded.path).get("data_sha256", corpus.sha256) != corpus.sha256:
        raise BadInput(
            f"{loaded.path} was trained on another text than data.corpus {loaded.data.corpus!r} holds now: restore it"
        )
    lengths = choose_lengths(asked.lengths, loaded, corpus, asked.split)
    stride = asked.stride if asked.stride is not None else max(1, min([trained, *([] if on_task else lengths)]) // 2)
    longest_stride = min([trained, *(lengths if "sliding" in protocols else [])])
    if not 1 <= stride <= longest_stride:
        raise BadInput(f"--stride {stride} must be between 1 and {longest_stride}, or some targets would not be scored")
    positions = {  # made before the work begins, so that mistakes are reported now
        (scaling, length): make_position(loaded, fields, length).to(device) if fields else loaded.model.position
        for scaling, fields in compared.items()
        for length in lengths
    }
    for scaling in compared:
        if scaling and (warning := yarn_warning(positions[scaling, lengths[-1]].config, loaded.model_config.d_head)):
            tell(f"evaluate.py: warning: {warning}")
    picture = Path(loaded.path / "evaluate.png" if asked.picture is None else asked.picture)
    refuse_unwritable("picture", picture, ".png")
    if asked.out is not None:
        refuse_unwritable("out", Path(asked.out), ".json")

    precision, autocast = pick_precision(settings["precision"], device)
    score = partial(score_targets, loaded.model, device=device, autocast=autocast)
    evaluator = Evaluator(corpus, asked.split, lengths, trained, stride, asked.trials or 200, score)
    what = corpus.name if on_task else f"{corpus.name}, {corpus.longest(asked.split):,} targets; stride {stride}"
    print(
        f"{loaded.path}: {scheme}, trained at {trained} tokens; {asked.split} split of {what}; {precision} on {device}",
        flush=True,
    )
    tasks = corpus.tasks if on_task else [None]
    cells = [(protocol, task, length) for protocol in protocols for task in tasks for length in lengths]
    results = measure_all(evaluator, loaded.model, positions, cells)
    format_results, draw_results = (format_accuracies, draw_accuracies) if on_task else (format_losses, draw_losses)
    content = {"run": str(loaded.path), "trained_length": trained, "split": asked.split, "stride": stride}
    content |= {"seed": SHUFFLING, "precision": precision, "versions": versions(), "results": results}
    if asked.out is not None:
        write_whole(Path(asked.out), json.dumps(content, indent=2) + "\n")  # before anything else can fail
    draw_results(results, scheme, trained, picture)
    print("\n" + "\n".join(format_results(results, scheme, trained)))
    print(f"Picture: {picture}" + (f"   Figures: {asked.out}" if asked.out is not None else ""))
    return content


def make_parser() -> Parser:
    """The command line of evaluate.py."""
    parser = Parser(prog="evaluate.py", description=__doc__)
    lengths = "of context, tokens; 1, 2, 4 and 8 times the trained one if not given"
    protocols = f"{', '.join(PROTOCOLS)}; for tasks: {RETRIEVAL}"
    picture = "FILE.png; evaluate.png in the run folder if not given"
    parser.add_argument("run", type=str, help="a run folder, such as runs/rope")
    parser.add_argument("--lengths", type=int, nargs="+", default=None, help=lengths)
    parser.add_argument("--protocols", type=str, nargs="+", default=None, help=protocols)
    parser.add_argument(
        "--trials", type=AtLeast1 | None, default=None, help="for retrieval: the least number per cell; 200"
    )
    parser.add_argument("--scalings", type=str, nargs="+", default=None, help="rope scalings to compare")
    add_rope_options(parser)
    parser.add_argument("--stride", type=int, default=None, help="tokens; half the shortest length if not given")
    parser.add_argument("--split", type=Literal["train", "validation", "test"], default="validation", help="to score")
    parser.add_argument("--picture", type=str, default=None, help=picture)
    parser.add_argument("--out", type=str, default=None, help="FILE.json for the figures")
    return parser


def measure_all(
    evaluator: Evaluator, model: Transformer, positions: dict[Any, Position], cells: list[tuple[str, str | None, int]]
) -> list[dict[str, Any]]:
    """The results: one or several rows for each scaling and each cell, of protocol, task or None, and length.

    Where learned positions have ended, a task's row has figures for the crop only; the others are None.
    """
    results, own, scalings = [], model.position, dict.fromkeys(scaling for scaling, _ in positions)
    for protocol, task, length in tqdm(cells, unit="cell", disable=not sys.stderr.isatty()):
        model.position = own
        crops = evaluator.measure(protocol, task, length, crop=True)
        for scaling in scalings:
            model.position = positions[scaling, length]
            factor = model.position.config.factor if scaling else None
            for cell, crop in zip(evaluator.measure(protocol, task, length), crops, strict=True):
                row = {"scaling": scaling, "factor": factor, "protocol": protocol, "length": length}
                row |= {"loss": None, "crop_loss": crop["loss"]}
                row |= dict.fromkeys(("accuracy", "trials", "distance", "tokens"))
                if task:
                    row |= {"task": task, "depth": None, "token_accuracy": None, "crop_accuracy": crop["accuracy"]}
                results.append(row | cell)
    model.position = own
    return results


def refuse_unfit(asked: Any, protocols: list[str], run_: FinishedRun, on_task: bool) -> None:
    """Raise BadInput for what only applies to runs on text, asked of one on a task, and vice versa."""
    on = f"{run_.path} was trained on {run_.data.corpus}"
    for protocol in protocols:
        if (protocol == RETRIEVAL) != on_task:
            use = RETRIEVAL if on_task else ", ".join(PROTOCOLS)
            raise BadInput(f"--protocols {protocol}: {on}; use {use}")
    for option, of_tasks in (("trials", True), ("stride", False)):
        if getattr(asked, option) is not None and of_tasks != on_task:
            raise BadInput(f"--{option} {getattr(asked, option)} does not apply: {on}, so leave it out")


def choose_lengths(asked: list[int] | None, run_: FinishedRun, corpus: Corpus | TaskCorpus, split: str) -> list[int]:
    """The lengths asked for, sorted; by default 1, 2, 4 and 8 times the trained one, as far as possible.

    For tasks a quarter and a half come first, and lengths past the end of learned positions are kept, to be n/a.

    Raises:
        BadInput: for an impossible length.
    """
    longest, wall = corpus.longest(split), run_.model.position.longest
    trained, least, multiples = run_.model_config.seq_len, 1, [1, 2, 4, 8]
    if isinstance(corpus, TaskCorpus):
        wall, least, multiples = None, corpus.least, [1 / 4, 1 / 2, *multiples]
    if asked is None:
        return [length for n in multiples if least <= (length := int(n * trained)) <= min(longest, wall or longest)]
    if min(asked) < least:
        raise BadInput(
            f"--lengths {min(asked)} must be at least {least}" + (f" for {corpus.name}" if least > 1 else "")
        )
    if wall is not None and max(asked) > wall:
        raise BadInput(f"--lengths {max(asked)}: the learned positions of {run_.path} end at {wall}; use shorter ones")
    if max(asked) > longest:
        raise BadInput(f"--lengths {max(asked)} is longer than the {split} split allows ({longest}): use shorter ones")
    return sorted(set(asked))


if __name__ == "__main__":
    run_main(main)
