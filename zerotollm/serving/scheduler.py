"""The scheduler: texts join the batch when a row is free and leave when they end, without compiling anything.

Prompts are read in parts. Between two parts all other texts continue: nobody waits for a long prompt.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.decoding import continuous
from zerotollm.decoding.config import SamplingConfig
from zerotollm.model.accelerator import FEW_ROWS
from zerotollm.model.build import Net, Params
from zerotollm.model.layers import fuse_projections
from zerotollm.serving.generation import Generation, Token

Admit = Callable[..., tuple[continuous.Slots, continuous.SampledTokens, continuous.SampledTokens]]
Step = Callable[..., tuple[continuous.Slots, continuous.SampledTokens]]
NewTokens = list[tuple[Generation, Token]]


class Programs(NamedTuple):
    """Programs that are compiled before the first request."""

    params: Params
    next_state_SV: jax.Array
    """of `Utf8Automaton`"""
    empty: Callable[[], continuous.Slots]
    admit: dict[int, Admit]
    """by the reach of a part of a prompt, smallest first"""
    step: Step
    rows: int
    chunk: int
    """most tokens of a part"""
    token_shift: int


class Batch(NamedTuple):
    """The rows of the cache, and the generation in each."""

    slots: continuous.Slots
    generations: tuple[Generation | None, ...]
    reading: tuple[int, ...] = ()
    """rows whose prompt is not completely read; the first is next"""

    def without_done(self) -> "Batch":
        """Return the batch without finished generations."""
        generations = tuple(g if g and not g.done else None for g in self.generations)
        return Batch(self.slots, generations, tuple(row for row in self.reading if generations[row]))

    def with_new(self, new: Sequence[Generation]) -> "Batch":
        """Return the batch with more generations, for which there must be free rows."""
        generations = list(self.generations)
        rows = [row for row, generation in enumerate(generations) if generation is None][: len(new)]
        for row, generation in zip(rows, new, strict=True):
            generations[row] = generation
        return Batch(self.slots, tuple(generations), (*self.reading, *rows))

    def decoding(self) -> list[Generation | None]:
        """Return the generations, by row, whose prompt is read."""
        return [None if row in self.reading else g for row, g in enumerate(self.generations)]


def compile_programs(
    params: Params,
    net: Net,
    tokenizer: AnyTokenizer,
    rows: int,
    context: int,
    done: Callable[[], object] = lambda: None,
) -> Programs:
    """Return programs for `rows` texts of at most `context` tokens, prompts included.

    `done` is called after each of the `num_programs` programs.
    """
    next_state_SV = jnp.asarray(tokenizer.utf8.next_state_SV)
    empty = jax.jit(lambda: continuous.empty_slots(net, rows, context)).lower().compile()
    shapes = jax.eval_shape(empty)
    # Memory-mapped weights would be copied in every call.
    params, admit = fuse_projections(jax.tree.map(jnp.asarray, params)), {}
    lowered = continuous.step.lower(
        params, shapes, next_state_SV, np.zeros(rows, bool), np.bool_(False), net=net
    )
    step = lowered.compile(FEW_ROWS)
    done()
    reaches = continuous.reaches(context)
    for reach in reaches:
        part = _part(np.zeros(1, np.int32), 0, 1, min(reach, continuous.CHUNK), net.config.token_shift)
        flags = (np.bool_(False), np.bool_(False))
        arguments = (next_state_SV, np.int32(0), *part, np.int8(0), sampling_arguments(None), *flags)
        admit[reach] = continuous.admit.lower(params, shapes, *arguments, reach=reach, net=net).compile()
        done()
    chunk = min(reaches[-1], continuous.CHUNK)
    return Programs(params, next_state_SV, empty, admit, step, rows, chunk, net.config.token_shift)


def num_programs(context: int) -> int:
    """Return the number of programs that `compile_programs` compiles."""
    return 1 + len(continuous.reaches(context))


def _part(
    prompt_N: np.ndarray, start: int, length: int, width: int, token_shift: int
) -> tuple[np.ndarray, np.ndarray, np.int32, np.int32]:
    """Return the arguments of `continuous.admit` from `tokens_M` to `length`, for a part padded to `width`."""
    padded = np.pad(prompt_N, (token_shift, width + 1))
    tokens_M = padded[start : start + token_shift + width]
    targets_T = padded[start + token_shift + 1 :][:width]
    return tokens_M, targets_T, np.int32(start), np.int32(length)


def sampling_arguments(generation: Generation | None) -> tuple[np.number, ...]:
    """Return the arguments of `SamplingParams.row`, in the types that the programs were compiled for."""
    s = generation.request.sampling if generation else SamplingConfig(temperature=0.0)
    return (
        np.float32(s.temperature),
        np.int32(s.top_k),
        np.float32(s.top_p),
        np.float32(s.min_p),
        np.uint32(s.seed),
        np.int32(generation.request.number if generation else 0),
    )


def read(programs: Programs, batch: Batch) -> tuple[Batch, NewTokens]:
    """Read the next parts of prompts, one after the other, at most `programs.chunk` tokens with padding.

    Return the batch, and the new tokens: those of a prompt that is echoed, and the first after a complete prompt. The
    old `batch` is donated.
    """
    slots, reading, tokens = batch.slots, list(batch.reading), []
    room = programs.chunk
    for row in batch.reading:
        generation = cast(Generation, batch.generations[row])
        request, start = generation.request, generation.read
        prompt_N, echo = request.prompt_N, request.echo
        length = continuous.part_length(start, len(prompt_N), programs.chunk)
        reach = next(reach for reach in programs.admit if reach >= start + length)
        width = min(reach, programs.chunk)
        room -= width
        if room < 0:
            break
        with_log_p = request.alternatives is not None
        slots, first, scores = programs.admit[reach](
            programs.params,
            slots,
            programs.next_state_SV,
            np.int32(row),
            *_part(prompt_N, start, length, width, programs.token_shift),
            np.int8(generation.tokenizer.utf8.state(prompt_N)),
            sampling_arguments(generation),
            np.bool_(with_log_p),
            np.bool_(with_log_p and echo is not None),
        )
        generation.read = start + length
        complete = generation.read == len(prompt_N)
        if echo is not None:
            echoed = [(generation, Token(int(prompt_N[0]), None, in_prompt=True))] if start == 0 else []
            echoed += _tokens(scores, [generation] * (length - complete), in_prompt=True)
            first_echoed = start + (start > 0)
            tokens += echoed[max(0, echo - first_echoed) :]
        reading.remove(row)
        if complete:
            tokens += _tokens(first, [generation])
        else:
            reading.append(row)
    return Batch(slots, batch.generations, tuple(reading)), tokens


def step(programs: Programs, batch: Batch) -> tuple[Batch, NewTokens]:
    """Sample the next token of every text whose prompt is read. The old `batch` is donated."""
    generations = batch.decoding()
    active_R = np.array([generation is not None for generation in generations])
    slots, sampled = programs.step(
        programs.params, batch.slots, programs.next_state_SV, active_R, np.bool_(_any_log_p(generations))
    )
    return batch._replace(slots=slots), _tokens(sampled, generations)


def _any_log_p(generations: Sequence[Generation | None]) -> bool:
    return any(g is not None and g.request.alternatives is not None for g in generations)


def _tokens(
    sampled: continuous.SampledTokens, generations: Sequence[Generation | None], in_prompt: bool = False
) -> NewTokens:
    """Return the token in each row of `sampled` with its generation. `sampled` may have more rows."""
    token_R, *log_p = jax.device_get(sampled if _any_log_p(generations) else sampled[:1])
    tokens = []
    for row, generation in enumerate(generations):
        if generation is None:
            continue
        token = Token(int(token_R[row]), in_prompt=in_prompt)
        if (alternatives := generation.request.alternatives) is not None:
            log_p_R, ids_RA, log_p_RA = log_p
            best = zip(ids_RA[row, :alternatives], log_p_RA[row, :alternatives], strict=True)
            likeliest = tuple((int(i), float(log_p)) for i, log_p in best)
            token = token._replace(log_p=float(log_p_R[row]), likeliest=likeliest)
        tokens.append((generation, token))
    return tokens


def write_all(programs: Programs, generations: Sequence[Generation]) -> None:
    """Complete all texts, as many at once as there are rows."""
    batch, waiting = Batch(programs.empty(), (None,) * programs.rows), deque(generations)
    while waiting or any(batch.generations):
        free = min(len(waiting), batch.generations.count(None))
        batch = batch.with_new([waiting.popleft() for _ in range(free)])
        for advance in (read, step):
            if batch.reading if advance is read else any(batch.decoding()):
                batch, tokens = advance(programs, batch)
                for generation, token in tokens:
                    generation.take(token)
                batch = batch.without_done()


async def write(programs: Programs, queue: asyncio.Queue[Generation]) -> None:
    """Complete the texts that arrive in `queue`, forever. The device computes in another thread."""
    batch = Batch(programs.empty(), (None,) * programs.rows)
    while True:
        new = []
        if not any(batch.generations):
            new.append(await queue.get())
        while not queue.empty() and len(new) < batch.generations.count(None):
            new.append(queue.get_nowait())
        batch = batch.with_new([generation for generation in new if not generation.done])
        for advance in (read, step):
            if batch.reading if advance is read else any(batch.decoding()):
                batch, tokens = await asyncio.to_thread(advance, programs, batch)
                for generation, token in tokens:
                    if not generation.done:
                        generation.take(token)
                batch = batch.without_done()
