"""Which part does what? Activation patching on pairs of texts that differ in one word.

The model reads the corrupted text, with one activation taken from the clean text. Where that restores the clean answer,
the activation carries the difference (Vig et al. 2020, arXiv:2004.12265; denoising in Heimersheim and Nanda 2024,
arXiv:2404.15255, section 2). The metric is a difference of two logits, which is linear in the last state.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zerotollm.errors import UsageError
from zerotollm.explain.ablation import mean_outputs, replace_head, with_output_biases
from zerotollm.explain.activations import (
    LanguageModel,
    Recording,
    Row,
    even_windows,
    read_out,
    record,
    record_rows,
)
from zerotollm.explain.answer import Answer
from zerotollm.explain.attention import head_names
from zerotollm.explain.estimates import NEGLIGIBLE, Estimate, mean_estimate, outcome_of
from zerotollm.explain.figures.marks import Axis, Bars, Heat, Panel, said, visible
from zerotollm.explain.layers import state_names
from zerotollm.explain.words import readable_token
from zerotollm.model.config import round_up

MOST = 64
"""Most tokens of a text: every place of it is patched."""
LENGTH_MULTIPLE = 16
"""Texts are padded to a multiple of this, so that few lengths are compiled."""
CELLS = 200
"""Cells of a figure up to which each shows its number."""
WINDOWS = 8
"""Windows of held-out text over which a head's output is averaged."""
SMALL = 1e-3
"""Logits: a smaller difference between the two texts is rounding, and no share of it is told."""


class TokenPair(NamedTuple):
    """Two texts of T tokens, and the two tokens that are compared after them."""

    clean_T: np.ndarray
    corrupted_T: np.ndarray
    answers: tuple[int, int]
    """the clean answer and the corrupted one"""


class Effects(NamedTuple):
    """Effects in one pair, in logits: changes of the clean answer's logit minus the corrupted answer's."""

    clean: float
    """logit difference after the clean text"""
    corrupted: float
    state_LT: np.ndarray
    """restored by the state before each block at each token"""
    head_LHT: np.ndarray
    """restored by each head's output at each token"""
    head_LH: np.ndarray
    """restored by each head's output at all tokens"""
    fall_LH: np.ndarray
    """fall after the clean text where a head's mean output replaces it"""


