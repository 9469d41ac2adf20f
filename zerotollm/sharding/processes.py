"""Several processes that compute together, each with its own devices (`jax.distributed`).

All run the same program at the same time. The first writes the files; the others wait until it has succeeded. A
single process is the first of one.
"""

import hashlib
import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from zerotollm.errors import RunError, UsageError

T = TypeVar("T")

TIMEOUT = 60  # seconds that processes wait for each other at the start
MESSAGE_BYTES = 4096  # size of the message in which the first process shares a result


def together() -> bool:
    """Return whether there are several processes. Does not start jax's backend."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Return whether this process writes the files."""
    return not together() or jax.process_index() == 0


def join(coordinator: str, process: int, num_processes: int, timeout: float = TIMEOUT) -> None:
    """Connect to the other processes, which jax can find by itself in a cluster, before its backend starts."""
    address: list[Any] = []
    if coordinator:
        meet(coordinator, process, num_processes, timeout)
        address = [coordinator, num_processes, process]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(*address, initialization_timeout=int(timeout))
    except ValueError as error:
        raise UsageError(
            f"--distributed auto finds no cluster here ({error}): give coordinator=HOST:PORT process=N of=N"
        ) from None
    except RuntimeError as error:
        raise RunError(
            f"not all {num_processes or 'of the'} processes met at {coordinator or 'the coordinator'} within "
            f"{timeout:g} s: check that each was started, with an address that it can reach "
            f"({str(error).splitlines()[0][:120]})"
        ) from None


def meet(coordinator: str, process: int, num_processes: int, timeout: float) -> None:
    """Return in all processes once all are there. (jax would wait too, but abort a process without a message.)

    The first listens at the coordinator's address, the others send their numbers and hear which are missing. Raises
    RunError, with the same message in all processes, if one is not there within `timeout` seconds.
    """
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + timeout
    number = int(port)
    answer = _report(host, number, process, deadline) if process else _listen(number, num_processes, deadline)
    if not answer:
        raise RunError(
            f"no coordinator answers at {coordinator} within {timeout:g} s: start process 0 there, or correct "
            "--distributed"
        )
    if missing := answer.strip():
        raise RunError(
            f"process {missing} of {num_processes} did not come to {coordinator} within {timeout:g} s: check that it "
            "was started"
        )


def _listen(port: int, num_processes: int, deadline: float) -> str:
    """Return the line with the numbers of the missing processes, and send it to the others."""
    connections: dict[int, socket.socket] = {}
    try:
        with socket.create_server(("", port)) as server:
            while len(connections) < num_processes - 1 and time.monotonic() < deadline:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                with suppress(TimeoutError, ValueError, UnicodeDecodeError):
                    connection, _ = server.accept()
                    connection.settimeout(5)
                    number = int(connection.recv(16).decode())
                    if 0 < number < num_processes:
                        connections[number] = connection
    except OSError as error:
        message = f"cannot listen on port {port}: {error.strerror}: choose another in --distributed"
        raise RunError(message) from None
    answer = ", ".join(str(number) for number in range(1, num_processes) if number not in connections) + "\n"
    for connection in connections.values():
        with suppress(OSError), connection:
            connection.sendall(answer.encode())
            connection.recv(1)  # the other side closes first: the port is free at once
    return answer


def _report(host: str, port: int, process: int, deadline: float) -> str:
    """Return the line that `_listen` sends, or an empty text if nobody listens."""
    while time.monotonic() < deadline:
        with suppress(OSError, UnicodeDecodeError), socket.create_connection((host, port), 5) as connection:
            connection.sendall(str(process).encode())
            connection.settimeout(max(1.0, deadline + 5 - time.monotonic()))
            answer = connection.recv(4096).decode()
            if answer.endswith("\n"):
                return answer
        time.sleep(0.2)
    return ""


def check_same(**values: Any) -> None:
    """Raise UsageError, with the same message in all processes, if one of these JSON values differs between them."""
    if not together():
        return
    digests = [hashlib.sha256(json.dumps(value).encode()).digest() for value in values.values()]
    local = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1)
    everywhere = np.asarray(multihost_utils.process_allgather(local))
    for name, digest in zip(values, everywhere.swapaxes(0, 1), strict=True):
        different = np.flatnonzero((digest != digest[0]).any(axis=-1))
        if len(different):
            raise UsageError(
                f"process {different[0]} has another {name} than process 0: start all {len(digest)} processes with "
                "the same command and the same code"
            )


def code_version(*folders: Path) -> str:
    """Return a hash of all Python files below these folders, and the versions of numerical packages."""
    content = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            content.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    packages = [f"{name} {version(name)}" for name in ("jax", "jaxlib", "flax", "optax", "numpy")]
    return f"{content.hexdigest()} {' '.join(packages)}"


def on_first(work: Callable[[], T]) -> T:
    """Run `work` in the first process. Return its result, a JSON value, or raise its error, in all of them."""
    if not together():
        return work()
    error, result, message = None, None, np.zeros(MESSAGE_BYTES, np.uint8)
    if is_first():
        try:
            result = work()
        except (UsageError, RunError, OSError) as raised:
            error = raised
        kind = "" if error is None else "usage" if isinstance(error, UsageError) else "run"
        content = json.dumps([kind, str(error)[:1500], result]).encode()
        if len(content) > MESSAGE_BYTES:
            raise ValueError(f"a message of {len(content)} bytes is longer than {MESSAGE_BYTES}")
        message[: len(content)] = np.frombuffer(content, np.uint8)
    message = np.asarray(multihost_utils.broadcast_one_to_all(message, is_source=is_first()))
    kind, text, shared = json.loads(message.tobytes().rstrip(b"\0"))
    if kind:
        raise error or (UsageError if kind == "usage" else RunError)(text)
    return cast(T, result if is_first() else shared)


def stop_requested(step: int) -> bool:
    """Return whether any process received SIGTERM. All processes agree after the same step."""
    return bool(multihost_utils.reached_preemption_sync_point(step))
