"""The rules of the house: which room a file stands in, how long it may be, what it may import and what it may name.

.venv/bin/python -m pytest tests/test_house.py

A rule is a function from the sources (path -> text) to its breaches (place -> how much).
"""

import ast
import importlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from positions import SCHEMES, Position

REPOSITORY = Path(__file__).parent.parent
IDEA = ("rope.py", "positions.py", "model.py")
LESSON = (*IDEA, "train.py", "data.py")
SHIPPED = 7  # schemes
TOOLS = ("compare.py", "evaluate.py", "generate.py", "export.py")

Sources = dict[str, str]
Breaches = dict[str, int]


def read_sources() -> Sources:
    """All Python of the project but its tests."""
    paths = [
        path for pattern in ("*.py", "harness/**/*.py", "experiments/**/*.py") for path in REPOSITORY.glob(pattern)
    ]
    return {path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8") for path in sorted(paths)}


def room_of(path: str) -> str:
    """`lesson`, `tools`, `harness`, `experiments`, or nothing for a file that stands in no room."""
    if path in LESSON:
        return "lesson"
    if path in TOOLS:
        return "tools"
    return path.split("/")[0] if path.startswith(("harness/", "experiments/")) else ""


# ---- sizes -----------------------------------------------------------------------------------------------------------


def without_added_schemes(sources: Sources) -> Sources:
    """The sources without schemes that somebody has added to those that we ship: each its class and its line."""
    lines = sources["positions.py"].splitlines(keepends=True)
    for name, scheme in list(SCHEMES.items())[SHIPPED:]:
        for node in ast.parse("".join(lines)).body:
            if isinstance(node, ast.ClassDef) and node.name == scheme.__name__:
                del lines[node.lineno - 1 : node.end_lineno + 2]  # with the two empty lines below it
        lines = [line for line in lines if line.strip() != f'"{name}": {scheme.__name__},']
    return sources | {"positions.py": "".join(lines)}


def files_in_no_room(sources: Sources) -> Breaches:
    return {path: 1 for path in sources if not room_of(path)}


def long_files(sources: Sources) -> Breaches:
    """Files above 260 lines in the lesson, 250 as a tool, 400 elsewhere. A scheme may stand outside, as a plugin"""
    most = {"lesson": 260, "tools": 250, "harness": 400, "experiments": 400}
    lengths = {path: len(text.splitlines()) for path, text in sources.items()}
    return {path: lines for path, lines in lengths.items() if lines > most.get(room_of(path), 0)}


def long_rooms(sources: Sources) -> Breaches:
    lengths = Counter({path: len(text.splitlines()) for path, text in sources.items()})
    lines = sum(lengths[path] for path in LESSON)
    return {"lesson": lines} if lines > 1100 else {}


def wide_lines(sources: Sources) -> Breaches:
    widths = {path: max(map(len, text.splitlines()), default=0) for path, text in sources.items()}
    return {path: width for path, width in widths.items() if width > 120}


def long_functions(sources: Sources) -> Breaches:
    """Functions of the lesson that do not fit on one screen of 50 lines."""
    return {
        f"{path}: {node.name}": lines
        for path in set(LESSON) & set(sources)
        for node in ast.walk(ast.parse(sources[path]))
        if isinstance(node, ast.FunctionDef) and (lines := node.end_lineno - node.lineno + 1) > 50
    }


OPENS = re.compile(r"^(os\.)?(open|fdopen)$|\.(read_text|read_bytes|memmap|fromfile)$|^(json|yaml|pickle)\.\w*load$")
# Calls of another kind, at most so many: a file's own half-made parts, a log to add to, the tree's own pages.
ELSEWHERE = {
    "harness/preparing.py": 7,
    "harness/prepared.py": 1,
    "harness/folder.py": 1,
    "harness/runs.py": 1,
    "harness/report.py": 1,
}
ELSEWHERE |= {"harness/jobs.py": 3, "harness/byte_level.py": 1}
WAYS_IN = (
    *(
        "runs",
        "folder",
        "checkpoints",
        "preparing",
        "prepared",
        "run",
        "jobs",
        "report",
        "tuning",
        "progress",
        "evaluation",
    ),
    *("scoring", "retrieval", "scalings", "tasks", "byte_level"),
)


def ways_past_the_door(sources: Sources) -> Breaches:
    """Calls that open files of a run or of a prepared corpus elsewhere than in harness/opening.py"""
    found = Counter(
        path
        for path in (*LESSON, *TOOLS, *(f"harness/{name}.py" for name in WAYS_IN))
        for node in ast.walk(ast.parse(sources.get(path, "")))
        if isinstance(node, ast.Call) and OPENS.search(ast.unparse(node.func))
    )
    return {path: calls for path, calls in found.items() if calls > ELSEWHERE.get(path, 0)}


def messages_past_the_one_function(sources: Sources) -> Breaches:
    """Messages printed otherwise than by `messages.tell`, which shows what would command a terminal by its escape"""
    may = {"harness/messages.py": 1, "harness/stops.py": 1, "harness/run.py": 1}  # beside a progress bar
    counts = {path: text.count("file=sys.stderr") for path, text in sources.items()}
    return {path: n for path, n in counts.items() if n > may.get(path, 0)}


# ---- imports ---------------------------------------------------------------------------------------------------------


def imported(path: str, sources: Sources) -> Iterator[tuple[str, str | None, str]]:
    """Our files that a file imports anywhere in it: (path, name taken from it or None, what it is called here)."""

    def our_file(module: str) -> str | None:
        stem = module.replace(".", "/")
        return next((file for file in (f"{stem}.py", f"{stem}/__init__.py") if file in sources), None)

    for node in ast.walk(ast.parse(sources[path])):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if file := our_file(alias.name):
                    yield file, None, alias.asname or alias.name
        elif isinstance(node, ast.ImportFrom):
            package = path.split("/")[:-1] if node.level else []
            module = ".".join([*package[: len(package) + 1 - node.level], *filter(None, [node.module])])
            for alias in node.names:
                if file := our_file(f"{module}.{alias.name}"):
                    yield file, None, alias.asname or alias.name
                elif file := our_file(module):
                    yield file, alias.name, alias.asname or alias.name
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            for module in (arg.value for arg in node.args if isinstance(arg, ast.Constant)):
                if file := our_file(str(module)):
                    yield file, None, str(module)


def forbidden_imports(sources: Sources) -> Breaches:
    def may_import(path: str, other: str) -> bool:
        room, where = room_of(path), room_of(other)
        if where == "experiments":
            return False
        if path in IDEA:
            return other in IDEA
        if room == "lesson":
            return where in ("lesson", "harness")
        return room != "harness" or not (where == "tools" or other == "train.py")

    return {
        f"{path} imports {other}": 1
        for path in sources
        for other, _, _ in imported(path, sources)
        if not may_import(path, other)
    }


def many_names_from_harness(sources: Sources) -> Breaches:
    """How many names of the harness data and train use; a module's name counts as often as it gives another one."""

    def names_in(path: str) -> int:
        found = [entry for entry in imported(path, sources) if room_of(entry[0]) == "harness"]
        modules = {alias for _, name, alias in found if name is None}
        used = re.findall(rf"\b(?:{'|'.join(map(re.escape, modules))})\.\w+", sources[path]) if modules else []
        return len({(file, name) for file, name, _ in found if name is not None}) + len(set(used))

    return {path: names for path in ("data.py", "train.py") if path in sources and (names := names_in(path)) > 12}


def circles(sources: Sources) -> Breaches:
    """Imports in a circle, those for type checkers and those inside functions included."""
    graph = {path: {file for file, _, _ in imported(path, sources)} - {path} for path in sources}
    found = {}
    while True:  # a sorter names one circle; without its last arrow there may be another
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            circle = error.args[1][::-1]  # graphlib's arrows point from the imported file to the importing one
            found[" > ".join(sorted(set(circle)))] = 1
            graph[circle[0]] = graph[circle[0]] - {circle[1]}
        else:
            return found


# ---- what the lesson is free of --------------------------------------------------------------------------------------


def tries(sources: Sources) -> Breaches:
    """How often a file of the lesson tries something, `suppress` included."""
    counts = {
        path: sum(isinstance(node, ast.Try | ast.TryStar) for node in ast.walk(ast.parse(sources[path])))
        + len(re.findall(r"\bsuppress\(", sources[path]))
        for path in set(LESSON) & set(sources)
    }
    return {path: count for path, count in counts.items() if count}


def long_messages(sources: Sources) -> Breaches:
    """How many raises, and strings that are not docstrings, go over more than one line of a file of the lesson."""

    def spans(path: str) -> int:
        tree = ast.parse(sources[path])
        docstrings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
        parts = [part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values]
        return sum(
            node.end_lineno > node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.Raise | ast.JoinedStr)
            or (isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings + parts)
        )

    return {path: count for path in set(LESSON) & set(sources) if (count := spans(path))}


