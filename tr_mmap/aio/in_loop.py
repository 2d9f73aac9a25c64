"""How requests of one session are sent and answered in an asyncio loop. Starts and ends no session.

The loop sleeps on the session's bell. So an await needs no thread, nothing polls, and with nothing in flight nothing
wakes the loop. A channel that has no bell leaves that to the session's own thread.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..controller.futures import Futures
from ..controller.progress import OnProgress
from ..controller.results import Result
from ..controller.session import PythonSession as BlockingSession
from ..errors import SemaphoresUnavailable, SessionNotStarted
from ..native import loan_of
from ..protocol.commands import UserMessage
from .calls import Call, Waiter
from .threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["InLoop"]

_COPY_NBYTES: Final = 2 * 1024 * 1024  # a copy of more takes longer than to have a thread do it
_LOOK_FOR_ROOM_S: Final = 0.05
_LOOK_S: Final = 1.0  # how often to look while something is in flight: a ring may be lost


class InLoop:
    """The requests of one session, in the loop that has started it.

    Args:
        session: has the worker.
    """

    def __init__(self, session: BlockingSession[Any]) -> None:
        self._session = session
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fd: int | None = None  # the bell, while the loop sleeps on it
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: deque[Waiter] = deque()  # of calls that wait until one more may be in flight
        self._room_timer: asyncio.TimerHandle | None = None  # while there are any
        self._in_flight = 0  # calls that are not done
        self._sending = 0  # of these, in a thread
        self._kept = 0  # room that is kept for those that were woken
        self._rings = False  # the loop is about to wake the worker

    def _bind(self) -> None:
        loop = asyncio.get_running_loop()
        if self._session._dispatcher is None:
            self._loop = loop
        self._check_loop()

    def _check_loop(self) -> None:
        try:
            loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if self._loop is None:
            self._loop = loop
        if loop is None or loop is not self._loop:
            raise RuntimeError(
                f"session {self._session.session_id()!r} belongs to the asyncio loop that has started it, and this is "
                f"{'no loop' if loop is None else 'another one'}; make a session for each loop"
            )

    # -- the bell -------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        assert self._loop is not None
        self._rings = False  # the last loop may have ended before it did so
        if self._fd is not None:
            return
        try:
            self._fd = self._session.fileno()
        except SemaphoresUnavailable:
            return  # the session's own thread settles the calls
        self._loop.add_reader(self._fd, self._process)

    def _forget_bell(self) -> None:
        if self._fd is not None and self._loop is not None:
            self._loop.remove_reader(self._fd)
        self._fd = None
        self._end_timer()

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_timer_if_idle(self) -> None:
        if not self._in_flight:
            self._end_timer()

    def _on_timer(self) -> None:
        self._timer = None
        self._process()

    def _process(self) -> None:
        left_s: float | None = _LOOK_S
        try:
            left_s = self._session.process_responses()
        except SessionNotStarted:  # it was closed meanwhile
            self._forget_bell()
            return
        finally:  # also at a limit of the system, after which there is another look
            if self._in_flight:
                self._set_timer(_LOOK_S if left_s is None else left_s)
        if self._waiters:
            self._wake_waiters(self._room())

    def _set_timer(self, left_s: float) -> None:
        assert self._loop is not None
        if self._fd is None:
            return
        at_s = self._loop.time() + min(left_s, _LOOK_S)
        if self._timer is not None:
            if self._timer.when() <= at_s:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at_s, self._on_timer)

    # -- requests -------------------------------------------------------------------------------------------------

    async def _send(
        self,
        message: UserMessage,
        tensors: tuple[Any, ...],
        timeout_s: float,
        framework: str | None,
        shape: Callable[[Result], Any],
        answer_s: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Call:
        """Send a request, as soon as one more may be in flight.

        Args:
            message: the command, and words for it.
            tensors: for this request only.
            timeout_s: how long this may take.
            framework: of the result's tensors; None to receive none.
            shape: what the result is to its caller.
            answer_s: how long the answer may take in all; None for ``timeout_s``.
            on_progress: is told how far the request is; None for nobody.
        """
        self._check_loop()
        futures, loop = self._session._open_futures(), self._loop
        assert loop is not None
        deadline_s = time.monotonic() + timeout_s
        if self._waiters or self._room() <= 0:
            await self._wait_for_room(deadline_s)
        call_s = timeout_s if answer_s is None else answer_s
        left_s = call_s - timeout_s + max(0.0, deadline_s - time.monotonic()) if call_s != math.inf else math.inf
        make = partial(Call, futures, loop, get_ident(), call_s, shape)
        if on_progress is not None:
            on_progress = partial(_in_loop, loop, get_ident(), on_progress)
        sends = partial(futures.send, message, tensors, left_s, framework, make, on_progress)
        self._in_flight += 1
        try:
            if self._fd is None or (tensors and (self._sending or self._is_slow(tensors))):
                self._sending += 1
                try:
                    call: Call = await in_thread(sends, undo=Call.cancel)
                finally:
                    self._sending -= 1
            else:
                call = sends(is_quiet=self._rings)
                if self._in_flight > 1 and not self._rings:  # more may follow in this pass: one ring is enough for them
                    self._rings = True
                    loop.call_soon(self._ring, futures)
        except BaseException:
            self._leave()
            raise
        if call.done():
            self._leave()
        else:
            call.on_end = self._leave
            self._set_timer(left_s)
        return call

    def _ring(self, futures: Futures) -> None:
        self._rings = False
        futures.ring()

    def _is_slow(self, tensors: tuple[Any, ...]) -> bool:
        """Whether to send them may take long: they wait for room, or are large and no loans."""
        if self._session._options.transfer.block_ms:
            return True
        return sum(int(getattr(each, "nbytes", 0) or 0) for each in tensors) > _COPY_NBYTES and not all(
            isinstance(each, np.ndarray) and loan_of(each) is not None for each in tensors
        )

    def _room(self) -> int:
        """How many more requests may be in flight."""
        session = self._session
        dispatcher, worker = session._dispatcher, session._worker_or_none()
        if dispatcher is None or worker is None:
            return 1  # the attempt to send says what is wrong
        limit = min(session._options.max_in_flight, worker.channel.capacity)
        return limit - len(dispatcher.in_flight) - self._sending - self._kept

    async def _wait_for_room(self, deadline_s: float) -> None:
        """Wait, in the order of the calls, until one more request may be in flight."""
        if self._session._options.at_limit == "fail":
            return  # the attempt to send raises
        assert self._loop is not None
        waiter = Waiter(self._loop, deadline_s)
        self._waiters.append(waiter)
        self._set_room_timer(deadline_s)
        try:
            has_room = await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled() and waiter.result():  # it has just been woken
                self._kept -= 1
                self._wake_waiters(self._room())
            raise
        if has_room:  # from here to the attempt to send, no other code runs
            self._kept -= 1

    def _set_room_timer(self, deadline_s: float) -> None:
        """Look for room then at the latest; the answers that the loop deals with make it look before."""
        assert self._loop is not None
        left_s = deadline_s - time.monotonic()
        if self._fd is None:  # the session's own thread drops the answers to cancelled requests, and does not say so
            left_s = min(left_s, _LOOK_FOR_ROOM_S)
        if left_s == math.inf:
            return
        at_s = self._loop.time() + max(0.0, left_s)
        if self._room_timer is not None:
            if self._room_timer.when() <= at_s:
                return
            self._room_timer.cancel()
        self._room_timer = self._loop.call_at(at_s, self._look_for_room)

    def _look_for_room(self) -> None:
        self._room_timer = None
        now_s, waiting = time.monotonic(), list(self._waiters)
        for waiter in waiting:
            if waiter.deadline_s <= now_s and not waiter.done():
                waiter.set_result(False)
        self._waiters = deque(each for each in waiting if not each.done())
        self._wake_waiters(self._room())
        if self._waiters:
            self._set_room_timer(min(each.deadline_s for each in self._waiters))

    def _leave(self) -> None:
        self._in_flight -= 1
        if not self._in_flight and self._timer is not None and self._loop is not None:
            self._loop.call_soon(self._end_timer_if_idle)  # the next call may come in this pass, and needs one
        if self._waiters:
            self._wake_waiters(self._room())

    def _wake_waiters(self, count: int) -> None:
        """Let so many of those that wait send their requests, the first ones first."""
        while count > 0 and self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():  # its task was not cancelled
                waiter.set_result(True)
                self._kept += 1
                count -= 1
        if not self._waiters and self._room_timer is not None:
            self._room_timer.cancel()
            self._room_timer = None


def _in_loop(loop: asyncio.AbstractEventLoop, thread: int, action: OnProgress, fraction: float, text: str) -> None:
    """Call a function in the loop, also if a thread that waits for the worker's status has found the progress."""
    if get_ident() == thread:
        action(fraction, text)
        return
    try:
        loop.call_soon_threadsafe(action, fraction, text)
    except RuntimeError:
        pass  # the loop is closed
