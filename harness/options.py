"""Options from the command line and from YAML files, typed, and every error about them in one line.

python train.py --config configs/rope.yaml --model.d_model 256
"""

import os
import re
from collections.abc import Collection
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, _loaders_dumpers

from harness.help_text import HelpAction
from harness.messages import BadInput, nearest
from harness.ranges import explain

CONFIG_BYTES = 1 << 17  # of a config file, at most
ENTRIES = 1024  # of a list, at most: jsonargparse copies all of them for each, and more would take minutes


def describe_type(kind: str) -> str:
    """What to say of a type as jsonargparse spells it: `<class 'int'>` is an int, a whole number."""
    if "Literal" in kind:
        choices = re.findall(r"'([^']*)'", kind)
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    name = re.sub(r"<class '(\w+)'>", r"\1", kind)
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "list[float]": "[1, 2.5] say"}
    return f"{name}, {words[name]}" if name in words else name


class Parser(ArgumentParser):
    """jsonargparse's parser with a short --help, and every error in one line that suggests the nearest right name.

    Args:
        essential: the options of sections that `--help` shows; those of no section are always there.
    """

    def __init__(self, *args: Any, essential: Collection[str] = (), **kwargs: Any) -> None:
        # a short form of an option would change its meaning with each new one
        super().__init__(*args, allow_abbrev=False, add_help=False, **kwargs)
        self._add_action(HelpAction())
        self.essential = essential
        self.sections: dict[str, type] = {}  # the class behind each section of options

    def add_class_arguments(self, theclass: type, nested_key: str, **kwargs: Any) -> Any:
        self.sections[nested_key] = theclass
        added = super().add_class_arguments(theclass, nested_key, **kwargs)
        for action in self._actions:  # jsonargparse would take a file for a whole section, and import a class_path
            if hasattr(action, "resolve_subclass_spec"):
                action._load_config = lambda value, parser, name=action.dest: refuse_section(name, value)
                action.resolve_subclass_spec = lambda value: value
        return added

    def known_names(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings if option.startswith("--")]

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        found = super().parse_args(*args, **kwargs)
        if kwargs.get("defaults") is False:  # all there is was given, and a null that may not be is else passed over
            try:
                self.validate(found, skip_unset=False, skip_required=True)
            except (TypeError, ValueError) as error:
                self.error(error)
        for name, value in found.items():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and not can_be_a_name(text):
                    flag = f"--{name}" if f"--{name}" in self.known_names() else name
                    raise BadInput(f"{flag} {text!r} has a character that no file's name can have: leave it out")
        return found

    def explain(self, error: ValueError) -> str:
        """What is wrong with a value, in a line that begins with its flag and ends with the nearest right name."""
        line = explain(error, *self.sections.values())
        name = line.split()[0]
        full = (known.lstrip("-") for known in self.known_names() if known[2:] == name or known.endswith(f".{name}"))
        if wrong := re.match(r"\S+ '(.*?)' is none of (.*)", line):
            line += nearest(wrong[1], wrong[2].split(", "))
        return f"--{next(full, name)}{line[len(name) :]}"

    def error(self, message: str | Exception, exception: Exception | None = None) -> NoReturn:
        if isinstance(exception, BadInput):
            raise exception
        line = re.sub(r"alue:$", "alue: ''", " ".join(str(message).split()))  # an empty text would not be seen
        line = re.sub(r"typing\.Annotated\[(\w+), FieldInfo\(.*?\]\)\]", r"\1", line)
        key = r'Parser key "([\w.]+)"'
        if wrong := re.match(key + r".*? Input should be (.*?)(?:,.*?)? \[type=.*[Vv]alue: (.*)", line):  # pydantic's
            line = f"--{wrong[1]} {wrong[3]} must be {wrong[2]}"
            for long, short in (("greater than", "above"), ("less than", "below"), ("above or equal to", "at least")):
                line = line.replace(long, short)
            line = line.replace("below or equal to", "at most")
        elif wrong := re.match(key + r": .* Subtypes: \[(.*?), <class .NoneType.>\].* Given value: (.*)", line):
            kinds = re.split(r", (?![^\[]*\])", wrong[2])  # at commas, but those of a Literal's own
            line = f"--{wrong[1]} {wrong[3]}: expected {' or '.join(map(describe_type, kinds))}"
        elif wrong := re.match(key + r"(?: element \d+)?: .*?Expected an? (.*?)\.? Got value: ?(.*)", line):
            name, kind, value = wrong.groups()
            choices = re.findall(r"'([^']*)'", kind) if "Literal" in kind else []
            line = f"--{name} {value}: expected {describe_type(kind)}{nearest(value, choices)}"
        elif unknown := re.search(r"[Uu]nrecognized arguments: (--[\w.-]+)", line):
            line += nearest(unknown[1], self.known_names()) or "; --help lists what there is"
        elif re.search(r"[Uu]nrecognized arguments|arguments are required|expected .*argument|explicit argument", line):
            line = f"{line.removeprefix('argument ')}; --help lists what there is"
        elif unknown := re.search(r"(?:Group '([\w.]+)' does not accept option|Option) '([\w.]+)'", line):
            name = ".".join(filter(None, unknown.groups()))
            line = f"{name} is not an option{nearest(name, [known.lstrip('-') for known in self.known_names()])}"
        raise BadInput(line) from exception


