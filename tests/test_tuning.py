"""Tuning: a run that starts from another's weights, at another length or scaling, or with learned factors.

.venv/bin/python -m pytest tests/test_tuning.py
"""

import hashlib
import itertools
import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F

import compare
import data
import evaluate
import generate
import train
from harness import scoring, tuning
from harness.messages import BadInput
from harness.provenance import shared_sha256
from harness.run_options import make_run_parser, parse_run
from harness.runs import load_finished_run
from harness.scalings import as_longrope
from harness.tuning import extend_table
from model import ModelConfig, Transformer
from rope import OPTIONS, RopeConfig, frequencies
from train import RunConfig

LEARNABLE = sorted(set(OPTIONS) - {"dynamic", "proportional"})
LISTS = {"short_factor": [1.0, 1.5, 2.0, 4.0], "long_factor": [1.0, 2.0, 3.0, 8.0]}


def parsed(*flags: str) -> tuple[data.DataConfig, ModelConfig, RunConfig]:
    return parse_run(list(flags), make_run_parser("train.py", ""))[1:]


def tuned(old: Path, out: Path, *flags: str) -> Path:
    own = ["--run.steps", "2", "--run.wandb", "disabled", "--run.device", "cpu", "--run.threads", "1"]
    train.main(["--run.init_from", str(old), *own, "--run.out", str(out), *flags])
    return out


def section(folder: Path, name: str) -> dict:
    return yaml.safe_load((folder / "config.yaml").read_text())[name]


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def losses(folder: Path, split: str = "train") -> list[float]:
    events = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [event["loss"] for event in events if event["split"] == split]


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(259, shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def rope(finished) -> Path:
    return finished("rope")


# ---- whose values count ----------------------------------------------------------------------------------------------


def test_the_old_config_lies_under_files_and_flags_wherever_init_from_stands(rope, tmp_path):
    (tmp_path / "a.yaml").write_text("model:\n  seq_len: 40\nrun:\n  batch_size: 2\n  weight_decay: 0.3\n")
    start, file, flags = (
        ["--run.init_from", str(rope)],
        ["--config", str(tmp_path / "a.yaml")],
        ["--run.batch_size", "8"],
    )
    seen = set()
    for order in itertools.permutations((start, file, flags)):
        data_config, model, run = parsed(*itertools.chain(*order))
        assert (data_config.tokenizer, data_config.vocab_size) == ("bytes", 300)  # the old run's, not the defaults
        assert (model.d_model, model.n_layer, model.vocab_size) == (16, 1, 259)
        assert (run.learning_rate, run.beta2) == (0.01 / 3, 0.95)  # a third of the old rate, which had fallen to zero
        assert (model.seq_len, run.weight_decay) == (40, 0.3)  # the file's, not the old run's
        assert run.batch_size == (2 if order.index(file) > order.index(flags) else 8)  # the later of the two
        seen.add(run.batch_size)
    assert seen == {2, 8}


def test_init_from_in_a_config_file_is_the_same(rope, tmp_path):
    (tmp_path / "a.yaml").write_text(f"run:\n  init_from: {rope}\nmodel:\n  seq_len: 40\n")
    assert parsed("--config", str(tmp_path / "a.yaml")) == parsed("--run.init_from", str(rope), "--model.seq_len", "40")
    assert parsed("--config", str(tmp_path / "a.yaml"), "--run.init_from", "null")[1].d_model == 128


def test_print_config_shows_the_outcome(rope, capsys):
    with pytest.raises(SystemExit):
        train.main(["--print_config", "--run.init_from", str(rope), "--model.seq_len", "64"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["model"]["d_model"], shown["model"]["seq_len"]) == (16, 64)
    assert shown["model"]["rope"]["original_length"] == 16
    assert (shown["run"]["learning_rate"], shown["run"]["init_from"]) == (0.01 / 3, str(rope))


def test_what_belongs_to_one_run_or_its_machine_does_not_lie_under(rope):
    old, (*_, run) = RunConfig(**section(rope, "run")), parsed("--run.init_from", str(rope))
    aside = {"out", "name", "init_from", *set(asdict(run)).difference(tuning.KEPT_IN_TUNING)}
    for name, value in asdict(run).items():
        if name not in aside:
            assert value == (old.learning_rate / 3 if name == "learning_rate" else getattr(old, name))
        elif name not in ("out", "name", "init_from"):
            assert value == getattr(RunConfig(), name), name
    assert (run.steps, old.steps) == (RunConfig().steps, 40)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ([], "rope-16"),
        (["--model.seq_len", "64"], "rope-64"),
        (["--model.seq_len", "64", "--model.rope.scaling", "yarn", "--model.rope.factor", "4"], "rope-64-yarn"),
        (["--model.rope.learn_factors", "true"], "rope-16-factors"),
        (["--run.name", "mine"], "mine"),
    ],
)
def test_a_tuned_run_has_a_name_of_its_own(rope, flags, name):
    *_, run = parsed("--run.init_from", str(rope), *flags)
    assert (run.name, run.out) == (name, f"runs/{name}")


