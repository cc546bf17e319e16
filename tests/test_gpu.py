"""Measuring on a card: every part at a tiny size on the CPU, its processes, and the page. Nothing here is timed.

.venv/bin/python -m pytest tests/test_gpu.py
"""

import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import flex_attention

from experiments import gpu
from harness.messages import RunFailed
from harness.pages import ROOT, find_section
from positions import SCHEMES

CPU = torch.device("cpu")
MADE = {"gpu": "none", "commit": None}
TINY = replace(gpu.GPT2, vocab_size=32, d_model=32, n_layer=1, n_head=2, n_kv_head=2, d_ff=32, seq_len=16)
SIZES = {"GPT2": TINY, "SMALL": TINY, "ROWS": 2, "STEPS": 3, "LONG": 32, "MATRIX": 8, "REPEATS": 1, "TURN": 1e-6}
SIZES |= {"COMPARED": (1, 2, 24, 16), "TIMED": (1, 2, 16, 16)}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    for name, value in SIZES.items():
        monkeypatch.setattr(gpu, name, value)


@pytest.fixture
def compiled(monkeypatch):
    """Models that would have been compiled, which takes long; they run as they are."""
    models = []
    monkeypatch.setattr(torch, "compile", lambda model, **_: models.append(model) or model)
    return models


def figures(part: str) -> dict[str, dict]:
    """The rows of a part, measured here on the CPU."""
    return {name: work() for name, work in gpu.PARTS[part](CPU)}


# ---- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:this cpu only emulates bf16")
def test_every_scheme_is_trained_in_both_precisions(compiled):
    rows = figures("schemes")
    assert list(rows) == list(SCHEMES)
    for row in rows.values():
        assert row["loss, bf16"] == pytest.approx(row["loss, fp32"], abs=0.02)
        assert row["loss, bf16"] < math.log(TINY.vocab_size) + 0.1
        assert row["tokens/s, fp32"] > 0 < row["tokens/s, bf16"]
        assert row["GiB, bf16"] is None  # a card's alone
    assert len(compiled) == len(SCHEMES)


def test_a_loss_that_is_no_number_fails_its_case(monkeypatch):
    monkeypatch.setattr(gpu, "training_step", lambda *_: lambda: torch.tensor(math.nan))
    with pytest.raises(RunFailed, match="the loss in fp32 is nan"):
        gpu.train_scheme(TINY, CPU)


@pytest.mark.filterwarnings("ignore:this cpu only emulates bf16", "ignore:flex_attention called without")
@pytest.mark.parametrize(("scheme", "backward"), [("alibi", False), ("t5", True)])
def test_flex_attention_gives_the_written_out_bias_and_its_gradients(scheme, backward, monkeypatch):
    """PyTorch refuses the backward pass on a CPU; its unfused form has one, so only the refusal is taken out."""
    if backward:
        monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(gpu, "measure", lambda work, device: (work() or 1.0, None))
    row = gpu.compare_biases(scheme, CPU, backward)
    assert row["off, float32"] < 1e-5
    assert row["off, bfloat16"] < 0.03
    assert row["ms, flex"] == row["ms, mask"] == 1000


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_another_bias_in_flex_attention_is_noticed(monkeypatch):
    right = gpu.write_score_mod

    def wrong(*position):
        mod = right(*position)
        return lambda score, b, h, q, k: mod(score, b, h, q + 1, k * 2)

    monkeypatch.setattr(gpu, "write_score_mod", wrong)
    with pytest.raises(RunFailed, match=r"flex_attention is off by [\d.]+ in float32"):
        gpu.compare_biases("t5", CPU, backward=False)


def test_each_bias_is_compared_with_its_gradients_on_a_card_alone():
    for device in (CPU, torch.device("cuda")):
        listed = {name: work.args for name, work in gpu.list_biases(device)}
        assert listed == {name: (name, device, device.type == "cuda") for name in ("alibi", "t5")}


@pytest.mark.filterwarnings("ignore:this cpu only emulates bf16")
@pytest.mark.parametrize("part", ["gpt2", "long"])
def test_large_models_are_measured_eager_and_compiled(part, compiled):
    rows = figures(part)
    assert ["compiled" in name for name in rows].count(True) == len(compiled) == 2
    assert len(rows) == 4
    assert all(row["tokens/s"] > 0 for row in rows.values())
    if part == "gpt2":
        assert ["rope" in name for name in rows] == [True, True, False, False]
        assert all(row["share of a matrix product"] > 0 and row["share of the peak"] is None for row in rows.values())


def test_the_large_shape_is_the_presets_and_all_parts_end_within_ten_minutes(monkeypatch):
    monkeypatch.undo()
    assert (gpu.GPT2.d_model, gpu.GPT2.n_layer, gpu.GPT2.seq_len, gpu.GPT2.vocab_size) == (768, 12, 1024, 50304)
    assert gpu.SECONDS.keys() == gpu.PARTS.keys()
    assert sum(gpu.SECONDS.values()) < 600


def test_tests_that_need_a_card_are_counted_and_those_that_fail_named(tmp_path):
    tests = tmp_path / "test_some.py"
    tests.write_text(
        "import pytest\npytestmark = pytest.mark.cuda\n"
        "def test_good(): pass\ndef test_skipped(): pytest.skip()\n"
        "@pytest.mark.parametrize('n', [1, 2])\ndef test_bad(n): assert n == 1\n"
    )
    with pytest.raises(RunFailed, match=r"^1 of 4 tests: test_bad\[2\]$"):
        gpu.run_tests([tests])


