"""The client of the benchmark of servers, against one that answers what a test wants; and which servers there are."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from bench import load
from bench.peers.servers import SERVERS


def test_a_server_that_is_not_installed_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setenv("TR_BENCH_SERVERS", str(tmp_path))
    for key, kind in SERVERS.items():
        reason = kind().unavailable()
        assert reason is None if key == "ours" else f"{tmp_path / key}/bin/pip install" in reason


class Answers:
    """A server that gives its connections these answers, one to each request; None ends the connection."""

    def __init__(self, *answers: bytes | None) -> None:
        self._left = list(answers)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self.requests: list[bytes] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(1 << 16):
                    self.requests.append(data)
                    answer = self._left.pop(0) if len(self._left) > 1 else self._left[0]
                    if answer is None:
                        break
                    for start in range(0, len(answer), 37):  # in pieces
                        connection.sendall(answer[start : start + 37])

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def answers():
    made = []

    def make(*each: bytes | None) -> Answers:
        made.append(Answers(*each))
        return made[-1]

    yield make
    for each in made:
        each.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nright"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nright\r\n0\r\n\r\n"
BAD = b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy"


def load_of(server: Answers) -> contextlib.closing[load.Load]:
    def is_right(number: int, status: int, body: bytes) -> bool:
        return status == 200 and b"right" in body

    def make(number: int) -> bytes:
        return load.request(f"/{number}", b"{}", {"A": "b"})

    return contextlib.closing(load.Load(server.address, make, is_right, 1))


def test_a_load_counts_what_is_right_what_is_wrong_and_what_is_lost(answers):
    server = answers(OK, BAD, CHUNKED, None, OK)
    right = wrong = broken = 0
    with load_of(server) as one:
        while len(server.requests) < 5:
            found = one.run(0.01)
            assert found.rate == pytest.approx(len(found.latencies_ns) / found.seconds)
            right, wrong, broken = right + len(found.latencies_ns), wrong + found.wrong, broken + found.broken
    assert (wrong, broken) == (1, 1)
    assert right == len(server.requests) - 2
    assert server.requests[0] == b"POST /0 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nA: b\r\n\r\n{}"


def test_a_paced_load_sends_as_many_requests_as_were_asked_for_and_counts_from_when_they_were_due(answers):
    with load_of(answers(OK)) as one:
        found = one.run(0.1, rate=100)
    assert len(found.latencies_ns) == 10
    assert min(found.latencies_ns) > 0


def test_a_load_takes_a_new_connection_for_one_that_the_server_has_closed(answers):
    server = answers(OK, None, OK)
    with load_of(server) as one:
        connection = one._idle[0].socket
        connection.sendall(b"x")
        assert connection.recv(len(OK), socket.MSG_WAITALL) == OK
        connection.sendall(b"x")  # now it is closed
        assert connection.recv(1, socket.MSG_PEEK) == b""
        found = one.run(0.02)
    assert found.broken == 0
    assert found.latencies_ns


def test_a_large_exchange_reads_its_whole_answer(answers):
    body = bytes(range(256)) * 1000
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    server = answers(head + body, chunked + b"1\r\nx\r\n0\r\n\r\n")
    with socket.create_connection(server.address) as connection:
        said, got = load.exchange(connection, b"x", bytearray(len(body) + 1000))
        assert (said, bytes(got)) == (head, body)
        said, got = load.exchange(connection, b"x", bytearray(1000))
        assert (said, bytes(got)) == (chunked, b"1\r\nx\r\n0\r\n\r\n")
