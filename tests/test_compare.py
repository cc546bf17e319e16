"""The comparison: its figures, what it repeats and what it does not, and what it refuses to set side by side.

.venv/bin/python -m pytest tests/test_compare.py
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from filelock import FileLock
from torch.nn import functional as F

import compare
import train
from harness import devices, jobs, report
from harness.checkpoints import last_whole
from harness.messages import BadInput
from harness.runs import load_finished_run, read_result, weights_sha256
from harness.tables import format_mean
from positions import SCHEMES

REPOSITORY = Path(compare.__file__).parent
COMPARED = ("none", "learned", "alibi", "rope")
DOCUMENTED = {
    *("scheme", "seed", "steps", "parameters", "position_parameters", "val_loss", "bits_per_byte", "test_loss"),
    *("learning_rate", "loss_by_length", "shared_init_sha256", "batches_sha256", "seconds", "tokens_per_second"),
}
MISSING = object()
BESIDES = {"weights_sha256", "data_sha256", "precision", "device", "threads", "versions"}


def flags(small: list[str], out: Path, *more: str, schemes: tuple[str, ...] = COMPARED) -> list[str]:
    return [*small, "--schemes", *schemes, "--seeds", "0", "1", "--jobs", "1", "--out", str(out), *more]


@pytest.fixture(scope="module")
def finished_comparison(small, tmp_path_factory) -> Path:
    """Four schemes and two seeds, compared once; only read, or copied first."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    compare.main(flags(small, out))
    return out


@pytest.fixture
def comparison(finished_comparison, tmp_path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(finished_comparison, tmp_path / "out"))


@pytest.fixture
def summary(finished_comparison) -> dict:
    return json.loads((finished_comparison / "summary.json").read_text())


def run_of(summary: dict, scheme: str, seed: int) -> dict:
    (found,) = [run for run in summary["runs"] if (run["scheme"], run["seed"]) == (scheme, seed)]
    return found


def edit_result(folder: Path, **values) -> None:
    path = folder / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def forbid_training(monkeypatch) -> None:
    monkeypatch.setattr(train, "train", lambda *args: pytest.fail("trained again"))


