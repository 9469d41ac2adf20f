"""Whole-process wall time of `shakespeare_char` against any other program, run in turn on this machine.

    python tests/bench_shakespeare_char.py TEXT --peer "python char_gpt_torch.py TEXT" [--runs 3]

Process start, imports and compilation count; compiled programs are not cached, text and tokens are. The peer's
result is shown as the last line that it prints.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def timed(command: list[str]) -> tuple[float, str]:
    """Seconds from start to exit, and the last line printed."""
    begun = time.perf_counter()
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - begun, done.stdout.strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--peer", default="", help="command to run in turn with ours")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    text = str(Path(arguments.text).resolve())
    ours, peers = [], []
    with tempfile.TemporaryDirectory() as folder:
        # Run 0 fills the cache of text and tokens and is not counted.
        for run in range(arguments.runs + 1):
            directory = f"{folder}/{run}"
            command = [sys.executable, "launch.py", "--experiment", "shakespeare_char"]
            command += ["--data.corpus", text, "--run-dir", directory, "--train.seed", str(run)]
            seconds, _ = timed(command)
            if run == 0:
                continue
            loss = json.loads(Path(directory, "summary.json").read_text())["validation_loss"]
            ours.append(seconds)
            print(f"ours  {seconds:6.1f} s  validation {loss:.4f} nats per character", flush=True)
            if arguments.peer:
                seconds, line = timed(shlex.split(arguments.peer))
                peers.append(seconds)
                print(f"peer  {seconds:6.1f} s  {line}", flush=True)
    print(f"median ours {statistics.median(ours):.1f} s", end="")
    if peers:
        ratios = [peer / our for our, peer in zip(ours, peers, strict=True)]
        print(f", peer {statistics.median(peers):.1f} s, ratio {statistics.median(ratios):.1f}", end="")
    print()


if __name__ == "__main__":
    main()
