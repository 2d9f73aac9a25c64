"""What *Find out why a worker hangs* says is shown, is shown: at a start, of threads, of coroutines."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from page_blocks import BLOCKS
from support import run_script, script, wait_until

from tr_mmap import PythonSession, RemoteError, WorkerDied

FOREVER_MS = 60_000.0


def test_the_command_of_the_page_names_the_line_at_which_a_coroutine_waits(tmp_path: Path) -> None:
    (program,) = [each.text for each in BLOCKS if each.page == "how-to" and "all_tasks" in each.text]
    nested = program.replace(
        '@server.command("wait")\nasync def wait():\n    await asyncio.Event().wait()\n',
        "async def deep():\n    await asyncio.Event().wait()\n\n\n"
        '@server.command("wait")\nasync def wait():\n    await deep()\n',
    )
    assert nested != program
    line = nested.splitlines().index("    await asyncio.Event().wait()") + 1
    path = script(tmp_path, nested)
    ended = run_script(Path(path))
    assert ended.returncode == 0, ended.stderr
    assert f"{path}:{line} in deep\n" in ended.stdout
    assert "in tasks" not in ended.stdout


AT_START = """\
import threading


def load_model():
    print("loading")
    threading.Event().wait()


load_model()
"""


def test_a_worker_aborted_at_its_start_says_where_it_was(tmp_path: Path) -> None:
    session = PythonSession(script(tmp_path, AT_START), quiet_mode=True)
    session.start()
    try:
        wait_until(lambda: session.stats().log_nbytes)
        assert session.pid is not None
        os.kill(session.pid, signal.SIGABRT)
        with pytest.raises(WorkerDied) as died:
            session.fetch_response("hello", FOREVER_MS)
        assert "in load_model" in died.value.log_tail
    finally:
        session.close()


IN_A_THREAD = """\
import threading

from tr_mmap import Server

server = Server(framework="numpy", threads=2)


@server.command("hang")
def hang():
    print("waiting")
    threading.Event().wait()


server.run()
"""


def test_the_log_of_an_aborted_worker_with_threads_has_the_handlers_line(tmp_path: Path) -> None:
    with PythonSession(script(tmp_path, IN_A_THREAD), quiet_mode=True) as session:
        waiting = session.submit("hang", timeout_ms=FOREVER_MS)
        wait_until(lambda: session.stats().log_nbytes)
        assert session.pid is not None
        os.kill(session.pid, signal.SIGABRT)
        with pytest.raises(WorkerDied):
            waiting.result()
        log = Path(session.session_dir(), "worker.log").read_text()
    *others, main = log.split("hread 0x")  # "Thread" or "Current thread"
    assert ["in hang\n" in each for each in others].count(True) == 1
    assert "in hang\n" not in main


ASKS = """\
from tr_mmap import Server

server = Server(framework="numpy")


@server.command("ask")
def ask():
    return input()


@server.command("stop")
def stop():
    breakpoint()


server.run()
"""


def test_a_handler_that_asks_its_standard_input_gets_an_error_and_does_not_hang(tmp_path: Path) -> None:
    with PythonSession(script(tmp_path, ASKS), quiet_mode=True) as session:
        for command, error_type in (("ask", "EOFError"), ("stop", "BdbQuit")):
            with pytest.raises(RemoteError) as caught:
                session.fetch_response(command, FOREVER_MS)
            assert caught.value.error_type == error_type
