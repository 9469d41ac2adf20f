"""A suite: a base experiment and variants of it, each with one thing changed. No heavy imports."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment, differences
from zerotollm.suggest import did_you_mean
from zerotollm.validation import validate

BASE = "base"
"""Name and group of the base in results."""


@dataclass(frozen=True)
class Variant:
    """One question about the base: what if this were different?"""

    name: str
    """names a folder of results; unique in the suite, and no group's name"""
    group: str
    """what the change is about"""
    experiment: Experiment
    paper: str
    """where the changed thing comes from, as `arXiv:NUMBER` or in words"""
    sentence: str
    """what is changed, and what of the rest moves with it"""
    published: dict[str, float] | None = None
    """what the paper measured of it, to stand beside ours: `perplexity` per token, `bleu`, `parameters` in millions"""


class Suite(NamedTuple):
    """What the command line gives to the actions of suites."""

    base: Experiment
    variants: tuple[Variant, ...]
    about: Variant | None = None
    """what is said of the base, where anything is"""


def changed(experiment: Experiment, fields: Mapping[str, Any]) -> Experiment:
    """The experiment with fields replaced, each by its dotted name: `{"model.num_heads": 1, "name": "one"}`."""
    for name, value in fields.items():
        group, _, part = name.partition(".")
        inner = replace(getattr(experiment, group), **{part: value}) if part else value
        experiment = replace(experiment, **{group: inner})
    return experiment


def make_suite(
    base: Experiment, variants: Callable[[Experiment], Sequence[Variant]], only: str = ""
) -> Suite:
    """The suite of a base, of the variants that `only` names (see `select`).

    A variant that is no different from the base is left out, as happens where the command line changes the base
    to it; one that is called `base` says what there is to say of the base itself. Raises UsageError for a word that
    names nothing, and where a variant cannot run on this base.
    """
    every = tuple(variants(base))
    about = next((v for v in every if v.name == BASE), None)
    others = tuple(v for v in every if v.name != BASE)
    chosen = tuple(v for v in select(others, only) if differences(base, v.experiment))
    for variant in chosen:
        try:
            validate(variant.experiment)
        except UsageError as error:
            raise UsageError(
                f"the variant {variant.name} cannot run on this base: {error}; or choose others with --only"
            ) from None
    return Suite(base, chosen, about)


def select(variants: Sequence[Variant], only: str) -> list[Variant]:
    """The variants that `only` names, by their own names or their groups', with commas or spaces between; all
    where it is empty. Raises UsageError for a word that names nothing."""
    words = only.replace(",", " ").split()
    names = [variant.name for variant in variants]
    groups = list(dict.fromkeys(variant.group for variant in variants))
    for word in words:
        if word not in {*names, *groups, BASE}:
            near = did_you_mean(word, [*groups, *names]) or f": one of {', '.join([*groups, *names])}"
            raise UsageError(f"--only: {word!r} is no variant and no group of them{near}")
    return [v for v in variants if not words or v.name in words or v.group in words]
