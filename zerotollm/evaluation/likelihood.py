"""Likelihood of texts under a decoder, and accuracy on questions: minimal pairs and gaps to fill (cloze).

Minimal pairs follow BLiMP (arXiv:1912.00582, section 3): the model is right where the good text of a pair is likelier.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zerotollm.data.sources.lines import check_encodable, read_lines, read_records
from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.decoding.text import encode_prompts
from zerotollm.errors import DivergedError, UsageError
from zerotollm.evaluation.blimp import phenomenon
from zerotollm.experiment import Experiment, continues
from zerotollm.model.build import Params, apply_net, build_net
from zerotollm.model.config import TransformerConfig, round_up
from zerotollm.types import Json

WIDTH_MULTIPLE = 64
"""Long texts are padded to a multiple of this, so that few shapes are compiled."""
SHORT_MULTIPLE = 4
"""Texts of at most `WIDTH_MULTIPLE` tokens are padded to a multiple of this: sentences would be mostly padding."""
ROWS = 64
"""Texts of questions that are scored at once."""
GAP = re.compile("_{3,}")
"""A gap to fill: three underscores or more."""
IN_FLIGHT = 2
"""Batches given to the device before the first result is read."""
Z = 1.959964
"""Standard deviations of a 95 % interval."""


def require_language_model(experiment: Experiment, path: Path) -> None:
    """Raise UsageError for the experiment of a run, at `path`, whose model does not predict every next token."""
    if not continues(experiment):
        raise UsageError(f"{path} holds no language model that continues a text: see generate")


class Likelihood(NamedTuple):
    """Likelihood of the scored tokens of a text."""

    log_p: float
    """Their log-probability in nats, given the tokens before them."""
    greedy: bool
    """Whether each of them is the likeliest token at its position."""


def padded(rows: Sequence[np.ndarray], num_rows: int, width: int, pad_id: int = 0) -> np.ndarray:
    """Return rows of token ids as one int32 array [num_rows, width]."""
    ids_BT = np.full((num_rows, width), pad_id, np.int32)
    for row, ids_N in zip(ids_BT, rows, strict=False):
        row[: len(ids_N)] = ids_N
    return ids_BT


@partial(jax.jit, static_argnames=("model", "num_tokens"))
def _score(
    params: Params,
    inputs_BT: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    model: TransformerConfig,
    num_tokens: int,
) -> tuple[jax.Array, jax.Array]:
    logits_BTV = apply_net(build_net(model), params, {"inputs": inputs_BT}).logits()
    real_V = jnp.arange(logits_BTV.shape[-1]) < num_tokens
    logits_BTV = jnp.where(real_V[None, None], logits_BTV, -jnp.inf)
    target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    log_p_BT = target_BT - jax.nn.logsumexp(logits_BTV, axis=-1)
    missed_BT = (jnp.argmax(logits_BTV, axis=-1) != targets_BT) & (weights_BT > 0)
    return jnp.sum(log_p_BT * weights_BT, axis=1), ~jnp.any(missed_BT, axis=1)


def log_likelihoods(
    params: Params,
    model: TransformerConfig,
    texts: Sequence[tuple[np.ndarray, int]],
    *,
    num_tokens: int,
    rows: int = 16,
    done: Callable[[int], None] = lambda texts: None,
) -> list[Likelihood]:
    """Return the likelihood of each text, which is (ids, number of tokens at its end to score).

    A text has 2 to `model.max_length` + 1 ids, of which the first is never scored. Probabilities are over the
    `num_tokens` ids that are tokens. Texts of similar length are scored in batches of `rows`; `done` gets the number of
    scored texts. Raises DivergedError where a probability is not finite.
    """
    results: list[Likelihood] = [Likelihood(0.0, True)] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i][0]))
    most = round_up(model.max_length, WIDTH_MULTIPLE)
    waiting: deque[tuple[list[int], tuple[jax.Array, jax.Array]]] = deque()
    number = 0

    def read_oldest() -> None:
        nonlocal number
        group, scores = waiting.popleft()
        log_p_B, greedy_B = jax.device_get(scores)
        if not np.isfinite(log_p_B[: len(group)]).all():
            raise DivergedError("the model's probabilities are not finite: its training has diverged")
        for row, i in enumerate(group):
            results[i] = Likelihood(float(log_p_B[row]), bool(greedy_B[row]))
        number += len(group)
        done(number)

    for start in range(0, len(order), rows):
        group = order[start : start + rows]
        longest = len(texts[group[-1]][0]) - 1
        width = min(most, round_up(longest, WIDTH_MULTIPLE if longest > WIDTH_MULTIPLE else SHORT_MULTIPLE))
        inputs_BT = padded([texts[i][0][:-1] for i in group], rows, width)
        targets_BT = padded([texts[i][0][1:] for i in group], rows, width)
        weights_BT = np.zeros((rows, width), np.float32)
        for row, (ids_N, scored) in enumerate(texts[i] for i in group):
            weights_BT[row, len(ids_N) - 1 - scored : len(ids_N) - 1] = 1
        scores = _score(params, inputs_BT, targets_BT, weights_BT, model=model, num_tokens=num_tokens)
        waiting.append((group, scores))
        if len(waiting) > IN_FLIGHT:
            read_oldest()
    while waiting:
        read_oldest()
    return results


class Question(NamedTuple):
    """Texts of which one is right."""

    texts: tuple[str, ...]
    right: int
    group: str
    """Accuracy is reported for each group too."""
    phenomenon: str = ""
    """BLiMP's "linguistics_term", by which a folder of files is summarized"""


