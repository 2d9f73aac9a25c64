"""Runs a program as ``python PROGRAM ARGUMENTS`` does, but seldom looks for garbage in what it imports.

Else a program with torch would spend a third of its time on that: while torch is imported, and at the process's end.
"""

import gc
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    gc.set_threshold(50_000)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        gc.freeze()
