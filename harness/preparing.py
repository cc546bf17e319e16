"""From text to tokens on disk, once: a corpus is copied to one file, cut into splits, encoded, and kept in a cache.

    documents --> spool, one file of text --> train | validation | test --> one flat file of token ids per split

Every step streams, so memory stays flat however large a corpus is. Later runs find the result in the cache and map it.
"""

import codecs
import contextlib
import errno
import hashlib
import importlib.metadata
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from harness import byte_level
from harness.byte_level import special_id, token_bytes
from harness.corpora import READ_BYTES, DataConfig, Texts, find_source, read_source
from harness.messages import BadInput, tell
from harness.prepared import SPLITS, find_damage, hash_of, read_manifest

FORMAT = 1  # goes into every cache key: raise it when prepared files would come out differently
CUTS = (90, 95)  # percent of the characters at which validation and test begin
MANY_DOCUMENTS = 200  # from here on the cuts move to the next document boundary
TRAINING_BYTES = 64 << 20  # BPE merges are learned from at most this much of the training split
PIECE_BYTES = 16 << 10  # documents are encoded in pieces of this size at most,
GROUP = 64  # this many at a time, in parallel on all cores

count_bytes = partial(tqdm, unit="B", unit_scale=True, delay=2, leave=False, disable=None)  # a bar, on a terminal only


def locate(config: DataConfig) -> tuple[Path, str, list[str]]:
    """The folder that a corpus has in the cache once it is prepared, and its source: see `find_source`."""
    kind, files, identity = find_source(config)
    settings = {key: value for key, value in asdict(config).items() if key not in ("cache", "copied")}
    if config.tokenizer not in ("bpe", "bytes"):
        byte_level.load_tokenizer(config.tokenizer)  # refused here, before anything is read
        settings["tokenizer"] = digest(Path(config.tokenizer))
    depends_on = [FORMAT, settings, identity, importlib.metadata.version("tokenizers")]
    return Path(config.cache, hash_of(depends_on)[:20]), kind, files


def choose_cache(config: DataConfig) -> DataConfig:
    """The data of a run that may be somebody else's: its cache counts if the corpus is prepared there already.

    Otherwise the cache is the default one: no folder is made where a stranger's config says.

    Raises:
        BadInput: if the corpus cannot be found, or is on the hub, which nobody here has asked for it, and in no cache.
    """
    text = replace(config, corpus="kjv") if config.corpus.startswith("task:") else config
    folder, kind, _ = locate(text)
    caches = (config.cache, DataConfig.cache)
    cache = next((cache for cache in caches if Path(cache, folder.name).is_dir()), None)
    if cache is None and kind == "hub":
        fix = "prepare it here first, by a training run with the same options of --data"
        raise BadInput(f"--data.corpus {config.corpus!r} is on the Hugging Face hub and in no cache: {fix}")
    return replace(config, cache=cache or DataConfig.cache)


def find_or_prepare(config: DataConfig, seq_len: int) -> Path:
    """The folder of the corpus that a config asks for: in the cache if it is there and whole, else prepared now.

    When several processes ask at the same time, one prepares and the others wait. A prepared file that was cut short,
    changed or removed is noticed by its size and hash; the corpus is then prepared again, with a warning on stderr.
    What it raises, see `data.load`.
    """
    folder, kind, files = locate(config)
    lock, libraries = Path(f"{folder}.lock"), Path(config.cache, "datasets")
    own = missing(lock, libraries)
    with gone_if_refused(missing(*folder.parents)), locked(lock, config), gone_if_refused(missing(folder) + own):
        if damage := find_damage(folder):
            if folder.exists():
                tell(f"warning: prepared corpus {folder}: {damage}; preparing it again")
            prepare(config, read_source(config, kind, files), folder)
            if locate(config)[0] != folder:  # which has the files' sizes and times in its name
                shutil.rmtree(folder)
                what = "was changed while it was read: wait until nobody writes to it"
                raise BadInput(f"--data.corpus {config.corpus!r} {what}, and start again")
        sizes = read_manifest(folder)["splits"]
        split = min(SPLITS, key=lambda name: sizes[name]["tokens"])
        if (n := sizes[split]["tokens"]) < seq_len + 1:
            what = f"its {split} split has {n} tokens and one window needs {seq_len + 1}"
            fix = f"use a longer text{f' or --model.seq_len {n - 1}' if n > 1 else ''}"
            raise BadInput(f"--data.corpus {config.corpus!r} is too short: {what}: {fix}")
    return folder


