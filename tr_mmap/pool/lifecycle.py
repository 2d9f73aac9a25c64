"""A pool from its start to its end. Sends no request; ``pool.py`` has those, and the docstring with the options."""

from __future__ import annotations

import math
import os
import secrets
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, SupportsIndex

from ..controller.launch import check_script
from ..controller.lifecycle import START_TIMEOUT_MS
from ..controller.options import check_bool, seconds_of
from ..controller.session import PythonSession, WorkerKeywords
from ..errors import BadMessage, SessionNotStarted
from ..wire.messages import MOST_IN_FLIGHT
from ..wire.names import DEFAULT_WORKER
from ..wire.waits import EXIT_TIMEOUT_MS, TERMINATE_GRACE_S
from ..wire.words import OF_PARENT
from .arguments import check_count, worker_count
from .dispatcher import SHUT, Dispatcher
from .staff import Staff

if TYPE_CHECKING:
    from typing import Unpack

    from ..processes.spares import Spares

__all__ = ["PoolKeywords", "PoolLifecycle"]

_GRACE_AFTER_ERROR_S: Final = 0.5  # for handlers that run, at the end of a ``with`` block that has raised
_OF_POOL: Final = ("session_id", "at_limit", "at_budget", "replace")  # options of a session that a pool sets


class PoolKeywords(WorkerKeywords, total=False):
    """The options of a pool that are given by name, for a class that passes them on."""

    retries: int
    max_tasks_per_child: int | None
    timeout_ms: float | None
    max_in_flight: int | None
    reload: bool
    quiet_mode: bool
    framework: str


_pools: weakref.WeakSet[Dispatcher] = weakref.WeakSet()  # that have begun


