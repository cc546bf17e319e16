"""What tests of the scripts share: a small text, the flags of a run of seconds, and one finished run of every scheme.

A finished run is made once and only read; a test that wants to break one copies it first.
"""

import os
import random
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from texts import load_corpus, prose, write

import data
import train
from harness import devices, messages

torch.set_num_threads(1)  # tests are many small things: threads would only wait for each other
os.environ.setdefault("WANDB_MODE", "disabled")  # a test that wants W&B asks for it by --run.wandb

WORDS = (
    "in the",
    "beginning",
    "God",
    "created",
    "heaven",
    "and",
    "earth",
    "light",
    "upon a",
    "naïve",
    "deep",
    "; it was so.",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a card where there is none."""
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA card"))


@dataclass
class Outcome:
    """What a command leaves at the shell."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """A shell starts what runs in its background, a CI job say, deaf to Ctrl-C, and tests send that signal.

    Under nohup it is deaf to SIGHUP.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    """A script may set threads, signal handlers and the look of warnings; here the next test must not feel it."""
    threads, look = torch.get_num_threads(), warnings.formatwarning
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    warnings.formatwarning = look


@pytest.fixture(scope="session")
def text() -> str:
    """Three thousand words in a row that repeats often, not all of it ASCII."""
    draw = random.Random(0)
    return " ".join(draw.choice(WORDS) for _ in range(3000)) + "\n"


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory, text: str) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "tiny.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path) -> list[str]:
    """Flags of a run of a fraction of a second; later flags take precedence, so a test appends its own."""
    return [
        *("--data.corpus", str(corpus_file), "--data.cache", str(tmp_path_factory.mktemp("cache"))),
        *("--data.tokenizer", "bytes", "--data.vocab_size", "300"),
        *("--model.d_model", "16", "--model.n_layer", "1", "--model.n_head", "2", "--model.seq_len", "16"),
        *("--run.steps", "4", "--run.batch_size", "4", "--run.eval_every", "2", "--run.eval_windows", "4"),
        *("--run.learning_rate", "0.003", "--run.beta2", "0.95"),
        *("--run.precision", "fp32", "--run.device", "cpu", "--run.threads", "1", "--run.wandb", "disabled"),
    ]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, small: list[str]) -> Callable[[str], Path]:
    """The folder of a scheme's finished run: 40 steps, trained when first asked for."""
    folders: dict[str, Path] = {}

    def folder(scheme: str) -> Path:
        if scheme not in folders:
            folders[scheme] = tmp_path_factory.mktemp("finished") / scheme
            own = ["--model.position", scheme, "--run.steps", "40", "--run.learning_rate", "0.01"]
            train.main([*small, *own, "--run.eval_every", "20", "--run.out", str(folders[scheme])])
        return folders[scheme]

    return folder


@pytest.fixture
def at_the_shell(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Call a script's main as the shell would, and see its exit code and what it printed."""

    def call(main: Callable[[list[str] | None], Any], argv: list[str]) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            messages.run_main(main, argv)
        return Outcome(ended.value.code, *capfd.readouterr())

    return call


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Say what compiled graphs go to: a backend of torch.compile, which the C++ compiler may be missing for.

    What was compiled before is forgotten, since after a few compilations of one function there are no more.
    """
    torch.compiler.reset()

    def to(backend: Any) -> None:
        monkeypatch.setattr(devices, "has_compiler", lambda: True)
        monkeypatch.setattr(torch, "compile", lambda model, made=torch.compile, **_: made(model, backend=backend))

    return to


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> data.Corpus:
    folder = tmp_path_factory.mktemp("prose")
    return load_corpus(folder, write(folder / "prose.txt", prose(6000)))


@pytest.fixture(scope="session")
def plain_bytes(tmp_path_factory) -> data.Corpus:
    folder = tmp_path_factory.mktemp("bytes")
    return load_corpus(folder, write(folder / "prose.txt", prose(500)), tokenizer="bytes")
