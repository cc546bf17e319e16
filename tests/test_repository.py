"""The repository keeps its word: every config file loads, every command of a page runs, every dependency is pinned.

.venv/bin/python -m pytest tests/test_repository.py
"""

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import compare
import data
import evaluate
import generate
import train
from experiments import publish, speed, sweeps
from harness import devices, pages
from harness.messages import BadInput
from harness.run_options import make_run_parser, parse_run
from positions import SCHEMES

REPOSITORY = Path(train.__file__).parent
SOURCES = ("*.py", "harness/*.py", "experiments/*.py", "tests/*.py", "tests/long/*.py")
CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
MAIN = {
    "train.py": train.main,
    "compare.py": compare.main,
    "generate.py": generate.main,
    "evaluate.py": evaluate.main,
    "experiments/speed.py": speed.main,
}
ON_RUNS = {"generate.py", "evaluate.py"}  # scripts that work on a finished run


# ---- config files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_loads_and_changes_what_it_states_and_nothing_else(path, capsys):
    def printed(*argv: str) -> dict:
        with pytest.raises(SystemExit) as ended:
            train.main([*argv, "--print_config"])
        assert not ended.value.code
        return yaml.safe_load(capsys.readouterr().out)

    stated = yaml.safe_load(path.read_text())
    expected = printed()
    for section, values in stated.items():
        expected[section].update(values)
    assert printed("--config", str(path)) == expected
    asked, *_ = parse_run(["--config", str(path)], make_run_parser("train.py", ""))
    assert asked.run.out is None


def test_every_scheme_has_a_config_file_that_names_it():
    assert set(SCHEMES) <= {path.stem for path in CONFIGS}
    for scheme in SCHEMES:
        stated = yaml.safe_load((REPOSITORY / "configs" / f"{scheme}.yaml").read_text())
        assert stated["model"]["position"] == scheme
        assert set(stated) == {"model"}


# ---- make and pyproject.toml -----------------------------------------------------------------------------------------


def make_targets() -> list[str]:
    return re.findall(r"^([a-z][a-z-]*):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")
