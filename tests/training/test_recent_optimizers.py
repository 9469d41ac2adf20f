"""The optimizers of `recent_tricks`: numbers by hand, and the built-in optimizer at neutral values."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from experiments.recent_tricks import budget, code, experiment
from experiments.tricks import (
    averaging,
    cautious_decay,
    cautious_update,
    newton_schulz,
    normuon,
    schedule_free,
)
from tests.functions import init_params
from zerotollm.experiment import Experiment
from zerotollm.model.config import resolve
from zerotollm.training.optimizers import at_step, make_optimizer, orthogonalize, scale_by_muon

KERNELS = {
    "layer_0": {
        "up": jax.random.normal(jax.random.key(0), (8, 16)),
        "down": jax.random.normal(jax.random.key(1), (16, 8)),
    }
}


def run(rule: optax.GradientTransformation, params, gradients, steps: int) -> list:
    """Return the parameters after each step. `gradients(params)` are their gradients."""
    state, after = rule.init(params), []
    for step in range(steps):
        state = at_step(state, jnp.asarray(step, jnp.int32))
        updates, state = rule.update(gradients(params), state, params)
        params = optax.apply_updates(params, updates)
        after.append(params)
    return after


def assert_close(left, right) -> None:
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), left, right)


@pytest.mark.parametrize(
    "name",
    [
        "newton_schulz",
        "normuon",
        "cautious_decay",
        "cautious_update",
        "averaging",
        "schedule_free",
        "together",
    ],
)
def test_only_hidden_matrices_move_otherwise(name):
    """Embedding, head and vectors have the base's first update, except where all parameters are averaged."""
    tiny = budget(experiment(), "tiny")
    model = resolve(tiny.model, vocab_size=64, context=16)
    tiny = replace(tiny, model=model)
    params = init_params(model, 0)
    gradients = jax.tree.map(lambda x: jax.random.normal(jax.random.key(2), x.shape), params)
    own = code(name).function("optimizer")
    assert own
    updates, _ = own(tiny).update(gradients, own(tiny).init(params), params)
    rule = make_optimizer(tiny.optimizer, tiny.train.steps)
    plain, _ = rule.update(gradients, rule.init(params), params)
    for key in ("embedding", "head", "final_norm"):
        if name != "schedule_free":
            assert_close(updates[key], plain[key])
    down = updates["layer_0"]["feed_forward"]["down"], plain["layer_0"]["feed_forward"]["down"]
    assert np.isfinite(down[0]).all()
    same = np.allclose(*down, rtol=1e-4, atol=1e-9)
    assert same == (name == "averaging")


def test_newton_schulz_by_hand():
    """A diagonal matrix of norm 1: every singular value s becomes a s + b s^3 + c s^5."""
    s = np.array([0.6, 0.8])
    a, b, c = 3.4445, -4.7750, 2.0315
    once = a * s + b * s**3 + c * s**5
    got = newton_schulz.orthogonalize(jnp.diag(jnp.asarray(s)), 1)
    np.testing.assert_allclose(got, np.diag(once), rtol=1e-4)
    twice = newton_schulz.orthogonalize(jnp.diag(jnp.asarray(s)), 2)
    np.testing.assert_allclose(twice, np.diag(a * once + b * once**3 + c * once**5), rtol=1e-4)
    tall = jax.random.normal(jax.random.key(0), (9, 4))
    np.testing.assert_allclose(
        newton_schulz.orthogonalize(tall, 3), newton_schulz.orthogonalize(tall.T, 3).T, rtol=1e-4, atol=1e-5
    )


def test_polar_express_comes_nearer_to_orthogonal():
    """What the coefficients are for: small singular values grow faster, in as many iterations."""
    matrix = jnp.diag(jnp.array([1.0, 0.3, 0.03, 0.003]))
    smallest = {
        rule: float(jnp.linalg.svd(rule(matrix, 3), compute_uv=False)[-1])
        for rule in (orthogonalize, newton_schulz.orthogonalize)
    }
    assert smallest[orthogonalize] > 2 * smallest[newton_schulz.orthogonalize]


def test_normuon_by_hand():
    """Two neurons of root mean squares 1 and 3: divided by them, and then as long as before in all."""
    directions = {"up": jnp.array([[1.0, 3.0], [1.0, -3.0]])}
    rule = normuon.normalize_neurons(0.5)
    state = rule.init(directions)
    updates, state = rule.update(directions, state)
    np.testing.assert_allclose(state.mean_squares["up"], [[0.5, 4.5]])
    size = 20**0.5 / 2  # the norm of the matrix, over that of four ones
    np.testing.assert_allclose(updates["up"], [[size, size], [size, -size]], rtol=1e-5)
    updates, state = rule.update({"up": jnp.array([[2.0, 0.0], [0.0, 0.0]])}, state)
    np.testing.assert_allclose(state.mean_squares["up"], [[0.25 + 1.0, 2.25]])
    np.testing.assert_allclose(updates["up"], [[2.0, 0.0], [0.0, 0.0]], rtol=1e-5)
    updates, _ = rule.update({"up": jnp.zeros((2, 2))}, state)
    assert np.isfinite(updates["up"]).all()


