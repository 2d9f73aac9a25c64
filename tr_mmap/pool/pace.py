"""When a pool may start its next worker. Starts nothing.

A worker that has begun a request has shown that workers can be started: when it dies, another one starts at once. One
that was never ready is a start that has failed, and so is one that dies soon after that without having begun a request.
After such starts the pool waits, longer each time.
"""

from __future__ import annotations

import math
from typing import Final

__all__ = ["STEADY_S", "Pace"]

_MOST_FAILED: Final = 3  # starts in a row, until requests are told that there is no worker
_FIRST_PAUSE_S: Final = 0.05  # after a start that has failed; each one doubles it
_LONGEST_PAUSE_S: Final = 30.0
_LONGEST_PAUSE_OF_READY_S: Final = 2.0  # if the worker was ready: it may have been killed
STEADY_S: Final = 5.0  # a worker that was ready for so long was no failed start


class Pace:
    """How starts of one pool went, and what follows.

    Attributes:
        next_start_s: when the next worker may be started, by the monotonic clock.
    """

    def __init__(self) -> None:
        self.next_start_s = 0.0
        self._failed = 0  # in a row
        self._has_given_up = False

    def may_start(self, now_s: float, has_work: bool) -> bool:
        """Whether a worker may be started now."""
        return now_s >= self.next_start_s and self._is_trying(has_work)

    def when_next(self, now_s: float, has_work: bool) -> float:
        """When to look again; infinity for not before something happens."""
        return self.next_start_s if self.next_start_s > now_s and self._is_trying(has_work) else math.inf

    def _is_trying(self, has_work: bool) -> bool:
        return has_work or not self._has_given_up

    def note_useful(self) -> None:
        """Workers can be started."""
        self._failed, self.next_start_s, self._has_given_up = 0, 0.0, False

    def note_ready(self) -> None:
        """A worker is ready; whether it is of use is not known yet."""
        self._has_given_up = False

    def note_failed(self, now_s: float, was_ready: bool, has_others: bool) -> bool:
        """A start has failed.

        Args:
            now_s: by the monotonic clock.
            was_ready: whether the worker had been ready.
            has_others: whether another worker is ready.

        Returns:
            Whether requests that wait are to be told that no worker can be started.
        """
        if self._failed or not was_ready:  # else it may have been killed: another one starts at once
            longest_s = _LONGEST_PAUSE_OF_READY_S if was_ready else _LONGEST_PAUSE_S
            self.next_start_s = now_s + min(_FIRST_PAUSE_S * 2 ** min(self._failed, 10), longest_s)
        self._failed += 1
        if has_others or self._failed < _MOST_FAILED:
            return False
        self._has_given_up = not was_ready  # until a request waits
        return True
