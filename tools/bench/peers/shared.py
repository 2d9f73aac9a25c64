"""multiprocessing.shared_memory, with a Pipe to say what lies there.

Two ways to use it: a new block for each tensor, which both sides may keep, as a library would have to do; and two fixed
blocks made by hand, where each answer overwrites the one before.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from .base import Array, Peer, end, spawn

__all__ = ["FixedBlocks", "NewBlocks"]


def _view(block: SharedMemory, count: int) -> Array:
    return np.frombuffer(block.buf, np.float32, count)


def _serve_new(connection: Connection) -> None:
    while True:
        try:
            name, count = connection.recv()
        except EOFError:
            return
        request = SharedMemory(name)
        answer = SharedMemory(create=True, size=count * 4)
        np.add(_view(request, count), 1, out=_view(answer, count))
        connection.send(answer.name)
        request.close()
        answer.close()


class _PipePeer(Peer):
    def __init__(self) -> None:
        self._process: BaseProcess | None = None

    def _start(self, target, *arguments) -> None:
        self._connection, theirs = multiprocessing.get_context("spawn").Pipe()
        self._process = spawn(target, theirs, *arguments)
        theirs.close()

    def close(self) -> None:
        if self._process is not None:
            self._connection.close()
            end(self._process)
            self._process = None


class NewBlocks(_PipePeer):
    key = "shm"
    label = "shared_memory"
    note = "a new block for each tensor, so that answers may be kept"

    def start(self, max_nbytes: int) -> None:  # noqa: ARG002
        self._start(_serve_new)

    def roundtrip(self, x: Array) -> Array:
        request = SharedMemory(create=True, size=x.nbytes)
        np.copyto(_view(request, x.size), x)
        self._connection.send((request.name, x.size))
        self._reply = SharedMemory(self._connection.recv())
        request.close()
        request.unlink()
        return _view(self._reply, x.size)

    def release(self) -> None:
        self._reply.close()
        self._reply.unlink()


def _serve_fixed(connection: Connection, request_name: str, answer_name: str, max_nbytes: int) -> None:
    request, answer = SharedMemory(request_name), SharedMemory(answer_name)
    x, out = _view(request, max_nbytes // 4), _view(answer, max_nbytes // 4)
    while True:
        try:
            count = int.from_bytes(connection.recv_bytes(), "little")
        except EOFError:
            break
        np.add(x[:count], 1, out=out[:count])
        connection.send_bytes(b"\0")
    del x, out
    request.close()
    answer.close()


class FixedBlocks(_PipePeer):
    key = "shm-fixed"
    label = "shared_memory, fixed"
    note = "two fixed blocks, made by hand; each answer overwrites the last"

    def start(self, max_nbytes: int) -> None:
        self._blocks = [SharedMemory(create=True, size=max_nbytes) for _ in range(2)]
        self._request, self._reply = (_view(block, max_nbytes // 4) for block in self._blocks)
        self._start(_serve_fixed, *(block.name for block in self._blocks), max_nbytes)

    def roundtrip(self, x: Array) -> Array:
        np.copyto(self._request[: x.size], x)
        self._connection.send_bytes(x.size.to_bytes(8, "little"))
        self._connection.recv_bytes()
        return self._reply[: x.size]

    def close(self) -> None:
        super().close()
        self._request = self._reply = None
        for block in getattr(self, "_blocks", []):
            block.close()
            block.unlink()
        self._blocks = []
