"""Threads, signals and the interpreter's end: each either works or says clearly why not, and ends without a word."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import FOREVER_MS, ROOT, TOOLS, Gate, has_ended, leftovers, processes_of

from tr_mmap import MissingTag, PythonSession, RemoteError, SessionNotStarted, TRException, WorkerDied
from tr_mmap.wire.words import ANSWERED_LINE


def tags(session: PythonSession, thread: int, number: int) -> None:
    value = np.full(1000 + thread, thread * 1000 + number)
    session.send_tensor(value, f"t{thread}")
    np.testing.assert_array_equal(session.fetch_tensor(f"echo t{thread}", FOREVER_MS), value)


def lent(session: PythonSession, thread: int, number: int) -> None:
    value = np.full(1000, thread * 1000 + number)
    np.testing.assert_array_equal(session.calculate("echo", value, timeout_ms=FOREVER_MS), value)


def loans(session: PythonSession, thread: int, number: int) -> None:
    loan = session.empty((2000,), "int64")
    loan[...] = thread * 1000 + number
    assert session.calculate("total", loan, timeout_ms=FOREVER_MS) == str(2000 * (thread * 1000 + number))


def texts(session: PythonSession, thread: int, number: int) -> None:
    assert session.fetch_response(f"say {thread}.{number}", FOREVER_MS) == f"{thread}.{number}"


def failures(session: PythonSession, thread: int, number: int) -> None:
    with pytest.raises(RemoteError, match=f"{thread}.{number}"):
        session.fetch_response(f"fail {thread}.{number}", FOREVER_MS)


def dropped(session: PythonSession, thread: int, number: int) -> None:
    session.send_tensor(np.arange(3), f"d{thread}")
    session.drop_tensor(f"d{thread}")
    with pytest.raises(MissingTag):
        session.drop_tensor(f"d{thread}")


def looks(session: PythonSession, thread: int, number: int) -> None:
    assert session.is_alive()
    session.is_ready()
    session.is_busy()
    session.new_response()
    assert session.stats().segments >= 0
    session.set_quiet_mode(True)


DEEDS: list[Callable[[PythonSession, int, int], None]] = [tags, lent, loans, texts, failures, dropped, looks]


def test_threads_that_do_everything_at_once_get_what_is_theirs(mapped: PythonSession) -> None:
    def work(thread: int) -> None:
        chosen = random.Random(thread)
        for number in range(60):
            chosen.choice(DEEDS)(mapped, thread, number)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, thread) for thread in range(8)]:
            done.result()
    for thread in range(8):
        try:
            mapped.drop_tensor(f"t{thread}")
        except MissingTag:
            pass


@pytest.mark.parametrize("end", ["close", "terminate", "please_exit", "kill"])
def test_a_session_that_ends_under_its_threads_gives_each_a_clear_error(end: str) -> None:
    session = PythonSession(TOOLS, quiet_mode=True)
    session.start()
    session.wait_until_ready()
    pid = int(session.fetch_response("pid"))
    working = threading.Semaphore(0)
    problems: list[BaseException] = []

    def work(thread: int) -> None:
        chosen = random.Random(thread)
        try:
            for number in range(100_000):
                if number == 5:
                    working.release()
                chosen.choice(DEEDS[:4])(session, thread, number)
        except (SessionNotStarted, WorkerDied):
            pass
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert working.acquire(timeout=30)
    if end == "kill":
        os.kill(pid, signal.SIGKILL)
    else:
        getattr(session, end)()
    for thread in threads:
        thread.join()
    session.close()
    assert not problems


def test_a_signal_handler_may_use_the_session_that_it_interrupts(gate: Gate) -> None:
    """The lock is the main thread's already; what the handler asks is answered after what it interrupted."""
    seen: list[Any] = []

    def handle(number: int, frame: Any) -> None:
        try:
            seen.append((session.is_alive(), session.is_busy(), session.new_response()))
            session.send_tensor(np.arange(10), "from_a_handler")
        except TRException as error:
            seen.append(error)

    previous = signal.signal(signal.SIGUSR1, handle)
    try:
        with PythonSession(TOOLS, quiet_mode=True) as session:

            def interrupt() -> None:
                gate.wait_for_worker()
                for _ in range(3):
                    os.kill(os.getpid(), signal.SIGUSR1)
                gate.let_go("through")

            thread = threading.Thread(target=interrupt)
            thread.start()
            assert session.fetch_response(gate.message, FOREVER_MS) == "through"
            thread.join()
            assert seen
            # Python may run the last handler only when the answer is on its way, is there, or is just being taken.
            assert set(seen) <= {(True, True, False), (True, False, False), (True, False, True)}
            assert session.fetch_tensor("echo from_a_handler").tolist() == list(range(10))
    finally:
        signal.signal(signal.SIGUSR1, previous)


