"""Files and folders that are whole or not there at all: written aside, flushed to disk, renamed."""

import os
import shutil
from pathlib import Path

from harness.messages import BadInput


def write_flushed(path: Path, content: bytes) -> None:
    """Write a file and flush it to disk. Every file of a run but metrics.jsonl comes through here."""
    with open(path, "wb") as file:
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
    """Write a file so that whoever looks sees the old one or the new one, never a part of one."""
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


def refuse_unwritable(flag: str, path: Path) -> None:
    """Raise BadInput if a file cannot be written where a flag wants it; nothing is left there, nothing is changed."""
    try:
        there = path.exists()
        path.open("ab").close()
        if not there:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise BadInput(f"--{flag} {path} cannot be written ({error.strerror}): name a file that can") from error