def test_a_tuned_run_made_again_from_its_config_yaml_has_the_same_weights(rope, tmp_path):
    flags = ["--model.seq_len", "32", "--model.rope.scaling", "linear", "--model.rope.factor", "2"]
    first = tuned(rope, tmp_path / "first", *flags)
    train.main(["--config", str(first / "config.yaml"), "--run.out", str(tmp_path / "again")])
    assert result(tmp_path / "again")["val_loss"] == result(first)["val_loss"]
    same = [(folder / "model.safetensors").read_bytes() for folder in (first, tmp_path / "again")]
    assert same[0] == same[1]


def test_options_of_the_old_scaling_give_way_to_another_scaling(rope, tmp_path):
    flags = ["--model.rope.scaling", "yarn", "--model.rope.factor", "2", "--model.rope.beta_fast", "8"]
    yarn = tuned(rope, tmp_path / "yarn", "--model.seq_len", "32", *flags)
    _, model, _ = parsed("--run.init_from", str(yarn), "--model.rope.scaling", "none")
    assert (model.rope.scaling, model.rope.factor, model.rope.beta_fast) == ("none", None, None)
    _, model, _ = parsed("--run.init_from", str(yarn))
    assert (model.rope.scaling, model.rope.factor, model.rope.beta_fast) == ("yarn", 2.0, 8.0)
    with pytest.warns(UserWarning, match=r"--model\.rope\.factor 2 is the old run's, for 32 tokens"):
        parsed("--run.init_from", str(yarn), "--model.seq_len", "64")


# ---- whose weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["rope", "alibi", "t5", "sinusoidal"])
def test_training_starts_from_the_old_weights(finished, tmp_path, scheme, recwarn):
    old, folder = (
        load_finished_run(finished(scheme)),
        tuned(finished(scheme), tmp_path / "new", "--model.seq_len", "32"),
    )
    found = result(folder)
    weights = (finished(scheme) / "model.safetensors").read_bytes()
    assert found["shared_init_sha256"] == shared_sha256(old.model)
    assert found["init_from"] == str(finished(scheme))
    assert found["init_from_sha256"] == hashlib.sha256(weights).hexdigest()
    inputs, targets = data.load(old.data, 0, 4, 32).batch(0)
    longer = Transformer(replace(old.model_config, seq_len=32))
    longer.load_state_dict(old.model.state_dict())
    expected = F.cross_entropy(longer(inputs).flatten(0, 1), targets.flatten()).item()
    assert losses(folder)[0] == pytest.approx(expected, rel=1e-5)
    assert not [w for w in recwarn if "means nothing" in str(w.message)]


def test_a_run_from_first_values_says_nothing_of_other_weights(rope):
    assert "init_from" not in result(rope)


def test_the_original_length_stays_on_record_through_two_generations(rope, tmp_path):
    first = tuned(rope, tmp_path / "32", "--model.seq_len", "32")
    flags = ["--model.rope.scaling", "yarn", "--model.rope.factor", "4", "--model.seq_len", "64"]
    second = tuned(first, tmp_path / "64", *flags)
    for folder, length in ((first, 32), (second, 64)):
        assert section(folder, "model")["seq_len"] == length
        assert section(folder, "model")["rope"]["original_length"] == 16
    _, model, _ = parsed("--run.init_from", str(second), "--model.rope.original_length", "24")
    assert model.rope.original_length == 24
    content = evaluate.main([str(second), "--rope.scaling", "linear", "--lengths", "64", "128"])
    assert content["trained_length"] == 64
    assert [row["factor"] for row in content["results"]] == [4, 4]  # the run's own, not 1 and 2


