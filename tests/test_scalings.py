"""The experiment on scalings: what it measures, and that its runs differ by their scaling alone.

.venv/bin/python -m pytest tests/test_scalings.py
"""

from experiments import scalings
from harness.measurements import TRAINED
from harness.pages import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED
from rope import OPTIONS


def test_every_scaling_is_measured_as_it_is_and_the_main_ones_fine_tuned():
    found = scalings.list_measurements()
    words = {word for options in scalings.SCALINGS.values() for word in options.split()}
    assert set(OPTIONS) - {"none"} <= words
    assert {one.labels["scaling"] for one in found if one.part == "tuned"} >= {"none", "linear", "ntk", "yarn"}
    assert {one.labels["seed"] for one in found if one.part in ("tuned", "zero-shot")} == {0, 1, 2}
    lengths = next(one.options for one in found if one.part == "zero-shot")
    assert {str(n * TRAINED) for n in (2, 4, 8)} <= set(lengths)


def test_fine_tuned_runs_differ_by_their_scaling_alone_and_see_the_same_tokens():
    for run in (one.run for one in scalings.list_measurements() if one.part == "tuned"):
        rest = [word for word in run.options if not word.startswith("--model.rope.")]
        tokens = ["--run.steps", str(scalings.TUNING_STEPS), "--run.batch_size", str(scalings.TUNING_ROWS)]
        assert rest[:6] == ["--model.seq_len", str(scalings.TUNED_AT), *tokens]
        assert not any(word.startswith("--run.") for word in rest[6:])


def test_longrope_takes_the_lists_that_fine_tuning_has_learned():
    found = [one for one in scalings.list_measurements() if one.labels["scaling"] == "longrope"]
    assert {one.factors.name for one in found} == {"tuned-learned-factors-seed0"}


def rows(losses: dict[str, float]) -> list[dict]:
    """Made-up measurements of three seeds: scaling -> loss at every length, over a baseline of 3."""
    return [
        {
            "scaling": label,
            "seed": seed,
            "results": [{"length": n, "loss": loss + seed / 1e3, "crop_loss": 3 + seed / 1e3} for n in (512, 1024)],
        }
        for label, loss in losses.items()
        for seed in range(3)
    ]


def test_the_baseline_is_taken_away_seed_by_seed():
    over = scalings.losses_over_crop(rows({"yarn": 3.5}), "yarn", 1024, rows({"none": 4.0}))
    assert [round(value, 9) for value in over] == [0.5] * 3
    assert scalings.losses_over_crop(rows({"yarn": 3.5}), "yarn", 2048, rows({"none": 4.0})) == []


def test_an_expected_order_of_scalings_is_told_from_its_opposite():
    zero_shot = {"none": 3.6, "linear": 3.9, "ntk": 3.5, "ntk, factor 16": 3.3, "yarn": 3.2, "yarn, beta_fast 8": 3.1}
    tuned = {"none": 3.0, "linear": 3.1, "ntk": 2.9, "yarn, beta_fast 8": 2.8}
    lines = scalings.expected(rows(zero_shot), rows(tuned))
    assert len(lines) == 13
    assert {verdict for _, verdict, _ in lines} == {REPRODUCED}
    zero_shot |= {"ntk": 2.9, "linear": 2.9}
    turned = {what: verdict for what, verdict, _ in scalings.expected(rows(zero_shot), rows(tuned | {"none": 3.5}))}
    assert turned["zero-shot at 1024: none has a lower loss than linear"] == NOT_REPRODUCED
    assert turned["zero-shot at 1024: the baseline has a lower loss than ntk"] == NOT_REPRODUCED
    assert turned["fine-tuned at 1024: none is at most 0.03 nats above the baseline"] == NOT_REPRODUCED
    one_seed = [row for row in rows(zero_shot) if row["seed"] == 0]
    assert {verdict for _, verdict, _ in scalings.expected(one_seed, [])} == {INCONCLUSIVE}
