"""Byte-level tokenizers (Radford et al. 2019, section 2.2): trained here, plain bytes, or read from a tokenizer.json.

Such a tokenizer gives any text back exactly, and how many bytes each of its tokens stands for is known: bits per byte
needs both. For example: python train.py --data.tokenizer bytes
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from pydantic_core import from_json
from tokenizers import Encoding, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from harness.messages import BadInput, RunFailed, nearest
from harness.opening import read_named

SPECIAL_TOKENS = ("<|endoftext|>", "<|padding|>", "<|mask|>")  # ids 0, 1, 2
END_OF_TEXT = (SPECIAL_TOKENS[0], "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|eot|>")  # as other tokenizers call it
PADDING = (SPECIAL_TOKENS[1], "<pad>", "<|pad|>", "[PAD]", *END_OF_TEXT)
MOST_ENTRIES = 1_000_000  # of a BPE; the library ends the process when it cannot have the memory for more
PROBES = (  # texts that must come back exactly; the second has each byte that UTF-8 can have
    " Two  words,\r\n\tE\u0301 \u00e9 \U0001f600\u2028 end ",
    "".join(map(chr, [*range(0x801), *range(0x1000, 0x10000, 0x1000), *range(0x10000, 0x110000, 0x30000)])),
)


def byte_characters() -> list[str]:
    """The character that stands for each byte (GPT-2): itself if printable in Latin-1, others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def make_tokenizer(kind: str, vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of one kind: `bytes`; `bpe`, whose merges are learned from the texts; or the path of a file."""
    if kind not in ("bpe", "bytes"):
        return load_tokenizer(kind)
    entries = [*SPECIAL_TOKENS, *byte_characters()] if kind == "bytes" else []
    tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate(entries)}, merges=[]))
    # No normalizer and no added space: text comes back exactly. The pattern that keeps merges within words is GPT-2's.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "bpe")
    tokenizer.decoder = decoders.ByteLevel()
    if kind == "bpe":
        first = {"special_tokens": list(SPECIAL_TOKENS), "initial_alphabet": sorted(byte_characters())}
        tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, **first))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """`parse_tokenizer` of the path that --data.tokenizer names; whatever is wrong with it is BadInput."""
    name = f"--data.tokenizer {str(path)!r}"
    if not os.path.isfile(path):  # unlike Path.is_file, false for a name too long to be one
        suggestion = nearest(str(path), ["bpe", "bytes"])
        raise BadInput(f"{name} is no file{suggestion or '; use bpe, bytes or the path of a tokenizer.json'}")
    try:
        return parse_tokenizer(read_named(Path(path)))
    except ValueError as error:
        raise BadInput(f"{name} {error}: use bpe or bytes, or another tokenizer.json") from error


def parse_tokenizer(content: bytes, most: int = MOST_ENTRIES) -> Tokenizer:
    """The tokenizer of a tokenizer.json, this project's or another; special tokens' text is ordinary text to it.

    Raises:
        ValueError: no tokenizer, not byte-level, ids of `most` or above, no end of text, or not exact.
    """
    try:
        parts = from_json(content)
        # Common and nearly idle, but decomposed accents would not come back exactly. Another could make a character
        # into a million, and does so to added tokens already as they are read.
        if isinstance(parts, dict) and parts.get("normalizer") not in (None, {"type": "NFC"}):
            raise ValueError("it has a normalizer, which changes text")
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"is not a file of the tokenizers library ({error})") from error
    tokenizer.encode_special_tokens = True  # not kept in the file
    tokenizer.normalizer = None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if isinstance(tokenizer.model, models.BPE):
        tokenizer.model.dropout = None  # the same text would have other tokens each time
    token_bytes(tokenizer, most)  # refuses a token that is not spelt in byte characters
    if special_id(tokenizer, END_OF_TEXT) is None:
        raise ValueError(f"has no end-of-text token: it needs one of {', '.join(END_OF_TEXT)}")
    for probe in PROBES:
        (found,) = encode_texts(tokenizer, [probe])
        if tokenizer.decode(found.ids, skip_special_tokens=False) != probe:
            raise ValueError("does not give text back exactly")
    return tokenizer


def special_id(tokenizer: Tokenizer, names: Sequence[str]) -> int | None:
    """The id of the first of these tokens that a tokenizer has."""
    return next((id for name in names if (id := tokenizer.token_to_id(name)) is not None), None)


def token_bytes(tokenizer: Tokenizer, most: int = MOST_ENTRIES) -> Tensor:
    """UTF-8 bytes each token stands for, 0 for special tokens, (V,) int64.

    Raises:
        ValueError: if there is no token, one that is not byte-level, or one whose id is `most` or above.
    """
    vocabulary, added, alphabet = tokenizer.get_vocab(), tokenizer.get_added_tokens_decoder(), set(byte_characters())
    if not vocabulary:
        raise ValueError("has no tokens, so bits per byte would be wrong")
    if (last := max(vocabulary.values())) >= most:
        raise ValueError(f"has a token with the id {last:,}, and {most:,} entries are the most that can be here")
    if len(set(vocabulary.values())) < len(vocabulary):
        raise ValueError("has two tokens with the same id, so text would not come back exactly")
    counts = [0] * (last + 1)
    for token, id in vocabulary.items():
        if id in added:  # written as they are, not in byte characters
            counts[id] = 0 if added[id].special else len(token.encode())
        elif alphabet.issuperset(token):
            counts[id] = len(token)  # one character a byte
        else:
            raise ValueError(f"is not byte-level (token {token[:100]!r}), so bits per byte would be wrong")
    return torch.tensor(counts)


def encode_group(tokenizer: Tokenizer, group: list[tuple[bytes, bool]], plain_bytes: bool) -> list[Sequence[int]]:
    """Token ids of each piece, on all cores; for the bytes tokenizer by arithmetic, which takes any bytes."""
    if plain_bytes:
        return [np.frombuffer(text, np.uint8).astype(np.uint16) + len(SPECIAL_TOKENS) for text, _ in group]
    return [found.ids for found in encode_texts(tokenizer, [text.decode() for text, _ in group])]


def encode_texts(tokenizer: Tokenizer, texts: list[str]) -> list[Encoding]:
    """Encodings of texts, on all cores, without tokens around them; the text of a special token is ordinary text.

    Raises:
        ValueError: if the library fails, as at a regular expression of a tokenizer.json that takes too many steps.
        RunFailed: if it may not start its threads.
    """
    try:
        with without_stderr():  # where the library would report a failure by itself, in many lines
            return tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    except BaseException as error:
        if "ThreadPoolBuildError" in str(error):
            limit = "no more threads can be started: raise the limit (ulimit -u)"
            raise RunFailed(f"{limit}, or set TOKENIZERS_PARALLELISM=false") from error
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":  # which is no Exception
            raise ValueError(f"fails on a text ({' '.join(str(error).split())[:200]})") from error
        raise


@contextmanager
def without_stderr() -> Iterator[None]:
    """Discard what is written to the process's standard error meanwhile."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
