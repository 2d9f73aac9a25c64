"""What a session does with its requests: calls, the request to exit, statuses, the end.

Threads may use a dispatcher at once, and so may a signal handler in the middle of a request: see ``flow.py`` and
``answers.py``. Never starts or ends processes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from ..base import system
from ..channel.interface import Overtaken
from ..errors import (
    OutOfSpace,
    RemoteError,
    ResponseTimeout,
    SessionBusy,
    SessionNotStarted,
    TRException,
    WorkerDied,
)
from ..protocol.commands import UserMessage
from ..protocol.messages import Request, now_ms
from ..protocol.status import Status, StatusLine
from ..wire.messages import EXIT_COMMAND, MAX_MESSAGE_SEQ, RELEASE_COMMAND
from ..wire.waits import RELEASE_TIMEOUT_MS
from ..wire.words import CLOSED_MEANWHILE
from .claims import Claims
from .pending import Pending, command_of
from .progress import OnProgress
from .results import Result
from .stats import worker_state
from .worker_handle import WorkerHandle

__all__ = ["TURN_WAIT_S", "Dispatcher", "StatusTest"]

_log = logging.getLogger("tr_mmap")

_RELEASE_WAIT_S: Final = RELEASE_TIMEOUT_MS / 1000
_REPEAT_EXIT_S: Final = 0.1  # how often to repeat a request to exit that the worker may overwrite
TURN_WAIT_S: Final = 10.0  # how long to wait for a thread whose request has no worker any more to end it
_ANSWER_NOTICE_S: Final = 1.0  # when to say that an exit waits for an answer
_END_NOTICE_S: Final = 5.0  # and that it waits for the worker's end; on a busy machine that takes a second or two

StatusTest = Callable[[StatusLine], bool]
_T = TypeVar("_T")


class Dispatcher(Claims):
    """Requests and results of one session.

    Args:
        resources: what the session owns; requests go to its worker.
    """

    # -- requests -------------------------------------------------------------------------------------------------

    def call(
        self,
        message: UserMessage,
        tensors: tuple[Any, ...],
        timeout_s: float,
        framework: str | None,
        on_progress: OnProgress | None = None,
    ) -> Result:
        """Send a request and take its result; no other caller can take it.

        Args:
            message: the command, and words for it.
            tensors: for this request only; their tags follow the words.
            timeout_s: how long this may take in all, in seconds; infinity for no limit.
            framework: of the result's tensors; None to receive none.
            on_progress: is told how far the request is; None for nobody.

        Returns:
            The response and its tensors.

        Raises:
            BadMessage: there is no command in the message.
            UnsupportedTensor, OutOfSpace: of the tensors to send.
            RemoteError, ResponseTimeout, WorkerDied: there is no result.
        """
        worker = self.resources.worker
        fast_path = None if worker is None else worker.fast_path
        found = (
            None
            if fast_path is None or on_progress is not None
            else fast_path.call(message, tensors, timeout_s, framework)
        )
        if found.__class__ is tuple:
            return found
        # The fast path may have waited for the answer until its time was over.
        deadline_s = time.monotonic() + timeout_s if found is None else found.deadline_s
        pending: Pending = Pending(message, framework) if found is None else found
        try:
            if on_progress is not None:
                self.progress.add(pending, on_progress)
            if found is None:
                self.send(pending, tensors, deadline_s, timeout_s)
            return self.wait(pending, deadline_s, timeout_s)
        except BaseException:
            self.abandon(pending)
            raise

    def note_end(self) -> None:
        """The worker has ended: wake all that wait for anything."""
        self.notify()
        bell = self.resources.bell
        if bell is not None:
            system.ring_fifo(bell)

    def is_asked(self) -> bool:
        """Whether a request was sent whose answer is not there yet; the worker's status may not say so yet."""
        self.poll()
        return bool(self.in_flight) and not self.resources.is_foreign

    def with_room(self, action: Callable[..., _T], *arguments: Any) -> _T:
        """Call what needs memory; if there is no room, once more after the worker has made some.

        Raises:
            OutOfSpace: no room, or the worker was not asked.
            SessionNotStarted, WorkerDied: the session or the worker ended while this waited for room.
        """
        worker = self.resources.worker
        if worker is not None and worker.is_over():
            worker = None  # nobody releases anything, so this does not wait
        try:
            try:
                return action(*arguments)
            except OutOfSpace as error:
                deadline_s = time.monotonic() + _RELEASE_WAIT_S
                if worker is None or not self._ask_for_room(worker, error, deadline_s):
                    raise
                return action(*arguments)
        except OutOfSpace as error:
            if error.is_budget and worker is not None and worker.is_over():  # its end has ended the wait for room
                raise self.worker_died(worker) from None
            raise

    def _ask_for_room(self, worker: WorkerHandle, error: OutOfSpace, deadline_s: float) -> bool:
        """Let the worker give up the memory that it keeps for later results, if no request is under way.

        Returns:
            Whether it has; then another try may succeed.
        """
        if error.is_budget or not self.transfer.keeps_memory or self.in_flight or self.resources.worker is not worker:
            return False
        if not worker.channel.read_status().status.is_waiting:
            return False  # it has no results yet, or somebody's request by hand is under way
        deadline_s = min(deadline_s, time.monotonic() + _RELEASE_WAIT_S)
        self.transfer.collect()
        pending = Pending(RELEASE_COMMAND, None)
        try:
            self.send(pending, (), deadline_s, _RELEASE_WAIT_S, may_ask_for_room=False)
            self.wait(pending, deadline_s, _RELEASE_WAIT_S, worker)
        except (OutOfSpace, ResponseTimeout, RemoteError, WorkerDied):  # RemoteError: a worker of an earlier version
            self.abandon(pending)
            return False
        except BaseException:
            self.abandon(pending)
            raise
        return True

    # -- the request to exit --------------------------------------------------------------------------------------

    def request_exit(self, timeout_s: float) -> bool:
        """Send the request to exit, and return whether the worker ended in time.

        Requests under way are answered first.
        """
        worker = self.worker()
        if not worker.process.is_alive() or worker.is_over():
            return not worker.lives_on or worker.process.wait(timeout_s)
        began_s = time.monotonic()
        deadline_s = began_s + timeout_s
        notice_s = min(began_s + (_ANSWER_NOTICE_S if self.in_flight else _END_NOTICE_S), deadline_s)
        exiting, has_ended = object(), False
        try:
            self._exits.add(exiting)  # requests that wait for their turn are not sent any more
            self._note_exits()
            if worker.channel.capacity == 1:  # else it follows them
                self._consume_until(worker, lambda: not self.in_flight, notice_s)
                if self.in_flight and notice_s < deadline_s:
                    self._give_notice_of_exit(worker, deadline_s)
                    notice_s = deadline_s
                    self._consume_until(worker, lambda: not self.in_flight, deadline_s)
            stands = not self.in_flight or worker.channel.capacity > 1
            stands = self._store_exit(worker, deadline_s) if stands else self._exit_anyway(worker, deadline_s)
            while True:
                self.check_own()
                remaining_s = max(0.0, notice_s - time.monotonic())
                has_ended = worker.process.wait(remaining_s if stands else min(remaining_s, _REPEAT_EXIT_S))
                if has_ended or time.monotonic() >= deadline_s:
                    return has_ended
                if time.monotonic() >= notice_s:
                    self._give_notice_of_exit(worker, deadline_s)
                    notice_s = deadline_s
                if not stands:
                    stands = self._exit_anyway(worker, deadline_s)
        finally:
            if not has_ended:
                self._exits.discard(exiting)
                self._note_exits()

    def _note_exits(self) -> None:
        self._counters.blocked = len(self._exits) + self.is_closing

    def _give_notice_of_exit(self, worker: WorkerHandle, deadline_s: float) -> None:
        """Say what this wait is for: at the end of a ``with`` block it looks like a hang."""
        self.poll()
        pending, left_s = next(iter(list(self.in_flight.values())), None), deadline_s - time.monotonic()
        _log.warning(
            "session %r is to end: waiting %s until its worker has %s; %s; terminate() ends it at once",
            self.resources.session_id,
            f"up to {left_s:.0f} s more" if left_s < math.inf else "without a limit",
            "ended" if pending is None else f"answered {command_of(pending)!r}",
            worker_state(worker),
        )

    def _store_exit(self, worker: WorkerHandle, deadline_s: float) -> bool:
        """Send the request to exit. Returns whether the worker cannot overwrite it; it may still be starting."""
        return bool(self.in_turn(self._sending, deadline_s, self._send_exit, worker, deadline_s))

    def _send_exit(self, worker: WorkerHandle, deadline_s: float) -> bool:
        if worker.is_told_to_exit:
            return True
        self._counters.seq = seq = self._counters.seq % MAX_MESSAGE_SEQ + 1
        request = Request(seq=seq, command=EXIT_COMMAND, timestamp=now_ms())
        try:
            stands = worker.channel.request_exit(request, deadline_s, worker.is_over)
        except (Overtaken, ResponseTimeout):
            return False
        worker.is_told_to_exit = stands and worker.channel.capacity > 1
        return stands

    def _exit_anyway(self, worker: WorkerHandle, deadline_s: float) -> bool:
        """Ask the worker to exit while a request is under way. Returns False if this must be repeated."""
        status = worker.channel.read_status().status
        if worker.channel.capacity > 1 or worker.channel.is_taken_up():
            return self._store_exit(worker, deadline_s)  # it takes the place of no other request
        if not status.is_ending and not self.resources.options.auth:  # with auth the worker believes no status
            worker.channel.write_status(Status.EXIT)
        worker.channel.ring()
        return False

    def keep_answers(self) -> None:
        """Take the answers that a worker has left before its end, for their takers. In both turns."""
        worker = self.resources.worker
        try:
            if worker is not None:
                self._consume_rest(worker)
        except TRException:
            pass  # there is no more

    # -- status, and the end --------------------------------------------------------------------------------------

    def wait_status(self, until: StatusTest, timeout_s: float, *, of_request: bool) -> StatusLine | None:
        """Wait for a status; None when the time is over.

        Args:
            until: tells whether a status is the one.
            timeout_s: how long to wait, in seconds.
            of_request: whether to wait first for the answers to the requests in flight, so that the status is not that
                of an earlier request.

        Raises:
            WorkerDied: the worker ended.
            SessionNotStarted: there is no worker, or the session was closed meanwhile.
        """
        worker = self.worker()
        deadline_s = time.monotonic() + timeout_s
        if of_request and self.in_flight:
            self._consume_until(worker, lambda: not self.in_flight, deadline_s)
            if self.in_flight and not worker.is_over():
                return None
        remaining_ms = max(0.0, (deadline_s - time.monotonic()) * 1000)
        line = worker.channel.wait_status(until, remaining_ms, worker.is_over)
        if worker.is_over():  # whatever its last status was
            raise self.worker_died(worker)
        return line

    def close(self) -> None:
        """Release the session; threads that wait for anything get SessionNotStarted.

        Raises:
            SessionBusy: another thread does not end its request, although its wait has ended. The worker is ended all
                the same; call this again for the rest.
        """
        self.is_closing = True
        self._note_exits()
        self.closers += 1
        worker = self.resources.worker
        try:
            try:
                if worker is not None:
                    worker.give_up()  # the threads that have the turns give them back
                self.notify()
            finally:
                if not self.resources.is_foreign:  # a signal handler may have forked meanwhile
                    self._close_in_turn(worker)
        finally:
            self.closers -= 1  # with is_closing still True, an interrupted close() is known

    def _close_in_turn(self, worker: WorkerHandle | None) -> None:
        if self.exclusively(TURN_WAIT_S, self._close):
            return
        if worker is not None:
            worker.process.terminate_tree()  # the thread that has the turn may wait for this one
        raise self.busy(TURN_WAIT_S)

    def busy(self, timeout_s: float) -> SessionBusy:
        """The error for a thread that does not end its request."""
        return SessionBusy(
            f"a thread has been in the middle of a request of session {self.resources.session_id!r} for "
            f"{timeout_s:.0f} s, and does not end it; call this method again when it has"
        )

    def _close(self) -> bool:
        try:
            self.keep_answers()
            for pending in list(self.in_flight.values()):
                self._deliver(pending, SessionNotStarted(f"session {self.resources.session_id!r}{CLOSED_MEANWHILE}"))
        finally:  # whatever else fails, the worker is ended
            self.resources.release()
        return True
