"""Work as a generator of steps, so that either a thread or an event loop can wait between them. Knows no runs.

A generator yields a :class:`Wait` when it must wait, :data:`SLOW` before something that takes long, and a
:class:`Later` with something to do after its result was delivered. It returns the result.
"""

from __future__ import annotations

import asyncio
import functools
import select
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

from ..base.delays import Delay
from ..base.unpatched import unpatched

__all__ = ["LOOK_MS", "SLOW", "InLoop", "Later", "Slow", "Steps", "Turns", "Wait", "finish", "slow"]

LOOK_MS: Final = 50.0
"""Milliseconds that a step waits at most before it checks whether a limit was reached."""

_T = TypeVar("_T")
_poll: Final = unpatched("select", "poll")


class Wait(NamedTuple):
    """Wait until a descriptor can be read, or the time is over.

    Attributes:
        fds: any of these; an event loop may watch only the first one, and check the others when the time is over.
        ms: milliseconds.
    """

    fds: tuple[int, ...]
    ms: float


class Slow:
    """See :data:`SLOW`."""


SLOW: Final = Slow()
"""What comes next may take long, and blocks its thread."""


class Later(NamedTuple):
    """Something to do after the result was delivered, when the next run may have begun already. At most one."""

    do: Callable[[], None]


Steps: TypeAlias = Generator[Wait | Slow | Later, None, _T]


def slow(do: Callable[[], _T]) -> Steps[_T]:
    """A generator with one slow step that calls a function."""
    yield SLOW
    return do()


def finish(steps: Steps[_T]) -> _T:
    """Go through all remaining steps in this thread. Returns what they return, and raises what they raise."""
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
        except BaseException as error:  # raised by a signal handler: pass it to the steps, which clean up
            interruption = error


class Turns:
    """What the generators in one event loop wait for. Use it only in the loop's thread.

    Args:
        loop: the loop, which runs in this thread.
        threads: for slow steps.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: Executor) -> None:
        self.loop = loop
        self.threads = threads
        self._readers: dict[int, InLoop[Any]] = {}  # by descriptor: the turn that waits for it, or has waited last
        self._looks = Delay(loop, LOOK_MS / 1000)

    def wait(self, step: Wait, turn: InLoop[Any]) -> Callable[[], object]:
        """Let a turn go on when a descriptor can be read, or the time is over. Returns what cancels the timer."""
        fd = step.fds[0]
        if fd not in self._readers:  # else the turn that has waited for it last is about to leave it
            self.loop.add_reader(fd, self._go_on, fd)
        self._readers[fd] = turn
        if step.ms >= LOOK_MS:
            look = self._looks.add(turn.go_on)
            return functools.partial(setattr, look, "call", None)
        return self.loop.call_later(step.ms / 1000, turn.go_on).cancel

    def leave(self, step: Wait, turn: InLoop[Any]) -> None:
        """Stop waiting for a descriptor, unless another turn waits for it by now."""
        fd = step.fds[0]
        if self._readers.get(fd) is turn:
            del self._readers[fd]
            self.loop.remove_reader(fd)

    def _go_on(self, fd: int) -> None:
        self._readers[fd].go_on()


class InLoop(Generic[_T]):
    """Goes through steps in the thread of an event loop; from the first slow step on, in another thread.

    Args:
        turns: of the loop.
        steps: to go through.
        on_end: called in the loop's thread, after :meth:`begin` has returned, with the result and None, or with None
            and the error.
    """

    __slots__ = ("_cancel", "_later", "_on_end", "_steps", "_turns", "_wait")

    def __init__(self, turns: Turns, steps: Steps[_T], on_end: Callable[[Any, BaseException | None], object]) -> None:
        self._turns = turns
        self._steps = steps
        self._on_end = on_end
        self._wait: Wait | None = None
        self._cancel: Callable[[], object] | None = None
        self._later: Callable[[], None] | None = None

    def begin(self) -> None:
        """Go through the steps up to the first that waits or is slow."""
        self._go(lambda result, error: self._turns.loop.call_soon(self._on_end, result, error))

    def go_on(self) -> None:
        """Continue: the descriptor can be read, or the time is over."""
        assert self._cancel is not None
        self._cancel()
        self._go(self._on_end)

    def _go(self, tell: Callable[[Any, BaseException | None], object]) -> None:
        former = self._wait
        self._wait = None
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
                self._wait = step
                self._cancel = self._turns.wait(step, self)
            else:
                self._do_later()
                if former is not None:  # first: the other thread may close the descriptor
                    self._turns.leave(former, self)
                self._leave(tell)
        finally:  # not earlier: the next step may wait for the same descriptor
            if former is not None and (self._wait is None or self._wait.fds[0] != former.fds[0]):
                self._turns.leave(former, self)

    def _leave(self, tell: Callable[[Any, BaseException | None], object]) -> None:
        """Hand the remaining steps to another thread."""
        try:
            self._turns.threads.submit(finish, self._steps).add_done_callback(self._tell)
        except RuntimeError as error:  # the threads were shut down
            self._steps.close()
            tell(None, error)

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

    def _tell(self, done: Future[_T]) -> None:
        """Deliver the result to the loop; runs in the other thread."""
        if done.cancelled():  # the threads were shut down, and nobody waits any more
            return
        error = done.exception()
        result = None if error is not None else done.result()
        try:
            self._turns.loop.call_soon_threadsafe(self._on_end, result, error)
        except RuntimeError:  # the loop is closed, and nobody waits any more
            return
