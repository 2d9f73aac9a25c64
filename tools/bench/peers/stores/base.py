"""The interface of the stores that the benchmark compares. Each runs in a process of its own; one works at a time.

All keep the same records: an id, a text, a user, one field of metadata and a vector of float32 of length 1. ``get``
gives the vector of a record after the whole record was read; ``top`` gives the numbers of the records whose vectors are
nearest by their cosine, nearest first.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, ClassVar, Final

import numpy as np

from ..base import Array

__all__ = ["DIM", "LIMIT", "StorePeer", "id_of", "number_of", "serve", "text_of"]

DIM: Final = 384
LIMIT: Final = 10  # how many a search wants
_QUERIES: Final = 64
_NOISE: Final = 0.3  # of a query beside the vector that it asks for


class StorePeer(ABC):
    """One way to keep records.

    Attributes:
        key: what the results call it.
        label: what people read.
        has_get: whether it keeps whole records.
        has_top: whether it finds the nearest vectors exactly.
        most_records: that it keeps in the comparison of ``get``, which does not depend on their number.
        note: what a reader has to know to judge its figures; may be empty.
    """

    key: ClassVar[str]
    label: ClassVar[str]
    has_get: ClassVar[bool] = True
    has_top: ClassVar[bool] = True
    most_records: ClassVar[int] = 1_000_000
    note: ClassVar[str] = ""

    def unavailable(self) -> str | None:
        """Why it cannot be measured here; None if it can."""
        return None

    @abstractmethod
    def open(self, directory: str) -> None:
        """Open an empty one, in a folder on tmpfs that is removed later."""

    @abstractmethod
    def fill(self, vectors: Array) -> None:
        """Add a record for each vector, with the numbers from 0 on."""

    def get(self, number: int) -> Array | None:  # noqa: ARG002
        """The vector of a record; None if the peer does not give it away."""
        raise TypeError(f"{self.label} keeps no records")

    def top(self, query: Array) -> list[int]:  # noqa: ARG002
        """The records that are nearest."""
        raise TypeError(f"{self.label} does not rank")

    @abstractmethod
    def close(self) -> None:
        """Close it and free what it holds. May be called after ``open`` failed."""


def id_of(number: int) -> str:
    return f"record-{number:06d}"


def number_of(record_id: str) -> int:
    return int(record_id.rpartition("-")[2])


def text_of(number: int) -> str:
    return f"The note of number {number}: what was said on that day, and by whom, in some sixty letters."


def serve(connection: Connection, kind: type[StorePeer], directory: str, path: str, count: int) -> None:
    """The peer's process: fill it, check it, then measure batches as they are asked for.

    Args:
        connection: to the runner. This process first sends None, or a text that says why it cannot go on. Then it
            answers each ``(what, most, quota_s)`` with samples, until the runner closes the connection.
        kind: of the peer.
        directory: for its files.
        path: of the vectors.
        count: how many of them.
    """
    peer = kind()
    try:
        try:
            vectors = np.load(path, mmap_mode="r")[:count]
            peer.open(directory)
            peer.fill(vectors)
            queries = _queries(vectors)
            _check(peer, vectors, queries)
            gets = list(range(count))
            random.Random(1).shuffle(gets)
        except Exception as error:
            connection.send(f"failed: {type(error).__name__}: {str(error)[:200]}")
            return
        connection.send(None)
        asked = 0
        while True:
            try:
                what, most, quota_s = connection.recv()
            except EOFError:
                return
            of: Sequence[Any] = gets if what == "get" else queries
            action = _get(peer) if what == "get" else peer.top
            connection.send(_measure(action, [of[(asked + each) % len(of)] for each in range(most)], quota_s))
            asked += most
    finally:
        peer.close()


def _get(peer: StorePeer) -> Callable[[int], object]:
    def get(number: int) -> object:
        vector = peer.get(number)
        return None if vector is None else vector[0]

    return get


def _measure(action: Callable[[Any], object], arguments: list[Any], quota_s: float) -> list[int]:
    """Nanoseconds of each call, until the quota is spent; of at least one."""
    clock, samples = time.perf_counter_ns, []
    until = clock() + int(quota_s * 1e9)
    action(arguments[-1])  # what a cache has lost while another peer worked is not counted
    for each in arguments:
        began = clock()
        action(each)
        ended = clock()
        samples.append(ended - began)
        if ended > until:
            break
    return samples


def _queries(vectors: Array) -> list[Array]:
    random_ = np.random.default_rng(2)
    chosen = vectors[random_.integers(0, len(vectors), _QUERIES)]
    return list(np.asarray(chosen + _NOISE * random_.standard_normal(chosen.shape).astype(np.float32) / DIM**0.5))


def _check(peer: StorePeer, vectors: Array, queries: list[Array]) -> None:
    if peer.has_get:
        for number in (0, len(vectors) // 2, len(vectors) - 1):
            found = peer.get(number)
            if found is not None and not np.allclose(found, vectors[number], atol=1e-6):
                raise ValueError(f"the vector of record {number} is not what was added")
    if peer.has_top:
        for query in queries[:3]:
            scores = vectors @ query
            found_scores = scores[peer.top(query)]
            wanted = np.sort(scores)[::-1][:LIMIT]
            if len(found_scores) != LIMIT or not np.allclose(found_scores, wanted, atol=1e-5):
                raise ValueError("a search has not found the nearest vectors")
