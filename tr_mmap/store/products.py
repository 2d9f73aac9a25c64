"""Products of many rows with one vector, computed by several threads. Opens nothing.

A search needs one product for each slab. A library of linear algebra splits each product among its threads, and then
waits for the slowest of them; on a busy machine that takes long. Here each thread takes the next small block of any
slab, so a thread that gets no processor delays the search by one block at most.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import numpy as np

__all__ = ["blocks_of", "product_dtype", "products", "share"]

Array = np.ndarray[Any, Any]

_EXACT_KINDS: Final = frozenset({"float32", "float64"})  # that numpy multiplies as they are
_BLOCK: Final = 1 << 18  # numbers: 1 MiB of float32, which OpenBLAS multiplies in the thread that asks
_LEAST_BLOCKS: Final = 8  # below that, to wake another thread takes longer than it saves
_MOST_THREADS: Final = 4

_helpers: tuple[int, int, ThreadPoolExecutor | None] = (0, 0, None)  # pid, number of threads, pool; replaced whole


def product_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which vectors of a dtype are multiplied."""
    return dtype if dtype.name in _EXACT_KINDS else np.dtype(np.float32)


def blocks_of(count: int, dim: int) -> list[slice]:
    """Slices that cut ``count`` rows of ``dim`` numbers into blocks."""
    height = max(1, _BLOCK // max(dim, 1))
    return [slice(start, start + height) for start in range(0, count, height)]


def products(parts: Sequence[Array], query: Array) -> list[Array]:
    """The product of each part with the vector, of shape ``(rows,)``, in the part's :func:`product_dtype`.

    Args:
        parts: of shape ``(rows, dim)``, of any real dtype; what numpy does not multiply is converted block by block.
        query: of shape ``(dim,)``, float32 or float64.
    """
    dtypes = [product_dtype(part.dtype) for part in parts]
    found = [np.empty(len(part), dtype) for part, dtype in zip(parts, dtypes, strict=True)]
    queries = {dtype: query.astype(dtype) for dtype in set(dtypes)}
    blocks = [
        (part[rows], queries[out.dtype], out[rows])
        for part, out in zip(parts, found, strict=True)
        for rows in blocks_of(len(part), query.size)
    ]

    def multiply(number: int) -> None:
        rows, vector, out = blocks[number]
        np.matmul(rows if rows.dtype == out.dtype else rows.astype(out.dtype), vector, out=out)

    share(multiply, len(blocks))
    return found


def share(work: Callable[[int], None], count: int) -> None:
    """Call ``work(number)`` for each number below ``count``, in this thread; with many numbers, also in others."""
    numbers = itertools.count()  # gives each number to one thread

    def take() -> None:
        while (number := next(numbers)) < count:
            work(number)

    helping = _ask_for_help(take) if count >= _LEAST_BLOCKS else []
    take()
    for each in helping:
        if not each.cancel():  # it has begun
            each.result()


def _ask_for_help(work: Callable[[], None]) -> list[Future[None]]:
    """Submit ``work`` to the helping threads. None help on one processor, or when no thread can be started any more."""
    global _helpers
    pid, count, threads = _helpers
    if threads is None or pid != os.getpid():
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        count = min(usable, _MOST_THREADS) - 1
        threads = ThreadPoolExecutor(max(count, 1), "tr_store_products")  # starts none yet
        _helpers = (os.getpid(), count, threads)
    asked: list[Future[None]] = []
    try:
        for _ in range(count):
            asked.append(threads.submit(work))
    except RuntimeError:
        pass
    return asked
