"""A worker's log, whatever a handler does to descriptors and threads; messages and answers without text or truth."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import script, wait_until, worker_of

from tr_mmap import PythonSession, RemoteError, WorkerDied
from tr_mmap.processes.worker_log import MAX_LOG_NBYTES

WORKER = """
import asyncio, json, os, subprocess, sys, threading, time
from tr_mmap import Server

class NoText:
    def __str__(self):
        raise NoText.error

class NoTruth:
    def __init__(self, error):
        self.error = error

    def __bool__(self):
        raise self.error

class Worker(Server):
    def main_logic(self, command, parameters):
        if command == "no_truth":
            return NoTruth(ERRORS[parameters]("no truth"))
        return super().main_logic(command, parameters)

ERRORS = {"cancelled": asyncio.CancelledError, "interrupt": KeyboardInterrupt, "value": ValueError,
          "generator": GeneratorExit, "exit": SystemExit}
server = Worker(framework="numpy", debug=True)
own = []

@server.command("pid")
def pid():
    return str(os.getpid())

@server.command("take_all_descriptors")
def take_all_descriptors(path: str):
    os.closerange(3, 4096)
    own.extend(os.open(path, os.O_RDWR) for _ in range(60))
    sys.stderr = None  # so that the log's own descriptor would be used
    server.debug_message("not into the user's file")
    sys.stderr = sys.__stderr__
    return "taken"

@server.command("print")
def print_on(kib: int):
    for _ in range(kib):
        print("y" * 1023)
    return "printed"

@server.command("print_in_threads")
def print_in_threads(count: int):
    def print_lines():
        for _ in range(count):
            sys.stdout.write("z" * 1022 + "\\n")
    threads = [threading.Thread(target=print_lines) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.flush()
    return "printed"

WRITE = "import os; [os.write(1, b'w' * 1023 + bytes([10])) for _ in range(20 << 10)]"

@server.command("leave_chatting")
def leave_chatting():
    own.append(subprocess.Popen([sys.executable, "-c", WRITE]))
    return "left"

@server.command("chat_for_long")
def chat_for_long(how: str):
    if how == "child":
        subprocess.run([sys.executable, "-c", WRITE], check=True)
    else:
        exec(WRITE)
    until = time.monotonic() + 20
    while os.stat(1).st_size > 10 << 20 and time.monotonic() < until:
        time.sleep(0.02)
    return str(os.stat(1).st_size)

@server.command("debug")
def debug(name: str):
    NoText.error = ERRORS[name]("no text")
    server.debug_message("before", NoText(), "after")
    return "debugged"

server.run()
"""


@pytest.fixture
def session(tmp_path: Path) -> Iterator[PythonSession]:
    with PythonSession(script(tmp_path, WORKER), quiet_mode=True) as made:
        yield made


def test_a_file_that_took_the_number_of_the_logs_descriptor_is_never_written_or_cut(
    session: PythonSession, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    content = os.urandom(1 << 10) * ((MAX_LOG_NBYTES >> 10) + 100)
    own.write_bytes(content)
    pid = worker_of(session)
    session.fetch_response({"cmd": "take_all_descriptors", "params": str(own)})
    session.fetch_response("print 600")
    for _ in range(130):  # the log is also looked at after so many requests
        assert worker_of(session) == pid
    assert own.read_bytes() == content
    session.fetch_response("print 10000")  # and the log is bounded still
    log = Path(session.session_dir()) / "worker.log"
    assert log.stat().st_size <= MAX_LOG_NBYTES + (2 << 20)
    assert own.read_bytes() == content


def test_a_log_that_several_threads_print_into_loses_and_repeats_nothing(session: PythonSession) -> None:
    session.fetch_response("print_in_threads 6000", 120_000.0)
    size = session.stats()
    log = Path(session.session_dir()) / "worker.log"
    assert size.log_dropped_nbytes > 0
    head, _, rest = log.read_bytes().partition(b"\n")
    assert head.startswith(b"[tr_mmap: %d bytes" % size.log_dropped_nbytes)
    assert set(rest.splitlines()) == {b"z" * 1022}
    assert abs(4 * 6000 * 1023 - size.log_dropped_nbytes - len(rest)) <= 1 << 20


@pytest.mark.parametrize("channel", ["mapped", "files"])
@pytest.mark.parametrize("how", ["child", "itself"])
def test_a_log_is_cut_while_a_handler_runs_whoever_writes(tmp_path: Path, channel: str, how: str) -> None:
    with PythonSession(script(tmp_path, WORKER), quiet_mode=True, channel=channel) as session:
        assert int(session.fetch_response(f"chat_for_long {how}", 60_000.0)) <= 10 << 20
        size = session.stats()
        assert size.log_nbytes + size.log_dropped_nbytes >= 20 << 20


def test_a_log_is_cut_while_the_worker_is_idle(session: PythonSession) -> None:
    session.fetch_response("leave_chatting")
    log = Path(session.session_dir()) / "worker.log"
    wait_until(lambda: session.stats().log_dropped_nbytes >= 8 << 20 and log.stat().st_size <= 10 << 20)


@pytest.mark.parametrize("name", ["value", "cancelled", "interrupt", "exit"])
def test_a_debug_message_of_what_has_no_text_is_a_message_all_the_same(session: PythonSession, name: str) -> None:
    assert session.fetch_response(f"debug {name}") == "debugged"
    assert "before <NoText whose text raises" in (Path(session.session_dir()) / "worker.log").read_text()


@pytest.mark.parametrize("name", ["value", "cancelled", "interrupt", "generator"])
def test_an_answer_without_a_truth_value_is_an_error_of_its_request(session: PythonSession, name: str) -> None:
    pid = worker_of(session)
    with pytest.raises(RemoteError, match="no truth"):
        session.fetch_response(f"no_truth {name}")
    assert worker_of(session) == pid


def test_an_answer_whose_truth_value_ends_the_program_ends_the_worker(session: PythonSession) -> None:
    with pytest.raises(WorkerDied):
        session.fetch_response("no_truth exit")
