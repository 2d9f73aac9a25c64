"""The workers of a pool: how many there are, when one is started, and when one has to go. Sends no request.

The dispatcher's thread calls all that is not marked otherwise. What takes long is done by two other threads: the
starter starts sessions, and copies broadcast tensors to them; the janitor ends processes, and closes sessions. So a
new worker does not wait until a dead one is cleared away.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from ..base import system
from ..controller.results import Result
from ..controller.session import PythonSession
from ..errors import ResponseTimeout, SemaphoresUnavailable, SessionNotStarted, TRException, WorkerDied
from ..wire.messages import RELEASE_COMMAND
from ..wire.names import DEFAULT_WORKER
from ..wire.waits import EXIT_TIMEOUT_MS, TERMINATE_GRACE_S
from .broadcasts import Broadcasts
from .jobs import Jobs
from .pace import STEADY_S, Pace
from .worker import State, Worker

__all__ = ["Staff"]

_log = logging.getLogger("tr_mmap")

_ASK_FILES_MS: Final = 2000.0
_DUMP_S: Final = 0.25  # to write where its threads are, which takes milliseconds
_RELOAD_S: Final = 0.25  # how often to look whether the script has changed


class _Ready:
    """The first request to a worker: its answer says that the worker is ready."""

    def __init__(self, staff: Staff, worker: Worker, pending: Any, deadline_s: float) -> None:
        self._staff = staff
        self._worker = worker
        self.pending = pending
        self.deadline_s = self.timeout_s = deadline_s

    def settle(self, outcome: Result | Exception) -> None:
        if isinstance(outcome, WorkerDied | SessionNotStarted):
            self._worker.death = outcome
        else:  # an error, too, is an answer
            self._staff.post(partial(self._staff.note_ready, self._worker))


class Staff:
    """The workers of one pool.

    Args:
        new_session: makes a session that is not started.
        script: the workers' script.
        size: how many workers there are to be.
        most_tasks: how many requests a worker may answer; infinity for any number.
        start_timeout_s: how long a worker may take until it is ready.
        is_reloading: whether workers are replaced when the script has changed.

    Attributes:
        workers: those that are not dead.
        broadcasts: the tags that every worker has.
        post: has the dispatcher's thread call a function; any thread may call it.
        error: why no worker can be started; None if one runs, or starts. The dispatcher resets it.
        grace_s: how long a worker may take to end by itself.
        is_ending: all workers are ended by force.
        is_changed: :meth:`adjust` has something to do.
        started, died: counts.
    """

    def __init__(
        self,
        new_session: Callable[[], PythonSession[Any]],
        script: str,
        size: int,
        most_tasks: float,
        start_timeout_s: float,
        is_reloading: bool,
    ) -> None:
        self._new_session = new_session
        self._script = script
        self.size = size
        self._most_tasks = most_tasks
        self._start_timeout_s = start_timeout_s
        self.workers: list[Worker] = []
        self.broadcasts = Broadcasts()
        self.post: Callable[[Callable[[], None]], None] = lambda command: command()
        self.error: Exception | None = None
        self.grace_s = EXIT_TIMEOUT_MS / 1000
        self.is_ending = False
        self.is_changed = True
        self.started = self.died = 0
        self._is_closing = False
        self._generation = 0
        self._failed_generation = -1
        self._pace = Pace()
        self._last_error: Exception | None = None  # why none can be started, until one can
        self._next_adjust_s = 0.0
        self._is_reloading = is_reloading and script != DEFAULT_WORKER
        self._signature = _signature_of(script) if self._is_reloading else None
        self._next_signature_s = 0.0
        self._jobs_left = 0
        self._starter, self._janitor = Jobs(self._tell_job_done), Jobs(self._tell_job_done)
        self._ready = threading.Condition()  # notified when a worker becomes ready, or cannot

    # -- what takes long ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the two threads, as far as they have not begun. Any thread.

        Raises:
            SystemLimit: the system has no thread left.
        """
        self._starter.start()
        self._janitor.start()

    def _do(self, jobs: Jobs, job: Callable[[], None], *, is_first: bool = False) -> None:
        self._jobs_left += 1
        jobs.do(job, is_first=is_first)

    def _tell_job_done(self) -> None:
        self.post(self._note_job_done)

    def _note_job_done(self) -> None:
        self._jobs_left -= 1
        self.is_changed = True

    def _start_session(self, worker: Worker) -> None:
        """The starter: start a worker, and say how that went."""
        error: Exception | None = None
        try:
            worker.session.start()
            try:
                worker.fd = worker.session.fileno()
            except SemaphoresUnavailable:
                pass  # the session's own thread settles what is answered
            self.broadcasts.bring(worker)
        except Exception as found:  # whatever it is, the requests that wait are told
            error = found
        self.post(partial(self._note_started, worker, error))

    @staticmethod
    def _ask_to_exit(worker: Worker) -> None:
        """The janitor: request that a worker exit; it does so after its last answer."""
        # A channel of files has to be asked again and again.
        worker.session.please_exit(_ASK_FILES_MS if worker.fd is None else 0.0, ensure=False)

    # -- a worker's life ----------------------------------------------------------------------------------------------

    def _hire(self, now_s: float) -> None:
        worker = Worker(self._new_session(), self._generation, self._most_tasks, now_s + self._start_timeout_s)
        self.workers.append(worker)
        self.started += 1
        self._do(self._starter, partial(self._start_session, worker))

    def _note_started(self, worker: Worker, error: Exception | None) -> None:
        if error is not None:
            worker.death = error
            self.note_dead(worker)
            return
        worker.note_started()
        if worker.state is not State.STARTING:  # it is not wanted any more
            self.note_dead(worker)
            return
        try:
            worker.futures.send(RELEASE_COMMAND, (), math.inf, None, partial(_Ready, self, worker))
        except (TRException, OSError) as found:
            worker.death = found
            self.note_dead(worker)

    def note_ready(self, worker: Worker) -> None:
        """A worker has given its first answer, or has got tensors that it lacked."""
        if worker.state is not State.STARTING:
            return
        if not self.broadcasts.admit(worker):  # it lacks some that were sent meanwhile
            self._do(self._starter, partial(self._bring_rest, worker))
            return
        self._last_error = None
        self._pace.note_ready()
        self.is_changed = True
        self._tell()

    def _bring_rest(self, worker: Worker) -> None:
        """The starter: send a worker the tensors that it lacks."""
        try:
            self.broadcasts.bring(worker)
        except (SessionNotStarted, WorkerDied):
            return  # it has died, which is seen elsewhere
        self.post(partial(self.note_ready, worker))

    def note_dead(self, worker: Worker) -> None:
        """A worker's process has ended, or it could not be started."""
        state = worker.state
        if state is State.DEAD:
            return
        worker.advance(State.DEAD)
        self.workers.remove(worker)
        self.is_changed = True
        if state is State.STARTING:
            self._note_failed_start(worker)
        elif state is State.READY:
            self.died += 1
            if worker.has_served or time.monotonic() - worker.ready_s >= STEADY_S:
                self._pace.note_useful()  # another one starts at once
            else:
                self._note_failed_start(worker)
        self._do(self._janitor, worker.session.close)

    def _note_failed_start(self, worker: Worker) -> None:
        error = worker.start_error()
        has_others = any(each.state is State.READY for each in self.workers)
        is_hopeless = self._pace.note_failed(time.monotonic(), worker.was_ready, has_others)
        if has_others and worker.generation > 0:
            self._failed_generation = worker.generation
            _log.warning("a worker with the changed script could not be started; those that run go on: %s", error)
        elif is_hopeless:
            self.error = self._last_error = error
            self._tell()

    def note_answer(self, worker: Worker, count: int) -> None:
        """A worker has answered so many requests."""
        if not worker.done:
            self._pace.note_useful()
            self.is_changed = True
        worker.done += count

    def kill(self, worker: Worker, *, is_hung: bool = False) -> None:
        """End a worker's process by force; one that hangs writes where it is. Another takes its place at once."""
        self._note_killed(worker)
        if worker.is_started:
            self._do(self._janitor, partial(worker.kill, 0.0, _DUMP_S if is_hung else 0.0), is_first=True)

    def _note_killed(self, worker: Worker) -> None:
        if worker.state in (State.STARTING, State.READY):
            self.died += 1
            worker.advance(State.RETIRING)
        worker.is_asked_to_exit = True
        worker.retire_by_s = math.inf
        self.is_changed = True

    def end(self, grace_s: float) -> None:
        """End all workers by force."""
        self._is_closing = True
        for worker in self.workers:
            self._note_killed(worker)
        started = [each for each in self.workers if each.is_started]
        self._do(self._janitor, partial(_kill_all, started, grace_s), is_first=True)

    def retire_all(self) -> bool:
        """Let all workers end. Returns whether they have ended, and nothing is left of them."""
        if not self._is_closing:
            self._is_closing = self.is_changed = True
        if self.workers or self._jobs_left:
            return False
        self._starter.stop()
        self._janitor.stop()
        self._tell()
        return True

    # -- how many there are to be -------------------------------------------------------------------------------------

    def resize(self, size: int) -> None:
        """Have another number of workers."""
        self.size = size
        self._pace.next_start_s = 0.0
        self.is_changed = True

    def next_look_s(self) -> float:
        """When :meth:`adjust` has to be called again, by the monotonic clock."""
        return self._next_adjust_s

    def adjust(self, now_s: float, has_work: bool) -> None:
        """Start and retire workers, so that there are as many as there are to be."""
        if not self.is_changed and now_s < self._next_adjust_s and not (has_work and not self.workers):
            return
        self.is_changed = False
        if self._is_reloading and now_s >= self._next_signature_s:
            self._look_at_script(now_s)
        for worker in list(self.workers):
            self._see_to(worker, now_s)
        starting = [each for each in self.workers if each.state is State.STARTING]
        ready = [each for each in self.workers if each.state is State.READY]
        if self._is_closing:
            for worker in [*starting, *ready]:
                self._retire(worker)
        else:
            self._fill(starting, ready, now_s, has_work)
        self._next_adjust_s = self._when_next(now_s, has_work)

    def _fill(self, starting: list[Worker], ready: list[Worker], now_s: float, has_work: bool) -> None:
        old = [each for each in ready if each.generation != self._generation]
        missing = self.size - len(starting) - len(ready)
        if old and missing <= 0 and not starting and self._failed_generation != self._generation:
            missing = 1  # a new one first; when it is ready, an old one goes
        if missing > 0 and self._pace.may_start(now_s, has_work):
            for _ in range(missing):
                self._hire(now_s)
        ready.sort(key=lambda each: (each.generation == self._generation, len(each.in_flight)))
        for worker in ready[: max(0, len(ready) - self.size)]:
            self._retire(worker)
        spare = len(starting) + len(ready) - self.size - bool(old)  # beside old ones, one may start
        for worker in starting[: max(0, spare)]:
            self._retire(worker)

    def _see_to(self, worker: Worker, now_s: float) -> None:
        """What the time, or its last answer, means for a worker."""
        if worker.state is State.READY and worker.left <= 0:
            self._retire(worker)
        if worker.state is State.STARTING and now_s >= worker.start_deadline_s:
            worker.death = ResponseTimeout(
                f"a worker of {self._script!r} was not ready after {self._start_timeout_s:g} s; it must run a server "
                "with the session id of its command line, or needs a larger start_timeout_ms",
                timeout_ms=self._start_timeout_s * 1000,
                command="start",
            )
            self._note_failed_start(worker)
            self.kill(worker)
        if worker.state is not State.RETIRING:
            return
        if not worker.in_flight and not worker.is_asked_to_exit and worker.is_started:
            worker.is_asked_to_exit = True
            worker.retire_by_s = now_s + self.grace_s
            self._do(self._janitor, partial(self._ask_to_exit, worker))
        if now_s >= worker.retire_by_s:
            worker.retire_by_s = math.inf
            self._do(self._janitor, partial(worker.kill, TERMINATE_GRACE_S), is_first=True)

    def _retire(self, worker: Worker) -> None:
        """A worker gets no more requests, and ends when it has answered those that it has."""
        was_starting = worker.state is State.STARTING
        worker.advance(State.RETIRING)
        self.is_changed = True
        if was_starting and worker.is_started:
            worker.is_asked_to_exit = True
            self._do(self._janitor, partial(worker.kill, 0.0))

    def _look_at_script(self, now_s: float) -> None:
        self._next_signature_s = now_s + _RELOAD_S
        signature = _signature_of(self._script)
        if signature is not None and signature != self._signature:
            self._signature = signature
            self._generation += 1
            self._pace.note_useful()  # of the former script, the failures count no more
            _log.info("the script %s has changed: its workers are replaced", self._script)

    def _when_next(self, now_s: float, has_work: bool) -> float:
        at_s = self._next_signature_s if self._is_reloading and not self._is_closing else math.inf
        at_s = min(at_s, self._pace.when_next(now_s, has_work))
        for worker in self.workers:
            if worker.state is State.STARTING:
                at_s = min(at_s, worker.start_deadline_s)
            elif worker.state is State.RETIRING:
                at_s = min(at_s, worker.retire_by_s)
        return at_s

    # -- for other threads --------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        with self._ready:
            self._ready.notify_all()

    def wait_until_ready(self, timeout_s: float) -> bool:
        """Wait until as many workers are ready as there are to be. Returns False when the time is over.

        Raises:
            TRException: no worker can be started.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._ready:
            while sum(each.state is State.READY for each in list(self.workers)) < self.size:
                if self._last_error is not None:
                    raise self._last_error
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or self._is_closing:
                    return False
                self._ready.wait(min(left_s, 0.5))
        return True


def _kill_all(workers: list[Worker], grace_s: float) -> None:
    """The janitor: end several workers, which have the same time for that."""
    until_s = time.monotonic() + grace_s
    if grace_s:
        for worker in workers:
            worker.ask_to_end()
    for worker in workers:
        worker.kill(max(0.0, until_s - time.monotonic()))


def _signature_of(path: str) -> tuple[int, int, int] | None:
    """What tells one content of a file from another; None if there is no such file now."""
    try:
        found = system.status(os.path.realpath(path))
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
