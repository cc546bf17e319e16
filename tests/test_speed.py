"""Speed: what the figures mean, the arithmetic of cost, and every benchmark at a tiny size. Nothing here is timed.

.venv/bin/python -m pytest tests/test_speed.py
"""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
import yaml

import data
import train
from experiments import cost, speed
from experiments.speed import Row, compared, take_turns, times_better, verdict
from harness import devices
from harness.messages import BadInput
from model import ModelConfig, Transformer
from positions import SCHEMES

REPOSITORY = Path(train.__file__).parent
KEYS = {"bench", "case", "unit", "ours", "peers", "limit", "ratio", "ratio_low", "ratio_high"}
TINY = ["--d_model", "16", "--n_layer", "1", "--seq_len", "16", "--batch_size", "2", "--repeats", "2"]
TINY += ["--seconds", "0.001", "--threads", "1", "--compile", "false", "--precision", "fp32"]


def rows_of(argv: list[str]) -> dict[str, Row]:
    """The rows of a tiny run, by case."""
    return {row["case"]: Row(**row) for row in speed.main([*argv[:1], *TINY, *argv[1:]])["rows"]}


# ---- what a ratio means ----------------------------------------------------------------------------------------------


def test_a_ratio_above_one_means_ours_is_better_for_speeds_and_for_costs():
    assert times_better([200.0], [100.0], "tokens/s")["ratio"] == 2
    for unit in ("ms", "s", "MiB", "bits/byte"):
        assert times_better([100.0], [200.0], unit)["ratio"] == 2


def test_a_ratio_is_the_median_of_the_rounds_pairs_and_the_span_their_tenth_and_ninetieth_percentile():
    ours, theirs = [1.0, 1.0, 1.0, 2.0, 1.0], [1.0, 2.0, 3.0, 8.0, 5.0]  # pairs: 1, 2, 3, 4, 5
    assert times_better(ours, theirs, "s") == pytest.approx({"ratio": 3, "ratio_low": 1.4, "ratio_high": 4.6})


def test_a_row_is_compared_with_the_peer_of_the_best_median():
    rounds = {"ours": [4.0, 4.0, 4.0], "slow": [1.0, 1.0, 9.0], "fast": [2.0, 2.0, 2.0], "limit": [8.0, 8.0, 8.0]}
    row = compared("train", "case", "tokens/s", rounds, "ours", ["slow", "fast", "absent"], "limit")
    assert row == Row("train", "case", "tokens/s", 4.0, {"slow": 1.0, "fast": 2.0}, 8.0, 2.0, 2.0, 2.0)
    row = compared("rope", "case", "ms", rounds, "ours", ["slow", "fast"])
    assert (row.ratio, row.limit) == (0.25, None)  # for a cost the best peer is the slow one of before


def test_without_a_peer_there_is_no_ratio():
    row = compared("train", "case", "s", {"ours": [1.0, 2.0]}, "ours", ["absent"])
    assert (row.peers, row.ratio, row.ratio_low, row.ratio_high, verdict(row)) == ({}, None, None, None, "")


@pytest.mark.parametrize(
    ("ours", "shown"), [([1.0, 1.1, 0.9], False), ([0.5, 0.5, 1.5], False), ([0.5, 0.6, 0.7], True), ([2, 2, 3], True)]
)
def test_no_difference_is_claimed_where_the_span_holds_one(ours, shown):
    row = compared("rope", "case", "ms", {"ours": ours, "peer": [1.0, 1.0, 1.0]}, "ours", ["peer"])
    assert ("no difference shown" not in verdict(row)) == shown
    assert f"{row.ratio:.2f}x" in verdict(row)


def test_all_contenders_take_turns():
    calls = []
    contenders = {name: lambda name=name: calls.append(name) for name in "abc"}
    rounds = take_turns(contenders, repeats=4, seconds=0)
    assert calls == ["a", "a", "b", "b", "c", "c", *"abcabcabcabc"]  # two of each are not counted
    assert {name: len(taken) for name, taken in rounds.items()} == {"a": 4, "b": 4, "c": 4}