@pytest.mark.parametrize(
    ("report", "counts"),
    [
        ("<a><testcase name='x'/><testcase name='y'><skipped/></testcase></a>", {"passed": 1, "skipped": 1}),
        ("<a/>", "pytest ran no test: No module named pytest"),
        ("", "pytest ran no test: No module named pytest"),
    ],
)
def test_what_pytest_reports_is_counted(report, counts, monkeypatch):
    def run(command, **_):
        if report:
            (asked,) = (word for word in command if word.startswith("--junitxml="))
            Path(asked.removeprefix("--junitxml=")).write_text(report)
        return subprocess.CompletedProcess(command, 1, "", "No module named pytest\n")

    monkeypatch.setattr(gpu.subprocess, "run", run)
    if isinstance(counts, dict):
        assert gpu.run_tests([]) == counts
    else:
        with pytest.raises(RunFailed, match=f"^{counts}$"):
            gpu.run_tests([])


def test_the_tests_that_need_a_card_are_found():
    ((_, work),) = gpu.list_tests(CPU)
    assert {file.name for file in work.args[0]} >= {
        f"test_{name}.py" for name in ("model", "sampling", "train", "resume")
    }


# ---- the command and its page ----------------------------------------------------------------------------------------


def test_without_a_card_the_command_is_one_line_that_says_what_it_needs(at_the_shell, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = at_the_shell(gpu.main, [])
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert "no CUDA card" in outcome.err
    assert "driver" in outcome.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "words"), [(["flx"], ["flx", "did you mean flex"]), (["--publish", "maybe"], ["--publish"])]
)
def test_bad_input_is_refused(argv, words, at_the_shell):
    outcome = at_the_shell(gpu.main, argv)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    for word in words:
        assert word in outcome.err


@pytest.fixture
def on_a_card(monkeypatch, tmp_path):
    """What main measures, part by part, as if there were a card; two cases each, of which one of flex fails."""
    measured = []

    def measure_part(list_cases, seconds, device, part):
        name = next(name for name, each in gpu.PARTS.items() if each is list_cases)
        measured.append(name)
        part["failed"] = ""
        for case in ("a", "b"):
            part["rows"][case] = (
                {"failed": "why"} if (name, case) == ("flex", "b") else {"tokens/s": 1234.5, "GiB": None}
            )
            yield case

    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    page = tmp_path / "docs" / "speed.md"
    page.parent.mkdir()
    page.write_text("<!-- made by experiments/gpu.py -->\nold\n<!-- end -->\n")
    monkeypatch.setattr(gpu, "measure_part", measure_part)
    monkeypatch.setattr(gpu, "pick_card", lambda: CPU)
    for module in (gpu, gpu.sys.modules["harness.pages"]):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    return measured


def test_all_parts_are_measured_and_published_and_a_failure_is_the_exit_code(on_a_card, tmp_path, at_the_shell):
    outcome = at_the_shell(gpu.main, ["--publish", "true"])
    assert outcome.code == 3
    assert "flex b: why" in outcome.err
    assert on_a_card == list(gpu.PARTS)
    parts = json.loads((tmp_path / "results" / "gpu.json").read_text())
    assert list(parts) == list(gpu.PARTS)
    page = (tmp_path / "docs" / "speed.md").read_text()
    assert gpu.section(parts) in page
    assert "| 1,234" in page
    assert "why" in page
    assert "transformers 5" in page


def test_a_part_that_is_named_is_measured_anew_and_the_others_stay(on_a_card, tmp_path, at_the_shell):
    assert at_the_shell(gpu.main, ["long", "gpt2"]).code == 0
    file = Path("runs/gpu/long.json")
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found | {"rows": found["rows"] | {"other": {"GiB": 1.0}}}))
    assert at_the_shell(gpu.main, ["gpt2", "--publish", "true"]).code == 0
    assert on_a_card == ["long", "gpt2", "gpt2"]
    parts = json.loads((tmp_path / "results" / "gpu.json").read_text())
    assert list(parts) == ["gpt2", "long"]
    assert "other" in parts["long"]["rows"]
    at_the_shell(gpu.main, [])  # goes on
    assert "other" in json.loads(file.read_text())["rows"]
    file.write_text(json.dumps(found | {"made": MADE, "rows": {"other": {}}}))  # of another card, or another commit
    at_the_shell(gpu.main, [])
    assert "other" not in json.loads(file.read_text())["rows"]


def test_a_damaged_file_is_bad_input(on_a_card, at_the_shell):
    at_the_shell(gpu.main, ["long"])
    Path("runs/gpu/long.json").write_text('{"made": 1}')
    outcome = at_the_shell(gpu.main, ["long"])
    assert outcome.code == 2
    assert "runs/gpu/long.json is damaged" in outcome.err


def test_the_page_is_made_from_the_committed_figures_and_says_so_where_there_are_none():
    file = ROOT / "results" / "gpu.json"
    parts = json.loads(file.read_text()) if file.exists() else {}
    assert find_section("experiments/gpu.py")[2] == gpu.section(parts)
    assert "never been run on a card" in gpu.section({})
