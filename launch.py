"""The command line of a checkout. See `python launch.py --help`."""

import sys

from zerotollm.__main__ import run

if __name__ == "__main__":
    sys.exit(run())
