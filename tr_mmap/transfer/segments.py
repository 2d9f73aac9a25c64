"""Tensors in segments that both sides map: the transfer of every channel but the legacy one. Never copies a result."""

from __future__ import annotations

import copy
import functools
import threading
from collections import ChainMap, deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from math import inf
from typing import Any, TypeVar

from ..errors import BadMessage, MissingTag, OutOfSpace, UnsupportedTensor
from ..native import SentResults, TensorParts, drain, finished
from ..protocol.messages import Request, TensorRef, decode_response, now_ms
from ..protocol.named_values import FORM_NAMED, pack
from ..shm.pool import CopiedTensor, SegmentPool
from ..shm.reader import SegmentReader
from ..shm.segment import Segment
from ..shm.stats import PoolStats, ReaderStats
from ..wire.messages import ARGUMENT_TAG_PREFIX
from ..wire.names import RESULT_PREFIX, SEGMENT_PREFIX
from .given import Given, GivenTensors
from .interface import ControllerTransfer, Draft, WorkerTransfer
from .options import TransferOptions
from .shared import PoolAccess, in_one_piece
from .tags import Tags, describe_tags

__all__ = ["SegmentControllerTransfer", "SegmentWorkerTransfer"]


def _pool(directory: str, prefix: str, options: TransferOptions, *, has_lines: bool = False) -> SegmentPool:
    return SegmentPool(
        directory,
        prefix,
        budget_nbytes=options.budget_nbytes,
        block_ms=options.block_ms,
        checksum=options.checksum,
        has_lines=has_lines,
    )


class SegmentWorkerTransfer(WorkerTransfer):
    """See :class:`WorkerTransfer`. Threads of a handler may use it at once.

    Args:
        directory: the session directory.
        options: how to keep tensors.
        views: ``"readonly"`` or ``"copy_on_write"``: what fetched tensors are; None for each framework's default.
        shared: the directory of the pool of the controller's process; "" if the session has a pool of its own. Then its
            results have one reader only.
        moves_back: whether fetched torch tensors are put on the devices where their senders had them.
    """

    def __init__(
        self,
        directory: str,
        options: TransferOptions,
        views: str | None = None,
        shared: str = "",
        *,
        moves_back: bool = False,
    ) -> None:
        self._has_checksum = options.checksum
        self._lock = threading.RLock()
        self._reader = SegmentReader(
            directory, verify=options.checksum, views=views, shared=shared, moves_back=moves_back
        )
        self._pool = _pool(directory, RESULT_PREFIX, options, has_lines=bool(shared))
        self.quick_loan = self._pool.quick_loan
        self.tags: MutableMapping[str, TensorRef] = {}
        self._shared_tags: dict[str, TensorRef] = {}  # of requests at once: never changed, but replaced
        self._segments: list[Segment] = []  # of the results of the request at hand
        self._sent = SentResults()

    def fast_path_parts(self) -> TensorParts | None:
        if self._has_checksum:
            return None
        assert isinstance(self.tags, dict)
        endpoint = self._pool, self._reader.mapped, self._segments, self._reader.are_private
        return TensorParts(endpoint, self.tags, self._sent)

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

    def look_from_thread(self) -> None:
        self._reader.forget_retired()

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


_R = TypeVar("_R")


