"""The common part of all tokenizers: a token is a run of bytes, and a text is the bytes of its tokens."""

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from zerotollm.data.tokens.utf8 import Utf8Automaton
from zerotollm.errors import UsageError
from zerotollm.host.atomic_files import write_atomically

SPACE = "\u2581"  # sentencePiece's symbol for a space


@dataclass(frozen=True, repr=False)
class ByteTokenizer(ABC):
    """A tokenizer as the bytes of its file. Two are equal if their bytes are."""

    model: bytes

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return `encode` of every text, computed on all cores."""

    @property
    @abstractmethod
    def _token_bytes(self) -> list[bytes]:
        """The bytes that each id stands for."""

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text, int32 [N], without special tokens. Raises UsageError for a lone surrogate."""
        return self.encode_batch([text])[0]

    def decode(self, ids: Iterable[int], *, final: bool = True) -> str:
        """Return the text of any ids. Special tokens add nothing; bytes that are not UTF-8 become U+FFFD.

        If not `final`, an unfinished character at the end adds nothing: the length limit of sampling may cut one.
        """
        ids = ids.tolist() if isinstance(ids, np.ndarray) else ids
        return codecs.utf_8_decode(b"".join([self._token_bytes[i] for i in ids]), "replace", final)[0]

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of a token: perhaps part of a character; empty for a special token."""
        return self._token_bytes[token_id]

    @cached_property
    def utf8(self) -> Utf8Automaton:
        """The tokens that may follow each other in valid UTF-8."""
        return Utf8Automaton.of(self._token_bytes)

    def save(self, path: str | Path) -> None:
        """Write the file atomically. Raises RunError if the disk is full or read-only."""
        write_atomically(Path(path), self.model)


def check_encodable_as_utf8(texts: Iterable[str]) -> None:
    """Raise UsageError if a text cannot be written as UTF-8."""
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(
                f"character {error.start} (counted from 0) of a text of {len(text)} characters is half of a surrogate "
                "pair: read the text as UTF-8"
            ) from error
