"""Tuning: a run that starts from the weights of a finished one, at another length or under another scaling.

    python train.py --run.init_from runs/rope --model.seq_len 1024 --model.rope.scaling yarn --model.rope.factor 4 \\
        --run.steps 100
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from harness.corpora import DataConfig
from harness.messages import BadInput
from harness.preparing import choose_cache
from harness.runs import FinishedRun, load_finished_run
from model import ModelConfig, Transformer
from positions import Rope
from rope import OPTIONS, SCALING_FIELDS, RopeConfig

KEPT_IN_TUNING = (
    *("seed", "batch_size", "learning_rate", "embedding_rate", "schedule", "final_rate", "warmup", "weight_decay"),
    *("beta1", "beta2", "grad_clip", "eval_windows", "precision"),
)
# The whole rate again would lose much of what its fall to zero had won: see results/SURPRISES.md.
SLOWER_IN_TUNING = 3  # times
MAY_CHANGE = {"seq_len", "attention", "init_std"}  # in a run that starts from another's weights


def load_start(path: str | Path) -> FinishedRun:
    """Load the run that another one is to start from. Raises BadInput as load_finished_run, with the flag's name."""
    try:
        return load_finished_run(path)
    except BadInput as error:
        raise BadInput(f"--run.init_from {error}") from error


