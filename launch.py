"""The command line. See `python launch.py --help`."""

import os
import sys
from pathlib import Path

from zerotollm.cli import main
from zerotollm.output import protect_output

if __name__ == "__main__":
    protect_output()
    # numpy's matrices are small here, and its threads would spin beside XLA's. Set before numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:], experiments=Path(__file__).resolve().parent / "experiments"))
