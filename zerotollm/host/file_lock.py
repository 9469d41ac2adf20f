"""A lock on an open file, which the system releases when the file is closed or the process ends. No heavy imports."""

import os
import sys
import time
from typing import IO

if sys.platform == "win32":
    import msvcrt

    _BEYOND = 2**30
    """Position of the locked byte: other processes cannot read a locked byte, and no content is that long."""

    def _lock(file: IO[str], wait: bool) -> None:
        descriptor = file.fileno()
        position = os.lseek(descriptor, 0, os.SEEK_CUR)
        while True:
            os.lseek(descriptor, _BEYOND, os.SEEK_SET)
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
                return
            except PermissionError as error:
                if not wait:
                    raise BlockingIOError from error
            finally:
                os.lseek(descriptor, position, os.SEEK_SET)
            time.sleep(0.05)

else:
    import fcntl

    def _lock(file: IO[str], wait: bool) -> None:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock(file: IO[str], *, wait: bool = True) -> bool:
    """Lock a file against other processes. Return False if another one holds the lock and `wait` is False.

    Raises OSError on a file system without locks.
    """
    try:
        _lock(file, wait)
    except BlockingIOError:
        return False
    return True
