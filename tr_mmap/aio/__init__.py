"""Sessions for ``asyncio``: the names of ``tr_mmap``, and what waits is awaitable.

This room sends and receives nothing itself: ``controller`` does. It never blocks the loop but for the copy of a tensor
that takes less than a thread would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .session import PythonSession

if TYPE_CHECKING:
    from .pool import SessionPool

__all__ = ["PythonSession", "SessionPool"]


def __getattr__(name: str) -> Any:
    if name == "SessionPool":  # not all programs have one
        from .pool import SessionPool

        return SessionPool
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
