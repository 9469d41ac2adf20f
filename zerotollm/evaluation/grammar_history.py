"""Minimal pairs at the checkpoints of a run, beside models without training and token frequencies."""

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np

from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.decoding.text import encode_prompt
from zerotollm.evaluation.likelihood import Question, likeliest, question_log_probabilities
from zerotollm.explain.explanation import COUNTED_TOKENS
from zerotollm.explain.grammar import Grammar, count_pair_words, measure_grammar
from zerotollm.explain.words import token_counts
from zerotollm.model.build import Params
from zerotollm.model.config import TransformerConfig

PAIRS = 50
"""Questions of each group that are scored, evenly spread: of BLiMP's 67 paradigms 3,350 of 67,000 pairs."""


def grammar_history(
    checkpoints: Iterable[tuple[int, Params]],
    fresh: Iterable[Params],
    model: TransformerConfig,
    tokenizer: AnyTokenizer,
    questions: Sequence[Question],
    train_N: np.ndarray,
) -> Grammar:
    """Return when each phenomenon was learned. Checkpoints are (step, params), the oldest first.

    At most `PAIRS` questions of a group are scored. `fresh` are parameters without training, `train_N` tokens of the
    training text, of which the start is counted. Raises UsageError where a text is longer than the context.
    """
    questions, train_N = evenly(questions, PAIRS), train_N[:COUNTED_TOKENS]
    score = partial(right_answers, model, tokenizer, questions)
    steps, right = zip(*((step, score(params)) for step, params in checkpoints), strict=True)
    paradigms = [question.group or "all" for question in questions]
    return measure_grammar(
        np.array(steps),
        np.stack(right),
        np.stack([score(params) for params in fresh]),
        frequency_answers(
            tokenizer, questions, token_counts(train_N, tokenizer.vocab_size), model.max_length
        ),
        [question.phenomenon or paradigm for question, paradigm in zip(questions, paradigms, strict=True)],
        paradigms,
        count_pair_words([_right_and_wrong(question) for question in questions], tokenizer.decode(train_N)),
    )


def evenly(questions: Sequence[Question], most: int) -> list[Question]:
    """Return at most `most` questions of each group, evenly spread over it."""
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.group, []).append(question)
    return [
        group[i]
        for group in groups.values()
        for i in np.linspace(0, len(group) - 1, min(most, len(group))).astype(int)
    ]


def right_answers(
    model: TransformerConfig, tokenizer: AnyTokenizer, questions: Sequence[Question], params: Params
) -> np.ndarray:
    """Return whether the right text of each question is the likeliest, (N,) bool."""
    log_p = question_log_probabilities(params, model, tokenizer, questions)
    return np.array([likeliest(p) == q.right for p, q in zip(log_p, questions, strict=True)])


def frequency_answers(
    tokenizer: AnyTokenizer, questions: Sequence[Question], counts_V: np.ndarray, max_length: int
) -> np.ndarray:
    """Return 1 where the right text is the likeliest by the frequencies of its tokens, 1 / n for a tie of n, else 0.

    One is added to each count (Laplace).
    """
    log_p_V = np.log1p(counts_V) - np.log(counts_V.sum() + len(counts_V))
    answers = []
    for question in questions:
        ids = [encode_prompt(tokenizer, text, max_length + 1)[1:] for text in question.texts]
        # Sorted, so that the same tokens in another order have the same sum to the last bit.
        scores = np.array([np.sort(log_p_V[ids_N]).sum() for ids_N in ids])
        best = scores == scores.max()
        answers.append(best[question.right] / best.sum())
    return np.array(answers)


def _right_and_wrong(question: Question) -> tuple[str, str]:
    """Return the right text, and the first of the others."""
    wrong = next(text for number, text in enumerate(question.texts) if number != question.right)
    return question.texts[question.right], wrong
