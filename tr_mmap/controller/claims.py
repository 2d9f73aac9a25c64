"""Requests whose results any thread may take: which one a call takes, and how it waits for it. Ends nothing."""

from __future__ import annotations

import time
from functools import partial
from typing import Final

from ..errors import ResponseTimeout, TRException
from ..protocol.commands import UserMessage
from ..wire.words import NO_REQUEST
from .flow import Flow
from .options import shown_ms
from .pending import Pending, awaited, mark_of_thread, opened
from .results import Result
from .stats import worker_state
from .worker_handle import WorkerHandle

__all__ = ["Claims"]

_SLICE_S: Final = 0.25  # how long to wait at most for news; they wake the wait, except where no watch can run


class Claims(Flow):
    """The requests of one session whose results any thread may take, in the order of sending.

    Args:
        resources: what the session owns; requests go to its worker.
    """

    def send_public(self, message: UserMessage, timeout_s: float) -> None:
        """Send a request whose result any thread may take.

        Args:
            message: the command, and words for it.
            timeout_s: how long to wait until there is room for one more request, in seconds.

        Raises:
            BadMessage: there is no command in the message.
            ResponseTimeout: the worker answers none of those that are under way.
            WorkerDied: the worker ended.
        """
        self._drop_given_up()
        pending = Pending(message, self.resources.options.framework)
        pending.asker = mark_of_thread()
        try:
            self.send(pending, (), time.monotonic() + timeout_s, timeout_s, is_public=True)
        except BaseException:
            self.abandon(pending)
            self.drop_claim(pending)
            raise
        self.notify()

    def notify(self) -> None:
        """Wake the threads that wait for another thread's request."""
        self._news.wake()

    def has_result(self) -> bool:
        """Whether :meth:`take` would find a result at once."""
        claim = self._next_claim()
        if claim is None or self.resources.is_foreign:
            return False
        if not self._is_there(claim):
            self.poll()
        return self._is_there(claim)

    def _free_claims(self) -> list[Pending]:
        """The claims but for those that the waits are for which a signal handler of this thread has interrupted."""
        claims, others = list(self._claims), awaited()
        return [each for each in claims if each not in others] if others else claims

    def _next_claim(self) -> Pending | None:
        """What this thread takes next: the first that it has asked for; else, the first that another one has."""
        mark, claims = mark_of_thread(), self._free_claims()
        return next((each for each in claims if each.asker is mark), claims[0] if claims else None)

    def has_claim(self) -> bool:
        """Whether a request was sent whose result this call may take."""
        return bool(self._free_claims())

    def has_own_claim(self) -> bool:
        """Whether this thread has sent such a request."""
        mark = mark_of_thread()
        return any(each.asker is mark for each in self._free_claims())

    def give_back(self, result: Result) -> Pending:
        """Let a result that this thread has taken be the next one that it takes."""
        claim = Pending(result[0].command)
        claim.seq, claim.outcome, claim.asker = result[0].seq, result, mark_of_thread()
        self._claims.appendleft(claim)
        self.notify()
        return claim

    def drop_claim(self, claim: Pending) -> bool:
        """Give up a result. Returns whether no other thread has taken it, or given it up."""
        try:
            self._claims.remove(claim)
        except ValueError:
            return False
        return True

    def give_up_lost(self) -> None:
        """Note that this thread starts a new worker: its next request takes the place of those that it has lost."""
        mark = mark_of_thread()
        for claim in list(self._claims):
            claim.is_given_up = claim.is_given_up or (claim.is_lost and claim.asker is mark)

    def _drop_given_up(self) -> None:
        mark = mark_of_thread()
        for claim in list(self._claims):
            if claim.is_given_up and claim.asker is mark:
                self.drop_claim(claim)

    def take(self, timeout_s: float, *, worker: WorkerHandle | None = None, deadline_s: float | None = None) -> Result:
        """Take the oldest result of this thread's requests; if it has made none, the oldest one of any thread's.

        A result that a wait of this thread is for, which a signal handler has interrupted, stays for that wait. If
        there is no request at all, waits for one that another thread may send.

        Args:
            timeout_s: how long to wait, in seconds.
            worker: the one that ran when the caller began to wait; None to look for it now.
            deadline_s: when to stop, by the monotonic clock, if the caller has begun to wait already.

        Raises:
            SessionNotStarted: there is no worker, or the session was closed meanwhile.
            RemoteError, ResponseTimeout, WorkerDied: there is no result.
        """
        deadline_s = time.monotonic() + timeout_s if deadline_s is None else deadline_s
        # This one only: the thread that notices its death first forgets it, and leaves what was lost with it.
        if worker is None:
            claim = self._next_claim()
            has_outcome = claim is not None and claim.outcome is not None and not self.resources.is_foreign
            worker = self.resources.worker if not self.is_closing and has_outcome else self.worker()
        waits = awaited()
        outer_count = len(waits)
        try:
            while True:
                # What it waits for already, although a signal handler may have put another claim before it.
                claim = waits[-1] if len(waits) > outer_count else None
                if claim is None or claim not in self._claims:
                    del waits[outer_count:]
                    claim = self._next_claim()
                if claim is None:
                    self._wait_for_request(worker or self.worker(), deadline_s, timeout_s)
                    continue
                waits[outer_count:] = (claim,)
                if claim.outcome is None:
                    self._consume_until(
                        worker or self.worker(),
                        lambda claim=claim: self._is_there(claim) or claim not in self._claims,  # type: ignore[misc]
                        deadline_s,
                        is_last=True,
                    )
                    if claim not in self._claims:
                        continue  # another thread has taken it
                    try:
                        self.wait(claim, deadline_s, timeout_s, worker)
                    except (TRException, OSError):
                        if claim.outcome is None:  # else this is it, and is said once
                            raise
                if self.drop_claim(claim):
                    return opened(claim.outcome)
        finally:
            del waits[outer_count:]  # no call is before this, so no signal handler

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

    def _has_news(self, worker: WorkerHandle) -> bool:
        return self.has_claim() or self.is_closing or worker.is_over()
