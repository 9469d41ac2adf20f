"""Gated attention (arXiv:2505.06708): each feature of a head's output is scaled by a sigmoid of the token's input."""

from functools import partial

import jax

from zerotollm.experiment import Experiment
from zerotollm.model.blocks import Block
from zerotollm.model.build import Net, build_net
from zerotollm.model.layers import Attention, fan_in_normal, linear


class GatedAttention(Attention):
    """Attention with the gate G1 of the paper: between the mixed values and the output projection."""

    def gated(self, mixed_BTY: jax.Array, x_BTD: jax.Array) -> jax.Array:
        """Return mixed * sigmoid(x W)."""
        D, Y = x_BTD.shape[-1], mixed_BTY.shape[-1]
        gate_DY = self.param("attention_gate", fan_in_normal(D), (D, Y))
        return mixed_BTY * jax.nn.sigmoid(linear(x_BTD, gate_DY))


def model(experiment: Experiment) -> Net:
    """Return the built-in net with gated attention."""
    return build_net(experiment.model, experiment.compute, partial(Block, attention=GatedAttention))
