"""Ctrl-C and SIGTERM from a script's first line on: exit code 130 or 143, and no traceback.

    import harness.stops  # the first import of a script

Python turns Ctrl-C into an exception. Raised amid an import it ends in a long traceback, or in SIGABRT where the module
is C++; and PyTorch takes seconds to import. Before a main is at work (messages.run_main), and after it, nothing is left
to save or to tidy up: the process ends at once.

.venv/bin/python -m pytest tests/test_stops.py
"""

import atexit
import contextlib
import os
import signal
import stat
import sys
from collections.abc import Callable

in_main = False  # whether run_main has called a main that has not come back
came: int | None = None  # the signal that asked this main to stop
code: int | None = None  # with which run_main ends the script


def hush(number: int) -> None:
    """At SIGHUP, discard what is still printed to the terminal: it is gone, and each line would be an error."""
    for stream in (1, 2) if number == signal.SIGHUP else ():
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def stop(number: int, frame: object, leave: Callable = os._exit) -> None:  # not looked up: Python clears modules last
    """End the process: at once, or, amid a main, by the exceptions that lead to exit codes 130 and 143."""
    global came
    hush(number)
    if not in_main:
        leave(128 + number)
    came = number
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def end() -> None:
    """End the process here with the main's exit code: to free all that PyTorch holds would take seconds more."""
    if code is None:
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def describe_missing(error: ModuleNotFoundError) -> str:
    """What to say of a library that is not there: most often, the environment that has it is not active."""
    how = "make setup, once, and source .venv/bin/activate in each new shell"
    return f"{error.name} is not installed for {sys.executable}: {how}"


def report_missing(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """Python's excepthook: of a library that is missing or cannot be loaded, one line; of anything else, a traceback.

    It cannot be loaded where a limit on memory or open files is too low, say.
    """
    if not isinstance(error, ImportError | MemoryError | OSError):
        sys.__excepthook__(kind, error, trace)
        return
    line = f"a library cannot be loaded: {' '.join(str(error).split())[:200] or 'out of memory'}"
    line = describe_missing(error) if isinstance(error, ModuleNotFoundError) else line
    print(f"{os.path.basename(sys.argv[0])}: {line}", file=sys.stderr, flush=True)
    os._exit(3)


importer = sys._getframe().f_back
while importer and importer.f_code.co_filename.startswith("<frozen importlib"):
    importer = importer.f_back
# Only in a script, or in a process that multiprocessing starts for it: others may import one and have their own ways.
if importer and importer.f_globals["__name__"] in ("__main__", "__mp_main__"):
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in a shell's background job
        signal.signal(signal.SIGINT, stop)
    atexit.register(end)  # registered first, called last
    sys.excepthook = report_missing
