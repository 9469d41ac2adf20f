"""Wall time of `shakespeare_char` against any other program, run in turn on this machine.

    python tests/bench_shakespeare_char.py TEXT --peer "python char_gpt_torch.py TEXT" [--runs 3]

Process start, imports and compilation count; compiled programs are not cached, text and tokens are. Ours is timed
to the line with the validation loss, and to exit (a sample and a checkpoint later); the ratio is of the peer's exit
to our validation loss. The peer's result is shown as the last line that it prints.
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


def timed(command: list[str], marker: str = "") -> tuple[float, float, str]:
    """Seconds from start to the last line with `marker`, seconds to exit, and the last line printed."""
    begun = time.perf_counter()
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false", "PYTHONUNBUFFERED": "1"}
    seen, last = 0.0, ""
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if marker in line:
                seen = time.perf_counter() - begun
            last = line.strip() or last
    if process.returncode:
        sys.exit(f"exit code {process.returncode}: {shlex.join(command)}")
    return seen, time.perf_counter() - begun, last


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
            reached, seconds, _ = timed(command, "validation loss")
            if run == 0:
                continue
            loss = json.loads(Path(directory, "summary.json").read_text())["validation_loss"]
            ours.append(reached)
            print(
                f"ours  {reached:6.1f} s, exit after {seconds:.1f} s  validation {loss:.4f} nats per character",
                flush=True,
            )
            if arguments.peer:
                _, seconds, line = timed(shlex.split(arguments.peer))
                peers.append(seconds)
                print(f"peer  {seconds:6.1f} s  {line}", flush=True)
    print(f"median ours {statistics.median(ours):.1f} s", end="")
    if peers:
        ratios = [peer / our for our, peer in zip(ours, peers, strict=True)]
        print(f", peer {statistics.median(peers):.1f} s, ratio {statistics.median(ratios):.1f}", end="")
    print()


if __name__ == "__main__":
    main()
