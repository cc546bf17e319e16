"""A scheme is added in three steps (README, positions.py): here they are followed in a copy of the tree.

.venv/bin/python -m pytest tests/test_new_scheme.py

The scheme is in no other place of the project. Its first values must be positive and are its own, so a model that
overwrote them by its rule for weights would have NaN in the first step.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

REPOSITORY = Path(__file__).parent.parent

CLASS = '''
class Slope(Position):
    """ALiBi with one trained slope per head: a sixteenth of the square root of a positive number."""

    in_comparison = True
    label, color, dash, marker = "trained slope", "#332288", (0, (2, 1)), "<"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.square = nn.Parameter(torch.empty(config.n_head))  # (H,)

    def first_value(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        return 0.5 + torch.rand(shape, generator=generator)

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        distance = (q_positions[:, None] - k_positions).clamp(min=0)  # (Tq, Tk)
        return -self.square.float().sqrt()[:, None, None] / 16 * distance  # (H, Tq, Tk)


'''
LINE = '    "slope": Slope,\n'
CONFIG = "model:\n  position: slope\n"

DRIVE = """
import contextlib, importlib, json, sys, train
from harness.messages import run_main

def stop_at_step_3(index, config, real=train.learning_rate):
    if index == 3:
        raise KeyboardInterrupt
    return real(index, config)

for script, *argv in json.loads(sys.argv[1]):
    real = train.learning_rate
    if script == "stopped train":
        train.learning_rate = stop_at_step_3
    try:
        run_main(importlib.import_module(script.split()[-1]).main, argv)
    except SystemExit as ended:
        print(f"\\n<{script} ended with {ended.code or 0}>")
    train.learning_rate = real
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the tree after the three steps."""
    copy = tmp_path_factory.mktemp("stranger") / "tree"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "docs", "results", "runs", "wandb")
    shutil.copytree(REPOSITORY, copy, ignore=left_out)
    file = copy / "positions.py"
    before, begin, after = file.read_text(encoding="utf-8").partition("SCHEMES: dict[str, type[Position]] = {\n")
    assert begin
    file.write_text(before.rstrip("\n") + "\n\n" + CLASS + begin + LINE + after, encoding="utf-8")
    (copy / "configs" / "slope.yaml").write_text(CONFIG)
    return copy


@pytest.fixture(scope="module")
def said(tree, small) -> str:
    """What the scripts say to the scheme, in one process: train, stop and resume, generate, evaluate and compare."""
    own = ["--config", "configs/slope.yaml", *small]
    commands = [
        ["train", *own, "--run.out", "runs/slope"],
        ["stopped train", *own, "--run.out", "runs/stopped"],
        ["resumed train", *own, "--run.out", "runs/stopped", "--run.resume", "true"],
        ["generate", "runs/slope", "--prompt", "in the", "--tokens", "40"],  # past the trained 16
        ["evaluate", "runs/slope", "--lengths", "16", "32", "--out", "lengths.json", "--picture", "lengths.png"],
        ["compare", *small, "--seeds", "0", "--jobs", "1", "--out", "runs/compare"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", DRIVE, json.dumps(commands)], cwd=tree, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("script", "code"),
    [("train", 0), ("stopped train", 130), ("resumed train", 0), ("generate", 0), ("evaluate", 0), ("compare", 0)],
)
def test_every_script_takes_a_scheme_that_was_added_in_three_steps(said, script, code):
    assert f"<{script} ended with {code}>" in said, said


def test_its_first_values_are_those_that_it_draws_itself(tree, said):
    squares = load_file(tree / "runs" / "slope" / "model.safetensors")["position.square"]
    assert ((squares > 0.4) & (squares < 1.6)).all()  # [0.5, 1.5) and a few small steps


def test_its_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(tree, said):
    results = [json.loads((tree / "runs" / name / "result.json").read_text()) for name in ("slope", "stopped")]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
    assert [result["status"] for result in results] == ["finished"] * 2


def test_the_comparison_trains_it_by_default_with_a_picture_and_a_row_in_the_report(tree, said):
    folder = tree / "runs" / "compare"
    schemes = [run["scheme"] for run in json.loads((folder / "summary.json").read_text())["runs"]]
    assert {"rope", "slope"} <= set(schemes)
    assert re.search(r"^\| slope +\|", (folder / "report.md").read_text(), re.MULTILINE)
    assert (folder / "curves.png").stat().st_size > 10_000


def test_the_example_in_the_readme_is_the_class_that_runs():
    def code_of(text: str) -> str:
        (found,) = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == "Kerple")
        found.body = found.body[1:] if ast.get_docstring(found) else found.body
        return ast.unparse(found)

    (shown,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code_of(shown) == code_of((REPOSITORY / "positions.py").read_text(encoding="utf-8"))


def test_the_tests_of_structure_take_it_in_by_themselves(tree):
    files = ["tests/test_positions.py", "tests/test_model.py", "tests/test_repository.py", "tests/test_house.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files, "-k", "slope or house_has_none", "-rp"],
        cwd=tree,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    passed = re.findall(r"^PASSED (tests/test_\w+\.py)::", done.stdout, re.MULTILINE)
    assert set(passed) == set(files)
    assert len(passed) >= 20
