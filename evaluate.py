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
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

import data
from data import Corpus
from harness.devices import pick_device, pick_precision
from harness.files import write_whole
from harness.messages import BadInput, first_paragraph, nearest, run
from harness.options import Parser
from harness.pictures import plotting
from harness.provenance import versions
from harness.runs import FinishedRun, load_finished_run, read_result
from harness.scoring import (
    FIXED_TARGETS,
    Batches,
    buckets,
    fixed,
    in_parts,
    shuffled_prefix,
    sliding,
    target_figures,
    target_nats,
    windows,
)
from harness.tables import markdown
from harness.tasks import TaskCorpus, heat_map, measure, missing, shown_depth
from model import Transformer
from positions import SCHEMES, Position
from rope import NO_LEARNED_FACTORS, OPTIONS, SCALING_FIELDS, RopeConfig, rotated_width, yarn_warning

STYLE = {  # one look per scaling, told apart without colour by dash and marker; None: a scheme that does not rotate
    None: ("#56B4E9", "-", "o"),
    "none": ("#999999", (0, (1, 1)), "x"),
    "linear": ("#E69F00", "--", "s"),
    "ntk": ("#009E73", "-.", "^"),
    "dynamic": ("#0072B2", (0, (5, 1, 1, 1, 1, 1)), "D"),
    "yarn": ("#D55E00", "-", "o"),
    "longrope": ("#CC79A7", ":", "v"),
    "llama3": ("#56B4E9", (0, (5, 1)), "P"),
    "proportional": ("#F0E442", (0, (3, 1, 1, 1)), "*"),
}


# ---- protocols: which windows, and which of their targets ------------------------------------------------------------


PROTOCOLS = ("fixed", "windows", "sliding", "by-position", "shuffled-prefix")  # of runs on text
RETRIEVAL = "retrieval"  # of runs on a task


@dataclass(frozen=True)
class Ruler:
    """What all figures of one evaluation share.

    Args:
        corpus: the run's, text or tasks.
        split: train, validation or test.
        lengths: all lengths of context, tokens.
        trained: the length the run was trained at, tokens.
        stride: of sliding windows, and of the windows that crop, tokens.
        seed: of shuffled-prefix.
        nats: a model's target_nats: inputs and targets, (B, T) each, to (B, T). For tasks its target_figures.
    """

    corpus: Corpus | TaskCorpus
    split: str
    lengths: list[int]
    trained: int
    stride: int
    seed: int
    nats: Callable[[Tensor, Tensor], Tensor]

    def batches(self, protocol: str, length: int) -> Batches:
        """The windows of a protocol."""
        if protocol == "sliding":
            return sliding(self.corpus, self.split, length, self.stride)
        if protocol in ("windows", "by-position"):
            return windows(self.corpus, self.split, length)
        batches = fixed(self.corpus, self.split, length, [*self.lengths, self.trained])
        return shuffled_prefix(batches, self.trained, self.seed) if protocol == "shuffled-prefix" else batches

    def measure(self, protocol: str, length: int, crop: bool = False) -> list[dict[str, Any]]:
        """Loss and tokens of a protocol's windows under the model as it now is: one cell, or one a bucket.

        Args:
            protocol: one of PROTOCOLS.
            length: of the windows, tokens.
            crop: score every target from at most the last trained-length tokens before it.
        """
        nats, tokens = torch.zeros(length, dtype=torch.float64), torch.zeros(length, dtype=torch.long)
        # Where a window's few targets all stand at its end, one cropped window holds them.
        stride = min(FIXED_TARGETS, self.trained) if protocol in ("fixed", "shuffled-prefix") else self.stride
        for inputs, targets in self.batches(protocol, length):
            nats += (self.cropped(inputs, targets, stride) if crop else self.nats(inputs, targets)).sum(0)
            tokens += (targets != -100).sum(0)
        if protocol == "by-position":
            spans = buckets(length, self.trained)
            shown = [{"positions": [first, last]} for first, last in spans]
        else:
            spans, shown = [(1, length)], [{}]
        cells = [(nats[first - 1 : last].sum().item(), tokens[first - 1 : last].sum().item()) for first, last in spans]
        return [{"loss": n / t, "tokens": t, **which} for (n, t), which in zip(cells, shown, strict=True)]

    def cropped(self, inputs: Tensor, targets: Tensor, stride: int) -> Tensor:
        """As `nats`, (B, T) or (B, T, 2), with every target scored from at most its last trained-length tokens.

        The first window of that length scores as many targets as needed for the others, each `stride` further, to end
        where the row ends; they score their last `stride` targets.
        """
        T, L = inputs.shape[1], self.trained
        if T <= L:
            return self.nats(inputs, targets)
        offset = (T - L) % stride
        early = L - stride + offset  # targets of the first window
        rows, scored = (
            torch.cat((x[:, None, :L], x[:, offset:].unfold(1, L, stride)), dim=1) for x in (inputs, targets)
        )  # (B, 1 + K, L) each
        scored[:, 0, early:] = -100
        scored[:, 1:, :-stride] = -100
        wanted = (scored != -100).any(-1)  # (B, 1 + K)
        found = torch.cat([self.nats(*part) for part in in_parts(rows[wanted], scored[wanted])])
        nats = found.new_zeros(*scored.shape, *found.shape[2:])  # (B, 1 + K, L) or (B, 1 + K, L, 2)
        nats[wanted] = found
        return torch.cat((nats[:, 0, :early], nats[:, 1:, -stride:].flatten(1, 2)), dim=1)  # (B, T) or (B, T, 2)


