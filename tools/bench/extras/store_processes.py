"""Several processes at one store: memory of readers, rate of writers, and how soon a commit is seen elsewhere."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..peers.base import end, spawn
from ..peers.stores.base import DIM
from ..stats import summarise

__all__: list[str] = []

_MANY: Final = 8
_WARM_SHAPE: Final = (1 << 16, DIM)  # of a product that makes numpy allocate what it keeps
_READS: Final = 5
_PAUSE_S: Final = 0.002  # between commits that another process waits for


def _child(directory: str, records: int, quick: bool) -> dict[str, Any]:
    return {
        "writers": _writers(directory, 3 if quick else 7, 0.5 if quick else 1.5),
        "visible": _visible(directory, 200 if quick else 2000),
        "readers": _readers(directory, records),
    }


def _start(stack: ExitStack, target: Callable[..., None], *arguments: Any) -> Connection:
    """A process that begins with a message that it is ready."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = spawn(target, theirs, *arguments)
    theirs.close()
    stack.callback(end, process)
    stack.callback(ours.close)
    ours.recv()
    return ours


# -- readers ----------------------------------------------------------------------------------------------------------


def _pss_nbytes() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise KeyError("Pss")


def _read(connection: Connection, directory: str) -> None:
    from tr_mmap.store import Store

    query = np.ones(DIM, np.float32)
    np.zeros(_WARM_SHAPE, np.float32) @ query
    connection.send("ready")
    connection.recv()
    connection.send(_pss_nbytes())
    connection.recv()
    store = Store("filter", directory)
    for _ in range(_READS):
        hits = store.search(query)
        for hit in hits:
            record = store.get(hit.record.id)
            assert record is not None
            assert record.vector is not None
    connection.send("read")
    connection.recv()
    connection.send(_pss_nbytes())
    connection.recv()


def _grown_nbytes(directory: str, count: int) -> int:
    """By how much all readers together have grown, the pages that they share counted once."""
    with ExitStack() as stack:
        readers = [_start(stack, _read, directory) for _ in range(count)]

        def ask() -> list[Any]:
            for each in readers:
                each.send("go on")
            return [each.recv() for each in readers]

        before = ask()
        ask()
        after = ask()
        for each in readers:
            each.send("end")
    return int(sum(after) - sum(before))


def _readers(directory: str, records: int) -> dict[str, Any]:
    one, many = _grown_nbytes(directory, 1), _grown_nbytes(directory, _MANY)
    return {"count": _MANY, "one_nbytes": one, "many_nbytes": many, "vectors_nbytes": records * DIM * 4}


# -- writers ----------------------------------------------------------------------------------------------------------


def _write(connection: Connection, directory: str, number: int) -> None:
    from tr_mmap.store import Store

    store = Store("writers", directory)
    vectors = np.random.default_rng(number).standard_normal((64, DIM), np.float32)
    connection.send("ready")
    while True:
        try:
            seconds = connection.recv()
        except EOFError:
            return
        count, until_s = 0, time.monotonic() + seconds
        while time.monotonic() < until_s:
            store.add(f"record {count} of {number}", vector=vectors[count % 64], metadata={"n": count})
            count += 1
        connection.send(count)


def _writers(directory: str, rounds: int, seconds: float) -> dict[str, Any]:
    from tr_mmap.store import Store

    rates: dict[int, list[float]] = {1: [], _MANY: []}
    acknowledged = 0
    with ExitStack() as stack:
        store = stack.enter_context(Store("writers", directory))
        writers = [_start(stack, _write, directory, number) for number in range(_MANY)]
        for warm in (True, *[False] * rounds):
            for count, found in rates.items():
                began_s = time.monotonic()
                for each in writers[:count]:
                    each.send(0.1 if warm else seconds)
                written = sum(each.recv() for each in writers[:count])
                acknowledged += written
                if not warm:
                    found.append(written / (time.monotonic() - began_s))
        kept = store.stats().records
        wrong = store.check()
    return {
        "count": _MANY,
        "one_rate": float(np.median(rates[1])),
        "many_rate": float(np.median(rates[_MANY])),
        "lost": acknowledged - kept,
        "wrong": wrong[:3],
    }


# -- one writes, another sees it --------------------------------------------------------------------------------------


def _watch(connection: Connection, directory: str, count: int) -> None:
    from tr_mmap.store import Store

    clock = time.perf_counter_ns  # of the system: the same in all processes
    store = Store("visible", directory)
    connection.send("ready")
    seen: list[int] = []
    version = 1
    while len(seen) < count:
        record = store.get("clock")
        assert record is not None
        if record.version != version:
            seen += [clock()] * (record.version - version)  # one that it has missed is seen with the next
            version = record.version
    connection.send(seen)


def _visible(directory: str, count: int) -> dict[str, Any]:
    from tr_mmap.store import Store

    clock = time.perf_counter_ns
    called, returned = [], []
    with ExitStack() as stack:
        store = stack.enter_context(Store("visible", directory))
        store.add(id="clock", metadata={"n": 0}, vector=np.ones(DIM, np.float32))
        watcher = _start(stack, _watch, directory, count)
        for number in range(count):
            time.sleep(_PAUSE_S)
            called.append(clock())
            store.update("clock", metadata={"n": number})
            returned.append(clock())
        seen = watcher.recv()
    return {
        "from_call": summarise([there - here for there, here in zip(seen, called, strict=True)]).to_json(),
        "from_return": summarise([max(there - here, 0) for there, here in zip(seen, returned, strict=True)]).to_json(),
        "update": summarise([end_ - begin for begin, end_ in zip(called, returned, strict=True)]).to_json(),
    }


if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "quick")))
