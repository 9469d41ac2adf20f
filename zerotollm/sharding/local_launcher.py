"""Several processes on this machine, to try out what several machines will do:

    python -m zerotollm.sharding.local_launcher --processes 2 -- python launch.py --experiment base

Each process gets the command with its own --distributed, and computes on the CPU unless JAX_PLATFORMS is set. If one
fails, the others are stopped, and its exit code is the launcher's. SIGTERM and Ctrl-C are passed on once.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

GRACE = 15.0  # seconds in which processes must end after another failed


def main(arguments: Sequence[str]) -> int:
    match list(arguments):
        case ["--processes", number, "--", *command] if number.isdecimal() and command:
            count = int(number)
        case _:
            sys.stderr.write(
                "error: write python -m zerotollm.sharding.local_launcher --processes N -- "
                "python launch.py --experiment NAME ...\n"
            )
            return 2
    if not 1 <= count <= 64:
        sys.stderr.write(f"error: --processes is {count}, and must be from 1 to 64\n")
        return 2
    coordinator = f"coordinator=127.0.0.1:{_free_port()}"
    processes = [
        subprocess.Popen(
            [*command, "--distributed", coordinator, f"process={process}", f"of={count}"],
            env={"JAX_PLATFORMS": "cpu"} | os.environ,
            start_new_session=True,  # without the terminal's Ctrl-C, which the launcher passes on
        )
        for process in range(count)
    ]
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, frame: signals.append(received))
    return _watch(processes, signals)


def _watch(processes: list[subprocess.Popen], signals: list[int]) -> int:
    failed, deadline, terminated = 0, None, False
    while any(process.poll() is None for process in processes):
        if signals and not terminated:
            terminated = True
            for process in processes:
                process.terminate()
        if not failed and (failed := _failure(processes)):
            deadline = time.monotonic() + GRACE
        if deadline and time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.05)
    failed = failed or _failure(processes)
    return failed if failed >= 0 else 128 - failed


def _failure(processes: list[subprocess.Popen]) -> int:
    return next((process.returncode for process in processes if process.returncode), 0)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
