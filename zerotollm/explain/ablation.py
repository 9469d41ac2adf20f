"""Does a head matter? The loss without it, and with its mean output in its place."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from zerotollm.explain.activations import BlockOutputs, Row, enter, read, rows_of, run_blocks, scored
from zerotollm.explain.answer import Answer
from zerotollm.explain.attention import NAMES
from zerotollm.explain.estimates import CONFIDENCE, Estimate, mean_estimate
from zerotollm.model.config import BIASED, TransformerConfig
from zerotollm.model.layers import Norm
from zerotollm.significance import holm

MATTERS = 0.01
"""Nats per token that a head must be worth to be said to matter."""


class Shown(NamedTuple):
    """Heads whose worth is shown, (L, H)."""

    matters_LH: np.ndarray
    harms_LH: np.ndarray


@dataclass(frozen=True)
class Ablation(Answer):
    """Loss with one head of L x H ablated at a time, in two ways.

    Zero ablation takes away all that a head writes, also what it writes whatever the text is, and which the rest of the
    model was trained to find there. Mean ablation (Wang et al. 2022, arXiv:2211.00593, section 2.1) writes the mean of
    the head's outputs instead, and takes away only what depends on the text.
    """

    loss: float
    """with all heads, nats per token"""
    rise_LH: Estimate
    """by which the loss is higher under zero ablation; intervals over windows, paired, that hold for all heads and both
    ablations together"""
    p_LH: np.ndarray
    """of a rise or fall of at most `MATTERS`, adjusted for all heads and both ablations (Holm 1979)"""
    tokens: int
    where: str = ""
    """as in `attention.Heads`"""
    mean_rise_LH: Estimate | None = None
    """under mean ablation"""
    mean_p_LH: np.ndarray | None = None

    def shown(self, mean: bool = False) -> Shown:
        """Return which heads are shown to be worth more than `MATTERS`, and which to do as much harm."""
        rise, p_LH = (self.mean_rise_LH, self.mean_p_LH) if mean else (self.rise_LH, self.p_LH)
        sure_LH = p_LH <= 1 - CONFIDENCE
        return Shown(sure_LH & (rise.value > 0), sure_LH & (rise.value < 0))

    def sentence(self) -> str:
        total, rise = f"{self.rise_LH.value.size} {NAMES[self.where]}", self.rise_LH
        layer, head = np.unravel_index(rise.value.argmax(), rise.value.shape)
        one = Estimate(*(float(x[layer, head]) for x in rise))
        zero = self.shown()
        mean = self.shown(mean=True) if self.mean_rise_LH else None
        if not any(shown_LH.any() for shown_LH in (*zero, *(mean or ()))):
            how = "zero ablation" if mean is None else "zero or mean ablation"
            return (
                f"None of {total} is shown to matter on its own ({how}, more than {MATTERS} nats, corrected for all "
                f"heads): the most is {one} for a loss of {self.loss:.3f}."
            )
        text = f"{_counted(zero, total)} (zero ablation, more than {MATTERS} nats, corrected for all heads)"
        if zero.matters_LH.any():
            text += f": without head {head + 1} of layer {layer + 1} the loss of {self.loss:.3f} rises by {one} nats"
        if mean is None:
            return f"{text}."
        return (
            f"{text}. {_counted(mean, total)} where the head's mean output stands in its place (mean ablation), which "
            "takes away only what depends on the text."
        )


def _counted(shown: Shown, total: str) -> str:
    matters, harms = (int(x.sum()) for x in shown)
    own = "matters on its own" if matters == 1 else "matter on their own"
    return f"{matters} of {total} {own}" + (f", and {harms} do harm" if harms else "")


def ablation(
    loss: float, tokens: int, where: str, zero_BLH: np.ndarray, mean_BLH: np.ndarray | None = None
) -> Ablation:
    """Return the answer to rises of the loss in B windows under each ablation, with verdicts corrected for all."""
    zero_BLH = np.asarray(zero_BLH, np.float64)
    rises_BALH = np.stack([zero_BLH] if mean_BLH is None else [zero_BLH, mean_BLH], axis=1)
    rise = mean_estimate(rises_BALH, comparisons=rises_BALH[0].size)
    p_ALH = np.reshape(holm(_p_values(rises_BALH).ravel().tolist()), rises_BALH.shape[1:])
    zero, *mean = (Estimate(*(x[a] for x in rise)) for a in range(len(p_ALH)))
    return Ablation(loss, zero, p_ALH[0], tokens, where, *mean, *p_ALH[1:])


def _p_values(rises_BX: np.ndarray) -> np.ndarray:
    """Two-sided p-values of Student's t test that the mean rise or fall is at most `MATTERS`; 1 of a single window."""
    from scipy.special import stdtr

    B = len(rises_BX)
    if B < 2:
        return np.ones(rises_BX.shape[1:])
    beyond_X = np.abs(rises_BX.mean(0)) - MATTERS
    error_X = np.maximum(rises_BX.std(0, ddof=1) / np.sqrt(B), 1e-12)
    return np.minimum(1, 2 * stdtr(B - 1, -beyond_X / error_X))


