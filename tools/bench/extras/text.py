"""A short text there and back: ours, the bare ping-pong it stands on, and the two usual ways."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

from tr_mmap import PythonSession

from ..peers.base import end, missing, spawn
from ..peers.floor import Semaphore
from ..peers.ours import SPIN_US

__all__ = ["run"]

_MESSAGE, _ANSWER = "hello world", "Hello World"


def _greet(message: str) -> str:
    return f"Hello {message.split()[1].title()}"


def _serve_pipe(connection: Connection) -> None:
    while True:
        try:
            connection.send(_greet(connection.recv()))
        except EOFError:
            return


def _serve_zmq(address: str) -> None:
    import zmq

    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        socket.bind(address)
        while message := socket.recv_string():
            socket.send_string(_greet(message))


def _open_pipe(stack: ExitStack) -> Callable[[], str]:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = spawn(_serve_pipe, theirs)
    theirs.close()
    stack.callback(end, process)
    stack.callback(ours.close)

    def ask() -> str:
        ours.send(_MESSAGE)
        return ours.recv()

    return ask


def _open_zmq(stack: ExitStack) -> Callable[[], str]:
    import zmq

    address = "ipc://" + os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "text")
    process = spawn(_serve_zmq, address)
    context = stack.enter_context(zmq.Context())
    socket = stack.enter_context(context.socket(zmq.REQ))
    socket.connect(address)
    stack.callback(end, process)
    stack.callback(socket.send_string, "")

    def ask() -> str:
        socket.send_string(_MESSAGE)
        return socket.recv_string()

    return ask


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    from .common import interleave

    say("text round trips")
    with ExitStack() as stack:
        floor = Semaphore()
        stack.callback(floor.close)
        floor.start(0)
        name = f"bench-{os.getpid()}-text"
        session = stack.enter_context(PythonSession("default", name, quiet_mode=True))
        spinning = stack.enter_context(PythonSession("default", name + "-spin", quiet_mode=True, spin_us=SPIN_US))
        actions: dict[str, Callable[[], object]] = {
            "semaphore": floor.ping,
            "ours": lambda: session.fetch_response(_MESSAGE),
            "ours_spin": lambda: spinning.fetch_response(_MESSAGE),
            "pipe": _open_pipe(stack),
        }
        if missing("zmq") is None:
            actions["zmq"] = _open_zmq(stack)
        for name, action in actions.items():
            if name != "semaphore" and action() != _ANSWER:
                raise RuntimeError(f"{name} answered wrong")
        found = interleave(actions, rounds=10 if quick else 30, batch=100 if quick else 300)
    return {name: summary.to_json() for name, summary in found.items()}
