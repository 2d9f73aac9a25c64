"""The physical floor: a wake-up of another process and back, and the two passes over memory that an answer needs."""

from __future__ import annotations

import os
from multiprocessing.process import BaseProcess

import numpy as np

from .base import Array, Peer, end, spawn

__all__ = ["Passes", "Semaphore"]


def _pong(ping_name: str, pong_name: str) -> None:
    import posix_ipc

    ping, pong = posix_ipc.Semaphore(ping_name), posix_ipc.Semaphore(pong_name)
    while True:
        ping.acquire()
        pong.release()


class Semaphore(Peer):
    """Bare ping-pong over two POSIX semaphores between two Pythons; moves no data."""

    key = "semaphore"
    label = "semaphore ping-pong"
    payloads = 0
    is_floor = True

    def __init__(self) -> None:
        self._process: BaseProcess | None = None

    def start(self, max_nbytes: int) -> None:  # noqa: ARG002
        import posix_ipc

        names = [f"/tr_bench_{os.getpid()}_{end}" for end in ("ping", "pong")]
        self._ping, self._pong = [posix_ipc.Semaphore(name, posix_ipc.O_CREX, initial_value=0) for name in names]
        try:
            self._process = spawn(_pong, *names)
            self.ping()
        finally:
            self._ping.unlink()
            self._pong.unlink()

    def ping(self) -> None:
        self._ping.release()
        self._pong.acquire()

    def roundtrip(self, x: Array) -> Array:
        self._ping.release()
        self._pong.acquire()
        return x

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            end(self._process)
            self._process = None


class Passes(Peer):
    """The copy in and the ``x + 1`` that every copied answer contains, in one process over warm memory."""

    key = "passes"
    label = "two passes over memory"
    is_floor = True

    def start(self, max_nbytes: int) -> None:
        self._in = np.zeros(max_nbytes // 4, np.float32)
        self._out = np.zeros(max_nbytes // 4, np.float32)

    def roundtrip(self, x: Array) -> Array:
        inner, out = self._in[: x.size], self._out[: x.size]
        np.copyto(inner, x)
        np.add(inner, 1, out=out)
        return out

    def close(self) -> None:
        self._in = self._out = None
