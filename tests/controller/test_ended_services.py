"""A worker that serves no more, and whose process lives on for its own threads or processes, keeps nobody waiting."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import BOUND_S, FOREVER_MS, Gate, wait_until

from tr_mmap import PythonSession, WorkerDied

PROGRAM = """
import multiprocessing
import os
import sys
import threading
import time

from tr_mmap import Server, TechRenaissanceServer

LINGER = {
    "thread": lambda: threading.Thread(target=time.sleep, args=(120,)).start(),
    "process": lambda: multiprocessing.get_context("fork").Process(target=time.sleep, args=(120,)).start(),
}


class Own(TechRenaissanceServer):
    def main_logic(self, command, parameters):
        if command == "leave":
            LINGER[parameters]()
            raise SystemExit
        if command == "last":
            LINGER["thread"]()
            self.write_response(command, "the last answer")
            self.write_status("terminated")
            while not os.path.exists(parameters):
                time.sleep(0.01)
            return True
        if command == "wait":
            while not os.path.exists(parameters):
                time.sleep(0.01)
        elif command != "hello":
            LINGER["thread"]()
            raise SystemExit("unknown")
        self.write_response(command, f"{command} {parameters}")
        return True


server = Server(framework="numpy")


@server.command("leave")
def leave(how: str):
    LINGER[how]()
    sys.exit(3)


@server.command("sum")
def total(x):
    return str(x.sum())


@server.command("wait")
def wait(path: str):
    while not os.path.exists(path):
        time.sleep(0.01)
    return "waited"


if sys.argv[-1] == "own":
    Own(framework="numpy").run()
else:
    server.run()
"""
CHANNELS = ["mapped", "files", "legacy"]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "leaving.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def started(program: Path) -> Iterator[Callable[..., PythonSession]]:
    """A function that starts a session of the program."""
    sessions: list[PythonSession] = []

    def start(channel: str, *args: str, **options: Any) -> PythonSession:
        session = PythonSession(
            os.fspath(program), f"leaving{len(sessions)}", quiet_mode=True, channel=channel, args=args, **options
        )
        sessions.append(session)
        session.start()
        assert session.wait_until_ready(FOREVER_MS)
        return session

    yield start
    for each in sessions:
        each.close()


def died(call: Callable[..., Any], *arguments: Any, **options: Any) -> WorkerDied:
    with pytest.raises(WorkerDied, match=r"has ended its service, and its process \d+ waits for its own") as caught:
        call(*arguments, **options)
    return caught.value


@pytest.mark.parametrize(
    ("channel", "how", "auth"),
    [
        ("mapped", "thread", False),
        ("mapped", "process", True),
        ("files", "process", False),
        ("files", "thread", True),
        ("legacy", "thread", False),
    ],
)
def test_every_wait_for_a_worker_whose_process_lives_on_ends_with_its_service(
    started: Any, tmp_path: Path, channel: str, how: str, auth: bool
) -> None:
    session = started(channel, auth=auth)
    go = tmp_path / "go"
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(session.fetch_response, f"wait {go}", FOREVER_MS)
        wait_until(session.is_busy)
        turns = session._dispatcher._consuming.queue
        waits = []
        for count, wait in enumerate(
            [
                lambda: session.fetch_response(f"leave {how}", FOREVER_MS),
                lambda: session.fetch_response(f"leave {how}", FOREVER_MS),
                lambda: session.calculate(f"leave {how}", timeout_ms=None),
            ]
        ):  # whichever of them is sent first
            waits.append(pool.submit(wait))
            wait_until(lambda least=count + 1: len(turns) >= least)
        waits.append(pool.submit(lambda: [session.wait_until_ready(FOREVER_MS) for _ in iter(int, 1)]))
        go.touch()
        assert first.result(BOUND_S) == "waited"
        errors = [each.exception(BOUND_S) for each in waits]
    assert [type(each) for each in errors] == [WorkerDied] * 4
    assert all(f"its process {session.pid} waits for its own" in str(each) for each in errors)


@pytest.mark.each_value
@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("message", ["leave thread", "nonsense"])
def test_what_is_said_of_a_service_that_has_ended_and_a_new_start(started: Any, channel: str, message: str) -> None:
    session = started(channel, "own")
    session.send_request(message)
    died(session.wait_for_response, None)
    for ask in (session.fetch_response, session.send_request):
        assert died(ask, "hello again", FOREVER_MS).exit_code is None
    assert not session.is_alive()
    assert not session.is_ready()
    assert not session.is_busy()
    state, old = session.stats().worker, session.pid
    assert (state.activity, state.process) == ("ended", "waiting")
    assert not session.join(1)  # the process has not ended
    session.start()
    assert session.pid != old
    assert session.is_alive()
    assert session.fetch_response("hello again", FOREVER_MS) == "hello again"
    assert not os.path.exists(f"/proc/{old}/task")


@pytest.mark.parametrize("channel", CHANNELS)
def test_tags_outlive_a_service_that_has_ended(started: Any, channel: str) -> None:
    session = started(channel)
    session.send_tensor(np.ones(7, np.float32), "kept")
    died(session.fetch_response, "leave thread", None)
    session.send_tensor(np.ones(9, np.float32), "later")
    session.start()
    assert session.fetch_response("sum kept", FOREVER_MS) == "7.0"
    assert session.fetch_response("sum later", FOREVER_MS) == "9.0"


@pytest.mark.parametrize("channel", CHANNELS)
def test_please_exit_gives_a_process_that_lives_on_its_time(started: Any, channel: str) -> None:
    session = started(channel)
    died(session.fetch_response, "leave thread", None)
    assert not session.please_exit(100, ensure=False)
    assert session.pid is not None
    assert not session.please_exit(100)
    assert session.pid is None


@pytest.mark.parametrize("channel", CHANNELS)
def test_an_answer_of_a_handler_that_has_said_that_it_ends_still_comes(
    started: Any, gate: Gate, tmp_path: Path, channel: str
) -> None:
    del gate
    session, go = started(channel, "own"), tmp_path / "go"
    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(session.fetch_response, f"last {go}", FOREVER_MS)
        wait_until(lambda: "exiting" in (Path(session.session_dir()) / "status.txt").read_text())
        with pytest.raises(TimeoutError):
            waiter.result(1.0)  # longer than a worker's last word is given to be followed by its end
        go.touch()
        assert waiter.result(BOUND_S) == "the last answer"
    died(session.fetch_response, "hello again", None)
