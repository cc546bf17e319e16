"""Options from the command line and from YAML files, typed, and every error about them in one line.

python train.py --config configs/rope.yaml --model.d_model 256
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser

from harness.help_text import HelpAction
from harness.messages import BadInput, nearest
from harness.ranges import explain


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
        return super().add_class_arguments(theclass, nested_key, **kwargs)

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
        key = r'Parser key "([\w.]+)"'
        if wrong := re.match(key + r".*? Input should be (.*?)(?:,.*?)? \[type=.*[Vv]alue: (.*)", line):  # pydantic's
            line = f"--{wrong[1]} {wrong[3]} must be {wrong[2]}"
            for long, short in (("greater than", "above"), ("less than", "below"), ("above or equal to", "at least")):
                line = line.replace(long, short)
            line = line.replace("below or equal to", "at most")
        elif wrong := re.match(key + r": .* Subtypes: \[(.*?), <class .NoneType.>\].* Given value: (.*)", line):
            kinds = re.split(r", (?![^\[]*\])", wrong[2])  # at commas, but those of a Literal's own
            line = f"--{wrong[1]} {wrong[3]}: expected {' or '.join(map(describe_type, kinds))}"
        elif wrong := re.match(key + r": Unable to load config (.*?) - ", line):
            ways = f"expected a YAML file or a mapping; or give options, --{wrong[1]}.NAME VALUE"
            line = f"--{wrong[1]} {wrong[2]}: {ways}"
        elif wrong := re.match(key + r"(?: element \d+)?: .*?Expected an? (.*?)\.? Got value: ?(.*)", line):
            name, kind, value = wrong.groups()
            choices = re.findall(r"'([^']*)'", kind) if "Literal" in kind else []
            line = f"--{name} {value}: expected {describe_type(kind)}{nearest(value, choices)}"
        elif wrong := re.match(r'Parser key "config": (.*)', line):
            line = f"--config: {wrong[1]}"
        elif line.startswith("Problems parsing config"):
            line = f"--config: not YAML: {line}"
        elif unknown := re.search(r"[Uu]nrecognized arguments: (--[\w.-]+)", line):
            line += nearest(unknown[1], self.known_names()) or "; --help lists what there is"
        elif re.search(r"[Uu]nrecognized arguments|arguments are required|expected .*argument|explicit argument", line):
            line = f"{line.removeprefix('argument ')}; --help lists what there is"
        elif unknown := re.search(r"(?:Group '([\w.]+)' does not accept option|Option) '([\w.]+)'", line):
            name = ".".join(filter(None, unknown.groups()))
            line = f"{name} is not an option{nearest(name, [known.lstrip('-') for known in self.known_names()])}"
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
        example = "write `model:` and below it, indented, `d_model: 256`"
        if not isinstance(sections, dict):
            raise BadInput(f"--config {value} holds no sections: {example}")
        try:
            for name, content in sections.items():
                if not isinstance(content, dict) and name != "plugin":
                    raise BadInput(f"{name} is {content!r} and not a section of options: {example}")
            if not isinstance(rope := sections.get("model", {}).get("rope", {}), dict):
                example = "write `rope:` and below it, indented, `base: 10000`"
                raise BadInput(f"model.rope is {rope!r} and not a section of options: {example}")
            super().__call__(parser, namespace, value, option_string)
        except BadInput as error:
            raise BadInput(f"--config {value}: {error}") from error
