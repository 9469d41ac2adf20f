"""The first losses and gradient norms of every experiment on fixed tokens: a change of recipe, initialization or
arithmetic shows here.

If one of these changed and you did not mean it, you have found a bug. If you did mean it (another recipe, another
initialization), replace the numbers by those that the failure prints, in the commit that changes them.
"""

from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.functions import init_state, make_train_step
from zerotollm import catalog
from zerotollm.model.accelerator import options_to_run_once
from zerotollm.model.config import resolve
from zerotollm.planning.flops import train_flops
from zerotollm.studies.suite import changed

FOLDER = Path(__file__).parents[2] / "experiments"
TOLERANCE = 1e-3
"""relative; two versions of XLA differ in the order of sums, which three steps hardly amplify"""

GOLDEN = {
    "base": [8.3186, 0.43235, 8.3179, 0.43397, 8.3174, 0.43358],
    "recent_tricks": [8.3186, 0.43235, 8.3177, 0.43402, 8.3175, 0.43334],
    "base_token_shift": [8.3189, 0.43324, 8.3172, 0.43453, 8.3167, 0.43408],
    "finetune_chat": [8.3179, 0.30607, 8.3172, 0.30575, 8.3165, 0.3071],
    "finetune_classify": [8.3182, 0.30591, 8.3176, 0.30609, 8.3178, 0.30679],
    "finetune_subject": [8.3186, 0.43235, 8.3177, 0.43401, 8.3176, 0.43322],
    "finetune_translate": [8.3183, 0.35332, 8.3175, 0.35383, 8.316, 0.35461],
    "multi30k": [6.4646, 2.9669, 6.6527, 3.2688, 6.8259, 3.1561],
    "scaling": [6.9317, 0.44005, 6.9298, 0.43972, 6.9286, 0.43707],
    "shakespeare_char": [4.8519, 0.48914, 4.8149, 0.5289, 4.7014, 0.69453],
    "shakespeare_char_best": [4.8521, 0.54751, 4.8434, 0.62165, 4.8246, 0.58014],
    "bible_style_extra": [6.2399, 0.92437, 6.2357, 0.89804, 6.2396, 0.89686],
    "translate": [6.2408, 0.89724, 6.2362, 0.89246, 6.2366, 0.8981],
    "translate_fr": [6.2382, 0.92646, 6.2362, 0.8991, 6.2375, 0.89614],
    "vaswani_base": [6.5187, 2.1385, 6.7393, 2.0035, 6.7151, 1.9709],
    "vaswani_big": [6.6491, 2.181, 6.7731, 2.1131, 6.6935, 2.0781],
}


# The same experiment under another name, or on another text and in another size, which nothing here depends on.
SAME_AS = {
    "ablations": "base_token_shift", "previous_token_heads": "recent_tricks",
    "vaswani_table3": "vaswani_base", "translate_es": "translate_fr", "translate_de": "translate_fr",
    "bible_style": "translate_fr", "finetune_lora": "finetune_subject",
}  # fmt: skip
GOLDEN |= {name: GOLDEN[same] for name, same in SAME_AS.items() if same in GOLDEN}

SMALLER = {
    "model.num_layers": 1, "model.encoder_layers": 1, "model.width": 64, "model.num_heads": 4, "model.ff_width": 128,
    "tokenizer.vocab_size": 512, "data.context": 16, "data.batch_size": 4,
}  # fmt: skip
"""What a model with an encoder is made to be here: the recipe is looked at, and the paper's sizes take minutes."""


def fits_a_test(name):
    """Whether a step takes well below a second; the larger experiments train by the same code."""
    experiment = catalog.load(FOLDER, name)
    if experiment.model.architecture == "encoder-decoder":
        return True  # made smaller
    shape = experiment.data
    model = resolve(experiment.model, vocab_size=experiment.tokenizer.vocab_size, context=shape.context)
    return train_flops(model, shape.context) * shape.context * shape.batch_size < 1e12


QUICK = {"base", "ablations", "shakespeare_char", "translate"}
"""One of each kind; compiling the train steps of the others takes minutes."""


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in filter(fits_a_test, catalog.names(FOLDER))
    ],
)
def test_first_losses(name):
    experiment = catalog.load(FOLDER, name)
    pair = experiment.model.architecture == "encoder-decoder"
    experiment = changed(experiment, SMALLER) if pair else experiment
    shape = experiment.data
    vocab_size = 69 if experiment.tokenizer.kind == "char" else experiment.tokenizer.vocab_size
    model = resolve(experiment.model, vocab_size=vocab_size, context=shape.context)
    size = vocab_size, shape.batch_size, shape.context
    seen = first_losses(model, experiment.optimizer, experiment.train, *size)
    assert seen == pytest.approx(GOLDEN.get(name, []), rel=TOLERANCE), (
        f"{name} now begins with {seen}: see the top of this file"
    )


@cache
def first_losses(model, optimizer, train, vocab_size, batch_size, context):
    """Losses and gradient norms of three steps, which several experiments share."""
    pair = model.architecture == "encoder-decoder"
    init = partial(init_state, model, optimizer, train)
    state = jax.jit(init, compiler_options=options_to_run_once())()  # as in training
    step = make_train_step(model, optimizer, train)
    draw = np.random.default_rng(0)
    seen = []
    for _ in range(3):
        # Squared, so that some tokens are frequent and there is something to learn.
        uniform = draw.random((batch_size, context + 1))
        tokens = (vocab_size * uniform**2).astype(np.int32)
        batch = {
            "inputs": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "sources" if pair else "segments": tokens[:, :0:-1] if pair else np.ones_like(tokens[:, 1:]),
            "weights": np.ones(tokens[:, 1:].shape, np.float32),
        }
        state, metrics = step(state, batch)
        seen += [float(f"{float(metrics[key]):.5g}") for key in ("loss", "grad_norm")]
    return seen
