"""python -m pytest tests/test_preparing.py"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from texts import load_corpus, prose, python, start_python, text_of, write

from harness import byte_level, corpora, preparing
from harness.messages import BadInput


def test_splits_have_the_same_text_under_every_tokenizer(tmp_path):
    source = write(tmp_path / "a.txt", prose(800))
    bpe, plain = load_corpus(tmp_path, source), load_corpus(tmp_path, source, tokenizer="bytes")
    assert bpe.sha256 != plain.sha256
    for split in preparing.SPLITS:
        assert text_of(bpe, split) == text_of(plain, split)


def test_pieces_encode_as_the_whole_text_does(tmp_path, corpus, monkeypatch):
    text = prose(3000, seed=5)
    whole = corpus.encode(text)
    path = tmp_path / "text"
    write(path, text)
    n_bytes = len(text.encode())
    for size in (64, 97, 1000):
        monkeypatch.setattr(preparing, "PIECE_BYTES", size)
        pieces = list(preparing.read_pieces(path, np.array([n_bytes]), 0, n_bytes))
        assert len(pieces) > n_bytes / size
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


def test_splits_are_90_5_5_percent_of_the_characters_in_order(tmp_path):
    text = "".join(np.random.default_rng(0).choice(list("aé文😀 "), 2000))
    corpus = load_corpus(tmp_path, write(tmp_path / "a.txt", text))
    assert text_of(corpus, "train") == text[:1800]
    assert text_of(corpus, "validation") == text[1800:1900]
    assert text_of(corpus, "test") == text[1900:] + "<|endoftext|>"


def test_a_corpus_larger_than_what_is_read_at_a_time_is_cut_at_the_same_characters(tmp_path, monkeypatch):
    text = prose(1500)
    for module in (corpora, preparing):
        monkeypatch.setattr(module, "READ_BYTES", 100)
    corpus = load_corpus(tmp_path, write(tmp_path / "a.txt", text))
    cuts = [0, len(text) * 90 // 100, len(text) * 95 // 100, len(text)]
    for split, start, stop in zip(preparing.SPLITS, cuts, cuts[1:], strict=False):
        assert text_of(corpus, split).removesuffix("<|endoftext|>") == text[start:stop]


def test_many_documents_are_never_cut(tmp_path):
    documents = [f"{i} " + "word " * (i % 9) for i in range(1000)]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    corpus = load_corpus(tmp_path, write(tmp_path / "a.jsonl", rows))
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
    corpus = load_corpus(tmp_path, str(tmp_path / "*.txt"))
    whole = "".join(text_of(corpus, split) for split in preparing.SPLITS)
    assert whole == f"{'ant ' * 200}<|endoftext|>{'bee ' * 200}<|endoftext|>{'cat ' * 200}<|endoftext|>"
    assert sum((corpus.tokens(split) == corpus.end_of_text).sum() for split in preparing.SPLITS) == 3


@pytest.mark.parametrize("max_bytes", [999, 1000, 1001])
def test_max_bytes_stops_at_the_last_whole_character_and_ends_no_document(tmp_path, max_bytes):
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 1000)))  # 3 bytes each
    corpus = load_corpus(tmp_path, write(tmp_path / "a.txt", many), max_bytes=max_bytes, seq_len=4)
    assert "".join(text_of(corpus, split) for split in preparing.SPLITS) == many[: max_bytes // 3]


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
    here = load_corpus(tmp_path, source, seed=3)
    assert here.sha256 == outputs[0][-2]
    assert hashlib.sha256(here.batch(11)[0].numpy().tobytes()).hexdigest() == outputs[0][-1]


def test_a_prepared_corpus_is_used_again_whatever_the_seed_and_shape(tmp_path, builds):
    source = write(tmp_path / "a.txt", prose(400))
    first = load_corpus(tmp_path, source)
    second = load_corpus(tmp_path, source, seed=5, batch_size=2, seq_len=8)
    assert len(builds) == 1
    assert first.sha256 == second.sha256
    load_corpus(tmp_path, source, vocab_size=290)
    load_corpus(tmp_path, source, max_bytes=1500)
    assert len(builds) == 3
    write(tmp_path / "a.txt", prose(401))
    assert load_corpus(tmp_path, source).sha256 != first.sha256
    assert len(builds) == 4


@pytest.mark.parametrize("name", ["train.bin", "test.bin", "tokenizer.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["truncated", "edited", "missing"])
def test_a_harmed_cache_is_noticed_and_prepared_again(tmp_path, builds, capsys, name, harm):
    source = write(tmp_path / "a.txt", prose(300))
    before = load_corpus(tmp_path, source)
    path = before.folder / name
    content = path.read_bytes()
    edited = content.replace(b"2", b"3", 1) if name.endswith("json") else content[:-1] + bytes([content[-1] ^ 1])
    path.unlink() if harm == "missing" else path.write_bytes(content[:-2] if harm == "truncated" else edited)
    after = load_corpus(tmp_path, source)
    assert len(builds) == 2
    assert after.sha256 == before.sha256
    assert path.read_bytes() == content
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: prepared corpus ")
    assert name in warning
    assert warning.endswith("preparing it again")


def test_what_a_killed_build_left_is_cleared_away(tmp_path):
    source = write(tmp_path / "a.txt", prose(300))
    folder = load_corpus(tmp_path, source).folder
    stale = Path(f"{folder}.tmp")
    folder.rename(stale)
    (stale / "text").write_bytes(b"half")
    load_corpus(tmp_path, source)
    assert not stale.exists()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["train.bin", "validation.bin", "test.bin", "tokenizer.json", "manifest.json"]
    )


def test_no_space_left_is_told_as_it_is_and_leaves_nothing_half_made(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(byte_level, "encode_group", full)
    with pytest.raises(OSError, match="No space left"):
        load_corpus(tmp_path, write(tmp_path / "a.txt", prose(300)))
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.parametrize("before", ["nothing", "the cache", "a lock", "another corpus"])
def test_a_corpus_that_is_refused_leaves_the_cache_as_it_was(tmp_path, before):
    cache = tmp_path / "made" / "cache"
    source = write(tmp_path / "short.txt", "too short")
    if before != "nothing":
        cache.mkdir(parents=True)
    if before == "a lock":
        with pytest.raises(BadInput, match="too short"):
            load_corpus(tmp_path, source, cache=str(cache))
        (cache / "other.lock").touch()
    if before == "another corpus":
        load_corpus(tmp_path, write(tmp_path / "a.txt", prose(300)), cache=str(cache))
    there = sorted(tmp_path.rglob("*"))
    for name, content in (("short.txt", "too short"), ("empty.txt", ""), ("a.jsonl", '{"text": 3}\n')):
        write(tmp_path / name, content)
        with pytest.raises(BadInput):
            load_corpus(tmp_path, str(tmp_path / name), cache=str(cache))
        (tmp_path / name).unlink()
    assert sorted(tmp_path.rglob("*")) == [path for path in there if path.name != "short.txt"]


@pytest.mark.parametrize("change", ["grown", "replaced", "gone"])
def test_a_corpus_that_changes_while_it_is_read_is_refused_and_not_kept(tmp_path, monkeypatch, change):
    path = tmp_path / "text.txt"
    path.write_text(prose(2000))

    def read_while_it_changes(*source):
        yield from corpora.read_source(*source)
        path.unlink()
        if change != "gone":
            path.write_text(prose(2000 + 10 * (change == "grown"), seed=1))

    monkeypatch.setattr(preparing, "read_source", read_while_it_changes)
    with pytest.raises(BadInput, match=r"text\.txt'(: no such file| was changed while it was read: wait)"):
        load_corpus(tmp_path, str(path), tokenizer="bytes")
    assert not (tmp_path / "cache").exists()


def test_a_prepared_corpus_stays_when_only_a_longer_window_is_refused(tmp_path, builds):
    source = write(tmp_path / "a.txt", prose(300))
    load_corpus(tmp_path, source)
    with pytest.raises(BadInput, match="too short"):
        load_corpus(tmp_path, source, seq_len=100_000)
    load_corpus(tmp_path, source)
    assert len(builds) == 1


def test_who_waits_for_a_cache_that_is_removed_makes_it_again(tmp_path, monkeypatch):
    class Lock(preparing.FileLock):
        def acquire(self, *arguments, **options):
            if not waited:
                waited.append(True)
                (tmp_path / "cache").rmdir()
            return super().acquire(*arguments, **options)

    waited = []
    monkeypatch.setattr(preparing, "FileLock", Lock)
    assert load_corpus(tmp_path, write(tmp_path / "a.txt", prose(300))).tokens("train").size


def test_preparing_is_silent_when_it_is_quick(tmp_path, capfd):
    load_corpus(tmp_path, write(tmp_path / "a.txt", prose(300)))
    assert capfd.readouterr() == ("", "")


def test_a_cache_that_cannot_be_written_is_refused(tmp_path):
    source = write(tmp_path / "a.txt", prose(300))
    with pytest.raises(
        BadInput, match=r"data\.cache '.*a\.txt/cache' cannot be written \(Not a directory\): name another"
    ):
        load_corpus(tmp_path, source, cache=f"{source}/cache")


def reseal(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what a manifest says, and give it the hashes that fit, as whoever can write there may do."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, recorded in manifest["files"].items():
        content = (folder / name).read_bytes()
        recorded.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    change(manifest)
    del manifest["check"]
    manifest["check"] = preparing.hash_of(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


PLANTED = {  # what is wrong in a sealed manifest, or in what it seals
    "objects": lambda manifest: manifest.update(dtype="object"),
    "another width": lambda manifest: manifest.update(dtype="uint32"),
    "a split too few": lambda manifest: manifest["splits"].pop("test"),
    "a file elsewhere": lambda manifest: manifest["files"].update({"../x": {"bytes": 0, "sha256": ""}}),
    "a size in words": lambda manifest: manifest["splits"]["train"].update(tokens="many"),
    "another number of tokens": lambda manifest: manifest["splits"]["train"].update(tokens=7),
    "a list": lambda manifest: manifest.update(files=[]),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_sealed_manifest_that_cannot_be_is_named_and_the_corpus_prepared_again(tmp_path, capsys, planted):
    whole = load_corpus(tmp_path, write(tmp_path / "a.txt", prose(3000)))
    folder = whole.folder
    reseal(folder, PLANTED[planted])
    again = load_corpus(tmp_path, str(tmp_path / "a.txt"))
    assert "preparing it again" in capsys.readouterr().err
    assert again.sha256 == whole.sha256


def test_tokens_that_the_tokenizer_does_not_have_are_damage(tmp_path, capsys):
    whole = load_corpus(tmp_path, write(tmp_path / "a.txt", prose(3000)))
    folder = whole.folder
    tokens = np.fromfile(folder / "train.bin", np.uint16)
    tokens[5] = 60_000
    tokens.tofile(folder / "train.bin")
    reseal(folder, lambda manifest: None)
    assert load_corpus(tmp_path, str(tmp_path / "a.txt")).sha256 == whole.sha256
    assert "train.bin does not fit the manifest and the tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train.bin", "tokenizer.json", "manifest.json"])
def test_a_fifo_or_a_link_in_a_prepared_corpus_is_damage_and_nobody_waits(tmp_path, capsys, name):
    whole = load_corpus(tmp_path, write(tmp_path / "a.txt", prose(3000)))
    folder = whole.folder
    for plant in (os.mkfifo, lambda path: path.symlink_to(tmp_path / "theirs")):
        (tmp_path / "theirs").write_bytes((folder / name).read_bytes())
        (folder / name).unlink()
        plant(folder / name)
        assert load_corpus(tmp_path, str(tmp_path / "a.txt")).sha256 == whole.sha256
        assert "preparing it again" in capsys.readouterr().err
