"""The study of lengths and scalings: what it runs, that it goes on where it was, and that its checker can say no.

.venv/bin/python -m pytest tests/test_study.py
"""

import json
from pathlib import Path

import pytest

from experiments import study, study_page
from harness.messages import BadInput

RESULTS = Path(__file__).parent.parent / "results"


def test_every_result_has_a_name_of_its_own_and_a_run_to_measure():
    runs, results = study.study()
    assert len({one.file for one in results}) == len(results)
    assert all(one.run in runs for one in results)
    assert all(one.start in runs for one in runs.values() if one.start)
    assert {one.run for one in results} | {one.start for one in runs.values()} >= set(
        runs
    )  # none is trained for nothing


def test_the_study_holds_what_was_promised():
    results = study.study()[1]
    labels = {part: [dict(one.labels) for one in results if one.part == part] for part in {r.part for r in results}}
    assert {(r["scheme"], r["seed"]) for r in labels["schemes"]} == {(s, k) for s in study.SCHEMES for k in (0, 1, 2)}
    assert max(study.LENGTHS) == 16 * study.TRAINED
    assert {2 * study.TRAINED, 4 * study.TRAINED, 8 * study.TRAINED} < set(study.PAST)
    scalings = {option for one in results for option in one.options or ()}
    assert {"linear", "ntk", "dynamic", "yarn", "llama3", "longrope", "proportional"} <= scalings
    assert {r["scaling"] for r in labels["tuned"]} >= {"none", "linear", "ntk", "yarn"}
    assert {r["base"] for r in labels["bases"]} == {100, 1000, 1_000_000}
    assert {r["scheme"] for r in labels["retrieval"]} == set(study.SCHEMES)


def test_tuned_runs_differ_by_their_scaling_alone_and_see_the_same_tokens():
    runs, results = study.study()
    tuned = [runs[one.run] for one in results if one.part == "tuned"]
    for one in tuned:
        rest = [word for word in one.options if not word.startswith("--model.rope.")]
        tokens = ["--run.steps", str(study.TUNING_STEPS), "--run.batch_size", str(study.TUNING_ROWS)]
        assert rest[:6] == ["--model.seq_len", str(study.TUNED_AT), *tokens]
        assert not any(word.startswith("--run.") for word in rest[6:])


def test_every_committed_result_belongs_to_the_study_and_says_how_it_was_made():
    known = {one.file: one for one in study.study()[1]}
    for file in (RESULTS / "data").glob("*/*.json"):
        assert file in known, f"{file} is no result of the study"
        content = json.loads(file.read_text())
        assert dict(known[file].labels).items() <= content.items()
        assert content["train"][:2] == ["python", "train.py"]
        assert {"versions", "commit", "shared_init_sha256", "batches_sha256", "precision"} <= set(content)


def test_committed_runs_of_one_seed_differ_by_their_scheme_alone():
    for part in ("schemes", "retrieval", "bases"):
        rows = study_page.load(part)
        for row in rows:
            first = next(other for other in rows if other["seed"] == row["seed"])
            for name in ("shared_init_sha256", "batches_sha256", "data_sha256", "steps"):
                assert row[name] == first[name], (part, row["run"], name)


@pytest.fixture
def tiny(small, tmp_path, monkeypatch):
    """A study of two schemes and one tuned run, in seconds."""
    monkeypatch.setattr(study, "DATA", tmp_path / "data")
    monkeypatch.setattr(study, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(study, "LENGTHS", [8, 16, 32])
    flags = tuple(small)
    runs = {
        "rope": study.Run("rope", (*flags, "--model.position", "rope")),
        "learned": study.Run("learned", (*flags, "--model.position", "learned")),
        "tuned": study.Run("tuned", ("--model.seq_len", "32", "--run.steps", "2"), start="rope"),
    }
    results = [
        study.Result("schemes", "rope", "rope", (("scheme", "rope"), ("seed", 0))),
        study.Result("schemes", "learned", "learned", (("scheme", "learned"), ("seed", 0))),
        study.Result("tuned", "tuned", "tuned", (("scaling", "none"), ("seed", 0)), ("--lengths", "16", "32")),
    ]
    return runs, results


def test_a_result_trains_what_it_needs_once_and_writes_its_figures(tiny, monkeypatch):
    runs, results = tiny
    trained, train_main = [], study.train.main
    monkeypatch.setattr(study.train, "main", lambda argv: (trained.append(argv), train_main(argv))[1])
    for one in reversed(results):  # the tuned run comes first, and needs the rope run
        study.measure(one, runs)
    assert len(trained) == 3
    rope, learned, tuned = (json.loads(one.file.read_text()) for one in results)
    assert rope["shared_init_sha256"] == learned["shared_init_sha256"]
    assert list(rope["loss_by_length"]) == ["8", "16", "32"]
    assert learned["loss_by_length"]["32"] is None
    assert rope["curve"][-1][0] == rope["steps"]
    assert tuned["init_from"] == "rope"
    assert [row["length"] for row in tuned["results"]] == [16, 32]


def test_what_is_there_is_not_measured_again(tiny, monkeypatch, capsys):
    _, results = tiny
    for one in results:
        one.file.parent.mkdir(parents=True, exist_ok=True)
        one.file.write_text("{}")
    study.run_all(results, at_once=1)
    assert capsys.readouterr().out == ""


def test_a_part_that_is_not_one_is_refused_with_the_nearest():
    with pytest.raises(BadInput, match=r"scheme is no part .* did you mean schemes"):
        study.main(["scheme"])


# The checker ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ([-0.10, -0.11, -0.12], study_page.REPRODUCED),
        ([0.10, 0.11, 0.12], study_page.NOT),
        ([-0.10, 0.11, -0.12], study_page.OPEN),
        ([-0.10], study_page.OPEN),  # one seed cannot tell
    ],
)
def test_a_verdict_needs_its_whole_interval_on_one_side(differences, said):
    assert study_page.verdict(differences)[0] == said


