"""Continuous batching: a text joins when a row is free and leaves when it ends, and nothing is compiled meanwhile.

Prompts are read in parts. Between two parts every other text gets a token, so that none waits for a long prompt.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.decoding import continuous
from zerotollm.model.accelerator import FEW_ROWS
from zerotollm.model.build import Net
from zerotollm.model.layers import fuse_projections
from zerotollm.serving.generation import Generation, Token


class Programs(NamedTuple):
    """What is compiled before the first text comes."""

    params: Any
    empty: Callable[[], continuous.Slots]
    admit: dict[int, Callable[..., tuple[continuous.Slots, continuous.Drawn, continuous.Drawn]]]
    """by the reach of the part of a prompt, the least first"""
    step: Callable[..., tuple[continuous.Slots, continuous.Drawn]]
    rows: int
    chunk: int
    """most tokens of a part"""
    token_shift: int


class Batch(NamedTuple):
    """The rows, and whose text is in each."""

    slots: continuous.Slots
    writings: tuple[Generation | None, ...]
    reading: tuple[int, ...] = ()
    """rows whose prompt is not read to its end; the next is the first"""

    def left(self) -> "Batch":
        """Without those that are done."""
        writings = tuple(w if w and not w.done else None for w in self.writings)
        return Batch(self.slots, writings, tuple(row for row in self.reading if writings[row]))

    def joined(self, newcomers: Sequence[Generation]) -> "Batch":
        """With those, for all of which there are free rows."""
        writings, rows = list(self.writings), [row for row, w in enumerate(self.writings) if w is None]
        for row, writing in zip(rows, newcomers, strict=False):
            writings[row] = writing
        return Batch(self.slots, tuple(writings), (*self.reading, *rows[: len(newcomers)]))

    def written(self) -> list[Generation | None]:
        """By row, the texts whose prompt is read."""
        return [None if row in self.reading else writing for row, writing in enumerate(self.writings)]


def compile_programs(
    params: Any,
    net: Net,
    tokenizer: AnyTokenizer,
    rows: int,
    context: int,
    done: Callable[[], None] = int,
) -> Programs:
    """Programs for `rows` texts at once, of at most `context` tokens with their prompts; `done` is called after each
    program, of which there are `num_programs`."""
    fixed = {"net": net, "num_tokens": tokenizer.vocab_size}
    empty = jax.jit(lambda: continuous.empty_slots(net, rows, context)).lower().compile()
    shapes = jax.eval_shape(empty)
    # Weights that lie in the file's memory would be copied in every call.
    params, admit = fuse_projections(jax.tree.map(jnp.asarray, params)), {}
    lowered = continuous.step.lower(params, shapes, np.zeros(rows, bool), np.bool_(False), **fixed)
    step = lowered.compile(FEW_ROWS)
    done()
    reaches = continuous.reaches(context)
    for reach in reaches:
        part = _part(np.zeros(1, np.int32), 0, 1, min(reach, continuous.CHUNK), net.config.token_shift)
        numbers = (np.int32(0), *part, settings_of(None), np.bool_(False), np.bool_(False))
        admit[reach] = continuous.admit.lower(params, shapes, *numbers, reach=reach, **fixed).compile()
        done()
    return Programs(
        params, empty, admit, step, rows, min(reaches[-1], continuous.CHUNK), net.config.token_shift
    )


def num_programs(context: int) -> int:
    """How many `compile_programs` compiles."""
    return 1 + len(continuous.reaches(context))


def _part(prompt_N: np.ndarray, start: int, length: int, width: int, token_shift: int) -> tuple[Any, ...]:
    """Return arguments of `continuous.admit`: tokens before and in the part, those after each, its start and length."""
    longer = np.pad(prompt_N, (token_shift, width + 1))
    tokens_M = longer[start : start + token_shift + width]
    targets_T = longer[start + token_shift + 1 :][:width]
    return tokens_M, targets_T, np.int32(start), np.int32(length)


def settings_of(writing: Generation | None) -> tuple[Any, ...]:
    """The arguments of `SamplingParams.row`, in the types that the programs take."""
    if writing is None:
        return np.float32(0), np.int32(0), np.float32(1), np.float32(0), np.uint32(0), np.int32(0)
    s, number = writing.request.sampling, writing.request.number
    return (
        np.float32(s.temperature),
        np.int32(s.top_k),
        np.float32(s.top_p),
        np.float32(s.min_p),
        np.uint32(s.seed),
        np.int32(number),
    )


def read(programs: Programs, batch: Batch) -> tuple[Batch, list[tuple[Generation, Token]]]:
    """The next parts of prompts, of one after the other, together with padding at most `programs.chunk` tokens.

    Returns tokens of a prompt where its text begins with them, and the first draw after a prompt that is read to its
    end. The old `batch` is used up.
    """
    state, reading, found = batch.slots, list(batch.reading), []
    room = programs.chunk
    for row in batch.reading:
        writing = batch.writings[row]
        prompt_N, start, asked = (
            writing.request.prompt_N,
            writing.read,
            writing.request.alternatives is not None,
        )
        length = continuous.part_length(start, len(prompt_N), programs.chunk)
        reach = next(reach for reach in programs.admit if reach >= start + length)
        width = min(reach, programs.chunk)
        room -= width
        if room < 0:
            break
        echo = writing.request.echo
        state, first, told = programs.admit[reach](
            programs.params,
            state,
            np.int32(row),
            *_part(prompt_N, start, length, width, programs.token_shift),
            settings_of(writing),
            np.bool_(asked),
            np.bool_(asked and echo is not None),
        )
        writing.read = start + length
        whole = writing.read == len(prompt_N)
        if echo is not None:
            given = [(writing, Token(int(prompt_N[0]), None, in_prompt=True))] if start == 0 else []
            given += _tokens(told, [writing] * (length - whole), in_prompt=True)
            first_told = start + (start > 0)
            found += given[max(0, echo - first_told) :]
        reading.remove(row)
        if whole:
            found += _tokens(first, [writing])
        else:
            reading.append(row)
    return Batch(state, batch.writings, tuple(reading)), found


def step(programs: Programs, batch: Batch) -> tuple[Batch, list[tuple[Generation, Token]]]:
    """The next token of every text whose prompt is read. The old `batch` is used up."""
    writings = batch.written()
    active_R = np.array([writing is not None for writing in writings])
    told = any(writing and writing.request.alternatives is not None for writing in writings)
    state, following = programs.step(programs.params, batch.slots, active_R, np.bool_(told))
    return batch._replace(slots=state), _tokens(following, writings)


def _tokens(
    drawn: continuous.Drawn, writings: Sequence[Generation | None], in_prompt: bool = False
) -> list[tuple[Generation, Token]]:
    """The token in each row of `drawn` and whose it is. `drawn` may have more rows."""
    told = any(writing and writing.request.alternatives is not None for writing in writings)
    token_R, *likely = jax.device_get(drawn if told else drawn[:1])
    found = []
    for row, writing in enumerate(writings):
        if writing is None:
            continue
        token = Token(int(token_R[row]), in_prompt=in_prompt)
        if (alternatives := writing.request.alternatives) is not None:
            log_p_R, ids_RA, log_p_RA = likely
            best = zip(ids_RA[row, :alternatives], log_p_RA[row, :alternatives], strict=True)
            likeliest = tuple((int(i), float(log_p)) for i, log_p in best)
            token = token._replace(log_p=float(log_p_R[row]), likeliest=likeliest)
        found.append((writing, token))
    return found


def write_all(programs: Programs, writings: Sequence[Generation]) -> None:
    """Writes all texts to their end, as many at once as there are rows."""
    batch, waiting = Batch(programs.empty(), (None,) * programs.rows), deque(writings)
    while waiting or any(batch.writings):
        free = min(len(waiting), batch.writings.count(None))
        batch = batch.joined([waiting.popleft() for _ in range(free)])
        for advance in (read, step):
            if batch.reading if advance is read else any(batch.written()):
                batch, found = advance(programs, batch)
                for writing, token in found:
                    writing.take(token)
                batch = batch.left()


async def write(programs: Programs, line: asyncio.Queue[Generation]) -> None:
    """Writes the texts that come through `line`, for ever. The device computes in a thread of its own."""
    batch = Batch(programs.empty(), (None,) * programs.rows)
    while True:
        newcomers = []
        if not any(batch.writings):
            newcomers.append(await line.get())
        while not line.empty() and len(newcomers) < batch.writings.count(None):
            newcomers.append(line.get_nowait())
        batch = batch.joined([writing for writing in newcomers if not writing.done])
        for advance in (read, step):
            if batch.reading if advance is read else any(batch.written()):
                batch, found = await asyncio.to_thread(advance, programs, batch)
                for writing, token in found:
                    if not writing.done:
                        writing.take(token)
                batch = batch.left()
