"""Tasks: episodes whose answers a plain search finds, and accuracies that an oracle and a constant guess pin down.

.venv/bin/python -m pytest tests/test_tasks.py
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import compare
import data
import evaluate
import generate
import train
from harness import preparing, retrieval, scoring, tasks
from harness.runs import load_finished_run, read_result
from harness.tasks import CELLS, TASKS, TaskCorpus

CPU = torch.device("cpu")
ONE = ("copy", "reverse", "recall", "induction", "passkey")
TRAINED = 64
KEYS = ["scaling", "factor", "protocol", "length", "loss", "crop_loss", "accuracy", "trials", "distance", "tokens"]
SIGN = dict(zip(ONE, "><*~^", strict=True))
MORE = ["task", "depth", "token_accuracy", "crop_accuracy"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> list[str]:
    """Flags of a run on tasks of a fraction of a second: bytes for tokens, a tenth of the text for passages."""
    return [
        *("--data.corpus", "task:all", "--data.tokenizer", "bytes", "--data.max_bytes", "400000"),
        *("--data.cache", str(tmp_path_factory.mktemp("tasks-cache"))),
        *("--model.d_model", "16", "--model.n_layer", "1", "--model.n_head", "2", "--model.seq_len", str(TRAINED)),
        *("--run.steps", "5", "--run.batch_size", "4", "--run.eval_every", "5", "--run.eval_windows", "5"),
        *("--run.precision", "fp32", "--run.device", "cpu", "--run.threads", "1", "--run.wandb", "disabled"),
    ]


@pytest.fixture(scope="session")
def corpus_of(tiny) -> Callable[..., TaskCorpus]:
    def load(name: str = "all", seed: int = 0, seq_len: int = TRAINED) -> TaskCorpus:
        config = data.DataConfig(f"task:{name}", tokenizer="bytes", max_bytes=400_000, cache=tiny[7])
        return data.load(config, seed, 4, seq_len)

    return load


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a scheme's run on all tasks; only read, or copied first."""
    folders: dict[str, Path] = {}

    def folder(scheme: str) -> Path:
        if scheme not in folders:
            folders[scheme] = tmp_path_factory.mktemp("tasks") / scheme
            sharp = ["--model.init_std", "0.5", "--model.tie_embeddings", "false", "--run.learning_rate", "1e-9"]
            train.main([*tiny, *sharp, "--model.position", scheme, "--run.out", str(folders[scheme])])
        return folders[scheme]

    return folder


def solve(task: str, seen: list[str]) -> tuple[str, int]:
    """What comes next in an episode, found by search, and where that stands; seen has one symbol a token."""
    if task in ("copy", "reverse"):
        end = seen.index("=")
        start = next(i for i, symbol in enumerate(seen) if symbol not in "<>")
        done = len(seen) - 1 - end
        at = start + done if task == "copy" else end - 1 - done
    elif task == "passkey":
        asked = len(seen) - 1 - seen[::-1].index("@")
        (stated,) = [i for i, symbol in enumerate(seen) if symbol == "#" and seen[i + 1] == seen[asked + 1]]
        at = stated + len(seen) - asked
    else:
        at = seen.index(seen[-1], 0, len(seen) - 1) + 1
    return seen[at], at


def symbols(corpus: TaskCorpus, tokens) -> list[str]:
    return [corpus.decode([int(token)]) for token in tokens]


def training_episodes(corpus: TaskCorpus, task: str, length: int, count: int = 3) -> list[tasks.Episode]:
    key = np.array([5, length], np.uint64)
    return [corpus._episode(task, "train", length, key, row, evaluating=False) for row in range(count)]


# ---- episodes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ONE)
def test_a_plain_search_finds_every_answer_at_every_length(corpus_of, task):
    corpus = corpus_of(task)
    _, shortest, shortest_evaluated = TASKS[task]
    found = 0
    for length in [*range(shortest, 80), 128, 255, 257, 700]:
        episodes = training_episodes(corpus, task, length)
        if length >= shortest_evaluated:
            episodes += corpus.episodes(task, "validation", length, range(1))
        for episode in episodes:
            said = symbols(corpus, episode.tokens)
            assert len(said) == length + 1
            assert (episode.answer >= 0).any()
            for t in np.flatnonzero(episode.answer >= 0):
                answer, at = solve(task, said[:t])
                assert said[t] == answer
                if length >= shortest_evaluated:  # and asked for just once: there is one place it can be
                    assert episode.distance[t] == t - at or episode is not episodes[-1]
                found += 1
    assert found > 500