# ---- scalings: the run's rotary options with others over them --------------------------------------------------------


def overlay(own: RopeConfig, given: dict[str, Any], scaling: str, trained: int) -> dict[str, Any]:
    """The fields of a RopeConfig: what was given, over what the run has and this scaling takes.

    A factor that is needed and not there is `auto`; the original length, if not on record, is the trained one.
    """
    required, optional = OPTIONS[scaling]
    kept = {name: x for name, x in asdict(own).items() if name not in SCALING_FIELDS or name in required | optional}
    fields = kept | given | {"scaling": scaling}
    if fields.get("factor") is None and ("factor" in required or scaling == "longrope"):
        fields["factor"] = "auto"
    if fields["original_length"] is None:
        fields["original_length"] = trained
    return fields


def position_at(run_: FinishedRun, fields: dict[str, Any], length: int) -> Position:
    """The scheme rope at one length in use; a factor `auto` is that length over the original one, and at least 1.

    Raises:
        BadInput: for options that cannot be, by name.
    """
    if fields.get("factor") == "auto":
        fields = fields | {"factor": max(1.0, length / max(1, fields["original_length"]))}
    try:
        position = SCHEMES["rope"](replace(run_.model_config, rope=RopeConfig(**fields)))
        if (
            position.log_factor is not None
        ):  # learned factors are weights, and go on dividing whatever the scaling gives
            if (learned := run_.model.position.log_factor) is None:
                raise ValueError(f"rope.learn_factors true: {run_.path} has learned none")
            if len(learned) != len(position.log_factor):
                raise ValueError(
                    f"rope.fraction {fields['fraction']:g} does not fit the {len(learned)} learned factors"
                )
            position.load_state_dict(run_.model.position.state_dict())
        return position
    except ValueError as error:
        raise BadInput(f"--{error}") from error


def add_rope_options(parser: Parser) -> None:
    """Add `--rope.*` as a RopeConfig has it, with a factor that may be `auto`."""
    parser.add_class_arguments(RopeConfig, "rope", skip={"factor"})
    parser.add_argument(
        *("--rope.factor", "--factor"),
        type=Literal["auto"] | float | None,
        default=None,
        help="at least 1, or auto, each length over the original one; where a scaling needs one, auto if not given",
    )


