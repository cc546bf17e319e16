"""A trained run at other lengths and under other scalings: every figure against a small computation by hand.

.venv/bin/python -m pytest tests/test_evaluate.py
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F

import data
import evaluate
import train
from harness import evaluation, scalings, scoring
from harness.runs import FinishedRun, load_finished_run
from model import Transformer
from positions import SCHEMES
from rope import RopeConfig

L = 16  # the trained length of a finished run
STRIDE = 5
LENGTHS = (8, 16, 40, 64)
KEYS = ["scaling", "factor", "protocol", "length", "loss", "crop_loss", "accuracy", "trials", "distance", "tokens"]
CPU = torch.device("cpu")


@pytest.fixture
def measure(tmp_path, monkeypatch) -> Callable[..., list[dict]]:
    """Call evaluate.main without its picture and return its results."""
    monkeypatch.setattr(evaluate, "draw_losses", lambda *args: None)

    def call(folder: Path, *flags: str) -> list[dict]:
        return evaluate.main([str(folder), "--picture", str(tmp_path / "picture.png"), *flags])["results"]

    return call


@pytest.fixture(scope="module")
def sharp_run(small, tmp_path_factory) -> Path:
    """A rope run with large first values, hardly trained: what it says depends strongly on the context."""
    folder = tmp_path_factory.mktemp("sharp") / "rope"
    own = ["--model.init_std", "0.5", "--model.tie_embeddings", "false", "--run.learning_rate", "1e-9"]
    train.main([*small, *own, "--run.steps", "1", "--run.out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def all_protocols(sharp_run, tmp_path_factory) -> Path:
    """The folder of picture and figures of one command that uses every protocol."""
    out = tmp_path_factory.mktemp("evaluated")
    flags = ["--protocols", *scoring.PROTOCOLS, "--lengths", *map(str, LENGTHS), "--stride", str(STRIDE)]
    evaluate.main([str(sharp_run), *flags, "--picture", str(out / "a.png"), "--out", str(out / "a.json")])
    return out


@pytest.fixture(scope="module")
def cell(all_protocols) -> Callable[..., dict]:
    """One result of that command."""
    results = json.loads((all_protocols / "a.json").read_text())["results"]

    def find(protocol: str, length: int, positions: list[int] | None = None) -> dict:
        rows = [r for r in results if (r["protocol"], r["length"], r.get("positions")) == (protocol, length, positions)]
        assert len(rows) == 1
        return rows[0]

    return find


@pytest.fixture(scope="module")
def loaded(sharp_run) -> FinishedRun:
    return load_finished_run(sharp_run)


@pytest.fixture(scope="module")
def ids(loaded) -> torch.Tensor:
    """The validation split."""
    corpus = data.load(loaded.data, 0, 4, L)
    return torch.from_numpy(corpus.tokens("validation").astype(int))


@pytest.fixture
def copy(sharp_run, tmp_path) -> Callable[..., Path]:
    """A copy of the rope run whose config says other things about rope: the run of someone who tuned it."""

    def make(**rope) -> Path:
        folder = Path(shutil.copytree(sharp_run, tmp_path / "copy"))
        sections = yaml.safe_load((folder / "config.yaml").read_text())
        sections["model"]["rope"] |= rope
        (folder / "config.yaml").write_text(yaml.safe_dump(sections))
        return folder

    return make


@torch.no_grad()
def mean_nats(model: Transformer, ids: torch.Tensor, places: list[tuple[int, int]]) -> float:
    """Mean loss of targets, each after a context of its own: (where that starts, where the target stands)."""
    total = 0.0
    for width in {at - start for start, at in places}:
        contexts = torch.stack([ids[start:at] for start, at in places if at - start == width])
        targets = torch.stack([ids[at] for start, at in places if at - start == width])
        total += F.cross_entropy(model(contexts)[:, -1], targets, reduction="sum").item()
    return total / len(places)


# ---- protocols -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
def test_fixed_scores_the_same_last_tokens_under_every_length(cell, loaded, ids, length):
    n_targets = 8  # of 32, since the shortest length has no more
    count = min(256, (len(ids) - 1 - 64) // n_targets + 1)
    losses, crops = [], []
    for end in torch.linspace(64, len(ids) - 1, count, dtype=torch.float64).long().tolist():
        for context, into in ((length, losses), (min(length, L), crops)):
            with torch.no_grad():
                logits = loaded.model(ids[None, end - context : end])[0, -n_targets:]
            into.append(F.cross_entropy(logits, ids[end - n_targets + 1 : end + 1]).item())
    row = cell("fixed", length)
    assert row["tokens"] == count * n_targets
    assert row["loss"] == pytest.approx(sum(losses) / count, rel=1e-6)
    assert row["crop_loss"] == pytest.approx(sum(crops) / count, rel=1e-6)
    assert (row["loss"] == pytest.approx(row["crop_loss"], rel=1e-6)) == (length <= L)


def crop_start(start: int, end: int, at: int) -> int:
    """Where the context of a target starts when windows of L that slide by STRIDE end where the window does."""
    while end - STRIDE >= at and end - STRIDE - start >= L:
        end -= STRIDE
    return max(start, end - L) if at > end - STRIDE else start


@pytest.mark.parametrize("length", [16, 40])
def test_windows_score_every_target_once_after_what_its_window_holds(cell, loaded, ids, length):
    row = cell("windows", length)
    starts = [((at - 1) // length * length, at) for at in range(1, len(ids))]
    assert row["tokens"] == len(ids) - 1
    assert row["loss"] == pytest.approx(mean_nats(loaded.model, ids, starts), rel=1e-6)
    crops = [(crop_start(start, start + length, at), at) for start, at in starts]
    assert row["crop_loss"] == pytest.approx(mean_nats(loaded.model, ids, crops), rel=1e-6)


@pytest.mark.parametrize("length", [16, 40])
def test_sliding_is_a_mean_over_tokens_each_after_its_own_context(cell, loaded, ids, length):
    row = cell("sliding", length)
    ends = [*range(length, len(ids) - 1, STRIDE), len(ids) - 1]
    starts = [(next(end for end in ends if end >= at) - length, at) for at in range(1, len(ids))]
    assert row["tokens"] == len(ids) - 1
    assert row["loss"] == pytest.approx(mean_nats(loaded.model, ids, starts), rel=1e-6)
    crops = [(crop_start(start, start + length, at), at) for start, at in starts]
    assert row["crop_loss"] == pytest.approx(mean_nats(loaded.model, ids, crops), rel=1e-6)


def test_by_position_splits_the_windows_by_tokens_before_the_target(cell, loaded, ids):
    for first, last in ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 40)):
        places = [(start, start + n) for start in range(0, len(ids), 40) for n in range(first, last + 1)]
        places = [(start, at) for start, at in places if at < len(ids)]
        row = cell("by-position", 40, [first, last])
        assert row["tokens"] == len(places)
        assert row["loss"] == pytest.approx(mean_nats(loaded.model, ids, places), rel=1e-6)
        crops = [(crop_start(start, start + 40, at), at) for start, at in places]
        assert row["crop_loss"] == pytest.approx(mean_nats(loaded.model, ids, crops), rel=1e-6)


def test_shuffled_prefix_differs_from_fixed_past_the_trained_length_only(cell, loaded):
    for length in LENGTHS:
        shuffled, straight = cell("shuffled-prefix", length), cell("fixed", length)
        assert shuffled["crop_loss"] == straight["crop_loss"]
        assert (shuffled["loss"] == straight["loss"]) == (length <= L)
    corpus = data.load(loaded.data, 0, 4, L)
    windows = scoring.shuffle_prefixes(scoring.cut_fixed(corpus, "validation", 40, list(LENGTHS)), L, 0)
    with torch.no_grad():
        losses = [F.cross_entropy(loaded.model(x).transpose(1, 2), y).item() for x, y in windows]
    assert losses == [pytest.approx(cell("shuffled-prefix", 40)["loss"], rel=1e-6)]


# ---- scalings --------------------------------------------------------------------------------------------------------


def test_linear_at_a_factor_equals_a_run_with_positions_divided(sharp_run, measure, ids):
    rows = measure(sharp_run, "--lengths", "16", "64", "--rope.scaling", "linear", "--rope.factor", "4")
    model = load_finished_run(sharp_run).model
    theta = 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)

    def divided(positions, dtype):
        angle = positions[:, None] / 4 * theta
        return angle.cos(), angle.sin()

    model.position.angles = divided
    corpus = data.load(load_finished_run(sharp_run).data, 0, 4, L)
    by_hand = scoring.measure_loss_by_length(model, corpus, "validation", [16, 64], CPU, torch.no_grad)
    assert {row["length"]: row["loss"] for row in rows} == pytest.approx(by_hand, rel=1e-6)
    plain = measure(sharp_run, "--lengths", "16", "64")
    assert all(abs(a["loss"] - b["loss"]) > 1e-4 for a, b in zip(rows, plain, strict=True))
    assert [row["crop_loss"] for row in rows] == [row["crop_loss"] for row in plain]  # the run as it was trained


@pytest.mark.parametrize("flags", [(), ("--factor", "auto"), ("--rope.factor", "auto")])
def test_factor_auto_is_used_length_over_trained_length_and_the_default(sharp_run, measure, flags):
    rows = measure(sharp_run, "--lengths", "8", "16", "40", "--rope.scaling", "ntk", *flags)
    assert [row["factor"] for row in rows] == [1, 1, 2.5]
    (fixed,) = measure(sharp_run, "--lengths", "40", "--rope.scaling", "ntk", "--factor", "2.5")
    (auto,) = measure(sharp_run, "--lengths", "40", "--rope.scaling", "ntk", *flags)
    assert auto == fixed


def test_factor_auto_of_a_tuned_run_counts_from_its_original_length(copy, measure):
    folder = copy(scaling="linear", factor=2.0, original_length=8)
    assert [r["factor"] for r in measure(folder, "--lengths", "16", "32", "--factor", "auto")] == [2, 4]
    assert [r["factor"] for r in measure(folder, "--lengths", "16", "32", "--factor", "5")] == [5, 5]


def test_options_lie_over_those_of_the_run(copy):
    loaded = load_finished_run(copy(scaling="yarn", factor=2.0, original_length=8, beta_fast=4.0, base=500.0))

    def config(scaling=None, **given):
        given |= {"scaling": scaling} if scaling else {}
        ((name, fields),) = scalings.choose_scalings(loaded, given, None).items()
        settled = scalings.make_position(loaded, fields, 64).config
        assert settled.scaling == name
        return settled

    own = RopeConfig(base=500, scaling="yarn", factor=2, original_length=8, beta_fast=4)
    assert config() == own
    assert config(beta_slow=2) == RopeConfig(**{**vars(own), "beta_slow": 2})
    assert config("yarn", factor="auto").factor == 8
    assert config("linear") == RopeConfig(base=500, scaling="linear", factor=2, original_length=8)
    assert config("none", base=100) == RopeConfig(base=100, original_length=8)
    lists = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    assert config("longrope", **lists).original_length == 8


def test_the_original_length_is_the_trained_one_where_none_is_on_record(loaded):
    (fields,) = scalings.choose_scalings(loaded, {"scaling": "yarn"}, None).values()
    assert fields["original_length"] == L
    assert scalings.make_position(loaded, fields, 64).config.factor == 4
    (fields,) = scalings.choose_scalings(loaded, {"scaling": "yarn", "original_length": 32}, None).values()
    assert scalings.make_position(loaded, fields, 64).config.factor == 2


def test_several_scalings_give_what_each_gives_alone(sharp_run, measure):
    several = measure(sharp_run, "--lengths", "16", "40", "--scalings", "yarn", "dynamic", "--rope.beta_fast", "2")
    yarn = measure(sharp_run, "--lengths", "16", "40", "--rope.scaling", "yarn", "--rope.beta_fast", "2")
    dynamic = measure(sharp_run, "--lengths", "16", "40", "--rope.scaling", "dynamic")
    assert sorted(several, key=str) == sorted(yarn + dynamic, key=str)
    assert len({row["loss"] for row in several if row["length"] == 40}) == 2


def test_yarn_warns_when_its_betas_leave_fewer_than_two_pairs(sharp_run, measure, capsys):
    measure(sharp_run, "--lengths", "32", "--rope.scaling", "yarn")
    assert "rope.beta_fast 32 leaves" in capsys.readouterr().err
    fine = ["--rope.beta_fast", "0.2", "--rope.beta_slow", "0.1"]
    measure(sharp_run, "--lengths", "32", "--rope.scaling", "yarn", *fine)
    assert capsys.readouterr().err == ""


def test_another_layout_than_the_trained_one_is_warned_of(sharp_run, measure, capsys):
    measure(sharp_run, "--lengths", "16", "--rope.layout", "half-split")
    assert "trained with rope.layout interleaved" in capsys.readouterr().err


# ---- what comes out --------------------------------------------------------------------------------------------------


def test_the_json_file_has_the_promised_fields_and_null_where_they_do_not_apply(all_protocols):
    content = json.loads((all_protocols / "a.json").read_text())
    assert content["trained_length"] == L
    for row in content["results"]:
        assert [*KEYS, "positions"][: len(row)] == list(row)
        assert ("positions" in row) == (row["protocol"] == "by-position")
        assert (row["scaling"], row["factor"], row["accuracy"], row["trials"], row["distance"]) == ("none", *[None] * 4)
    assert {(row["protocol"], row["length"]) for row in content["results"]} == {
        (protocol, length) for protocol in scoring.PROTOCOLS for length in LENGTHS
    }


def test_the_picture_is_a_png(all_protocols):
    assert (all_protocols / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_stands_beside_the_run_by_default(copy):
    folder = copy()
    evaluate.main([str(folder), "--lengths", "16", "32", "--scalings", "none", "yarn"])
    assert (folder / "evaluate.png").read_bytes().startswith(b"\x89PNG")


def test_the_screen_shows_every_loss_and_the_crop_beside_it(sharp_run, measure, capsys):
    rows = measure(sharp_run, "--lengths", "16", "40", "--scalings", "linear", "ntk")
    said = capsys.readouterr().out
    for row in rows:
        assert f"{row['loss']:.3f} ({row['loss'] - row['crop_loss']:+.3f})" in said
        assert f"{row['crop_loss']:.3f}" in next(line for line in said.splitlines() if "cropped to 16" in line)


@pytest.mark.parametrize("scheme", ["alibi", "learned"])
def test_a_run_that_does_not_rotate_has_no_scaling(finished, measure, scheme):
    rows = measure(finished(scheme))
    assert {(row["scaling"], row["factor"]) for row in rows} == {(None, None)}
    assert [row["length"] for row in rows] == ([16] if scheme == "learned" else [16, 32, 64, 128])


# ---- bad input -------------------------------------------------------------------------------------------------------

BAD = {  # flags -> what the line must say
    "--rope.scaling yarn --factor 0.5": "--rope.factor 0.5 must be at least 1",
    "--scalings ntk yarn --factor 0.5": "--rope.factor 0.5 must be at least 1",
    "--rope.factor four": "--rope.factor four: expected auto or float",
    "--factor auto": "--rope.factor means nothing to rope.scaling none",
    "--rope.scaling longrope": "--rope.scaling longrope needs rope.long_factor",
    "--rope.scaling longrope --rope.long_factor [1,2] --rope.short_factor [1,2]": "has 2 numbers, and 4 pairs",
    "--rope.scaling yarn --rope.beta_fast 1 --rope.beta_slow 2": "--rope.beta_slow 2 must be below",
    "--rope.scaling linear --rope.beta_fast 8": "--rope.beta_fast means nothing to rope.scaling linear",
    "--scalings linear ntk --rope.beta_fast 8": "--rope.beta_fast means nothing to --scalings linear ntk",
    "--rope.scaling yran": "did you mean yarn?",
    "--scalings yarn linaer": "--scalings linaer is none of none, linear",
    "--scalings yarn --rope.scaling ntk": "give one of the two",
    "--rope.scaling yarn --rope.original_length 0": "--rope.original_length 0 must be at least 2",
    "--rope.fraction 0.1": "--rope.fraction 0.1 of a head",
    "--rope.bse 3": "did you mean --rope.base?",
    "--protocols fixed slidin": "--protocols slidin is none of fixed, windows, sliding",
    "--lengths 16 100000": "--lengths 100000 is longer than the validation split allows",
    "--lengths 0": "--lengths 0 must be at least 1",
    "--lengths many": "--lengths many: expected int",
    "--stride 0": "--stride 0 must be between 1 and 16",
    "--stride 17": "--stride 17 must be between 1 and 16",
    "--lengths 8 32 --protocols sliding --stride 9": "--stride 9 must be between 1 and 8",
    "--split val": "did you mean validation?",
    "--picture a.gif": "--picture a.gif must be a .png",
    "--picture not/there.png": "--picture not/there.png cannot be written",
    "--out not/there.json": "--out not/there.json cannot be written",
    "--out .": "--out '' must be a .json file",
    "--out a.txt": "--out a.txt must be a .json file",
}


@pytest.fixture
def refused(at_the_shell, tmp_path, monkeypatch) -> Callable[..., str]:
    """The one line that bad input gets, before any work."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scoring.Evaluator, "measure", lambda *args: pytest.fail("the work began"))

    def call(*argv: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        outcome = at_the_shell(evaluate.main, list(argv))
        lines = outcome.err.splitlines()
        assert (outcome.code, outcome.out, len(lines)) == (2, "", 1)
        assert sorted(tmp_path.rglob("*")) == before
        return lines[0]

    return call


@pytest.mark.parametrize(("flags", "says"), BAD.items())
def test_bad_input_gets_one_line_before_any_work(sharp_run, refused, flags, says):
    folder = sharp_run
    there = sorted(folder.iterdir())
    assert says in refused(str(folder), *flags.split())
    assert sorted(folder.iterdir()) == there


@pytest.mark.parametrize("flags", ["--rope.scaling yarn", "--rope.factor 2", "--scalings yarn", "--rope.base 100"])
def test_a_run_that_is_not_rope_refuses_scalings_by_name(finished, refused, flags):
    line = refused(str(finished("alibi")), *flags.split())
    assert flags in line
    assert "has the scheme alibi" in line


def test_a_length_that_a_learned_run_does_not_have_is_refused(finished, refused):
    assert "--lengths 17" in refused(str(finished("learned")), "--lengths", "8", "17")


def test_a_folder_that_is_no_run_or_damaged_is_refused(copy, refused, tmp_path):
    assert "is not a run folder" in refused(str(tmp_path / "nothing"))
    folder = copy()
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    assert "model.safetensors is damaged" in refused(str(folder))


def test_a_run_whose_text_has_changed_since_is_refused(copy, refused):
    folder = copy()
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"data_sha256": "0" * 64}))
    assert "was trained on another text" in refused(str(folder))


