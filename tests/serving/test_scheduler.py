"""Continuous batching: each text is the same as alone, and as from `generate` with its seed."""

import asyncio

import jax.numpy as jnp
import numpy as np
import pytest

from tests.functions import whole_characters
from tests.serving.conftest import CONTEXT, ROWS
from zerotollm.decoding import continuous, sample
from zerotollm.decoding.config import SamplingConfig
from zerotollm.evaluation.likelihood import log_likelihoods
from zerotollm.model.build import build_net
from zerotollm.serving import scheduler
from zerotollm.serving.generation import Generation, GenerationRequest
from zerotollm.serving.scheduler import compile_programs, num_programs, write, write_all

SETTINGS = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.0, "seed": 3},
    "filtered": {"temperature": 1.3, "seed": 2**32 - 1, "top_p": 0.9, "top_k": 50, "min_p": 0.01},
}


def test_reaches_double_up_to_the_context():
    assert continuous.reaches(16) == continuous.reaches(9) == [16]
    assert continuous.reaches(32) == [32]
    assert continuous.reaches(33) == [32, 48]
    assert continuous.reaches(300) == [32, 64, 128, 256, 304]


def test_all_parts_of_a_prompt_but_the_first_have_chunk_tokens():
    for length in range(1, 50):
        for chunk in (1, 7, 16):
            parts = []
            while sum(parts) < length:
                parts.append(continuous.part_length(sum(parts), length, chunk))
            assert sum(parts) == length
            assert 1 <= parts[0] <= chunk
            assert set(parts[1:]) <= {chunk}


def test_log_probabilities_and_most_likely_tokens_match_numpy():
    logits = np.random.default_rng(0).normal(size=(3, 30)).astype(np.float32)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    told = continuous._with_log_p(jnp.asarray(logits), jnp.array([4, 0, 29]), 30)
    np.testing.assert_allclose(told.log_p_R, log_p[[0, 1, 2], [4, 0, 29]], rtol=1e-5)
    order = np.argsort(-log_p, axis=1)[:, :20]
    np.testing.assert_array_equal(told.likeliest_RA, order)
    np.testing.assert_allclose(told.likeliest_log_p_RA, np.take_along_axis(log_p, order, 1), rtol=1e-5)
    assert continuous._with_log_p(jnp.asarray(logits[:, :5]), jnp.array([4, 0, 2]), 5).likeliest_RA.shape == (
        3,
        5,
    )
    greedy = sample.SamplingParams.of(SamplingConfig(temperature=0.0), 3)
    next_state_SV = jnp.asarray(whole_characters(25).next_state_SV)
    for asked in (False, True):
        drawn, _ = continuous._sample(
            jnp.asarray(logits), next_state_SV, jnp.zeros(3, jnp.int8), greedy, jnp.arange(3), asked
        )
        np.testing.assert_array_equal(drawn.token_R, logits[:, :25].argmax(1))
        assert drawn.likeliest_RA.shape == drawn.likeliest_log_p_RA.shape == (3, 20)
        assert np.asarray(drawn.log_p_R != 0).all() == asked
        assert np.asarray(drawn.likeliest_log_p_RA).any() == np.asarray(drawn.likeliest_RA).any() == asked
        assert np.asarray(drawn.likeliest_RA).max() < 25


def test_new_rows_are_empty(tiny):
    rows = continuous.empty_slots(build_net(tiny.model), 3, 33)
    assert rows.last_RN.shape == (3, tiny.model.token_shift + 1)
    assert rows.position_R.tolist() == [0, 0, 0]
    assert rows.sampling_params.temperature_B.tolist() == [0, 0, 0], "an unused row samples no noise"
    assert rows.sampling_params.top_p_B.tolist() == [1, 1, 1]
    assert rows.sampling_params.top_k_B.tolist() == rows.sampling_params.min_p_B.tolist() == [0, 0, 0]
    assert len(rows.caches) == tiny.model.num_layers
    assert rows.caches[0].keys_BKSC.shape == (3, tiny.model.num_kv_heads, 48, tiny.model.key_width)
    assert rows.caches[0].values_BKSC.shape == (3, tiny.model.num_kv_heads, 48, tiny.model.head_width)