def missing(*paths: Path) -> list[Path]:
    """Those of these paths where there is nothing yet."""
    return [path for path in paths if not os.path.lexists(path)]


@contextlib.contextmanager
def gone_if_refused(made: list[Path]) -> Iterator[None]:
    """If what is done within is refused, remove what it made: files, prepared corpora, and cache folders now empty."""
    try:
        yield
    except BadInput:
        for path in made:
            with contextlib.suppress(OSError):
                if path.is_file():
                    path.unlink()
                elif (path / "manifest.json").exists() or path.name == "datasets":
                    shutil.rmtree(path)
                else:
                    path.rmdir()
        raise


@contextlib.contextmanager
def locked(lock: Path, config: DataConfig) -> Iterator[None]:
    """Hold the lock of one prepared corpus, in a cache that is made if it is not there."""
    with contextlib.ExitStack() as held:
        for again in (True, True, False):
            try:
                lock.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(lock))
                break
            except (OSError, ValueError) as error:
                if isinstance(error, FileNotFoundError) and again:  # who made the cache was refused, and removed it
                    continue
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                    raise
                why = getattr(error, "strerror", None) or error
                what = f"cannot be written ({why}): name another folder with --data.cache"
                raise BadInput(f"--data.cache {config.cache!r} {what}") from error
        yield


