"""Question: how do I train with an attention of my own?

Group: your own ideas, without changing the package

Command: python launch.py --experiment own_attention

Time: 1:17 to 1:31 on one core of an AMD EPYC, for 300 of the 1,650 steps of `base`

Expected: 1.441, 1.425 and 1.430 bits per byte, seeds 0 to 2;
`base` after 300 steps 1.440, 1.428 and 1.428: no difference shown.
Measured with `base` of version 0.1, now `base_token_shift`
"""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax

from experiments.base import experiment as base
from zerotollm.experiment import Experiment
from zerotollm.model.blocks import Block
from zerotollm.model.build import Net, build_net
from zerotollm.model.config import TransformerConfig
from zerotollm.model.layers import Attention, KVCache, fan_in_normal, linear


class GatedAttention(nn.Module):
    """Attention whose output each token scales by a sigmoid of its own features (arXiv:2505.06708)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array, *inputs, **options) -> tuple[jax.Array, KVCache]:
        out_BTD, kv = Attention(self.config, name="inner")(x_BTD, *inputs, **options)
        D = self.config.width
        gate_DD = self.param("gate", fan_in_normal(D), (D, D))
        return out_BTD * jax.nn.sigmoid(linear(x_BTD, gate_DD)), kv


GatedBlock = partial(Block, attention=GatedAttention)


def experiment() -> Experiment:
    """Return `base` for 300 steps. `model` below replaces the built-in one, in training and in generation."""
    train = replace(base().train, steps=300, eval_every=150, sample_every=0, checkpoint_every=150)
    return replace(base(), name="own_attention", train=train)


def model(experiment: Experiment) -> Net:
    """Return the built-in net with other blocks. Both configurations are resolved."""
    return build_net(experiment.model, experiment.compute, GatedBlock)
