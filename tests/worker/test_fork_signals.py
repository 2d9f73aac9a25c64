"""SIGINT and SIGTERM do to a handler's children what they do to any program's; the worker itself keeps its own way."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import has_ended, script, worker_of

from tr_mmap import PythonSession, WorkerDied

# A child that a test ends gets SIGKILL after a while if it survives, and then -9 is the answer.
WORKER = """
import multiprocessing, os, signal, subprocess, sys, threading, time

if "gevent" in os.environ.get("TEST_HOW", ""):
    from gevent import monkey
    monkey.patch_all()

early = []
os.register_at_fork(after_in_child=lambda: early and os.kill(os.getpid(), early[0]))  # runs before the worker's hooks

from tr_mmap import Server

server = Server(framework="numpy")
context = multiprocessing.get_context("fork")


def rest():
    while True:  # in short sleeps: a signal between a call's begin and its system call is seen only when that has ended
        time.sleep(0.05)


def survive():
    while True:
        try:
            rest()
        except BaseException:
            pass


def compute():
    sum(range(10**12))


def forked(work, read_end, write_end):
    child = os.fork()
    if child:
        return child
    try:
        os.write(write_end, b"x")
        work()
    except KeyboardInterrupt:
        os._exit(7)
    finally:
        os._exit(99)


def code_after(number, child, read_end):
    os.read(read_end, 1)  # it has begun
    os.kill(child, number)
    return code_of(child)


def code_of(child):
    until = time.monotonic() + 8
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@server.command("end")
def end(how: str, work: str):
    run = {"survive": survive, "compute": compute}[work]
    read_end, write_end = os.pipe()
    if how == "process":
        def begin():
            os.write(write_end, b"x")
            run()
        process = context.Process(target=begin)
        process.start()
        os.read(read_end, 1)
        process.terminate()
        process.join(8)
        code = process.exitcode
        process.kill()
        return str(code)
    if how == "thread":
        children = []
        thread = threading.Thread(target=lambda: children.append(forked(run, read_end, write_end)))
        thread.start()
        thread.join()
        return str(code_after(signal.SIGTERM, children[0], read_end))
    if how == "grandchild":
        def again():
            own_read_end, own_write_end = os.pipe()
            os._exit(-code_after(signal.SIGTERM, forked(run, own_read_end, own_write_end), own_read_end))
        return str(-code_of(forked(again, read_end, write_end)))
    return str(code_after(signal.SIGTERM, forked(run, read_end, write_end), read_end))


@server.command("interrupt")
def interrupt():
    read_end, write_end = os.pipe()
    return str(code_after(signal.SIGINT, forked(rest, read_end, write_end), read_end))


@server.command("end_at_once")
def end_at_once(number: int):
    early.append(number)
    try:
        child = forked(survive, *os.pipe())
    finally:
        early.clear()
    return str(code_of(child))


@server.command("end_with_own_handler")
def end_with_own_handler():
    previous = signal.signal(signal.SIGTERM, lambda *_: os._exit(8))
    try:
        read_end, write_end = os.pipe()
        return str(code_after(signal.SIGTERM, forked(survive, read_end, write_end), read_end))
    finally:
        signal.signal(signal.SIGTERM, previous)


@server.command("pools")
def pools(count: int):
    for _ in range(count):
        with context.Pool(2) as pool:
            assert pool.map(abs, range(-4, 0)) == [4, 3, 2, 1]
    return "done"


@server.command("states")
def states():
    os.waitpid(forked(lambda: None, *os.pipe()), 0)
    look = [sys.executable, "-c", "print(*open('/proc/self/status'))"]
    texts = [open("/proc/self/status").read()]
    texts += [subprocess.run(look, capture_output=True, text=True, preexec_fn=hook).stdout for hook in (None, str)]
    both = 1 << signal.SIGINT - 1 | 1 << signal.SIGTERM - 1
    lines = [line.split() for text in texts for line in text.splitlines()]
    sets = [int(words[1], 16) & both for words in lines if words and words[0] in ("SigBlk:", "SigIgn:")]
    return f"{len(sets)} {sum(sets)}"


@server.command("pid")
def pid():
    return str(os.getpid())


@server.command("end_self")
def end_self(number: int):
    os.kill(os.getpid(), number)
    rest()


server.run()
"""


@pytest.fixture(params=["mapped", "files"])
def session(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[PythonSession]:
    with PythonSession(script(tmp_path, WORKER), quiet_mode=True, channel=request.param) as made:
        yield made
        assert made.is_ready()


@pytest.mark.each_value
@pytest.mark.parametrize("work", ["survive", "compute"])
@pytest.mark.parametrize("how", ["fork", "process", "thread", "grandchild"])
def test_sigterm_ends_a_handlers_child_whatever_it_does(session: PythonSession, how: str, work: str) -> None:
    assert session.fetch_response(f"end {how} {work}", 30_000.0) == str(-signal.SIGTERM)


def test_sigterm_ends_a_child_of_a_worker_with_greenlets(tmp_path: Path) -> None:
    pytest.importorskip("gevent")
    with PythonSession(script(tmp_path, WORKER), quiet_mode=True, env={"TEST_HOW": "gevent"}) as session:
        assert session.fetch_response("end fork survive", 30_000.0) == str(-signal.SIGTERM)


def test_sigint_is_a_keyboard_interrupt_in_a_handlers_child(session: PythonSession) -> None:
    assert session.fetch_response("interrupt", 30_000.0) == "7"


def test_a_signal_that_comes_right_after_the_fork_is_not_lost(session: PythonSession) -> None:
    assert session.fetch_response(f"end_at_once {int(signal.SIGTERM)}", 30_000.0) == str(-signal.SIGTERM)


def test_a_handler_that_the_user_has_set_is_the_childs_too(session: PythonSession) -> None:
    assert session.fetch_response("end_with_own_handler", 30_000.0) == "8"


def test_pools_end_without_a_word(session: PythonSession) -> None:
    assert session.fetch_response("pools 20", 60_000.0) == "done"
    assert (Path(session.session_dir()) / "worker.log").read_text() == ""


def test_forks_leave_no_signal_blocked_or_ignored(session: PythonSession) -> None:
    # The worker itself, and what it runs with and without a fork of Python's: what is blocked, and what is ignored.
    assert session.fetch_response("states", 30_000.0) == "6 0"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_worker_that_has_forked_ends_by_a_signal_as_before(tmp_path: Path, number: int) -> None:
    with PythonSession(script(tmp_path, WORKER), quiet_mode=True) as session:
        session.fetch_response("pools 1", 30_000.0)
        pid = worker_of(session)
        with pytest.raises(WorkerDied) as caught:
            session.fetch_response(f"end_self {int(number)}", 30_000.0)
        assert caught.value.exit_code == 0
        assert has_ended(pid)
