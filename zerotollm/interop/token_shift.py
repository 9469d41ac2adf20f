"""Token shift (`TokenShift` in `zerotollm.model.transformer`) for a PyTorch model without it, to compare with."""

from typing import Any


def shift_embeddings(net: Any, shift: int) -> None:
    """Gives a `transformers` decoder `net` an embedding that adds the `shift` tokens before each to it.

    The embedding keeps its weight and has `shift_weight`, (shift, width), besides. It remembers the tokens that it
    saw last: ids of one column go on from there, as `generate` passes them, and longer ones begin a text. So drop
    paddings on the left, and take prompts of two tokens or more.
    """
    import torch

    class ShiftedEmbedding(torch.nn.Embedding):
        def __init__(self, table: torch.nn.Embedding):
            super().__init__(*table.weight.shape, _weight=table.weight.data)
            self.shift_weight = torch.nn.Parameter(torch.full((shift, self.embedding_dim), 0.3))
            self.before_BND = None

        def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
            x_BTD = super().forward(ids_BT)
            B, T, D = x_BTD.shape
            before_BND = self.before_BND if T == 1 else x_BTD.new_zeros(B, shift, D)
            longer_BSD = torch.cat([before_BND, x_BTD], dim=1)
            self.before_BND = longer_BSD[:, T:].detach()
            for n in range(1, shift + 1):
                x_BTD = x_BTD + self.shift_weight[n - 1] * longer_BSD[:, shift - n : shift - n + T]
            return x_BTD

    net.set_input_embeddings(ShiftedEmbedding(net.get_input_embeddings()))
