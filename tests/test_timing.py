"""Timing: what a ratio means, that contenders take turns, and what memory work took. Nothing here is timed.

.venv/bin/python -m pytest tests/test_timing.py
"""

import pytest
import torch

from harness.timing import Row, compare_rounds, describe_ratio, run_apart, table, take_turns, times_better


def test_a_ratio_above_one_means_ours_is_better_for_speeds_and_for_costs():
    assert times_better([200.0], [100.0], "tokens/s")["ratio"] == 2
    for unit in ("ms", "s", "MiB", "bits/byte"):
        assert times_better([100.0], [200.0], unit)["ratio"] == 2


def test_a_ratio_is_the_median_of_the_rounds_pairs_and_the_span_their_tenth_and_ninetieth_percentile():
    ours, theirs = [1.0, 1.0, 1.0, 2.0, 1.0], [1.0, 2.0, 3.0, 8.0, 5.0]  # pairs: 1, 2, 3, 4, 5
    assert times_better(ours, theirs, "s") == pytest.approx({"ratio": 3, "ratio_low": 1.4, "ratio_high": 4.6})


def test_a_row_is_compared_with_the_peer_of_the_best_median():
    rounds = {"ours": [4.0, 4.0, 4.0], "slow": [1.0, 1.0, 9.0], "fast": [2.0, 2.0, 2.0], "limit": [8.0, 8.0, 8.0]}
    row = compare_rounds("train", "case", "tokens/s", rounds, "ours", ["slow", "fast", "absent"], "limit")
    assert row == Row("train", "case", "tokens/s", 4.0, {"slow": 1.0, "fast": 2.0}, 8.0, 2.0, 2.0, 2.0)
    row = compare_rounds("rope", "case", "ms", rounds, "ours", ["slow", "fast"])
    assert (row.ratio, row.limit) == (0.25, None)  # for a cost the best peer is the slow one of before


def test_without_a_peer_there_is_no_ratio():
    row = compare_rounds("train", "case", "s", {"ours": [1.0, 2.0]}, "ours", ["absent"])
    assert (row.peers, row.ratio, row.ratio_low, row.ratio_high, describe_ratio(row)) == ({}, None, None, None, "")


@pytest.mark.parametrize(
    ("ours", "shown"), [([1.0, 1.1, 0.9], False), ([0.5, 0.5, 1.5], False), ([0.5, 0.6, 0.7], True), ([2, 2, 3], True)]
)
def test_no_difference_is_claimed_where_the_span_holds_one(ours, shown):
    row = compare_rounds("rope", "case", "ms", {"ours": ours, "peer": [1.0, 1.0, 1.0]}, "ours", ["peer"])
    assert ("no difference shown" not in describe_ratio(row)) == shown
    assert f"{row.ratio:.2f}x" in describe_ratio(row)


def test_all_contenders_take_turns():
    calls = []
    contenders = {name: lambda name=name: calls.append(name) for name in "abc"}
    rounds = take_turns(contenders, repeats=4, seconds=0)
    assert calls == ["a", "a", "b", "b", "c", "c", *"abcabcabcabc"]  # two of each are not counted
    assert {name: len(taken) for name, taken in rounds.items()} == {"a": 4, "b": 4, "c": 4}


def test_a_turn_ends_when_its_work_is_done():
    calls = []
    take_turns({"a": lambda: calls.append("a")}, repeats=2, seconds=0, wait=lambda: calls.append("wait"))
    assert calls == ["a", *["wait", "a", "wait"] * 3]


def test_the_table_shows_the_best_peer_and_the_share_of_the_limit():
    rate = Row("train", "a", "tokens/s", 300.0, {"x": 200.0, "y": 100.0}, 1000.0, 1.5, 1.4, 1.6)
    time_ = Row("rope", "b", "ms", 3.0, {"x": 20.0, "y": 10.0}, 2.0, 3.3, 3.0, 4.0)
    _, _, first, second = table([rate, time_])
    assert [cell.strip() for cell in first.split("|")[1:-1]] == [
        *("train", "a", "300 tokens/s", "200 tokens/s, x", "1.50x (1.40 to 1.60)", "30% of it")
    ]
    assert [cell.strip() for cell in second.split("|")[1:-1]] == [
        *("rope", "b", "3 ms", "10 ms, y", "3.30x (3.00 to 4.00)", "1.5 times it")
    ]


def test_one_round_shows_no_difference_however_far_apart_the_two_are():
    row = compare_rounds("train", "case", "s", {"ours": [1.0], "theirs": [9.0]}, "ours", ["theirs"])
    assert describe_ratio(row) == "9.00x, once: no difference shown"


def numbers_of_a_megabyte() -> int:
    """64 MiB of memory that is really used."""
    return int(torch.ones(16 << 20).sum())


def test_work_apart_tells_its_own_memory():
    result, before, peak = run_apart(numbers_of_a_megabyte)
    assert result == 16 << 20
    assert 60 < peak - before < 500