def test_cautious_decay_by_hand():
    rule = cautious_decay.add_cautious_decay(0.1)
    params, directions = {"up": jnp.array([[2.0, -2.0, 2.0, 0.0]])}, {"up": jnp.array([[1.0, 1.0, 0.0, 1.0]])}
    updates, _ = rule.update(directions, rule.init(params), params)
    # Only the first is moved towards zero, since the update is subtracted.
    np.testing.assert_allclose(updates["up"], [[1.2, 1.0, 0.0, 1.0]], rtol=1e-6)


def test_without_decay_cautious_decay_is_muon():
    tiny = budget(experiment(), "tiny")
    tiny = replace(tiny, optimizer=replace(tiny.optimizer, weight_decay=0.0))
    rules = cautious_decay.optimizer(tiny), make_optimizer(tiny.optimizer, tiny.train.steps, False)
    params = {"layer_0": KERNELS["layer_0"], "head": jnp.ones((8, 4))}
    left, right = (run(rule, params, lambda p: jax.tree.map(jnp.sin, p), 3)[-1] for rule in rules)
    assert_close(left, right)


def test_cautious_updates_by_hand():
    rule = cautious_update.cautious(optax.stateless(lambda g, _: {"up": jnp.array([[1.0, 2.0, -3.0, 4.0]])}))
    gradients = {"up": jnp.array([[1.0, -1.0, -1.0, 0.0]])}
    updates, _ = rule.update(gradients, rule.init(gradients), gradients)
    # Two of four agree: the scale is 4 / (2 + 1).
    np.testing.assert_allclose(updates["up"], [[4 / 3, 0.0, -4.0, 0.0]], rtol=1e-6)


def test_the_last_step_ends_at_the_mean():
    """Steps of -1 from 10: the last four of 8 end at 5, 4, 3 and 2."""
    rule = averaging.end_at_mean(optax.sgd(1.0), steps=8, last=4)
    after = run(rule, {"w": jnp.array(10.0)}, lambda params: {"w": jnp.array(1.0)}, 8)
    assert [float(p["w"]) for p in after] == [9, 8, 7, 6, 5, 4, 3, 3.5]
    rule = averaging.end_at_mean(optax.sgd(1.0), steps=8, last=1)
    assert run(rule, {"w": jnp.array(10.0)}, lambda params: {"w": jnp.array(1.0)}, 8)[-1]["w"] == 2


def test_schedule_free_is_that_of_optax():
    """On a quadratic: all iterates y, and at the end x."""
    steps, rate = 30, 0.2

    def gradients(params):
        return jax.tree.map(lambda w: w - jnp.arange(3.0), params)

    params = {"w": jnp.array([5.0, -3.0, 1.0])}
    ours = run(schedule_free.schedule_free(optax.sgd(rate), steps, warmup=1), params, gradients, steps)
    theirs = optax.contrib.schedule_free(optax.sgd(rate), rate, b1=0.9, weight_lr_power=2.0)
    state = theirs.init(params)
    for step in range(steps):
        updates, state = theirs.update(gradients(params), state, params)
        params = optax.apply_updates(params, updates)
        if step < steps - 1:
            np.testing.assert_allclose(ours[step]["w"], params["w"], rtol=1e-4, atol=1e-4)
    mean = optax.contrib.schedule_free_eval_params(state, params)
    np.testing.assert_allclose(ours[-1]["w"], mean["w"], rtol=1e-4, atol=1e-4)


def test_schedule_free_weights_the_warmup_by_hand():
    """z goes down by 1 a step from 10. With a warmup of two steps the weights are 1/4, 1, 1, ..."""
    rule = schedule_free.schedule_free(optax.sgd(1.0), steps=3, warmup=2, beta=0.5)
    after = run(rule, {"w": jnp.array(10.0)}, lambda params: {"w": jnp.array(1.0)}, 3)
    x = [9.0, (9 / 4 + 8) / 1.25, (9 / 4 + 8 + 7) / 2.25]
    expected = [(9 + x[0]) / 2, (8 + x[1]) / 2, x[2]]
    np.testing.assert_allclose([p["w"] for p in after], expected, rtol=1e-6)


def test_a_rule_of_ones_own_trains_hidden_matrices_only():
    """`hidden` is Muon's place: given Muon itself, nothing changes."""
    c = Experiment().optimizer
    muon = scale_by_muon(c.momentum, c.iterations, c.block)
    params = {"layer_0": KERNELS["layer_0"], "head": jnp.ones((8, 4))}
    left, right = (
        run(make_optimizer(c, 10, False, hidden=rule), params, lambda p: jax.tree.map(jnp.sin, p), 2)[-1]
        for rule in (muon, None)
    )
    assert_close(left, right)
    doubled = optax.chain(muon, optax.scale(2.0))
    moved = run(make_optimizer(c, 10, False, hidden=doubled), params, lambda p: jax.tree.map(jnp.sin, p), 1)
    plain = run(make_optimizer(c, 10, False), params, lambda p: jax.tree.map(jnp.sin, p), 1)
    assert_close(moved[0]["head"], plain[0]["head"])
    assert not np.allclose(moved[0]["layer_0"]["up"], plain[0]["layer_0"]["up"])
