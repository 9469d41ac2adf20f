"""One text in the making: its drawn tokens become characters, until it ends."""

import codecs
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.decoding.config import SamplingConfig


class Token(NamedTuple):
    """A token, and how likely the model held it and others, before temperature and filters."""

    id: int
    log_p: float | None = 0.0
    """None for the first token of a prompt, before which there is nothing"""
    likeliest: tuple[tuple[int, float], ...] = ()
    """(id, log-probability), the best first; empty unless asked for"""
    given: bool = False
    """whether it is of the prompt"""


class Piece(NamedTuple):
    """What one token adds."""

    text: str
    """may be empty: a part of a character, or what may yet become a stop string"""
    token: Token | None
    """None for the one that ends a text"""
    offset: int
    """characters told before it"""
    finish: Literal["", "stop", "length"] = ""
    leads: bool = False
    """whether nothing but spaces was shown before it"""
    given: bool = False
    """whether it is of the prompt"""


@dataclass(frozen=True)
class Request:
    """A text to be written."""

    prompt_N: np.ndarray
    """int32 ids, from 1 to as many as the context holds"""
    sampling: SamplingConfig
    """its `max_tokens` ends the text, as does the end of the context; 0: nothing is drawn"""
    number: int = 0
    """among the texts of one prompt and seed"""
    stop: tuple[str, ...] = ()
    """strings at which it ends, and which are not shown"""
    alternatives: int | None = None
    """likeliest tokens that are told with each; None: not even the log-probability of the token itself"""
    echo: int | None = None
    """tokens of the prompt from this one on are told too; None: none are"""


def cut_at_stop(text: str, stop: tuple[str, ...]) -> tuple[str, str, bool]:
    """(what may be shown, what must wait, whether a stop string was met). What waits may be the start of one."""
    found = [place for place in (text.find(s) for s in stop) if place >= 0]
    if found:
        return text[: min(found)], "", True
    longest = max((len(s) for s in stop), default=1) - 1
    for waiting in range(min(longest, len(text)), 0, -1):
        if any(s.startswith(text[-waiting:]) for s in stop):
            return text[:-waiting], text[-waiting:], False
    return text, "", False


@dataclass(eq=False)
class Generation:
    """A text with the place that its pieces go to. `done` may be set from outside: nobody reads it any more."""

    wanted: Request
    tokenizer: AnyTokenizer
    context: int
    tell: Callable[[Piece], None]
    done: bool = False
    read: int = 0
    """tokens of the prompt that the model has read"""
    drawn: int = 0
    _characters: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )
    _waiting: str = ""
    _length: int = 0
    _leads: bool = True

    def take(self, token: Token) -> None:
        """Tells what the next token adds, and is `done` where the text ends. Stop strings end what is drawn alone."""
        wanted, offset = self.wanted, self._length
        if token.given or not wanted.sampling.max_tokens:
            self.done = not token.given
            added = self.tokenizer.token_bytes(token.id) if token.given else b""
            text = self._characters.decode(added, final=self.done)
            self._length += len(text)
            finish = "length" if self.done else ""
            self.tell(Piece(text, token if token.given else None, offset, finish, given=True))
            return
        self.drawn += 1
        ended = token.id == self.tokenizer.stop_id
        last = self.drawn >= min(wanted.sampling.max_tokens, self.context - len(wanted.prompt_N) + 1)
        added = b"" if ended else self.tokenizer.token_bytes(token.id)
        text = self._characters.decode(added, final=ended or last)
        self._length += len(text)
        shown, self._waiting, stopped = cut_at_stop(self._waiting + text, wanted.stop)
        finish = "stop" if ended or stopped else "length" if last else ""
        if finish:
            shown, self._waiting, self.done = shown + self._waiting, "", True
        self.tell(Piece(shown, None if ended else token, offset, finish, self._leads))
        self._leads &= not shown.strip(" ")