def refuse_section(name: str, value: Any) -> NoReturn:
    """Raise BadInput for a value of a whole section, which only `--config` reads from a file."""
    raise BadInput(f"--{name} {value} is no option's value: give options, --{name}.NAME VALUE")


def is_decoded(text: str) -> bool:
    """Whether a text was UTF-8; bytes that were not stand in it as lone surrogates, as Python marks them."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def can_be_a_name(text: str) -> bool:
    """Whether the operating system can take a text as the name of a file; not so a NUL, or half a character."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


class PlainLoader(yaml.SafeLoader):
    """YAML without what options have no use for: a name given twice, of which one would be lost, references and tags.

    A number is decimal, in a file as on the command line. YAML's own 1:30 would be 90, and its 010 would be 8.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":bool", ":null"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def get_single_data(self) -> Any:
        try:
            return super().get_single_data()
        except RecursionError as error:
            raise yaml.YAMLError(str(error)) from error

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):  # a few lines of them can stand for more than any memory holds
            raise yaml.MarkedYAMLError(problem=f"*{event.anchor}: write the value out", problem_mark=event.start_mark)
        if tag := getattr(event, "tag", None):  # it could say that 1:30 is a number all the same
            raise yaml.MarkedYAMLError(problem=f"{tag}: write the value without it", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_sequence(self, node: yaml.SequenceNode, deep: bool = False) -> list[Any]:
        if (n := len(node.value)) > ENTRIES:
            problem = f"a list of {n:,} entries: no option takes more than {ENTRIES:,}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return super().construct_sequence(node, deep)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        try:
            return int(node.value)
        except ValueError as error:  # Python reads no more than some thousand digits
            problem = f"a number of {len(node.value)} digits: write a smaller one"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(name := self.construct_object(key, deep=True), str):
                raise yaml.MarkedYAMLError(problem=f"{name!r} is no option's name", problem_mark=key.start_mark)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"{name} is given twice: keep one", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


INTEGER, FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
DECIMAL = r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
PlainLoader.add_implicit_resolver(INTEGER, re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))
special = r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
PlainLoader.add_implicit_resolver(FLOAT, re.compile(rf"({DECIMAL}|{special})$"), list("-+.0123456789"))
PlainLoader.add_constructor(INTEGER, PlainLoader.construct_integer)
# All values of the command line go through this one. The public set_loader does not reach those of numbers.
_loaders_dumpers.yaml_default_loader = PlainLoader


class ConfigLoader(PlainLoader):
    """A config file's values: a number stays the text it is, and means what it would on the command line.

    So `name: 1e5` is a name, and `learning_rate: 1e5` a number.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        made = super().construct_mapping(node, deep)
        return made | {key.value: value.value for key, value in node.value if value.tag in (INTEGER, FLOAT)}


def read_config(path: str) -> Any:
    """What a YAML file holds. Raises BadInput for what is no file, too large for a config, or no YAML."""
    if not os.path.isfile(path):  # a pipe might never end, nor begin
        what = "not a file" if os.path.exists(path) else "not there"
        raise BadInput(f"--config {path or repr(path)} is {what}: name a YAML file")
    try:
        with open(path, "rb") as file:
            content = file.read(CONFIG_BYTES + 1)
        if len(content) > CONFIG_BYTES:
            raise BadInput(f"--config {path} has more than {CONFIG_BYTES:,} bytes: name a YAML file of options")
        return yaml.load(content.decode(), ConfigLoader)  # a SafeLoader: it runs nothing
    except BadInput:
        raise
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        where = " ".join(str(error).replace('"<unicode string>", ', "").split())
        raise BadInput(f"--config {path} is not YAML that can be used here: {where}; mend that place") from error


class ConfigFile(ActionConfigFile):
    """`--config`: a YAML file of sections. Whatever is wrong with it is said by its name, and an empty one is fine."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option_string: str | None = None) -> None:
        sections = read_config(value)
        if sections is None:
            return
        example = "write `model:` and below it, indented, `d_model: 256`"
        if not isinstance(sections, dict):
            raise BadInput(f"--config {value} holds no sections: {example}")
        try:
            for name, content in sections.items():
                if name in (self.dest, "help", "print_config"):
                    raise BadInput(f"{name} is an option of the command line only: leave it out")
                if name == "plugin":
                    if not isinstance(content, list | None) or not all(isinstance(each, str) for each in content or ()):
                        raise BadInput(f"plugin is {content} and not a list: write `plugin: [experiments.NAME]`")
                elif not isinstance(content, dict):
                    raise BadInput(f"{name} is {content or repr(content)} and not a section of options: {example}")
            if not isinstance(rope := sections.get("model", {}).get("rope", {}), dict):
                example = "write `rope:` and below it, indented, `base: 10000`"
                raise BadInput(f"model.rope is {rope or repr(rope)} and not a section of options: {example}")
            namespace.update(parser.parse_object(sections, defaults=False))
        except BadInput as error:
            raise BadInput(f"--config {value}: {error}") from error
