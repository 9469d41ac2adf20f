"""config.json of the `transformers` library: checked access to its fields, and the entries of a family's table.

A `ConfigField` describes one entry in both directions: how it is written from a `TransformerConfig`, how it is read
into one, and which of our values the family can express.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from zerotollm.errors import UsageError
from zerotollm.model.config import TransformerConfig
from zerotollm.types import Json

ROPE_FIELDS = ("rope_theta", "rope_parameters", "rope_scaling")
UNSCALED_ROPE = {
    "rope_type": ("default", None),
    "type": ("default", None),
    "factor": (1.0, None),
    "partial_rotary_factor": (1.0, None),
}
"""Accepted values of the fields of unscaled RoPE, besides theta. Any other field must be null or false."""


@dataclass(frozen=True)
class ConfigFile:
    """A config.json. Every method raises UsageError, naming file and field, for an unsupported value."""

    path: Path
    fields: Json

    def number(self, name: str, default: float | None = None, noun: str = "number") -> Any:
        """Return a number above 0, or the default (which may be 0) where the field is absent or null."""
        value: Any = self.fields.get(name)
        if value is None and default is not None:
            return default
        kinds = int | float if noun == "number" else int
        if isinstance(value, bool) or not isinstance(value, kinds) or not value > 0:
            raise UsageError(f"{self.path}: {name} is {value!r}, and must be a {noun} above 0")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """Return a whole number above 0, or the default, as `number`."""
        return self.number(name, default, "whole number")

    def allow(self, name: str, default: Any, allowed: tuple[Any, ...]) -> Any:
        """Return a value that must be one of `allowed`, or the default where the field is absent."""
        value = self.fields.get(name, default)
        if value not in allowed:
            supported = " or ".join(map(repr, allowed))
            raise UsageError(f"{self.path}: {name} is {value!r}, and only {supported} is supported")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """Return true or false."""
        return bool(self.allow(name, default, (True, False)))

    def token_id(self, name: str) -> int | None:
        """Return a token id, the first of a list; None where there is none."""
        return next(iter(self.token_ids(name)), None)

    def token_ids(self, name: str) -> list[int]:
        """Return the token ids of a list or of a single id; none where the field is absent or null."""
        value = self.fields.get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        for token_id in ids:
            if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
                raise UsageError(f"{self.path}: {name} is {value!r}, and must be the id of a token")
        return ids

    def rope_theta(self) -> float:
        """Return theta of unscaled rotary positions. Fields that scale them are refused."""
        checked: Json = {
            name: value
            for name, value in self.fields.items()
            if name not in ROPE_FIELDS and (name.startswith("rope_") or name in UNSCALED_ROPE)
        }
        thetas = [self.fields.get("rope_theta")]
        for outer in ("rope_parameters", "rope_scaling"):
            inner = self.fields.get(outer) or {}
            if not isinstance(inner, dict):
                raise UsageError(f"{self.path}: {outer} is {inner!r}, and must be an object of fields")
            thetas.append(inner.get("rope_theta"))
            checked |= {f"{outer}.{name}": value for name, value in inner.items() if name != "rope_theta"}
        for path, value in checked.items():
            outer, dot, name = path.rpartition(".")
            shown = f"{outer}{dot}{'rope_type' if name == 'type' else name}"
            replace(self, fields={shown: value}).allow(shown, None, UNSCALED_ROPE.get(name, (None, False)))
        files = [replace(self, fields={"rope_theta": theta}) for theta in thetas if theta is not None]
        distinct = {file.number("rope_theta") for file in files}
        if len(distinct) > 1:
            raise UsageError(f"{self.path}: rope_theta is both {' and '.join(map(str, sorted(distinct)))}")
        return float(*distinct or [10000.0])


class ConfigField(NamedTuple):
    """One entry of a family's table."""

    write: Callable[[TransformerConfig], Json]  # fields of config.json
    read: Callable[[ConfigFile], Json]  # fields of TransformerConfig, or UsageError
    expressible: Mapping[str, tuple[Any, ...]] = {}
    """Field of TransformerConfig -> values that the family can express, where it cannot express all."""


def count(theirs: str, ours: str, default: int | None = None, absent: int | None = None) -> ConfigField:
    """Map a whole number. `absent` replaces the default where the field is absent rather than null."""

    def read(file: ConfigFile) -> Json:
        missing = absent is not None and theirs not in file.fields
        return {ours: absent if missing else file.count(theirs, default)}

    return ConfigField(lambda model: {theirs: getattr(model, ours)}, read)


def number(theirs: str, ours: str, default: float) -> ConfigField:
    """Map a number."""
    return ConfigField(
        lambda model: {theirs: getattr(model, ours)}, lambda file: {ours: file.number(theirs, default)}
    )


def flag(theirs: str, ours: str, default: bool) -> ConfigField:
    """Map true or false."""
    return choice(theirs, ours, {True: True, False: False}, default)


def choice(
    theirs: str, ours: str, values: Mapping[Any, Any], default: Any, synonyms: Mapping[Any, Any] | None = None
) -> ConfigField:
    """Map a choice. `values` maps ours to theirs, `synonyms` maps further values of theirs to ours."""
    by_theirs = {**(synonyms or {}), **{theirs: ours for ours, theirs in values.items()}}
    return ConfigField(
        lambda model: {theirs: values[getattr(model, ours)]},
        lambda file: {ours: by_theirs[file.allow(theirs, default, tuple(by_theirs))]},
        {ours: tuple(values)},
    )


def constant(theirs: str, value: Any, *, checked: bool = False, also: tuple[Any, ...] = ()) -> ConfigField:
    """Write a constant. A `checked` constant must also be read, or one of the values in `also`."""

    def read(file: ConfigFile) -> Json:
        if checked or also:
            file.allow(theirs, value, (value, *also))
        return {}

    return ConfigField(lambda model: {theirs: value}, read)


def only(theirs: str, *supported: Any) -> ConfigField:
    """Refuse a field with any other value; absent counts as the first. It is not written."""
    return constant(theirs, supported[0], checked=True, also=supported[1:])._replace(write=lambda model: {})