def prepare(config: DataConfig, texts: Texts, folder: Path) -> None:
    """Prepare a corpus in a temporary folder, and rename the folder when it is complete. The caller holds the lock."""
    temporary = Path(f"{folder}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    temporary.mkdir()
    try:
        document_ends, n_characters, n_skipped = write_spool(config, texts, temporary)
        spool = temporary / "text"
        points = split_points(spool, document_ends, n_characters)
        learned_from = read_pieces(spool, document_ends, 0, min(points[1], TRAINING_BYTES))
        training_texts = (text.decode("utf-8", "ignore") for text, _ in learned_from)
        tokenizer = byte_level.make_tokenizer(config.tokenizer, config.vocab_size, training_texts)
        tokenizer.save(str(temporary / "tokenizer.json"))
        dtype = np.dtype(np.uint16 if len(token_bytes(tokenizer)) <= 1 << 16 else np.uint32)
        end_of_text = dtype.type(special_id(tokenizer, byte_level.END_OF_TEXT)).tobytes()

        splits = {}
        with count_bytes(desc="encoding", total=points[-1]) as bar:
            for split, (start, stop) in zip(SPLITS, itertools.pairwise(points), strict=True):
                with open(temporary / f"{split}.bin", "wb") as file:
                    pieces = read_pieces(spool, document_ends, start, stop)
                    while group := list(itertools.islice(pieces, GROUP)):
                        try:
                            encoded = byte_level.encode_group(tokenizer, group, config.tokenizer == "bytes")
                        except ValueError as error:
                            fix = "use bpe or bytes, or another tokenizer.json"
                            raise BadInput(f"--data.tokenizer {config.tokenizer!r} {error}: {fix}") from error
                        for ids, (text, ends) in zip(encoded, group, strict=True):
                            file.write(np.asarray(ids, dtype).tobytes())
                            file.write(end_of_text if ends else b"")  # not where a split merely cuts a document
                            bar.update(len(text))
                    splits[split] = {"tokens": file.tell() // dtype.itemsize, "bytes": stop - start}

        spool.unlink()
        (temporary / "ends").unlink()
        files = {path.name: {"bytes": path.stat().st_size, "sha256": digest(path)} for path in temporary.iterdir()}
        manifest = {
            "corpus": config.corpus,
            "tokenizer": config.tokenizer,
            "documents": len(document_ends) + (points[-1] not in document_ends[-1:]),  # max_bytes may cut a last one
            "skipped": n_skipped,
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


def write_spool(config: DataConfig, texts: Texts, folder: Path) -> tuple[np.ndarray, int, int]:
    """Write a corpus's text, document after document, to `folder`/text, and where documents end to `folder`/ends.

    Returns:
        the ends in bytes, ascending, (documents,) int64, mapped; the number of characters; and of empty texts skipped.
    """
    n_bytes = n_characters = n_skipped = document_start = 0
    room = config.max_bytes or sys.maxsize
    utf8 = codecs.getincrementaldecoder("utf-8")()
    bar = count_bytes(desc=f"reading {config.corpus}")
    with open(folder / "text", "wb") as file, open(folder / "ends", "wb") as ends_file, bar:
        for text, ends, origin in texts:
            kept = text[: room - n_bytes]
            ends = ends and len(kept) == len(text)
            if not text:
                n_skipped += 1
                continue
            if config.tokenizer != "bytes":
                pending = len(utf8.getstate()[0])  # the first bytes of a character that two pieces share
                try:
                    utf8.decode(kept, final=ends)
                except UnicodeDecodeError as error:
                    what = f"is not UTF-8 at byte {n_bytes - document_start - pending + error.start}"
                    fix = "convert it, or use --data.tokenizer bytes"
                    raise BadInput(f"--data.corpus {origin!r} {what}: {fix}") from None
            n_bytes += file.write(kept)
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
    ended = (folder / "ends").stat().st_size > 0  # none has if max_bytes cuts the first
    document_ends = np.memmap(folder / "ends", np.int64, "r") if ended else np.zeros(0, np.int64)
    return document_ends, n_characters, n_skipped


def character_starts(text: bytes) -> np.ndarray:
    """Where the characters of UTF-8 text begin: at every byte that is no continuation byte, 10xxxxxx."""
    return np.flatnonzero((np.frombuffer(text, np.uint8) & 0xC0) != 0x80)


def split_points(text: Path, document_ends: np.ndarray, n_characters: int) -> list[int]:
    """Byte offsets [0, start of validation, start of test, end]: the same for every tokenizer.

    The cuts are by characters. With many documents they move on to the next document boundary; with few, a document is
    cut at exactly that character.
    """
    n_bytes = text.stat().st_size
    if not n_characters:  # nothing but continuation bytes, which only the bytes tokenizer accepts
        return [0, *(n_bytes * percent // 100 for percent in CUTS), n_bytes]
    points = [byte_of_character(text, n_characters * percent // 100) for percent in CUTS]
    if len(document_ends) >= MANY_DOCUMENTS:
        next_ends = np.searchsorted(document_ends, points)
        points = [int([*document_ends[place:][:1], n_bytes][0]) for place in next_ends]
    return [0, *points, n_bytes]


def byte_of_character(path: Path, character: int) -> int:
    """The byte at which a character of a file begins."""
    position = 0
    with open(path, "rb") as file:
        while character >= len(starts := character_starts(file.read(READ_BYTES))):
            character, position = character - len(starts), position + READ_BYTES
    return position + int(starts[character])


def read_pieces(text: Path, document_ends: np.ndarray, start: int, stop: int) -> Iterator[tuple[bytes, bool]]:
    """The text from byte start to stop in pieces of at most PIECE_BYTES, each with whether a document ends there."""
    first, last = np.searchsorted(document_ends, [start, stop], side="right")
    ends = ((int(end), True) for end in document_ends[first:last])
    with open(text, "rb") as file:
        file.seek(start)
        for end, is_document_end in itertools.chain(ends, [(stop, False)]):
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
