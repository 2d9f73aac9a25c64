"""Entry point of ``python tools/bench``: makes the directory a package and runs it."""

import sys
from pathlib import Path

# Python puts this directory in front; its parent is what makes `bench` importable, here and in every worker.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
