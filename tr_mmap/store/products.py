"""Products of many rows with one vector, made by several threads. Opens nothing.

A library of linear algebra that splits each product among its threads waits for all of them, however busy the machine
is, and a store has a product for each slab. Here threads take small blocks of all slabs, one after the other, so that
nobody waits for a thread that gets no processor.
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

_helpers: tuple[int, int, ThreadPoolExecutor | None] = (0, 0, None)  # whose, how many, the threads; replaced whole


def product_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """In which kind of numbers vectors of a dtype are multiplied."""
    return dtype if dtype.name in _EXACT_KINDS else np.dtype(np.float32)


def blocks_of(count: int, dim: int) -> list[slice]:
    """Rows of a part, a block after the other."""
    height = max(1, _BLOCK // max(dim, 1))
    return [slice(start, start + height) for start in range(0, count, height)]


def products(parts: Sequence[Array], query: Array) -> list[Array]:
    """For each part of shape ``(rows, dim)`` its product with the vector, in its :func:`product_dtype`.

    Args:
        parts: rows of any kind that has numbers; kinds that numpy does not multiply are converted block by block.
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
    """Do a work for each number from 0 on, in this thread, and with the help of others if there is much to do."""
    numbers = itertools.count()  # each is given once, whichever threads ask

    def take() -> None:
        while (number := next(numbers)) < count:
            work(number)

    helping = _ask_for_help(take) if count >= _LEAST_BLOCKS else []
    take()
    for each in helping:
        if not each.cancel():  # it has begun
            each.result()


def _ask_for_help(work: Callable[[], None]) -> list[Future[None]]:
    """Let other threads do it too; none on one processor, at the end of the program, or where no thread can start."""
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
