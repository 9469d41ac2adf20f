"""Keeping freed memory: it is asked for without harm anywhere, and on glibc it is granted."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from zerotollm.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(20):
    block = bytearray(b"x" * 2**26)  # written to, so that every page is touched
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def page_faults(word: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, word], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_is_not_faulted_in_again():
    assert page_faults("keep") < page_faults("leave") / 4