def test_the_table_shows_the_best_peer_and_the_share_of_the_limit():
    rate = Row("train", "a", "tokens/s", 300.0, {"x": 200.0, "y": 100.0}, 1000.0, 1.5, 1.4, 1.6)
    time_ = Row("rope", "b", "ms", 3.0, {"x": 20.0, "y": 10.0}, 2.0, 3.3, 3.0, 4.0)
    _, _, first, second = speed.table([rate, time_])
    assert [cell.strip() for cell in first.split("|")[1:-1]] == [
        *("train", "a", "300 tokens/s", "200 tokens/s, x", "1.50x (1.40 to 1.60)", "30% of it")
    ]
    assert [cell.strip() for cell in second.split("|")[1:-1]] == [
        *("rope", "b", "3 ms", "10 ms, y", "3.30x (3.00 to 4.00)", "1.5 times it")
    ]


# ---- every benchmark, tiny -------------------------------------------------------------------------------------------


def test_the_file_has_rows_of_exactly_the_stated_keys(tmp_path):
    out = tmp_path / "bench.json"
    speed.main(["rope", "train", *TINY, "--out", str(out)])
    content = json.loads(out.read_text())
    assert {"rows", "rounds", "missing", "versions", "commit"} <= set(content)
    for row in content["rows"]:
        assert set(row) == KEYS
        assert row["ours"] == row["ours"]
        assert math.isfinite(row["ours"])
        assert (row["ratio"] is None) == (not row["peers"])
    by_bench = {name: [row for row in content["rows"] if row["bench"] == name] for name in ("rope", "train")}
    assert [row["bench"] for row in content["rows"][:2]] == ["rope", "rope"]  # in the order asked for
    assert all("transformers" in row["peers"] and row["limit"] > 0 for row in by_bench["rope"])
    ours, cost_of_rope = by_bench["train"]
    assert {"transformers eager", "transformers sdpa"} <= set(ours["peers"])
    assert ours["unit"] == cost_of_rope["unit"] == "tokens/s"
    assert list(cost_of_rope["peers"]) == ["none eager"]
    last = content["rounds"][-1]
    assert times_better(last["rope eager"], last["none eager"], "tokens/s")["ratio"] == cost_of_rope["ratio"]
    assert cost_of_rope["ratio_low"] <= cost_of_rope["ratio"] <= cost_of_rope["ratio_high"]
    for row, rounds in zip(content["rows"], content["rounds"], strict=True):  # the ratio can be had from the rounds
        if row["bench"] == "rope":
            best = min(row["peers"], key=row["peers"].get)
            ours = next(name for name in rounds if name in row["case"])
            assert times_better(rounds[ours], rounds[best], "ms")["ratio"] == row["ratio"]


def test_generation_is_timed_beside_transformers():
    (row,) = rows_of(["generate", "--tokens", "[3]"]).values()
    assert row.unit == "tokens/s"
    assert set(row.peers) == {"transformers"}
    assert row.limit > 0


def test_ours_and_transformers_generate_the_same_tokens_from_the_same_weights():
    """So that the speeds compared are those of the same work: greedy, cache and all."""
    config = ModelConfig(vocab_size=64, d_model=32, n_layer=2, n_head=2, rope=speed.RopeConfig(layout="half-split"))
    ours, theirs = Transformer(config).eval().double(), speed.llama(config, length=64).eval().double()
    weights = theirs.state_dict()
    with torch.no_grad():
        for i, block in enumerate(ours.blocks):
            of = f"model.layers.{i}."
            qkv = [weights[f"{of}self_attn.{name}_proj.weight"] for name in "qkv"]
            block.attention.qkv.weight.copy_(torch.cat(qkv))
            block.attention.out.weight.copy_(weights[f"{of}self_attn.o_proj.weight"])
            gate_up = [weights[f"{of}mlp.{name}_proj.weight"] for name in ("gate", "up")]
            block.mlp.gate_up.weight.copy_(torch.cat(gate_up))
            block.mlp.down.weight.copy_(weights[f"{of}mlp.down_proj.weight"])
        ours.embedding.weight.copy_(weights["model.embed_tokens.weight"])
    prompt = [1, 2, 3]
    their_tokens = theirs.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0, 3:].tolist()
    assert list(speed.sample(ours, prompt, 20, temperature=0, seed=0)) == their_tokens


