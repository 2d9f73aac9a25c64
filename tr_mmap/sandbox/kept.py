"""Caches what executors make of algorithms' code. A sandbox's next executor uses the cache of the one it replaces."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

__all__ = ["Kept"]


class Kept:
    """Values by key. Threads, and the executors of one sandbox, may use it at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[Hashable, Any] = {}  # least recently used first

    def get(self, key: Hashable) -> Any:
        """The value; None if there is none."""
        with self._lock:
            value = self._values.pop(key, None)
            if value is not None:
                self._values[key] = value
            return value

    def put(self, key: Hashable, value: Any, is_too_much: Callable[[list[Any]], bool]) -> None:
        """Keep a value; then drop the least recently used others while ``is_too_much`` of all values is true."""
        with self._lock:
            self._values.pop(key, None)
            self._values[key] = value
            while len(self._values) > 1 and is_too_much(list(self._values.values())):
                del self._values[next(iter(self._values))]

    def drop(self, is_dropped: Callable[[Hashable], bool]) -> None:
        """Drop the values of some keys."""
        with self._lock:
            for key in [each for each in self._values if is_dropped(each)]:
                del self._values[key]
