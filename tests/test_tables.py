"""Means and intervals over seeds.

.venv/bin/python -m pytest tests/test_tables.py
"""

import math

import numpy as np
import pytest
import scipy.stats

from harness.tables import code, format_mean, interval, markdown


@pytest.mark.parametrize(
    ("values", "t"), [([1.0, 2.0], 12.706), ([1.0, 2.0, 4.0], 4.303), ([2.0, 2.5, 1.0, 3.0, 2.2], 2.776)]
)
def test_interval_is_students_95_percent(values, t):
    middle, half = interval(values)
    n = len(values)
    deviation = math.sqrt(sum((value - sum(values) / n) ** 2 for value in values) / (n - 1))
    assert middle == pytest.approx(sum(values) / n)
    assert half == pytest.approx(t * deviation / math.sqrt(n), rel=3e-4)  # t from the printed tables
    low, high = scipy.stats.t.interval(0.95, n - 1, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert (middle - half, middle + half) == pytest.approx((low, high))


def test_one_seed_has_no_interval():
    assert interval([1.5]) == (1.5, None)
    assert format_mean([1.5]) == "1.500"
    assert format_mean([1.0, None]) == "n/a"
    assert format_mean([1.0, 2.0]) == f"1.500 ± {12.7062 * math.sqrt(0.5) / math.sqrt(2):.3f}"


def test_what_stands_in_a_cell_stays_in_it():
    lines = markdown([["scheme", "loss"], ["a|b\n| c \x1b[31m<img src=x>", "1"]])
    assert len(lines) == 3
    assert r"a\|b\n\| c \x1b[31m&lt;img src=x>" in lines[2]
    assert code("a`b\n") == r"`a'b\n`"
