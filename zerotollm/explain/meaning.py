"""How is meaning determined? Are vectors closer when tokens are used in the same sentence?

Two things could draw vectors together: that two tokens stand in the same sentences, and that they stand in the same
contexts, beside the same neighbours, whether or not they ever meet (the distributional hypothesis: Harris 1954). Both
are counted on the training text, and compared with the cosine of the embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from zerotollm.data.tokens.sentencepiece import Tokenizer
from zerotollm.explain.answer import Answer
from zerotollm.explain.statistics import (
    CONFIDENCE,
    DRAWS,
    Estimate,
    mantel,
    pair_correlation,
    pair_correlations,
    pair_ranks,
    partial_correlation,
)
from zerotollm.explain.words import KINDS, kinds_of, sentence_ends, shown, token_counts
from zerotollm.significance import holm

TOKENS = 400
"""The most frequent words whose pairs are compared."""
CONTEXTS = 1000
"""The most frequent tokens that count as neighbours."""


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
    """What the cosine of embeddings goes with, at Y checkpoints. Spearman's correlations over all pairs of N tokens."""

    steps_Y: np.ndarray
    pieces: tuple[str, ...]
    together: tuple[Estimate, ...]
    """with standing in the same sentence (PMI), a checkpoint each; bootstrap intervals over tokens"""
    contexts: tuple[Estimate, ...]
    """with having the same neighbours"""
    difference: tuple[Estimate, ...]
    """contexts - together"""
    together_alone_Y: np.ndarray
    """with the sentence where contexts are held fixed (partial correlation)"""
    contexts_alone_Y: np.ndarray
    p_together_Y: np.ndarray
    """Mantel's permutation test"""
    p_contexts_Y: np.ndarray
    cosine_NN: np.ndarray
    """of the last checkpoint"""
    usage: Usage

    def sentence(self) -> str:
        together, contexts, difference = self.together[-1], self.contexts[-1], self.difference[-1]
        numbers = (
            f"over {len(self.pieces):,} frequent words the cosine of two embeddings goes with their shared contexts by "
            f"{contexts} and with standing in the same sentence by {together} (Spearman)"
        )
        p_values = holm([float(self.p_contexts_Y[-1]), float(self.p_together_Y[-1])])
        of_contexts, of_sentences = (
            p <= 1 - CONFIDENCE and e.low > 0 for p, e in zip(p_values, (contexts, together), strict=True)
        )
        if not (of_contexts or of_sentences):
            verdict = "neither is shown to be more than chance"
        elif of_contexts and difference.low > 0:
            verdict = "what counts is shared contexts, more than meeting in a sentence"
        elif of_sentences and difference.high < 0:
            verdict = "what counts is meeting in a sentence, more than shared contexts"
        else:
            verdict = "which of the two counts more is not shown"
        start = ""
        if len(self.steps_Y) > 1:
            then = f"{self.contexts[0].value:.2f} and {self.together[0].value:.2f}"
            start = f" At step {self.steps_Y[0]} these were {then}."
        return f"At step {self.steps_Y[-1]}, {numbers}: {verdict}.{start}"


