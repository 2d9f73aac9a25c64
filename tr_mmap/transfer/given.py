"""Tensors of others, handed on to a session's worker by links to their files. Copies nothing, sends no message.

A result of one worker is a view of a segment in that worker's pool. When it is an argument for another worker, its file
gets a second name in the directory of that worker's session, ``given-<k>_<n>.tsr``, and the page of the pool's readers
the name ``given-<k>.readers``. So the other worker may join the readers, and the first worker's end takes nothing away.

A plain file that this process has loaded gets the name ``given-file_<n>.tsr``. It needs no lease, for nobody fills it
again.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from ..base import system
from ..base.fork_safety import this_process
from ..base.identifiers import tensor_file
from ..errors import HostilePath
from ..native import view_of
from ..shm.mapped import MappedSegment, Source
from ..tsr.loaded import LoadedFile, loaded_file
from ..wire.header import SEQ_COPY_OFFSET, SEQ_COPY_WORD, SEQ_OFFSET, SEQ_RETIRED, SEQ_WORD
from ..wire.names import GIVEN_FILE_PREFIX, GIVEN_PREFIX, READERS_SUFFIX
from ..wire.segments import GIVEN_NBYTES

__all__ = ["Given", "GivenTensors"]


class Given(NamedTuple):
    """A tensor of another pool or of a file, held for a request or a tag.

    Attributes:
        name: of the link to its file.
        path: the same with its directory.
        seq: the number that it was published under.
        view: keeps the file, and the lease of this process, until the request is answered.
    """

    name: str
    path: str
    seq: int
    view: Any

    def release(self) -> None:
        """Does nothing: the lease goes with the last reference to the view."""


class _Link(NamedTuple):
    """A link in the session's directory.

    Attributes:
        name: of the link; "" if there can be none.
        path: of the link.
        source: the pool that the segment is from, which this keeps; None for a page of readers or a plain file.
    """

    name: str
    path: str
    source: Source | None = None


class GivenTensors:
    """The links in the directory of one session. The extension removes one at once when this process drops its segment.

    Args:
        directory: the session directory.
    """

    def __init__(self, directory: str) -> None:
        self._directory = system.KnownDir(directory)
        self._owner = this_process.mark
        self.links: dict[weakref.ref[Any], _Link] = {}  # by segment, by the pool of a page, and by loaded file
        self._gone: deque[weakref.ref[Any]] = deque()  # those that this process does not know any more
        self._numbers: Final = itertools.count()

    def may_give(self, tensor: Any) -> bool:
        """Whether :meth:`give` may hold it, if nothing is in the way."""
        return _whole_segment(tensor) is not None or _whole_file(tensor) is not None

    def give_file(self, tensor: Any, next_seq: Callable[[], int]) -> Given | None:
        """Hold a tensor of a loaded file; None if it is no whole one, or its file cannot be named.

        Args:
            tensor: any object.
            next_seq: makes a number that no other tensor has.
        """
        file = _whole_file(tensor)
        if file is None:
            return None
        self.remove_gone()
        link = self.links.get(weakref.ref(file)) or self._link_file(file)
        return Given(link.name, link.path, next_seq(), tensor) if link.name else None

    def _link_file(self, file: LoadedFile) -> _Link:
        name = tensor_file(f"{GIVEN_FILE_PREFIX}_{next(self._numbers)}")
        if not self._has_linked(file.path, name, file.inode):
            name = ""  # it is on another file system, or another file has its name: then it is copied, each time
        return self.links.setdefault(weakref.ref(file, self._gone.append), _Link(name, self._path(name)))

    def give(self, tensor: Any) -> Given | None:
        """Hold a tensor for a request; None if it is no whole tensor of another pool, or has to be copied."""
        segment = _whole_segment(tensor)
        if segment is None:
            return None
        seq = segment.words[SEQ_WORD]
        if seq in (0, SEQ_RETIRED) or segment.words[SEQ_COPY_WORD] != seq:
            return None
        self.remove_gone()
        link = self.links.get(weakref.ref(segment)) or self._link(segment)
        return None if link is None else Given(link.name, link.path, seq, tensor)

    def _link(self, segment: MappedSegment) -> _Link | None:
        """Link a segment's file, and its page of readers; None if that cannot be."""
        source = segment.source
        assert source is not None
        try:
            if not self._directory.is_there():
                return None
            page = self.links.get(weakref.ref(source)) or self._link_readers(source)
            name = tensor_file(f"{page.name.removesuffix(READERS_SUFFIX)}_{next(self._numbers)}")
        except (OSError, HostilePath):
            return None  # gone, no room for a name: then it is copied
        # The pool's owner may have ended meanwhile, and a later one have a file of that name. If it is the file that we
        # have mapped, then the page of readers that was linked before it is of the same pool.
        if not self._has_linked(os.path.join(source.directory, segment.name), name, segment.file.inode):
            return None
        link = _Link(name, self._path(name), source)
        self.links[weakref.ref(segment, self._gone.append)] = link
        segment.links = {**(segment.links or {}), id(self): os.fsencode(link.path)}
        return link

    def _has_linked(self, path: str, name: str, inode: int) -> bool:
        """Link a file under a name here. False if that cannot be, or if it is another file by now."""
        target = self._path(name)
        try:
            if not self._directory.is_there():
                return False
            system.link(path, target, owner=self._owner)
            if system.status(target).st_ino == inode:
                return True
            system.unlink(target, owner=self._owner)
        except (OSError, HostilePath):
            pass
        return False

    def _path(self, name: str) -> str:
        return os.path.join(self._directory.path, name)

    def _link_readers(self, source: Source) -> _Link:
        name = f"{GIVEN_PREFIX}{next(self._numbers)}{READERS_SUFFIX}"
        page = _Link(name, self._path(name))
        system.link(os.path.join(source.directory, source.stem + READERS_SUFFIX), page.path, owner=self._owner)
        return self.links.setdefault(weakref.ref(source, self._gone.append), page)

    def close(self) -> None:
        """Leave the links to whoever removes the directory: a later session may have names like these there."""
        for each in list(self.links):
            segment = each()
            if isinstance(segment, MappedSegment) and segment.links:
                segment.links = {key: path for key, path in segment.links.items() if key != id(self)}
        self.links.clear()
        self._gone.clear()

    def remove_gone(self) -> None:
        """Remove the links to segments that this process does not know any more, and that no request names."""
        while self._gone and this_process.mark is self._owner:
            link = self.links.get(self._gone[0])
            if link is not None and link.name:
                try:
                    if link.source is not None and link.source.is_dead:
                        _retire(link.path)  # nobody else will tell the readers that they may unmap it
                    system.unlink(link.path, owner=self._owner)
                except (OSError, HostilePath):
                    pass  # it goes with the directory
            # With its last segment a pool may go too, and be the next in the queue.
            self.links.pop(self._gone[0], None)
            self._gone.popleft()


