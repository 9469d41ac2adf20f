"""Several processes on this machine, to try what several machines will do:

    python -m zerotollm.sharding.local_launcher --processes 2 -- python launch.py --experiment base

Each gets the same command with its own --distributed, and computes on a share of nothing but the CPU: one process
drives all GPUs of a machine better than several (`JAX_PLATFORMS` says otherwise). Where one fails, the others are
stopped, and its exit code is the launcher's; SIGTERM and Ctrl-C are handed on, once.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

GRACE = 15.0
"""Seconds that processes have to end after another failed."""


def main(arguments: Sequence[str]) -> int:
    """Starts and watches the processes. Returns the exit code: of the first that failed, else 0."""
    words = list(arguments)
    if len(words) < 4 or words[0] != "--processes" or words[2] != "--" or not words[1].isdecimal():
        sys.stderr.write(
            "error: write python -m zerotollm.sharding.local_launcher --processes N -- "
            "python launch.py --experiment NAME ...\n"
        )
        return 2
    count, command = int(words[1]), words[3:]
    if not 1 <= count <= 64:
        sys.stderr.write(f"error: --processes is {count}, and must be from 1 to 64\n")
        return 2
    coordinator = f"127.0.0.1:{_free_port()}"
    environment = {"JAX_PLATFORMS": "cpu"} | os.environ
    processes = [
        subprocess.Popen(
            [*command, "--distributed", f"coordinator={coordinator}", f"process={number}", f"of={count}"],
            env=environment,
            start_new_session=True,  # a Ctrl-C comes from here alone
        )
        for number in range(count)
    ]
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, frame: asked.append(received))
    return _watch(processes, asked)


def _watch(processes: list[subprocess.Popen], asked: list[int]) -> int:
    """Waits for all."""
    failed, deadline, told = 0, None, False
    while any(process.poll() is None for process in processes):
        if asked and not told:
            told = True
            for process in processes:
                process.terminate()
        codes = [process.returncode for process in processes if process.returncode]
        if codes and not failed:
            failed = codes[0]
            deadline = time.monotonic() + GRACE
        if deadline and time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.05)
    failed = failed or next((process.returncode for process in processes if process.returncode), 0)
    return failed if failed >= 0 else 128 - failed


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
