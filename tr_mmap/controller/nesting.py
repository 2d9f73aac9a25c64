"""Who has the turn, and what a call does first when it interrupts another call of its thread. Sends no request.

:class:`Turn` says which thread may have a request under way. A signal handler or a destructor may use the session in
the middle of a request of the same thread. Then the interrupted request gets its response first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import BadMessage, ResponseTimeout, SessionBusy, SystemLimit
from ..protocol.commands import UserMessage, parse_command
from ..protocol.messages import Request
from .responses import Answered, Claim, Responses
from .turn import get_ident
from .worker_handle import WorkerHandle

__all__ = ["Nesting"]

_T = TypeVar("_T")


class Nesting(Responses):
    """See the module's docstring.

    Args:
        resources: what the session owns.
    """

    def in_turn(
        self,
        deadline_s: float,
        timeout_s: float,
        message: UserMessage | None,
        action: Callable[..., _T],
        *arguments: Any,
        claim: Claim | None = None,
    ) -> _T:
        """Call a function while no other thread has a request under way.

        Args:
            deadline_s: until when to wait for that, by the monotonic clock.
            timeout_s: what the user said.
            message: what the function may send, "" if that is unknown; a request that this call interrupts is answered
                first. None if the function sends nothing and waits for nothing.
            action: the function.
            *arguments: its arguments.
            claim: what the caller waits for; another thread may receive its outcome meanwhile.

        Raises:
            Answered: another thread has received the outcome of ``claim``.
            ResponseTimeout: another thread's request was not answered in time.
            SessionBusy: the same, if ``message`` is None.
            WorkerDied: the worker ended meanwhile.
            SessionNotStarted: this process is a forked child, or the session was closed.
        """
        turn, me = self._turn, get_ident()
        is_nested = turn.owner == me
        outer, suspended = self._current, None
        try:
            if is_nested or turn.owner or turn.queue:
                suspended = self._enter(is_nested, deadline_s, timeout_s, message, claim)
            else:
                turn.owner = me
            return action(*arguments)
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

    def _enter(
        self,
        is_nested: bool,
        deadline_s: float,
        timeout_s: float,
        message: UserMessage | None,
        claim: Claim | None = None,
    ) -> Any:
        """Wait for the turn; or, in a call that interrupts another one of this thread, answer that one first.

        Returns:
            What the interrupted call has in flight, for ``transfer.resume``; None if nothing was interrupted.
        """
        self.check_own()  # first: in a forked child the thread that has the turn does not exist
        if not is_nested:
            self._wait_for_turn(deadline_s, timeout_s, message, claim)
            return None
        if message is None:
            return None
        worker, taken = self.worker(), self._taken
        if worker.fast_path is not None and worker.fast_path.is_receiving:
            raise SessionBusy("the interrupted code is taking a response of this session at this moment; ask later")
        if taken is not None and taken.outcome is None:
            # Received now, because the worker may reuse the segments for its next results.
            outcome = self._outcome(taken.response, taken.framework)
            if taken.outcome is None:  # else a handler that has interrupted this one was faster
                taken.outcome = outcome
                if taken.claim is not None and not isinstance(outcome, SystemLimit):
                    taken.claim.outcome = outcome
        current = self._current
        # What was taken may be of an outer call, which the interrupted one has interrupted itself.
        if current is not None and (taken is None or taken.response.seq != current[0]):
            try:
                self._answer_interrupted(worker, *current, deadline_s, timeout_s)
            except ResponseTimeout:
                raise self._unanswered(worker, _command_of(message), timeout_s, is_sent=False) from None
        return self.transfer.suspend()

    def _wait_for_turn(
        self, deadline_s: float, timeout_s: float, message: UserMessage | None, claim: Claim | None
    ) -> None:
        worker = self.resources.worker
        has_turn = self._turn.wait(deadline_s, lambda: claim is not None and claim.outcome is not None)
        self.check_own()  # a signal handler may have forked meanwhile
        if not has_turn:
            if claim is not None and claim.outcome is not None:
                raise Answered
            if message is None:
                raise SessionBusy(
                    f"a thread has been in the middle of a request of session {self.resources.session_id!r} for "
                    f"{timeout_s:.0f} s, and does not end it; call this method again when it has"
                )
            raise self._unanswered(worker or self.worker(), _command_of(message), timeout_s, is_sent=False)
        if worker is None or message is None:
            return
        if self.resources.worker is None:  # the thread that had the turn found it dead, and has forgotten it
            raise self.worker_died(worker)

    def _answer_interrupted(
        self,
        worker: WorkerHandle,
        seq: int,
        message: UserMessage,
        framework: str | None,
        is_public: bool,
        deadline_s: float,
        timeout_s: float,
    ) -> None:
        """Take the response to the request that this call interrupts, for the code that goes on with it later."""
        pending = self._pending
        if pending is None or pending.seq != seq:
            if seq in self._answered:
                return
            if not self._is_sent(worker, seq):
                self._interrupted[seq] = (self._framework if is_public else framework), is_public
                return
            pending = self._begin(Request(seq, *parse_command(message)), is_private=True)
        worker.channel.put_back()  # the interrupted code may have taken the message, and not have looked at it yet
        try:
            worker.channel.ring()  # the interrupted code may not have come to that
            outcome = self._await_outcome(pending, deadline_s, timeout_s, self._framework if is_public else framework)
            self._keep(seq, outcome, is_public)
        except Answered:
            return
        except BadMessage:
            raise  # there will be no other response
        except BaseException:
            # The handler may catch this. Then the interrupted code goes on, and takes the response itself.
            if self._pending is None and seq not in self._answered and not worker.is_over():
                self._pending = pending
                worker.channel.put_back()
            raise

    def _end_interrupted(self) -> None:
        """Note the request of a call that an exception ends, if it was sent; else withdraw it.

        A signal handler's exception may come after the request was sent, or its response taken, and before that was
        noted.
        """
        if self._pending is not None or not self.transfer.has_request_in_flight or self.resources.is_foreign:
            return
        current, worker = self._current, self.resources.worker
        if current is None or worker is None:
            self.transfer.withdraw()
        else:
            self._note_if_sent(worker, current[0], current[1])

    def _note_if_sent(self, worker: WorkerHandle, seq: int, message: UserMessage) -> None:
        """Note a request whose sending an exception has ended, if this worker got it; else withdraw it."""
        if self.resources.worker is worker and self._is_sent(worker, seq):
            worker.channel.ring()  # the interrupted code may not have come to that
            self._begin(Request(seq, *parse_command(message)), is_private=True)
        else:
            self.transfer.withdraw()

    def _is_sent(self, worker: WorkerHandle, seq: int) -> bool:
        """Whether the request of an interrupted call was sent."""
        fast_path = worker.fast_path
        return (fast_path is not None and fast_path.sent_seq == seq) or worker.channel.is_sent(seq)


def _command_of(message: UserMessage) -> str:
    return parse_command(message)[0] if message else ""
