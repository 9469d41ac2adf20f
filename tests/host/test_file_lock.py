"""The lock of Windows, with a stand-in for its module. (That of POSIX: tests/test_run_directory.py.)"""

import importlib.util
import os
import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest

from zerotollm.host import file_lock


@pytest.fixture
def windows(monkeypatch) -> tuple[ModuleType, dict]:
    """The module as Windows imports it, and the bytes that are locked: (file, position) to descriptor."""
    held = {}

    def locking(descriptor, mode, size):
        assert (mode, size) == ("LK_NBLCK", 1)
        place = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
        if held.setdefault(place, descriptor) != descriptor:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK="LK_NBLCK"))
    monkeypatch.setattr(sys, "platform", "win32")
    spec = importlib.util.spec_from_file_location("file_lock_of_windows", file_lock.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.undo()
    return module, held


def test_a_second_process_is_refused_or_waits(windows, tmp_path):
    module, held = windows
    with (tmp_path / "lock").open("a+") as first, (tmp_path / "lock").open("a+") as second:
        first.write("123")
        first.flush()
        assert module.lock(first, wait=False)
        assert not module.lock(second, wait=False)
        second.seek(0)
        assert second.read() == "123"  # the locked byte is none of the content
        threading.Timer(0.2, held.clear).start()
        assert module.lock(second)
    assert len(held) == 1
