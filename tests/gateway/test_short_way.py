"""The short way of small requests gives the same answers as the long one, whatever a client does meanwhile."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gateways import RunningGateway, running
from support import BOUND_S, wait_until

EXECUTE = "/api/v1/python/execute"
X = {"dtype": "float32", "shape": [2], "data": [1, 2]}
LONG = "X-Request-Id: long"  # a header that sends a request the long way


class Talk:
    """A connection on which a test speaks HTTP itself."""

    def __init__(self, gateway: RunningGateway) -> None:
        self.socket = socket.create_connection(gateway.address, BOUND_S)
        self._left = b""

    def send(self, *requests: bytes) -> None:
        """Send them as one piece."""
        self.socket.sendall(b"".join(requests))

    def answer(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and body of the next answer."""
        while b"\r\n\r\n" not in self._left:
            self._more()
        head, _, self._left = self._left.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        length = int(headers["content-length"])
        while len(self._left) < length:
            self._more()
        body, self._left = self._left[:length], self._left[length:]
        return int(lines[0].split()[1]), headers, json.loads(body)

    def _more(self) -> None:
        part = self.socket.recv(1 << 16)
        assert part, "the gateway has closed the connection"
        self._left += part

    def rest(self) -> bytes:
        """All that comes until the gateway closes the connection."""
        rest, self._left = self._left, b""
        while part := self.socket.recv(1 << 16):
            rest += part
        return rest

    def is_closed(self) -> bool:
        """Whether the gateway has closed it; waits for that."""
        return self.rest() == b""


@contextmanager
def talking(gateway: RunningGateway) -> Iterator[Talk]:
    talk = Talk(gateway)
    try:
        yield talk
    finally:
        talk.socket.close()


def request(token: str, body: Any, *more: str) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {EXECUTE} HTTP/1.1", "Host: localhost", f"Content-Length: {len(raw)}"]
    lines += ["Content-Type: application/json", f"Authorization: Bearer {token}", *more]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + raw


@pytest.fixture(autouse=True, scope="module")
def _double(gateway: RunningGateway) -> None:
    gateway.register("double", "def double(inputs):\n    return {'output': inputs['x'] * 2}\n", reuse=True)


@pytest.mark.parametrize(
    "body",
    [
        {"algorithm": "double", "inputs": {"x": X}},
        {"algorithm": "double", "inputs": {"x": [1, {"a": None}]}},
        {"algorithm": "double", "inputs": {"x": X}, "tensors": "base64"},
        {"code": "print('out'); output = {'y': 1, 'z': 'two'}"},
        {"code": "1 / 0"},
        {"code": "while True: pass", "timeout_ms": 50},
        {"code": "import os; os._exit(3)"},
        {"algorithm": "nope"},
        {"algorithm": "double", "inputs": {"x": {**X, "dtype": "float99"}}},
        {"algorithm": "double", "colour": 1},
        b"",
        b"{",
        b"[" * 2000,
        b'"\xff"',
    ],
    ids=lambda body: str(body)[:40],
)
def test_both_ways_answer_the_same(gateway: RunningGateway, body: Any) -> None:
    token = gateway.token("execute")
    with talking(gateway) as talk:
        found = []
        for more in ((), (LONG,), ()):
            talk.send(request(token, body, *more))
            status, headers, said = talk.answer()
            assert headers["x-request-id"] == said.pop("request_id")
            assert (headers["x-request-id"] == "long") is bool(more)
            said.pop("execution_time_ms", None)
            if said.get("type") == "DeadlineExceeded":
                said.pop("details")
            names = sorted(set(headers) - {"content-length", "date", "x-request-id"})
            found.append((status, names, said))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (["Authorization: Bearer nothing"], 401),
        (["Authorization: Basic nothing"], 401),
        ([], 401),
        (["Authorization: Bearer {register}"], 403),
        (["Authorization: Bearer {execute}", "Origin: http://evil.example"], 403),
    ],
)
def test_whoever_may_not_is_refused_each_time(gateway: RunningGateway, head: list[str], status: int) -> None:
    tokens = {scope: gateway.token(scope) for scope in ("register", "execute")}
    lines = [
        f"POST {EXECUTE} HTTP/1.1",
        "Host: localhost",
        "Content-Length: 2",
        *[each.format(**tokens) for each in head],
    ]
    with talking(gateway) as talk:
        for _ in range(3):
            talk.send("\r\n".join(lines).encode() + b"\r\n\r\n{}")
            answer, headers, body = talk.answer()
            assert (answer, body["status_code"]) == (status, status)
            assert ("www-authenticate" in headers) is (status == 401)


