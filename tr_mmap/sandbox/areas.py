"""Memory that the host shares with contained processes. It is used again, because new pages cost more than a copy.

The host keeps a mapping of each area. An area for inputs can be written only through that mapping. An area is cleared
before another run gets it, and is not used again while a process lives that has it mapped.
"""

from __future__ import annotations

import ctypes
import fcntl
import math
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias, cast

import numpy as np

from ..base.fork_safety import at_fork
from ..tsr.tensors import copy_into
from . import memory
from .placement import copy_from_file, may_be_in_file
from .room import check_room

__all__ = ["Area", "Piece", "Pool", "find_loan", "has_loans", "loan", "open_areas", "size_of"]

_F_SEAL_FUTURE_WRITE: Final = 0x10
_MAX_IDLE_NBYTES: Final = 512 << 20
_MAX_IDLE: Final = 16  # each has two descriptors
_STEP_NBYTES: Final = 1 << 20
_POPULATE_NBYTES: Final = 256 << 10
_POPULATE_READ: Final = 22  # MADV_POPULATE_READ fills the page tables; see map_until in _arena.c
_MAP_NORESERVE: Final = 0x4000
_MAYMOVE_FIXED: Final = 3  # of mremap
_FAILED: Final = ctypes.c_void_p(-1).value  # what mmap returns


Piece: TypeAlias = tuple[int, "np.ndarray[Any, Any] | bytes"]
"""An offset in an area, and the array or bytes to be copied there."""


def size_of(piece: np.ndarray[Any, Any] | bytes) -> int:
    """Bytes of an array or of bytes."""
    return len(piece) if isinstance(piece, bytes) else piece.nbytes


class Area:
    """One piece of shared memory, of fixed size.

    Args:
        nbytes: its size.
        is_input: whether only this mapping can write it.

    Attributes:
        fd: its descriptor; other processes get one of their own, see :func:`open_areas`.
        nbytes: its size.
        is_input: as given.
        memory: the host's mapping.
        is_held: returns whether the contained process that used it last may still have it mapped.
        is_viewed: whether this process has a view of it.
        is_inherited: whether a forked child of this process may have a view of it; then it is never used again.

    Raises:
        OutOfSpace: it is for inputs, and the machine has less memory than that.
    """

    is_held: Callable[[], bool]

    def __init__(self, nbytes: int, *, is_input: bool) -> None:
        self.nbytes = _pages(max(nbytes, 1))
        self.is_input = is_input
        if is_input:  # an area for outputs takes memory only as results are written
            check_room(self.nbytes, "what an algorithm gets")
        self.fd = memory.make_area(self.nbytes)
        try:
            self.memory = mmap.mmap(self.fd, self.nbytes)
            if is_input:
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL)
        except BaseException:
            os.close(self.fd)
            raise
        self._used = 0
        self._mapped = 0  # how much of it has page tables in this process
        self.is_held = _by_none
        self.is_viewed = False
        self.is_inherited = False

    def fill(self, pieces: list[Piece]) -> None:
        """Copy arrays and bytes into it, and clear all else that was used. The offsets ascend.

        Raises:
            LostInput: an array lies in a file that was truncated.
        """
        last = pieces[-1][0] + size_of(pieces[-1][1]) if pieces else 0
        self._map_until(last)
        self._used = max(self._used, last)  # first: this may fail in the middle
        end = 0
        for offset, piece in pieces:
            if end < offset:
                self._clear(end, offset)
            if isinstance(piece, bytes):
                end = offset + len(piece)
                self.memory[offset:end] = piece
                continue
            (copy_from_file if may_be_in_file(piece) else copy_into)(self.memory, offset, piece)
            end = offset + piece.nbytes
        if end < self._used:
            self._clear(end, self._used)
        self._used = end

    def clear(self) -> None:
        """Fill it with zeros wherever something was written."""
        for start, end in list(memory.data_ranges(self.fd)):
            self._clear(start, end)

    def part(self) -> None:
        """Replace the host's mapping by a copy, so that views do not show what other processes write from now on.

        Raises:
            OSError: there is no memory for the copy.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
        size = ctypes.c_size_t(self.nbytes)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        copy = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, ctypes.c_long(0))
        if copy != _FAILED:
            address = np.frombuffer(self.memory, np.uint8).ctypes.data
            for start, end in list(memory.data_ranges(self.fd)):
                ctypes.memmove(copy + start, address + start, end - start)
            # mremap replaces the mapping in one step, so a thread that reads it meanwhile sees no gap.
            if libc.mremap(ctypes.c_void_p(copy), size, size, _MAYMOVE_FIXED, ctypes.c_void_p(address)) == address:
                return
            libc.munmap(ctypes.c_void_p(copy), size)
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))

    def view(self, then: Callable[[Area], None] = lambda _: None) -> memoryview:
        """A read-only buffer over all of it.

        Args:
            then: called with the area when the last view of the buffer is gone; it must take no lock.
        """
        root = np.frombuffer(self.memory, np.uint8)
        self.is_viewed = True
        weakref.finalize(root, self._end_view, _forks, then).atexit = False
        return memoryview(cast(Any, root)).toreadonly()

    def _end_view(self, forks: int, then: Callable[[Area], None]) -> None:
        self.is_inherited |= forks != _forks
        self.is_viewed = False
        then(self)

    def close(self) -> None:
        """Release its descriptor; the mapping ends with its last view."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
            del self.memory  # which has a descriptor of its own

    def _map_until(self, end: int) -> None:
        if end <= self._mapped or end < _POPULATE_NBYTES:
            return
        try:
            for start in range(self._mapped, _pages(end), _STEP_NBYTES):  # madvise keeps other threads waiting
                self.memory.madvise(_POPULATE_READ, start, min(_STEP_NBYTES, _pages(end) - start))
        except OSError:
            pass  # an older kernel: each page has its own fault
        self._mapped = _pages(end)

    def _clear(self, start: int, end: int) -> None:
        if end - start <= mmap.PAGESIZE:
            self.memory[start:end] = bytes(end - start)
        else:
            np.frombuffer(self.memory, np.uint8)[start:end] = 0


