"""Who is in the batch: texts join when a row is free and leave when they end, and nothing is compiled meanwhile."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from zerotollm.compute.device import FEW_ROWS
from zerotollm.data.tokenizer import AnyTokenizer
from zerotollm.decoding import slots
from zerotollm.model.config import TransformerConfig
from zerotollm.model.layers import joined
from zerotollm.serving.writing import Token, Writing


class Programs(NamedTuple):
    """What is compiled before the first text comes."""

    params: Any
    empty: Callable[[], slots.Slots]
    admit: dict[int, Callable[..., tuple[slots.Slots, slots.Drawn]]]
    """by the width of the prompt, the least first"""
    step: Callable[..., tuple[slots.Slots, slots.Drawn]]
    rows: int


class Batch(NamedTuple):
    """The rows, and whose text is in each."""

    slots: slots.Slots
    writings: tuple[Writing | None, ...]

    def left(self) -> "Batch":
        """Without those that are done."""
        return self._replace(writings=tuple(w if w and not w.done else None for w in self.writings))


def compile_programs(
    params: Any, model: TransformerConfig, tokenizer: AnyTokenizer, rows: int, done: Callable[[], None] = int
) -> Programs:
    """Programs for `rows` texts at once; `done` is called after each, of which there are `num_programs`."""
    fixed = {"model": model, "num_tokens": tokenizer.vocab_size}
    empty = jax.jit(lambda: slots.empty_slots(model, rows)).lower().compile()
    shapes = jax.eval_shape(empty)
    # Weights that lie in the file's memory would be copied in every call.
    params, admit = joined(jax.device_put(params)), {}
    lowered = slots.step.lower(params, shapes, np.zeros(rows, bool), np.bool_(False), **fixed)
    step = lowered.compile(FEW_ROWS)
    done()
    for width in slots.prompt_widths(model):
        prompt_T = np.zeros(width, np.int32)
        numbers = (np.int32(0), prompt_T, np.int32(1), settings_of(None), np.bool_(False))
        admit[width] = slots.admit.lower(params, shapes, *numbers, **fixed).compile()
        done()
    return Programs(params, empty, admit, step, rows)


def num_programs(model: TransformerConfig) -> int:
    """How many `compile_programs` compiles."""
    return 1 + len(slots.prompt_widths(model))


def settings_of(writing: Writing | None) -> tuple[Any, ...]:
    """The arguments of `Choice.row`, in the types that the programs take."""
    if writing is None:
        return np.float32(0), np.int32(0), np.float32(1), np.float32(0), np.uint32(0), np.int32(0)
    s, number = writing.wanted.sampling, writing.wanted.number
    return (
        np.float32(s.temperature),
        np.int32(s.top_k),
        np.float32(s.top_p),
        np.float32(s.min_p),
        np.uint32(s.seed),
        np.int32(number),
    )


def advance(
    programs: Programs, batch: Batch, newcomers: Sequence[Writing]
) -> tuple[Batch, list[tuple[Writing, Token]]]:
    """The first token of each newcomer, for all of which there are free rows; without any, the next of everyone.

    The old `batch` is used up. Newcomers go first: they need not wait for a step to see that they were heard.
    """
    if newcomers:
        state, writings, drawn = batch.slots, list(batch.writings), []
        for writing in newcomers:
            row = writings.index(None)
            writings[row], prompt_N = writing, writing.wanted.prompt_N
            width = next(width for width in programs.admit if width >= len(prompt_N))
            state, first = programs.admit[width](
                programs.params,
                state,
                np.int32(row),
                np.pad(prompt_N, (0, width - len(prompt_N))),
                np.int32(len(prompt_N)),
                settings_of(writing),
                np.bool_(writing.wanted.alternatives is not None),
            )
            drawn += _tokens(first, [writing])
        return Batch(state, tuple(writings)), drawn
    active_R = np.array([writing is not None for writing in batch.writings])
    told = any(writing and writing.wanted.alternatives is not None for writing in batch.writings)
    state, following = programs.step(programs.params, batch.slots, active_R, np.bool_(told))
    return Batch(state, batch.writings), _tokens(following, batch.writings)


def _tokens(drawn: slots.Drawn, writings: Sequence[Writing | None]) -> list[tuple[Writing, Token]]:
    told = any(writing and writing.wanted.alternatives is not None for writing in writings)
    token_R, *likely = jax.device_get(drawn if told else drawn[:1])
    found = []
    for row, writing in enumerate(writings):
        if writing is None:
            continue
        token = Token(int(token_R[row]))
        if (alternatives := writing.wanted.alternatives) is not None:
            log_p_R, ids_RA, log_p_RA = likely
            best = zip(ids_RA[row, :alternatives], log_p_RA[row, :alternatives], strict=True)
            likeliest = tuple((int(i), float(log_p)) for i, log_p in best)
            token = Token(token.id, float(log_p_R[row]), likeliest)
        found.append((writing, token))
    return found


def write_all(programs: Programs, writings: Sequence[Writing]) -> None:
    """Writes all texts to their end, as many at once as there are rows."""
    batch, waiting = Batch(programs.empty(), (None,) * programs.rows), deque(writings)
    while waiting or any(batch.writings):
        free = min(len(waiting), batch.writings.count(None))
        batch, drawn = advance(programs, batch, [waiting.popleft() for _ in range(free)])
        for writing, token in drawn:
            writing.take(token)
        batch = batch.left()


async def write(programs: Programs, line: asyncio.Queue[Writing]) -> None:
    """Writes the texts that come through `line`, for ever. The device computes in a thread of its own."""
    batch = Batch(programs.empty(), (None,) * programs.rows)
    while True:
        newcomers = []
        if not any(batch.writings):
            newcomers.append(await line.get())
        while not line.empty() and len(newcomers) < batch.writings.count(None):
            newcomers.append(line.get_nowait())
        newcomers = [writing for writing in newcomers if not writing.done]
        if newcomers or any(batch.writings):
            batch, drawn = await asyncio.to_thread(advance, programs, batch, newcomers)
            for writing, token in drawn:
                if not writing.done:
                    writing.take(token)
        batch = batch.left()
