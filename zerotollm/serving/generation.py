"""One generation: its tokens become characters until it ends."""

import codecs
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.decoding.config import SamplingConfig

Finish = Literal["", "stop", "length"]


class Token(NamedTuple):
    """A token with log-probabilities under the model. See `zerotollm.decoding.continuous.SampledTokens`."""

    id: int
    log_p: float | None = 0.0  # None for the first token of a prompt, which nothing precedes
    likeliest: tuple[tuple[int, float], ...] = ()  # (id, log-probability), best first
    in_prompt: bool = False


class Piece(NamedTuple):
    """What one token adds to a text."""

    text: str  # empty for a part of a character, and for what may become a stop string
    token: Token | None  # none for the token that ends a text
    offset: int  # characters before it
    finish: Finish = ""
    leads: bool = False  # true where only spaces were shown before it
    in_prompt: bool = False


@dataclass(frozen=True)
class GenerationRequest:
    prompt_N: np.ndarray  # int32 ids; at least one, at most the context
    sampling: SamplingConfig
    """Its `max_tokens` ends the text, as does the end of the context. With 0 nothing is generated."""
    number: int = 0  # index among the texts of one prompt and seed
    stop: tuple[str, ...] = ()  # strings that end the text and are not shown
    alternatives: int | None = None  # likeliest tokens to report with each; None: no log-probabilities
    echo: int | None = None  # report the prompt's tokens from this one; None: none of them


def cut_at_stop(text: str, stop: tuple[str, ...]) -> tuple[str, str, bool]:
    """Return (text to show, text that may be the start of a stop string, whether a stop string was found)."""
    places = [place for place in (text.find(s) for s in stop) if place >= 0]
    if places:
        return text[: min(places)], "", True
    longest = max((len(s) for s in stop), default=1) - 1
    for waiting in range(min(longest, len(text)), 0, -1):
        if any(s.startswith(text[-waiting:]) for s in stop):
            return text[:-waiting], text[-waiting:], False
    return text, "", False


@dataclass(eq=False)
class Generation:
    """A text in progress. `emit` receives its pieces; whoever reads them may set `done` to cancel it.

    A character that the prompt does not finish is in the piece that does. One that the length limit cuts is dropped.
    """

    request: GenerationRequest
    tokenizer: AnyTokenizer
    context: int
    emit: Callable[[Piece], None]
    done: bool = False
    read: int = 0  # prompt tokens that the model has read
    drawn: int = 0
    _characters: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )
    _waiting: str = ""
    _length: int = 0
    _leads: bool = True

    def __post_init__(self) -> None:
        before_N = self.request.prompt_N[: self.request.echo]  # whose text is not shown
        self._characters.decode(self.tokenizer.utf8.unfinished(before_N))

    def take(self, token: Token) -> None:
        """Emit what the next token adds, and set `done` at the end. Stop strings apply to generated text only."""
        request, offset = self.request, self._length
        if token.in_prompt or not request.sampling.max_tokens:
            self.done = not token.in_prompt
            text = self._decode(token) if token.in_prompt else ""
            finish: Finish = "length" if self.done else ""
            self.emit(Piece(text, token if token.in_prompt else None, offset, finish, in_prompt=True))
            return
        self.drawn += 1
        ended = token.id in self.tokenizer.stop_ids
        last = self.drawn >= min(request.sampling.max_tokens, self.context - len(request.prompt_N) + 1)
        text = "" if ended else self._decode(token)
        shown, self._waiting, stopped = cut_at_stop(self._waiting + text, request.stop)
        finish = "stop" if ended or stopped else "length" if last else ""
        if finish:
            shown, self._waiting, self.done = shown + self._waiting, "", True
        self.emit(Piece(shown, None if ended else token, offset, finish, self._leads))
        self._leads &= not shown.strip(" ")

    def _decode(self, token: Token) -> str:
        text = self._characters.decode(self.tokenizer.token_bytes(token.id))
        self._length += len(text)
        return text