@dataclass(frozen=True)
class Patching(Answer):
    """Mean effects over P pairs, in logits of the clean answer over the corrupted one.

    The intervals are Student's over pairs, and hold together for all effects (Bonferroni). One pair has none.
    """

    pieces: tuple[str, ...]
    """tokens of the first pair; a token that differs is "clean/corrupted" """
    answers: tuple[tuple[str, str], ...]
    """of each pair: the clean answer and the corrupted one"""
    clean: float
    """logit difference after the clean text"""
    corrupted: float
    gap: Estimate[float]
    """clean - corrupted: what there is to restore"""
    state_LT: Estimate[np.ndarray]
    """restored by the state before each block at each token"""
    head_LHT: Estimate[np.ndarray]
    """restored by each head's output at each token"""
    head_LH: Estimate[np.ndarray]
    """restored by each head's output at all tokens"""
    fall_LH: Estimate[np.ndarray]
    """fall after the clean text where a head's mean output replaces it (mean ablation)"""
    mean_of: str
    """text over which a head's output is averaged"""
    title = "Which part does what?"

    @property
    def pairs(self) -> int:
        return len(self.answers)

    def differs(self) -> bool:
        """Return whether the texts differ in the answer; over several pairs, whether that is shown."""
        gap = self.gap
        return abs(gap.value) > SMALL and (self.pairs == 1 or outcome_of(gap) != "not shown")

    def share(self, effect: np.ndarray) -> np.ndarray:
        """Return effects as parts of the gap: 0 as the corrupted text, 1 as the clean one; 0 without a gap."""
        return effect / self.gap.value if abs(self.gap.value) > SMALL else np.zeros_like(effect)

    def shown(self, effect: Estimate[np.ndarray]) -> np.ndarray:
        """Return which effects are shown to go with the gap by more than `NEGLIGIBLE`."""
        if not self.differs():
            return np.zeros(effect.value.shape, bool)
        sign = np.sign(self.gap.value)
        return np.minimum(sign * effect.low, sign * effect.high) > NEGLIGIBLE

    def route(self) -> list[tuple[str, str, str, float]]:
        """Return where the difference is, layer by layer: (first state, last state, token, smallest share).

        It is the token whose state restores most. States in a row with the same token are one entry.
        """
        share_LT, names = self.share(self.state_LT.value), state_names(len(self.state_LT.value))
        best_L = share_LT.argmax(1)
        starts = [i for i in range(len(best_L)) if i == 0 or best_L[i] != best_L[i - 1]]
        return [
            (names[i], names[j - 1], self.pieces[best_L[i]], float(share_LT[i:j, best_L[i]].min()))
            for i, j in zip(starts, [*starts[1:], len(best_L)], strict=True)
        ]

    def sentence(self) -> str:
        answers = (
            " over ".join(map(repr, self.answers[0])) if self.pairs == 1 else "clean over corrupted answers"
        )
        told = f"The logit of {answers} is {self.clean:+.2f} after the clean text and {self.corrupted:+.2f} after the"
        if not self.differs():
            return f"{told} corrupted text: a difference between them is not shown, so nothing is to be restored."
        places = [
            f"{token!r} ({first if first == last else f'{first} to {last}'}, {share:.0%})"
            for first, last, token, share in self.route()
        ]
        layer, head = np.unravel_index(self.share(self.head_LH.value).argmax(), self.head_LH.value.shape)
        most = self.share(self.head_LH.value)[layer, head]
        text = (
            f"{told} corrupted one. The state that restores most of the difference is at {', then at '.join(places)}. "
            f"Of {self.head_LH.value.size} heads, head {head + 1} of layer {layer + 1} restores most, {most:.0%}."
        )
        if self.pairs == 1:
            return f"{text} One pair has no interval: that it is so in other sentences is not shown."
        restore, needed = (int(self.shown(effect).sum()) for effect in (self.head_LH, self.fall_LH))
        return (
            f"{text} Over {self.pairs} pairs, {restore} heads are shown to restore more than {NEGLIGIBLE} logits and "
            f"{needed} to lower the clean difference under mean ablation, corrected for all effects."
        )

    def panels(self) -> Iterator[Panel]:
        names, shape = head_names(self.head_LH.value.shape), (self.head_LH.value.size, len(self.pieces))
        tokens = Axis(
            "token" if self.pairs == 1 else "token of the first pair", names=tuple(map(visible, self.pieces))
        )
        grids = (
            ("state", state_names(len(self.state_LT.value)), self.state_LT.value),
            ("head's output, as layer.head,", names, self.head_LHT.value.reshape(shape)),
        )
        for what, rows, effect_YT in grids:
            z_YT = self.share(effect_YT).round(2)
            cells = tuple(tuple(f"{z + 0.0:.2f}" for z in row) for row in z_YT) if z_YT.size <= CELLS else ()
            template = "{y} at {x}: {z} of the difference"
            heat = Heat(z_YT, "part restored", hover_template=template, text=cells)
            title = f"Restoring one {what} at one token"
            yield Panel(
                title, (heat,), tokens, Axis(names=rows, down=True), height=90 + 24 * len(rows), wide=True
            )
        for title, effect, template in (
            (
                "Restoring a head's output at all tokens",
                self.head_LH,
                "head {} restores {:+.3f} [{:.3g}, {:.3g}]",
            ),
            (
                "Mean ablation after the clean text",
                self.fall_LH,
                "without head {} it falls by {:+.3f} [{:.3g}, {:.3g}]",
            ),
        ):
            value, low, high = (np.asarray(x).ravel() for x in effect)
            hover = said(template, names, value, low, high)
            bars = Bars(range(len(names)), value, low=low, high=high, hover=hover)
            # Without a floor, rounding would fill the figure where nothing is restored.
            most = max(10 * NEGLIGIBLE, 1.1 * float(np.abs(value).max()))
            axis = Axis("logits", span=(-most, most)) if self.pairs == 1 else Axis("logits")
            yield Panel(title, (bars,), Axis("head, as layer.head", names=names), axis, wide=True)


