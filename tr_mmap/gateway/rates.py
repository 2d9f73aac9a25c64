"""How many requests each token may make: a bucket for each, which fills steadily. Knows the clock it is given only."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from .errors import RateLimited

__all__ = ["RateLimit"]

_MOST_BUCKETS: Final = 10_000


class RateLimit:
    """A limit for each of many tokens.

    Args:
        per_minute: how many requests each may make in the long run; 0 for no limit.
        burst: how many may come at once.
    """

    def __init__(self, per_minute: float, burst: int) -> None:
        self._per_s = per_minute / 60
        self._burst = float(burst)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is in it, and when that was so

    def take(self, token_id: str, now_s: float) -> None:
        """Count one request.

        Args:
            token_id: whose.
            now_s: by a monotonic clock.

        Raises:
            RateLimited: there were too many; it is not counted.
        """
        if not self._per_s:
            return
        content, then_s = self._buckets.pop(token_id, (self._burst, now_s))
        content = min(self._burst, content + (now_s - then_s) * self._per_s)
        is_over = content < 1
        self._buckets[token_id] = (content if is_over else content - 1, now_s)
        if len(self._buckets) > _MOST_BUCKETS:
            self._forget_full(now_s)
        if is_over:
            wait_s = (1 - content) / self._per_s
            raise RateLimited(
                f"the token may make {self._per_s * 60:g} requests a minute; try again in {wait_s:.1f} s",
                retry_after_s=wait_s,
            )

    def _forget_full(self, now_s: float) -> None:
        """Forget the buckets that are full again, which a new one equals; of the others, those longest unused."""
        full = [
            each
            for each, (content, then_s) in self._buckets.items()
            if content + (now_s - then_s) * self._per_s >= self._burst
        ]
        for each in full:
            del self._buckets[each]
        while len(self._buckets) > _MOST_BUCKETS:
            self._buckets.popitem(last=False)
