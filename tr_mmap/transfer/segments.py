"""Tensors in segments that both sides map: the transfer of every channel but the legacy one. Never copies a result."""

from __future__ import annotations

import copy
import functools
import threading
from collections import ChainMap, Counter, deque
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from math import inf
from typing import Any, Concatenate, ParamSpec, TypeVar

from ..errors import BadMessage, MissingTag, OutOfSpace, UnsupportedTensor
from ..native import SentResults, TensorParts, drain, finished
from ..protocol.messages import Request, TensorRef, decode_response, now_ms
from ..protocol.named_values import FORM_NAMED, pack
from ..shm.pool import PoolStats, SegmentPool
from ..shm.reader import SegmentReader
from ..shm.segment import Segment
from ..wire.messages import ARGUMENT_TAG_PREFIX
from ..wire.names import RESULT_PREFIX, SEGMENT_PREFIX
from .interface import ControllerTransfer, Draft, WorkerTransfer
from .options import TransferOptions
from .tags import Tags, describe_tags

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
        views: ``"readonly"`` or ``"copy_on_write"``: what fetched tensors are; None for each framework's default.
    """

    def __init__(self, directory: str, options: TransferOptions, views: str | None = None) -> None:
        self._has_checksum = options.checksum
        self._lock = threading.RLock()
        self._reader = SegmentReader(directory, verify=options.checksum, views=views)
        self.has_quick_views = not self._reader.makes_private("numpy")
        self._pool = _pool(directory, RESULT_PREFIX, options)
        self.quick_loan = self._pool.quick_loan
        self.tags: MutableMapping[str, TensorRef] = {}
        self._shared_tags: dict[str, TensorRef] = {}  # of requests at once: never changed, but replaced
        self._segments: list[Segment] = []  # of the results of the request at hand
        self._sent = SentResults()

    def fast_path_parts(self) -> TensorParts | None:
        if self._has_checksum:
            return None
        assert isinstance(self.tags, dict)
        return TensorParts((self._pool, self._reader.mapped, self._segments), self.tags, self._sent)

    @property
    def results(self) -> list[TensorRef]:  # type: ignore[override] # no caller sets it
        return [TensorRef("", segment.name, segment.seq) for segment in self._segments]

    def begin(self, request: Request) -> None:
        for ref in request.tensors:
            self.tags[ref.tag] = ref
        for tag in request.drops:
            self.tags.pop(tag, None)

    def of_request(self, request: Request) -> SegmentWorkerTransfer:
        own = {ref.tag: ref for ref in request.tensors if ref.tag[:1] == ARGUMENT_TAG_PREFIX}
        if request.drops or len(request.tensors) > len(own):
            shared = dict(self._shared_tags)
            shared.update({ref.tag: ref for ref in request.tensors if ref.tag not in own})
            for tag in request.drops:
                shared.pop(tag, None)
            self._shared_tags = shared
        transfer = copy.copy(self)
        transfer.tags = ChainMap(own, self._shared_tags)
        transfer._segments = []
        return transfer

    def forked_in_child(self) -> None:
        self._lock = threading.RLock()

    def fetch(self, tag: str, framework: str) -> Any:
        ref = self.tags.get(tag)
        if ref is None:
            known = describe_tags([each for each in self.tags if each[:1] != ARGUMENT_TAG_PREFIX])
            raise MissingTag(f"there is no tensor with the tag {tag!r}; there are: {known}", tag=tag)
        with self._lock:
            return self._reader.receive(ref.segment, ref.seq, framework, ref.tag)

    def publish(self, tensors: Sequence[Any]) -> None:
        for tensor in tensors:
            if self._pool.quick_publish(tensor, self._segments) is None:
                with self._lock:
                    self._segments.append(self._pool.publish(tensor, may_share=True))

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

    def responded(self, order: int) -> None:
        with self._lock:
            self._sent.add(order, self._segments)

    def consumed(self, count: int) -> None:
        with self._lock:
            self._sent.release(count)

    def empty(self, shape: int | tuple[int, ...], dtype: Any, framework: str) -> Any:
        with self._lock:
            return self._pool.empty(shape, dtype, framework)

    def release_free(self) -> None:
        with self._lock:
            self._pool.release_free()

    def close(self, *, is_orphan: bool) -> None:
        self._reader.close()
        if is_orphan:
            self._pool.close()


_P = ParamSpec("_P")
_R = TypeVar("_R")


def _in_one_piece(
    method: Callable[Concatenate[SegmentControllerTransfer, _P], _R],
) -> Callable[Concatenate[SegmentControllerTransfer, _P], _R]:
    """Run a method under the lock. If an earlier one has failed, put the pool right first.

    A signal handler may raise between any two steps of a method, and then a segment may be held for ever, or not be
    held though it should be. It may also use the session itself; that call is part of the interrupted one.
    """

    @functools.wraps(method)
    def run(self: SegmentControllerTransfer, *arguments: _P.args, **options: _P.kwargs) -> _R:
        with self._lock:
            depth, is_whole = self._depth, False
            self._depth = depth + 1  # no handler runs between this and the try
            try:
                if self._has_failed and not depth and not self._paused:
                    self._repair()
                if self._late and not depth:
                    self._release_late()
                result = method(self, *arguments, **options)
                is_whole = True
                return result
            except (MissingTag, UnsupportedTensor, OutOfSpace):
                is_whole = not depth  # the method has undone its steps; but a handler's call interrupts another method
                raise
            finally:
                self._depth = depth
                if not is_whole:
                    self._has_failed = True

    return run  # type: ignore[return-value] # mypy keeps the name `self` in one of the two types


class SegmentControllerTransfer(ControllerTransfer):
    """See :class:`ControllerTransfer`.

    Args:
        directory: the session directory.
        options: how to keep tensors.
        views: ``"readonly"`` or ``"copy_on_write"``: what received tensors are; None for each framework's default.
    """

    decode = staticmethod(decode_response)
    keeps_memory = True

    def __init__(self, directory: str, options: TransferOptions, views: str | None = None) -> None:
        super().__init__()
        self._directory = directory
        self._has_checksum = options.checksum
        self._views = views
        self._lock = threading.RLock()
        self._room = threading.Condition(self._lock)
        self._depth = 0  # of the methods that the lock's owner is in: more than 1 in the call of a signal handler
        self._paused = 0  # threads that are in the middle of a method, and have let others in
        self._has_failed = False  # a method has, so the pool is to be put right
        self._pool = _pool(directory, SEGMENT_PREFIX, options)
        self._pool.pause = self._pause
        self.quick_loan = self._pool.quick_loan
        self._tags = Tags(directory, self._release_later)
        self.unannounced = self._tags.unannounced
        self._reader = self._new_reader()  # of the running worker, or of the last one
        self.has_quick_views = not self._reader.makes_private("numpy")
        self._prepared: dict[Any, list[Segment]] = {}  # by request that was not sent: what it names for itself alone
        self._late: deque[tuple[Any, int | None]] = deque()  # arguments of release() in a thread that did not wait
        self._fast_held: list[Segment] = []  # the same of the request that the fast path prepares
        # Segments that tags have left, each with the number of requests that were sent before: these may still read it.
        self.left: list[tuple[int, Segment]] = []

    def _pause(self, seconds: float) -> None:
        """Let other threads in for so long, because one of them may make room."""
        depth, self._depth = self._depth, 0
        self._paused += 1  # no handler runs between this and the try
        try:
            self._room.wait(seconds)
        finally:
            self._paused -= 1
            self._depth = depth

    def _repair(self) -> None:
        """Put right how often each segment is held: once for each tag, and for each request that needs it.

        Does nothing while a request is in flight; a later method tries again.

        No other thread is in the middle of a method. But one may be on the fast path, which has no lock. So this first
        closes the fast path and then looks for a request; a thread first says that it has a request and then looks
        whether the fast path is open.
        """
        if self._pool.is_foreign:
            return
        holds: Counter[Segment] = Counter(self._tags.segments())
        # A request that is about to be sent is in two of these with the same list.
        late = [key.held for key, _ in self._late if key is not None and key.held]
        lists = {id(held): held for held in (self._fast_held, *self._prepared.values(), *self.fast_holds(), *late)}
        for held in lists.values():
            holds.update(held)
        holds.update(segment for _, segment in self.left)
        self._pool.reconcile(holds)
        self._tags.repair()
        self._has_failed = False

    def fast_path_parts(self) -> TensorParts | None:
        if self._has_checksum or not self.has_quick_views:
            return None
        return TensorParts((self._pool, self._reader.mapped, self._fast_held), {})

    @_in_one_piece
    def put(self, tag: str, tensor: Any) -> None:
        self._tags.put(tag, self._pool.publish(tensor))

    @_in_one_piece
    def drop(self, tag: str) -> None:
        self._tags.drop(tag)

    @_in_one_piece
    def prepare(
        self, key: Any, command: str, parameters: str, tensors: Sequence[Any], deadline_s: float = inf
    ) -> Draft:
        if finished:
            drain()  # before the request is sent, so that the worker finds its segments free
        held: list[Segment] = []
        refs: list[TensorRef] = []
        named = form = ""
        if len(tensors) == 1 and isinstance(tensors[0], Mapping):
            if parameters:
                raise BadMessage(
                    f"the message has words ({parameters[:80]!r}) beside arguments by name; give these names too",
                    detail=parameters[:80],
                )
            form = FORM_NAMED
            named, tensors = pack(tensors[0])
        try:
            for number, tensor in enumerate(tensors):
                held.append(self._pool.publish(tensor, deadline_s, may_share=True))
                tag = f"{ARGUMENT_TAG_PREFIX}{number}"
                refs.append(TensorRef(tag, held[-1].name, held[-1].seq))
                parameters = f"{parameters} {tag}" if parameters else tag
        except BaseException:
            for segment in held:
                segment.release()
            raise
        if held:
            self._prepared[key] = held
            key.held = held
        return Draft(command, named if form else parameters, refs, form)

    def request(self, seq: int, draft: Draft) -> Request:
        refs, drops = self._tags.announcements() if self._tags.unannounced else ([], [])
        return Request(seq, draft.command, draft.parameters, now_ms(), [*refs, *draft.tensors], drops, draft.form)

    def sent(self, key: Any, request: Request) -> None:
        self._prepared.pop(key, None)
        if self._tags.unannounced:
            self._tags.announced(request)

    def release(self, key: Any, oldest: int | None) -> None:
        if not self._when_free(self._release, key, oldest):
            self._late.append((key, oldest))

    def _when_free(self, method: Callable[_P, None], *arguments: _P.args, **options: _P.kwargs) -> bool:
        """Call a method, unless this thread would have to wait for the lock. Returns whether it was called.

        The lock's owner may prepare a request, and be interrupted by a signal handler that waits for what this thread
        is doing. Handlers run in the main thread only. So that one may wait here, if only for a moment, because a loop
        may run in it; and an exception cannot come between any two steps of others.
        """
        if threading.get_ident() == threading.main_thread().ident:
            if self._depth and not self._lock._is_owned():  # type: ignore[attr-defined] # mypy does not know it
                return False
            method(*arguments, **options)
            return True
        if not self._lock.acquire(blocking=False):
            return False
        try:
            method(*arguments, **options)
        finally:
            self._lock.release()
        return True

    def _release_late(self) -> None:
        while self._late:
            self._release_now(*self._late[0])
            self._late.popleft()

    @_in_one_piece
    def _release(self, key: Any, oldest: int | None) -> None:
        self._release_now(key, oldest)

    def _release_now(self, key: Any, oldest: int | None) -> None:
        while key is not None and key.held:
            key.held.pop().release()
        self._prepared.pop(key, None)
        while self.left and (oldest is None or self.left[0][0] <= oldest):
            self.left.pop(0)[1].release()

    def _release_later(self, segment: Segment) -> None:
        """Release a tag's segment when all requests were answered that were sent before the tag left it."""
        self.left.append((self.next_order(), segment))
        if not self._prepared and not self.has_request_in_flight():
            self._release_now(None, None)

    @_in_one_piece
    def empty(self, shape: int | tuple[int, ...], dtype: Any, framework: str) -> Any:
        return self._pool.empty(shape, dtype, framework)

    def stats(self) -> PoolStats:
        if (self._has_failed or self._late) and not self._depth:  # else another thread is at work, perhaps for long
            self.collect()
        return self._pool.stats()

    def receive(self, ref: TensorRef, framework: str) -> Any:
        return self._reader.receive(ref.segment, ref.seq, framework, ref.tag)

    def worker_started(self, is_over: Callable[[], bool]) -> None:
        self._pool.is_reader_gone = is_over
        self._reader = self._new_reader()

    @_in_one_piece
    def worker_ended(self) -> None:
        self._reader.close()
        for key in list(self._prepared):
            self._release_now(key, None)
        self._release_now(None, None)
        self._pool.reader_died()
        self._tags.announce_all_again()

    def _new_reader(self) -> SegmentReader:
        return SegmentReader(self._directory, verify=self._has_checksum, views=self._views)

    def collect(self) -> None:
        self._when_free(self._collect)

    @_in_one_piece
    def _collect(self) -> None:
        drain()

    def release_free(self) -> None:
        self._when_free(self._release_free)

    @_in_one_piece
    def _release_free(self) -> None:
        self._pool.release_free()

    def close(self) -> None:
        with self._lock:  # and nothing is put right, because nothing is left of it
            self._reader.close()
            self._pool.close()
