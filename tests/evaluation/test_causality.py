"""Whether a model that sees later tokens is caught, and no other."""

import jax.numpy as jnp
import pytest

from zerotollm.evaluation.causality import sees_the_future
from zerotollm.model import encoder_decoder, transformer
from zerotollm.model.build import build_net
from zerotollm.model.config import TransformerConfig, resolve

CHANGES = [
    {},
    {"initialization": "zero"},
    {"position": "none", "norm_position": "post", "norm": "layer", "feed_forward": "relu2"},
    {"tie_embeddings": True, "embedding_scale": True, "position": "learned", "logit_soft_cap": 15.0},
]


def model(**change):
    config = TransformerConfig(num_layers=1, width=32, num_heads=2, **change)
    return resolve(config, vocab_size=64, context=16)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_models_that_look_back_only_pass_and_those_that_look_ahead_do_not(change, masked, monkeypatch):
    assert not sees_the_future(build_net(model(**change)), masked=masked)
    everywhere = lambda segments_BT, length: jnp.ones((1, length, length), bool)  # noqa: E731
    monkeypatch.setattr(transformer, "causal_mask", everywhere)
    assert sees_the_future(build_net(model(**change)), masked=masked)


def test_one_token_ahead_is_enough(monkeypatch):
    one = lambda segments_BT, length: jnp.tril(jnp.ones((length, length), bool), 1)[None]  # noqa: E731
    monkeypatch.setattr(transformer, "causal_mask", one)
    assert sees_the_future(build_net(model()), masked=False)


def test_a_context_of_one_token_has_no_future():
    config = TransformerConfig(num_layers=1, width=32, num_heads=2)
    assert not sees_the_future(build_net(resolve(config, vocab_size=64, context=1)), masked=False)


def test_a_decoder_with_an_encoder_may_see_its_source_and_no_later_target(monkeypatch):
    assert not sees_the_future(build_net(model(architecture="encoder-decoder")), masked=False)
    everywhere = lambda segments_BT, length: jnp.ones((1, length, length), bool)  # noqa: E731
    monkeypatch.setattr(encoder_decoder, "causal_mask", everywhere)
    assert sees_the_future(build_net(model(architecture="encoder-decoder")), masked=False)


def test_models_that_label_are_tried_too(monkeypatch):
    """An encoder reads the whole text; a decoder must not, or its padding would have a say."""
    assert not sees_the_future(build_net(model(architecture="encoder-decoder", num_classes=3)), masked=False)
    assert not sees_the_future(build_net(model(num_classes=3)), masked=False)
    everywhere = lambda segments_BT, length: jnp.ones((1, length, length), bool)  # noqa: E731
    monkeypatch.setattr(transformer, "causal_mask", everywhere)
    assert sees_the_future(build_net(model(num_classes=3)), masked=False)


def test_a_look_ahead_into_the_next_document_alone_is_found(monkeypatch):
    def leaking(segments_BT, length):
        past = jnp.tril(jnp.ones((length, length), bool))[None]
        return past if segments_BT is None else past | (segments_BT[:, :, None] != segments_BT[:, None, :])

    monkeypatch.setattr(transformer, "causal_mask", leaking)
    assert not sees_the_future(build_net(model()), masked=False)
    assert sees_the_future(build_net(model()), masked=True)


@pytest.mark.parametrize("place", [0, 6, 9])
def test_a_single_position_that_looks_ahead_is_found(place, monkeypatch):
    """Also without a norm of queries and keys: attention must not be so sharp that it misses the later token."""
    one = lambda segments_BT, length: (  # noqa: E731
        jnp.tril(jnp.ones((length, length), bool)).at[place, place + 1].set(True)[None]
    )
    monkeypatch.setattr(transformer, "causal_mask", one)
    assert sees_the_future(build_net(model(qk_norm=False)), masked=False)


def test_a_vocabulary_of_two_tokens_is_enough(monkeypatch):
    """Every token must differ between the two texts."""
    config = TransformerConfig(num_layers=1, width=32, num_heads=2)
    small = resolve(config, vocab_size=2, context=16)
    assert not sees_the_future(build_net(small), masked=False)
    everywhere = lambda segments_BT, length: jnp.ones((1, length, length), bool)  # noqa: E731
    monkeypatch.setattr(transformer, "causal_mask", everywhere)
    assert sees_the_future(build_net(small), masked=False)
