"""python -m pytest tests/test_data.py"""

import dataclasses
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import httpx
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import data
from data import DataConfig
from harness import byte_level, corpora, preparing
from harness.byte_level import SPECIAL_TOKENS
from harness.messages import BadInput

REPOSITORY = Path(data.__file__).parent
SENTENCE = "In the beginning God created the heaven and the earth, and it's 1,189 chapters; naïve 文字 stay."
WORDS = SENTENCE.split()


def prose(n_words: int, seed: int = 0) -> str:
    """Random words from a short list, with the odd double space and empty line."""
    draw = np.random.default_rng(seed)
    gaps = draw.choice([" ", "\n", "  ", "\r\n\r\n"], n_words, p=[0.9, 0.05, 0.03, 0.02])
    return "".join(word + gap for word, gap in zip(draw.choice(WORDS, n_words), gaps, strict=True))


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def load(tmp_path: Path, corpus: str, seed: int = 0, batch_size: int = 4, seq_len: int = 16, **options) -> data.Corpus:
    options = {"vocab_size": 300, "cache": str(tmp_path / "cache"), **options}
    return data.load(DataConfig(corpus, **options), seed, batch_size, seq_len)


def text_of(corpus: data.Corpus, split: str) -> str:
    return corpus.decode(corpus.tokens(split))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> data.Corpus:
    folder = tmp_path_factory.mktemp("prose")
    return load(folder, write(folder / "prose.txt", prose(6000)))


