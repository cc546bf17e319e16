"""What every script does at its edge: parse typed options, say what is wrong in one line, end with an honest exit code.

Exit codes:

0    done
2    bad input: something that cannot be done was asked for, a run folder that is none or is damaged say, and nothing
     was changed
3    failed while running: a loss that is no number, no space or memory left, an output that its reader has closed;
     what was logged is kept
130  stopped by Ctrl-C (SIGINT)
143  stopped by SIGTERM

A training run that is stopped finishes its step and saves first, so that --run.resume true goes on from there; a second
Ctrl-C or SIGTERM ends it at once. SIGUSR1, with which clusters warn before they take a machine away, saves and goes on.
"""

import contextlib
import difflib
import errno
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser

NO_SUCH_PLACE = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)


class BadInput(ValueError):
    """Something that cannot be done was asked for. The message names the flag or file, the value, and what would do."""


class RunFailed(RuntimeError):
    """Something broke after the work had begun, a NaN loss say. What was logged up to then is kept."""


class Signals:
    """What a training run is asked from outside: to stop, or to save. Made when it begins, let go when it ends.

    Attributes:
        between_steps: whether the run looks here after every step. Until it does, a stop stops at once.
        stop: the signal that asked to stop, one of STOPS.
        save: whether a save was asked for, by one of SAVES.
    """

    STOPS = (signal.SIGINT, signal.SIGTERM)  # a job of a cluster has others: see harness/cluster.py
    SAVES = (signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ()
    # A cluster may send a stop to compare.py or torchrun and to their processes too, and they hand it on: that makes
    # one stop, not two. In seconds; alone, the second stop counts at once.
    PATIENCE, ALONE = 5.0, True

    def __init__(self) -> None:
        self.between_steps, self.save, self.stop, self.since = False, False, None, 0.0
        begun_by_another = multiprocessing.parent_process() is not None or "LOCAL_RANK" in os.environ  # torchrun's
        self.alone = self.ALONE and not begun_by_another
        self.before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may say what signals do
        for number in (*self.STOPS, *self.SAVES):
            ignored = number == signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN  # a shell's background job
            if not ignored:
                self.before[number] = signal.signal(number, self.note)

    def let_go(self) -> None:
        """Put back what signals did before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: Any) -> None:
        if number in self.SAVES:
            self.save = True
        elif self.stop is None:
            self.stop, self.since = number, time.monotonic()
            if not self.between_steps:
                self.leave(number)
        elif self.alone or time.monotonic() - self.since >= self.PATIENCE:
            os._exit(128 + number)

    def leave(self, number: int | None) -> None:
        """End the run if a signal asked for that: by Python's own ways, which end with 130 and 143."""
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if number is not None:
            raise SystemExit(128 + number)


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known word closest to a misspelt one, or nothing when none is close."""
    known = list(known)
    begun = [name for name in known if name.startswith(word)] if word else []
    close = begun or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def in_words(kind: str) -> str:
    """What to say of a type as jsonargparse spells it: `<class 'int'>` is an int, a whole number."""
    if "Literal" in kind:
        choices = re.findall(r"'([^']*)'", kind)
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    name = re.sub(r"<class '(\w+)'>", r"\1", kind)
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "list[float]": "[1, 2.5] say"}
    return f"{name}, {words[name]}" if name in words else name


class Parser(ArgumentParser):
    """jsonargparse's parser with every error in one line that suggests the nearest right name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)  # a short form would change its meaning with each option

    def known_names(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings if option.startswith("--")]

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        found = super().parse_args(*args, **kwargs)
        if kwargs.get("defaults") is False:  # all there is was given, and a null that may not be is else passed over
            try:
                self.validate(found, skip_unset=False, skip_required=True)
            except (TypeError, ValueError) as error:
                self.error(error)
        return found

    def error(self, message: str | Exception, exception: Exception | None = None) -> NoReturn:
        if isinstance(exception, BadInput):
            raise exception
        line = re.sub(r"alue:$", "alue: ''", " ".join(str(message).split()))  # an empty text would not be seen
        known = [name.lstrip("-") for name in self.known_names()]
        if wrong := re.match(
            r'Parser key "([\w.]+)": .* Subtypes: \[(.*?), <class .NoneType.>\].* Given value: (.*)', line
        ):
            kinds = re.split(r", (?![^\[]*\])", wrong[2])  # at commas, but those of a Literal's own
            line = f"--{wrong[1]} {wrong[3]}: expected {' or '.join(map(in_words, kinds))}"
        elif wrong := re.match(r'Parser key "([\w.]+)": Unable to load config (.*?) - ', line):
            line = (
                f"--{wrong[1]} {wrong[2]}: expected a YAML file or a mapping; or give options, --{wrong[1]}.NAME VALUE"
            )
        elif wrong := re.match(
            r'Parser key "([\w.]+)"(?: element \d+)?: .*?Expected an? (.*?)\.? Got value: ?(.*)', line
        ):
            name, kind, value = wrong.groups()
            choices = re.findall(r"'([^']*)'", kind) if "Literal" in kind else []
            line = f"--{name} {value}: expected {in_words(kind)}{nearest(value, choices)}"
        elif wrong := re.match(r'Parser key "config": (.*)', line):
            line = f"--config: {wrong[1]}"
        elif line.startswith("Problems parsing config"):
            line = f"--config: not YAML: {line}"
        elif unknown := re.search(r"[Uu]nrecognized arguments: (--[\w.-]+)", line):
            line += nearest(unknown[1], self.known_names()) or "; --help lists what there is"
        elif re.search(r"[Uu]nrecognized arguments|arguments are required|expected .*argument|explicit argument", line):
            line = f"{line.removeprefix('argument ')}; --help lists what there is"
        elif unknown := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", line):
            name = f"{unknown[1]}.{unknown[2]}"
            line = f"{name} is not an option{nearest(name, known)}"
        elif unknown := re.search(r"Option '([\w.]+)' is not accepted", line):
            line = f"{unknown[1]} is not an option{nearest(unknown[1], known)}"
        raise BadInput(line) from exception


class PlainLoader(yaml.SafeLoader):
    """YAML without what a config has no use for: a name given twice, of which one would be lost, and references."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # a few lines of them can stand for more than any memory holds
            event = self.peek_event()
            raise yaml.MarkedYAMLError(problem=f"*{event.anchor}: write the value out", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(name := self.construct_object(key, deep=True), str):
                raise yaml.MarkedYAMLError(problem=f"{name!r} is no option's name", problem_mark=key.start_mark)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"{name} is given twice: keep one", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


class ConfigFile(ActionConfigFile):
    """`--config`: a YAML file of sections. Whatever is wrong with it is said by its name, and an empty one is fine."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option_string: str | None = None) -> None:
        if not Path(value).is_file():
            what = "not a file" if Path(value).exists() else "not there"
            raise BadInput(f"--config {value or repr(value)} is {what}: name a YAML file")
        try:
            sections = yaml.load(Path(value).read_text(encoding="utf-8"), PlainLoader)  # a SafeLoader: it runs nothing
        except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
            where = " ".join(str(error).replace('"<unicode string>", ', "").split())
            raise BadInput(f"--config {value} is not YAML that can be used here: {where}; mend that place") from error
        if sections is None:
            return
        if not isinstance(sections, dict):
            raise BadInput(f"--config {value} holds no sections: write `model:` and below it, indented, `d_model: 256`")
        for name, content in sections.items():
            if not isinstance(content, dict):
                raise BadInput(
                    f"--config {value}: {name} is {content!r} and not a section of options: write `model:` and below "
                    "it, indented, `d_model: 256`"
                )
        if not isinstance(rope := sections.get("model", {}).get("rope", {}), dict):
            raise BadInput(
                f"--config {value}: model.rope is {rope!r} and not a section of options: write `rope:` and below it, "
                "indented, `base: 10000`"
            )
        try:
            super().__call__(parser, namespace, value, option_string)
        except BadInput as error:
            raise BadInput(f"--config {value}: {error}") from error


def in_one_line(error: Exception) -> str:
    """What an error says, line ends spelt out: a name that someone gave may hold one."""
    return str(error).replace("\r", "\\r").replace("\n", "\\n")


def first_paragraph(doc: str | None) -> str:
    """The first paragraph of a docstring; nothing under `python -OO`, which has none."""
    return (doc or "").split("\n\n")[0]


def plotting() -> Any:
    """matplotlib's pyplot, for pictures that go to files: no screen is needed, nor what a notebook's MPLBACKEND names.

    Here and not above: it takes a second, and most scripts draw nothing.
    """
    os.environ["MPLBACKEND"] = "Agg"  # before the import, which refuses a name that is not installed
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def run(main: Callable[[list[str] | None], Any], argv: list[str] | None = None, prints: bool = False) -> NoReturn:
    """Call a main and leave with its exit code: bad input and failures are one line on stderr, no traceback.

    Args:
        main: what to call.
        argv: with these words; those of the command line if not given.
        prints: whether what it prints is all it is for, so that a reader who closes the pipe, head say, has it all.
    """
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by whoever started this
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115
        if hasattr(getattr(sys, stream), "reconfigure"):  # a terminal may not know every character of a text or a name
            getattr(sys, stream).reconfigure(errors="backslashreplace")
    rank = os.environ.get("RANK", "0")  # what many processes have met together, rank 0 says: see harness/processes.py
    name = os.path.basename(sys.argv[0]) + ("" if rank == "0" else f" on rank {rank}")
    warnings.formatwarning = lambda message, *_: f"{name}: warning: {message}\n"
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it would end a script that has nothing to save yet
    met: BaseException | None = None
    try:
        main(argv)
    except BaseException as error:
        met = error
    code = 0 if met is None else said(met, name, prints)
    try:
        sys.stdout.flush()
    except OSError as error:
        silence()  # or Python would complain as it flushes once more
        if not isinstance(error, BrokenPipeError):  # a full disk, say; a reader who has left by now left after the work
            code = code or said(error, name)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # all is said: a stop that comes now needs no traceback
    if "LOCAL_RANK" in os.environ:  # one of many processes
        # Without taking anything down: as Python lets go of DDP it waits, holding its lock, for gloo's thread, and that
        # may be waiting for the lock to let go of its last tensor. Seen once in many runs, for ever.
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def silence() -> None:
    """Send what is still printed nowhere, after its reader has gone."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def said(error: BaseException, name: str, prints: bool = False) -> int:
    """Say what ended a main in one line on stderr, and return its exit code. What nobody foresaw is raised again."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 130
    line, code = None, 3
    if isinstance(error, BrokenPipeError):
        silence()
        if prints:
            return 0
        line = "whoever read the output has closed it, and the work stopped there: send it to a file, with > FILE"
    elif isinstance(error, BadInput):
        line, code = in_one_line(error), 2
    elif isinstance(error, RunFailed | MemoryError):
        line = in_one_line(error) or "out of memory: try a smaller --run.micro_batch_size"
    elif isinstance(error, OSError) and error.errno in NO_SUCH_PLACE and error.filename:
        line, code = f"{str(error.filename)[:200]}: {error.strerror}: name another place", 2
    elif isinstance(error, ModuleNotFoundError):
        line = f"{error.name} is not installed for {sys.executable}: pip install -e . or make setup, once"
    elif isinstance(error, OSError) and error.strerror:
        line = f"{error.strerror}: {error.filename or 'the disk'}"
    elif isinstance(error, RuntimeError) and "allocate memory" in str(error):  # PyTorch's word for a CPU without any
        line = f"out of memory: {' '.join(str(error).split())[:200]}"
    if line is None:
        raise error
    with contextlib.suppress(OSError):  # where nobody listens, the code says it
        print(f"{name}: {line}", file=sys.stderr, flush=True)
    return code
