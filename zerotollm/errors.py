"""The two ways a run ends early. `launch.py` prints the message on one line and exits with the code."""


class UsageError(Exception):
    """What was asked for cannot be done as written. The message says what, where, and what to do."""

    exit_code = 2


class RunError(Exception):
    """Work that was well asked for failed (disk, data, numbers). The message says what, where, and what to do."""

    exit_code = 1


class DivergedError(RunError):
    """The loss is no longer a finite number."""
