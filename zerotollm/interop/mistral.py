"""Mistral of the `transformers` library (arXiv:2310.06825): Llama without biases, with attention to the last tokens.

A token attends to the `sliding_window` tokens up to itself. In a context no longer than that, this is plain attention:
a model with a shorter window is read with the window as its context. As a plain model, it is exported as Llama.
"""

from zerotollm.interop import llama
from zerotollm.interop.config_json import ConfigField, ConfigFile, Json

LENGTH, WINDOW = 131072, 4096
"""Defaults of transformers for absent fields."""


def _read_context(file: ConfigFile) -> Json:
    length = file.count("max_position_embeddings", LENGTH)
    window = file.count("sliding_window", length if "sliding_window" in file.fields else WINDOW)
    return {"max_length": min(length, window)}


FAMILY = llama.FAMILY._replace(
    name="Mistral",
    model_type="mistral",
    architecture="MistralForCausalLM",
    fields=(
        *llama.shared_fields(kv_heads=8, length=LENGTH),
        ConfigField(lambda _: {"sliding_window": None}, _read_context),
    ),
    fixed=llama.SHARED | {"qk_norm": False, "nope_every": 0, "biases": "none"},
)
