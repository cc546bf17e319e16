"""Ctrl-C and SIGTERM while a script imports, amid its main, and once that is over.

.venv/bin/python -m pytest tests/test_stops.py
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import train
from harness import stops

REPOSITORY = Path(train.__file__).parent
SCRIPTS = sorted(
    path.relative_to(REPOSITORY).with_suffix("").as_posix().replace("/", ".")
    for pattern in ("*.py", "experiments/*.py", "tests/long/*.py")
    for path in REPOSITORY.glob(pattern)
    if 'if __name__ == "__main__"' in path.read_text()
)
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
STAND_IN = "import time; print('importing', flush=True); time.sleep(100)"


@pytest.fixture
def begin(tmp_path):
    """Start Python; what scripts import first, apart from Python's own, then waits when it is imported."""
    for name in ("torch", "numpy", "pydantic", "tqdm"):
        (tmp_path / f"{name}.py").write_text(STAND_IN)
    processes = []

    def start(*words: str, at_sigint: Any = signal.default_int_handler) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, at_sigint),
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_there_are_scripts_to_stop():
    assert {"train", "compare", "evaluate", "generate", "experiments.lengths", "tests.long.faults"} <= set(SCRIPTS)


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_that_is_stopped_while_it_imports_says_nothing(begin, script, number):
    process = begin("-m", script)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == CODES[number]


def test_a_background_job_goes_on_ignoring_ctrl_c_while_it_imports(begin):
    process = begin("train.py", at_sigint=signal.SIG_IGN)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143


def test_who_imports_a_script_keeps_his_own_ctrl_c():
    assert signal.getsignal(signal.SIGINT) is not stops.stop


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_stop_that_c_code_turns_into_another_error_is_still_a_stop(number, at_the_shell):
    def main(argv: list[str] | None) -> None:
        try:
            signal.raise_signal(number)
        except BaseException:
            raise ImportError("initialization failed") from None

    before = signal.signal(signal.SIGINT, stops.stop)  # as in a script
    try:
        outcome = at_the_shell(main, [])
    finally:
        signal.signal(signal.SIGINT, before)
    assert (outcome.code, outcome.err) == (CODES[number], "")


AT_THE_END = """
import harness.stops
import atexit, signal, sys
from harness.messages import run_main
atexit.register(signal.raise_signal, int(sys.argv[1]))
run_main(lambda argv: print("all of it"))
"""


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_stop_after_the_main_needs_no_traceback_and_loses_no_output(begin, number):
    process = begin("-c", AT_THE_END, str(int(number)))
    assert process.communicate(timeout=60) == ("all of it\n", "")
    assert process.returncode == CODES[number]


TIDY = """
import harness.stops
import atexit
from harness.messages import BadInput, run_main

class Held:
    def __del__(self):
        print("freed")

def main(argv):
    raise BadInput("--steps 0: give at least 1")

held = Held()
atexit.register(print, "tidied up")
run_main(main)
"""


def test_a_script_ends_with_its_code_and_tidied_up_but_does_not_free_its_memory_piece_by_piece(begin):
    process = begin("-c", TIDY)
    assert process.communicate(timeout=60) == ("tidied up\n", "-c: --steps 0: give at least 1\n")
    assert process.returncode == 2


def test_a_library_that_cannot_be_loaded_is_one_line(begin, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch: failed to map segment')")
    process = begin("train.py")
    assert process.communicate() == ("", "train.py: a library cannot be loaded: libtorch: failed to map segment\n")
    assert process.returncode == 3


@pytest.mark.parametrize("script", ["train", "experiments.pairs"])
def test_a_library_that_is_missing_is_one_line_even_while_a_script_imports(script):
    words = [sys.executable, "-S", "-m", script]  # without what is installed
    ended = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (3, "")
    (line,) = ended.stderr.splitlines()
    assert "is not installed for" in line
    assert "make setup" in line
