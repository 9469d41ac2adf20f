"""Does it generate meaningful output or only grammatical output?

No number is meaning. What can be counted is whether a text is copied, whether it goes round in circles, and whether
what comes later depends on what came before; each for the model's own texts beside held-out real ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zerotollm.data.tokenizer import Tokenizer
from zerotollm.explain.answer import Answer
from zerotollm.explain.forward import score_windows
from zerotollm.explain.pairs import Pair, score_pair, text_pair
from zerotollm.explain.statistics import Estimate, mean_estimate
from zerotollm.model.config import TransformerConfig

NGRAM = 4
"""Tokens in a row whose return counts as repetition (Welleck et al. 2020, arXiv:1908.04319, section 6)."""


@dataclass(frozen=True)
class Copied:
    """The longest run of tokens of a text that stands in the training text."""

    start: int
    """first token of it in the text"""
    length: int
    source: int
    """where it stands in the training tokens"""


@dataclass(frozen=True)
class TextMeasures:
    """Of B texts of one kind."""

    copied: tuple[Copied, ...]
    longest_copy: Estimate
    """tokens, mean over texts"""
    repetition: Estimate
    """share of runs of `NGRAM` tokens that came before in the same text"""
    distinct: tuple[float, float, float]
    """distinct runs of 1, 2 and 3 tokens over all such runs of all texts (Li et al. 2016, arXiv:1510.03055)"""
    bits_per_byte: Estimate
    """that the model itself needs for them"""
    coherence: Estimate
    """nats per token by which the second half is better predicted after its own first half than after another's; of
    a translation, by which it is better predicted from its own source than from another"""


@dataclass(frozen=True)
class Generation(Answer):
    """The model's own texts beside as many held-out real ones of the same length in tokens; of an encoder-decoder its
    own translations beside the real ones."""

    samples: tuple[str, ...]
    copied: tuple[str, ...]
    """the longest span of each that stands in the training text"""
    nearest: tuple[str, ...]
    """the training text around each sample's longest copied span"""
    own: TextMeasures
    real: TextMeasures
    sources: tuple[str, ...] = ()
    """what was translated"""

    def sentence(self) -> str:
        own, real = self.own, self.real
        copy = _compared(
            own.longest_copy, real.longest_copy, "it copies more than real text repeats", "it copies no more"
        )
        again = _compared(
            own.repetition, real.repetition, "it goes round in circles", "it repeats itself no more"
        )
        if self.sources:
            # Of its own translations, which it chose by that, the same would show nothing.
            verdict = (
                "it heeds the source" if real.coherence.low > 0 else "it is not shown to heed the source"
            )
            thread = (
                f"a real translation is {real.coherence} nats a token likelier from its source than from another: "
                f"{verdict}"
            )
        elif own.coherence.low <= 0:
            thread = (
                f"nothing shows that later parts of its texts depend on earlier ones ({own.coherence} nats)"
            )
        elif own.coherence.high < real.coherence.low:
            thread = "its texts hang together less than real ones"
        elif own.coherence.low > real.coherence.high:
            thread = "its texts hang together more, by its own measure, than real ones"
        else:
            thread = "its texts are shown to hang together neither more nor less than real ones"
        return (
            f"The longest span copied from the training text is {own.longest_copy.value:.1f} tokens on average, in "
            f"real held-out text {real.longest_copy.value:.1f}: {copy}; {100 * own.repetition.value:.1f} % of its "
            f"{NGRAM}-grams came before, in real text {100 * real.repetition.value:.1f} %: {again}; its own text costs "
            f"it {own.bits_per_byte.value:.2f} bits per byte, real text {real.bits_per_byte.value:.2f}; {thread}."
        )


def _compared(own: Estimate, real: Estimate, above: str, otherwise: str) -> str:
    return above if own.low > real.high else otherwise


