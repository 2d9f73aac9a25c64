"""One segment on its owner's side: makes its file, maps it. Never decides who may use it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..base import system
from ..errors import HostilePath
from ..native import OwnerSegment
from ..tsr import tensors
from ..tsr.dtypes import DType
from ..wire.header import LEASE_HELD, LEASE_WORD
from ..wire.segments import HEAD_NBYTES, PAYLOAD_OFFSET, POPULATE_NBYTES

__all__ = ["Layout", "Segment", "make_segment"]

Layout = tuple[DType, tuple[int, ...], int]  # dtype, shape, and where in the file the payload begins, in bytes


class Segment(OwnerSegment):
    """One segment on its owner's side.

    Args:
        name: of its file in the session directory; never used twice.
        path: of its file.
        buffer: the whole file, mapped for writing.

    Attributes:
        address: where the mapping begins in this process.
        capacity: bytes of payload that it can hold.
        words: the mapping as 8-byte words, for the header.
        header_layout: the layout that its header describes; None while the header is changed.
    """

    __slots__ = (
        "address",
        "buffer",
        "capacity",
        "header_layout",
        "is_populated",
        "is_private",
        "is_tainted",
        "path",
        "words",
    )

    def __init__(self, name: str, path: str, buffer: memoryview) -> None:
        super().__init__(buffer)
        self.name = name
        self.path = path
        self.buffer = buffer
        self.words = buffer.cast("Q")
        self.address = system.address_of(buffer)
        self.capacity = len(buffer) - PAYLOAD_OFFSET
        self.header_layout: Layout | None = None
        self.is_private = False  # our mapping of the payload is private: see make_private
        self.is_tainted = False  # an unknown process may have a view: retire it, never fill it again
        self.is_populated = False  # our mapping has its pages in place

    @property
    def is_viewed(self) -> bool:
        """The reader has a view. Retiring the segment would free no memory, and the pool would no longer count it."""
        return bool(self.words[LEASE_WORD] == LEASE_HELD)

    def make_private(self) -> None:
        """Make our mapping of the payload copy-on-write: arrays over it keep their content, and stores stay here."""
        self._remap(private=True)
        self.is_private = True
        self.clear_layout()

    def make_fillable(self) -> None:
        """Undo :meth:`make_private`, and populate the pages. There must be no array over the mapping any more."""
        if self.is_private:
            self._remap(private=False)
            self.is_private = False
            self.is_populated = False
        if not self.is_populated:
            if self.capacity >= POPULATE_NBYTES:
                system.advise(self.buffer, system.MADV_POPULATE_WRITE)
            self.is_populated = True

    def _remap(self, *, private: bool) -> None:
        fd = system.open_file(self.path, write=True)
        try:
            system.map_again(self.buffer[PAYLOAD_OFFSET:], fd, PAYLOAD_OFFSET, private=private)
        finally:
            system.close(fd)


def make_segment(directory: str, name: str, capacity: int, source: np.ndarray[Any, Any] | None) -> tuple[Segment, bool]:
    """A new segment, and whether it holds ``source`` already.

    Args:
        directory: the session directory.
        name: of the file; there must be none of that name.
        capacity: bytes of payload.
        source: the array that the segment is made for; written at once if that is faster. None for a loan.

    Raises:
        OutOfSpace: no room; nothing is left behind.
        HostilePath: the name is taken.
    """
    path = os.path.join(directory, name)
    nbytes = HEAD_NBYTES + capacity
    is_large = capacity >= POPULATE_NBYTES
    is_written = source is not None and is_large and source.flags.c_contiguous and tensors.is_little_endian(source)
    try:
        fd = system.create_file(path)
    except FileExistsError as error:
        reason = "is there already, made by somebody else"
        raise HostilePath(f"{path} {reason}; remove it", path=path, reason=reason) from error
    try:
        try:
            if source is not None and is_written:
                system.write_all(fd, source.reshape(-1).view(np.uint8).data, PAYLOAD_OFFSET)
            system.allocate(fd, nbytes, directory=directory)
            buffer = system.map_write(fd, nbytes)
        finally:
            system.close(fd)
    except BaseException:
        system.unlink(path)
        raise
    segment = Segment(name, path, buffer)
    if not is_written:
        segment.make_fillable()
    return segment, is_written
