"""Does it generate meaningful output or only grammatical output?

No number is meaning. What can be counted is whether a text is copied, whether it goes round in circles, and whether
what comes later depends on what came before; each for the model's own texts beside held-out real ones. Both begin a
document, have the same length, and are drawn and scored at temperature 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from zerotollm.data.tokens.sentencepiece import Tokenizer
from zerotollm.explain.activations import score_windows
from zerotollm.explain.answer import Answer
from zerotollm.explain.pair_activations import Pair, score_pair, text_pair
from zerotollm.explain.statistics import (
    NEGLIGIBLE,
    UNKNOWN,
    Estimate,
    difference_estimate,
    mean_estimate,
    verdict,
)
from zerotollm.model.config import TransformerConfig

NGRAM = 4
"""Tokens in a row whose return counts as repetition (Welleck et al. 2020, arXiv:1908.04319, section 6)."""
VERDICTS = 5
"""Intervals that the sentence decides by: four differences, and whether anything hangs together at all."""


@dataclass(frozen=True)
class Copied:
    """The longest run of tokens of a text that stands in the training text."""

    start: int
    """first token of it in the text"""
    length: int
    source: int
    """where it stands in the training tokens"""


class Measures(NamedTuple):
    """A number of each of B texts, (B,), or an `Estimate`."""

    longest_copy: Any
    """tokens of the longest span that stands in the training text"""
    repetition: Any
    """share of runs of `NGRAM` tokens that came before in the same text"""
    bits_per_byte: Any
    """that the model itself needs"""
    coherence: Any
    """nats per token by which the second half is better predicted after its own first half than after another's; of
    a translation, by which it is better predicted from its own source than from another"""


@dataclass(frozen=True)
class TextMeasures:
    """Of B texts of one kind, means with intervals over texts; see `Measures`."""

    copied: tuple[Copied, ...]
    longest_copy: Estimate
    repetition: Estimate
    distinct: tuple[float, float, float]
    """distinct runs of 1, 2 and 3 tokens over all such runs of all texts (Li et al. 2016, arXiv:1510.03055)"""
    bits_per_byte: Estimate
    coherence: Estimate


@dataclass(frozen=True)
class Generation(Answer):
    """The model's own texts beside held-out real ones of the same length in tokens; of an encoder-decoder its own
    translations beside the real ones."""

    samples: tuple[str, ...]
    copied: tuple[str, ...]
    """the longest span of each that stands in the training text"""
    nearest: tuple[str, ...]
    """the training text around each sample's longest copied span"""
    own: TextMeasures
    real: TextMeasures
    difference: Measures
    """own - real, Estimates that hold together with `hangs`; of translations paired by source"""
    hangs: Estimate
    """coherence of its own texts; of translations that of the real ones, since it chose its own by that"""
    sources: tuple[str, ...] = ()
    """what was translated"""

    def sentence(self) -> str:
        own, real, less = self.own, self.real, self.difference
        copy = verdict(
            less.longest_copy,
            "it copies more than real text repeats",
            "it copies less than real text repeats",
            "that it copies more or less than real text repeats is not shown",
        )
        again = verdict(
            less.repetition,
            "it goes round in circles",
            "it repeats itself less than real text",
            "that it repeats itself more or less is not shown",
        )
        costs = verdict(
            less.bits_per_byte,
            "its own text surprises it more",
            "its own text surprises it less",
            "a difference is not shown",
        )
        if self.sources:
            heeds = verdict(
                self.hangs,
                "it heeds the source",
                "another source would serve better",
                "it is not shown to heed the source",
                NEGLIGIBLE,
            )
            thread = (
                f"a real translation is {self.hangs} nats a token likelier from its source than from another: "
                f"{heeds}"
            )
        else:
            compared = verdict(
                less.coherence,
                "more, by its own measure, than those of real ones",
                "less than those of real ones",
                "whether more or less than those of real ones is not shown",
                NEGLIGIBLE,
            )
            thread = verdict(
                self.hangs,
                f"the halves of its texts hang together, {compared}",
                f"the halves of its texts fit each other worse than those of other texts ({self.hangs} nats)",
                f"nothing shows that later parts of its texts depend on earlier ones ({self.hangs} nats)",
                NEGLIGIBLE,
            )
        middle = (
            "" if np.isfinite(less.longest_copy.value) else "Real texts are from the middle of documents. "
        )
        return (
            f"{middle}The longest span copied from the training text is {own.longest_copy.value:.1f} tokens on "
            f"average, in real held-out text {real.longest_copy.value:.1f}: {copy}; "
            f"{100 * own.repetition.value:.1f} % of its {NGRAM}-grams came before, in real text "
            f"{100 * real.repetition.value:.1f} %: {again}; its own text costs it {own.bits_per_byte.value:.2f} bits "
            f"per byte, real text {real.bits_per_byte.value:.2f}: {costs}; {thread}."
        )


def document_beginnings(tokens_N: np.ndarray, bos_id: int, length: int, count: int) -> np.ndarray:
    """The first `length` tokens after the bos of at most `count` documents, evenly spread: (B, length)."""
    first_D = np.flatnonzero(np.asarray(tokens_N) == bos_id) + 1
    first_D = first_D[first_D + length <= len(tokens_N)]
    chosen = first_D[np.linspace(0, len(first_D) - 1, min(count, len(first_D))).astype(int)]
    return np.asarray(tokens_N)[chosen[:, None] + np.arange(length)].astype(np.int32)


