"""Requests in flight: how one is sent; ``answers.py`` has how it is answered. Never ends a worker.

A request is entered into ``in_flight`` before it is sent, and leaves it when its answer was consumed. One thread at a
time sends, and one at a time consumes answers.

A signal handler, or a destructor, may use the session in the middle of either. So every step can be interrupted at any
moment and be done again. A message is first looked at, then dealt with, and only then taken: code that was interrupted
in between finds that the message was taken meanwhile, and drops what it has made of it.
"""

from __future__ import annotations

from typing import Any

from ..channel.interface import Overtaken
from ..errors import Busy, OutOfSpace, SessionNotStarted
from ..protocol.commands import parse_command
from ..wire.messages import MAX_MESSAGE_SEQ
from .answers import Answers
from .pending import Pending
from .turn import get_ident
from .worker_handle import WorkerHandle

__all__ = ["Flow"]


class Flow(Answers):
    """The requests of one session.

    Args:
        resources: what the session owns; requests go to its worker.
    """

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
                not (each.is_sent or worker.channel.has_just_sent(each.seq))
                for each in list(self._storing)
                if each.seq in self.in_flight
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
                pending.is_sent = True
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
        channel = None if pending.outcome is not None or not seq or is_aside or worker is None else worker.channel
        if channel is not None and (pending.is_sent or channel.has_just_sent(seq)):
            channel.ring()  # the interrupted code may not have come to that
            return  # its answer is dropped when it comes
        self._forget(pending)
        if is_aside:
            self._end_aside()
