"""Runs as generators, so that whoever goes through one chooses who waits between its steps: a thread, or an event loop.

A generator of steps yields what it waits for, :data:`SLOW` before something that takes long, or :class:`Later` what is
to be done once its result is told. It returns the result. Knows no run.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

from ..base.unpatched import unpatched

__all__ = ["SLOW", "InLoop", "Later", "Slow", "Steps", "Wait", "finish"]

_T = TypeVar("_T")
_poll: Final = unpatched("select", "poll")


class Wait(NamedTuple):
    """Until a descriptor can be read, or the time is over.

    Attributes:
        fds: any of them; a loop may look at the first one only, and at the others when the time is over.
        ms: how long.
    """

    fds: tuple[int, ...]
    ms: float


class Slow:
    """See :data:`SLOW`."""


SLOW: Final = Slow()
"""What comes next may take long, and keeps its thread."""


class Later(NamedTuple):
    """What is to be done behind the end; whoever is told the result may begin the next run before. At most one."""

    do: Callable[[], None]


Steps: TypeAlias = Generator[Wait | Slow | Later, None, _T]


def finish(steps: Steps[_T]) -> _T:
    """Go through all steps that are left, in this thread; returns what they return, and raises what they raise."""
    interruption: BaseException | None = None
    poll = _poll()
    fds: tuple[int, ...] = ()
    while True:
        try:
            step = next(steps) if interruption is None else steps.throw(interruption)
        except StopIteration as end:
            result: _T = end.value
            return result
        interruption = None
        if isinstance(step, Later):
            step.do()
        if not isinstance(step, Wait):
            continue
        try:
            if step.fds != fds:
                poll, fds = _poll(), step.fds
                for fd in fds:
                    poll.register(fd, select.POLLIN)
            poll.poll(step.ms)
        except BaseException as error:  # a signal handler has raised it, and the steps have to clean up
            interruption = error


class InLoop(Generic[_T]):
    """Goes through steps in the thread of an event loop, and through what is left from a slow one on in another.

    Args:
        loop: that runs in this thread.
        threads: for slow steps.
        steps: to go through.
        on_end: is called in the loop's thread, never within :meth:`begin`, with what the steps have returned, or
            with what they have raised.
    """

    __slots__ = ("_fd", "_later", "_loop", "_on_end", "_steps", "_threads", "_timer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        threads: Executor,
        steps: Steps[_T],
        on_end: Callable[[Any, BaseException | None], None],
    ) -> None:
        self._loop = loop
        self._threads = threads
        self._steps = steps
        self._on_end = on_end
        self._fd = -1
        self._timer: asyncio.TimerHandle | None = None
        self._later: Callable[[], None] | None = None

    def begin(self) -> None:
        """Go through the steps up to the first that waits."""
        self._go(lambda result, error: self._loop.call_soon(self._on_end, result, error))

    def _go(self, tell: Callable[[Any, BaseException | None], object]) -> None:
        try:
            step = next(self._steps)
            while isinstance(step, Later):
                self._later = step.do
                step = next(self._steps)
        except StopIteration as end:
            self._end(tell, end.value, None)
        except BaseException as error:
            self._end(tell, None, error)
        else:
            if isinstance(step, Wait):
                self._fd = step.fds[0]
                self._loop.add_reader(self._fd, self._go_on)
                self._timer = self._loop.call_later(step.ms / 1000, self._go_on)
            else:
                self._do_later()
                self._threads.submit(finish, self._steps).add_done_callback(self._tell)

    def _end(
        self, tell: Callable[[Any, BaseException | None], object], result: Any, error: BaseException | None
    ) -> None:
        try:
            tell(result, error)
        finally:
            self._do_later()

    def _do_later(self) -> None:
        do, self._later = self._later, None
        if do is not None:
            do()

    def _go_on(self) -> None:
        assert self._timer is not None
        self._timer.cancel()
        self._loop.remove_reader(self._fd)
        self._go(self._on_end)

    def _tell(self, done: Future[_T]) -> None:
        """In the other thread."""
        error = done.exception()
        result = None if error is not None else done.result()
        try:
            self._loop.call_soon_threadsafe(self._on_end, result, error)
        except RuntimeError:  # the loop is closed, and nobody waits any more
            return
