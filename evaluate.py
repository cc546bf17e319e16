"""How well a trained run predicts text, at other lengths and under other rotary scalings than it was trained with.

    python evaluate.py runs/rope --lengths 256 512 1024 2048 4096 --rope.scaling yarn --rope.factor 4
    python evaluate.py runs/rope --scalings all --protocols fixed sliding by-position --out results.json

Nothing is trained: `--rope.*` options lie over the run's own. Factors that a run has learned (rope.learn_factors)
divide the frequencies of every scaling asked for, unless `--rope.learn_factors false` leaves them out. Losses are nats
per token, counted in one of these ways:

    fixed             the same targets, the last 32 tokens of up to 256 shared windows, under every length of context
    windows           the whole split in windows side by side; longer ones have fewer tokens with little context, so
                      this rewards mere length
    sliding           the whole split, every target once: a full window, then its last `--stride` targets, and so on
    by-position       the windows again, by how many tokens stand before the target, in buckets that double
    shuffled-prefix   as fixed, but in every window the tokens before the last trained-length ones are put in random
                      order: if that costs nothing, order far away does not matter to the model
    retrieval         for runs trained on a task, and alone for them: accuracy of whole answers, each token
                      of them after the right ones, by length and by where in the context the source stands

Beside every loss and accuracy stands what merely cropping gives, so that a gain from length can be told from bare
survival: the run as it was trained, without the scaling, scores the same targets from at most the last trained-length
tokens of the same window. Where a window holds more targets than one, those windows slide by the stride too, and a
target late in a window sees between trained length - stride + 1 and trained length tokens. The trained length of a
tuned run is the one it was tuned at; against cropping the run it came from, compare with that run's own figures at the
same lengths. The targets of `fixed` follow from the longest length asked for: figures to be compared need the same one.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

import data
from data import Corpus
from harness.devices import pick_device, pick_precision
from harness.evaluation import draw_accuracies, draw_losses, format_accuracies, format_losses
from harness.files import refuse_unwritable, write_whole
from harness.messages import BadInput, first_paragraph, refuse_unknown, run
from harness.options import Parser
from harness.provenance import versions
from harness.retrieval import empty_rows, measure_accuracy
from harness.runs import FinishedRun, load_finished_run, read_result
from harness.scalings import add_rope_options, position_at, variants
from harness.scoring import PROTOCOLS, RETRIEVAL, Ruler, target_figures, target_nats
from harness.tasks import TaskCorpus
from model import Transformer
from positions import Position
from rope import yarn_warning

# ---- protocols: which windows, and which of their targets ------------------------------------------------------------


# ---- the command line ------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure what the command line asks for, and return what goes into the JSON file."""
    parser = Parser(prog="evaluate.py", description=first_paragraph(__doc__))
    parser.add_argument("run", type=str, help="a run folder that train.py made, runs/rope say")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=None, help="of context, tokens; 1, 2, 4 and 8 times the trained one"
    )
    parser.add_argument(
        "--protocols", type=str, nargs="+", default=None, help=f"{', '.join(PROTOCOLS)}; of tasks: {RETRIEVAL}"
    )
    parser.add_argument("--trials", type=int, default=None, help="of retrieval: at least this many a cell; 200")
    parser.add_argument(
        "--scalings", type=str, nargs="+", default=None, help="several rope scalings side by side, or all"
    )
    add_rope_options(parser)
    parser.add_argument("--stride", type=int, default=None, help="tokens; half the shortest length if not given")
    parser.add_argument(
        "--split", type=Literal["train", "validation", "test"], default="validation", help="what to score"
    )
    parser.add_argument("--seed", type=int, default=0, help="of shuffled-prefix")
    parser.add_argument(
        "--picture", type=str, default=None, help="FILE.png; evaluate.png in the run folder if not given"
    )
    parser.add_argument("--out", type=str, default=None, help="FILE.json for the figures")
    asked, given = parser.parse_args(argv), parser.parse_args(argv, defaults=False).get("rope")

    refuse_unknown("protocols", asked.protocols or [], [*PROTOCOLS, RETRIEVAL])
    if asked.trials is not None and asked.trials < 1:
        raise BadInput(f"--trials {asked.trials} must be at least 1")
    if not 0 <= asked.seed < 2**63:
        raise BadInput(f"--seed {asked.seed} must be at least 0 and below 2^63")
    device = pick_device("auto")
    loaded = load_finished_run(asked.run, str(device))
    model, trained, settings = loaded.model, loaded.model_config.seq_len, loaded.settings
    on_task = loaded.data.corpus.startswith("task:")
    protocols = list(dict.fromkeys(asked.protocols or [RETRIEVAL if on_task else "fixed"]))
    refuse_unfit(asked, protocols, loaded, on_task)
    compared = variants(loaded, vars(given) if given else {}, asked.scalings)
    corpus = data.load(loaded.data, settings["seed"], settings["batch_size"], trained)
    if read_result(loaded.path).get("data_sha256", corpus.sha256) != corpus.sha256:
        raise BadInput(
            f"{loaded.path} was trained on another text than data.corpus {loaded.data.corpus!r} now holds: put back "
            "what it had"
        )
    lengths = choose_lengths(asked.lengths, loaded, corpus, asked.split)
    stride = asked.stride if asked.stride is not None else max(1, min([trained, *([] if on_task else lengths)]) // 2)
    longest_stride = min([trained, *(lengths if "sliding" in protocols else [])])
    if not 1 <= stride <= longest_stride:
        raise BadInput(f"--stride {stride} must lie in 1 .. {longest_stride}: a longer one would leave targets out")
    own = model.position
    positions = {  # all of them now, so that whatever is wrong is said before the work
        (scaling, length): position_at(loaded, fields, length).to(device) if fields else own
        for scaling, fields in compared.items()
        for length in lengths
    }
    for scaling in compared:
        if scaling and (warning := yarn_warning(positions[scaling, lengths[-1]].config, loaded.model_config.d_head)):
            print(f"evaluate.py: warning: {warning}", file=sys.stderr)
    picture = Path(loaded.path / "evaluate.png" if asked.picture is None else asked.picture)
    if picture.suffix != ".png":
        raise BadInput(f"--picture {asked.picture or repr(asked.picture)} must be a .png, curves.png say")
    refuse_unwritable("picture", picture)
    if asked.out is not None:
        if not asked.out:
            raise BadInput("--out '' must name a file, results.json say")
        refuse_unwritable("out", Path(asked.out))

    precision, autocast = pick_precision(settings["precision"], device)
    figures = partial(target_figures if on_task else target_nats, model, device=device, autocast=autocast)
    ruler = Ruler(corpus, asked.split, lengths, trained, stride, asked.seed, figures)
    what = corpus.name if on_task else f"{corpus.name}, {corpus.longest(asked.split):,} targets; stride {stride}"
    print(
        f"{loaded.path}: {loaded.model_config.position}, trained at {trained} tokens; {asked.split} split of {what}; "
        f"{precision} on {device}",
        flush=True,
    )
    if on_task:
        trials = 200 if asked.trials is None else asked.trials
        results = retrieval(ruler, model, positions, list(compared), trials)
        show, picture_of = format_accuracies, draw_accuracies
    else:
        results = losses(ruler, model, positions, list(compared), protocols)
        show, picture_of = format_losses, draw_losses
    content = {"run": str(loaded.path), "trained_length": trained, "split": asked.split, "stride": stride}
    content |= {"seed": asked.seed, "precision": precision, "versions": versions(), "results": results}
    if asked.out is not None:
        write_whole(Path(asked.out), json.dumps(content, indent=2) + "\n")  # before anything else can fail
    picture_of(results, loaded.model_config.position, trained, picture)
    print("\n" + "\n".join(show(results, loaded.model_config.position, trained)))
    print(f"Picture: {picture}" + (f"   Figures: {asked.out}" if asked.out is not None else ""))
    return content


def losses(
    ruler: Ruler, model: Transformer, positions: dict[Any, Position], scalings: list[str | None], protocols: list[str]
) -> list[dict[str, Any]]:
    """The results of a run on text: a row a cell, for every protocol, length and scaling."""
    results, own = [], model.position
    cells = [(protocol, length) for protocol in protocols for length in ruler.lengths]
    for protocol, length in tqdm(cells, unit="cell", disable=not sys.stderr.isatty()):
        model.position = own
        crops = ruler.measure(protocol, length, crop=True)
        for scaling in scalings:
            model.position = positions[scaling, length]
            factor = model.position.config.factor if scaling else None
            for cell, crop in zip(ruler.measure(protocol, length), crops, strict=True):
                row = {"scaling": scaling, "factor": factor, "protocol": protocol, "length": length}
                row |= {"loss": cell.pop("loss"), "crop_loss": crop["loss"]}
                results.append(row | dict.fromkeys(("accuracy", "trials", "distance")) | cell)
    model.position = own
    return results


def retrieval(
    ruler: Ruler, model: Transformer, positions: dict[Any, Position], scalings: list[str | None], trials: int
) -> list[dict[str, Any]]:
    """The results of a run on tasks: five rows, all answers and those of each quarter, for every task and length.

    Where learned positions have ended only the crop has figures, and the others are None.
    """
    results, own = [], model.position
    cells = [(task, length) for task in ruler.corpus.tasks for length in ruler.lengths]
    for task, length in tqdm(cells, unit="cell", disable=not sys.stderr.isatty()):
        model.position = own
        ask = partial(measure_accuracy, ruler.corpus, task, ruler.split, length, trials)
        crops = ask(partial(ruler.cropped, stride=ruler.stride))
        for scaling in scalings:
            model.position = positions[scaling, length]
            row = {"scaling": scaling, "factor": model.position.config.factor if scaling else None}
            row |= {"protocol": RETRIEVAL, "length": length}
            ended = own.longest is not None and length > own.longest
            for cell, crop in zip(empty_rows() if ended else ask(ruler.nats), crops, strict=True):
                figures = {"loss": cell["loss"], "crop_loss": crop["loss"]}
                figures |= {name: cell[name] for name in ("accuracy", "trials", "distance", "tokens")}
                figures |= {"task": task, "depth": cell["depth"], "token_accuracy": cell["token_accuracy"]}
                results.append(row | figures | {"crop_accuracy": crop["accuracy"]})
    model.position = own
    return results


def refuse_unfit(asked: Any, protocols: list[str], run_: FinishedRun, on_task: bool) -> None:
    """Raise BadInput for what only makes sense for runs on text, asked of one on a task, or the other way round."""
    on = f"{run_.path} was trained on {run_.data.corpus}"
    for protocol in protocols:
        if (protocol == RETRIEVAL) != on_task:
            use = RETRIEVAL if on_task else ", ".join(PROTOCOLS)
            raise BadInput(f"--protocols {protocol}: {on}; for it there is {use}")
    for option, of_tasks in (("trials", True), ("stride", False)):
        if getattr(asked, option) is not None and of_tasks != on_task:
            raise BadInput(f"--{option} {getattr(asked, option)} means nothing here: {on}, so leave it out")


def choose_lengths(asked: list[int] | None, run_: FinishedRun, corpus: Corpus | TaskCorpus, split: str) -> list[int]:
    """The lengths asked for, in order; if none, those of 1, 2, 4 and 8 times the trained one that can be.

    For tasks a quarter and a half come first, and lengths past the end of learned positions stay, to come out as n/a.

    Raises:
        BadInput: for a length that cannot be.
    """
    text, wall = corpus.longest(split), run_.model.position.longest
    trained, least = run_.model_config.seq_len, 1
    if isinstance(corpus, TaskCorpus):
        wall, least = None, corpus.least
    if asked is None and isinstance(corpus, TaskCorpus):
        return [length for n in (1 / 4, 1 / 2, 1, 2, 4, 8) if least <= (length := int(n * trained)) <= text]
    if asked is None:
        return [length for n in (1, 2, 4, 8) if (length := n * trained) <= min(text, wall or text)]
    if min(asked) < least:
        raise BadInput(
            f"--lengths {min(asked)} must be at least {least}" + (f" for {corpus.name}" if least > 1 else "")
        )
    if wall is not None and max(asked) > wall:
        raise BadInput(f"--lengths {max(asked)}: the learned positions of {run_.path} end at {wall}; use shorter ones")
    if max(asked) > text:
        raise BadInput(f"--lengths {max(asked)} is longer than the {split} split allows ({text}): use shorter ones")
    return sorted(set(asked))


if __name__ == "__main__":
    run(main)
