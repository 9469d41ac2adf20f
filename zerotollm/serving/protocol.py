"""What OpenAI's clients send and read: `/v1/completions` and `/v1/chat/completions`, as JSON values.

What is not known here is refused by name, never ignored, but for fields that say nothing about the text. Fields of
`SamplingConfig` that OpenAI has no word for (top_k, min_p) may be given too, and what is left out is as in the run's
`sample`. A seed means the same text as `generate --seed`. With `echo` and `logprobs` a prompt is scored: each token
that the client gave is told, so bos is where it came as an id, and is not where it was put before a text.
"""

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from zerotollm.data.sources.conversations import ROLES, chat_parts
from zerotollm.data.tokens.conversations import encode_parts
from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.decoding.config import SamplingConfig
from zerotollm.decoding.continuous import ALTERNATIVES
from zerotollm.errors import UsageError
from zerotollm.serving.generation import Piece, Request, Token
from zerotollm.suggest import did_you_mean

MOST_TEXTS = 32
"""Of one request: prompts times `n`."""
MOST_STOPS, LONGEST_STOP = 16, 200

IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "reasoning_effort", "verbosity", "parallel_tool_calls",
}  # fmt: skip
"""Say nothing about the text, or nothing to a model that neither reasons nor calls tools."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""What is not done here, and the values that do not ask for it."""
SAMPLING = {"temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"}
COMMON = SAMPLING | {"model", "stream", "stream_options", "n", "stop", "logprobs"}


class RefusedError(Exception):
    """A request that gets no text: the HTTP status, and what an OpenAI client is told."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        param = None if self.param is None else _encodable(self.param)
        return {"error": {"message": _encodable(str(self)), "type": kind, "param": param, "code": self.code}}


def _encodable(text: str) -> str:
    """A text that UTF-8 can hold: JSON may spell halves of surrogate pairs."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class Served:
    """The model that answers."""

    name: str
    tokenizer: AnyTokenizer
    context: int
    """most tokens, of prompt and text together"""
    sampling: SamplingConfig
    """what a request does not say"""
    most_tokens: int
    """that a request may ask for"""
    created: int
    """seconds since 1970"""
    chats: bool
    """whether it was taught to answer"""

    def card(self) -> dict[str, Any]:
        """As `/v1/models` lists it, with what the page wants to know besides."""
        card = {"id": self.name, "object": "model", "created": self.created, "owned_by": "zerotollm"}
        sampling = {name: getattr(self.sampling, name) for name in sorted(SAMPLING - {"seed"})}
        card |= {"context_length": self.context, "max_tokens": self.most_tokens}
        return card | {"chats": self.chats, "sampling": sampling}


class Job(NamedTuple):
    """A request, understood."""

    id: str
    created: int
    chat: bool
    stream: bool
    usage: bool
    """whether a stream ends with a count of tokens"""
    texts: list[Request]


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object of a request. A field that is null, at any depth, counts as not given."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON number")

    try:
        value = json.loads(body, parse_constant=refuse, object_hook=_given)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        reason = "too deep" if isinstance(error, RecursionError) else error
        raise RefusedError(f"the body is not JSON: {reason}") from None
    if not isinstance(value, dict):
        raise RefusedError(f"the body is a JSON {type(value).__name__}, and must be an object")
    return value


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def parse(body: dict[str, Any], served: Served, *, chat: bool) -> Job:
    """What a request asks for. Raises RefusedError, naming the field, for whatever cannot be done."""
    own = ("messages", "top_logprobs", "max_completion_tokens") if chat else ("prompt", "echo")
    known = COMMON | IGNORED | NEUTRAL.keys() | set(own)
    for name, value in body.items():
        if name not in known:
            raise RefusedError(f"unknown field {_shown(name)}{did_you_mean(name, known)}", name)
        if name in NEUTRAL.keys() - own and value not in NEUTRAL[name]:
            raise RefusedError(f"{name} is not supported here: leave it out", name, "unsupported")
    if body.get("model", served.name) not in ("", served.name):
        message = f"the model {_shown(body['model'])} is not here, only {served.name!r}"
        raise RefusedError(message, "model", "model_not_found", 404)
    n = _number(body, "n", 1, 1, MOST_TEXTS, whole=True)
    most = "max_completion_tokens" if chat and "max_completion_tokens" in body else "max_tokens"
    default, echo = served.sampling, not chat and _flag(body, "echo")
    sampling = replace(
        default,
        prompt="",
        max_tokens=_number(
            body,
            most,
            min(default.max_tokens, served.most_tokens),
            0 if echo else 1,
            served.most_tokens,
            True,
        ),
        temperature=_number(body, "temperature", default.temperature, 0, 100),
        top_p=_number(body, "top_p", default.top_p, 0, 1),
        top_k=_number(body, "top_k", default.top_k, 0, 2**31 - 1, True),
        min_p=_number(body, "min_p", default.min_p, 0, 1),
        seed=_number(body, "seed", secrets.randbelow(2**32), -(2**63), 2**64, True) % 2**32,
    )
    stop, alternatives = _stop(body), _alternatives(body, chat)
    prompts, first = ([_chat_prompt(body, served)], 0) if chat else _prompts(body, served)
    if len(prompts) * n > MOST_TEXTS:
        message = (
            f"{len(prompts)} prompts times n = {n} is more than {MOST_TEXTS} texts: send several requests"
        )
        raise RefusedError(message, "n")
    for prompt_N in prompts:
        if len(prompt_N) > served.context:
            raise RefusedError(
                f"the prompt is {len(prompt_N):,} tokens long with what stands around it, and the context of this "
                f"model holds {served.context:,}: shorten it",
                "messages" if chat else "prompt",
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
            Request(prompt_N, sampling, number, stop, alternatives, first if echo else None)
            for prompt_N in prompts
            for number in range(n)
        ],
    )


