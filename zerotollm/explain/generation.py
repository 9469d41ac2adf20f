"""Does it generate meaningful output or only grammatical output?

No number measures meaning. This file measures copying, repetition, and whether later parts of a text depend on earlier
ones. It compares the model's own texts with held-out real ones. Both begin documents, have the same length, and are
sampled and scored at temperature 1.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.data.tokens.suffix_array import SuffixArray
from zerotollm.explain.activations import LanguageModel, score_windows
from zerotollm.explain.answer import Answer
from zerotollm.explain.estimates import (
    NEGLIGIBLE,
    UNKNOWN,
    Estimate,
    difference_estimate,
    mean_estimate,
    verdict,
)
from zerotollm.explain.figures.marks import Axis, Dots, Panel
from zerotollm.explain.pair_activations import Pair, score_pair, text_pair

NGRAM = 4
"""Tokens in a run that counts as repeated (Welleck et al. 2020, arXiv:1908.04319, section 6)."""
VERDICTS = 5
"""Comparisons that the sentence is based on: four differences, and coherence alone."""

Number = TypeVar("Number")


@dataclass(frozen=True)
class Copied:
    """The longest run of a text's tokens that is in the training text."""

    start: int
    """its first token in the text"""
    length: int
    source: int
    """its first token in the training text"""


class Measures(NamedTuple, Generic[Number]):
    """Numbers of B texts: an array (B,) each, or an estimate."""

    longest_copy: Number
    """tokens of the longest span that is in the training text"""
    repetition: Number
    """share of runs of `NGRAM` tokens that occurred before in the same text"""
    bits_per_byte: Number
    """under the model itself"""
    coherence: Number
    """nats per token by which the second half is better predicted after its own first half than after another text's;
    of a translation, by which it is better predicted from its own source than from another"""


@dataclass(frozen=True)
class TextMeasures:
    """Means over B texts with intervals; see `Measures`."""

    copied: tuple[Copied, ...]
    longest_copy: Estimate[float]
    repetition: Estimate[float]
    distinct: tuple[float, ...]
    """distinct runs of 1, 2 and 3 tokens over all such runs of all texts (Li et al. 2016, arXiv:1510.03055)"""
    bits_per_byte: Estimate[float]
    coherence: Estimate[float]


@dataclass(frozen=True)
class Generation(Answer):
    """The model's own texts, or its translations, and held-out real ones of the same length in tokens."""

    samples: tuple[str, ...]
    copied: tuple[str, ...]
    """the longest span of each that is in the training text"""
    nearest: tuple[str, ...]
    """the training text around that span"""
    own: TextMeasures
    real: TextMeasures
    difference: Measures[Estimate[float]]
    """own - real; of translations paired by source. The intervals and that of `hangs` all hold together"""
    hangs: Estimate[float]
    """coherence of the model's own texts. Of translations that of the real ones, since the model chose its own by it"""
    sources: tuple[str, ...] = ()
    """what was translated"""
    title = "Meaning or only grammar?"

    def sentence(self) -> str:
        own, real = self.own, self.real
        verbs = ("it copies", "it repeats itself", "its own text surprises it")
        copying, repetition, surprise = (
            verdict(difference, f"{verb} more", f"{verb} less", "a difference is not shown")
            for difference, verb in zip(self.difference[:3], verbs, strict=True)
        )
        known = np.isfinite(self.difference.longest_copy.value)
        return (
            f"{'' if known else 'Real texts start within documents. '}"
            f"The longest span copied from the training text is {own.longest_copy.value:.1f} tokens on "
            f"average, in real held-out text {real.longest_copy.value:.1f}: {copying}; "
            f"{100 * own.repetition.value:.1f} % of its {NGRAM}-grams occurred before, in real text "
            f"{100 * real.repetition.value:.1f} %: {repetition}; its own text costs it {own.bits_per_byte.value:.2f} "
            f"bits per byte, real text {real.bits_per_byte.value:.2f}: {surprise}; {self._coherence()}."
        )

    def _coherence(self) -> str:
        if self.sources:
            otherwise = "it is not shown to heed the source"
            texts = ("it heeds the source", "another source would serve better", otherwise)
            facts = f"a real translation is {self.hangs} nats per token likelier from its source than from another"
            return f"{facts}: {verdict(self.hangs, *texts, NEGLIGIBLE)}"
        texts = (
            "more, by its own measure, than those of real ones",
            "less than those of real ones",
            "whether more or less than those of real ones is not shown",
        )
        return verdict(
            self.hangs,
            f"the halves of its texts hang together, {verdict(self.difference.coherence, *texts, NEGLIGIBLE)}",
            f"the halves of its texts fit each other worse than those of other texts ({self.hangs} nats)",
            f"nothing shows that later parts of its texts depend on earlier ones ({self.hangs} nats)",
            NEGLIGIBLE,
        )

    def panels(self) -> Iterator[Panel]:
        coherence = "Does it heed its source?" if self.sources else "Do its halves belong together?"
        for title, field, unit in (
            ("Longest copied span", "longest_copy", "tokens"),
            ("Repetition", "repetition", f"share of {NGRAM}-grams that came before"),
            ("Bits per byte", "bits_per_byte", "bits per byte"),
            (coherence, "coherence", "nats per token"),
        ):
            marks = []
            for row, (name, measures) in enumerate((("its own", self.own), ("real", self.real))):
                e: Estimate[float] = getattr(measures, field)
                point, low, high = ([x] for x in e)
                hover = (f"{name}: {e} {unit}",)
                marks.append(Dots(point, [row], name, row, low, high, across=True, hover=hover, size=10))
            axes = Axis(unit), Axis(names=("its own", "real"), down=True)
            yield Panel(title, tuple(marks), *axes, height=190)


