"""Conversations as tokens: the prompt that a model answers, trimmed to a context.

A model that was trained on conversations here reads them as `chat_parts` writes them, an imported model as its own chat
template does.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from zerotollm.data.sources.conversations import Message, Part, chat_parts
from zerotollm.data.tokens import render_chat_template
from zerotollm.data.tokens.pretrained import ChatTemplate, PretrainedTokenizer, unused_character
from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.errors import UsageError

RENDER_SECONDS = 30.0  # wall time; the process limits its CPU time itself
EncodeConversation = Callable[[Sequence[Message]], np.ndarray]
"""Messages -> the ids of the prompt that the model answers, int32 [N]; UsageError if it refuses the messages."""
GREETING: Sequence[Message] = ({"role": "user", "content": "Hello"},)
"""The shortest conversation, which every chat template can write."""


def conversation_encoder(tokenizer: AnyTokenizer, *, trained_here: bool) -> EncodeConversation:
    """Return how a model reads conversations. `trained_here`: it was trained on conversations by this package."""
    if not trained_here and isinstance(tokenizer, PretrainedTokenizer) and tokenizer.chat_template:
        return partial(_encode_by_template, tokenizer, tokenizer.chat_template)
    return lambda messages: encode_parts(tokenizer, chat_parts(messages, answer=True))


def _encode_by_template(
    tokenizer: PretrainedTokenizer, template: ChatTemplate, messages: Sequence[Message]
) -> np.ndarray:
    """Return the ids of a rendered conversation. A special token that a message spells stays text."""
    mark = unused_character([template.source, *(message["content"] for message in messages)])
    marked = [
        message
        | {"content": tokenizer.special_pattern.sub(lambda match: mark + match[0], message["content"])}
        for message in messages
        if message["role"] != "system" or message["content"].strip()
    ]
    return tokenizer.encode_with_special(render_conversation(template, marked), mark)


def render_conversation(template: ChatTemplate, messages: Sequence[Message]) -> str:
    """Return the text of a conversation, up to the next answer. Raises UsageError where the template fails.

    The template is a program by the author of the model: it runs in another process, in a sandbox, with limits.
    """
    variables = template.special_tokens | {"messages": list(messages), "add_generation_prompt": True}
    try:
        done = subprocess.run(
            [sys.executable, "-P", render_chat_template.__file__],
            input=json.dumps({"template": template.source, "variables": variables}),
            capture_output=True,
            text=True,
            timeout=RENDER_SECONDS,
        )
        answer = json.loads(done.stdout) if done.returncode == 0 else {}
    except (subprocess.TimeoutExpired, ValueError):
        answer = {}
    if "text" not in answer:
        limits = (
            f"it did not end within {render_chat_template.CPU_SECONDS} seconds and "
            f"{render_chat_template.MEMORY_BYTES // 2**20} MiB"
        )
        raise UsageError(
            f"the model's chat_template cannot write this conversation: {answer.get('error', limits)}"
        )
    return answer["text"]


def encode_parts(tokenizer: AnyTokenizer, parts: Sequence[Part]) -> np.ndarray:
    """Return bos and the ids of all parts, int32 [N]. With `chat_parts(messages, answer=True)` it is a prompt."""
    ids = [np.array([tokenizer.bos_id], np.int32)]
    for part, encoded in zip(parts, tokenizer.encode_batch([part.text for part in parts]), strict=True):
        ids += [encoded, np.array([tokenizer.stop_id], np.int32)] if part.ends else [encoded]
    return np.concatenate(ids).astype(np.int32)


def trim_conversation(
    encode: EncodeConversation, messages: Sequence[Message], max_tokens: int
) -> tuple[np.ndarray, Sequence[Message]]:
    """Return a conversation's prompt and messages, without the oldest turns if it exceeds `max_tokens`.

    System messages and the last message always stay, however long they are.
    """
    system = [message for message in messages if message["role"] == "system"]
    turns = [message for message in messages if message["role"] != "system"]
    while True:
        ids_N = encode([*system, *turns])
        if len(ids_N) <= max_tokens or len(turns) < 2:
            return ids_N, [*system, *turns]
        # An answer is removed together with its question.
        turns = turns[2:] if len(turns) > 2 and turns[1]["role"] == "assistant" else turns[1:]
