"""The experiment on bases of rope.

.venv/bin/python -m pytest tests/test_bases.py
"""

from experiments import bases


def test_three_bases_beside_the_default_are_measured_over_three_seeds_and_on_tasks():
    labels = {part: [one.labels for one in bases.list_measurements() if one.part == part] for part in PARTS}
    assert {(label["base"], label["seed"]) for label in labels["bases"]} == {(b, s) for b in BASES for s in (0, 1, 2)}
    assert {label["base"] for label in labels["bases-retrieval"]} == set(BASES)


PARTS, BASES = ("bases", "bases-retrieval"), (100, 1000, 1_000_000)


def test_bases_stand_beside_the_default_seed_by_seed_with_the_pairs_that_turn_once():
    """Pair i of 16 turns once within 256 tokens if 2 pi base^(i/16) <= 256: up to i = 6.4 at 10,000, 12.9 at 100."""

    def row(base, seed, loss):
        losses = dict.fromkeys(("512", "1024", "2048"), loss)
        return {"base": base, "seed": seed, "bits_per_byte": 1.7, "loss_by_length": losses}

    rows = [row(100, 0, 3.0), row(100, 1, 5.0), row(10_000, 0, 3.5), row(10_000, 1, 5.5)]
    lines = bases.table(rows, []).split("\n")
    head, _, small, default = ([cell.strip() for cell in line.split("|")] for line in lines)
    assert [line[head.index("pairs that turn once")] for line in (small, default)] == ["13 of 16", "7 of 16"]
    assert [line[head.index("minus 10,000 at 1024")] for line in (small, default)] == ["-0.500 ± 0.000", ""]
