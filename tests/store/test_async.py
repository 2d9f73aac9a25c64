"""A store in asyncio: nothing that may take long happens in the loop, and a cancelled task leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_support import embed
from support import wait_until

from tr_mmap import BadMessage
from tr_mmap.store import AsyncStore, Store, environment, views
from tr_mmap.store.catalogue import Catalogue
from tr_mmap.store.compat import AsyncMemory
from tr_mmap.store.environment import Environment
from tr_mmap.store.places import Places
from tr_mmap.store.threads import do


class Gate:
    """Holds up whoever comes by, until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Semaphore(0)
        self.is_open = threading.Event()

    def pass_by(self) -> None:
        self.reached.release()
        assert self.is_open.wait(60)

    async def wait(self, count: int = 1) -> None:
        """Until so many are held up."""
        for _ in range(count):
            assert await asyncio.to_thread(self.reached.acquire, timeout=60)


@contextmanager
def gate_before(patch: pytest.MonkeyPatch, owner: Any, name: str) -> Iterator[Gate]:
    original, gate = getattr(owner, name), Gate()

    def held_up(*arguments: Any, **options: Any) -> Any:
        gate.pass_by()
        return original(*arguments, **options)

    with patch.context() as context:
        context.setattr(owner, name, held_up)
        yield gate
        gate.is_open.set()


def join_threads() -> None:
    """Until what was begun in threads of its own has ended, and what that has begun."""
    while found := [each for each in threading.enumerate() if each.name == "tr_store_once"]:
        for each in found:
            each.join(60)


def open_files(root: Path) -> list[str]:
    """Of stores in a folder, in this process."""
    links = Path("/proc/self/fd").iterdir()
    return [found for each in links if (found := os.path.realpath(each)).startswith(f"{root}/")]


# -- the loop ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def places_of_work(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was done in which thread: decoding of long records, opening of files of tensors."""
    found: list[tuple[str, str]] = []

    def note(owner: Any, name: str, is_noted: Callable[..., bool]) -> None:
        original = getattr(owner, name)

        def noting(*arguments: Any, **options: Any) -> Any:
            if is_noted(*arguments):
                found.append((name, threading.current_thread().name.rpartition("_")[0]))
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, noting)

    note(views, "decode_record", lambda raw: len(raw) > 100_000)
    note(Places, "open_tensors", lambda *_: True)
    note(Catalogue, "value", lambda *_: True)
    return found


def test_what_takes_long_to_get_is_got_in_a_thread_and_what_does_not_in_the_loop(
    root: Path, places_of_work: list[tuple[str, str]]
) -> None:
    async def use() -> None:
        async with await AsyncStore.open("loop", root) as store:
            await store.add("short", id="short", vector=np.ones(4), tensors={"one": np.ones(9)})
            await store.add("long " * 100_000, id="long")
            await store.add(id="many", tensors={f"t{number}": np.ones(9) for number in range(400)})
            await store.get("short")  # its slab is mapped now
            places_of_work.clear()
            short = await store.get("short")
            assert short is not None
            assert short.tensors["one"].tolist() == [1] * 9
            assert await store.get("nobody") is None
            assert places_of_work == []
            long = await store.get("long")
            assert long is not None
            assert len(long.content or "") == 500_000
            assert places_of_work == [("value", "tr_store"), ("decode_record", "tr_store")]
            places_of_work.clear()
            many = await store.get("many")
            assert many is not None
            assert len(many.tensors) == 400
            assert places_of_work == [("value", "tr_store"), ("open_tensors", "tr_store")]

    asyncio.run(use())


def test_a_long_memory_of_another_programs_names_is_got_in_a_thread(
    root: Path, places_of_work: list[tuple[str, str]]
) -> None:
    async def use() -> None:
        async with await AsyncMemory.create("loop", root) as memory:
            added = await memory.add("long " * 100_000, user_id="u")
            places_of_work.clear()
            found = await memory.get(added["results"][0]["id"])
            assert found is not None
            assert len(found["memory"]) == 500_000
            assert {thread for _, thread in places_of_work} == {"tr_store"}

    asyncio.run(use())


def test_slow_embeddings_hold_up_nothing_that_needs_none(root: Path) -> None:
    gate = Gate()

    def slowly(texts: list[str]) -> Any:
        gate.pass_by()
        return embed(texts)

    async def use() -> None:
        async with await AsyncStore.open("slow", root, embedder=slowly) as store:
            slow = [
                asyncio.create_task(each)
                for each in (
                    store.add("one"),
                    store.add_many([{"content": "two"}]),
                    store.search("three"),
                    store.add("four", id="four"),
                    store.add("five"),
                )
            ]
            await gate.wait(4)
            row = np.ones(26)
            await store.add("with a vector", id="it", vector=row)
            await store.add_many([{"content": "with a vector", "vector": row}])
            assert (await store.update("it", metadata={"n": 1})).version == 2
            assert (await store.update("it", content="other", vector=row)).version == 3
            assert len(await store.search(row)) == 2
            assert [hit.record.id for hit in await store.search("other", mode="text")] == ["it"]
            assert len(await store.history("it")) == 3
            assert len(await store.get_all()) == 2
            assert (await store.stats()).records == 2
            assert not any(each.done() for each in slow)
            gate.is_open.set()
            await asyncio.gather(*slow)
            assert (await store.stats()).records == 6

    asyncio.run(use())