def test_a_run_tuned_with_yarn_at_a_longer_length_learns(rope, tmp_path):
    flags = ["--model.seq_len", "64", "--model.rope.scaling", "yarn", "--model.rope.factor", "4", "--run.steps", "30"]
    folder = tuned(rope, tmp_path / "yarn", *flags, "--run.eval_every", "30")
    found = losses(folder)
    assert found[0] < 3.5  # not the loss of first values, ln 259
    assert sum(found[-5:]) / 5 < found[0] - 0.2


@pytest.mark.parametrize("changes", [["--data.max_bytes", "12000"], ["--data.corpus", "other.txt"]])
def test_another_text_is_read_with_the_old_tokenizer(small, tmp_path, text, monkeypatch, changes):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.txt").write_text(text.replace("God", "gods"))
    train.main([*small, "--data.tokenizer", "bpe", "--run.out", "old"])
    tuned(Path("old"), Path("new"), *changes)
    assert (tmp_path / "new" / "tokenizer.json").read_text() == (tmp_path / "old" / "tokenizer.json").read_text()
    assert section(Path("new"), "data")["tokenizer"] == "old/tokenizer.json"
    with pytest.raises(BadInput, match=r"--data\.tokenizer .*old/tokenizer\.json"):
        tuned(Path("old"), Path("none"), "--data.vocab_size", "290")
    assert not Path("none").exists()


