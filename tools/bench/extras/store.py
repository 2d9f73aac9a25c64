"""Stores of records: ``get`` and exact search beside other ways to keep records; several processes; asyncio."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..peers.base import end, missing, spawn
from ..peers.stores import STORES
from ..peers.stores.base import DIM, serve
from ..stats import summarise
from .common import run_child

__all__ = ["make_vectors", "run"]

_GET_RECORDS: Final = 10_000
_TOP_RECORDS: Final = 100_000
_QUICK_TOP_RECORDS: Final = 20_000
_START_S: Final = 300  # until a peer has all its records
_ANSWER_S: Final = 60
_SHM: Final = "/dev/shm" if os.path.isdir("/dev/shm") else None

_Running = dict[str, tuple[Connection, BaseProcess]]


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    if (reason := missing("lmdb")) is not None:
        return {"skipped": reason}
    absent = {key: reason for key, peer in STORES.items() if (reason := peer().unavailable()) is not None}
    found: dict[str, Any] = {"absent": absent, "failed": {}}
    top_records = _QUICK_TOP_RECORDS if quick else _TOP_RECORDS
    with tempfile.TemporaryDirectory(prefix="tr_bench_store_", dir=_SHM) as name:
        directory = Path(name)
        vectors = str(directory / "vectors.npy")
        np.save(vectors, make_vectors(top_records))
        for what, records, rounds, most, quota_s in (
            ("get", _GET_RECORDS, 8 if quick else 30, 200, 0.05),
            ("top", top_records, 6 if quick else 20, 10, 0.3),
        ):
            found[what] = _compare(what, vectors, directory, records, rounds, most, quota_s, say, found)
            found[what]["records"] = records
        for part in ("own", "loop", "processes"):
            say(f"stores: {part}")
            found |= run_child(f"{__package__}.store_{part}", name, str(top_records), "quick" if quick else "full")
    return found


def make_vectors(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Random vectors of length 1, the same in each run."""
    vectors = np.random.default_rng(0).standard_normal((count, DIM), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _compare(
    what: str,
    vectors: str,
    directory: Path,
    records: int,
    rounds: int,
    most: int,
    quota_s: float,
    say: Callable[[str], None],
    found: dict[str, Any],
) -> dict[str, Any]:
    """Each peer in a process of its own; they take turns, so that one of them works at a time."""
    keys = [key for key, peer in STORES.items() if (peer.has_get if what == "get" else peer.has_top)]
    keys = [key for key in keys if key not in found["absent"] and key not in found["failed"]]
    running: _Running = {}
    samples: dict[str, list[int]] = {}
    try:
        for key in keys:
            say(f"stores: {STORES[key].label} gets its records")
            reason = _start(key, vectors, directory / f"{what}-{key}", records, running)
            if reason is not None:
                found["failed"][key] = reason
        say(f"stores: {what}")
        for _ in range(rounds):
            for key, (connection, _) in list(running.items()):
                connection.send((what, most, quota_s))
                try:
                    if not connection.poll(_ANSWER_S):
                        raise EOFError
                    samples.setdefault(key, []).extend(connection.recv())
                except EOFError:
                    found["failed"][key] = "failed: its process has ended, or does not answer"
                    _stop(running.pop(key))
                    samples.pop(key, None)
    finally:
        for each in running.values():
            _stop(each)
    return {key: summarise(each).to_json() for key, each in samples.items()}


def _start(key: str, vectors: str, directory: Path, records: int, running: _Running) -> str | None:
    """Start a peer in a process of its own, and add it to ``running``. Returns why that failed; None if it did not."""
    directory.mkdir()
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    count = min(records, STORES[key].most_records)
    process = spawn(serve, theirs, STORES[key], str(directory), vectors, count)
    theirs.close()
    try:
        if not ours.poll(_START_S):
            raise EOFError
        reason: str | None = ours.recv()
    except EOFError:
        reason = "failed: its process has ended, or takes too long"
    if reason is None:
        running[key] = ours, process
        return None
    _stop((ours, process))
    return reason


def _stop(peer: tuple[Connection, BaseProcess]) -> None:
    peer[0].close()
    end(peer[1])