def test_a_token_that_ends_meanwhile_is_refused_though_its_head_was_seen(gateway: RunningGateway) -> None:
    sent = request(gateway.token("execute", valid_s=2), {"code": "output = 1"})
    with talking(gateway) as talk:
        talk.send(sent)
        assert talk.answer()[0] == 200

        def status() -> int:
            talk.send(sent)
            return talk.answer()[0]

        wait_until(lambda: status() == 401)


def test_the_limit_of_requests_counts_both_ways(tmp_path: Path) -> None:
    with running(tmp_path, auth="requests_per_minute = 1\nburst = 4") as gateway, talking(gateway) as talk:
        token = gateway.token("execute")
        statuses = []
        for more in ((), (LONG,), (), (LONG,), (), (LONG,)):
            talk.send(request(token, {"code": "output = 1"}, *more))
            status, headers, _ = talk.answer()
            statuses.append(status)
        assert statuses == [200] * 4 + [429] * 2
        assert int(headers["retry-after"]) > 1


def test_requests_that_come_at_once_are_answered_in_their_order(gateway: RunningGateway) -> None:
    token = gateway.token("execute")
    requests = [
        request(token, {"code": f"output = {number}"}, *([LONG] if number % 3 == 1 else [])) for number in range(9)
    ]
    with talking(gateway) as talk:
        talk.send(*requests)
        assert [talk.answer()[2]["result"] for _ in requests] == list(range(9))
        for number, each in enumerate(requests):  # one after the other, each before the answer to the one before
            talk.send(each)
            if number == 0:
                continue
            assert talk.answer()[2]["result"] == number - 1
        assert talk.answer()[2]["result"] == 8


def test_a_request_may_come_in_pieces_of_any_size(gateway: RunningGateway) -> None:
    token = gateway.token("execute")
    whole = request(token, {"code": "output = 1"})
    with talking(gateway) as talk:
        talk.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for size in (6, 100, len(whole) - 3, len(whole)):
            for start in range(0, len(whole), size):
                talk.send(whole[start : start + size])
            assert talk.answer()[2]["result"] == 1
        # The end of one, and the begin of the next.
        talk.send(whole, whole[:50])
        assert talk.answer()[2]["result"] == 1
        talk.send(whole[50:], whole)
        assert [talk.answer()[2]["result"] for _ in range(2)] == [1, 1]


def test_a_client_that_sends_much_before_it_has_its_answer_is_held_up_and_served(gateway: RunningGateway) -> None:
    token = gateway.token("execute")
    one = request(token, {"code": "output = len(inputs['x'])", "inputs": {"x": "a" * 30_000}})
    with talking(gateway) as talk:
        talk.send(*[one] * 12)
        assert [talk.answer()[2]["result"] for _ in range(12)] == [30_000] * 12


def test_what_is_no_http_behind_a_request_is_refused_after_its_answer(gateway: RunningGateway) -> None:
    with talking(gateway) as talk:
        talk.send(request(gateway.token("execute"), {"code": "import time; time.sleep(0.3); output = 1"}))
        wait_until(lambda: _running(gateway) == 1)
        talk.send(b"\0\0nothing\r\n\r\n")
        assert talk.answer()[2]["result"] == 1
        assert talk.rest().startswith(b"HTTP/1.1 400 ")


def _running(gateway: RunningGateway) -> int:
    return int(gateway.ask("GET", "/api/v1/scheduler/status").json()["queues"]["python"]["running"])


def test_an_idle_connection_is_closed(gateway: RunningGateway) -> None:
    with talking(gateway) as talk:
        talk.send(request(gateway.token("execute"), {"code": "output = 1"}))
        assert talk.answer()[0] == 200
        began_s = time.monotonic()
        assert talk.is_closed()
        assert time.monotonic() - began_s > 1


def test_a_request_that_goes_on_is_answered_though_the_gateway_ends(tmp_path: Path) -> None:
    with running(tmp_path) as gateway, talking(gateway) as talk, talking(gateway) as idle:
        idle.send(request(gateway.token("execute"), {"code": "output = 0"}))
        assert idle.answer()[0] == 200
        talk.send(request(gateway.token("execute"), {"code": "import time; time.sleep(1); output = 1"}))
        wait_until(lambda: _running(gateway) == 1)
        gateway.process.send_signal(signal.SIGTERM)
        answer, headers, body = talk.answer()
        assert (answer, body["result"]) == (200, 1)
        assert headers.get("connection") == "close"
        assert talk.is_closed()
        assert idle.is_closed()
