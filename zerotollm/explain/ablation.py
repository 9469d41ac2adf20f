"""Does a head matter? The rise of the loss under zero ablation and under mean ablation of each head."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import stdtr

from zerotollm.explain.activations import ATTENTION, LanguageModel, Recording, record_rows
from zerotollm.explain.answer import Answer
from zerotollm.explain.attention import NAMES, head_names
from zerotollm.explain.estimates import CONFIDENCE, Estimate, mean_estimate
from zerotollm.explain.figures.marks import Axis, Bars, Panel, said
from zerotollm.model.config import BIASED, TransformerConfig
from zerotollm.significance import holm
from zerotollm.training.lora import Params, flatten_params, unflatten_params

MATTERS = 0.01
"""Nats per token by which the loss must rise for a head to matter."""
COSTLY = 5e13
"""Multiplications from which on ablating all heads takes a CPU of few cores a quarter of an hour or more."""
RecordAll = Callable[[LanguageModel], Iterable[Recording]]
"""Records the same rows with any model."""


class Verdicts(NamedTuple):
    """Heads with a significant effect on the loss, (L, H)."""

    matters_LH: np.ndarray
    harms_LH: np.ndarray


@dataclass(frozen=True)
class Ablation(Answer):
    """Loss with one head of L x H ablated at a time, in two ways.

    Zero ablation removes all that a head writes. That includes a part which is the same for every text, and which the
    rest of the model was trained to receive. Mean ablation (Wang et al. 2022, arXiv:2211.00593, section 2.1) writes the
    mean of the head's outputs instead, so it removes only what depends on the text.
    """

    loss: float
    """with all heads, nats per token"""
    rise_LH: Estimate[np.ndarray]
    """under zero ablation; paired intervals over windows, simultaneous for all heads and both ablations"""
    p_LH: np.ndarray
    """of a rise or fall of at most `MATTERS`, adjusted for all heads and both ablations (Holm 1979)"""
    tokens: int
    where: str
    """kind of attention, see `activations.ATTENTION`"""
    mean_rise_LH: Estimate[np.ndarray]
    """under mean ablation"""
    mean_p_LH: np.ndarray
    title = "Does a head matter?"

    def shown(self, mean: bool = False) -> Verdicts:
        """Return which heads are worth more than `MATTERS`, and which do as much harm, under zero or mean ablation."""
        rise, p_LH = (self.mean_rise_LH, self.mean_p_LH) if mean else (self.rise_LH, self.p_LH)
        sure_LH = p_LH <= 1 - CONFIDENCE
        return Verdicts(sure_LH & (rise.value > 0), sure_LH & (rise.value < 0))

    def sentence(self) -> str:
        total, rise = f"{self.rise_LH.value.size} {NAMES[self.where]}", self.rise_LH
        layer, head = map(int, np.unravel_index(rise.value.argmax(), rise.value.shape))
        largest = rise.at(layer, head)
        zero, mean = self.shown(), self.shown(mean=True)
        threshold = f"more than {MATTERS} nats, corrected for all heads"
        if not any(shown_LH.any() for shown_LH in (*zero, *mean)):
            return (
                f"None of {total} is shown to matter on its own (zero or mean ablation, {threshold}): the most is "
                f"{largest} for a loss of {self.loss:.3f}."
            )
        text = f"{_counted(zero, total)} (zero ablation, {threshold})"
        if zero.matters_LH.any():
            without = f"without head {head + 1} of layer {layer + 1}"
            text += f": {without} the loss of {self.loss:.3f} rises by {largest} nats"
        return (
            f"{text}. {_counted(mean, total)} if the head's mean output replaces it (mean ablation), which removes "
            "only what depends on the text."
        )

    def panels(self) -> Iterator[Panel]:
        names = head_names(self.rise_LH.value.shape)
        template = "{} head {} the loss of {:.3f} rises by {:+.4f} [{:+.4f}, {:+.4f}] nats"
        for ablated, rise in (("without", self.rise_LH), ("with the mean of", self.mean_rise_LH)):
            value, low, high = (np.asarray(x).ravel() for x in rise)
            hover = said(template, ablated, names, self.loss, value, low, high)
            bars = Bars(range(len(names)), value, low=low, high=high, hover=hover)
            title = f"{ablated.capitalize()} each of the {NAMES[self.where]}: rise of the loss"
            axes = Axis("head, as layer.head", names=names), Axis("nats per token")
            yield Panel(title, (bars,), *axes)


def _counted(verdicts: Verdicts, total: str) -> str:
    matters, harms = (int(x.sum()) for x in verdicts)
    verb = "matters on its own" if matters == 1 else "matter on their own"
    return f"{matters} of {total} {verb}" + (f", and {harms} do harm" if harms else "")


def ablation(loss: float, tokens: int, where: str, rises_BALH: np.ndarray) -> Ablation:
    """Return the answer for rises of the loss in B windows under zero and mean ablation, A = 2.

    The p-values are of Student's t test that the mean rise or fall is at most `MATTERS`, and 1 for a single window.
    """
    B, *shape = rises_BALH.shape
    rise = mean_estimate(rises_BALH, comparisons=rises_BALH[0].size)
    p_ALH = np.ones(shape)
    if B > 1:
        beyond_ALH = np.abs(rises_BALH.mean(0)) - MATTERS
        error_ALH = np.maximum(rises_BALH.std(0, ddof=1) / np.sqrt(B), 1e-12)
        p_ALH = np.minimum(1, 2 * stdtr(B - 1, -beyond_ALH / error_ALH))
    zero_p_LH, mean_p_LH = np.reshape(holm(p_ALH.ravel().tolist()), shape)
    zero, mean = (Estimate(*(x[a] for x in rise)) for a in (0, 1))
    return Ablation(loss, zero, zero_p_LH, tokens, where, mean, mean_p_LH)


def ablation_cost(lm: LanguageModel, windows_BW: np.ndarray) -> float:
    """Return the multiplications of `ablate_heads`, about: two passes per head, each through half of the layers."""
    tokens, passes = windows_BW[:, 1:].size, 2 * lm.config.num_layers * lm.config.num_heads
    return tokens * passes * sum(x.size for x in jax.tree.leaves(lm.params)) / 2


def ablate_heads(lm: LanguageModel, windows_BW: np.ndarray) -> Ablation:
    """Ablate every head of a decoder-only model in turn, in windows of T + 1 tokens; see `record_rows`."""
    return ablate(lm, lambda biased: record_rows(biased, windows_BW))[""]


def ablate(lm: LanguageModel, record_all: RecordAll) -> dict[str, Ablation]:
    """Ablate every head of every kind of attention in turn.

    The model was not trained without a head, so the rise under zero ablation overestimates its worth. Heads that
    replace each other all seem worthless when they are ablated one at a time.
    """
    params, config = with_output_biases(lm.params, lm.config)
    biased = lm._replace(params=params, config=config)
    means = mean_outputs(record_all(biased))
    losses, rises, tokens = [], {kind: [] for kind in means}, 0
    for recording in record_all(biased):
        loss_B = recording.scores().nats_BT.mean(1).astype(np.float64)
        losses.append(loss_B)
        tokens += recording.row.windows * recording.row.length
        for kind, mean_LHD in means.items():
            rises[kind].append(ablated_losses(recording, kind, mean_LHD) - loss_B[:, None, None, None])
    loss = float(np.concatenate(losses).mean())
    return {kind: ablation(loss, tokens, kind, np.concatenate(rises[kind])) for kind in means}


def mean_outputs(recordings: Iterable[Recording]) -> dict[str, np.ndarray]:
    """Return the mean of each head's output over all tokens, (L, H, D) by kind of attention."""
    sums, tokens = {}, {}
    for recording in recordings:
        for kind in [""] if "" in recording.stacks else ["encoder", "decoder", "cross"]:
            sums[kind] = sums.get(kind, 0.0) + recording.head_outputs(kind)
            tokens[kind] = tokens.get(kind, 0) + recording.lengths(kind)[0]
    return {kind: sums[kind] / tokens[kind] for kind in sums}


