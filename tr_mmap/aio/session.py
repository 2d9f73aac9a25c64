"""``tr_mmap.aio.PythonSession``: a session that asyncio awaits. Starts nothing itself: the session in it does."""

from __future__ import annotations

import asyncio
import math
import os
from collections import deque
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..controller.options import seconds_of
from ..controller.progress import OnProgress
from ..controller.results import Result, tensors_of, value_of
from ..controller.session import PythonSession as BlockingSession
from ..protocol.commands import UserMessage
from ..wire.names import DEFAULT_WORKER
from ..wire.waits import DEFAULT_TIMEOUT_MS, EXIT_TIMEOUT_MS
from .calls import Call
from .in_loop import InLoop
from .threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Unpack

    from ..controller.session import SessionKeywords
    from ..controller.stats import SessionStats

__all__ = ["PythonSession"]


class PythonSession(InLoop):
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
        super().__init__(BlockingSession(script_path, session_id, quiet_mode, framework=framework, **options))
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
            await self._end(self._session.close)
            raise
        self._listen()

    async def __aenter__(self) -> Self:
        self._bind()
        try:
            await in_thread(self._session.__enter__)
        except asyncio.CancelledError:
            await self._end(self._session.close)
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
            else:
                self._claims.clear()
            self._wake_waiters(len(self._waiters))

    # -- requests -------------------------------------------------------------------------------------------------

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
        call = self._claims.popleft()  # no other task takes it meanwhile
        try:
            done, _ = await asyncio.wait([call], timeout=None if timeout_s == math.inf else timeout_s)
        except asyncio.CancelledError:
            self._claims.appendleft(call)
            raise
        if not done:
            self._claims.appendleft(call)
            raise self._session._open_futures().unanswered(call, timeout_s)
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
