"""How often each may do something: a bucket for each, which fills steadily. Knows the clock it is given only."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from .errors import RateLimited

__all__ = ["RateLimit"]

_MOST_BUCKETS: Final = 10_000
_ONE: Final = 1 - 1e-6  # what is added in several steps may be a little less than the whole


class RateLimit:
    """A limit for each of many tokens, or of many addresses.

    Args:
        per_minute: how many requests each may make in the long run; 0 for no limit.
        burst: how many may come at once.
        who: whom it limits, for errors.
        what: that they do, for errors.
        option: of the configuration that says ``per_minute``, for errors.
    """

    def __init__(
        self,
        per_minute: float,
        burst: int,
        who: str = "the token",
        what: str = "requests",
        option: str = "[auth] requests_per_minute",
    ) -> None:
        self._who, self._what, self._option = who, what, option
        self._per_s = per_minute / 60
        self._burst = float(burst)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is in it, and when that was so

    def take(self, key: str, now_s: float) -> None:
        """Count one request.

        Args:
            key: whose.
            now_s: by a monotonic clock.

        Raises:
            RateLimited: there were too many; it is not counted.
        """
        if not self._per_s:
            return
        self.check(key, now_s)
        content, _ = self._buckets.pop(key, (self._burst, now_s))
        self._buckets[key] = (content - 1, now_s)
        if len(self._buckets) > _MOST_BUCKETS:
            self._forget_full(now_s)

    def check(self, key: str, now_s: float) -> None:
        """Look whether there is room for one request more, and count none.

        Raises:
            RateLimited: there is none.
        """
        if key not in self._buckets:
            return
        content, then_s = self._buckets.pop(key)
        content = min(self._burst, content + (now_s - then_s) * self._per_s)
        self._buckets[key] = (content, now_s)
        if content < _ONE:
            wait_s = (1 - content) / self._per_s
            raise RateLimited(
                f"{self._who} may make {self._per_s * 60:g} {self._what} a minute, {self._burst:g} at once; try again "
                f"in {wait_s:.1f} s, or see {self._option}",
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