def test_a_verdict_has_the_published_t_of_three_seeds():
    assert study_page.verdict([0.0, 1.0, 2.0])[1] == "+1.000 ± 2.484"  # 4.303 / sqrt(3)


def schemes(losses: dict[str, tuple[float, float | None]]) -> study_page.Rows:
    """Made-up results of three seeds: scheme -> loss at 256 and at 2048."""
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


def verdicts(rows: study_page.Rows) -> dict[str, str]:
    return {what: said for what, said, _ in study_page.expected(rows, [], [], [])}


def test_the_checker_tells_an_expected_order_from_its_opposite():
    expected = {"rope": (3.4, 4.6), "alibi": (3.4, 3.4), "t5": (3.5, 3.6), "none": (4.2, 4.3)}
    expected |= {"sinusoidal": (3.8, 4.9), "learned": (3.7, None)}
    said = verdicts(schemes(expected))
    assert set(said.values()) == {study_page.REPRODUCED}
    turned = verdicts(schemes(expected | {"rope": (3.6, 3.5), "learned": (3.7, 4.0)}))
    assert turned["inside (256): rope below t5"] == study_page.NOT
    assert turned["8 times the length (2048): none below rope"] == study_page.NOT
    assert turned["learned does not exist past 256"] == study_page.NOT
    assert turned["rope at 2048 above rope at 256 (a negative difference)"] == study_page.NOT


def test_steps_to_anothers_last_loss_are_read_off_the_curve():
    rows = schemes({"rope": (3.0, 4.0), "learned": (4.0, None)})
    assert study_page.steps_to(rows, "rope", "learned") == [-0.5] * 3  # at step 100 of 200
    assert study_page.steps_to(rows, "learned", "rope") == [float("inf")] * 3


def test_a_target_that_is_never_reached_leaves_the_question_open():
    rows = schemes({"rope": (4.0, 4.5), "learned": (3.0, None)})
    (said,) = [line for line in study_page.expected(rows, [], [], []) if "fewer steps" in line[0]]
    assert said[1:] == [study_page.OPEN, "not reached in 3 of 3 seeds"]


def retrieved(scheme: str, inside: float | None, outside: float | None) -> dict:
    """A made-up result of retrieval on copy."""
    cells = [{"task": "copy", "length": n, "depth": None, "accuracy": x} for n, x in ((64, inside), (128, outside))]
    return {"scheme": scheme, "seed": 0, "results": cells}


@pytest.mark.parametrize(
    ("inside", "outside", "said"),
    [(0.9, 0.01, study_page.REPRODUCED), (0.9, 0.8, study_page.NOT), (0.2, 0.0, study_page.OPEN), (None, None, None)],
)
def test_retrieval_past_the_trained_length_counts_only_where_it_was_learned(inside, outside, said):
    lines = study_page.expected([], [], [], [retrieved("rope", inside, outside)])
    assert [line[1] for line in lines] == ([said] if said else [])


def test_the_pages_are_those_made_from_the_committed_results(tmp_path, monkeypatch):
    root = RESULTS.parent
    before = [(root / name).read_text(encoding="utf-8") for name in ("docs/lengths.md", "results/RESULTS.md")]
    written = {}
    monkeypatch.setattr(study_page, "write_whole", lambda path, text: written.update({path.name: text}))
    monkeypatch.setattr(study_page, "draw_lengths", lambda *_: None)
    monkeypatch.setattr(study_page, "draw_retrieval", lambda *_: None)
    study_page.main()
    assert [written["lengths.md"], written["RESULTS.md"]] == before


def test_a_line_of_one_seed_says_so_in_the_picture(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.append(figure))
    losses = {"64": 3.0, "256": 2.9}
    schemes = [{"scheme": "rope", "seed": seed, "loss_by_length": losses} for seed in (0, 1)]
    schemes += [{"scheme": "alibi", "seed": 0, "loss_by_length": losses}]
    study_page.draw_lengths(schemes, [], [], tmp_path / "lengths.png")
    said = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert said == ["rope", "alibi (1 seed)"]


def test_bases_stand_beside_the_default_seed_by_seed_with_the_pairs_that_turn_once():
    """Pair i of 16 turns once within 256 tokens if 2 pi base^(i/16) <= 256: up to i = 6.4 at 10,000, 12.9 at 100."""

    def row(base, seed, loss):
        losses = dict.fromkeys(("512", "1024", "2048"), loss)
        return {"base": base, "seed": seed, "bits_per_byte": 1.7, "loss_by_length": losses}

    rows = [row(100, 0, 3.0), row(100, 1, 5.0), row(10_000, 0, 3.5), row(10_000, 1, 5.5)]
    head, _, small, default = ([cell.strip() for cell in line.split("|")] for line in study_page.bases_table(rows, []))
    assert [line[head.index("pairs that turn once")] for line in (small, default)] == ["13 of 16", "7 of 16"]
    assert [line[head.index("minus 10,000 at 1024")] for line in (small, default)] == ["-0.500 ± 0.000", ""]