@pytest.mark.parametrize("maker", [speed.llama, speed.x_transformer], ids=["transformers", "x-transformers"])
@pytest.mark.parametrize(("d_model", "n_layer"), speed.SHAPES)
def test_a_peer_has_our_shape(maker, d_model, n_layer):
    if maker is speed.x_transformer:
        pytest.importorskip("x_transformers")
    config = ModelConfig(vocab_size=speed.ENTRIES, d_model=d_model, n_layer=n_layer)
    theirs = maker(config)
    biases = sum(p.numel() for name, p in theirs.named_parameters() if name.endswith("bias"))
    assert sum(p.numel() for p in theirs.parameters()) - biases == cost.parameters(config)
    assert biases == (2 * config.d_ff * n_layer if maker is speed.x_transformer else 0)
    tokens = torch.zeros(1, 4, dtype=torch.long)
    assert speed.Logits(theirs)(tokens).shape == (1, 4, speed.ENTRIES)


def test_preparing_is_timed_beside_tokenizers_and_its_memory_told(monkeypatch):
    monkeypatch.setattr(speed, "apart", lambda work, *arguments: speed.Apart(work(*arguments), 1.0, 3.0, 2.0))
    rows = rows_of(["data", "--megabytes", "[0.05, 0.1]", "--repeats", "1"])
    assert set(rows["preparing 0.05 MB"].peers) == {"tokenizers"}
    assert {case for case, row in rows.items() if row.unit == "MiB"} == {
        *("anonymous memory, preparing 0.05 MB", "anonymous memory, preparing 0.1 MB")
    }


def test_text_is_made_of_verses_in_another_order_every_time(tmp_path):
    verses = next(data.read_kjv())["text"].splitlines(keepends=True)
    speed.write_text(tmp_path / "text", 0.2)
    written = (tmp_path / "text").read_bytes().splitlines(keepends=True)
    assert 0.2e6 <= (tmp_path / "text").stat().st_size < 0.21e6
    assert set(written) <= set(verses)
    assert written != verses[: len(written)]


def numbers_of_a_megabyte() -> int:
    """64 MiB of memory that is really used."""
    return int(torch.ones(16 << 20).sum())


def test_work_apart_tells_its_own_memory():
    taken = speed.apart(numbers_of_a_megabyte)
    assert taken.result == 16 << 20
    assert 60 < taken.peak - taken.before < 500
    assert taken.anonymous is None or taken.anonymous < taken.peak


def test_the_page_of_costs_has_every_series_and_the_estimates(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "apart", lambda work, *arguments: speed.Apart(work(*arguments), 1.0, 3.0, None))
    page = tmp_path / "cost.md"
    rows = rows_of(["length", "--lengths", "[16, 32]", "--megabytes", "[0.1]", "--report", str(page)])
    assert {"evaluating one window, length 16 tokens", "preparing, text 0.1 MB"} <= set(rows)
    assert all(row.ratio is None for row in rows.values())
    text = page.read_text()
    for what in cost.WORK:
        assert f", by {what}\n" in text
    assert text.endswith(cost.estimates() + "\n")
    assert text.count("| power") == 4


def test_one_round_shows_no_difference_however_far_apart_the_two_are():
    row = compared("train", "case", "s", {"ours": [1.0], "theirs": [9.0]}, "ours", ["theirs"])
    assert verdict(row) == "9.00x, once: no difference shown"


def test_each_side_trains_for_the_seconds_asked_whatever_its_rehearsal_said():
    runs = []

    def run(steps: int) -> tuple[float, str]:
        runs.append(steps)
        return 2 + 0.1 * steps, f"run {len(runs)}"  # a start that weighs less in a longer run

    steps, seconds, made = speed.fitted(run, 10, 60)
    assert made == f"run {len(runs)}"
    assert seconds == pytest.approx(60, rel=1 / 30)
    assert seconds == 2 + 0.1 * steps
    assert runs[0] == 10
    assert runs[-1] == steps


def test_a_machine_that_keeps_no_pace_ends_after_four_runs_as_they_came_out():
    speeds = iter([1, 2, 1, 2, 1])  # seconds a step
    assert speed.fitted(lambda steps: (steps * next(speeds), "made"), 10, 60) == (30, 30, "made")


def test_the_trainer_reads_our_batches_in_order(corpus_file, tmp_path):
    corpus = data.load(data.DataConfig(str(corpus_file), tokenizer="bytes", cache=str(tmp_path)), 0, 3, 16)
    rows = iter(speed.Rows(corpus))
    for step in range(3):
        theirs = torch.stack([next(rows)["input_ids"] for _ in range(3)])
        assert torch.equal(theirs, corpus.batch(step)[0])


