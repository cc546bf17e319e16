"""Declared ranges in words: what a value breached, in the one line that names the option, the value and what would do.

Option classes (RopeConfig, ModelConfig, ...) are pydantic dataclasses: each field's type says what may stand there.
"""

import json
import re
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
BOUNDS = {  # a kind of breach -> what a value must be
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "finite_number": "finite",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
}


def explain(error: ValueError | TypeError) -> str:
    """What is wrong, in a line that begins with the option's name: `rope.base 1 must be above 1`."""
    if not isinstance(error, ValidationError):
        return str(error)
    section = error.title.removesuffix("Config").removesuffix("Options").lower()
    first = error.errors()[0]
    kind, value, context = first["type"], first["input"], first.get("ctx", {})
    name = ".".join([section, *map(str, first["loc"])])
    if kind == "value_error":  # raised by the class itself, by name
        return str(context["error"])
    if kind == "literal_error":
        choices = re.findall("'(.*?)'", context["expected"])
        return f"{name} {value!r} is none of {', '.join(choices)}"
    if kind == "unexpected_keyword_argument":
        return f"{name} is not an option"
    shown = f"{value:g}" if isinstance(value, float) else repr(value) if isinstance(value, str) else value
    if value != value:
        return f"{name} {shown} must be a number"
    if kind not in BOUNDS:
        return f"{name} {shown}: {first['msg']}"
    bounds = {bound: f"{at:g}" if isinstance(at, float) else f"{at:,}" for bound, at in context.items()}
    return f"{name} {shown} must be {BOUNDS[kind].format(**bounds)}"


def read_section(made: type[T], section: dict[str, Any]) -> T:
    """One section of a recorded config.yaml as its class; what older runs called otherwise is understood.

    Raises:
        ValueError: for a value that cannot be, or an option that is none.
    """
    return TypeAdapter(made).validate_json(json.dumps(with_todays_names(section)), strict=True)


def with_todays_names(section: dict[str, Any]) -> dict[str, Any]:
    """A section of a config with the options that were called otherwise once."""
    section = dict(section)
    if "sinusoidal_amplitude" in section:
        section["sinusoidal"] = {"amplitude": section.pop("sinusoidal_amplitude")}
    if section.get("attention") == "auto":
        section["attention"] = "fused"
    return section
