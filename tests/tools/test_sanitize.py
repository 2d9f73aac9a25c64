"""What tools/sanitize says before it builds: the libraries that are missing, and what to install."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from support import BOUND_S, ROOT


def lines_of(compiler: str) -> list[str]:
    """What it says with a compiler."""
    environment = os.environ | {"CC": compiler}
    command = ["sh", str(ROOT / "tools" / "sanitize"), "--fuzz"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=BOUND_S)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr.splitlines()


def test_without_a_compiler_it_names_the_package_that_has_one() -> None:
    said = lines_of("no-such-compiler")
    assert said[0] == "The sanitizers need a C compiler, and there is no no-such-compiler."
    assert "apt install gcc" in said[1]


def test_without_the_sanitizers_library_it_names_the_library(tmp_path: Path) -> None:
    compiler = tmp_path / "bare-cc"
    compiler.write_text('#!/bin/sh\necho "${1#-print-file-name=}"\n')  # as gcc does where it finds no such file
    compiler.chmod(0o755)
    said = lines_of(str(compiler))
    assert said[0] == f"The sanitizers need libasan.so, which {compiler} does not find."
