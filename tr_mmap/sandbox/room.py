"""How much memory this machine has left for copies of inputs. Allocates none.

Shared memory has no limit of its own: when a process writes more than the machine has, the kernel kills processes.
"""

from __future__ import annotations

import os
import re
from typing import Final

from ..errors import OutOfSpace

__all__ = ["check_room", "free_nbytes"]

_LOOK_NBYTES: Final = 64 << 20  # for smaller copies, the check would take a noticeable part of the time
_MEMINFO: Final = re.compile(rb"^(?:MemAvailable|SwapFree):\s+(\d+) kB", re.MULTILINE)
_CACHED: Final = re.compile(rb"^(?:total_)?inactive_file (\d+)", re.MULTILINE)  # which the kernel gives up first
_NO_LIMIT: Final = 1 << 62
_GROUPS: Final = (
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def check_room(nbytes: int, what: str) -> None:
    """Refuse to write more memory than the machine has left.

    Args:
        nbytes: how many bytes will be written; fewer than 64 MiB are not checked.
        what: what they are for, for the error.

    Raises:
        OutOfSpace: there is less memory.
    """
    if nbytes < _LOOK_NBYTES:
        return
    free = free_nbytes()
    if nbytes > free:
        raise OutOfSpace(
            f"{what} takes {nbytes} bytes of memory, and there are {free}: give less at once, or make room",
            needed_nbytes=nbytes,
            free_nbytes=free,
        )


def free_nbytes() -> int:
    """Bytes that are left on the machine, in this process's control group and in its container's; the least of them."""
    lines = [line.partition(b":")[2].split(b":", 1) for line in _read("/proc/self/cgroup").splitlines()]
    own = {os.fsdecode(path) for _, path in lines if path != b"/"} | {""}
    found = [int(each) << 10 for each in _MEMINFO.findall(_read("/proc/meminfo"))]
    return min(
        sum(found) if found else _NO_LIMIT, *[_left_in(top + path, *files) for top, *files in _GROUPS for path in own]
    )


def _left_in(folder: str, limit: str, used: str) -> int:
    """Bytes that a control group has left."""
    most = _read(f"{folder}/{limit}").strip()
    if not most.isdigit():  # there is no such group, or it has no limit
        return _NO_LIMIT
    cached = sum(int(each) for each in _CACHED.findall(_read(f"{folder}/memory.stat"))[-1:])
    return max(int(most) - int(_read(f"{folder}/{used}") or b"0") + cached, 0)


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 1 << 14)
    except OSError:
        return b""
    finally:
        os.close(fd)
