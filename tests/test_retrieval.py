"""The experiment on retrieval.

.venv/bin/python -m pytest tests/test_retrieval.py
"""

import pytest

from experiments import retrieval
from harness.pages import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED


def test_every_scheme_is_measured():
    assert {one.labels["scheme"] for one in retrieval.list_measurements()} == set(retrieval.STUDIED)


def retrieved(scheme: str, inside: float | None, outside: float | None) -> dict:
    """A made-up measurement of copying."""
    cells = [{"task": "copy", "length": n, "depth": None, "accuracy": x} for n, x in ((64, inside), (128, outside))]
    return {"scheme": scheme, "seed": 0, "results": cells}


@pytest.mark.parametrize(
    ("inside", "outside", "verdict"),
    [(0.9, 0.01, REPRODUCED), (0.9, 0.8, NOT_REPRODUCED), (0.2, 0.0, INCONCLUSIVE), (None, None, None)],
)
def test_retrieval_past_the_trained_length_counts_only_where_it_was_learned(inside, outside, verdict):
    lines = retrieval.expected([retrieved("rope", inside, outside)])
    assert [line[1] for line in lines] == ([verdict] if verdict else [])
