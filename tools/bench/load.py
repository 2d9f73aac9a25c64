"""The HTTP client that measures every server: a few connections of HTTP/1.1 that stay open, and little work a request.

One thread waits for all connections at once. The client shares the processors with the servers that it measures, so it
parses no more of HTTP than their answers need. It knows nothing of any particular server.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Load", "LoadStalled", "Measured", "exchange", "request"]

Address = tuple[str, int]

_STALL_S: Final = 60.0  # without any answer
_IDLE_NS: Final = 500_000_000  # a server may have closed a connection that was idle for longer
_PART_NBYTES: Final = 1 << 16
_LARGE_PART_NBYTES: Final = 1 << 20
_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"\r\ncontent-length:"
_CHUNKED: Final = b"\r\ntransfer-encoding: chunked"
_LAST_CHUNK: Final = b"0\r\n\r\n"


class LoadStalled(TimeoutError):
    """A server does not answer any more."""


@dataclass(slots=True)
class Measured:
    """What one load measured.

    Attributes:
        seconds: from the first request to the last answer.
        latencies_ns: of the right answers, from the time at which each request was due.
        wrong: answers that were not what was asked for.
        broken: requests whose connection ended before an answer.
    """

    seconds: float = 0.0
    latencies_ns: list[int] = field(default_factory=list)
    wrong: int = 0
    broken: int = 0

    @property
    def rate(self) -> float:
        """Right answers a second."""
        return len(self.latencies_ns) / self.seconds if self.seconds else 0.0


def request(path: str, body: bytes, headers: dict[str, str], host: str = "localhost") -> bytes:
    """A POST request, as it is sent."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + _END + body


class _Connection:
    """One connection, with the request that waits for its answer there."""

    __slots__ = ("due_ns", "got", "number", "socket", "used_ns", "whole")

    def __init__(self, address: Address) -> None:
        self.socket = _connect(address)
        self.number = self.due_ns = self.used_ns = 0
        self.got = b""
        self.whole = 0  # length of the whole answer; 0 for not known, -1 for one in chunks

    def fileno(self) -> int:
        return self.socket.fileno()

    def renew(self, address: Address) -> None:
        self.socket.close()
        self.socket = _connect(address)


def _connect(address: Address) -> socket.socket:
    connection = socket.create_connection(address)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class Load:
    """Requests over some connections.

    Args:
        address: of the server.
        make: returns the whole request with a number, as bytes to send.
        is_right: is called with a request's number, and the status and body of its answer; returns whether the answer
            is right. A body that came in chunks still has their framing.
        connections: how many; each has one request at a time.
    """

    def __init__(
        self,
        address: Address,
        make: Callable[[int], bytes],
        is_right: Callable[[int, int, bytes], bool],
        connections: int,
    ) -> None:
        self._address = address
        self._make = make
        self._is_right = is_right
        self._idle = [_Connection(address) for _ in range(connections)]
        self._number = 0

    def close(self) -> None:
        """Close the connections."""
        for each in self._idle:
            each.socket.close()
        self._idle = []

    def run(self, seconds: float, rate: float | None = None) -> Measured:
        """Send for so long, and wait for the last answers.

        Args:
            seconds: how long.
            rate: requests a second, evenly spaced; None to send each as soon as a connection has its former answer.

        Raises:
            LoadStalled: no answer comes.
        """
        clock, found = time.perf_counter_ns, Measured()
        idle, busy = self._idle, []
        began = due = clock()
        end = began + int(seconds * 1e9)
        step = 0 if rate is None else int(1e9 / rate)
        while True:
            now = clock()
            while idle and (now < end if rate is None else due <= now and due < end):
                connection = idle.pop()
                self._send(connection, now if rate is None else due)
                busy.append(connection)
                due += step
            is_over = now >= end if rate is None else due >= end
            if is_over and not busy:
                break
            # While all connections are busy, a request that is due waits for one; its latency includes that wait.
            wait_s = _STALL_S if rate is None or is_over or not idle else max(0.0, (due - clock()) / 1e9)
            ready, _, _ = select.select(busy, (), (), wait_s)
            if not ready and wait_s == _STALL_S:
                raise LoadStalled(f"no answer from {self._address} in {_STALL_S:g} s")
            for connection in ready:
                if self._receive(connection, found, clock):
                    busy.remove(connection)
                    idle.append(connection)
        found.seconds = (clock() - began) / 1e9
        return found

    def _send(self, connection: _Connection, due_ns: int) -> None:
        if due_ns - connection.used_ns > _IDLE_NS and select.select([connection], (), (), 0)[0]:
            connection.renew(self._address)  # the server has closed it, because it was idle
        connection.number = self._number
        self._number += 1
        connection.due_ns, connection.got, connection.whole = due_ns, b"", 0
        try:
            connection.socket.sendall(self._make(connection.number))
        except OSError:
            pass  # it is seen when its answer does not come

    def _receive(self, connection: _Connection, found: Measured, clock: Callable[[], int]) -> bool:
        """Take what has come. Returns whether its connection is free again."""
        try:
            part = connection.socket.recv(_PART_NBYTES)
        except OSError:
            part = b""
        if not part:
            found.broken += 1
            connection.renew(self._address)
            return True
        got = connection.got = connection.got + part if connection.got else part
        if not connection.whole:
            connection.whole = _length(got)
        if connection.whole < 0 and got.endswith(_LAST_CHUNK):
            connection.whole = len(got)
        if not 0 < connection.whole <= len(got):
            return False
        now = connection.used_ns = clock()
        if self._is_right(connection.number, int(got[9:12]), got[got.index(_END) + 4 :]):
            found.latencies_ns.append(now - connection.due_ns)
        else:
            found.wrong += 1
        return True


def _length(got: bytes) -> int:
    """The length of the whole answer whose beginning this is; 0 if not known yet, -1 if the answer comes in chunks."""
    end = got.find(_END)
    if end < 0:
        return 0
    head = got[: end + 2].lower()
    place = head.find(_LENGTH)
    if place >= 0:
        place += len(_LENGTH)
        return end + 4 + int(head[place : head.index(b"\r\n", place)])
    if _CHUNKED in head:
        return -1
    raise ValueError(f"an answer that says nothing of its length: {head[:200]!r}")


def exchange(connection: socket.socket, sent: bytes, room: bytearray) -> tuple[bytes, memoryview]:
    """One large request and its large answer, over a connection that waits.

    Args:
        connection: which.
        sent: the request.
        room: for the whole answer.

    Returns:
        The head of the answer and its body, which lies in ``room``; chunks are not put together.
    """
    connection.sendall(sent)
    view = memoryview(room)
    have = whole = 0
    while True:
        count = connection.recv_into(view[have : have + _LARGE_PART_NBYTES])
        if not count:
            raise ConnectionResetError("the connection ended before the answer")
        have += count
        whole = whole or _length(bytes(view[: min(have, _PART_NBYTES)]))
        if 0 < whole <= have or (whole < 0 and view[have - len(_LAST_CHUNK) : have] == _LAST_CHUNK):
            break
    start = bytes(view[:_PART_NBYTES]).index(_END) + 4
    return bytes(view[:start]), view[start:have]
