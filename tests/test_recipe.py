"""What a candidate gains from context: the windows that are scored, and the table.

.venv/bin/python -m pytest tests/test_recipe.py
"""

import json
from dataclasses import replace

import pytest
import torch
from texts import load_corpus, prose
from torch.nn import functional as F

import evaluate
import train
from experiments import recipe
from harness import measurements
from harness.evaluation import load_corpus as load_corpus_of
from harness.measurements import TrainedRun
from harness.runs import load_finished_run


def test_spans_come_again_and_only_their_second_occurrence_can_be_copied(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(prose(200_000))
    corpus = load_corpus(tmp_path, str(path), tokenizer="bytes", seq_len=256)
    for rows in (recipe.spans_of_text(corpus), recipe.spans_of_random_tokens(corpus)):
        first, span, between, again = rows.split(recipe.SPAN, dim=1)
        assert torch.equal(span, again)
        assert not torch.equal(span, first)
        assert not torch.equal(span, between)


def test_spans_are_scored_where_they_come_first_and_again(small, tmp_path, monkeypatch):
    for name, value in {"CONTEXTS": [2, 4, 8, 16], "SPAN": 4, "COMMON": (*small, "--model.position", "rope")}.items():
        monkeypatch.setattr(recipe, name, value)
    monkeypatch.setattr(measurements, "DATA", tmp_path / "data")
    monkeypatch.setattr(measurements, "RUNS", tmp_path / "runs")
    one = recipe.list_measurements()[0]
    measurements.write_measurement(replace(one, run=TrainedRun("tiny", recipe.COMMON)), (train.main, evaluate.main))
    made = json.loads(one.file.read_text())
    assert list(made["loss_by_context"]) == ["2", "4", "8", "16"]
    loaded = load_finished_run(tmp_path / "runs" / "tiny")
    rows = recipe.spans_of_text(load_corpus_of(loaded))
    loss = F.cross_entropy(loaded.model(rows[:, :-1]).transpose(1, 2), rows[:, 1:], reduction="none")  # (N, 15)
    assert made["text_first"] == pytest.approx(loss[:, 4:7].mean().item(), abs=1e-5)  # targets 5 to 7 of the rows
    assert made["text_again"] == pytest.approx(loss[:, 12:15].mean().item(), abs=1e-5)


def test_the_table_has_the_largest_gain_first(monkeypatch):
    monkeypatch.setattr(recipe, "CANDIDATES", {"a": ("--run.steps", "9"), "b": ("--data.copied", "0.5")})
    row = {"steps": 1000, "batch_size": 8, "training_seconds": 120.0, "bits_per_byte": 1.5, "text_first": 2.5}
    row |= {"text_again": 1.25, "text_again_right": 0.625, "random_again": 7.0, "random_again_right": 0.015}
    rows = [
        row | {"candidate": "a", "loss_by_context": {"64": 2.5, "256": 2.4}},
        row | {"candidate": "b", "loss_by_context": {"64": 2.6, "256": 2.4}},
    ]
    lines = recipe.table(rows).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        *("copied 0.5", "2.0", "2", "1.500", "2.600", "0.200", "2.50", "1.25", "62%", "7.00", "2%"),
    ]
    assert lines[3].startswith("| steps 9")