def defaults_from(old: FinishedRun, given: Any, run_config: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of a run that tunes an old one, by option: see RunConfig.init_from.

    Args:
        old: the finished run.
        given: what files and flags give.
        run_config: the class of the section run.

    Raises:
        BadInput: if the old run has settings that this class refuses.
    """
    values = {f"data.{name}": value for name, value in asdict(old.data).items()}
    try:
        values["data.cache"] = choose_cache(old.data).cache
    except BadInput:  # of a corpus that is not here; another may be asked for
        values["data.cache"] = DataConfig.cache
    for name, value in asdict(old.model_config).items():
        if not isinstance(value, dict):
            values[f"model.{name}"] = value
            continue
        if "scaling" in value:  # of a scheme that rotates
            if (scaling := given.get(f"model.{name}.scaling", value["scaling"])) != value["scaling"]:
                taken = set.union(*OPTIONS[scaling])
                value = {k: v for k, v in value.items() if k not in SCALING_FIELDS or k in taken}
            if name == old.model_config.position and value["original_length"] is None:
                value["original_length"] = old.model_config.seq_len
        values |= {f"model.{name}.{key}": each for key, each in value.items()}
    try:
        settings = run_config(**{name: old.settings[name] for name in ("name", *KEPT_IN_TUNING)})
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"--run.init_from {old.path / 'config.yaml'} is damaged: {error}") from error
    values |= {f"run.{name}": getattr(settings, name) for name in KEPT_IN_TUNING}
    values["run.learning_rate"] /= SLOWER_IN_TUNING
    text = [f"data.{name}" for name in ("corpus", "subset", "split", "column", "max_bytes")]
    before, now = ([part.get(name, values[name]) for name in text] for part in (values, given))
    before, now = (["kjv" if str(x).startswith("task:") else x for x in part] for part in (before, now))
    if old.data.tokenizer == "bpe" and before != now:  # tasks have the tokenizer of kjv
        values["data.tokenizer"] = str(old.path / "tokenizer.json")  # a BPE trained on another text would be another
    return values


def name_tuned_run(old: FinishedRun, config: ModelConfig) -> str:
    """A name for a tuned run that says what is new about it, and is never the old one."""
    rope = config.options if isinstance(config.options, RopeConfig) else RopeConfig()
    parts = [old.settings["name"], str(config.seq_len)]
    parts += [rope.scaling] * (rope.scaling != "none") + ["factors"] * rope.learn_factors
    return "-".join(parts)


def refuse_other_shape(old: FinishedRun, model: dict[str, Any]) -> None:
    """Raise BadInput if a finished run's weights do not fit a section model, or were trained to mean something else."""
    recorded, scheme = asdict(old.model_config), old.model_config.position
    kept = [(name, was, model[name]) for name, was in recorded.items() if name not in MAY_CHANGE]
    kept = [each for each in kept if not isinstance(each[1], dict)]
    own = recorded.get(scheme, {})  # a scheme that rotates keeps its layout, any other all its options
    own = {"layout": own["layout"]} if "layout" in own else own
    kept += [(f"{scheme}.{name}", was, model[scheme][name]) for name, was in own.items()]
    for name, was, now in kept:
        if was != now:
            wrong = f"--model.{name} {now} does not fit the weights of --run.init_from {old.path}"
            raise BadInput(f"{wrong}, which were trained with {was}: leave it out")


def refuse_other_tokenizer(old: FinishedRun, tokenizer: Tokenizer) -> None:
    """Raise BadInput if a text was prepared with another tokenizer than a finished run's: its tokens mean others."""
    if tokenizer.to_str() != old.tokenizer.to_str():
        ours, theirs = (each.get_vocab_size() for each in (tokenizer, old.tokenizer))
        wrong = f"--data.tokenizer gives another tokenizer ({ours} entries) than --run.init_from {old.path}"
        file = old.path / "tokenizer.json"
        raise BadInput(f"{wrong} was trained with ({theirs}): use --data.tokenizer {file}")


def start_from(old: FinishedRun, model: Transformer, extend_learned: str | None) -> None:
    """Put a finished run's weights into a new model, whose length and scaling may differ.

    Raises:
        BadInput: where the weights would not fit, or would mean something else.
    """
    here = f"--run.init_from {old.path}"
    refuse_other_shape(old, asdict(model.config))
    weights, scheme, options = old.model.state_dict(), model.config.position, model.config.options
    ends = model.position.longest is not None  # a table with a row for every position
    if extend_learned and not ends:
        raise BadInput(f"--run.extend_learned {extend_learned} means nothing to {here}, whose scheme is {scheme}")
    if ends:
        table, length = weights["position.table"], len(model.position.table)
        if length > len(table) and not extend_learned:
            wrong = f"--model.seq_len {length} is longer than the learned positions of {here}"
            cure = "say how they grow, --run.extend_learned repeat or interpolate"
            raise BadInput(f"{wrong}, which end at {len(table)}: {cure}")
        weights["position.table"] = extend_table(table, length, extend_learned)
    if isinstance(model.position, Rope):
        learned = weights.pop("position.log_factor", None)
        if model.position.log_factor is not None:
            fresh = model.position.log_factor.detach()
            learned = fresh if learned is None else learned
            if len(learned) != len(fresh):
                wrong = f"--model.{scheme}.fraction {options.fraction:g} rotates {len(fresh)} pairs"
                raise BadInput(f"{wrong}, and {here} has learned factors for {len(learned)}: leave it out")
            weights["position.log_factor"] = learned
        elif learned is not None and options.scaling != "longrope":
            wrong = f"--model.{scheme}.learn_factors false would drop the factors that {here} has learned"
            raise BadInput(f"{wrong}: leave it out, or take them as lists, --config {old.path / 'longrope.yaml'}")
    model.load_state_dict(weights)


def extend_table(old: Tensor, length: int, way: str | None) -> Tensor:
    """A trained table of L positions, (L, C), for another number of them, (length, C). A shorter one is cut.

    By `repeat`, position p has the vector of p mod L. By `interpolate`, the old vectors, first and last included, are
    spread evenly, with straight lines between them.
    """
    L = len(old)
    if length <= L:
        return old[:length]
    if way == "repeat":
        return old[torch.arange(length) % L]
    place = torch.linspace(0, L - 1, length, dtype=torch.float64)  # (length,), where each row falls among the old
    below = place.long().clamp(max=max(0, L - 2))  # (length,)
    return torch.lerp(old[below], old[(below + 1).clamp(max=L - 1)], (place - below)[:, None].to(old))
