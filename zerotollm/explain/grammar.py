"""In which order does it learn grammar? Minimal pairs, by phenomenon, at every checkpoint of a run.

A pair is right where its good sentence is the likelier one (BLiMP: Warstadt et al. 2020, arXiv:1912.00582). Guessing is
right half of the time, but a model that knows nothing need not be: the pairs of a phenomenon share their words and
lengths, which random parameters prefer or not. Chance is therefore measured, on models without training. Token
frequencies alone are right more often than not where the better word is the more frequent one; they are measured too.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from zerotollm.explain.answer import Answer
from zerotollm.explain.estimates import (
    Estimate,
    beyond_null,
    mean_estimate,
    monotone,
    share_estimate,
    verdict,
)
from zerotollm.explain.figures.marks import Axis, Dots, Line, Panel, said

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
NAMED = 6
"""Phenomena that the sentence names of each kind."""


@dataclass(frozen=True)
class Rule:
    """A phenomenon, or a paradigm, which is a part of one: N pairs at Y checkpoints."""

    name: str
    pairs: int
    accuracy_Y: Estimate[np.ndarray]
    """share of right pairs, with Wilson's intervals"""
    chance: float
    """mean accuracy of models without training"""
    above_chance_Y: Estimate[np.ndarray]
    """accuracy minus `chance`; the intervals hold one untrained model in 20, over all rules together (Bonferroni)"""
    frequencies: float
    """accuracy of the token frequencies of the training text; a tie counts half"""
    above_frequencies_Y: Estimate[np.ndarray]
    """accuracy minus `frequencies`, paired by pairs; intervals over all rules together"""
    born: int | None
    """first step from which on both differences are above 0 up to the last checkpoint; None: at no step. The
    checkpoints are tested from the last one back, so their number needs no correction (Maurer et al. 1995)"""
    per_million: float
    """how often the rarest word that decides a pair occurs in a million words of the training text, median of pairs"""
    known: float
    """share of pairs of which every word is in the training text"""
    parts: tuple["Rule", ...] = ()
    """the paradigms of a phenomenon"""

    @property
    def title(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ")


@dataclass(frozen=True)
class Grammar(Answer):
    """The rules of grammar that a run learned, and when."""

    steps_Y: np.ndarray
    rules: tuple[Rule, ...]
    pairs: int
    fresh: int
    """models without training that chance was measured on"""
    by_frequency: Estimate[float]
    """Spearman's correlation over the learned rules of the step at which they were born and how often their words
    occur: below 0 if rules of frequent words come first"""
    title = "In which order does it learn grammar?"

    def learned(self) -> list[Rule]:
        """Return the rules that were born, in the order of their birth."""
        born = [rule for rule in self.rules if rule.born is not None]
        return sorted(born, key=lambda rule: (rule.born or 0, -rule.above_chance_Y.value[-1]))

    def sentence(self) -> str:
        learned = self.learned()
        start = (
            f"{len(learned)} of {len(self.rules)} phenomena are shown to be learned by step {self.steps_Y[-1]:,}, "
            f"above {self.fresh} models without training and above token frequencies"
        )
        if not learned:
            return f"{start} ({self.pairs:,} pairs)."
        born = [
            f"{rule.title} from step {rule.born:,} ({100 * rule.accuracy_Y.value[-1]:.0f} % right)"
            for rule in learned[:NAMED]
        ]
        more = f" and {len(learned) - NAMED} later ones" if len(learned) > NAMED else ""
        return f"{start}: {', '.join(born)}{more}{self._order()} ({self.pairs:,} pairs)."

    def _order(self) -> str:
        """Return whether rules of frequent words came first, nothing if too few were learned to ask."""
        if not np.isfinite(self.by_frequency.value):
            return ""
        order = verdict(
            self.by_frequency,
            "rules of rare words came first",
            "rules of frequent words came first",
            "that rules of frequent words came first is not shown",
        )
        return f"; {order} (correlation {self.by_frequency})"

    def panels(self) -> Iterator[Panel]:
        learned = self.learned()
        if learned:
            names = tuple(f"{rule.title} ({rule.per_million:,.0f})" for rule in learned)
            born = [rule.born or 0 for rule in learned]
            template = "{}: from step {:,} on; {:.0f} times in a million words"
            hover = said(template, [r.title for r in learned], born, [r.per_million for r in learned])
            dots = Dots(born, range(len(learned)), "born", 0, hover=hover, across=True, size=10)
            span = float(self.steps_Y[0]), float(self.steps_Y[-1]) * 1.03
            axes = Axis("step from which on it is shown", span=span), Axis(names=names, down=True)
            title = "Learned phenomena (uses of their words in a million)"
            yield Panel(title, (dots,), *axes, height=120 + 28 * len(learned), wide=True)
        for rule in self.rules:
            yield self._curve(rule)

    def _curve(self, rule: Rule) -> Panel:
        value_Y, low_Y, high_Y = rule.accuracy_Y
        template = "step {:,}: {:.1f} % [{:.1f}, {:.1f}] right"
        hover = said(template, self.steps_Y, *(100 * x_Y for x_Y in rule.accuracy_Y))
        ends, half = (
            [self.steps_Y[0], self.steps_Y[-1]],
            rule.above_chance_Y.high[-1] - rule.above_chance_Y.value[-1],
        )
        half = half if np.isfinite(half) else 0.0
        band = [max(0.0, rule.chance - half)] * 2, [min(1.0, rule.chance + half)] * 2
        marks = (
            Line(ends, [rule.chance] * 2, "without training", 6, *band),
            Line(ends, [rule.frequencies] * 2, "token frequencies", 1, dashed=True),
            Line(self.steps_Y, value_Y, "this run", 0, low_Y, high_Y, hover, dots=True),
        )
        axes = Axis("step"), Axis("share right", span=(0, 1))
        return Panel("Accuracy by phenomenon", marks, *axes, choice=rule.title, height=300)


def measure_grammar(
    steps_Y: np.ndarray,
    right_YN: np.ndarray,
    fresh_KN: np.ndarray,
    frequencies_N: np.ndarray,
    phenomena: Sequence[str],
    paradigms: Sequence[str],
    words: "PairWords",
) -> Grammar:
    """Group N pairs: whether each is right at Y checkpoints and for K models without training, and by frequencies.

    The last, `frequencies_N`, are 0, 0.5 for a tie, or 1.
    """
    phenomenon_N, paradigm_N = np.array(phenomena), np.array(paradigms)

    def rule(name: str, chosen: np.ndarray, rules: int, parts: tuple[Rule, ...] = ()) -> Rule:
        right_YP, fresh_K = right_YN[:, chosen], fresh_KN[:, chosen].mean(1)
        frequencies_P = frequencies_N[chosen]
        accuracy_Y = share_estimate(right_YP.sum(1), np.full(len(steps_Y), right_YP.shape[1]))
        above_chance = [beyond_null(float(value), fresh_K, rules) for value in accuracy_Y.value]
        above_frequencies = [mean_estimate(right_P - frequencies_P, rules) for right_P in right_YP]
        shown_Y = [min(a.low, b.low) > 0 for a, b in zip(above_chance, above_frequencies, strict=True)]
        return Rule(
            name,
            right_YP.shape[1],
            accuracy_Y,
            float(fresh_K.mean()),
            Estimate(*map(np.array, zip(*above_chance, strict=True))),
            float(frequencies_P.mean()),
            Estimate(*map(np.array, zip(*above_frequencies, strict=True))),
            _first_of_the_last(steps_Y, shown_Y),
            float(np.median(words.per_million_N[chosen])),
            float(words.known_N[chosen].mean()),
            parts,
        )

    names, all_paradigms = sorted(set(phenomena)), len(set(paradigms))
    rules = []
    for name in names:
        inside = sorted(set(paradigm_N[phenomenon_N == name]))
        parts = tuple(
            rule(part, (phenomenon_N == name) & (paradigm_N == part), all_paradigms) for part in inside
        )
        rules.append(rule(name, phenomenon_N == name, len(names), parts if len(parts) > 1 else ()))
    born = sorted(
        ((rule.per_million, rule.born) for rule in rules if rule.born is not None), key=lambda x: x[0]
    )
    order = monotone([step for _, step in born]) if len({step for _, step in born}) > 1 else monotone([])
    return Grammar(steps_Y, tuple(rules), len(phenomena), len(fresh_KN), order)


def _first_of_the_last(steps_Y: np.ndarray, shown_Y: Sequence[bool]) -> int | None:
    """Return the first step of the checkpoints without a gap up to the last that show it."""
    born = None
    for step, shown in zip(reversed(steps_Y.tolist()), reversed(shown_Y), strict=True):
        if not shown:
            break
        born = step
    return born


@dataclass(frozen=True)
class PairWords:
    """How often the words of N pairs occur in the training text."""

    per_million_N: np.ndarray
    """the rarest of the words that decide a pair, in a million words"""
    known_N: np.ndarray
    """whether every word of the pair occurs, 0 or 1"""


def count_pair_words(pairs: Sequence[tuple[str, str]], training: str) -> PairWords:
    """Count the words of pairs (good, bad) in the training text, whatever their case."""
    counts = Counter(word.lower() for word in WORD.findall(training))
    total = max(1, counts.total())
    rarest, known = [], []
    for good, bad in pairs:
        deciding = deciding_words(good, bad)
        rarest.append(1e6 / total * min((counts[word] for word in deciding), default=0))
        known.append(all(counts[word.lower()] for text in (good, bad) for word in WORD.findall(text)))
    return PairWords(np.array(rarest), np.array(known, float))


def deciding_words(good: str, bad: str) -> set[str]:
    """Return the words of which the two sentences have different numbers; all words if only their order differs."""
    words: list[Mapping[str, int]] = [Counter(word.lower() for word in WORD.findall(x)) for x in (good, bad)]
    different = {word for word in {*words[0], *words[1]} if words[0].get(word, 0) != words[1].get(word, 0)}
    return different or set(words[0])
