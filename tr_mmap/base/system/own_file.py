"""Descriptors that stay open for long, told from other files that got their numbers since. Reads and writes nothing.

A program may close numbers that it has not opened (``os.closerange``), and open files that then have these numbers. To
close such a number, or to write to it, would hit the program's own file. The device and the inode tell files apart; but
all eventfds have one inode, and so have all pidfds before Linux 6.9, with these and others of the kernel's own kind.
"""

from __future__ import annotations

import errno
import os

__all__ = ["OwnFile"]


class OwnFile:
    """A descriptor of ours, until it is closed.

    Args:
        fd: open now.

    Attributes:
        fd: its number; -1 after :meth:`close`.
    """

    __slots__ = ("_key", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        try:
            self._key: tuple[int, int] | None = _key(fd)
        except OSError:
            self._key = None  # we cannot tell

    def is_open(self) -> bool:
        """Whether the number is still that of our file."""
        return self.fd >= 0 and self._is_ours(self.fd)

    def close(self) -> None:
        """Close the descriptor, but not another file's. May be called again, and raises nothing."""
        # Forget the number first, then close: a child that is forked in between must not close it a second time.
        fd, self.fd = self.fd, -1
        if fd >= 0 and self._is_ours(fd):
            try:
                os.close(fd)
            except OSError:
                pass  # it is closed all the same

    def _is_ours(self, fd: int) -> bool:
        try:
            return self._key in (None, _key(fd))
        except OSError as error:
            return error.errno != errno.EBADF


def _key(fd: int) -> tuple[int, int]:
    info = os.fstat(fd)
    return info.st_dev, info.st_ino
