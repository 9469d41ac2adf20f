"""Untrained models show no effects, and planted effects are shown: 100 draws of each.

This prints the table of docs/explanation/statistics.md:

    python -m pytest -n0 -s -m slow tests/explain/test_null_models.py
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import jax
import numpy as np
import pytest

from zerotollm.data.tokens.suffix_array import suffix_array
from zerotollm.evaluation.grammar_history import frequency_answers, right_answers
from zerotollm.evaluation.likelihood import Question
from zerotollm.explain.activations import LanguageModel, Scores, even_windows, record_windows, score_windows
from zerotollm.explain.alignment import distance_moved, monotony
from zerotollm.explain.attention import Heads, explain_heads
from zerotollm.explain.calibration import calibration, loss_by_position
from zerotollm.explain.estimates import NEGLIGIBLE, Estimate, monotone, outcome_of
from zerotollm.explain.explanation import streams_of
from zerotollm.explain.generation import Measures, explain_generation
from zerotollm.explain.grammar import count_pair_words, measure_grammar
from zerotollm.explain.layers import Layers, explain_layers
from zerotollm.explain.learning import measure_learning
from zerotollm.explain.memorization import Memorization, explain_memorization
from zerotollm.explain.sources import explain_sources
from zerotollm.explain.words import sentence_ends, token_counts
from zerotollm.model.config import resolve
from zerotollm.model.transformer import Transformer

pytestmark = pytest.mark.slow

DRAWS = 100
ENOUGH = 95
FRESH = 5
B, T = 32, 31


@pytest.fixture(scope="module")
def wide(model):
    """The tiny model with a context in which several windows are looked at together."""
    return resolve(replace(model, max_length=0), vocab_size=model.vocab_size, context=128)


@pytest.fixture(scope="module")
def fresh(wide):
    init = jax.jit(
        lambda seed: Transformer(wide).init(jax.random.key(seed), {"inputs": np.zeros((1, 4), np.int32)})
    )
    return [init(seed)["params"] for seed in range(DRAWS)]


@pytest.fixture(scope="module")
def windows(tokens):
    return even_windows(tokens, T, B)


@pytest.fixture(scope="module")
def streams(fresh, wide, tokenizer, windows):
    return [streams_of(LanguageModel(params, wide, tokenizer), windows) for params in fresh]


def count(question: str, null: Callable[[int], bool], planted: Callable[[int], bool]) -> None:
    """Print a row of the table: draws of the null model that show nothing, and planted draws that are shown."""
    nothing, num_shown = sum(not null(k) for k in range(DRAWS)), sum(planted(k) for k in range(DRAWS))
    print(f"\n| {question} | {nothing} | {num_shown} |")
    assert nothing >= ENOUGH
    assert num_shown >= ENOUGH


def shown(estimate: Estimate, margin: float = 0.0) -> bool:
    """Return whether an effect or its opposite is shown."""
    return outcome_of(estimate, margin) != "not shown"


def learned(answer: Layers) -> bool:
    """Return whether any effect of training is shown."""
    return answer.outcome() != "not shown" or any(
        p.best() is not None and shown(p.learned) for p in answer.probes
    )


def test_layers(streams, windows, tokenizer):
    ends_V = sentence_ends(tokenizer)

    def beside(own: np.ndarray, k: int) -> Layers:
        others = (streams[(k + 1 + i) % DRAWS] for i in range(FRESH))
        return explain_layers(own, windows, ends_V, fresh=others, seed=k)

    def with_context(k: int) -> bool:
        own = streams[k].copy()
        own[-1] += own[-1].std() * np.random.default_rng(k).standard_normal(own[-1].shape)
        return beside(own, k).outcome() == "shown"

    count(
        "layers: fresh parameters; noise planted as context",
        lambda k: learned(beside(streams[k], k)),
        with_context,
    )


def test_probes(streams, windows, tokenizer):
    ends_V = sentence_ends(tokenizer)

    def probed(own: np.ndarray, label_BT: np.ndarray, k: int) -> bool:
        others = (streams[(k + 1 + i) % DRAWS] for i in range(FRESH))
        answer = explain_layers(own, windows, ends_V, {"planted": label_BT}, fresh=others, seed=k).probes[-1]
        return answer.best() is not None and shown(answer.learned)

    def labels(k: int) -> np.ndarray:
        return np.random.default_rng(k).integers(0, 3, (B, T))

    def written(k: int) -> np.ndarray:
        own = streams[k].copy()
        own[-1, ..., :3] += 6 * own[-1].std() * np.eye(3)[labels(k)]
        return own

    count(
        "probes: shuffled labels; labels written into the vectors",
        lambda k: probed(streams[k], labels(k), k),
        lambda k: probed(written(k), labels(k), k),
    )


def test_heads(fresh, wide, windows, tokenizer, tokens):
    ids_N = np.unique(tokens)

    def heads(params, k: int) -> Heads:
        recorded = record_windows(LanguageModel(params, wide, tokenizer), windows[::4])
        weights = (window.weights() for window in recorded)
        return explain_heads(
            LanguageModel(params, wide, tokenizer), windows[::4, :-1], ids_N, weights, seed=k
        )

    every = [heads(params, k) for k, params in enumerate(fresh)]

    def planted(answer: Heads) -> bool:
        """Return whether one head of four is named if it gives half of its attention to the previous token."""
        score = Estimate(*(x.copy() for x in answer.score_PLH))
        for x in score:
            x[0, 0, 0] += 0.5
        gain = Estimate(*(x + 0.5 for x in answer.repetition_gain))
        with_one = replace(answer, score_PLH=score, repetition_gain=gain)
        return with_one.named() == {(0, 0): "previous token"} and gain.low > NEGLIGIBLE

    count(
        "heads and induction: fresh parameters; a head and a gain of 0.5 nats planted",
        lambda k: bool(every[k].named()) or shown(every[k].repetition_gain, NEGLIGIBLE),
        lambda k: planted(every[k]),
    )


def test_positions_and_calibration(fresh, wide, tokenizer, windows):
    every = [score_windows(LanguageModel(params, wide, tokenizer), windows) for params in fresh]

    def blamed(scores: Scores) -> bool:
        answer = calibration(scores.confidence_BT, scores.correct_BT)
        return "not shown" not in answer.sentence() and "too small" not in answer.sentence()

    def exact(k: int, power: float) -> Scores:
        draw = np.random.default_rng(k)
        truth_BT = draw.random((B, 100))
        return Scores(truth_BT, truth_BT**power, draw.random((B, 100)) < truth_BT)

    fall_T = np.linspace(0, 0.5, T)
    count(
        "loss by position: fresh parameters; a fall of 0.5 nats planted",
        lambda k: shown(loss_by_position(every[k].nats_BT).gain, NEGLIGIBLE),
        lambda k: loss_by_position(every[k].nats_BT - fall_T).gain.low > NEGLIGIBLE,
    )
    count(
        "calibration: fresh parameters; roots of exact probabilities",
        lambda k: blamed(every[k]),
        lambda k: blamed(exact(k, 0.5)),
    )
    count(
        "calibration: exact probabilities; squares of them",
        lambda k: blamed(exact(k, 1.0)),
        lambda k: blamed(exact(k, 2.0)),
    )


def test_generation(fresh, wide, tokenizer, tokens):
    """Two samples of one text against each other; planted are circles."""

    def texts(k: int) -> Iterator[np.ndarray]:
        starts = np.random.default_rng(k).choice(len(tokens) - T, 16, replace=False)
        rows = tokens[starts[:, None] + np.arange(T)]
        return iter((rows[:8], rows[8:]))

    def measured(k: int, circles: bool) -> tuple[Measures, Estimate]:
        own, real = texts(k)
        own = np.tile(own[:, :4], 8)[:, :T] if circles else own
        answer = explain_generation(
            LanguageModel(fresh[k], wide, tokenizer), own, real, suffix_array(tokens[:800])
        )
        return answer.difference, answer.hangs

    def claims(k: int) -> bool:
        difference, hangs = measured(k, False)
        margins = (0.0, 0.0, 0.0, NEGLIGIBLE)
        # Coherence is compared only where there is any.
        together = shown(hangs, NEGLIGIBLE)
        return together or any(shown(e, m) for e, m in zip(difference[:3], margins[:3], strict=True))

    count(
        "generation: the same texts as own and as real; circles planted",
        claims,
        lambda k: measured(k, True)[0].repetition.low > 0,
    )


def test_learning(windows, tokenizer, tokens):
    counts_V = token_counts(tokens, tokenizer.vocab_size)

    def fell(k: int, by: float) -> Estimate:
        draw = np.random.default_rng(k)
        before_BT = draw.normal(5, 1, (B, 1)) + draw.normal(0, 0.2, (B, T))
        after_BT = before_BT - by + draw.normal(0, 0.2, (B, T))
        fell_G = measure_learning([(0, before_BT), (9, after_BT)], tokenizer, windows, counts_V).fell_G
        return Estimate(*(x[~np.isnan(x)] for x in fell_G))

    count(
        "learning: noise between checkpoints; a fall of 0.3 nats planted",
        lambda k: any(
            shown(Estimate(*e), NEGLIGIBLE) for e in zip(*(x[[0, -1]] for x in fell(k, 0)), strict=True)
        ),
        lambda k: all(fell(k, 0.3).low[[0, -1]] > NEGLIGIBLE),
    )


def test_order_of_merges_and_of_translations():
    count(
        "merges: counts in any order; falling counts with noise",
        lambda k: shown(monotone(np.random.default_rng(k).permutation(300))),
        lambda k: shown(monotone(np.arange(300, 0, -1) + np.random.default_rng(k).normal(0, 50, 300))),
    )

    def moves(weights_TS: np.ndarray) -> bool:
        order, p = monotony(weights_TS)
        return p <= 0.05 and abs(order) >= 0.5 and abs(distance_moved(weights_TS)) >= 0.25

    def noise(k: int) -> np.ndarray:
        return np.random.default_rng(k).dirichlet(np.ones(15), 12)

    near_TS = np.exp(-40 * np.square(np.arange(12)[:, None] / 12 - np.arange(15)[None] / 15))
    count(
        "alignment: random attention; a diagonal planted in it",
        lambda k: moves(noise(k)),
        lambda k: moves(noise(k) + near_TS),
    )


def test_sources(tokenizer):
    """Every draw is another text of the same language; planted is a span of 8 tokens of the training text."""
    pieces = [i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i).strip()][:60]

    def language(k: int, size: int) -> np.ndarray:
        """Return text in which frequent phrases recur, as in a language."""
        draw, shared = np.random.default_rng(k), np.random.default_rng(0)
        phrases = [shared.choice(pieces, shared.integers(1, 9)) for _ in range(200)]
        chosen = draw.zipf(1.3, size) % len(phrases)
        return np.concatenate([phrases[p] for p in chosen])[:size]

    train_N = language(1, 20_000)
    train = suffix_array(train_N)

    def claimed(k: int, planted: bool) -> bool:
        text_T = language(1000 + k, 60)
        if planted:
            start = np.random.default_rng(k).integers(0, len(train_N) - 30)
            text_T[10:40] = train_N[start : start + 30]
        answer = explain_sources(text_T, train, language(2000 + k, 12_000), tokenizer)
        span = answer.longest()
        longer = span is not None and span.p_value <= 0.025
        return longer or (not planted and answer.shorter_p_value <= 0.025)

    count(
        "sources: another text of the language; 30 tokens of the training text planted",
        lambda k: claimed(k, False),
        lambda k: claimed(k, True),
    )


def test_grammar(fresh, wide, tokenizer, tokens):
    """Pairs whose sentences differ in a word, in order, or in length, which untrained models prefer or not."""
    draw = np.random.default_rng(0)
    nouns, places = ["king", "queen", "daughter", "house", "servant"], ["sea", "mountain", "river", "city"]

    def pair(kind: str) -> tuple[str, str]:
        noun, other = draw.choice(nouns, 2, replace=False)
        place = draw.choice(places)
        good = f"The {noun} of the {place} went to the {other}"
        bad = {
            "word": f"The {noun} of the {place} said to the {other}",
            "order": f"The {noun} the of {place} went the to {other}",
            "length": f"The {noun} of the {place} went and went to the {other}",
            "choice": f"The {other} of the {place} went to the {noun}",
        }
        return good, bad[kind]

    questions = [
        Question(pair(kind), 0, kind) for kind in ("word", "order", "length", "choice") for _ in range(60)
    ]
    right_KN = np.stack([right_answers(wide, tokenizer, questions, params) for params in fresh])
    frequencies_N = frequency_answers(tokenizer, questions, token_counts(tokens, tokenizer.vocab_size), 128)
    kinds, texts = [question.group for question in questions], [question.texts for question in questions]
    words = count_pair_words(texts, tokenizer.decode(tokens))

    def born(k: int, right_N: np.ndarray) -> int:
        others = right_KN[(k + 1 + np.arange(10)) % DRAWS]
        grammar = measure_grammar(np.array([9]), right_N[None], others, frequencies_N, kinds, kinds, words)
        return len(grammar.learned())

    def with_knowledge(k: int) -> np.ndarray:
        return right_KN[k] | (np.random.default_rng(k).random(len(questions)) < 0.9)

    count(
        "grammar: fresh parameters; nine of ten pairs known",
        lambda k: born(k, right_KN[k]) > 0,
        lambda k: born(k, with_knowledge(k)) > 0,
    )


def test_memorization(fresh, wide, tokenizer, tokens):
    counts_V = token_counts(tokens, tokenizer.vocab_size)

    def measured(k: int, by: float) -> Memorization:
        half = len(tokens) // 2
        lm = LanguageModel(fresh[k], wide, tokenizer)
        answer = explain_memorization(lm, tokens[:half], tokens[half:], counts_V)
        return replace(answer, gap=Estimate(*(x + by for x in answer.gap)))

    count(
        "memorization: fresh parameters; a difference of 0.3 nats planted",
        lambda k: shown(measured(k, 0).gap, NEGLIGIBLE) or measured(k, 0).learned.low > NEGLIGIBLE,
        lambda k: measured(k, 0.3).gap.low > NEGLIGIBLE,
    )
