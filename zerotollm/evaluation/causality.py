"""Whether a model that should only look back looks ahead: such a model scores well and predicts nothing."""

from zerotollm.model.config import TransformerConfig

LENGTH = 12
"""Tokens of the window that is tried: a leak is a leak at any length."""
TOLERANCE = 1e-4
"""of the largest logit: above what two orders of a float32 sum differ by, far below any leak"""


def sees_the_future(model: TransformerConfig, *, masked: bool) -> bool:
    """Whether any logit of `model`, resolved, depends on a later token.

    Row t of a batch has other tokens after position t than row 0, and its logits up to t must be those of row 0.
    The parameters are random in every matrix: freshly initialized, some are zero and would hide what they let
    through. With `masked` the window holds two documents, as under `data.document_mask`. An encoder that labels reads
    whole texts and predicts no token of them: it has no future to see.
    """
    if model.num_classes and model.architecture == "encoder-decoder":
        return False
    import jax
    import numpy as np

    from zerotollm.model.build import build_net, init_params

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

    net, inputs = build_net(model), {"inputs": tokens_BT}
    if model.architecture == "encoder-decoder":  # it may see all of the source, the same for all rows
        sources_BS = first_T[None].repeat(length + 1, axis=0).astype(np.int32)
        inputs |= {"sources": sources_BS, "source_mask": np.ones_like(sources_BS, bool)}
    elif masked:
        inputs["segments"] = segments_BT.astype(np.int32)
    params = jax.tree.map(random, jax.eval_shape(lambda: init_params(net, 0)))
    logits_BTV = np.asarray(jax.jit(lambda params: net.apply({"params": params}, inputs).logits())(params))
    moved_TT = np.abs(logits_BTV[1:] - logits_BTV[:1]).max(axis=-1)
    return bool(np.where(after_TT, 0.0, moved_TT).max() > TOLERANCE * np.abs(logits_BTV).max())
