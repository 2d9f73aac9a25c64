"""The request that is under way, its response, and results that wait to be taken. Never says whose turn it is.

A signal handler may use the session in the middle of a request of the same thread. The handler's call first takes the
response of that request, for the interrupted code. So each step here may be interrupted, and stores what it has before
it makes another call.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from ..base.wakes import Wakes
from ..errors import (
    BadMessage,
    RemoteOutOfSpace,
    ResponseTimeout,
    SessionNotStarted,
    SystemLimit,
    TRException,
    WorkerDied,
)
from ..protocol.commands import UserMessage
from ..protocol.messages import Request, Response
from ..wire.words import CLOSED_MEANWHILE, NO_WORKER, OF_PARENT
from .failures import died, unanswered
from .resources import SessionResources
from .results import Result, remote_error
from .turn import Turn, get_ident
from .worker_handle import WorkerHandle

__all__ = ["Answered", "Claim", "Responses", "awaited_claims", "opened"]

_COLLECT_MS: Final = 20.0  # how often to release the leases of views that have ended, while a worker may wait for them


class Answered(Exception):
    """A signal handler has taken the response for the call that it interrupted. Never leaves this room."""


class _Taken:
    """A response that was taken, while its tensors are received.

    Attributes:
        response: the response.
        framework: of the tensors; None to receive none.
        claim: gets the outcome, whoever receives the tensors; None if the code that took the response is its taker.
        outcome: what a signal handler has made of it meanwhile. The tensors can be received once only, because after
            the handler's request the worker may reuse their segments.
    """

    __slots__ = ("claim", "framework", "outcome", "response")

    def __init__(self, response: Response, framework: str | None, claim: Claim | None) -> None:
        self.response = response
        self.framework = framework
        self.claim = claim
        self.outcome: Result | Exception | None = None


class Claim:
    """A request whose result any thread may take; first of all the one that sent it.

    Attributes:
        seq: the number of the request.
        asker: marks the thread that sent it.
        outcome: its result, with views, which hold the leases; or its error; None while there is neither.
        is_lost: whether its worker ended without a response to it.
        is_given_up: whether it is lost, and its asker has started another worker since. The asker's next ``send``
            drops this claim.
    """

    __slots__ = ("asker", "is_given_up", "is_lost", "outcome", "seq")

    def __init__(self, seq: int, outcome: Result | Exception | None) -> None:
        self.seq = seq
        self.asker = _mark_of_thread()
        self.outcome = outcome
        self.is_lost = self.is_given_up = False


_of_thread = threading.local()


def _mark_of_thread() -> object:
    """What tells this thread from all others. A thread's number would not: another one gets it later."""
    mark: object = _of_thread.__dict__.setdefault("mark", object())
    return mark


def awaited_claims() -> list[Claim]:
    """What this thread is in the middle of waiting for, the outermost wait first.

    All but the last are those of waits that a signal handler has interrupted: they go on, and get these results.
    """
    awaited: list[Claim] = _of_thread.__dict__.setdefault("awaited", [])
    return awaited


