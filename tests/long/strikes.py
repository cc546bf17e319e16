"""A run that can be watched and struck: what tests/long/faults.py does its campaigns with.

A try is a process forked from this one, which has imported everything already, so it costs a fraction of a second. What
a try does it does to itself, by a hook on the functions of train.py and on the calls that change files, or its parent
kills it at a random moment. Two runs that are the same have equal weights, metrics and results, to the bit.
"""

import builtins
import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))  # for a script in tests/


import data  # noqa: E402
import train  # noqa: E402
from harness import files, folder, messages, preparing, progress  # noqa: E402
from harness.folder import RunFolder  # noqa: E402
from harness.run import Run  # noqa: E402
from harness.run_options import make_run_parser, parse_run  # noqa: E402

SCHEMES = ("rope", "alibi", "t5", "learned")
STEPS, EVAL_EVERY, SAVE_EVERY = 24, 7, 5
PHASES = (
    *("starting", "preparing data", "opening the folder", "first step", "training", "logging", "evaluating", "saving"),
    *("measuring at the end", "writing the weights", "writing the result", "closing"),
)
WORDS = ("in the", "beginning", "God", "created", "heaven", "and", "earth", "light", "upon a", "naïve", "; it was so.")


# ---- what is the same ------------------------------------------------------------------------------------------------


