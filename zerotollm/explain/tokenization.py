"""Why is the text split this way? Is it by frequency?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens.sentencepiece import AnyTokenizer, Tokenizer, train_tokenizer
from zerotollm.errors import UsageError
from zerotollm.explain.answer import Answer
from zerotollm.explain.estimates import UNKNOWN, Estimate, monotone, verdict
from zerotollm.explain.figures.marks import Axis, Bars, Dots, Line, Mark, Panel, said, spread, visible
from zerotollm.explain.merges import Merge, Merges, merge_order, word_merges
from zerotollm.explain.words import readable_token, token_kind

STRANGERS = ("unflabberable", "здравствуй", "語", "🦔")
"""An invented word, two other scripts and an emoji, which training texts rarely contain."""
SMALLEST = 4 + 256 + 2
"""Special tokens, bytes, space and line end: the smallest vocabulary with byte fallback."""
ZIPF_RANKS = (10, 1000)
"""Ranks between which the slope is fitted: the most frequent words and the rare ones follow other laws."""


@dataclass(frozen=True)
class Piece:
    """One token of the text."""

    text: str
    id: int
    count: int
    """in the training text; -1 if not counted"""
    merges: tuple[Merge, ...]
    """that built this token, in order"""


@dataclass(frozen=True)
class Stranger:
    """A text that training texts rarely contain."""

    text: str
    pieces: tuple[str, ...]
    bytes_of_it: int
    """tokens that are single bytes"""
    count: int = -1
    """in the training text; -1 if not counted"""


@dataclass(frozen=True)
class Tokenization(Answer):
    """The split of one text, and its causes. V ids, R merges."""

    kind: str
    """bpe, unigram, char or pretrained"""
    pieces: tuple[Piece, ...]
    num_bytes: int
    """of the text in UTF-8"""
    strangers: tuple[Stranger, ...]
    counts_V: np.ndarray | None
    """of each token in the training text"""
    count_R: np.ndarray
    """count of each merge's pair just before the merge, in order; empty if not counted"""
    order: Estimate[float]
    """Spearman's correlation of these counts with the order; -1: always the most frequent pair next"""
    zipf: Estimate[float]
    """slope of log count against log rank at `ZIPF_RANKS` (Zipf 1949: -1), and the range over its two halves"""
    vocabulary_R: np.ndarray
    """size of the vocabulary after each merge"""
    compression_R: np.ndarray
    """bytes per token of the training text with that vocabulary"""
    title = "Why the text is split this way"

    def sentence(self) -> str:
        tokens = len(self.pieces)
        each = f"{self.num_bytes / max(tokens, 1):.2f} bytes each"
        split = f"{self.num_bytes} bytes became {tokens} tokens, {each}"
        byte_texts = [repr(s.text) for s in self.strangers if s.bytes_of_it]
        fallback = f"; {', '.join(byte_texts)} fell back to bytes" if byte_texts else ""
        if self.kind != "bpe":
            reason = {
                "unigram": "no merges were made, the split is the most probable one under piece probabilities",
                "char": "no merges were made, each character is a token",
                "pretrained": "the tokenizer came with the model, without the text it was trained on",
            }[self.kind]
            return f"{split}: {reason}{fallback}."
        if not len(self.count_R):
            merges = sum(len(p.merges) for p in self.pieces)
            return f"{split}, by {merges} merges whose pairs were not counted{fallback}."
        if self.order.high < -0.95:
            order = "yes, by frequency: pairs were merged almost exactly in the order of their counts"
        else:
            order = verdict(
                self.order,
                "no: pairs were merged against the order of their counts",
                "frequent pairs were merged before rarer ones, though not in strict order",
                "that merges follow the counts is not shown",
            )
        return (
            f"{split}; {order} (Spearman {self.order.value:.4f}, from {self.count_R[0]:,} times for the first "
            f"pair to {self.count_R[-1]:,} for the last){fallback}."
        )

    def panels(self) -> Iterator[Panel]:
        if self.counts_V is not None:
            yield self._zipf_panel(self.counts_V)
        if len(self.count_R):
            yield self._merge_panel()
            at = np.unique(np.linspace(0, len(self.count_R) - 1, 200).astype(int))
            size, rate = self.vocabulary_R[at], self.compression_R[at]
            line = Line(size, rate, hover=said("vocabulary {:,}: {:.2f} bytes per token", size, rate))
            axes = Axis("size of the vocabulary"), Axis("bytes per token")
            yield Panel("Compression against vocabulary", (line,), *axes)

    def _zipf_panel(self, counts_V: np.ndarray) -> Panel:
        counts_R = np.sort(counts_V[counts_V > 0])[::-1]
        at = spread(len(counts_R))
        hover = said("rank {:,}: {:,} times", at + 1, counts_R[at])
        marks: list[Mark] = [Line(at + 1, counts_R[at], "tokens of the training text", hover=hover)]
        if np.isfinite(self.zipf.value) and len(counts_R) > 10:
            middle = min(len(counts_R), 100) - 1
            law = counts_R[middle] * ((at + 1) / (middle + 1)) ** self.zipf.value
            marks.append(Line(at + 1, law, f"slope {self.zipf.value:.2f}", color=6, dashed=True))
        pieces = [p for p in {p.id: p for p in self.pieces}.values() if p.count > 0]
        rank = [1 + int((counts_R > p.count).sum()) for p in pieces]
        count = [p.count for p in pieces]
        hover = said("{}: rank {:,}, {:,} times", [visible(p.text) for p in pieces], rank, count)
        marks.append(Dots(rank, count, "tokens of your text", color=1, hover=hover))
        axes = Axis("rank of the token", log=True), Axis("times in the training text", log=True)
        return Panel("Zipf: how often each token occurs", tuple(marks), *axes)

    def _merge_panel(self) -> Panel:
        at = spread(len(self.count_R))
        hover = tuple(f"merge {r + 1:,}: its pair occurred {self.count_R[r]:,} times" for r in at)
        line = Line(at + 1, np.maximum(self.count_R[at], 0.5), "all merges", hover=hover)
        merges = [m for m in {m.rank: m for p in self.pieces for m in p.merges}.values() if m.count > 0]
        hover = tuple(f"merge {m.rank + 1:,}: {m.left}+{m.right}, {m.count:,} times" for m in merges)
        place, count = [m.rank + 1 for m in merges], [m.count for m in merges]
        dots = Dots(place, count, "merges that built your text", color=1, hover=hover)
        axes = Axis("merge", log=True), Axis("count of its pair just before", log=True)
        return Panel("Merges in the order they were made", (line, dots), *axes)


