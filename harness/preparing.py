"""From text to tokens on disk, once: a corpus is copied to one file, cut into splits, encoded, and kept in a cache.

    documents --> spool, one file of text --> train | validation | test --> one flat file of token ids per split

Every step streams, so memory stays flat however large a corpus is. Later runs find the result in the cache and map it.
"""

import codecs
import errno
import hashlib
import importlib.metadata
import itertools
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from harness.byte_level import (
    END_OF_TEXT,
    PADDING,
    encode_group,
    load_tokenizer,
    make_tokenizer,
    special_id,
    token_bytes,
)
from harness.corpora import READ_BYTES, DataConfig, Source, find_source, read_source
from harness.messages import BadInput

FORMAT = 1  # goes into every cache key: raise it when prepared files would come out differently
SPLITS = ("train", "validation", "test")
CUTS = (90, 95)  # percent of the characters at which validation and test begin
MANY_DOCUMENTS = 200  # from here on the cuts move to the next document boundary
TRAINING_BYTES = 64 << 20  # BPE merges are learned from at most this much of the training split
PIECE_BYTES = 16 << 10  # documents are encoded in pieces of this size at most,
GROUP = 64  # this many at a time, in parallel on all cores


class PreparedCorpus:
    """A corpus of tokens on disk, mapped, with its tokenizer.

    Attributes:
        name: the corpus as the user named it.
        manifest: what manifest.json holds.
        tokenizer: give it text through `encode`, which treats the text of a special token as ordinary text.
        vocab_size: the tokenizer's entries, V.
        token_bytes: UTF-8 bytes each token stands for, 0 for a special token, (V,) int64. Bits per byte are
            the nats over the scored targets / ln 2 / token_bytes[those targets].sum().
        end_of_text: id of the token after every document.
        padding: id of the token that fills a last window; never scored.
        sha256: identity of the data, a hash of the tokens of all splits and of the tokenizer.
    """

    def __init__(self, name: str, folder: Path) -> None:
        """Map the corpus that `find_or_prepare` left in a folder."""
        self.name, self.manifest = name, json.loads((folder / "manifest.json").read_text())
        self.sha256 = self.manifest["sha256"]
        self.tokenizer = load_tokenizer(folder / "tokenizer.json")
        self.token_bytes = token_bytes(self.tokenizer)  # (V,)
        self.vocab_size = len(self.token_bytes)
        self.end_of_text = special_id(self.tokenizer, END_OF_TEXT)
        self.padding = special_id(self.tokenizer, PADDING)
        self._tokens = {split: np.memmap(folder / f"{split}.bin", self.manifest["dtype"], "r") for split in SPLITS}

    def tokens(self, split: str) -> np.ndarray:
        """All tokens of train, validation or test, in the corpus's order, (N,) uint16 or uint32, mapped read-only."""
        return self._tokens[split]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without an end of text."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; special tokens appear by name, bytes that are not UTF-8 as U+FFFD."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def describe(self) -> str:
        """One line: corpus, tokenizer, and tokens and bytes of each split."""
        made = self.manifest
        skipped = f" ({made['skipped']:,} empty or null texts skipped)" if made["skipped"] else ""
        entries = f"{made['tokenizer']} of {self.vocab_size:,} entries"
        splits = made["splits"].items()
        sizes = [f"{name} {size['tokens']:,} tokens ({size['bytes'] / 1e6:.2f} MB)" for name, size in splits]
        return ", ".join([self.name, f"documents {made['documents']:,}{skipped}", entries, *sizes])


