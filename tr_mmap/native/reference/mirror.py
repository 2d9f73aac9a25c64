"""A file for people that shows the first line of a mapped page, or the latest line of a ring.

It is written through a descriptor, never through a mapping, so no process that truncates, replaces or removes it can
hurt us. Never fails: a mirror that cannot be written stays as it is, and is tried again.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from typing import Any, Final

from ...wire.messages import (
    EMPTY_GRACE_S,
    HAND_GRACE_S,
    MIRROR_NBYTES,
    STATUS_BUSY,
    STATUS_ERROR,
    STATUS_OK,
    STATUS_READY,
)
from ...wire.waits import MIRROR_CHECK_S
from ..directory_key import directory_key

__all__ = ["Mirror"]

_SHOWN_NBYTES: Final = 16
_WAITING: Final = tuple(word.encode() for word in (STATUS_OK, STATUS_READY, STATUS_ERROR))
_ALWAYS: Final = os.O_RDWR | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | os.O_NONBLOCK
_IN_THE_WAY: Final = (errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EACCES)


class Mirror:
    """See the module's docstring.

    Args:
        page: the mapped page, or the part of it that has the line; or a ``Ring``, whose latest slot it is.
        path: of the file.
        kept: a line whose first word is this stays for a while if the page has another; b"" for none.
    """

    def __init__(self, page: Any, path: str | bytes, kept: bytes) -> None:
        self._kept = kept
        self._ring: Any = page if hasattr(page, "latest") else None
        self._fixed_page = memoryview(b"") if self._ring is not None else memoryview(page)
        self._path = os.fsencode(path)
        self._directory = os.path.dirname(self._path) or b"."
        self._directory_key = self._key_of_directory()
        self._fd = -1
        # Which file the descriptor is of: the process may have closed it, and opened another.
        self._identity: tuple[int, int] | None = None
        self._nbytes = 0  # the file's size when we last wrote it; another size shows that somebody else did
        self._head = b""  # the beginning of that line
        self._held_until_s = 0.0  # until then the file stays as it is
        self._checked_s = -MIRROR_CHECK_S  # when we last looked where the name leads, or failed to open it
        self._missed_s = 0.0  # when we first found no file of the name; 0 while there is one
        self._is_closed = False
        self._lock = threading.RLock()  # the watch's thread restores what somebody has written over

    @property
    def _page(self) -> memoryview:
        page: memoryview = self._fixed_page if self._ring is None else self._ring.latest()
        return page

    @property
    def is_stale(self) -> bool:
        """Whether the page's first 16 bytes are not those written last."""
        return not self._is_closed and self._page[:_SHOWN_NBYTES] != self._head

    @property
    def is_forgotten(self) -> bool:
        """Whether nothing was written since the mirror was forgotten."""
        return not self._head

    def update(self) -> None:
        """Write the page's line if the mirror is stale. A file that somebody wrote by hand just now is left alone."""
        if self.is_stale:
            self._show_page(is_thorough=False, is_insistent=False)

    def show(self) -> None:
        """Write the page's line. Looks first whether the name leads to another file.

        A file that somebody wrote by hand a moment ago is left alone.
        """
        self._show_page(is_thorough=True, is_insistent=False)

    def mark_shown(self) -> None:
        """Take it that the other side has written the page's line."""
        self._head = self._page[:_SHOWN_NBYTES].tobytes()

    def forget(self) -> None:
        """Let the mirror be stale, because the other side may write the file."""
        self._head = b""

    def foretell_busy(self) -> None:
        """Of a status page: write that the worker is busy, if the page says that it waits for requests; else its line.

        The mirror becomes stale when the page changes. A file that somebody wrote by hand a moment ago is left
        alone.
        """
        with self._lock:
            head = self._page[:_SHOWN_NBYTES].tobytes()
            self._head = b""
            if not head.startswith(_WAITING):
                self.update()
                return
            info = None if self._is_closed else self._find_file(is_thorough=False)
            if info is not None and not self._is_by_hand(info):
                self._head = head
                self._write_line(STATUS_BUSY.encode(), info.st_size)

    def restore(self) -> None:
        """Write the page's line over whatever is there."""
        self._show_page(is_thorough=True, is_insistent=True)

    def create(self) -> None:
        """Write the page's line over whatever is there, or into a new file."""
        self._show_page(is_thorough=True, is_insistent=True, may_create=True)

    def write(self, line: bytes, hold_s: float) -> None:
        """Write another line than the page's, over whatever is there.

        Args:
            line: without a newline.
            hold_s: how long it stays.
        """
        with self._lock:
            info = None if self._is_closed else self._find_file(is_thorough=True, may_create=True)
            if info is not None:
                self._write_line(line, info.st_size)
                self._head = b""  # so the page's own line is written after the hold
                self._held_until_s = time.monotonic() + hold_s

    def close(self) -> None:
        """Write no more. Idempotent."""
        with self._lock:
            self._is_closed = True
            self._info()
            self._close_file()

    def _show_page(self, *, is_thorough: bool, is_insistent: bool, may_create: bool = False) -> None:
        with self._lock:
            if self._is_closed:
                return
            if not is_insistent and time.monotonic() < self._held_until_s:
                info = self._info()
                if info is not None and info.st_nlink == 1:
                    return
                # Else a legacy program has removed the file, because it has read the answer in it.
            self._held_until_s = 0.0
            info = self._find_file(is_thorough=is_thorough, may_create=may_create)
            if info is None or (not is_insistent and self._is_by_hand(info)):
                return
            nbytes = info.st_size
            for _ in range(3):
                text = self._page.tobytes()
                end = text.find(b"\n")
                self._head = text[:_SHOWN_NBYTES]
                self._write_line(text if end < 0 else text[:end], nbytes)
                if self._page[:_SHOWN_NBYTES] == self._head:
                    break
                # The other side has replaced the status, and may have written its mirror before ours.
                nbytes = self._nbytes

    def _key_of_directory(self) -> tuple[int, ...] | None:
        try:
            return directory_key(self._directory)
        except OSError:
            return None

    def _close_file(self) -> None:
        if self._fd >= 0:
            try:
                os.close(self._fd)
            except OSError:
                pass
        self._fd = -1

    def _info(self) -> os.stat_result | None:
        """Of the open file, if the descriptor is still of it."""
        if self._fd < 0:
            return None
        try:
            info = os.fstat(self._fd)
            if (info.st_dev, info.st_ino) == self._identity:
                return info
        except OSError:
            pass
        self._fd = -1  # the process has closed our descriptor, and the number may be another file's by now
        return None

    def _find_file(self, *, is_thorough: bool, may_create: bool = False) -> os.stat_result | None:
        """Have an open file of the mirror's name."""
        now_s = time.monotonic()
        is_due = is_thorough or now_s - self._checked_s >= MIRROR_CHECK_S
        if self._fd < 0 and not is_due:
            return None
        info = self._info()
        if info is not None and info.st_nlink != 1:
            info = None
        if info is not None and is_due:
            try:
                named = os.lstat(self._path)
                if (named.st_dev, named.st_ino) != self._identity:
                    info = None
            except OSError:
                info = None
        if is_due:
            self._checked_s = now_s
        if info is not None:
            return info
        self._close_file()
        try:
            return self._open_again(now_s, may_create=may_create)
        except OSError:
            self._close_file()
            return None

    def _is_long_missed(self, now_s: float) -> bool:
        """Whether there has been no file for so long that a new one may be made. Not at once.

        Whoever removes the session's directory by hand has removed this file first, and would find another one in it.
        """
        self._missed_s = self._missed_s or now_s
        return now_s - self._missed_s >= MIRROR_CHECK_S

    def _open_again(self, now_s: float, *, may_create: bool) -> os.stat_result:
        """Open the file that the name leads to, or make a new one; anything else but a directory is removed."""
        if self._key_of_directory() != self._directory_key:
            raise FileNotFoundError  # the directory was removed, and another session may have one of that name
        is_in_the_way = False
        info = None
        try:
            self._fd = os.open(self._path, _ALWAYS)
        except OSError as error:
            is_in_the_way = error.errno in _IN_THE_WAY
            if not is_in_the_way and error.errno != errno.ENOENT:
                raise  # no descriptor is left, say
            if not is_in_the_way and not may_create and not self._is_long_missed(now_s):
                raise
        self._nbytes = MIRROR_NBYTES  # a file of another size was written by somebody else
        if self._fd >= 0:
            info = os.fstat(self._fd)
            if not (stat.S_ISREG(info.st_mode) and info.st_uid == os.geteuid() and info.st_nlink == 1):
                self._close_file()
                is_in_the_way, info = True, None
        if info is None:
            if is_in_the_way:
                os.unlink(self._path)
            self._fd = os.open(self._path, _ALWAYS | os.O_CREAT | os.O_EXCL, 0o600)
            self._nbytes = 0
            info = os.fstat(self._fd)
        self._missed_s = 0.0
        if stat.S_IMODE(info.st_mode) != 0o600:  # else this would look like somebody's change
            os.fchmod(self._fd, 0o600)
        self._identity = info.st_dev, info.st_ino
        return info

    def _is_by_hand(self, info: os.stat_result) -> bool:
        """Whether somebody emptied or wrote it so recently that more may follow, or the worker may not have read it.

        By the time of change, which nobody can set: a copy or a file that was moved here may have an old time of
        writing.
        """
        grace_s = HAND_GRACE_S if info.st_size else EMPTY_GRACE_S
        return (info.st_size != self._nbytes or self._is_kept()) and abs(time.time() - info.st_ctime) < grace_s

    def _is_kept(self) -> bool:
        """Whether the file's line has the beginning that stays, and the page's line has not."""
        kept = self._kept
        if not kept or self._page[: len(kept)] == kept:
            return False
        text = os.pread(self._fd, _SHOWN_NBYTES, 0)
        return text.startswith(kept) and not text[len(kept) : len(kept) + 1].islower()

    def _write_line(self, line: bytes, nbytes: int) -> None:
        text = (line + b"\n").ljust(MIRROR_NBYTES)  # all of it, because somebody may have written behind our line
        self._nbytes = len(text)
        try:
            os.pwrite(self._fd, text, 0)
            if nbytes > self._nbytes:
                os.ftruncate(self._fd, self._nbytes)
        except OSError:
            pass  # a full disk, say