def test_a_file_that_is_there_survives_a_refusal(sharp_run, refused, tmp_path):
    (tmp_path / "old.json").write_text("old")
    refused(str(sharp_run), "--out", "old.json", "--picture", "no/a.png")
    assert (tmp_path / "old.json").read_text() == "old"


def with_data(folder: Path, **values: str) -> Path:
    """A run's folder whose config.yaml says otherwise where its text is."""
    sections = yaml.safe_load((folder / "config.yaml").read_text())
    sections["data"] |= values
    (folder / "config.yaml").write_text(yaml.safe_dump(sections))
    return folder


def test_no_folder_is_made_where_a_strangers_config_says(sharp_run, tmp_path, monkeypatch):
    folder = with_data(Path(shutil.copytree(sharp_run, tmp_path / "run")), cache=str(tmp_path / "elsewhere" / "deep"))
    monkeypatch.chdir(tmp_path)
    evaluate.main([str(folder), "--lengths", "16"])
    assert not (tmp_path / "elsewhere").exists()
    assert (tmp_path / data.DataConfig.cache).is_dir()


def test_a_strangers_config_does_not_make_us_ask_the_hub(sharp_run, tmp_path, monkeypatch, at_the_shell):
    folder = with_data(Path(shutil.copytree(sharp_run, tmp_path / "run")), corpus="owner/name")
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: pytest.fail("the hub was asked"))
    outcome = at_the_shell(evaluate.main, [str(folder)])
    assert outcome.code == 2
    assert "'owner/name' is on the Hugging Face hub and in no cache" in outcome.err