def test_comparing_trains_both_and_times_the_comparison(small, monkeypatch):
    pytest.importorskip("accelerate")
    whole = speed.compare.main
    monkeypatch.setattr(speed.compare, "main", lambda argv: whole([*argv, "--schemes", "rope", "--jobs", "1"]))
    flags = " ".join(small[:-4])  # precision, device, threads and wandb: bench sets its own
    asked = ["compare", *TINY, "--train_seconds", "0.05", "--rehearsal", "2"]
    content = speed.main([*asked, "--flags", f"{flags} --run.precision fp32"])
    bits, seconds = (Row(**row) for row in content["rows"])
    assert set(bits.peers) == {"transformers Trainer"}
    assert bits.unit == "bits/byte"
    assert 0 < bits.ours < 20
    assert seconds.case == "the default comparison"
    assert seconds.ours > 0


# ---- what is missing, and what cannot be -----------------------------------------------------------------------------


def test_a_peer_that_is_not_installed_is_said_to_be_missing_once_and_the_rest_goes_on(monkeypatch, capsys):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in speed.PEERS.values() else there(name))
    content = speed.main(["rope", "train", *TINY])
    said = capsys.readouterr().out
    for library in ("transformers", "x-transformers", "rotary-embedding-torch"):
        assert said.count(f"\n{library} is not installed") + said.startswith(f"{library} is not installed") == 1
    assert set(content["missing"]) == {"transformers", "x-transformers", "rotary-embedding-torch"}
    peers = [list(row["peers"]) for row in content["rows"]]
    assert [each for each in peers if each] == [["none eager"]]  # ours without positions needs no library
    assert all((row["ratio"] is None) == (not row["peers"]) and row["ours"] for row in content["rows"])


def test_without_a_compiler_nothing_compiled_is_measured_and_that_is_said(monkeypatch, capsys):
    monkeypatch.setattr(speed.devices, "has_compiler", lambda: False)
    rows = rows_of(["rope", "--compile", "true"])
    assert "no C++ compiler" in capsys.readouterr().out
    assert rows
    assert not any("compiled" in case for case in rows)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["trian"], ["trian", "did you mean train"]),
        (["train", "--repeats", "0"], ["--repeats 0", "at least 1"]),
        (["train", "--seconds", "0"], ["--seconds 0", "above 0"]),
        (["train", "--threads", "0"], ["--threads 0", "at least 1"]),
        (["train", "--batch_size", "none"], ["--batch_size", "none", "int"]),
        (["train", "--d_model", "130"], ["--d_model 130", "128", "132"]),
        (["train", "--precision", "fp16"], ["--precision", "fp16", "bf16"]),
        (["train", "--widht", "3"], ["--widht"]),
        (["generate", "--tokens", "[]"], ["--tokens", "above 0"]),
        (["data", "--megabytes", "[0]"], ["--megabytes", "above 0"]),
        (["length", "--lengths", "[16]"], ["--lengths [16]", "two or more"]),
        (["rope", "--out", "/nowhere/bench.json"], ["--out /nowhere/bench.json", "cannot be written"]),
        (["length", "--report", "/nowhere/cost.md"], ["--report /nowhere/cost.md", "cannot be written"]),
    ],
    ids=" ".join,
)
def test_bad_input_is_refused_before_anything_is_measured(argv, words, monkeypatch, at_the_shell):
    for name in speed.BENCHES:
        monkeypatch.setitem(speed.BENCHES, name, lambda asked: pytest.fail("something was measured"))
    outcome = at_the_shell(speed.main, argv)
    assert outcome.code == 2
    assert len(outcome.err.strip().splitlines()) == 1
    for word in words:
        assert word in outcome.err


def test_every_benchmark_but_the_slow_one_runs_by_default(monkeypatch):
    ran = []
    for name in speed.BENCHES:
        monkeypatch.setitem(speed.BENCHES, name, lambda asked, name=name: ran.append(name) or [])
    speed.main([])
    assert ran == ["train", "rope", "generate", "data", "length"]


# ---- the arithmetic --------------------------------------------------------------------------------------------------


