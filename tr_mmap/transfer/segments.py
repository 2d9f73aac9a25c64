"""Tensors in segments that both sides map: the transfer of every channel but the legacy one. Never copies a result."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import MissingTag
from ..native import TensorParts, drain, finished
from ..protocol.messages import Request, TensorRef, decode_response, now_ms
from ..shm.pool import PoolStats, SegmentPool
from ..shm.reader import SegmentReader
from ..shm.segment import Segment
from ..wire.messages import ARGUMENT_TAG_PREFIX
from ..wire.names import RESULT_PREFIX, SEGMENT_PREFIX
from .interface import ControllerTransfer, WorkerTransfer
from .options import TransferOptions
from .tags import Tags

__all__ = ["SegmentControllerTransfer", "SegmentWorkerTransfer"]


def _pool(directory: str, prefix: str, options: TransferOptions) -> SegmentPool:
    return SegmentPool(
        directory,
        prefix,
        budget_nbytes=options.budget_nbytes,
        block_ms=options.block_ms,
        checksum=options.checksum,
    )


class SegmentWorkerTransfer(WorkerTransfer):
    """See :class:`WorkerTransfer`. Threads of a handler may use it at once.

    Args:
        directory: the session directory.
        options: how to keep tensors.
    """

    def __init__(self, directory: str, options: TransferOptions) -> None:
        self._has_checksum = options.checksum
        self._lock = threading.RLock()
        self._reader = SegmentReader(directory, verify=options.checksum)
        self._pool = _pool(directory, RESULT_PREFIX, options)
        self.quick_loan = self._pool.quick_loan
        self.tags: dict[str, TensorRef] = {}
        self._segments: list[Segment] = []  # of the results; the controller may not have received them yet

    def fast_path_parts(self) -> TensorParts | None:
        if self._has_checksum:
            return None
        return TensorParts((self._pool, self._reader.mapped, self._segments), self.tags)

    @property
    def results(self) -> list[TensorRef]:  # type: ignore[override] # no caller sets it
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
            known = ", ".join(sorted(each for each in self.tags if each[:1] != ARGUMENT_TAG_PREFIX)) or "none"
            raise MissingTag(f"no tensor goes by the tag {tag!r}; sent are: {known}", tag=tag)
        with self._lock:
            return self._reader.receive(ref.segment, ref.seq, framework, ref.tag)

    def publish(self, tensors: Sequence[Any]) -> None:
        for tensor in tensors:
            segment = self._pool.quick_publish(tensor)
            if segment is None:
                with self._lock:
                    segment = self._pool.publish(tensor, may_share=True)
            self._segments.append(segment)

    def end(self, request: Request, is_kept: bool) -> list[TensorRef]:
        if not is_kept:
            self.withdraw()
        for ref in request.tensors:
            if ref.tag[:1] == ARGUMENT_TAG_PREFIX:  # of this request only
                self.tags.pop(ref.tag, None)
        if finished:
            drain()  # before the response is sent, so that the controller finds its segments free
        return self.results

    def withdraw(self) -> None:
        with self._lock:
            while self._segments:
                self._segments.pop().release()

    def empty(self, shape: int | tuple[int, ...], dtype: Any, framework: str) -> Any:
        with self._lock:
            return self._pool.empty(shape, dtype, framework)

    def close(self, *, is_orphan: bool) -> None:
        self._reader.close()
        if is_orphan:
            self._pool.close()


class SegmentControllerTransfer(ControllerTransfer):
    """See :class:`ControllerTransfer`.

    Args:
        directory: the session directory.
        options: how to keep tensors.
    """

    decode = staticmethod(decode_response)

    def __init__(self, directory: str, options: TransferOptions) -> None:
        self._directory = directory
        self._has_checksum = options.checksum
        self._pool = _pool(directory, SEGMENT_PREFIX, options)
        self.quick_loan = self._pool.quick_loan
        self._tags = Tags(directory, self._release_later)
        self.unannounced = self._tags.unannounced
        self._reader = self._new_reader()  # of the running worker, or of the last one
        self._in_flight: list[Segment] = []  # what the worker may still read for the request in flight

    def fast_path_parts(self) -> TensorParts | None:
        if self._has_checksum:
            return None
        return TensorParts((self._pool, self._reader.mapped, self._in_flight), {})

    def put(self, tag: str, tensor: Any) -> None:
        self._tags.put(tag, self._pool.publish(tensor))

    def drop(self, tag: str) -> None:
        self._tags.drop(tag)

    def prepare(self, seq: int, command: str, parameters: str, tensors: Sequence[Any]) -> Request:
        if finished:
            drain()  # before the request is sent, so that the worker finds its segments free
        refs, drops = self._tags.announcements() if self._tags.unannounced else ([], [])
        if tensors:
            parameters = self._publish_arguments(tensors, parameters, refs)
        self.has_request_in_flight = True
        return Request(seq, command, parameters, now_ms(), refs, drops)

    def _publish_arguments(self, tensors: Sequence[Any], words: str, refs: list[TensorRef]) -> str:
        """Publish tensors for one request, under tags of its own. Returns the words, followed by these tags."""
        held = self._in_flight
        try:
            for tensor in tensors:
                segment = self._pool.publish(tensor, may_share=True)
                tag = f"{ARGUMENT_TAG_PREFIX}{len(held)}"
                held.append(segment)
                refs.append(TensorRef(tag, segment.name, segment.seq))
                words = f"{words} {tag}" if words else tag
        except BaseException:
            self.withdraw()
            raise
        return words

    def withdraw(self) -> None:
        self.has_request_in_flight = False
        while self._in_flight:
            self._in_flight.pop().release()

    def acknowledged(self, request: Request) -> None:
        if self._tags.unannounced:
            self._tags.acknowledged(request)
        self.withdraw()

    def _release_later(self, segment: Segment) -> None:
        """Release a tag's segment, but not before the response if the worker may be about to read it."""
        if self.has_request_in_flight:
            self._in_flight.append(segment)
        else:
            segment.release()

    def empty(self, shape: int | tuple[int, ...], dtype: Any, framework: str) -> Any:
        return self._pool.empty(shape, dtype, framework)

    def stats(self) -> PoolStats:
        return self._pool.stats()

    def receive(self, ref: TensorRef, framework: str) -> Any:
        return self._reader.receive(ref.segment, ref.seq, framework, ref.tag)

    def worker_started(self, is_over: Callable[[], bool]) -> None:
        self._pool.is_reader_gone = is_over
        self._reader = self._new_reader()

    def worker_ended(self) -> None:
        self._reader.close()
        self.withdraw()
        self._pool.reader_died()
        self._tags.announce_all_again()

    def _new_reader(self) -> SegmentReader:
        return SegmentReader(self._directory, verify=self._has_checksum)

    def collect(self) -> None:
        drain()

    def close(self) -> None:
        self._reader.close()
        self._pool.close()
