"""Where did it get that? The spans of a text that are in the training text, with the passages most like their context.

Spans are found as OLMoTrace finds them (Liu et al. 2025, arXiv:2504.07096), by a suffix array of the training tokens.
That a span is in the training text does not show that the model has it from there: any English text has such spans.
The longest one is therefore compared with those of held-out real texts of the same length, which nobody copied.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.data.tokens.suffix_array import SuffixArray
from zerotollm.explain.activations import even_windows
from zerotollm.explain.answer import Answer
from zerotollm.explain.estimates import CONFIDENCE
from zerotollm.explain.figures.marks import Axis, Bars, Line, Panel, said, visible
from zerotollm.explain.words import exact_text, readable_token, token_counts

HELD_OUT = 199
"""Held-out texts that the longest span is compared with; fewer if there is not enough held-out text."""
PASSAGES = 3
"""Training passages shown for each span."""
CANDIDATES = 200
"""Occurrences of a span from which these are chosen, evenly spread over all of them."""
AROUND = 32
"""Tokens before and after a span by which passages are compared with the text."""
SHOWN_AROUND = 12
"""Tokens before and after a span that are shown."""


class Documents(NamedTuple):
    """Where the D documents of the training text start, and what they are called."""

    start_D: np.ndarray = np.zeros(0, np.int64)
    names: Sequence[str] = ()
    """may be empty, where documents have no names"""

    def name_at(self, position: int) -> str:
        """Return the name of the document at a token of the training text, its number if it has none."""
        if not len(self.start_D):
            return ""
        document = max(0, int(np.searchsorted(self.start_D, position, side="right")) - 1)
        return self.names[document] if len(self.names) else f"document {document + 1:,}"

    def bounds(self, position: int, num_tokens: int) -> tuple[int, int]:
        """Return the first token of the document at a position and the end of its last."""
        after = int(np.searchsorted(self.start_D, position, side="right"))
        first = int(self.start_D[after - 1]) if after else 0
        return first, int(self.start_D[after]) if after < len(self.start_D) else num_tokens


NO_DOCUMENTS = Documents()


@dataclass(frozen=True)
class Passage:
    """A place of the training text where a span occurs."""

    position: int
    """of the span's first token in the training text"""
    document: str
    before: str
    after: str
    likeness: float
    """share of the text's tokens around the span that are also around it here, each weighted by log(1 / frequency)"""


@dataclass(frozen=True)
class Span:
    """A run of tokens of the text that is in the training text."""

    start: int
    """its first token in the text"""
    length: int
    text: str
    occurrences: int
    """in the training text"""
    p_value: float
    """share of held-out real texts of the same length that have a span at least as long; corrected for all spans of
    the text, because each of these texts counts with its longest span"""
    passages: tuple[Passage, ...]


@dataclass(frozen=True)
class Sources(Answer):
    """A text of T tokens as spans of the training text, the longest possible first."""

    text: str
    pieces: tuple[str, ...]
    longest_T: np.ndarray
    """tokens from each token on that are in the training text"""
    spans: tuple[Span, ...]
    """in the order of the text; tokens that the training text does not have are in no span"""
    real_K: np.ndarray
    """the longest span of each of K held-out real texts of T tokens"""
    shorter_p_value: float
    """share of these whose longest span is at most as long as that of the text"""
    subject: str
    """what the text is"""
    title = "Where did it get that?"

    def longest(self) -> Span | None:
        """Return the longest span, None if no token is in the training text."""
        return max(self.spans, key=lambda span: span.length, default=None)

    def quoted(self) -> str:
        """Return the text with its name, to read before what is said about it."""
        return f"{self.subject[:1].upper()}{self.subject[1:]}: “{self.text.strip()}”"

    def sentence(self) -> str:
        span = self.longest()
        if span is None:
            return f"No token of {self.subject} is in the training text."
        times = "once" if span.occurrences == 1 else f"{span.occurrences:,} times"
        where = f", in {span.passages[0].document}" if span.passages[0].document else ""
        first = (
            f"The longest span of {self.subject} that is in the training text has {span.length} of its "
            f"{len(self.pieces)} tokens and occurs there {times}{where}: “{span.text.strip()}”"
        )
        if len(self.real_K) < 2:
            return (
                f"{first}; whether that is more than chance is not shown, since held-out text is too short."
            )
        mean, most = f"{self.real_K.mean():.1f} tokens on average", f"at most {self.real_K.max()}"
        level = (1 - CONFIDENCE) / 2
        if span.p_value <= level:
            verdict = f"so long a span is rare without copying (p = {span.p_value:.3f})"
        elif self.shorter_p_value <= level:
            verdict = f"so short a one is rare even in real text (p = {self.shorter_p_value:.3f})"
        else:
            verdict = "that it was copied is not shown"
        real = f"In {len(self.real_K)} held-out real texts of the same length it has {mean}, and {most}"
        return f"{first}. {real}: {verdict}."

    def panels(self) -> Iterator[Panel]:
        T = len(self.pieces)
        inside = [(span.start + i, span) for span in self.spans for i in range(span.length)]
        place_N, span_N = [place for place, _ in inside], [span for _, span in inside]
        pieces = [visible(self.pieces[place]) for place in place_N]
        lengths = [span.length for span in span_N]
        hover = said(
            "{}: in a span of {} tokens, {:,} times in the training text", pieces, lengths,
            [span.occurrences for span in span_N],
        ) if inside else ()  # fmt: skip
        marks: list[Bars | Line] = [Bars(place_N, lengths, "this text", hover=hover)]
        if len(self.real_K) > 1:
            level = float(np.quantile(self.real_K, (1 + CONFIDENCE) / 2, method="higher"))
            name = f"{100 * (1 + CONFIDENCE) / 2:g} % of real texts have no longer span"
            marks.append(Line([0, max(T - 1, 1)], [level, level], name, 1, dashed=True))
        axis = Axis("token of the text", names=tuple(map(visible, self.pieces)) if T <= AROUND else ())
        yield Panel("Spans that are in the training text", tuple(marks), axis, Axis("tokens"), wide=True)
        if len(self.real_K) > 1:
            length_X, count_X = np.unique(self.real_K, return_counts=True)
            bars = Bars(
                length_X, count_X, "real texts", 1, hover=said("{} tokens: {} texts", length_X, count_X)
            )
            longest = self.longest()
            own = Line([longest.length if longest else 0] * 2, [0, count_X.max()], "this text", 0)
            axes = Axis("tokens of the longest span"), Axis("held-out texts")
            yield Panel("The longest span of real texts", (bars, own), *axes)


