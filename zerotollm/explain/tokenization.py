"""Why is the text split this way? Is it by frequency?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens.sentencepiece import Tokenizer, train_tokenizer
from zerotollm.errors import UsageError
from zerotollm.explain.answer import Answer
from zerotollm.explain.merges import Merge, Merges, merge_order, replay, steps_of
from zerotollm.explain.statistics import Estimate, monotone, verdict
from zerotollm.explain.words import kind_of, shown

STRANGERS = ("unflabberable", "здравствуй", "語", "🦔")
"""A made-up word, two other scripts and an emoji: the training text is asked how often it has each."""
SMALLEST = 4 + 256 + 2
"""Special tokens, bytes, space and line end: no vocabulary with bytes is smaller."""
ZIPF_RANKS = (10, 1000)
"""Where the slope is measured: the most frequent words and the rare ones follow other laws."""


class Piece(NamedTuple):
    """One token of the text."""

    text: str
    id: int
    count: int
    """on the training text; -1 where nobody counted"""
    merges: tuple[Merge, ...]
    """that built the word it belongs to, as far as they are part of this token"""


class Stranger(NamedTuple):
    """A text that training texts seldom have."""

    text: str
    pieces: tuple[str, ...]
    bytes_of_it: int
    """tokens that stand for a single byte"""
    count: int = -1
    """in the training text; -1 where nobody looked"""


@dataclass(frozen=True)
class Tokenization(Answer):
    """How one text is cut, and why. V ids, R merges."""

    kind: str
    """bpe, unigram or char"""
    pieces: tuple[Piece, ...]
    num_bytes: int
    """of the text in UTF-8"""
    strangers: tuple[Stranger, ...]
    counts_V: np.ndarray | None
    """of every token on the training text"""
    count_R: np.ndarray
    """pair counts at the time of each merge, in order; empty where nobody counted"""
    order: Estimate
    """Spearman's correlation of these counts with the order; -1: always the most frequent pair next"""
    zipf: Estimate
    """slope of log count against log rank, ranks `ZIPF_RANKS` (Zipf 1949: -1), and the range of its two halves"""
    vocabulary_R: np.ndarray
    """size of the vocabulary after each merge"""
    compression_R: np.ndarray
    """bytes per token of the training text with that vocabulary"""

    def sentence(self) -> str:
        tokens = len(self.pieces)
        cut = (
            f"{self.num_bytes} bytes became {tokens} tokens, {self.num_bytes / max(tokens, 1):.2f} bytes each"
        )
        byte_texts = [repr(s.text) for s in self.strangers if s.bytes_of_it]
        fallback = f"; {', '.join(byte_texts)} fell back to bytes" if byte_texts else ""
        if self.kind != "bpe":
            how = {
                "unigram": "no merges were made, the split is the likeliest under piece probabilities",
                "char": "no merges were made, each character is one",
                "pretrained": "the tokenizer came with the model, and the text it was made from did not",
            }
            return f"{cut}: {how[self.kind]}{fallback}."
        if not len(self.count_R):
            return f"{cut}, by {sum(len(p.merges) for p in self.pieces)} merges whose pairs nobody counted{fallback}."
        follows = (
            "yes, by frequency: pairs were merged almost exactly in the order of their counts"
            if self.order.high < -0.95
            else verdict(
                self.order,
                "no: pairs were merged against the order of their counts",
                "frequent pairs were merged before rarer ones, though not in strict order",
                "that merges follow the counts is not shown",
            )
        )
        return (
            f"{cut}; {follows} (Spearman {self.order.value:.4f}, from {self.count_R[0]:,} times for the first "
            f"pair to {self.count_R[-1]:,} for the last){fallback}."
        )


