"""What a session and its worker are doing, for its user. Starts, ends and sends nothing."""

from __future__ import annotations

from ..errors import SessionNotStarted
from ..native import IS_COMPILED
from ..protocol.status import Status, StatusLine
from ..sessions.workspace import Workspace
from ..wire.waits import DEFAULT_TIMEOUT_MS
from ..wire.words import NOT_STARTED
from .dispatcher import Dispatcher, StatusTest
from .futures import Futures
from .options import SessionOptions, check_bool, seconds_of
from .stats import SessionStats, ended_state, worker_state
from .worker_handle import WorkerHandle

__all__ = ["SessionState"]


class SessionState:
    """The part of ``PythonSession`` that looks at the worker. ``SessionLifecycle`` sets the attributes."""

    _options: SessionOptions
    _workspace: Workspace
    _quiet_mode: bool
    _dispatcher: Dispatcher | None
    _futures: Futures | None

    def is_ready(self) -> bool:
        """Whether the worker waits for a request. False from the sending of a request until its response is there."""
        worker = self._worker_or_none()
        if worker is None or worker.is_over() or self._is_asked():
            return False
        return worker.channel.read_status().status.is_waiting

    def is_busy(self) -> bool:
        """Whether a request is under way: from its sending until its answer is there."""
        worker = self._worker_or_none()
        if worker is None or worker.is_over():
            return False
        return self._is_asked() or worker.channel.read_status().status is Status.BUSY

    def _is_asked(self) -> bool:
        dispatcher = self._dispatcher
        return dispatcher is not None and dispatcher.is_asked()

    def new_response(self) -> bool:
        """Whether a response waits to be taken."""
        dispatcher = self._dispatcher
        return dispatcher is not None and dispatcher.has_result()

    def wait_until_ready(self, timeout_ms: float | None = DEFAULT_TIMEOUT_MS) -> bool:
        """Wait until the worker is ready for a request, and has answered the one under way; False if time is over.

        Raises:
            WorkerDied: it ended.
            SessionNotStarted: there is no worker, or the session was closed meanwhile.
        """
        channel = self._open().worker().channel

        def is_ready(line: StatusLine) -> bool:
            # Read again: the request may have been answered since ``line``, and the worker may still be finishing it.
            return line.status.is_waiting and not self._is_asked() and channel.read_status().status.is_waiting

        return self._wait_status(is_ready, timeout_ms) is not None

    def wait_until_ok(self, timeout_ms: float | None = DEFAULT_TIMEOUT_MS) -> bool:
        """Wait until the request under way is done. Returns whether it succeeded; False also when the time is over.

        Raises:
            WorkerDied: the worker ended.
            SessionNotStarted: there is no worker, or the session was closed meanwhile.
        """
        line = self._wait_status(lambda each: each.status in (Status.OK, Status.ERROR), timeout_ms, of_request=True)
        return line is not None and line.status is Status.OK

    def _wait_status(
        self, until: StatusTest, timeout_ms: float | None, *, of_request: bool = False
    ) -> StatusLine | None:
        return self._open().wait_status(until, seconds_of(timeout_ms), of_request=of_request)

    def stats(self) -> SessionStats:
        """What this side holds in shared memory, and what the worker does."""
        dispatcher = self._open()
        pool = dispatcher.transfer.stats()
        worker, spares = dispatcher.resources.worker, dispatcher.resources.spares
        log = None if worker is None else worker.process.log_size()
        return SessionStats(
            segments=pool.segments,
            nbytes=pool.nbytes,
            free_nbytes=pool.free_nbytes,
            published=pool.published,
            copied_nbytes=pool.copied_nbytes,
            created=pool.created,
            leased=pool.leased,
            leased_nbytes=pool.leased_nbytes,
            results=dispatcher.transfer.reader_stats(),
            log_nbytes=0 if log is None else log.nbytes,
            log_dropped_nbytes=0 if log is None else log.dropped_nbytes,
            is_compiled=IS_COMPILED,
            spare_workers=0 if spares is None else spares.loaded,
            worker=(
                ended_state(dispatcher.resources.last_pid)
                if worker is None
                else worker_state(worker, is_asked=dispatcher.is_asked())
            ),
        )

    @property
    def rejected(self) -> int:
        """With ``auth=True``: how many messages since the first start were ignored, not being signed by the worker."""
        dispatcher = self._dispatcher
        return 0 if dispatcher is None else dispatcher.resources.rejections.rejected

    # -- access ---------------------------------------------------------------------------------------------------

    def session_dir(self) -> str:
        """Path of the session's directory; it exists from the first start() to the end of the session."""
        return self._workspace.session_dir(self._options.session_id)

    def session_id(self) -> str:
        """The session's name."""
        return self._options.session_id

    def set_quiet_mode(self, quiet_mode: bool) -> None:
        """Whether the worker's output from now on stays in its log only.

        Raises:
            BadMessage: it is neither True nor False.
        """
        check_bool("quiet_mode", quiet_mode)
        self._quiet_mode = quiet_mode
        worker = self._worker_or_none()
        if worker is not None:
            worker.process.forward_log(not quiet_mode)

    def _open(self) -> Dispatcher:
        dispatcher = self._dispatcher
        if dispatcher is None:
            raise SessionNotStarted(
                f"session {self._options.session_id!r}{NOT_STARTED}, or use it as a context manager"
            )
        dispatcher.check_own()
        return dispatcher

    def _open_futures(self) -> Futures:
        self._open()
        assert self._futures is not None  # made with the dispatcher
        return self._futures

    def _is_foreign(self) -> bool:
        """Whether the session belongs to the process from which this one was forked."""
        dispatcher = self._dispatcher
        return dispatcher is not None and dispatcher.resources.is_foreign

    def _worker_or_none(self) -> WorkerHandle | None:
        dispatcher = self._dispatcher
        return None if dispatcher is None or self._is_foreign() else dispatcher.resources.worker