def count_usage(tokens_N: np.ndarray, tokenizer: Tokenizer, count: int = TOKENS) -> Usage:
    """Sentences and neighbours of the most frequent words of a text. Words are tokens that begin one; where a
    tokenizer has fewer than 20 such, any token with letters."""
    from scipy.sparse import csr_matrix

    tokens_N = np.asarray(tokens_N)
    V = tokenizer.vocab_size
    counts_V, kinds_V = token_counts(tokens_N, V), kinds_of(tokenizer)
    for wanted in (("word",), ("word", "word part")):
        is_word_V = np.isin(kinds_V, [KINDS.index(kind) for kind in wanted]) & (counts_V >= 5)
        if is_word_V.sum() >= 20:
            break
    order_V = np.argsort(-counts_V, kind="stable")
    ids_N = order_V[is_word_V[order_V]][:count]
    row_V = np.full(V, -1)
    row_V[ids_N] = np.arange(len(ids_N))

    sentence_N = np.cumsum(sentence_ends(tokenizer)[tokens_N])
    row_N = row_V[tokens_N]
    here = row_N >= 0
    sentences = int(sentence_N[-1]) + 1
    shape = (sentences, len(ids_N))
    present = csr_matrix((np.ones(here.sum(), np.float32), (sentence_N[here], row_N[here])), shape)
    present.data[:] = 1  # twice in a sentence is once
    both_NN = np.asarray((present.T @ present).todense(), np.float64)
    single_N = both_NN.diagonal()
    expected_NN = np.outer(single_N, single_N) / sentences
    together_NN = np.log((both_NN + 0.5) / (expected_NN + 0.5))

    column_V = np.full(V, -1)
    common = order_V[: min(CONTEXTS, V)]
    column_V[common] = np.arange(len(common))
    sides = []
    for near, own in ((tokens_N[:-1], tokens_N[1:]), (tokens_N[1:], tokens_N[:-1])):
        r, c = row_V[own], column_V[near]
        kept = (r >= 0) & (c >= 0)
        counted = csr_matrix((np.ones(kept.sum()), (r[kept], c[kept])), (len(ids_N), len(common)))
        sides.append(_positive_pmi(np.asarray(counted.todense(), np.float64)))
    profile_NC = np.concatenate(sides, axis=1)
    return Usage(
        ids_N, tuple(shown(tokenizer, i) for i in ids_N), together_NN, cosine_matrix(profile_NC), sentences
    )


def _positive_pmi(counts_NC: np.ndarray) -> np.ndarray:
    total = max(counts_NC.sum(), 1)
    expected_NC = counts_NC.sum(1, keepdims=True) * counts_NC.sum(0, keepdims=True) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.maximum(np.nan_to_num(np.log(counts_NC / expected_NC), neginf=0.0), 0.0)


def cosine_matrix(x_ND: np.ndarray) -> np.ndarray:
    """Cosine of every pair of rows, (N, N)."""
    x_ND = np.asarray(x_ND, np.float64)
    x_ND = x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)
    return x_ND @ x_ND.T


def explain_meaning(
    embeddings: Sequence[tuple[int, np.ndarray]], usage: Usage, draws: int = DRAWS, seed: int = 0
) -> Meaning:
    """Correlates cosines with usage for every checkpoint, (step, (V, D)), the oldest first.

    Means are taken away from embeddings before cosines are. Correlations are of ranks (Spearman 1904), intervals
    from samples of tokens (of ranks as they stand), p-values from shuffled tokens (Mantel 1967).
    """
    together_NN, contexts_NN = pair_ranks(usage.together_NN), pair_ranks(usage.contexts_NN)
    N = len(together_NN)
    together, contexts, difference, rows = [], [], [], []
    # The first row is the tokens as they are, the others samples with replacement (the bootstrap: Efron 1979).
    random = np.random.default_rng(seed)
    weights_XN = np.append(np.ones((1, N)), random.multinomial(N, np.full(N, 1 / N), size=draws), axis=0)
    between = pair_correlation(together_NN, contexts_NN)
    for _, embedding_VD in embeddings:
        x_ND = np.asarray(embedding_VD, np.float64)[usage.ids_N]
        similar_NN = cosine_matrix(x_ND - x_ND.mean(0, keepdims=True))
        rank_NN = pair_ranks(similar_NN)

        drawn = np.stack(
            [pair_correlations(rank_NN, x_NN, weights_XN) for x_NN in (together_NN, contexts_NN)]
        )
        drawn = np.append(drawn, drawn[1:] - drawn[:1], axis=0)
        whole, (low, high) = drawn[:, 0], np.quantile(drawn[:, 1:], [0.025, 0.975], axis=1)
        for answers, i in ((together, 0), (contexts, 1), (difference, 2)):
            answers.append(Estimate(float(whole[i]), float(low[i]), float(high[i])))
        rows.append(
            (
                partial_correlation(whole[0], whole[1], between),
                partial_correlation(whole[1], whole[0], between),
                mantel(rank_NN, together_NN, draws, seed),
                mantel(rank_NN, contexts_NN, draws, seed + 1),
            )
        )
    columns = np.array(rows).T
    return Meaning(
        np.array([step for step, _ in embeddings]),
        usage.pieces,
        tuple(together),
        tuple(contexts),
        tuple(difference),
        *columns,
        cosine_NN=similar_NN,
        usage=usage,
    )
