"""What an experiment adds to a run: `--plugin experiments.NAME`.

.venv/bin/python -m pytest tests/test_plugins.py
"""

import sys

import pytest
import yaml

import compare
import generate
import train
from harness import plugins
from harness.messages import BadInput
from harness.runs import load_finished_run, read_result
from positions import SCHEMES

SCHEME = """
import torch
from positions import SCHEMES, Position


class Clock(Position):
    def embed(self, x, positions):
        return x + (positions % 2)[:, None]


SCHEMES["clock"] = Clock
"""
CLOCK = ["--plugin", "experiments.clock", "--model.position", "clock"]


def forget() -> None:
    SCHEMES.pop("clock", None)
    plugins.LOADED.clear()
    sys.modules.pop("experiments.clock", None)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A tree with one plugin in its experiments/; what was loaded is forgotten afterwards."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "clock.py").write_text(SCHEME)
    monkeypatch.setattr(plugins, "TREE", tmp_path)
    yield tmp_path
    forget()


def test_a_plugin_adds_a_scheme_and_whatever_reads_the_run_loads_it_by_itself(small, tree, capsys):
    folder = tree / "run"
    train.main([*small, *CLOCK, "--run.out", str(folder)])
    assert yaml.safe_load((folder / "config.yaml").read_text())["plugin"] == ["experiments.clock"]
    forget()
    assert load_finished_run(folder).model_config.position == "clock"
    forget()
    generate.main([str(folder), "--tokens", "3", "--prompt", "in the"])
    forget()
    tuned = tree / "tuned"
    train.main(["--run.init_from", str(folder), "--run.steps", "2", "--run.out", str(tuned), "--run.wandb", "disabled"])
    assert read_result(tuned)["status"] == "finished"
    forget()
    train.main(["--config", str(tuned / "config.yaml"), "--run.resume", "true"])


def test_a_run_whose_plugin_is_missing_is_refused_by_name(small, tree):
    folder = tree / "run"
    train.main([*small, *CLOCK, "--run.out", str(folder)])
    forget()
    (tree / "experiments" / "clock.py").unlink()
    with pytest.raises(BadInput, match=r"config\.yaml: plugin experiments\.clock is not here"):
        load_finished_run(folder)


@pytest.mark.parametrize("name", ["clock", "experiments.nothing", "os.path", "experiments", "experiments/clock"])
def test_a_plugin_comes_from_this_trees_experiments_and_from_nowhere_else(small, tree, name):
    with pytest.raises(BadInput, match=rf"--plugin {name} is not here: give experiments\.NAME"):
        train.main([*small, "--plugin", name, "--run.out", str(tree / "run")])
    assert not (tree / "run").exists()


def test_a_comparison_knows_the_scheme_of_a_plugin(small, tree):
    out = tree / "out"
    argv = [*small, *CLOCK[:2], "--schemes", "clock", "none", "--jobs", "1", "--out", str(out)]
    assert [run["scheme"] for run in compare.main(argv)["runs"]] == ["clock", "none"]
