"""How is the next token predicted? The last state, its products with the head, softmax, and the logit lens.

`calibration.py` tests whether the probabilities are reliable.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from zerotollm.explain.activations import Activations, LanguageModel, head_matrix, read_out, row_length
from zerotollm.explain.answer import Answer
from zerotollm.explain.figures.marks import Axis, Bars, Heat, Panel, said, visible
from zerotollm.explain.layers import state_names
from zerotollm.explain.words import readable_token

BEST = 10
"""Likeliest tokens whose computation is shown, K."""
LENS = 16
"""Tokens in the picture of the logit lens, the last of the text."""
PRODUCTS = 12
"""Largest products of a logit that the picture shows one by one."""


@dataclass(frozen=True)
class Sampler:
    """How the run's sampler draws the next token."""

    temperature: float
    probabilities: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """(V,) logits, (T,) ids before -> (V,) probabilities that it draws with"""
    draw: Callable[[np.ndarray, np.ndarray], int]
    """(V,) logits, (T,) ids before -> the id that it draws"""


@dataclass(frozen=True)
class Prediction(Answer):
    """Prediction after a text and after each of its T tokens: K likeliest tokens, M = L + 1 states of the stream."""

    tokens_T: np.ndarray
    """ids of bos and the text"""
    pieces: tuple[str, ...]
    """the same as text"""
    cut: bool
    """whether the beginning of the text was cut to fit the model's context"""
    temperature: float
    """of the sampler"""
    hidden_D: np.ndarray
    """the head's input after the last token"""
    logits_V: np.ndarray
    """with soft cap, of the tokenizer's ids"""
    probabilities_V: np.ndarray
    """softmax(logits)"""
    sampled_V: np.ndarray
    """the sampler's probabilities: with its temperature and its exclusions"""
    entropy: float
    """of `probabilities_V`, bits"""
    best_K: np.ndarray
    """ids, the likeliest first"""
    best_pieces: tuple[str, ...]
    products_KD: np.ndarray
    """hidden_D x head column; the sums are the logits without soft cap and head bias"""
    drawn: int | None
    """id that the sampler drew"""
    drawn_piece: str
    lens_best_MT: np.ndarray
    """logit lens: ids of the likeliest token after each token, with each state as the head's input"""
    lens_pieces: tuple[tuple[str, ...], ...]
    """the same as text, M x T"""
    lens_best_p_MT: np.ndarray
    """their probabilities"""
    lens_probability_M: np.ndarray
    """probability of the model's likeliest token after the last token, by state"""
    lens_nats_MT: np.ndarray
    """cross-entropy of the text's next token, by state; T - 1 tokens"""
    next_TK: np.ndarray
    """ids of the likeliest tokens after each token"""
    next_pieces: tuple[tuple[str, ...], ...]
    """the same as text, T x K"""
    next_p_TK: np.ndarray
    """their probabilities"""
    title = "How the next token is predicted"

    @property
    def lens_best_pieces(self) -> tuple[str, ...]:
        """Return the likeliest token after the last token, by state."""
        return tuple(row[-1] for row in self.lens_pieces)

    def sentence(self) -> str:
        best = self.best_K[0]
        p, sampled = self.probabilities_V[best], self.sampled_V[best]
        beside = f" (the sampler, at temperature {self.temperature:g}, draws it with {sampled:.2f})"
        sampler = "" if np.isclose(p, sampled, atol=0.005) else beside
        last_M = self.lens_best_MT[:, -1]
        settled = next(m for m in range(len(last_M)) if (last_M[m:] == last_M[-1]).all())
        lens = "already the embedding says so"
        if settled:
            lens = f"from layer {settled} of {len(last_M) - 1} on the stream says so"
        size_D = np.sort(np.abs(self.products_KD[0]))[::-1]
        half = int(np.searchsorted(np.cumsum(size_D), np.abs(self.products_KD[0]).sum() / 2)) + 1
        return (
            f"After {self.pieces[-1]!r} the likeliest token is {self.best_pieces[0]!r} with probability {p:.2f}"
            f"{sampler}: its logit {self.logits_V[best]:.2f} is the sum of {len(size_D)} products, half of whose size "
            f"comes from {half}; the choice is as open as one of {2**self.entropy:.0f} equal ones "
            f"({self.entropy:.1f} bits), and {lens}."
        )

    def panels(self) -> Iterator[Panel]:
        yield from (self._likeliest_panel(), self._products_panel(), self._lens_panel())
        if self.lens_nats_MT.shape[1]:
            places, mean_M = state_names(len(self.lens_nats_MT)), self.lens_nats_MT.mean(1)
            hover = said("{}: {:.3f} nats per token", places, mean_M)
            bars = Bars(range(len(places)), mean_M, hover=hover)
            axes = Axis("read out after", names=places), Axis("nats per token of this text")
            yield Panel("The text's own next tokens, layer by layer", (bars,), *axes)

    def _likeliest_panel(self) -> Panel:
        names = tuple(map(visible, self.best_pieces))
        columns = self.probabilities_V, self.logits_V, self.sampled_V
        p_K, logits_K, sampled_K = (x_V[self.best_K] for x_V in columns)
        template = "{}: logit {:.3f}, probability {:.4f}, the sampler's at temperature {:g} {:.4f}"
        hover = said(template, names, logits_K, p_K, self.temperature, sampled_K)
        bars = Bars(p_K, range(len(names)), across=True, hover=hover, text=said("{:.3f}", p_K))
        title = f"After {visible(self.pieces[-1])}: the likeliest tokens"
        return Panel(title, (bars,), Axis("probability"), Axis(names=names, down=True))

    def _products_panel(self) -> Panel:
        """Return the products of state and head for the likeliest token, the largest first, the rest as one."""
        products_D = self.products_KD[0]
        order = np.argsort(-np.abs(products_D), kind="stable")
        top = order[:PRODUCTS]
        rest = products_D[order[PRODUCTS:]].sum()
        state = np.where(self.hidden_D[top] == 0, 1e-30, self.hidden_D[top])
        heights = np.append(products_D[top], rest)
        template = "feature {}: {:+.3f} x {:+.3f} = {:+.3f}"
        hover = said(template, top, state, products_D[top] / state, products_D[top])
        hover += (f"the other {len(products_D) - len(top)} products: {rest:+.3f}",)
        marks = tuple(
            Bars(heights[at], at, name, color, across=True, hover=tuple(hover[i] for i in at))
            for at, color, name in (
                (np.flatnonzero(heights >= 0), 0, "for it"),
                (np.flatnonzero(heights < 0), 1, "against it"),
            )
            if len(at)
        )
        names = (*said("#{}", top), "the rest")
        title = f"The logit of {visible(self.best_pieces[0])} is a sum: {self.logits_V[self.best_K[0]]:.2f}"
        return Panel(title, marks, Axis("state x head"), Axis("feature", names=names, down=True))

    def _lens_panel(self) -> Panel:
        places = state_names(len(self.lens_pieces))
        text = tuple(map(visible, self.pieces[-LENS:]))
        pieces = [tuple(map(visible, row[-LENS:])) for row in self.lens_pieces]
        p_MT = self.lens_best_p_MT[:, -LENS:]
        template = "after {}, read out after {}: {} with {:.3f}"
        hover = tuple(map(partial(said, template, text), places, pieces, p_MT))
        short = tuple(tuple(s if len(s) < 9 else f"{s[:7]}…" for s in row) for row in pieces)
        lens = Heat(p_MT, "probability", hover, text=short)
        axes = Axis("after reading ...", names=text), Axis(names=places)
        height = 110 + 44 * len(places)
        return Panel("Logit lens: what each layer would say next", (lens,), *axes, height=height, wide=True)


