"""The loss scale of float16: what becomes of it after an overflow, and after none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zerotollm.training import loss_scale


def test_the_scale_counts_good_steps_doubles_and_halves():
    """The numbers of a run with one overflow, by hand."""
    state = loss_scale.init_loss_scale()
    assert (float(state.scale), int(state.good_steps), int(state.skipped)) == (2.0**16, 0, 0)
    interval = loss_scale.GROWTH_INTERVAL
    for good, finite, after in (
        (0, True, (2.0**16, 1, 0)),
        (interval - 2, True, (2.0**16, interval - 1, 0)),
        (interval - 1, True, (2.0**17, 0, 0)),
        (interval - 1, False, (2.0**15, 0, 1)),
        (3, False, (2.0**15, 0, 1)),
    ):
        new = loss_scale.update_loss_scale(state._replace(good_steps=jnp.int32(good)), jnp.bool_(finite))
        assert (float(new.scale), int(new.good_steps), int(new.skipped)) == after, (good, finite)
    again = loss_scale.update_loss_scale(new, jnp.bool_(False))
    assert (float(again.scale), int(again.skipped)) == (2.0**14, 2)
    top = state._replace(scale=jnp.float32(loss_scale.CAP / 2), good_steps=jnp.int32(interval - 1))
    assert float(loss_scale.update_loss_scale(top, jnp.bool_(True)).scale) == loss_scale.CAP == 2.0**24


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_one_non_finite_number_is_detected(bad):
    tree = {"a": jnp.ones((2, 3)), "b": (jnp.zeros(4), jnp.float16(60000.0))}
    assert bool(loss_scale.all_finite(tree))
    for harm in ({"a": tree["a"].at[1, 2].set(bad)}, {"b": (tree["b"][0].at[0].set(bad), tree["b"][1])}):
        assert not bool(loss_scale.all_finite(tree | harm))
    new, old = {"x": jnp.ones(3), "n": jnp.int32(2)}, {"x": jnp.zeros(3), "n": jnp.int32(1)}
    for finite, expected in ((True, new), (False, old)):
        found = loss_scale.select_if_finite(jnp.bool_(finite), new, old)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_scale_grows_after_an_interval_up_to_its_cap():
    state = loss_scale.init_loss_scale()._replace(good_steps=jnp.int32(loss_scale.GROWTH_INTERVAL - 1))
    grown = loss_scale.update_loss_scale(state, jnp.bool_(True))
    assert float(grown.scale) == 2 * loss_scale.START
    assert int(grown.good_steps) == 0
    top = state._replace(scale=jnp.float32(loss_scale.CAP))
    assert float(loss_scale.update_loss_scale(top, jnp.bool_(True)).scale) == loss_scale.CAP
    low = state._replace(scale=jnp.float32(1.0))
    assert float(loss_scale.update_loss_scale(low, jnp.bool_(False)).scale) == loss_scale.FLOOR