def make_request(length: int = 5, number: int = 0, echo: int | None = None, **sampling) -> GenerationRequest:
    prompt_N = np.random.default_rng(length).integers(4, 290, length).astype(np.int32)
    return GenerationRequest(prompt_N, SamplingConfig(**({"max_tokens": 30} | sampling)), number, (), 2, echo)


def generate_all(tiny, requests, leave=(), context=CONTEXT) -> list[list]:
    """Return the tokens of each text, all requested at once; those in `leave` are cancelled after two tokens."""

    async def run():
        queue, told = asyncio.Queue(), [[] for _ in requests]
        generations = [
            Generation(w, tiny.tokenizer, context, t.append) for w, t in zip(requests, told, strict=True)
        ]
        for generation in generations:
            queue.put_nowait(generation)
        task = asyncio.create_task(write(tiny.programs, queue))
        while not all(generation.done for generation in generations):
            await asyncio.sleep(0.001)
            assert not task.done(), task.result()
            for index in leave:
                generations[index].done |= len(told[index]) > 2
        task.cancel()
        return [[piece.token for piece in pieces if piece.token] for pieces in told]

    return asyncio.run(run())


def ids(tokens) -> list[int]:
    return [token.id for token in tokens]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("length", [5, 33])
def test_a_text_is_the_same_alone_in_a_batch_and_from_generate(tiny, setting, length):
    mine = [make_request(length, number, **SETTINGS[setting]) for number in (0, 1)]
    others = [
        make_request(3 + i, temperature=i / 2, seed=i, top_p=1 - i / 10, max_tokens=4 + 9 * i)
        for i in range(5)
    ]
    # More texts than rows: mine join late, after others have left, and one of those is cancelled.
    among = generate_all(tiny, [*others, *mine, *others], leave=[2])[len(others) :]
    expected = sample.generate(
        tiny.params,
        build_net(tiny.model),
        [mine[0].prompt_N] * 2,
        mine[0].sampling,
        stop_ids=(1,),
        utf8=tiny.tokenizer.utf8,
    )
    for number in (0, 1):
        (alone,) = generate_all(tiny, [mine[number]])
        assert ids(alone) == ids(among[number])
        assert [token.log_p for token in alone] == [token.log_p for token in among[number]]
        assert ids(alone) == expected[number][: len(alone)].tolist()
        assert len(alone) == min(len(expected[number]), tiny.model.max_length - length + 1)
    assert setting == "greedy" or ids(among[0]) != ids(among[1])