def _retire(path: str) -> None:
    """Say in the header of a segment whose owner has ended that no other tensor will be there."""
    fd = system.open_private_file(path, write=True)
    try:
        for offset in (SEQ_COPY_OFFSET, SEQ_OFFSET):
            system.write_all(fd, SEQ_RETIRED.to_bytes(8, "little"), offset)
    finally:
        system.close(fd)


def _whole_segment(tensor: Any) -> MappedSegment | None:
    """The segment of another pool whose tensor this is all of; None if there is none, or if to copy it is cheaper."""
    if not isinstance(tensor, np.ndarray) or tensor.nbytes < GIVEN_NBYTES:
        return None
    segment = view_of(tensor)
    if not isinstance(segment, MappedSegment) or not segment.is_givable or not _is_whole(tensor, segment):
        return None
    return segment


def _whole_file(tensor: Any) -> LoadedFile | None:
    """The file that this is the whole tensor of; None if there is none, or if to copy it is cheaper."""
    if not isinstance(tensor, np.ndarray) or tensor.nbytes < GIVEN_NBYTES:
        return None
    return loaded_file(tensor)


def _is_whole(tensor: np.ndarray[Any, Any], segment: MappedSegment) -> bool:
    """Whether an array is all of the tensor that the segment's header describes, and as it lies there."""
    header = segment.header
    if header is None or tensor.shape != header.shape or tensor.dtype != header.dtype.numpy:
        return False
    if not tensor.flags.c_contiguous or tensor.flags.writeable:
        return False
    return bool(tensor.__array_interface__["data"][0] == segment.address + header.payload_offset)
