"""Conversations as parts of a text: the role before a message, and which parts a model learns to write.

A message is `Role: text` followed by the token that ends a text (`stop_id` of the tokenizer), in training and in use:

    bos User: Hello! stop Assistant: Hi. What can I do for you? stop User: ...

Fine-tuning keeps the vocabulary, so roles are plain text instead of new tokens. No text is ever encoded to the token
that ends a message, so "Assistant:" in a user's text stays text. Every part is encoded on its own: a prompt has the
same tokens as in training, whatever follows. A system message without text is left out.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from zerotollm.data.sources.lines import check_encodable
from zerotollm.data.sources.pairs import as_sentence
from zerotollm.errors import UsageError

ROLES = {"system": "System:", "user": "User:", "assistant": "Assistant:"}
"""role -> what stands before its messages; the text follows after a space"""

Message = dict[str, str]  # {"role", "content"}


class Part(NamedTuple):
    """A piece of a text, encoded on its own."""

    text: str
    learned: bool = False  # whether its tokens are targets
    ends: bool = False  # whether the token that ends a text follows; it is a target if the part is


class Sentence(Part):
    """A part whose text is `as_sentence(text)`: the space before it is not a byte of the original."""


def chat_parts(messages: Sequence[Message], *, answer: bool = False) -> tuple[Part, ...]:
    """Return the parts of a conversation; only answers are learned. `answer=True` appends the start of the next one."""
    parts: list[Part] = []
    for message in messages:
        role, text = message["role"], as_sentence(message["content"])
        if role == "assistant":
            parts += [Part(ROLES[role]), Sentence(text, learned=True, ends=True)]
        elif role != "system" or text.strip():
            parts.append(Part(ROLES[role] + text, ends=True))
    return (*parts, Part(ROLES["assistant"])) if answer else tuple(parts)


def check_messages(place: str, messages: Any) -> list[Message]:
    """Return the messages. Raises UsageError, naming `place`, unless they are a conversation with an answer."""
    if not isinstance(messages, list) or not messages:
        raise UsageError(f"{place}: messages must be a list of objects with role and content, and not empty")
    for number, message in enumerate(messages, 1):
        role, content = (message.get(f) if isinstance(message, dict) else None for f in ("role", "content"))
        if role not in tuple(ROLES):  # a tuple, because a list or an object has no hash
            message = f"{place}: message {number} has the role {role!r}; expected one of {', '.join(ROLES)}"
            raise UsageError(message)
        if not isinstance(content, str) or not (content.strip() or role == "system"):
            raise UsageError(f"{place}: message {number} has no content; expected a text that is not empty")
        check_encodable(f"{place}, message {number}", content)
    if all(message["role"] != "assistant" for message in messages):
        raise UsageError(f"{place}: no message is by the assistant, so there is nothing to learn")
    return messages
