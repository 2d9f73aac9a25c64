"""What processes do with a store until they are killed, and how to tell whether a record is all of one version."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from typing import Any

import numpy as np
from children import say

from tr_mmap.store import Store, VersionConflict
from tr_mmap.store.catalogue import Catalogue

DIM = 16


def vector_of(record_id: str, version: int) -> np.ndarray[Any, Any]:
    """The vector that this version of a record has."""
    return np.random.default_rng([*record_id.encode(), version]).random(DIM).astype(np.float32)


def tensors_of(record_id: str, version: int) -> dict[str, Any]:
    random_ = np.random.default_rng([version, *record_id.encode()])
    large = {"large": random_.random(20_000)} if version % 3 == 0 else {}
    return {"a": random_.integers(0, 99, 7), "b": random_.random((3, 4)), **large}


def fields_of(record_id: str, version: int) -> dict[str, Any]:
    """All that this version of a record says."""
    return {
        "content": f"{record_id} in version {version}",
        "vector": vector_of(record_id, version),
        "tensors": tensors_of(record_id, version),
        "metadata": {"version": version},
    }


def is_whole(record: Any) -> bool:
    """Whether a record is all of one version."""
    version = record.metadata.get("version", 0)
    expected = fields_of(record.id, version)
    return bool(
        record.version == version
        and record.content == expected["content"]
        and record.vector.tobytes() == expected["vector"].tobytes()
        and record.tensors.keys() == expected["tensors"].keys()
        and all(record.tensors[name].tobytes() == each.tobytes() for name, each in expected["tensors"].items())
    )


def work(path: str, name: str, durability: str = "memory", steps: int = 10**9) -> None:
    """Change records of the own name; say before each change what it is to be, and after it that it is done."""
    store = Store("shared", path, indexed=("version",), durability=durability)
    random_ = random.Random(name)
    own: dict[str, int] = {}
    say("begun")
    for step in range(steps):
        kind = random_.random()
        if kind < 0.4 or not own:
            several = [f"{name}-{step}-{each}" for each in range(random_.choice((1, 1, 1, 3)))]
            say("trying", dict.fromkeys(several, 1))
            store.add_many({"id": each, **fields_of(each, 1)} for each in several)
            own.update(dict.fromkeys(several, 1))
        elif kind < 0.75:
            record_id = random_.choice(list(own))
            say("trying", {record_id: own[record_id] + 1})
            store.update(record_id, **fields_of(record_id, own[record_id] + 1))
            own[record_id] += 1
        elif kind < 0.95:
            record_id = random_.choice(list(own))
            say("trying", {record_id: None})
            assert store.delete(record_id), "lost"
            del own[record_id]
        else:
            say("trying", {})
            store.compact()
        say("done")


def work_and_die_inside(path: str, name: str, nth: int, part: float) -> None:
    """As :func:`work`; a timer ends this process, by SIGALRM, in its nth write, or soon after it.

    Args:
        path: as there.
        name: as there.
        nth: which transaction that writes, 2 or more.
        part: of how long the write before it has taken, after which the timer ends.
    """
    die_inside(nth, part)
    work(path, name)


def die_inside(nth: int, part: float) -> None:
    """Say of each transaction that writes when it has begun ("inside") and when it is over ("outside"); see above."""
    original = Catalogue.write
    number = 0
    took_s = 0.0

    def write(catalogue: Catalogue, action: Any) -> Any:
        nonlocal number, took_s
        began = 0.0

        def noted(transaction: Any) -> Any:
            nonlocal number, began
            number += 1
            say("inside")
            if number >= nth:
                signal.setitimer(signal.ITIMER_REAL, max(part * took_s, 1e-6))
            began = time.perf_counter()
            return action(transaction)

        try:
            result = original(catalogue, noted)
            took_s = time.perf_counter() - began
            return result
        finally:
            say("outside")

    Catalogue.write = write  # type: ignore[method-assign]


def count(path: str, times: int) -> None:
    """Add 1 to a record's number, again and again."""
    store = Store("shared", path)
    for _ in range(times):
        while True:
            found = store.get("counter")
            assert found is not None
            try:
                store.update("counter", metadata={"n": found.metadata["n"] + 1}, if_version=found.version)
                break
            except VersionConflict:
                pass
    store.close()


def hold(path: str, snapshots: int) -> None:
    """Hold places in the table of readers, and die with them."""
    store = Store("shared", path)
    held = [store._catalogue.begin() for _ in range(snapshots)]
    say("holding", len(held))
    os.kill(os.getpid(), 9)


class Ledger:
    """What a test knows of records from what their writers have said."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self.open: dict[str, int | None] = {}  # changes that nobody has acknowledged

    def take(self, said: list[list[Any]]) -> None:
        """What a writer has said until it ended."""
        trying: dict[str, int | None] | None = None
        for word, *rest in said:
            if word == "trying":
                trying = rest[0]
            elif word == "done":
                assert trying is not None
                for record_id, version in trying.items():
                    if version is None:
                        self.known.pop(record_id)
                    else:
                        self.known[record_id] = version
                trying = None
        self.open = trying or {}

    def check(self, store: Store) -> None:
        """All that was acknowledged is there, bit for bit; what was not is there whole, or as before."""
        of_open = {record_id: store.get(record_id) for record_id in self.open}
        if all(version == 1 for version in self.open.values()):
            assert len({found is None for found in of_open.values()}) <= 1, "half of one commit"
        for record_id, version in self.open.items():
            found = of_open[record_id]
            before = self.known.get(record_id)
            assert (None if found is None else found.version) in (before, version), record_id
            if found is None:
                self.known.pop(record_id, None)
            else:
                self.known[record_id] = found.version
        self.open = {}
        for record_id, version in self.known.items():
            found = store.get(record_id)
            assert found is not None, f"{record_id} is lost"
            assert found.version == version, record_id
            assert is_whole(found), record_id


if __name__ == "__main__":  # of a trace: with small slabs, so that several are filled
    from tr_mmap.store import core

    core.FIRST_ROWS = 8  # type: ignore[misc]
    work(*sys.argv[1:4], steps=int(sys.argv[4]))
