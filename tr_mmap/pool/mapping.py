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
from typing import Any, Final, Self, TypeAlias

import numpy as np

from ..controller.results import Result, value_of
from ..protocol.commands import UserMessage
from .arguments import message_of
from .batches import kind_of, nbytes_of, packed, results_of
from .tasks import Task

__all__ = ["FILL_S", "Chunk", "Feed", "MapParts", "MapResults"]

_BATCH_S: Final = 0.002  # what a batch is to take, so that the way to the worker and back costs little beside it
_PROBE_S: Final = 0.05  # a single request that took longer is not tried in a batch
_GROWTH: Final = 4
_MOST_ITEMS: Final = 256
_MOST_NBYTES: Final = 1 << 18  # of the arguments of a batch
_LONG_S: Final = 1e6  # a wait of days may as well have no limit
FILL_S: Final = 0.002  # an iterable that takes longer for its items does not hold up those that are there

_Item: TypeAlias = tuple[UserMessage, tuple[Any, ...]]


class Chunk:
    """Some items that follow each other.

    Attributes:
        items: their requests.
        values: their results or errors, as far as they are known.
        is_done: all are.
        seconds: from the moment that its worker got it until it was done.
        handlers_s: how long the handlers took, as the worker says; 0 if it does not.
    """

    __slots__ = (
        "_tell",
        "began_s",
        "handlers_s",
        "is_done",
        "items",
        "missing",
        "seconds",
        "tasks",
        "values",
    )

    def __init__(self, items: list[_Item], tell: Callable[[Chunk], None]) -> None:
        self.items = items
        self.values: list[Any] = [None] * len(items)
        self.missing = len(items)
        self.is_done = False
        self.tasks: list[ChunkTask] = []
        self.began_s = 0.0
        self.seconds = 0.0
        self.handlers_s = 0.0
        self._tell = tell

    @staticmethod
    def opened(value: Any) -> Any:
        """One of the values; raises an error."""
        if isinstance(value, _Failed):
            raise value.error
        if isinstance(value, Exception):  # of one item of a batch
            raise value
        return value

    def note(self, place: int, values: list[Any]) -> None:
        """The dispatcher: some items have their results."""
        self.values[place : place + len(values)] = values
        self.missing -= len(values)
        if not self.missing:
            self.seconds = time.monotonic() - self.began_s
            self.tasks = []
            self.items = []
            self.is_done = True
            self._tell(self)


class ChunkTask(Task):
    """The request for a chunk, or for one of its items.

    Args:
        chunk: whose items these are.
        place: the first of them.
        count: how many there are.
        framework, limit_s, retries: as :class:`Task`.
    """

    __slots__ = ("_chunk", "_is_cancelled", "_place", "count", "is_batch")

    def __init__(self, chunk: Chunk, place: int, count: int, framework: str, limit_s: float, retries: int) -> None:
        items = chunk.items[place : place + count]
        message, tensors = items[0]
        self.is_batch = count > 1
        if self.is_batch:
            texts = [str(each[0]) for each in items]
            message, named = packed(texts, [each[1] for each in items])
            tensors = (named,)
        super().__init__(message, tensors, framework, limit_s, retries)
        self.count = count
        self._chunk = chunk
        self._place = place
        self._is_cancelled = False

    def begin(self) -> bool:
        self._chunk.began_s = time.monotonic()
        return not self._is_cancelled

    def finish(self, result: Result) -> None:
        if self._is_cancelled:
            return
        try:
            if self.is_batch:
                values, self._chunk.handlers_s = results_of(result, self.count)
            else:
                values = [value_of(result)]
        except Exception as error:  # what it means cannot be read: that is the outcome
            self.fail(error)
            return
        self.tensors = ()
        self._chunk.note(self._place, values)

    def fail(self, error: BaseException) -> None:
        self.tensors = ()
        if not self._is_cancelled:
            self._chunk.note(self._place, [_Failed(error)] * self.count)

    def cancel(self) -> None:
        attempt = self.attempt
        if attempt is not None:
            attempt.cancel()
        if not self._is_cancelled:
            self.fail(_cancelled())
            self._is_cancelled = True

    def drop(self) -> None:
        """Nobody takes its results any more. Any thread may say so."""
        self._is_cancelled = True
        attempt = self.attempt
        if attempt is not None:
            attempt.cancel()

    def split(self) -> list[Task]:
        if not self.is_batch:
            return [self]
        chunk, made = self._chunk, []
        for place in range(self._place, self._place + self.count):
            task = ChunkTask(chunk, place, 1, self.framework, self.limit_s / self.count, self.retries)
            chunk.tasks.append(task)
            task._is_cancelled = self._is_cancelled
            made.append(task)
        return list(made)


