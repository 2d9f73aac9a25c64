"""What a process uses now. Decides nothing."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_trim: Final = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it


def trim() -> None:
    """Give back what malloc keeps for later, which is no leak."""
    if _trim is not None:
        _trim(0)


def private_nbytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def count_fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def files_of(place: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Each file and folder below, also while processes make and remove some."""
    for folder, folders, files in os.walk(place):  # which goes on where a folder goes away under its eyes
        for name in folders + files:
            path = Path(folder, name)
            try:
                yield path, path.lstat()
            except FileNotFoundError:
                continue


def shared_nbytes(workspace: Path) -> int:
    seen = {info.st_ino: info.st_blocks * 512 for _, info in files_of(workspace)}  # a tag names its segment once more
    return sum(seen.values())