def patch_texts(
    lm: LanguageModel,
    texts: Sequence[tuple[str, str]],
    answers: tuple[str, str] | None = None,
    held_out_N: np.ndarray | None = None,
) -> Patching:
    """Patch every place of pairs of a clean and a corrupted text, in a decoder-only model.

    `answers` are the continuations whose first tokens are compared, by default the likeliest after each text. Means for
    ablation are over the held-out text, or without one over the given texts. Raises UsageError for texts that do not
    have the same number of tokens and differ in the same place, and for answers that are the same token.
    """
    pairs = [_token_pair(lm, clean, corrupted, answers) for clean, corrupted in texts]
    places = [_changed(pair) for pair in pairs]
    for number, (pair, place) in enumerate(zip(pairs, places, strict=True), 1):
        if (len(pair.clean_T), place) != (len(pairs[0].clean_T), places[0]):
            raise UsageError(
                f"pair {number} has {len(pair.clean_T) - 1} tokens and differs in {_span(place)}; pair 1 has "
                f"{len(pairs[0].clean_T) - 1} and differs in {_span(places[0])}: give pairs of one form"
            )
    biased = lm._replace(
        **dict(zip(("params", "config"), with_output_biases(lm.params, lm.config), strict=True))
    )
    if held_out_N is None:
        mean_LHD = mean_outputs(_record(biased, ids_T) for pair in pairs for ids_T in pair[:2])[""]
    else:
        windows_BW = even_windows(held_out_N, min(lm.config.max_length, 256), WINDOWS)
        mean_LHD = mean_outputs(record_rows(biased, windows_BW))[""]
    effects = [pair_effects(biased, pair, mean_LHD) for pair in pairs]

    def piece(token_id: int) -> str:
        return readable_token(lm.tokenizer, token_id)

    both = zip(pairs[0].clean_T, pairs[0].corrupted_T, strict=True)
    return patching(
        effects,
        pieces=tuple(piece(a) if a == b else f"{piece(a)}/{piece(b)}" for a, b in both),
        answers=tuple((piece(pair.answers[0]), piece(pair.answers[1])) for pair in pairs),
        first_changed=places[0].start,
        mean_of="these texts" if held_out_N is None else "held-out text",
    )


def patching(
    effects: Sequence[Effects],
    *,
    pieces: tuple[str, ...],
    answers: tuple[tuple[str, str], ...],
    first_changed: int = 0,
    mean_of: str,
) -> Patching:
    """Return the answer for the effects in each pair. Effects before the first changed token are 0 and not tested."""
    clean_P, corrupted_P, state, head, head_all, fall = (np.stack(x) for x in zip(*effects, strict=True))
    tested = (state[0, :, first_changed:], head[0, ..., first_changed:], head_all[0], fall[0])
    comparisons = 1 + sum(x.size for x in tested)
    estimates = (mean_estimate(x, comparisons) for x in (clean_P - corrupted_P, state, head, head_all, fall))
    gap, state_LT, head_LHT, head_LH, fall_LH = estimates
    clean, corrupted = float(clean_P.mean()), float(corrupted_P.mean())
    gap = Estimate(*map(float, gap))
    return Patching(pieces, answers, clean, corrupted, gap, state_LT, head_LHT, head_LH, fall_LH, mean_of)


def pair_effects(lm: LanguageModel, pair: TokenPair, mean_LHD: np.ndarray) -> Effects:
    """Return the effects in one pair, for a model with output biases, whose heads have these mean outputs."""
    clean, corrupted = (_record(lm, ids_T) for ids_T in (pair.clean_T, pair.corrupted_T))
    T, (L, H, _) = len(pair.clean_T), mean_LHD.shape
    S = corrupted.row.tokens_1S.shape[1]
    # Row t takes the activation at token t from the clean text, and the last row takes all.
    chosen_BS1 = jnp.concatenate([jnp.eye(S), jnp.ones((1, S))])[..., None]

    def difference(final_BSD: jax.Array) -> np.ndarray:
        last_B1D = final_BSD[:, T - 1 : T]
        targets_B1 = np.zeros(last_B1D.shape[:2], np.int32)
        logits_BV = np.asarray(read_out(lm.params, last_B1D, targets_B1, model=lm.config).logits_BTV)[:, 0]
        return logits_BV[:, pair.answers[0]].astype(np.float64) - logits_BV[:, pair.answers[1]]

    states, corrupted_states = clean.stacks[""].states, corrupted.stacks[""].states
    before, after = (float(difference(x[-1])[0]) for x in (corrupted_states, states))
    state_LT, head_LHT = np.empty((L, T)), np.empty((L, H, T))
    head_LH, fall_LH = np.empty((L, H)), np.empty((L, H))
    for i in range(L):
        change_1SD = states[i] - corrupted_states[i]
        final_BSD = corrupted.run_from(i, corrupted_states[i] + chosen_BS1 * change_1SD)
        state_LT[i] = difference(final_BSD)[:T] - before
        layer = lm.params[f"layer_{i}"]
        output_HSD = corrupted.token_head_outputs("", i)
        change_HSD = clean.token_head_outputs("", i) - output_HSD
        # The block reads the sum that its attention would have made, and its attention writes nothing.
        sum_1SD = (
            corrupted_states[i] + output_HSD.sum(0)[None] + layer["attention"]["output_bias"][None, None]
        )
        silent = {name: jnp.zeros_like(layer["attention"][name]) for name in ("output", "output_bias")}
        silenced = layer | {"attention": layer["attention"] | silent}
        for h in range(H):
            final_BSD = corrupted.run_from(i, sum_1SD + chosen_BS1 * change_HSD[h][None], silenced)
            restored_B = difference(final_BSD) - before
            head_LHT[i, h], head_LH[i, h] = restored_B[:T], restored_B[-1]
            ablated = replace_head(layer, "attention", h, mean_LHD[i, h], lm.config)
            fall_LH[i, h] = after - difference(clean.run_from(i, states[i], ablated))[0]
    return Effects(after, before, state_LT, head_LHT, head_LH, fall_LH)


