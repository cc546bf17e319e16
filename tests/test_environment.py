"""What surrounds a script and is none of its options: pipes, terminals, homes, variables that something else has set.

.venv/bin/python -m pytest tests/test_environment.py
"""

import io
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import evaluate
import generate
import train
from harness import messages, processes, progress, runs
from harness.messages import BadInput

ROOT = Path(__file__).parent.parent


@pytest.fixture
def unheard(monkeypatch):
    """Let a broken pipe be, where the test's own output goes."""
    monkeypatch.setattr(messages, "silence", lambda: None)
    monkeypatch.setattr("harness.run.silence", lambda: None)


def fresh(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What a process of its own does, in another environment."""
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=120
    )


def test_whoever_closes_the_output_of_a_measurement_learns_that_it_is_not_done(at_the_shell, unheard):
    def main(argv):
        raise BrokenPipeError

    outcome = at_the_shell(main, [])
    assert outcome.code == 3
    assert "whoever read the output has closed it" in outcome.err


def test_whoever_has_read_enough_of_a_text_ends_it_well(unheard):
    def main(argv):
        raise BrokenPipeError

    with pytest.raises(SystemExit) as ended:
        messages.run_main(main, [], prints=True)
    assert ended.value.code == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_that_finds_no_room_at_the_very_end_is_a_failure(monkeypatch, capfd):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            messages.run_main(lambda argv: print("a table"), [], prints=True)
        monkeypatch.undo()
    assert ended.value.code == 3
    assert "No space left" in capfd.readouterr().err


def test_a_run_whose_output_is_closed_says_so_and_not_that_the_disk_is_full(
    small, tmp_path, monkeypatch, at_the_shell, unheard
):
    def plan(*_):
        raise BrokenPipeError(32, "Broken pipe")

    argv = [*small, "--run.out", str(tmp_path / "run")]
    with monkeypatch.context() as patched:
        patched.setattr(progress, "describe_plan", plan)
        outcome = at_the_shell(train.main, argv)
    assert outcome.code == 3
    assert "whoever read the output has closed it" in outcome.err
    assert "disk" not in outcome.err
    assert train.main([*argv, "--run.resume", "true"])["status"] == "finished"


def test_figures_asked_for_are_written_before_anything_is_drawn_or_printed(finished, tmp_path, monkeypatch):
    def draw(*_):
        raise BrokenPipeError

    monkeypatch.setattr(evaluate, "draw_losses", draw)
    with pytest.raises(BrokenPipeError):
        evaluate.main([str(finished("rope")), "--lengths", "16", "--out", str(tmp_path / "figures.json")])
    assert '"results"' in (tmp_path / "figures.json").read_text()


def test_a_script_without_stderr_goes_on(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as ended:
        messages.run_main(lambda argv: print("a warning", file=sys.stderr), [])
    assert ended.value.code == 0


def test_a_terminal_that_does_not_know_a_character_gets_its_number(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    with pytest.raises(SystemExit) as ended:
        messages.run_main(lambda argv: print("naïve \udcff"), [])
    assert ended.value.code == 0
    assert terminal.buffer.getvalue() == b"na\\xefve \\udcff\n"


def test_a_prompt_that_is_not_utf_8_is_refused(finished):
    with pytest.raises(BadInput, match=r"^--prompt .* is not UTF-8"):
        generate.main([str(finished("rope")), "--prompt", "\udcff\udcfe"])


def test_a_library_that_is_not_there_is_named_with_the_python_that_lacks_it(at_the_shell):
    outcome = at_the_shell(lambda argv: __import__("no_such_library"), [])
    assert outcome.code == 3
    assert "no_such_library is not installed" in outcome.err
    assert sys.executable in outcome.err


@pytest.mark.parametrize("error", [BadInput, messages.RunFailed, lambda name: OSError(2, "No such file", name)])
def test_what_would_command_a_terminal_is_shown_by_its_escape_and_letters_as_they_are(at_the_shell, error):
    def main(argv):
        raise error("é文 \x1b[31m\a\x9b\u202e\x7f\r\n end")

    outcome = at_the_shell(main, [])
    assert outcome.err.endswith("é文 \\x1b[31m\\x07\\x9b\\u202e\\x7f\\r\\n end\n")
    assert outcome.err[:-1].isprintable()


def test_what_would_command_a_terminal_is_shown_so_in_warnings_too(at_the_shell, recwarn):
    def main(argv):
        warnings.showwarning(UserWarning("é \x1b[31m\u202e\n end"), UserWarning, "file", 1)
        messages.tell("é \x1b[31m\u202e\n end")

    warnings.showwarning, shown = lambda *given: sys.stderr.write(warnings.formatwarning(*given)), warnings.showwarning
    try:
        lines = at_the_shell(main, []).err.splitlines()
    finally:
        warnings.showwarning = shown
    assert [line.partition("é")[2] for line in lines] == [" \\x1b[31m\\u202e end", " \\x1b[31m\\u202e\\n end"]


def test_an_error_of_the_system_that_nobody_foresaw_is_a_line(at_the_shell):
    def main(argv):
        raise OSError(27, "File too large", "corpus.bin")

    outcome = at_the_shell(main, [])
    assert (outcome.code, outcome.err.count("\n")) == (3, 1)
    assert "File too large: corpus.bin" in outcome.err


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors"])
def test_a_run_that_may_not_be_read_is_not_called_damaged(finished, tmp_path, monkeypatch, name):
    folder = Path(shutil.copytree(finished("rope"), tmp_path / "rope"))
    real = runs.read_inside

    def read(folder: Path, file: str) -> bytes:
        if file == name:
            raise PermissionError(13, "Permission denied", str(folder / file))
        return real(folder, file)

    monkeypatch.setattr(runs, "read_inside", read)
    with pytest.raises(BadInput, match=rf"{name} cannot be read \(Permission denied\)"):
        runs.load_finished_run(folder)


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"},  # no MASTER_ADDR
        {"RANK": "1", "WORLD_SIZE": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"},
        {"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "0"},
        {"RANK": "x", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        {
            **{"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
            **{"MASTER_ADDR": "localhost", "MASTER_PORT": "abc"},
        },
    ],
    ids=["nobody to meet", "rank 1 of 1", "none at all", "no number", "no port"],
)
def test_variables_that_torchrun_would_not_set_so_are_refused(monkeypatch, variables):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=r"RANK=.* are not torchrun's.*unset RANK"), processes.meet_processes():
        pass


def test_pictures_are_drawn_whatever_backend_a_notebook_has_named(tmp_path):
    path = tmp_path / "a.png"
    outcome = fresh(
        "-c",
        f"from pathlib import *; from harness.pictures import *\nwith picture(Path({str(path)!r}), 1, 1, (1, 1)): pass",
        MPLBACKEND="module://no_such.backend",
    )
    assert path.read_bytes().startswith(b"\x89PNG"), outcome.stderr


def test_a_corpus_is_prepared_without_a_home_to_write_in(corpus_file, tmp_path):
    config = f"data.DataConfig(corpus={str(corpus_file)!r}, tokenizer='bytes', cache={str(tmp_path / 'cache')!r})"
    words = f"import data; print(len(data.load({config}, 0, 1, 16).tokens('train')))"
    without = {"HOME": "/proc/none", "XDG_CACHE_HOME": "/proc/none"}  # where not even root can make a folder
    outcome = fresh("-c", words, **without)
    assert int(outcome.stdout) > 100, outcome.stderr


def test_scripts_start_without_docstrings():
    outcome = fresh("-OO", "train.py", "--help")
    assert outcome.returncode == 0, outcome.stderr
    assert "--run.steps" in outcome.stdout


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "pyproject.toml").touch()
    own = {  # not those of the make that runs the tests, nor a path on which another environment's pip is found
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "PYTHONPATH")
    }
    return subprocess.run(["make", *words], cwd=folder, env=own, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_make_names_a_python_that_is_not_there(tmp_path):
    outcome = make(tmp_path, "setup", "PYTHON=python3.99")
    assert "there is no python3.99" in outcome.stderr + outcome.stdout
    assert outcome.returncode == 2
    assert not (tmp_path / ".venv").exists()


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_make_says_what_to_do_with_half_an_environment(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / ".venv")], check=True)
    outcome = make(tmp_path, "setup", f"PYTHON={sys.executable}")
    assert "rm -rf .venv" in outcome.stderr + outcome.stdout
    assert not (tmp_path / ".venv" / "ready").exists()
