"""config.json of the `transformers` library: checked access to its fields, and the entries of a family's table.

A `ConfigField` describes one entry in both directions: how it is written from a `TransformerConfig`, how it is read
into one, and which of our values the family can express.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from zerotollm.errors import UsageError
from zerotollm.model.config import ROPE_KEPT, ROPE_STRETCHED, TransformerConfig
from zerotollm.types import Json

ROPE_FIELDS = ("rope_theta", "rope_parameters", "rope_scaling")
ROPE_TYPES: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "default": {"factor": (1.0, None)},
    "linear": {},
    "llama3": {"low_freq_factor": (ROPE_STRETCHED,), "high_freq_factor": (ROPE_KEPT,)},
}
"""Accepted values of the fields of each `rope_type`, besides those that our fields hold."""
ORIGINAL_LENGTH = "original_max_position_embeddings"


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

    def rope(self, default_theta: float) -> Json:
        """Return our fields of rotary positions. Scalings other than those of `ROPE_TYPES` are refused."""
        thetas, scalings = [self.fields.get("rope_theta")], []
        names = ("type", "factor", "partial_rotary_factor")
        here = {x: y for x, y in self.fields.items() if x.startswith("rope_") or x in names}
        self._rope_scaling("", {x: y for x, y in here.items() if x not in ROPE_FIELDS})
        for outer in ROPE_FIELDS[1:]:
            inner = self.fields.get(outer) or {}
            if not isinstance(inner, dict):
                raise UsageError(f"{self.path}: {outer} is {inner!r}, and must be an object of fields")
            thetas.append(inner.get("rope_theta"))
            if scaling := {x: y for x, y in inner.items() if x != "rope_theta"}:
                scalings.append(self._rope_scaling(f"{outer}.", scaling))
        files = [replace(self, fields={"rope_theta": theta}) for theta in thetas if theta is not None]
        distinct = {file.number("rope_theta") for file in files}
        if len(distinct) > 1:
            raise UsageError(f"{self.path}: rope_theta is both {' and '.join(map(str, sorted(distinct)))}")
        scaling, *others = scalings or [{}]
        if any(other != scaling for other in others):
            raise UsageError(f"{self.path}: rope_parameters and rope_scaling differ: keep one of the two")
        return {"rope_theta": float(*distinct or [default_theta])} | scaling

    def _rope_scaling(self, outer: str, fields: Json) -> Json:
        """Return our fields of the object `outer`, a name with a dot, or of the file itself, which scales nothing."""
        file = replace(self, fields={outer + name: value for name, value in fields.items()})
        allowed = (None, *ROPE_TYPES) if outer else (None, "default")
        kinds = {file.allow(outer + name, None, allowed) for name in ("rope_type", "type")} - {None}
        if len(kinds) > 1:
            raise UsageError(f"{self.path}: {outer}rope_type and {outer}type differ: keep one of the two")
        (kind,) = kinds or {"default"}
        ours, taken = {}, {"rope_type", "type"}
        if kind != "default":
            ours["rope_factor"] = float(file.number(f"{outer}factor"))
            taken.add("factor")
        if kind == "llama3":
            ours["rope_original_length"] = file.count(outer + ORIGINAL_LENGTH)
            taken.add(ORIGINAL_LENGTH)
        accepted = {**ROPE_TYPES[kind], "partial_rotary_factor": (1.0, None)}
        for name in {**accepted, **fields}:
            if name not in taken:
                file.allow(outer + name, None, accepted.get(name, (None, False)))
        return ours


def write_rope(model: TransformerConfig) -> Json:
    """Return the fields that `ConfigFile.rope` reads."""
    theta = {"rope_theta": model.rope_theta}
    if model.rope_factor == 1:
        # transformers 5 reads the first; earlier versions and other programs read the second.
        return {"rope_parameters": {"rope_type": "default"} | theta} | theta
    kind = "llama3" if model.rope_original_length else "linear"
    scaling: Json = {"rope_type": kind, "factor": model.rope_factor}
    if model.rope_original_length:
        scaling |= {name: values[0] for name, values in ROPE_TYPES[kind].items()}
        scaling |= {ORIGINAL_LENGTH: model.rope_original_length}
    return {"rope_parameters": scaling | theta, "rope_scaling": scaling} | theta


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
