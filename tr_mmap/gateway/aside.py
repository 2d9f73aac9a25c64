"""Threads for what would hold the loop up: large bodies are parsed and decoded there. Nothing else can take them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

__all__ = ["LARGE_NBYTES", "aside"]

LARGE_NBYTES: Final = 1 << 18
"""Bytes of a body from which on reading it would hold the loop up."""

_T = TypeVar("_T")
_threads: Final = ThreadPoolExecutor(2, "tr_mmap-parse")  # they start when they are first needed


async def aside(do: Callable[[], _T], nbytes: int = LARGE_NBYTES + 1) -> _T:
    """What a function gives; in another thread, if it reads that many bytes."""
    if nbytes <= LARGE_NBYTES:
        return do()
    return await asyncio.get_running_loop().run_in_executor(_threads, do)
