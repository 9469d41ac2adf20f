"""Find a model that attends to later tokens: its loss is low, and it predicts nothing."""

import jax
import jax.numpy as jnp
import numpy as np

from zerotollm.model.build import Net, Params, apply_net, init_params

LENGTH = 12
"""Tokens of the tested window: a leak shows at any length."""
TOLERANCE = 1e-4
"""Relative to the largest logit: above the rounding of float32 sums in another order, far below any leak."""


def sees_the_future(net: Net, *, masked: bool) -> bool:
    """Return whether any logit of a net depends on a later token.

    Row t of a batch differs from row 0 in all tokens after position t, and must have the same logits up to t. All
    matrices are random, since some are initialized to zero, which would hide a leak. With `masked` the window holds two
    documents, as under `data.document_mask`. An encoder that labels texts predicts no token: the result is False.
    """
    model = net.config
    if model.num_classes and model.encoder_layers:
        return False
    length = min(LENGTH, model.max_length)
    draw = np.random.default_rng(0)
    first_T, other_T = draw.integers(0, model.vocab_size // 2, (2, length))
    other_T += model.vocab_size // 2  # so that every token differs
    after_TT = np.triu(np.ones((length, length), bool), 1)
    tokens_BT = np.where(after_TT, other_T[None], first_T[None])
    tokens_BT = np.concatenate([first_T[None], tokens_BT]).astype(np.int32)
    segments_BT = np.where(np.arange(length) < length // 2, 1, 2)[None].repeat(length + 1, axis=0)

    def random(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if len(leaf.shape) < 2:
            return np.ones(leaf.shape, np.float32)
        return (draw.standard_normal(leaf.shape) / leaf.shape[0] ** 0.5).astype(np.float32)

    inputs = {"inputs": jnp.asarray(tokens_BT)}
    if model.encoder_layers:  # all rows have the same source, which it may attend to
        sources_BS = jnp.asarray(first_T[None].repeat(length + 1, axis=0), jnp.int32)
        inputs |= {"sources": sources_BS, "source_mask": jnp.ones_like(sources_BS, bool)}
    elif masked:
        inputs["segments"] = jnp.asarray(segments_BT, jnp.int32)
    params = jax.tree.map(random, jax.eval_shape(lambda: init_params(net, 0)))

    def logits(params: Params) -> jax.Array:
        return apply_net(net, params, inputs).logits()

    logits_BTV = np.asarray(jax.jit(logits)(params))
    changed_TT = np.abs(logits_BTV[1:] - logits_BTV[:1]).max(axis=-1)
    return bool(np.where(after_TT, 0.0, changed_TT).max() > TOLERANCE * np.abs(logits_BTV).max())