class _Failed:
    """Stands for an item that has an error."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _cancelled() -> BaseException:
    from concurrent.futures import CancelledError

    return CancelledError("the pool was shut down, and what no worker had begun was cancelled")


class Feed:
    """Makes chunks of the items of a map. Reads the iterable.

    Args:
        command: of all of them.
        items: each the arguments of one request.
        size: items in a chunk; None to find out.
        framework_of: of the results of tensors.
        limit_s: how long the handler of one item may run.
        retries: as :class:`Task`.
        home_of: where arguments lie.
    """

    def __init__(
        self,
        command: Any,
        items: Iterator[tuple[Any, ...]],
        size: int | None,
        framework_of: Callable[[tuple[Any, ...]], str],
        limit_s: float,
        retries: int,
        home_of: Callable[[tuple[Any, ...]], Any],
        tell: Callable[[Chunk], None],
    ) -> None:
        self._command = command
        self._items = items
        self._size = size or 1
        self._is_fixed = size is not None
        self._framework_of = framework_of
        self._limit_s = limit_s
        self._retries = retries
        self._home_of = home_of
        self._tell = tell
        self._item_s = math.inf  # how long a handler takes, as far as is known
        self._held: _Item | None = None  # read, and did not fit
        self.is_at_end = False

    def close(self) -> None:
        """Read no more."""
        self.is_at_end = True
        self._held = None

    @property
    def held(self) -> int:
        """How many items were read and are in no chunk yet."""
        return self._held is not None

    @property
    def size(self) -> int:
        """How many items the next chunk may have."""
        return self._size

    def _next_item(self) -> _Item | None:
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
        """The next items, at most so many; None if there are no more."""
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
        chunk = Chunk(items, self._tell)
        task = ChunkTask(chunk, 0, len(items), self._framework_of(first[1]), self._limit_s * len(items), self._retries)
        if first[1] and len(items) == 1:
            task.home = self._home_of(first[1])
        chunk.tasks.append(task)
        return chunk

    def learn(self, chunk: Chunk) -> None:
        """A chunk was answered: was it too short?"""
        count = len(chunk.values)
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
    int,
    Callable[[int], object] | None,
    Callable[[], object] | None,
]


class MapResults(Iterator[Any]):
    """The results of :meth:`SessionPool.map`, in order or as they come. Close it to cancel what was not begun.

    Args:
        make_feed: of what a chunk calls when it is done: makes the chunks.
        submit: takes a task.
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
        most: int,
        on_result: Callable[[int], object] | None,
        on_end: Callable[[], object] | None,
        is_ordered: bool,
        deadline_s: float,
    ) -> None:
        self._chunks: deque[Chunk] = deque()
        self._inbox = _Inbox(is_ordered)
        self._values: deque[Any] = deque()
        self._submit = submit
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
        while len(self._chunks) < self._most:
            if self._chunks and self._is_there():
                return  # a slow iterable does not hold up the results
            chunk = self._feed.next_chunk()
            if chunk is None:
                return
            self._chunks.append(chunk)
            self._submit(chunk.tasks[0])

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        try:
            while not self._values:
                self._take_chunk()
            value = self._values.popleft()
            if self._on_result is not None:
                self._on_result(1)
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):
                self.close()
            raise
        try:
            return Chunk.opened(value)
        except BaseException:
            self.close()
            raise

    def _take_chunk(self) -> None:
        """Wait for the next chunk, and take its results."""
        if not self._chunks:
            raise StopIteration
        chunk = self._wait()
        self._chunks.remove(chunk) if chunk is not self._chunks[0] else self._chunks.popleft()
        self._values.extend(chunk.values)
        self._feed.learn(chunk)
        chunk.values = []  # the views are the caller's from here on
        self._fill()

    def _is_there(self) -> bool:
        """Whether the next chunk to be taken is done."""
        return self._chunks[0].is_done if self._is_ordered else bool(self._inbox.finished)

    def _wait(self) -> Chunk:
        inbox, is_late = self._inbox, False
        while True:
            if self._is_there():
                return self._chunks[0] if self._is_ordered else inbox.finished.popleft()
            if is_late:
                raise TimeoutError("the results of map() were not there in time")
            left_s = self._deadline_s - time.monotonic()
            try:
                inbox.tokens.get(timeout=None if left_s > _LONG_S else max(0.0, left_s))
            except Empty:
                is_late = True

    def close(self) -> None:
        """Cancel what no handler has begun, and read no more of the iterable. Idempotent."""
        self._feed.close()
        while self._chunks:
            for task in list(self._chunks.popleft().tasks):
                task.drop()
        self._values.clear()
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(AttributeError):  # it was not made to the end
            self.close()
