"""Threads of an ``AsyncStore`` let the loop have its turn; other threads lose no time."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest

from tr_mmap.store import AsyncStore, Store, turns


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that have paused; a turn is over at once."""
    found: list[str] = []
    monkeypatch.setattr(turns.time, "sleep", lambda _: found.append(threading.current_thread().name))
    monkeypatch.setattr(turns, "_TURN_NS", 0)
    return found


def test_a_store_without_a_loop_never_pauses(root: Path, pauses: list[str]) -> None:
    with Store("turns", root) as store:
        store.add_many({"content": f"text {number}", "vector": np.ones(4)} for number in range(50))
        assert len(store.get_all()) == 50
        assert len(store.search("text", limit=50)) == 50
        assert store.clear() == 50
    assert pauses == []


def test_long_work_for_a_loop_pauses_and_never_in_the_loops_own_thread(root: Path, pauses: list[str]) -> None:
    async def use() -> None:
        async with await AsyncStore.open("turns", root) as store:
            await store.add_many({"content": f"text {number}", "vector": np.ones(4)} for number in range(50))
            after_add = len(pauses)
            assert len(await store.get_all()) == 50
            after_all = len(pauses)
            assert len(await store.search(np.ones(4), limit=50)) == 50
            after_search = len(pauses)
            assert await store.clear() == 50
            assert 0 < after_add < after_all < after_search < len(pauses)

    asyncio.run(use())
    assert {name.rpartition("_")[0] for name in pauses} == {"tr_store"}


def test_a_snapshot_that_a_thread_uses_is_closed_without_keeping_the_loop(root: Path) -> None:
    async def use() -> bool:
        async with await AsyncStore.open("turns", root) as store:
            await store.add(id="one")
            is_in, may_go = threading.Event(), threading.Event()
            async with store.snapshot() as then:

                def hold() -> None:
                    with then._lock:
                        is_in.set()
                        may_go.wait(60)

                thread = threading.Thread(target=hold)
                thread.start()
                await asyncio.to_thread(is_in.wait)
                # The loop must be free for this while the block ends.
                asyncio.get_running_loop().call_later(0, may_go.set)
            thread.join()
            return may_go.is_set()

    assert asyncio.run(use())
