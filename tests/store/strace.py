"""strace: sees all system calls of a program, those of LMDB too, and makes some fail or kill."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
INJECTED = (
    "pwrite64",
    "pwritev",
    "writev",
    "ftruncate",
    "fallocate",
    "rename",
    "unlink",
    "mkdir",
    "fdatasync",
    "fsync",
)


@functools.cache
def works() -> bool:
    """Whether it is installed, and the kernel lets this user trace a program."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode == 0


strace = pytest.mark.skipif("not __import__('strace').works()", reason="NOT TESTED: moments of LMDB (no strace here)")


def environment() -> dict[str, str]:
    path = os.pathsep.join(map(str, (HERE.parents[1], HERE.parents[0], HERE)))
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def run_injected(kind: str, root: Path, injection: str) -> int:
    """Do something of ``moments`` while the kernel injects what is said; how it ended, a signal negative."""
    program = f"from moments import act; import os; act({kind!r}, {str(root)!r}); os._exit(7)"
    called = injection.partition(":")[0]
    tracer = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={called}", "-e", f"inject={injection}"]
    command = [*tracer, sys.executable, "-c", program]
    ended = subprocess.run(command, env=environment(), capture_output=True, check=False)
    return ended.returncode
