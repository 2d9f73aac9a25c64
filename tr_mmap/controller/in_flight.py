"""What is known of the requests of one session, and which thread may send them, or consume answers. Does neither."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from ..base.wakes import Wakes
from ..errors import SessionNotStarted
from ..native import Counters
from ..protocol.messages import Response
from ..wire.words import NO_WORKER, OF_PARENT
from .fast_path import Traffic
from .pending import Pending
from .progress import ProgressWatch
from .resources import SessionResources
from .turn import Turn, get_ident
from .worker_handle import WorkerHandle

__all__ = ["InFlight"]

_T = TypeVar("_T")


class InFlight:
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
            self.transfer.tagged,
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

    def _in_turn_to_send(self, deadline_s: float, action: Callable[..., _T], *arguments: Any) -> _T | None:
        return self.in_turn(self._sending, deadline_s, action, *arguments)

    def exclusively(self, timeout_s: float, action: Callable[..., _T], *arguments: Any) -> _T | None:
        """Call a function while no other thread sends or consumes. None if that could not be had in time."""
        return self.exclusively_until(time.monotonic() + timeout_s, action, *arguments)

    def exclusively_until(self, deadline_s: float, action: Callable[..., _T], *arguments: Any) -> _T | None:
        """The same, until the monotonic clock says so."""
        return self.in_turn(self._consuming, deadline_s, self._in_turn_to_send, deadline_s, action, *arguments)