def ablated_losses(recording: Recording, kind: str, mean_LHD: np.ndarray) -> np.ndarray:
    """Return the loss in each window of a row under zero and mean ablation of each head, (B, 2, L, H)."""
    (stack, name), (L, H, _), model = ATTENTION[kind], mean_LHD.shape, recording.model
    losses_BALH = np.empty((recording.row.windows, 2, L, H))
    for i, h in np.ndindex(L, H):
        for a, output_D in enumerate((np.zeros(model.width), mean_LHD[i, h])):
            layer = replace_head(recording.layers(stack)[f"layer_{i}"], name, h, output_D, model)
            final_1SD = recording.run_changed(stack, i, layer)
            losses_BALH[:, a, i, h] = recording.scores(final_1SD).nats_BT.mean(1)
    return losses_BALH


def with_output_biases(params: Params, model: TransformerConfig) -> tuple[Params, TransformerConfig]:
    """Return the same model with a bias after every attention's `output`, zeros where it had none."""
    if "output" in BIASED[model.biases]:
        return params, model
    leaves = dict(flatten_params(params))
    matrices = tuple(f"attention/{name}" for name in BIASED["attention"])
    biases = {f"{path}_bias": jnp.zeros(x.shape[1]) for path, x in leaves.items() if path.endswith(matrices)}
    kind = "all" if "gate" in BIASED[model.biases] else "attention"
    return unflatten_params(biases | leaves), replace(model, biases=kind)


def replace_head(layer: Params, name: str, h: int, output_D: np.ndarray, model: TransformerConfig) -> Params:
    """Return a layer in which a constant replaces the output of one head of the attention `name`.

    A constant of zeros is zero ablation, by the head's rows of the `output` matrix (Michel et al. 2019,
    arXiv:1905.10650, section 3.2). The layer needs the bias that `with_output_biases` adds.
    """
    attention, C = layer[name], model.head_width
    others_Y1 = np.ones((model.num_heads * C, 1), np.float32)
    others_Y1[h * C : (h + 1) * C] = 0
    bias_D = attention["output_bias"]
    bias_D = bias_D + jnp.asarray(output_D, bias_D.dtype)
    changed = {"output": attention["output"] * others_Y1, "output_bias": bias_D}
    return layer | {name: attention | changed}
