"""Does a head matter? The loss without it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from zerotollm.explain.answer import Answer
from zerotollm.explain.attention import NAMES
from zerotollm.explain.forward import Row, enter, go_through, read, rows_of, scored
from zerotollm.explain.statistics import Estimate, mean_estimate
from zerotollm.model.config import TransformerConfig

MATTERS = 0.01
"""Nats per token that a head must be worth to be said to matter: surely above, over windows."""


@dataclass(frozen=True)
class Ablation(Answer):
    """Loss with one head of L x H taken out at a time (zero ablation)."""

    loss: float
    """with all heads, nats per token"""
    rise_LH: Estimate
    """by which the loss is higher without the head; Student's intervals over windows, paired"""
    tokens: int
    where: str = ""
    """as in `attention.Heads`"""

    def sentence(self) -> str:
        rise, total = self.rise_LH, f"{self.rise_LH.value.size} {NAMES[self.where]}"
        matters = rise.low > MATTERS
        layer, head = np.unravel_index(rise.value.argmax(), rise.value.shape)
        one = Estimate(*(float(x[layer, head]) for x in rise))
        if not matters.any():
            return (
                f"None of {total} is shown to matter on its own: taken out (zero ablation), none surely raises the "
                f"loss of {self.loss:.3f} by more than {MATTERS} nats; the most is {one}."
            )
        helped = (rise.high < -MATTERS).sum()
        without = f", and {helped} do harm" if helped else ""
        own = "matters on its own" if matters.sum() == 1 else "matter on their own"
        return (
            f"{matters.sum()} of {total} {own} (zero ablation, more than {MATTERS} nats){without}: "
            f"without head {head + 1} of layer {layer + 1} the loss of {self.loss:.3f} rises by {one} nats."
        )


def ablate_heads(
    params: Any, model: TransformerConfig, windows_BW: np.ndarray, document_bos: int | None = None
) -> Ablation:
    """Takes every head of a decoder out in turn, by its rows of the `output` matrix (Michel et al. 2019,
    arXiv:1905.10650, section 3.2), in windows of T + 1 tokens.

    A head that is out adds nothing, which is not what the rest was trained with: a rise is an upper estimate of what
    the head is worth. One at a time, heads that stand in for each other all seem worthless.
    """
    L, H, (B, W) = model.num_layers, model.num_heads, windows_BW.shape
    base_B, rise_BLH = np.empty(B), np.empty((B, L, H))
    start = 0
    for row in rows_of(windows_BW, model, document_bos):

        def nats(x_BTD: Any, row: Row = row) -> np.ndarray:
            reading = read(params, x_BTD, row.targets_1S, model=model)
            return scored(row, reading, W - 1).nats_BT.mean(1)

        here = slice(start, start + row.count)
        start += row.count
        _, x_BTD = enter(params, row.tokens_1S, row.segments_1S, model=model)
        whole = go_through(params, x_BTD, row.segments_1S, model=model)
        base_B[here] = nats(whole.x_BTD)
        for i, h in np.ndindex(L, H):
            kept_LH = np.ones((L, H), np.float32)
            kept_LH[i, h] = 0
            # What enters layer i is as it was.
            without = go_through(
                params, whole.entered[i], row.segments_1S, model=model, first=i, kept_LH=kept_LH
            )
            rise_BLH[here, i, h] = nats(without.x_BTD) - base_B[here]
    return Ablation(float(base_B.mean()), mean_estimate(rise_BLH), B * (W - 1))
