"""python -m pytest tests/test_byte_level.py"""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import load_corpus, prose, text_of, write
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from harness import byte_level, preparing
from harness.byte_level import SPECIAL_TOKENS
from harness.messages import BadInput

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
    corpus = load_corpus(tmp_path, write(tmp_path / "raw.txt", raw), tokenizer="bytes")
    tokens = np.concatenate([corpus.tokens(split) for split in preparing.SPLITS])
    assert corpus.vocab_size == 259
    assert tokens[-1] == corpus.end_of_text
    assert (tokens[:-1] - 3).astype(np.uint8).tobytes() == raw
    no_characters = load_corpus(tmp_path, write(tmp_path / "none.txt", b"\x80" * 1000), tokenizer="bytes")
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


def test_the_tokenizer_learns_from_the_training_split_only(tmp_path):
    train, rest = prose(900), "w " * 300
    learned = []
    for word in ("zyzzyva", "quokkas"):
        text = train + rest + f"{word} " * 60
        assert text.index(word) > 0.9 * len(text)
        learned.append(load_corpus(tmp_path, write(tmp_path / f"{word}.txt", text)).tokenizer.to_str())
    assert learned[0] == learned[1]
    moved = load_corpus(tmp_path, write(tmp_path / "first.txt", "zyzzyva " * 60 + train + rest)).tokenizer.to_str()
    assert "zyzzyva" in moved
    assert "zyzzyva" not in learned[0]


def test_a_tokenizer_json_on_disk_is_used_as_it_is(tmp_path, corpus):
    path = str(tmp_path / "tokenizer.json")
    corpus.tokenizer.save(path)
    source = write(tmp_path / "b.txt", prose(600, seed=1) + "<|endoftext|>")
    again = load_corpus(tmp_path, source, tokenizer=path)
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
    corpus = load_corpus(tmp_path, write(tmp_path / "a.txt", prose(200)), tokenizer=str(tmp_path / "t.json"))
    assert corpus.end_of_text == corpus.padding == 256
    assert corpus.vocab_size == 257
    assert len(corpus.encode("longer than four")) == 16


def test_a_tokenizer_that_cannot_be_used_is_refused(tmp_path):
    source = write(tmp_path / "a.txt", prose(300))
    with pytest.raises(BadInput, match=r"data\.tokenizer 'byte' is no file; did you mean bytes\?"):
        load_corpus(tmp_path, source, tokenizer="byte")
    with pytest.raises(BadInput, match=r"a\.txt' is not a file of the tokenizers library .*: use bpe or bytes"):
        load_corpus(tmp_path, source, tokenizer=source)
    pieces = Tokenizer(models.WordLevel({"▁heaven": 0, "</s>": 1}, unk_token="</s>"))
    pieces.add_special_tokens(["</s>"])
    pieces.save(str(tmp_path / "pieces.json"))
    with pytest.raises(
        BadInput, match=r"pieces\.json' is not byte-level \(token '▁heaven'\), so bits per byte would be"
    ):
        load_corpus(tmp_path, source, tokenizer=str(tmp_path / "pieces.json"))
    spaced = Tokenizer(models.BPE({char: id for id, char in enumerate(byte_level.byte_characters())}, merges=[]))
    spaced.pre_tokenizer, spaced.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    spaced.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaced.pre_tokenizer])
    spaced.add_special_tokens(["</s>"])
    spaced.save(str(tmp_path / "spaced.json"))
    with pytest.raises(BadInput, match=r"spaced\.json' does not give text back exactly"):
        load_corpus(tmp_path, source, tokenizer=str(tmp_path / "spaced.json"))


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
SLOW = {"pattern": {"Regex": "(?:a+a+)+b|(x+x+)+y"}}
HOSTILE = {  # what a tokenizer.json has in place of what is usual -> what the line says
    "id": (lambda it: it["model"]["vocab"].update(zz=2**32 - 1), "the id 4,294,967,295, and 1,000,000 entries"),
    "twice": (lambda it: it["model"]["vocab"].update(zz=5), "two tokens with the same id"),
    "byte": (lambda it: it["model"]["vocab"].pop("x"), "does not give text back exactly"),
    "rare": (lambda it: it["model"]["vocab"].pop("Ķ"), "does not give text back exactly"),
    "unknown": (
        lambda it: [it["model"]["vocab"].pop("x"), it["model"].update(unk_token="nope")],
        "fails on a text .*nope",
    ),
    "bomb": (
        lambda it: it.update(normalizer={"type": "Replace", "pattern": {"String": "q"}, "content": "q" * 10**6}),
        "it has a normalizer",
    ),
    "slow": (
        lambda it: it.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT | SLOW, it["pre_tokenizer"]]}),
        "fails on a text .*retry-limit",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_tokenizer_of_a_stranger_is_refused_before_it_can_do_harm(tmp_path, plain_bytes, capfd, name):
    parts = json.loads(plain_bytes.tokenizer.to_str())
    change, says = HOSTILE[name]
    change(parts)
    (tmp_path / "t.json").write_text(json.dumps(parts))
    source = write(tmp_path / "a.txt", prose(300) + "x" * 100)
    with pytest.raises(BadInput, match=rf"data\.tokenizer .*{says}"):
        load_corpus(tmp_path, source, tokenizer=str(tmp_path / "t.json"))
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_that_drops_merges_at_random_does_not(plain_bytes):
    parts = json.loads(plain_bytes.tokenizer.to_str())
    parts["model"]["dropout"] = 0.5
    assert byte_level.parse_tokenizer(json.dumps(parts).encode()).to_str() == plain_bytes.tokenizer.to_str()


def test_bits_per_byte_of_a_uniform_guess_is_what_arithmetic_says(plain_bytes):
    """A model that gives every one of 256 bytes the same chance needs 8 bits a byte, whatever the windows."""
    targets = torch.cat([targets.flatten() for _, targets in plain_bytes.windows("validation", 7)])
    scored = targets[targets != -100]
    nats = len(scored) * math.log(256)
    assert nats / math.log(2) / plain_bytes.token_bytes[scored].sum().item() == pytest.approx(8)
