"""The suffix array against searching every place of the text, also over the borders of blocks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerotollm.data.tokens import suffix_array as module
from zerotollm.data.tokens.suffix_array import cached_suffix_array, suffix_array

DRAW = np.random.default_rng(0)


def places(run: list[int], text: list[int]) -> list[int]:
    return [i for i in range(len(text) - len(run) + 1) if text[i : i + len(run)] == run]


def longest(query: list[int], start: int, text: list[int]) -> int:
    return max(
        (n for n in range(1, len(query) - start + 1) if places(query[start : start + n], text)), default=0
    )


@pytest.fixture(params=[2**22, 16, 5])
def block(request, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", request.param)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2), max_size=60),
    st.lists(st.integers(0, 3), max_size=20),
    st.sampled_from([5, 2**22]),
)
def test_matches_are_those_of_a_search_of_every_place(text, query, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", size)
        index = suffix_array(np.array(text, np.uint16))
        matches = index.longest_matches(np.array(query, int))
        for start in range(len(query)):
            length = longest(query, start, text)
            run = query[start : start + length]
            assert matches.length_T[start] == length
            assert matches.count_T[start] == (len(places(run, text)) if length else 0)
            if length:
                assert index.occurrences(np.array(run), 10**6).tolist() == places(run, text)
                assert index.count(np.array(run)) == len(places(run, text))


@pytest.mark.usefixtures("block")
def test_repeated_and_large_texts():
    text = np.concatenate([np.zeros(60, int), DRAW.integers(0, 4000, 90), np.zeros(60, int)]).astype(
        np.uint16
    )
    index = suffix_array(text)
    for block, suffixes in enumerate(index.blocks):
        first = block * module.BLOCK
        rows = [text[first + i :].tolist() for i in suffixes]
        assert rows == sorted(rows)
        assert sorted(suffixes.tolist()) == list(range(min(module.BLOCK, len(text) - first)))
    assert index.longest_matches(np.zeros(80, int)).length_T[0] == 60
    assert index.count(np.zeros(59, int)) == 4
    assert index.count(np.array([4001])) == 0


def test_occurrences_are_spread_evenly():
    index = suffix_array(np.tile([1, 2, 3, 4], 100))
    assert index.occurrences(np.array([2, 3]), 3).tolist() == [1, 197, 397]
    assert index.occurrences(np.array([2, 3]), 1).tolist() == [1]
    assert index.occurrences(np.array([9]), 3).tolist() == []


@pytest.mark.usefixtures("block")
def test_it_is_kept_for_the_text_and_made_anew_for_another(tmp_path):
    text = DRAW.integers(0, 50, 400).astype(np.uint16)
    first, again, other = (cached_suffix_array(tmp_path, x) for x in (text, text.copy(), text[::-1].copy()))
    assert len(list(tmp_path.glob("suffixes-*"))) == 2
    for index, tokens in ((first, text), (again, text), (other, text[::-1])):
        for kept, new in zip(index.blocks, suffix_array(tokens).blocks, strict=True):
            np.testing.assert_array_equal(kept, new)
    assert first.count(text[100:110]) >= 1
