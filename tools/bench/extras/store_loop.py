"""How long methods of ``AsyncStore`` keep their loop from other tasks: a task ticks, and others use the store.

A task is also late when the system gives the whole process no processor. So each sample has a second number: the
processor time that the process used while the task was late. The store's threads cannot have held up the loop for
longer than that.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import numpy as np

from ..peers.stores.base import DIM
from ..stats import summarise

__all__: list[str] = []

_TICK_NS: Final = 1_000_000


class _Ticker:
    """A task that wakes each millisecond, and notes how late it is and how long the process computed meanwhile."""

    def __init__(self) -> None:
        self.late_ns: list[int] = []
        self.held_ns: list[int] = []

    async def run(self) -> None:
        clock = time.perf_counter_ns
        while True:
            wanted, used = clock() + _TICK_NS, time.process_time_ns()
            await asyncio.sleep(_TICK_NS / 1e9)
            late, used = max(clock() - wanted, 0), time.process_time_ns() - used
            self.late_ns.append(late)
            self.held_ns.append(min(late, max(used - _TICK_NS, 0)))


async def _late(action: Callable[[int], Awaitable[object]], seconds: float) -> dict[str, Any]:
    ticker = _Ticker()
    task = asyncio.create_task(ticker.run())
    until_s, number = time.monotonic() + seconds, 0
    while time.monotonic() < until_s:
        await action(number)
        await asyncio.sleep(0)  # a method that ends at once never returns to the loop by itself
        number += 1
    task.cancel()
    return {
        **summarise(ticker.late_ns).to_json(),
        "held_p99_us": summarise(ticker.held_ns).p99_us,
        "held_most_us": max(ticker.held_ns) / 1000,
        "calls": number,
    }


async def _measure(directory: str, records: int, quick: bool) -> dict[str, Any]:
    from tr_mmap.store import AsyncStore

    random_ = np.random.default_rng(4)
    queries = [random_.standard_normal(DIM, np.float32) for _ in range(16)]
    seconds = 0.5 if quick else 2.0
    found = {}
    # The store with the vectors is the one that another part has made.
    async with await AsyncStore.open("filter", directory) as large, await AsyncStore.open("loop", directory) as small:
        await small.add(id="large", tensors={"x": np.ones(1 << 20)})

        async def many(number: int) -> None:
            await small.add_many([{"content": f"text {number}", "vector": queries[0]}] * 200)

        actions: dict[str, Callable[[int], Awaitable[object]]] = {
            "nothing": lambda _: asyncio.sleep(0.01),
            "get": lambda number: large.get(str(number % records)),
            "get of a tensor": lambda _: small.get("large"),
            "search": lambda number: large.search(queries[number % 16]),
            "filtered search": lambda number: large.search(queries[number % 16], filters={"kind": "rare"}),
            "get_all of 1000": lambda _: large.get_all(limit=1000),
            "get_all": lambda _: large.get_all(),
            "add": lambda number: small.add(f"text {number}", vector=queries[0]),
            "add_many of 200": many,
            "text search": lambda _: small.search("text", limit=5),
            "clear": lambda _: small.clear(),
            "compact": lambda _: small.compact(),
            "stats": lambda _: large.stats(),
        }
        for name, action in actions.items():
            found[name] = await _late(action, seconds)
    return found


if __name__ == "__main__":
    print(json.dumps({"loop": asyncio.run(_measure(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "quick"))}))
