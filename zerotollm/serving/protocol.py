"""OpenAI's protocol as JSON values: `/v1/completions` and `/v1/chat/completions`.

An unknown or unsupported field is refused by name, unless it does not affect the text. Requests may also set top_k and
min_p; defaults are the run's `sample`. A seed gives the same text as `generate --seed`. With `echo` and `logprobs` the
client's prompt tokens are scored, without a bos that the server adds. Log-probabilities are the model's own: tokens
that may not follow in valid UTF-8 have theirs too, but are not sampled. A greedy token need not be the likeliest.
"""

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from zerotollm.data.sources.conversations import ROLES
from zerotollm.data.tokens.conversations import EncodeConversation
from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.decoding.config import SamplingConfig
from zerotollm.decoding.continuous import ALTERNATIVES
from zerotollm.errors import UsageError
from zerotollm.serving.generation import GenerationRequest, Piece, Token
from zerotollm.suggest import did_you_mean
from zerotollm.types import Json

T = TypeVar("T", int, float)
MOST_TEXTS = 32  # most texts of a request: prompts times `n`
MOST_STOPS, LONGEST_STOP = 16, 200

IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "reasoning_effort", "verbosity", "parallel_tool_calls",
}  # fmt: skip
"""Fields that do not affect the text of a model that neither reasons nor calls tools."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "echo": (False,), "suffix": ("",), "best_of": (1,), "logit_bias": ({},),
    "presence_penalty": (0,), "frequency_penalty": (0,),
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],),
}  # fmt: skip
"""Unsupported fields, and the values that have no effect."""
SAMPLING = {"temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"}
COMMON = SAMPLING | {"model", "stream", "stream_options", "n", "stop", "logprobs"}


class RefusedError(Exception):
    """A refused request: its HTTP status, and the error that an OpenAI client reads."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> Json:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        param = None if self.param is None else _encodable(self.param)
        return {"error": {"message": _encodable(str(self)), "type": kind, "param": param, "code": self.code}}


def _encodable(text: str) -> str:
    """Escape halves of surrogate pairs, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class Served:
    """The model that the server runs."""

    name: str
    tokenizer: AnyTokenizer
    context: int  # most tokens of prompt and text together
    sampling: SamplingConfig  # defaults of a request
    most_tokens: int  # most tokens that a request may generate
    created: int  # seconds since 1970
    chats: bool  # whether it was trained on conversations
    encode_conversation: EncodeConversation

    def card(self) -> Json:
        """Return its entry in `/v1/models`, with further fields for the page."""
        card = {"id": self.name, "object": "model", "created": self.created, "owned_by": "zerotollm"}
        sampling = {name: getattr(self.sampling, name) for name in sorted(SAMPLING - {"seed"})}
        card |= {"context_length": self.context, "max_tokens": self.most_tokens}
        return card | {"chats": self.chats, "sampling": sampling}


class Job(NamedTuple):
    """A parsed request."""

    id: str
    created: int
    chat: bool
    stream: bool
    usage: bool  # whether a stream ends with a count of tokens
    texts: list[GenerationRequest]


def parse_json(body: bytes) -> Json:
    """Return the JSON object of a request, without fields that are null, at any depth."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON number")

    try:
        value = json.loads(
            body,
            parse_constant=refuse,
            object_hook=lambda fields: {name: x for name, x in fields.items() if x is not None},
        )
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        reason = "too deep" if isinstance(error, RecursionError) else error
        raise RefusedError(f"the body is not JSON: {reason}") from None
    if not isinstance(value, dict):
        raise RefusedError(f"the body is a JSON {type(value).__name__}, and must be an object")
    return value


