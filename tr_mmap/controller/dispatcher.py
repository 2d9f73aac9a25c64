"""The controller's requests to its worker, one at a time, and the results that wait to be taken.

Threads may use a dispatcher at once, and so may a signal handler in the middle of a request: see ``nesting.py``. Never
starts or ends processes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from ..channel.interface import Overtaken
from ..errors import (
    BadMessage,
    OutOfSpace,
    RemoteError,
    ResponseTimeout,
    SessionBusy,
    SessionNotStarted,
    SystemLimit,
    TRException,
    WorkerDied,
)
from ..protocol.commands import UserMessage, parse_command
from ..protocol.messages import Request, now_ms
from ..protocol.status import Status, StatusLine
from ..wire.messages import EXIT_COMMAND, MAX_MESSAGE_SEQ, RELEASE_COMMAND
from ..wire.waits import RELEASE_TIMEOUT_MS
from ..wire.words import NO_REQUEST
from .nesting import Nesting
from .options import shown_ms
from .resources import SessionResources
from .responses import Answered, Claim, awaited_claims, opened
from .results import Result
from .stats import worker_state
from .turn import get_ident
from .worker_handle import WorkerHandle

__all__ = ["TURN_WAIT_S", "Dispatcher", "StatusTest"]

_log = logging.getLogger("tr_mmap")

_RELEASE_WAIT_S: Final = RELEASE_TIMEOUT_MS / 1000
_ANSWER_NOTICE_S: Final = 1.0  # when to say that an exit waits for an answer
_END_NOTICE_S: Final = 5.0  # and that it waits for the worker's end; on a busy machine that takes a second or two
_REPEAT_EXIT_S: Final = 0.1  # how often to repeat a request to exit that the worker may overwrite
TURN_WAIT_S: Final = 10.0  # how long close() and start() wait until another thread has left its request
_SLICE_S: Final = 0.25  # longest single wait for news; news end it earlier, except where no watch thread can run

StatusTest = Callable[[StatusLine], bool]
_T = TypeVar("_T")


class Dispatcher(Nesting):
    """Requests and results of one session.

    Args:
        resources: what the session owns; requests go to its worker.
    """

    def __init__(self, resources: SessionResources) -> None:
        super().__init__(resources)
        self._seq = 0

    def has_result(self) -> bool:
        """Whether :meth:`take` would find a result at once."""
        claim, worker = self._next_claim(), self.resources.worker
        if claim is None or self.resources.is_foreign:
            return False
        if claim.outcome is not None:
            return True
        pending = self._pending
        return worker is not None and pending is not None and pending.seq == claim.seq and worker.channel.has_message()

    def is_asked(self) -> bool:
        """Whether a request was sent whose answer is not there yet; the worker's status may not say so yet."""
        pending, worker = self._pending, self.resources.worker
        if worker is None or self._held is not None:
            return False
        if pending is None:  # nor does a call on the fast path set it: such a call has the turn
            return worker.fast_path is not None and self._turn.owner != 0 and self.transfer.has_request_in_flight
        # Looked at again, because another thread may have taken the answer before the look for a message.
        return not worker.channel.has_message() and self._pending is pending

    # -- requests -------------------------------------------------------------------------------------------------

    def call(self, message: UserMessage, tensors: tuple[Any, ...], timeout_s: float, framework: str | None) -> Result:
        """Send a request and take its result; no other caller can take it.

        Args:
            message: the command, and words for it.
            tensors: for this request only; their tags follow the words.
            timeout_s: how long this may take in all, in seconds; infinity for no limit.
            framework: of the result's tensors; None to receive none.

        Returns:
            The response and its tensors.

        Raises:
            BadMessage: there is no command in the message.
            UnsupportedTensor, OutOfSpace: of the tensors to send.
            RemoteError, ResponseTimeout, WorkerDied: there is no result.
        """
        # The steps of in_turn() and the fast path, written out with few calls, because most requests come this way.
        turn, me, left_s = self._turn, get_ident(), timeout_s
        is_nested = turn.owner == me
        outer, suspended = self._current, None
        try:
            if is_nested or turn.owner or turn.queue:
                deadline_s = time.monotonic() + timeout_s
                suspended = self._enter(is_nested, deadline_s, timeout_s, message)
                left_s = max(0.0, deadline_s - time.monotonic())
            else:
                turn.owner = me
            worker, transfer = self.resources.worker, self.transfer
            fast_path = None if worker is None else worker.fast_path  # does nothing in a forked child
            if (
                fast_path is None
                or self._pending is not None
                or transfer.unannounced
                or not (framework is None or (framework == "numpy" and transfer.has_quick_views))
                or self._exits
            ):
                deadline_s = time.monotonic() + left_s
                pending = self._send(message, tensors, deadline_s, timeout_s, framework, may_use_fast_path=True)
                return self._await(pending, deadline_s, timeout_s, framework)
            self._seq = seq = self._seq % MAX_MESSAGE_SEQ + 1
            self._current = seq, message, framework, False
            # Set before the call, because a signal handler may send and drop tags during it.
            transfer.has_request_in_flight = True
            try:
                result = fast_path.call(seq, message, tensors, left_s)
            except BaseException:  # Ctrl-C too
                if self.resources.is_foreign:  # a signal handler has forked, and raised in the child
                    raise
                if fast_path.sent_seq == seq and self.resources.worker is worker:
                    self._begin(Request(seq, *parse_command(message)), is_private=True)
                else:
                    transfer.withdraw()
                raise
            if result:
                self._pending = self._current = None
                transfer.has_request_in_flight = False
                return result
            deadline_s = fast_path.until_s
            if result is None:  # the time is over, or the response needs the slow path
                self._check_same(worker, seq)
                pending = self._begin(Request(seq, *parse_command(message)), is_private=True)
            else:
                transfer.withdraw()  # nothing was sent
                pending = self._send(message, tensors, deadline_s, timeout_s, framework, may_use_fast_path=False)
            return self._await(pending, deadline_s, timeout_s, framework)
        except BaseException:
            if not is_nested and turn.owner == me:
                self._end_interrupted()
            raise
        finally:
            if is_nested:
                self._current = outer
                if suspended:
                    self.transfer.resume(suspended)
            elif turn.owner == me:  # else it did not get the turn
                self._current = None
                if self._answered or self._interrupted:
                    self._answers, self._answered, self._interrupted = {}, set(), {}
                turn.owner = 0
            if turn.queue:
                turn.wake()

    def send(self, message: UserMessage, timeout_s: float) -> None:
        """Send a request. Waits first for the response to an earlier one; its result can still be taken.

        Args:
            message: the command, and words for it.
            timeout_s: how long this may take in all, in seconds.

        Raises:
            BadMessage: there is no command in the message.
            ResponseTimeout: there is no response to the earlier request.
            WorkerDied: the worker ended.
        """
        deadline_s = time.monotonic() + timeout_s
        self.in_turn(deadline_s, timeout_s, message, self._send_public, message, deadline_s, timeout_s)
        self.notify()

    def _send_public(self, message: UserMessage, deadline_s: float, timeout_s: float) -> None:
        self._drop_given_up()
        self._send(message, (), deadline_s, timeout_s, self._framework, may_use_fast_path=True, is_public=True)

    def _send(
        self,
        message: UserMessage,
        tensors: tuple[Any, ...],
        deadline_s: float,
        timeout_s: float,
        framework: str | None,
        *,
        may_use_fast_path: bool,
        is_public: bool = False,
    ) -> Request:
        """Send a request.

        Args:
            message: the command, and words for it.
            tensors: for this request only.
            deadline_s: until when to wait for the response to an earlier one, by the monotonic clock.
            timeout_s: what the user said.
            framework: of the result's tensors.
            may_use_fast_path: whether the fast path is worth a try.
            is_public: whether any thread may take the result, or the caller alone.
        """
        command, parameters = parse_command(message)
        worker = self.worker()
        if self._pending is not None:
            try:
                self._settle(deadline_s, timeout_s)
            except ResponseTimeout:
                raise self._unanswered(worker, command, timeout_s, is_sent=False) from None
            except SystemLimit as error:
                raise SystemLimit(
                    f"{command!r} was not sent, because the tensors of the answer to an earlier request cannot be "
                    f"received now, and can be taken later: {error}",
                    limit=error.limit,
                    code=error.errno or 0,
                ) from error
        if worker.is_over():
            raise self.worker_died(worker)
        transfer, fast_path = self.transfer, worker.fast_path
        has_asked_for_room = False
        while True:
            self.check_own()
            if self._exits:
                raise SessionNotStarted(
                    f"session {self.resources.session_id!r} is about to end: please_exit() was called"
                )
            self._seq = seq = self._seq % MAX_MESSAGE_SEQ + 1
            self._current = seq, message, framework, is_public
            try:
                if may_use_fast_path and fast_path is not None and not transfer.unannounced:
                    # Set before sending: once the request is sent, another thread may send one of its tags again.
                    transfer.has_request_in_flight = True
                    if fast_path.send(seq, message, tensors):
                        request = Request(seq, command, parameters)
                        break
                    transfer.has_request_in_flight = False
                request = transfer.prepare(seq, command, parameters, tensors, deadline_s)
                self.check_own()  # a signal handler may have forked meanwhile
                if self._seq == seq:
                    worker.channel.send(request, deadline_s, worker.is_over)
                    if is_public:
                        worker.channel.show()
                    break
                transfer.withdraw()  # a signal handler has sent a request meanwhile, and may have changed tags
            except Overtaken:  # it has done so a moment later
                transfer.withdraw()
            except OutOfSpace as error:
                self.check_own()
                transfer.withdraw()
                if worker.is_over():  # which ends a wait for room
                    raise self.worker_died(worker) from None
                if has_asked_for_room or not self._ask_for_room(worker, error, deadline_s):
                    raise
                has_asked_for_room = True
            except BaseException as error:
                if self.resources.is_foreign:
                    if isinstance(error, TRException | OSError):  # what a fork in the middle of a step leads to
                        self.check_own()
                    raise  # raised by a signal handler itself, with sys.exit() say
                self._note_if_sent(worker, seq, message)  # its response will come, though no caller waits for it
                raise
        self._check_same(worker, seq)
        return self._begin(request, is_private=not is_public)

    def with_room(self, action: Callable[..., _T], *arguments: Any) -> _T:
        """Call a function that needs memory. If there is no room, let the worker make some, and call it again.

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
                if not self._make_room(error):
                    raise
                return action(*arguments)
        except OutOfSpace as error:
            if error.is_budget and worker is not None and worker.is_over():  # its end has ended the wait for room
                raise self.worker_died(worker) from None
            raise

    def _make_room(self, error: OutOfSpace) -> bool:
        """Let the worker give up the memory that it keeps for later results, if no request is under way.

        Args:
            error: says what there was no room for.

        Returns:
            Whether it did; then another try may succeed.
        """
        worker, turn = self.resources.worker, self._turn
        if worker is None or turn.owner or turn.queue:
            return False
        deadline_s = time.monotonic() + _RELEASE_WAIT_S
        try:
            return self.in_turn(
                deadline_s, _RELEASE_WAIT_S, RELEASE_COMMAND, self._ask_for_room, worker, error, deadline_s
            )
        except (ResponseTimeout, WorkerDied):
            return False  # another thread was faster; or the worker has ended

    def _ask_for_room(self, worker: WorkerHandle, error: OutOfSpace, deadline_s: float) -> bool:
        """As :meth:`_make_room`, in the turn."""
        if error.is_budget or not self.transfer.keeps_memory or self._pending is not None:
            return False
        if self.resources.worker is not worker or not worker.channel.read_status().status.is_waiting:
            return False  # it has no results yet, or somebody's request by hand is under way
        deadline_s = min(deadline_s, time.monotonic() + _RELEASE_WAIT_S)
        self.transfer.collect()
        self._seq = seq = self._seq % MAX_MESSAGE_SEQ + 1
        self._current = seq, RELEASE_COMMAND, None, False
        request = Request(seq, RELEASE_COMMAND, timestamp=now_ms())  # without tags, so that it is short
        try:
            worker.channel.send(request, deadline_s, worker.is_over)
            self._check_same(worker, seq)
            self._await(self._begin(request, is_private=True), deadline_s, _RELEASE_WAIT_S, None)
        except (Overtaken, OutOfSpace, ResponseTimeout, RemoteError):  # RemoteError: a worker of an earlier version
            return False
        return True

    def _check_same(self, worker: WorkerHandle | None, seq: int) -> None:
        """Refuse to wait for a response of a worker that a signal handler has ended meanwhile."""
        if worker is not None and self.resources.worker is not worker and seq not in self._answered:
            raise self.worker_died(worker)

    def request_exit(self, timeout_s: float) -> bool:
        """Send the request to exit, and return whether the worker ended in time.

        The worker answers a request under way first. If it does not do so in time, the request to exit is sent all the
        same, but it never overwrites a request that the worker has not taken. If this takes long, a line of the log
        says why.
        """
        worker = self.worker()
        if not worker.process.is_alive() or worker.is_over():
            return not worker.lives_on or worker.process.wait(timeout_s)
        began_s = time.monotonic()
        deadline_s = began_s + timeout_s
        notice_s = min(began_s + _END_NOTICE_S, deadline_s)
        exiting, has_ended = object(), False
        self._exits.add(exiting)  # requests that wait for their turn are not sent any more
        try:
            stands: bool | None
            try:
                answer_s = min(began_s + _ANSWER_NOTICE_S, deadline_s)
                stands = self._send_exit_in_turn(worker, answer_s, deadline_s, timeout_s)
            except (ResponseTimeout, SessionBusy):
                stands = None
            if stands is None and answer_s < deadline_s:
                self._give_notice_of_exit(worker, deadline_s)
                notice_s = deadline_s
                try:
                    stands = self._send_exit_in_turn(worker, deadline_s, deadline_s, timeout_s)
                except (ResponseTimeout, SessionBusy):
                    pass
            if stands is None:
                stands = self._exit_anyway(worker, deadline_s)
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

    def _give_notice_of_exit(self, worker: WorkerHandle, deadline_s: float) -> None:
        """Say what this wait is for: at the end of a ``with`` block it looks like a hang."""
        pending, left_s = self._pending, deadline_s - time.monotonic()
        _log.warning(
            "session %r is to end: waiting %s until its worker has %s; %s; terminate() ends it at once",
            self.resources.session_id,
            f"up to {left_s:.0f} s more" if left_s < math.inf else "without a limit",
            "ended" if pending is None else f"answered {pending.command!r}",
            worker_state(worker),
        )

    def _send_exit_in_turn(self, worker: WorkerHandle, answer_s: float, deadline_s: float, timeout_s: float) -> bool:
        """Send the request to exit when it is its turn; an answer before it must come until ``answer_s``."""
        arguments = worker, answer_s, deadline_s, timeout_s
        return self.in_turn(answer_s, timeout_s, EXIT_COMMAND, self._send_exit, *arguments)

    def _send_exit(self, worker: WorkerHandle, answer_s: float, deadline_s: float, timeout_s: float) -> bool:
        """Send the request to exit. Returns whether the worker cannot overwrite it; it may still be starting."""
        try:
            self._settle(answer_s, timeout_s)
        except SystemLimit:
            pass  # the response is there, so the worker has taken the request
        return self._store_exit(worker, deadline_s)

    def _store_exit(self, worker: WorkerHandle, deadline_s: float) -> bool:
        self._seq = seq = self._seq % MAX_MESSAGE_SEQ + 1
        request = Request(seq=seq, command=EXIT_COMMAND, timestamp=now_ms())
        try:
            return worker.channel.request_exit(request, deadline_s, worker.is_over)
        except (Overtaken, ResponseTimeout):
            return False

    def _exit_anyway(self, worker: WorkerHandle, deadline_s: float) -> bool:
        """Ask the worker to exit while a request is under way. Returns False if this must be repeated."""
        status = worker.channel.read_status().status
        if worker.channel.is_taken_up():  # the worker has taken that request, so this one does not take its place
            return self._store_exit(worker, deadline_s)
        if not status.is_ending and not self.resources.options.auth:  # with auth the worker believes no status
            worker.channel.write_status(Status.EXIT)
        worker.channel.ring()
        return False

    # -- results --------------------------------------------------------------------------------------------------

    def _settle(self, deadline_s: float, timeout_s: float) -> None:
        """Wait for the response to the pending request, and keep its result for the caller that will take it.

        Raises:
            ResponseTimeout: there is no response in time.
            WorkerDied: the worker ended.
            SystemLimit: the tensors cannot be received now; the response can still be taken later.
        """
        pending = self._pending
        if pending is None:
            return
        claim = None if self._is_private else self._claim_of(pending.seq)
        framework = None if claim is None else self._framework
        # A signal handler that uses the session now takes this response first, and knows by this that there is one.
        self._current = pending.seq, pending.command, framework, claim is not None
        try:
            # Now, because after the next request the worker may reuse the segment of a result that has no view.
            outcome = self._await_outcome(pending, deadline_s, timeout_s, framework, claim)
            if isinstance(outcome, SystemLimit):
                raise outcome
        except Answered:
            return
        except BadMessage as error:
            if claim is not None:
                claim.outcome = error  # it is the error of that request, not of the next one
        self._wake_takers()

    def keep_answer(self) -> None:
        """Take the answer that a worker has left before its end, for its taker. In the turn."""
        try:
            self._settle(time.monotonic(), 0.0)
        except TRException:
            pass  # there is none

    def take(
        self,
        timeout_s: float,
        *,
        has_tensors: bool,
        worker: WorkerHandle | None = None,
        deadline_s: float | None = None,
    ) -> Result:
        """Take the oldest result of this thread's requests; if it has made none, the oldest one of any thread's.

        In a signal handler, this leaves the result for which the interrupted call waits to that call. If there is no
        request at all, waits for one that another thread may send.

        Args:
            timeout_s: how long to wait, in seconds.
            has_tensors: whether to receive the tensors.
            worker: the one that ran when the caller began to wait; None to look for it now.
            deadline_s: when to stop, by the monotonic clock, if the caller has begun to wait already.

        Raises:
            SessionNotStarted: there is no worker, or the session was closed meanwhile.
            RemoteError, ResponseTimeout, WorkerDied: there is no result.
        """
        deadline_s = time.monotonic() + timeout_s if deadline_s is None else deadline_s
        # Wait for this worker only. Another thread that notices its death forgets it, and stores WorkerDied in claims.
        if worker is None:
            worker = self.resources.worker if not self.is_closing and self._has_outcome() else self.worker()
        awaited = awaited_claims()
        outer_count = len(awaited)
        try:
            while True:
                # Keep the claim for which this call waits already: a signal handler may have put another one before it.
                claim = awaited[-1] if len(awaited) > outer_count else None
                if claim is None or claim not in self._claims:
                    del awaited[outer_count:]
                    claim = self._next_claim()
                if claim is None:
                    self._wait_for_request(worker or self.worker(), deadline_s, timeout_s)
                    continue
                awaited[outer_count:] = (claim,)
                if claim.outcome is None and worker is None:  # another thread was faster
                    worker = self.worker()
                found = self._take(claim, deadline_s, timeout_s, has_tensors)
                if found is not None:
                    return found
        finally:
            del awaited[outer_count:]  # no call comes before this, so no signal handler can

    def _wait_for_request(self, worker: WorkerHandle, deadline_s: float, timeout_s: float) -> None:
        """Wait a little for a request that another thread may send."""
        if worker.is_over():
            raise self.worker_died(worker)
        remaining_s = deadline_s - time.monotonic()
        if remaining_s <= 0:
            state = worker_state(worker)
            raise ResponseTimeout(
                f"{NO_REQUEST}{shown_ms(timeout_s * 1000)} ms; call send_request first",
                timeout_ms=timeout_s * 1000,
                command="",
                pid=state.pid,
                state=state.process,
                last_moved_ms=state.last_moved_ms,
            )
        self._news.wait(min(remaining_s, _SLICE_S), partial(self._has_news, worker))

    def _take(self, claim: Claim, deadline_s: float, timeout_s: float, has_tensors: bool) -> Result | None:
        """The result that a claim is for; None if there is none yet, or another thread has it."""
        if claim.outcome is not None:
            return opened(claim.outcome) if self._give_up_claim(claim) else None
        try:
            return self.in_turn(
                deadline_s,
                timeout_s,
                "",
                self._take_pending,
                claim,
                deadline_s,
                timeout_s,
                has_tensors,
                claim=claim,
            )
        except Answered:
            return None  # another thread has received it, for its own next request
        except WorkerDied:
            self._give_up_claim(claim)  # its taker gets the error here
            raise
        except ResponseTimeout:
            if claim.outcome is None:
                raise
            return None

    def _has_outcome(self) -> bool:
        claim = self._next_claim()
        return claim is not None and claim.outcome is not None and not self.resources.is_foreign

    def _has_news(self, worker: WorkerHandle) -> bool:
        return self.has_claim() or self.is_closing or worker.is_over()

    def _take_pending(self, claim: Claim, deadline_s: float, timeout_s: float, has_tensors: bool) -> Result | None:
        """The result of the request under way; None if it was taken meanwhile, or the claim has an outcome by now."""
        pending = self._pending
        if claim.outcome is not None:
            return None
        if pending is None or pending.seq != claim.seq:  # it was taken, or an exception came while it was received
            self._give_up_claim(claim)
            return None
        framework = self._framework if has_tensors else None
        self._current = pending.seq, pending.command, framework, True
        try:
            return self._await(pending, deadline_s, timeout_s, framework)
        except Answered:
            return None
        finally:
            if self._pending is not pending and claim.outcome is None:
                self._give_up_claim(claim)

    def wait_status(self, until: StatusTest, timeout_s: float, *, of_request: bool) -> StatusLine | None:
        """Wait for a status; None when the time is over.

        Args:
            until: tells whether a status is the one.
            timeout_s: how long to wait, in seconds.
            of_request: whether to wait first for the response to the request in flight, so that the status is not that
                of an earlier request.

        Raises:
            WorkerDied: the worker ended.
            SessionNotStarted: there is no worker, or the session was closed meanwhile.
        """
        worker = self.worker()
        deadline_s = time.monotonic() + timeout_s
        if of_request and (self._pending is not None or self._turn.owner):
            try:
                self.in_turn(deadline_s, timeout_s, "", self._settle, deadline_s, timeout_s)
            except ResponseTimeout:
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
        self.closers += 1
        worker = self.resources.worker
        try:
            self._end_waits(worker)
        finally:
            self.closers -= 1  # is_closing stays True: by that, start() recognises an interrupted close()

    def _end_waits(self, worker: WorkerHandle | None) -> None:
        try:
            if worker is not None:
                worker.give_up()  # the thread that has the turn gives it back
            self.notify()
        finally:
            if not self.resources.is_foreign:  # a signal handler may have forked meanwhile
                self._close_in_turn(worker)

    def _close_in_turn(self, worker: WorkerHandle | None) -> None:
        try:
            self.in_turn(time.monotonic() + TURN_WAIT_S, TURN_WAIT_S, None, self._close)
        except SessionBusy:  # that thread may wait for this one
            if worker is not None:
                worker.process.terminate_tree()
            raise

    def _close(self) -> None:
        answered = [each for each in self._claims if each.seq in self._answered]
        try:
            self.forget()
            self._claims.extend(answered)  # a call that this one interrupts waits for it
        finally:  # whatever else fails, the worker is ended
            self.resources.release()
