"""How likely a decoder holds given texts, and judgments that follow: minimal pairs, and gaps to fill (cloze).

Minimal pairs are those of BLiMP (arXiv:1912.00582, section 3): the model judges right where the good text of a pair is
the likelier one, whole texts compared.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zerotollm.data.sources.lines import check_encodable, read_records
from zerotollm.errors import DivergedError, UsageError
from zerotollm.model.build import build_net
from zerotollm.model.config import TransformerConfig, round_up

WIDTH_MULTIPLE = 64
"""Texts are padded to a multiple of this, so that few lengths are ever compiled."""
GAP = re.compile("_{3,}")
"""Three underscores or more: all of them are filled."""


class Likelihood(NamedTuple):
    """Of the scored tokens of a text."""

    log_p: float
    """log-probability of all of them, given what stands before, in nats"""
    greedy: bool
    """whether each is the likeliest at its place"""


@partial(jax.jit, static_argnames=("model", "num_tokens"))
def _score(params, inputs_BT, targets_BT, weights_BT, *, model, num_tokens):
    logits_BTV = build_net(model).apply({"params": params}, {"inputs": inputs_BT}).logits()
    real_V = jnp.arange(logits_BTV.shape[-1]) < num_tokens
    logits_BTV = jnp.where(real_V[None, None], logits_BTV, -jnp.inf)
    log_p_BTV = jax.nn.log_softmax(logits_BTV)
    log_p_BT = jnp.take_along_axis(log_p_BTV, targets_BT[..., None], axis=-1)[..., 0]
    missed_BT = (jnp.argmax(logits_BTV, axis=-1) != targets_BT) & (weights_BT > 0)
    return jnp.sum(log_p_BT * weights_BT, axis=1), ~jnp.any(missed_BT, axis=1)


def log_likelihoods(
    params: Any,
    model: TransformerConfig,
    texts: Sequence[tuple[np.ndarray, int]],
    *,
    num_tokens: int,
    rows: int = 16,
    done: Callable[[int], None] = lambda texts: None,
) -> list[Likelihood]:
    """Of each text, (ids, how many of the last are scored). Ids are 2 to `model.max_length` + 1, the first is given.

    Probabilities are over the `num_tokens` ids that are tokens. Texts of like length are scored `rows` at once;
    `done` is told how many have been. Raises DivergedError where one is not finite, as no such text is the likelier.
    """
    found: list[Likelihood] = [Likelihood(0.0, True)] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i][0]))
    most = round_up(model.max_length, WIDTH_MULTIPLE)
    for start in range(0, len(order), rows):
        group = order[start : start + rows]
        width = min(most, round_up(len(texts[group[-1]][0]), WIDTH_MULTIPLE))
        inputs_BT, targets_BT = (np.zeros((rows, width), np.int32) for _ in range(2))
        weights_BT = np.zeros((rows, width), np.float32)
        for row, i in enumerate(group):
            ids_N, scored = texts[i]
            T = len(ids_N) - 1
            inputs_BT[row, :T], targets_BT[row, :T] = ids_N[:-1], ids_N[1:]
            weights_BT[row, T - scored : T] = 1
        scores = _score(params, inputs_BT, targets_BT, weights_BT, model=model, num_tokens=num_tokens)
        log_p_B, greedy_B = jax.device_get(scores)
        if not np.isfinite(log_p_B[: len(group)]).all():
            raise DivergedError("the model's probabilities are no finite numbers: its training has diverged")
        for row, i in enumerate(group):
            found[i] = Likelihood(float(log_p_B[row]), bool(greedy_B[row]))
        done(start + len(group))
    return found


class Question(NamedTuple):
    """Texts of which one is right."""

    texts: tuple[str, ...]
    right: int
    group: str
    """what is asked: results are told of each group too"""


def read_questions(path: Path, lines: Iterator[str]) -> list[Question]:
    """Of jsonl, in which a line is {"good", "bad"} or {"text", "choices", "answer"}, and maybe "group".

    BLiMP's own names, "sentence_good", "sentence_bad" and "UID", will do. In "text" ___ or a longer row of _ is the
    gap, and "answer" one of "choices" or its number from 0. Raises UsageError, naming file and line, for whatever is
    neither.
    """
    found = []
    for place, record in read_records(path, lines):
        try:
            found.append(_question(record))
        except UsageError as error:
            raise UsageError(f"{place}: {error}") from None
        for text in found[-1].texts:
            check_encodable(place, text)
    if not found:
        raise UsageError(f"{path} holds no question")
    return found


def _question(record: dict[str, Any]) -> Question:
    group = str(record.get("group", record.get("UID", "")))
    if group == "all":
        raise UsageError('"group" is "all", which is the name of all questions together: give it another')
    good, bad = (record.get(f"sentence_{name}", record.get(name)) for name in ("good", "bad"))
    if good is not None or bad is not None:
        if not (isinstance(good, str) and isinstance(bad, str) and good and bad):
            raise UsageError("good and bad must be two texts")
        return Question((good, bad), 0, group)
    text, choices, answer = (record.get(name) for name in ("text", "choices", "answer"))
    if not isinstance(text, str) or len(GAP.findall(text)) != 1:
        raise UsageError("it needs good and bad, or a text with one gap, ___, choices and an answer")
    whole = isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
    if not whole or len(set(choices)) != len(choices) or len(choices) < 2:
        raise UsageError("choices must be two or more different texts")
    right = choices.index(answer) if answer in choices else answer
    if type(right) is not int or not 0 <= right < len(choices):
        raise UsageError(f"answer is {answer!r}, and must be one of choices, or its number from 0")
    before, after = GAP.split(text)
    return Question(tuple(before + choice + after for choice in choices), right, group)


class Judged(NamedTuple):
    """Accuracy over questions."""

    questions: int
    right: int
    """the likeliest text is the right one; equals are wrong"""
    right_per_byte: int
    """the same with log-probabilities per byte, which does not favour short texts"""
    chance: float
    """expected share of a guess"""
    low: float
    """95 % interval of right / questions (Wilson 1927)"""
    high: float
    equal: int
    """questions whose right text is a wrong one too, as in seven pairs of BLiMP: they count as wrong"""


def judge(questions: Sequence[Question], log_p: Sequence[Sequence[float]]) -> dict[str, Judged]:
    """By group, and of all questions as the group "all"; `log_p` are those of the texts of each question."""
    groups: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        groups.setdefault(question.group, []).append(number)
    named = {group: numbers for group, numbers in sorted(groups.items()) if group and len(groups) > 1}
    return {
        group: _judged([questions[i] for i in numbers], [log_p[i] for i in numbers])
        for group, numbers in {**named, "all": range(len(questions))}.items()
    }


def _judged(questions: Sequence[Question], log_p: Sequence[Sequence[float]]) -> Judged:
    right = right_per_byte = equal = 0
    for question, scores in zip(questions, log_p, strict=True):
        if question.texts.count(question.texts[question.right]) > 1:  # scores may differ by rounding
            equal += 1
            continue
        per_byte = [score / len(text.encode()) for score, text in zip(scores, question.texts, strict=True)]
        right += _best(scores) == question.right
        right_per_byte += _best(per_byte) == question.right
    n, z = len(questions), 1.959964
    share = right / n
    center, half = share + z * z / (2 * n), z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    scale = 1 + z * z / n
    chance = sum(1 / len(question.texts) for question in questions) / n
    return Judged(n, right, right_per_byte, chance, (center - half) / scale, (center + half) / scale, equal)


def _best(scores: Sequence[float]) -> int:
    """The number of the highest, -1 where there are several."""
    top = max(scores)
    return list(scores).index(top) if list(scores).count(top) == 1 else -1