def explain_tokens(
    tokenizer: AnyTokenizer,
    text: str,
    *,
    merges: Merges | None = None,
    counts_V: np.ndarray | None = None,
    training: str | None = None,
    strangers: Sequence[str] = STRANGERS,
) -> Tokenization:
    """Split a text and name the merges that did it (BPE: Sennrich et al. 2016, arXiv:1508.07909; unigram: Kudo 2018,
    arXiv:1804.10959).

    `training` is the training text, in which `strangers` are counted; `merges` and `counts_V` are the counts of its
    merges and of its tokens. Without them the answer says nothing about frequencies.
    """
    rank = {piece: r for r, piece in enumerate(merge_order(tokenizer))}
    tokens_R = np.zeros(0) if merges is None else merges.tokens_R
    pieces, rare = [], []
    for i in map(int, tokenizer.encode(text)):
        count = -1 if counts_V is None else int(counts_V[i])
        steps = tuple(word_merges(tokenizer.piece(i), rank, merges))
        pieces.append(Piece(readable_token(tokenizer, i), i, count, steps))
    for stranger in strangers:
        ids, count = tokenizer.encode(stranger), -1 if training is None else training.count(stranger)
        as_bytes = sum(token_kind(tokenizer, int(i)) == "byte" for i in ids)
        rare.append(Stranger(stranger, tuple(readable_token(tokenizer, i) for i in ids), as_bytes, count))
    return Tokenization(
        kind=tokenizer.kind,
        pieces=tuple(pieces),
        num_bytes=len(text.encode()),
        strangers=tuple(rare),
        counts_V=counts_V,
        count_R=np.zeros(0, int) if merges is None else merges.count_R,
        order=Estimate(np.nan, -1, 1) if merges is None else monotone(merges.count_R),
        zipf=UNKNOWN if counts_V is None else zipf_slope(counts_V),
        vocabulary_R=tokenizer.vocab_size - len(rank) + 1 + np.arange(len(tokens_R)),
        compression_R=tokens_R if merges is None else merges.num_bytes / np.maximum(tokens_R, 1),
    )


