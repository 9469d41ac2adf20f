"""A suite: a base experiment and its variants, each with one change. No heavy imports."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment, differences
from zerotollm.suggest import did_you_mean
from zerotollm.validation import validate

BASE = "base"
"""Name and group of the base in results."""

T = TypeVar("T")


@dataclass(frozen=True)
class Variant:
    """The base with one change: the question that it answers, and its source."""

    name: str
    """names a folder of results; unique in the suite, and not the name of a group"""
    group: str
    """what the change is about"""
    experiment: Experiment
    paper: str
    """source of the change: `arXiv:NUMBER`, or words"""
    sentence: str
    """what is changed, and what else changes with it"""
    published: dict[str, float] | None = None
    """the paper's numbers, to compare with ours: `perplexity` per token, `bleu`, `parameters` in millions"""


class Change(NamedTuple):
    """A `Variant` whose base is not known yet."""

    name: str
    fields: Mapping[str, object]
    """what is changed, see `changed`"""
    paper: str
    sentence: str


class Suite(NamedTuple):
    """Argument of the actions of suites."""

    base: Experiment
    variants: tuple[Variant, ...]
    """without the base"""
    base_variant: Variant | None = None
    """the base as a variant, where the experiment file describes it"""


def changed(experiment: T, fields: Mapping[str, object]) -> T:
    """Return the dataclass with fields replaced by dotted names: `{"model.num_heads": 1, "name": "one"}`."""
    for name, value in fields.items():
        group, _, field = name.partition(".")
        inner = replace(getattr(experiment, group), **{field: value}) if field else value
        experiment = replace(experiment, **{group: inner})  # type: ignore[type-var]  (any dataclass)
    return experiment


def variants_of(base: Experiment, groups: Mapping[str, Iterable[Change]]) -> tuple[Variant, ...]:
    """Return a variant of the base for each change; `groups` are the changes by group."""
    return tuple(
        Variant(change.name, group, changed(base, change.fields), change.paper, change.sentence)
        for group, changes in groups.items()
        for change in changes
    )


def make_suite(
    base: Experiment, variants: Callable[[Experiment], Sequence[Variant]], only: str = ""
) -> Suite:
    """Return the suite of a base and of the variants that `only` names (see `select`).

    A variant called `base` describes the base. A variant equal to the base is left out: the command line may have
    changed the base to it. Raises UsageError for an unknown word in `only`, and where a variant cannot run on the base.
    """
    described = tuple(variants(base))
    base_variant = next((variant for variant in described if variant.name == BASE), None)
    selected = select([variant for variant in described if variant.name != BASE], only)
    selected = tuple(variant for variant in selected if differences(base, variant.experiment))
    for variant in selected:
        try:
            validate(variant.experiment)
        except UsageError as error:
            raise UsageError(
                f"the variant {variant.name} cannot run on this base: {error}; or choose others with --only"
            ) from None
    return Suite(base, selected, base_variant)


def select(variants: Sequence[Variant], only: str) -> list[Variant]:
    """Return the variants whose name or group is a word of `only` (separated by commas or spaces); all if it is empty.

    Raises UsageError for an unknown word.
    """
    words = only.replace(",", " ").split()
    names = [*dict.fromkeys(variant.group for variant in variants), *(variant.name for variant in variants)]
    for word in words:
        if word not in {*names, BASE}:
            near = did_you_mean(word, names) or f": one of {', '.join(names)}"
            raise UsageError(f"--only: {word!r} is neither a variant nor a group of variants{near}")
    return [v for v in variants if not words or v.name in words or v.group in words]
