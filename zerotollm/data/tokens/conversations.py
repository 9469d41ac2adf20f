"""Conversations as tokens: the prompt that a model answers, trimmed to a context."""

from collections.abc import Sequence

import numpy as np

from zerotollm.data.sources.conversations import Message, Part, chat_parts
from zerotollm.data.tokens.sentencepiece import AnyTokenizer


def encode_parts(tokenizer: AnyTokenizer, parts: Sequence[Part]) -> np.ndarray:
    """Return bos and the ids of all parts, int32 [N]. With `chat_parts(messages, answer=True)` it is a prompt."""
    ids = [np.array([tokenizer.bos_id], np.int32)]
    for part, encoded in zip(parts, tokenizer.encode_batch([part.text for part in parts]), strict=True):
        ids += [encoded, np.array([tokenizer.stop_id], np.int32)] if part.ends else [encoded]
    return np.concatenate(ids).astype(np.int32)


def trim_conversation(
    tokenizer: AnyTokenizer, messages: Sequence[Message], max_tokens: int
) -> tuple[np.ndarray, Sequence[Message]]:
    """Return a conversation's prompt and messages, without the oldest turns if it exceeds `max_tokens`.

    System messages and the last message always stay, however long they are.
    """
    system = [message for message in messages if message["role"] == "system"]
    turns = [message for message in messages if message["role"] != "system"]
    while True:
        ids_N = encode_parts(tokenizer, chat_parts([*system, *turns], answer=True))
        if len(ids_N) <= max_tokens or len(turns) < 2:
            return ids_N, [*system, *turns]
        # An answer is removed together with its question.
        turns = turns[2:] if len(turns) > 2 and turns[1]["role"] == "assistant" else turns[1:]
