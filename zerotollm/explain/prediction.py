"""How is the next token predicted; what is the math?

The computation itself on a text: the last state, its products with the columns of the head, softmax, the likeliest
tokens; and the same read-out after every layer. `calibration.py` says whether the probabilities can be believed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from zerotollm.data.tokens.sentencepiece import Tokenizer
from zerotollm.explain.activations import Activations, head_matrix, look_inside, read, row_length, text_tokens
from zerotollm.explain.answer import Answer
from zerotollm.explain.words import readable_token
from zerotollm.model.config import TransformerConfig

BEST = 10
"""Tokens whose computation is shown, K."""


@dataclass(frozen=True)
class Prediction(Answer):
    """The token after a text, and after every part of it. K likeliest tokens, M = L + 1 places of the stream."""

    tokens_T: np.ndarray
    """ids of bos and the text"""
    pieces: tuple[str, ...]
    """the same as text"""
    cut: bool
    """whether the text was longer than the model's context, and its beginning was left out"""
    temperature: float
    """of the sampler, which divides the logits; 1: as the model says"""
    hidden_D: np.ndarray
    """the last state, which the head reads"""
    logits_V: np.ndarray
    """hidden x head, soft cap included; of ids that exist"""
    probabilities_V: np.ndarray
    """softmax(logits): the model's own"""
    sampled_V: np.ndarray
    """the sampler's: of logits / temperature, and without what it excludes"""
    entropy: float
    """of the model's probabilities, bits"""
    best_K: np.ndarray
    """ids, the likeliest first"""
    best_pieces: tuple[str, ...]
    products_KD: np.ndarray
    """hidden_D x the head's column of each: their sums are the logits without soft cap and without the head's bias"""
    drawn: int | None
    """the id that a sampler drew"""
    drawn_piece: str
    lens_best_MT: np.ndarray
    """ids: what each place of the stream would predict after each token, read out as if it were the last"""
    lens_pieces: tuple[tuple[str, ...], ...]
    """the same as text, M x T"""
    lens_best_p_MT: np.ndarray
    """their probabilities; temperature 1"""
    lens_probability_M: np.ndarray
    """what each place gives the token that the whole model finds likeliest, after the last token; temperature 1"""
    lens_nats_MT: np.ndarray
    """cross-entropy of the text's own next token, at each place; T - 1 of them"""
    next_TK: np.ndarray
    """ids: the likeliest after each token, K of them"""
    next_pieces: tuple[tuple[str, ...], ...]
    """the same as text, T x K"""
    next_p_TK: np.ndarray
    """their probabilities; temperature 1"""

    @property
    def lens_best_pieces(self) -> tuple[str, ...]:
        """What each place of the stream would say after the last token."""
        return tuple(row[-1] for row in self.lens_pieces)

    def sentence(self) -> str:
        best = self.best_K[0]
        p, drawn = self.probabilities_V[best], self.sampled_V[best]
        beside = f" (the sampler, at temperature {self.temperature:g}, draws it with {drawn:.2f})"
        sampler = "" if np.isclose(p, drawn, atol=0.005) else beside
        last_M = self.lens_best_MT[:, -1]
        settled = next(m for m in range(len(last_M)) if (last_M[m:] == last_M[-1]).all())
        lens = (
            "already the embedding says so"
            if settled == 0
            else f"from layer {settled} of {len(self.lens_best_MT) - 1} on the stream says so"
        )
        largest = np.abs(self.products_KD[0])
        few = int(np.searchsorted(np.cumsum(np.sort(largest)[::-1]), largest.sum() / 2)) + 1
        return (
            f"After {self.pieces[-1]!r} the likeliest token is {self.best_pieces[0]!r} with probability {p:.2f}"
            f"{sampler}: its logit {self.logits_V[best]:.2f} is the sum of {len(largest)} products, half of whose size "
            f"comes from {few}; the choice is as open as one of {2**self.entropy:.0f} equal ones "
            f"({self.entropy:.1f} bits), and {lens}."
        )


def predict(
    params: Any,
    model: TransformerConfig,
    tokenizer: Tokenizer,
    text: str,
    *,
    temperature: float = 1.0,
    sampled: Callable[[np.ndarray], np.ndarray] | None = None,
    draw: Callable[[np.ndarray, int], int] | None = None,
    seen: Activations | None = None,
) -> Prediction:
    """Follows the prediction of the token after a text; an empty one is the start of a document.

    The read-out of every layer by the model's own final norm and head is the logit lens (nostalgebraist 2020; its
    limits: Belrose et al. 2023, arXiv:2303.08112). `draw(logits_V, tokens before)` is a sampler, and
    `sampled(logits_V)` are the probabilities it draws with, by default those of the temperature alone. `seen` are the
    activations of these tokens, where they are there already. Temperature 0 is taken for the limit: the likeliest.
    """
    tokens_T, cut = text_tokens(tokenizer, text, model.max_length)
    seen = look_inside(params, model, tokens_T) if seen is None else seen
    return predict_tokens(
        params, model, tokenizer, tokens_T, seen, cut=cut, temperature=temperature, sampled=sampled, draw=draw
    )


