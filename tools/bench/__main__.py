"""Entry point of ``python tools/bench``: makes the directory a package, and measures the tree that it lies in."""

import os
import sys
from pathlib import Path

_TOOLS = Path(__file__).resolve().parent.parent
_PATHS = [str(_TOOLS), str(_TOOLS.parent)]
sys.path[:1] = _PATHS
os.environ["PYTHONPATH"] = os.pathsep.join([*_PATHS, *filter(None, [os.environ.get("PYTHONPATH")])])  # for workers

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # starts are measured as users have them, with bytecode on the disk

from bench.cli import main  # noqa: E402 - the lines above make it importable

if __name__ == "__main__":
    sys.exit(main())