def explain_generation(
    params: Any,
    model: TransformerConfig,
    tokenizer: Tokenizer,
    samples_BT: np.ndarray,
    real_BT: np.ndarray,
    train_N: np.ndarray,
) -> Generation:
    """Measures B samples of T tokens, without bos, and as many stretches of real text of the same length.

    Lengths must be the same, since longer texts have longer copies and more repetition. Raises ValueError where they
    are not.
    """
    if samples_BT.shape[1] != real_BT.shape[1]:
        raise ValueError(f"samples of {samples_BT.shape[1]} tokens and real texts of {real_BT.shape[1]}")
    own, real = (
        _measure(params, model, tokenizer, np.asarray(x_BT), train_N) for x_BT in (samples_BT, real_BT)
    )
    nearest = [
        tokenizer.decode(train_N[max(0, c.source - 10) : c.source + c.length + 10]) for c in own.copied
    ]
    spans = [x_T[c.start : c.start + c.length] for x_T, c in zip(samples_BT, own.copied, strict=True)]
    return Generation(
        tuple(tokenizer.decode(x_T) for x_T in samples_BT),
        tuple(tokenizer.decode(span) for span in spans),
        tuple(nearest),
        own,
        real,
    )


def _measure(params, model, tokenizer, texts_BT, train_N) -> TextMeasures:
    B, T = texts_BT.shape
    copied = longest_copied(list(texts_BT), train_N)
    bos_B1 = np.full((B, 1), tokenizer.bos_id)
    nats_BT = score_windows(
        params, np.concatenate([bos_B1, texts_BT], axis=1).astype(np.int32), model=model
    ).nats_BT
    half = T // 2
    swapped_BT = np.concatenate([bos_B1, np.roll(texts_BT[:, :half], 1, axis=0), texts_BT[:, half:]], axis=1)
    swapped = score_windows(params, swapped_BT.astype(np.int32), model=model).nats_BT
    # The token at the seam only shows that there is a seam.
    coherence_B = (swapped[:, half + 1 :] - nats_BT[:, half + 1 :]).mean(1)
    return _measured(texts_BT, tokenizer, copied, nats_BT.sum(1), coherence_B)


def _measured(texts, tokenizer, copied, nats_B, coherence_B) -> TextMeasures:
    # What a tokenizer has lost is no byte that was predicted.
    known = [x_T[x_T != tokenizer.unk_id] if tokenizer.unk_id is not None else x_T for x_T in texts]
    sizes_B = np.array([max(1, len(tokenizer.decode(x_T).encode())) for x_T in known])
    return TextMeasures(
        tuple(copied),
        mean_estimate(np.array([c.length for c in copied])),
        mean_estimate(np.array([repetition_rate(x_T) for x_T in texts])),
        tuple(distinct_ngrams(texts, n) for n in (1, 2, 3)),
        mean_estimate(nats_B / np.log(2) / sizes_B),
        mean_estimate(coherence_B),
    )


def explain_translations(
    params: Any,
    model: TransformerConfig,
    tokenizer: Tokenizer,
    pairs: Sequence[Pair],
    written: Sequence[str],
    train_N: np.ndarray,
) -> Generation:
    """Measures what a model wrote for the sources of held-out pairs, beside the real targets, each two cut to the
    length of the shorter: longer texts have longer copies and more repetition."""
    own, real = [], []
    for pair, text in zip(pairs, written, strict=True):
        mine_T = text_pair(tokenizer, "", text, model.max_length).target_T[:-1]
        T = max(1, min(len(mine_T), len(pair.target_T) - 1))
        own.append(mine_T[:T])
        real.append(pair.target_T[:-1][:T])

    def measure(texts: list[np.ndarray]) -> TextMeasures:
        nats, gains = [], []
        for number, x_T in enumerate(texts):
            other = pairs[(number + 1) % len(pairs)]
            its_own, others = (
                score_pair(params, model, Pair(source_S, x_T), tokenizer.bos_id).nats_T
                for source_S in (pairs[number].source_S, other.source_S)
            )
            nats.append(its_own.sum())
            gains.append((others - its_own).mean())
        copied = longest_copied(texts, train_N)
        return _measured(texts, tokenizer, copied, np.array(nats), np.array(gains))

    mine = measure(own)
    spans = [x_T[c.start : c.start + c.length] for x_T, c in zip(own, mine.copied, strict=True)]
    nearest = [train_N[max(0, c.source - 10) : c.source + c.length + 10] for c in mine.copied]
    return Generation(
        tuple(written),
        tuple(tokenizer.decode(span) for span in spans),
        tuple(tokenizer.decode(x_N) for x_N in nearest),
        mine,
        measure(real),
        tuple(tokenizer.decode(pair.source_S[:-1]) for pair in pairs),
    )


