"""The protocol that tr_mmap replaces: JSON control files put in place by rename and polled for, and a ``.tsr`` file of
layout v1 for each tensor, written and read whole.

Polling begins at 32 ms, halves its rate after 8 empty polls, down to 1024 ms, and is back at 32 ms with a message. The
files lie on tmpfs, which flatters it: the original has them on a disk.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
import time
from multiprocessing.process import BaseProcess

import numpy as np

from .base import Array, Peer, end, spawn

__all__ = ["PolledFiles"]

_FIRST_S, _LAST_S, _EMPTY_POLLS = 0.032, 1.024, 8
_HEADER = struct.Struct("<4s3i2i4i3q")  # magic, version, header size, 0; dtype, ndim, N, C, H, W; count, 0, 0
_FP32 = 1


def _write_tensor(path: str, array: Array) -> None:
    header = _HEADER.pack(b"TSR!", 1, 64, 0, _FP32, 1, 1, 1, 1, array.size, array.size, 0, 0)
    with open(path + ".tmp", "wb", buffering=0) as file:
        file.write(header)
        rest = memoryview(array).cast("B")
        while rest:
            rest = rest[file.write(rest) :]
    os.rename(path + ".tmp", path)


def _read_tensor(path: str) -> Array:
    with open(path, "rb", buffering=0) as file:
        fields = _HEADER.unpack(file.read(64))
        if fields[:3] != (b"TSR!", 1, 64) or fields[4] != _FP32:
            raise ValueError(f"{path} is not a v1 file of FP32")
        array = np.empty(fields[10], np.float32)
        rest = memoryview(array).cast("B")
        while rest:
            rest = rest[file.readinto(rest) :]
    return array


def _write_json(path: str, **fields: object) -> None:
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        json.dump({**fields, "timestamp": time.time_ns() // 1_000_000}, file)
    os.rename(path + ".tmp", path)


def _poll(path: str) -> dict[str, object]:
    """Wait for a control file and take it."""
    pause_s, empty = _FIRST_S, 0
    while True:
        try:
            with open(path, encoding="utf-8") as file:
                message = json.load(file)
        except FileNotFoundError:
            empty += 1
            if empty % _EMPTY_POLLS == 0:
                pause_s = min(2 * pause_s, _LAST_S)
            time.sleep(pause_s)
        else:
            os.unlink(path)
            return message


def _write_status(directory: str, text: str) -> None:
    path = os.path.join(directory, "status.txt")
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(path + ".tmp", path)


def _serve(directory: str) -> None:
    while True:
        _write_status(directory, "ready")
        request = _poll(os.path.join(directory, "request.json"))
        if request["command"] == "exit":
            return
        _write_status(directory, "busy")
        x = _read_tensor(os.path.join(directory, f"{request['parameters']}.tsr"))
        _write_tensor(os.path.join(directory, "result_0.tsr"), x + 1)
        _write_status(directory, "ok")
        _write_json(os.path.join(directory, "response.json"), command=request["command"], result="ok", message="")


class PolledFiles(Peer):
    key = "files"
    label = "polled files"
    payloads = 5
    note = "the replaced protocol: polls every 32 ms at best"

    def __init__(self) -> None:
        self._process: BaseProcess | None = None

    def start(self, max_nbytes: int) -> None:  # noqa: ARG002
        self._directory = tempfile.TemporaryDirectory(
            prefix="tr_bench_files_", dir="/dev/shm" if os.path.isdir("/dev/shm") else None
        )
        self._process = spawn(_serve, self._directory.name)

    def _path(self, name: str) -> str:
        return os.path.join(self._directory.name, name)

    def roundtrip(self, x: Array) -> Array:
        _write_tensor(self._path("x.tsr"), x)
        _write_json(self._path("request.json"), command="increment", parameters="x")
        _poll(self._path("response.json"))
        return _read_tensor(self._path("result_0.tsr"))

    def close(self) -> None:
        if self._process is not None:
            _write_json(self._path("request.json"), command="exit", parameters="")
            end(self._process)
            self._directory.cleanup()
            self._process = None
