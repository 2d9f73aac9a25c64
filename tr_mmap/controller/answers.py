"""How answers reach those who wait for them, and what is said to them of a worker that has ended. Sends nothing.

One thread at a time consumes answers: whoever waits for one takes that role if it is free, and then consumes the
answers to the requests of all threads, until its own is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from ..channel.interface import Channel
from ..errors import (
    BadMessage,
    RemoteOutOfSpace,
    ResponseTimeout,
    SessionNotStarted,
    SystemLimit,
    TRException,
    WorkerDied,
)
from ..protocol.messages import Response
from ..wire.words import CLOSED_MEANWHILE
from .failures import died, unanswered
from .in_flight import InFlight
from .pending import Pending, command_of, opened
from .results import Result, remote_error
from .turn import get_ident
from .worker_handle import WorkerHandle

__all__ = ["Answers"]

_FORGET_S: Final = 1.0  # for a thread in the middle of a request to a dead worker to notice it too
_COLLECT_S: Final = 0.02  # how often to release the leases of views that have ended, while a worker may wait for them


class Answers(InFlight):
    """The answers to the requests of one session."""

    # -- consuming ------------------------------------------------------------------------------------------------

    def wait(self, pending: Pending, deadline_s: float, timeout_s: float, worker: WorkerHandle | None = None) -> Result:
        """Wait for the result of a request.

        Args:
            pending: the request; it was sent.
            deadline_s: how long to wait, by the monotonic clock.
            timeout_s: what the user said.
            worker: the one that the request was sent to; None for the present one.

        Raises:
            RemoteError, ResponseTimeout, WorkerDied: there is no result.
            SystemLimit: its tensors cannot be mapped now; a later call may succeed.
        """
        if pending.outcome is None:
            worker = worker or self.resources.worker or self.worker()
            self._consume_until(worker, lambda: self._is_there(pending), deadline_s, is_last=True)
            if pending.outcome is None and pending.seq in self._aside:
                self._take_aside(pending)
            if pending.outcome is None:
                error = self.unanswered(worker, pending, timeout_s)
                if pending.outcome is None:  # a worker that has ended may have answered it
                    raise error
        return opened(pending.outcome)

    def _is_there(self, pending: Pending) -> bool:
        return pending.outcome is not None or pending.seq in self._aside

    def _consume_until(
        self, worker: WorkerHandle, until: Callable[[], bool], deadline_s: float, *, is_last: bool = False
    ) -> None:
        """Consume answers, or wait while another thread does, until the function says so or the time is over.

        Args:
            worker: which answers.
            until: tells whether what the caller waits for is there.
            deadline_s: when the time is over, by the monotonic clock.
            is_last: whether a request's own time is over then, so that an answer counts that is perhaps not the best.
        """
        while not until():
            self.check_own()
            self.in_turn(
                self._consuming, deadline_s, self._consume, worker, until, deadline_s, is_last, is_in_vain=until
            )
            if worker.is_over() or self.resources.worker is not worker or time.monotonic() >= deadline_s:
                return

    def _consume(
        self, worker: WorkerHandle, until: Callable[[], bool], deadline_s: float, is_last: bool = False
    ) -> None:
        channel, is_blocking = worker.channel, bool(self.resources.options.transfer.block_ms)
        fast_path = worker.fast_path
        while not until():
            if (fast_path is None or self.progress.is_on or fast_path.consume()) and self._consume_next(worker):
                continue
            if fast_path is not None and until():
                return
            if worker.is_over() or self.resources.worker is not worker:
                if not self._consume_next(worker):  # it may have come just before
                    return
                continue
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                if is_last:
                    channel.hurry()
                if not self._consume_next(worker):
                    return
                continue
            if is_blocking:
                self.transfer.collect()
                left_s = min(left_s, _COLLECT_S)
            channel.wait(left_s * 1000, lambda: self._has_to_return(worker, until))

    def _has_to_return(self, worker: WorkerHandle, until: Callable[[], bool]) -> bool:
        """Asked each time that a wait was rung."""
        if self.progress.is_on:
            self.progress.look()
        return until() or worker.is_over()

    def consume_for(self, worker: WorkerHandle, pending: Pending | None, deadline_s: float) -> None:
        """Consume answers until that to a request is there, or to any request for None, or the time is over."""
        count = len(self.in_flight)

        def is_there() -> bool:
            return len(self.in_flight) != count if pending is None else self._is_there(pending)

        self._consume_until(worker, is_there, deadline_s)

    def look_last(self, worker: WorkerHandle, pending: Pending) -> None:
        """Take the answer to a request whose time is over, if there is one."""
        self._consume_until(worker, lambda: self._is_there(pending), 0.0, is_last=True)

    def calls_when_free(self, action: Callable[[], None]) -> bool:
        """If another thread consumes now, have it call a function when it leaves. Returns whether one does."""
        turn, me = self._consuming, get_ident()
        if turn.owner in (0, me):
            return False
        turn.on_free = action
        return turn.owner not in (0, me)

    def take_aside(self, pending: Pending) -> None:
        """Map the tensors of an answer, if that was not possible before.

        Raises:
            SystemLimit: it still is not.
        """
        if pending.outcome is None and pending.seq in self._aside:
            self._take_aside(pending)

    def poll(self, *, even_if_idle: bool = False) -> None:
        """Consume the answers that are there, unless another thread does.

        Args:
            even_if_idle: whether to look also if no request is in flight: a worker may have said what nobody has asked.
        """
        worker = self.resources.worker
        if worker is None or self.resources.is_foreign or not (self.in_flight or even_if_idle):
            return
        turn, me = self._consuming, get_ident()
        if turn.owner in (0, me):
            self.in_turn(turn, time.monotonic(), self._consume, worker, lambda: False, 0.0)

    def _consume_next(self, worker: WorkerHandle) -> bool:
        """Deal with the next answer, and take it. False if there is none."""
        channel = worker.channel
        position = channel.position
        try:
            raw = channel.peek()
            if raw is None:
                return False
            self.check_own()  # a signal handler may have forked: the answer is the parent's
            response = self.transfer.decode(raw)
        except BadMessage as error:
            self._deliver(self._asker_of_bad(channel), error)
            channel.advance(position, is_consumed=not self._aside)
            return True
        pending = self.in_flight.get(response.seq)
        if pending is not None:
            outcome = pending.outcome or self._outcome(response, None if pending.is_abandoned else pending.framework)
            self.check_own()
            if isinstance(outcome, SystemLimit) and not pending.is_abandoned:
                self._aside[response.seq] = response  # nothing is lost: it can be received when there is room again
            else:
                self._deliver(pending, outcome)
        channel.advance(position, is_consumed=not self._aside)
        return True

    def _asker_of_bad(self, channel: Channel) -> Pending | None:
        """The request that an answer that cannot be read is for."""
        seq = channel.next_seq()
        if seq is None:  # this channel has one request at a time
            return next(iter(list(self.in_flight.values())), None)
        return self.in_flight.get(seq)

    def _deliver(self, pending: Pending | None, outcome: Result | Exception) -> None:
        if pending is None:
            return
        if self.progress.is_on:
            self.progress.look_at(pending)
            self.progress.remove(pending)
        if pending.outcome is None:
            pending.outcome = outcome
        self._forget(pending)
        if self._consuming.queue:
            self._consuming.wake()
        if pending.on_done is not None:
            on_done, pending.on_done = pending.on_done, None
            on_done(pending)

    def _take_aside(self, pending: Pending) -> None:
        response = self._aside.get(pending.seq)
        if response is None:
            return
        outcome = self._outcome(response, pending.framework)
        if isinstance(outcome, SystemLimit):
            raise outcome
        self._deliver(pending, outcome)
        self._end_aside()

    def _end_aside(self) -> None:
        """An answer is not aside any more: if none is, the worker may release the tensors of all that were taken."""
        worker = self.resources.worker
        if worker is not None and not self._aside:
            worker.channel.all_consumed()

    def _outcome(self, response: Response, framework: str | None) -> Result | Exception:
        """What a response means to its caller: a result, or the error to raise."""
        if response.error is not None:
            error = remote_error(response.command, response.error)
            if isinstance(error, RemoteOutOfSpace):
                self.transfer.release_free()  # so that the next request finds the room
            return error
        try:
            receive = self.transfer.receive
            return response, [] if framework is None else [receive(ref, framework) for ref in response.tensors]
        except (TRException, OSError) as error:
            return error

    def unanswered(
        self, worker: WorkerHandle, pending: Pending, timeout_s: float, *, is_sent: bool = True
    ) -> WorkerDied | ResponseTimeout | SessionNotStarted:
        """The error for a response that has not come.

        Args:
            worker: which was to respond.
            pending: the request.
            timeout_s: what the user said.
            is_sent: False if the request was not sent, because too many are under way.
        """
        self.check_own()
        if self.is_closing:
            return SessionNotStarted(f"session {self.resources.session_id!r}{CLOSED_MEANWHILE}")
        if worker.is_over() or worker.has_left():
            return self.worker_died(worker)
        before = [each for each in list(self.in_flight.values()) if each.order < pending.order or not is_sent]
        other = command_of(before[0]) if before else None if is_sent else ""
        order = pending.order - worker.sent_before if is_sent else None
        place = self.resources.advice_on_place()
        return unanswered(worker, command_of(pending), timeout_s, order=order, other=other, place=place)

    def _forget(self, pending: Pending) -> None:
        """The request was answered, or was not sent: release what it names.

        It leaves the others last. If a signal handler raises before that, its answer is dealt with once more.
        """
        others = (each.order for each in list(self.in_flight.values()) if each is not pending)
        self.transfer.release(pending, min(others, default=None))
        self._aside.pop(pending.seq, None)
        if self.in_flight.get(pending.seq) is pending:
            self.in_flight.pop(pending.seq, None)

    # -- the worker's end -----------------------------------------------------------------------------------------

    def worker_died(self, worker: WorkerHandle) -> WorkerDied | SessionNotStarted:
        """Build the error for a worker that is over. The thread that has the turn also forgets it, or what it asked.

        A worker that serves no more, whose process lives on, stays until start() or close(), which end its process.

        Args:
            worker: for which the caller waits; another thread may have forgotten it meanwhile.
        """
        self.check_own()
        if self.is_closing or self._exits:
            return SessionNotStarted(f"session {self.resources.session_id!r} was ended meanwhile")
        error = self._death_of(worker)
        if self.resources.worker is worker:
            self.exclusively(_FORGET_S, self._forget_dead, worker)
        return error

    def _forget_dead(self, worker: WorkerHandle) -> None:
        if self.resources.worker is not worker:
            return  # another thread has done it
        self._consume_rest(worker)
        if worker.lives_on:
            self._lose_requests(worker)
        else:
            self.forget_worker()

    def _consume_rest(self, worker: WorkerHandle) -> None:
        """Consume what a worker answered before its end."""
        is_there = True
        while is_there:
            worker.channel.hurry()
            is_there = self._consume_next(worker)

    def _death_of(self, worker: WorkerHandle) -> WorkerDied | SessionNotStarted:
        end = worker.how_it_ended()
        # A worker whose messages are files ends by itself when its directory is removed.
        if end.exit_code == 0 and not self.resources.has_directory():
            return self.resources.lost_directory()
        return died(worker, self.resources.session_id)

    def forget_worker(self) -> None:
        """Forget a worker that has ended. Tags stay, for the next worker, and answers, for their takers.

        WorkerDied is the outcome of a request that has no answer, also for a thread that asks when a new worker runs.
        """
        self._lose_requests(self.resources.worker)
        self.resources.forget_worker()
        self.transfer.worker_ended()

    def _lose_requests(self, worker: WorkerHandle | None) -> None:
        lost = list(self.in_flight.values())
        error = self._death_of(worker) if worker is not None and lost else None
        for pending in lost:  # before there is no worker: who asks then finds the outcome
            pending.is_lost = True
            if error is not None:
                self._deliver(pending, error)
            else:
                self._forget(pending)
        self._aside.clear()
