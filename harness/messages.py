"""How every script ends: what went wrong is one line on stderr, and the exit code is honest.

0    done
2    bad input: something that cannot be done was asked for, for example a damaged run folder; nothing was changed
3    failed while running: a loss that is not finite, no space or memory left, an output that its reader has closed;
     what was logged is kept
129  stopped as its terminal was closed (SIGHUP); under nohup it goes on
130  stopped by Ctrl-C (SIGINT)
143  stopped by SIGTERM

A training run that is stopped finishes its step and saves first, so that --run.resume true goes on from there; a second
Ctrl-C or SIGTERM ends it at once. At SIGUSR1, with which clusters warn before they take a machine away, it saves.
While a script still imports, both end it at once (harness/stops.py).
"""

import contextlib
import difflib
import errno
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from harness import stops

NO_SUCH_PLACE = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)

LONGEST_WORD = 1000  # characters of a word in an error; more are cut


class BadInput(ValueError):
    """Something impossible was asked for. The message names the flag or file, the value, and what would do."""


class RunFailed(RuntimeError):
    """Something broke while the work was going on, a NaN loss for example. What was logged up to then is kept."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known word closest to a misspelt one, or nothing when none is close."""
    known = list(known)
    longer = [name for name in known if word and name.startswith(word)]
    close = longer or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def run_main(main: Callable[[list[str] | None], Any], argv: list[str] | None = None, prints: bool = False) -> NoReturn:
    """Call a main and leave with its exit code: bad input and failures are one line on stderr, no traceback.

    Args:
        main: what to call.
        argv: with these words; those of the command line if not given.
        prints: whether its output is its only purpose: then a reader that closes the pipe, such as head, is no failure.
    """
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by whoever started this
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115
        if hasattr(getattr(sys, stream), "reconfigure"):  # a terminal may lack some characters of a text or a name
            getattr(sys, stream).reconfigure(errors="backslashreplace")
    rank = os.environ.get("RANK", "0")  # an error that all processes meet is reported by rank 0 (harness/processes.py)
    name = os.path.basename(sys.argv[0]) + ("" if rank == "0" else f" on rank {rank}")
    warnings.formatwarning = lambda message, *_: f"{name}: warning: {one_line(' '.join(str(message).split()))}\n"
    signal.signal(signal.SIGTERM, stops.stop)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, stops.stop)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it would end a script that has nothing to save yet
    met: BaseException | None = None
    try:
        stops.in_main, stops.came = True, None
        main(argv)
    except BaseException as error:
        met = error
    stops.in_main = False  # an assignment, not a call: Python hands signals over only at calls and loops
    code = 0 if met is None else report_error(met, name, prints)
    try:
        sys.stdout.flush()
    except OSError as error:
        silence()  # or Python would complain as it flushes once more
        if not isinstance(error, BrokenPipeError):  # a full disk, say; a reader who has left by now left after the work
            code = code or report_error(error, name)
    signal.signal(signal.SIGTERM, stops.stop)  # whatever the main has left there
    stops.code = code
    if "LOCAL_RANK" in os.environ:  # one of many processes
        # Without tearing anything down: while Python destroys DDP it holds its global lock and waits for gloo's thread,
        # which may need that lock to release its last tensor. Once in many runs both waited for ever.
        stops.end()
    sys.exit(code)


def silence() -> None:
    """Discard whatever is still printed: its reader has gone."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report_error(error: BaseException, name: str, prints: bool = False) -> int:
    """Report in one line on stderr what ended a main, and return its exit code. An unforeseen error is raised again."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 130
    if stops.came and not isinstance(error, BadInput | RunFailed | MemoryError | OSError):
        return 128 + stops.came  # a KeyboardInterrupt that C code has turned into another error, amid an import perhaps
    line, code = None, 3
    if isinstance(error, BrokenPipeError):
        silence()
        if prints:
            return 0
        line = "whoever read the output has closed it, and the work stopped there: send it to a file, with > FILE"
    elif isinstance(error, BadInput):
        line, code = str(error), 2
    elif isinstance(error, RunFailed | MemoryError):
        line = str(error) or "out of memory: try a smaller --run.micro_batch_size"
    elif isinstance(error, OSError) and error.errno in NO_SUCH_PLACE and error.filename:
        line, code = f"{str(error.filename)[:200]}: {error.strerror}: name another place", 2
    elif isinstance(error, ModuleNotFoundError):
        line = stops.describe_missing(error)
    elif isinstance(error, OSError) and error.strerror:
        line = f"{error.strerror}: {error.filename or 'the disk'}"
    elif isinstance(error, RuntimeError) and "allocate memory" in str(error):  # PyTorch's word for a CPU without any
        line = f"out of memory: {' '.join(str(error).split())[:200]}"
    if line is None:
        raise error
    tell(f"{name}: {line}")
    return code


def one_line(text: str) -> str:
    """A text as one line for a terminal: a name, of a file's column say, may contain a line end, or command it."""
    text = re.sub(rf"(\S{{{LONGEST_WORD}}})\S+", r"\1...", text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def tell(message: object) -> None:
    """Print a message as one line on stderr. Every message of ours comes through here."""
    with contextlib.suppress(OSError):  # where nobody listens, the exit code is enough
        print(one_line(str(message)), file=sys.stderr, flush=True)


def refuse_unknown(flag: str, words: list[str], known: Iterable[str]) -> None:
    """Raise BadInput for the first word that is not known, with the nearest that is."""
    for word in words:
        if word not in known:
            raise BadInput(f"--{flag} {word or repr(word)} is none of {', '.join(known)}{nearest(word, known)}")