class PoolLifecycle(Executor):
    """The part of ``SessionPool`` that starts and ends the workers. Its docstring has the options."""

    def __init__(
        self,
        script: str | os.PathLike[str] = DEFAULT_WORKER,
        max_workers: int | None = None,
        *,
        retries: int = 0,
        max_tasks_per_child: int | None = None,
        timeout_ms: float | None = None,
        max_in_flight: int | None = None,
        reload: bool = False,
        quiet_mode: bool = False,
        framework: str = "numpy",
        **options: Unpack[WorkerKeywords],
    ) -> None:
        self._pid = os.getpid()
        size = worker_count(max_workers)
        self._retries = check_count("retries", retries, 0)
        most = math.inf if max_tasks_per_child is None else check_count("max_tasks_per_child", max_tasks_per_child)
        self._most_tasks = most
        self._limit_s = seconds_of(timeout_ms)
        if max_in_flight is not None and check_count("max_in_flight", max_in_flight) > MOST_IN_FLIGHT:
            raise BadMessage(
                f"max_in_flight is {max_in_flight}; it must be a number of requests, 1 to {MOST_IN_FLIGHT}, or None",
                detail="max_in_flight",
            )
        check_bool("reload", reload)
        check_bool("quiet_mode", quiet_mode)
        for name in _OF_POOL:
            if name in options:
                raise BadMessage(
                    f"{name} cannot be given to a pool, which sets it for each of its sessions", detail=name
                )
        self._name = f"pool-{os.getpid()}-{secrets.token_hex(4)}"
        new_session = partial(
            PythonSession[Any],
            script,
            quiet_mode=quiet_mode,
            framework=framework,
            max_in_flight=MOST_IN_FLIGHT,
            **options,
        )
        checked: Any = new_session(session_id=self._name)
        self._script: str = checked._options.script_path
        check_script(self._script)
        self._framework_of: Callable[[tuple[Any, ...]], str] = checked._framework_of
        start_timeout_ms = options.get("start_timeout_ms", START_TIMEOUT_MS)
        names = _names(self._name)
        spares = _spares_of(checked)

        def next_session() -> PythonSession[Any]:
            session = new_session(session_id=next(names))
            session._spares = spares
            return session

        staff = Staff(next_session, self._script, size, most, seconds_of(start_timeout_ms), reload)
        self._dispatcher = Dispatcher(staff, max_in_flight, spares)
        self._is_staging = options.get("budget_nbytes") is None  # a budget is for requests that workers have
        self._finalizer = weakref.finalize(
            self, self._dispatcher.shut, is_cancelling=False, grace_s=EXIT_TIMEOUT_MS / 1000
        )
        self._finalizer.atexit = False  # _end_all() waits for all pools
        self._starting = threading.RLock()  # a signal handler may submit during the first submit
        self._is_started = False

    def __repr__(self) -> str:
        if self._is_foreign():
            return f"<{type(self).__name__} of {self._script}: of the parent process>"
        dispatcher = self._dispatcher
        what = "shut down" if dispatcher.is_shut else "not started" if not self._is_started else "running"
        return f"<{type(self).__name__} of {self._script}: {dispatcher.staff.size} workers, {what}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a SessionPool can be neither copied nor pickled, because it owns processes: make another one")

    # -- start and end ------------------------------------------------------------------------------------------------

    def _is_foreign(self) -> bool:
        return os.getpid() != self._pid

    def _open(self) -> Dispatcher:
        """The dispatcher, running."""
        if self._is_foreign():
            raise SessionNotStarted(f"pool {self._name!r}{OF_PARENT}")
        dispatcher = self._dispatcher
        if dispatcher.is_shut:
            raise RuntimeError(SHUT)
        if not self._is_started:
            with self._starting:
                if not self._is_started:
                    dispatcher.staff.start()
                    dispatcher.start()
                    _pools.add(dispatcher)
                    self._is_started = True
        return dispatcher

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Shut down. After an error, what no handler has is cancelled, and handlers that run are ended after 0.5 s."""
        if error is None:
            self.shutdown()
            return
        self._shut(cancel_futures=True, grace_s=_GRACE_AFTER_ERROR_S)
        if self._is_foreign() or self._dispatcher.is_current_thread():  # to wait is not possible there
            return
        if not self._dispatcher.has_ended.wait(_GRACE_AFTER_ERROR_S):
            self._dispatcher.end_workers(0.0)
            self._dispatcher.has_ended.wait()

    def wait_until_ready(self, timeout_ms: float | None = START_TIMEOUT_MS) -> bool:
        """Wait until all workers are ready. Requests need not wait for that. False if the time is over.

        Raises:
            WorkerDied: the workers cannot be started; or another error, which says why.
            RuntimeError: this is a callback, in the pool's own thread, which starts them.
        """
        dispatcher = self._open()
        if dispatcher.staff.wait_until_ready(0.0):
            return True
        dispatcher.check_wait()
        return dispatcher.staff.wait_until_ready(seconds_of(timeout_ms))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more requests, and end the workers when all requests are done.

        Args:
            wait: whether to wait for that. The program does not end before, in either case.
            cancel_futures: whether requests whose handlers were not called are cancelled.
        """
        self._shut(cancel_futures, EXIT_TIMEOUT_MS / 1000)
        if wait and not self._is_foreign() and not self._dispatcher.is_current_thread():
            self._dispatcher.has_ended.wait()

    def _shut(self, cancel_futures: bool, grace_s: float) -> None:
        if not self._is_foreign():
            self._dispatcher.shut(is_cancelling=cancel_futures, grace_s=grace_s)

    def terminate_workers(self) -> None:
        """End all workers now: SIGTERM, one second, SIGKILL. The pool is shut down.

        Requests whose handlers run fail with WorkerDied; the others are cancelled.
        """
        self._end_workers(TERMINATE_GRACE_S)

    def kill_workers(self) -> None:
        """End all workers now, by SIGKILL. The pool is shut down.

        Requests whose handlers run fail with WorkerDied; the others are cancelled.
        """
        self._end_workers(0.0)

    def _end_workers(self, grace_s: float) -> None:
        if not self._is_foreign():
            self._dispatcher.end_workers(grace_s)

    def resize(self, max_workers: int) -> None:
        """Have another number of workers. Returns at once; those that are too many end after their last answer.

        Raises:
            BadMessage: it is no number from 1 on.
            RuntimeError: the pool is shut down.
        """
        size = check_count("max_workers", max_workers)
        dispatcher = self._open()
        dispatcher.post(partial(dispatcher.staff.resize, size))


def _spares_of(session: PythonSession[Any]) -> Spares | None:
    """The spares that all sessions of a pool share; None if they are to have none."""
    count = session._options.spare_workers
    if not count:
        return None
    from ..processes.spares import Spares  # most pools have none

    return Spares(count)


def _names(prefix: str) -> Iterator[str]:
    number = 0
    while True:
        number += 1
        yield f"{prefix}-{number}"


def _end_all() -> None:
    """At the interpreter's exit: all requests are done first, as with the standard library's executors."""
    own = [each for each in list(_pools) if each.pid == os.getpid()]
    for each in own:
        each.shut(is_cancelling=False, grace_s=EXIT_TIMEOUT_MS / 1000)
    for each in own:
        each.has_ended.wait()


try:
    threading._register_atexit(_end_all)  # type: ignore[attr-defined] # before daemon threads are ended, as atexit is not
except RuntimeError:  # the interpreter ends already
    pass
