"""The most memory that the kernel counts of a command while it runs: what `ulimit -d` and `ulimit -v` compare.

    python -m tests.host_memory                                        a tiny run from its text on, and once prepared
    python -m tests.host_memory -- python launch.py --experiment base --train.steps 5      any command

For the bytes in zerotollm/host/memory_limit.py.
"""

import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fault_lab import Lab, write_text

COUNTED = ("VmData", "VmSize", "VmRSS", "Threads")


def most(process: subprocess.Popen) -> dict[str, int]:
    """Until it ends: of each count the highest that was seen every 10 ms, in kB, and of threads."""
    found = dict.fromkeys(COUNTED, 0)
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        for name in COUNTED:
            value = re.search(rf"{name}:\s+(\d+)", status)
            found[name] = max(found[name], int(value[1]) if value else 0)
        time.sleep(0.01)
    return found


def say(what: str, process: subprocess.Popen) -> int:
    found = most(process)
    threads = found.pop("Threads")
    counts = ", ".join(f"{name} {1024 * kilobytes / 1e6:,.0f} MB" for name, kilobytes in found.items())
    cores = len(os.sched_getaffinity(0))
    sys.stdout.write(f"{what}: {counts}, {threads} threads, on {cores} cores, exit code {process.wait()}\n")
    sys.stdout.flush()
    return process.returncode


def main() -> int:
    if "--" in sys.argv:
        words = sys.argv[sys.argv.index("--") + 1 :]
        return say("the command", subprocess.Popen(words, stdout=subprocess.DEVNULL))
    with tempfile.TemporaryDirectory(prefix="host-memory-") as name:
        lab = Lab(Path(name), random.Random(0))
        write_text(lab)
        codes = [
            say(what, lab.start(lab.folder / what.split()[0], *lab.fields(), quiet=True))
            for what in ("unprepared", "prepared")
        ]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
