"""Tensors of other pools, handed on to a session's worker by links to their files. Copies nothing, sends no message.

A result of one worker is a view of a segment in that worker's pool. When it is an argument for another worker, its file
gets a second name in the directory of that worker's session, ``given-<k>_<n>.tsr``, and the page of the pool's readers
the name ``given-<k>.readers``. So the other worker may join the readers, and the first worker's end takes nothing away.
"""

from __future__ import annotations

import itertools
import os
import weakref
from typing import Any, Final, NamedTuple

import numpy as np

from ..base import system
from ..base.fork_safety import this_process
from ..base.identifiers import tensor_file
from ..errors import HostilePath
from ..native import view_of
from ..shm.reader import MappedSegment, Source
from ..wire.header import SEQ_COPY_WORD, SEQ_RETIRED, SEQ_WORD
from ..wire.names import GIVEN_PREFIX, READERS_SUFFIX
from ..wire.segments import GIVEN_NBYTES

__all__ = ["Given", "GivenTensors"]


class Given(NamedTuple):
    """A tensor of another pool, held for a request.

    Attributes:
        name: of the link to its segment.
        seq: the number that it was published under.
        view: keeps the lease of this process until the request is answered.
    """

    name: str
    seq: int
    view: Any

    def release(self) -> None:
        """Does nothing: the lease goes with the last reference to the view."""


class _Link(NamedTuple):
    name: str
    words: memoryview  # of the segment's header


class GivenTensors:
    """The links in the directory of one session.

    Args:
        directory: the session directory.
    """

    def __init__(self, directory: str) -> None:
        self._directory = system.KnownDir(directory)
        self._owner = this_process.mark
        self._stems: weakref.WeakKeyDictionary[Source, str] = weakref.WeakKeyDictionary()
        self._links: dict[weakref.ref[MappedSegment], tuple[_Link, Source]] = {}
        self._numbers: Final = itertools.count()

    def give(self, tensor: Any) -> Given | None:
        """Hold a tensor for a request; None if it is no whole tensor of another pool, or has to be copied."""
        if not isinstance(tensor, np.ndarray) or tensor.nbytes < GIVEN_NBYTES:
            return None
        segment = view_of(tensor)
        if not isinstance(segment, MappedSegment) or not segment.is_givable or not _is_whole(tensor, segment):
            return None
        seq = segment.words[SEQ_WORD]
        if seq in (0, SEQ_RETIRED) or segment.words[SEQ_COPY_WORD] != seq:
            return None
        known = self._links.get(weakref.ref(segment))
        name = self._link(segment) if known is None else known[0].name
        return Given(name, seq, tensor) if name else None

    def _link(self, segment: MappedSegment) -> str:
        """Link a segment's file, and its page of readers; "" if that cannot be."""
        self._remove_old()
        source = segment.source
        assert source is not None
        try:
            if not self._directory.is_there():
                return ""
            stem = self._stems.get(source) or self._link_readers(source)
            name = tensor_file(f"{stem}_{next(self._numbers)}")
            path = os.path.join(self._directory.path, name)
            system.link(os.path.join(source.directory, segment.name), path, owner=self._owner)
            # The pool's owner may have ended meanwhile, and a later one have a file of that name. If it is the file
            # that we have mapped, then the page of readers that was linked before it is of the same pool.
            if system.status(path).st_ino != segment.file.inode:
                system.unlink(path, owner=self._owner)
                return ""
        except (OSError, HostilePath):
            return ""  # gone, on another file system, no room for a name: then it is copied
        self._stems[source] = stem
        self._links[weakref.ref(segment)] = _Link(name, segment.words), source
        return name

    def _link_readers(self, source: Source) -> str:
        stem = f"{GIVEN_PREFIX}{next(self._numbers)}"
        page = os.path.join(source.directory, source.stem + READERS_SUFFIX)
        system.link(page, os.path.join(self._directory.path, stem + READERS_SUFFIX), owner=self._owner)
        return stem

    def _remove_old(self) -> None:
        """Remove the links to segments that this process does not know any more, and that no request names."""
        for key, (link, source) in list(self._links.items()):
            if key() is not None:
                continue
            self._links.pop(key, None)
            if source.is_dead:  # nobody else will tell the readers that they may unmap it
                link.words[SEQ_COPY_WORD] = link.words[SEQ_WORD] = SEQ_RETIRED
            try:
                system.unlink(os.path.join(self._directory.path, link.name), owner=self._owner)
            except (OSError, HostilePath):
                pass  # it goes with the directory


def _is_whole(tensor: np.ndarray[Any, Any], segment: MappedSegment) -> bool:
    """Whether an array is all of the tensor that the segment's header describes, and as it lies there."""
    header = segment.header
    if header is None or tensor.shape != header.shape or tensor.dtype != header.dtype.numpy:
        return False
    if not tensor.flags.c_contiguous or tensor.flags.writeable:
        return False
    return bool(tensor.__array_interface__["data"][0] == segment.address + header.payload_offset)
