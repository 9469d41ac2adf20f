"""A model of ours in PyTorch, from the `transformers` library, with fresh weights: for benchmarks and tests."""

from importlib.util import find_spec
from typing import Any

from zerotollm.errors import UsageError
from zerotollm.interop import qwen2, qwen3
from zerotollm.interop.family import Family, check
from zerotollm.model.config import TransformerConfig

TorchModel = Any  # A `transformers.PreTrainedModel`. torch and transformers are optional packages.


def check_installed() -> None:
    """Raise UsageError, with the command that helps, where torch or transformers is not installed."""
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UsageError(
            f"{' and '.join(missing)} {verb} not installed: pip install -r requirements-torch.txt"
        )


def decoder_family(model: TransformerConfig) -> Family:
    """Return the family of a decoder: Qwen2 if it has biases on queries, keys and values, otherwise Qwen3."""
    return qwen2.FAMILY if model.biases == "qkv" else qwen3.FAMILY


def torch_model(family: Family, model: TransformerConfig) -> TorchModel:
    """Return a PyTorch model of the architecture of `model`, resolved. Raises UsageError as `check` does."""
    import transformers

    check(family, model)
    fields = family.write_config(model) | dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    if family.encoder_decoder:
        fields |= {"dropout": model.dropout, "pad_token_id": 0, "eos_token_id": 2}
        fields |= dict.fromkeys(("bos_token_id", "decoder_start_token_id"), 1)
    kind = getattr(transformers, family.architecture)
    return kind(kind.config_class(**fields))


def shift_embeddings(net: TorchModel, shift: int) -> None:
    """Give a decoder our token shift (`TokenShift` in `zerotollm.model.transformer`).

    Its embedding keeps the last tokens: ids of one column continue from them, as `generate` passes ids, and longer ones
    start a text. Prompts need two tokens or more and no padding on the left.
    """
    import torch

    class ShiftedEmbedding(torch.nn.Embedding):
        def __init__(self, table: torch.nn.Embedding):
            super().__init__(table.num_embeddings, table.embedding_dim, _weight=table.weight.data)
            self.shift_weight = torch.nn.Parameter(torch.full((shift, self.embedding_dim), 0.3))
            self.before_BND = torch.empty(0)

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            x_BTD = super().forward(input)
            B, T, D = x_BTD.shape
            before_BND = self.before_BND if T == 1 else x_BTD.new_zeros(B, shift, D)
            longer_BSD = torch.cat([before_BND, x_BTD], dim=1)
            self.before_BND = longer_BSD[:, T:].detach()
            for n in range(1, shift + 1):
                x_BTD = x_BTD + self.shift_weight[n - 1] * longer_BSD[:, shift - n : shift - n + T]
            return x_BTD

    net.set_input_embeddings(ShiftedEmbedding(net.get_input_embeddings()))
