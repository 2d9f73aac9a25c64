"""The reader's side: maps each segment once, hands out views, keeps a lease for as long as one lives."""

from __future__ import annotations

import os
import re
import zlib
from typing import Any

from .. import system
from ..errors import BadMessage, Fault, HostilePath, StaleTensor, TSRFormatError
from ..forks import Forkable
from ..native import Leased
from ..protocol import TensorRef
from ..tsr import header as tsr_header
from ..tsr import tensors
from ..tsr.header import Header
from .layout import HEAD_NBYTES, LAYOUT, LEASE, LEASE_PINNED, SEQ, SEQ_RETIRED

__all__ = ["Receiver"]

_is_segment_name = re.compile(r"(?!\.)[A-Za-z0-9_.-]{1,200}\.tsr").fullmatch


class _Mapped(Leased):
    """One segment of the peer, as we see it."""

    __slots__ = ("head", "header", "inode", "name", "payload", "words")

    def __init__(self, name: str, head: memoryview, payload: memoryview, inode: int) -> None:
        super().__init__(head, payload)
        self.name = name
        self.head = head
        self.words = head.cast("Q")
        self.payload = payload  # the whole file, so that offsets are those of the header
        self.inode = inode
        self.header: Header | None = None


class Receiver(Forkable):
    """Turns the peer's :class:`TensorRef` into views. Not safe for threads by itself.

    Args:
        directory: the session directory.
        verify: compare each payload with its CRC-32, which must be there.

    Attributes:
        mapped: the peer's segments that we have mapped, by name.
    """

    def __init__(self, directory: str, *, verify: bool = False) -> None:
        super().__init__()
        self._directory = directory
        self._verify = verify
        self.mapped: dict[str, _Mapped] = {}

    def receive(self, ref: TensorRef, framework: str) -> Any:
        """A view of the tensor; the segment is not filled again while it, or a view of it, lives.

        A numpy array is read-only over the shared mapping. A torch tensor is over a copy-on-write mapping of its
        own: a store into it stays in this process.

        Raises:
            StaleTensor: the segment holds another tensor by now, or is gone.
            BadMessage: what is named is no segment.
            HostilePath: it is not a file of the peer's making.
            TSRFormatError: what is there is not a tensor; PAYLOAD_CHECKSUM: it is not the one that was published.
        """
        segment = self.mapped.get(ref.segment)
        if segment is None:
            segment = self._map(ref)
        private = None if framework == "numpy" else self._map_private(segment, ref)
        try:
            array = segment.view(ref.seq, private)
            if array is None:  # its layout has changed
                self._decode(segment, ref.seq)
                array = segment.view(ref.seq, private)
        except LookupError:
            array = None
        if array is None:
            raise self._stale(ref)
        if self._verify:
            try:
                _check_payload(segment)
            except BaseException:
                array = None  # whoever keeps the traceback would keep the lease
                raise
        if private is None:
            return array
        assert segment.header is not None
        return tensors.as_torch(array, segment.header.dtype)

    def _stale(self, ref: TensorRef) -> StaleTensor:
        what = f"tensor {ref.tag!r}" if ref.tag else "the result"
        return StaleTensor(
            f"{what} (number {ref.seq} in {ref.segment}) is not there any more; send it again",
            name=ref.segment,
            seq=ref.seq,
        )

    def _map(self, ref: TensorRef) -> _Mapped:
        self._forget_retired()
        fd = self._open(ref)
        try:
            nbytes = system.file_nbytes(fd)
            if nbytes < HEAD_NBYTES:
                raise self._stale(ref)
            if system.is_sparse(fd):
                path = os.path.join(self._directory, ref.segment)
                raise HostilePath(f"{path} has holes; no owner makes such a segment", path=path, reason="sparse")
            segment = _Mapped(
                ref.segment, system.map_write(fd, HEAD_NBYTES), system.map_read(fd, nbytes), os.fstat(fd).st_ino
            )
        finally:
            system.close(fd)
        # A child of ours may have a view that we had when it was forked: that lease is not ours to give back.
        segment.is_pinned = segment.words[LEASE] == LEASE_PINNED
        self.mapped[ref.segment] = segment
        return segment

    def _open(self, ref: TensorRef) -> int:
        if not _is_segment_name(ref.segment):
            shown = ref.segment[:80]
            raise BadMessage(f"a message names {shown!r}, and no segment is called so", detail=shown)
        try:
            return system.open_private_file(os.path.join(self._directory, ref.segment), write=True)
        except FileNotFoundError:
            raise self._stale(ref) from None

    def _map_private(self, segment: _Mapped, ref: TensorRef) -> memoryview:
        private, segment.spare = segment.spare, None
        if private is not None and system.advise(private, system.MADV_DONTNEED):
            return private
        fd = self._open(ref)
        try:
            if os.fstat(fd).st_ino != segment.inode:
                raise self._stale(ref)
            return system.map_private(fd, len(segment.payload))
        finally:
            system.close(fd)

    def _decode(self, segment: _Mapped, seq: int) -> None:
        """Learn the layout that the header says now.

        Without the lease: an owner who changes it has taken the number away, and never gives it again. So if a view of
        that number is had later, the header was as it is.
        """
        layout_seq = segment.words[LAYOUT]
        try:
            header = tsr_header.decode(
                segment.head[:256].tobytes(), file_nbytes=len(segment.payload), path=segment.name
            )
        except TSRFormatError:
            if segment.words[SEQ] != seq:
                return  # looking for a view will say so
            raise
        if not header.is_segment:
            raise TSRFormatError(
                f"{segment.name} is a plain TSR file, not a segment", fault=Fault.BAD_FLAGS, path=segment.name
            )
        segment.header = header
        segment.learn(layout_seq, header.dtype.numpy, header.shape, header.payload_offset)

    def _forget_retired(self) -> None:
        for name, segment in list(self.mapped.items()):
            if not segment.views and segment.words[SEQ] == SEQ_RETIRED:
                del self.mapped[name]

    def forked_in_parent(self) -> None:
        for segment in list(self.mapped.values()):  # a copy, made in one step: other threads go on working
            if segment.views:
                segment.is_pinned = True

    def close(self) -> None:
        """Forget all mappings; views that still live keep theirs, and their leases."""
        self.mapped.clear()


def _check_payload(segment: _Mapped) -> None:
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
