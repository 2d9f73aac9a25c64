#!/usr/bin/env python3
"""What lmdb does on this machine, without the store: the figures that the store's design rests on.

    python tools/lmdb_facts.py [--quick] [DIRECTORY ...]

For each directory (by default one on tmpfs and the current one): how long a commit takes, with and without waiting for
the disk; what writers and readers that are killed at any moment leave; 4,000 readers at once; an empty environment.
Prints a Markdown table. Leaves nothing.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tr_mmap.store.environment import DATABASES

VALUE = bytes(1024)
READERS = 8192


def open_one(path: Path, *, is_synced: bool = False, readers: int = READERS) -> Any:
    return lmdb.open(
        str(path),
        map_size=1 << 32,
        max_dbs=len(DATABASES),
        max_readers=readers,
        sync=is_synced,
        metasync=is_synced,
        readahead=False,
        meminit=False,
        max_spare_txns=64,
    )


def text_us(samples_ns: list[int]) -> str:
    median, p99 = np.quantile(np.asarray(samples_ns) / 1000, [0.5, 0.99])
    return f"{median:,.1f} µs, p99 {p99:,.1f} µs"


def timed(action: Callable[[int], object], count: int) -> list[int]:
    samples = []
    for number in range(count):
        began = time.perf_counter_ns()
        action(number)
        samples.append(time.perf_counter_ns() - began)
    return samples


@contextmanager
def forked(action: Callable[[int], None], count: int = 1) -> Iterator[tuple[list[int], list[int]]]:
    """Processes that each run an action with the writing end of a pipe; killed at the end if they are still there."""
    pids, pipes = [], []
    try:
        for _ in range(count):
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    os.close(reading)
                    action(writing)
                    os._exit(0)
                except BaseException as error:
                    os.write(2, f"{error!r}\n".encode())
                    os._exit(1)
            os.close(writing)
            pids.append(pid)
            pipes.append(reading)
        yield pids, pipes
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for each in pipes:
            os.close(each)


def read_all(pipe: int) -> bytes:
    found = b""
    while piece := os.read(pipe, 65536):
        found += piece
    return found


# -- commits ----------------------------------------------------------------------------------------------------------


def commit_times(path: Path, is_synced: bool, count: int) -> str:
    with open_one(path, is_synced=is_synced) as environment:

        def commit(number: int) -> None:
            with environment.begin(write=True) as transaction:
                transaction.put(number.to_bytes(8, "big"), VALUE)

        return text_us(timed(commit, count))


def read_times(path: Path, count: int) -> str:
    with open_one(path) as environment:

        def read(number: int) -> None:
            with environment.begin() as transaction:
                transaction.get(number.to_bytes(8, "big"))

        return text_us(timed(read, count))


# -- kills ------------------------------------------------------------------------------------------------------------


def kill_writers(path: Path, rounds: int) -> dict[str, str]:
    """Kill a writer in each round, then count the commits that are lost or only half written.

    Each of its transactions writes one number under two keys. After the commit the writer sends the number through a
    pipe.
    """
    random_ = random.Random(1)
    lost = torn = inside = 0
    waits: list[int] = []
    last = 0
    for _ in range(rounds):

        def write(pipe: int, first: int = last) -> None:
            with open_one(path) as environment:
                number = first
                while True:
                    number += 1
                    os.write(pipe, b"b%8d\n" % number)  # it begins
                    with environment.begin(write=True) as transaction:
                        for key in (b"one", b"two"):
                            transaction.put(key, number.to_bytes(8, "big"))
                        for _ in range(20):
                            transaction.put(os.urandom(8), VALUE)
                        for each in list(transaction.cursor().iternext(values=False))[:20]:
                            if len(each) == 8:
                                transaction.delete(each)
                    os.write(pipe, b"e%8d\n" % number)  # it has ended

        with forked(write) as (pids, pipes):
            os.read(pipes[0], 1)
            time.sleep(random_.random() * 0.01)
            os.kill(pids[0], signal.SIGKILL)
            lines = read_all(pipes[0]).splitlines()
        acknowledged = max((int(line[1:]) for line in lines if line[:1] == b"e"), default=last)
        inside += not lines or lines[-1][:1] != b"e"
        with open_one(path) as environment:
            began = time.perf_counter_ns()
            with environment.begin(write=True) as transaction:
                waits.append(time.perf_counter_ns() - began)
                one, two = (int.from_bytes(transaction.get(key, b""), "big") for key in (b"one", b"two"))
            torn += one != two
            lost += one < acknowledged
            last = max(one, acknowledged)
    return {
        f"{rounds} killed writers": f"{inside} inside a transaction: {lost} commits lost, {torn} torn",
        "the next writer begins after": text_us(waits),
    }


def kill_readers(path: Path, processes: int, each: int) -> dict[str, str]:
    """Kill readers, then count the places that they leave in the reader table, and free them with ``reader_check``."""

    def hold(pipe: int) -> None:
        environment = open_one(path)
        held = [environment.begin() for _ in range(each)]
        os.write(pipe, b"r")
        signal.pause()
        del held

    with ExitStack() as stack:
        with forked(hold, processes) as (_, pipes):
            for pipe in pipes:
                os.read(pipe, 1)
            # Not earlier, because a child must not inherit it; not later, because the first process that opens an
            # environment which nobody else has open finds an empty reader table.
            environment = stack.enter_context(open_one(path))
        left = len(environment.readers().splitlines()) - 1
        began = time.perf_counter_ns()
        freed = environment.reader_check()
        took = (time.perf_counter_ns() - began) / 1e6
    return {
        f"{processes * each:,} killed readers": f"{left:,} places left; reader_check freed {freed:,} in {took:.1f} ms"
    }


# -- many readers -----------------------------------------------------------------------------------------------------


def many_readers(path: Path, processes: int, each: int, count: int) -> dict[str, str]:
    def hold(pipe: int) -> None:
        environment = open_one(path)
        began = time.perf_counter_ns()
        held = [environment.begin() for _ in range(each)]
        took = time.perf_counter_ns() - began
        for transaction in held:
            transaction.get(b"one")
        os.write(pipe, b"%20d" % (took // each))
        signal.pause()

    found = {}
    with forked(hold, processes) as (_, pipes):  # before this process opens it: a child must not inherit that
        begins = [int(os.read(pipe, 20)) for pipe in pipes]
        with open_one(path) as environment:
            places = len(environment.readers().splitlines()) - 1

            def commit(number: int) -> None:
                with environment.begin(write=True) as transaction:
                    transaction.put(number.to_bytes(8, "big"), VALUE)

            def read(_: int) -> None:
                with environment.begin() as transaction:
                    transaction.get(b"one")

            found[f"{processes} × {each} readers at once"] = (
                f"{places:,} places; each began in {np.median(begins) / 1000:.1f} µs"
            )
            found["a commit meanwhile"] = text_us(timed(commit, count))
            found["a read meanwhile"] = text_us(timed(read, count))
    small = path / "small"
    small.mkdir()
    with open_one(small, readers=16) as environment:
        held = []
        try:
            while True:
                held.append(environment.begin())
        except lmdb.ReadersFullError:
            found["a table of 16 readers"] = f"ReadersFullError after {len(held)}"
        del held
    return found


# -- sizes ------------------------------------------------------------------------------------------------------------


def empty_sizes(path: Path) -> dict[str, str]:
    found = {}
    for readers in (126, READERS):
        own = path / str(readers)
        own.mkdir()
        with open_one(own, readers=readers) as environment:
            with environment.begin(write=True) as transaction:
                for number in range(len(DATABASES)):
                    environment.open_db(str(number).encode(), txn=transaction)
            sizes = {each.name: os.stat(each).st_blocks / 2 for each in sorted(own.iterdir())}
        shown = ", ".join(f"{name} {kib:.0f} KiB" for name, kib in sizes.items())
        found[f"empty, {len(DATABASES)} databases, {readers:,} readers"] = shown
    return found


def facts(directory: Path, quick: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="tr_lmdb_", dir=directory) as name:
        count = 0

        def fresh() -> Path:
            nonlocal count
            count += 1
            path = Path(name) / str(count)
            path.mkdir()
            return path

        plain = fresh()
        found["a commit of 1 KiB"] = commit_times(plain, False, 500 if quick else 5000)
        found["the same, waiting for the disk"] = commit_times(fresh(), True, 30 if quick else 300)
        found["a read of 1 KiB"] = read_times(plain, 1000 if quick else 20_000)
        found |= kill_writers(fresh(), 20 if quick else 300)
        found |= kill_readers(plain, 4, 100 if quick else 500)
        found |= many_readers(plain, 8, 50 if quick else 500, 200 if quick else 2000)
        found |= empty_sizes(fresh())
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="*", type=Path, default=[Path("/dev/shm"), Path.cwd()])
    parser.add_argument("--quick", action="store_true", help="fewer of everything")
    options = parser.parse_args()
    columns = {str(each): facts(each, options.quick) for each in options.directory}
    print(f"lmdb {lmdb.__version__}, LMDB {'.'.join(map(str, lmdb.version()))}, Python {sys.version.split()[0]}\n")
    print("| | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns))
    keys = list(dict.fromkeys(key for each in columns.values() for key in each))
    for key in keys:
        print(f"| {key} | " + " | ".join(each.get(key, "—") for each in columns.values()) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
