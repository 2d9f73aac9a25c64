"""``SessionPool.map``: requests for the items of an iterable, a few at a time, and their results. Sends nothing.

The iterable is read in the thread that takes the results, and never further ahead than ``buffersize`` requests. Small
requests that take little time go as batches. How many items a batch has is found out: its worker says how long their
handlers took, and a batch is to take ``_BATCH_S``.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Final, NoReturn, Self, TypeAlias

import numpy as np

from .arguments import message_of
from .batches import kind_of, nbytes_of
from .chunks import Chunk, ChunkTask, Item
from .tasks import Task

__all__ = ["FILL_S", "Feed", "MapParts", "MapResults"]

_BATCH_S: Final = 0.002  # what a batch is to take, so that the way to the worker and back costs little beside it
_PROBE_S: Final = 0.05  # a single request that took longer is not tried in a batch
_GROWTH: Final = 4
_MOST_ITEMS: Final = 256
_MOST_NBYTES: Final = 1 << 18  # of the arguments of a batch
_SLOWER: Final = 4  # how much slower than before handlers may be, until their batch counts as hung
_LONG_S: Final = 1e6  # a wait of days may as well have no limit
FILL_S: Final = 0.002  # an iterable that takes longer for its items does not hold up those that are there


class Feed:
    """Makes chunks of the items of a map. Reads the iterable.

    Args:
        command: of all of them.
        items: each the arguments of one request.
        size: items in a chunk; None to find out.
        framework_of: of the results of tensors.
        limit_s: how long the handler of one item may run.
        retries: as :class:`Task`.
        place: puts tensors into shared memory if that is of use, and says in which worker's memory they lie.
        tell: a chunk's, called when it is done.

    Attributes:
        is_at_end: there are no more items to read.
        made: the last chunk, until the caller, who has submitted it, sets this to None.
    """

    def __init__(
        self,
        command: Any,
        items: Iterator[tuple[Any, ...]],
        size: int | None,
        framework_of: Callable[[tuple[Any, ...]], str],
        limit_s: float,
        retries: int,
        place: Callable[[tuple[Any, ...]], tuple[tuple[Any, ...], Any]],
        tell: Callable[[Chunk], None],
    ) -> None:
        self._command = command
        self._items = items
        self._size = size or 1
        self._is_fixed = size is not None
        self._framework_of = framework_of
        self._limit_s = limit_s
        self._retries = retries
        self._place = place
        self._tell = tell
        self._item_s = math.inf  # how long a handler takes, as far as is known
        self._held: Item | None = None  # read, and did not fit
        self._is_making = False
        self.made: Chunk | None = None
        self.is_at_end = False

    def close(self) -> None:
        """Read no more."""
        self.is_at_end = True
        self._held = self.made = None
        self._is_making = False

    @property
    def held(self) -> int:
        """How many items were read and are in no chunk yet."""
        return self._held is not None

    @property
    def size(self) -> int:
        """How many items the next chunk may have."""
        return self._size

    def _next_item(self) -> Item | None:
        if self._held is not None:
            item, self._held = self._held, None
            return item
        if self.is_at_end:
            return None
        try:
            arguments = next(self._items)
        except StopIteration:
            self.is_at_end = True
            return None
        if len(arguments) == 1 and type(arguments[0]) is np.ndarray and type(self._command) is str:
            return self._command, arguments  # the usual case, in fewer steps
        return message_of(self._command, arguments)

    def next_chunk(self, most: float = math.inf) -> Chunk | None:
        """The next items, at most so many; None if there are no more. The same again as long as ``made`` is set.

        Raises:
            RuntimeError: an exception had come while items were read, so some may be lost.
        """
        if self.made is not None:
            return self.made
        if self._is_making:
            raise RuntimeError("map() was interrupted while it read its iterable, so items may be lost: call it again")
        self._is_making = True
        chunk = self._make_chunk(most)
        self.made, self._is_making = chunk, False  # no call in between: a signal handler comes before this or after it
        return chunk

    def _make_chunk(self, most: float) -> Chunk | None:
        most = min(most, self._size)
        first = self._next_item()
        if first is None:
            return None
        items = [first]
        if most > 1 and (kind := kind_of(*first)) is not None:
            nbytes, until_s = nbytes_of(first[1]), time.monotonic() + FILL_S
            while len(items) < most and nbytes < _MOST_NBYTES:
                item = self._next_item()
                if item is None:
                    break
                if kind_of(*item) != kind:
                    self._held = item
                    break
                items.append(item)
                nbytes += nbytes_of(item[1])
                if not self._is_fixed and time.monotonic() >= until_s:
                    break
        framework, home = self._framework_of(first[1]), None
        if first[1] and len(items) == 1:
            tensors, home = self._place(first[1])
            items = [(first[0], tensors)]
            del first, tensors
        chunk = Chunk(items, self._tell)
        others = len(items) - 1
        rest_s = others * min(self._limit_s, _SLOWER * self._item_s) if others else 0.0
        task = ChunkTask(chunk, 0, len(items), framework, self._limit_s, self._retries, rest_s)
        task.home = home
        chunk.tasks.append(task)
        return chunk

    def learn(self, chunk: Chunk) -> None:
        """A chunk was answered: was it too short?"""
        count = chunk.count
        if self._is_fixed and chunk.handlers_s:
            self._item_s = max(chunk.handlers_s / count, 0.0 if self._item_s == math.inf else self._item_s)
        if self._is_fixed or count < self._size:
            return
        if chunk.handlers_s:
            self._item_s = chunk.handlers_s / count
            self._size = max(1, min(_MOST_ITEMS, self._size * _GROWTH, int(_BATCH_S / self._item_s)))
        elif chunk.seconds < min(_PROBE_S, self._item_s):
            self._size = _GROWTH  # its worker will say how long that takes


class _Inbox:
    """What the dispatcher tells of chunks. Knows nothing of their iterator, which can be given up meanwhile."""

    def __init__(self, is_ordered: bool) -> None:
        self._is_ordered = is_ordered
        self.finished: deque[Chunk] = deque()
        self.tokens: SimpleQueue[None] = SimpleQueue()

    def tell(self, chunk: Chunk) -> None:
        """The dispatcher: a chunk is done."""
        if not self._is_ordered:
            self.finished.append(chunk)
        self.tokens.put(None)


MapParts: TypeAlias = tuple[
    Callable[..., Feed],
    Callable[[Task], None],
    Callable[[], None],
    int,
    Callable[[int], object] | None,
    Callable[[], object] | None,
]


class MapResults(Iterator[Any]):
    """The results of :meth:`SessionPool.map`, in order or as they come. Close it to cancel what was not begun.

    Args:
        make_feed: of what a chunk calls when it is done: makes the chunks.
        submit: takes a task.
        check_wait: raises where a wait for a result would never end.
        most: requests whose results were not taken.
        on_result: called with how many results were taken since the last call; None for nobody.
        on_end: called when there are no more.
        is_ordered: whether the results come in the order of the items.
        deadline_s: when the last result has to be there, by the monotonic clock.
    """

    def __init__(
        self,
        make_feed: Callable[[Callable[[Chunk], None]], Feed],
        submit: Callable[[Task], None],
        check_wait: Callable[[], None],
        most: int,
        on_result: Callable[[int], object] | None,
        on_end: Callable[[], object] | None,
        is_ordered: bool,
        deadline_s: float,
    ) -> None:
        self._chunks: deque[Chunk] = deque()
        self._inbox = _Inbox(is_ordered)
        self._taken: Chunk | None = None  # whose values are given now
        self._place = 0  # of the next one of them
        self._is_told = False  # that one's progress
        self._is_closed = False
        self._error: BaseException | None = None  # why, if that was not raised
        self._submit = submit
        self._check_wait = check_wait
        self._most = most
        self._is_ordered = is_ordered
        self._deadline_s = deadline_s
        self._on_result = on_result
        self._on_end = on_end
        self._feed = make_feed(self._inbox.tell)
        try:
            self._fill()
        except BaseException:
            self.close()
            raise

    def _fill(self) -> None:
        """Read and submit as many chunks as there may be. May be called again after an exception in the middle."""
        feed, chunks, until_s = self._feed, self._chunks, time.monotonic() + FILL_S
        while feed.made is not None or len(chunks) < self._most:
            if feed.made is None and chunks and self._is_there() and time.monotonic() >= until_s:
                return  # a slow iterable does not hold up the results
            chunk = feed.next_chunk()
            if chunk is None:
                return
            if not chunk.is_done:
                if not chunks or chunks[-1] is not chunk:
                    chunks.append(chunk)
                for task in chunk.tasks[:1]:  # it may be done by now
                    self._submit(task)  # a second time does nothing
            feed.made = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._is_closed:
            self._end(self._error or StopIteration())
        try:
            while (taken := self._taken) is None or self._place >= taken.count:
                self._take_chunk()
            if self._on_result is not None and not self._is_told:
                self._is_told = True
                self._on_result(1)
            value = Chunk.opened(taken.values[self._place])
        except KeyboardInterrupt:
            raise  # whoever goes on gets all results: each step can be done again
        except BaseException as error:
            self._end(error)
        # No call from here on: a signal handler comes before all of this, or after it.
        taken.values[self._place] = None  # the view is the caller's
        self._place += 1
        self._is_told = False
        return value

    def _end(self, error: BaseException) -> NoReturn:
        """Close it, and raise the error."""
        self._error = error  # an interrupt of what follows takes its place; then the next call raises it
        self.close()
        self._error = None
        try:
            raise error
        finally:
            del error  # no cycle with the frame keeps results alive

    def _take_chunk(self) -> None:
        """Wait for the next chunk, whose values are given from here on."""
        self._remove_taken()
        if not self._chunks or self._feed.made is not None:  # after an exception in the middle of the last call
            self._fill()
        if not self._chunks:
            raise StopIteration
        chunk = self._wait()
        self._taken, self._place = chunk, 0
        self._remove_taken()
        self._feed.learn(chunk)
        self._fill()

    def _remove_taken(self) -> None:
        """The chunk whose values are given waits for nothing more."""
        taken, finished = self._taken, self._inbox.finished
        if taken is None:
            return
        if finished and finished[0] is taken:
            finished.popleft()
        if taken in self._chunks:
            self._chunks.remove(taken)

    def _is_there(self) -> bool:
        """Whether the next chunk to be taken is done."""
        return self._chunks[0].is_done if self._is_ordered else bool(self._inbox.finished)

    def _wait(self) -> Chunk:
        """The next chunk, which is done. It stays where it is."""
        inbox, is_late = self._inbox, False
        while True:
            if self._is_there():
                return self._chunks[0] if self._is_ordered else inbox.finished[0]
            if is_late:
                raise TimeoutError("the results of map() were not there in time")
            self._check_wait()
            left_s = self._deadline_s - time.monotonic()
            try:
                inbox.tokens.get(timeout=None if left_s > _LONG_S else max(0.0, left_s))
            except Empty:
                is_late = True

    def close(self) -> None:
        """Cancel what no handler has begun, and read no more of the iterable. Idempotent."""
        self._is_closed = True  # first: no result of a request that was cancelled is waited for
        self._feed.close()
        while self._chunks:
            for task in list(self._chunks[0].tasks):
                task.drop()
            self._chunks.popleft()  # last: after an exception, the next call drops the rest
        self._taken = None
        if self._on_end is not None:
            self._on_end()
        self._on_end = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(AttributeError):  # it was not made to the end
            self.close()
