"""The one door to files that may be somebody else's.

.venv/bin/python -m pytest tests/test_opening.py
"""

import os
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from harness import opening
from harness.opening import Damaged, open_inside, parse_json, read_inside


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with every kind of thing that a name may lead to."""
    monkeypatch.setitem(opening.MOST, ".json", 10)
    made = tmp_path / "run"
    (made / "checkpoints").mkdir(parents=True)
    (tmp_path / "outside.json").write_text("{}")
    (made / "whole.json").write_text("0123456789")
    (made / "large.json").write_text("0123456789.")
    (made / "folder.json").mkdir()
    (made / "inside.json").symlink_to("whole.json")
    (made / "out.json").symlink_to(tmp_path / "outside.json")
    (made / "loop.json").symlink_to("loop.json")
    (made / "step-1").symlink_to(tmp_path)
    os.mkfifo(made / "fifo.json")
    return made


def test_a_regular_file_is_read_and_so_is_a_link_within_the_folder(folder):
    assert read_inside(folder, "whole.json") == read_inside(folder, "inside.json") == b"0123456789"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("large.json", "has 11 bytes, and 10 are the most"),
        ("folder.json", "is no regular file"),
        ("fifo.json", "is no regular file"),  # and nobody waits for a writer
        ("out.json", "leads out of"),
        ("step-1/outside.json", "leads out of"),
        ("../outside.json", "leads out of"),
        ("loop.json", "is a link that leads in a circle"),
    ],
)
def test_anything_else_is_damaged_and_named(folder, name, says):
    with pytest.raises(Damaged, match=f"{name} {says}"):
        read_inside(folder, name)


def test_what_is_not_there_is_an_error_of_the_system(folder):
    with pytest.raises(FileNotFoundError, match=r"missing\.json"):
        read_inside(folder, "missing.json")


def test_a_folder_that_is_a_link_itself_is_the_users_choice(folder):
    (folder.parent / "link").symlink_to(folder)
    assert read_inside(folder.parent / "link", "whole.json") == b"0123456789"


def test_a_file_that_grows_meanwhile_is_not_taken_for_whole(folder, monkeypatch):
    real = os.fstat

    class Grew:
        def __init__(self, descriptor: int) -> None:
            self.st_mode, self.st_size = real(descriptor).st_mode, real(descriptor).st_size - 1

    monkeypatch.setattr(opening.os, "fstat", Grew)
    with pytest.raises(Damaged, match="grew while it was read"):
        read_inside(folder, "whole.json")


def test_no_descriptor_is_left_open(folder):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for name in ("whole.json", "large.json", "fifo.json", "folder.json"):
        with pytest.raises(Damaged) if name != "whole.json" else open_inside(folder, name):
            read_inside(folder, name)
    assert (len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0) == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "Invalid JSON"),
        (b"\xff", "Invalid JSON"),
        (b'{"a": ' + b"[" * 100_000, "recursion"),
        (b'{"a": 1}', "at a: Input should be a valid string"),
        (b"[]", "Input should be"),
        (b'{"a": ' + b"9" * 6000 + b"}", "number out of range"),
    ],
    ids=["empty", "bytes", "nested", "type", "list", "digits"],
)
def test_json_that_does_not_fit_is_one_line(content, says):
    with pytest.raises(Damaged, match=says) as error:
        parse_json(TypeAdapter(dict[str, str]), content, Path("x.json"))
    assert len(str(error.value)) < 500
    assert "\n" not in str(error.value)
