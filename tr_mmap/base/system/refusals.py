"""Builds the errors for what system calls report: an untrusted path, a full file system. Never changes a file."""

from __future__ import annotations

import errno
import os

from ...errors import HostilePath, OutOfSpace

__all__ = ["check_room", "free_nbytes", "hostile", "not_regular", "too_little"]

_NAME_NBYTES = 1  # one more name takes this at least; no file system says how much


def not_regular(path: str, *, is_dir: bool = False) -> HostilePath:
    """The error for a user's path that names no regular file."""
    reason = "is not a regular file"
    advice = "it is a directory; give the path of a file" if is_dir else "a tensor file is one"
    return HostilePath(f"{path} {reason}; {advice}", path=path, reason=reason)


def hostile(path: str, reason: str) -> HostilePath:
    """The error for a path that a session must not trust; ``reason`` says why."""
    return HostilePath(f"{path} {reason}; a session only uses its owner's own files", path=path, reason=reason)


def free_nbytes(path: str) -> int:
    """Bytes that an unprivileged user may still write on the file system of ``path``."""
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize


def check_room(error: OSError, path: str) -> None:
    """Raise OutOfSpace if a name could not be made because the file system has no room for one more."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return
    directory = os.path.dirname(path)
    try:
        free = free_nbytes(directory)
    except OSError:
        free = 0
    raise OutOfSpace(
        f"there is no room for another file in {directory}, {free} bytes are free (it may be the number of files that "
        "is limited); remove some, or choose another place (that of sessions with TR_WORKSPACE)",
        needed_nbytes=_NAME_NBYTES,
        free_nbytes=free,
    ) from error


def too_little(nbytes: int, free: int, directory: str) -> OutOfSpace:
    """The error for too little room in a directory."""
    return OutOfSpace(
        f"{nbytes} bytes are needed in {directory}, {free} are free; drop tensors, free space, "
        "or set TR_WORKSPACE to a larger file system",
        needed_nbytes=nbytes,
        free_nbytes=free,
    )
