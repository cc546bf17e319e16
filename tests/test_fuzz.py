"""Any config at all is either refused by name, and leaves nothing, or trains two steps with a finite loss.

A learning rate above 10 alone may also end in the error that names it.

.venv/bin/python -m pytest tests/test_fuzz.py            a few dozen configs
FUZZ=1000 .venv/bin/python -m pytest tests/test_fuzz.py  more
"""

import math
import os
import shutil
import types
import typing
from collections import Counter
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import train
from data import DataConfig
from harness.messages import BadInput, RunFailed
from model import ModelConfig
from positions import SCHEMES

SECTIONS = {
    "data": DataConfig,
    "model": ModelConfig,
    **{f"model.{name}": scheme.Options for name, scheme in SCHEMES.items() if scheme.Options},
    "run": train.RunConfig,
}
SMALL_INTS = [1, 2, 3, 4, 6, 8, 16, 32]
EDGE_INTS = [0, -1, 5, 300, 10**9, 2**31, 2**63, 10**30]
EDGE_FLOATS = [0.0, -1.0, 1.0, 0.5, 2.0, 1e-320, 1e-7, 1e30, 1e308, math.inf, -math.inf, math.nan, 0.9999999999999999]
EDGE_TEXTS = ["", " ", ".", "\0", "\n", "é", "x" * 300, "null", "true", "task:", "task:copy", "kvj"]
NAMED = {  # texts that mean something, beside the others
    "data.tokenizer": ["bytes", "bpe"],
    "data.corpus": ["tiny.txt"],
    "model.position": list(SCHEMES),
}
LEFT_ALONE = {  # where the run goes, what would leave this machine or take minutes, and how many threads there are
    *("run.out", "run.name", "run.wandb", "run.compile", "run.threads", "run.device", "run.steps", "run.overwrite"),
    *("data.cache", "run.eval_windows"),
}


def values_of(name: str, kind: object) -> st.SearchStrategy:
    """Values for an option from its type: fitting ones, those at the edge, and now and then one of another type."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return st.one_of([values_of(name, part) for part in typing.get_args(kind)])
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from([*typing.get_args(kind), "none of these"])
    if typing.get_origin(kind) is list:
        return st.lists(values_of(name, float), max_size=5)
    return {
        bool: st.booleans(),
        int: st.sampled_from(SMALL_INTS) | st.sampled_from(EDGE_INTS) | st.integers(-8, 64),
        float: st.floats(1e-4, 8.0) | st.sampled_from(EDGE_FLOATS) | st.floats(),
        str: st.sampled_from(NAMED.get(name, EDGE_TEXTS)) | st.sampled_from(EDGE_TEXTS),
        type(None): st.none(),
    }[kind]


OPTIONS = {
    f"{section}.{field.name}": values_of(f"{section}.{field.name}", typing.get_type_hints(config)[field.name])
    for section, config in SECTIONS.items()
    for field in fields(config)
    if not is_dataclass(typing.get_type_hints(config)[field.name]) and f"{section}.{field.name}" not in LEFT_ALONE
}
OF_ANOTHER_KIND = st.sampled_from([True, None, 3, 0.5, "x", [], {}, [1, 2], {"a": 1}, "1e3"])


@st.composite
def configs(draw: st.DrawFn) -> dict[str, object]:
    """A few options, each with any value of its type, or for one in ten of any type."""
    chosen = draw(st.lists(st.sampled_from(sorted(OPTIONS)), min_size=1, max_size=5, unique=True))
    odd = draw(st.integers(0, 9)) == 0
    return {name: draw(OF_ANOTHER_KIND if odd else OPTIONS[name]) for name in chosen}


@pytest.mark.filterwarnings("ignore")
def test_any_config_is_refused_by_name_or_trains_two_steps(small, tmp_path_factory, corpus_file, monkeypatch):
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copy(corpus_file, folder / "tiny.txt")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    base = [*small, "--run.steps", "2", "--data.corpus", "tiny.txt", "--run.out", "new"]

    seen: Counter[str] = Counter()

    @settings(
        max_examples=int(os.environ.get("FUZZ", 60)),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(configs())
    def each(asked: dict[str, object]) -> None:
        sections: dict[str, dict] = {}
        for name, value in asked.items():
            *path, last = name.split(".")
            section = sections
            for part in path:
                section = section.setdefault(part, {})
            section[last] = value
        Path("asked.yaml").write_text(yaml.safe_dump(sections), encoding="utf-8")
        try:
            outcome = train.main([*base, "--config", "asked.yaml"])
        except BadInput as error:
            seen["refused"] += 1
            assert not Path("new").exists()
            said = str(error).replace("\r", "\\r").replace("\n", "\\n")
            assert "\n" not in said
            assert any(name.split(".", 1)[1] in said for name in OPTIONS), (asked, said)
        except RunFailed as error:  # a rate that is absurd, and not refused: where learning ends is seen by trying
            seen["diverged"] += 1
            named = "--run.learning_rate" in str(error)
            assert named
            assert asked["run.learning_rate"] > 10
        else:
            seen["trained"] += 1
            assert outcome["step"] == 2
            assert math.isfinite(outcome["val_loss"])
        finally:
            shutil.rmtree("new", ignore_errors=True)

    each()
    print(dict(seen))  # shown by -s
    assert seen["refused"]
    assert seen["trained"]