def zipf_slope(counts_V: np.ndarray) -> Estimate[float]:
    """Return the least-squares slope of log count against log rank at `ZIPF_RANKS`, and the range over its two halves.

    If the slopes of the halves differ much, no single power law holds.
    """
    sorted_V = np.sort(counts_V)[::-1]
    sorted_V = sorted_V[sorted_V > 0][slice(*ZIPF_RANKS)]
    if len(sorted_V) < 8:
        return UNKNOWN
    x_V, y_V = np.log(np.arange(ZIPF_RANKS[0], ZIPF_RANKS[0] + len(sorted_V)) + 1), np.log(sorted_V)
    middle = np.searchsorted(x_V, (x_V[0] + x_V[-1]) / 2)
    halves = (slice(None), slice(middle + 1), slice(middle, None))
    slopes = [float(np.polyfit(x_V[half], y_V[half], 1)[0]) for half in halves]
    return Estimate(slopes[0], min(slopes), max(slopes))


@dataclass(frozen=True)
class TokenizerComparison(Answer):
    """The same texts split by Y tokenizers, which were trained on the same text."""

    names: tuple[str, ...]
    vocab_size_Y: np.ndarray
    bytes_per_token_Y: np.ndarray
    """on held-out text"""
    cuts: tuple[tuple[str, ...], ...] = ()
    """the pieces of the user's text by each"""
    trained_on: int = 0
    """characters"""
    title = "Other tokenizers"

    def sentence(self) -> str:
        order = np.argsort(-self.bytes_per_token_Y)
        best = ", ".join(f"{self.names[i]} {self.bytes_per_token_Y[i]:.2f}" for i in order)
        return f"Bytes per token on held-out text, trained on {self.trained_on:,} characters: {best}."

    def panels(self) -> Iterator[Panel]:
        rate = self.bytes_per_token_Y
        hover = said("{}: {:.2f} bytes per token, vocabulary {:,}", self.names, rate, self.vocab_size_Y)
        labels = tuple(f"{r:.2f}" for r in rate)
        bars = Bars(rate, range(len(self.names)), across=True, hover=hover, text=labels)
        axes = Axis("bytes per token of held-out text"), Axis(names=self.names, down=True)
        yield Panel("Bytes per token", (bars,), *axes, height=220)


def compare_tokenizers(
    text: str, held_out: str, training: str, configs: dict[str, TokenizerConfig]
) -> TokenizerComparison:
    """Train each tokenizer on `training` and split `text` and `held_out` with it; seconds for each.

    A vocabulary that is too large for the training text is reduced. A tokenizer that cannot be trained is left out.
    """
    tokenizers = {name: _train_reduced(config, training) for name, config in configs.items()}
    trained = {name: tokenizer for name, tokenizer in tokenizers.items() if tokenizer}
    rates = [len(held_out.encode()) / max(1, len(t.encode(held_out))) for t in trained.values()]
    return TokenizerComparison(
        names=tuple(trained),
        vocab_size_Y=np.array([t.vocab_size for t in trained.values()]),
        bytes_per_token_Y=np.array(rates),
        cuts=tuple(tuple(readable_token(t, i) for i in t.encode(text)) for t in trained.values()),
        trained_on=len(training),
    )


def _train_reduced(config: TokenizerConfig, training: str) -> Tokenizer | None:
    while config.vocab_size > SMALLEST:
        try:
            return train_tokenizer(config, [training])
        except UsageError:
            config = replace(config, vocab_size=int(0.9 * config.vocab_size))
    return None
