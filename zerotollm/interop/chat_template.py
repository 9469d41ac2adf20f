"""Our form of a conversation as a Jinja template, for programs that speak to an exported model."""

import json

from zerotollm.data.sources.conversations import ROLES
from zerotollm.data.tokens.sentencepiece import SPECIAL_PIECES, AnyTokenizer, Tokenizer

ESCAPE = "\ufdd0"
"""Follows the "<" of a special piece that a message spells. Our tokenizer.json removes it, so that the piece is text.
Unicode reserves this character for internal use."""
SPELLED_PIECE = f"<{ESCAPE}(?=(?:{'|'.join(piece[1:-1] for piece in SPECIAL_PIECES.values())})>)"
"""Regular expression for what the tokenizer replaces by "<"."""
TEMPLATE = """\
{%- set roles = ROLES -%}
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] not in roles -%}
{{- raise_exception('the roles are system, user and assistant') -}}
{%- endif -%}
{%- set text = message['content'] | trim -%}
{%- if text or message['role'] != 'system' -%}
{{- roles[message['role']] + ' ' + TEXT + eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- roles['assistant'] -}}
{%- endif -%}
"""


def chat_template(tokenizer: AnyTokenizer, *, escaped: bool) -> str:
    """Return the template that writes conversations as `chat_parts` does.

    `escaped`: the program reads our tokenizer.json, which keeps special pieces in messages apart from real ones.
    """
    text = "text"
    if escaped and isinstance(tokenizer, Tokenizer):
        for piece in SPECIAL_PIECES.values():
            text += f" | replace('{piece}', '<\\ufdd0{piece[1:]}')"
        text = f"({text})"
    return TEMPLATE.replace("ROLES", json.dumps(ROLES)).replace("TEXT", text)


def expresses_training(tokenizer: AnyTokenizer) -> bool:
    """Return whether a whole text has the ids of its parts, which are encoded one by one in training."""
    parts = [tokenizer.encode("Assistant:"), tokenizer.encode(" Hello there.")]
    return [token_id for ids in parts for token_id in ids] == tokenizer.encode(
        "Assistant: Hello there."
    ).tolist()
