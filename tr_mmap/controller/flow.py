"""Requests in flight: how one is sent, and how the answers reach those who wait for them. Never ends a worker.

A request is entered into ``in_flight`` before it is sent, and leaves it when its answer was consumed. One thread at a
time sends, and one at a time consumes answers: whoever waits for an answer takes that role if it is free, and then
consumes the answers to the requests of all threads, until its own is there.

A signal handler, or a destructor, may use the session in the middle of either. So every step can be interrupted at any
moment and be done again. A message is first looked at, then dealt with, and only then taken: code that was interrupted
in between finds that the message was taken meanwhile, and drops what it has made of it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from ..base.wakes import Wakes
from ..channel.interface import Channel, Overtaken
from ..errors import (
    BadMessage,
    Busy,
    OutOfSpace,
    RemoteOutOfSpace,
    ResponseTimeout,
    SessionNotStarted,
    SystemLimit,
    TRException,
    WorkerDied,
)
from ..native import Counters
from ..protocol.commands import parse_command
from ..protocol.messages import Response
from ..wire.messages import MAX_MESSAGE_SEQ
from ..wire.words import CLOSED_MEANWHILE, NO_WORKER, OF_PARENT
from .failures import died, unanswered
from .fast_path import Traffic
from .pending import Pending, command_of, opened
from .progress import ProgressWatch
from .resources import SessionResources
from .results import Result, remote_error
from .turn import Turn, get_ident
from .worker_handle import WorkerHandle

__all__ = ["Flow"]

_FORGET_S: Final = 1.0  # for a thread in the middle of a request to a dead worker to notice it too
_COLLECT_S: Final = 0.02  # how often to release the leases of views that have ended, while a worker may wait for them
_T = TypeVar("_T")


class Flow:
    """The requests of one session.

    Args:
        resources: what the session owns; requests go to its worker.

    Attributes:
        in_flight: the requests that were sent, or are being sent, and whose answers were not consumed, by number.
        progress: tells callers how far their requests are.
    """

    def __init__(self, resources: SessionResources) -> None:
        self.resources = resources
        self.transfer = resources.transfer
        self.in_flight: dict[int, Pending] = {}
        self._counters = Counters()
        self._counters.limit = resources.options.max_in_flight
        self.is_closing = False
        self.closers = 0  # calls of close() that have not returned
        self.transfer.has_request_in_flight = lambda: bool(self.in_flight)
        # Also of those that another thread is about to send: they may name what a tag has just left.
        self.transfer.next_order = lambda: 1 + max((each.order for each in list(self.in_flight.values())), default=-1)
        self.transfer.fast_holds = lambda: [each.held for each in list(self.in_flight.values()) if each.held]
        self._sending = Turn()
        self._consuming = Turn()
        self._aside: dict[int, Response] = {}  # answers whose tensors could not be mapped at a limit of the system
        resources.traffic = Traffic(
            self._sending,
            self._consuming,
            self.in_flight,
            self.transfer.unannounced,
            self.transfer.left,
            self._aside,
            self._counters,
        )
        self.progress = ProgressWatch(resources.directory, self._counters)
        self._news = Wakes()  # a public request was sent, the worker ended, or the session is closed
        self._storing: list[Pending] = []  # that are being sent, the one of an interrupted call first
        self._exits: set[object] = set()  # calls that ask the worker to exit: no further request is sent
        self._claims: deque[Pending] = deque()  # requests whose results any thread may take, in the order of sending

    def worker(self) -> WorkerHandle:
        """The running worker.

        Raises:
            SessionNotStarted: there is none, or this process is a forked child of the session's.
        """
        worker = self.resources.worker
        self.check_own()
        if worker is None or self.is_closing:
            raise SessionNotStarted(f"session {self.resources.session_id!r}{NO_WORKER}, or use it as a context manager")
        return worker

    def check_own(self) -> None:
        """Refuse to work in a forked child of the session's process.

        Raises:
            SessionNotStarted: this process is such a child.
        """
        if self.resources.is_foreign:
            raise SessionNotStarted(f"session {self.resources.session_id!r}{OF_PARENT}")

    def in_turn(
        self,
        turn: Turn,
        deadline_s: float,
        action: Callable[..., _T],
        *arguments: Any,
        is_in_vain: Callable[[], bool] = lambda: False,
        default: _T | None = None,
    ) -> _T | None:
        """Call a function in one of the two turns.

        Args:
            turn: which.
            deadline_s: until when to wait for it, by the monotonic clock.
            action: the function.
            *arguments: its arguments.
            is_in_vain: whether the turn is needed no more.
            default: what is returned if this has not had the turn.
        """
        me = get_ident()
        is_nested = turn.owner == me
        try:
            if not is_nested:
                if (turn.owner or turn.queue) and not turn.wait(deadline_s, is_in_vain):
                    self.check_own()
                    return default
                turn.owner = me
            return action(*arguments)
        finally:
            if not is_nested and turn.owner == me:
                turn.owner = 0
            if turn.queue or turn.on_free is not None:
                turn.wake()

    # -- sending --------------------------------------------------------------------------------------------------

    def send(
        self,
        pending: Pending,
        tensors: tuple[Any, ...],
        deadline_s: float,
        timeout_s: float,
        *,
        is_public: bool = False,
        may_ask_for_room: bool = True,
        is_quiet: bool = False,
    ) -> None:
        """Send a request, as soon as there is room for one more. After an exception call :meth:`abandon`.

        Args:
            pending: the request.
            tensors: for this request only.
            deadline_s: how long to wait for room, by the monotonic clock.
            timeout_s: what the user said.
            is_public: whether any thread may take the result, or the caller alone.
            may_ask_for_room: whether the worker may be asked to give up memory that it keeps.
            is_quiet: whether the worker need not be woken: the caller does that soon.
        """
        worker = self.worker()
        if worker.fast_path is not None and worker.fast_path.send(pending, tensors, is_quiet):
            if is_public:
                self._claims.append(pending)
                worker.channel.show()
            return
        self._admit(worker, pending, deadline_s, timeout_s)
        arguments = worker, pending, tensors, deadline_s, is_public
        while True:
            if worker.is_over():
                raise self.worker_died(worker)
            try:
                if worker.channel.capacity == 1:
                    # Answers may have no numbers, and tensors no names of their own: so nobody else sends or consumes.
                    is_sent = self.exclusively_until(deadline_s, self._store_whole, *arguments)
                else:
                    is_sent = self._prepare_and_store(*arguments, timeout_s)
            except OutOfSpace as error:
                self.check_own()
                if worker.is_over():  # which ends a wait for room
                    raise self.worker_died(worker) from None
                if not may_ask_for_room or not self._ask_for_room(worker, error, deadline_s):
                    raise
                may_ask_for_room = False
                continue
            if is_sent:
                return
            if is_sent is None:  # the turn was not had in time
                raise self.unanswered(worker, pending, timeout_s, is_sent=False)
            self._admit(worker, pending, deadline_s, timeout_s)  # another thread has sent one meanwhile

    def _prepare_and_store(
        self,
        worker: WorkerHandle,
        pending: Pending,
        tensors: tuple[Any, ...],
        deadline_s: float,
        is_public: bool,
        timeout_s: float,
    ) -> bool | None:
        """Publish a request's tensors, and send it in the turn; see :meth:`_store`. None if the turn was not had."""
        draft = self.transfer.prepare(pending, *parse_command(pending.message), tensors, deadline_s)
        while True:
            is_sent = self._in_turn_to_send(deadline_s, self._store, worker, pending, draft, deadline_s, is_public)
            if is_sent is not False:
                return is_sent
            self._admit(worker, pending, deadline_s, timeout_s)

    def _store_whole(
        self, worker: WorkerHandle, pending: Pending, tensors: tuple[Any, ...], deadline_s: float, is_public: bool
    ) -> bool:
        """The same in both turns; False if there is no room for it any more."""
        if not self._has_room(worker):
            return False
        draft = self.transfer.prepare(pending, *parse_command(pending.message), tensors, deadline_s)
        return self._store(worker, pending, draft, deadline_s, is_public)

    def _in_turn_to_send(self, deadline_s: float, action: Callable[..., _T], *arguments: Any) -> _T | None:
        return self.in_turn(self._sending, deadline_s, action, *arguments)

    def _ask_for_room(self, worker: WorkerHandle, error: OutOfSpace, deadline_s: float) -> bool:
        """Let the worker give up memory that it keeps. Returns whether it has; then another try may succeed."""
        raise NotImplementedError

    def _admit(self, worker: WorkerHandle, pending: Pending, deadline_s: float, timeout_s: float) -> None:
        """Wait until one more request may be in flight."""
        if self._has_room(worker):
            return
        if self.resources.options.at_limit == "fail":
            self.poll()
            if self._has_room(worker):
                return
            limit = self._limit(worker)
            raise Busy(
                f"{limit} requests of session {self.resources.session_id!r} are in flight, as many as it may have "
                "(max_in_flight); wait for one of them, or let it wait (at_limit='block')",
                limit=limit,
            )
        self._consume_until(worker, lambda: self._has_room(worker), deadline_s)
        if not self._has_room(worker):
            raise self.unanswered(worker, pending, timeout_s, is_sent=False)

    def _limit(self, worker: WorkerHandle) -> int:
        return min(worker.channel.capacity, self.resources.options.max_in_flight)

    def _has_room(self, worker: WorkerHandle) -> bool:
        """Whether one more request may be in flight."""
        count, limit = len(self.in_flight), self._limit(worker)
        if count >= limit and self._sending.owner == get_ident():
            # A signal handler asks in the middle of a send: what is not sent yet goes after the request of the handler.
            count -= sum(
                not worker.channel.is_sent(each.seq) for each in list(self._storing) if each.seq in self.in_flight
            )
        return count < limit

    def _store(self, worker: WorkerHandle, pending: Pending, draft: Any, deadline_s: float, is_public: bool) -> bool:
        """Send it, in the turn; False if there is no room for it any more."""
        try:
            self._storing.append(pending)
            return self._store_it(worker, pending, draft, deadline_s, is_public)
        finally:
            self._storing.remove(pending)

    def _store_it(self, worker: WorkerHandle, pending: Pending, draft: Any, deadline_s: float, is_public: bool) -> bool:
        channel = worker.channel
        while True:
            self.check_own()
            if self._exits:
                raise SessionNotStarted(
                    f"session {self.resources.session_id!r} is about to end: please_exit() was called"
                )
            if self.resources.worker is not worker or worker.is_over():
                raise self.worker_died(worker)
            if not self._has_room(worker):
                return False
            counters = self._counters
            counters.seq = seq = counters.seq % MAX_MESSAGE_SEQ + 1
            if seq in self.in_flight:  # one that was sent before the numbers began again
                continue
            place = channel.requests_sent
            # The place in the ring: an exception may have kept an earlier request from being counted.
            pending.seq, pending.order = seq, counters.sent if place is None else worker.sent_before + place
            self.in_flight[seq] = pending
            if is_public and pending not in self._claims:
                self._claims.append(pending)
            request = self.transfer.request(seq, draft)
            try:
                channel.send(request, deadline_s, worker.is_over)
                break
            except Overtaken:  # a signal handler has sent a request meanwhile, and may have changed tags
                self.check_own()
                self.in_flight.pop(seq, None)
        if counters.sent <= pending.order:  # no call here: a signal handler may have sent and counted more meanwhile
            counters.sent = pending.order + 1
        self.transfer.sent(pending, request)
        if is_public:
            channel.show()
        return True

    def abandon(self, pending: Pending) -> None:
        """No caller waits for the request any more: an exception has ended its call, perhaps before it was sent."""
        if self.resources.is_foreign:
            return
        self.progress.remove(pending)
        pending.is_abandoned = True
        worker, seq = self.resources.worker, pending.seq
        is_aside = seq in self._aside
        if pending.outcome is None and seq and not is_aside and worker is not None and worker.channel.is_sent(seq):
            worker.channel.ring()  # the interrupted code may not have come to that
            return  # its answer is dropped when it comes
        self._forget(pending)
        if is_aside:
            self._end_aside()

    def _forget(self, pending: Pending) -> None:
        """The request was answered, or was not sent: release what it names."""
        if self.in_flight.get(pending.seq) is pending:
            self.in_flight.pop(pending.seq, None)
        self._aside.pop(pending.seq, None)
        self.transfer.release(pending, min((each.order for each in list(self.in_flight.values())), default=None))

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

    def poll(self) -> None:
        """Consume the answers that are there, unless another thread does."""
        worker = self.resources.worker
        if worker is None or self.resources.is_foreign or not self.in_flight:
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

    def exclusively(self, timeout_s: float, action: Callable[..., _T], *arguments: Any) -> _T | None:
        """Call a function while no other thread sends or consumes. None if that could not be had in time."""
        return self.exclusively_until(time.monotonic() + timeout_s, action, *arguments)

    def exclusively_until(self, deadline_s: float, action: Callable[..., _T], *arguments: Any) -> _T | None:
        """The same, until the monotonic clock says so."""
        return self.in_turn(self._consuming, deadline_s, self._in_turn_to_send, deadline_s, action, *arguments)
