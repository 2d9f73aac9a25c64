"""FIFOs that wake a process which sleeps on descriptors. Both ends are open for both directions, so no write to one is
ever SIGPIPE, whoever has died. A byte in it means only that something is new.
"""

from __future__ import annotations

import os
import stat

from .own_file import OwnFile

__all__ = ["drain_fifo", "make_fifo", "open_fifo", "ring_fifo"]

_DRAIN_NBYTES = 65536  # a FIFO holds no more on Linux


def make_fifo(path: str) -> OwnFile | None:
    """A new FIFO, open. None where none can be made: on some file systems, or without a descriptor."""
    try:
        os.unlink(path)
    except OSError:
        pass  # there was none
    try:
        os.mkfifo(path, 0o600)
    except OSError:
        return None
    return open_fifo(path)


def open_fifo(path: str) -> OwnFile | None:
    """An existing FIFO of this user's, open. None if it is none, or cannot be opened."""
    try:
        file = OwnFile(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW))
    except OSError:
        return None
    try:
        info = os.fstat(file.fd)
    except OSError:
        info = None
    if info is None or not stat.S_ISFIFO(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
        file.close()
        return None
    return file


def ring_fifo(file: OwnFile) -> None:
    """Wake whoever sleeps on it."""
    if file.is_open():
        try:
            os.write(file.fd, b"!")
        except OSError:
            pass  # so full that it wakes them already


def drain_fifo(file: OwnFile) -> None:
    """Let it be readable only after the next ring."""
    if file.is_open():
        try:
            while len(os.read(file.fd, _DRAIN_NBYTES)) == _DRAIN_NBYTES:
                pass
        except OSError:
            pass  # it was empty