@pytest.mark.parametrize("task", ONE)
def test_only_answers_are_targets_and_inputs_are_the_tokens_before(corpus_of, task):
    corpus = corpus_of(task)
    episodes = corpus.episodes(task, "test", 96, range(4))
    inputs, targets = tasks.stack_episodes(episodes)
    assert inputs.shape == targets.shape == (4, 96)
    for episode, x, y in zip(episodes, inputs, targets, strict=True):
        assert x.tolist() == episode.tokens[:-1].tolist()
        wanted = [int(t) if a >= 0 else -100 for t, a in zip(episode.tokens, episode.answer, strict=True)]
        assert y.tolist() == wanted[1:]
        assert wanted[0] == -100
        assert y[-1] != -100  # the context is full when the last answer comes
    for step in range(5):
        x, y = corpus.batch(step)
        asked = y != -100
        assert 0 < asked.sum() < y.numel()
        following = torch.cat((x[:, 1:], y[:, -1:]), dim=1)
        assert torch.equal(y[asked], following[asked])


@pytest.mark.parametrize("task", ONE)
@pytest.mark.parametrize("length", [64, 100, 257])
def test_cells_and_distances_are_what_the_tokens_say(corpus_of, task, length):
    """Depth by a search of its own: where the first token of what is asked for stands in what there is to remember."""
    for episode in corpus_of(task).episodes(task, "validation", length, range(3)):
        said, scored = symbols(corpus_of(task), episode.tokens), episode.answer >= 0
        first = int(np.flatnonzero(scored)[0])
        for t in np.flatnonzero(scored):
            _, at = solve(task, said[:t])
            assert episode.distance[t] == t - at
            if task in ("copy", "reverse"):
                start, body = said.index("=") - first_string(said), first_string(said)
                place = at - start
            else:
                before = {"recall": 1, "induction": 2, "passkey": 2}[task]  # tokens from the questions' start
                body = first - before - 1  # without the sign
                place = stated_at(task, said, t, at) - 1
            assert episode.cell[t] == place * CELLS // body
        assert set(episode.cell[scored]) == set(range(CELLS))
        assert (episode.cell[~scored] == -1).all()
        assert (episode.distance[~scored] == -1).all()


def first_string(said: list[str]) -> int:
    return sum(symbol not in "<>" for symbol in said[: said.index("=")])


def stated_at(task: str, said: list[str], t: int, at: int) -> int:
    """Where the key, or the sign before a passkey's name, stands."""
    return at - 1 if task != "passkey" else max(i for i in range(at) if said[i] == "#")


def test_recall_has_keys_that_nobody_asks_for_and_other_letters_between(corpus_of):
    (episode,) = corpus_of("recall").episodes("recall", "validation", 256, range(1))
    said = symbols(corpus_of("recall"), episode.tokens)
    questions = 1 + 256 - 2 * 8
    body, asked = said[1:questions], set(said[questions::2])
    keys = [symbol for symbol in body if symbol.isupper()]
    assert len(keys) == len(set(keys)) == 12
    assert len(asked) == 8
    assert asked < set(keys)
    assert len(body) - 2 * len(keys) > 150


def test_a_letter_of_induction_that_is_asked_for_stood_once_before(corpus_of):
    (episode,) = corpus_of("induction").episodes("induction", "validation", 256, range(1))
    said = symbols(corpus_of("induction"), episode.tokens)
    asked = np.flatnonzero(episode.answer >= 0)
    assert len(asked) == 8
    for t in asked:
        assert said[: t - 1].count(said[t - 1]) == 1


