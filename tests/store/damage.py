"""What a process meets in a store whose files were changed: for each method the right answer, an error, or not."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from children import say
from writer import fields_of, is_whole, vector_of

from tr_mmap import TRException
from tr_mmap.store import Store

COUNT = 60
IDS = [f"r{number}" for number in range(COUNT)]


def prepare(root: Path, durability: str = "memory") -> None:
    with Store("shared", root, indexed=("version",), durability=durability) as store:
        store.add_many({"id": each, **fields_of(each, 1)} for each in IDS)
        for each in IDS[::4]:
            store.update(each, **fields_of(each, 2))
        store.add("a long text " * 2000, id="long")
        store.delete("long")
        gone = store.add_many({"content": f"gone {number}"} for number in range(20))
        for each in gone:
            store.delete(each)


def look(root: str, is_writer: bool) -> None:
    """Use everything; say of each method whether it was right, an error, or wrong, and what kind of error."""
    signal.alarm(60)

    def right(record: Any) -> bool:
        return record is not None and is_whole(record) and record.version == (2 if record.id in IDS[::4] else 1)

    def ask(name: str, action: Callable[[Store], bool]) -> None:
        try:
            with Store("shared", root) as store:
                outcome = "right" if action(store) else "wrong"
        except TRException as error:
            outcome = "stray: lines" if "\n" in str(error) else type(error).__name__
        except OSError as error:
            outcome = type(error).__name__
        except Exception as error:
            outcome = f"stray {error!r:.200}"
        say(name, outcome)

    ask("check", lambda store: store.check() == [])
    ask("get", lambda store: all(right(store.get(each)) for each in IDS))
    ask("get_now", lambda store: all(found is ... or right(found) for found in map(store.get_now, IDS)))
    ask("list", lambda store: {each.id for each in store.get_all() if right(each)} == set(IDS))
    ask("filter", lambda store: len(store.get_all(filters={"version": 2})) == len(IDS[::4]))
    ask("near", lambda store: store.search(vector_of("r5", 1), limit=3)[0].record.id == "r5")
    ask("words", lambda store: len(store.search("version", limit=100)) == COUNT)
    ask("history", lambda store: [event.version for event in store.history("r4")] == [1, 2])
    ask("snapshot", lambda store: _in_snapshot(store))
    if is_writer:
        ask("add", lambda store: store.add(id="new", **fields_of("new", 1)) == "new" and is_whole(store.get("new")))
        ask("update", lambda store: store.update("r1", content="x").version == 2)
        ask("delete", lambda store: store.delete("r2") and store.get("r2") is None)
        ask("compact", lambda store: store.compact() >= 0)
        ask("clear", lambda store: store.clear() > 0)


def _in_snapshot(store: Store) -> bool:
    with store.snapshot() as then:
        return {each.id for each in then.get_all()} == set(IDS) and bool(then.search(np.ones(16)))
