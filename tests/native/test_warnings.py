"""The C extensions compile without a warning, so they use nothing that this Python's headers call deprecated."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from support import BOUND_S, ROOT

SOURCES = sorted([*(ROOT / "tr_mmap" / "native").glob("*.c"), *(ROOT / "tr_mmap" / "sandbox").glob("*.c")])
HEADERS = Path(sysconfig.get_paths()["include"])
FLAGS = ["-std=c11", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]


@pytest.mark.skipif(not shutil.which("cc") or not (HEADERS / "Python.h").exists(), reason="there is no compiler here")
@pytest.mark.skipif(not SOURCES, reason="the sources are not here")
def test_the_extensions_compile_without_a_warning() -> None:
    command = ["cc", *FLAGS, "-isystem", np.get_include(), "-I", str(HEADERS), *map(str, SOURCES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S)
    assert (done.returncode, done.stderr) == (0, "")