def _record(lm: LanguageModel, ids_T: np.ndarray) -> Recording:
    """Return the activations on one text, padded to a short length."""
    S = min(round_up(len(ids_T), LENGTH_MULTIPLE), lm.config.max_length)
    tokens_1S = np.pad(ids_T, (0, S - len(ids_T))).astype(np.int32)[None]
    segments_1S = np.zeros_like(tokens_1S)
    return record(lm.params, lm.config, Row(tokens_1S, segments_1S, 1, len(ids_T), segments_1S))


def _token_pair(lm: LanguageModel, clean: str, corrupted: str, answers: tuple[str, str] | None) -> TokenPair:
    """Return the tokens of a pair of texts. Raises UsageError where they do not compare."""
    tokenizer, longest = lm.tokenizer, min(MOST, lm.config.max_length)
    clean_T, corrupted_T = (
        np.append(tokenizer.bos_id, tokenizer.encode(text)).astype(np.int32) for text in (clean, corrupted)
    )
    if len(clean_T) != len(corrupted_T):
        pieces = (
            "|".join(readable_token(tokenizer, i) for i in ids_T[1:]) for ids_T in (clean_T, corrupted_T)
        )
        raise UsageError(
            f"the texts have {len(clean_T) - 1} and {len(corrupted_T) - 1} tokens, {' and '.join(pieces)}: choose two "
            "words of as many tokens"
        )
    if len(clean_T) > longest:
        raise UsageError(
            f"the texts have {len(clean_T) - 1} tokens: give at most {longest - 1}, all are patched"
        )
    ids = [_answer(lm, text_T, number, answers) for number, text_T in enumerate((clean_T, corrupted_T))]
    if ids[0] == ids[1]:
        piece = readable_token(tokenizer, ids[0])
        raise UsageError(
            f"both answers start with the token {piece!r}, so nothing is compared: give answers=(A, B), "
            "the continuations of the first and of the second text"
        )
    return TokenPair(clean_T, corrupted_T, (ids[0], ids[1]))


def _answer(lm: LanguageModel, text_T: np.ndarray, number: int, answers: tuple[str, str] | None) -> int:
    """Return the first token of a given answer, or the likeliest token after a text."""
    if answers is None:
        recording = _record(lm, text_T)
        logits_SV = np.asarray(recording.decoder_activations(len(text_T)).logits_TV)
        return int(logits_SV[-1, : lm.tokenizer.vocab_size].argmax())
    ids = lm.tokenizer.encode(answers[number])
    if not len(ids):
        raise UsageError("an answer is empty: give two continuations, as answers=(' his', ' her')")
    return int(ids[0])


def _changed(pair: TokenPair) -> slice:
    """Return the tokens from the first to the last that differs; all where none differs."""
    differs = np.flatnonzero(pair.clean_T != pair.corrupted_T)
    return slice(int(differs[0]), int(differs[-1]) + 1) if len(differs) else slice(0, len(pair.clean_T))


def _span(tokens: slice) -> str:
    return (
        f"token {tokens.start}"
        if tokens.stop - tokens.start == 1
        else f"tokens {tokens.start} to {tokens.stop - 1}"
    )
