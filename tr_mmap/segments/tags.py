"""The controller's tags: names under which tensors stay until sent again, dropped, or the session ends."""

from __future__ import annotations

import os
from collections.abc import Callable

from .. import system
from ..errors import MissingTag
from ..protocol import Request, TensorRef
from .segment import Segment

__all__ = ["Tags"]


class Tags:
    """Which segment carries which tag, what its file is called, and what the worker has been told.

    ``<tag>.tsr`` is a hard link to the segment that carries the tag. What was announced in a request counts as told
    when that request is answered, so nothing is lost with a request that no worker ever read.

    Attributes:
        untold: what the worker does not know yet: tag to seq, or 0 for a tag that is gone.
    """

    def __init__(self, directory: str, release: Callable[[Segment], None]) -> None:
        self._directory = directory
        self._release = release  # of a segment that the worker may be about to read
        self._segments: dict[str, Segment] = {}
        self.untold: dict[str, int] = {}

    def put(self, tag: str, segment: Segment) -> None:
        """Let ``tag`` mean ``segment``, of which the caller's hold passes to the tag."""
        path = self._path(tag)
        temporary = f"{path}.{os.getpid()}.tmp"
        try:
            system.unlink(temporary)
            system.link(segment.path, temporary)
            system.rename(temporary, path)
        except BaseException:
            self._discard(temporary)
            segment.release()
            raise
        previous = self._segments.get(tag)
        self._segments[tag] = segment
        self.untold[tag] = segment.seq
        if previous is not None:
            self._release(previous)
            if previous is segment:
                # Both are links to one file already, and then rename does nothing and leaves both.
                self._discard(temporary)

    @staticmethod
    def _discard(path: str) -> None:
        try:
            system.unlink(path)
        except OSError:
            pass  # a name too many in the session's directory, which goes with it

    def drop(self, tag: str) -> None:
        """Forget a tag.

        Raises:
            MissingTag: there is no such tag.
        """
        segment = self._segments.get(tag)
        if segment is None:
            raise MissingTag(f"no tensor goes by the tag {tag!r}; sent are {self.describe()}", tag=tag)
        system.unlink(self._path(tag))
        del self._segments[tag]
        self.untold[tag] = 0
        self._release(segment)

    def describe(self) -> str:
        return ", ".join(sorted(self._segments)) or "none"

    def news(self) -> tuple[list[TensorRef], list[str]]:
        """What the next request must tell: where new tags are, and which are gone."""
        refs = [TensorRef(tag, self._segments[tag].name, seq) for tag, seq in self.untold.items() if seq]
        drops = [tag for tag, seq in self.untold.items() if not seq]
        return refs, drops

    def told(self, request: Request) -> None:
        """A request that carried :meth:`news` was answered; what has changed since is still to be told."""
        for ref in request.tensors:
            if self.untold.get(ref.tag) == ref.seq:
                del self.untold[ref.tag]
        for tag in request.drops:
            if self.untold.get(tag) == 0:
                del self.untold[tag]

    def tell_again(self) -> None:
        """There is a new worker, which knows nothing."""
        self.untold.clear()
        self.untold.update({tag: segment.seq for tag, segment in self._segments.items()})

    def _path(self, tag: str) -> str:
        return os.path.join(self._directory, f"{tag}.tsr")
