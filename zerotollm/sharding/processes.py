"""Several processes that compute together, each with devices of its own (`jax.distributed`).

All of them run the same program at the same time. The first writes what is written once; before it says that this went
well, no other goes on. A single process is the first of one, and nothing here costs it anything.
"""

import hashlib
import json
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from zerotollm.errors import RunError, UsageError

T = TypeVar("T")

LIMIT = 60
"""Seconds that processes wait for each other at the start."""
MESSAGE = 4096
"""Bytes in which the first process says what came of its work."""


def together() -> bool:
    """Whether there are several processes. Does not start jax."""
    jax = sys.modules.get("jax")
    return bool(jax and jax.distributed.is_initialized() and jax.process_count() > 1)


def is_first() -> bool:
    """Whether this process writes."""
    return not together() or sys.modules["jax"].process_index() == 0


def join(coordinator: str, process: int, of: int, limit: int = LIMIT) -> None:
    """Meets the other processes. An empty `coordinator`: jax finds out who they are. To be called before jax starts.

    Raises RunError where the coordinator or another process is not there within `limit` seconds, UsageError where
    jax finds no cluster.
    """
    import jax

    if coordinator:
        meet(coordinator, process, of, limit)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    known = (
        {"coordinator_address": coordinator, "num_processes": of, "process_id": process}
        if coordinator
        else {}
    )
    try:
        jax.distributed.initialize(**known, initialization_timeout=limit)
    except ValueError as error:
        raise UsageError(
            f"--distributed auto finds no cluster here ({error}): give coordinator=HOST:PORT process=N of=N"
        ) from None
    except RuntimeError as error:
        raise RunError(
            f"not all {of or 'of the'} processes met at {coordinator or 'the coordinator'} within {limit} s: see "
            f"whether each was started, with an address that it can reach ({str(error).splitlines()[0][:120]})"
        ) from None


def meet(coordinator: str, process: int, of: int, limit: float) -> None:
    """Returns in all processes once all are there. jax, which would wait too, ends a process without a line of ours.

    The first listens where jax's own service will; the others say who they are, and hear whether all came. Raises
    RunError, in those that are there the same, where one does not come within `limit` seconds.
    """
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + limit
    verdict = (
        _gather(int(port), of, deadline) if process == 0 else _report(host, int(port), process, deadline)
    )
    if verdict is None:
        raise RunError(
            f"no coordinator answers at {coordinator} within {limit:g} s: start process 0 there, or correct "
            "--distributed"
        )
    if verdict:
        raise RunError(
            f"process {verdict} of {of} did not come to {coordinator} within {limit:g} s: see whether it was started"
        )


def _gather(port: int, of: int, deadline: float) -> str:
    """The first process's side: numbers of those that did not come, empty where all did."""
    came: dict[int, socket.socket] = {}
    try:
        with socket.create_server(("", port)) as server:
            while len(came) < of - 1 and time.monotonic() < deadline:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                with suppress(TimeoutError, ValueError, UnicodeDecodeError):
                    other, _ = server.accept()
                    other.settimeout(5)
                    number = int(other.recv(16).decode())
                    if 0 < number < of:
                        came[number] = other
    except OSError as error:
        raise RunError(
            f"cannot listen on port {port}: {error.strerror}: choose another in --distributed"
        ) from None
    missing = ", ".join(str(number) for number in range(1, of) if number not in came)
    for other in came.values():
        with suppress(OSError):
            other.sendall(f"{missing}\n".encode())
            other.recv(1)  # it closes first: the port is free at once
        other.close()
    return missing


def _report(host: str, port: int, process: int, deadline: float) -> str | None:
    """Another process's side: what `_gather` found, None where there is nobody."""
    while time.monotonic() < deadline:
        with (
            suppress(OSError, UnicodeDecodeError),
            socket.create_connection((host, port), timeout=5) as first,
        ):
            first.sendall(str(process).encode())
            first.settimeout(max(1.0, deadline + 5 - time.monotonic()))
            said = first.recv(4096).decode()
            if said.endswith("\n"):
                return said.strip()
        time.sleep(0.2)
    return None


def check_same(**described: Any) -> None:
    """Raises UsageError, with the same line in all processes, where one of these values (JSON) is not the same in
    all."""
    if not together():
        return
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    digests = [hashlib.sha256(json.dumps(value).encode()).digest() for value in described.values()]
    everyones = process_allgather(np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1))
    for number, what in enumerate(described):
        theirs = everyones[:, number]
        other = np.flatnonzero((theirs != theirs[0]).any(axis=-1))
        if len(other):
            raise UsageError(
                f"process {other[0]} has another {what} than process 0: start all {len(theirs)} processes with the "
                "same command and the same code"
            )


def code_version(*folders: Path) -> str:
    """A hash of all Python files below these folders, and of the versions of what computes."""
    from importlib.metadata import version

    content = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            content.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    packages = [f"{name} {version(name)}" for name in ("jax", "jaxlib", "flax", "optax", "numpy")]
    return f"{content.hexdigest()} {' '.join(packages)}"


def on_first(work: Callable[[], T]) -> T:
    """What `work` returns in the first process, given to all as JSON; the others wait for it.

    What it raises (UsageError, RunError, OSError) all raise.
    """
    if not together():
        return work()
    error, result = None, None
    if is_first():
        try:
            result = work()
        except (UsageError, RunError, OSError) as raised:
            error = raised
    kind = "" if error is None else "usage" if isinstance(error, UsageError) else "run"
    kind, message, shared = _from_first([kind, str(error)[:1500], result])
    if error:
        raise error
    if kind:
        raise (UsageError if kind == "usage" else RunError)(message)
    return result if is_first() else shared


def _from_first(value: Any) -> Any:
    import numpy as np
    from jax.experimental.multihost_utils import broadcast_one_to_all

    said = np.zeros(MESSAGE, np.uint8)
    if is_first():
        content = json.dumps(value).encode()
        if len(content) > MESSAGE:
            raise ValueError(f"{len(content)} bytes are more than a process says at once")
        said[: len(content)] = np.frombuffer(content, np.uint8)
    said = np.asarray(broadcast_one_to_all(said, is_source=is_first()))
    return json.loads(said.tobytes().rstrip(b"\0"))


def stop_requested(step: int) -> bool:
    """Whether one of several processes was sent SIGTERM, said by all of them after the same step."""
    from jax.experimental.multihost_utils import reached_preemption_sync_point

    return bool(reached_preemption_sync_point(step))
