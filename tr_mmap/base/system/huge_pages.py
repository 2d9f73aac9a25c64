"""Whether a file system gives huge pages to mappings that ask for them. Changes nothing."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Final

__all__ = ["HUGE_PAGE_NBYTES", "gives_huge_pages"]

HUGE_PAGE_NBYTES: Final = 2 << 20
_MOUNTS: Final = "/proc/self/mountinfo"  # proc_pid_mountinfo(5) has its fields


def gives_huge_pages(directory: str) -> bool:
    """Whether the directory's file system gives huge pages to those who ask.

    A tmpfs does that if it is mounted with ``huge=advise``. One with ``huge=always`` or ``huge=within_size`` gives them
    unasked.
    """
    return _is_advised(os.stat(directory).st_dev)


@lru_cache(16)
def _is_advised(device: int) -> bool:
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open(_MOUNTS, encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                fields = line.split()
                if fields[2] == wanted:
                    return "huge=advise" in fields[-1].split(",")
    except OSError:  # no /proc
        pass
    return False