def test_a_text_that_changed_on_disk_does_not_bring_another_tokenizer_in(small, tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(text)
    train.main([*small, "--data.corpus", "text.txt", "--data.tokenizer", "bpe", "--run.out", "old"])
    (tmp_path / "text.txt").write_text(text.replace("God", "gods"))
    with pytest.raises(BadInput, match=r"--data\.tokenizer .*old/tokenizer\.json"):
        tuned(Path("old"), Path("new"))
    assert not Path("new").exists()
    tuned(Path("old"), Path("new"), "--data.tokenizer", "old/tokenizer.json")


def test_a_run_cannot_replace_the_one_it_starts_from(rope):
    before = (rope / "model.safetensors").read_bytes()
    with pytest.raises(BadInput, match=r"--run\.out .* --run\.init_from"):
        tuned(rope, rope, "--run.overwrite", "true")
    assert (rope / "model.safetensors").read_bytes() == before


def test_damaged_settings_are_refused_by_name(rope, tmp_path):
    shutil.copytree(rope, tmp_path / "old")
    sections = yaml.safe_load((rope / "config.yaml").read_text())
    for value in ("many", -1):
        sections["run"]["learning_rate"] = value
        (tmp_path / "old" / "config.yaml").write_text(yaml.safe_dump(sections))
        with pytest.raises(BadInput, match=r"--run\.init_from .*config\.yaml is damaged"):
            parsed("--run.init_from", str(tmp_path / "old"))


# ---- learned positions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["repeat", "interpolate"])
@pytest.mark.parametrize("length", [17, 32, 40])
def test_learned_positions_grow_in_the_way_that_was_stated(finished, tmp_path, way, length):
    old = load_finished_run(finished("learned")).model.position.table.detach()  # (16, C)
    flags = ["--model.seq_len", str(length), "--run.extend_learned", way, "--run.learning_rate", "1e-30"]
    table = load_finished_run(tuned(finished("learned"), tmp_path / "new", *flags)).model.position.table.detach()
    for p in range(length):
        if way == "repeat":
            expected = old[p % 16]
        else:
            place = p * 15 / (length - 1)
            below = min(int(place), 14)
            expected = old[below] + (place - below) * (old[below + 1] - old[below])
        torch.testing.assert_close(table[p], expected, atol=1e-6, rtol=1e-5)


def test_interpolation_keeps_the_first_and_the_last_vector_and_takes_a_table_of_one():
    old = torch.randn(5, 3)
    longer = extend_table(old, 12, "interpolate")
    assert torch.equal(longer[[0, -1]], old[[0, -1]])
    assert torch.equal(extend_table(old[:1], 12, "interpolate"), old[:1].expand(12, 3))


def test_a_shorter_learned_run_cuts_the_table(finished, tmp_path):
    old = load_finished_run(finished("learned")).model.position.table
    flags = ["--model.seq_len", "8", "--run.learning_rate", "1e-30"]
    table = load_finished_run(tuned(finished("learned"), tmp_path / "new", *flags)).model.position.table
    torch.testing.assert_close(table, old[:8])


# ---- learned factors -------------------------------------------------------------------------------------------------


def model_of(scaling: str = "none", learn: bool = True, **options) -> Transformer:
    """A small rope model whose frequencies count, with 4 pairs a head."""
    factor = {"factor": 4.0} if "factor" in set.union(*OPTIONS[scaling]) else {}
    lists = LISTS if scaling == "longrope" else {}
    rope = RopeConfig(scaling=scaling, original_length=16, learn_factors=learn, **factor, **lists, **options)
    shape = {"vocab_size": 259, "d_model": 16, "n_layer": 2, "n_head": 2, "seq_len": 64}
    return Transformer(ModelConfig(**shape, rope=rope, init_std=0.2))


def shaken(model: Transformer) -> Transformer:
    """The model with factors that are far from 1."""
    with torch.no_grad():
        model.position.log_factor.copy_(torch.tensor([0.3, -0.5, 0.8, 1.2]))
    return model


@pytest.mark.parametrize("scaling", LEARNABLE)
def test_learned_factors_start_at_exactly_the_frequencies_of_the_scaling(scaling):
    with_factors, without = model_of(scaling), model_of(scaling, learn=False)
    assert torch.equal(with_factors.position.log_factor, torch.zeros(4))
    assert torch.equal(with_factors(tokens(2, 40)), without(tokens(2, 40)))
    assert shared_sha256(with_factors) == shared_sha256(without)
    assert sum(p.numel() for p in with_factors.position.parameters()) == 4


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_the_factor_divides_the_frequency_of_its_pair(fraction):
    model = model_of("yarn", fraction=fraction)
    pairs = len(model.position.log_factor)
    assert pairs == 4 * fraction
    with torch.no_grad():
        model.position.log_factor.copy_(torch.linspace(-1, 1, pairs))
    theta, attention_factor = frequencies(model.config.rope, 8, 40)
    angle = torch.arange(40)[:, None] * theta / torch.linspace(-1, 1, pairs).double().exp()
    cos, sin = model.position.angles(torch.arange(40), torch.float64)
    assert cos.dtype == torch.float64
    torch.testing.assert_close(cos, attention_factor * angle.cos(), atol=2e-6, rtol=0)
    torch.testing.assert_close(sin, attention_factor * angle.sin(), atol=2e-6, rtol=0)


@pytest.mark.parametrize("attention", ["explicit", "fused"])
def test_the_gradient_of_the_factors_is_that_of_finite_differences(attention):
    model = shaken(model_of("yarn")).double()
    model.config = replace(model.config, attention=attention)
    inputs, targets = tokens(2, 21)[:, :-1], tokens(2, 21)[:, 1:]

    def loss() -> torch.Tensor:
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    loss().backward()
    theirs, step = [], 1e-5
    with torch.no_grad():
        for i in range(4):
            sides = []
            for sign in (1, -1):
                model.position.log_factor[i] += sign * step
                sides.append(loss().item())
                model.position.log_factor[i] -= sign * step
            theirs.append((sides[0] - sides[1]) / (2 * step))
    ours = model.position.log_factor.grad
    assert ours.abs().min() > 1e-6
    torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("scaling", LEARNABLE)
@pytest.mark.parametrize("length", [12, 40])
def test_the_lists_written_out_turn_as_the_learned_factors_do(scaling, length):
    model = shaken(model_of(scaling))
    fixed = Transformer(replace(model.config, rope=as_longrope(model.position, 64)))
    weights = model.state_dict()
    del weights["position.log_factor"]
    fixed.load_state_dict(weights)
    with torch.no_grad():
        ours, theirs = fixed(tokens(2, length)), model(tokens(2, length))
        plain = model_of(scaling, learn=False)(tokens(2, length))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)  # float32's rounding
    assert (plain - theirs).abs().max() > 0.01  # the factors are no trifle