@pytest.mark.parametrize("split", preparing.SPLITS)
def test_passkeys_lie_in_text_of_their_own_split(corpus_of, split):
    corpus = corpus_of("passkey")
    episodes = corpus.episodes("passkey", split, 300, range(3))
    if split == "train":
        episodes += training_episodes(corpus, "passkey", 300)
    texts = {name: corpus.tokens(name).astype(np.uint16).tobytes() for name in preparing.SPLITS}
    for episode in episodes:
        said = symbols(corpus, episode.tokens)
        body = episode.tokens[1 : said.index("@")].astype(np.uint16)
        stated = np.flatnonzero(body == corpus.encode("#")[0])
        passage = np.delete(body, (stated[:, None] + np.arange(7)).ravel())  # sign, name and five digits
        assert len(passage) > 100
        assert [name for name in preparing.SPLITS if passage.tobytes() in texts[name]] == [split]


def test_the_same_tokens_serve_every_tokenizer_and_decode_to_what_was_meant(tiny):
    config = data.DataConfig("task:copy", vocab_size=400, max_bytes=400_000, cache=tiny[7])
    corpus = data.load(config, 0, 4, TRAINED)
    assert corpus.vocab_size == 400
    (episode,) = corpus.episodes("copy", "validation", 64, range(1))
    said = corpus.decode(episode.tokens)
    before, after = said.lstrip(">").split("=")
    assert before == after
    assert len(before) == 31


# ---- draws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ONE, "all"])
def test_a_batch_is_a_pure_function_of_seed_and_step(corpus_of, name):
    one, again, other = corpus_of(name, 3), corpus_of(name, 3), corpus_of(name, 4)
    forwards = [one.batch(step) for step in range(6)]
    next(one.windows("validation", TRAINED))
    for step in reversed(range(6)):
        assert all(torch.equal(a, b) for a, b in zip(forwards[step], again.batch(step), strict=True))
        assert forwards[step][0].tolist() != other.batch(step)[0].tolist()
        assert step == 0 or forwards[step][0].tolist() != forwards[step - 1][0].tolist()


@pytest.mark.parametrize("name", ONE)
def test_lengths_in_training_vary_up_to_the_trained_one_and_a_step_keeps_its_tokens(corpus_of, name):
    corpus = corpus_of(name, seq_len=256)
    lengths = []
    for step in range(60):
        rows, T = corpus.batch(step)[0].shape
        assert rows % 4 == 0  # so that processes can share them
        assert 512 < rows * T <= 4 * 256
        lengths.append(T)
    assert TASKS[name].least_in_training <= min(lengths) <= 1.3 * TASKS[name].least_in_training
    assert 200 < max(lengths) <= 256
    assert len(set(lengths)) > 30


def test_the_longest_episodes_of_training_are_of_the_trained_length(corpus_of):
    corpus = corpus_of("copy", seq_len=24)
    assert {corpus.batch(step)[0].shape[1] for step in range(200)} == set(range(6, 25))


def test_a_mixture_trains_every_task_one_a_step(corpus_of):
    signs = [corpus_of("all").decode(corpus_of("all").batch(step)[0][0, :1].tolist()) for step in range(10)]
    assert signs == [*SIGN.values()] * 2


def test_episodes_of_evaluation_depend_on_task_split_and_length_and_on_no_seed(corpus_of):
    def drawn(name: str, seed: int, task: str, split: str, length: int) -> bytes:
        return b"".join(e.tokens.tobytes() for e in corpus_of(name, seed).episodes(task, split, length, range(4)))

    same = drawn("all", 0, "recall", "validation", 64)
    assert drawn("recall", 9, "recall", "validation", 64) == same
    others = {drawn("all", 0, task, split, n) for task in ONE for split in preparing.SPLITS for n in (64, 65)}
    assert len(others) == 30
    whole = corpus_of("all").episodes("copy", "validation", 64, range(6))
    parts = [e for i in range(6) for e in corpus_of("all").episodes("copy", "validation", 64, range(i, i + 1))]
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("task", ONE)
def test_evaluation_never_draws_what_training_draws(corpus_of, task):
    corpus = corpus_of(task)
    evaluated = {e.tokens.tobytes() for e in corpus.episodes(task, "validation", 64, range(100))}
    tested = {e.tokens.tobytes() for e in corpus.episodes(task, "test", 64, range(100))}
    drawn = {e.tokens.tobytes() for e in training_episodes(corpus, task, 64, 300)}
    assert (len(evaluated), len(tested), len(drawn)) == (100, 100, 300)
    assert not evaluated & drawn
    assert not evaluated & tested
    assert train.RunConfig(seed=2**63 - 1).seed < tasks.EVALUATION  # so no seed can make a key of evaluation


