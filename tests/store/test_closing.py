"""A handle is closed while other threads are in any of its methods: each call comes to its end, or says so.

LMDB takes a closed environment's memory away from whoever is reading it. So what goes wrong here is a signal; the
processes that try it are children.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import Mother, say
from support import forks

from tr_mmap.store import SnapshotExpired, Store, StoreClosed
from tr_mmap.store.catalogue import Catalogue

COUNT = 400
OPTIONS: dict[str, Any] = {"indexed": ("kind",), "dim": 8}


def prepare(root: Path | str) -> None:
    with Store("shared", root, **OPTIONS) as store:
        store.add_many(
            {
                "id": f"r{number}",
                "content": f"some words of record {number} " * 4,
                "vector": np.ones(8) * number,
                "metadata": {"kind": number % 5},
                "user_id": f"u{number % 3}",
            }
            for number in range(COUNT)
        )


def _in_snapshot(store: Store) -> bool:
    with store.snapshot() as then:
        return len(then.get_all()) >= COUNT and len(then.search("words", limit=9)) == 9


READS: dict[str, Callable[[Store], bool]] = {
    "get": lambda store: store.get("r5").metadata == {"kind": 0},  # type: ignore[union-attr]
    "get_all": lambda store: len(store.get_all(limit=50)) == 50,
    "words": lambda store: len(store.search("words", limit=50)) == 50,
    "near": lambda store: len(store.search(np.ones(8), limit=5)) == 5,
    "filter": lambda store: len(store.get_all(filters={"kind": 3, "id": {"ne": "x"}}, user_id="u1")) > 0,
    "history": lambda store: [event.event for event in store.history("r7")] == ["add"],
    "stats": lambda store: store.stats().records >= COUNT,
    "check": lambda store: store.check() == [],
    "snapshot": _in_snapshot,
    "clone": lambda store: _cloned(store),
}
WRITES: dict[str, Callable[[Store], bool]] = {
    "add": lambda store: bool(
        store.add("new words", vector=np.ones(8), tensors={"t": np.ones(9)}, metadata={"kind": 9})
    ),
    "clear": lambda store: store.clear(filters={"kind": 9}) >= 0,
    "compact": lambda store: store.compact() >= 0,
}


def _cloned(store: Store) -> bool:
    with store.clone() as twin:
        return twin.get("r5") is not None


@pytest.mark.each_value
@pytest.mark.parametrize("name", [name for name in READS if name not in ("get", "clone")])
@pytest.mark.parametrize("how", ["close", "give up"])
def test_a_call_in_which_the_store_is_closed_comes_to_its_end(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    prepare(root)
    store = Store("shared", root)
    store.search(np.ones(8), limit=1)  # it knows its slabs
    original, begun = Catalogue._begin, []

    def begin(self: Catalogue) -> Any:
        transaction = original(self)
        if not begun:
            begun.append(transaction)
            other = threading.Thread(target=store.close if how == "close" else transaction.environment.give_up)
            other.start()
            other.join()
        return transaction

    monkeypatch.setattr(Catalogue, "_begin", begin)
    try:
        assert READS[name](store)
    except (StoreClosed, SnapshotExpired):
        assert name in ("check", "snapshot", "stats")  # of several calls
    with pytest.raises(Exception, match="closed"):
        begun[0].environment.raw.info()
    monkeypatch.undo()
    store.close()
    with Store("shared", root) as again:
        assert all(read(again) for read in READS.values())


def use_and_close(root: str, names: list[str], closings: int, how: str) -> None:
    """In a child: threads that use a handle, which is closed again and again; what else than ``StoreClosed`` came."""
    signal.alarm(100)
    current = [Store("shared", root)]
    is_over = threading.Event()
    begun = threading.Semaphore(0)
    wrong: list[str] = []
    right = [0]

    def use(name: str) -> None:
        while not is_over.is_set():
            begun.release()
            try:
                if name == "check":
                    wrong.extend(current[0].check())
                elif not {**READS, **WRITES}[name](current[0]):
                    wrong.append(name)
                right[0] += 1
            except (StoreClosed, SnapshotExpired):
                pass
            except BaseException as error:
                wrong.append(f"{name}: {error!r:.200}")

    threads = [threading.Thread(target=use, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for number in range(closings):
        for _ in range(1 + number % 4):
            begun.acquire()
        if how == "close":
            current[0].close()
            current[0] = Store("shared", root)
        else:
            with current[0]._catalogue.read() as transaction:
                environment = transaction.environment
            environment.give_up()
    is_over.set()
    for thread in threads:
        thread.join()
    with Store("shared", root) as store:
        wrong += store.check()
    say("wrong", wrong)
    say("right", right[0] > 0)


@pytest.mark.parametrize("how", ["close", "give up"])
@pytest.mark.parametrize("names", [["get", "words", "get_all"], ["filter", "near", "get"], [*READS, *WRITES]], ids=len)
def test_a_store_is_closed_while_threads_are_anywhere_in_it(
    mother: Mother, root: Path, names: list[str], how: str, is_full: bool
) -> None:
    prepare(root)
    closings = 2000 if is_full else 25
    assert mother.run("test_closing.use_and_close", str(root), names, closings, how) == (
        [["wrong", []], ["right", True]],
        0,
    )


def fork_and_close(root: str, forks: int) -> None:
    """In a child: it forks children of its own, which close what they have, while threads of it are in calls."""
    signal.alarm(100)
    store = Store("shared", root)
    is_over = threading.Event()
    wrong: list[str] = []

    def use() -> None:
        while not is_over.is_set():
            wrong.extend(name for name in ("words", "filter", "get") if not READS[name](store))

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    then = store.snapshot()
    for number in range(forks):
        with store._catalogue.read() as transaction:
            pid = os.fork()
            if pid == 0:
                signal.alarm(30)
                try:
                    if number % 2:
                        assert all(READS[name](store) for name in ("words", "get"))
                    then.close()
                    store.close()
                    with pytest.raises(StoreClosed):
                        store.get("r5")
                    with Store("shared", root) as own:
                        assert READS["filter"](own)
                except BaseException as error:
                    os.write(2, repr(error).encode())
                    os._exit(1)
        if pid == 0:
            os._exit(0)  # it has left the parent's call too
        wrong += [] if os.waitpid(pid, 0)[1] == 0 else ["child"]
        del transaction
    is_over.set()
    for thread in threads:
        thread.join()
    wrong += [] if len(then.get_all()) == COUNT else ["snapshot"]
    then.close()
    store.close()
    say("wrong", wrong)


@forks
def test_a_forked_child_closes_what_it_has_and_nothing_of_its_parent(mother: Mother, root: Path, is_full: bool) -> None:
    prepare(root)
    assert mother.run("test_closing.fork_and_close", str(root), 300 if is_full else 12) == ([["wrong", []]], 0)


def test_a_snapshot_shows_its_moment_when_the_store_is_closed(root: Path) -> None:
    prepare(root)
    store = Store("shared", root)
    with store.snapshot() as then:
        store.close()
        with Store("shared", root) as other:
            other.clear()
        assert len(then.get_all()) == COUNT
        assert len(then.search("words", limit=7)) == 7
    with pytest.raises(SnapshotExpired):
        then.get("r5")


def test_the_last_to_leave_closes_lmdb(root: Path) -> None:
    prepare(root)
    one, other = Store("shared", root), Store("shared", root)
    with one._catalogue.read() as transaction:
        one.close()
        other.close()
        environment = transaction.environment
        assert environment.raw.info()["num_readers"]
    with pytest.raises(Exception, match="closed"):
        environment.raw.info()


def test_a_store_that_is_opened_again_while_a_call_is_in_it_is_the_same(root: Path) -> None:
    prepare(root)
    store = Store("shared", root)
    with store._catalogue.read() as transaction:
        store.close()
        with Store("shared", root) as again:
            assert all(read(again) for read in READS.values())
            with again._catalogue.read() as other:
                assert other.environment is transaction.environment
    with Store("shared", root) as again:
        assert all(read(again) for read in READS.values())


def test_a_clone_outlives_the_handle_that_it_is_of(root: Path) -> None:
    prepare(root)
    with Store("shared", root) as store:
        twin = store.clone()
    with twin:
        assert all(action(twin) for action in {**READS, **WRITES}.values())
        for number in range(40):
            twin.delete(f"r{number}")
        twin.compact()
        with twin._catalogue.read() as transaction:
            assert list(transaction.items("garbage")) == []
    with Store("shared", root, scope="u1") as store:
        with pytest.raises(Exception, match="bound to the user"):
            store.clone(scope="u2")
        with store._catalogue.read() as transaction:
            environment = transaction.environment
    with pytest.raises(Exception, match="closed"):
        environment.raw.info()  # no handle was left over