@pytest.fixture(scope="module")
def chunked(tiny):
    """Return the same model with programs that read prompts in parts of 16 tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(continuous, "CHUNK", 16)
        return tiny._replace(
            programs=compile_programs(tiny.params, build_net(tiny.model), tiny.tokenizer, ROWS, CONTEXT)
        )


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_prompt_read_in_parts_has_the_same_continuation(chunked, setting):
    assert (list(chunked.programs.admit), chunked.programs.chunk) == ([32, 48], 16)
    requests = [make_request(length, **SETTINGS[setting]) for length in (1, 15, 16, 17, 32, 33, 47, 48)]
    for request, tokens in zip(requests, generate_all(chunked, requests), strict=True):
        (expected,) = sample.generate(
            chunked.params,
            build_net(chunked.model),
            [request.prompt_N],
            request.sampling,
            stop_ids=(1,),
            utf8=chunked.tokenizer.utf8,
        )
        assert ids(tokens) == expected[: len(tokens)].tolist()
        assert len(tokens) == min(len(expected), CONTEXT - len(request.prompt_N) + 1)


def test_a_shorter_context_gives_the_same_text_until_it_is_full(tiny):
    programs = compile_programs(tiny.params, build_net(tiny.model), tiny.tokenizer, ROWS, 20)
    requests = [make_request(length, **SETTINGS["sampled"]) for length in (1, 19, 20)]
    short = generate_all(tiny._replace(programs=programs), requests, context=20)
    for request, tokens, whole in zip(requests, short, generate_all(tiny, requests), strict=True):
        assert ids(tokens) == ids(whole)[: 20 - len(request.prompt_N) + 1]


def test_all_other_texts_continue_between_two_parts_of_a_prompt(chunked, monkeypatch):
    calls = []

    def noted(name):
        function = getattr(scheduler, name)

        def call(programs, state):
            before = [w.read if w else 0 for w in state.generations]
            written_on = sum(w is not None for w in state.decoding())
            state, found = function(programs, state)
            calls.append(
                (
                    name,
                    sum(w.read - b for w, b in zip(state.generations, before, strict=True) if w),
                    written_on,
                )
            )
            return state, found

        monkeypatch.setattr(scheduler, name, call)

    noted("read")
    noted("step")
    generate_all(
        chunked, [make_request(4, max_tokens=20), make_request(48), make_request(40, temperature=0.0)]
    )
    assert sum(read for _, read, _ in calls) == 4 + 48 + 40
    assert all(read <= 16 for _, read, _ in calls)
    while calls[0][2] == 0:  # of the first part of the first prompt nobody waits
        calls.pop(0)
    names = [name for name, _, _ in calls]
    assert names.count("read") == 6
    assert "read read" not in " ".join(names)


@pytest.mark.parametrize("first", [0, 1, 20])
@pytest.mark.parametrize("length", [1, 2, 16, 17, 32, 40])
def test_log_probabilities_of_a_prompt_match_the_likelihood(tiny, chunked, first, length):
    request = make_request(length, echo=first, max_tokens=0)
    for programs in (tiny, chunked):
        (tokens,) = generate_all(programs, [request])
        assert ids(tokens) == request.prompt_N[first:].tolist()
        assert all(token.in_prompt for token in tokens)
        if length - first < 2:
            continue
        scored = [token for token in tokens if token.log_p is not None]
        assert len(scored) == length - max(first, 1)
        (expected,) = log_likelihoods(
            tiny.params, tiny.model, [(request.prompt_N, len(scored))], num_tokens=290, rows=1
        )
        assert sum(token.log_p for token in scored) == pytest.approx(expected.log_p, abs=1e-4)
        assert all(token.log_p <= token.likeliest[0][1] < 0 for token in scored)


def test_alternatives_are_the_most_likely_and_a_greedy_token_is_the_first_that_may_follow(tiny):
    """Log-probabilities are the model's own, in which tokens that may not follow keep their probability."""
    request = make_request(7, temperature=0.0)
    (tokens,) = generate_all(tiny, [request])
    before, followed = request.prompt_N, []
    for token in tokens:
        (first, log_p), (_, second) = token.likeliest
        followed.append(bool(tiny.tokenizer.utf8.may_follow(before)[first]))
        assert followed[-1] == (first == token.id)
        assert token.log_p == log_p if followed[-1] else token.log_p < log_p
        assert second <= log_p < 0
        before = np.append(before, token.id)
    assert set(followed) == {True, False}


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_texts_are_valid_and_complete_the_character_that_a_prompt_ends_in(tiny, temperature):
    byte_id = [tiny.tokenizer._processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
    ends = [b"", "光".encode()[:1], "光".encode()[:2], b"\xe0", b"\xed", b"\xf4", "😀".encode()[:3]]
    for echo in (None, 0, 2):
        told, generations = [[] for _ in ends], []
        for number, end in enumerate(ends):
            prompt_N = np.array([1, 4, *(byte_id[byte] for byte in end)], np.int32)
            sampling = SamplingConfig(max_tokens=20, temperature=temperature)
            request = GenerationRequest(prompt_N, sampling, number, echo=echo)
            generations.append(Generation(request, tiny.tokenizer, CONTEXT, told[number].append))
        write_all(tiny.programs, generations)
        for end, generation, pieces in zip(ends, generations, told, strict=True):
            ids = [piece.token.id for piece in pieces if piece.token]
            before = b"" if echo in (0, 2) else end
            shown = before + b"".join(map(tiny.tokenizer.token_bytes, ids))
            unfinished = tiny.tokenizer.utf8.unfinished(np.append(generation.request.prompt_N, ids))
            assert not unfinished or pieces[-1].finish == "length"
            assert "".join(piece.text for piece in pieces) == shown.removesuffix(unfinished).decode("utf-8")


def test_every_prompt_length_within_the_context_has_a_program(tiny):
    requests = [make_request(length, max_tokens=60, temperature=0.0) for length in range(1, 49)]
    told = generate_all(tiny, requests)
    assert sum(map(len, told)) > 48
    assert all(
        len(tokens) <= 48 - len(request.prompt_N) + 1 for request, tokens in zip(requests, told, strict=True)
    )
    assert list(tiny.programs.admit) == [32, 48]
    assert num_programs(tiny.model.max_length) == 3
