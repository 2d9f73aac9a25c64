"""Segments on their reader's side: what is mapped of them, and which pool they are from. Makes no view."""

from __future__ import annotations

import zlib

import numpy as np

from ..base import system
from ..errors import Fault, TSRFormatError
from ..native import ReaderSegment
from ..tsr.header import Header
from ..wire.header import LEASE_WORD, LINE_WORDS, LINES_WORD
from ..wire.segments import HEAD_NBYTES, PAYLOAD_OFFSET, SLOT_NBYTES
from .readers import LeaseLine
from .slabs import Place

__all__ = ["MappedFile", "MappedSegment", "Source", "check_payload"]


class MappedFile:
    """A file of the peer's, mapped here: the headers for writing, all of it for reading."""

    __slots__ = ("__weakref__", "heads", "inode", "payload")

    def __init__(self, fd: int, inode: int, head_nbytes: int, nbytes: int) -> None:
        self.heads = system.map_write(fd, head_nbytes)
        self.payload = system.map_read(fd, nbytes)  # the whole file, so that offsets are those of the header
        self.inode = inode


class Source:
    """A pool whose segments this process reads, and may hand on to other processes.

    Args:
        directory: where its files are, or links to them.
        stem: what their names begin with.

    Attributes:
        is_dead: its owner has ended.
    """

    __slots__ = ("__weakref__", "directory", "is_dead", "stem")

    def __init__(self, directory: str, stem: str) -> None:
        self.directory = directory
        self.stem = stem
        self.is_dead = False


class MappedSegment(ReaderSegment):
    """One segment of the peer, mapped here."""

    __slots__ = (
        "__weakref__",
        "address",
        "file",
        "head",
        "header",
        "is_listed",
        "is_slot",
        "line",
        "names",
        "payload",
        "source",
        "words",
    )

    def __init__(self, name: str, place: Place, file: MappedFile, line: LeaseLine | None) -> None:
        head = file.heads[place.head_offset : place.head_offset + HEAD_NBYTES]
        super().__init__(head, file.payload, None if line is None else line.number)
        self.line = line  # kept: it ends after the last view
        self.names = [name]
        self.source: Source | None = None  # None if it may not be handed on
        self.is_listed = False  # among those that _forget_some looks at
        self.file = file
        self.is_slot = bool(place.slots)
        self.head = head
        self.words = head.cast("Q")
        self.payload = file.payload
        self.address = np.frombuffer(file.payload, np.uint8, 1).__array_interface__["data"][0]
        self.header: Header | None = None

    @property
    def name(self) -> str:
        """One by which the segment's file can be opened."""
        return self.names[-1]

    @property
    def capacity(self) -> int:
        """Bytes of payload that it can hold."""
        return SLOT_NBYTES if self.is_slot else len(self.payload) - PAYLOAD_OFFSET

    @property
    def lease_now(self) -> int:
        """This reader's lease."""
        return int(self.words[LEASE_WORD if self.line is None else LINES_WORD + self.line.number * LINE_WORDS])


def check_payload(segment: MappedSegment) -> None:
    """Compare the payload with its checksum.

    Raises:
        TSRFormatError: PAYLOAD_CHECKSUM: they do not match, or there is no checksum.
    """
    header = segment.header
    assert header is not None
    if header.payload_checksum is None:
        found = "has no checksum, and this session's tensors have one"
    else:
        crc = zlib.crc32(segment.payload[header.payload_offset : header.file_nbytes])
        if crc == header.payload_checksum:
            return
        found = f"payload checksum {crc:#010x}, the header says {header.payload_checksum:#010x}: changed on the way"
    raise TSRFormatError(f"{segment.name}: {found}", fault=Fault.PAYLOAD_CHECKSUM, path=segment.name)