def variants(run_: FinishedRun, given: dict[str, Any], several: list[str] | None) -> dict[str | None, dict[str, Any]]:
    """Scaling to the fields of its RopeConfig, for all that is compared; None, without fields, for other schemes.

    Args:
        run_: the run.
        given: `--rope.*` options by name.
        several: `--scalings`; options then go to those of them that take them.

    Raises:
        BadInput: for a run that does not rotate, or options that no scaling asked for takes.
    """
    config, own, trained = run_.model_config, run_.model_config.rope, run_.model_config.seq_len
    if config.position != "rope":
        if several or given:
            option, value = ("scalings", several[0]) if several else next((f"rope.{o}", x) for o, x in given.items())
            raise BadInput(
                f"--{option} {value}: {run_.path} has the scheme {config.position}; only rope has scalings: "
                "leave it out"
            )
        return {None: {}}
    if given.get("layout", own.layout) != own.layout:
        print(
            f"warning: {run_.path} was trained with rope.layout {own.layout}; another makes nonsense", file=sys.stderr
        )
    if several is None:
        scaling = given.get("scaling", own.scaling)
        return {scaling: overlay(own, given, scaling, trained) if given else asdict(own)}

    if "scaling" in given:
        raise BadInput(f"--rope.scaling {given['scaling']} and --scalings {' '.join(several)}: give one of the two")
    refuse_unknown("scalings", several, [*OPTIONS, "all"])
    names = list(OPTIONS) if "all" in several else list(dict.fromkeys(several))
    if "all" in several:
        fields = asdict(own) | given
        cannot = {
            "longrope": not (fields["short_factor"] and fields["long_factor"]) and "needs its lists of divisors",
            **dict.fromkeys(("ntk", "dynamic"), rotated_width(own, config.d_head) == 2 and "needs two pairs"),
        }
        cannot |= dict.fromkeys(
            NO_LEARNED_FACTORS if fields["learn_factors"] else (), "does not go with learned factors"
        )
        for name, why in cannot.items():
            if why:
                names.remove(name)
                print(f"{name} is left out: it {why}", file=sys.stderr)
    takes = {name: set.union(*OPTIONS[name]) | set(given).difference(SCALING_FIELDS) for name in names}
    for option in set(given).difference(*takes.values()):
        raise BadInput(f"--rope.{option} means nothing to --scalings {' '.join(names)}: leave it out")
    return {name: overlay(own, {o: x for o, x in given.items() if o in takes[name]}, name, trained) for name in names}


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
        show, picture_of = retrieval_tables, draw_retrieval
    else:
        results = losses(ruler, model, positions, list(compared), protocols)
        show, picture_of = tables, draw
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
        ask = partial(measure, ruler.corpus, task, ruler.split, length, trials)
        crops = ask(partial(ruler.cropped, stride=ruler.stride))
        for scaling in scalings:
            model.position = positions[scaling, length]
            row = {"scaling": scaling, "factor": model.position.config.factor if scaling else None}
            row |= {"protocol": RETRIEVAL, "length": length}
            ended = own.longest is not None and length > own.longest
            for cell, crop in zip(missing() if ended else ask(ruler.nats), crops, strict=True):
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


def refuse_unknown(flag: str, words: list[str], known: Iterable[str]) -> None:
    """Raise BadInput for the first word that is not known, with the nearest that is."""
    for word in words:
        if word not in known:
            raise BadInput(f"--{flag} {word or repr(word)} is none of {', '.join(known)}{nearest(word, known)}")


def refuse_unwritable(flag: str, path: Path) -> None:
    """Raise BadInput if a file cannot be written where a flag wants it; nothing is left there, nothing is changed."""
    try:
        there = path.exists()
        with open(path, "ab"):
            pass
        if not there:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise BadInput(f"--{flag} {path} cannot be written ({error.strerror}): name a file that can") from error


