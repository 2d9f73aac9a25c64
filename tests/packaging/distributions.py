"""Builds the source distribution and the wheel of a copy of this repository, and runs what is in them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from support import ROOT

__all__ = ["Distributions", "copy_tracked", "python_build", "readme_example", "run_unpacked", "tracked_files", "unpack"]

_MADE = re.compile(
    r"(^|/)(\.\w[^/]*|__pycache__|build|dist|bench-results|[^/]*\.egg-info)/|\.(so|pyc)$|^(PKG-INFO|setup\.cfg)$"
)
_IS_KEPT = re.compile(r"^\.(ci/|gitignore$)")


@dataclass(frozen=True)
class Distributions:
    """What was built.

    Attributes:
        sdist: the source distribution.
        wheel: built from what is in it.
    """

    sdist: Path
    wheel: Path


def tracked_files() -> list[str]:
    """The paths of the repository's files; in an unpacked source distribution, all that nothing has made since."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True
        ).stdout
        return sorted(each for each in listed.split("\0") if each and (ROOT / each).exists())
    found = (path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file())
    return sorted(each for each in found if _IS_KEPT.match(each) or not _MADE.search(each))


def copy_tracked(folder: Path) -> Path:
    """A copy without what earlier builds have left, which would get into the next one."""
    for each in tracked_files():
        (folder / each).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / each, folder / each, follow_symlinks=False)
    return folder


def _environment(**other: str) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TR_MMAP_PURE")}
    return {**ours, "PYTHONIOENCODING": "utf-8", **other}


def python_build(
    tree: Path, out: Path, *options: str, is_isolated: bool = False, status: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """``python -m build``; isolated, it downloads what the build needs."""
    command = [sys.executable, "-m", "build", *options, "--outdir", out, tree]
    done = subprocess.run(
        [*command, *([] if is_isolated else ["--no-isolation"])],
        env=_environment(**environment),
        cwd=tree.parent,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def unpack(wheel: Path, folder: Path) -> Path:
    """A folder for Python's path, with what an installation of the wheel would put there."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_unpacked(folder: Path, arguments: Iterable[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Python, with the package of that folder."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=_environment(PYTHONPATH=str(folder), COLUMNS="400", **environment),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def readme_example() -> str:
    """The first program of the README."""
    found = re.search(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert found is not None
    return found[1]
