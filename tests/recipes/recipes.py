"""Where the recipes are, and how their programs are run as a reader runs them: by name, as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support import ROOT, environment

PAGES = ROOT / "docs" / "recipes"
EXAMPLES = ROOT / "examples" / "recipes"


def run_recipe(program: Path, *arguments: str, expects: int = 0, **variables: str) -> str:
    """What a program prints to stdout and stderr; the test fails if its exit code is another one.

    It must not depend on where it is started.
    """
    ended = subprocess.run(
        [sys.executable, str(program), *arguments],
        cwd=os.environ["TR_WORKSPACE"],
        env={**environment(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == expects, ended.stdout
    return ended.stdout