def open_areas(areas: Sequence[Area]) -> list[int]:
    """New descriptors of areas, for another process. The caller closes them."""
    fds: list[int] = []
    try:
        for area in areas:
            fds.append(memory.open_again(area.fd, is_input=area.is_input))
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return fds


_forks = 0  # counted before each fork and again after it, because another thread may make a view in between


def _note_fork() -> None:
    global _forks
    _forks += 1


at_fork(before=_note_fork, after_in_parent=_note_fork)


def _pages(nbytes: int) -> int:
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _by_none() -> bool:
    return False


class Pool:
    """Areas that wait for their next use. If there are too many, the oldest are released.

    Threads may use it at once, and a finalizer may use it in the middle of any call. So it has no lock, and uses only
    atomic operations of its list: copy, append, remove and pop.

    Args:
        is_input: whether the areas are for inputs.
        is_kept: whether areas are kept; if not, each one that is given back is released.
    """

    def __init__(self, *, is_input: bool, is_kept: bool = True) -> None:
        self._is_input = is_input
        self._idle: list[Area] = []  # the oldest first
        self._is_closed = not is_kept

    def take(self, nbytes: int, *, is_clear: bool = True) -> Area:
        """Take an area of at least ``nbytes`` bytes, or make one.

        Args:
            nbytes: how many bytes are needed.
            is_clear: whether to clear it; if not, the caller must do so before a run sees it.
        """
        area = self._take_idle(nbytes)
        if area is None:
            step = _STEP_NBYTES if nbytes >= _STEP_NBYTES else 1  # rounded up: the next run may need a little more
            return Area(-(-nbytes // step) * step, is_input=self._is_input)
        area.is_held = _by_none
        if is_clear and not self._is_input:  # fill() clears those for inputs
            area.clear()
        return area

    def _take_idle(self, nbytes: int) -> Area | None:
        most = max(4 * nbytes, 1 << 20)
        for area in sorted(self._idle[:], key=lambda each: each.nbytes):
            if nbytes <= area.nbytes <= most and not area.is_held():
                try:
                    self._idle.remove(area)
                except ValueError:  # another thread has taken it
                    continue
                return area
        return None

    def give(self, area: Area) -> None:
        """Take an area back. No process has it mapped any more, except the one that ``is_held`` tells of."""
        if area.is_inherited:
            area.close()
            return
        self._idle.append(area)
        self._release()

    def view(self, area: Area) -> memoryview:
        """A read-only buffer of an area; the area is given back when the last view of it is gone."""
        return area.view(self.give)

    def close(self) -> None:
        """Release the areas that wait, and each other one when it is given back. Idempotent."""
        self._is_closed = True
        self._release()

    def __del__(self) -> None:
        for area in self._idle:
            area.close()

    def _release(self) -> None:
        """Release the oldest areas while there are too many, or all if the pool is closed."""
        while (idle := self._idle[:]) and (
            self._is_closed or len(idle) > _MAX_IDLE or sum(each.nbytes for each in idle) > _MAX_IDLE_NBYTES
        ):
            try:
                self._idle.pop(0).close()
            except IndexError:  # another thread has released it
                return


# -- loans ------------------------------------------------------------------------------------------------------------

_loans_lock = threading.RLock()  # reentrant: a finalizer may run while this thread holds it
_loans: dict[int, tuple[Area, int]] = {}  # by address, each with the bytes of its array


def loan(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """An array in an area of its own, which a contained process can read in place."""
    count = math.prod(shape)
    area = Area(count * dtype.itemsize, is_input=True)
    root = np.frombuffer(area.memory, np.uint8)
    address = root.ctypes.data
    with _loans_lock:
        _loans[address] = area, count * dtype.itemsize
    weakref.finalize(root, _end_loan, address).atexit = False
    return np.frombuffer(memoryview(cast(Any, root)), dtype, count).reshape(shape)


def has_loans() -> bool:
    """Whether there is any loan."""
    return bool(_loans)


def find_loan(array: np.ndarray[Any, Any]) -> Area | None:
    """The area of a loan, if an array is all of it and contiguous; else None.

    A process that reads an area sees all of it, so a part of a loan is copied instead.
    """
    if not _loans or not array.flags.c_contiguous or not array.nbytes:
        return None
    with _loans_lock:
        area, nbytes = _loans.get(array.ctypes.data, (None, 0))
    return area if array.nbytes == nbytes else None


def _end_loan(address: int) -> None:
    with _loans_lock:
        area, _ = _loans.pop(address)
    area.close()


def _renew_lock() -> None:
    """In a forked child: a thread that does not exist there may have held the lock."""
    global _loans_lock
    _loans_lock = threading.RLock()


at_fork(after_in_child=_renew_lock)
