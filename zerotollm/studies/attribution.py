"""Does the model know a span because of some passages? It is trained without them, and without as many random ones.

That a span is in the training text does not show that the model has it from there. The difference that the passages
make is counterfactual memorization (Zhang et al. 2023, arXiv:2112.12938), here of chosen passages together.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from zerotollm.data.tokens.suffix_array import SuffixArray, suffix_array
from zerotollm.errors import UsageError
from zerotollm.evaluation.likelihood import log_likelihoods
from zerotollm.explain.answer import Answer
from zerotollm.explain.estimates import Estimate, mean_estimate, verdict
from zerotollm.explain.figures.marks import Axis, Dots, Line, Panel
from zerotollm.explain.render.tables import Table, with_interval
from zerotollm.explain.sources import AROUND, encode_within, explain_sources
from zerotollm.explain.words import exact_text
from zerotollm.model.build import Params
from zerotollm.studies.edited_text import EditableText

KINDS = ("all of it", "without its passages", "without random ones")
"""The training texts that are compared."""


@dataclass(frozen=True)
class Attribution(Answer):
    """The log-probability of a span, in nats, of S seeds trained on three texts."""

    span: str
    before: str
    """the text before the span, which its probability is conditional on"""
    documents: tuple[str, ...]
    """where the removed passages stand"""
    removed: int
    """tokens of these passages, which others take the place of"""
    log_p_KS: np.ndarray
    """by `KINDS`"""
    cause: Estimate[float]
    """log-probability without random passages minus that without its passages, paired by seeds"""
    of_random: Estimate[float]
    """log-probability on all of the text minus that without random passages"""
    epochs: float
    """how often a run reads its text"""
    title = "Does it know a span because of these passages?"

    def sentence(self) -> str:
        S, number = self.log_p_KS.shape[1], len(self.documents)
        those, of_random, them = f"the {number} passages nearest to it", f"{number} random ones", "them"
        if number == 1:
            those, of_random, them = "the passage nearest to it", "a random one", "it"
        value, low, high = self.cause
        ratio = np.exp(min(value, np.log(1e6)))
        times = "more than a million" if ratio >= 1e6 else f"{ratio:,.3g}" if ratio < 100 else f"{ratio:,.0f}"
        return (
            f"Trained without {those} instead of without {of_random}, the log-probability of “{self.span.strip()}” "
            f"changes by {Estimate(-value, -high, -low)} nats ({S} seeds, which read the text {self.epochs:.2f} "
            "times): "
            + verdict(
                self.cause,
                f"the model knows the span because of {them}, which made it {times} times as likely.",
                f"without {them} the span is likelier.",
                f"that the model knows the span because of {them} is not shown.",
            )
        )

    def panels(self) -> Iterator[Panel]:
        marks = []
        for row, (name, log_p_S) in enumerate(zip(KINDS, self.log_p_KS, strict=True)):
            hover = tuple(f"seed {s + 1}, {name}: {log_p:.3f} nats" for s, log_p in enumerate(log_p_S))
            marks.append(Dots(log_p_S, [row] * len(log_p_S), name, row, across=True, hover=hover))
        names = Axis(names=KINDS, down=True)
        yield Panel(
            "Log-probability of the span, by training text", tuple(marks), Axis("nats"), names, height=240
        )
        rows = (("its passages", self.cause), ("random ones", self.of_random))
        dots = tuple(
            Dots(
                [e.value],
                [row],
                name,
                row,
                [e.low],
                [e.high],
                across=True,
                hover=(f"{name}: {e} nats",),
                size=10,
            )
            for row, (name, e) in enumerate(rows)
            if np.isfinite(e.low)
        )
        names = Axis(names=tuple(name for name, _ in rows), down=True)
        zero = Line([0, 0], [-0.5, 1.5], "", 6, dashed=True)
        yield Panel("What they make of it", (zero, *dots), Axis("nats"), names, height=200)


def probability_table(answer: Attribution) -> Table:
    """Return the log-probability of the span by training text, and what the removed passages change."""
    rows = [
        (name, with_interval(mean_estimate(x_S))) for name, x_S in zip(KINDS, answer.log_p_KS, strict=True)
    ]
    rows.append(("random ones, minus its passages", with_interval(answer.cause)))
    return Table(("trained on", ">log-probability of the span, nats"), rows)


@dataclass(frozen=True)
class Target:
    """A span in a text, and what to remove."""

    before_T: np.ndarray
    """the tokens of the text before the span"""
    span_L: np.ndarray
    place_P: np.ndarray
    """where it, or at least half of it, stands in the training text"""
    documents: tuple[str, ...]


def find_target(text: EditableText, query: str, most: int) -> Target:
    """Return the longest span of a text that is in the training text, with at most `most` passages that have it.

    Raises UsageError if there is no span, or more passages have all of it.
    """
    train = suffix_array(text.split.tokens_N)
    query_T = encode_within(query, train, text.tokenizer)
    span = explain_sources(query_T, train, np.zeros(0, np.int64), text.tokenizer).longest()
    if span is None or span.length < 2:
        raise UsageError(
            f"no two neighbouring tokens of “{query.strip()}” are in the training text: give another text"
        )
    if span.occurrences > most:
        raise UsageError(
            f"“{span.text.strip()}” is {span.occurrences:,} times in the training text: give a longer or rarer text, "
            "or raise --passages"
        )
    run_L = query_T[span.start : span.start + span.length]
    place_P = nearest_places(train, run_L, most)
    names = tuple(text.documents.name_at(place) for place in place_P.tolist())
    return Target(query_T[: span.start], run_L, place_P, names)


def nearest_places(train: SuffixArray, run_L: np.ndarray, most: int) -> np.ndarray:
    """Return where passages that share the longest runs with a run of tokens have it, at most `most`, int64.

    Passages share at least half of its tokens, in one piece. A place is that of the first token of the run, were it
    whole; passages do not overlap.
    """
    length = len(run_L)
    size, places = length + 2 * AROUND, []
    for shared in range(length, max(1, (length + 1) // 2 - 1), -1):
        for start in range(length - shared + 1):
            for place in (train.occurrences(run_L[start : start + shared], most) - start).tolist():
                if len(places) < most and all(abs(place - other) >= size for other in places):
                    places.append(place)
    return np.array(places, np.int64)


def edited_texts(tokens_N: np.ndarray, place_P: np.ndarray, length: int, seed: int) -> tuple[np.ndarray, ...]:
    """Return the training tokens by `KINDS`: as they are, and with passages that others take the place of.

    A passage has `AROUND` tokens before and after the span. The text keeps its length, so all other windows of a seed
    have the same tokens in the same step. Raises UsageError where the passages are too large a part of the text.
    """
    random, size = np.random.default_rng([seed, 3]), length + 2 * AROUND
    begin_P = np.clip(place_P - AROUND, 0, max(0, len(tokens_N) - size))
    taken = begin_P.tolist()
    for _ in range(1000 * len(begin_P)):
        if len(taken) == 4 * len(begin_P):
            break
        begin = int(random.integers(0, max(1, len(tokens_N) - size)))
        if all(abs(begin - other) >= size for other in taken):
            taken.append(begin)
    else:
        raise UsageError(
            "the passages are too large a part of the training text: give a longer or rarer text"
        )
    _, others, *sources = np.split(np.array(taken), 4)
    return (
        np.array(tokens_N),
        *(_overwritten(tokens_N, *places, size) for places in zip((begin_P, others), sources, strict=True)),
    )


def _overwritten(tokens_N: np.ndarray, begin_P: np.ndarray, source_P: np.ndarray, size: int) -> np.ndarray:
    out_N = np.array(tokens_N)
    for begin, source in zip(begin_P, source_P, strict=True):
        out_N[begin : begin + size] = tokens_N[source : source + size]
    return out_N


def attribute_span(
    text: EditableText,
    target: Target,
    seeds: Sequence[int],
    progress: Callable[[int, str, int], None] = lambda seed, kind, step: None,
) -> Attribution:
    """Train every seed on three texts, and compare the probability of the span."""
    length, log_p = len(target.span_L), []
    for seed in seeds:
        texts = edited_texts(np.asarray(text.split.tokens_N), target.place_P, length, seed)
        row = []
        for kind, edited_N in zip(KINDS, texts, strict=True):
            fitted = text.fit(edited_N, seed, lambda step, seed=seed, kind=kind: progress(seed, kind, step))
            row.append(_log_probability(text, target, fitted.params))
        log_p.append(row)
    return compare_texts(
        np.array(log_p).T,
        span=exact_text(text.tokenizer, target.span_L),
        before=exact_text(text.tokenizer, target.before_T),
        documents=target.documents,
        removed=(length + 2 * AROUND) * len(target.place_P),
        epochs=text.epochs,
    )


def compare_texts(
    log_p_KS: np.ndarray, *, span: str, before: str, documents: tuple[str, ...], removed: int, epochs: float
) -> Attribution:
    """Return the comparison of the log-probabilities of S seeds by `KINDS`; see `Attribution` for the rest."""
    cause = Estimate(*map(float, mean_estimate(log_p_KS[2] - log_p_KS[1])))
    of_random = Estimate(*map(float, mean_estimate(log_p_KS[0] - log_p_KS[2])))
    return Attribution(span, before, documents, removed, log_p_KS, cause, of_random, epochs)


def _log_probability(text: EditableText, target: Target, params: Params) -> float:
    """Return the log-probability of the span after the text before it, of which as much is read as fits."""
    model, length = text.programs.experiment.model, len(target.span_L)
    before_T = target.before_T[max(0, len(target.before_T) + length - model.max_length) :]
    ids = np.concatenate([[text.tokenizer.bos_id], before_T, target.span_L]).astype(np.int32)
    return log_likelihoods(params, model, [(ids, length)], num_tokens=text.tokenizer.vocab_size)[0].log_p
