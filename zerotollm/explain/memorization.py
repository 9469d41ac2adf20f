"""Memorized or learned? The loss on text that the model was trained on, and on held-out text."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from zerotollm.explain.activations import LanguageModel, even_windows, score_windows
from zerotollm.explain.answer import Answer
from zerotollm.explain.estimates import NEGLIGIBLE, Estimate, difference_estimate, mean_estimate, verdict
from zerotollm.explain.figures.marks import Axis, Dots, Panel

WINDOWS = 128
"""Windows of each of the two texts."""
LONGEST = 128
"""Tokens of a window at most: many short windows give narrower intervals than few long ones."""
VERDICTS = 2
"""Comparisons that the sentence is based on."""


@dataclass(frozen=True)
class Memorization(Answer):
    """Loss in nats per token on windows of the training text and of held-out text, evenly spread over both."""

    trained: Estimate[float]
    held_out: Estimate[float]
    gap: Estimate[float]
    """held-out minus trained: what it knows of its training text alone. It and `learned` hold together"""
    learned: Estimate[float]
    """loss of the training text's token frequencies minus that of the model, on held-out text, paired by windows"""
    frequencies: float
    """loss of these frequencies on held-out text"""
    windows: int
    """of each of the two texts"""
    title = "Memorized or learned?"

    def sentence(self) -> str:
        facts = (
            f"Text that it was trained on costs it {self.trained} nats per token, and held-out text {self.held_out} "
            f"({self.windows} windows each): "
        )
        memorized = verdict(
            self.gap,
            f"the difference of {self.gap} is what it memorized",
            f"held-out text is easier for it, by {Estimate(-self.gap.value, -self.gap.high, -self.gap.low)}, which "
            "memorizing cannot explain",
            f"that it memorized is not shown ({self.gap})",
            NEGLIGIBLE,
        )
        learned = verdict(
            self.learned,
            f"what it learned also helps with held-out text, by {self.learned} nats compared with token frequencies",
            f"on held-out text it is worse than token frequencies, by {self.learned} nats",
            f"that it learned more than token frequencies is not shown ({self.learned} nats)",
            NEGLIGIBLE,
        )
        return f"{facts}{memorized}; {learned}."

    def panels(self) -> Iterator[Panel]:
        rows = (("trained on", self.trained), ("held out", self.held_out))
        marks = []
        for row, (name, loss) in enumerate(rows):
            point, low, high = ([x] for x in loss)
            hover = (f"{name}: {loss} nats per token",)
            marks.append(Dots(point, [row], name, row, low, high, across=True, hover=hover, size=10))
        hover = (f"token frequencies, held out: {self.frequencies:.3f} nats per token",)
        marks.append(Dots([self.frequencies], [2], "token frequencies", 6, across=True, hover=hover, size=10))
        names = ("trained on", "held out", "frequencies, held out")
        axes = Axis("nats per token"), Axis(names=names, down=True)
        yield Panel("Loss by what it has seen", tuple(marks), *axes, height=220)


def explain_memorization(
    lm: LanguageModel, train_N: np.ndarray, held_out_N: np.ndarray, counts_V: np.ndarray
) -> Memorization:
    """Measure both losses on windows of one length. `counts_V` are the tokens of the training text."""
    length = min(lm.config.max_length, LONGEST, len(train_N) - 1, len(held_out_N) - 1)
    train_BW, held_out_BW = (even_windows(tokens_N, length, WINDOWS) for tokens_N in (train_N, held_out_N))
    trained_B, loss_B = (score_windows(lm, x_BW).nats_BT.mean(1) for x_BW in (train_BW, held_out_BW))
    # One more of each token than were counted: a token that did not occur is not impossible (Laplace).
    nats_V = np.log(counts_V.sum() + len(counts_V)) - np.log1p(counts_V)
    return measure_memorization(
        trained_B, loss_B, nats_V[np.minimum(held_out_BW[:, 1:], len(counts_V) - 1)].mean(1)
    )


def measure_memorization(
    trained_B: np.ndarray, held_out_B: np.ndarray, frequencies_B: np.ndarray
) -> Memorization:
    """Compare the losses of windows that were trained on and of held-out ones, and of frequencies on the latter."""
    return Memorization(
        trained=mean_estimate(trained_B),
        held_out=mean_estimate(held_out_B),
        gap=difference_estimate(held_out_B, trained_B, VERDICTS),
        learned=mean_estimate(frequencies_B - held_out_B, VERDICTS),
        frequencies=float(frequencies_B.mean()),
        windows=min(len(trained_B), len(held_out_B)),
    )
