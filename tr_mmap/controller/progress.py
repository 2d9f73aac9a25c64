"""Tells callers how far their requests are. Reads what the worker has stored; never waits for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeAlias

from ..channel.progress import Progress, ProgressReader
from ..native import Counters
from .pending import Pending

__all__ = ["OnProgress", "ProgressWatch"]

_log = logging.getLogger("tr_mmap")

OnProgress: TypeAlias = Callable[[float, str], object]  # takes the fraction that is done, and what the handler says


class ProgressWatch:
    """The requests of one session whose progress a caller wants to know.

    Args:
        directory: of the session.
        counters: of the session. While a request is watched, the fast path sends and waits for none: it does not look.

    Attributes:
        is_on: whether a request is watched.
    """

    def __init__(self, directory: str, counters: Counters) -> None:
        self.is_on = False
        self._counters = counters
        self._reader = ProgressReader(directory)
        self._watched: dict[Pending, tuple[OnProgress, Progress | None]] = {}

    def add(self, pending: Pending, on_progress: OnProgress) -> None:
        """Watch a request that is about to be sent."""
        self._watched[pending] = on_progress, None
        self._note()

    def remove(self, pending: Pending) -> None:
        """Watch it no more: it is answered, or nobody waits for it. Does nothing for one that is not watched."""
        if self._watched.pop(pending, None) is not None:
            self._reader.forget(pending.seq)
        self._note()

    def _note(self) -> None:
        """Say what follows from the requests that are watched; once more after an exception in the middle."""
        self.is_on = is_on = bool(self._watched)
        self._counters.is_watched = is_on

    def look(self) -> None:
        """Tell each caller of a progress that is new."""
        for pending in list(self._watched):
            self.look_at(pending)

    def look_at(self, pending: Pending) -> None:
        """Tell the caller of one request of a progress that is new."""
        watched = self._watched.get(pending)
        progress = None if watched is None or not pending.seq else self._reader.read(pending.seq)
        if watched is None or progress is None or progress == watched[1]:
            return
        self._watched[pending] = watched[0], progress
        try:
            watched[0](progress.fraction, progress.text)
        except Exception:
            _log.exception("on_progress has failed; the request goes on")
