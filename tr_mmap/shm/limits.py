"""Tells which limit of the system a failed call has met. Never makes the call."""

from __future__ import annotations

import errno
import os

from ..errors import SystemLimit, TRException

try:
    import resource
except ImportError:  # pragma: no cover - Windows
    resource = None  # type: ignore[assignment]

__all__ = ["check_limit"]

_MAPS_SLACK = 64  # the kernel refuses a little before the last, and other threads unmap meanwhile


def check_limit(error: OSError, what: str) -> None:
    """Raise SystemLimit if a call failed because it met a limit of the system or of this process.

    Args:
        error: of the call.
        what: what was tried, for the text.
    """
    limit, advice = "", ""
    if isinstance(error, TRException):
        return
    if error.errno == errno.ENOMEM:
        limit, advice = _limit_of_memory()
    elif error.errno == errno.EMFILE:
        limit, advice = "RLIMIT_NOFILE", "close files, or raise it (ulimit -n)"
    elif error.errno == errno.ENFILE:
        limit, advice = "fs.file-max", "close files in any process, or raise it (sysctl fs.file-max)"
    if limit:
        text = f"{what}: {limit} is reached ({error.strerror}); {advice}"
        raise SystemLimit(text, limit=limit, code=error.errno or 0) from error


def _limit_of_memory() -> tuple[str, str]:
    """Which limit makes the system refuse a mapping, and what to do."""
    most, found = _number_in("/proc/sys/vm/max_map_count"), _count_mappings()
    if most and found >= most - _MAPS_SLACK:
        return "vm.max_map_count", f"drop tensors or views: {found} parts of memory are mapped; or raise it (sysctl)"
    if resource is not None and resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return "RLIMIT_AS", "drop tensors or views, or raise it (ulimit -v)"
    return "vm.overcommit_memory", "drop tensors or views, or free memory"


def _number_in(path: str) -> int:
    try:
        with open(path, "rb") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def _count_mappings() -> int:
    try:
        with open(f"/proc/{os.getpid()}/maps", "rb") as file:
            return sum(1 for _ in file)
    except OSError:
        return 0
