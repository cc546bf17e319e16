"""The one door to files of a run or of a prepared corpus, which may be somebody else's.

What comes in is a regular file inside its folder, of a stated size at most, that fits a schema; anything else is
`Damaged`, in a line that names it. Nothing else of the project opens such files (tests/test_house.py).
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
MOST = {
    ".json": 64 << 20,
    ".yaml": 1 << 17,  # PyYAML takes a second for that, and longrope's lists at their longest fit
    ".jsonl": 16 << 30,
    ".safetensors": 1 << 40,
    ".pt": 1 << 40,
    ".bin": 1 << 40,
}


class Damaged(ValueError):
    """A file cannot be used. The message names it and what is wrong with it."""


@contextmanager
def open_inside(folder: Path, name: str) -> Iterator[BinaryIO]:
    """Open a file of a folder to read it. It never waits, for the writer of a FIFO say.

    Raises:
        OSError: if it is not there or cannot be read.
        Damaged: if it is no regular file, a link leads out of the folder, or it is larger than any of its kind.
    """
    path, real, root = folder / name, os.path.realpath(folder / name), os.path.realpath(folder)
    if not Path(real).is_relative_to(root):
        raise Damaged(f"{path} leads out of {folder}, by a link: put the file itself there")
    with open_regular(path, real) as file:
        yield file


@contextmanager
def open_regular(path: Path, real: str) -> Iterator[BinaryIO]:
    """Open a file that has the kind of `path` and really is at `real`. What it raises, see `open_inside`."""
    try:
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Damaged(f"{path} is a link that leads in a circle") from error
        raise
    try:
        found, most = os.fstat(descriptor), MOST.get(path.suffix, MOST[".json"])
        if not stat.S_ISREG(found.st_mode):
            raise Damaged(f"{path} is no regular file")
        if found.st_size > most:
            raise Damaged(f"{path} has {found.st_size:,} bytes, and {most:,} are the most that such a file may have")
    except BaseException:
        os.close(descriptor)
        raise
    with open(descriptor, "rb") as file:
        yield file


def read_inside(folder: Path, name: str) -> bytes:
    """The content of a file of a folder. What it raises, see `open_inside`."""
    with open_inside(folder, name) as file:
        return read_all(file, folder / name)


def read_named(path: Path) -> bytes:
    """The content of a file that the user names, wherever links lead. What else it raises, see `open_inside`."""
    with open_regular(path, os.path.realpath(path)) as file:
        return read_all(file, path)


def read_all(file: BinaryIO, path: Path) -> bytes:
    """The content of an open file. Raises Damaged if it grows meanwhile."""
    size = os.fstat(file.fileno()).st_size
    content = file.read(size + 1)
    if len(content) > size:
        raise Damaged(f"{path} grew while it was read: another program writes to it")
    return content


def parse_json(schema: TypeAdapter[T], content: bytes | str, path: Path) -> T:
    """JSON as what a schema says. Raises Damaged, naming the file and the first place that does not fit."""
    try:
        return schema.validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:100]
        raise Damaged(f"{path} is damaged{f' at {where}' if where else ''}: {first['msg'][:200]}") from error
