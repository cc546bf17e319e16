"""Declared ranges in words: what a value breached, in the one line that names the option, the value and what would do.

Option classes (RopeConfig, ModelConfig, ...) are pydantic dataclasses: each field's type says what may stand there.
"""

import json
import re
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

T = TypeVar("T")
STRICT = ConfigDict(strict=True, extra="forbid")  # of every option class
AtLeast1 = Annotated[int, Field(ge=1, le=10**12)]
Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Multiple = Annotated[float, Field(gt=0, le=1_000_000)]  # of a trained length
Seed = Annotated[int, Field(ge=0, lt=2**63)]
AtLeast0 = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # a loss or a time, say
Count = Annotated[int, Field(ge=0, le=10**15)]
Share = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]  # of batches there are none at first
LossByLength = dict[Annotated[str, Field(pattern="^[0-9]{1,15}$")], AtLeast0 | None]
KINDS = {  # what pydantic calls a value of a wrong kind -> what it must be
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
}
BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def explain(error: ValueError | TypeError, *classes: type) -> str:
    """What is wrong, in a line that begins with the option's name: `rope.base 1 must be above 1`.

    Args:
        error: what an option class raised.
        classes: those among which it is, itself or as a field: then the line has the whole range.
    """
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
    declared = find_bounds(classes, error.title, str(first["loc"][0])) if len(first["loc"]) == 1 else {}
    bounds = declared or {bound: at for bound, at in context.items() if bound in BOUNDS}
    wanted = " and ".join(f"{word} {bounds[bound]:,}" for bound, word in BOUNDS.items() if bound in bounds)
    if value != value:
        return f"{name} {shown} must be a number {wanted}".rstrip()
    if kind == "finite_number":
        return f"{name} {shown} must be {wanted}{' and ' * bool(wanted)}finite"
    if kind not in KINDS and not wanted:
        return f"{name} {shown}: {first['msg']}"
    return f"{name} {shown} must be {KINDS.get(kind) or wanted}"


def find_bounds(classes: Iterable[Any], title: str, name: str) -> dict[str, float]:
    """The declared bounds of a field of the class with this title: one of these, or one of their fields' classes."""
    for option_class in classes:
        fields = getattr(option_class, "__pydantic_fields__", {})
        if option_class.__name__ == title and name in fields:
            rules = fields[name].metadata
            return {bound: getattr(rule, bound) for rule in rules for bound in BOUNDS if hasattr(rule, bound)}
        inner = [field.annotation for field in fields.values() if hasattr(field.annotation, "__pydantic_fields__")]
        if found := find_bounds(inner, title, name):
            return found
    return {}


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
