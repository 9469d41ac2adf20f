"""The heads that `base` plants in its first layer, planted in the second: they read what the first layer wrote."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from zerotollm.experiment import Experiment
from zerotollm.model.build import Net
from zerotollm.model.previous_token_heads import plant_layer
from zerotollm.model.transformer import Transformer

HEADS = 3
"""Heads planted, or all if a layer has fewer."""


class PlantedSecondLayer(Transformer):
    """The built-in decoder, whose `init` plants the heads of its second layer."""

    def init(self, *args: Any, **options: Any) -> Mapping[str, Any]:
        """Return the initial variables of `flax.linen.Module.init`, with planted heads in `layer_1`."""
        variables = super().init(*args, **options)
        config = replace(self.config, previous_token_heads=HEADS)
        return {**variables, "params": plant_layer(config, variables["params"], 1)}


def model(experiment: Experiment) -> Net:
    """Return the built-in decoder with heads planted in its second layer, whatever its first layer has."""
    return PlantedSecondLayer(experiment.model, replace(experiment.compute, scan_layers=False))
