"""Circuit breakers: what fails again and again is not tried for a while. Knows the clock it is given only."""

from __future__ import annotations

from typing import Final

from .errors import CircuitOpen

__all__ = ["Breaker"]

_LEAST_WAIT_S: Final = 0.1


class Breaker:
    """The breaker of one algorithm for one subject: closed at first; open after failures; then one run at a time tries.

    While it is open, only the run that tries says how it goes on: others may have begun long before.

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

    def check(self, name: str, now_s: float) -> bool:
        """Before a run.

        Returns:
            Whether it is the one that tries. Its end must be told, by one of the methods below.

        Raises:
            CircuitOpen: it is open, or is being tried by another run.
        """
        if self._until_s is None:
            return False
        if now_s < self._until_s or self._is_tried:
            wait_s = max(self._until_s - now_s, _LEAST_WAIT_S)
            raise CircuitOpen(
                f"{name!r} has failed {self._count} times one after another, and is not run for {wait_s:.1f} s",
                retry_after_s=wait_s,
            )
        self._is_tried = True
        return True

    def succeeded(self, *, is_trial: bool) -> None:
        """A run went well, or its failure was no fault of the algorithm's."""
        if is_trial or self._until_s is None:
            self._count, self._until_s, self._is_tried = 0, None, False

    def failed(self, now_s: float, *, is_trial: bool) -> None:
        """A run failed."""
        if not is_trial and self._until_s is not None:
            return
        self._count += 1
        self._is_tried = False
        if self._most and self._count >= self._most:
            self._until_s = now_s + self._open_s

    def left(self, *, is_trial: bool) -> None:
        """A run was neither: it was cancelled, say."""
        if is_trial:
            self._is_tried = False

    @property
    def is_open(self) -> bool:
        """Whether runs are refused, or one tries."""
        return self._until_s is not None
