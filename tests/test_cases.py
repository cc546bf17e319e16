"""Cases in a process of their own: what fails is reported, the rest is kept, and a part goes on.

.venv/bin/python -m pytest tests/test_cases.py
"""

import multiprocessing
import os
from functools import partial

import torch

from harness import cases
from harness.messages import RunFailed
from harness.pages import ROOT

CPU = torch.device("cpu")
MADE = {"gpu": "none", "commit": None}


def give(value: float) -> dict:
    return {"figure": value}


def fail(error: Exception) -> dict:
    raise error


def list_troubled(device):
    yield "first", partial(give, 1.0)
    yield "wrong", partial(fail, ValueError(f"no {ROOT}/such\nfile"))
    yield "broken", partial(fail, RunFailed("the loss is nan"))
    yield "last", partial(give, 2.0)
    yield "dies", partial(os._exit, 7)


def test_what_fails_is_reported_with_its_reason_and_the_rest_kept():
    part = {"made": MADE, "rows": {}, "failed": "before"}
    names = list(cases.measure_part(list_troubled, 60, CPU, part))
    assert part["rows"] == {
        "first": {"figure": 1.0},
        "wrong": {"failed": "ValueError: no ./such file"},
        "broken": {"failed": "the loss is nan"},
        "last": {"figure": 2.0},
    }
    assert names == list(part["rows"])
    assert part["failed"] == "its process ended with exit code 7"


def test_a_part_whose_time_is_over_is_ended_and_says_so():
    part = {"made": MADE, "rows": {"first": {"figure": 1.0}}, "failed": ""}
    assert list(cases.measure_part(list_troubled, 0, CPU, part)) == []
    assert part["failed"] == "cut short after 0 s; the same command goes on"
    assert part["rows"]
    assert not multiprocessing.active_children()


def test_a_part_goes_on_with_what_is_missing_or_failed(monkeypatch):
    sent = []
    monkeypatch.setattr(os, "setsid", lambda: None)
    cases.work_in_child(list_troubled, CPU, {"first", "wrong", "dies"}, type("Pipe", (), {"send": sent.append}))
    assert [case and case[0] for case in sent] == ["broken", "last", None]


def test_a_table_has_a_column_for_every_heading_and_says_what_is_not_known():
    rows = {"a": {"tokens/s": 12345.6, "share of the peak": 0.414, "GiB": None}, "b": {"failed": "out | of memory"}}
    assert [[cell.strip() for cell in line.replace(r"\|", "/").split("|")[1:-1]] for line in cases.table(rows)] == [
        ["", "tokens/s", "share of the peak", "GiB", "failed"],
        ["---"] * 5,
        ["a", "12,346", "41%", "n/a", "n/a"],
        ["b", "n/a", "n/a", "n/a", "out / of memory"],
    ]
