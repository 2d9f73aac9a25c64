"""A worker's death and end: noticed at once, of the whole tree, and survived by what was promised."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from strategies import bits
from support import FOREVER_MS, TOOLS, Gate, has_ended, script, worker_of

from tr_mmap import PythonSession, RemoteError, ResponseTimeout, SessionNotStarted, WorkerDied

DEATH_NOTICED_S = 1.0
A = np.arange(1000.0)
HANGS = """\
import os, threading
from tr_mmap import Server
server = {server}
@server.command("spin")
def spin(path: str):
    def where_it_hangs():
        os.open(path, os.O_RDONLY)
        while True:
            pass
    for _ in range(9):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    def deep(frames):
        deep(frames - 1) if frames else where_it_hangs()
    deep(9)
@server.command("other")
{other}
    return "other"
server.run()
"""
CHANNELS = pytest.mark.parametrize("channel", ["mapped", "files"])


@CHANNELS
def test_a_killed_worker_is_noticed_within_a_second_and_start_works_again(gate: Gate, channel: str) -> None:
    with PythonSession(TOOLS, quiet_mode=True, channel=channel) as session:
        session.send_tensor(A, "told")
        kept = session.fetch_tensor("echo told")
        session.fetch_response("print these are my last words")
        session.send_tensor(A + 1, "unannounced")
        worker = worker_of(session)
        killed: list[float] = []

        def kill() -> None:
            gate.wait_for_worker()
            killed.append(time.monotonic())
            os.kill(worker, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(WorkerDied) as caught:
            session.fetch_response(gate.message, FOREVER_MS)
        noticed = time.monotonic()
        killer.join()
        assert noticed - killed[0] < DEATH_NOTICED_S
        assert caught.value.exit_code == -signal.SIGKILL
        assert "these are my last words" in caught.value.log_tail
        assert "THESE ARE MY LAST WORDS" in str(caught.value)
        assert not session.is_alive()
        assert not session.is_ready()
        assert session.join(0)
        with pytest.raises(SessionNotStarted):
            session.fetch_response("hello")
        gate.close()
        session.send_tensor(A + 2, "meanwhile")
        session.start()
        assert session.wait_until_ready()
        assert worker_of(session) != worker
        for tag, wanted in (("told", A), ("unannounced", A + 1), ("meanwhile", A + 2)):
            assert bits(session.fetch_tensor(f"echo {tag}")) == bits(wanted)
        for number in range(10):
            assert session.calculate("echo", A + number)[0] == number
        assert bits(kept) == bits(A)


def test_a_worker_killed_while_idle_is_noticed_at_the_next_request(own: PythonSession) -> None:
    worker = worker_of(own)
    os.kill(worker, signal.SIGKILL)
    assert own.join(5000)
    assert not own.is_alive()
    with pytest.raises(WorkerDied):
        own.fetch_response("hello")
    own.start()
    assert own.wait_until_ready()
    assert own.fetch_response("hello again") == "Hello Again"


def test_an_answer_given_before_the_workers_death_can_still_be_taken(own: PythonSession) -> None:
    own.send_tensor(A, "a")
    own.send_request("echo a")
    assert own.wait_until_ok()
    own.terminate()
    assert own.join(5000)
    try:
        assert bits(own.wait_for_tensor()) == bits(A)
    except WorkerDied:
        pass  # also right; what must not be is a wait, or another error


def test_waiting_for_a_dead_worker_ends_at_once(own: PythonSession) -> None:
    own.send_request("die 3 so long")
    with pytest.raises(WorkerDied, match="so long") as caught:
        own.wait_for_response(FOREVER_MS)
    assert caught.value.exit_code == 3
    assert "so long" in caught.value.log_tail


def test_an_error_that_was_answered_is_no_reason_of_a_later_death(own: PythonSession) -> None:
    with pytest.raises(RemoteError, match="nope"):
        own.fetch_response("fail nope")
    assert "nope" in Path(own.session_dir(), "worker.log").read_text()  # for who reads the log
    os.kill(worker_of(own), signal.SIGKILL)
    with pytest.raises(WorkerDied, match="it printed nothing since its last answer") as caught:
        own.fetch_response("hello")
    assert caught.value.log_tail == ""
    own.start()
    with pytest.raises(RemoteError):
        own.fetch_response("fail nope", FOREVER_MS)
    with pytest.raises(WorkerDied, match=r"its last output:\nso long$") as caught:
        own.fetch_response("die 3 so long")
    assert caught.value.log_tail == "so long"


def test_a_worker_that_hangs_shows_where_when_it_is_aborted(own: PythonSession, gate: Gate) -> None:
    worker = worker_of(own)
    own.send_request(f"spin {gate.path}")
    gate.wait_for_worker()
    with pytest.raises(ResponseTimeout) as late:
        own.wait_for_response(20)
    advised = str(late.value).rpartition("end it with ")[2]
    assert advised == f"kill -ABRT {worker}"
    subprocess.run(advised.split(), check=True)
    with pytest.raises(WorkerDied) as caught:
        own.wait_for_response(FOREVER_MS)
    assert caught.value.exit_code == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in caught.value.log_tail
    assert "in spin" in caught.value.log_tail


@pytest.mark.parametrize("server", ["Server()", "Server(threads=4)", "Server()  # and an async def"])
def test_of_several_threads_the_one_with_the_handler_is_shown(
    workspace: Path, tmp_path: Path, gate: Gate, server: str
) -> None:
    other = "async def other():" if "async" in server else "def other():"
    worker = script(tmp_path, HANGS.format(server=server, other=other))
    with PythonSession(worker, "shown", quiet_mode=True) as session:
        session.fetch_response("other")
        session.send_request(f"spin {gate.path}")
        gate.wait_for_worker()
        assert session.pid is not None
        os.kill(session.pid, signal.SIGABRT)
        with pytest.raises(WorkerDied) as caught:
            session.wait_for_response(FOREVER_MS)
    assert "in where_it_hangs" in caught.value.log_tail


def test_a_death_can_be_survived_many_times(own: PythonSession) -> None:
    own.send_tensor(A, "a")
    for number in range(4):
        results = [own.fetch_tensor("echo a") for _ in range(3)]
        with pytest.raises(WorkerDied):
            own.fetch_response(f"die {number} bye")
        own.start()
        assert own.wait_until_ready()
        assert all(bits(each) == bits(A) for each in results)
    files = sorted(each.name for each in Path(own.session_dir()).glob("*.tsr"))
    assert len([name for name in files if name.startswith("result_")]) <= 1


def test_a_handler_that_exits_ends_the_worker_with_its_status(own: PythonSession) -> None:
    with pytest.raises(WorkerDied) as caught:
        own.fetch_response("leave 4")
    assert caught.value.exit_code == 4


@pytest.mark.each_value
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("is_busy", [False, True], ids=["idle", "busy"])
def test_sigint_and_sigterm_end_the_worker_cleanly(own: PythonSession, gate: Gate, number: int, is_busy: bool) -> None:
    worker = worker_of(own)
    if is_busy:
        own.send_request(f"spin {gate.path}")
        gate.wait_for_worker()
    os.kill(worker, number)
    assert own.join(10_000)
    assert "terminated" in (Path(own.session_dir()) / "status.txt").read_text()
    with pytest.raises(WorkerDied) as caught:
        own.wait_for_response() if is_busy else own.fetch_response("hello")
    assert caught.value.exit_code == 0
    assert "Traceback" not in caught.value.log_tail


# -- ending a worker -------------------------------------------------------------------------------------------------


def test_terminate_ends_the_whole_tree(own: PythonSession) -> None:
    worker, child = worker_of(own), int(own.fetch_response("child"))
    assert psutil.pid_exists(child)
    own.terminate()
    assert not own.is_alive()
    assert has_ended(worker)
    assert has_ended(child)
    own.terminate()


def test_the_end_of_the_with_block_ends_the_whole_tree() -> None:
    with PythonSession(TOOLS, quiet_mode=True) as session:
        child = int(session.fetch_response("child"))
    assert has_ended(child)


def test_what_a_dead_worker_started_ends_with_it(own: PythonSession) -> None:
    worker, child = worker_of(own), int(own.fetch_response("child"))
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(WorkerDied):
        own.fetch_response("hello")
    assert has_ended(child)


def test_terminate_ends_the_wait_of_another_thread(own: PythonSession, gate: Gate) -> None:
    errors: list[Exception] = []

    def wait() -> None:
        try:
            own.fetch_response(gate.message, FOREVER_MS)
        except Exception as error:
            errors.append(error)
        finally:  # if the worker never came to the gate, let this test's other half go
            os.close(os.open(gate.path, os.O_RDONLY | os.O_NONBLOCK))

    waiter = threading.Thread(target=wait)
    waiter.start()
    gate.wait_for_worker()
    own.terminate()
    waiter.join()
    assert [type(error) for error in errors] == [WorkerDied], errors


def test_please_exit_asks_and_says_whether_it_was_heard(own: PythonSession) -> None:
    assert own.please_exit(5000)
    assert not own.is_alive()


def test_please_exit_without_ensure_leaves_a_busy_worker_alive(own: PythonSession, gate: Gate) -> None:
    own.send_request(gate.message)
    gate.wait_for_worker()
    assert not own.please_exit(50, ensure=False)
    assert own.is_alive()
    gate.let_go("")
    assert own.join(10_000)  # it heard


def test_please_exit_with_ensure_ends_a_busy_worker(own: PythonSession, gate: Gate) -> None:
    worker = worker_of(own)
    own.send_request(gate.message)
    gate.wait_for_worker()
    assert not own.please_exit(50)
    assert not own.is_alive()
    assert has_ended(worker)


def test_join_says_whether_the_worker_has_ended(own: PythonSession) -> None:
    assert not own.join(20)
    own.terminate()
    assert own.join(20)
    assert own.join()


def test_the_word_exit_in_the_status_file_ends_the_worker(workspace: Path) -> None:
    """The older protocol's way; the portable channel looks there by itself."""
    with PythonSession(TOOLS, quiet_mode=True, channel="files") as session:
        (Path(session.session_dir()) / "status.txt").write_text("exit\n")
        assert session.join(10_000)


def test_a_worker_that_is_killed_while_it_starts_gets_no_advice_on_its_interpreter(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text("import signal; signal.pause()")
    session = PythonSession(script, "killed-early", quiet_mode=True)
    session.start()
    os.kill(session.pid or 0, signal.SIGKILL)
    with pytest.raises(WorkerDied) as caught:
        session.wait_until_ready()
    session.close()
    assert "killed by signal 9" in str(caught.value)
    assert "TR_PYTHON" not in str(caught.value)