# ---- accuracy --------------------------------------------------------------------------------------------------------


def oracle(corpus: TaskCorpus, task: str, wrong: Callable[[int], bool] = lambda t: False):
    """A model that searches: logits (B, T, V) that are sure of the right answer, unless the place is to be wrong."""

    def model(tokens: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*tokens.shape, corpus.vocab_size)
        for row, line in enumerate(tokens.tolist()):
            said = symbols(corpus, line)
            for t in range(len(line)):
                try:
                    answer = corpus.encode(solve(task, said[: t + 1])[0])[0]
                except (ValueError, IndexError, StopIteration):
                    continue  # nothing is asked here
                logits[row, t, (answer + wrong(t)) % corpus.vocab_size] = 40
        return logits

    return model


def measured(corpus: TaskCorpus, task: str, model, length: int = 64, trials: int = 40) -> list[dict]:
    def figures(inputs, targets):
        return scoring.score_targets(model, inputs, targets, CPU, torch.no_grad)

    return retrieval.measure_accuracy(corpus, task, "validation", length, trials, figures)


@pytest.mark.parametrize("task", ONE)
def test_an_oracle_is_right_always_and_a_constant_never(corpus_of, task):
    corpus = corpus_of(task)
    for row in measured(corpus, task, oracle(corpus, task)):
        assert (row["accuracy"], row["token_accuracy"]) == (1, 1)
        assert row["loss"] < 1e-6
    guess = corpus.encode("e")[0]

    def constant(tokens):
        return torch.nn.functional.one_hot(torch.full_like(tokens, guess), corpus.vocab_size) * 9.0

    rows = measured(corpus, task, constant, trials=100)
    assert len(rows) == 1 + CELLS
    assert rows[0]["accuracy"] < 0.07
    assert rows[0]["loss"] > 5


def test_an_answer_with_one_wrong_token_is_wrong_as_a_whole(corpus_of):
    corpus = corpus_of("passkey")
    last_digit = 64 - 1  # the place before the last target
    whole, *quarters = measured(corpus, "passkey", oracle(corpus, "passkey", lambda t: t == last_digit))
    assert whole["accuracy"] == 0.75  # one key of four
    assert whole["token_accuracy"] == 0.95
    assert sum(q["accuracy"] * q["trials"] for q in quarters) == pytest.approx(0.75 * whole["trials"])
    corpus = corpus_of("copy")
    whole, *quarters = measured(corpus, "copy", oracle(corpus, "copy", lambda t: t == last_digit))
    assert whole["accuracy"] == 0
    assert [q["accuracy"] for q in quarters] == [1, 1, 1, 0]  # the wrong letter stood in the last quarter
    corpus = corpus_of("reverse")
    _, *quarters = measured(corpus, "reverse", oracle(corpus, "reverse", lambda t: t == last_digit))
    assert [q["accuracy"] for q in quarters] == [0, 1, 1, 1]


