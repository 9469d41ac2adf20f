"""Conversations as tokens: what stands around a message, and which tokens a model learns to write.

A message is `Role: text` and then the token that ends a text (`stop_id` of the tokenizer), in training and in use:

    bos User: Hello! stop Assistant: Hi. What can I do for you? stop User: ...

The vocabulary of a model is kept when it is fine-tuned, so there are no new tokens for roles: they are plain text,
which every vocabulary can write. The token at a message's end is one that no text is ever encoded to, so that a text
in which someone writes "Assistant:" remains that person's; and it is the one at which generation stops anyway. Every
part is encoded on its own: a prompt has the same tokens as in training, whatever follows.

A system message that is empty or blank says nothing: training, `serve` and `chat` leave it out.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from zerotollm.data.sources.lines import check_encodable
from zerotollm.data.sources.pairs import as_sentence
from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.errors import UsageError

ROLES = {"system": "System:", "user": "User:", "assistant": "Assistant:"}
"""What stands before a message. Its text follows after a space, as a word does elsewhere."""


class Part(NamedTuple):
    """A piece of a text, encoded on its own."""

    text: str
    learned: bool = False
    """whether its tokens are to be predicted"""
    ends: bool = False
    """whether the token that ends a text follows, learned as it is"""


class Sentence(Part):
    """A part whose text is `as_sentence` of another one: the space before it is not a byte of that text."""


def chat_parts(messages: Sequence[dict[str, str]], *, answer: bool = False) -> tuple[Part, ...]:
    """The parts of a conversation of {"role", "content"}; answers alone are learned. With `answer`, also what stands
    before the next one: a model goes on there."""
    parts: list[Part] = []
    for message in messages:
        role, text = message["role"], as_sentence(message["content"])
        if role == "system" and not text.strip():
            continue
        if role == "assistant":
            parts += [Part(ROLES[role]), Sentence(text, learned=True, ends=True)]
        else:
            parts.append(Part(ROLES[role] + text, ends=True))
    return (*parts, Part(ROLES["assistant"])) if answer else tuple(parts)


def encode_parts(tokenizer: AnyTokenizer, parts: Sequence[Part]) -> np.ndarray:
    """bos and the ids of all parts, int32 [N]: with `chat_parts(messages, answer=True)` what a model answers to."""
    ids = [np.array([tokenizer.bos_id], np.int32)]
    for part, encoded in zip(parts, tokenizer.encode_batch([part.text for part in parts]), strict=True):
        ids += [encoded, np.array([tokenizer.stop_id], np.int32)] if part.ends else [encoded]
    return np.concatenate(ids).astype(np.int32)


def fit(
    tokenizer: AnyTokenizer, messages: Sequence[dict[str, str]], most: int
) -> tuple[np.ndarray, Sequence[dict[str, str]]]:
    """What a model answers to, and the messages in it: without the oldest turns where all have more than `most` tokens.

    What the system says stays, and so does the last message, however long the two are.
    """
    system, turns = (
        [m for m in messages if m["role"] == "system"],
        [m for m in messages if m["role"] != "system"],
    )
    while True:
        ids_N = encode_parts(tokenizer, chat_parts([*system, *turns], answer=True))
        if len(ids_N) <= most or len(turns) < 2:
            return ids_N, [*system, *turns]
        # An answer goes with what it answers.
        turns = turns[2:] if len(turns) > 2 and turns[1]["role"] == "assistant" else turns[1:]


def check_messages(place: str, messages: Any) -> list[dict[str, str]]:
    """The same messages. Raises UsageError, beginning with `place`, where they are no conversation with an answer."""
    if not isinstance(messages, list) or not messages:
        raise UsageError(f"{place}: messages must be a list of objects with role and content, and not empty")
    for number, message in enumerate(messages, 1):
        role, content = (message.get(f) if isinstance(message, dict) else None for f in ("role", "content"))
        if role not in tuple(ROLES):  # a list or an object has no hash
            raise UsageError(
                f"{place}: message {number} has the role {role!r}, and must have one of {', '.join(ROLES)}"
            )
        if not isinstance(content, str) or not (content.strip() or role == "system"):
            raise UsageError(f"{place}: message {number} has no content: a text that is not empty")
        check_encodable(f"{place}, message {number}", content)
    if all(message["role"] != "assistant" for message in messages):
        raise UsageError(f"{place}: no message is of the assistant, so there is nothing to learn from")
    return messages