def find_or_prepare(config: DataConfig, seq_len: int) -> Path:
    """The folder of the corpus that a config asks for: in the cache if it is there and whole, else prepared now.

    When several processes ask at the same time, one prepares and the others wait. A prepared file that was cut short,
    changed or removed is noticed by its size and hash; the corpus is then prepared again, with a warning on stderr.

    Raises:
        BadInput: a corpus, tokenizer or cache that cannot be used, or a split shorter than one window of seq_len.
        OSError: no space left; nothing half made stays behind.
    """
    source = find_source(config)
    folder = Path(config.cache, hash_of(identify(config, source))[:20])
    lock = FileLock(f"{folder}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f"--data.cache {config.cache!r} cannot be written ({error.strerror})"
        raise BadInput(f"{where}: name another folder with --data.cache") from error
    try:
        damage = find_damage(folder) if folder.exists() else None
        if damage:
            print(f"warning: prepared corpus {folder}: {damage}; preparing it again", file=sys.stderr)
        if damage or not folder.exists():
            prepare(config, source, folder)
    finally:
        lock.release()
    sizes = json.loads((folder / "manifest.json").read_text())["splits"]
    split = min(SPLITS, key=lambda split: sizes[split]["tokens"])
    if (n_tokens := sizes[split]["tokens"]) < seq_len + 1:
        raise BadInput(
            f"--data.corpus {config.corpus!r} is too short: its {split} split has {n_tokens} tokens and one window "
            f"needs {seq_len + 1}: use a longer text{f' or --model.seq_len {n_tokens - 1}' if n_tokens > 1 else ''}"
        )
    return folder


def identify(config: DataConfig, source: Source) -> list[Any]:
    """What a prepared corpus depends on: when any of it changes, the corpus is prepared anew."""
    settings = {key: value for key, value in asdict(config).items() if key != "cache"}
    if config.tokenizer not in ("bpe", "bytes"):
        load_tokenizer(config.tokenizer)  # refused here, before anything is read
        settings["tokenizer"] = digest(Path(config.tokenizer))
    return [FORMAT, settings, source.identity, importlib.metadata.version("tokenizers")]


class Spool(NamedTuple):
    """A corpus's text in one file, and where its documents end."""

    path: Path
    n_bytes: int
    n_characters: int
    n_skipped: int  # empty or null texts
    ends: np.ndarray  # one byte offset per document, ascending, int64, mapped


def prepare(config: DataConfig, source: Source, folder: Path) -> None:
    """Prepare a corpus in a temporary folder, and rename the folder when it is complete. The caller holds the lock."""
    temporary = Path(f"{folder}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    temporary.mkdir()
    try:
        spool = write_spool(config, read_source(config, source), temporary)
        start_of = split_points(spool)
        learned_from = read_pieces(spool, 0, min(start_of[1], TRAINING_BYTES))
        texts = (text.decode("utf-8", "ignore") for text, _ in learned_from)
        tokenizer = make_tokenizer(config.tokenizer, config.vocab_size, texts)
        tokenizer.save(str(temporary / "tokenizer.json"))
        end_of_text = special_id(tokenizer, END_OF_TEXT)
        dtype = np.dtype(np.uint16 if len(token_bytes(tokenizer)) <= 1 << 16 else np.uint32)

        splits = {}
        with count_bytes("encoding", spool.n_bytes) as bar:
            for split, (start, stop) in zip(SPLITS, itertools.pairwise(start_of), strict=True):
                with open(temporary / f"{split}.bin", "wb") as file:
                    pieces = read_pieces(spool, start, stop)
                    while group := list(itertools.islice(pieces, GROUP)):
                        encoded = encode_group(tokenizer, group, config.tokenizer == "bytes")
                        for ids, (_, ends) in zip(encoded, group, strict=True):
                            file.write(np.asarray(ids, dtype).tobytes())
                            if ends:  # not where a split merely cuts a document
                                file.write(dtype.type(end_of_text).tobytes())
                        bar.update(sum(len(text) for text, _ in group))
                    splits[split] = {"tokens": file.tell() // dtype.itemsize, "bytes": stop - start}

        spool.path.unlink()
        (temporary / "ends").unlink()
        files = {path.name: {"bytes": path.stat().st_size, "sha256": digest(path)} for path in temporary.iterdir()}
        manifest = {
            "corpus": config.corpus,
            "tokenizer": config.tokenizer,
            "documents": len(spool.ends) + (spool.n_bytes not in spool.ends[-1:]),  # a last one may be cut by max_bytes
            "skipped": spool.n_skipped,
            "dtype": dtype.name,
            "splits": splits,
            "files": files,
            "sha256": hash_of(files),  # the data's identity: where it came from and where it lies does not matter
        }
        manifest["check"] = hash_of(manifest)
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def count_bytes(what: str, total: int | None = None) -> tqdm:
    """A progress bar in bytes, shown on a terminal once the work has taken two seconds."""
    return tqdm(desc=what, total=total, unit="B", unit_scale=True, delay=2, leave=False, disable=None)


def write_spool(config: DataConfig, texts: Iterator[tuple[bytes, bool, str]], folder: Path) -> Spool:
    """Write a corpus's text, document after document, to `folder`/text, and where documents end to `folder`/ends.

    Raises:
        BadInput: text that is not UTF-8, unless the tokenizer is bytes; no text at all.
    """
    n_bytes = n_characters = n_skipped = document_start = 0
    room = config.max_bytes or sys.maxsize
    utf8 = codecs.getincrementaldecoder("utf-8")()
    bar = count_bytes(f"reading {config.corpus}")
    with open(folder / "text", "wb") as file, open(folder / "ends", "wb") as ends_file, bar:
        for text, ends, origin in texts:
            if not text:
                n_skipped += 1
                continue
            kept = text[: room - n_bytes]
            ends = ends and len(kept) == len(text)
            if config.tokenizer != "bytes":
                pending = len(utf8.getstate()[0])  # the first bytes of a character that two pieces share
                try:
                    utf8.decode(kept, final=ends)
                except UnicodeDecodeError as error:
                    what = f"is not UTF-8 at byte {n_bytes - document_start - pending + error.start}"
                    fix = "convert it, or use --data.tokenizer bytes"
                    raise BadInput(f"--data.corpus {origin!r} {what}: {fix}") from None
            file.write(kept)
            n_bytes += len(kept)
            n_characters += len(character_starts(kept))
            bar.update(len(kept))
            if ends:
                ends_file.write(n_bytes.to_bytes(8, sys.byteorder))
                document_start = n_bytes
            if n_bytes >= room:
                break
        if torn := len(utf8.getstate()[0]):  # max_bytes fell inside a character
            n_bytes, n_characters = n_bytes - torn, n_characters - 1
            file.truncate(n_bytes)
    if not n_bytes:
        raise BadInput(f"--data.corpus {config.corpus!r} is empty: it holds no text, name another")
    ends_path = folder / "ends"
    document_ends = np.memmap(ends_path, np.int64, "r") if ends_path.stat().st_size else np.zeros(0, np.int64)
    return Spool(folder / "text", n_bytes, n_characters, n_skipped, document_ends)


def character_starts(text: bytes) -> np.ndarray:
    """Where the characters of UTF-8 text begin: at every byte that is no continuation byte, 10xxxxxx."""
    return np.flatnonzero((np.frombuffer(text, np.uint8) & 0xC0) != 0x80)


def split_points(spool: Spool) -> list[int]:
    """Byte offsets [0, start of validation, start of test, end]: the same for every tokenizer.

    The cuts are by characters. With many documents they move on to the next document boundary; with few, a document is
    cut at exactly that character.
    """
    if not spool.n_characters:  # nothing but continuation bytes, which only the bytes tokenizer accepts
        return [0, *(spool.n_bytes * percent // 100 for percent in CUTS), spool.n_bytes]
    points = [0]
    for percent in CUTS:
        point = byte_of_character(spool.path, spool.n_characters * percent // 100)
        if len(spool.ends) >= MANY_DOCUMENTS:
            point = int(np.append(spool.ends[np.searchsorted(spool.ends, point) :][:1], spool.n_bytes)[0])
        points.append(point)
    return [*points, spool.n_bytes]


def byte_of_character(path: Path, character: int) -> int:
    """The byte at which a character of a file begins."""
    position = 0
    with open(path, "rb") as file:
        while character >= len(starts := character_starts(file.read(READ_BYTES))):
            character, position = character - len(starts), position + READ_BYTES
    return position + int(starts[character])


def read_pieces(spool: Spool, start: int, stop: int) -> Iterator[tuple[bytes, bool]]:
    """The spool from byte start to stop in pieces of at most PIECE_BYTES, each with whether a document ends there."""
    first, last = np.searchsorted(spool.ends, [start, stop], side="right")
    document_ends = ((int(end), True) for end in spool.ends[first:last])
    with open(spool.path, "rb") as file:
        file.seek(start)
        for end, is_document_end in itertools.chain(document_ends, [(stop, False)]):
            while start < end:
                piece = file.read(min(PIECE_BYTES, end - start))
                if start + len(piece) < end:
                    piece = piece[: safe_cut(piece)]
                    file.seek(start + len(piece))
                start += len(piece)
                yield piece, is_document_end and start == end


def safe_cut(text: bytes) -> int:
    """Where to cut text that goes on, so that its pieces encode as the whole text does: an offset in bytes.

    GPT-2's pattern never joins text across a single space or newline between two characters that are not white space,
    so the last such place is safe. Text without one is cut after its last whole character.
    """
    characters = text.decode("utf-8", "ignore")  # a character torn at the end is left to the next piece
    last = re.match(r"(?s).*\S(?=[ \n]\S)", characters)
    return len((last[0] if last else characters).encode()) or len(text)


def digest(path: Path) -> str:
    """A file's sha256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(value: Any) -> str:
    """The sha256 of anything JSON can write."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def find_damage(folder: Path) -> str | None:
    """What is wrong with a prepared corpus, or None if it is whole."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest.pop("check") != hash_of(manifest):
            return "manifest.json was changed"
        for name, recorded in manifest["files"].items():
            if (size := (folder / name).stat().st_size) != recorded["bytes"]:
                return f"{name} has {size:,} bytes and not {recorded['bytes']:,}"
            if digest(folder / name) != recorded["sha256"]:
                return f"{name} was changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"manifest.json cannot be used ({type(error).__name__})"
    return None
