"""How long it takes until the first step of a training, and until the first token of a text.

    python tests/bench_startup.py runs/base --rounds 3

Every start is a process of its own, and the programs are compiled before: the first round is not shown.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROMPT = "In the beginning"
POLL = 0.02
"""seconds between two looks"""


def first_step() -> tuple[float, float]:
    """Return the seconds until `metrics.jsonl` has its first line, and until a training of eight steps has ended."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "run" / "metrics.jsonl"
        fields = {"steps": 8, "log-every": 1, "eval-every": 0, "sample-every": 0, "checkpoint-every": 0}
        words = [word for name, value in fields.items() for word in (f"--train.{name}", str(value))]
        start, process = launch("--experiment", "base", "train", "--run-dir", str(metrics.parent), *words)
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(POLL)
        seconds = time.monotonic() - start
        return seconds, ended(start, process)


def first_token(run_dir: str) -> tuple[float, float]:
    """Return the seconds until a text continues its prompt, and until `generate` of 60 tokens has ended."""
    words = ("generate", "--prompt", PROMPT, "--max-tokens", "60", "--seed", "1")
    start, process = launch("--run-dir", run_dir, *words)
    assert process.stdout is not None
    process.stdout.read(len(PROMPT) + 1)
    seconds = time.monotonic() - start
    process.stdout.read()
    return seconds, ended(start, process)


def launch(*words: str) -> tuple[float, subprocess.Popen[bytes]]:
    command = [sys.executable, str(ROOT / "launch.py"), *words]
    return time.monotonic(), subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def ended(start: float, process: subprocess.Popen[bytes]) -> float:
    process.communicate()
    if process.returncode:
        sys.exit(f"exit code {process.returncode}: {process.args}")
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run_dir", help="a trained run")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for round_ in range(arguments.rounds + 1):
        step, training = first_step()
        token, text = first_token(str(Path(arguments.run_dir).resolve()))
        if round_:
            print(f"first step {step:.2f} s, of {training:.2f} s; first token {token:.2f} s, of {text:.2f} s")


if __name__ == "__main__":
    main()
