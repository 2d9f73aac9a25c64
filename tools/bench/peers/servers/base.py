"""The interface of the servers of algorithms that the benchmark compares, and how each is started and ended.

All offer the same algorithm, ``x * 2`` by numpy, to whoever asks over HTTP on loopback, and all have as many workers:
two for each processor. A small ``x`` goes and comes as JSON, a large one as bytes, where a server takes bytes.

Each of the others runs in a virtual environment of its own, because their dependencies do not go together:
``DIRECTORY/litserve/bin/python``, say. The directory is named by ``--servers`` or ``$TR_BENCH_SERVERS``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec
import numpy as np
import psutil

from tr_mmap.processes.identity import Identity, wait_for_ends

from ..base import Array, end_with_parent

__all__ = ["COUNT", "PROGRAMS", "WORKERS", "InOwnVenv", "ServerPeer", "directory"]

COUNT: Final = 16  # numbers of a small x
WORKERS: Final = 2 * len(os.sched_getaffinity(0))
PROGRAMS: Final = Path(__file__).resolve().parent / "programs"
_START_S: Final = 120.0
_END_S: Final = 20.0
_LOOK_S: Final = 0.05


def directory() -> Path:
    """Where the virtual environments are."""
    named = os.environ.get("TR_BENCH_SERVERS")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "tr_mmap-bench"


class ServerPeer(ABC):
    """One server of algorithms over HTTP.

    Attributes:
        key: what the results call it.
        rows: the ways to run an algorithm that are measured: the key of each, and what people read.
        takes_bytes: whether it takes and gives a tensor as bytes.
        note: what a reader has to know to judge its figures; may be empty.
        address: where it listens, once it has started.
    """

    key: ClassVar[str]
    rows: ClassVar[Mapping[str, str]]
    takes_bytes: ClassVar[bool] = False
    note: ClassVar[str] = ""
    address: tuple[str, int]

    def unavailable(self) -> str | None:
        """Why it cannot be measured here, and what to do; None if it can."""
        return None

    @abstractmethod
    def command(self, folder: Path, port: int) -> list[str]:
        """The command that starts it on a port of loopback; ``folder`` is its own, for files that it needs."""

    @abstractmethod
    def request(self, row: str, x: Array) -> bytes:
        """A request for ``x * 2``, as it is sent, with ``x`` in JSON."""

    def large_request(self, row: str, x: Array) -> bytes:  # noqa: ARG002
        """The same with the bytes of ``x``."""
        raise TypeError(f"{self.key} takes no bytes")

    @abstractmethod
    def result(self, answer: Any) -> list[float]:
        """The numbers in an answer's JSON."""

    def large_result(self, head: bytes, body: memoryview) -> Array:  # noqa: ARG002
        """The numbers in an answer's bytes."""
        return np.frombuffer(body, np.float32)

    def environment(self, folder: Path) -> dict[str, str]:  # noqa: ARG002
        """Variables that it needs beside ours."""
        return {}

    def is_right(self, wanted: list[float], status: int, body: bytes) -> bool:
        """Whether an answer has these numbers."""
        if status != 200:
            return False
        if body[:1] not in b"{[":  # one chunk
            body = body.partition(b"\r\n")[2].partition(b"\r\n")[0]
        return self.result(msgspec.json.decode(body)) == wanted

    def start(self, folder: Path) -> None:
        """Start it, and wait until it answers.

        Raises:
            RuntimeError: it does not.
        """
        self.address = ("127.0.0.1", _free_port())
        with open(folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                self.command(folder, self.address[1]),
                cwd=folder,
                env={**_without_ours(), **self.environment(folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=end_with_parent,
            )
        end_s = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end_s:
                raise RuntimeError(f"it does not start: {(folder / 'log').read_text(errors='replace')[-2000:]}")
            time.sleep(_LOOK_S)
        self.prepare()

    def _answers(self) -> bool:
        try:
            socket.create_connection(self.address, 1).close()
        except OSError:
            return False
        return True

    def prepare(self) -> None:  # noqa: B027 - most have nothing to do
        """What is left to do once it listens."""

    def processes(self) -> list[psutil.Process]:
        """The server's process and all processes below it; none if it has ended."""
        try:
            leader = psutil.Process(self._process.pid)
            return [leader, *leader.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def close(self) -> None:
        """End it and every process that it has started. May be called after ``start`` failed."""
        if not hasattr(self, "_process"):
            return
        processes = self.processes()
        identities = [Identity.of(each.pid) for each in processes]
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for each in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        wait_for_ends(filter(None, identities), time.monotonic() + _END_S)


class InOwnVenv(ServerPeer):
    """A server in a virtual environment of its own.

    Attributes:
        packages: that it needs.
        python: that makes the environment.
    """

    packages: ClassVar[str]
    python: ClassVar[str] = "python3"

    @property
    def venv(self) -> Path:
        """The environment."""
        return directory() / self.key

    def unavailable(self) -> str | None:
        if (self.venv / "bin" / "python").exists():
            return None
        return f"not installed: {self.python} -m venv {self.venv} && {self.venv}/bin/pip install {self.packages}"


def _without_ours() -> dict[str, str]:
    """The variables of this process without those that would let another interpreter find our packages."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "TR_WORKSPACE")
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