def explain_tokens(
    tokenizer: Tokenizer,
    text: str,
    *,
    words: Counter[str] | None = None,
    counts_V: np.ndarray | None = None,
    strangers: Sequence[str] = STRANGERS,
    merges: Merges | None = None,
    training: str | None = None,
) -> Tokenization:
    """Cuts a text and says by which merges (BPE: Sennrich et al. 2016, arXiv:1508.07909; unigram: Kudo 2018,
    arXiv:1804.10959).

    `words` are those of the training text (`merges.count_words`), on which the merges are counted unless `merges`
    holds that already; `counts_V` its tokens; `training` is the text, in which `strangers` are looked for. Without
    them the split is explained and frequencies are not.
    """
    if merges is None and words is not None and tokenizer.kind == "bpe":
        merges = replay(tokenizer, words)
    rank = {piece: r for r, piece in enumerate(merge_order(tokenizer))}
    ids = tokenizer.encode(text)
    counted = merges is not None
    size = tokenizer.vocab_size - len(rank)
    tokens_R = merges.tokens_R if counted else np.zeros(0)
    return Tokenization(
        kind=tokenizer.kind,
        pieces=tuple(
            Piece(
                shown(tokenizer, i),
                int(i),
                -1 if counts_V is None else int(counts_V[i]),
                tuple(steps_of(tokenizer.piece(int(i)), rank, merges)),
            )
            for i in ids
        ),
        num_bytes=len(text.encode()),
        strangers=tuple(
            _stranger(tokenizer, text, -1 if training is None else training.count(text)) for text in strangers
        ),
        counts_V=counts_V,
        count_R=merges.count_R if counted else np.zeros(0, int),
        order=monotone(merges.count_R) if counted else Estimate(np.nan, -1, 1),
        zipf=zipf_slope(counts_V) if counts_V is not None else Estimate(np.nan, -np.inf, np.inf),
        vocabulary_R=size + 1 + np.arange(len(tokens_R)),
        compression_R=merges.num_bytes / np.maximum(tokens_R, 1) if counted else np.zeros(0),
    )


def _stranger(tokenizer: Tokenizer, text: str, count: int) -> Stranger:
    ids = tokenizer.encode(text)
    as_bytes = sum(kind_of(tokenizer, int(i)) == "byte" for i in ids)
    return Stranger(text, tuple(shown(tokenizer, i) for i in ids), as_bytes, count)


def zipf_slope(counts_V: np.ndarray) -> Estimate:
    """Least-squares slope of log count against log rank between `ZIPF_RANKS`; low and high are the slopes of its two
    halves: where they lie far apart, no single law holds."""
    sorted_V = np.sort(counts_V)[::-1]
    sorted_V = sorted_V[sorted_V > 0][slice(*ZIPF_RANKS)]
    if len(sorted_V) < 8:
        return Estimate(np.nan, -np.inf, np.inf)
    x_V, y_V = np.log(np.arange(ZIPF_RANKS[0], ZIPF_RANKS[0] + len(sorted_V)) + 1), np.log(sorted_V)
    middle = np.searchsorted(x_V, (x_V[0] + x_V[-1]) / 2)
    slope, first, second = (
        np.polyfit(x_V[part], y_V[part], 1)[0]
        for part in (slice(None), slice(middle + 1), slice(middle, None))
    )
    return Estimate(float(slope), float(min(slope, first, second)), float(max(slope, first, second)))


@dataclass(frozen=True)
class TokenizerComparison(Answer):
    """The same texts cut by other tokenizers, trained on the same text. Y tokenizers."""

    names: tuple[str, ...]
    vocab_size_Y: np.ndarray
    bytes_per_token_Y: np.ndarray
    """on held-out text"""
    cuts: tuple[tuple[str, ...], ...] = field(default=())
    """the pieces of the user's text under each"""
    trained_on: int = 0
    """characters"""

    def sentence(self) -> str:
        order = np.argsort(-self.bytes_per_token_Y)
        best = ", ".join(f"{self.names[i]} {self.bytes_per_token_Y[i]:.2f}" for i in order)
        return f"Bytes per token on held-out text, trained on {self.trained_on:,} characters: {best}."


def compare_tokenizers(
    text: str, held_out: str, training: str, settings: dict[str, TokenizerConfig]
) -> TokenizerComparison:
    """Trains each tokenizer on `training` and cuts `text` and `held_out` with it. Takes seconds for each.

    A vocabulary that is too large for the text is made smaller until it is not; one that cannot be made is left out.
    """
    trained = {
        name: tokenizer for name, config in settings.items() if (tokenizer := _fitting(config, training))
    }
    return TokenizerComparison(
        names=tuple(trained),
        vocab_size_Y=np.array([t.vocab_size for t in trained.values()]),
        bytes_per_token_Y=np.array(
            [len(held_out.encode()) / max(1, len(t.encode(held_out))) for t in trained.values()]
        ),
        cuts=tuple(tuple(shown(t, i) for i in t.encode(text)) for t in trained.values()),
        trained_on=len(training),
    )


def _fitting(config: TokenizerConfig, training: str) -> Tokenizer | None:
    while config.vocab_size > SMALLEST:
        try:
            return train_tokenizer(config, [training])
        except UsageError:
            config = replace(config, vocab_size=int(0.9 * config.vocab_size))
    return None