def scheme_names(sources: Sources) -> Breaches:
    """How often a file compares with, lists or looks up a scheme by its name; experiments name what they study.

    `none` is the name of other things too, so it counts only in a comparison that speaks of a position or a scheme.
    """

    def constants(*nodes: ast.expr | None) -> set:
        return {node.value for node in nodes if isinstance(node, ast.Constant)}

    def is_breach(node: ast.AST) -> bool:
        if isinstance(node, ast.Compare):
            is_of_schemes = re.search("position|scheme", ast.unparse(node), re.IGNORECASE)
            return bool(constants(node.left, *node.comparators) & (names | ({"none"} if is_of_schemes else set())))
        if isinstance(node, ast.MatchValue):
            return bool(constants(node.value) & names)
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            return bool(constants(*node.elts) & names)
        if isinstance(node, ast.Dict):
            return bool(constants(*node.keys) & names)
        return isinstance(node, ast.Subscript) and (
            ast.unparse(node.value).endswith("SCHEMES") and isinstance(node.slice, ast.Constant)
        )

    names = set(SCHEMES) - {"none"}
    files = [path for path in sources if path != "positions.py" and room_of(path) != "experiments"]
    counts = {path: sum(map(is_breach, ast.walk(ast.parse(sources[path])))) for path in files}
    return {path: count for path, count in counts.items() if count}