@pytest.mark.parametrize("arguments", [[], ["help"]], ids=["make", "make help"])
def test_make_lists_every_target_and_does_nothing_else(arguments):
    said = subprocess.run(
        ["make", "--no-print-directory", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert {"setup", "compare", "test", "lint", "clean", "help"} <= set(make_targets())
    listed = re.findall(r"^\s*make ([a-z-]+) +\S", said, re.MULTILINE)
    assert sorted(listed) == sorted(make_targets())


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")
@pytest.mark.parametrize(("target", "command"), [("compare", "compare.py"), ("test", "pytest"), ("lint", "ruff")])
def test_make_would_run(target, command):
    said = subprocess.run(["make", "-n", target], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert command in said


def test_every_direct_dependency_is_pinned():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    direct = [
        *project["dependencies"],
        *(name for group in project["optional-dependencies"].values() for name in group),
    ]
    assert len(direct) > 10
    for requirement in direct:
        assert re.fullmatch(r"[\w-]+(\[[\w,]+\])?==\d[\w.]*", requirement), requirement


def test_every_library_that_is_imported_is_a_direct_dependency():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    direct = [
        *project["dependencies"],
        *(name for group in project["optional-dependencies"].values() for name in group),
    ]
    known = {re.split(r"[\[=]", requirement)[0].replace("-", "_") for requirement in direct}
    known |= {"yaml" for name in known if name == "jsonargparse"}  # PyYAML, which jsonargparse stands on
    known |= {"pyarrow", "huggingface_hub", "httpx", "pydantic_core"}  # what datasets and pydantic stand on
    ours = {path.stem for pattern in SOURCES for path in REPOSITORY.glob(pattern)} | {"harness", "experiments"}
    for path in [path for pattern in SOURCES for path in REPOSITORY.glob(pattern)]:
        for name in re.findall(r"^\s*(?:import|from(?=.* import )) (\w+)", path.read_text(), re.MULTILINE):
            is_standard = name in sys.stdlib_module_names
            assert is_standard or name in ours | known, f"{path.name} imports {name}"


# ---- the README and the pages of docs/ -------------------------------------------------------------------------------


def commands_of(text: str) -> list[list[str]]:
    """The words of every command in a page's sh and bash blocks; prompts, comments and variables left out."""
    commands: list[list[str]] = []
    for block in re.findall(r"^ *```(?:sh|bash|shell|console)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=";&|")
            lexer.whitespace_split = True
            for is_between, group in itertools.groupby(lexer, lambda word: not word.strip(";&|")):
                words = list(itertools.dropwhile(lambda word: re.fullmatch(r"\w+=.*", word), group))
                if words and not is_between:
                    commands.append(words)
    return commands


README = REPOSITORY / "README.md"
PAGES = [README, *sorted((REPOSITORY / "docs").glob("*.md"))]
COMMANDS = [command for page in PAGES for command in commands_of(page.read_text(encoding="utf-8"))]
PYTHON = [
    [f"{words[2].replace('.', '/')}.py", *words[3:]] if words[1] == "-m" else words[1:]
    for words in COMMANDS
    if Path(words[0]).name in ("python", "python3")
    and (words[1].endswith(".py") or (words[1] == "-m" and words[2].startswith("experiments.")))
]
TORCHRUN = [words[words.index("train.py") :] for words in COMMANDS if "torchrun" in words]  # what each process is given
OURS = [shlex.split(line) for line in dict.fromkeys(shlex.join(w) for w in PYTHON + TORCHRUN if w[0] in MAIN)]


def test_commands_are_found_among_prompts_comments_and_variables():
    page = """
```sh
make compare   # a comment
A=1 python train.py --run.name "a b" \\
    --run.steps 5 && python generate.py runs/a
```
```python
python = 3
```
  ```console
  $ cd somewhere; .venv/bin/python compare.py --schemes rope
  ```
"""
    assert commands_of(page) == [
        ["make", "compare"],
        ["python", "train.py", "--run.name", "a b", "--run.steps", "5"],
        ["python", "generate.py", "runs/a"],
        ["cd", "somewhere"],
        [".venv/bin/python", "compare.py", "--schemes", "rope"],
    ]


def test_the_pages_have_commands():
    assert set(MAIN) <= {words[0] for words in PYTHON}
    assert len(TORCHRUN) >= 4
    readme = commands_of(README.read_text(encoding="utf-8"))
    assert ["make", "compare"] in readme
    assert ["make", "test"] in readme


@pytest.mark.parametrize("page", [*PAGES, *sorted((REPOSITORY / "results").glob("*.md"))], ids=lambda page: page.stem)
def test_every_link_leads_to_a_file_or_a_heading_that_exists(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            name, _, heading = target.partition("#")
            linked = page.parent / name if name else page
            assert linked.exists(), target
            titles = re.findall(r"^#+ (.*)", linked.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
            anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert not heading or heading in anchors, target


def test_the_readme_leads_to_every_page_of_docs():
    readme = README.read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name}" not in readme] == []


def test_the_reading_guide_lists_every_file():
    listed = re.findall(r"^(\S+\.py) ", (REPOSITORY / "docs" / "reading.md").read_text(encoding="utf-8"), re.MULTILINE)
    there = [path for pattern in ("*.py", "harness/*.py", "experiments/*.py") for path in REPOSITORY.glob(pattern)]
    assert sorted(listed) == sorted(str(path.relative_to(REPOSITORY)) for path in there if path.name != "__init__.py")


def test_the_pages_name_only_scripts_targets_and_configs_that_exist():
    for words in PYTHON:
        assert (REPOSITORY / words[0]).is_file(), words
    for words in COMMANDS:
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= set(make_targets()), words
        for word in words:
            assert not word.startswith("configs/") or (REPOSITORY / word).is_file(), words


class Reached(Exception):
    """A command was read without complaint and was about to begin its work, on this configuration of data."""


def read(words: list[str], monkeypatch: pytest.MonkeyPatch) -> data.DataConfig | None:
    """Let a script read a command and stop it where the work begins; what the command asks of data."""

    def stop(config, *_):
        raise Reached(config)

    with monkeypatch.context() as patch:
        patch.setattr(data, "load", stop)
        patch.setattr(generate, "load_finished_run", stop)
        patch.setattr(evaluate, "load_finished_run", stop)
        patch.setattr(devices, "pick_device", lambda asked: torch.device("cpu"))
        patch.setattr(devices, "bf16_is_native", lambda device: True)
        patch.setattr(shutil, "which", lambda program: program)  # a cluster's, say
        with pytest.raises(Reached) as reached:
            MAIN[words[0]](words[1:])
    return None if words[0] in ON_RUNS else reached.value.args[0]


def provide(folder: Path, config: data.DataConfig, text: str, run: Path) -> None:
    """Put the local files that a command names in its folder: text of ours under their names."""
    path = folder / config.corpus.replace("**", "a").replace("*", "a").replace("?", "a")
    if config.corpus != "kjv" and not config.corpus.startswith("task:"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.table({config.column: [text]}), path)
        else:
            path.write_text(json.dumps({config.column: text}) + "\n" if path.suffix == ".jsonl" else text)
    if config.tokenizer not in ("bpe", "bytes"):
        (folder / config.tokenizer).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run / "tokenizer.json", folder / config.tokenizer)


def made_small(words: list[str], config: data.DataConfig, small: list[str], out: Path) -> list[str]:
    """A command with everything that takes time overridden by flags after it; it keeps the corpus that it names."""
    pairs = dict(zip(small[::2], small[1::2], strict=True))
    if config.corpus != "kjv" or "--data.corpus" in words or "configs/tasks.yaml" in words:
        del pairs["--data.corpus"]
        pairs["--data.max_bytes"] = "100000"
    if config.corpus.startswith("task:"):
        pairs["--model.seq_len"] = "64"  # room for an episode of every task
    if config.tokenizer != "bpe":
        del pairs["--data.tokenizer"]
    for flag, least in (("--model.n_kv_head", "1"), ("--run.micro_batch_size", "1"), ("--run.compile", "false")):
        if flag in words:
            pairs[flag] = least
    pairs |= {"--jobs": "1", "--out": str(out)} if words[0] == "compare.py" else {"--run.out": str(out)}
    seeds = ["--seeds", "0", "1"] if "--seeds" in words else []
    return [*words[1:], *(word for pair in pairs.items() for word in pair), *seeds]


def check_command(words: list[str], folder: Path, small, finished, text, monkeypatch, at_the_shell) -> str:
    """Read a command, and run it small unless it wants a hub, a GPU, Slurm or an account: `read` or `ran`."""
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(folder)
    if "--run.init_from" in words:
        start = words.index("--run.init_from") + 1
        words = [*words[:start], str(finished(scheme_in([words[start]]))), *words[start + 1 :]]
    if {"--help", "--print_config"} & set(words):
        assert at_the_shell(MAIN[words[0]], words[1:]).code == 0
        return "ran"
    if words[0] == "experiments/speed.py":  # its measurements have tests of their own
        for name in speed.BENCHES:
            monkeypatch.setitem(speed.BENCHES, name, lambda asked: [])
        (folder / "results").mkdir()
        at_work = at_the_shell(speed.main, words[1:])
        assert at_work.code == 0, at_work.err
        return "read"
    config = read(words, monkeypatch)
    if config is None:
        scheme = scheme_in(words)
        argv = [str(finished(scheme)) if word.startswith("runs/") else word for word in words[1:]]
        argv += ["--prompt", "in"] if scheme == "learned" else []
        evaluating = ["--lengths", "16", "32", "--out", str(folder / "out.json"), "--picture", str(folder / "out.png")]
        argv += ["--tokens", "5"] if words[0] == "generate.py" else evaluating
        outcome = at_the_shell(MAIN[words[0]], argv)
    elif {"cuda", "mps", "online", "slurm"} & set(words) or is_on_the_hub(config):
        return "read"
    else:
        if not Path(config.corpus).is_absolute():  # that of a run that is tuned is there
            provide(folder, config, text, finished("rope"))
        outcome = at_the_shell(MAIN[words[0]], made_small(words, config, small, folder / "out"))
    assert outcome.code == 0, outcome.err
    return "ran"


def scheme_in(words: list[str]) -> str:
    """The scheme of the run that a command names, going by its folder."""
    folders = [Path(word).parts for word in words if word.startswith("runs/")]
    return next((scheme for scheme in SCHEMES if any(scheme in parts for parts in folders)), "rope")


def is_on_the_hub(config: data.DataConfig) -> bool:
    """Whether the corpus is neither embedded nor a local file, going by its name: the file need not be there yet."""
    is_local = Path(config.corpus).suffix in (".txt", ".jsonl", ".parquet") or re.search(r"[*?]", config.corpus)
    return config.corpus != "kjv" and not config.corpus.startswith("task:") and not is_local


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_every_command_of_a_page_runs_with_its_sizes_overridden(
    words, small, finished, text, tmp_path, monkeypatch, at_the_shell
):
    assert check_command(words, tmp_path, small, finished, text, monkeypatch, at_the_shell) in ("read", "ran")


@pytest.mark.parametrize(
    ("command", "done"),
    [
        ("train.py --config configs/alibi.yaml --model.d_model 256 --run.steps 2000", "ran"),
        ("train.py --data.corpus 'books/*.txt' --data.tokenizer bpe", "ran"),
        ("train.py --data.corpus rows.jsonl --data.column body --data.tokenizer my/tokenizer.json", "ran"),
        ("train.py --config configs/fineweb_edu.yaml", "read"),
        (
            "train.py --run.init_from runs/rope --model.seq_len 1024 --model.rope.scaling yarn --model.rope.factor 4",
            "ran",
        ),
        ("train.py --run.init_from runs/learned --model.seq_len 512 --run.extend_learned repeat", "ran"),
        ("train.py --config configs/tasks.yaml", "ran"),
        ("train.py --run.device cuda --run.precision bf16", "read"),
        ("compare.py --launcher slurm --slurm.partition gpu", "read"),
        ("experiments/speed.py train rope --repeats 5", "read"),
        ("compare.py --schemes rope none --seeds 0 1 2 --jobs 2 --out runs/wide", "ran"),
        ("generate.py runs/learned --prompt 'In the beginning' --tokens 200", "ran"),
    ],
)
def test_the_check_of_commands_runs_what_it_can(
    command, done, small, finished, text, tmp_path, monkeypatch, at_the_shell
):
    words = shlex.split(command)
    assert check_command(words, tmp_path, small, finished, text, monkeypatch, at_the_shell) == done


@pytest.mark.parametrize(
    "command",
    [
        "train.py --run.stepz 5",
        "compare.py --shemes rope",
        "generate.py runs/x --promt x",
        "experiments/speed.py ropes",
    ],
)
def test_the_check_of_commands_notices_a_wrong_one(command, small, finished, text, tmp_path, monkeypatch, at_the_shell):
    with pytest.raises((BadInput, AssertionError)):
        check_command(shlex.split(command), tmp_path, small, finished, text, monkeypatch, at_the_shell)


# ---- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "maker", "section"),
    [
        ("compare.json", "experiments/publish.py", publish.section),
        ("bench.json", "experiments/speed.py", speed.section),
    ],
    ids=["comparison", "speeds"],
)
def test_the_figures_in_the_pages_are_those_of_the_committed_results(file, maker, section):
    assert pages.find_section(maker)[2] == section(json.loads((REPOSITORY / "results" / file).read_text()))


def test_the_page_of_the_sweeps_is_made_from_the_committed_figures():
    rates, amplitudes = (
        json.loads((REPOSITORY / "results" / f"{name}.json").read_text())
        for name in ("learning_rate", "sinusoidal_amplitude")
    )
    assert pages.find_section("experiments/sweeps.py")[2] == sweeps.section(rates, amplitudes)
    assert all(len({r["learning_rate"] for r in rates["runs"] if r["scheme"] == s}) >= 3 for s in rates["best"])


def test_no_committed_result_names_a_place_on_the_machine_it_was_made_on():
    for path in (REPOSITORY / "results").glob("*.json"):
        assert not re.search(r'"/(?:home|root|tmp|work|Users)/', path.read_text()), path.name
