"""Tokens become characters, up to a stop string."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerotollm.data.tokens.utf8 import Utf8Automaton
from zerotollm.decoding.config import SamplingConfig
from zerotollm.serving import protocol
from zerotollm.serving.generation import Generation, GenerationRequest, Token, cut_at_stop


class Bytes:
    """A vocabulary of all bytes; 256 ends a text."""

    stop_ids = (257, 256)
    utf8 = Utf8Automaton.of([*(bytes([byte]) for byte in range(256)), b""])

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])


def pieces_of(text: bytes, stop=(), max_tokens=100, ends=True):
    pieces = []
    prompt_N = np.zeros(1, np.int32)
    request = GenerationRequest(prompt_N, SamplingConfig(max_tokens=max_tokens), stop=tuple(stop))
    generation = Generation(request, Bytes(), context=1000, emit=pieces.append)
    for token_id in [*text, 256] if ends else text:
        if generation.done:
            break
        generation.take(Token(token_id))
    return pieces, generation


@settings(deadline=None)  # a loaded machine is no error
@given(
    st.text(alphabet="abé光", max_size=12),
    st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=3),
)
def test_what_is_shown_is_the_text_before_the_first_stop_string(text, stop):
    pieces, generation = pieces_of(text.encode(), stop)
    shown = "".join(piece.text for piece in pieces)
    # The first to be complete ends the text: not always the one that begins first.
    ends = [text[:n] for n in range(len(text) + 1) if any(text[:n].endswith(s) for s in stop)]
    starts = [ends[0].find(s) for s in stop if s in ends[0]] if ends else [len(text)]
    assert shown == text[: min(starts)]
    assert generation.done
    assert pieces[-1].finish == "stop"
    assert not any(piece.finish for piece in pieces[:-1])


def test_nothing_that_may_become_a_stop_string_is_shown_early():
    pieces, _ = pieces_of(b"a\n\nb", ["\n\nUser:"], ends=False)
    assert [piece.text for piece in pieces] == ["a", "", "", "\n\nb"]
    assert cut_at_stop("xab", ("abc",)) == ("x", "ab", False)


def test_half_a_character_waits_and_is_dropped_at_the_length_limit():
    pieces, _ = pieces_of("é".encode(), ends=False)
    assert [(piece.text, piece.offset) for piece in pieces] == [("", 0), ("é", 0)]
    pieces, _ = pieces_of("é".encode()[:1], max_tokens=1)
    assert [(piece.text, piece.finish) for piece in pieces] == [("", "length")]


@pytest.mark.parametrize(("max_tokens", "finish"), [(2, "length"), (3, "length"), (4, "stop")])
def test_a_text_ends_by_itself_or_at_its_length(max_tokens, finish):
    pieces, generation = pieces_of(b"abc", max_tokens=max_tokens)
    assert (pieces[-1].finish, generation.done) == (finish, True)
    assert "".join(piece.text for piece in pieces) == "abc"[:max_tokens]


@settings(deadline=None)
@given(
    st.text(alphabet="a \n", max_size=8), st.lists(st.text(alphabet="a ", min_size=1, max_size=5), max_size=2)
)
def test_a_streamed_answer_is_the_whole_one_and_begins_without_a_space(text, stop):
    pieces, generation = pieces_of(text.encode(), stop)
    job, served = (
        protocol.Job("id", 0, True, True, False, [generation.request]),
        SimpleNamespace(name="tiny", tokenizer=Bytes()),
    )
    (whole,) = protocol.completion(job, served, [pieces])["choices"]
    events = [protocol.chunk(job, served, 0, [piece], first=i == 0) for i, piece in enumerate(pieces)]
    streamed = "".join(event["choices"][0]["delta"]["content"] for event in events)
    plain = "".join(piece.text for piece in pieces)
    assert streamed == whole["message"]["content"] == plain.lstrip(" ")
