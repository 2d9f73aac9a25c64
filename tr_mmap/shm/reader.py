"""The reader's side: maps segments, hands out views, holds a lease while one lives. Never fills a segment.

A segment stays mapped for the next message. Those that the owner has retired, and those beyond ``MAX_UNVIEWED`` that
were not used for longest, are unmapped: whenever another is mapped, the reader looks at a few of them.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from typing import Any
from weakref import WeakValueDictionary

from ..base import system
from ..base.fork_safety import ForkAware
from ..base.identifiers import given_stem, is_given_file_name, is_segment_name
from ..base.system import check_limit
from ..errors import BadMessage, Fault, HostilePath, StaleTensor, SystemLimit, TSRFormatError
from ..native import drain
from ..tsr import header as tsr_header
from ..tsr import tensors
from ..tsr.devices import received_from
from ..tsr.files import Mode, load
from ..wire.header import (
    LAYOUT_WORD,
    LEASE_PINNED,
    MAX_HEADER_NBYTES,
    SEQ_COPY_WORD,
    SEQ_RETIRED,
    SEQ_WORD,
)
from ..wire.names import RESULT_PREFIX, SEGMENT_PREFIX
from ..wire.segments import HEAD_NBYTES, LOOKS_PER_TAKE, MAX_UNVIEWED, PRIVATE_COPY_NBYTES
from .mapped import MappedFile, MappedSegment, Source, check_payload
from .readers import LeaseLine
from .slabs import Place, place_of, slab_nbytes
from .stats import ReaderStats

__all__ = ["SegmentReader"]


class SegmentReader(ForkAware):
    """Makes views of what the peer has published. Not safe for threads by itself.

    Args:
        directory: the session directory.
        verify: whether to compare each payload with its CRC-32, which must be there.
        views: ``"readonly"`` or ``"copy_on_write"``: what received tensors are; None for each framework's default,
            which is read-only for numpy, copy-on-write for torch.
        shared: the directory of the pool of the controller's process, if the controller's segments are there.
        gives: whether others than this process may read the peer's segments, too.
        moves_back: whether a torch tensor is put on the device where its sender had it.

    Attributes:
        mapped: the peer's segments that are mapped here, by name.
        are_private: whether received tensors are this process's own, of numpy and of torch.
    """

    def __init__(
        self,
        directory: str,
        *,
        verify: bool = False,
        views: str | None = None,
        shared: str = "",
        gives: bool = False,
        moves_back: bool = False,
    ) -> None:
        self.mapped: dict[str, MappedSegment] = {}
        # By the stem of the page of readers. The segments keep them: so a pool that has gone keeps no page and no line.
        self._lines: WeakValueDictionary[str, LeaseLine] = WeakValueDictionary()
        self._source = Source(directory, RESULT_PREFIX) if gives else None
        super().__init__()  # now: its hook uses what is mapped
        self._directory = system.KnownDir(directory)
        self._shared = system.KnownDir(shared) if shared else None
        # By inode and slot: two objects of one segment would release each other's lease.
        self._given: WeakValueDictionary[tuple[int, int], MappedSegment] = WeakValueDictionary()
        self._verify, self._moves_back = verify, moves_back
        is_own = [each != "numpy" if views is None else views == "copy_on_write" for each in ("numpy", "torch")]
        self.are_private = is_own[0], is_own[1]
        self._order: deque[MappedSegment] = deque()  # as _forget_some looks at them: the next one first
        self._slabs: WeakValueDictionary[tuple[str, int], MappedFile] = WeakValueDictionary()  # by name and slots

    def receive(self, name: str, seq: int, framework: str, tag: str = "") -> Any:
        """A view of the tensor; the segment is not filled again while this view, or a view of it, lives.

        A read-only view lies over the shared mapping; a store into a torch tensor of that kind is SIGSEGV. A
        copy-on-write view lies over a private mapping of its own, and a store into it stays in this process. A small
        tensor is copied instead, because a mapping would cost more.

        Args:
            name: of the segment's file.
            seq: the number that the tensor was published under.
            framework: ``"numpy"`` or ``"torch"``.
            tag: of the tensor, for the texts of errors; "" for a result.

        Raises:
            StaleTensor: the segment holds another tensor by now, or is gone.
            SessionNotStarted: the session directory was removed or replaced.
            BadMessage: ``name`` may not name a segment.
            HostilePath: the peer did not make that file.
            TSRFormatError: the file holds no tensor; or, with ``verify``, PAYLOAD_CHECKSUM: the payload does not match
                its checksum, or has none.
            SystemLimit: no mapping or descriptor can be had.
            UnsupportedTensor: this process has not the device to which it is to be moved.
        """
        segment = self.mapped.get(name)
        if segment is None and is_given_file_name(name):
            return self._load(name, seq, framework, tag)
        if segment is None:
            directory, stem = self._place_of_pool(name)
            line = self._join(directory, stem) if stem else None
            if stem and line is None:
                return self._copy(name, seq, framework, tag)
            segment = self._map(name, seq, tag, line)
        is_private = self.makes_private(framework)
        array = self._view(segment, seq, tag)
        if self._verify:
            try:
                check_payload(segment)
            except BaseException:
                array = None  # else a traceback that is kept would keep the lease
                raise
        if is_private and array.nbytes <= PRIVATE_COPY_NBYTES:
            array = array.copy()
        elif is_private:  # made while the first view holds the lease
            array = self._view(segment, seq, tag, self._map_private(segment, seq, tag))
        header = segment.header
        assert header is not None
        tensor = array if framework == "numpy" else tensors.received_torch(array, header.dtype)
        if header.device:
            # The fast paths know no devices: without a layout they leave the next tensor to this method, too.
            segment.set_layout(0, header.dtype.numpy, header.shape, header.payload_offset)
            array, given = None, [tensor]
            tensor = None  # else a traceback that is kept would keep the lease
            return received_from(header.device, given.pop(), moves_back=self._moves_back)
        return tensor

    def makes_private(self, framework: str) -> bool:
        """Whether the views in a framework are copy-on-write."""
        return self.are_private[framework != "numpy"]

    def _view(self, segment: MappedSegment, seq: int, tag: str, private: memoryview | None = None) -> Any:
        """An array over the tensor that was published under a number, in a private mapping or in the shared one."""
        try:
            array = segment.view(seq, private)
            if array is None:  # its layout has changed
                self._decode(segment, seq)
                array = segment.view(seq, private)
        except LookupError:
            array = None
        if array is None:
            raise _stale(segment.name, seq, tag)
        return array

    def _place_of_pool(self, name: str) -> tuple[system.KnownDir, str]:
        """Where a segment's file is, and the stem of its page of readers; "" if it is read as the session's own."""
        if self._shared is not None and name.startswith(f"{SEGMENT_PREFIX}_"):
            return self._shared, SEGMENT_PREFIX
        return self._directory, given_stem(name)

    def _join(self, directory: system.KnownDir, stem: str) -> LeaseLine | None:
        line = self._lines.get(stem)
        if line is None:
            directory.check()
            line = LeaseLine.join(directory.path, stem)
            if line is not None:
                line = self._lines.setdefault(stem, line)  # a signal handler may have come here too
        return line

    def _copy(self, name: str, seq: int, framework: str, tag: str) -> Any:
        """A copy of a tensor, because all lease lines have readers. The message that names it holds it meanwhile."""
        segment = MappedSegment(name, place := place_of(name), self._map_file(place, seq, tag), None)
        if segment.words[SEQ_WORD] != seq or segment.words[SEQ_COPY_WORD] != seq:
            raise _stale(name, seq, tag)
        self._decode(segment, seq)
        header = segment.header
        if header is None:
            raise _stale(name, seq, tag)
        if self._verify:
            check_payload(segment)
        part = segment.payload[header.payload_offset : header.file_nbytes]
        array = tensors.from_buffer(bytearray(part), header.dtype, header.shape, 0, "numpy")
        if segment.words[SEQ_WORD] != seq:
            raise _stale(name, seq, tag)
        if framework == "numpy":
            array.flags.writeable = self.makes_private(framework)
        tensor = array if framework == "numpy" else tensors.received_torch(array, header.dtype)
        return received_from(header.device, tensor, moves_back=self._moves_back) if header.device else tensor

    def _load(self, name: str, seq: int, framework: str, tag: str) -> Any:
        """A view of a plain file, which needs no lease: whoever saves it again makes a new one."""
        self._directory.check()
        try:
            mode: Mode = "c" if self.makes_private(framework) else "r"
            return load(os.path.join(self._directory.path, name), framework=framework, mode=mode)
        except FileNotFoundError:
            self._directory.check()
            raise _stale(name, seq, tag) from None

    def _map(self, name: str, seq: int, tag: str, line: LeaseLine | None) -> MappedSegment:
        self._forget_some()
        place = place_of(name)
        file = self._slabs.get((place.file, place.slots)) if place.slots else None
        if file is None:
            try:
                file = self._map_file(place, seq, tag)
            except SystemLimit:
                if not self._forget_unviewed():
                    raise
                file = self._map_file(place, seq, tag)
            if place.slots:
                self._slabs[place.file, place.slots] = file
        segment = MappedSegment(name, place, file, line)
        # A forked child of this process may use a view that we had at the fork: never release that lease.
        segment.is_pinned = segment.lease_now == LEASE_PINNED
        if line is None:
            segment.source = self._source
            segment.is_givable = self._source is not None and not segment.is_slot
        else:
            segment = self._given.setdefault((file.inode, place.slot), segment)  # perhaps it is known by another name
        # A signal handler may have mapped it meanwhile. Two objects of one segment would release each other's lease.
        found = self.mapped.setdefault(name, segment)
        if found is segment:
            if name not in segment.names:
                segment.names.append(name)
            if not segment.is_listed:
                segment.is_listed = True
                self._order.append(segment)
        return found

    def _map_file(self, place: Place, seq: int, tag: str) -> MappedFile:
        fd = self._open(place.file, seq, tag)
        try:
            nbytes = system.file_nbytes(fd)
            if nbytes < (slab_nbytes(place.slots) if place.slots else HEAD_NBYTES):
                raise _stale(place.file, seq, tag)
            if system.is_sparse(fd):
                path = os.path.join(self._place_of_pool(place.file)[0].path, place.file)
                raise HostilePath(f"{path} has holes; no owner makes such a segment", path=path, reason="sparse")
            return MappedFile(fd, os.fstat(fd).st_ino, HEAD_NBYTES * max(1, place.slots), nbytes)
        except OSError as error:
            check_limit(error, f"{place.file} cannot be mapped")
            raise
        finally:
            system.close(fd)

    def _open(self, name: str, seq: int, tag: str) -> int:
        if not is_segment_name(name):
            raise BadMessage(f"a message names {name[:80]!r}, and no segment is called so", detail=name[:80])
        directory, _ = self._place_of_pool(name)
        try:
            fd = system.open_private_file(os.path.join(directory.path, name), write=True)
        except FileNotFoundError:
            directory.check()
            raise _stale(name, seq, tag) from None
        except OSError as error:
            check_limit(error, f"{name} cannot be opened")
            raise
        try:
            directory.check()  # now: what was opened before this is in the directory
            if directory is not self._directory:
                self._directory.check()  # a session without its directory is at an end, wherever its tensors are
        except BaseException:
            system.close(fd)
            raise
        return fd

    def _map_private(self, segment: MappedSegment, seq: int, tag: str) -> memoryview:
        private, segment.spare = segment.spare, None
        if private is not None and system.advise(private, system.MADV_DONTNEED):
            return private
        try:
            return self._map_again(segment, seq, tag)
        except SystemLimit:
            if not self._forget_unviewed(segment):
                raise
            return self._map_again(segment, seq, tag)

    def _map_again(self, segment: MappedSegment, seq: int, tag: str) -> memoryview:
        fd = self._open(segment.name, seq, tag)
        try:
            if os.fstat(fd).st_ino != segment.file.inode:
                raise _stale(segment.name, seq, tag)
            return system.map_private(fd, len(segment.payload))
        except OSError as error:
            check_limit(error, f"{segment.name} cannot be mapped")
            raise
        finally:
            system.close(fd)

    def _decode(self, segment: MappedSegment, seq: int) -> None:
        """Set the layout that the header describes now.

        No lease is needed. An owner that changes the header has cleared ``seq`` first, and never uses that number
        again. So if a view of that number can be made later, the header had not changed when it was read here.
        """
        layout_seq = segment.words[LAYOUT_WORD]
        try:
            header = tsr_header.decode(
                segment.head[:MAX_HEADER_NBYTES].tobytes(), file_nbytes=len(segment.payload), path=segment.name
            )
        except TSRFormatError:
            if segment.words[SEQ_WORD] != seq:
                return  # the next try for a view raises StaleTensor
            raise
        if not header.is_segment:
            raise TSRFormatError(
                f"{segment.name} is a plain TSR file, not a segment", fault=Fault.BAD_FLAGS, path=segment.name
            )
        segment.header = header
        segment.set_layout(layout_seq, header.dtype.numpy, header.shape, header.payload_offset)

    def _forget_some(self) -> None:
        """Look at a few segments, and unmap those that are not needed any more."""
        order = self._order
        for _ in range(min(LOOKS_PER_TAKE, len(order))):
            try:
                segment = order.popleft()
            except IndexError:  # a signal handler has been here meanwhile
                break
            is_retired = segment.words[SEQ_WORD] == SEQ_RETIRED
            is_one_too_many = len(self.mapped) > MAX_UNVIEWED and not segment.is_recent
            segment.is_recent = False  # it has until the next look to be used
            if segment.views or not (is_retired or is_one_too_many):
                order.append(segment)
            else:
                self._forget(segment)

    def forget_retired(self) -> None:
        """Unmap the segments of other pools that nobody will publish in again. May be called from another thread.

        An idle reader looks at none, and would keep their memory. No lock is needed, because each step is one of the
        interpreter's; the reader's own thread may forget the same segment, or still look at it once.
        """
        for segment in list(self.mapped.values()):
            if segment.line is not None and segment.words[SEQ_WORD] == SEQ_RETIRED and not segment.views:
                with contextlib.suppress(ValueError):  # the reader has it in hand, and looks at it again later
                    self._order.remove(segment)
                self._forget(segment)

    def _forget(self, segment: MappedSegment) -> None:
        segment.is_listed = False
        for name in list(segment.names):
            self.mapped.pop(name, None)

    def _forget_unviewed(self, needed: MappedSegment | None = None) -> bool:
        """Unmap all segments without views, because a limit of the system is reached; False if there are none."""
        drain()
        unviewed = [each for each in self.mapped.values() if not each.views and each is not needed]
        for segment in unviewed:
            self._forget(segment)
        self._order = deque(dict.fromkeys(self.mapped.values()))
        return bool(unviewed)

    def stats(self) -> ReaderStats:
        """What is mapped now."""
        drain()
        segments = list(dict.fromkeys(list(self.mapped.values())))  # a copy, made in one step; one may have two names
        leased = [each.capacity for each in segments if each.views]
        return ReaderStats(len(segments), sum(each.capacity for each in segments), len(leased), sum(leased))

    def forked_in_parent(self) -> None:
        for segment in list(self.mapped.values()):  # a copy, made in one step: other threads go on working
            if segment.views:
                segment.is_pinned = True
                if segment.line is not None:
                    segment.line.is_pinned = True

    def forked_in_child(self) -> None:
        viewed = {id(segment.line) for segment in self.mapped.values() if segment.views}
        for line in list(self._lines.values()):
            if id(line) not in viewed:
                line.let_go()

    def close(self, *, is_peer_dead: bool = False) -> None:
        """Forget all mappings; views that still live keep theirs, their leases, and their lines.

        Args:
            is_peer_dead: whether the owner of the peer's segments has ended.
        """
        if self._source is not None and is_peer_dead:
            self._source.is_dead = True
            for segment in list(self.mapped.values()):
                segment.is_orphan = True
        self.mapped.clear()
        self._order.clear()
        self._lines.clear()


def _stale(name: str, seq: int, tag: str) -> StaleTensor:
    what = f"tensor {tag!r}" if tag else "the result"
    return StaleTensor(f"{what} (number {seq} in {name}) is not there any more; send it again", name=name, seq=seq)