def read_questions(path: Path, lines: Iterator[str]) -> list[Question]:
    """Return the questions of a jsonl file.

    A line is {"good", "bad"} or {"text", "choices", "answer"}, and may have a "group". BLiMP's names "sentence_good",
    "sentence_bad" and "UID" are accepted. The gap in "text" is `___` or longer, and "answer" is one of "choices" or its
    index. Raises UsageError, naming file and line, for any other line.
    """
    questions = []
    for place, record in read_records(path, lines):
        try:
            question = _question(record)
        except UsageError as error:
            raise UsageError(f"{place}: {error}") from None
        for text in question.texts:
            check_encodable(place, text)
        questions.append(question)
    if not questions:
        raise UsageError(f"{path} holds no question")
    return questions


def read_question_files(path: Path) -> list[Question]:
    """Return the questions of a .jsonl, or of all in a folder; without a group, a question has its file's name."""
    if path.is_file():
        return read_questions(path, read_lines(path))
    files = sorted(path.rglob("*.jsonl"))
    if not files:
        raise UsageError(f"{path} is no file, and no folder of .jsonl files: give --judge one of these")
    return [
        question._replace(group=question.group or file.stem)
        for file in files
        for question in read_questions(file, read_lines(file))
    ]


def question_log_probabilities(
    params: Params,
    model: TransformerConfig,
    tokenizer: AnyTokenizer,
    questions: Sequence[Question],
    done: Callable[[int, int], None] = lambda texts, of: None,
) -> list[list[float]]:
    """Return the log-probability of each text of each question. Equal texts are scored once.

    `done` gets the number of scored texts, and that of all.
    """
    texts: dict[str, None] = {}
    for question in questions:
        texts |= dict.fromkeys(question.texts)
    ids = encode_prompts(tokenizer, list(texts), model.max_length + 1)
    scores = log_likelihoods(
        params,
        model,
        [(ids_N, len(ids_N) - 1) for ids_N in ids],
        num_tokens=tokenizer.vocab_size,
        rows=ROWS,
        done=lambda n: done(n, len(ids)),
    )
    log_p = {text: score.log_p for text, score in zip(texts, scores, strict=True)}
    return [[log_p[text] for text in question.texts] for question in questions]


def _question(record: Json) -> Question:
    group = str(record.get("group", record.get("UID", "")))
    if group == "all":
        raise UsageError('"group" is "all", the name of all questions together: choose another')
    good, bad = (record.get(f"sentence_{name}", record.get(name)) for name in ("good", "bad"))
    if good is not None or bad is not None:
        if not (isinstance(good, str) and isinstance(bad, str) and good and bad):
            raise UsageError("good and bad must be two texts")
        return Question((good, bad), 0, group, phenomenon(str(record.get("linguistics_term", ""))))
    text, choices, answer = (record.get(name) for name in ("text", "choices", "answer"))
    if not isinstance(text, str) or len(GAP.findall(text)) != 1:
        raise UsageError("it needs good and bad, or a text with one gap, ___, choices and an answer")
    if (
        not isinstance(choices, list)
        or not all(isinstance(choice, str) for choice in choices)
        or (not 2 <= len(choices) == len(set(choices)))
    ):
        raise UsageError("choices must be two or more different texts")
    right = choices.index(answer) if answer in choices else answer
    if type(right) is not int or not 0 <= right < len(choices):
        raise UsageError(f"answer is {answer!r}, and must be one of choices, or its index from 0")
    before, after = GAP.split(text)
    texts = tuple(before + choice + after for choice in choices)
    if not all(texts):
        raise UsageError("a text is empty with one of its choices in the gap")
    return Question(texts, right, group)


class Accuracy(NamedTuple):
    """Accuracy over questions."""

    questions: int
    right: int
    """Questions whose right text is the likeliest; a tie is wrong."""
    right_per_byte: int
    """The same by log-probability per byte, which does not favour short texts."""
    chance: float
    """Expected accuracy of guessing."""
    low: float
    """95 % interval of right / questions (Wilson 1927)."""
    high: float
    equal: int
    """Questions whose right text is also a wrong one, as in seven pairs of BLiMP: they count as wrong."""


def accuracy_by_group(questions: Sequence[Question], log_p: Sequence[Sequence[float]]) -> dict[str, Accuracy]:
    """Return the accuracy of each group, and of all questions as "all", from the log-probabilities of their texts."""
    groups: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        groups.setdefault(question.group, []).append(number)
    named = {group: numbers for group, numbers in sorted(groups.items()) if group and len(groups) > 1}
    return {
        group: _accuracy([questions[i] for i in numbers], [log_p[i] for i in numbers])
        for group, numbers in {**named, "all": range(len(questions))}.items()
    }


def _accuracy(questions: Sequence[Question], log_p: Sequence[Sequence[float]]) -> Accuracy:
    right = right_per_byte = equal = 0
    for question, scores in zip(questions, log_p, strict=True):
        if question.texts.count(question.texts[question.right]) > 1:  # equal texts may differ by rounding
            equal += 1
            continue
        per_byte = [score / len(text.encode()) for score, text in zip(scores, question.texts, strict=True)]
        right += likeliest(scores) == question.right
        right_per_byte += likeliest(per_byte) == question.right
    n = len(questions)
    share = right / n
    center, half = share + Z * Z / (2 * n), Z * (share * (1 - share) / n + Z * Z / (4 * n * n)) ** 0.5
    scale = 1 + Z * Z / n
    chance = sum(1 / len(question.texts) for question in questions) / n
    return Accuracy(n, right, right_per_byte, chance, (center - half) / scale, (center + half) / scale, equal)


def likeliest(scores: Sequence[float]) -> int:
    """Return the index of the highest score, -1 for a tie."""
    top = max(scores)
    return scores.index(top) if scores.count(top) == 1 else -1
