"""A key that tells a directory from another one that takes its path later. Imports nothing of ours but ``libc.py``."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Any, Final

from .libc import libc

__all__ = ["directory_key"]

_AT_FDCWD: Final = -100  # linux/fcntl.h, like the next one
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_INO_AND_BTIME: Final = 0x100 | 0x800  # linux/stat.h: STATX_INO, STATX_BTIME
_STATX_NBYTES: Final = 256
# struct statx: stx_mask, stx_ino, stx_btime.tv_sec and tv_nsec, stx_dev_major and stx_dev_minor
_MASK, _INO, _BTIME, _DEV = (struct.Struct(each) for each in ("=I", "=Q", "=qI", "=II"))
_statx: Final[Any] = getattr(libc, "statx", None)  # Linux, glibc 2.28 or musl 1.2.5


def directory_key(path: str | bytes) -> tuple[int, ...]:
    """The device, the inode, and when the directory was made; a symlink is not followed.

    The inode alone does not tell: ext4 gives that of a removed directory to the next one that is made.

    Raises:
        OSError: there is nothing of that name.
    """
    name = os.fsencode(path)
    if _statx is not None:
        found = ctypes.create_string_buffer(_STATX_NBYTES)
        if _statx(_AT_FDCWD, name, _AT_SYMLINK_NOFOLLOW, _INO_AND_BTIME, found) == 0:
            mask, inode = _MASK.unpack_from(found, 0)[0], _INO.unpack_from(found, 32)[0]
            made = _BTIME.unpack_from(found, 80) if mask & 0x800 else (0, 0)
            return *_DEV.unpack_from(found, 136), inode, *made
    info = os.lstat(name)
    return os.major(info.st_dev), os.minor(info.st_dev), info.st_ino, 0, 0
