"""`--help`: on one screen the options that one needs; `--help all`, or a section's name, for the rest.

python train.py --help model.rope
"""

import argparse
import textwrap
from typing import Any

from harness.messages import BadInput

WIDTH, INDENT = 100, 30  # columns of a line, and where the meaning of an option begins


class HelpAction(argparse.Action):
    """`--help [all | SECTION]`: print it and leave."""

    def __init__(self) -> None:
        what = "this text; --help all shows every option, --help SECTION those of one section"
        super().__init__(["-h", "--help"], argparse.SUPPRESS, nargs="?", default=argparse.SUPPRESS, help=what)

    def __call__(self, parser: Any, namespace: Any, values: str | None, option_string: str | None = None) -> None:
        print(format_help(parser, values))
        parser.exit()


def format_help(parser: Any, section: str | None) -> str:
    """What a script says of its options.

    Args:
        parser: the script's, an `options.Parser`. Of its description, the script's docstring, the first paragraph is
            shown; its `essential` are the options of sections that one needs most.
        section: `all`, or how names begin, `model` or `model.rope`; None for those that one needs, in short.

    Raises:
        BadInput: if there is no such section.
    """
    actions = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    options = {(action.option_strings[-1:] or [action.dest])[0].strip("-+"): action for action in actions}
    sections = sorted({name.rpartition(".")[0] for name in options if "." in name})
    if section not in (None, "all", *sections):
        raise BadInput(f"--help {section}: there is no such section; choose {', '.join(['all', *sections])}")
    lines = textwrap.wrap((parser.description or "").split("\n\n")[0], WIDTH)
    for name, action in options.items():
        needed = "." not in name or name in parser.essential
        chosen = needed if section is None else section == "all" or name.startswith(f"{section}.")
        if chosen and name not in sections:
            lines += describe_option(name, action, short=section is None)
    if section is None and sections:
        lines += textwrap.wrap(f"Sections, for --help SECTION: {', '.join(sections)}", WIDTH)
    return "\n".join(lines)


def describe_option(name: str, action: argparse.Action, short: bool) -> list[str]:
    """An option's name, default and meaning; in short, the first sentence."""
    default = action.default if action.default not in (None, argparse.SUPPRESS) else ""
    default = " ".join(map(str, default)) if isinstance(default, list) else str(default)
    default = default.lower() if default in ("True", "False") else default
    left = f"  {'--' * bool(action.option_strings)}{name} {default}"
    meaning = " ".join((action.help or "").split()).replace("%%", "%")
    right = textwrap.wrap(meaning.split(". ")[0].rstrip(".") if short else meaning, WIDTH - INDENT)
    if len(left) >= INDENT:
        return [left, *(" " * INDENT + line for line in right)]
    return [f"{left:<{INDENT}}{right[0] if right else ''}", *(" " * INDENT + line for line in right[1:])]