def events(folder: Path) -> list[dict[str, Any]]:
    """All of metrics.jsonl but what the clock says."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in event.items() if k not in ("seconds", "tokens_per_second")} for event in lines]


def outcome(folder: Path) -> tuple[str, list[dict[str, Any]], list[Any]]:
    """All that must be the same to the bit in two runs that are the same: weights, metrics, results."""
    found = json.loads((folder / "result.json").read_text())
    names = ("status", "step", "batches_sha256", "shared_init_sha256", "val_loss", "test_loss", "best")
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert found["weights_sha256"] == weights
    return weights, events(folder), [found[name] for name in names]


def once_and_in_order(folder: Path, steps: int, eval_every: int) -> bool:
    """Whether metrics.jsonl has every step once, in order, with its looks."""
    looks = {*range(eval_every, steps, eval_every), steps}
    expected = [each for n in range(1, steps + 1) for each in [(n, "train"), *[(n, "val")] * (n in looks)]]
    return [(event["step"], event["split"]) for event in events(folder)] == expected


# ---- a run that can be watched and struck ----------------------------------------------------------------------------

SHARED = mmap.mmap(-1, mmap.PAGESIZE)  # a page that a forked process and this one both see: its phase, two counts
FILE_CALLS, PHASES_BEGUN = 8, 16  # where these counts stand


def phase() -> str:
    return PHASES[SHARED[0]]


def counted(what: int) -> int:
    return struct.unpack_from("<q", SHARED, what)[0]


def count_one(what: int) -> int:
    struct.pack_into("<q", SHARED, what, counted(what) + 1)
    return counted(what) - 1


Strike = Callable[[], None]


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def note_phases(strike: Strike | None = None, at: str | None = None, moment: int = 0) -> None:
    """Keep SHARED up to date with the phase that this process is in.

    Args:
        strike: what happens to the run.
        at: the phase at whose beginning it happens.
        moment: which time that phase begins, from 0.
    """
    begun: Counter[str] = Counter()

    def enter(name: str) -> None:
        SHARED[0] = PHASES.index(name)
        count_one(PHASES_BEGUN)
        if strike and name == at and begun[name] == moment:
            begun[name] += 1
            strike()
        else:
            begun[name] += 1

    def mark(owner: Any, function: str, name: Callable[..., str]) -> None:
        real = getattr(owner, function)

        def marked(*args: Any, **kwargs: Any) -> Any:
            before = SHARED[0]
            enter(name(*args, **kwargs))
            try:
                return real(*args, **kwargs)
            finally:
                SHARED[0] = before

        setattr(owner, function, marked)

    def score_of(run: Run, split: str, count: int | None = None) -> str:
        return "evaluating" if count else "measuring at the end"

    def step_of(step: int, config: train.RunConfig) -> str:
        return "training" if step else "first step"

    real_steps = Run.steps

    def steps(run: Run) -> Iterator[int]:
        before = SHARED[0]
        enter("training")
        yield from real_steps(run)
        SHARED[0] = before

    Run.steps = steps
    mark(data, "load", lambda *_: "preparing data")
    mark(RunFolder, "__init__", lambda *_: "opening the folder")
    mark(RunFolder, "log", lambda *_, **__: "logging")
    mark(RunFolder, "checkpoint", lambda *_: "saving")
    mark(RunFolder, "save", lambda *_: "writing the weights")
    mark(RunFolder, "result", lambda *_, **__: "writing the result")
    mark(Run, "score", score_of)
    mark(train, "learning_rate", step_of)
    mark(progress, "describe_outcome", lambda *_: "closing")


def watch_files(act: Callable[[int, str], None]) -> None:
    """Call `act(which, when)` before, in the middle of (`amid`, writes only) and after every call that changes a file.

    These are os.replace, rename, mkdir, rmdir, unlink and fsync, and opening for writing and every write in
    harness/files.py, harness/folder.py and harness/preparing.py. What `act` raises takes the call's place.
    """

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            which = count_one(FILE_CALLS)
            act(which, "before")
            result = real(*args, **kwargs)
            act(which, "after")
            return result

        return call

    for name in ("replace", "rename", "mkdir", "rmdir", "unlink", "fsync"):
        setattr(os, name, watched(getattr(os, name)))

    class File:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, content: Any) -> int:
            which = count_one(FILE_CALLS)
            act(which, "before")
            half = len(content) // 2
            self.file.write(content[:half])
            self.file.flush()
            act(which, "amid")
            self.file.write(content[half:])
            act(which, "after")
            return len(content)

        def __enter__(self) -> "File":
            return self

        def __exit__(self, *what: Any) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    def watched_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        writes = set(mode) & set("wax+")
        return (
            File(watched(builtins.open)(file, mode, *args, **kwargs)) if writes else open(file, mode, *args, **kwargs)
        )

    files.open = folder.open = preparing.open = watched_open  # before the built-in one, for these files


def strike_file_call(strike: Strike, at: int, when: str) -> None:
    """Something happens at the at-th call that changes a file, from 0."""
    watch_files(lambda which, now: strike() if (which, now) == (at, when) else None)


def fail(code: int) -> None:
    raise OSError(code, os.strerror(code))


@dataclass
class Ended:
    """What a process left."""

    code: int  # negative: the signal that killed it
    out: str
    err: str
    phase: str


@dataclass
class Try:
    """A process that runs a script's main, forked from this one."""

    main: Callable[[list[str] | None], Any]
    hooks: tuple[Callable[[], None], ...] = ()
    argv: list[str] = field(default_factory=list)
    log: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="try-", dir=WORK[0])))

    def start(self) -> "Try":
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        SHARED[:24] = bytes(24)
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                for number, name in ((1, "out"), (2, "err")):
                    os.dup2(os.open(self.log / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
                signal.signal(signal.SIGINT, signal.default_int_handler)  # in a shell's background job it is ignored
                for hook in self.hooks:
                    hook()
                messages.run_main(self.main, self.argv)
            except SystemExit as ended:
                code = ended.code
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        return self

    def send(self, number: int, draw: random.Random, most: int) -> "Try":
        """Send a signal at a random moment: after some of as many phases as it begins at most, and a while more.

        Not simply after a random time, since how long a run takes depends on what else the machine does.
        """
        phases = draw.randrange(most)
        while counted(PHASES_BEGUN) < phases and not self.has_ended():
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.02))
        self.struck_in = phase()
        os.kill(self.pid, number)  # it is still there, if only for its parent to ask how it ended
        return self

    def has_ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def end(self) -> Ended:
        """Wait until it ends."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        out, err = (
            (self.log / name).read_text(errors="replace") if (self.log / name).exists() else ""
            for name in ("out", "err")
        )
        shutil.rmtree(self.log)
        return Ended(code, out, err, phase())


WORK: list[Path] = []  # the folder that everything is done in


def training(argv: list[str]) -> Callable[[list[str] | None], Any]:
    """A main that trains as a command line says. It is parsed here, and but once for all folders: that takes long."""
    places = {name: argv[argv.index(f"--{name}") + 1] for name in ("run.out", "data.cache")}
    key = tuple(word for word in argv if word not in places.values())
    if key not in PARSED:
        flags = [*argv, "--run.out", "any", "--run.name", "any", "--data.cache", "any"]
        PARSED[key] = parse_run(flags, make_run_parser("train.py", "a try"))[1:]
    data_config, model_config, config = PARSED[key]
    data_config = replace(data_config, cache=places["data.cache"])
    return lambda _: train.train(data_config, model_config, replace(config, out=places["run.out"]))


PARSED: dict[tuple[str, ...], tuple[data.DataConfig, Any, train.RunConfig]] = {}


def attempt(argv: list[str], *hooks: Callable[[], None]) -> Ended:
    return Try(training(argv), hooks or (note_phases,)).start().end()


def command(folder: Path, scheme: str, *flags: str) -> list[str]:
    """A run of a fraction of a second, with a data cache of its own, so that data are prepared in every run anew."""
    return [
        *("--data.corpus", str(WORK[0] / "corpus.txt"), "--data.cache", str(folder) + "-cache"),
        *("--data.tokenizer", "bpe", "--data.vocab_size", "280"),
        *("--model.d_model", "16", "--model.n_layer", "1", "--model.n_head", "2", "--model.seq_len", "16"),
        *("--model.position", scheme, "--run.out", str(folder), "--run.resume", "true"),
        *("--run.steps", str(STEPS), "--run.batch_size", "4", "--run.learning_rate", "0.003", "--run.beta2", "0.95"),
        *("--run.eval_every", str(EVAL_EVERY), "--run.eval_windows", "4", "--run.save_every", str(SAVE_EVERY)),
        *("--run.precision", "fp32", "--run.device", "cpu", "--run.threads", "1", "--run.wandb", "disabled", *flags),
    ]


@dataclass
class Whole:
    """A run that nothing happened to."""

    folder: Path
    calls: int  # that change a file
    phases: int  # that it begins
    outcome: tuple[Any, ...]


WHOLE: dict[str, Whole] = {}


def whole(scheme: str) -> Whole:
    """A scheme's run that nothing happened to, made once."""
    if scheme not in WHOLE:
        folder = WORK[0] / f"whole-{scheme}"
        ended = attempt(command(folder, scheme), note_phases, lambda: watch_files(lambda *_: None))
        assert ended.code == 0, ended.err
        WHOLE[scheme] = Whole(folder, counted(FILE_CALLS), counted(PHASES_BEGUN), outcome(folder))
    return WHOLE[scheme]


