"""The dispatcher of a pool: one thread that gives requests to workers and takes their answers. Starts no process.

What a pool knows is changed by this thread only, so nothing here needs a lock, and no interrupt of the program's main
thread can stop a step halfway. Other threads append to ``queue``, ``_commands`` and ``outcomes``, and wake it. It
sleeps on the bells of all sessions at once. What takes long, to start and to end processes, is done by another thread
(``staff.py``).

Two requests are in each worker's ring, so that a worker never waits for the dispatcher; more if they take less than
that is worth. A request that waits in the ring of a worker that dies was not begun: another worker gets it, and this
does not count as an attempt. One that waits there behind a long request is taken back for a worker that has none.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from ..base.background import Background
from ..controller.results import Result
from ..errors import SessionNotStarted
from ..wire.words import OF_PARENT
from .sending import PATIENCE_S, Sending
from .staff import Staff
from .stats import SessionPoolStats
from .tasks import Attempt, Task
from .worker import State

if TYPE_CHECKING:
    from ..processes.spares import Spares

__all__ = ["SHUT", "Dispatcher"]

SHUT: Final = "cannot schedule new futures after shutdown"  # the standard library's words

_log = logging.getLogger("tr_mmap")

_LOOK_S: Final = 0.5  # how often to look while something is in flight: a ring may be lost
_FEW_S: Final = 0.01  # the shortest time between two looks for handlers that run for too long


class _Sleep:
    """One sleep of the dispatcher, so that whoever has ended it cannot take a later one for ended, however late.

    Attributes:
        is_on: it may have to be ended.
    """

    __slots__ = ("is_on",)

    def __init__(self) -> None:
        self.is_on = False


class Dispatcher(Sending):
    """The requests of one pool.

    Args:
        staff: starts and ends its workers.
        depth: requests that are with one worker; None to choose by how long they take.
        spares: what its sessions take their processes from; None if there are none.

    Attributes:
        is_shut: no more requests are taken.
        has_ended: set when all is done after that.
        pid: the process to which the pool belongs.
    """

    def __init__(self, staff: Staff, depth: int | None, spares: Spares | None = None) -> None:
        super().__init__(staff, depth)
        self._spares = spares
        self.is_shut = False
        self._is_closed = False  # nothing is taken any more, also of those that have looked at is_shut before
        self.has_ended = threading.Event()
        self._commands: deque[Callable[[], None]] = deque()
        self._thread: Background | None = None
        self._starting = threading.RLock()  # held for the start of the thread; a signal handler may submit meanwhile
        self._ident = 0
        self._sleep_now = _Sleep()
        self._is_full = False  # all workers have as many requests as they may: only an answer changes that
        self._next_look_s = math.inf
        self.pid = os.getpid()
        staff.post = self.post

    # -- for other threads --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, if it has not begun."""
        with self._starting:
            if self._thread is None:
                made = Background(self._run)
                if self._thread is None:  # no call before the next line: a signal handler may have begun another one
                    self._thread = made
            self._thread.wake()  # which does nothing before it is noted here

    def submit(self, task: Task) -> None:
        """Take a request.

        Raises:
            RuntimeError: the pool has just been shut down.
        """
        self.queue.append(task)
        sleep = self._sleep_now
        if sleep.is_on and not self._is_full:
            self.wake()
            sleep.is_on = False  # last: after an exception, the next one wakes it once more
        if self._is_closed:  # the last look may have been before this request was in the queue
            with suppress(ValueError):  # it was not
                self.queue.remove(task)
                raise RuntimeError(SHUT)

    def post(self, command: Callable[[], None]) -> None:
        """Have the dispatcher's thread call a function."""
        self._commands.append(command)
        self.wake()

    def wake(self) -> None:
        """Let the thread look."""
        thread = self._thread
        if thread is not None:
            thread.wake()

    def is_current_thread(self) -> bool:
        return self._ident == threading.get_ident()

    def check_wait(self) -> None:
        """Refuse to wait for a result where it would never come.

        Raises:
            RuntimeError: this is a callback, in the pool's own thread, which would wait for itself.
            SessionNotStarted: this process is a forked child, which no worker answers.
        """
        if os.getpid() != self.pid:
            raise SessionNotStarted(f"the pool{OF_PARENT}")
        if self.is_current_thread():
            raise RuntimeError(
                f"a callback in the pool's own thread {self._ident} cannot wait for a result: it would wait for "
                "itself; add a callback to that future, or wait in a thread of the program"
            )

    def settled(self, attempt: Attempt, outcome: Result | Exception) -> None:
        self.outcomes.append((attempt, outcome))
        if not self.is_current_thread():
            self.wake()

    def kill_running(self, task: Task) -> None:
        self.post(partial(self._kill_running, task))

    def stats(self) -> SessionPoolStats:
        """What the pool does. Read from any thread: each number is right, and they may be of different moments."""
        staff = self.staff
        return SessionPoolStats(
            max_workers=staff.size,
            workers=tuple(each.stats() for each in list(staff.workers) if each.state is not State.DEAD),
            waiting=sum(each.count for each in list(self.queue)),
            done=self.answered,
            failed=self.failed,
            retried=self.retried,
            started=staff.started,
            died=staff.died,
            spare_workers=0 if self._spares is None else self._spares.loaded,
        )

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self, thread: Background) -> bool:
        while self._thread is None and not thread.has_to_return:
            thread.sleep(None)
        if self._thread is not thread:  # another one was begun, or this one was interrupted by a fork
            return self._thread is not None
        self._ident = threading.get_ident()
        try:
            while not thread.has_to_return:
                if self._step(thread):
                    return True
        except BaseException as error:
            # Not to be expected. Nobody is left waiting.
            _log.exception("the pool's dispatcher has failed; its requests fail")
            self._fail_all(error)
            raise
        return False

    def _step(self, thread: Background) -> bool:
        """Do what there is to be done, and sleep until there is more. Returns True when all is done for ever."""
        while self._commands:
            self._commands.popleft()()
        self._take_outcomes()
        now_s = time.monotonic()
        if now_s >= self._next_look_s:
            self._look(now_s)
        self.staff.adjust(now_s, has_work=bool(self.queue))
        if self.staff.error is not None:
            self._give_up_waiting(self.staff.error)
        self._stuck = 0
        self._take_back(time.monotonic())
        if self.queue:
            self._dispatch()
        if self.is_shut and self._end_if_done():
            return True
        self._sleep(thread)
        return False

    def _sleep(self, thread: Background) -> None:
        workers = [each for each in self.staff.workers if each.state is not State.DEAD]
        self._next_look_s = min(self._when_to_look(), self.staff.next_look_s())
        has_room = self._has_room()
        self._is_full = not has_room and any(each.state is State.READY for each in workers)
        self._sleep_now = sleep = _Sleep()
        sleep.is_on = True
        if self._commands or self.outcomes or self.staff.is_changed or (len(self.queue) > self._stuck and has_room):
            sleep.is_on = False
            return
        left_s = max(0.0, self._next_look_s - time.monotonic())
        fds = {each.fd: each for each in workers if each.fd is not None}
        found = thread.sleep(None if left_s == math.inf else left_s, *fds)
        sleep.is_on = False
        for fd in found:
            self._process(fds[fd])

    # -- time ---------------------------------------------------------------------------------------------------------

    def _when_to_look(self) -> float:
        now_s, look_s = time.monotonic(), math.inf
        for attempt in self._could_be_taken_back():
            look_s = min(look_s, max(attempt.worker.mark_s + PATIENCE_S, now_s + _FEW_S))
        for worker in self.staff.workers:
            if worker.in_flight or (
                worker.fd is None and worker.is_started
            ):  # without a bell, nothing tells of its end
                look_s = min(look_s, now_s + _LOOK_S)
                for attempt in worker.attempts():
                    limit_s = attempt.task.limit_s
                    if limit_s < math.inf:
                        at_s = attempt.began_s + limit_s if attempt.began_s else now_s + min(limit_s / 8, _LOOK_S)
                        look_s = min(look_s, max(at_s, now_s + _FEW_S))
        return look_s

    def _look(self, now_s: float) -> None:
        """Look for lost rings, for workers that have ended, and for handlers that run for too long."""
        for worker in list(self.staff.workers):
            if not self._process(worker):
                continue
            for attempt in worker.attempts():
                limit_s = attempt.task.limit_s
                if limit_s == math.inf:
                    continue
                if not attempt.began_s:
                    # The oldest one is the handler's to begin, also if the worker never comes to that.
                    is_oldest = attempt is next(iter(worker.in_flight))
                    if not is_oldest and not attempt.is_running():
                        continue
                    attempt.began_s = worker.mark_s if is_oldest else now_s
                if now_s - attempt.began_s >= limit_s:
                    worker.culprit = attempt.task
                    worker.ended_for = (
                        f"it ran for longer than the {limit_s * 1000:.0f} ms that it may take (timeout_ms), and its "
                        "worker was ended"
                    )
                    self.staff.kill(worker, is_hung=True)
                    break

    def _kill_running(self, task: Task) -> None:
        attempt = task.attempt
        if attempt is not None and attempt in attempt.worker.in_flight and attempt.worker.state is not State.DEAD:
            self.staff.kill(attempt.worker)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _fail_all(self, error: BaseException) -> None:
        self.is_shut = self._is_closed = True
        for worker in self.staff.workers:
            for attempt in worker.attempts():
                self._fail(attempt.task, error)
        while self.queue:
            self._fail(self.queue.popleft(), error)
        self.staff.end(0.0)
        self._end_spares()
        self.has_ended.set()

    def shut(self, *, is_cancelling: bool, grace_s: float) -> None:
        """Take no more requests. Any thread may call this, and again.

        Args:
            is_cancelling: whether the requests that no handler has are cancelled.
            grace_s: how long a worker may take to end by itself after its last answer.
        """
        self.is_shut = True
        if self._thread is None:
            self.has_ended.set()
            return
        self.post(partial(self._shut, is_cancelling, grace_s))

    def _shut(self, is_cancelling: bool, grace_s: float) -> None:
        self.staff.grace_s = min(self.staff.grace_s, grace_s)
        if is_cancelling:
            self.cancel_waiting()

    def cancel_waiting(self) -> None:
        """Cancel what no handler has."""
        while self.queue:
            self.queue.popleft().cancel()
        for worker in self.staff.workers:
            for attempt in worker.attempts():
                if attempt.cancel():
                    attempt.task.cancel()

    def end_workers(self, grace_s: float) -> None:
        """End all workers by force; what they have fails, and what waits is cancelled."""
        self.is_shut = True
        if self._thread is None:
            self.has_ended.set()
            return
        self.post(partial(self._end_workers, grace_s))

    def _end_workers(self, grace_s: float) -> None:
        self.staff.is_ending = self._is_closed = True
        self.cancel_waiting()
        self.staff.end(grace_s)

    def _end_if_done(self) -> bool:
        if not self._is_closed:
            self._is_closed = True  # before the last look: what comes after it is refused
            if self.queue or any(each.in_flight for each in self.staff.workers):
                self._is_closed = False
                return False
        if not self.staff.retire_all():
            return False
        self._end_spares()
        self.has_ended.set()
        return True

    def _end_spares(self) -> None:
        if self._spares is not None:
            self._spares.close()