def parse(body: Json, served: Served, *, chat: bool) -> Job:
    """Return the parsed request. Raises RefusedError, naming the field, for anything unsupported."""
    specific = ("messages", "top_logprobs", "max_completion_tokens") if chat else ("prompt", "echo")
    known = COMMON | IGNORED | NEUTRAL.keys() | set(specific)
    for name, value in body.items():
        if name not in known:
            raise RefusedError(f"unknown field {_shown(name)}{did_you_mean(name, known)}", name)
        if name in NEUTRAL.keys() - specific and value not in NEUTRAL[name]:
            raise RefusedError(f"{name} is not supported here: leave it out", name, "unsupported")
    if body.get("model", served.name) not in ("", served.name):
        message = f"the model {_shown(body['model'])} is not here, only {served.name!r}"
        raise RefusedError(message, "model", "model_not_found", 404)
    n = _number(body, "n", 1, 1, MOST_TEXTS)
    limit = "max_completion_tokens" if chat and "max_completion_tokens" in body else "max_tokens"
    default, echo = served.sampling, not chat and _flag(body, "echo")
    max_tokens = min(default.max_tokens, served.most_tokens)
    sampling = replace(
        default,
        prompt="",
        max_tokens=_number(body, limit, max_tokens, 0 if echo else 1, served.most_tokens),
        temperature=_number(body, "temperature", float(default.temperature), 0, 100),
        top_p=_number(body, "top_p", float(default.top_p), 0, 1),
        top_k=_number(body, "top_k", default.top_k, 0, 2**31 - 1),
        min_p=_number(body, "min_p", float(default.min_p), 0, 1),
        seed=_number(body, "seed", secrets.randbelow(2**32), -(2**63), 2**64) % 2**32,
    )
    stop, alternatives = _stop(body), _alternatives(body, chat)
    field = "messages" if chat else "prompt"
    try:
        prompts, first = (_chat_prompt if chat else _prompts)(body, served)
    except UsageError as error:  # half of a surrogate pair, or a chat template that refuses the messages
        raise RefusedError(str(error), field) from None
    if len(prompts) * n > MOST_TEXTS:
        number = f"{len(prompts)} prompts times n = {n}"
        raise RefusedError(f"{number} is more than {MOST_TEXTS} texts: send several requests", "n")
    for prompt_N in prompts:
        if len(prompt_N) > served.context:
            raise RefusedError(
                f"the prompt is {len(prompt_N):,} tokens long with its special tokens, and the context of this "
                f"model holds {served.context:,}: shorten it",
                field,
                "context_length_exceeded",
            )
    options = body.get("stream_options", {})
    if not isinstance(options, dict):
        raise RefusedError("stream_options must be an object", "stream_options")
    return Job(
        id=("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12),
        created=int(time.time()),
        chat=chat,
        stream=_flag(body, "stream"),
        usage=_flag(options, "include_usage"),
        texts=[
            GenerationRequest(prompt_N, sampling, number, stop, alternatives, first if echo else None)
            for prompt_N in prompts
            for number in range(n)
        ],
    )


def _number(body: Json, name: str, default: T, low: int, high: int) -> T:
    """Return a number of the type of its default: a whole number must be one, and an integer is a number too."""
    value = body.get(name, default)
    whole = isinstance(default, int)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise RefusedError(f"{name} is {_shown(value)}, and must be a {'whole ' * whole}number", name)
    if not low <= value <= high:
        raise RefusedError(f"{name} is {_shown(value)}, and must be from {low:,} to {high:,}", name)
    return cast(T, value)


def _flag(body: Json, name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise RefusedError(f"{name} is {_shown(value)}, and must be true or false", name)
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _stop(body: Json) -> tuple[str, ...]:
    stop = body.get("stop", [])
    stop = [stop] if isinstance(stop, str) else stop
    good = isinstance(stop, list) and len(stop) <= MOST_STOPS
    if not good or not all(isinstance(s, str) and 0 < len(s) <= LONGEST_STOP for s in stop):
        raise RefusedError(
            f"stop must be a text or up to {MOST_STOPS} texts, of 1 to {LONGEST_STOP} characters each", "stop"
        )
    return tuple(stop)


def _alternatives(body: Json, chat: bool) -> int | None:
    wanted = _flag(body, "logprobs") if chat else "logprobs" in body
    if "top_logprobs" in body and not wanted:
        raise RefusedError("top_logprobs needs logprobs: true", "top_logprobs")
    name = "top_logprobs" if chat else "logprobs"
    return _number(body, name, 0, 0, ALTERNATIVES) if wanted else None


def _prompts(body: Json, served: Served) -> tuple[list[np.ndarray], int]:
    """Return the ids of each prompt, and the index of the first one that the client sent: 1 after an added bos."""
    prompt, tokenizer = body.get("prompt", ""), served.tokenizer
    prompts: list[Any] = prompt if isinstance(prompt, list) else [prompt]
    if prompts and all(type(i) is int for i in prompts):
        prompts = [prompts]
    if len(prompts) > MOST_TEXTS:
        message = f"{len(prompts)} prompts are more than {MOST_TEXTS}: send several requests"
        raise RefusedError(message, "prompt")
    if prompts and all(isinstance(text, str) for text in prompts):
        return [np.append(tokenizer.bos_id, tokenizer.encode(text)).astype(np.int32) for text in prompts], 1
    if prompts and all(_are_ids(ids, tokenizer.vocab_size) for ids in prompts):
        return [np.array(ids, np.int32) for ids in prompts], 0
    raise RefusedError(
        f"prompt must be a text, a list of texts, a list of token ids below {tokenizer.vocab_size}, or a list of such "
        "lists",
        "prompt",
    )


def _are_ids(ids: object, vocab_size: int) -> bool:
    return isinstance(ids, list) and bool(ids) and all(type(i) is int and 0 <= i < vocab_size for i in ids)


def _chat_prompt(body: Json, served: Served) -> tuple[list[np.ndarray], int]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RefusedError("messages must be a list of objects with role and content", "messages")
    return [served.encode_conversation([_message(number, m) for number, m in enumerate(messages)])], 0


def _message(number: int, message: Any) -> dict[str, str]:
    place = f"messages[{number}]"
    if not isinstance(message, dict):
        raise RefusedError(f"{place} must be an object with role and content", "messages")
    role, content = message.get("role"), message.get("content")
    role = "system" if role == "developer" else role
    if role not in tuple(ROLES):  # a list or an object has no hash
        message = f"{place}.role is {_shown(role)}, and must be one of {', '.join(ROLES)}"
        raise RefusedError(message, "messages")
    if isinstance(content, list):  # parts, of which only text is supported
        texts: list[Any] = [part.get("text") if isinstance(part, dict) else None for part in content]
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else None
    if not isinstance(content, str):
        raise RefusedError(f"{place}.content must be a text", "messages")
    return {"role": role, "content": content}


# --- responses


def completion(job: Job, served: Served, texts: Sequence[Sequence[Piece]]) -> Json:
    choices = []
    for index, pieces in enumerate(texts):
        text = _shown_text(job, pieces)
        message = {"role": "assistant", "content": text, "refusal": None}
        content = {"message": message} if job.chat else {"text": text}
        choices.append(_choice(job, served, index, pieces, content))
    return _head(job, served) | {"choices": choices, "usage": _usage(job, texts)}


def chunk(job: Job, served: Served, index: int, pieces: Sequence[Piece], first: bool) -> Json:
    """Return a stream event: what some pieces add to a text. `first`: it is the first event of the text."""
    text = _shown_text(job, pieces)
    delta = {"role": "assistant", "content": text} if first else {"content": text}
    choice = _choice(job, served, index, pieces, {"delta": delta} if job.chat else {"text": text})
    return _head(job, served, ".chunk") | {"choices": [choice]}


def usage_chunk(job: Job, served: Served, texts: Sequence[Sequence[Piece]]) -> Json:
    return _head(job, served, ".chunk") | {"choices": [], "usage": _usage(job, texts)}


def _choice(job: Job, served: Served, index: int, pieces: Sequence[Piece], text: Json) -> Json:
    logprobs = _logprobs(job, served.tokenizer, pieces)
    return {"index": index, **text, "logprobs": logprobs, "finish_reason": pieces[-1].finish or None}


def _shown_text(job: Job, pieces: Sequence[Piece]) -> str:
    """Return the text of some pieces; an answer in a chat drops the space before its first word."""
    return "".join(piece.text.lstrip(" ") if job.chat and piece.leads else piece.text for piece in pieces)


def _usage(job: Job, texts: Sequence[Sequence[Piece]]) -> dict[str, int]:
    """Count tokens. A prompt counts once for all its texts."""
    prompts = {id(text.prompt_N): len(text.prompt_N) for text in job.texts}
    read, generated = sum(prompts.values()), sum(not piece.in_prompt for pieces in texts for piece in pieces)
    return {"prompt_tokens": read, "completion_tokens": generated, "total_tokens": read + generated}


def _head(job: Job, served: Served, chunk: str = "") -> Json:
    kind = f"chat.completion{chunk}" if job.chat else "text_completion"
    return {"id": job.id, "object": kind, "created": job.created, "model": served.name}


def _logprobs(job: Job, tokenizer: AnyTokenizer, pieces: Sequence[Piece]) -> Json | None:
    """Return the log-probabilities of the pieces' tokens, including stop strings, excluding the token that ends a text.

    A token is always among its own `top_logprobs`, which are one more where it is not among the likeliest.
    """
    if job.texts[0].alternatives is None:
        return None
    tokens = [(piece.token, piece.offset) for piece in pieces if piece.token]

    def entry(token_id: int, log_p: float | None) -> Json:
        spelled = list(tokenizer.token_bytes(token_id))
        return {"token": _name(tokenizer, token_id), "logprob": log_p, "bytes": spelled}

    if job.chat:
        content = [
            entry(token.id, token.log_p)
            | {"top_logprobs": [entry(*best) for best in (_with_itself(token) if token.likeliest else ())]}
            for token, _ in tokens
        ]
        return {"content": content, "refusal": None}
    return {
        "tokens": [_name(tokenizer, token.id) for token, _ in tokens],
        "token_logprobs": [token.log_p for token, _ in tokens],
        "top_logprobs": [
            None if token.log_p is None else _by_name(tokenizer, _with_itself(token)) for token, _ in tokens
        ],
        "text_offset": [offset for _, offset in tokens],
        "bytes": [list(tokenizer.token_bytes(token.id)) for token, _ in tokens],
    }


def _with_itself(token: Token) -> tuple[tuple[int, float | None], ...]:
    if token.id in (token_id for token_id, _ in token.likeliest):
        return token.likeliest
    return (*token.likeliest, (token.id, token.log_p))


def _by_name(
    tokenizer: AnyTokenizer, likeliest: Sequence[tuple[int, float | None]]
) -> dict[str, float | None]:
    """Return log-probabilities by name. Of two tokens with one text (a letter and its byte) one has its piece."""
    by_name: dict[str, float | None] = {}
    for token_id, log_p in likeliest:
        name = _name(tokenizer, token_id)
        by_name[tokenizer.piece(token_id) if name in by_name else name] = log_p
    return by_name


def _name(tokenizer: AnyTokenizer, token_id: int) -> str:
    """Return the text of a token, or its piece where it is not valid text of its own."""
    try:
        return tokenizer.token_bytes(token_id).decode("utf-8") or tokenizer.piece(token_id)
    except UnicodeDecodeError:
        return tokenizer.piece(token_id)
