"""Segments on their owner's side: makes their files, maps them. Never decides who may use one."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ..base import system
from ..base.fork_safety import this_process
from ..base.system import KnownDir, check_limit
from ..errors import HostilePath, SessionNotStarted
from ..native import OwnerSegment, make_twin
from ..tsr import tensors
from ..tsr.dtypes import DType
from ..wire.header import LEASE_FREE, LEASE_HELD, LINE_WORDS, LINES_WORD
from ..wire.names import TENSOR_SUFFIX
from ..wire.segments import HEAD_NBYTES, PAYLOAD_OFFSET, POPULATE_NBYTES, SLOT_NBYTES
from .slabs import Place, slab_nbytes, slot_name

__all__ = ["HeaderLayout", "Layout", "Segment", "Slab", "make_segment", "make_slab"]

Layout = tuple[DType, tuple[int, ...], int]  # dtype, shape, and how many bytes after the header the payload begins
HeaderLayout = Layout | tuple[DType, tuple[int, ...], int, str]  # with the device, if that is not the CPU


class Slab:
    """A file of many small segments, on its owner's side.

    Args:
        path: of the file.
        buffer: all of it, mapped for writing.
        slots: how many segments there are.
        members: as of :class:`Segment`.

    Attributes:
        dead: how many of them are never filled again. The file goes when all are.
        is_seen: an unknown process, or the reader, may still have a view of a dead one.
    """

    __slots__ = ("buffer", "dead", "is_seen", "path", "segments", "slots")

    def __init__(self, path: str, stem: str, buffer: memoryview, slots: int, members: memoryview | None = None) -> None:
        self.path = path
        self.buffer = buffer
        self.slots = slots
        self.dead = 0
        self.is_seen = False
        self.segments = [
            Segment(slot_name(stem, slot, slots), path, buffer, self, slot, members=members) for slot in range(slots)
        ]

    @property
    def capacity(self) -> int:
        """Bytes of payload that the slots hold together."""
        return self.slots * SLOT_NBYTES


class Segment(OwnerSegment):
    """One segment on its owner's side.

    Args:
        name: of its file in the session directory, or of its slot in a slab; never used twice.
        path: of its file.
        buffer: the whole file, mapped for writing.
        slab: whose slot it is; None if it has a file of its own. Then ``buffer`` is all of the slab.
        slot: which one of the slab.
        inode: of the file.
        members: the page that says which lease lines have a reader; None if none may have one.

    Attributes:
        buffer: the memory from its header to the end of its payload.
        address: where that begins in this process.
        file_offset: where its header begins in the file, in bytes.
        payload_offset: where the payload begins, in bytes after the header's beginning.
        capacity: bytes of payload that it can hold.
        key: of its free list: the capacity, negative for a slot.
        words: the header as 8-byte words.
        is_counted: it is one of the small segments that decide when slabs are made.
        header_layout: the layout that its header describes; None while the header is changed.
        inode: of its file; None for a slot, whose file is never opened again.
    """

    __slots__ = (
        "address",
        "buffer",
        "capacity",
        "file_offset",
        "header_layout",
        "inode",
        "is_counted",
        "is_populated",
        "is_tainted",
        "key",
        "path",
        "payload_offset",
        "slab",
        "words",
    )

    def __init__(
        self,
        name: str,
        path: str,
        buffer: memoryview,
        slab: Slab | None = None,
        slot: int = 0,
        inode: int | None = None,
        members: memoryview | None = None,
    ) -> None:
        if slab is not None:
            place = Place("", slot, slab.slots)
            buffer = buffer[place.head_offset : place.end_offset]
        super().__init__(buffer, members)
        self.name = name
        self.path = path
        self.inode = inode
        self.buffer = buffer
        self.slab = slab
        self.is_slot = slab is not None
        self.file_offset = 0 if slab is None else place.head_offset
        self.payload_offset = PAYLOAD_OFFSET if slab is None else len(buffer) - SLOT_NBYTES
        self.words = buffer[:HEAD_NBYTES].cast("Q")
        self.address = system.address_of(buffer)
        self.capacity = len(buffer) - self.payload_offset
        self.key = self.capacity if slab is None else -SLOT_NBYTES
        self.is_counted = False
        self.header_layout: HeaderLayout | None = None
        self.is_tainted = False  # an unknown process may have a view: retire it, never fill it again
        self.is_populated = False  # our mapping has its pages in place

    @property
    def is_viewed(self) -> bool:
        """A reader has a view. Retiring the segment would free no memory, and the pool would no longer count it."""
        return self.lease() == LEASE_HELD

    def is_leased_in(self, line: int) -> bool:
        """Whether the lease line of that number is not free."""
        return bool(self.words[LINES_WORD + line * LINE_WORDS] != LEASE_FREE)

    def clear_lease_in(self, line: int) -> None:
        """Clear the lease of a dead reader, whose line nobody else can have yet."""
        self.words[LINES_WORD + line * LINE_WORDS] = LEASE_FREE

    def make_private(self) -> None:
        """Make the place of our payload copy-on-write: arrays over it keep their content, and stores stay here.

        Its pages wait elsewhere meanwhile. Where the kernel, or a limit, does not let us do that, they are faulted in
        again when the segment is filled again.
        """
        if self.twin is None:
            self.twin = self._with_file(self._make_twin)
        if not self.let_twin_come():
            # First: should this fail, or an interrupt come, then nobody knows what is at the place. A loan that is
            # private and was not published is copied, and the place is mapped again before it is filled.
            self.is_private = True
            self.clear_layout()
            self._remap(private=True)

    def make_fillable(self) -> None:
        """Undo :meth:`make_private`, and populate the pages. There must be no array over the mapping any more."""
        if not self.let_twin_go():
            self.twin = None  # there may be one that cannot go
            self._remap(private=False)
            self.is_private = False
            self.is_populated = False
        if not self.is_populated:
            if self.capacity >= POPULATE_NBYTES:
                system.advise(self.buffer, system.MADV_POPULATE_WRITE)
            self.is_populated = True

    def check_own(self, fd: int | None) -> None:
        """Raise SessionNotStarted if what was opened under its path, or None for nothing, is not its file any more."""
        # Our mapping keeps the file, so no other one has its inode.
        if fd is None or (self.inode is not None and os.fstat(fd).st_ino != self.inode):
            raise SessionNotStarted(
                f"{self.path} was removed or replaced while the session lived; close() this session, and start another"
            )

    def _make_twin(self, fd: int) -> object:
        try:
            return make_twin(self.buffer[PAYLOAD_OFFSET:], fd, PAYLOAD_OFFSET)
        except OSError:  # too many mappings, say
            return None

    def _remap(self, *, private: bool) -> None:
        self._with_file(lambda fd: system.map_again(self.buffer[PAYLOAD_OFFSET:], fd, PAYLOAD_OFFSET, private=private))

    def _with_file(self, use: Callable[[int], object]) -> object:
        try:
            fd = system.open_file(self.path, write=True)
        except FileNotFoundError:
            self.check_own(None)
            raise
        try:
            self.check_own(fd)
            return use(fd)
        finally:
            system.close(fd)


def make_segment(
    directory: KnownDir,
    name: str,
    capacity: int,
    source: np.ndarray[Any, Any] | None,
    members: memoryview | None = None,
) -> tuple[Segment, bool]:
    """A new segment with a file of its own, and whether it holds ``source`` already.

    Args:
        directory: the session directory.
        name: of the file; there must be none of that name.
        capacity: bytes of payload.
        source: the array that the segment is made for; written at once if that is faster. None for a loan.
        members: as of :class:`Segment`.

    Raises:
        OutOfSpace: no room; nothing is left behind.
        SystemLimit: no mapping or descriptor can be had; nothing is left behind.
        HostilePath: the name is taken.
        SessionNotStarted: the session directory was removed or replaced.
    """
    path = os.path.join(directory.path, name)
    is_large = capacity >= POPULATE_NBYTES
    is_huge = capacity >= system.HUGE_PAGE_NBYTES and system.gives_huge_pages(directory.path)
    is_written = source is not None and is_large and source.flags.c_contiguous and tensors.is_little_endian(source)
    is_written = is_written and not is_huge
    buffer, inode = _make_file(directory, path, HEAD_NBYTES + capacity, source if is_written else None, is_huge)
    segment = Segment(name, path, buffer, inode=inode, members=members)
    if not is_written:
        segment.make_fillable()
    return segment, is_written


def make_slab(directory: KnownDir, stem: str, slots: int, members: memoryview | None = None) -> Slab:
    """A new slab.

    Args:
        directory: the session directory.
        stem: of the file's name, without its suffix; there must be none of that name.
        slots: how many segments it has.
        members: as of :class:`Segment`.

    Raises:
        OutOfSpace, SystemLimit, HostilePath, SessionNotStarted: as of :func:`make_segment`.
    """
    path = os.path.join(directory.path, stem + TENSOR_SUFFIX)
    buffer, _ = _make_file(directory, path, slab_nbytes(slots), None)
    system.advise(buffer, system.MADV_POPULATE_WRITE)
    slab = Slab(path, stem, buffer, slots, members)
    for segment in slab.segments:
        segment.is_populated = True
    return slab


def _make_file(
    directory: KnownDir, path: str, nbytes: int, source: np.ndarray[Any, Any] | None, is_huge: bool = False
) -> tuple[memoryview, int]:
    """Make a file of segments, write ``source`` as the payload of the only one, and map it. Returns its inode too."""
    owner = this_process.mark
    directory.check()
    try:
        fd = system.create_file(path)
    except FileExistsError as error:
        directory.check()  # it may have been replaced meanwhile, and the name be that of the other session's file
        reason = "is there already, made by somebody else"
        raise HostilePath(f"{path} {reason}; remove it", path=path, reason=reason) from error
    except OSError as error:
        directory.check()
        check_limit(error, f"{path} cannot be made")
        raise
    try:
        try:
            if source is not None:
                system.write_all(fd, source.reshape(-1).view(np.uint8).data, PAYLOAD_OFFSET)
            first = partial(_make_huge_pages, fd, nbytes) if is_huge else None
            system.allocate(fd, nbytes, directory=directory.path, first=first)
            return system.map_write(fd, nbytes), os.fstat(fd).st_ino
        finally:
            system.close(fd)
    except BaseException as error:
        system.unlink(path, owner=owner)
        if isinstance(error, OSError):
            check_limit(error, f"{path} cannot be mapped")
        raise


def _make_huge_pages(fd: int, nbytes: int) -> None:
    """Give an empty file huge pages, as far as there are any. The system would make its blocks of small ones."""
    system.set_size(fd, nbytes)
    mapping = system.map_write(fd, nbytes)
    system.advise(mapping, system.MADV_HUGEPAGE)
    system.advise(mapping, system.MADV_POPULATE_WRITE)