@pytest.mark.parametrize(
    ("flag", "name", "says"),
    [
        ("--out", "model.safetensors", "must be a .json file"),
        ("--out", "result.json", "is a file of the run"),
        ("--out", "fifo.json", "is there and no plain file"),
        ("--out", "link.json", "is there and no plain file"),
        ("--picture", "folder.png", "is there and no plain file"),
        ("--picture", "other.png", "is a file of the run"),
        (None, "evaluate.png", "is there and no plain file"),
    ],
)
def test_no_figure_is_written_onto_what_is_something_else(sharp_run, at_the_shell, tmp_path, flag, name, says):
    folder = Path(shutil.copytree(sharp_run, tmp_path / "run"))
    (tmp_path / "theirs").write_text("theirs")
    os.mkfifo(folder / "fifo.json")
    (folder / "folder.png").mkdir()
    (folder / "other.png").write_text("theirs")
    (folder / "evaluate.png").unlink(missing_ok=True)
    for link in ("link.json", "evaluate.png"):
        (folder / link).symlink_to(tmp_path / "theirs")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    picture = ["--picture", str(tmp_path / "a.png")] if flag == "--out" else []
    outcome = at_the_shell(evaluate.main, [str(folder), *([flag, str(folder / name)] if flag else []), *picture])
    assert (outcome.code, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert f"{name} {says}" in line
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_picture_shows_a_scheme_without_scalings_as_its_class_says(scheme, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(evaluation, "draw_by_length", lambda axis, lines, trained: drawn.extend(lines))
    row = {"scaling": None, "protocol": "fixed", "length": 16, "loss": 1.0, "crop_loss": 2.0}
    evaluation.draw_losses([row], scheme, 16, tmp_path / "evaluate.png")
    own = SCHEMES[scheme]
    assert (drawn[1].label, drawn[1].color, drawn[1].dash) == (own.label, own.color, own.dash)
    assert drawn[1].marker == own.marker