def repetition_rate(tokens_T: np.ndarray, n: int = NGRAM) -> float:
    """Share of a text's runs of n tokens that stood in it before; 0 of a text too short for two."""
    runs = [tuple(tokens_T[i : i + n]) for i in range(len(tokens_T) - n + 1)]
    return 1 - len(set(runs)) / len(runs) if len(runs) > 1 else 0.0


def distinct_ngrams(texts: Sequence[np.ndarray], n: int) -> float:
    """Distinct runs of n tokens over all runs in all texts (Li et al. 2016); 1 where none returns."""
    runs = [tuple(x_T[i : i + n]) for x_T in texts for i in range(len(x_T) - n + 1)]
    return len(set(runs)) / max(1, len(runs))


_BASE = np.uint64(0x9E3779B97F4A7C15 | 1)


def _hashes(tokens_N: np.ndarray, n: int) -> np.ndarray:
    """A number for each run of n tokens, equal for equal runs, (N - n + 1,) uint64."""
    out_N = np.zeros(len(tokens_N) - n + 1, np.uint64)
    known_N = (tokens_N.astype(np.uint64) + np.uint64(1)) * np.uint64(0xD6E8FEB86659FD93)
    known_N ^= known_N >> np.uint64(32)
    width, filled = 1, 0
    power_N = known_N  # of runs of `width` tokens, a power of 2: a run of n is put together of these
    while True:
        if n & width:
            scale = pow(int(_BASE), filled, 2**64)
            out_N += power_N[filled : filled + len(out_N)] * np.uint64(scale)
            filled += width
        if filled == n:
            return out_N
        scale = pow(int(_BASE), width, 2**64)
        power_N = power_N[:-width] + power_N[width:] * np.uint64(scale)
        width *= 2


def longest_copied(texts: Sequence[np.ndarray], train_N: np.ndarray) -> list[Copied]:
    """The longest run of each text that occurs in the training tokens, by bisection on its length.

    Runs are compared as 64-bit hashes: two that differ are taken for equal with a chance of about 10^-8 a text.
    """
    train_N = np.asarray(train_N)
    found = [Copied(0, 0, 0) for _ in texts]
    low, high = [0] * len(texts), [min(len(x_T), len(train_N)) for x_T in texts]
    while any(a < b for a, b in zip(low, high, strict=True)):
        middle = [(a + b + 1) // 2 for a, b in zip(low, high, strict=True)]
        for n in {m for a, b, m in zip(low, high, middle, strict=True) if a < b}:
            active = [b for b in range(len(texts)) if middle[b] == n and low[b] < high[b]]
            own = {b: _hashes(np.asarray(texts[b]), n) for b in active}
            train_hashes_N = _hashes(train_N, n)
            # One pass over the long text, whose runs are looked up in a short sorted list.
            wanted = np.unique(np.concatenate(list(own.values())))
            at_N = np.minimum(np.searchsorted(wanted, train_hashes_N), len(wanted) - 1)
            hit_N = np.flatnonzero(wanted[at_N] == train_hashes_N)
            first = {int(h): int(i) for h, i in zip(train_hashes_N[hit_N][::-1], hit_N[::-1], strict=True)}
            for b in active:
                start = next((i for i, h in enumerate(own[b].tolist()) if h in first), None)
                if start is None:
                    high[b] = n - 1
                else:
                    found[b], low[b] = Copied(start, n, first[int(own[b][start])]), n
    return found
