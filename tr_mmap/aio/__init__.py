"""Sessions for ``asyncio``: the names of ``tr_mmap``, and what waits is awaitable.

This room sends and receives nothing itself: ``controller`` does. It never blocks the loop but for the copy of a tensor
that takes less than a thread would.
"""

from __future__ import annotations

from .session import PythonSession

__all__ = ["PythonSession"]
