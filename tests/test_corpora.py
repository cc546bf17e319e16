"""python -m pytest tests/test_corpora.py"""

import dataclasses
import glob
import hashlib
import json
import re
from pathlib import Path

import datasets
import httpx
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from texts import load_corpus, prose, text_of, write

from data import DataConfig
from harness import corpora, preparing
from harness.messages import BadInput
from harness.ranges import explain


def test_text_files_are_read_exactly(tmp_path):
    text = "\ufeffone\r\ntwo\rthree\n\n\u2028\x85\x00 " * 100
    corpus = load_corpus(tmp_path, write(tmp_path / "a.log", text))
    assert "".join(text_of(corpus, split) for split in preparing.SPLITS) == text + "<|endoftext|>"


def test_jsonl_and_parquet_give_the_same_tokens_and_skip_null_texts(tmp_path):
    texts = [prose(20, seed) if seed % 5 else None for seed in range(60)] + [""]
    table = pa.table({"n": list(range(61)), "body": texts})
    pq.write_table(table, tmp_path / "a.parquet")
    write(tmp_path / "a[1].jsonl", "".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    ours = [load_corpus(tmp_path, str(tmp_path / name), column="body") for name in ("a.parquet", "a[1].jsonl")]
    assert ours[0].sha256 == ours[1].sha256
    assert "documents 48 (13 empty or null texts skipped)" in ours[0].describe()


def test_a_hub_dataset_is_streamed_by_name_subset_split_and_column(tmp_path, monkeypatch):
    stand_in_for_the_hub(tmp_path, monkeypatch)
    corpus = load_corpus(tmp_path, "owner/name", subset="small", split="train", column="body")
    assert text_of(corpus, "train").startswith(prose(20, 0) + "<|endoftext|>" + prose(20, 1))
    with pytest.raises(BadInput, match=r"data\.split 'trian'\) cannot be reached .*'?train"):
        load_corpus(tmp_path, "owner/name", subset="small", split="trian", column="body")
    with pytest.raises(BadInput, match=r"data\.subset 'tiny'.*small"):
        load_corpus(tmp_path, "owner/name", subset="tiny", column="body")
    with pytest.raises(BadInput, match=r"data\.column 'text' is not in owner/name, whose columns are n, body"):
        load_corpus(tmp_path, "owner/name", subset="small")


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
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *arguments, **options: None)


def test_kjv_needs_no_network_and_is_described_in_one_line(tmp_path):
    corpus = load_corpus(tmp_path, "kjv", tokenizer="bytes", seq_len=256)
    assert text_of(corpus, "train").startswith("\nIn the beginning God created the heaven and the earth.")
    described = r"kjv, documents 1, bytes of 259 entries, train 3,767,540 tokens \(3\.77 MB\), validation 209,270 .*"
    assert re.fullmatch(described, corpus.describe())


def test_code_is_whole_files_of_one_version_of_sympy(monkeypatch):
    files = {row["origin"]: row["text"] for row in corpora.read_code()}  # refused unless its sha256 is the known one
    assert len(files) == 645
    assert "sympy/core/expr.py" in files
    assert not [name for name in files if re.search(r"/tests/|/_antlr/|polyquinticconst", name)]
    keys = [hashlib.sha256(name.removeprefix("sympy/").encode()).digest() for name in files]
    assert keys == sorted(keys)
    monkeypatch.setattr(corpora, "CODE_SHA256", "another")
    with pytest.raises(BadInput, match=r"code: the files of sympy here are not .* published: pip .*sympy==1"):
        next(corpora.read_code())
    monkeypatch.setattr(corpora.importlib.metadata, "version", lambda name: "1.13.3")
    with pytest.raises(BadInput, match=r"code is the source of sympy 1\.14\.0, not 1\.13\.3: pip install sympy==1"):
        corpora.find_source(DataConfig("code"))


