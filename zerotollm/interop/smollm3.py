"""SmolLM3 of the `transformers` library: Llama without RoPE in every n-th layer (arXiv:2501.18795)."""

from zerotollm.errors import UsageError
from zerotollm.interop import llama
from zerotollm.interop.config_json import ConfigField, ConfigFile, Json
from zerotollm.model.config import TransformerConfig

INTERVAL = 4
"""Default of transformers for an absent field."""


def _rope_layers(num_layers: int, nope_every: int) -> list[int]:
    """Return 1 for each layer with RoPE, 0 for each without."""
    return [int(not nope_every or (i + 1) % nope_every != 0) for i in range(num_layers)]


def _write_rope_layers(model: TransformerConfig) -> Json:
    # The interval is ignored where the list is given, and must not be 0.
    return {
        "no_rope_layers": _rope_layers(model.num_layers, model.nope_every),
        "no_rope_layer_interval": model.nope_every or INTERVAL,
    }


def _read_rope_layers(file: ConfigFile) -> Json:
    layers = file.fields.get("no_rope_layers")
    if layers is None:
        return {"nope_every": file.count("no_rope_layer_interval", INTERVAL)}
    num_layers = file.count("num_hidden_layers")
    nope_every = layers.index(0) + 1 if isinstance(layers, list) and 0 in layers else 0
    if layers != _rope_layers(num_layers, nope_every):
        raise UsageError(
            f"{file.path}: no_rope_layers is {layers!r}, and must hold a 1 for each of {num_layers} layers, "
            "with a 0 in place of every n-th or of none"
        )
    return {"nope_every": nope_every}


FAMILY = llama.FAMILY._replace(
    name="SmolLM3",
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    fields=(
        *llama.shared_fields(kv_heads=4, length=32768, theta=2e6, tied=True),
        llama.TWO_BIASES,
        ConfigField(_write_rope_layers, _read_rope_layers),
        llama.NO_SLIDING_WINDOW,
    ),
    fixed=llama.SHARED | {"qk_norm": False},
)
