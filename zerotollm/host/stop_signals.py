"""Signals that ask a run to stop after its current step."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from zerotollm.errors import RunError


class StoppedError(RunError):
    """A run was asked to stop, and saved a checkpoint. Exit code 128 + signal: 143 for SIGTERM, 130 for Ctrl-C."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.exit_code = 128 + number


@contextmanager
def stop_requests(hangup: bool = False) -> Iterator[list[int]]:
    """Yield a list that receives SIGTERM and the first Ctrl-C; a second Ctrl-C raises KeyboardInterrupt.

    With `hangup` also SIGHUP, sent when the terminal is closed, unless `nohup` ignores it. Outside the main thread,
    where Python allows no handlers, the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def receive(number: int, frame: object) -> None:
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    numbers = [signal.SIGTERM, signal.SIGINT]
    if sys.platform != "win32" and hangup and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        numbers.append(signal.SIGHUP)
    handlers = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