def predict(
    lm: LanguageModel,
    tokens_T: np.ndarray,
    activations: Activations,
    cut: bool = False,
    sampler: Sampler | None = None,
) -> Prediction:
    """Return the prediction after tokens whose activations in a decoder are given.

    The final norm and the head on the state after each layer are the logit lens (nostalgebraist 2020; its limits:
    Belrose et al. 2023, arXiv:2303.08112).
    """
    num_ids, T = lm.tokenizer.vocab_size, len(tokens_T)

    def pieces(ids: np.ndarray) -> tuple[str, ...]:
        return tuple(readable_token(lm.tokenizer, i) for i in ids)

    logits_V = np.asarray(activations.logits_TV[-1, :num_ids], np.float64)
    weights_V = np.exp(logits_V - logits_V.max())
    probabilities_V = weights_V / weights_V.sum()
    best_K = np.argsort(-logits_V, kind="stable")[:BEST]
    hidden_D = np.asarray(activations.final_TD[-1], np.float64)
    lens = _lens(lm, activations.residual_MTD, tokens_T, best_K[0])
    lens_best_MT, lens_best_p_MT, lens_p_MT, lens_nats_MT = lens
    logits_TV = activations.logits_TV[:, :num_ids]
    next_TK = np.argsort(-logits_TV, axis=-1, kind="stable")[:, :BEST]
    weights_TV = np.exp(logits_TV - logits_TV.max(-1, keepdims=True))
    drawn = sampler.draw(activations.logits_TV[-1], tokens_T) if sampler else None
    return Prediction(
        tokens_T=tokens_T,
        pieces=pieces(tokens_T),
        cut=cut,
        temperature=sampler.temperature if sampler else 1.0,
        hidden_D=hidden_D,
        logits_V=logits_V,
        probabilities_V=probabilities_V,
        sampled_V=sampler.probabilities(logits_V, tokens_T) if sampler else probabilities_V,
        entropy=float(-np.sum(probabilities_V * np.log2(np.maximum(probabilities_V, 1e-300)))),
        best_K=best_K,
        best_pieces=pieces(best_K),
        products_KD=hidden_D[None] * np.asarray(head_matrix(lm.params, lm.config), np.float64)[:, best_K].T,
        drawn=drawn,
        drawn_piece="" if drawn is None else readable_token(lm.tokenizer, drawn),
        lens_best_MT=lens_best_MT,
        lens_pieces=tuple(map(pieces, lens_best_MT)),
        lens_best_p_MT=lens_best_p_MT,
        lens_probability_M=lens_p_MT[:, T - 1],
        lens_nats_MT=lens_nats_MT[:, : T - 1],
        next_TK=next_TK,
        next_pieces=tuple(map(pieces, next_TK)),
        next_p_TK=np.take_along_axis(weights_TV, next_TK, -1) / weights_TV.sum(-1, keepdims=True),
    )


def _lens(
    lm: LanguageModel, residual_MTD: np.ndarray, tokens_T: np.ndarray, token_id: int
) -> tuple[np.ndarray, ...]:
    """Return the likeliest token, its probability, that of `token_id`, and the loss of the next token, each (M, T)."""
    T = len(tokens_T)
    padding = (0, row_length(T, lm.config) - T)  # one compiled program for nearly all texts
    targets_BT = np.pad(tokens_T[1:], (0, padding[1] + 1))[None]
    states, ids = [], {"num_ids": lm.tokenizer.vocab_size, "token_id": token_id}
    # One state at a time: the logits of all would take too much memory with a large vocabulary.
    for x_TD in residual_MTD:
        x_BTD = np.pad(x_TD, (padding, (0, 0)))[None]
        reading = read_out(lm.params, x_BTD, targets_BT, model=lm.config, **ids)
        columns = (reading.best_BT, reading.confidence_BT, reading.probability_BT, reading.nats_BT)
        states.append([np.asarray(x_BT)[0, :T] for x_BT in columns])
    return tuple(map(np.stack, zip(*states, strict=True)))
