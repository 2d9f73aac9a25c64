"""``tr_mmap.aio.PythonSession``: a session that asyncio awaits. Starts nothing itself: the session in it does.

The loop sleeps on the session's bell. So an await needs no thread, nothing polls, and with nothing in flight nothing
wakes the loop. A channel that has no bell leaves that to the session's own thread.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import deque
from functools import partial
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from ..controller.futures import Futures
from ..controller.options import seconds_of
from ..controller.progress import OnProgress
from ..controller.results import Result, tensors_of, value_of
from ..controller.session import PythonSession as BlockingSession
from ..errors import SemaphoresUnavailable, SessionNotStarted
from ..native import loan_of
from ..protocol.commands import UserMessage
from ..wire.names import DEFAULT_WORKER
from ..wire.waits import DEFAULT_TIMEOUT_MS, EXIT_TIMEOUT_MS
from .calls import Call, Waiter
from .threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Unpack

    from ..controller.session import SessionKeywords
    from ..controller.stats import SessionStats

__all__ = ["PythonSession"]

_COPY_NBYTES: Final = 2 * 1024 * 1024  # a copy of more takes longer than to have a thread do it
_LOOK_FOR_ROOM_S: Final = 0.05
_LOOK_S: Final = 1.0  # how often to look while something is in flight: a ring may be lost


class PythonSession:
    """A worker process and the tensors that cross to and from it, for one asyncio loop.

    An asynchronous context manager: on entry it starts the worker and waits until it is ready; on exit it ends the
    worker and cleans up. Takes the arguments of :class:`tr_mmap.PythonSession`, and has its methods; those that wait
    are awaitable. Up to ``max_in_flight`` requests are with the worker at a time; a task that asks for one more waits,
    or gets Busy with ``at_limit="fail"``. To cancel a task that awaits a request cancels the request.

    Args:
        script_path: a Python script that runs a server, or ``"default"`` for the worker that ships with the package.
        session_id: names the session on this machine.
        quiet_mode: False also prints the worker's output to this process's stderr.
        framework: ``"numpy"`` or ``"torch"``: of received tensors, unless a call says otherwise.
        **options: those of :class:`tr_mmap.PythonSession`.

    Raises:
        BadMessage: an option is not valid; ``detail`` is its name.
        RuntimeError: of every method: it was called outside of the loop that has started the session.
    """

    def __init__(
        self,
        script_path: str | os.PathLike[str] = DEFAULT_WORKER,
        session_id: str = "default",
        quiet_mode: bool = False,
        *,
        framework: str = "numpy",
        **options: Unpack[SessionKeywords],
    ) -> None:
        self._session: BlockingSession[Any] = BlockingSession(
            script_path, session_id, quiet_mode, framework=framework, **options
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fd: int | None = None  # the bell, while the loop sleeps on it
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: deque[Waiter] = deque()  # of calls that wait until one more may be in flight
        self._room_timer: asyncio.TimerHandle | None = None  # while there are any
        self._in_flight = 0  # calls that are not done
        self._sending = 0  # of these, in a thread
        self._kept = 0  # room that is kept for those that were woken
        self._rings = False  # the loop is about to wake the worker
        self._claims: deque[Call] = deque()  # of send_request, in order

    def __repr__(self) -> str:
        return f"<tr_mmap.aio.PythonSession of {self._session!r}>"

    # -- start and end --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the worker; does not wait until it is ready. After a worker's death, starts a new one; tags stay.

        Raises:
            SessionInUse, ScriptNotFound, HostilePath, SemaphoresUnavailable: as :meth:`tr_mmap.PythonSession.start`.
        """
        self._bind()
        try:
            await in_thread(self._session.start)
        except asyncio.CancelledError:
            await in_thread(self._session.close)
            raise
        self._listen()

    async def __aenter__(self) -> Self:
        self._bind()
        try:
            await in_thread(self._session.__enter__)
        except asyncio.CancelledError:
            await in_thread(self._session.close)
            raise
        self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._check_loop()
        await self._end(partial(self._session.__exit__, kind, error, trace))

    async def please_exit(self, timeout_ms: float | None = EXIT_TIMEOUT_MS, ensure: bool = True) -> bool:
        """Request that the worker exit, and wait; see :meth:`tr_mmap.PythonSession.please_exit`."""
        self._check_loop()
        has_ended: bool = await self._end(partial(self._session.please_exit, timeout_ms, ensure))
        return has_ended

    async def close(self) -> None:
        """End the worker by force if it lives, and remove everything of the session. Idempotent."""
        self._check_loop()
        await self._end(self._session.close)

    async def join(self, timeout_ms: float | None = None) -> bool:
        """Wait for the worker's end. Returns whether it has ended."""
        self._check_loop()
        return await in_thread(self._session.join, timeout_ms)

    async def terminate(self) -> None:
        """End the worker and every process it started; :meth:`start` starts a new one."""
        self._check_loop()
        await in_thread(self._session.terminate)

    async def _end(self, action: Callable[[], Any]) -> Any:
        self._forget_bell()  # before the descriptor is closed: another file may get its number
        try:
            return await in_thread(action)
        finally:
            if self._session._dispatcher is not None:  # it was not to be ended by force
                self._listen()
            self._wake_waiters(len(self._waiters))

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
        try:
            left_s = self._session.process_responses()
        except SessionNotStarted:  # it was closed meanwhile
            self._forget_bell()
            return
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
        sends = partial(futures.send, message, tensors, left_s, framework, make, on_progress)
        self._in_flight += 1
        try:
            if self._fd is None or (tensors and self._is_slow(tensors)):
                self._sending += 1
                try:
                    call: Call = await in_thread(sends)
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

    async def calculate(
        self,
        message: UserMessage,
        *tensors: Any,
        timeout_ms: float | None = DEFAULT_TIMEOUT_MS,
        on_progress: OnProgress | None = None,
    ) -> Any:
        """Send a request with its tensors, and await its result.

        Args:
            message: the command, and words for it if it takes any.
            *tensors: for this request only.
            timeout_ms: how long to wait for the response.
            on_progress: called in the loop with the fraction that is done and a text, when the handler calls
                ``server.progress``; it need not see each one, but sees the last.

        Returns:
            What :meth:`tr_mmap.PythonSession.calculate` returns.

        Raises:
            BadMessage, UnsupportedTensor, OutOfSpace, RemoteError, ResponseTimeout, WorkerDied: as there.
            Busy: too many are in flight, with ``at_limit="fail"``.
        """
        framework = self._session._framework_of(tensors)
        timeout_s = seconds_of(timeout_ms)
        return await (await self._send(message, tensors, timeout_s, framework, value_of, None, on_progress))

    def submit(
        self,
        message: UserMessage,
        *tensors: Any,
        timeout_ms: float | None = DEFAULT_TIMEOUT_MS,
        on_progress: OnProgress | None = None,
    ) -> asyncio.Task[Any]:
        """As :meth:`calculate`, in a task of the loop: its result can be awaited later."""
        self._check_loop()
        assert self._loop is not None
        call = self.calculate(message, *tensors, timeout_ms=timeout_ms, on_progress=on_progress)
        return self._loop.create_task(call)

    async def fetch_response(self, message: UserMessage, timeout_ms: float | None = DEFAULT_TIMEOUT_MS) -> str:
        """Send a request and await the text of its response."""
        text: str = await (await self._send(message, (), seconds_of(timeout_ms), None, _text_of))
        return text

    async def fetch_tensor(self, message: UserMessage, timeout_ms: float | None = DEFAULT_TIMEOUT_MS) -> Any:
        """Send a request and await the tensor of its response, or the list of its tensors if there are several.

        Raises:
            UnexpectedResponse: the response has no tensor.
        """
        framework = self._session._options.framework
        return await (await self._send(message, (), seconds_of(timeout_ms), framework, _tensors_of))

    async def send_request(self, message: UserMessage, timeout_ms: float | None = DEFAULT_TIMEOUT_MS) -> None:
        """Send a request. To take its response, await a ``wait_for_…`` method; the responses come in this order."""
        framework = self._session._options.framework
        call = await self._send(message, (), seconds_of(timeout_ms), framework, _itself, math.inf)
        call.add_done_callback(_retrieve)
        self._claims.append(call)

    def new_response(self) -> bool:
        """Whether the next response waits to be taken."""
        return bool(self._claims) and self._claims[0].done()

    async def _take(self, timeout_ms: float | None) -> Result:
        self._check_loop()
        timeout_s = seconds_of(timeout_ms)
        if not self._claims:
            return self._session._open().take(0.0)  # raises: nothing was asked
        call = self._claims[0]
        done, _ = await asyncio.wait([call], timeout=None if timeout_s == math.inf else timeout_s)
        if not done:
            raise self._session._open_futures().unanswered(call, timeout_s)
        if self._claims and self._claims[0] is call:
            self._claims.popleft()
        result: Result = call.result()
        return result

    def read_response(self) -> str | None:
        """Take the next response's text if it is there; None if not."""
        self._check_loop()
        if not self.new_response():
            self._session._open().worker()
            return None
        return self._claims.popleft().result()[0].result  # type: ignore[no-any-return]

    async def wait_for_response(self, timeout_ms: float | None = DEFAULT_TIMEOUT_MS) -> str:
        """Await the next response's text."""
        return (await self._take(timeout_ms))[0].result

    async def wait_for_tensor(self, timeout_ms: float | None = DEFAULT_TIMEOUT_MS) -> Any:
        """Await the next response's tensor, or the list of its tensors if there are several."""
        return tensors_of(*await self._take(timeout_ms))

    # -- tensors --------------------------------------------------------------------------------------------------

    async def send_tensor(self, tensor: Any, tag: str) -> None:
        """Let ``tag`` name a tensor until the tag is sent again or dropped, or the session ends."""
        self._check_loop()
        if self._is_slow((tensor,)):
            await in_thread(self._session.send_tensor, tensor, tag)
        else:
            self._session.send_tensor(tensor, tag)

    def drop_tensor(self, tag: str) -> None:
        """Forget a tag and release its memory."""
        self._check_loop()
        self._session.drop_tensor(tag)

    def empty(self, shape: int | tuple[int, ...], dtype: Any = "float32", framework: str | None = None) -> Any:
        """A loan: a tensor of undefined content in shared memory; sending it copies nothing."""
        self._check_loop()
        return self._session.empty(shape, dtype, framework)

    # -- status ---------------------------------------------------------------------------------------------------

    async def wait_until_ready(self, timeout_ms: float | None = DEFAULT_TIMEOUT_MS) -> bool:
        """Wait until the worker is ready for a request, and has answered those under way; False if time is over."""
        self._check_loop()
        return await in_thread(self._session.wait_until_ready, timeout_ms)

    async def wait_until_ok(self, timeout_ms: float | None = DEFAULT_TIMEOUT_MS) -> bool:
        """Wait until the requests under way are done. Returns whether the last one succeeded."""
        self._check_loop()
        return await in_thread(self._session.wait_until_ok, timeout_ms)

    def is_ready(self) -> bool:
        """Whether the worker waits for a request."""
        return self._session.is_ready()

    def is_busy(self) -> bool:
        """Whether a request is under way."""
        return self._session.is_busy()

    def is_alive(self) -> bool:
        """Whether the worker lives."""
        return self._session.is_alive()

    def stats(self) -> SessionStats:
        """What this side holds in shared memory, and what the worker does."""
        return self._session.stats()

    @property
    def pid(self) -> int | None:
        """The worker's process; None if there is no worker."""
        return self._session.pid

    @property
    def rejected(self) -> int:
        """With ``auth=True``: how many messages were ignored, not being signed by the worker."""
        return self._session.rejected

    def session_dir(self) -> str:
        """Path of the session's directory."""
        return self._session.session_dir()

    def session_id(self) -> str:
        """The session's name."""
        return self._session.session_id()

    def set_quiet_mode(self, quiet_mode: bool) -> None:
        """Whether the worker's output from now on stays in its log only."""
        self._session.set_quiet_mode(quiet_mode)


def _text_of(result: Result) -> str:
    return result[0].result


def _tensors_of(result: Result) -> Any:
    return tensors_of(*result)


def _itself(result: Result) -> Result:
    return result


def _retrieve(call: Call) -> None:
    """Nobody may come for an answer: the loop need not say so."""
    if not call.cancelled():
        call.exception()
