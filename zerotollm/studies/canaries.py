"""Exposure of canaries: how often must a model read a random sequence to remember it? (Carlson et al. 2019,
arXiv:1802.08232)

A canary is a prefix and a secret, both of random tokens, planted at random places of the training text. The exposure of
its secret is log2 of the number of candidates minus log2 of its rank among them (section 4 of the paper, estimated by
sampling). The candidates are the secret and others drawn in the same way, which were not planted.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from zerotollm.evaluation.likelihood import Likelihood, log_likelihoods
from zerotollm.explain.answer import Answer
from zerotollm.explain.estimates import Estimate, mean_estimate
from zerotollm.explain.figures.marks import Axis, Dots, Line, Panel, said
from zerotollm.explain.render.tables import Table, table_of, with_interval
from zerotollm.model.build import Params
from zerotollm.significance import CONFIDENCE, holm
from zerotollm.studies.edited_text import EditableText, ordinary_ids

PREFIX, SECRET = 4, 4
"""Random tokens of each."""
CANDIDATES = 1024
"""Secrets that are ranked, the true one among them: the largest exposure is log2 of it, 10 bits."""
EACH = 8
"""Canaries of each number of repetitions in one run."""
DRAWS = 10_000
"""Draws of uniform ranks that p-values are computed with."""


@dataclass(frozen=True)
class Canary:
    """A planted sequence."""

    repetitions: int
    tokens_L: np.ndarray
    """the prefix, then the secret"""


@dataclass(frozen=True)
class Exposure:
    """What S runs remember of the canaries that were planted so often."""

    repetitions: int
    bits: Estimate[float]
    """mean exposure; the interval is over runs, of the means of each"""
    p_value: float
    """of uniform ranks, adjusted for all numbers of repetitions above 0 (Holm); unadjusted for 0"""
    first: float
    """share of secrets that are likelier than all other candidates"""
    extracted: float
    """share of secrets that greedy decoding writes after the prefix"""


@dataclass(frozen=True)
class Canaries(Answer):
    """Exposure by the number of repetitions in the training text."""

    exposures: tuple[Exposure, ...]
    """of 0 repetitions too, which shows what chance gives"""
    seeds: int
    canaries: int
    """of each number of repetitions, in all runs"""
    chance_bits: float
    """expected exposure of a secret that nothing is known of"""
    epochs: float
    """how often a run reads its text"""
    title = "How often must it read a random sequence to remember it?"

    def sentence(self) -> str:
        said_each = []
        for exposure in self.exposures:
            if exposure.repetitions:
                outcome = "remembered" if exposure.p_value <= 1 - CONFIDENCE else "not shown to be remembered"
                times = "once" if exposure.repetitions == 1 else f"{exposure.repetitions:,} times"
                at_least = "at least " if exposure.first == 1 else ""
                said_each.append(f"planted {times}, {at_least}{exposure.bits} bits: {outcome}")
        most = f"{np.log2(CANDIDATES):.0f} bits are the most that {CANDIDATES:,} candidates can show"
        return (
            f"Random sequences, {self.canaries} of each kind in {self.seeds} runs that read their text "
            f"{self.epochs:.2f} times, have an exposure of: {'; '.join(said_each)}. Chance gives "
            f"{self.chance_bits:.2f} bits, and {most}."
        )

    def panels(self) -> Iterator[Panel]:
        names = tuple(f"{exposure.repetitions:,}" for exposure in self.exposures)
        value, low, high = zip(*(exposure.bits for exposure in self.exposures), strict=True)
        hover = said("planted {} times: {} bits", names, [str(exposure.bits) for exposure in self.exposures])
        ends = [0, len(names) - 1]
        marks = (
            Dots(range(len(names)), value, "exposure", 0, low, high, hover=hover, size=10),
            Line(ends, [self.chance_bits] * 2, "chance", 6, dashed=True),
            Line(ends, [np.log2(CANDIDATES)] * 2, "the most that is measured", 1, dashed=True),
        )
        axes = Axis("times in the training text", names=names), Axis("exposure, bits")
        yield Panel("Exposure of random sequences", marks, *axes)
        shares = [100 * exposure.extracted for exposure in self.exposures]
        hover = said("planted {} times: {:.0f} % written", names, shares)
        written = Dots(range(len(names)), shares, "", 0, hover=hover, size=10)
        axes = Axis("times in the training text", names=names), Axis("%", span=(-3, 103))
        yield Panel("Written by greedy decoding after their prefix", (written,), *axes)


def exposure_table(answer: Canaries) -> Table:
    """Return a row for each number of repetitions."""
    columns = {
        ">planted": [f"{exposure.repetitions:,}" for exposure in answer.exposures],
        ">exposure, bits": [with_interval(exposure.bits) for exposure in answer.exposures],
        ">p-value": [f"{exposure.p_value:.4f}" for exposure in answer.exposures],
        ">% likeliest of all": [f"{100 * exposure.first:.0f}" for exposure in answer.exposures],
        ">% written after their prefix": [f"{100 * exposure.extracted:.0f}" for exposure in answer.exposures],
    }
    return table_of(columns)


def draw_canaries(ids_V: np.ndarray, repetitions: Sequence[int], seed: int) -> list[Canary]:
    """Return `EACH` canaries of each number of repetitions."""
    random = np.random.default_rng([seed, 0])
    return [Canary(n, random.choice(ids_V, PREFIX + SECRET)) for n in repetitions for _ in range(EACH)]


def plant(tokens_N: np.ndarray, canaries: Sequence[Canary], seed: int) -> np.ndarray:
    """Return the training tokens with each canary inserted at as many random places as it has repetitions."""
    random = np.random.default_rng([seed, 1])
    runs = [canary.tokens_L for canary in canaries for _ in range(canary.repetitions)]
    if not runs:
        return np.asarray(tokens_N)
    place_R = random.integers(0, len(tokens_N) + 1, len(runs))
    return np.insert(tokens_N, np.repeat(place_R, PREFIX + SECRET), np.concatenate(runs))


def rank_secrets(
    score: Callable[[list[tuple[np.ndarray, int]]], list[Likelihood]],
    canaries: Sequence[Canary],
    bos_id: int,
    ids_V: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rank of each secret among `CANDIDATES`, 1 for the likeliest, and whether greedy decoding writes it.

    `score` returns the likelihood of texts, as `log_likelihoods`.
    """
    random = np.random.default_rng([seed, 2])
    ranks, greedy = [], []
    for canary in canaries:
        start = np.concatenate([[bos_id], canary.tokens_L[:PREFIX]])
        others = random.choice(ids_V, (CANDIDATES - 1, SECRET))
        secrets = np.concatenate([canary.tokens_L[None, PREFIX:], others])
        scores = score([(np.concatenate([start, secret]).astype(np.int32), SECRET) for secret in secrets])
        log_p = np.array([likelihood.log_p for likelihood in scores])
        # A candidate that is as likely, which may be the same secret, counts for half.
        ranks.append(1 + (log_p[1:] > log_p[0]).sum() + (log_p[1:] == log_p[0]).sum() / 2)
        greedy.append(scores[0].greedy)
    return np.array(ranks), np.array(greedy)


