"""What the scheduler knows of one run. Begins none, and knows no queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from ..base.delays import Delayed
from ..sandbox.steps import Steps
from .breakers import Breaker

__all__ = ["Job", "JobState"]

JobState = Literal["queued", "running", "success", "failed", "cancelled"]


@dataclass(eq=False, slots=True)
class Job:
    """One run, from its arrival to its end.

    Attributes:
        request_id: of the request, for messages; clients may give several the same.
        kind: of the executor, whose queue it waits in.
        name: of the algorithm; empty for code that is not registered.
        subject: whose it is; the quota counts by it.
        run: does it, in another thread.
        end: ends it, from any thread, at every moment: also before ``run`` was called, and after its end.
        steps: do the same as ``run``: they are gone through in the loop's thread, and from a slow one on in another.
        priority: the higher, the sooner, among the subject's own.
        deadline_s: by ``time.monotonic``.
        is_idempotent: whether it may be tried again.
        nbytes: of memory that it keeps while it waits.
        state: where it is.
        arrived_s, began_s, ended_s: when, by ``time.monotonic``; 0 for not yet.
        tries: how often it was begun.
        is_cancelled: whether somebody has ended it.
        on_change: is called in the loop's thread whenever the state changes.
        on_end: is called there when it has ended, or was refused.
        has_begun: whether it may have changed anything; None if the first call of ``run`` may.
        future: gets its result.
    """

    request_id: str
    kind: str
    name: str
    subject: str
    run: Callable[[], Any]
    end: Callable[[], Any]
    priority: int
    deadline_s: float
    is_idempotent: bool = True
    nbytes: int = 0
    state: JobState = "queued"
    arrived_s: float = 0.0
    began_s: float = 0.0
    ended_s: float = 0.0
    tries: int = 0
    is_cancelled: bool = False
    on_change: Callable[[Job], None] | None = None
    steps: Callable[[], Steps[Any]] | None = None
    on_end: Callable[[], None] | None = None
    has_begun: Callable[[], bool] | None = None
    future: asyncio.Future[Any] = field(init=False)
    timer: asyncio.TimerHandle | None = None
    look: Delayed | None = None
    breaker: Breaker | None = None
    is_trial: bool = False

    @property
    def is_final(self) -> bool:
        """Whether it has begun, and must not be done again, whatever comes of it."""
        has_begun = self.tries > 0 if self.has_begun is None else self.has_begun()
        return has_begun and not self.is_idempotent

    def watch_no_more(self) -> None:
        """Nobody looks at its time any more."""
        if self.look is not None:
            self.look.call = None
        if self.timer is not None:
            self.timer.cancel()

    def change(self, state: JobState) -> None:
        """Go on to another state."""
        self.state = state
        if self.on_change is not None:
            self.on_change(self)
