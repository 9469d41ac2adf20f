"""UTF-8 as an automaton over tokens: which tokens may follow, so that sampled text is valid.

A token may hold a part of a character: byte pieces, and pieces of byte-level BPE.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TRANSITIONS = (
    ((0x00, 0x7F, 0), (0xC2, 0xDF, 1), (0xE0, 0xE0, 3), (0xE1, 0xEC, 2), (0xED, 0xED, 4), (0xEE, 0xEF, 2),
     (0xF0, 0xF0, 6), (0xF1, 0xF3, 5), (0xF4, 0xF4, 7)),
    ((0x80, 0xBF, 0),),
    ((0x80, 0xBF, 1),),
    ((0xA0, 0xBF, 1),),  # not overlong
    ((0x80, 0x9F, 1),),  # no surrogate
    ((0x80, 0xBF, 2),),
    ((0x90, 0xBF, 2),),  # not overlong
    ((0x80, 0x8F, 2),),  # at most U+10FFFF
)  # fmt: skip
"""(first byte, last byte, next state) of each state (RFC 3629, section 4). In state 0 every character is complete."""
UNFINISHED = 3
"""Most bytes, and so most tokens, of an unfinished character."""


@dataclass(frozen=True, eq=False)
class Utf8Automaton:
    """Transitions between S states by the V tokens of a vocabulary. See `Utf8Automaton.of`."""

    token_bytes: Sequence[bytes]
    next_state_SV: np.ndarray
    """int8: the state after each token; -1 where the token may not follow"""

    @classmethod
    def of(cls, token_bytes: Sequence[bytes]) -> "Utf8Automaton":
        """Return the automaton of a vocabulary: the bytes of each id.

        A special token has no bytes, and may only follow a complete character. A token may not follow where no others
        complete its last character: an imported vocabulary may lack bytes.
        """
        next_state_SV = np.full((len(TRANSITIONS), len(token_bytes)), -1, np.int8)
        for token_id, piece in enumerate(token_bytes):
            if _is_utf8(piece):
                next_state_SV[0, token_id] = 0
            else:
                next_state_SV[:, token_id] = [_state_after(piece, state) for state in range(len(TRANSITIONS))]
        can_end_S = np.arange(len(TRANSITIONS)) == 0
        for _ in range(UNFINISHED):
            can_end_S |= (can_end_S[next_state_SV] & (next_state_SV >= 0)).any(axis=1)
        return cls(token_bytes, np.where(can_end_S[next_state_SV], next_state_SV, np.int8(-1)))

    def unfinished(self, ids_N: np.ndarray) -> bytes:
        """Return the first bytes of a character that the tokens end in; empty if their last character is complete."""
        end, state, unfinished = b"", 0, b""
        for token_id in ids_N[: -UNFINISHED - 1 : -1]:
            if not self.token_bytes[token_id]:
                break
            end = self.token_bytes[token_id] + end
        for byte in end[-UNFINISHED:]:
            state = _next_state(state, byte)
            if state < 0:  # the bytes before are not UTF-8
                state, unfinished = max(_next_state(0, byte), 0), b""
            unfinished = unfinished + bytes([byte]) if state else b""
        return unfinished

    def state(self, ids_N: np.ndarray) -> int:
        """Return the state after some tokens; 0 if no token of the vocabulary completes their last character."""
        state = _state_after(self.unfinished(ids_N), 0)
        return state if (self.next_state_SV[state] >= 0).any() else 0

    def may_follow(self, ids_N: np.ndarray) -> np.ndarray:
        """Return which tokens may follow some tokens, bool [V]."""
        return self.next_state_SV[self.state(ids_N)] >= 0


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _state_after(text: bytes, state: int) -> int:
    """Return the state that some bytes lead to, or -1 if they may not follow."""
    for byte in text:
        if state >= 0:
            state = _next_state(state, byte)
    return state


def _next_state(state: int, byte: int) -> int:
    return next((after for first, last, after in TRANSITIONS[state] if first <= byte <= last), -1)
