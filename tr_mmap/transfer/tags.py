"""The controller's tags: a tensor stays under its tag until the tag is sent again or dropped. Never sends a message."""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Callable, Collection
from typing import Final

from ..base import system
from ..base.atomic import replace_by_link
from ..base.fork_safety import this_process
from ..base.identifiers import tensor_file
from ..errors import HostilePath, MissingTag
from ..protocol.messages import Request, TensorRef
from ..shm.segment import Segment
from .given import Given

__all__ = ["Tags", "describe_tags"]

_MANY: Final = 20  # the most tags that an error names


def describe_tags(tags: Collection[str]) -> str:
    """The tags for the text of an error; of many, the first ones and how many more there are."""
    if not tags:
        return "none"
    named = ", ".join(heapq.nsmallest(_MANY, tags))
    return named if len(tags) <= _MANY else f"{named} and {len(tags) - _MANY} more"


class Tags:
    """Which segment carries which tag, and which tags the worker has not acknowledged.

    ``<tag>.tsr`` is a hard link to the segment that carries the tag. The response to a request acknowledges what that
    request announced, so no announcement is lost if no worker reads the request.

    Args:
        directory: the session directory.
        release: releases the hold of a tag on a segment, which the worker may be about to read.

    Attributes:
        by_tag: the segment that carries each tag.
        unannounced: changes that the worker has not acknowledged: tag to seq, or 0 for a tag that is gone.
    """

    def __init__(self, directory: str, release: Callable[[Segment | Given], None]) -> None:
        self._directory = system.KnownDir(directory)
        self._owner = this_process.mark
        self._release = release
        self.by_tag: dict[str, Segment | Given] = {}
        self._linking: str | None = None  # the tag whose file may not be that of its segment, after an interrupt
        self.unannounced: dict[str, int] = {}

    def put(self, tag: str, segment: Segment | Given) -> None:
        """Let ``tag`` name ``segment``; the caller's hold becomes the tag's.

        Raises:
            OutOfSpace, HostilePath, SessionNotStarted: the link cannot be made; the tag keeps what it had, and the hold
                is released.
        """
        previous = self.by_tag.get(tag)
        if previous is not segment:  # else the file of that tag is a link to it already
            self._linking = tag
            try:
                self._directory.check()
                replace_by_link(segment.path, self._path(tag))
            except BaseException:
                segment.release()
                raise
        self.by_tag[tag] = segment
        self.unannounced[tag] = segment.seq
        self._linking = None
        if previous is not None:
            self._release(previous)

    def drop(self, tag: str) -> None:
        """Forget a tag.

        Raises:
            MissingTag: there is no such tag.
        """
        segment = self.by_tag.get(tag)
        if segment is None:
            raise MissingTag(f"there is no tensor with the tag {tag!r}; there are {self.describe()}", tag=tag)
        self._linking = tag
        if self._directory.is_there():
            system.unlink(self._path(tag), owner=self._owner)
        self.unannounced[tag] = 0
        del self.by_tag[tag]
        self._linking = None
        self._release(segment)

    def segments(self) -> list[Segment | Given]:
        """The segments that carry tags, each as often as it carries one."""
        return list(self.by_tag.values())

    def forget(self) -> None:
        """Forget all tags. Their files go with the session's directory."""
        self.by_tag.clear()
        self._linking = None

    def repair(self) -> None:
        """Make the file of each tag that of its segment, after an interrupted :meth:`put` or :meth:`drop`."""
        tag = self._linking
        if tag is None:
            return
        segment = self.by_tag.get(tag)
        # Somebody has removed the directory, or something of theirs has the name: neither may stop other requests.
        with contextlib.suppress(FileNotFoundError, HostilePath):
            if self._directory.is_there():
                system.unlink(self._path(tag), owner=self._owner)
            if segment is not None and self._directory.is_there():
                system.link(segment.path, self._path(tag), owner=self._owner)
        self.unannounced[tag] = 0 if segment is None else segment.seq
        self._linking = None

    def describe(self) -> str:
        """The tags, or some of them, for the text of an error."""
        return describe_tags(self.by_tag)

    def announcements(self) -> tuple[list[TensorRef], list[str]]:
        """What the next request must announce: where the tensors of new tags are, and which tags are gone."""
        changes = list(self.unannounced.items())
        # Another thread may be changing a tag: then it notes another change, which is announced later.
        found = [(tag, self.by_tag.get(tag)) for tag, seq in changes if seq]
        refs = [TensorRef(tag, segment.name, segment.seq) for tag, segment in found if segment is not None]
        return refs, [tag for tag, seq in changes if not seq]

    def announced(self, request: Request) -> None:
        """A request with :meth:`announcements` was sent. Later changes are still to be announced."""
        for ref in request.tensors:
            if self.unannounced.get(ref.tag) == ref.seq:
                self.unannounced.pop(ref.tag, None)  # a signal handler may have been here meanwhile
        for tag in request.drops:
            if self.unannounced.get(tag) == 0:
                self.unannounced.pop(tag, None)

    def announce_all_again(self) -> None:
        """Announce all tags with the next request, because a new worker knows none."""
        self.unannounced.clear()
        self.unannounced.update({tag: segment.seq for tag, segment in self.by_tag.items()})

    def _path(self, tag: str) -> str:
        return os.path.join(self._directory.path, tensor_file(tag))
