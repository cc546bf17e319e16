"""Speed: every benchmark at a tiny size. Nothing here is timed.

.venv/bin/python -m pytest tests/test_speed.py
"""

import json
import math

import pytest

from experiments import speed
from harness import pages
from harness.timing import Row, times_better

KEYS = {"bench", "case", "unit", "ours", "peers", "limit", "ratio", "ratio_low", "ratio_high"}
TINY = ["--repeats", "2", "--threads", "1"]
SIZES = {"SHAPES": [(16, 1)], "ROWS": 2, "LENGTH": 16, "TURN": 0.001, "TOKENS": [3], "MEGABYTES": [0.05, 0.1]}
LIST_WAYS = speed.list_ways


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    for name, value in (SIZES | {"list_ways": lambda: ["eager"]}).items():
        monkeypatch.setattr(speed, name, value)
    pick = speed.devices.pick_precision
    monkeypatch.setattr(speed.devices, "pick_precision", lambda _, device: pick("fp32", device))


def rows_of(argv: list[str]) -> dict[str, Row]:
    """The rows of a tiny run, by case."""
    return {row["case"]: Row(**row) for row in speed.main([*argv[:1], *TINY, *argv[1:]])["rows"]}


def test_the_file_has_rows_of_exactly_the_stated_keys_and_the_page_its_table(tmp_path, monkeypatch):
    for module in (speed, pages):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    for folder in ("docs", "results"):
        (tmp_path / folder).mkdir()
    page = tmp_path / "docs" / "speed.md"
    page.write_text("<!-- made by experiments/speed.py -->\nold\n<!-- end -->\n")
    speed.main(["rope", "train", *TINY, "--publish", "true"])
    content = json.loads((tmp_path / "results" / "bench.json").read_text())
    assert {"rows", "rounds", "versions", "peers", "commit"} <= set(content)
    assert speed.section(content) in page.read_text()
    for row in content["rows"]:
        assert set(row) == KEYS
        assert row["ours"] == row["ours"]
        assert math.isfinite(row["ours"])
        assert (row["ratio"] is None) == (not row["peers"])
    by_bench = {name: [row for row in content["rows"] if row["bench"] == name] for name in ("rope", "train")}
    assert [row["bench"] for row in content["rows"][:2]] == ["rope", "rope"]  # in the order asked for
    assert all("transformers" in row["peers"] and row["limit"] > 0 for row in by_bench["rope"])
    ours, cost_of_rope = by_bench["train"]
    assert list(ours["peers"]) == ["transformers sdpa"]
    assert ours["unit"] == cost_of_rope["unit"] == "tokens/s"
    assert list(cost_of_rope["peers"]) == ["none eager"]
    last = content["rounds"][-1]
    assert times_better(last["rope eager"], last["none eager"], "tokens/s")["ratio"] == cost_of_rope["ratio"]
    assert cost_of_rope["ratio_low"] <= cost_of_rope["ratio"] <= cost_of_rope["ratio_high"]
    for row, rounds in zip(content["rows"], content["rounds"], strict=True):  # the ratio can be had from the rounds
        if row["bench"] == "rope":
            best = min(row["peers"], key=row["peers"].get)
            ours = next(name for name in rounds if name in row["case"])
            assert times_better(rounds[ours], rounds[best], "ms")["ratio"] == row["ratio"]


def test_generation_is_timed_beside_transformers():
    (row,) = rows_of(["generate"]).values()
    assert row.unit == "tokens/s"
    assert set(row.peers) == {"transformers"}
    assert row.limit > 0


def test_preparing_is_timed_beside_tokenizers_and_its_memory_told(monkeypatch):
    monkeypatch.setattr(speed, "run_apart", lambda work, *arguments: (work(*arguments), 1.0, 3.0))
    rows = rows_of(["data", "--repeats", "1"])
    assert set(rows["preparing 0.05 MB"].peers) == {"tokenizers"}
    assert {case for case, row in rows.items() if row.unit == "MiB"} == {
        *("memory added, preparing 0.05 MB", "memory added, preparing 0.1 MB")
    }


# ---- what is missing, and what cannot be -----------------------------------------------------------------------------


def test_without_a_compiler_nothing_compiled_is_measured(monkeypatch):
    monkeypatch.setattr(speed, "list_ways", LIST_WAYS)
    monkeypatch.setattr(speed.devices, "has_compiler", lambda: False)
    rows = rows_of(["rope"])
    assert rows
    assert not any("compiled" in case for case in rows)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["trian"], ["trian", "did you mean train"]),
        (["train", "--repeats", "0"], ["--repeats 0", "at least 1"]),
        (["train", "--threads", "0"], ["--threads 0", "at least 1"]),
        (["train", "--repeats", "none"], ["--repeats", "none", "int"]),
        (["train", "--repeat", "3"], ["--repeat", "did you mean --repeats"]),
    ],
    ids=" ".join,
)
def test_bad_input_is_refused_before_anything_is_measured(argv, words, monkeypatch, at_the_shell):
    for name in speed.BENCHES:
        monkeypatch.setitem(speed.BENCHES, name, lambda asked: pytest.fail("something was measured"))
    outcome = at_the_shell(speed.main, argv)
    assert outcome.code == 2
    assert len(outcome.err.strip().splitlines()) == 1
    for word in words:
        assert word in outcome.err


def test_every_benchmark_but_the_slow_one_runs_by_default(monkeypatch):
    ran = []
    for name in speed.BENCHES:
        monkeypatch.setitem(speed.BENCHES, name, lambda asked, name=name: ran.append(name) or [])
    speed.main([])
    assert ran == ["train", "rope", "generate", "data"]