# -- tasks that are cancelled -----------------------------------------------------------------------------------------


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_snapshot_that_is_cancelled_while_it_is_taken_shows_nothing_to_nobody(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def take(store: AsyncStore) -> None:
        async with store.snapshot(max_age_s=3600):
            raise AssertionError

    def timers() -> set[threading.Thread]:
        return {each for each in threading.enumerate() if isinstance(each, threading.Timer) and each.is_alive()}

    before = timers()  # of other tests

    async def use() -> None:
        async with await AsyncStore.open("cancelled", root) as store:
            for turns in range(20):  # of the loop, before it is cancelled
                task = asyncio.create_task(take(store))
                for _ in range(turns % 4):
                    await asyncio.sleep(0)
                await cancel(task)
            with gate_before(monkeypatch, Catalogue, "begin") as gate:
                task = asyncio.create_task(take(store))
                await gate.wait()
                await cancel(task)
            await asyncio.to_thread(join_threads)
            assert (await store.stats()).readers == 0
            await asyncio.to_thread(wait_until, lambda: not timers() - before)  # a cancelled one ends later

    asyncio.run(use())


def test_a_snapshot_is_closed_although_its_task_is_cancelled_and_all_threads_work(root: Path) -> None:
    async def use() -> None:
        async with await AsyncStore.open("cancelled", root) as store:
            gate = Gate()
            is_in = asyncio.Event()
            busy = [asyncio.create_task(store._threads.run(gate.pass_by)) for _ in range(4)]
            await gate.wait(4)

            async def look() -> None:
                async with store.snapshot(max_age_s=3600):
                    is_in.set()
                    await asyncio.Event().wait()

            task = asyncio.create_task(look())
            await is_in.wait()
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()  # again, while it closes
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(join_threads)
            assert store._store.stats().readers == 0
            gate.is_open.set()
            await asyncio.gather(*busy)

    asyncio.run(use())


@pytest.mark.parametrize("made", [AsyncStore.open, AsyncMemory.create])
def test_an_opening_that_is_cancelled_leaves_no_open_store(
    root: Path, monkeypatch: pytest.MonkeyPatch, made: Any
) -> None:
    async def use() -> None:
        with gate_before(monkeypatch, environment, "share") as gate:
            task = asyncio.create_task(made("cancelled", root))
            await gate.wait()
            await cancel(task)
        await asyncio.to_thread(join_threads)
        assert open_files(root) == []

    asyncio.run(use())


def test_a_closing_that_is_cancelled_closes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use() -> None:
        store = await AsyncStore.open("cancelled", root)
        with gate_before(monkeypatch, Environment, "release") as gate:
            task = asyncio.create_task(store.close())
            await gate.wait()
            await cancel(task)
        await asyncio.to_thread(join_threads)
        assert open_files(root) == []

    asyncio.run(use())


def test_a_change_whose_task_is_cancelled_is_made_whole(root: Path) -> None:
    gate = Gate()

    def slowly(texts: list[str]) -> Any:
        gate.pass_by()
        return embed(texts)

    async def use() -> None:
        async with await AsyncStore.open("cancelled", root, embedder=slowly) as store:
            task = asyncio.create_task(store.add("words", id="it", tensors={"t": np.ones(3)}))
            await gate.wait()
            await cancel(task)
            gate.is_open.set()

    asyncio.run(use())
    with Store("cancelled", root) as store:
        found = store.get("it")
        assert found is not None
        assert found.tensors["t"].tolist() == [1, 1, 1]
        assert found.vector is not None
        assert store.check() == []


def test_an_error_in_a_thread_arrives_as_it_is(root: Path) -> None:
    async def use() -> None:
        with pytest.raises(BadMessage, match="name"):
            await AsyncStore.open("no name/", root)
        with pytest.raises(ZeroDivisionError):
            await do(lambda: 1 / 0)
        async with await AsyncStore.open("errors", root) as store:
            for wrong in (None, 0, -1, float("nan"), float("inf"), "60", True):
                with pytest.raises(BadMessage, match="max_age_s"):
                    async with store.snapshot(max_age_s=wrong):  # type: ignore[arg-type]
                        pass

    asyncio.run(use())