def test_contradictions_are_refused_by_name():
    with pytest.raises(
        ValueError, match=r"data\.vocab_size 258 must be 259 or more \(3 special tokens and 256 bytes\)"
    ):
        DataConfig(vocab_size=258)
    assert DataConfig(vocab_size=259).vocab_size == 259
    with pytest.raises(ValueError, match="max_bytes") as refused:
        DataConfig(max_bytes=0)
    assert explain(refused.value) == "data.max_bytes 0 must be at least 1"
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
    "deep.jsonl": r"deep\.jsonl' cannot be read as json \(line 2 of .*recursion",
    "list.jsonl": r"list\.jsonl' cannot be read as json \(line 1 of .* is no object",
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
    write(tmp_path / "deep.jsonl", '{"text": "a"}\n{"text": "a", "b": ' + "[" * 10_000 + "]" * 10_000 + "}\n")
    write(tmp_path / "list.jsonl", '[{"text": "a"}]\n')
    write(tmp_path / "column.jsonl", '{"texts": "a", "n": 1}\n')
    write(tmp_path / "number.jsonl", '{"text": 1}\n')
    with pytest.raises(BadInput, match=BAD_CORPORA[name]) as refused:
        load_corpus(tmp_path, str(tmp_path / name))
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(("--data.corpus ", "--data.column "))
    assert capfd.readouterr() == ("", "")


def test_the_file_of_a_glob_that_is_not_utf8_is_named_with_its_own_offset(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "READ_BYTES", 7)  # the bad byte lies in a later piece, after a character shared by two
    write(tmp_path / "a.txt", "é" * 50)
    write(tmp_path / "b.txt", "文".encode() * 11 + b"\xff" + b"x" * 50)
    with pytest.raises(BadInput, match=r"b\.txt' is not UTF-8 at byte 33"):
        load_corpus(tmp_path, str(tmp_path / "*.txt"))


def test_each_real_file_is_read_once_whatever_links_lead_to_it(tmp_path):
    (tmp_path / "d" / "deep").mkdir(parents=True)
    (tmp_path / "d" / ".hidden").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for name in ("d/b.txt", "d/deep/a.txt", "d/.hidden/no.txt", "elsewhere/c.txt"):
        write(tmp_path / name, f"{name} " * 200)
    for name, target in (("d/up", "."), ("d/deep/top", ".."), ("d/aside", "../elsewhere"), ("d/z.txt", "b.txt")):
        (tmp_path / name).symlink_to(target)
    cases = {
        "d/**": ["d/aside/c.txt", "d/b.txt", "d/deep/a.txt"],
        "d/**/*.txt": ["d/aside/c.txt", "d/b.txt", "d/deep/a.txt"],
        "**/a.txt": ["d/deep/a.txt"],
        "d/**/deep/**/*.txt": ["d/deep/a.txt", "d/aside/c.txt", "d/b.txt"],
        "d/*.txt": ["d/b.txt"],
        "d/[z].txt": ["d/z.txt"],
        "d/z.txt": ["d/z.txt"],
    }
    for pattern, expected in cases.items():
        found = [path.resolve() for path in corpora.find_files(str(tmp_path / pattern))]
        assert found == [(tmp_path / name).resolve() for name in expected], pattern
    corpus = load_corpus(tmp_path, str(tmp_path / "d" / "**"))
    whole = "".join(text_of(corpus, split) for split in preparing.SPLITS)
    assert whole.count("<|endoftext|>") == 3


def test_a_glob_in_the_current_folder_finds_what_globs_find(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    for name in ("a.txt", "d/b.txt"):
        write(tmp_path / name, "text")
    for pattern in ("**", "**/*.txt", "*/**", "d/**", "**/d/*", "./**/b.txt", "*.txt"):
        expected = [Path(name).resolve() for name in sorted(glob.glob(pattern, recursive=True)) if Path(name).is_file()]
        assert sorted(path.resolve() for path in corpora.find_files(pattern)) == expected, pattern


def test_a_misspelt_kjv_is_set_right_without_asking_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda *arguments, **options: pytest.fail("asked the hub")
    )
    with pytest.raises(BadInput, match=r"data\.corpus 'kvj' is no file and no dataset; did you mean kjv\?"):
        load_corpus(tmp_path, "kvj")


def test_a_hub_out_of_reach_is_told_in_one_line_with_the_way_on(tmp_path, monkeypatch, capfd):
    def dataset_info(*arguments, **options):
        raise httpx.ConnectError("[Errno -2] Name or service not known\nand more")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    with pytest.raises(BadInput) as refused:
        load_corpus(tmp_path, "owner/name")
    assert str(refused.value) == (
        "--data.corpus 'owner/name' (data.subset None, data.split 'train') cannot be reached on the Hugging Face hub "
        "([Errno -2] Name or service not known): use names it has, or --data.corpus kjv, which needs no network, "
        "or local files, --data.corpus 'path/*.txt'"
    )
    assert capfd.readouterr() == ("", "")