def _number(
    body: dict[str, Any], name: str, default: float, low: float, high: float, whole: bool = False
) -> Any:
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise RefusedError(
            f"{name} is {_shown(value)}, and must be a {'whole ' if whole else ''}number", name
        )
    if not low <= value <= high:
        raise RefusedError(f"{name} is {_shown(value)}, and must be from {low:,} to {high:,}", name)
    return value


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise RefusedError(f"{name} is {_shown(value)}, and must be true or false", name)
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _stop(body: dict[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop", [])
    stop = [stop] if isinstance(stop, str) else stop
    good = isinstance(stop, list) and len(stop) <= MOST_STOPS
    if not good or not all(isinstance(s, str) and 0 < len(s) <= LONGEST_STOP for s in stop):
        raise RefusedError(
            f"stop must be a text or up to {MOST_STOPS} texts, of 1 to {LONGEST_STOP} characters each", "stop"
        )
    return tuple(stop)


def _alternatives(body: dict[str, Any], chat: bool) -> int | None:
    if not chat:
        return _number(body, "logprobs", 0, 0, ALTERNATIVES, True) if "logprobs" in body else None
    told = _flag(body, "logprobs")
    if "top_logprobs" in body and not told:
        raise RefusedError("top_logprobs needs logprobs: true", "top_logprobs")
    return _number(body, "top_logprobs", 0, 0, ALTERNATIVES, True) if told else None


def _prompts(body: dict[str, Any], served: Served) -> tuple[list[np.ndarray], int]:
    """Ids of each prompt, and the number of the first that the client gave: bos is put before texts, not before ids."""
    prompt, tokenizer = body.get("prompt", ""), served.tokenizer
    prompts = prompt if isinstance(prompt, list) else [prompt]
    if prompts and all(type(i) is int for i in prompts):
        prompts = [prompts]
    if len(prompts) > MOST_TEXTS:
        raise RefusedError(
            f"{len(prompts)} prompts are more than {MOST_TEXTS}: send several requests", "prompt"
        )
    if prompts and all(isinstance(text, str) for text in prompts):
        return [np.append(tokenizer.bos_id, _encode(text, tokenizer)).astype(np.int32) for text in prompts], 1
    if prompts and all(_are_ids(ids, tokenizer.vocab_size) for ids in prompts):
        return [np.array(ids, np.int32) for ids in prompts], 0
    raise RefusedError(
        f"prompt must be a text, a list of texts, a list of token ids below {tokenizer.vocab_size}, or a list of such "
        "lists",
        "prompt",
    )


def _are_ids(ids: Any, vocab_size: int) -> bool:
    whole = isinstance(ids, list) and bool(ids)
    return whole and all(type(i) is int and 0 <= i < vocab_size for i in ids)


def _encode(text: str, tokenizer: AnyTokenizer) -> np.ndarray:
    try:
        return tokenizer.encode(text)
    except UsageError as error:
        raise RefusedError(str(error), "prompt") from None


def _chat_prompt(body: dict[str, Any], served: Served) -> np.ndarray:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RefusedError("messages must be a list of objects with role and content", "messages")
    parts = chat_parts([_message(number, m) for number, m in enumerate(messages)], answer=True)
    try:
        return encode_parts(served.tokenizer, parts)
    except UsageError as error:
        raise RefusedError(str(error), "messages") from None


def _message(number: int, message: Any) -> dict[str, str]:
    place = f"messages[{number}]"
    if not isinstance(message, dict):
        raise RefusedError(f"{place} must be an object with role and content", "messages")
    role, content = message.get("role"), message.get("content")
    role = "system" if role == "developer" else role
    if role not in tuple(ROLES):  # a list or an object has no hash
        raise RefusedError(
            f"{place}.role is {_shown(role)}, and must be one of {', '.join(ROLES)}", "messages"
        )
    if isinstance(content, list):  # of parts, of which text alone is understood
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else None
    if not isinstance(content, str):
        raise RefusedError(f"{place}.content must be a text", "messages")
    return {"role": role, "content": content}


# --- answers


def whole(job: Job, served: Served, written: Sequence[Sequence[Piece]]) -> dict[str, Any]:
    """The answer to a request, of which `written` are the texts."""
    choices = []
    for index, pieces in enumerate(written):
        text = _shown_text(job, pieces)
        answer = {"message": {"role": "assistant", "content": text, "refusal": None}}
        said = answer if job.chat else {"text": text}
        choices.append(
            {"index": index, **said, "logprobs": _logprobs(job, served.tokenizer, pieces)}
            | {"finish_reason": pieces[-1].finish}
        )
    kind = "chat.completion" if job.chat else "text_completion"
    return _head(job, served, kind) | {"choices": choices, "usage": usage(job, written)}


def chunk(job: Job, served: Served, index: int, pieces: Sequence[Piece], first: bool) -> dict[str, Any]:
    """An event of a stream: what some pieces add to a text. `first`: nothing was sent of it before."""
    text = _shown_text(job, pieces)
    if job.chat:
        said = {"delta": {"role": "assistant", "content": text} if first else {"content": text}}
    else:
        said = {"text": text}
    choice = {"index": index, **said, "logprobs": _logprobs(job, served.tokenizer, pieces)}
    choice["finish_reason"] = pieces[-1].finish or None
    return _head(job, served, "chat.completion.chunk" if job.chat else "text_completion") | {
        "choices": [choice]
    }


def _shown_text(job: Job, pieces: Sequence[Piece]) -> str:
    """The text of some pieces. An answer does not begin with the space that a word is written with."""
    return "".join(piece.text.lstrip(" ") if job.chat and piece.leads else piece.text for piece in pieces)


def last_chunk(job: Job, served: Served, written: Sequence[Sequence[Piece]]) -> dict[str, Any]:
    """The event that counts, for a client that asked."""
    kind = "chat.completion.chunk" if job.chat else "text_completion"
    return _head(job, served, kind) | {"choices": [], "usage": usage(job, written)}


def usage(job: Job, written: Sequence[Sequence[Piece]]) -> dict[str, int]:
    """Tokens read and written. A prompt counts once for all its texts."""
    prompts = {id(text.prompt_N): len(text.prompt_N) for text in job.texts}
    read, wrote = sum(prompts.values()), sum(not piece.given for pieces in written for piece in pieces)
    return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}


def _head(job: Job, served: Served, kind: str) -> dict[str, Any]:
    return {"id": job.id, "object": kind, "created": job.created, "model": served.name}


def _logprobs(job: Job, tokenizer: AnyTokenizer, pieces: Sequence[Piece]) -> dict[str, Any] | None:
    """Of the tokens as drawn, those of a stop string too, but not of the one that ends a text; and of an echo's.

    A token is always among its own `top_logprobs`, which are one more where it is not of the likeliest.
    """
    if job.texts[0].alternatives is None:
        return None
    told = [(piece.token, piece.offset) for piece in pieces if piece.token]

    def entry(token_id: int, log_p: float | None) -> dict[str, Any]:
        spelled = list(tokenizer.token_bytes(token_id))
        return {"token": _name(tokenizer, token_id), "logprob": log_p, "bytes": spelled}

    if job.chat:
        content = [
            entry(token.id, token.log_p)
            | {"top_logprobs": [entry(*best) for best in (_with_itself(token) if token.likeliest else ())]}
            for token, _ in told
        ]
        return {"content": content, "refusal": None}
    return {
        "tokens": [_name(tokenizer, token.id) for token, _ in told],
        "token_logprobs": [token.log_p for token, _ in told],
        "top_logprobs": [
            None if token.log_p is None else _by_name(tokenizer, _with_itself(token)) for token, _ in told
        ],
        "text_offset": [offset for _, offset in told],
        "bytes": [list(tokenizer.token_bytes(token.id)) for token, _ in told],
    }


def _with_itself(token: Token) -> tuple[tuple[int, float | None], ...]:
    if token.id in (token_id for token_id, _ in token.likeliest):
        return token.likeliest
    return (*token.likeliest, (token.id, token.log_p))


def _by_name(
    tokenizer: AnyTokenizer, likeliest: Sequence[tuple[int, float | None]]
) -> dict[str, float | None]:
    """Log-probabilities by name. Of two tokens that add the same, a letter and its byte, the second has its piece."""
    found: dict[str, float | None] = {}
    for token_id, log_p in likeliest:
        name = _name(tokenizer, token_id)
        found[tokenizer.piece(token_id) if name in found else name] = log_p
    return found


def _name(tokenizer: AnyTokenizer, token_id: int) -> str:
    """What a token adds, or, where that is no text of its own, how its vocabulary writes it."""
    try:
        return tokenizer.token_bytes(token_id).decode("utf-8") or tokenizer.piece(token_id)
    except UnicodeDecodeError:
        return tokenizer.piece(token_id)
