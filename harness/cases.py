"""Cases of an experiment, measured in a process of their own that ends in time, and kept one by one as they come.

So a case that runs out of memory or time, or breaks its process, costs no other its figures, and what was cut short
goes on.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from harness import devices
from harness.messages import RunFailed, one_line
from harness.pages import ROOT
from harness.tables import markdown

Case = tuple[str, Callable[[], dict[str, Any]]]
"""A line of a table: its name, and what finds its figures, by their headings."""

Cases = Callable[[torch.device], Iterator[Case]]
"""Lists the cases of a part of an experiment, on a device."""


class Part(TypedDict):
    """What is found of a part, as its file has it."""

    made: dict[str, str | None]  # what the figures depend on
    rows: dict[str, dict[str, str | float | None]]
    failed: str  # why the part is not whole


PART = TypeAdapter(Part)


def work_in_child(list_cases: Cases, device: torch.device, done: set[str], to: Connection) -> None:
    """Send every case that is not done, (name, row), as soon as it is measured, and None at the end."""
    os.setsid()  # so that it can be ended with all that it starts
    for name, work in list_cases(device):
        if name in done:
            continue
        try:
            row = work()
        except Exception as error:
            row = {"failed": describe(error)}
        to.send((name, row))
        gc.collect()  # the model of before, which an error may have held
    to.send(None)


def describe(error: Exception) -> str:
    """An error as a line that names no place on this machine."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, RunFailed):
        text = str(error)
    text = devices.why_not_compiled(error) or text
    return one_line(" ".join(text.replace(str(ROOT), ".").replace(str(Path.home()), "~").split())[:400])


def measure_part(list_cases: Cases, seconds: float, device: torch.device, part: Part) -> Iterator[str]:
    """Measure the cases that a part is missing, in a new process, for so many seconds; yields the name of each."""
    context = multiprocessing.get_context("spawn")  # CUDA cannot be forked
    of, to = context.Pipe(duplex=False)
    done = {name for name, row in part["rows"].items() if "failed" not in row}
    process = context.Process(target=work_in_child, args=(list_cases, device, done, to))
    ends, part["failed"], died = time.monotonic() + seconds, "", False
    process.start()
    to.close()
    try:
        while of.poll(max(0.0, ends - time.monotonic())):
            if (case := of.recv()) is None:
                return
            part["rows"][case[0]] = case[1]
            yield case[0]
        part["failed"] = f"cut short after {seconds:g} s; the same command goes on"
    except EOFError:
        died = True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()  # if it had no group of its own yet
        process.join()
        of.close()
        if died:
            part["failed"] = f"its process ended with exit code {process.exitcode}"


def format_cell(heading: str, value: str | float | None) -> str:
    if value is None or isinstance(value, str):
        return value or "n/a"
    if heading.startswith("share"):
        return f"{value:.0%}"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """A part's rows as a Markdown table: a column for every heading that a row has."""
    headings = list(dict.fromkeys(heading for row in rows.values() for heading in row))
    lines = [[name, *(format_cell(heading, row.get(heading)) for heading in headings)] for name, row in rows.items()]
    return markdown([["", *headings], *lines])