def test_parameters_of_the_124m_model_by_hand():
    """GPT-2's shape. SwiGLU at 8/3 C costs what its MLP at 4 C did: 3 x 768 x 2048 = 2 x 768 x 3072."""
    by_hand = 12 * (4 * 768 * 768 + 3 * 768 * 2048) + 25 * 768 + 50304 * 768
    assert by_hand == 123_587_328
    assert cost.parameters(cost.GPU) == by_hand
    # GPT-2 itself: 124,439,808 with biases, LayerNorm's second half, 1,024 positions and 50,257 rows
    gpt2 = by_hand - (50304 - 50257) * 768 + 1024 * 768 + 25 * 768 + 12 * (3 * 768 + 768 + 3072 + 768)
    assert gpt2 == 124_439_808


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("n_kv_head", [4, 2])
def test_parameters_are_those_of_the_model(tied, n_kv_head):
    config = ModelConfig(vocab_size=50, d_model=32, n_layer=3, n_kv_head=n_kv_head, tie_embeddings=tied)
    assert cost.parameters(config) == sum(p.numel() for p in Transformer(config).parameters())


def test_operations_by_hand():
    config = ModelConfig(vocab_size=10, d_model=4, n_layer=2, n_head=2, d_ff=8)
    N = 2 * (3 * 4 * 4 + 4 * 4 + 3 * 4 * 8) + 10 * 4
    assert cost.matrix_parameters(config) == N
    assert cost.forward_flops(config, 1) == 2 * N + 2 * 2 * 4 * 2  # one key: 2 x 4 for the score, 2 x 4 for the value
    assert cost.training_flops(config, 7) == 6 * N + 6 * 2 * 4 * 8


def test_operations_are_what_pytorch_counts():
    """Where positions might be anything every query meets all T keys, and not the (T + 1) / 2 that it may see."""
    from torch.utils.flop_counter import FlopCounterMode

    config = ModelConfig(vocab_size=40, d_model=32, n_layer=2, n_head=2, attention="explicit")
    model, T = Transformer(config), 12
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, T, dtype=torch.long), torch.arange(T)).sum().backward()
    unmasked = 6 * config.n_layer * config.d_model * 2 * T
    assert counter.get_total_flops() == T * (6 * cost.matrix_parameters(config) + unmasked)


def test_memory_by_hand():
    config = ModelConfig(vocab_size=10, d_model=4, n_layer=2, n_head=2, d_ff=8)
    assert cost.cache_bytes(config, tokens=3, width=2) == 2 * 2 * 4 * 3 * 2
    cache = Transformer(config).new_cache(1, 3)
    assert cost.cache_bytes(config, 3, 4) == 4 * (cache.keys.numel() + cache.values.numel())
    assert cost.activation_bytes(config, 5) == 5 * (2 * 2 * (6 * 4 + 2 * 4 + 4 * 8) + 4 * 4 + 10 * 10)
    shared = cost.budget(config, devices=4, tokens_at_once=5)
    assert (shared.weights, shared.gradients, shared.optimizer) == tuple(
        n * cost.parameters(config) / 4 for n in (4, 4, 8)
    )
    assert shared.total == sum((shared.weights, shared.gradients, shared.optimizer, shared.activations))


def test_time_falls_with_devices_and_grows_with_tokens():
    seconds = cost.training_seconds(cost.GPU, 1e9, 1)
    assert seconds == pytest.approx(cost.training_flops(cost.GPU, 1024) * 1e9 / (989e12 * 0.4))
    assert cost.training_seconds(cost.GPU, 4e9, 2) == pytest.approx(2 * seconds)


def test_growth_finds_the_power():
    x = [1.0, 2.0, 4.0, 8.0]
    for power in (0, 1, 2):
        assert cost.growth(x, [3 * value**power for value in x]) == pytest.approx(power, abs=1e-9)


# ---- fast and plain paths --------------------------------------------------------------------------------------------


def losses(corpus: data.Corpus, compile_: bool = False, **how) -> list[float]:
    """Losses of 50 training steps of a tiny model."""
    model = Transformer(ModelConfig(vocab_size=corpus.vocab_size, d_model=32, n_layer=2, n_head=2, seq_len=16, **how))
    optimizer = train.make_optimizer(model, train.RunConfig(), speed.CPU)
    _, autocast = devices.pick_precision("fp32", speed.CPU)
    out = []
    for step in range(50):
        out.append(train.gradients(model, *corpus.batch(step), 4, speed.CPU, autocast))
        optimizer.step()
        optimizer.zero_grad()
    return out