def document_beginnings(tokens_N: np.ndarray, bos_id: int, length: int, count: int) -> np.ndarray:
    """Return the first `length` tokens after the bos of at most `count` documents, evenly spread: (B, length)."""
    first_D = np.flatnonzero(np.asarray(tokens_N) == bos_id) + 1
    first_D = first_D[first_D + length <= len(tokens_N)]
    chosen = first_D[np.linspace(0, len(first_D) - 1, min(count, len(first_D))).astype(int)]
    return np.asarray(tokens_N)[chosen[:, None] + np.arange(length)].astype(np.int32)


def explain_generation(
    lm: LanguageModel,
    samples_BT: np.ndarray,
    real_BT: np.ndarray,
    train: SuffixArray,
    comparable: bool = True,
) -> Generation:
    """Measure B samples of T tokens, without bos, and real texts of the same length.

    Set `comparable` to False if real texts do not begin documents as samples do: then no difference is computed.
    Raises ValueError if lengths differ, since longer texts have longer copies and more repetition.
    """
    if samples_BT.shape[1] != real_BT.shape[1]:
        raise ValueError(f"samples of {samples_BT.shape[1]} tokens and real texts of {real_BT.shape[1]}")
    half = samples_BT.shape[1] // 2

    def nats(texts_BT: np.ndarray) -> np.ndarray:
        bos_B1 = np.full((len(texts_BT), 1), lm.tokenizer.bos_id)
        return score_windows(lm, np.concatenate([bos_B1, texts_BT], axis=1).astype(np.int32)).nats_BT

    def score(texts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        texts_BT = np.stack(texts)
        swapped_BT = np.concatenate([np.roll(texts_BT[:, :half], 1, axis=0), texts_BT[:, half:]], axis=1)
        nats_BT = nats(texts_BT)
        # The token at the seam is left out: it only shows that there is a seam.
        coherence_B = (nats(swapped_BT)[:, half + 1 :] - nats_BT[:, half + 1 :]).mean(1)
        return nats_BT.sum(1), coherence_B

    def difference(own_B: np.ndarray, real_B: np.ndarray) -> Estimate[float]:
        return difference_estimate(own_B, real_B, VERDICTS) if comparable else UNKNOWN

    samples = [lm.tokenizer.decode(x_T, final=False) for x_T in samples_BT]
    return _compare(list(samples_BT), list(real_BT), score, difference, lm.tokenizer, train, samples)


def explain_translations(
    lm: LanguageModel, pairs: Sequence[Pair], translations: Sequence[str], train: SuffixArray
) -> Generation:
    """Measure the model's translations of held-out sources and the real targets.

    Each two are cut to the length of the shorter, since longer texts have longer copies and more repetition.
    """
    own, real, tokenizer = [], [], lm.tokenizer
    for pair, text in zip(pairs, translations, strict=True):
        own_T, real_T = text_pair(tokenizer, "", text, lm.config.max_length).target_T[:-1], pair.target_T[:-1]
        length = max(1, min(len(own_T), len(real_T)))
        own.append(own_T[:length])
        real.append(real_T[:length])

    def score(texts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        nats, coherence = [], []
        for number, x_T in enumerate(texts):
            own_nats_T, other_nats_T = (
                score_pair(lm, Pair(pair.source_S, x_T)).nats_BT[0]
                for pair in (pairs[number], pairs[(number + 1) % len(pairs)])
            )
            nats.append(own_nats_T.sum())
            coherence.append((other_nats_T - own_nats_T).mean())
        return np.array(nats), np.array(coherence)

    def difference(own_B: np.ndarray, real_B: np.ndarray) -> Estimate[float]:
        return mean_estimate(own_B - real_B, VERDICTS)

    sources = [tokenizer.decode(pair.source_S[:-1]) for pair in pairs]
    return _compare(own, real, score, difference, tokenizer, train, translations, sources)


def _compare(
    own_texts: Sequence[np.ndarray],
    real_texts: Sequence[np.ndarray],
    score: Callable[[Sequence[np.ndarray]], tuple[np.ndarray, np.ndarray]],
    difference: Callable[[np.ndarray, np.ndarray], Estimate[float]],
    tokenizer: AnyTokenizer,
    train: SuffixArray,
    samples: Sequence[str],
    sources: Sequence[str] = (),
) -> Generation:
    """Return the answer. `score` returns nats and coherence of B texts, each (B,)."""

    def measure(texts: Sequence[np.ndarray]) -> tuple[TextMeasures, Measures[np.ndarray]]:
        # The bytes that unk stands for are lost, so they do not count as predicted.
        known = [x_T if tokenizer.unk_id is None else x_T[x_T != tokenizer.unk_id] for x_T in texts]
        sizes_B = np.array([max(1, len(tokenizer.decode(x_T).encode())) for x_T in known])
        copied = longest_copied(texts, train)
        nats_B, coherence_B = score(texts)
        lengths_B = np.array([c.length for c in copied])
        repetition_B = np.array([repetition_rate(x_T) for x_T in texts])
        values = Measures(lengths_B, repetition_B, nats_B / np.log(2) / sizes_B, coherence_B)
        distinct = tuple(distinct_ngrams(texts, n) for n in (1, 2, 3))
        means = {name: mean_estimate(value_B) for name, value_B in values._asdict().items()}
        return TextMeasures(copied=tuple(copied), distinct=distinct, **means), values

    (own, own_values), (real, real_values) = measure(own_texts), measure(real_texts)
    spans = (x_T[c.start : c.start + c.length] for x_T, c in zip(own_texts, own.copied, strict=True))
    around = (train.tokens_N[max(0, c.source - 10) : c.source + c.length + 10] for c in own.copied)
    return Generation(
        samples=tuple(samples),
        copied=tuple(map(tokenizer.decode, spans)),
        nearest=tuple(map(tokenizer.decode, around)),
        own=own,
        real=real,
        difference=Measures(*map(difference, own_values, real_values)),
        hangs=mean_estimate((real_values if sources else own_values).coherence, VERDICTS),
        sources=tuple(sources),
    )


def _runs(tokens_T: np.ndarray, n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens_T[i : i + n]) for i in range(len(tokens_T) - n + 1)]


def repetition_rate(tokens_T: np.ndarray) -> float:
    """Return the share of a text's runs of `NGRAM` tokens that occurred before; 0 if there are fewer than two runs."""
    runs = _runs(tokens_T, NGRAM)
    return 1 - len(set(runs)) / len(runs) if len(runs) > 1 else 0.0


def distinct_ngrams(texts: Sequence[np.ndarray], n: int) -> float:
    """Return distinct runs of n tokens over all runs in all texts (Li et al. 2016)."""
    runs = [run for x_T in texts for run in _runs(x_T, n)]
    return len(set(runs)) / max(1, len(runs))


def longest_copied(texts: Sequence[np.ndarray], train: SuffixArray) -> list[Copied]:
    """Return the longest run of each text that occurs in the training tokens; the first of several."""
    copied = []
    for text_T in texts:
        length_T = train.longest_matches(text_T).length_T
        start = int(length_T.argmax()) if len(length_T) else 0
        length = int(length_T[start]) if len(length_T) else 0
        source_1 = train.occurrences(text_T[start : start + length], most=1) if length else [0]
        copied.append(Copied(start, length, int(source_1[0])))
    return copied