def tables(results: list[dict[str, Any]], scheme: str, trained: int) -> list[str]:
    """The figures as Markdown: a table a protocol, for by-position one a length; differences are to the crop."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in results:
        by_length = "positions" not in row
        title = row["protocol"] if by_length else f"by-position, windows of {row['length']}"
        column = str(row["length"]) if by_length else "-".join(map(str, dict.fromkeys(row["positions"])))
        groups.setdefault(title, []).append({**row, "column": column})
    lines = []
    for title, rows in groups.items():
        crops = {row["column"]: row["crop_loss"] for row in rows}
        table = [["scaling" if rows[0]["scaling"] else "scheme", "factor", *crops]]
        table.append([f"cropped to {trained}", "", *(f"{loss:.3f}" for loss in crops.values())])
        for scaling in dict.fromkeys(row["scaling"] for row in rows):
            mine = [row for row in rows if row["scaling"] == scaling]
            factors = {row["factor"] for row in mine}
            factor = "" if factors == {None} else "auto" if len(factors) > 1 else f"{factors.pop():g}"
            losses = [f"{row['loss']:.3f} ({row['loss'] - row['crop_loss']:+.3f})" for row in mine]
            table.append([scaling or scheme, factor, *losses])
        what = "tokens before the target" if title.startswith("by-position") else "tokens of context"
        lines += [f"{title}: loss in nats per token by {what}, in brackets against the crop", ""]
        lines += [*markdown(table), ""]
    return lines


def retrieval_tables(results: list[dict[str, Any]], scheme: str, trained: int) -> list[str]:
    """Accuracies as Markdown, a table a task: all answers, then by the quarter in which what is asked for stands."""

    def cells(rows: list[dict[str, Any]], name: str) -> list[str]:
        return ["n/a" if row[name] is None else f"{row[name]:.3f}" for row in rows]

    lines = []
    for task in dict.fromkeys(row["task"] for row in results):
        of_task = [row for row in results if row["task"] == task]
        scalings = list(dict.fromkeys(row["scaling"] for row in of_task))
        table = [["scaling" if scalings[0] else "scheme", "where", *dict.fromkeys(str(r["length"]) for r in of_task)]]
        crop = [row for row in of_task if row["depth"] is None and row["scaling"] == scalings[0]]
        table.append([f"cropped to {trained}", "all", *cells(crop, "crop_accuracy")])
        for scaling in scalings:
            mine = [row for row in of_task if row["scaling"] == scaling]
            whole = [row for row in mine if row["depth"] is None]
            table.append([scaling or scheme, "all", *cells(whole, "accuracy")])
            table.append(["", "token by token", *cells(whole, "token_accuracy")])
            for depth in dict.fromkeys(row["depth"] for row in mine if row["depth"] is not None):
                rows = [row for row in mine if row["depth"] == depth]
                table.append(["", shown_depth(depth), *cells(rows, "accuracy")])
        trials = min(row["trials"] for row in of_task if row["trials"] is not None)
        what = f"part of all answers that are right as a whole, by tokens of context; {trials} trials or more a cell"
        lines += [f"{task}: {what}", "", *markdown(table), ""]
    return lines


def draw_retrieval(results: list[dict[str, Any]], scheme: str, trained: int, path: Path) -> None:
    """Heat maps, a column a task and a row a scaling: accuracy by length and by quarter of what is asked for."""
    panels = []
    for scaling in dict.fromkeys(row["scaling"] for row in results):
        panels.append([])
        for task in dict.fromkeys(row["task"] for row in results):
            rows = [row for row in results if (row["task"], row["scaling"]) == (task, scaling)]
            cells = {(shown_depth(row["depth"]), row["length"]): row["accuracy"] for row in rows}
            panels[-1].append((f"{task}, {scaling or scheme}", cells))
    heat_map(panels, trained, path)


def draw(results: list[dict[str, Any]], scheme: str, trained: int, path: Path) -> None:
    """A panel a protocol: loss against context for every scaling and the crop. By-position: the longest length."""
    plt = plotting()
    protocols = list(dict.fromkeys(row["protocol"] for row in results))
    figure, axes = plt.subplots(
        1, len(protocols), figsize=(5.5 * len(protocols), 4.4), layout="constrained", squeeze=False
    )
    longest = max(row["length"] for row in results)
    for axis, protocol in zip(axes[0], protocols, strict=True):
        by_position = protocol == "by-position"
        rows = [row for row in results if row["protocol"] == protocol]
        rows = [row | {"x": row["positions"][1] if by_position else row["length"]} for row in rows]
        rows = [row for row in rows if not by_position or row["length"] == longest]
        crops = {row["x"]: row["crop_loss"] for row in rows}
        axis.plot(list(crops), list(crops.values()), color="black", linewidth=1, label=f"cropped to {trained}")
        for scaling in dict.fromkeys(row["scaling"] for row in rows):
            color, dash, marker = STYLE[scaling]
            mine = {row["x"]: row["loss"] for row in rows if row["scaling"] == scaling}
            look = {"color": color, "linestyle": dash, "marker": marker, "markersize": 4, "linewidth": 1.6}
            axis.plot(list(mine), list(mine.values()), **look, label=scaling or scheme)
        axis.axvline(trained, color="black", linewidth=0.8, linestyle=":")  # the trained length
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(crops), [str(x) for x in crops], fontsize=8)
        axis.minorticks_off()
        axis.set_xlabel(f"tokens before the target, windows of {longest}" if by_position else "tokens of context")
        axis.set(ylabel="loss, nats per token", title=protocol)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    run(main)
