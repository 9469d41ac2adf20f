"""The first losses of every experiment on fixed tokens: a change of recipe, initialization or arithmetic shows here.

If one of these changed and you did not mean it, you have found a bug. If you did mean it (another recipe, another
initialization), replace the numbers by those that the failure prints, in the commit that changes them.
"""

from pathlib import Path

import jax
import numpy as np
import pytest

from zerotollm import catalog
from zerotollm.model.config import resolve
from zerotollm.training.step import init_state, make_train_step

FOLDER = Path(__file__).parents[2] / "experiments"
TOLERANCE = 2e-3
"""nats; two versions of XLA differ in the order of sums, which three steps do not amplify further"""

GOLDEN = {
    "base": [],
    "shakespeare_char": [],
    "shakespeare_char_best": [],
}


@pytest.mark.parametrize("name", catalog.names(FOLDER))
def test_first_losses(name):
    experiment = catalog.load(FOLDER, name)
    shape = experiment.data
    vocab_size = 69 if experiment.tokenizer.kind == "char" else experiment.tokenizer.vocab_size
    model = resolve(experiment.model, vocab_size=vocab_size, context=shape.context)
    state = jax.jit(lambda: init_state(model, experiment.optimizer, experiment.train))()
    step = make_train_step(model, experiment.optimizer, experiment.train)
    draw = np.random.default_rng(0)
    losses = []
    for _ in range(3):
        # Squared, so that some tokens are frequent and there is something to learn.
        uniform = draw.random((shape.batch_size, shape.context + 1))
        tokens = (vocab_size * uniform**2).astype(np.int32)
        batch = {
            "inputs": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "segments": np.ones_like(tokens[:, 1:]),
            "weights": np.ones(tokens[:, 1:].shape, np.float32),
        }
        state, metrics = step(state, batch)
        losses.append(round(float(metrics["loss"]), 4))
    assert losses == pytest.approx(GOLDEN.get(name), abs=TOLERANCE), (
        f"{name} now begins with {losses}: see the top of this file"
    )
