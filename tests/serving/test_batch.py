"""Texts in one batch: each is what it would be alone, and what `generate` writes with its seed."""

import asyncio

import numpy as np
import pytest

from zerotollm.decoding import sample
from zerotollm.decoding.config import SamplingConfig
from zerotollm.serving.batch import num_programs, write
from zerotollm.serving.writing import Wanted, Writing

SETTINGS = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.0, "seed": 3},
    "filtered": {"temperature": 1.3, "seed": 2**32 - 1, "top_p": 0.9, "top_k": 50, "min_p": 0.01},
}


def wanted(length: int = 5, number: int = 0, **sampling) -> Wanted:
    prompt_N = np.random.default_rng(length).integers(4, 290, length).astype(np.int32)
    return Wanted(prompt_N, SamplingConfig(**({"max_tokens": 30} | sampling)), number, alternatives=2)


def written(tiny, wants, leave=()) -> list[list]:
    """The tokens of each text, all asked for at once; those in `leave` are given up after two tokens."""

    async def run():
        line, told = asyncio.Queue(), [[] for _ in wants]
        writings = [
            Writing(w, tiny.tokenizer, tiny.model.max_length, t.append)
            for w, t in zip(wants, told, strict=True)
        ]
        for writing in writings:
            line.put_nowait(writing)
        task = asyncio.create_task(write(tiny.programs, line))
        while not all(writing.done for writing in writings):
            await asyncio.sleep(0.001)
            assert not task.done(), task.result()
            for index in leave:
                writings[index].done |= len(told[index]) > 2
        task.cancel()
        return [[piece.token for piece in pieces if piece.token] for pieces in told]

    return asyncio.run(run())


def ids(tokens) -> list[int]:
    return [token.id for token in tokens]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("length", [5, 33])
def test_a_text_is_the_same_alone_among_others_and_from_generate(tiny, setting, length):
    mine = [wanted(length, number, **SETTINGS[setting]) for number in (0, 1)]
    others = [
        wanted(3 + i, temperature=i / 2, seed=i, top_p=1 - i / 10, max_tokens=4 + 9 * i) for i in range(5)
    ]
    # More than there are rows: mine join late, after others have left, and one of those is given up.
    among = written(tiny, [*others, *mine, *others], leave=[2])[len(others) :]
    expected = sample.generate(
        tiny.params, tiny.model, [mine[0].prompt_N] * 2, mine[0].sampling, stop_id=1, num_tokens=290
    )
    for number in (0, 1):
        (alone,) = written(tiny, [mine[number]])
        assert ids(alone) == ids(among[number])
        assert [token.log_p for token in alone] == [token.log_p for token in among[number]]
        assert ids(alone) == expected[number][: len(alone)].tolist()
        assert len(alone) == min(len(expected[number]), tiny.model.max_length - length + 1)
    assert setting == "greedy" or ids(among[0]) != ids(among[1])


def test_alternatives_are_the_likeliest_and_a_greedy_token_is_the_first(tiny):
    (tokens,) = written(tiny, [wanted(7, temperature=0.0)])
    for token in tokens:
        (first, log_p), (_, second) = token.likeliest
        assert (first, log_p) == (token.id, token.log_p)
        assert second <= log_p < 0


def test_every_prompt_that_the_context_holds_has_a_program(tiny):
    wants = [wanted(length, max_tokens=60, temperature=0.0) for length in range(1, 49)]
    told = written(tiny, wants)
    assert sum(map(len, told)) > 48
    assert all(len(tokens) <= 48 - len(want.prompt_N) + 1 for want, tokens in zip(wants, told, strict=True))
    assert list(tiny.programs.admit) == [32, 48]
    assert num_programs(tiny.model) == 3