@dataclass
class Count:
    """What a campaign counts: its tries, those in which something was lost, and whatever else there is to say."""

    tries: int = 0
    losses: list[str] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    def check(self, good: Any, what: str, ended: Ended | None = None) -> bool:
        """Note a loss unless something is as it must be."""
        if not good:
            said = " ".join((ended.err or "").split())[-300:].replace(str(WORK[0]), "") if ended else ""
            self.losses.append(f"{what}{f' (exit code {ended.code}: {said})' if ended else ''}")
            print(f"  LOST: {self.losses[-1]}", flush=True)
        return bool(good)

    def goes_on(self, folder: Path, scheme: str, what: str) -> bool:
        """Resume a run that something happened to: it must come to what it would have, and leave nothing behind."""
        ended = attempt(command(folder, scheme))
        if not self.check(ended.code == 0, f"{what}: does not go on", ended):
            return False
        good = self.check(outcome(folder)[0] == whole(scheme).outcome[0], f"{what}: other weights")
        good &= self.check(once_and_in_order(folder, STEPS, EVAL_EVERY), f"{what}: metrics are not complete")
        good &= self.check(outcome(folder) == whole(scheme).outcome, f"{what}: other metrics or results")
        left = [str(path.relative_to(folder)) for path in folder.rglob(".*") if path.name != ".lock"]
        left += [path.name for path in Path(f"{folder}-cache").glob("*.tmp")]
        good &= self.check(not left, f"{what}: left behind {left}")
        shutil.rmtree(folder)
        shutil.rmtree(f"{folder}-cache", ignore_errors=True)
        return good

    def as_json(self) -> dict[str, Any]:
        return {"tries": self.tries, "losses": len(self.losses), **self.more, "lost": self.losses}