def explain_sources(
    text_T: np.ndarray,
    train: SuffixArray,
    held_out_N: np.ndarray,
    tokenizer: AnyTokenizer,
    documents: Documents = NO_DOCUMENTS,
    subject: str = "the text",
) -> Sources:
    """Return the spans of a text with the training passages most like it, in milliseconds for a hundred tokens.

    `text_T` are its tokens without bos. The p-values need `held_out_N`, real text that was not trained on.
    """
    text_T = np.asarray(text_T, np.int64)
    T = len(text_T)
    found = train.longest_matches(text_T)
    real_BW = even_windows(held_out_N, T - 1, HELD_OUT) if 1 < T <= len(held_out_N) else np.zeros((0, T))
    real_K = longest_spans(real_BW, train)
    counts_V = token_counts(train.tokens_N, tokenizer.vocab_size)
    rarity_V = np.log(max(1, counts_V.sum()) / np.maximum(counts_V, 1))
    spans = []
    for start, length in split_into_spans(found.length_T):
        run_L = text_T[start : start + length]
        p_value = float((1 + (real_K >= length).sum()) / (1 + len(real_K)))
        positions = train.occurrences(run_L, CANDIDATES)
        passages = _nearest(text_T, start, length, positions, train.tokens_N, documents, rarity_V, tokenizer)
        spans.append(
            Span(start, length, exact_text(tokenizer, run_L), train.count(run_L), p_value, tuple(passages))
        )
    longest = int(found.length_T.max(initial=0))
    return Sources(
        text=exact_text(tokenizer, text_T),
        pieces=tuple(readable_token(tokenizer, i) for i in text_T),
        longest_T=found.length_T,
        spans=tuple(spans),
        real_K=real_K,
        shorter_p_value=float((1 + (real_K <= longest).sum()) / (1 + len(real_K))),
        subject=subject,
    )


def encode_within(text: str, train: SuffixArray, tokenizer: AnyTokenizer) -> np.ndarray:
    """Return the tokens of a text as they stand inside a document, or at its beginning if longer spans are known so."""
    inside_T, beginning_T = (np.asarray(tokenizer.encode(x), np.int64) for x in (f" {text.lstrip()}", text))
    longest = [train.longest_matches(x_T).length_T.max(initial=0) for x_T in (inside_T, beginning_T)]
    return beginning_T if longest[1] > longest[0] else inside_T


def longest_spans(texts_BT: np.ndarray, train: SuffixArray) -> np.ndarray:
    """Return the length of the longest span of each text that is in the training text, (B,)."""
    B, T = texts_BT.shape
    length_BT = train.longest_matches(texts_BT.ravel()).length_T.reshape(B, T)
    # All texts are searched as one, in which a match may run on into the next text.
    return np.minimum(length_BT, np.arange(T, 0, -1)).max(axis=1, initial=0)


def split_into_spans(length_T: np.ndarray) -> list[tuple[int, int]]:
    """Return (start, length) of spans without overlap, in order: the longest match, then those on both sides of it.

    `length_T` is the longest match at each position. A position without a match is in no span.
    """
    spans, open_ranges = [], [(0, len(length_T))]
    while open_ranges:
        low, high = open_ranges.pop()
        fitting = np.minimum(length_T[low:high], np.arange(high - low, 0, -1))
        if not len(fitting) or not fitting.max():
            continue
        start = low + int(fitting.argmax())
        end = start + int(fitting.max())
        spans.append((start, end - start))
        open_ranges += [(low, start), (end, high)]
    return sorted(spans)


def _nearest(
    text_T: np.ndarray,
    start: int,
    length: int,
    positions: np.ndarray,
    train_N: np.ndarray,
    documents: Documents,
    rarity_V: np.ndarray,
    tokenizer: AnyTokenizer,
) -> Iterator[Passage]:
    """Yield the passages at `positions` whose surroundings share most with those of the span, the most alike first."""
    around_S = np.concatenate([text_T[max(0, start - AROUND) : start], text_T[start + length :][:AROUND]])
    wanted_S = np.unique(around_S[around_S < len(rarity_V)])
    weight_S = rarity_V[wanted_S]
    likeness, places = [], []
    for position in map(int, positions):
        first, end = documents.bounds(position, len(train_N))
        before = train_N[max(first, position - AROUND) : position]
        after = train_N[position + length : min(end, position + length + AROUND)]
        here_S = np.isin(wanted_S, before) | np.isin(wanted_S, after)
        likeness.append(float(weight_S[here_S].sum() / max(weight_S.sum(), 1e-9)))
        places.append((position, before[-SHOWN_AROUND:], after[:SHOWN_AROUND]))
    for i in np.argsort(-np.array(likeness), kind="stable")[:PASSAGES]:
        position, before, after = places[i]
        before, after = (exact_text(tokenizer, side) for side in (before, after))
        yield Passage(position, documents.name_at(position), before, after, likeness[i])
