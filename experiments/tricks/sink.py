"""A learned attention sink (gpt-oss, arXiv:2508.10925): a head may attend to nothing."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from zerotollm.experiment import Experiment
from zerotollm.model.blocks import Block
from zerotollm.model.build import Net, build_net
from zerotollm.model.layers import Attention, attention_scores, mix_values


def softmax_with_sink(scores_BHTS: jax.Array, sink_H: jax.Array) -> jax.Array:
    """Return exp(score) / (exp(sink) + sum of exp(scores)): the weights of the keys sum to less than 1."""
    sink_1H11 = sink_H[None, :, None, None]
    peak_BHT1 = jnp.maximum(scores_BHTS.max(-1, keepdims=True), sink_1H11)
    peak_BHT1 = jax.lax.stop_gradient(peak_BHT1)
    weights_BHTS = jnp.exp(scores_BHTS - peak_BHT1)
    return weights_BHTS / (weights_BHTS.sum(-1, keepdims=True) + jnp.exp(sink_1H11 - peak_BHT1))


class SinkAttention(Attention):
    """Attention with one learned logit per head, beside those of the keys."""

    def attend(
        self, q_BHTC: jax.Array, k_BKSC: jax.Array, v_BKSC: jax.Array, mask_BTS: jax.Array
    ) -> jax.Array:
        """Return the values mixed by the weights of `softmax_with_sink`, (B, H, T, C)."""
        sink_H = self.param("sink", nn.initializers.zeros, (self.config.num_heads,))
        scores_BHTS = attention_scores(q_BHTC, k_BKSC, mask_BTS)
        return mix_values(softmax_with_sink(scores_BHTS, sink_H), v_BKSC)


def model(experiment: Experiment) -> Net:
    """Return the built-in net with sinks. Attention is plain: other kernels have no place for the logit."""
    compute = replace(experiment.compute, attention="plain")
    return build_net(experiment.model, compute, partial(Block, attention=SinkAttention))