# ---- the rules hold, or what breaks them shrinks ---------------------------------------------------------------------

RULES: list[Callable[[Sources], Breaches]] = [
    files_in_no_room,
    long_files,
    long_rooms,
    wide_lines,
    long_functions,
    forbidden_imports,
    many_names_from_harness,
    circles,
    tries,
    long_messages,
    ways_past_the_door,
    messages_past_the_one_function,
    scheme_names,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_has_none_of(rule):
    found = rule(without_added_schemes(read_sources()))
    assert not found, f"{rule.__doc__ or rule.__name__}: {found}"


def test_a_scheme_that_is_added_counts_for_no_rule(monkeypatch):
    added = "class Mine:\n" + repeat("    pass", 30) + "\n\n"
    sources = {"positions.py": repeat("1", 258) + added + 'SCHEMES = {\n    "mine": Mine,\n}\n'}
    assert long_files(without_added_schemes(sources)) == {"positions.py": 294}
    monkeypatch.setitem(SCHEMES, "mine", type("Mine", (Position,), {}))
    assert long_files(without_added_schemes(sources)) == {}
    assert without_added_schemes(sources)["positions.py"] == repeat("1", 258) + "SCHEMES = {\n}\n"


def repeat(line: str, times: int) -> str:
    return f"{line}\n" * times


@pytest.mark.parametrize(
    ("rule", "sources", "breaches"),
    [
        (ways_past_the_door, {"evaluate.py": "open(x)", "harness/pages.py": "open(x)"}, {"evaluate.py": 1}),
        (ways_past_the_door, {"harness/tuning.py": "json.load(f)\np.read_text()"}, {"harness/tuning.py": 2}),
        (ways_past_the_door, {"harness/jobs.py": "launcher.open()\njson.loads(text)"}, {}),
        (
            messages_past_the_one_function,
            {"harness/messages.py": "print(x, file=sys.stderr)", "harness/a.py": "print(x, file=sys.stderr)"},
            {"harness/a.py": 1},
        ),
        (files_in_no_room, {"rope.py": "", "helpers.py": "", "harness/a.py": ""}, {"helpers.py": 1}),
        (long_files, {"rope.py": repeat("1", 260), "model.py": repeat("1", 261)}, {"model.py": 261}),
        (long_files, {"compare.py": repeat("1", 251), "harness/a.py": repeat("1", 400)}, {"compare.py": 251}),
        (long_files, {"harness/a.py": repeat("1", 401)}, {"harness/a.py": 401}),
        (long_files, {"experiments/a.py": repeat("1", 401)}, {"experiments/a.py": 401}),
        (long_rooms, dict.fromkeys(LESSON, repeat("1", 220)), {}),
        (long_rooms, dict.fromkeys(LESSON, repeat("1", 221)), {"lesson": 1105}),
        (wide_lines, {"rope.py": "#" * 120, "model.py": "#" * 121}, {"model.py": 121}),
        (long_functions, {"rope.py": "def f():\n" + repeat("    1", 49)}, {}),
        (long_functions, {"rope.py": "class A:\n  def f():\n" + repeat("    1", 50)}, {"rope.py: f": 51}),
        (long_functions, {"harness/a.py": "def f():\n" + repeat("    1", 50)}, {}),
        (
            forbidden_imports,
            {"rope.py": "import math, model", "model.py": "from data import load", "data.py": "import harness.a"}
            | {"harness/a.py": "from model import *"},
            {"model.py imports data.py": 1},
        ),
        (
            forbidden_imports,
            {"train.py": "def f():\n    from generate import sample", "generate.py": "from train import *"}
            | {"harness/__init__.py": "", "harness/a.py": "import train", "harness/b.py": "from . import a"},
            {"train.py imports generate.py": 1, "harness/a.py imports train.py": 1},
        ),
        (
            forbidden_imports,
            {"compare.py": "importlib.import_module('experiments.a')", "experiments/a.py": "from experiments import b"}
            | {"experiments/b.py": "import compare", "harness/c.py": "import_module('.b', 'experiments')"},
            {"compare.py imports experiments/a.py": 1, "experiments/a.py imports experiments/b.py": 1},
        ),
        (
            many_names_from_harness,
            {"train.py": f"from harness.a import {', '.join('abcdefghijklm')}", "data.py": "from harness.a import a"}
            | {"harness/a.py": ""},
            {"train.py": 13},
        ),
        (
            many_names_from_harness,
            {"data.py": "from harness import a\n" + "\n".join(f"a.{x}" for x in "aabcdefghijklm"), "harness/a.py": ""},
            {"data.py": 13},
        ),
        (circles, {"rope.py": "import model", "model.py": "import data", "data.py": ""}, {}),
        (
            circles,
            {"rope.py": "if TYPE_CHECKING:\n    from model import A", "model.py": "def f():\n    import rope"},
            {"model.py > rope.py": 1},
        ),
        (
            circles,
            {"rope.py": "import model", "model.py": "import rope", "harness/a.py": "from harness.b import c"}
            | {"harness/b.py": "from . import a", "harness/__init__.py": ""},
            {"model.py > rope.py": 1, "harness/a.py > harness/b.py": 1},
        ),
        (
            tries,
            {"data.py": "try:\n    1\nexcept A:\n    2", "harness/a.py": "try:\n    1\nfinally:\n    2"},
            {"data.py": 1},
        ),
        (tries, {"train.py": "with suppress(OSError):\n    1"}, {"train.py": 1}),
        (long_messages, {"rope.py": '"""Two\nlines."""\nx = "one" f"{1}"\nraise A("one line")'}, {}),
        (
            long_messages,
            {"rope.py": "raise A(\n    1\n)", "model.py": 'x = (\n    "a"\n    "b"\n)'},
            dict.fromkeys(IDEA[::2], 1),
        ),
        (long_messages, {"train.py": 'print(\n    f"{1}"\n    "b"\n)'}, {"train.py": 1}),
        (
            scheme_names,
            {"positions.py": "x = ['rope']", "experiments/a.py": "x == 'rope'", "model.py": "x: str = 'rope'"},
            {},
        ),
        (scheme_names, {"model.py": "x == 'rope'\n'alibi' in x\nmatch x:\n    case 't5':\n        1"}, {"model.py": 3}),
        (
            scheme_names,
            {"compare.py": "['none', 'rope']\n{'t5': 1}\n(a, 'learned')\nSCHEMES['rope']"},
            {"compare.py": 4},
        ),
        (scheme_names, {"train.py": "a.scaling == 'none'\nc.position != 'none'\nx['rope']"}, {"train.py": 1}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_rule_notices_a_breach(rule, sources, breaches):
    assert rule(sources) == breaches


# ---- what a user meets first -----------------------------------------------------------------------------------------


def long_page(page: str) -> Breaches:
    """A README of 150 lines, two tables and two pictures is enough."""
    counts = {
        "lines": len(page.splitlines()),
        "tables": len(re.findall(r"^ *\|?(?: *:?-{3,}:? *\|)+(?: *:?-{3,}:? *)?$", page, re.MULTILINE)),
        "pictures": len(re.findall(r"!\[|<img\b", page)),
    }
    most = {"lines": 150, "tables": 2, "pictures": 2}
    return {name: count for name, count in counts.items() if count > most[name]}


def long_help(script: str, shown: str) -> Breaches:
    """A help text of 45 lines of 100 columns fits on one screen."""
    lines = shown.rstrip().splitlines()
    counts = {f"{script} lines": len(lines), f"{script} columns": max(map(len, lines))}
    return {name: count for name, count in counts.items() if count > (45 if name.endswith("lines") else 100)}


def test_a_long_page_and_a_long_help_text_are_noticed():
    table = "| a | b |\n| --- | :---: |\n| 1 | 2 |\n\n"
    assert long_page(table * 2 + "![a](b) ![c](d)\n" * 142) == {"pictures": 284}
    assert long_page(table * 3 + "\n" * 139) == {"lines": 151, "tables": 3}
    assert long_help("a.py", "-" * 100 + "\n" * 44 + "x\n") == {}
    assert long_help("a.py", "-" * 101 + "\n" * 45 + "x\n") == {"a.py lines": 46, "a.py columns": 101}


def test_the_readme_is_short():
    assert long_page((REPOSITORY / "README.md").read_text(encoding="utf-8")) == {}


SCRIPTS = [path for path, text in read_sources().items() if "\nif __name__ == " in text]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_help_text_fits_on_one_screen(script, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(script.removesuffix(".py").replace("/", ".")).main(["--help"])
    assert not ended.value.code
    assert long_help(script, capsys.readouterr().out) == {}
