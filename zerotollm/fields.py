"""Typed fields of configurations: their bounds, their dotted names, and the checks both follow from."""

import dataclasses
import math
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeGuard, get_args, get_origin, get_type_hints

from zerotollm.errors import UsageError
from zerotollm.suggest import did_you_mean
from zerotollm.types import Json

INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Bounds:
    """Allowed values of a number. A field states them in its annotation: `Annotated[int, Bounds(1, 5)]`."""

    at_least: float = 0
    at_most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def violated(self, value: float) -> str:
        """Return the bound that a number violates, as in `at least 1`, or an empty text."""
        if value < self.at_least:
            return f"at least {self.at_least}"
        if value <= self.above:
            return f"above {self.above}"
        if value > self.at_most:
            return f"at most {self.at_most}"
        return f"below {self.below}" if value >= self.below else ""


PositiveInt = Annotated[int, Bounds(1, INT32_MAX)]
PositiveFloat = Annotated[float, Bounds(above=0)]
Fraction = Annotated[float, Bounds(at_most=1)]
FractionBelowOne = Annotated[float, Bounds(below=1)]
Seed = Annotated[int, Bounds(at_most=2**32 - 1)]

DEFAULT_BOUNDS = {int: Bounds(at_most=INT32_MAX), float: Bounds()}
"""Bounds of numbers whose annotation states none: no field is negative, and whole numbers fit into an int32."""


ADDED = {"added": True}
"""Metadata of a field that earlier versions did not have: `field(default=0, metadata=ADDED)`.

A config.json without the field is read with its default, which therefore must mean what those versions did.
"""


def is_dataclass_type(annotation: Any) -> TypeGuard[type]:
    """Return whether the annotation of a field is a dataclass, whose fields have dotted names."""
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def added_defaults(kind: type) -> Json:
    """Return the default of every field of a dataclass that is marked `ADDED`."""
    return {f.name: f.default for f in dataclasses.fields(kind) if f.metadata.get("added")}


def flatten(value: Any, prefix: str = "") -> Json:
    """Return dotted names and values in the order of declaration: `{"name": "base", "data.corpus": "bible-web"}`."""
    flat = {}
    for item in dataclasses.fields(value):
        inner = getattr(value, item.name)
        nested = dataclasses.is_dataclass(inner)
        flat |= flatten(inner, f"{prefix}{item.name}.") if nested else {prefix + item.name: inner}
    return flat


def field_types(kind: type, prefix: str = "") -> Json:
    """Return dotted names and types of what may be given, without bounds, in the order of declaration."""
    flat = {}
    hidden = {f.name for f in dataclasses.fields(kind) if f.metadata.get("hidden")}
    for name, annotation in get_type_hints(kind).items():
        if name in hidden:
            continue
        nested = is_dataclass_type(annotation)
        flat |= field_types(annotation, f"{prefix}{name}.") if nested else {prefix + name: annotation}
    return flat


def describe_type(annotation: Any) -> str:
    """Return the values a type allows, in words: `a whole number`, `one of bpe, unigram, char`."""
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    return {int: "a whole number", float: "a number", bool: "True or False", str: "text"}[annotation]


def is_valid(value: Any, annotation: Any) -> bool:
    """Return whether a field of this type may hold the value. An int is a valid float; a bool is no number."""
    if get_origin(annotation) is Literal:
        return value in get_args(annotation)
    if annotation is float:
        # math.isfinite raises OverflowError for ints beyond the range of a float.
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) <= sys.float_info.max
    return type(value) is annotation


def wrong_type(name: str, value: object, annotation: Any) -> UsageError:
    """Return the error for a value that is not valid, with the nearest choice."""
    choices = ("True", "False") if annotation is bool else get_args(annotation)
    near = did_you_mean(value, choices) if isinstance(value, str) else ""
    return UsageError(f"{name} is {value!r}, and must be {describe_type(annotation)}{near}")


def check_fields(config: Any, prefix: str = "") -> None:
    """Raise UsageError for the first field, named with `prefix`, that has a wrong type or is out of its bounds."""
    for name, annotation in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        if is_dataclass_type(annotation):
            check_fields(value, f"{prefix}{name}.")
            continue
        kind, bounds = annotation, DEFAULT_BOUNDS.get(annotation)
        if get_origin(annotation) is Annotated:
            kind, bounds = get_args(annotation)
        if not is_valid(value, kind):
            raise wrong_type(prefix + name, value, kind)
        if bounds and (violated := bounds.violated(value)):
            raise UsageError(f"{prefix}{name} is {value}, and must be {violated}")
