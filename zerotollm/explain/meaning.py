"""How is meaning determined? Are vectors closer when tokens are used in the same sentence?

Two kinds of use could make two embeddings similar. Tokens can stand in the same sentences. They can also have the same
neighbours, whether or not they ever meet (the distributional hypothesis: Harris 1954). Both are counted in the training
text and compared with the cosine of the embeddings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.explain.answer import Answer
from zerotollm.explain.estimates import (
    CONFIDENCE,
    DRAWS,
    Estimate,
    mantel,
    pair_correlations,
    pair_ranks,
    partial_correlation,
)
from zerotollm.explain.figures.marks import Axis, Line, Panel, said
from zerotollm.explain.words import KINDS, readable_token, sentence_ends, token_counts, token_kinds
from zerotollm.significance import holm

TOKENS = 400
"""Most frequent words whose pairs are compared."""
CONTEXTS = 1000
"""Most frequent tokens that count as neighbours."""
BINS = 20
"""Groups of pairs in the picture."""


class Usage(NamedTuple):
    """How N tokens are used in a text."""

    ids_N: np.ndarray
    pieces: tuple[str, ...]
    together_NN: np.ndarray
    """pointwise mutual information of standing in one sentence (Church and Hanks 1990), nats, half a count added"""
    contexts_NN: np.ndarray
    """cosine of two tokens' neighbours: positive PMI of the token left and right (Levy and Goldberg 2014)"""
    sentences: int


@dataclass(frozen=True)
class Meaning(Answer):
    """Spearman's correlations of embeddings' cosines with usage, over all pairs of N tokens, at Y checkpoints."""

    steps_Y: np.ndarray
    pieces: tuple[str, ...]
    together: tuple[Estimate[float], ...]
    """with standing in the same sentence (PMI), one per checkpoint; bootstrap intervals over tokens"""
    contexts: tuple[Estimate[float], ...]
    """with having the same neighbours"""
    difference: tuple[Estimate[float], ...]
    """contexts - together"""
    together_alone_Y: np.ndarray
    """with the same sentence, contexts held fixed (partial correlation)"""
    contexts_alone_Y: np.ndarray
    p_together_Y: np.ndarray
    """Mantel's permutation test"""
    p_contexts_Y: np.ndarray
    cosine_NN: np.ndarray
    """at the last checkpoint"""
    usage: Usage
    title = "How meaning is determined"

    def sentence(self) -> str:
        together, contexts, difference = self.together[-1], self.contexts[-1], self.difference[-1]
        p_values = holm([float(self.p_contexts_Y[-1]), float(self.p_together_Y[-1])])
        by_contexts, by_sentence = (
            p <= 1 - CONFIDENCE and e.low > 0 for p, e in zip(p_values, (contexts, together), strict=True)
        )
        if not (by_contexts or by_sentence):
            verdict = "neither is shown to be more than chance"
        elif by_contexts and difference.low > 0:
            verdict = "shared contexts count more than standing in the same sentence"
        elif by_sentence and difference.high < 0:
            verdict = "standing in the same sentence counts more than shared contexts"
        else:
            verdict = "which of the two counts more is not shown"
        first = ""
        if len(self.steps_Y) > 1:
            values = f"{self.contexts[0].value:.2f} and {self.together[0].value:.2f}"
            first = f" At step {self.steps_Y[0]} these were {values}."
        return (
            f"At step {self.steps_Y[-1]}, over {len(self.pieces):,} frequent words, the cosine of two embeddings "
            f"correlates with their shared contexts by {contexts} and with standing in the same sentence by {together} "
            f"(Spearman): {verdict}.{first}"
        )

    def panels(self) -> Iterator[Panel]:
        upper = np.triu_indices(len(self.pieces), 1)
        percent = (np.arange(BINS) + 0.5) * 100 / BINS
        over_steps, binned = [], []
        contexts = "shared contexts", self.contexts, self.p_contexts_Y, self.usage.contexts_NN
        together = "the same sentence", self.together, self.p_together_Y, self.usage.together_NN
        for color, (name, estimates, p_Y, usage_NN) in enumerate((contexts, together)):
            value, low, high = (np.array(x, float) for x in zip(*estimates, strict=True))
            texts = [str(e) for e in estimates]
            hover = said("step {:,}, {}: {} (p = {:.3f})", self.steps_Y, name, texts, p_Y)
            over_steps.append(Line(self.steps_Y, value, name, color, low, high, hover, dots=True))
            order = np.argsort(usage_NN[upper], kind="stable")
            mean = [cosine.mean() for cosine in np.array_split(self.cosine_NN[upper][order], BINS)]
            ends = percent - 50 / BINS, percent + 50 / BINS
            hover = said("{}, {:.0f} to {:.0f} %: cosine {:.3f}", name, *ends, mean)
            binned.append(Line(percent, mean, name, color, hover=hover, dots=True))
        axes = Axis("step"), Axis("Spearman's correlation")
        yield Panel("The cosine of two words goes with ...", tuple(over_steps), *axes)
        axes = Axis("pairs of words, from the least to the most, %"), Axis("mean cosine of their embeddings")
        yield Panel("Pairs by how much they share, last checkpoint", tuple(binned), *axes)


