"""The variants of `ablations`: each builds, differs from the base in recorded fields only, and can be named."""

import math
from functools import partial

import jax
import pytest

from experiments.ablations import budget, experiment, variants
from tests.functions import init_params, init_state
from tests.recorded import assert_recorded
from zerotollm.errors import UsageError
from zerotollm.experiment import differences
from zerotollm.model.config import resolve
from zerotollm.planning.flops import num_parameters
from zerotollm.studies.suite import BASE, changed, make_suite, select
from zerotollm.validation import validate

BUDGETS = ("tiny", "small", "full")


def named(size: str) -> dict:
    """Return variants by name, without those that equal the base of this size."""
    base = budget(experiment(), size)
    return {v.name: v for v in variants(base) if differences(base, v.experiment)}


def resolved(value):
    return resolve(value.model, vocab_size=value.tokenizer.vocab_size, context=value.data.context)


def parameters(value) -> int:
    return num_parameters(resolved(value))


def test_changed_fields_are_recorded_and_the_same_in_every_budget():
    derived = {}
    for size in BUDGETS:
        base = budget(experiment(), size)
        for name, variant in named(size).items():
            changed_fields = [field for field, _, _ in differences(base, variant.experiment)]
            assert derived.setdefault(name, changed_fields) == changed_fields
    assert_recorded("variants of ablations", dict(sorted(derived.items())))


@pytest.mark.parametrize("size", BUDGETS)
def test_variants_are_valid(size):
    for variant in named(size).values():
        validate(variant.experiment)


@pytest.mark.parametrize("name", sorted(named("small") | named("full")))
def test_builds(name):
    variant = (named("small") | named("full"))[name]
    model = resolved(variant.experiment)
    state = jax.eval_shape(lambda: init_state(model, variant.experiment.optimizer, variant.experiment.train))
    leaves = jax.tree.leaves(state.params)
    assert sum(math.prod(leaf.shape) for leaf in leaves) == num_parameters(model)


@pytest.mark.parametrize("size", BUDGETS)
def test_names_are_folders_and_none_is_a_group(size):
    made = variants(budget(experiment(), size))
    names = [variant.name for variant in made]
    assert len(set(names)) == len(names)
    assert not set(names) & ({variant.group for variant in made} | {BASE})
    assert all(name.replace("-", "").isalnum() for name in names)
    assert all(variant.paper and variant.sentence for variant in made)


@pytest.mark.parametrize("size", BUDGETS)
def test_what_should_be_equal_is(size):
    base, by_name = budget(experiment(), size), named(size)
    for name in ("gelu", "relu", "relu2", "one-head", "more-heads"):
        assert parameters(by_name[name].experiment) == pytest.approx(parameters(base), rel=1e-3), name
    for name in ("half-depth", "double-depth"):
        assert parameters(by_name[name].experiment) == pytest.approx(parameters(base), rel=0.1), name
    tokens = lambda e: e.data.context * e.data.batch_size * e.train.steps  # noqa: E731
    for name, variant in by_name.items():
        assert tokens(variant.experiment) == tokens(base), name


def test_only_takes_variants_and_groups_and_suggests():
    made = variants(experiment())
    chosen = {variant.name for variant in select(made, "norm, relu2 tied")}
    assert chosen == {"layer-pre", "rms-post", "layer-post", "relu2", "tied"}
    assert select(made, "") == list(made)
    assert select(made, "base") == []
    with pytest.raises(UsageError, match=r"'posision' is neither a variant.*did you mean position"):
        select(made, "norm posision")


def test_a_variant_that_is_the_base_is_left_out_and_one_that_cannot_run_is_named():
    base = changed(experiment(), {"model.norm": "layer"})
    names = {variant.name for variant in make_suite(base, variants).variants}
    assert "layer-pre" not in names
    assert "rms-post" in names
    narrow = changed(experiment(), {"model.width": 66, "model.num_heads": 66, "model.position": "learned"})
    with pytest.raises(UsageError, match="the variant more-heads cannot run"):
        make_suite(narrow, variants, "more-heads")
    make_suite(narrow, variants, "norm")


@pytest.mark.parametrize("size", BUDGETS)
@pytest.mark.parametrize("name", ["one-head", "more-heads"])
def test_other_heads_leave_muon_as_it_is(size, name):
    """Its blocks follow from `optimizer` and the shapes of the matrices alone, which are the base's."""
    base, variant = budget(experiment(), size), named(size)[name].experiment
    assert variant.optimizer == base.optimizer
    params = [jax.eval_shape(partial(init_params, resolved(value), 0)) for value in (base, variant)]
    kernels = [[leaf.shape for leaf in jax.tree.leaves(tree) if leaf.ndim == 2] for tree in params]
    assert kernels[0] == kernels[1]
