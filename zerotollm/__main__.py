"""The command `zerotollm`, `python -m zerotollm`, and in a checkout `python launch.py`. No heavy imports."""

import os
import sys
from pathlib import Path

from zerotollm.cli import main
from zerotollm.output import protect_output

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
"""The built-in experiments: beside this package in a checkout and where it is installed."""


def run() -> int:
    """Run the command line of this process and return its exit code."""
    protect_output()
    # numpy's matrices are small here, and its threads would spin beside XLA's. Set before numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    return main(sys.argv[1:], EXPERIMENTS)


if __name__ == "__main__":
    sys.exit(run())
