"""Errors that end a command. `launch.py` prints the message on one line and exits with the code."""


class UsageError(Exception):
    """A request that cannot be fulfilled as written. The message says what is wrong, where, and what to do."""

    exit_code = 2


class RunError(Exception):
    """A valid request that failed (disk, data, numbers). The message says what is wrong, where, and what to do."""

    exit_code = 1


class DivergedError(RunError):
    """The loss is no longer finite."""
