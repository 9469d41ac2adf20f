"""Cross attention: none goes to padding, a planted order is found, and chance is not taken for order."""

import jax
import numpy as np
import pytest

from zerotollm.explain.activations import LanguageModel
from zerotollm.explain.alignment import Alignment, align, distance_moved, monotony
from zerotollm.explain.pair_activations import record_pair, text_pair
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.model.encoder_decoder import EncoderDecoder

T, S = 12, 15
NOT_SHOWN = "is not shown"


def alignment_of(weights_TS: np.ndarray) -> Alignment:
    order, p = monotony(weights_TS)
    T, S = weights_TS.shape
    moved = distance_moved(weights_TS)
    return Alignment(("s",) * S, ("t",) * T, weights_TS[None, None], order, p, 1.0, (0, 0), moved)


def test_attention_that_is_all_but_even_does_not_move():
    """It moves in perfect order, but only over a hundredth of the source."""
    tilt_TS = 1 + 0.06 * np.outer(np.linspace(-1, 1, T), np.linspace(-1, 1, S))
    alignment = alignment_of(tilt_TS / tilt_TS.sum(-1, keepdims=True))
    assert alignment.order > 0.99
    assert 0 < alignment.moved < 0.05
    assert NOT_SHOWN in alignment.sentence()
    assert distance_moved(np.eye(T)) == pytest.approx(1)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_planted_order_is_found(backwards):
    t_T, s_S = np.arange(T) / T, np.arange(S) / S
    weights_TS = np.exp(-80 * np.square(t_T[:, None] - s_S[None])) + 0.01
    weights_TS = (weights_TS[::-1] if backwards else weights_TS) / weights_TS.sum(-1, keepdims=True)
    assert ("moves backwards" if backwards else "moves forwards") in alignment_of(weights_TS).sentence()


def test_no_order_is_found_in_chance():
    random = [np.random.default_rng(seed).dirichlet(np.ones(S), T) for seed in range(40)]
    claimed = sum(NOT_SHOWN not in alignment_of(weights_TS).sentence() for weights_TS in random)
    assert claimed <= 6  # 2 are expected
    assert NOT_SHOWN in alignment_of(np.full((T, S), 1 / S)).sentence()
    assert NOT_SHOWN in alignment_of(np.eye(3)).sentence()


@pytest.mark.slow
def test_an_untrained_model_shows_nothing_and_rows_sum_to_one(tokenizer):
    model = TransformerConfig(
        architecture="encoder-decoder", num_layers=1, encoder_layers=1, width=16, num_heads=2
    )
    model = resolve(model, vocab_size=tokenizer.vocab_size, context=32)
    row = np.zeros((1, 4), np.int32)
    init = jax.jit(
        lambda: EncoderDecoder(model).init(
            jax.random.key(0), {"sources": row, "source_mask": row > -1, "inputs": row}
        )
    )
    pair = text_pair(tokenizer, "And Abia went to the sea", "who said the king is in the city", 32)
    alignment = align(record_pair(LanguageModel(init()["params"], model, tokenizer), pair), pair, tokenizer)
    assert alignment.weights_LHTS.shape == (1, 2, len(alignment.target), len(alignment.source))
    np.testing.assert_allclose(alignment.weights_LHTS.sum(-1), 1, rtol=1e-5)
    assert NOT_SHOWN in alignment.sentence()
    assert len(alignment.show().panels) == 3
