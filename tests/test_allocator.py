"""Keeping freed memory: it is asked for without harm anywhere, and on glibc it is granted."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys
from zerotollm.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(int(sys.argv[2])):
    block = bytearray(b"x" * 2**26)  # written to, so that every page is touched
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def page_faults(word: str, blocks: int = 20) -> int:
    command = [sys.executable, "-c", PROGRAM, word, str(blocks)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_is_not_faulted_in_again():
    assert page_faults("keep") < page_faults("leave") / 4


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(),
    reason="the kernel has no huge pages to give",
)
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_memory_comes_in_huge_pages():
    before = page_faults("keep", blocks=0)
    assert (
        page_faults("keep", blocks=1) - before < 2 * 2**26 / 4096 / 4
    )  # both copies, were it in small pages
