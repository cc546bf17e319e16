"""Files and folders that are whole or not there at all: written aside, flushed to disk, renamed."""

import errno
import os
import shutil
from pathlib import Path
from typing import TextIO

from harness.messages import BadInput


def write_flushed(path: Path, content: bytes) -> None:
    """Write a new file and flush it to disk. Every file of a run but metrics.jsonl comes through here."""
    path.unlink(missing_ok=True)  # left by a process with the same number; a link must not be written through
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Flush a folder's list of names to disk: until then a power cut may undo a rename."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that whoever looks sees the old one or the new one, never a part of one.

    A link is replaced and not followed. Raises OSError if something else than a file is there, a device say.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "something else than a file is there", str(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_flushed(temporary, content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
        flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_folder_whole(path: Path, files: dict[str, bytes]) -> None:
    """Write a folder of files so that it is there with all of them, or not at all. It must be a new one."""
    temporary = path.with_name(f".{path.name}")
    try:
        if not path.parent.exists():
            path.parent.mkdir()
            flush_folder(path.parent.parent)
        temporary.mkdir()
        for name, content in files.items():
            write_flushed(temporary / name, content)
        flush_folder(temporary)
        os.replace(temporary, path)
        flush_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def open_new(path: Path) -> TextIO:
    """Open a log in place of what is there: a link is not written through, and a FIFO not waited for."""
    path.unlink(missing_ok=True)
    return open(path, "x", encoding="utf-8")


def remove(path: Path) -> None:
    """Remove whatever is there: a file, a folder with all that is in it, or a link, which is not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse_unwritable(flag: str, path: Path, suffix: str) -> None:
    """Raise BadInput if a file of a kind cannot be written where a flag wants it; nothing is left there or changed.

    What is there already must be a file of that kind, and none of a run: evaluate.png alone may be made again.
    """
    if path.suffix != suffix:
        raise BadInput(f"--{flag} {str(path) if path.name else repr('')} must be a {suffix} file, such as a{suffix}")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise BadInput(f"--{flag} {path} is there and no plain file: name another")
    if path.exists() and path.name != "evaluate.png" and (path.parent / "config.yaml").exists():
        raise BadInput(f"--{flag} {path} is a file of the run in {path.parent}: name another")
    try:
        there = path.exists()
        path.open("ab").close()
        if not there:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise BadInput(f"--{flag} {path} cannot be written ({error.strerror}): name a file that can") from error