@pytest.fixture
def tiny_corpus(corpus_file, tmp_path) -> data.Corpus:
    return data.load(data.DataConfig(str(corpus_file), tokenizer="bytes", cache=str(tmp_path / "cache")), 0, 4, 16)


def test_explicit_and_fused_attention_have_the_same_losses_over_50_steps(tiny_corpus):
    explicit, fused = (losses(tiny_corpus, attention=attention) for attention in ("explicit", "fused"))
    assert fused == pytest.approx(explicit, abs=2e-3)
    assert explicit[-1] < explicit[0] - 0.5  # it learns


def test_complex_and_real_rotation_have_the_same_losses_over_50_steps(tiny_corpus, monkeypatch):
    made, complex_ = [], torch.complex
    monkeypatch.setattr(torch, "complex", lambda *parts: made.append(1) or complex_(*parts))
    fast, calls = losses(tiny_corpus), len(made)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # the compiler's form, in real numbers
    plain = losses(tiny_corpus)
    assert calls == len(made) == 50 * 2 * 2  # two ways indeed: a step turns q and k in both layers
    assert fast == pytest.approx(plain, abs=2e-3)


def test_compiled_generation_writes_the_same_tokens_with_one_graph_for_the_prompt_and_one_for_all_others():
    """Were the length of the cache compiled in, every token would be compiled anew. The graphs are run as they are."""
    graphs = []
    model = Transformer(ModelConfig(vocab_size=64, d_model=32, n_layer=2, n_head=2)).eval()
    compiled = torch.compile(model, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    ours, theirs = ([*speed.sample(m, [1, 2, 3], 30, temperature=0, seed=0)] for m in (compiled, model))
    assert ours == theirs
    assert len(graphs) == 2


# ---- presets ---------------------------------------------------------------------------------------------------------


def preset(name: str) -> tuple[data.DataConfig, ModelConfig, train.RunConfig]:
    path = str(REPOSITORY / "configs" / f"{name}.yaml")
    return train.parse(["--config", path], train.make_parser("train.py", ""))[1:]


def test_the_gpu_preset_is_124m_parameters_on_fineweb_edu_compiled_in_bf16():
    texts, shape, run_ = preset("gpu")
    config = train.replace(shape, vocab_size=texts.vocab_size)
    assert (texts.corpus, texts.vocab_size) == ("HuggingFaceFW/fineweb-edu", cost.GPT2_ENTRIES)
    assert 123e6 < cost.parameters(config) < 125e6
    assert config == cost.GPU  # what the page of costs speaks of
    assert (run_.compile, run_.precision, run_.device) == (True, "bf16", "cuda")
    assert run_.steps * run_.batch_size * shape.seq_len == pytest.approx(20 * cost.parameters(config), rel=0.03)


def test_the_laptop_preset_needs_neither_network_nor_bf16_nor_a_compiler():
    texts, shape, run_ = preset("laptop")
    assert (texts.corpus, run_.precision, run_.compile) == ("kjv", "fp32", False)
    assert cost.parameters(train.replace(shape, vocab_size=texts.vocab_size)) < 10e6


@pytest.mark.parametrize("name", ["gpu", "laptop"])
def test_a_step_of_a_preset_at_reduced_size(name, small, tmp_path):
    stated = yaml.safe_load((REPOSITORY / "configs" / f"{name}.yaml").read_text())
    assert stated
    out = tmp_path / "run"
    reduced = ["--run.steps", "1", "--run.micro_batch_size", "2", "--run.compile", "false", "--run.out", str(out)]
    finished = train.main(["--config", str(REPOSITORY / "configs" / f"{name}.yaml"), *small, *reduced])
    assert (finished["status"], finished["step"]) == ("finished", 1)


def test_the_estimates_in_the_page_of_costs_are_those_of_the_arithmetic():
    assert (REPOSITORY / "results" / "COST.md").read_text().endswith(cost.estimates() + "\n")


def test_bad_shapes_are_bad_input():
    with pytest.raises(BadInput, match="--d_model 130"):
        speed.main(["train", "--d_model", "130"])


def test_every_scheme_costs_the_same_matrices():
    for scheme in SCHEMES:
        config = ModelConfig(vocab_size=20, d_model=16, n_layer=1, n_head=2, position=scheme, seq_len=8)
        model = Transformer(config)
        own = sum(p.numel() for p in model.position.parameters())
        assert sum(p.numel() for p in model.parameters()) - own == cost.parameters(config)