def weights(out: Path) -> dict[str, tuple[int, bytes]]:
    files = out.glob("*/model.safetensors")
    return {path.parent.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# ---- what it writes --------------------------------------------------------------------------------------------------


def test_summary_json_has_the_documented_fields_of_every_run(summary, finished_comparison):
    assert summary.keys() == {"runs", "config", "versions", "commit"}
    pairs = [(run["scheme"], run["seed"]) for run in summary["runs"]]
    assert sorted(pairs) == sorted((scheme, seed) for scheme in COMPARED for seed in (0, 1))
    for run in summary["runs"]:
        assert run.keys() == DOCUMENTED | BESIDES
        found = read_result(finished_comparison / f"{run['scheme']}-seed{run['seed']}")
        assert {name: run[name] for name in run.keys() & found.keys()} == {
            name: found[name] for name in run.keys() & found.keys()
        }
        assert (run["steps"], run["learning_rate"]) == (4, 3e-3)
    assert {run["position_parameters"] for run in summary["runs"]} == {0, 16 * 16}
    assert summary["config"]["model"]["seq_len"] == 16
    assert summary["config"].keys() == {"data", "model", "run"}
    assert {"python", "torch", "cpu"} <= summary["versions"].keys()


def test_the_report_says_which_scaling_rope_has(summary):
    assert "the scaling `none` alone" in report.format_report(summary)
    summary["config"]["model"]["rope"] |= {"scaling": "ntk", "factor": 4.0}
    assert "the scaling `ntk` alone" in report.format_report(summary)


def test_main_returns_what_summary_json_says(comparison, small, monkeypatch):
    forbid_training(monkeypatch)
    returned = compare.main(flags(small, comparison))
    assert json.loads(json.dumps(returned)) == json.loads((comparison / "summary.json").read_text())


def test_the_lengths_go_from_a_quarter_to_eight_times_the_trained_one(summary):
    for run in summary["runs"]:
        assert list(run["loss_by_length"]) == ["4", "8", "16", "32", "64", "128"]


def test_only_a_length_that_a_scheme_cannot_do_is_null(summary):
    for run in summary["runs"]:
        missing = [length for length, loss in run["loss_by_length"].items() if loss is None]
        assert missing == (["32", "64", "128"] if run["scheme"] == "learned" else [])


def test_runs_of_one_seed_share_their_hashes_and_other_seeds_have_others(summary):
    for name in ("shared_init_sha256", "batches_sha256"):
        hashes = {(run["seed"], run[name]) for run in summary["runs"]}
        assert len(hashes) == 2
        assert len({value for _, value in hashes}) == 2


def test_the_picture_is_a_picture(finished_comparison):
    assert (finished_comparison / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    picture = plt.imread(finished_comparison / "curves.png")  # (height, width, colours), 0 .. 1
    height, width = picture.shape[:2]
    assert 400 <= height <= 2000
    assert 1000 <= width <= 4000
    for scheme in COMPARED:  # every scheme's colour is drawn, in both halves
        color = np.array([int(SCHEMES[scheme].color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        for half in (picture[:, : width // 2, :3], picture[:, width // 2 :, :3]):
            assert (np.abs(half - color).max(-1) < 0.02).sum() > 50


def test_the_report_asks_answers_and_proves(finished_comparison, summary):
    page = (finished_comparison / "report.md").read_text()
    assert "The question:" in page
    assert "What this does not show" in page
    assert "](curves.png)" in page
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    for scheme in COMPARED:
        runs = [run_of(summary, scheme, seed) for seed in (0, 1)]
        (figures,) = [row for row in rows if row[0] == scheme and len(row) == len(rows[0]) and "±" in row[1]]
        for name in ("val_loss", "test_loss", "bits_per_byte"):
            assert format_mean(run[name] for run in runs) in figures
        for run in runs:
            (proof,) = [row for row in rows if row[:2] == [scheme, str(run["seed"])]]
            assert {f"`{run[name][:16]}`" for name in ("shared_init_sha256", "batches_sha256")} <= set(proof)
    assert "2 seeds" in page


def test_the_report_of_one_seed_says_that_nothing_tells_luck_from_worth(comparison, small, monkeypatch, capsys):
    forbid_training(monkeypatch)
    compare.main(flags(small, comparison, "--seeds", "1"))
    page = (comparison / "report.md").read_text()
    assert "±" not in page
    assert "one seed" in page
    said = capsys.readouterr().out
    assert str(comparison / "report.md") in said
    assert "bits per byte" in said


def test_each_scheme_has_a_look_of_its_own():
    for part in ("color", "dash", "marker", "label"):  # told apart without colour too
        assert len({str(getattr(scheme, part)) for scheme in SCHEMES.values()}) == len(SCHEMES)


def test_the_colours_differ_to_the_colour_blind_too():
    """Simulated deuteranopia and protanopia (Machado et al. 2009, severity 1), distances in linear RGB."""
    linear = {
        name: (np.array([int(scheme.color[i : i + 2], 16) for i in (1, 3, 5)]) / 255) ** 2.2
        for name, scheme in SCHEMES.items()
    }
    seen = {
        "normal": np.eye(3),
        "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    }
    for eye, matrix in seen.items():
        colors = {scheme: np.array(matrix) @ color for scheme, color in linear.items()}
        for a in colors:
            for b in colors:
                assert a == b or np.linalg.norm(colors[a] - colors[b]) > 0.05, (eye, a, b)


# ---- its statistics --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", COMPARED)
def test_loss_by_length_scores_the_same_targets_under_each_length(finished_comparison, summary, text, scheme):
    folder = finished_comparison / f"{scheme}-seed0"
    model, n = load_finished_run(folder).model, len(text)
    ids = torch.tensor([byte + 3 for byte in text[n * 90 // 100 : n * 95 // 100].encode()])
    n_targets = 4  # of 32, since the shortest length has no more
    count = min(256, (len(ids) - 1 - 128) // n_targets + 1)
    ends = np.linspace(128, len(ids) - 1, count).astype(int)  # where each window's last target stands
    for length, loss in run_of(summary, scheme, 0)["loss_by_length"].items():
        if loss is None:
            continue
        windows = torch.stack([ids[end - int(length) : end + 1] for end in ends])  # (count, L + 1)
        with torch.no_grad():
            logits = model(windows[:, :-1])[:, -n_targets:]  # (count, n_targets, V)
        assert loss == pytest.approx(F.cross_entropy(logits.flatten(0, 1), windows[:, -n_targets:].flatten()).item())


def test_a_length_the_text_is_too_short_for_is_null(small, tmp_path):
    (tmp_path / "short.txt").write_text("abcdefgh" * 130)  # 52 bytes of validation
    run = compare.main(flags(small, tmp_path / "out", "--data.corpus", str(tmp_path / "short.txt"), schemes=("rope",)))[
        "runs"
    ][0]
    assert [length for length, loss in run["loss_by_length"].items() if loss is None] == ["64", "128"]
    assert (
        "rope cannot be scored at 128 tokens: the validation text is too short"
        in (tmp_path / "out" / "report.md").read_text()
    )


def test_findings_say_whose_loss_stays_rises_or_falls_and_who_ends(summary):
    changes = {"alibi": 0.01, "rope": 0.5, "none": -0.3}
    for run in summary["runs"]:
        if run["scheme"] != "learned":
            run["loss_by_length"]["128"] = run["loss_by_length"]["16"] + changes[run["scheme"]]
    said = "\n".join(report.describe_findings(summary))
    assert "The loss of alibi hardly changes from 16 to 128" in said
    assert "The loss of rope rises from 16 to 128 tokens of context: +0.500" in said
    assert "The loss of none falls" in said
    assert "learned cannot be scored at 128 tokens: its positions end at 16" in said


def test_findings_rank_by_the_mean_over_seeds(summary):
    for run in summary["runs"]:
        run["val_loss"] = {"rope": 1.0, "alibi": 3.0, "learned": 2.0, "none": 4.0}[run["scheme"]] + run["seed"]
    assert list(report.group_by_scheme(summary["runs"])) == ["rope", "learned", "alibi", "none"]


def test_best_rates_of_a_sweep_with_these_settings_stand_in_the_table(summary, tmp_path, monkeypatch):
    best = {"rope": {"bits_per_byte": 1.234, "learning_rate": 0.006}}
    sweep = {"settings": report.select_settings(summary["config"]), "best": best}
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    monkeypatch.setattr(report, "BEST_RATES", tmp_path / "sweep.json")
    (row,) = [line for line in report.format_losses(summary) if line.startswith("| rope")]
    assert "1.234 (0.006)" in row
    sweep["settings"]["run"]["steps"] += 1  # of other settings
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    assert "1.234" not in "\n".join(report.format_losses(summary))


# ---- what it repeats, and what it does not ---------------------------------------------------------------------------


def test_finished_runs_are_not_repeated(comparison, small, monkeypatch):
    before = weights(comparison)
    forbid_training(monkeypatch)
    monkeypatch.setattr(compare, "measure_loss_by_length", lambda *args: pytest.fail("measured again"))
    (comparison / "summary.json").unlink()
    compare.main(flags(small, comparison))
    assert weights(comparison) == before
    assert (comparison / "summary.json").exists()


def test_options_that_a_resumed_run_may_change_do_not_repeat_runs(comparison, small, monkeypatch):
    forbid_training(monkeypatch)
    compare.main(flags(small, comparison, "--run.threads", "2", "--run.wandb", "disabled"))
    compare.main(flags(small, comparison, "--run.micro_batch_size", "2", "--data.cache", str(comparison / "cache")))


@pytest.mark.parametrize("status", ["finished", "interrupted"])
@pytest.mark.parametrize(
    ("flag", "value", "name"),
    [("--run.eval_every", "1", "run.eval_every 2, not 1"), ("--run.precision", "auto", "run.precision fp32, not auto")],
)
def test_a_run_with_other_looks_or_another_precision_is_another_run(comparison, small, flag, value, name, status):
    edit_result(comparison / "none-seed0", status=status)
    with pytest.raises(BadInput, match=f"{name}: choose another --out"):
        compare.main(flags(small, comparison, flag, value))


def test_a_finished_run_from_before_an_option_has_it_at_its_default(comparison, small, monkeypatch):
    forbid_training(monkeypatch)
    for config in comparison.glob("*/config.yaml"):
        lines = config.read_text().splitlines(keepends=True)
        config.write_text("".join(line for line in lines if "on_nan" not in line and "embedding_rate" not in line))
    compare.main(flags(small, comparison))


@pytest.mark.parametrize("status", ["interrupted", "running", "failed"])
def test_a_half_finished_run_is_done_again_and_the_others_are_not(comparison, small, status):
    before = weights(comparison)
    edit_result(comparison / "alibi-seed1", status=status, step=2)
    (comparison / "alibi-seed1" / "model.safetensors").unlink()
    compare.main(flags(small, comparison))
    after = weights(comparison)
    assert [name for name in before if after[name] != before[name]] == ["alibi-seed1"]
    assert after["alibi-seed1"][1] == before["alibi-seed1"][1]  # to the bit what it was
    assert read_result(comparison / "alibi-seed1")["status"] == "finished"


def test_a_run_folder_that_is_gone_is_made_again(comparison, small):
    before = weights(comparison)
    shutil.rmtree(comparison / "rope-seed0")
    compare.main(flags(small, comparison))
    assert [name for name, value in weights(comparison).items() if value != before[name]] == ["rope-seed0"]


def test_a_run_stopped_before_its_lengths_is_measured_and_not_trained(comparison, small, monkeypatch):
    before = (comparison / "rope-seed1" / "lengths.json").read_text()
    (comparison / "rope-seed1" / "lengths.json").unlink()
    forbid_training(monkeypatch)
    compare.main(flags(small, comparison))
    assert (comparison / "rope-seed1" / "lengths.json").read_text() == before


@pytest.mark.parametrize("name", ["measured.json", "lengths.json"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"7", b'{"weights_sha256": "' + b"deadbeef" * 8 + b'"}'])
def test_losses_that_are_not_known_to_be_of_these_weights_are_measured_again(
    comparison, small, monkeypatch, name, content
):
    forbid_training(monkeypatch)
    folder = comparison / "rope-seed1"
    before = {file: (folder / file).read_bytes() for file in ("lengths.json", "measured.json")}
    wrong = dict.fromkeys(json.loads(before["lengths.json"]), 0.0)
    (folder / "lengths.json").write_text(json.dumps(wrong))
    (folder / name).write_bytes(content) if content is not None else (folder / name).unlink()
    summary = compare.main(flags(small, comparison))
    assert {file: (folder / file).read_bytes() for file in before} == before
    assert run_of(summary, "rope", 1)["loss_by_length"] == json.loads(before["lengths.json"])


@pytest.mark.parametrize("what", ["flipped", "missing", "of another run", "measured too"])
def test_weights_that_are_not_those_of_result_json_are_made_again_before_anything_is_ranked(
    comparison, small, what, summary
):
    folder = comparison / "rope-seed1"
    file, good = folder / "model.safetensors", weights(comparison)["rope-seed1"][1]
    bad = (comparison / "rope-seed0" / file.name).read_bytes() if what == "of another run" else good[:-1] + b"?"
    file.unlink() if what == "missing" else file.write_bytes(bad)
    if what == "measured too":
        (folder / "measured.json").write_text(json.dumps({"weights_sha256": weights_sha256(folder)}))
    made = compare.main(flags(small, comparison))
    assert file.read_bytes() == good
    run_, before = run_of(made, "rope", 1), run_of(summary, "rope", 1)
    for name in ("weights_sha256", "val_loss", "loss_by_length"):
        assert run_[name] == before[name]
    assert run_["weights_sha256"] == weights_sha256(folder)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"data_sha256": MISSING}, "no data_sha256"),
        ({"versions": MISSING}, "no versions"),
        ({"seconds": None}, "no seconds"),
        ({"step": 100, "steps": 100}, "steps 100, not 4"),
    ],
)
def test_a_result_that_lacks_what_is_compared_is_refused_by_name_before_anything_is_trained(
    comparison, small, monkeypatch, values, says
):
    forbid_training(monkeypatch)
    result = comparison / "rope-seed1" / "result.json"
    kept = {name: v for name, v in (json.loads(result.read_text()) | values).items() if v is not MISSING}
    result.write_text(json.dumps(kept))
    with pytest.raises(BadInput, match=f"{result} is damaged, it has {says}: restore it"):
        compare.main(flags(small, comparison))
    (comparison / "alibi-seed0" / "config.yaml").unlink()  # nobody knows what that was measured with
    with pytest.raises(BadInput, match=r"alibi-seed0/config.yaml is damaged: .*No such file"):
        compare.main(flags(small, comparison))


@pytest.mark.parametrize(
    ("flag", "value", "names"),
    [
        ("--run.steps", "5", ["run.steps 4", "not 5"]),
        ("--run.learning_rate", "0.01", ["run.learning_rate 0.003", "not 0.01"]),
        ("--model.d_model", "32", ["model.d_model 16", "not 32"]),
        ("--model.rope.base", "500", ["rope", "10000", "500"]),
        ("--data.tokenizer", "bpe", ["data.tokenizer bytes", "not bpe"]),
    ],
)
def test_a_folder_of_another_config_is_refused_by_name(comparison, small, monkeypatch, recwarn, flag, value, names):
    before = weights(comparison)
    forbid_training(monkeypatch)
    with pytest.raises(BadInput) as refused:
        compare.main(flags(small, comparison, flag, value))
    for name in ("--out", "none-seed0", "--run.overwrite true", *names):
        assert name in str(refused.value)
    assert weights(comparison) == before
    assert not [warning for warning in recwarn if "no effect" in str(warning.message)]  # rope is compared


def test_overwrite_does_every_run_again(comparison, small):
    before = weights(comparison)
    summary = compare.main(flags(small, comparison, "--run.overwrite", "true", "--run.steps", "3"))
    assert {run["steps"] for run in summary["runs"]} == {3}
    assert all(value[1] != before[name][1] for name, value in weights(comparison).items())


def test_a_scheme_or_seed_can_be_added_later(comparison, small):
    before = weights(comparison)
    summary = compare.main(flags(small, comparison, "--seeds", "0", schemes=("rope", "t5")))
    assert [run["scheme"] for run in summary["runs"]] == ["rope", "t5"]
    assert {name: value for name, value in weights(comparison).items() if name != "t5-seed0"} == before


def test_a_scheme_and_seed_named_twice_run_once(comparison, small, monkeypatch):
    forbid_training(monkeypatch)
    summary = compare.main(flags(small, comparison, "--seeds", "0", "0", schemes=("rope", "rope")))
    assert len(summary["runs"]) == 1


@pytest.mark.parametrize(
    ("name", "what"),
    [("shared_init_sha256", "shared first weights"), ("batches_sha256", "batches"), ("data_sha256", "corpus")],
)
def test_runs_of_one_seed_that_differ_in_more_than_their_scheme_are_refused(comparison, small, name, what):
    before = (comparison / "summary.json").read_bytes()
    edit_result(comparison / "alibi-seed1", **{name: "deadbeef" * 8})
    with pytest.raises(BadInput) as refused:
        compare.main(flags(small, comparison))
    for word in ("alibi-seed1", "none-seed1", what, "deadbeefdead"):
        assert word in str(refused.value)
    assert "seed0" not in str(refused.value)
    assert (comparison / "summary.json").read_bytes() == before


# ---- jobs ------------------------------------------------------------------------------------------------------------


def test_jobs_side_by_side_give_the_figures_of_one_at_a_time_and_one_that_fails_is_named(small, tmp_path, summary):
    argv = flags(small, tmp_path / "out", "--seeds", "0", "--jobs", "2", schemes=("none", "rope", "alibi"))
    blocked = tmp_path / "out" / "none-seed0"
    (blocked / ".lock").mkdir(parents=True)  # in the way of one run, which finds out only when it takes its folder
    (tmp_path / "thesis.tex").write_text("not ours")
    (tmp_path / "out" / "rope-seed0.log").symlink_to(tmp_path / "thesis.tex")
    said = f"--out {blocked} cannot be written (Is a directory): name a folder that can"
    for at_once in ("2", "1"):  # alike: the code is 2, the line has no word of processes
        with pytest.raises(BadInput) as refused:
            compare.main([*argv, "--jobs", at_once])
        assert str(refused.value) == said
        assert not (tmp_path / "out" / "summary.json").exists()
        for scheme in ("rope", "alibi"):  # the others are finished first
            assert read_result(tmp_path / "out" / f"{scheme}-seed0")["status"] == "finished"
        assert sorted(path.name for path in (tmp_path / "out").glob("*.log")) == ["alibi-seed0.log", "rope-seed0.log"]

    assert (tmp_path / "thesis.tex").read_text() == "not ours"
    shutil.rmtree(blocked)
    compare.main([*argv, "--jobs", "1"])
    ours = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [run["scheme"] for run in ours["runs"]] == ["none", "rope", "alibi"]
    for run in ours["runs"]:  # to the bit
        theirs = run_of(summary, run["scheme"], 0)
        same = run.keys() - {"seconds", "tokens_per_second"}
        assert {name: run[name] for name in same} == {name: theirs[name] for name in same}


def test_jobs_that_fail_are_named_and_end_with_code_3_and_the_same_line_however_many_run_at_a_time(
    small, tmp_path, at_the_shell
):
    lines = set()
    for at_once in ("1", "2"):
        argv = flags(small, tmp_path / at_once, "--run.learning_rate", "10", schemes=("alibi", "none"))
        argv += ["--run.weight_decay", "1000", "--model.init_std", "100", "--seeds", "0", "--jobs", at_once]
        outcome = at_the_shell(compare.main, argv)
        assert outcome.code == 3
        (line,) = outcome.err.splitlines()
        lines.add(line.partition(": ")[2].replace(str(tmp_path / at_once), "out"))
        assert not (tmp_path / at_once / "summary.json").exists()
    (line,) = lines
    assert "alibi-seed0 ended with code 3: " in line
    assert "; none-seed0 ended with code 3: " in line


@pytest.mark.parametrize("at_once", ["1", "2"])
@pytest.mark.parametrize(
    ("place", "more", "words"),
    [
        ("taken", [], r"^--out .*taken/rope-seed0 is a folder with other things in it"),
        ("run/inside", [], r"^--out .*inside/none-seed0 lies inside another run, .*run: "),
        ("L" * 300, [], r"^--out 'LLL.* has 300 bytes"),
        ("new", ["--run.batch_size", "1000000000000"], r"--run.batch_size 1000000000000, .* would need .* of memory"),
        ("new", ["--run.compile", "true"], r"--run.compile true needs a C\+\+ compiler"),
        ("new", ["--model.vocab_size", "100"], r"--model.vocab_size 100 is below"),
    ],
)
def test_what_a_run_would_refuse_is_refused_before_any_starts_however_many_run_at_a_time(
    small, tmp_path, monkeypatch, place, more, words, at_once
):
    (tmp_path / "taken" / "rope-seed0").mkdir(parents=True)
    (tmp_path / "taken" / "rope-seed0" / "thesis.tex").write_text("not ours")
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        (tmp_path / "run" / name).touch()
    monkeypatch.setattr(devices, "has_compiler", lambda: False)
    for starts in ("run_jobs", "run_here"):
        monkeypatch.setattr(compare, starts, lambda *_: pytest.fail("something started"))
    before = set(tmp_path.rglob("*"))
    with pytest.raises(BadInput, match=words):
        compare.main(flags(small, tmp_path / place, *more, "--jobs", at_once, schemes=("none", "rope")))
    assert set(tmp_path.rglob("*")) == before


@contextmanager
def endless(small: list[str], out: Path) -> Iterator[subprocess.Popen]:
    """A comparison of two long runs at a time, each of which has trained some steps; killed at the end."""
    steps = "1000000"
    more = ["--seeds", "0", "--jobs", "2", "--run.steps", steps, "--run.eval_every", steps]
    command = [sys.executable, REPOSITORY / "compare.py", *flags(small, out, *more, schemes=("rope", "none"))]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell's background jobs, and what they start, ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    logs = [out / name / "metrics.jsonl" for name in ("rope-seed0", "none-seed0")]
    try:
        deadline = time.monotonic() + 200
        while not all(log.exists() and log.stat().st_size > 1000 for log in logs):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        with suppress(ProcessLookupError):  # a test that fails leaves no runs either
            os.killpg(process.pid, signal.SIGKILL)


def assert_saved_and_ended(folders: list[Path]) -> None:
    for folder in folders:
        assert read_result(folder)["status"] == "interrupted"
        assert read_result(folder)["step"] == last_whole(folder).state["step"] >= 1
        size = (folder / "metrics.jsonl").stat().st_size
        time.sleep(0.1)
        assert (folder / "metrics.jsonl").stat().st_size == size  # nobody writes on


def test_runs_end_and_save_when_their_comparison_is_killed_and_a_second_one_is_refused_until_then(small, tmp_path):
    out = tmp_path / "out"
    folders = [out / "rope-seed0", out / "none-seed0"]
    with endless(small, out) as process:
        with pytest.raises(BadInput, match=f"--out {out} is being written by another process: wait until that has"):
            compare.main(flags(small, out, schemes=("rope", "none")))
        process.kill()  # kill -9: it cannot tell its runs
        process.wait()
        for folder in folders:  # each run holds its folder until it has ended
            with FileLock(folder / ".lock", timeout=200, fallback_to_soft=False):
                pass
        assert_saved_and_ended(folders)
    for folder in folders:
        assert "interrupted at step" in (out / f"{folder.name}.log").read_text()


def test_a_run_that_still_saves_is_waited_for_before_anything_is_done_and_then_refused_by_name(
    comparison, small, monkeypatch
):
    forbid_training(monkeypatch)
    held = FileLock(comparison / "rope-seed1" / ".lock", thread_local=False)
    held.acquire()
    monkeypatch.setattr(jobs, "PATIENCE", 0.3)
    monkeypatch.setattr(compare, "is_finished", lambda job: pytest.fail("not waited for"))
    with pytest.raises(BadInput, match=rf"--out {comparison}: the run rope-seed1 there is being written"):
        compare.main(flags(small, comparison))
    monkeypatch.undo()
    forbid_training(monkeypatch)
    release = threading.Timer(1.0, held.release)
    release.start()
    compare.main(flags(small, comparison))
    assert not held.is_locked
    release.join()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_comparison_stops_its_runs_and_they_save_and_say_how_far_they_got(small, tmp_path, number, code):
    out = tmp_path / "out"
    with endless(small, out) as process:
        os.killpg(process.pid, number)  # as a terminal or a cluster does: to the runs too, which then hear it twice
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert_saved_and_ended([out / "rope-seed0", out / "none-seed0"])


def test_more_jobs_than_runs_are_not_started(small, comparison, capsys, monkeypatch):
    forbid_training(monkeypatch)
    compare.main(flags(small, comparison, "--jobs", "50"))
    assert "8 at a time; 8 finished before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cores", "schemes", "at_once", "threads"),
    [(8, ("rope", "none"), 4, 2), (2, ("rope", "none", "alibi"), 3, 1), (1, ("rope",), 1, None)],
    ids=["more cores than runs", "a run of every scheme at a time", "one core"],
)
def test_all_schemes_train_at_a_time_and_share_the_cores(
    small, tmp_path, monkeypatch, cores, schemes, at_once, threads
):
    seen = {}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)

    def run_jobs(jobs, at_once, start, look):
        seen.update(jobs=jobs, at_once=at_once, looks=look.__self__)

    monkeypatch.setattr(compare, "run_jobs", run_jobs)
    monkeypatch.setattr(compare, "run_here", lambda jobs, work: seen.update(jobs=jobs, at_once=1))

    class FarEnough(Exception):
        pass

    def stop(jobs):
        raise FarEnough

    monkeypatch.setattr(compare.report, "summarise", stop)
    free = flags(small, tmp_path / "out", schemes=schemes)
    free[free.index("--jobs") : free.index("--jobs") + 2] = []
    free[free.index("--run.threads") : free.index("--run.threads") + 2] = []
    with pytest.raises(FarEnough):
        compare.main(free)
    assert seen["at_once"] == at_once
    assert at_once == 1 or (seen["looks"].jobs, seen["looks"].out) == (seen["jobs"], tmp_path / "out")
    assert {job.run.threads for job in seen["jobs"]} == {threads}
