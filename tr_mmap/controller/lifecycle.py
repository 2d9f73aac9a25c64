"""A session from its start to its end. Sends no request but the one to exit."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, SupportsIndex

from ..errors import ResponseTimeout, SessionInUse, SessionNotStarted, WorkerDied
from ..native.installation import warn_once
from ..sessions.projects import choose_workspace
from ..wire.names import DEFAULT_WORKER
from ..wire.waits import CLAIM_RETRY_S, CLAIM_WAIT_S, EXIT_TIMEOUT_MS
from .dispatcher import TURN_WAIT_S, Dispatcher
from .futures import Futures
from .launch import check_script
from .named_results import NamedResults
from .options import SessionOptions, check_bool, seconds_of, shown_ms
from .resources import SessionResources
from .session_state import SessionState
from .stats import worker_state
from .worker_handle import WorkerHandle

if TYPE_CHECKING:
    from ..processes.spares import Spares

__all__ = ["START_TIMEOUT_MS", "SessionLifecycle"]

START_TIMEOUT_MS: Final = 60_000.0  # of the context manager: to import torch from a cold disk takes tens of seconds
_EXIT_AFTER_ERROR_MS: Final = 500.0  # the worker may still run a handler: do not wait long for it

_log = logging.getLogger("tr_mmap")
# The sessions of this process, by the path of their directory, so that a new one can take the place of an old one.
_sessions: weakref.WeakValueDictionary[str, SessionLifecycle] = weakref.WeakValueDictionary()


class _NotInitialized:
    """Stands for an attribute that ``__init__`` sets. Tells the author of a subclass that it was not called."""

    def __get__(self, session: object, owner: type) -> NoReturn:
        raise AttributeError(f"{owner.__name__}.__init__() must call super().__init__()")


class SessionLifecycle(SessionState):
    """The part of ``PythonSession`` that starts and ends the worker. Its docstring has the options."""

    def __init__(
        self,
        script_path: str | os.PathLike[str] = DEFAULT_WORKER,
        session_id: str = "default",
        quiet_mode: bool = False,
        *others: object,
        framework: str = "numpy",
        channel: str = "mapped",
        budget_nbytes: int | None = None,
        at_budget: str = "fail",
        auth: bool = False,
        checksum: bool = False,
        spin_us: float = 0.0,
        recycle_memory: bool = True,
        views: str | None = None,
        device: str | None = None,
        replace: bool = False,
        start_timeout_ms: float | None = START_TIMEOUT_MS,
        args: Iterable[str] = (),
        env: Mapping[str, str | None] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        python: str | os.PathLike[str] | None = None,
        max_in_flight: int = 32,
        at_limit: str = "block",
        spare_workers: int = 0,
        **unknown: object,
    ) -> None:
        if self.__dict__.get("_dispatcher") is not None:
            raise SessionInUse(
                f"this object's session {self.session_id()!r} is started already; end it before __init__() is called "
                "again, or make another object",
                session_id=self.session_id(),
                pid=os.getpid(),
            )
        if others:
            raise TypeError(
                f"{type(self).__name__} takes script_path, session_id and quiet_mode by position, and got "
                f"{3 + len(others)} arguments; all other options go by name: framework={others[0]!r:.80}, say"
            )
        for name in unknown:
            raise TypeError(f"{type(self).__name__} has no option {name!r}; see help({type(self).__name__})")
        check_bool("quiet_mode", quiet_mode)
        self._options = SessionOptions.checked(
            script_path,
            session_id,
            framework=framework,
            channel=channel,
            budget_nbytes=budget_nbytes,
            at_budget=at_budget,
            auth=auth,
            checksum=checksum,
            spin_us=spin_us,
            recycle_memory=recycle_memory,
            views=views,
            device=device,
            replace=replace,
            start_timeout_ms=start_timeout_ms,
            args=args,
            env=env,
            cwd=cwd,
            python=python,
            max_in_flight=max_in_flight,
            at_limit=at_limit,
            spare_workers=spare_workers,
        )
        self._workspace = choose_workspace(channel, self._options.script_path, self._options.workspace_root, os.environ)
        self._quiet_mode = quiet_mode
        self._starting = threading.RLock()  # held while a session is made or ended, never while a request is answered
        self._dispatcher: Dispatcher | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._futures: Futures | None = None
        self._named = NamedResults()
        self._spares: Spares | None = None  # of the pool, which stores it here

    if not TYPE_CHECKING:  # an object's own attributes hide these
        _options = _dispatcher = _workspace = _NotInitialized()

    def __repr__(self) -> str:
        worker = self._worker_or_none()
        script = self._options.script_path
        what = (
            "not started"
            if worker is None
            else f"pid {worker.process.pid}, {worker_state(worker, is_asked=self._is_asked()).activity}"
        )
        if self._is_foreign():
            what = "of the parent process"
        return f"<{type(self).__name__} {self._options.session_id!r}: {script}, {what}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} can be neither copied nor pickled, because it owns a process: "
            "make another session, or send what you need of this one"
        )

    # -- start and end --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the worker; does not wait until it is ready. After a worker's death, starts a new one; tags stay.

        Raises:
            SessionInUse: another process has a session of this id, or another session of this process has it and
                ``replace`` is False, or this session is started already.
            ScriptNotFound: there is no such script.
            HostilePath: the workspace is not a directory that this user can trust and use.
            SemaphoresUnavailable: this system has no semaphores; ``channel="files"`` needs none.
            SessionNotStarted: another thread closes the session at this moment; or this process is a forked child.
            SessionBusy: another thread is in the middle of a request and has not left it for 10 s.
        """
        check_script(self._options.script_path)
        dispatcher = self._dispatcher
        if dispatcher is not None and dispatcher.is_closing and not dispatcher.closers:
            self.close()  # an interrupted close() has left the rest
            dispatcher = self._dispatcher
        if dispatcher is not None:
            dispatcher.check_own()
            worker = dispatcher.resources.worker
            if worker is not None and not worker.has_left():  # said at once, also while a request is under way
                raise self._is_started()
            if not dispatcher.exclusively(TURN_WAIT_S, self._start_again, dispatcher):
                raise dispatcher.busy(TURN_WAIT_S)
            return
        warn_once()
        with self._starting:
            if self._dispatcher is not None:
                raise self._is_started()
            resources = self._claim()
            self._finalizer = weakref.finalize(self, resources.release)
            dispatcher = Dispatcher(resources)
            self._futures = Futures(dispatcher)
            try:
                resources.start(quiet=self._quiet_mode, on_end=dispatcher.note_end)
            except BaseException:
                self._dispatcher = dispatcher  # so that close() can be called if the release fails
                resources.release()  # a session that was never started leaves nothing
                self._finalizer.detach()
                self._dispatcher = None
                raise
            self._dispatcher = dispatcher
            _sessions[resources.directory] = self
        _log.debug("session %r: worker started, process %d", self.session_id(), self.pid)

    def _start_again(self, dispatcher: Dispatcher) -> bool:
        if dispatcher.is_closing:
            raise SessionNotStarted(
                f"session {self.session_id()!r} is being closed; call start() when close() has returned"
            )
        worker = dispatcher.resources.worker
        if worker is not None:
            if not worker.has_left():
                raise self._is_started()
            dispatcher.keep_answers()
            if dispatcher.resources.worker is worker:
                dispatcher.forget_worker()
        dispatcher.give_up_lost()
        dispatcher.resources.start(quiet=self._quiet_mode, on_end=dispatcher.note_end)
        self._open_futures().wake()
        _log.debug("session %r: worker started again, process %d", self.session_id(), self.pid)
        return True

    def _replace_worker(self, worker: WorkerHandle) -> None:
        """End a worker, and start another one, unless somebody has done that already."""
        dispatcher = self._open()
        worker.process.terminate_tree(0.0)
        worker.give_up()
        if not dispatcher.exclusively(TURN_WAIT_S, self._start_after, dispatcher, worker):
            raise dispatcher.busy(TURN_WAIT_S)

    def _start_after(self, dispatcher: Dispatcher, worker: WorkerHandle) -> bool:
        return dispatcher.resources.worker not in (worker, None) or self._start_again(dispatcher)

    def _is_started(self) -> SessionInUse:
        return SessionInUse(
            f"session {self.session_id()!r} is started already; end it first, or give this one another session_id",
            session_id=self.session_id(),
            pid=os.getpid(),
        )

    def _claim(self) -> SessionResources:
        deadline = time.monotonic() + CLAIM_WAIT_S
        while True:
            if self._options.replace:
                self._close_other()
            try:
                return SessionResources(self._options, self._workspace, self._spares)
            except SessionInUse as error:
                is_replaceable = self._options.replace and error.pid == os.getpid()
                if not is_replaceable or time.monotonic() >= deadline:
                    raise
            time.sleep(CLAIM_RETRY_S)  # another thread starts it at this moment, or has just taken the name again

    def _close_other(self) -> None:
        """Close the session of this process that has the name, if there is one."""
        other = _sessions.get(self._workspace.session_dir(self._options.session_id))
        if other is not None and other is not self:
            _log.info("session %r: closing an earlier session of this process", self.session_id())
            other.close()

    @property
    def pid(self) -> int | None:
        """The worker's process; None if there is no worker."""
        worker = self._worker_or_none()
        return None if worker is None else worker.process.pid

    def is_alive(self) -> bool:
        """Whether the worker lives: its process does, and has not ended its service, as ``sys.exit()`` does."""
        worker = self._worker_or_none()
        return worker is not None and worker.process.is_alive() and not worker.is_over()

    def terminate(self) -> None:
        """End the worker and every process it started, at once: SIGTERM, one second, SIGKILL.

        Tags stay; :meth:`start` starts a new worker. May be called while another thread waits; that thread gets
        WorkerDied.
        """
        worker = self._worker_or_none()
        if worker is not None:
            worker.process.terminate_tree()
            worker.channel.wake()

    def join(self, timeout_ms: float | None = None) -> bool:
        """Wait for the worker's end, for ever if ``timeout_ms`` is None. Returns whether it has ended.

        In a forked child returns False at once: the worker is not that process's.
        """
        timeout_s = seconds_of(timeout_ms)
        if self._is_foreign():
            return False
        worker = self._worker_or_none()
        return worker is None or worker.process.wait(timeout_s)

    def please_exit(self, timeout_ms: float | None = EXIT_TIMEOUT_MS, ensure: bool = True) -> bool:
        """Request that the worker exit, and wait. If it ends, clean up: the session is over and its tags are gone.

        A request that is under way is answered first, if there is time for that.

        Args:
            timeout_ms: how long to wait; None for no limit.
            ensure: whether to end the worker by force, and clean up, if it does not end by itself.

        Returns:
            Whether it ended by itself; True if there is nothing to end, before :meth:`start` say, or after
            :meth:`close`; False if a signal ended it, for example that of another thread's
            :meth:`terminate`. False at once in a forked child, which ends nothing.

        Raises:
            SessionBusy: as in :meth:`close`.
        """
        timeout_s = seconds_of(timeout_ms)
        if self._is_foreign():
            return False
        dispatcher = self._dispatcher
        worker = self._worker_or_none()
        if dispatcher is None or worker is None:
            self.close()
            return True
        has_ended, deadline_s = False, time.monotonic() + timeout_s
        try:
            has_ended = dispatcher.request_exit(timeout_s)
        except (SessionNotStarted, WorkerDied):  # others have ended it; or its directory is gone, and the worker ends
            has_ended = self.join(max(0.0, deadline_s - time.monotonic()) * 1000)
        finally:
            if has_ended or ensure:
                self.close()
        return has_ended and worker.has_ended_by_itself()

    def close(self) -> None:
        """End the worker by force if it lives, and remove everything of the session. Idempotent.

        May be called while another thread waits; that thread gets SessionNotStarted. Does nothing in a forked child.

        Raises:
            SessionBusy: another thread is in the middle of a request and has not left it for 10 s, for example because
                its signal handler waits for this thread. The worker was ended; call this again for the rest.
        """
        dispatcher = self._dispatcher
        if dispatcher is None or self._is_foreign():
            return
        dispatcher.close()
        with self._starting:
            if self._dispatcher is dispatcher:
                self._dispatcher = None  # only now: if a system call failed, close() may be called again
                assert self._finalizer is not None
                self._finalizer.detach()
                if _sessions.get(dispatcher.resources.directory) is self:
                    del _sessions[dispatcher.resources.directory]

    def __enter__(self) -> Self:
        self.start()
        timeout_ms = self._options.start_timeout_ms
        try:
            if not self.wait_until_ready(timeout_ms):
                worker = self._worker_or_none()
                tail = worker.process.log_tail() if worker is not None else ""
                output = f"Its last output:\n{tail}" if tail else "It printed nothing."
                state = worker_state(worker) if worker is not None else None
                raise ResponseTimeout(
                    f"the worker {self._options.script_path!r} was not ready after {shown_ms(timeout_ms or 0.0)} ms; "
                    f"{state}; "
                    "it must run a server with the session id of its command line, or needs a larger "
                    f"start_timeout_ms. {output}",
                    timeout_ms=timeout_ms or 0.0,
                    command="start",
                    pid=0 if state is None else state.pid,
                    state="unknown" if state is None else state.process,
                    is_taken_up=False,
                    last_moved_ms=None if state is None else state.last_moved_ms,
                )
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.please_exit(EXIT_TIMEOUT_MS if error is None else _EXIT_AFTER_ERROR_MS)
        finally:
            self.close()

    # -- status ---------------------------------------------------------------------------------------------------