def explain_generation(
    params: Any,
    model: TransformerConfig,
    tokenizer: Tokenizer,
    samples_BT: np.ndarray,
    real_BT: np.ndarray,
    train_N: np.ndarray,
    document_bos: int | None = None,
    alike: bool = True,
) -> Generation:
    """Measures B samples of T tokens, without bos, and stretches of real text of the same length.

    Where the two are not `alike`, since real texts do not begin documents as samples do, no difference is taken.

    Lengths must be the same, since longer texts have longer copies and more repetition. Raises ValueError where they
    are not.
    """
    if samples_BT.shape[1] != real_BT.shape[1]:
        raise ValueError(f"samples of {samples_BT.shape[1]} tokens and real texts of {real_BT.shape[1]}")
    own, real = (
        _measure(params, model, tokenizer, np.asarray(x_BT), train_N, document_bos)
        for x_BT in (samples_BT, real_BT)
    )
    less = (
        difference_estimate(mine, theirs, VERDICTS) if alike else UNKNOWN
        for mine, theirs in zip(own[1], real[1], strict=True)
    )  # fmt: skip
    return _answer(
        tokenizer,
        list(samples_BT),
        train_N,
        own,
        real,
        Measures(*less),
        mean_estimate(own[1].coherence, VERDICTS),
    )


def _answer(
    tokenizer: Tokenizer,
    texts: Sequence[np.ndarray],
    train_N: np.ndarray,
    own: tuple[TextMeasures, Measures],
    real: tuple[TextMeasures, Measures],
    difference: Measures,
    hangs: Estimate,
    **more: tuple[str, ...],
) -> Generation:
    copied = own[0].copied
    nearest = (train_N[max(0, c.source - 10) : c.source + c.length + 10] for c in copied)
    spans = (x_T[c.start : c.start + c.length] for x_T, c in zip(texts, copied, strict=True))
    parts = {
        "samples": tuple(tokenizer.decode(x_T) for x_T in texts),
        "copied": tuple(tokenizer.decode(span) for span in spans),
        "nearest": tuple(tokenizer.decode(x_N) for x_N in nearest),
    }
    return Generation(own=own[0], real=real[0], difference=difference, hangs=hangs, **(parts | more))


def _measure(
    params: Any,
    model: TransformerConfig,
    tokenizer: Tokenizer,
    texts_BT: np.ndarray,
    train_N: np.ndarray,
    document_bos: int | None,
) -> tuple[TextMeasures, Measures]:
    B, T = texts_BT.shape
    copied = longest_copied(list(texts_BT), train_N)
    bos_B1 = np.full((B, 1), tokenizer.bos_id)
    half = T // 2
    swapped_BT = np.concatenate([np.roll(texts_BT[:, :half], 1, axis=0), texts_BT[:, half:]], axis=1)
    nats_BT, swapped = (
        score_windows(
            params,
            np.concatenate([bos_B1, x_BT], axis=1).astype(np.int32),
            model=model,
            document_bos=document_bos,
        ).nats_BT
        for x_BT in (texts_BT, swapped_BT)
    )
    # The token at the seam only shows that there is a seam.
    coherence_B = (swapped[:, half + 1 :] - nats_BT[:, half + 1 :]).mean(1)
    return _measured(texts_BT, tokenizer, copied, nats_BT.sum(1), coherence_B)


def _measured(texts, tokenizer, copied, nats_B, coherence_B) -> tuple[TextMeasures, Measures]:
    # What a tokenizer has lost is no byte that was predicted.
    known = [x_T[x_T != tokenizer.unk_id] if tokenizer.unk_id is not None else x_T for x_T in texts]
    sizes_B = np.array([max(1, len(tokenizer.decode(x_T).encode())) for x_T in known])
    values = Measures(
        np.array([c.length for c in copied]),
        np.array([repetition_rate(x_T) for x_T in texts]),
        nats_B / np.log(2) / sizes_B,
        coherence_B,
    )
    distinct = tuple(distinct_ngrams(texts, n) for n in (1, 2, 3))
    means = {name: mean_estimate(value_B) for name, value_B in values._asdict().items()}
    return TextMeasures(copied=tuple(copied), distinct=distinct, **means), values


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

    def measure(texts: list[np.ndarray]) -> tuple[TextMeasures, Measures]:
        nats, gains = [], []
        for number, x_T in enumerate(texts):
            other = pairs[(number + 1) % len(pairs)]
            its_own, others = (
                score_pair(params, model, Pair(source_S, x_T), tokenizer.bos_id).nats_BT[0]
                for source_S in (pairs[number].source_S, other.source_S)
            )
            nats.append(its_own.sum())
            gains.append((others - its_own).mean())
        copied = longest_copied(texts, train_N)
        return _measured(texts, tokenizer, copied, np.array(nats), np.array(gains))

    mine, theirs = measure(own), measure(real)
    less = (mean_estimate(a_B - b_B, VERDICTS) for a_B, b_B in zip(mine[1], theirs[1], strict=True))
    return _answer(
        tokenizer,
        own,
        train_N,
        mine,
        theirs,
        Measures(*less),
        mean_estimate(theirs[1].coherence, VERDICTS),
        samples=tuple(written),
        sources=tuple(tokenizer.decode(pair.source_S[:-1]) for pair in pairs),
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
