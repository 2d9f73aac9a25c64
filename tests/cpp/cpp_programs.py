"""Compiling C++ programs and running them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import support
from support import ROOT

INCLUDE = ROOT / "tr_mmap" / "cpp" / "include"
SOURCES = ROOT / "tests" / "cpp"
EXAMPLES = ROOT / "examples" / "cpp"
VECTORS = ROOT / "tests" / "vectors"
WARNINGS = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
# Without vptr: its check needs a descriptor, and a test leaves none.
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]


def run(arguments: Sequence[str | Path], within_s: float = 300, **environment: str) -> str:
    """What it prints; fails the test if it fails."""
    result = subprocess.run(
        [str(each) for each in arguments],
        env={**support.environment(), "TR_PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )
    assert result.returncode == 0, f"{arguments}: {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def run_both(commands: Sequence[Sequence[str | Path]]) -> None:
    """Run commands, two at a time."""
    running: list[tuple[Sequence[str | Path], subprocess.Popen[str]]] = []
    waiting = list(commands)
    while waiting or running:
        while waiting and len(running) < 2:
            command = waiting.pop(0)
            process = subprocess.Popen(
                [str(each) for each in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            running.append((command, process))
        command, process = running.pop(0)
        errors = process.communicate()[1]
        if process.returncode != 0:
            for _, other in running:
                other.communicate()
        assert process.returncode == 0, f"{' '.join(map(str, command))}\n{errors}"
