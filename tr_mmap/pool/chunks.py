"""Items of a map that go to a worker together, and the requests for them. Reads no iterable, and sends nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, TypeAlias

from ..controller.results import Result, value_of
from ..protocol.commands import UserMessage
from .batches import packed, results_of
from .tasks import Task

__all__ = ["Chunk", "ChunkTask", "Item"]

Item: TypeAlias = tuple[UserMessage, tuple[Any, ...]]  # the command with its words, and the tensors


class Chunk:
    """Some items that follow each other.

    Attributes:
        items: their requests.
        count: how many there are.
        values: their results or errors, as far as they are known.
        is_done: all are.
        seconds: from the moment that its worker got it until it was done.
        handlers_s: how long the handlers took, as the worker says; 0 if it does not.
    """

    __slots__ = (
        "_tell",
        "began_s",
        "count",
        "handlers_s",
        "is_done",
        "items",
        "missing",
        "seconds",
        "tasks",
        "values",
    )

    def __init__(self, items: list[Item], tell: Callable[[Chunk], None]) -> None:
        self.items = items
        self.values: list[Any] = [None] * len(items)
        self.count = self.missing = len(items)
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
        framework, retries: as :class:`Task`.
        limit_s: how long the handler of one item may run.
        rest_s: how long those of all but one may take; a batch that takes longer is split, and loses no attempt.
    """

    __slots__ = ("_chunk", "_is_cancelled", "_is_waiting", "_item_limit_s", "_place", "count", "is_batch")

    def __init__(
        self,
        chunk: Chunk,
        place: int,
        count: int,
        framework: str,
        limit_s: float,
        retries: int,
        rest_s: float = 0.0,
    ) -> None:
        items = chunk.items[place : place + count]
        message, tensors = items[0]
        self.is_batch = count > 1
        if self.is_batch:
            texts = [str(each[0]) for each in items]
            message, named = packed(texts, [each[1] for each in items])
            tensors = (named,)
        super().__init__(message, tensors, framework, limit_s + rest_s, retries)
        self._item_limit_s = limit_s
        self.count = count
        self._chunk = chunk
        self._place = place
        self._is_cancelled = False
        self._is_waiting = True

    def begin(self) -> bool:
        if self._is_cancelled or not self._is_waiting:  # whoever was interrupted has submitted it again
            return False
        self._is_waiting = False
        self._chunk.began_s = time.monotonic()
        return True

    def wait_again(self) -> None:
        super().wait_again()
        self._is_waiting = True

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
            task = ChunkTask(chunk, place, 1, self.framework, self._item_limit_s, self.retries)
            chunk.tasks.append(task)
            task._is_cancelled = self._is_cancelled
            made.append(task)
        return list(made)


class _Failed:
    """Stands for an item that has an error."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _cancelled() -> CancelledError:
    return CancelledError("the pool was shut down, and what no worker had begun was cancelled")