# -- the interpreter's end -------------------------------------------------------------------------------------------

PRELUDE = f"""
import sys, threading, gc, faulthandler
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from tr_mmap import PythonSession, load, save
session = PythonSession({str(TOOLS)!r}, quiet_mode=True)
"""

ENDINGS = {
    "open_session_and_views": """
session.start()
session.send_tensor(np.arange(1000.0), "a")
view = session.fetch_tensor("echo a")
loan = session.empty((1000,))
""",
    "torch_views": """
import torch
session = PythonSession(%(tools)r, quiet_mode=True, framework="torch")
session.start()
view = session.calculate("echo", torch.arange(1000))
loan = session.empty((1000,))
part = view[10:]
""",
    "views_after_the_session": """
with session:
    view = session.calculate("echo", np.arange(1000.0))
    loan = session.empty((1000,))
part = view[::2]
""",
    "a_cycle": """
class Knot:
    pass
knot = Knot()
knot.knot, knot.session = knot, session
session.start()
knot.view = session.calculate("echo", np.arange(1000.0))
del session, knot
gc.collect()
""",
    "a_request_under_way": """
session.start()
session.send_request("say hello")
""",
    "a_thread_that_waits": """
session.start()
session.wait_until_ready()
def wait():
    try:
        session.wait_for_response(60_000)
    except BaseException:
        pass
threading.Thread(target=wait, daemon=True).start()
""",
    "a_file_that_is_loaded": """
save(%(file)r, np.arange(1000.0))
view = load(%(file)r)
""",
    "sys_exit_in_the_body": """
with session:
    view = session.calculate("echo", np.arange(1000.0))
    sys.exit(0)
""",
    "never_started": "",
    "the_worker_died": """
session.start()
view = session.calculate("echo", np.arange(1000.0))
try:
    session.fetch_response("die 3 x")
except ChildProcessError:
    pass
""",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_interpreter_ends_without_a_word(ending: str, workspace: Path, tmp_path: Path) -> None:
    code = PRELUDE + ENDINGS[ending].replace("%(tools)r", repr(str(TOOLS))).replace(
        "%(file)r", repr(str(tmp_path / "x.tsr"))
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not leftovers(workspace)


@pytest.mark.parametrize("end", ["please_exit", "leave 0", "SIGTERM", "killed_controller"])
def test_a_workers_interpreter_ends_without_a_word_too(
    end: str, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With warnings as errors and every resource that is not closed reported."""
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setenv("PYTHONDEVMODE", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the log is, unless that is on the workspace's file system
    log = tmp_path / "kept.log"
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from tr_mmap import PythonSession, TRException
session = PythonSession({str(TOOLS)!r}, quiet_mode=True)
session.start()
session.send_tensor(np.arange(1000.0), "a")
view = session.fetch_tensor("echo a")
session.fetch_response("keep a b")
loan = session.calculate("loan 10 7")
try:
    session.fetch_response("fail on purpose")
except TRException:
    pass
os.link(os.path.realpath(os.path.join(session.session_dir(), "worker.log")), {str(log)!r})
end = {end!r}
if end == "killed_controller":
    os.kill(os.getpid(), signal.SIGKILL)
elif end == "SIGTERM":
    os.kill(int(session.fetch_response("pid")), signal.SIGTERM)
    session.join(20_000)
elif end == "please_exit":
    session.please_exit(20_000)
else:
    try:
        session.fetch_response(end)
    except TRException:
        pass
session.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (-signal.SIGKILL if end == "killed_controller" else 0), done.stderr
    assert all(has_ended(process.pid) for process in processes_of(workspace))
    said = log.read_text()
    log.unlink()
    assert os.listdir(tmp_path) == []  # the log itself is gone, whoever has ended first
    _, found, rest = said.partition("ZeroDivisionError: on purpose")
    assert found  # the one thing that it was to say
    assert rest.strip() == ANSWERED_LINE
    assert "Warning" not in said