def test_the_attention_factor_written_out_is_the_one_trained_with():
    assert as_longrope(model_of("linear").position, 64).attention_factor == 1.0
    assert as_longrope(model_of("yarn").position, 64).attention_factor == pytest.approx(0.1 * math.log(4) + 1)


@pytest.mark.parametrize("scaling", LEARNABLE)
def test_cached_equals_full_with_learned_factors(scaling):
    model, seen = shaken(model_of(scaling)).eval(), tokens(2, 40)
    with torch.no_grad():
        full = model(seen)
        cache = model.new_cache(2, 40)
        parts = [model(part, cache=cache) for part in seen.split([10, *[1] * 30], dim=1)]
    for at, part in zip([slice(0, 10), *(slice(i, i + 1) for i in range(10, 40))], parts, strict=True):
        # past the original length longrope turns by its other list, so only what was asked last is the full pass
        expected = model(seen[:, : at.stop])[:, at].detach() if scaling == "longrope" else full[:, at]
        torch.testing.assert_close(part, expected, atol=2e-5, rtol=1e-5)


def test_weight_decay_does_not_pull_on_the_factors():
    model = shaken(model_of())
    optimizer = train.make_optimizer(model, RunConfig(learning_rate=0.1, weight_decay=0.5))
    before = model.position.log_factor.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(model.position.log_factor, before)


@pytest.fixture(scope="module")
def factors(finished, tmp_path_factory) -> Path:
    """The rope run tuned at twice its length with learned factors over linear."""
    flags = ["--model.seq_len", "32", "--model.rope.scaling", "linear", "--model.rope.factor", "2"]
    flags += ["--model.rope.learn_factors", "true"]
    flags += ["--run.steps", "12", "--run.warmup", "0", "--run.learning_rate", "0.01"]
    return tuned(finished("rope"), tmp_path_factory.mktemp("factors") / "rope-32-linear-factors", *flags)


def test_factors_change_in_training_and_are_counted_as_the_schemes(factors, finished):
    learned = load_finished_run(factors).model.position.log_factor
    assert learned.abs().min() > 1e-4
    assert result(factors)["position_parameters"] == 4
    assert result(factors)["shared_init_sha256"] == shared_sha256(load_finished_run(finished("rope")).model)


def test_longrope_yaml_makes_the_same_model_of_the_same_weights(factors, tmp_path):
    learned = load_finished_run(factors)
    lists = factors / "longrope.yaml"
    folder = tuned(factors, tmp_path / "fixed", "--config", str(lists), "--run.learning_rate", "1e-30")
    fixed = load_finished_run(folder)
    rope = fixed.model_config.rope
    assert (rope.scaling, rope.learn_factors, rope.original_length, rope.attention_factor) == ("longrope", False, 16, 1)
    assert rope.short_factor == rope.long_factor
    expected = (2 * learned.model.position.log_factor.detach().double().exp()).tolist()
    assert rope.short_factor == pytest.approx(expected, rel=1e-12)
    with torch.no_grad():
        for length in (12, 32, 70):
            ours, theirs = (run.model(tokens(2, length)) for run in (fixed, learned))
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


def test_only_a_run_that_learned_factors_writes_lists_and_overwriting_removes_them(rope, factors, tmp_path):
    assert not (rope / "longrope.yaml").exists()
    shutil.copytree(factors, tmp_path / "run")
    flags = ["--config", str(factors / "longrope.yaml"), "--run.overwrite", "true"]
    assert not (tuned(factors, tmp_path / "run", *flags) / "longrope.yaml").exists()


def test_further_tuning_goes_on_from_the_learned_factors(factors, tmp_path):
    folder = tuned(factors, tmp_path / "more", "--run.learning_rate", "1e-30")
    assert section(folder, "model")["rope"]["learn_factors"] is True
    ours, theirs = (load_finished_run(run).model.position.log_factor for run in (folder, factors))
    torch.testing.assert_close(ours, theirs)


def test_learned_factors_are_never_dropped_in_silence(factors, tmp_path):
    with pytest.raises(BadInput, match=r"--model\.rope\.learn_factors false .*longrope\.yaml"):
        tuned(factors, tmp_path / "new", "--model.rope.learn_factors", "false")
    with pytest.raises(BadInput, match=r"--model\.rope\.fraction 0\.5 rotates 2 pairs"):
        tuned(factors, tmp_path / "new", "--model.rope.fraction", "0.5")
    assert not (tmp_path / "new").exists()


