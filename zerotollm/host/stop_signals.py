"""Signals that ask a run to stop after the step it is in."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from zerotollm.errors import RunError


class StoppedError(RunError):
    """A run was asked to stop, and saved itself. Exit code 128 + signal: 143 for SIGTERM, 130 for Ctrl-C."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.exit_code = 128 + number


@contextmanager
def stop_requests(hangup: bool = False) -> Iterator[list[int]]:
    """A list to which SIGTERM and the first Ctrl-C are added; a second Ctrl-C interrupts at once, as ever. With
    `hangup` also SIGHUP, which comes when the terminal is closed, unless it is ignored as `nohup` has it.

    Outside the main thread, where Python allows no handlers, the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: object) -> None:
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    numbers = [signal.SIGTERM, signal.SIGINT]
    if hangup and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
