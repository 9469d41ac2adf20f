"""A family of `transformers` models as a value: what it can express, its config.json and its tensors."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from zerotollm.errors import UsageError
from zerotollm.interop.config_json import ConfigField, ConfigFile, Json
from zerotollm.interop.weights import Weight
from zerotollm.model.config import TransformerConfig, resolve


class Family(NamedTuple):
    """How a family of the `transformers` library spells a model of ours."""

    name: str
    model_type: str
    architecture: str  # its class in transformers
    fields: tuple[ConfigField, ...]  # of its config.json, in the order in which they are written
    fixed: Mapping[str, object]  # field of TransformerConfig -> the one value that the family can express
    widths: Callable[[TransformerConfig], Mapping[str, tuple[int, ...]]]
    """Field of TransformerConfig -> the values that the family can express, which depend on the model's other sizes."""
    weights: Callable[[TransformerConfig], list[Weight]]  # every tensor of a resolved model
    prefix: str  # of all tensor names but the head's; some folders omit it
    computed: str = r"(?!)"  # pattern of tensors that a folder may hold or not
    copies: tuple[str, ...] = ("lm_head.weight",)  # tensors that repeat a tied embedding
    encoder_decoder: bool = False

    def obstacles(self, model: TransformerConfig) -> list[str]:
        """Return the fields of a model, resolved or not, that the family cannot express: `field is value (not ...)`."""
        expressible = {name: (value,) for name, value in self.fixed.items()}
        for field in self.fields:
            expressible |= field.expressible
        obstacles = ["a classification head"] if model.num_classes else []
        for name, values in {**expressible, **self.widths(model)}.items():
            if getattr(model, name) not in values:
                alternatives = " or ".join(map(repr, values))
                obstacles.append(f"model.{name} is {getattr(model, name)!r} (not {alternatives})")
        return obstacles

    def write_config(self, model: TransformerConfig) -> Json:
        """Return the fields of config.json of a resolved model without obstacles."""
        return {name: value for field in self.fields for name, value in field.write(model).items()}

    def read_config(self, file: ConfigFile) -> TransformerConfig:
        """Return the resolved model that a config.json describes. Raises UsageError for an unsupported value."""
        ours = {name: value for field in self.fields for name, value in field.read(file).items()}
        model = TransformerConfig(**{**self.fixed, **ours})
        return resolve(model, vocab_size=model.vocab_size, context=model.max_length)


def check(family: Family, model: TransformerConfig) -> None:
    """Raise UsageError, naming the fields, where `family` cannot express `model`, resolved or not."""
    obstacles = family.obstacles(model)
    if obstacles:
        raise UsageError(
            f"{family.name} of transformers cannot express this model: {', '.join(obstacles)}. "
            "Change these fields to compare with it"
        )
