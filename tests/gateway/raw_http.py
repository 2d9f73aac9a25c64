"""HTTP as bytes: for requests that no client sends."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import Any

from gateways import RunningGateway
from support import BOUND_S, wait_until

__all__ = ["Answer", "Wire", "ask_raw", "head", "is_seen"]


@dataclass(frozen=True)
class Answer:
    """One response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """A connection."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=BOUND_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Whether the other side still takes it."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def answer(self, *, has_body: bool = True) -> Answer | None:
        """The next response; None when the other side has closed."""
        try:
            line = self._file.readline()
            if not line:
                return None
            version, status, _ = line.decode().split(" ", 2)
            assert version == "HTTP/1.1", line
            headers: dict[str, str] = {}
            while (line := self._file.readline()) not in (b"\r\n", b""):
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            if status == "100":
                return Answer(100, headers, b"")
            body = self._file.read(int(headers.get("content-length", 0))) if has_body else b""
        except ConnectionResetError:
            return None
        return Answer(int(status), headers, body)

    def rest(self) -> bytes:
        """All that comes until the other side closes."""
        try:
            return self._file.read()
        except ConnectionResetError:
            return b""


def head(gateway: RunningGateway, method: str = "POST", path: str = "/api/v1/python/execute", *lines: str) -> bytes:
    """A request's head with a token that grants all, and with further headers."""
    token = gateway.token("admin")
    usual = (f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {token}")
    return "\r\n".join([*usual, *lines, "", ""]).encode("latin-1")


def ask_raw(gateway: RunningGateway, data: bytes) -> Answer | None:
    """The first response to some bytes."""
    with Wire(gateway.address) as wire:
        wire.send(data)
        return wire.answer()


def is_seen(gateway: RunningGateway, request_id: str) -> bool:
    """Whether the gateway's log tells of a request, once it tells of one that came later."""
    later = gateway.ask("GET", "/healthz").headers["x-request-id"]
    wait_until(lambda: any(each.get("request_id") == later for each in gateway.logged()))
    return any(each.get("request_id") == request_id for each in gateway.logged())