def predict_tokens(
    params: Any,
    model: TransformerConfig,
    tokenizer: Tokenizer,
    tokens_T: np.ndarray,
    seen: Activations,
    *,
    cut: bool = False,
    temperature: float = 1.0,
    sampled: Callable[[np.ndarray], np.ndarray] | None = None,
    draw: Callable[[np.ndarray, int], int] | None = None,
) -> Prediction:
    """The same of tokens that a decoder, with an encoder or without, has been seen to read."""
    real = tokenizer.vocab_size
    logits_V = np.asarray(seen.logits_BTV[0, -1, :real], np.float64)
    probabilities_V = _softmax(logits_V)
    best_K = np.argsort(-logits_V, kind="stable")[:BEST]
    T = len(tokens_T)
    lens_best_MT, lens_best_p_MT, lens_p_MT, lens_nats_MT = _lens(
        params, seen.residual_MBTD[:, 0], tokens_T, best_K[0], model, real
    )
    hidden_D = np.asarray(seen.final_BTD[0, -1], np.float64)
    next_TK, next_p_TK = _likeliest(np.asarray(seen.logits_BTV[0, :, :real]))
    drawn = draw(np.asarray(seen.logits_BTV[0, -1]), len(tokens_T)) if draw else None
    return Prediction(
        tokens_T=tokens_T,
        pieces=tuple(readable_token(tokenizer, i) for i in tokens_T),
        cut=cut,
        temperature=temperature,
        hidden_D=hidden_D,
        logits_V=logits_V,
        probabilities_V=probabilities_V,
        sampled_V=sampled(logits_V) if sampled else _softmax(logits_V / max(temperature, 1e-6)),
        entropy=float(-np.sum(probabilities_V * np.log2(np.maximum(probabilities_V, 1e-300)))),
        best_K=best_K,
        best_pieces=tuple(readable_token(tokenizer, i) for i in best_K),
        products_KD=hidden_D[None] * np.asarray(head_matrix(params, model), np.float64)[:, best_K].T,
        drawn=drawn,
        drawn_piece="" if drawn is None else readable_token(tokenizer, drawn),
        lens_best_MT=lens_best_MT,
        lens_pieces=_shown(tokenizer, lens_best_MT),
        lens_best_p_MT=lens_best_p_MT,
        lens_probability_M=lens_p_MT[:, T - 1],
        lens_nats_MT=lens_nats_MT[:, : T - 1],
        next_TK=next_TK,
        next_pieces=_shown(tokenizer, next_TK),
        next_p_TK=next_p_TK,
    )


def _shown(tokenizer: Tokenizer, ids: np.ndarray) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(readable_token(tokenizer, i) for i in row) for row in ids)


def _likeliest(logits_TV: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids and probabilities of the `BEST` likeliest tokens of each row, the likeliest first."""
    best_TK = np.argsort(-logits_TV, axis=-1, kind="stable")[:, :BEST]
    weights_TV = np.exp(logits_TV - logits_TV.max(-1, keepdims=True))
    p_TK = np.take_along_axis(weights_TV, best_TK, -1) / weights_TV.sum(-1, keepdims=True)
    return best_TK, p_TK


def _softmax(logits_V: np.ndarray) -> np.ndarray:
    weights_V = np.exp(logits_V - logits_V.max())
    return weights_V / weights_V.sum()


def _lens(params, residual_MTD, tokens_T, best, model, real) -> tuple[np.ndarray, ...]:
    """Likeliest token, its probability, that of `best` and the text's own next token's cost, each (M, T)."""
    T = len(tokens_T)
    padding = (0, row_length(T, model) - T)  # so that all texts share a program
    targets_BT = np.pad(tokens_T[1:], (0, padding[1] + 1))[None]
    read_out = []
    # One place after the other: of a large vocabulary, all logits of all places would be too many to hold.
    for x_TD in residual_MTD:
        x_BTD = np.pad(x_TD, (padding, (0, 0)))[None]
        place = read(params, x_BTD, targets_BT, model=model, real=real, asked=best)
        four = (place.best_BT, place.confidence_BT, place.asked_BT, place.nats_BT)
        read_out.append([np.asarray(x_BT)[0, :T] for x_BT in four])
    return tuple(map(np.stack, zip(*read_out, strict=True)))
