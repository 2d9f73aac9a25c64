"""Tensors in recycled segments, mapped by both sides: the store of every channel but the older dialect's.

The hot path of both sides runs through here: no layer that could be left out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import MissingTag
from ..manifest import StoreOptions
from ..native import bury, dead
from ..protocol import Request, TensorRef, decode_response, now_ms
from ..segments import PoolStats, Receiver, Segment, SegmentPool, Tags
from .base import ControllerStore, WorkerStore

__all__ = ["SegmentControllerStore", "SegmentWorkerStore"]


def _pool(directory: str, prefix: str, options: StoreOptions) -> SegmentPool:
    return SegmentPool(
        directory,
        prefix,
        budget_nbytes=options.budget_nbytes,
        block_ms=options.block_ms,
        checksum=options.checksum,
    )


class SegmentWorkerStore(WorkerStore):
    """See :class:`WorkerStore`. Threads of a handler may use it at once.

    Args:
        directory: the session directory.
        options: how to keep tensors.
    """

    def __init__(self, directory: str, options: StoreOptions) -> None:
        self.has_checksum = options.checksum
        self._lock = threading.RLock()
        self._receiver = Receiver(directory, verify=options.checksum)
        self._pool = _pool(directory, "result", options)
        self.lend_again = self._pool.lend_again
        self.tags: dict[str, TensorRef] = {}
        self._segments: list[Segment] = []  # of the results, which the controller may not have taken yet

    def ends(self) -> tuple[SegmentPool, dict[str, Any], list[Segment]]:
        """Where our tensors are, where the peer's, and those of ours that the answer at hand names."""
        return self._pool, self._receiver.mapped, self._segments

    @property
    def results(self) -> list[TensorRef]:  # type: ignore[override] # nobody sets it
        return [TensorRef("", segment.name, segment.seq) for segment in self._segments]

    def begin(self, request: Request) -> None:
        if self._segments:
            self.withdraw()
        for ref in request.tensors:
            self.tags[ref.tag] = ref
        for tag in request.drops:
            self.tags.pop(tag, None)

    def fetch(self, tag: str, framework: str) -> Any:
        ref = self.tags.get(tag)
        if ref is None:
            known = ", ".join(sorted(each for each in self.tags if each[:1] != "$")) or "none"
            raise MissingTag(f"no tensor goes by the tag {tag!r}; sent are: {known}", tag=tag)
        with self._lock:
            return self._receiver.receive(ref, framework)

    def publish(self, tensors: Sequence[Any]) -> None:
        for tensor in tensors:
            segment = self._pool.publish_again(tensor)
            if segment is None:
                with self._lock:
                    segment = self._pool.publish(tensor)
            self._segments.append(segment)

    def end(self, request: Request, is_kept: bool) -> list[TensorRef]:
        if not is_kept:
            self.withdraw()
        for ref in request.tensors:
            if ref.tag[:1] == "$":  # lent for this request only
                self.tags.pop(ref.tag, None)
        if dead:
            bury()  # before the answer, so that the controller finds its segments free
        return self.results

    def withdraw(self) -> None:
        with self._lock:
            while self._segments:
                self._segments.pop().release()

    def empty(self, shape: int | tuple[int, ...], dtype: Any, framework: str) -> Any:
        with self._lock:
            return self._pool.empty(shape, dtype, framework)

    def close(self, *, is_orphan: bool) -> None:
        self._receiver.close()
        if is_orphan:
            self._pool.close()


class SegmentControllerStore(ControllerStore):
    """See :class:`ControllerStore`.

    Args:
        directory: the session directory.
        options: how to keep tensors.
    """

    decode = staticmethod(decode_response)

    def __init__(self, directory: str, options: StoreOptions) -> None:
        self._directory = directory
        self.has_checksum = options.checksum
        self._pool = _pool(directory, "segment", options)
        self.lend_again = self._pool.lend_again
        self._tags = Tags(directory, self._release_later)
        self.news = self._tags.untold
        self._receiver: Receiver | None = None
        self._in_flight: list[Segment] = []  # what the request under way may still read

    def ends(self) -> tuple[SegmentPool, dict[str, Any], list[Segment]]:
        """Where our tensors are, where the worker's, and those of ours that the request under way may read."""
        assert self._receiver is not None
        return self._pool, self._receiver.mapped, self._in_flight

    def put(self, tag: str, tensor: Any) -> None:
        self._tags.put(tag, self._pool.publish(tensor))

    def drop(self, tag: str) -> None:
        self._tags.drop(tag)

    def prepare(self, seq: int, command: str, parameters: str, tensors: Sequence[Any]) -> Request:
        if dead:
            bury()  # before the request, so that the worker finds its segments free
        refs, drops = self._tags.news() if self._tags.untold else ([], [])
        if tensors:
            parameters = self._lend(tensors, parameters, refs)
        self.is_asked = True
        return Request(seq, command, parameters, now_ms(), refs, drops)

    def _lend(self, tensors: Sequence[Any], words: str, refs: list[TensorRef]) -> str:
        """Publish tensors for one request, under tags of its own; the words with these tags."""
        lent = self._in_flight
        try:
            for tensor in tensors:
                segment = self._pool.publish(tensor)
                tag = f"${len(lent)}"
                lent.append(segment)
                refs.append(TensorRef(tag, segment.name, segment.seq))
                words = f"{words} {tag}" if words else tag
        except BaseException:
            self.withdraw()
            raise
        return words

    def withdraw(self) -> None:
        self.is_asked = False
        while self._in_flight:
            self._in_flight.pop().release()

    def answered(self, request: Request) -> None:
        if self._tags.untold:
            self._tags.told(request)
        self.withdraw()

    def _release_later(self, segment: Segment) -> None:
        """A tag lets go of a segment, which the request under way may be about to read."""
        if self.is_asked:
            self._in_flight.append(segment)
        else:
            segment.release()

    def empty(self, shape: int | tuple[int, ...], dtype: Any, framework: str) -> Any:
        return self._pool.empty(shape, dtype, framework)

    def stats(self) -> PoolStats:
        return self._pool.stats()

    def begin_run(self, is_over: Callable[[], bool]) -> None:
        self._pool.is_reader_gone = is_over
        self._receiver = Receiver(self._directory, verify=self.has_checksum)
        self.receive = self._receiver.receive

    def end_run(self) -> None:
        self._close_receiver()
        self.withdraw()
        self._pool.reader_died()
        self._tags.tell_again()

    def _close_receiver(self) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.close()

    def collect(self) -> None:
        bury()

    def close(self) -> None:
        self._close_receiver()
        self._pool.close()
