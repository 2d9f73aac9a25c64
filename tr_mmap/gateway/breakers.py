"""Circuit breakers: what fails again and again is not tried for a while. Knows the clock it is given only."""

from __future__ import annotations

from .errors import CircuitOpen

__all__ = ["Breaker"]


class Breaker:
    """The breaker of one algorithm: closed at first, open after failures, and then tried by one run at a time.

    Args:
        failures: how many, one after another, open it; 0 for never.
        open_s: for how long.
    """

    def __init__(self, failures: int, open_s: float) -> None:
        self._most = failures
        self._open_s = open_s
        self._count = 0
        self._until_s: float | None = None
        self._is_tried = False

    def check(self, name: str, now_s: float) -> None:
        """Before a run.

        Raises:
            CircuitOpen: it is open, or is being tried by another run.
        """
        if self._until_s is None:
            return
        if now_s < self._until_s or self._is_tried:
            wait_s = max(self._until_s - now_s, 0.1)
            raise CircuitOpen(
                f"{name!r} has failed {self._count} times one after another, and is not run for {wait_s:.1f} s",
                retry_after_s=wait_s,
            )
        self._is_tried = True

    def succeeded(self) -> None:
        """A run went well, or its failure was no fault of the algorithm's."""
        self._count, self._until_s, self._is_tried = 0, None, False

    def failed(self, now_s: float) -> None:
        """A run failed."""
        self._count += 1
        self._is_tried = False
        if self._most and self._count >= self._most:
            self._until_s = now_s + self._open_s

    def left(self) -> None:
        """A run was neither: it was cancelled, say."""
        self._is_tried = False

    @property
    def is_open(self) -> bool:
        """Whether runs are refused, or one tries."""
        return self._until_s is not None
