"""The extension's operations in plain Python; what they mean is said here. See the package's docstring."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import posix_ipc

from .libc import MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE, libc, mmap
from .words import GUEST, LAYOUT, LEASE, LEASE_HELD, LEASE_PINNED, SEQ, SEQ_COPY

__all__ = ["Bell", "Line", "Page", "copy", "has_as_many_colons", "map_file", "open_usual"]

_SEQ_RETIRED: Final = 2**64 - 1

# Even x86 may let a load overtake an earlier store to another word. Entering a lock is a locked instruction, a full
# memory barrier. It may be entered again by a signal handler that comes in between, and a fork frees it in the child.
_FENCE: Final = threading.RLock()
os.register_at_fork(after_in_child=_FENCE._at_fork_reinit)  # type: ignore[attr-defined]


class Line:
    """The live line of the segment that a writable buffer begins with."""

    __slots__ = ("_words",)

    def __init__(self, buffer: Any) -> None:
        self._words = memoryview(buffer).cast("B")[:128].cast("Q")

    def claim(self) -> int:
        """Owner: let nobody enter any more; the lease as it stands, or 2 (PINNED) if a guest came."""
        return self._close(0)

    def retire(self) -> int:
        """Owner: give the segment up; the lease as it stands, or 2 (PINNED) if a guest came."""
        self._words[SEQ_COPY] = _SEQ_RETIRED
        return self._close(_SEQ_RETIRED)

    def _close(self, seq: int) -> int:
        words = self._words
        words[SEQ] = seq
        with _FENCE:
            pass
        return LEASE_PINNED if words[GUEST] else words[LEASE]

    def stamp(self, seq: int) -> None:
        """Owner: publish what is in the segment under a number."""
        words = self._words
        words[SEQ_COPY] = seq
        words[SEQ] = seq

    def enter(self, seq: int) -> int:
        """Reader: hold the lease; which layout it is, or 0 if it is another tensor by now."""
        words = self._words
        words[LEASE] = LEASE_HELD  # before the look: an owner who has not seen it yet has cleared seq already
        with _FENCE:
            pass
        if words[SEQ] != seq or words[SEQ_COPY] != seq or seq in (0, _SEQ_RETIRED):
            return 0
        return words[LAYOUT]


_BLANK_WORD: Final = int.from_bytes(b"       0", "little")
_SEQ_WORD: Final = 1  # offset 8
_REST: Final = 16
_MOST_SEQ: Final = 99_999_999


class Page:
    """A message file that is mapped as a writable buffer; see ``channel/mapped.py`` for its bytes."""

    __slots__ = (
        "_buffer",
        "_is_worth_it",
        "_previous_nbytes",
        "_refused",
        "_seen",
        "_since_s",
        "_spin_s",
        "_taken",
        "_words",
    )

    def __init__(self, buffer: Any) -> None:
        self._buffer = memoryview(buffer)
        self._words = self._buffer.cast("Q")
        self._previous_nbytes = 0
        self._seen = _BLANK_WORD
        self._taken = b""  # the last line that was taken
        self._refused: bytes | None = None  # a line that lies there and is not the peer's
        self._spin_s = 0.0  # most that wait() looks for a message before it sleeps
        self._since_s = 0.0  # when the wait for the next message began; 0 while there is none
        self._is_worth_it = False  # the last message came in that time, so the next one is looked for

    def store(self, seq: int, text: bytes) -> None:
        """Replace the message by a JSON object, whose first member is its number.

        Raises:
            ValueError: the number has more than 8 digits, or the text is longer than the page.
        """
        comma = text.find(b",")
        text = text[comma:] + b"\n" if comma >= 0 else b"}\n"
        nbytes = len(text)
        if not 1 <= seq <= _MOST_SEQ or nbytes > len(self._buffer) - _REST:
            raise ValueError("the number has more than 8 digits, or the message is longer than the page")
        if nbytes < self._previous_nbytes:
            text = text.ljust(self._previous_nbytes)
        self._previous_nbytes = nbytes
        words = self._words
        words[_SEQ_WORD] = _BLANK_WORD
        self._buffer[_REST : _REST + len(text)] = text
        words[_SEQ_WORD] = int.from_bytes(b"%8d" % seq, "little")

    def has_message(self) -> bool:
        """Whether a message waits to be taken."""
        word = self._words[_SEQ_WORD]
        return word != self._seen and word != _BLANK_WORD

    def take(self) -> bytes | None:
        """The next message's line without its newline; None if there is none, or it is being replaced.

        Raises:
            ValueError: it has no end; it counts as taken.
        """
        word = self._words[_SEQ_WORD]
        if word == self._seen or word == _BLANK_WORD:
            return None
        line = self._buffer[:1024].tobytes()  # most messages; a longer one is copied again, whole
        end = line.find(b"\n")
        if end < 0:
            line = self._buffer.tobytes()
            end = line.find(b"\n")
        if self._words[_SEQ_WORD] != word:
            return None  # being replaced; a ring follows
        if end >= 0:
            line = line[:end]
        if self._refused is not None and line == self._refused:
            return None
        self._seen = word
        self._taken = line
        if end < 0:
            raise ValueError("the message has no end")
        return line

    def set_spin(self, us: float) -> None:
        """Let :meth:`wait` look for a message for so long, at most (and at most a millisecond), before it sleeps.

        But not after one that took longer.
        """
        self._spin_s = min(max(us, 0.0), 1000.0) / 1e6
        self._is_worth_it = True

    def _spin(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while not self.has_message() and time.monotonic() < until_s:
            pass

    def _take_and_learn(self) -> bytes | None:
        """Take the next message, and learn from how long it was waited for."""
        line = self.take()
        if self._spin_s:
            self._is_worth_it = time.monotonic() - self._since_s <= self._spin_s
            if line is not None:
                self._since_s = 0.0
        return line

    def wait(self, bell: Bell, timeout_s: float, slice_s: float, stop: Callable[[], bool]) -> bytes | None:
        """Take the next message's line; sleep until the bell is rung for as long as there is none.

        Args:
            bell: rung after each message.
            timeout_s: how long to wait.
            slice_s: most that it sleeps at a time, for a ring may be lost.
            stop: asked before each sleep; True ends the wait.

        Returns:
            None when the time is over, or ``stop`` says so.

        Raises:
            ValueError: as :meth:`take`.
        """
        line = self.take()
        if line is not None:
            self._since_s = 0.0
            return line
        began_s, left_s = time.monotonic(), timeout_s
        if not self._since_s:
            self._since_s = began_s
        while left_s > 0 and not stop():
            if self._spin_s and self._is_worth_it:
                self._spin(min(self._spin_s, left_s))
                line = self._take_and_learn()
                if line is not None:
                    return line
            bell.wait(min(left_s, slice_s))
            line = self._take_and_learn()
            if line is not None:
                return line
            left_s = timeout_s - (time.monotonic() - began_s)
        return self.take()  # it may have come just before the reason to stop

    def put_back(self) -> None:
        """Let the line just taken be taken again."""
        self._seen = _BLANK_WORD

    def refuse(self) -> None:
        """Look out for another line, even one of the same number as the line just taken."""
        self._refused = self._taken
        self._seen = _BLANK_WORD


def has_as_many_colons(line: bytes, values: tuple[object, ...]) -> bool:
    """Whether a line has as many colons as a tuple has true values."""
    return line.count(b":") == sum(map(bool, values))


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


# posix_ipc swallows what a signal handler raises during a wait, and waits by the wall clock, which somebody may turn
# back. So where the C library can do better (glibc 2.30), we wait by it, on the semaphore that posix_ipc has open.
_sem_clockwait: Final[Any] = getattr(libc, "sem_clockwait", None)
_MOST_RINGS: Final = 1 << 16  # taken at a time, so that whoever rings without pause keeps nobody here
_CLOCK_MONOTONIC: Final = 1  # linux/time.h
if _sem_clockwait is not None:
    _sem_clockwait.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Timespec)]
    libc.sem_open.argtypes = [ctypes.c_char_p, ctypes.c_int]
    libc.sem_open.restype = ctypes.c_void_p
    libc.sem_close.argtypes = [ctypes.c_void_p]


class Bell:
    """An existing named semaphore.

    Raises:
        OSError: there is none, or it is not ours.
    """

    __slots__ = ("_address", "_semaphore", "ring")

    def __init__(self, name: str) -> None:
        self._address: int | None = None
        self._semaphore: Any = None
        try:
            self._semaphore = posix_ipc.Semaphore(name)
        except posix_ipc.Error as error:
            code = errno.EACCES if isinstance(error, posix_ipc.PermissionsError) else errno.ENOENT
            raise OSError(code, os.strerror(code)) from error
        self.ring = self._semaphore.release
        """Raises OSError if it was rung 2**31 times and nobody has looked."""
        # The C library gives one address for one name, so this is the semaphore that posix_ipc has just opened.
        if _sem_clockwait is not None:
            self._address = libc.sem_open(name.encode(), 0)

    def wait(self, timeout_s: float) -> bool:
        """Sleep until rung; False when the time is over. What a signal handler raises, Ctrl-C say, comes at once."""
        # Rung already, perhaps more than once, for messages that were found without waiting: all these are one hint.
        count = min(self._semaphore.value, _MOST_RINGS) if posix_ipc.SEMAPHORE_VALUE_SUPPORTED else 0
        if count:
            for _ in range(count):
                self._wait_by_wall_clock(0)
            return True
        if self._address is None:
            return self._wait_by_wall_clock(timeout_s)
        until_s = time.monotonic() + timeout_s
        seconds = int(until_s)
        until = _Timespec(seconds, int((until_s - seconds) * 1e9))
        if _sem_clockwait(self._address, _CLOCK_MONOTONIC, until) == 0:
            return True
        return ctypes.get_errno() != errno.ETIMEDOUT  # else a handler ran and did not raise: look again

    def _wait_by_wall_clock(self, timeout_s: float) -> bool:
        try:
            self._semaphore.acquire(timeout_s)
        except posix_ipc.BusyError:
            return False
        except posix_ipc.SignalError:
            return True
        return True

    def __del__(self) -> None:
        if self._address is not None:
            libc.sem_close(self._address)
        if self._semaphore is not None:
            self._semaphore.close()


def copy(target: Any, offset: int, source: Any) -> None:
    """Copy the bytes of a C-contiguous buffer to a place in a writable one.

    Raises:
        BufferError, ValueError: the source is not C-contiguous, or is no buffer; or it does not fit there.
    """
    view = memoryview(source)
    if not view.c_contiguous:
        raise BufferError("the source is not C-contiguous")
    if offset < 0 or view.nbytes > len(target) - offset:
        raise ValueError("the source does not fit into the target there")
    if view.nbytes:  # by numpy, which lets other threads run meanwhile
        np.frombuffer(target, np.uint8, view.nbytes, offset)[:] = np.frombuffer(view.cast("B"), np.uint8)


def map_file(fd: int, nbytes: int, offset: int, is_writable: bool, is_private: bool) -> memoryview:
    """Map part of a file; unmapped with the last view of it. Its ``obj`` takes attributes that are to live as long.

    Raises:
        OSError: it cannot be mapped.
    """
    # A private mapping larger than the memory is fine: few store all over it.
    flags = MAP_PRIVATE | MAP_NORESERVE if is_private else MAP_SHARED
    address = mmap(None, nbytes, PROT_READ | PROT_WRITE if is_writable else PROT_READ, flags, fd, offset)
    block = (ctypes.c_char * nbytes).from_address(address)
    # The views hold the block, so this runs when nobody can touch the memory any more, and not at exit.
    weakref.finalize(block, libc.munmap, address, nbytes).atexit = False
    view = memoryview(block).cast("B")
    return view if is_writable else view.toreadonly()


def open_usual(path: str | bytes, itemsizes: bytes, is_private: bool) -> Any:  # noqa: ARG001
    """Open, check and map a TSR file that is as most are.

    Args:
        path: of the file.
        itemsizes: the size of an element for each dtype code; 0 for none.
        is_private: whether to map it copy-on-write, else for reading.

    Returns:
        The mapping of the file, the dtype code, the shape, the payload's offset. None if the file is none, or needs
        more thought. It always does here: the short cut is the extension's.
    """
    return None