def measure_canaries(
    text: EditableText,
    repetitions: Sequence[int],
    seeds: Sequence[int],
    progress: Callable[[int, int], None] = lambda seed, step: None,
) -> Canaries:
    """Train every seed on a text with canaries of its own, and measure their exposure."""
    repetitions, ids_V, experiment = (0, *repetitions), ordinary_ids(text), text.programs.experiment
    ranks, greedy = [], []
    for seed in seeds:
        canaries = draw_canaries(ids_V, repetitions, seed)
        fitted = text.fit(
            plant(text.split.tokens_N, canaries, seed), seed, lambda n, seed=seed: progress(seed, n)
        )

        def score(texts: list[tuple[np.ndarray, int]], params: Params = fitted.params) -> list[Likelihood]:
            vocab_size = text.tokenizer.vocab_size
            return log_likelihoods(params, experiment.model, texts, num_tokens=vocab_size, rows=256)

        rank_C, greedy_C = rank_secrets(score, canaries, text.tokenizer.bos_id, ids_V, seed)
        ranks.append(rank_C.reshape(len(repetitions), EACH))
        greedy.append(greedy_C.reshape(len(repetitions), EACH))
    return summarize(repetitions, np.stack(ranks, axis=1), np.stack(greedy, axis=1), text.epochs)


def summarize(
    repetitions: Sequence[int], rank_RSC: np.ndarray, greedy_RSC: np.ndarray, epochs: float
) -> Canaries:
    """Return the exposures by ranks of R numbers of repetitions, S runs and C canaries.

    If a secret was not remembered, its rank is uniform whatever the model, because it was drawn like the other
    candidates; the p-value is exact up to its `DRAWS` draws.
    """
    bits_RSC = np.log2(CANDIDATES) - np.log2(rank_RSC)
    every_rank_bits = np.log2(CANDIDATES) - np.log2(np.arange(1, CANDIDATES + 1))
    _, S, C = rank_RSC.shape
    random = np.random.default_rng(0)
    by_chance_X = every_rank_bits[random.integers(0, CANDIDATES, (DRAWS, S * C))].mean(1)
    p_R = [float((1 + (by_chance_X >= bits_SC.mean()).sum()) / (1 + DRAWS)) for bits_SC in bits_RSC]
    planted = [r for r, n in enumerate(repetitions) if n]
    for r, p_value in zip(planted, holm([p_R[r] for r in planted]), strict=True):
        p_R[r] = p_value
    exposures = tuple(
        Exposure(
            n,
            _within(mean_estimate(bits_RSC[r].mean(1))),
            p_R[r],
            float((rank_RSC[r] == 1).mean()),
            float(greedy_RSC[r].mean()),
        )
        for r, n in enumerate(repetitions)
    )
    return Canaries(exposures, S, S * C, float(every_rank_bits.mean()), epochs)


def _within(bits: Estimate) -> Estimate[float]:
    """Return the estimate with its interval cut to the exposures that are possible."""
    return Estimate(*(float(np.clip(x, 0, np.log2(CANDIDATES))) for x in bits))