class Responses:
    """One session's request under way, and results. ``Dispatcher`` sends the requests.

    Args:
        resources: what the session owns; requests go to its worker.
    """

    def __init__(self, resources: SessionResources) -> None:
        self.resources = resources
        self.transfer = resources.transfer
        self._framework = resources.options.framework
        self._turn = Turn()
        self._news = Wakes()  # a request was sent, the worker ended, or the session is closed
        self.is_closing = False
        self.closers = 0  # calls of close() that have not returned
        self._exits: set[object] = set()  # calls that ask the worker to exit: no further request may overwrite that
        self._pending: Request | None = None  # sent and not answered
        # Of the call that has the turn, until its response is taken: the number of its request, the message, the
        # framework of the result, and whether any thread may take the result.
        self._current: tuple[int, UserMessage, str | None, bool] | None = None
        self._is_private = False  # only the caller that sent the pending request may take its result
        self._held: Response | None = None  # the response to the pending request, whose tensors could not be received
        self._claims: deque[Claim] = deque()  # in the order of their requests; only the last one may be under way
        self._taken: _Taken | None = None  # a response, while its tensors are received
        self._answers: dict[int, Result | Exception] = {}  # for calls that others have interrupted, by number
        # Interrupted calls whose requests were not sent yet: framework of the result; whether any thread may take it.
        self._interrupted: dict[int, tuple[str | None, bool]] = {}
        self._answered: set[int] = set()  # the numbers of requests whose responses signal handlers have taken

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

    def notify(self) -> None:
        """Wake the threads that wait for another thread's request."""
        self._news.wake()

    # -- the request under way ------------------------------------------------------------------------------------

    def _begin(self, request: Request, *, is_private: bool) -> Request:
        """Note that a request was sent; its result is for the caller alone, or for any thread that waits."""
        claim = None if is_private else Claim(request.seq, None)
        if claim is not None:
            self._claims.append(claim)
        # No call comes between this check and the stores: a handler that takes the response later sees all of them.
        if request.seq not in self._answered:  # else a signal handler has taken the response
            self._is_private = is_private
            self._pending = request
            self.transfer.has_request_in_flight = True
        else:
            if claim is not None and claim.outcome is None:  # the handler's is there already
                self._give_up_claim(claim)
            self.transfer.withdraw()
        return request

    def _free_claims(self) -> list[Claim]:
        """The claims, without those for which calls of this thread wait that a signal handler has interrupted."""
        claims, awaited = list(self._claims), awaited_claims()
        return [each for each in claims if each not in awaited] if awaited else claims

    def _next_claim(self) -> Claim | None:
        """The claim that this thread takes next: its own oldest one, or else the oldest one of any thread."""
        mark, claims = _mark_of_thread(), self._free_claims()
        return next((each for each in claims if each.asker is mark), claims[0] if claims else None)

    def has_claim(self) -> bool:
        """Whether a request was sent whose result this call may take."""
        return bool(self._free_claims())

    def has_own_claim(self) -> bool:
        """Whether this thread has sent such a request."""
        mark = _mark_of_thread()
        return any(each.asker is mark for each in self._free_claims())

    def give_back(self, result: Result) -> Claim:
        """Let a result that this thread has taken be the next one that it takes."""
        claim = Claim(result[0].seq, result)
        self._claims.appendleft(claim)
        self.notify()
        return claim

    def drop_claim(self, claim: Claim) -> None:
        """Give up a result; it may be taken already."""
        self._give_up_claim(claim)

    def _give_up_claim(self, claim: Claim) -> bool:
        """Remove a claim. Returns False if another thread has done so already."""
        try:
            self._claims.remove(claim)
        except ValueError:
            return False
        return True

    def _await(self, pending: Request, deadline_s: float, timeout_s: float, framework: str | None) -> Result:
        """The result of a request, with its tensors unless ``framework`` is None."""
        if pending.seq in self._answered:
            return self._answer_to(pending.seq)
        worker = self.resources.worker or self.worker()
        is_quick = framework is None or (framework == "numpy" and self.transfer.has_quick_views)
        if worker.fast_path is not None and is_quick and self._held is None:
            remaining_s = deadline_s - time.monotonic()
            try:
                # No call comes between this check and receive(): a handler that takes the response later ends it.
                result: Result | None = None
                if self._pending is pending:
                    result = worker.fast_path.receive(pending.seq, remaining_s)
                if result is not None and pending.seq not in self._answered:
                    self._pending = self._current = None
                    self.transfer.acknowledged(pending)
                    return result
            except BaseException:  # for example Ctrl-C after the response was taken
                worker.channel.put_back()
                raise
        if pending.seq in self._answered:
            return self._answer_to(pending.seq)
        try:
            return opened(self._await_outcome(pending, deadline_s, timeout_s, framework))
        except Answered:
            if pending.seq in self._answered:
                return self._answer_to(pending.seq)
            if self.resources.worker is not worker:  # a signal handler ended it
                raise self.worker_died(worker) from None
            raise

    def _answer_to(self, seq: int) -> Result:
        """The result that a signal handler has taken for the call that it interrupted.

        Raises:
            Answered: any thread may take the result: it is in a claim.
        """
        if seq not in self._answers:
            raise Answered
        return opened(self._answers.pop(seq))

    def _await_outcome(
        self, pending: Request, deadline_s: float, timeout_s: float, framework: str | None, claim: Claim | None = None
    ) -> Result | Exception:
        """Wait for the response to the pending request. Returns its result, or the error that it has.

        Args:
            pending: the request.
            deadline_s: until when to wait, by the monotonic clock.
            timeout_s: what the user said.
            framework: of the result's tensors.
            claim: also gets the outcome, unless that is SystemLimit.
        """
        before = self._taken
        try:
            response = self._await_response(pending, deadline_s, timeout_s, framework, claim)
            taken = self._taken
            outcome = self._outcome(response, framework)
            self.check_own()
            if taken is not None and taken.outcome is not None:
                outcome = taken.outcome
            if isinstance(outcome, SystemLimit):  # nothing is lost: it can be received when there is room again
                self._held, self._pending = response, pending
            elif claim is not None:  # stored at once, because a signal handler may ask for it
                claim.outcome = outcome
            return outcome
        finally:
            self._taken, self._current = before, None

    def _await_response(
        self, pending: Request, deadline_s: float, timeout_s: float, framework: str | None, claim: Claim | None
    ) -> Response:
        """Wait for the response to the pending request. Afterwards ``_taken`` has it, until its tensors are received.

        Raises:
            Answered: a signal handler has taken the response; it is in ``_answers`` or in a claim.
        """
        held, self._held = self._held, None
        if held is not None and held.seq == pending.seq:
            known = _Taken(held, framework, claim)
            self._taken, self._pending = known, None
            return held
        worker = self.resources.worker or self.worker()
        fast_path = worker.fast_path
        receive = self._receive if self.resources.options.transfer.block_ms else worker.channel.receive

        def should_stop() -> bool:
            return worker.is_over() or self._pending is not pending

        while True:
            remaining_ms = max(0.0, (deadline_s - time.monotonic()) * 1000)
            try:
                raw = receive(remaining_ms, should_stop)
                if raw is None and remaining_ms > 0:
                    raw = worker.channel.receive_early()
                self.check_own()  # a signal handler may have forked: the response is the parent's
                response = None if raw is None else self.transfer.decode(raw)
                taken = None if response is None else _Taken(response, framework, claim)
            except BadMessage:
                if self._pending is pending:
                    self._end_request()  # there will be no other response to it
                raise
            except BaseException:  # for example Ctrl-C after the response was taken
                worker.channel.put_back()
                raise
            if self._pending is not pending:  # a signal handler has taken the response
                if response is not None and self._pending is not None and response.seq == self._pending.seq:
                    worker.channel.put_back()  # it answers the handler's own request, which an exception has ended
                raise Answered
            if response is None:
                raise self._unanswered(worker, pending.command, timeout_s)
            if response.seq == pending.seq:  # no call since the check, so no signal handler
                self._taken, self._pending = taken, None
                if fast_path is not None:
                    fast_path.sent_seq = 0  # a call that this one interrupts waits no longer
                self.transfer.acknowledged(pending)
                return response
            if response.seq in self._interrupted:  # the interrupted call had sent its request without having noted that
                framework_of_it, is_public = self._interrupted[response.seq]
                self._keep(response.seq, self._outcome(response, framework_of_it), is_public)
            # Else it is a response that no caller waits for.

    def _keep(self, seq: int, outcome: Result | Exception, is_public: bool) -> None:
        """Keep what came in response to the request of an interrupted call."""
        if is_public:
            self._answered.add(seq)
            self._keep_public(seq, outcome)
        else:
            self._answers[seq] = outcome
            self._answered.add(seq)  # no call ends before this store, so no signal handler runs before it

    def _keep_public(self, seq: int, outcome: Result | Exception) -> None:
        claim = self._claim_of(seq)
        if claim is None:
            self._claims.append(Claim(seq, outcome))  # a call of this thread that has not noted yet that it is sent
            return
        claim.outcome = outcome
        self._wake_takers()

    def give_up_lost(self) -> None:
        """Note that this thread starts a new worker: its next ``send`` drops the claims that it lost with the last."""
        mark = _mark_of_thread()
        for claim in list(self._claims):
            claim.is_given_up = claim.is_given_up or (claim.is_lost and claim.asker is mark)

    def _drop_given_up(self) -> None:
        mark = _mark_of_thread()
        for claim in list(self._claims):
            if claim.is_given_up and claim.asker is mark:
                self._give_up_claim(claim)

    def _claim_of(self, seq: int) -> Claim | None:
        return next((claim for claim in list(self._claims) if claim.seq == seq), None)

    def _wake_takers(self) -> None:
        """Wake the threads that wait for the turn: the result that one of them wants may be in its claim now."""
        if self._turn.queue:
            self._turn.wake()

    def _outcome(self, response: Response, framework: str | None) -> Result | Exception:
        """What a response means to its caller: a result, or the error to raise."""
        if response.error is not None:
            error = remote_error(response.command, response.error)
            if isinstance(error, RemoteOutOfSpace):
                self.transfer.release_free()  # so that the next request finds the room
            return error
        try:
            return response, self._receive_all(response, framework)
        except (TRException, OSError) as error:
            return error

    def _receive_all(self, response: Response, framework: str | None) -> list[Any]:
        receive = self.transfer.receive
        return [] if framework is None else [receive(ref, framework) for ref in response.tensors]

    def _unanswered(
        self, worker: WorkerHandle, command: str, timeout_s: float, *, is_sent: bool = True
    ) -> WorkerDied | ResponseTimeout | SessionNotStarted:
        """The error for a response that has not come.

        Args:
            worker: which was to respond.
            command: of the request; "" if the caller has made none.
            timeout_s: what the user said.
            is_sent: False if the request was not sent, because another one is under way.
        """
        self.check_own()
        if self.is_closing:
            return SessionNotStarted(f"session {self.resources.session_id!r}{CLOSED_MEANWHILE}")
        if worker.is_over() or worker.has_left():
            return self.worker_died(worker)
        other = None if is_sent else "" if self._pending is None else self._pending.command
        place = self.resources.advice_on_place()
        return unanswered(worker, command, timeout_s, other=other, place=place)

    def _receive(self, timeout_ms: float, stop: Callable[[], bool]) -> bytes | None:
        """As the channel's ``receive``, but releases leases meanwhile.

        The worker may wait for a lease of a view that another thread here has dropped.
        """
        channel = self.worker().channel
        deadline_s = time.monotonic() + timeout_ms / 1000
        while True:
            self.transfer.collect()
            remaining_ms = (deadline_s - time.monotonic()) * 1000
            raw = channel.receive(max(0.0, min(remaining_ms, _COLLECT_MS)), stop)
            if raw is not None or remaining_ms <= _COLLECT_MS or stop():
                return raw

    def _end_request(self) -> None:
        self._pending = None
        self.transfer.withdraw()

    # -- the worker's end -----------------------------------------------------------------------------------------

    def worker_died(self, worker: WorkerHandle) -> WorkerDied | SessionNotStarted:
        """Build the error for a worker that is over. The thread that has the turn also forgets the worker.

        If the worker's process lives on, that thread forgets only the requests; start() or close() end the process.

        Args:
            worker: for which the caller waits; another thread may have forgotten it meanwhile.
        """
        self.check_own()
        if self.is_closing or self._exits:
            return SessionNotStarted(f"session {self.resources.session_id!r} was ended meanwhile")
        error = self._death_of(worker)
        if self._turn.owner == get_ident() and self.resources.worker is worker:
            if worker.lives_on:
                self._lose_requests(worker)
                self._forget_request()
            else:
                self.forget_worker()
        return error

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
        self._forget_request()
        self.transfer.worker_ended()

    def _lose_requests(self, worker: WorkerHandle | None) -> None:
        lost = [each for each in list(self._claims) if each.outcome is None]
        error = self._death_of(worker) if worker is not None and lost else None
        for claim in lost:  # before the worker is forgotten: a thread that finds no worker finds the outcome
            claim.outcome, claim.is_lost = error, True
        self._wake_takers()

    def forget(self) -> None:
        """Forget the request in flight and all results."""
        self._forget_request()
        self._claims.clear()

    def _forget_request(self) -> None:
        self._end_request()
        self._is_private = False
        self._held = None


def opened(outcome: Result | Exception) -> Result:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
