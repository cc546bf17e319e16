"""A prepared corpus on disk, as preparing.py makes it: its manifest, its tokens, and whether all of it is whole."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

from harness import byte_level
from harness.byte_level import special_id, token_bytes
from harness.opening import Damaged, open_inside, parse_json, read_inside

SPLITS = ("train", "validation", "test")


class Size(TypedDict):
    tokens: Annotated[int, Field(ge=0)]
    bytes: Annotated[int, Field(ge=0)]


class FileSum(TypedDict):
    bytes: Annotated[int, Field(ge=0)]
    sha256: str


class Manifest(TypedDict):
    """What manifest.json says of a prepared corpus; it has more."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    corpus: str
    tokenizer: str
    documents: int
    skipped: int
    dtype: Literal["uint16", "uint32"]
    splits: dict[Literal["train", "validation", "test"], Size]
    files: dict[Literal["train.bin", "validation.bin", "test.bin", "tokenizer.json"], FileSum]
    sha256: str
    check: str


MANIFEST = TypeAdapter(Manifest)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared corpus. Raises OSError or Damaged if there is none that can be used."""
    manifest = parse_json(MANIFEST, read_inside(folder, "manifest.json"), folder / "manifest.json")
    if len(manifest["splits"]) < len(SPLITS) or len(manifest["files"]) <= len(SPLITS):
        raise Damaged(f"{folder / 'manifest.json'} is damaged: it does not have all splits and files")
    return manifest


class PreparedCorpus:
    """A corpus of tokens on disk, mapped, with its tokenizer, for batches of these shapes: see `data.load`.

    Bits per byte are the nats over the scored targets / ln 2 / token_bytes[those targets].sum().
    """

    def __init__(self, name: str, folder: Path, seed: int, batch_size: int, seq_len: int) -> None:
        self.name, self.seed, self.batch_size, self.seq_len = name, seed, batch_size, seq_len
        self.folder, self.manifest = folder, read_manifest(folder)
        self.sha256 = self.manifest["sha256"]  # identity of the data: of the tokens of all splits and of the tokenizer
        self.tokenizer = byte_level.parse_tokenizer(read_inside(folder, "tokenizer.json"))
        self.token_bytes = token_bytes(self.tokenizer)  # (V,) int64, 0 for a special token
        self.vocab_size = len(self.token_bytes)
        self.end_of_text = special_id(self.tokenizer, byte_level.END_OF_TEXT)  # after every document
        self.padding = special_id(self.tokenizer, byte_level.PADDING)  # fills a last window; never scored
        self._tokens = {split: map_tokens(folder, split, self.manifest["dtype"]) for split in SPLITS}

    def tokens(self, split: str) -> np.ndarray:
        """All tokens of train, validation or test, in the corpus's order, (N,) uint16 or uint32, mapped read-only."""
        return self._tokens[split]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without an end of text; the text of a special token is ordinary text."""
        return byte_level.encode_texts(self.tokenizer, [text])[0].ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; special tokens appear by name, bytes that are not UTF-8 as U+FFFD."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def describe(self) -> str:
        """One line: corpus, tokenizer, and tokens and bytes of each split."""
        made = self.manifest
        skipped = f" ({made['skipped']:,} empty or null texts skipped)" if made["skipped"] else ""
        what = f"documents {made['documents']:,}{skipped}, {made['tokenizer']} of {self.vocab_size:,} entries"
        sizes = made["splits"].items()
        splits = [f"{split} {size['tokens']:,} tokens ({size['bytes'] / 1e6:.2f} MB)" for split, size in sizes]
        return ", ".join([self.name, what, *splits])


def map_tokens(folder: Path, split: str, dtype: str) -> np.ndarray:
    """All tokens of a split, (N,), mapped read-only. Raises OSError or Damaged if they cannot be used."""
    with open_inside(folder, f"{split}.bin") as file:
        empty = os.fstat(file.fileno()).st_size == 0  # which cannot be mapped
        return np.zeros(0, dtype) if empty else np.memmap(file, dtype, "r")


def find_damage(folder: Path) -> str | None:
    """What is wrong with a prepared corpus, or None if it is there and whole."""
    try:
        manifest = read_manifest(folder)
        if manifest.pop("check") != hash_of(manifest):
            return "manifest.json was changed"
        for name, recorded in manifest["files"].items():
            with open_inside(folder, name) as file:
                if (size := os.fstat(file.fileno()).st_size) != recorded["bytes"]:
                    return f"{name} has {size:,} bytes and not {recorded['bytes']:,}"
                if hashlib.file_digest(file, "sha256").hexdigest() != recorded["sha256"]:
                    return f"{name} was changed"
        entries = len(token_bytes(byte_level.parse_tokenizer(read_inside(folder, "tokenizer.json"))))
        for split in SPLITS:
            tokens = map_tokens(folder, split, manifest["dtype"])
            if len(tokens) != manifest["splits"][split]["tokens"] or tokens.max(initial=0) >= entries:
                return f"{split}.bin does not fit the manifest and the tokenizer"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError) as error:
        return f"it cannot be used ({' '.join(str(error).split())[:200]})"
    return None


def hash_of(value: Any) -> str:
    """The sha256 of anything JSON can write."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