def count_usage(tokens_N: np.ndarray, tokenizer: AnyTokenizer) -> Usage:
    """Count sentences and neighbours of the most frequent words of a text.

    Words are tokens that begin a word; if there are fewer than 20, all tokens with letters.
    """
    tokens_N = np.asarray(tokens_N)
    V = tokenizer.vocab_size
    counts_V, kinds_V = token_counts(tokens_N, V), token_kinds(tokenizer)
    is_word_V = (kinds_V == KINDS.index("word")) & (counts_V >= 5)
    if is_word_V.sum() < 20:
        is_word_V |= (kinds_V == KINDS.index("word part")) & (counts_V >= 5)
    order_V = np.argsort(-counts_V, kind="stable")
    ids_N = order_V[is_word_V[order_V]][:TOKENS]
    row_V = np.full(V, -1)
    row_V[ids_N] = np.arange(len(ids_N))

    sentence_N = np.cumsum(sentence_ends(tokenizer)[tokens_N])
    row_N = row_V[tokens_N]
    counted_N = row_N >= 0
    sentences = int(sentence_N[-1]) + 1
    places = sentence_N[counted_N], row_N[counted_N]
    present = csr_matrix((np.ones(counted_N.sum(), np.float32), places), (sentences, len(ids_N)))
    present.data[:] = 1  # twice in a sentence counts once
    both_NN = np.asarray((present.T @ present).todense(), np.float64)
    single_N = both_NN.diagonal()
    expected_NN = np.outer(single_N, single_N) / sentences
    together_NN = np.log((both_NN + 0.5) / (expected_NN + 0.5))

    column_V = np.full(V, -1)
    common = order_V[: min(CONTEXTS, V)]
    column_V[common] = np.arange(len(common))
    sides = []
    for neighbours, words in ((tokens_N[:-1], tokens_N[1:]), (tokens_N[1:], tokens_N[:-1])):
        row_N, column_N = row_V[words], column_V[neighbours]
        place_N = (row_N * len(common) + column_N)[(row_N >= 0) & (column_N >= 0)]
        counts = np.bincount(place_N, minlength=len(ids_N) * len(common)).astype(np.float64)
        sides.append(_positive_pmi(counts.reshape(len(ids_N), len(common))))
    contexts_NN = cosine_matrix(np.concatenate(sides, axis=1))
    pieces = tuple(readable_token(tokenizer, i) for i in ids_N)
    return Usage(ids_N, pieces, together_NN, contexts_NN, sentences)


def _positive_pmi(counts_NC: np.ndarray) -> np.ndarray:
    total = max(counts_NC.sum(), 1)
    expected_NC = counts_NC.sum(1, keepdims=True) * counts_NC.sum(0, keepdims=True) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.maximum(np.nan_to_num(np.log(counts_NC / expected_NC), neginf=0.0), 0.0)


def cosine_matrix(x_ND: np.ndarray) -> np.ndarray:
    """Return the cosine of every pair of rows, (N, N)."""
    x_ND = np.asarray(x_ND, np.float64)
    x_ND = x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)
    return x_ND @ x_ND.T


def explain_meaning(tables: Sequence[tuple[int, np.ndarray]], usage: Usage, draws: int = DRAWS) -> Meaning:
    """Correlate cosines with usage; `tables` are the embeddings of every checkpoint, (step, (V, D)), the oldest first.

    Cosines are of embeddings minus their mean. Correlations are of ranks (Spearman 1904), intervals from bootstrap
    samples of tokens (Efron 1979), p-values from permutations of tokens (Mantel 1967).
    """
    together_NN, contexts_NN = pair_ranks(usage.together_NN), pair_ranks(usage.contexts_NN)
    N = len(together_NN)
    # The first row is the tokens themselves, the others are samples with replacement.
    samples_XN = np.random.default_rng(0).multinomial(N, np.full(N, 1 / N), size=draws)
    weights_XN = np.append(np.ones((1, N)), samples_XN, axis=0)
    between = float(pair_correlations(together_NN, contexts_NN, weights_XN[:1])[0])
    estimates: list[list[Estimate[float]]] = []
    rows, cosine_NN = [], np.zeros((N, N))
    for _, embedding_VD in tables:
        x_ND = np.asarray(embedding_VD, np.float64)[usage.ids_N]
        cosine_NN = cosine_matrix(x_ND - x_ND.mean(0, keepdims=True))
        rank_NN = pair_ranks(cosine_NN)
        both = (together_NN, contexts_NN)
        drawn_2X = np.stack([pair_correlations(rank_NN, x_NN, weights_XN) for x_NN in both])
        drawn_3X = np.append(drawn_2X, drawn_2X[1:] - drawn_2X[:1], axis=0)
        ends = np.quantile(drawn_3X[:, 1:], [0.025, 0.975], axis=1)
        estimates.append([Estimate(*map(float, three)) for three in zip(drawn_3X[:, 0], *ends, strict=True)])
        together, contexts = drawn_2X[:, 0]
        orders = (together, contexts), (contexts, together)
        alone = [partial_correlation(a, b, between) for a, b in orders]
        p_values = [mantel(rank_NN, x_NN, draws, seed) for seed, x_NN in enumerate(both)]
        rows.append([*alone, *p_values])
    steps_Y = np.array([step for step, _ in tables])
    together, contexts, difference = (tuple(column) for column in zip(*estimates, strict=True))
    alone_and_p = np.array(rows).T
    return Meaning(
        steps_Y, usage.pieces, together, contexts, difference, *alone_and_p, cosine_NN=cosine_NN, usage=usage
    )
