"""Redis, on a socket of this machine: one value of msgpack for each record."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

import msgspec
import numpy as np

from ..base import JOIN_S, Array, end_with_parent, missing
from .bare import _Row
from .base import StorePeer, id_of, text_of

__all__ = ["RedisServer"]

_BATCH = 1000
_START_S = 10


class RedisServer(StorePeer):
    key = "redis"
    label = "Redis, socket of this machine"
    has_top = False
    note = "a record is one value that msgspec decodes; persistence is off"

    def unavailable(self) -> str | None:
        if shutil.which("redis-server") is None:
            return "not installed: redis-server"
        return missing("redis")

    def open(self, directory: str) -> None:
        import redis

        socket = os.path.join(directory, "s")
        self._server = subprocess.Popen(
            [
                "redis-server",
                "--port",
                "0",
                "--unixsocket",
                socket,
                "--save",
                "",
                "--appendonly",
                "no",
                "--dir",
                directory,
            ],
            stdout=subprocess.DEVNULL,
            preexec_fn=end_with_parent,
        )
        self._client = redis.Redis(unix_socket_path=socket)
        until_s = time.monotonic() + _START_S
        while True:
            try:
                self._client.ping()
                break
            except redis.ConnectionError:
                if time.monotonic() > until_s or self._server.poll() is not None:
                    raise
                time.sleep(0.01)
        self._decode = msgspec.msgpack.Decoder(_Row).decode

    def fill(self, vectors: Array) -> None:
        encode = msgspec.msgpack.Encoder().encode
        for start in range(0, len(vectors), _BATCH):
            rows = [
                _Row(id_of(number), text_of(number), "user", {"n": number}, vectors[number].tobytes())
                for number in range(start, min(start + _BATCH, len(vectors)))
            ]
            self._client.mset({row.id: encode(row) for row in rows})

    def get(self, number: int) -> Array | None:
        return np.frombuffer(self._decode(self._client.get(id_of(number))).vector, np.float32)

    def close(self) -> None:
        if hasattr(self, "_client"):
            self._client.close()
        if hasattr(self, "_server"):
            self._server.terminate()
            try:
                self._server.wait(JOIN_S)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
