"""The command line: name -> Experiment -> typed overrides -> one action. See `python launch.py --help`."""

import sys
from pathlib import Path

from zerotollm.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], experiments=Path(__file__).parent / "experiments"))