def ablate_heads(
    params: Any, model: TransformerConfig, windows_BW: np.ndarray, document_bos: int | None = None
) -> Ablation:
    """Ablates every head of a decoder in turn, by its rows of the `output` matrix (Michel et al. 2019,
    arXiv:1905.10650, section 3.2), in windows of T + 1 tokens.

    A head that is out adds nothing, which is not what the rest was trained with: the rise under zero ablation is an
    upper estimate of what the head is worth. One at a time, heads that stand in for each other all seem worthless.
    """
    L, H, (B, W) = model.num_layers, model.num_heads, windows_BW.shape
    params, model = with_output_biases(params, model)
    base_B, rise_BALH = np.empty(B), np.empty((B, 2, L, H))

    def all_rows() -> Iterator[tuple[Row, BlockOutputs]]:
        for row in rows_of(windows_BW, model, document_bos):
            _, x_BTD = enter(params, row.tokens_1S, row.segments_1S, model=model)
            yield row, run_blocks(params, x_BTD, row.segments_1S, model=model)

    mean_LHD = np.zeros((L, H, model.width))
    for row, whole in all_rows():
        for i, (x_1SD, weights_1HTS) in enumerate(zip(whole.entered, whole.weights, strict=True)):
            weights_1HTS = weights_1HTS[:, :, : row.count * (W - 1)]
            mean_LHD[i] += written(params[f"layer_{i}"], "attention", x_1SD, weights_1HTS, model) / (
                B * (W - 1)
            )
    start = 0
    for row, whole in all_rows():

        def nats(x_BTD: Any, row: Row = row) -> np.ndarray:
            reading = read(params, x_BTD, row.targets_1S, model=model)
            return scored(row, reading, W - 1).nats_BT.mean(1)

        here = slice(start, start + row.count)
        start += row.count
        base_B[here] = nats(whole.x_BTD)
        for i, h in np.ndindex(L, H):
            kept_LH = np.ones((L, H), np.float32)
            kept_LH[i, h] = 0
            for a, added_D in enumerate((np.zeros(model.width), mean_LHD[i, h])):
                layer = writing(params[f"layer_{i}"], "attention", added_D)
                # What enters layer i is as it was.
                without = run_blocks(
                    params | {f"layer_{i}": layer},
                    whole.entered[i],
                    row.segments_1S,
                    model=model,
                    first=i,
                    kept_LH=kept_LH,
                )
                rise_BALH[here, a, i, h] = nats(without.x_BTD) - base_B[here]
    return ablation(float(base_B.mean()), B * (W - 1), "", rise_BALH[:, 0], rise_BALH[:, 1])


def with_output_biases(params: Any, model: TransformerConfig) -> tuple[Any, TransformerConfig]:
    """The same model with a bias behind every attention's `output`, of zeros where there was none."""
    if "output" in BIASED[model.biases]:
        return params, model

    def biased(tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        tree = {name: biased(value) for name, value in tree.items()}
        names = BIASED["attention"] if set(BIASED["attention"]) <= tree.keys() else ()
        return {f"{name}_bias": jnp.zeros(tree[name].shape[1]) for name in names} | tree

    biases = "all" if "gate" in BIASED[model.biases] else "attention"
    return biased(params), replace(model, biases=biases)


def written(
    layer: Any, name: str, x_1SD: Any, weights_1HTS: Any, model: TransformerConfig, *, memory: bool = False
) -> np.ndarray:
    """Return the sum over T tokens of what each head of a layer's attention writes to the residual stream, (H, D).

    `x_1SD` enters the layer, or is the encoder's output, which has no norm in front (`memory`).
    """
    own, H, C = layer[name], model.num_heads, model.head_width
    if model.norm_position == "pre" and not memory:
        x_1SD = Norm(model).apply({"params": layer[f"{name}_norm"]}, x_1SD)
    values_SKC = (x_1SD[0] @ own["value"] + own["value_bias"][None]).reshape(x_1SD.shape[1], -1, C)
    values_SHC = jnp.repeat(values_SKC, H // values_SKC.shape[1], axis=1)
    mixed_HC = jnp.einsum("hts,shc->hc", weights_1HTS[0], values_SHC)
    return np.asarray(jnp.einsum("hc,hcd->hd", mixed_HC, own["output"].reshape(H, C, -1)), np.float64)


def writing(layer: Any, name: str, added_D: np.ndarray) -> Any:
    """The layer with a vector added to all that its attention writes; see `with_output_biases`."""
    bias_D = layer[name]["output_bias"]
    return layer | {name: layer[name] | {"output_bias": bias_D + jnp.asarray(added_D, bias_D.dtype)}}
