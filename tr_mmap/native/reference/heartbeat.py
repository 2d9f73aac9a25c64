"""The word of the status page that says when the worker last worked."""

from __future__ import annotations

import sys
import time
from typing import Any, Final

from ...wire.messages import HEARTBEAT_DIGITS, HEARTBEAT_OFFSET, STATUS_NBYTES

__all__ = ["Heartbeat"]

_WORD: Final = HEARTBEAT_OFFSET // 8
_WRAP: Final = 1 << 32


class Heartbeat:
    """Eight hexadecimal digits: the monotonic clock's milliseconds, modulo 2**32.

    Args:
        page: the whole status page, mapped.
    """

    __slots__ = ("_words",)

    def __init__(self, page: Any) -> None:
        view = memoryview(page)
        if len(view) < STATUS_NBYTES:
            raise ValueError(f"an aligned buffer of at least {STATUS_NBYTES} bytes is needed")
        self._words = view.cast("Q")

    def touch(self) -> None:
        """Note that the worker works now."""
        ms = time.monotonic_ns() // 1_000_000 % _WRAP
        self._words[_WORD] = int.from_bytes(b"%0*x" % (HEARTBEAT_DIGITS, ms), sys.byteorder)

    def age_ms(self) -> float | None:
        """Milliseconds since the worker last worked; None if it never has, or if what is there is no time."""
        digits = self._words[_WORD].to_bytes(HEARTBEAT_DIGITS, sys.byteorder)
        if not all(digit in b"0123456789abcdef" for digit in digits):
            return None
        now_ns = time.monotonic_ns()
        age = (now_ns // 1_000_000 - int(digits, 16)) % _WRAP
        # The worker may have touched it after we read the clock: then the difference wraps around.
        return 0.0 if age > _WRAP // 2 else age + now_ns % 1_000_000 / 1e6