@pytest.mark.parametrize("length", [24, 47, 64, 96, 128])
def test_every_cell_has_the_trials_asked_for_and_says_its_depth_and_distance(corpus_of, length):
    corpus = corpus_of("all")

    def figures(inputs, targets):
        return torch.zeros(*inputs.shape, 2, dtype=torch.float64)

    for task in [task for task in ONE if length >= TASKS[task].least_in_evaluation]:
        whole, *quarters = retrieval.measure_accuracy(corpus, task, "validation", length, 200, figures)
        assert [q["depth"] for q in quarters] == [0.125, 0.375, 0.625, 0.875]
        assert (whole["depth"], whole["distance"]) == (None, None)
        assert all(row["trials"] >= 200 for row in (whole, *quarters))
        assert whole["trials"] < 1000
        assert sum(q["tokens"] for q in quarters) == whole["tokens"]
        distances = [q["distance"] for q in quarters]
        if task == "copy":
            assert set(distances) == {(length - 1) // 2 + 1}
        else:
            assert distances == sorted(distances, reverse=True)
            assert distances[0] - distances[-1] > length / 5


# ---- a run on tasks --------------------------------------------------------------------------------------------------


def test_train_says_what_makes_sense_and_its_result_is_json_with_null_for_bits(tiny, tmp_path, capsys):
    outcome = train.main([*tiny, "--run.out", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert "task:all: copy, reverse, recall, induction, passkey" in said
    assert "no episode twice" in said
    assert "of the tokens right" in said
    assert "nan" not in said
    assert "bits per byte" not in said
    assert said.count("right: ") == 5
    assert f"python evaluate.py {tmp_path / 'run'}" in said
    assert np.isfinite(outcome["val_loss"])

    def refuse(name):
        pytest.fail(f"{name} is no JSON")

    result = json.loads((tmp_path / "run" / "result.json").read_text(), parse_constant=refuse)
    assert result["bits_per_byte"] is None
    assert 0 <= result["val_accuracy"] <= 1
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line, parse_constant=refuse)["bits_per_byte"] is None


def test_parts_of_a_batch_give_the_gradient_of_the_whole(tiny, tmp_path):
    """However few rows go through at once: the loss is divided by all scored targets of the step."""
    weights = []
    for rows in ("1", "4"):
        folder = tmp_path / rows
        train.main([*tiny, "--run.micro_batch_size", rows, "--run.steps", "2", "--run.out", str(folder)])
        weights.append(load_finished_run(folder).model.blocks[0].mlp.down.weight)
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-5)


def test_generate_shows_a_trial_of_every_task_and_goes_on_from_a_prompt(trained, capsys):
    trained("rope")
    capsys.readouterr()
    generate.main([str(trained("rope"))])
    said = capsys.readouterr().out
    assert [task for task in ONE if f"{task}: {SIGN[task]}" in said] == list(ONE)
    assert said.count("  right: ") == said.count("  model: ") == 5
    generate.main([str(trained("rope")), "--prompt", ">abc=", "--tokens", "3"])
    assert capsys.readouterr().out.startswith(">abc=")


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory) -> dict:
    """What one evaluation left: two scalings, inside the trained length, at its end and past it."""
    out = tmp_path_factory.mktemp("evaluated")
    flags = ["--lengths", "64", "100", "--scalings", "none", "ntk", "--trials", "8"]
    evaluate.main([str(trained("rope")), *flags, "--out", str(out / "a.json"), "--picture", str(out / "a.png")])
    assert (out / "a.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((out / "a.json").read_text())


def test_evaluate_writes_the_promised_fields_of_every_task_length_and_quarter(evaluated):
    assert evaluated["trained_length"] == TRAINED
    for row in evaluated["results"]:
        assert list(row) == KEYS + MORE
        assert row["protocol"] == "retrieval"
        assert row["trials"] >= 8
        assert (row["distance"] is None) == (row["depth"] is None)
    named = [(row["task"], row["length"], row["scaling"], row["depth"]) for row in evaluated["results"]]
    depths = (None, 0.125, 0.375, 0.625, 0.875)
    assert len(named) == len(set(named))
    assert set(named) == {(t, n, s, d) for t in ONE for n in (64, 100) for s in ("none", "ntk") for d in depths}
    factors = {(row["scaling"], row["length"]): row["factor"] for row in evaluated["results"]}
    assert factors == {("none", 64): None, ("none", 100): None, ("ntk", 64): 1, ("ntk", 100): 100 / 64}


def test_scalings_change_losses_past_the_trained_length_and_the_crop_stays(evaluated):
    rows = [row for row in evaluated["results"] if row["depth"] is None]
    for task in ONE:
        none, ntk = ({r["length"]: r for r in rows if (r["task"], r["scaling"]) == (task, s)} for s in ("none", "ntk"))
        assert none[64]["loss"] == pytest.approx(ntk[64]["loss"])
        assert none[64]["loss"] == pytest.approx(none[64]["crop_loss"])
        assert none[64]["accuracy"] == none[64]["crop_accuracy"]
        assert abs(none[100]["loss"] - ntk[100]["loss"]) > 1e-4
        assert none[100]["crop_loss"] == ntk[100]["crop_loss"]
        assert abs(none[100]["loss"] - none[100]["crop_loss"]) > 1e-4


def test_figures_are_those_of_the_model_itself(evaluated, trained, corpus_of):
    model = load_finished_run(trained("rope")).model
    for task in ("recall", "passkey"):
        count = retrieval.count_episodes(task, 100, 8)
        inputs, targets = tasks.stack_episodes(corpus_of("all").episodes(task, "validation", 100, range(count)))
        with torch.no_grad():
            logits, cropped = model(inputs), model(inputs[:, -TRAINED:])
        (row,) = [
            r
            for r in evaluated["results"]
            if (r["task"], r["length"], r["scaling"], r["depth"]) == (task, 100, "none", None)
        ]
        asked = targets != -100
        nats = torch.nn.functional.cross_entropy(logits[asked], targets[asked])
        assert row["loss"] == pytest.approx(nats.item(), rel=1e-5)
        assert row["tokens"] == asked.sum()
        assert row["token_accuracy"] == pytest.approx((logits.argmax(-1) == targets)[asked].double().mean().item())
        assert not asked[:, :-32].any()  # all within the last half of the trained length: one cropped window
        asked, targets = asked[:, -TRAINED:], targets[:, -TRAINED:]
        nats = torch.nn.functional.cross_entropy(cropped[asked], targets[asked])
        assert row["crop_loss"] == pytest.approx(nats.item(), rel=1e-5)


def test_lengths_go_from_a_quarter_to_eight_times_where_an_episode_fits(tiny, trained, tmp_path):
    folder = tmp_path / "one"
    train.main([*tiny, "--data.corpus", "task:recall", "--run.out", str(folder)])
    flags = ["--trials", "1", "--picture", str(tmp_path / "a.png")]
    results = evaluate.main([str(folder), *flags])["results"]
    assert list(dict.fromkeys(row["length"] for row in results)) == [32, 64, 128, 256, 512]  # and not 16
    assert {row["task"] for row in results} == {"recall"}
    assert {row["scaling"] for row in results} == {"none"}


def test_past_the_end_of_learned_positions_there_is_nothing_but_the_crop(trained, tmp_path, capsys):
    flags = ["--lengths", "64", "128", "--trials", "1", "--picture", str(tmp_path / "a.png")]
    results = evaluate.main([str(trained("learned")), *flags])["results"]
    for row in results:
        assert (row["scaling"], row["factor"]) == (None, None)
        ended = row["length"] == 128
        for name in ("loss", "accuracy", "token_accuracy", "trials", "tokens"):
            assert (row[name] is None) == ended
        assert row["crop_accuracy"] is not None
    assert "n/a" in capsys.readouterr().out
    assert (tmp_path / "a.png").exists()


# ---- a comparison on tasks -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def comparison(tiny, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("comparison") / "out"
    argv = [*tiny, "--schemes", "learned", "rope", "--multiples", "0.25", "1", "2", "--jobs", "1", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "TRIALS", 4)
        compare.main(argv)
    return out


def test_schemes_see_the_same_batches_and_trials_and_accuracies_stand_in_the_summary(comparison):
    learned, rope = json.loads((comparison / "summary.json").read_text())["runs"]
    for name in ("batches_sha256", "shared_init_sha256", "data_sha256"):
        assert learned[name] == rope[name]
    for run in (learned, rope):
        assert run["bits_per_byte"] is None
        assert list(run["accuracy_by_length"]) == list(ONE)
        for by_length in run["accuracy_by_length"].values():
            assert list(by_length) == list(run["loss_by_length"]) == ["16", "64", "128"]
            assert by_length["16"] is None  # too short for an episode
            assert 0 <= by_length["64"] <= 1
            assert (by_length["128"] is None) == (run["scheme"] == "learned")
        assert run["loss_by_length"]["16"] is None
        assert (run["loss_by_length"]["128"] is None) == (run["scheme"] == "learned")
        cells = [row for row in run["accuracy"] if row["length"] == 64 and row["depth"] is not None]
        assert len(cells) == len(ONE) * CELLS
        assert all(row["trials"] >= 4 and row["distance"] > 0 for row in cells)
    trials = [
        [(r["task"], r["length"], r["trials"], r["distance"]) for r in run["accuracy"]] for run in (learned, rope)
    ]
    assert [a for a in trials[0] if a[1] == 64] == [b for b in trials[1] if b[1] == 64]


def test_the_report_shows_accuracies_by_task_and_na_past_the_wall(comparison):
    report = (comparison / "report.md").read_text()
    assert "](accuracy.png)" in report
    assert (comparison / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.splitlines() if line.startswith("|")]
    for task in ONE:
        for scheme in ("learned", "rope"):
            (row,) = [row for row in rows if row[:2] == [task, scheme]]
            assert (row[-1] == "n/a") == (scheme == "learned")
            assert row[-2] != "n/a"
    assert "predicts text" not in report
    assert "nan" not in report.lower()


def test_a_finished_comparison_on_tasks_is_not_repeated(comparison, tiny, monkeypatch, tmp_path):
    out = Path(shutil.copytree(comparison, tmp_path / "out"))
    monkeypatch.setattr(train, "train", lambda *args: pytest.fail("trained again"))
    monkeypatch.setattr(compare, "measure_accuracy", lambda *args: pytest.fail("measured again"))
    before = (out / "summary.json").read_text()
    argv = [*tiny, "--schemes", "learned", "rope", "--multiples", "0.25", "1", "2", "--jobs", "1", "--out", str(out)]
    compare.main(argv)
    assert json.loads((out / "summary.json").read_text())["runs"] == json.loads(before)["runs"]


# ---- bad input -------------------------------------------------------------------------------------------------------

BAD = {
    "--data.corpus task:recal": "--data.corpus 'task:recal' is none of task:copy, task:reverse, task:recall",
    "--data.corpus task:revers": "did you mean task:reverse?",
    "--data.corpus task:": "--data.corpus 'task:' is none of task:copy",
    "--data.corpus task:chess": "--data.corpus 'task:chess' is none of",
    "--data.column body": "--data.column 'body' means nothing to --data.corpus task:all",
    "--data.subset x": "--data.subset 'x' means nothing",
    "--data.split test": "--data.split 'test' means nothing",
    "--model.seq_len 63": "--model.seq_len 63 is too short for --data.corpus task:all: 64 is enough",
    "--data.corpus task:copy --model.seq_len 23": "24 is enough",
}


@pytest.mark.parametrize(("flags", "says"), BAD.items())
@pytest.mark.parametrize("main", [train.main, compare.main], ids=["train", "compare"])
def test_bad_input_gets_one_line_and_no_folder(main, tiny, tmp_path, at_the_shell, flags, says):
    out = "--run.out" if main is train.main else "--out"
    outcome = at_the_shell(main, [*tiny, *flags.split(), out, str(tmp_path / "new")])
    assert (outcome.code, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert says in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "says"),
    {
        "--protocols fixed": "--protocols fixed: ",
        "--protocols retrieval sliding": "--protocols sliding: ",
        "--protocols retrieva": "did you mean retrieval?",
        "--trials 0": "--trials 0 must be at least 1",
        "--trials many": "--trials many must be a valid integer",
        "--stride 4": "--stride 4 does not apply",
        "--lengths 63": "--lengths 63 must be at least 64 for task:all",
        "--lengths 64 90000": "--lengths 90000 is longer",
        "--rope.scaling yran": "did you mean yarn?",
    }.items(),
)
def test_evaluate_refuses_in_one_line_what_a_run_on_tasks_does_not_have(trained, at_the_shell, flags, says):
    folder = trained("rope")
    outcome = at_the_shell(evaluate.main, [str(folder), *flags.split()])
    assert (outcome.code, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert says in line
    assert not (folder / "evaluate.png").exists()


@pytest.mark.parametrize("flags", ["--protocols retrieval", "--trials 300"])
def test_retrieval_asked_of_a_run_on_text_is_refused_in_one_line(finished, at_the_shell, flags):
    outcome = at_the_shell(evaluate.main, [str(finished("rope")), *flags.split()])
    assert (outcome.code, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert flags in line
    assert "was trained on" in line


def test_a_run_on_text_is_told_nothing_of_accuracy(finished):
    assert "val_accuracy" not in read_result(finished("rope"))


def test_sampling_options_that_a_trial_does_not_use_are_said_in_one_line(trained, at_the_shell):
    outcome = at_the_shell(generate.main, [str(trained("rope")), "--temperature", "2", "--seed", "1"])
    assert outcome.code == 0
    (line,) = outcome.err.splitlines()
    assert "--temperature does not apply" in line
    assert "give a --prompt" in line
