"""Memory that the host shares with contained processes and uses again, because new pages cost more than a copy.

The host keeps a mapping of each area. An area for inputs can be written through that mapping alone. What one run has
left in an area is cleared before another run gets it, and no area is used again while a process that has it lives.
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
_POPULATE_READ: Final = 22  # fills the page tables; see map_until in _arena.c
_MAP_NORESERVE: Final = 0x4000
_MAYMOVE_FIXED: Final = 3  # of mremap
_FAILED: Final = ctypes.c_void_p(-1).value  # what mmap returns


Piece: TypeAlias = tuple[int, "np.ndarray[Any, Any] | bytes"]
"""What is copied into an area, and where."""


def size_of(piece: np.ndarray[Any, Any] | bytes) -> int:
    """In bytes."""
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
        is_held: whether a process that had it last may still have it.
        is_viewed: whether somebody has a view of it.
        is_inherited: whether a forked child of this process may have one, for good.

    Raises:
        OutOfSpace: it is for inputs, and the machine has less memory.
    """

    is_held: Callable[[], bool]

    def __init__(self, nbytes: int, *, is_input: bool) -> None:
        self.nbytes = _pages(max(nbytes, 1))
        self.is_input = is_input
        if is_input:  # of results, no more is taken than what comes
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
        """Copy arrays and bytes into it, each at its offset, in rising order; clear what else was used of it.

        Raises:
            LostInput: the file in which one of them lies was truncated.
        """
        last = pieces[-1][0] + size_of(pieces[-1][1]) if pieces else 0
        self._map_until(last)
        self._used = max(self._used, last)  # though it fails in the middle
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
        """Make all of it zeros, where anything was written."""
        for start, end in list(memory.data_ranges(self.fd)):
            self._clear(start, end)

    def part(self) -> None:
        """Put a copy in the place of the host's mapping: what other processes write from now on is not seen.

        Raises:
            OSError: there is no memory for it.
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
            # At once for whoever reads it meanwhile.
            if libc.mremap(ctypes.c_void_p(copy), size, size, _MAYMOVE_FIXED, ctypes.c_void_p(address)) == address:
                return
            libc.munmap(ctypes.c_void_p(copy), size)
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))

    def view(self, then: Callable[[Area], None] = lambda _: None) -> memoryview:
        """A read-only buffer of it.

        Args:
            then: called when the last view of that is gone; it must take no lock.
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
            for start in range(self._mapped, _pages(end), _STEP_NBYTES):  # no other thread goes on in the middle of one
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
    """Descriptors of areas for another process, which are the caller's."""
    fds: list[int] = []
    try:
        for area in areas:
            fds.append(memory.open_again(area.fd, is_input=area.is_input))
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return fds


_forks = 0  # of this process, each counted before and behind it: another thread may make a view meanwhile


def _note_fork() -> None:
    global _forks
    _forks += 1


at_fork(before=_note_fork, after_in_parent=_note_fork)


def _pages(nbytes: int) -> int:
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _by_none() -> bool:
    return False


class Pool:
    """Areas that wait for their next use; as soon as they are too many, the oldest are released.

    Threads may use it at once, and finalizers in the middle of that. So there is no lock, and nothing is done with the
    list of areas but what nobody interrupts: to copy, append to, and remove from it.

    Args:
        is_input: of which sort they are.
        is_kept: whether they are; else each is released instead.
    """

    def __init__(self, *, is_input: bool, is_kept: bool = True) -> None:
        self._is_input = is_input
        self._idle: list[Area] = []  # the oldest first
        self._is_closed = not is_kept

    def take(self, nbytes: int, *, is_clear: bool = True) -> Area:
        """An area of at least so many bytes.

        Args:
            nbytes: that are needed.
            is_clear: whether nothing is to be seen of its former use; else whoever gets it has to see to that.
        """
        area = self._take_idle(nbytes)
        if area is None:
            step = _STEP_NBYTES if nbytes >= _STEP_NBYTES else 1  # the next ones may need a little more
            return Area(-(-nbytes // step) * step, is_input=self._is_input)
        area.is_held = _by_none
        if is_clear and not self._is_input:  # those are cleared as they are filled
            area.clear()
        return area

    def _take_idle(self, nbytes: int) -> Area | None:
        most = max(4 * nbytes, 1 << 20)
        for area in sorted(self._idle[:], key=lambda each: each.nbytes):
            if nbytes <= area.nbytes <= most and not area.is_held():
                try:
                    self._idle.remove(area)
                except ValueError:  # somebody was sooner
                    continue
                return area
        return None

    def give(self, area: Area) -> None:
        """Take an area back. No other process has it any more, or none but the one that holds it."""
        if area.is_inherited:
            area.close()
            return
        self._idle.append(area)
        self._release()

    def view(self, area: Area) -> memoryview:
        """A read-only buffer of an area, which comes back when the last view of it is gone."""
        return area.view(self.give)

    def close(self) -> None:
        """Release those that wait, and, as they come, the others. Idempotent."""
        self._is_closed = True
        self._release()

    def __del__(self) -> None:
        for area in self._idle:
            area.close()

    def _release(self) -> None:
        """Release what is too much."""
        while (idle := self._idle[:]) and (
            self._is_closed or len(idle) > _MAX_IDLE or sum(each.nbytes for each in idle) > _MAX_IDLE_NBYTES
        ):
            try:
                self._idle.pop(0).close()
            except IndexError:  # somebody was sooner
                return


# -- loans ------------------------------------------------------------------------------------------------------------

_loans_lock = threading.RLock()  # a finalizer may come while this thread has it
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
    """Whether somebody has a loan."""
    return bool(_loans)


def find_loan(array: np.ndarray[Any, Any]) -> Area | None:
    """The area of a loan of which an array shows all; None if it lies elsewhere, or not in one piece.

    Whoever reads an area sees all of it, so a part of a loan is not given in place.
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
    """In a forked child: a thread that is not there may have had it."""
    global _loans_lock
    _loans_lock = threading.RLock()


at_fork(after_in_child=_renew_lock)