@pytest.fixture(scope="session")
def plain_bytes(tmp_path_factory) -> data.Corpus:
    folder = tmp_path_factory.mktemp("bytes")
    return load(folder, write(folder / "prose.txt", prose(500)), tokenizer="bytes")


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_batches_are_a_function_of_seed_and_step(corpus):
    seeded = [seeded_copy(corpus, seed) for seed in (0, 0, 1)]
    forward = [seeded[0].batch(step)[0] for step in range(5)]
    backward = [seeded[1].batch(step)[0] for step in reversed(range(5))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert len({tuple(batch.flatten().tolist()) for batch in forward}) == 5
    assert not torch.equal(seeded[0].batch(3)[0], seeded[2].batch(3)[0])


def seeded_copy(corpus: data.Corpus, seed: int) -> data.Corpus:
    return data.Corpus(corpus.name, Path(corpus.tokens("train").filename).parent, seed, 4, 16)


def test_batches_do_not_touch_the_global_generators(corpus):
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    corpus.batch(0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


def test_a_batch_holds_windows_of_the_training_split_and_their_next_tokens(corpus):
    inputs, targets = corpus.batch(7)
    assert inputs.shape == targets.shape == (4, 16)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    train = np.lib.stride_tricks.sliding_window_view(corpus.tokens("train"), 17)
    for row in torch.cat([inputs, targets[:, -1:]], 1).numpy():
        assert (train == row).all(1).any()


def test_every_window_of_the_training_split_can_be_drawn(tmp_path):
    source = write(tmp_path / "a.txt", "".join(map(chr, range(32, 96))))
    corpus = load(tmp_path, source, tokenizer="bytes", seq_len=2, batch_size=4000)
    inputs, targets = corpus.batch(0)
    assert set(inputs[:, 0].tolist()) == set(corpus.tokens("train")[:-2].tolist())
    assert targets[:, -1].max() == corpus.tokens("train")[-1]


def windows_of_an_epoch(corpus: data.Corpus, epoch: int) -> tuple[list[int], int]:
    """Where in the training split an epoch's windows start, in the order read, and how many there are."""
    train, rows = corpus.tokens("train"), corpus.batch_size
    count = (len(train) - 1) // corpus.seq_len - 1
    places = {tuple(row): i for i, row in enumerate(np.lib.stride_tricks.sliding_window_view(train, 40).tolist())}
    first, end = epoch * count, (epoch + 1) * count
    starts = []
    for step in range(first // rows, -(-end // rows)):
        inputs, targets = corpus.batch(step)
        for row, (x, y) in enumerate(zip(inputs.tolist(), targets.tolist(), strict=True)):
            if first <= step * rows + row < end:
                starts.append(places[(*x, y[-1])[:40]])
    return starts, count


def test_an_epoch_reads_every_window_once_in_another_order_and_from_another_beginning(corpus):
    longer = data.Corpus(corpus.name, Path(corpus.tokens("train").filename).parent, 0, 5, 48)
    orders = []
    for epoch in range(3):
        starts, count = windows_of_an_epoch(longer, epoch)
        assert len(starts) == count > 20
        assert set(np.diff(sorted(starts)).tolist()) == {48}  # side by side: none twice, none left out between
        assert starts != sorted(starts)
        orders.append(starts)
    assert len({min(starts) for starts in orders}) > 1
    assert len({tuple(np.argsort(starts)) for starts in orders}) == 3


@pytest.mark.parametrize("n", [*range(1, 20), 64, 1000, 4097])
def test_a_shuffled_order_holds_every_number_once(n):
    orders = [[data.shuffled(place, n, keys) for place in range(n)] for keys in ([1, 2, 3, 4], [4, 3, 2, 1])]
    assert all(sorted(order) == list(range(n)) for order in orders)
    if n > 20:
        assert orders[0] != orders[1]
        assert abs(np.corrcoef(orders[0], range(n))[0, 1]) < 4 / n**0.5  # four standard deviations of a random order's
        assert abs(np.corrcoef(orders[0][1:], orders[0][:-1])[0, 1]) < 4 / n**0.5


def test_a_training_split_of_a_single_window_can_be_read_for_ever(tmp_path):
    corpus = load(tmp_path, write(tmp_path / "a.txt", "abcdefghij" * 40), tokenizer="bytes", seq_len=16, batch_size=3)
    corpus._tokens["train"] = corpus.tokens("train")[:17]
    for step in (0, 1, 7):
        assert torch.equal(
            corpus.batch(step)[0], torch.from_numpy(corpus.tokens("train")[:16].astype(np.int64)).expand(3, 16)
        )


# ---- evaluation windows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 7, 16, 100, 10_000])
def test_windows_score_every_token_but_the_first_exactly_once(corpus, length):
    tokens = corpus.tokens("validation")
    scored, contexts = [], []
    for inputs, targets in corpus.windows("validation", length):
        assert inputs.shape == targets.shape
        assert inputs.shape[1] == length
        scored.append(targets[targets != -100])
        contexts.append(inputs[targets != -100])
    assert torch.cat(scored).tolist() == tokens[1:].tolist()
    assert torch.cat(contexts).tolist() == tokens[:-1].tolist()


def test_padding_fills_the_last_window_and_is_not_scored(corpus):
    n_tokens = len(corpus.tokens("test"))
    ((inputs, targets),) = corpus.windows("test", n_tokens + 5)
    assert (inputs[0, n_tokens:] == corpus.padding).all()
    assert (targets[0, n_tokens - 1 :] == -100).all()


def test_a_count_of_windows_is_spaced_evenly_over_the_split(corpus):
    every = torch.cat([inputs for inputs, _ in corpus.windows("train", 16)])
    some = torch.cat([inputs for inputs, _ in corpus.windows("train", 16, count=5, rows=2)])
    assert torch.equal(some, every[np.linspace(0, len(every) - 1, 5).round().astype(int)])
    assert len(torch.cat([inputs for inputs, _ in corpus.windows("train", 16, count=10**9)])) == len(every)


def test_fixed_targets_are_the_same_tokens_under_every_length(corpus):
    tokens = torch.from_numpy(corpus.tokens("validation").astype(np.int64))
    seen = {}
    for length, inputs, targets in corpus.fixed_targets("validation", [32, 64, 256], n_targets=8, count=20):
        assert inputs.shape == targets.shape == (20, length)
        assert ((targets != -100).sum(1) == 8).all()
        assert (targets[:, -8:] != -100).all()
        assert torch.equal(inputs[:, -7:], targets[:, -8:-1])  # the scored tokens follow their own context
        seen[length] = targets[:, -8:], inputs[:, -32:]
    for targets, nearest_context in seen.values():
        assert torch.equal(targets, seen[32][0])
        assert torch.equal(nearest_context, seen[32][1])
    assert seen[256][0][-1, -1] == tokens[-1]  # the last end is the split's end


def test_fixed_targets_score_no_token_twice_and_are_fewer_in_a_short_split(corpus):
    longest = corpus.longest("test")
    ((_, _, targets),) = corpus.fixed_targets("test", [longest], n_targets=8)
    assert len(targets) == 1
    with pytest.raises(
        BadInput, match=rf"a context of {longest + 1} tokens is longer .* test split allows \({longest}\)"
    ):
        corpus.fixed_targets("test", [8, longest + 1])
    n_tokens = len(corpus.tokens("test"))
    ((_, _, targets),) = corpus.fixed_targets("test", [16], n_targets=16, count=10**6)
    assert targets[targets != -100].numel() <= n_tokens - 1
    assert len(targets) == (n_tokens - 1 - 16) // 16 + 1


# ---- tokenizers ------------------------------------------------------------------------------------------------------

anything = st.text() | st.lists(st.sampled_from([*SPECIAL_TOKENS, " ", "a", "\r\n", "</s>", "é", "\u2028"])).map(
    "".join
)


@settings(max_examples=200, deadline=None)
@given(text=anything)
def test_any_text_comes_back_exactly_and_is_counted_in_its_utf8_bytes(corpus, plain_bytes, text):
    for tokenizing in (corpus, plain_bytes):
        ids = tokenizing.encode(text)
        assert tokenizing.decode(ids) == text
        assert not set(ids) & {0, 1, 2}
        assert tokenizing.token_bytes[ids].sum() == len(text.encode())


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_the_bytes_tokenizer_encodes_by_arithmetic_as_the_tokenizers_library_does(plain_bytes, text):
    (ours,) = byte_level.encode_group(plain_bytes.tokenizer, [(text.encode(), True)], plain_bytes=True)
    assert ours.tolist() == plain_bytes.encode(text)


def test_the_bytes_tokenizer_takes_any_bytes(tmp_path):
    raw = np.random.default_rng(0).integers(0, 256, 3000).astype(np.uint8).tobytes()
    corpus = load(tmp_path, write(tmp_path / "raw.txt", raw), tokenizer="bytes")
    tokens = np.concatenate([corpus.tokens(split) for split in preparing.SPLITS])
    assert corpus.vocab_size == 259
    assert tokens[-1] == corpus.end_of_text
    assert (tokens[:-1] - 3).astype(np.uint8).tobytes() == raw
    no_characters = load(tmp_path, write(tmp_path / "none.txt", b"\x80" * 1000), tokenizer="bytes")
    assert [len(no_characters.tokens(split)) for split in preparing.SPLITS] == [900, 50, 51]


def test_special_tokens_come_first_and_stand_for_no_bytes(corpus, plain_bytes):
    for tokenizing in (corpus, plain_bytes):
        assert [tokenizing.tokenizer.id_to_token(id) for id in range(3)] == list(SPECIAL_TOKENS)
        assert tokenizing.token_bytes[:3].tolist() == [0, 0, 0]
        assert (tokenizing.token_bytes[3:] > 0).all()
    assert corpus.vocab_size == 300
    assert plain_bytes.token_bytes[3:].tolist() == [1] * 256


def test_the_tokens_of_a_split_stand_for_exactly_its_bytes(corpus, plain_bytes):
    for tokenizing in (corpus, plain_bytes):
        for split in preparing.SPLITS:
            counted = tokenizing.token_bytes[tokenizing.tokens(split).astype(np.int64)].sum()
            assert counted == tokenizing.manifest["splits"][split]["bytes"]


def test_splits_have_the_same_text_under_every_tokenizer(tmp_path):
    source = write(tmp_path / "a.txt", prose(800))
    bpe, plain = load(tmp_path, source), load(tmp_path, source, tokenizer="bytes")
    assert bpe.sha256 != plain.sha256
    for split in preparing.SPLITS:
        assert text_of(bpe, split) == text_of(plain, split)


def test_the_tokenizer_learns_from_the_training_split_only(tmp_path):
    train, rest = prose(900), "w " * 300
    learned = []
    for word in ("zyzzyva", "quokkas"):
        text = train + rest + f"{word} " * 60
        assert text.index(word) > 0.9 * len(text)
        learned.append(load(tmp_path, write(tmp_path / f"{word}.txt", text)).tokenizer.to_str())
    assert learned[0] == learned[1]
    moved = load(tmp_path, write(tmp_path / "first.txt", "zyzzyva " * 60 + train + rest)).tokenizer.to_str()
    assert "zyzzyva" in moved
    assert "zyzzyva" not in learned[0]


def test_pieces_encode_as_the_whole_text_does(tmp_path, corpus, monkeypatch):
    text = prose(3000, seed=5)
    whole = corpus.encode(text)
    path = tmp_path / "text"
    write(path, text)
    spool = preparing.Spool(path, len(text.encode()), len(text), 0, np.array([len(text.encode())]))
    for size in (64, 97, 1000):
        monkeypatch.setattr(preparing, "PIECE_BYTES", size)
        pieces = list(preparing.read_pieces(spool, 0, spool.n_bytes))
        assert len(pieces) > spool.n_bytes / size
        assert b"".join(piece for piece, _ in pieces).decode() == text
        assert [ends for _, ends in pieces] == [False] * (len(pieces) - 1) + [True]
        assert [
            id for ids in byte_level.encode_group(corpus.tokenizer, pieces, plain_bytes=False) for id in ids
        ] == whole


@given(text=st.text(alphabet=st.sampled_from("ab 文\n\r\u2003\u00a0'1."), min_size=1))
def test_a_safe_cut_makes_progress_and_keeps_characters_whole(corpus, text):
    raw = text.encode()
    cut = preparing.safe_cut(raw)
    assert 0 < cut <= len(raw)
    left, right = raw[:cut].decode(), raw[cut:].decode()
    assert corpus.encode(left) + corpus.encode(right) == corpus.encode(text)


def test_a_tokenizer_json_on_disk_is_used_as_it_is(tmp_path, corpus):
    path = str(tmp_path / "tokenizer.json")
    corpus.tokenizer.save(path)
    source = write(tmp_path / "b.txt", prose(600, seed=1) + "<|endoftext|>")
    again = load(tmp_path, source, tokenizer=path)
    assert again.vocab_size == corpus.vocab_size
    assert again.tokens("test")[-1] == again.end_of_text == 0
    assert text_of(again, "test").endswith("<|endoftext|><|endoftext|>")
    assert again.tokens("test")[-2] != 0  # its literal text is ordinary text
    assert Tokenizer.from_file(path).encode("heaven").ids == again.encode("heaven")


def test_a_foreign_byte_level_tokenizer_names_its_own_end_of_text(tmp_path):
    tokenizer = Tokenizer(models.BPE({char: id for id, char in enumerate(byte_level.byte_characters())}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "t.json"))
    with pytest.raises(BadInput, match=r"t\.json' has no end-of-text token: it needs one of <\|endoftext\|>"):
        byte_level.load_tokenizer(tmp_path / "t.json")
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "t.json"))
    corpus = load(tmp_path, write(tmp_path / "a.txt", prose(200)), tokenizer=str(tmp_path / "t.json"))
    assert corpus.end_of_text == corpus.padding == 256
    assert corpus.vocab_size == 257
    assert len(corpus.encode("longer than four")) == 16


# ---- splits and documents --------------------------------------------------------------------------------------------


def test_splits_are_90_5_5_percent_of_the_characters_in_order(tmp_path):
    text = "".join(np.random.default_rng(0).choice(list("aé文😀 "), 2000))
    corpus = load(tmp_path, write(tmp_path / "a.txt", text))
    assert text_of(corpus, "train") == text[:1800]
    assert text_of(corpus, "validation") == text[1800:1900]
    assert text_of(corpus, "test") == text[1900:] + "<|endoftext|>"


def test_a_corpus_larger_than_what_is_read_at_a_time_is_cut_at_the_same_characters(tmp_path, monkeypatch):
    text = prose(1500)
    for module in (corpora, preparing):
        monkeypatch.setattr(module, "READ_BYTES", 100)
    corpus = load(tmp_path, write(tmp_path / "a.txt", text))
    cuts = [0, len(text) * 90 // 100, len(text) * 95 // 100, len(text)]
    for split, start, stop in zip(preparing.SPLITS, cuts, cuts[1:], strict=False):
        assert text_of(corpus, split).removesuffix("<|endoftext|>") == text[start:stop]


def test_many_documents_are_never_cut(tmp_path):
    documents = [f"{i} " + "word " * (i % 9) for i in range(1000)]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    corpus = load(tmp_path, write(tmp_path / "a.jsonl", rows))
    parts = [text_of(corpus, split) for split in preparing.SPLITS]
    assert all(part.endswith("<|endoftext|>") for part in parts)
    assert "".join(parts) == "".join(text + "<|endoftext|>" for text in documents)
    bytes_of = corpus.manifest["splits"]
    total = sum(map(len, documents))
    assert 0.9 * total <= bytes_of["train"]["bytes"] < 0.9 * total + 60
    assert "documents 1,000" in corpus.describe()


def test_end_of_text_follows_every_document_but_not_a_cut_one(tmp_path):
    for name, text in (("b", "bee " * 200), ("a", "ant " * 200), ("c", "cat " * 200)):
        write(tmp_path / f"{name}.txt", text)
    corpus = load(tmp_path, str(tmp_path / "*.txt"))
    whole = "".join(text_of(corpus, split) for split in preparing.SPLITS)
    assert whole == f"{'ant ' * 200}<|endoftext|>{'bee ' * 200}<|endoftext|>{'cat ' * 200}<|endoftext|>"
    assert sum((corpus.tokens(split) == corpus.end_of_text).sum() for split in preparing.SPLITS) == 3


def test_text_files_are_read_exactly(tmp_path):
    text = "\ufeffone\r\ntwo\rthree\n\n\u2028\x85\x00 " * 100
    corpus = load(tmp_path, write(tmp_path / "a.log", text))
    assert "".join(text_of(corpus, split) for split in preparing.SPLITS) == text + "<|endoftext|>"


@pytest.mark.parametrize("max_bytes", [999, 1000, 1001])
def test_max_bytes_stops_at_the_last_whole_character_and_ends_no_document(tmp_path, max_bytes):
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 1000)))  # 3 bytes each
    corpus = load(tmp_path, write(tmp_path / "a.txt", many), max_bytes=max_bytes, seq_len=4)
    assert "".join(text_of(corpus, split) for split in preparing.SPLITS) == many[: max_bytes // 3]


def test_jsonl_and_parquet_give_the_same_tokens_and_skip_null_texts(tmp_path):
    texts = [prose(20, seed) if seed % 5 else None for seed in range(60)] + [""]
    table = pa.table({"n": list(range(61)), "body": texts})
    pq.write_table(table, tmp_path / "a.parquet")
    write(tmp_path / "a[1].jsonl", "".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    ours = [load(tmp_path, str(tmp_path / name), column="body") for name in ("a.parquet", "a[1].jsonl")]
    assert ours[0].sha256 == ours[1].sha256
    assert "documents 48 (13 empty or null texts skipped)" in ours[0].describe()


def test_a_hub_dataset_is_streamed_by_name_subset_split_and_column(tmp_path, monkeypatch):
    stand_in_for_the_hub(tmp_path, monkeypatch)
    corpus = load(tmp_path, "owner/name", subset="small", split="train", column="body")
    assert text_of(corpus, "train").startswith(prose(20, 0) + "<|endoftext|>" + prose(20, 1))
    with pytest.raises(BadInput, match=r"data\.split 'trian'\) cannot be reached .*'?train"):
        load(tmp_path, "owner/name", subset="small", split="trian", column="body")
    with pytest.raises(BadInput, match=r"data\.subset 'tiny'.*small"):
        load(tmp_path, "owner/name", subset="tiny", column="body")
    with pytest.raises(BadInput, match=r"data\.column 'text' is not in owner/name, whose columns are n, body"):
        load(tmp_path, "owner/name", subset="small")


def stand_in_for_the_hub(tmp_path: Path, monkeypatch) -> None:
    """Let the real load_dataset read a folder laid out as a repository on the hub is."""
    repository = tmp_path / "repository"
    repository.mkdir()
    table = pa.table({"n": list(range(60)), "body": [prose(20, seed) for seed in range(60)]})
    pq.write_table(table, repository / "train-00000-of-00001.parquet")
    card = "---\nconfigs:\n- config_name: small\n  data_files:\n  - split: train\n    path: train-*\n---\n"
    write(repository / "README.md", card)
    real = datasets.load_dataset

    def load_dataset(name, subset, **options):
        assert name == "owner/name"
        assert options["streaming"]
        return real(str(repository), subset, **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(corpora, "check_hub", lambda name: None)


def test_kjv_needs_no_network_and_is_described_in_one_line(tmp_path):
    corpus = load(tmp_path, "kjv", tokenizer="bytes", seq_len=256)
    assert text_of(corpus, "train").startswith("\nIn the beginning God created the heaven and the earth.")
    described = r"kjv, documents 1, bytes of 259 entries, train 3,767,540 tokens \(3\.77 MB\), validation 209,270 .*"
    assert re.fullmatch(described, corpus.describe())


def test_memory_stays_flat_however_large_the_corpus_is(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    text, cache = prose(100_000), str(tmp_path / "cache")
    write(tmp_path / "small.txt", text)
    write(tmp_path / "large.txt", text * 5)
    write(tmp_path / "huge.txt", text * 90)
    script = f"""
import data, pathlib, re
from harness import preparing
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024
preparing.GROUP = 8
for name, tokenizer in (("small", "bpe"), ("large", "bpe"), ("small", "bytes"), ("huge", "bytes")):
    config = data.DataConfig(f"{tmp_path}/{{name}}.txt", tokenizer=tokenizer, vocab_size=300, cache={cache!r})
    data.load(config, 0, 4, 16)
    print(peak())
"""
    small, large, _, huge = map(float, python(script).split())  # MB
    assert large - small < 20  # the encodings of the 2.3 MB more, held at once, take 100 and more
    assert huge - large < 20  # the text alone is 51


# ---- the cache -------------------------------------------------------------------------------------------------------


def python(script: str, **environment: str) -> str:
    """What a fresh Python process prints."""
    process = start_python(script, **environment)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def start_python(script: str, **environment: str) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, env={**os.environ, **environment}, **pipes)


@pytest.fixture
def builds(monkeypatch) -> list:
    """Grows by one each time a corpus is prepared."""
    calls, prepare = [], preparing.prepare
    monkeypatch.setattr(preparing, "prepare", lambda *arguments: (calls.append(arguments), prepare(*arguments)))
    return calls


def test_two_processes_that_start_at_once_prepare_a_corpus_once_and_draw_the_same_batches(tmp_path):
    source, cache = write(tmp_path / "a.txt", prose(20_000)), str(tmp_path / "cache")
    script = f"""
import data, hashlib
from harness import preparing
prepare = preparing.prepare
preparing.prepare = lambda *arguments: (print("prepared"), prepare(*arguments))
corpus = data.load(data.DataConfig({source!r}, vocab_size=300, cache={cache!r}), 3, 4, 16)
print(corpus.sha256, hashlib.sha256(corpus.batch(11)[0].numpy().tobytes()).hexdigest())
"""
    processes = [start_python(script) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0].split() for process in processes]
    assert sorted(map(len, outputs)) == [2, 3]
    assert outputs[0][-2:] == outputs[1][-2:]
    here = load(tmp_path, source, seed=3)
    assert here.sha256 == outputs[0][-2]
    assert hashlib.sha256(here.batch(11)[0].numpy().tobytes()).hexdigest() == outputs[0][-1]


def test_a_prepared_corpus_is_used_again_whatever_the_seed_and_shape(tmp_path, builds):
    source = write(tmp_path / "a.txt", prose(400))
    first = load(tmp_path, source)
    second = load(tmp_path, source, seed=5, batch_size=2, seq_len=8)
    assert len(builds) == 1
    assert first.sha256 == second.sha256
    load(tmp_path, source, vocab_size=290)
    load(tmp_path, source, max_bytes=1500)
    assert len(builds) == 3
    write(tmp_path / "a.txt", prose(401))
    assert load(tmp_path, source).sha256 != first.sha256
    assert len(builds) == 4


@pytest.mark.parametrize("name", ["train.bin", "test.bin", "tokenizer.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["truncated", "edited", "missing"])
def test_a_harmed_cache_is_noticed_and_prepared_again(tmp_path, builds, capsys, name, harm):
    source = write(tmp_path / "a.txt", prose(300))
    before = load(tmp_path, source)
    path = Path(before.tokens("train").filename).parent / name
    content = path.read_bytes()
    edited = content.replace(b"2", b"3", 1) if name.endswith("json") else content[:-1] + bytes([content[-1] ^ 1])
    path.unlink() if harm == "missing" else path.write_bytes(content[:-2] if harm == "truncated" else edited)
    after = load(tmp_path, source)
    assert len(builds) == 2
    assert after.sha256 == before.sha256
    assert path.read_bytes() == content
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: prepared corpus ")
    assert name in warning
    assert warning.endswith("preparing it again")


def test_what_a_killed_build_left_is_cleared_away(tmp_path):
    source = write(tmp_path / "a.txt", prose(300))
    folder = Path(load(tmp_path, source).tokens("train").filename).parent
    stale = Path(f"{folder}.tmp")
    folder.rename(stale)
    (stale / "text").write_bytes(b"half")
    load(tmp_path, source)
    assert not stale.exists()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["train.bin", "validation.bin", "test.bin", "tokenizer.json", "manifest.json"]
    )


def test_no_space_left_is_told_as_it_is_and_leaves_nothing_half_made(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preparing, "encode_group", full)
    with pytest.raises(OSError, match="No space left"):
        load(tmp_path, write(tmp_path / "a.txt", prose(300)))
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_preparing_is_silent_when_it_is_quick(tmp_path, capfd):
    load(tmp_path, write(tmp_path / "a.txt", prose(300)))
    assert capfd.readouterr() == ("", "")


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_contradictions_are_refused_by_name():
    with pytest.raises(ValueError, match=r"data\.vocab_size 258 is too small: .* 259 or more"):
        DataConfig(vocab_size=258)
    assert DataConfig(vocab_size=259).vocab_size == 259
    with pytest.raises(ValueError, match=r"data\.max_bytes 0 must be 1 or more"):
        DataConfig(max_bytes=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        DataConfig().corpus = "other"


BAD_CORPORA = {
    "missing.txt": r"missing\.txt': no such file; use kjv, or local files",
    "none-*.txt": r"none-\*\.txt': no such file",
    "no such file": r"no such file': no such file",
    "folder": r"folder' is a folder: name its files, --data\.corpus '.*folder/\*\.txt'",
    "mixed.*": r"mixed\.\*' matches files of several kinds \(\.jsonl, \.txt\): name one kind",
    "empty.txt": r"empty\.txt' is empty",
    "empty.jsonl": r"empty\.jsonl' .*",
    "nulls.jsonl": r"nulls\.jsonl' is empty: it holds no text",
    "short.txt": r"short\.txt' is too short: its validation split has 3 tokens and one window needs 17: "
    r"use a longer text or --model\.seq_len 2",
    "latin.txt": r"latin\.txt' is not UTF-8 at byte 2400: convert it, or use --data\.tokenizer bytes",
    "torn.txt": r"torn\.txt' is not UTF-8 at byte 2400",
    "broken.jsonl": r"broken\.jsonl' cannot be read as json \(",
    "broken.parquet": r"broken\.parquet' cannot be read as parquet \(",
    "column.jsonl": r"data\.column 'text' is not in .*column\.jsonl, whose columns are texts, n; did you mean texts\?",
    "number.jsonl": r"data\.column 'text' of .*number\.jsonl holds int, not text",
}


@pytest.mark.parametrize("name", BAD_CORPORA)
def test_a_corpus_that_cannot_be_used_is_refused_in_one_line(tmp_path, capfd, name):
    (tmp_path / "folder").mkdir()
    write(tmp_path / "mixed.txt", prose(300))
    write(tmp_path / "mixed.jsonl", '{"text": "a"}\n')
    write(tmp_path / "empty.txt", "")
    write(tmp_path / "empty.jsonl", "")
    write(tmp_path / "nulls.jsonl", '{"text": null}\n{"text": ""}\n')
    write(tmp_path / "short.txt", "x文é😀" * 15)
    write(tmp_path / "latin.txt", ("é " * 800).encode() + b"\xe9 " * 10)
    write(tmp_path / "torn.txt", ("é " * 800).encode() + b"\xc3")
    write(tmp_path / "broken.jsonl", '{"text": "a"\n{"te')
    write(tmp_path / "broken.parquet", "not parquet")
    write(tmp_path / "column.jsonl", '{"texts": "a", "n": 1}\n')
    write(tmp_path / "number.jsonl", '{"text": 1}\n')
    with pytest.raises(BadInput, match=BAD_CORPORA[name]) as refused:
        load(tmp_path, str(tmp_path / name))
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(("--data.corpus ", "--data.column "))
    assert capfd.readouterr() == ("", "")


def test_the_file_of_a_glob_that_is_not_utf8_is_named_with_its_own_offset(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "READ_BYTES", 7)  # the bad byte lies in a later piece, after a character shared by two
    write(tmp_path / "a.txt", "é" * 50)
    write(tmp_path / "b.txt", "文".encode() * 11 + b"\xff" + b"x" * 50)
    with pytest.raises(BadInput, match=r"b\.txt' is not UTF-8 at byte 33"):
        load(tmp_path, str(tmp_path / "*.txt"))


def test_a_misspelt_kjv_is_set_right_without_asking_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "check_hub", lambda name: pytest.fail("asked the hub"))
    with pytest.raises(BadInput, match=r"data\.corpus 'kvj' is no file and no dataset; did you mean kjv\?"):
        load(tmp_path, "kvj")


def test_a_hub_out_of_reach_is_told_in_one_line_with_the_way_on(tmp_path, monkeypatch, capfd):
    def dataset_info(*arguments, **options):
        raise httpx.ConnectError("[Errno -2] Name or service not known\nand more")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    with pytest.raises(BadInput) as refused:
        load(tmp_path, "owner/name")
    assert str(refused.value) == (
        "--data.corpus 'owner/name' (data.subset None, data.split 'train') cannot be reached on the Hugging Face hub "
        "([Errno -2] Name or service not known): use names it has, or --data.corpus kjv, which needs no network, "
        "or local files, --data.corpus 'path/*.txt'"
    )
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_that_cannot_be_used_is_refused(tmp_path):
    source = write(tmp_path / "a.txt", prose(300))
    with pytest.raises(BadInput, match=r"data\.tokenizer 'byte' is no file; did you mean bytes\?"):
        load(tmp_path, source, tokenizer="byte")
    with pytest.raises(BadInput, match=r"a\.txt' is not a file of the tokenizers library .*: use bpe or bytes"):
        load(tmp_path, source, tokenizer=source)
    pieces = Tokenizer(models.WordLevel({"▁heaven": 0, "</s>": 1}, unk_token="</s>"))
    pieces.add_special_tokens(["</s>"])
    pieces.save(str(tmp_path / "pieces.json"))
    with pytest.raises(
        BadInput, match=r"pieces\.json' is not byte-level \(token '▁heaven'\), so bits per byte would be"
    ):
        load(tmp_path, source, tokenizer=str(tmp_path / "pieces.json"))
    spaced = Tokenizer(models.BPE({char: id for id, char in enumerate(byte_level.byte_characters())}, merges=[]))
    spaced.pre_tokenizer, spaced.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    spaced.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaced.pre_tokenizer])
    spaced.add_special_tokens(["</s>"])
    spaced.save(str(tmp_path / "spaced.json"))
    with pytest.raises(BadInput, match=r"spaced\.json' does not give text back exactly"):
        load(tmp_path, source, tokenizer=str(tmp_path / "spaced.json"))


def test_a_cache_that_cannot_be_written_is_refused(tmp_path):
    source = write(tmp_path / "a.txt", prose(300))
    with pytest.raises(
        BadInput, match=r"data\.cache '.*a\.txt/cache' cannot be written \(Not a directory\): name another"
    ):
        load(tmp_path, source, cache=f"{source}/cache")


def test_bits_per_byte_of_a_uniform_guess_is_what_arithmetic_says(plain_bytes):
    """A model that gives every one of 256 bytes the same chance needs 8 bits a byte, whatever the windows."""
    targets = torch.cat([targets.flatten() for _, targets in plain_bytes.windows("validation", 7)])
    scored = targets[targets != -100]
    nats = len(scored) * math.log(256)
    assert nats / math.log(2) / plain_bytes.token_bytes[scored].sum().item() == pytest.approx(8)
