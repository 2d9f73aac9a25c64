"""Notices what others do to files, through Linux's inotify. Never reads or changes a file."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import Any, Final

from ..unpatched import unpatched
from .memory import libc

__all__ = ["add_watch", "open_watches", "read_watches", "remove_watch", "EACH_WRITE", "ENTRIES", "WRITES"]

# sys/inotify.h. IN_CLOSE_WRITE, IN_ATTRIB (the number of names too), IN_MOVE_SELF, IN_DELETE_SELF
WRITES: Final = 0x8 | 0x4 | 0x800 | 0x400
# And IN_OPEN: the kernel makes one event of two closes that have no other event between them. It wakes for readers too.
EACH_WRITE: Final = WRITES | 0x20
ENTRIES: Final = 0x100 | 0x80  # IN_CREATE, IN_MOVED_TO
_DONT_FOLLOW: Final = 0x02000000
_EVENT: Final = struct.Struct("iIII")
_TELLS_NOTHING: Final = 0x8000 | 0x20  # IN_IGNORED: the watch is gone; IN_OPEN
_read: Final[Any] = unpatched("os", "read")  # eventlet's read cannot wait in a thread of the system


def open_watches() -> int:
    """A descriptor that becomes readable when a watched file changes; -1 if this system has none."""
    try:
        return int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    except AttributeError:  # pragma: no cover - not Linux
        return -1


def add_watch(fd: int, path: str, mask: int) -> int:
    """Watch the file that a name leads to now. Returns the watch's number, the same for the same file; -1 if none."""
    return int(libc.inotify_add_watch(fd, os.fsencode(path), ctypes.c_uint32(mask | _DONT_FOLLOW)))


def remove_watch(fd: int, watch: int) -> None:
    """Remove a watch; one that is gone with its file is no error."""
    libc.inotify_rm_watch(fd, watch)


def read_watches(fd: int) -> Iterator[tuple[int, bool]]:
    """What has happened: the number of the watch, and whether a writer has closed the file."""
    while True:
        try:
            data = _read(fd, 4096)
        except (BlockingIOError, InterruptedError):
            return
        offset = 0
        while offset + _EVENT.size <= len(data):
            watch, mask, _, name_nbytes = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size + name_nbytes
            if not mask & _TELLS_NOTHING:
                yield watch, bool(mask & 0x8)
