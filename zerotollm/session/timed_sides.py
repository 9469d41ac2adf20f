"""Both sides of `bench`, ours and PyTorch's: each prepares and measures in a process of its own.

A side is a function that returns (facts, measurements by name). A measurement repeats a step, or the writing of texts,
for some seconds and returns the time of each. No heavy imports: PyTorch's process must not hold jax.
"""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import NamedTuple, TypeVar

import numpy as np

from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment, continues

Facts = TypeVar("Facts")
Measurements = Mapping[str, Callable[[float], list[float]]]
Ask = Callable[[str, float], list[float]]
"""(name of a measurement, seconds) -> its times"""

DECODE_ROWS = (1, 16, 64)
"""Texts written at once."""
PROMPT = 4
"""Tokens of a prompt."""
BATCHES = 8
"""Different batches, used in turn."""
WARM_UP = 3
"""Steps that are not measured."""


@contextmanager
def side_process(
    name: str, side: Callable[..., tuple[Facts, Measurements]], *arguments: object
) -> Iterator[tuple[Facts, Ask]]:
    """Start a side in a new process; give its facts, and a function that asks it for a measurement.

    UsageError and RunError of the side are raised here. Any other error is shown by the process, and ends it.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit this process's jax
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, side, *arguments), daemon=True)
    process.start()
    there.close()

    def receive():
        try:
            answer = here.recv()
        except EOFError:
            raise RunError(f"the process that measures {name} died; its error is shown above") from None
        if isinstance(answer, UsageError | RunError):
            raise answer
        return answer

    def ask(measurement: str, seconds: float) -> list[float]:
        here.send((measurement, seconds))
        return receive()

    try:
        yield receive(), ask
    finally:
        process.terminate()
        process.join()
        here.close()


def _serve(
    connection: Connection, side: Callable[..., tuple[Facts, Measurements]], *arguments: object
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's, who then ends this process
    try:
        facts, measurements = side(*arguments)
        connection.send(facts)
        while True:
            try:
                name, seconds = connection.recv()
            except EOFError:  # the caller has ended
                return
            connection.send(measurements[name](seconds))
    except (UsageError, RunError) as error:
        connection.send(error)


def timed(call: Callable[[], object], seconds: float) -> list[float]:
    """Return the time of each call in `seconds`, of at least one."""
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return times


def paced(begin: Callable[[], Callable[[], object]], seconds: float, at_least: int = 1) -> list[float]:
    """Return the times between the ends of steps in `seconds`; each begins before the last has ended, as in training.

    `begin` begins a step and returns a function that waits for its end.
    """
    times, wait = [], begin()
    last = time.perf_counter()
    end = last + seconds
    while len(times) < at_least or last < end:
        following = begin()
        wait()
        wait, now = following, time.perf_counter()
        times.append(now - last)
        last = now
    wait()
    return times[1:] or times  # the first step had none before it


def random_tokens(experiment: Experiment, vocab_size: int) -> list[np.ndarray]:
    """Return int64 batches (B, T + 1) of inputs and, one further, targets. Speed does not depend on the text."""
    data, rng = experiment.data, np.random.default_rng(0)
    return [rng.integers(0, vocab_size, (data.batch_size, data.context + 1)) for _ in range(BATCHES)]


class Texts(NamedTuple):
    """Texts that are written at once, greedily."""

    rows: int
    prompt: int
    """tokens of each prompt"""
    new: int
    """tokens written after it"""


def text_measurements(experiment: Experiment) -> dict[str, Texts]:
    """Return the measurements "decode ROWS" and "prefill", by name; none for models with an encoder or labels.

    Decoding fills the context from a short prompt, and draws the token after it. Prefill reads one prompt of the whole
    context, and draws the token after it.
    """
    if not continues(experiment):
        return {}
    context = experiment.data.context
    prompt = min(PROMPT, context)
    decoding = {f"decode {rows}": Texts(rows, prompt, context - prompt + 1) for rows in DECODE_ROWS}
    return decoding | {"prefill": Texts(1, context, 1)}
