"""Made sections of pages, and verdicts.

.venv/bin/python -m pytest tests/test_pages.py
"""

from importlib import import_module

import pytest

from experiments import scalings
from harness import measurements, pages
from harness.messages import BadInput


@pytest.mark.parametrize("name", ["lengths", "scalings", "bases", "retrieval"])
def test_the_page_is_the_one_made_from_the_committed_measurements(name):
    assert pages.find_section(f"experiments/{name}.py")[2] == import_module(f"experiments.{name}").section()


def test_what_the_page_says_of_lengths_is_what_the_experiments_have():
    text = (pages.ROOT / "results" / "RESULTS.md").read_text()
    for said in (
        f"Each scheme was trained at {measurements.TRAINED} tokens.",
        f"within the trained length of {measurements.TRAINED} tokens",
        f"({measurements.TASKS}, episodes of up to {measurements.TASKS_TRAINED} tokens)",
        f"given only the last {measurements.TRAINED} tokens of the context",
        f"is the length in use divided by {measurements.TRAINED}.",
        f"(seed 0, at {scalings.TUNED_AT:,} tokens)",
        f"\n{measurements.TASKS_TRAINED} tokens), under the same scaling",
    ):
        assert said in text, said


@pytest.fixture
def readme(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    return tmp_path / "README.md"


def test_a_section_is_replaced_wherever_it_stands_and_nothing_else_is(readme):
    readme.write_text("a\n<!-- made by x.py -->\nold\n<!-- end -->\nb\n<!-- made by y.py -->\nkept\n<!-- end -->\n")
    pages.replace_section("x.py", "new\n\\1")
    assert pages.find_section("x.py")[2] == "new\n\\1"
    assert readme.read_text().startswith("a\n<!-- made by x.py -->\nnew\n\\1\n<!-- end -->\nb\n")
    assert pages.find_section("y.py")[2] == "kept"


@pytest.mark.parametrize("sections", [0, 2])
def test_a_section_that_is_missing_or_stands_twice_is_refused(readme, sections):
    readme.write_text("<!-- made by x.py -->\nold\n<!-- end -->\n" * sections)
    with pytest.raises(BadInput, match=f"made by x.py .* they have {sections}"):
        pages.replace_section("x.py", "new")


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([-0.10, -0.11, -0.12], pages.REPRODUCED),
        ([0.10, 0.11, 0.12], pages.NOT_REPRODUCED),
        ([-0.10, 0.11, -0.12], pages.INCONCLUSIVE),
        ([-0.10], pages.INCONCLUSIVE),  # one seed cannot tell
        ([], None),
    ],
)
def test_a_verdict_needs_its_whole_interval_on_one_side(differences, verdict):
    assert [line[:2] for line in pages.judge("what", differences)] == ([["what", verdict]] if verdict else [])


def test_a_verdict_has_the_published_t_of_three_seeds():
    assert pages.judge("what", [0.0, 1.0, 2.0])[0][2] == "+1.000 ± 2.484"  # 4.303 / sqrt(3)


def test_accuracy_is_the_mean_over_tasks_and_none_where_positions_have_ended():
    cells = [("copy", 64, None, 0.5), ("copy", 64, 0.125, 0.9), ("recall", 64, None, 1.0), ("copy", 128, None, None)]
    row = {"results": [dict(zip(("task", "length", "depth", "accuracy"), cell, strict=True)) for cell in cells]}
    assert pages.accuracy_at(row, 64) == 0.75
    assert pages.accuracy_at(row, 64, "copy") == 0.5
    assert pages.accuracy_at(row, 128) is None
    assert pages.accuracy_at(row, 256) is None


@pytest.mark.parametrize("content", ["[" * 100_000, "{}", "null", '{"seed": 0, "val_loss": NaN}', '{"seed": "0"}'])
def test_a_measurement_that_cannot_be_one_is_named(monkeypatch, tmp_path, content):
    folder = tmp_path / "results" / "data" / "schemes"
    folder.mkdir(parents=True)
    (folder / "rope-seed0.json").write_text(content)
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    with pytest.raises(BadInput, match=r"rope-seed0.json is damaged.*; remove it, and the same command measures it"):
        pages.load_rows("schemes")
