"""What requests say of their progress: a page that the worker writes and the controller reads. Rings no doorbell.

``progress.page`` has ``RING_SLOTS`` slots of ``PROGRESS_SLOT_NBYTES``. A slot holds the last progress of one request,
as a line of ASCII and UTF-8 text::

    the request's number, 8 characters, spaces first
    space, the CRC-32 of all that follows it and of the number, 8 hexadecimal digits, space
    the fraction, space, the text, newline

A request that reports gets a slot that no other request under way has. A reader copies a slot and compares the
checksum, so it never takes a half of one line and a half of another. The worker makes the page with its first progress,
or uses that of the worker before it.
"""

from __future__ import annotations

import threading
import zlib
from collections import deque
from typing import Final, NamedTuple

from ..base.fork_safety import this_process
from ..base.system import close, map_read, map_write
from ..errors import HostilePath, OutOfSpace, SessionNotStarted, SystemLimit
from ..wire.messages import NUMBER_DIGITS, PROGRESS_FILE, PROGRESS_NBYTES, PROGRESS_SLOT_NBYTES, RING_SLOTS
from .control_files import create_file, open_file

__all__ = ["Progress", "ProgressReader", "ProgressWriter"]

_REST_OFFSET: Final = NUMBER_DIGITS + 10  # of a slot: after the number and the checksum
_ATTEMPTS: Final = 3  # a writer needs a microsecond for a slot
_REFUSED: Final = (HostilePath, OutOfSpace, SystemLimit, SessionNotStarted, OSError)


class Progress(NamedTuple):
    """How far a request is.

    Attributes:
        fraction: of the work that is done, from 0 to 1.
        text: what the handler says of it.
    """

    fraction: float
    text: str


def _line_of(seq: int, fraction: float, text: str) -> bytes:
    number = b"%*d" % (NUMBER_DIGITS, seq)
    room = PROGRESS_SLOT_NBYTES - _REST_OFFSET - 1
    rest = f"{fraction!r} {text}".encode("utf-8", "replace")[:room]
    rest = rest.decode("utf-8", "ignore").encode()  # without a part of a character at the end
    return b"%b %08x %b\n" % (number, _checksum(number, rest), rest)


def _checksum(number: bytes, rest: bytes) -> int:
    return zlib.crc32(rest, zlib.crc32(number))


def _parse(slot: bytes, number: bytes) -> Progress | None:
    """The progress in a copy of a slot; None if it is another request's, or not whole."""
    line, _, _ = slot.partition(b"\n")
    rest = line[_REST_OFFSET:]
    if line[:NUMBER_DIGITS] != number or line[NUMBER_DIGITS:_REST_OFFSET] != b" %08x " % _checksum(number, rest):
        return None
    fraction, _, text = rest.decode("utf-8", "replace").partition(" ")
    try:
        return Progress(float(fraction), text)
    except ValueError:
        return None


class ProgressWriter:
    """The worker's side. Threads may use it at once. Where no page can be made, it does nothing.

    Args:
        directory: the session directory.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._owner = this_process.mark
        self._page: memoryview | None = None
        self._has_tried = False
        self._lock = threading.RLock()
        self._slots: dict[int, int] = {}  # by request, the one that was not used for longest first
        self._free = deque(range(RING_SLOTS))  # the last that was given back comes last: its reader may still look

    def write(self, seq: int, fraction: float, text: str) -> None:
        """Store the progress of a request in place of its last one.

        Args:
            seq: the request's number.
            fraction: of the work that is done, from 0 to 1.
            text: one line; what is beyond the slot is cut off.
        """
        line = _line_of(seq, fraction, text)
        if this_process.mark is not self._owner:
            return  # a forked child of the worker; its parent may hold the lock
        with self._lock:
            page = self._page if self._has_tried else self._open()
            if page is None:
                return
            slot = self._slots.pop(seq, None)
            if slot is None:
                slot = self._free.popleft() if self._free else self._slots.pop(next(iter(self._slots)))
            self._slots[seq] = slot
            start = slot * PROGRESS_SLOT_NBYTES
            page[start : start + len(line)] = line

    def forget(self, seq: int) -> None:
        """The request is answered: its slot is for others. Need not be called where requests come one by one."""
        with self._lock:
            slot = self._slots.pop(seq, None)
            if slot is not None:
                self._free.append(slot)

    def _open(self) -> memoryview | None:
        self._has_tried = True
        try:
            try:
                fd = open_file(self._directory, PROGRESS_FILE, PROGRESS_NBYTES)
            except FileNotFoundError:
                fd = create_file(self._directory, PROGRESS_FILE, b"", PROGRESS_NBYTES)
            try:
                self._page = map_write(fd, PROGRESS_NBYTES)
            finally:
                close(fd)
        except _REFUSED:
            return None  # the status shows it all the same
        self._page[:] = b" " * PROGRESS_NBYTES  # of the worker before
        return self._page


class ProgressReader:
    """The controller's side.

    Args:
        directory: the session directory.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._page: memoryview | None = None
        self._slots: dict[int, int] = {}  # by request: where its progress was last

    def read(self, seq: int) -> Progress | None:
        """The last progress of a request; None if it has reported none.

        Args:
            seq: the request's number.
        """
        page = self._page if self._page is not None else self._open()
        if page is None:
            return None
        number = b"%*d" % (NUMBER_DIGITS, seq)
        for _ in range(_ATTEMPTS):
            slot = self._find(page, number, seq)
            if slot is None:
                return None
            start = slot * PROGRESS_SLOT_NBYTES
            found = _parse(page[start : start + PROGRESS_SLOT_NBYTES].tobytes(), number)
            if found is not None:
                return found
        return None  # it is being written again and again, and its ring is still to come

    def forget(self, seq: int) -> None:
        """The request was answered."""
        self._slots.pop(seq, None)

    def _find(self, page: memoryview, number: bytes, seq: int) -> int | None:
        """The slot of a request."""
        slot = self._slots.get(seq)
        if slot is not None and page[slot * PROGRESS_SLOT_NBYTES :][:NUMBER_DIGITS] == number:
            return slot
        content = page.tobytes()
        for slot in range(RING_SLOTS):
            if content.startswith(number, slot * PROGRESS_SLOT_NBYTES):
                self._slots[seq] = slot
                return slot
        return None

    def _open(self) -> memoryview | None:
        try:
            fd = open_file(self._directory, PROGRESS_FILE, PROGRESS_NBYTES)
            try:
                self._page = map_read(fd, PROGRESS_NBYTES)
            finally:
                close(fd)
        except _REFUSED:
            return None  # there is none yet, or it is not whole yet
        return self._page