class SegmentControllerTransfer(ControllerTransfer):
    """See :class:`ControllerTransfer`.

    Args:
        directory: the session directory.
        options: how to keep tensors.
        views: ``"readonly"`` or ``"copy_on_write"``: what received tensors are; None for each framework's default.
        shared: the pool of this process, which the transfer joins; None for one of its own, in the session directory.
        moves_back: whether received torch tensors are put on the devices where their senders had them.
    """

    decode = staticmethod(decode_response)
    keeps_memory = True

    def __init__(
        self,
        directory: str,
        options: TransferOptions,
        views: str | None = None,
        shared: PoolAccess | None = None,
        *,
        moves_back: bool = False,
    ) -> None:
        super().__init__()
        self._directory = directory
        self._has_checksum = options.checksum
        self._views, self._moves_back = views, moves_back
        self._tags = Tags(directory, self._release_later)
        self.unannounced, self.tagged = self._tags.unannounced, self._tags.by_tag
        # By request that was not sent: what it names for itself alone.
        self._prepared: dict[Any, list[Segment | Given]] = {}
        # What a thread did not wait for: the request whose segments it releases, or None, and the call.
        self._late: deque[tuple[Any, Callable[[], None]]] = deque()
        self._fast_held: list[Segment | Given] = []  # the same of the request that the fast path prepares
        # Segments that tags have left, each with the number of requests that were sent before: these may still read it.
        self.left: list[tuple[int, Segment | Given]] = []
        self._given = GivenTensors(directory)
        # From here on other sessions' threads may ask what this one holds, and have it remove what is gone.
        if shared is None or not shared.join(self):
            shared = PoolAccess(_pool(directory, SEGMENT_PREFIX, options))
            shared.join(self)
        self.access = shared
        self._pool = shared.pool
        self.pool_directory = shared.directory
        self.quick_loan = self._pool.quick_loan
        self._reader = self._new_reader()  # of the running worker, or of the last one

    def holds(self) -> Iterator[Segment]:
        yield from (each for each in self._tags.segments() if isinstance(each, Segment))
        yield from self._needed_by_requests()
        yield from (each for _, each in self.left if isinstance(each, Segment))

    def _needed_by_requests(self) -> Iterator[Segment]:
        return (each for held in self._held_by_requests() for each in held if isinstance(each, Segment))

    def _held_by_requests(self) -> list[list[Segment | Given]]:
        late = [key.held for key, _ in list(self._late) if key is not None and key.held]
        lists = (self._fast_held, *self._prepared.values(), *self.fast_holds(), *late)
        return list({id(held): held for held in lists}.values())  # one that is about to be sent is in two of these

    def repair_tags(self) -> None:
        self._tags.repair()

    def remove_gone(self) -> None:
        self._given.remove_gone()

    def fast_path_parts(self) -> TensorParts | None:
        if self._has_checksum:
            return None
        endpoint = self._pool, self._reader.mapped, self._fast_held, self._reader.are_private
        return TensorParts(endpoint, {}, links=self._given.links)

    def put(self, tag: str, tensor: Any) -> None:
        self._put(tag, self._copied(tensor))

    @in_one_piece
    def _put(self, tag: str, tensor: Any) -> None:
        given = self._given.give_file(tensor, self._pool.next_seq) if self._pool.hands_on else None
        self._tags.put(tag, given or self._publish(tensor))

    @in_one_piece
    def drop(self, tag: str) -> None:
        self._tags.drop(tag)

    def prepare(
        self, key: Any, command: str, parameters: str, tensors: Sequence[Any], deadline_s: float = inf
    ) -> Draft:
        named = form = ""
        if len(tensors) == 1 and isinstance(tensors[0], Mapping):
            if parameters:
                raise BadMessage(
                    f"the message has words ({parameters[:80]!r}) beside arguments by name; give these names too",
                    detail=parameters[:80],
                )
            form = FORM_NAMED
            named, tensors = pack(tensors[0])
        refs = self._prepare(key, [self._copied(each) for each in tensors], deadline_s)
        if not form:
            named = " ".join([*([parameters] if parameters else []), *(ref.tag for ref in refs)])
        return Draft(command, named, refs, form)

    @in_one_piece
    def _prepare(self, key: Any, tensors: Sequence[Any], deadline_s: float) -> list[TensorRef]:
        if finished:
            drain()  # before the request is sent, so that the worker finds its segments free
        held: list[Segment | Given] = []
        try:
            for tensor in tensors:
                held.append(self._give(tensor) or self._publish(tensor, deadline_s, may_share=True))
        except BaseException:
            for segment in held:
                segment.release()
            raise
        if held:
            self._prepared[key] = held
            key.held = held
        return [TensorRef(f"{ARGUMENT_TAG_PREFIX}{number}", each.name, each.seq) for number, each in enumerate(held)]

    def _give(self, tensor: Any) -> Given | None:
        """A tensor of another pool or of a loaded file; None if it is none, or has to be copied."""
        if not self._pool.hands_on or isinstance(tensor, CopiedTensor):
            return None
        return self._given.give(tensor) or self._given.give_file(tensor, self._pool.next_seq)

    def _publish(self, tensor: Any, deadline_s: float | None = None, *, may_share: bool = False) -> Segment:
        if isinstance(tensor, CopiedTensor):
            return self._pool.publish_copied(tensor)
        return self._pool.publish(tensor, deadline_s, may_share=may_share)

    def _copied(self, tensor: Any) -> Any:
        """A tensor; for a large one its copy in a segment, made now: under the lock, others would wait for it."""
        pool = self._pool
        if not self.pool_directory or not pool.is_copied_apart(tensor) or self._given.may_give(tensor):
            return tensor
        try:
            return pool.copy_apart(tensor, self._run)
        except (OutOfSpace, UnsupportedTensor):
            raise
        except BaseException:
            self.access.has_failed = True  # it was not under the lock
            raise

    def request(self, seq: int, draft: Draft) -> Request:
        refs, drops = self._tags.announcements() if self._tags.unannounced else ([], [])
        return Request(seq, draft.command, draft.parameters, now_ms(), [*draft.tensors, *refs], drops, draft.form)

    def sent(self, key: Any, request: Request) -> None:
        self._prepared.pop(key, None)
        if self._tags.unannounced:
            self._tags.announced(request)

    def release(self, key: Any, oldest: int | None) -> None:
        self._soon(key, self._release_now, key, oldest)

    def _soon(self, key: Any, method: Callable[..., None], *arguments: Any) -> None:
        """Call a method under the lock: now, or with the next call under the lock if this thread would have to wait.

        Args:
            key: the request whose segments the method releases; None for no request.
            method: is called with the arguments; again if it is interrupted.
        """
        call = functools.partial(method, *arguments)
        if not self.access.when_free(self._run, call):
            self._late.append((key, call))
            self.access.late.append(self)

    @in_one_piece
    def _run(self, call: Callable[..., _R], *arguments: Any) -> _R:
        return call(*arguments)

    def catch_up(self) -> None:
        while self._late:
            self._late[0][1]()
            self._late.popleft()

    def _release_now(self, key: Any, oldest: int | None) -> None:
        while key is not None and key.held:
            key.held.pop().release()
        self._prepared.pop(key, None)
        while self.left and (oldest is None or self.left[0][0] <= oldest):
            self.left.pop(0)[1].release()

    def _release_later(self, segment: Segment | Given) -> None:
        """Release a tag's segment when all requests were answered that were sent before the tag left it."""
        self.left.append((self.next_order(), segment))
        if not self._prepared and not self.has_request_in_flight():
            self._release_now(None, None)

    @in_one_piece
    def empty(self, shape: int | tuple[int, ...], dtype: Any, framework: str) -> Any:
        return self._pool.empty(shape, dtype, framework)

    def stats(self) -> PoolStats:
        # Else another thread is at work, perhaps for long.
        if (finished or self.access.has_failed or self.access.late) and not self.access.depth:
            self.collect()
        return self._pool.stats()

    def reader_stats(self) -> ReaderStats:
        return self._reader.stats()

    def receive(self, ref: TensorRef, framework: str) -> Any:
        return self._reader.receive(ref.segment, ref.seq, framework, ref.tag)

    def worker_started(self, is_over: Callable[[], bool]) -> None:
        self._run(self.catch_up)  # the new worker must hear of all tags
        self._pool.is_reader_gone = is_over
        self._reader = self._new_reader()

    def worker_ended(self) -> None:
        self._reader.close(is_peer_dead=True)
        self._soon(None, self._forget_worker, list(self._prepared), self.left[-1][0] if self.left else 0)

    def _forget_worker(self, unsent: list[Any], last: int) -> None:
        """Release what the worker that has ended may have read: a next one may have requests by now."""
        for key in unsent:
            self._release_now(key, last)
        self._release_now(None, last)
        self._pool.reader_died()
        self.access.remove_gone()
        self._tags.announce_all_again()

    def _new_reader(self) -> SegmentReader:
        gives = bool(self.pool_directory)
        return SegmentReader(
            self._directory, verify=self._has_checksum, views=self._views, gives=gives, moves_back=self._moves_back
        )

    def collect(self) -> None:
        self.access.when_free(self._run, self._collect)

    def _collect(self) -> None:
        drain()
        self._given.remove_gone()

    def release_free(self) -> None:
        self.access.when_free(self._run, self._pool.release_free)

    def close(self) -> None:
        with self.access.lock:
            self._reader.close(is_peer_dead=True)
            for segment in self._needed_by_requests():  # another thread may be in the middle of a copy into one
                self._pool.taint(segment)
            for held in self._held_by_requests():
                held.clear()  # in place: whoever has the list releases nothing any more
            self._prepared.clear()
            self._late.clear()
            self.left.clear()
            self._tags.forget()
            self._given.close()
        self.access.leave(self)
