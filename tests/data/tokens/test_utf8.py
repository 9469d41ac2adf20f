"""The automaton accepts what Python's strict decoder accepts, and knows which characters are unfinished."""

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from zerotollm.data.tokens.utf8 import Utf8Automaton

BYTES = Utf8Automaton.of([bytes([byte]) for byte in range(256)])
EDGES = bytes.fromhex("007f808f909fa0bfc0c1c2dfe0e1ecedeeeff0f1f3f4f5ff")
"""The first and last byte of every range that UTF-8 distinguishes."""


def is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def starts_character(data: bytes) -> bool:
    """Whether some bytes are the first of one character, and not all of it."""
    endings = [ending * n for n in (1, 2, 3) for ending in (b"\x80", b"\x90", b"\xbf")]
    return any(is_text(data + ending) and len((data + ending).decode()) == 1 for ending in endings)


def test_bytes_are_accepted_if_python_decodes_them():
    next_state = BYTES.next_state_SV.tolist()
    sequences = [bytes([byte]) for byte in range(256)]
    sequences += [bytes(s) for n in (2, 3) for s in product(EDGES, repeat=n)]
    sequences += [bytes(s) for s in product(EDGES[-6:], EDGES, EDGES, EDGES)]
    for sequence in sequences:
        state = 0
        for byte in sequence:
            if state >= 0:
                state = next_state[state][byte]
        assert (state == 0) == is_text(sequence), sequence
        if state > 0:  # what is accepted so far can become valid
            data = sequence[-3:]
            assert any(starts_character(data[n:]) for n in range(len(data))), sequence


PIECES = [
    b"",
    b"a",
    b"\xe9\x9b a",
    "é光".encode(),
    b"\x89\xf0\x9f",
    b"\xa0",
    b"\x80\x80",
    b"\xed",
    b"\xc3",
    b"\xf4\x8f",
]
AUTOMATON = Utf8Automaton.of(PIECES)


@given(st.lists(st.integers(0, len(PIECES) - 1), max_size=8))
def test_an_unfinished_character_is_found_after_any_tokens(ids):
    """Also after tokens that are not UTF-8 together; a special token ends a character."""
    last = max((n for n, i in enumerate(ids) if not PIECES[i]), default=-1)
    text = b"".join(PIECES[i] for i in ids[last + 1 :])
    expected = next((text[n:] for n in range(-min(3, len(text)), 0) if starts_character(text[n:])), b"")
    unfinished = AUTOMATON.unfinished(np.array(ids, np.int32))
    assert unfinished == expected
    for token_id, piece in enumerate(PIECES):
        together = unfinished + piece
        ends = [together[n:] for n in range(max(0, len(together) - 3), len(together))]
        valid = is_text(together) or any(
            starts_character(end) and is_text(together[: len(together) - len(end)]) for end in ends
        )
        assert AUTOMATON.may_follow(np.array(ids))[token_id] == (valid and bool(piece or not unfinished))


def test_no_token_begins_a_character_that_no_other_completes():
    """An imported vocabulary may lack bytes. A prompt that ends in such a character is followed by a new one."""
    automaton = Utf8Automaton.of([b"a", b"\xc3", b"\xe9", b"\x9b", b"\xf0\x9f", b"\x98"])
    assert automaton.may_follow(np.array([0])).tolist() == [True, True, True, False, True, False]
    assert automaton.may_follow(np.array([4, 5])).tolist() == [False, False, False, True, False, True]
    automaton = Utf8Automaton.of([b"a", b"\xc3", b"\xed", b"\xb0"])
    assert automaton.may_follow(np.array([2])).tolist() == [True, True, False, False]
    assert automaton.unfinished(np.array([0, 2])) == b"\xed"
