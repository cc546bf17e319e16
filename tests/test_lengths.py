"""The experiment on schemes by length: what it measures, and that its verdicts can say no.

.venv/bin/python -m pytest tests/test_lengths.py
"""

import pytest

from experiments import lengths
from harness.measurements import LENGTHS, TRAINED
from harness.pages import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, Rows


def test_every_scheme_is_measured_over_three_seeds_to_16_times_its_length():
    labels = [one.labels for one in lengths.list_measurements()]
    assert {(label["scheme"], label["seed"]) for label in labels} == {
        (s, k) for s in lengths.STUDIED for k in (0, 1, 2)
    }
    assert max(LENGTHS) == 16 * TRAINED


def schemes(losses: dict[str, tuple[float, float | None]]) -> Rows:
    """Made-up measurements of three seeds: scheme -> loss at 256 and at 2048."""
    return [
        {
            "scheme": scheme,
            "seed": seed,
            "loss_by_length": {"256": near + seed / 1e3, "512": far, "2048": far and far + seed / 1e3},
            "curve": [[100, near + 0.1], [200, near]],
            "val_loss": near,
        }
        for scheme, (near, far) in losses.items()
        for seed in range(3)
    ]


def verdicts(rows: Rows) -> dict[str, str]:
    return {what: verdict for what, verdict, _ in lengths.expected(rows)}


def test_an_expected_order_is_told_from_its_opposite():
    expected = {"rope": (3.4, 4.6), "alibi": (3.4, 3.4), "t5": (3.5, 3.6), "none": (4.2, 4.3)}
    expected |= {"sinusoidal": (3.8, 4.9), "learned": (3.7, None)}
    said = verdicts(schemes(expected))
    assert set(said.values()) == {REPRODUCED}
    turned = verdicts(schemes(expected | {"rope": (3.6, 3.5), "learned": (3.7, 4.0)}))
    for what in (
        "at the trained length, 256: rope has a lower loss than t5",
        "at the trained length, 256: rope and alibi are within 0.1 nats of each other",
        "at 8 times the trained length, 2,048: none has a lower loss than rope",
        "learned has no positions past 256, and so no loss there",
        "rope has a lower loss at 256 than at 2,048",
    ):
        assert turned[what] == NOT_REPRODUCED, what


@pytest.mark.parametrize(
    ("distance", "verdict"), [(0.05, REPRODUCED), (-0.05, REPRODUCED), (0.2, NOT_REPRODUCED), (-0.2, NOT_REPRODUCED)]
)
def test_rope_and_alibi_are_close_whichever_is_ahead(distance, verdict):
    said = verdicts(schemes({"rope": (3.4, 4.6), "alibi": (3.4 + distance, 3.4)}))
    assert said["at the trained length, 256: rope and alibi are within 0.1 nats of each other"] == verdict


def test_steps_to_anothers_last_loss_are_read_off_the_curve():
    rows = schemes({"rope": (3.0, 4.0), "learned": (4.0, None)})
    assert lengths.steps_to_reach(rows, "rope", "learned") == [-0.5] * 3  # at step 100 of 200
    assert lengths.steps_to_reach(rows, "learned", "rope") == [float("inf")] * 3


def test_a_target_that_is_never_reached_leaves_the_question_open():
    rows = schemes({"rope": (4.0, 4.5), "learned": (3.0, None)})
    (said,) = [line for line in lengths.expected(rows) if "fewer steps" in line[0]]
    assert said[1:] == [INCONCLUSIVE, "not reached in 3 of 3 seeds"]


def test_a_line_of_one_seed_says_so_in_the_picture(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.append(figure))
    losses = {"64": 3.0, "256": 2.9}
    rows = [{"scheme": "rope", "seed": seed, "loss_by_length": losses, "val_loss": 2.9} for seed in (0, 1)]
    rows += [{"scheme": "alibi", "seed": 0, "loss_by_length": losses, "val_loss": 3.0}]
    lengths.draw(rows, tmp_path / "lengths.png")
    said = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert said == ["rope", "alibi (1 seed)"]