def test_generate_goes_on_from_a_run_with_learned_factors(factors, capsys):
    generate.main([str(factors), "--prompt", "in the", "--tokens", "50", "--temperature", "0"])
    model, ids = load_finished_run(factors).model, [byte + 3 for byte in b"in the"]
    for _ in range(5):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert capsys.readouterr().out.encode().startswith(bytes(i - 3 for i in ids))


def test_evaluate_keeps_the_learned_factors_under_every_scaling(factors, capsys):
    def loss(*flags: str) -> dict[str | None, float]:
        content = evaluate.main([str(factors), "--lengths", "64", *flags])
        return {row["scaling"]: row["loss"] for row in content["results"]}

    run = load_finished_run(factors)
    corpus = data.load(run.data, 0, 4, 32)
    ends = [*scoring.cut_fixed(corpus, "validation", 64, [64, 32])]

    def by_hand(rope: RopeConfig, keep: bool) -> float:
        model = Transformer(replace(run.model_config, rope=rope)).eval()
        model.load_state_dict({k: v for k, v in run.model.state_dict().items() if keep or k != "position.log_factor"})
        nats, count = 0.0, 0
        with torch.no_grad():
            for inputs, targets in ends:
                nats += F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum").item()
                count += int((targets != -100).sum())
        return nats / count

    own = run.model_config.rope
    yarn = replace(own, scaling="yarn", factor=3.0)
    assert loss()["linear"] == pytest.approx(by_hand(own, True), rel=1e-5)
    assert loss("--rope.scaling", "yarn", "--rope.factor", "3")["yarn"] == pytest.approx(by_hand(yarn, True), rel=1e-5)
    without = loss("--rope.learn_factors", "false")["linear"]
    assert without == pytest.approx(by_hand(replace(own, learn_factors=False), False), rel=1e-5)
    assert without != pytest.approx(loss()["linear"], rel=1e-5)
    several = loss("--scalings", "linear", "ntk", "yarn", "--rope.factor", "3")
    assert several["yarn"] == pytest.approx(by_hand(yarn, True), rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--rope.scaling", "dynamic"], r"--rope\.learn_factors true does not go with rope\.scaling dynamic"),
        (["--scalings", "none", "proportional"], r"--rope\.learn_factors true does not go .* proportional"),
        (["--rope.fraction", "0.5"], r"--rope\.fraction 0\.5 does not fit the 4 learned factors"),
    ],
)
def test_evaluate_refuses_what_learned_factors_cannot_be_under(factors, flags, says):
    with pytest.raises(BadInput, match=says):
        evaluate.main([str(factors), "--lengths", "64", *flags])


def test_evaluate_refuses_to_learn_factors(rope):
    with pytest.raises(BadInput, match=r"--rope\.learn_factors true: .* has learned none"):
        evaluate.main([str(rope), "--rope.learn_factors", "true"])


def test_a_scheme_that_does_not_rotate_warns_of_factors_and_has_none(small, tmp_path):
    flags = ["--model.position", "alibi", "--model.rope.learn_factors", "true", "--run.out", str(tmp_path / "run")]
    with pytest.warns(UserWarning, match=r"--model\.rope\.\* has no effect on alibi"):
        train.main([*small, *flags])
    assert result(tmp_path / "run")["position_parameters"] == 0


# ---- comparisons -----------------------------------------------------------------------------------------------------


def test_a_comparison_finished_before_there_were_learned_factors_is_still_finished(small, tmp_path):
    flags = [*small, "--schemes", "rope", "--jobs", "1", "--multiples", "1", "--out", str(tmp_path)]
    compare.main(flags)
    config = tmp_path / "rope-seed0" / "config.yaml"
    sections = yaml.safe_load(config.read_text())
    del sections["model"]["rope"]["learn_factors"], sections["run"]["init_from"], sections["run"]["extend_learned"]
    config.write_text(yaml.safe_dump(sections, sort_keys=False))
    weights = tmp_path / "rope-seed0" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    compare.main(flags)
    assert weights.stat().st_mtime_ns == before
    with pytest.raises(BadInput, match=r"model\.rope"):
        compare.main([*flags, "--model.rope.learn_factors", "true"])
