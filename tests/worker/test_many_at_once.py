"""A worker that handles several requests at once: threads, ``async def`` handlers, cancellation, and every end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from support import BOUND_S, WORKERS, Gate, at_rest, forks, script, wait_until, worker_of

from tr_mmap import (
    BadMessage,
    PythonSession,
    RemoteError,
    RequestCancelled,
    Server,
    SessionNotStarted,
    UnknownCommand,
    WorkerDied,
)
from tr_mmap.worker.concurrency import HandlerLoop

TOOLS = WORKERS / "many_tools.py"
QUICK = 10_000


@contextmanager
def session_of(threads: int, *words: str, **options: Any) -> Iterator[PythonSession[Any]]:
    args = [str(threads), *words]
    with PythonSession(str(TOOLS), f"many-{os.getpid()}", quiet_mode=True, args=args, **options) as session:
        yield session


@contextmanager
def held(session: PythonSession[Any], gates: list[Gate]) -> Iterator[list[Any]]:
    """So many requests are in their handlers; the futures of their answers."""
    futures = [session.submit(gate.message, timeout_ms=60_000) for gate in gates]
    for gate in gates:
        gate.wait_for_worker()
    try:
        yield futures
    finally:
        for gate in gates:
            gate.close()


@pytest.fixture
def new_gate(tmp_path: Path) -> Callable[[], Gate]:
    return lambda: Gate(tmp_path)


# -- many at once ----------------------------------------------------------------------------------------------------


def test_a_slow_request_delays_none_of_ten_thousand_quick_ones(new_gate: Callable[[], Gate]) -> None:
    gate = new_gate()
    with session_of(2, "plain") as session, held(session, [gate]) as (slow,):
        for number in range(QUICK):
            assert session.fetch_response(f"echo {number}") == str(number)
        assert not slow.done()
        gate.let_go("slept")
        assert slow.result() == "slept"
        assert {session.fetch_response("thread") for _ in range(9)} <= {"tr_mmap-handler-0", "tr_mmap-handler-1"}


@pytest.mark.parametrize("options", [{}, {"auth": True, "checksum": True}])
def test_each_request_has_its_own_tensors_tags_results_and_texts(
    options: dict[str, Any], new_gate: Callable[[], Gate]
) -> None:
    with session_of(4, **options) as session, ThreadPoolExecutor(16) as pool:
        session.send_tensor(np.arange(1000.0), "x")

        def one(number: int) -> None:
            a = np.full(1000, float(number))
            command = "add" if number % 2 else "async_add"
            np.testing.assert_array_equal(session.calculate(command, a, a), a + a)
            np.testing.assert_array_equal(session.calculate(f"{command} x", a), np.arange(1000.0) + number)

        list(pool.map(one, range(100)))
        gates = [new_gate(), new_gate()]
        futures = [session.submit(f"names {name} {gate.path}") for name, gate in zip("ab", gates, strict=True)]
        for gate in reversed(gates):
            gate.let_go("done")
        assert [future.result() for future in futures] == ["a", "b"]


def test_a_request_that_waited_in_the_worker_gets_the_tags_of_its_place(new_gate: Callable[[], Gate]) -> None:
    gate = new_gate()
    old, new = np.arange(5.0), np.arange(5.0) + 100
    with session_of(1) as session, held(session, [gate]):
        session.send_tensor(old, "x")
        waiting = session.submit("add x x")
        session.send_tensor(new, "x")
        session.send_tensor(new, "y")
        np.testing.assert_array_equal(session.calculate("async_add x y"), new + new)
        session.drop_tensor("x")
        assert session.fetch_response("async_echo dropped") == "dropped"
        assert not waiting.done()
        gate.let_go("")
        np.testing.assert_array_equal(waiting.result(), old + old)
        with pytest.raises(RemoteError, match="'x'"):
            session.calculate("add x y")


def test_coroutines_run_beside_each_other_and_plain_handlers_in_the_main_thread() -> None:
    with session_of(0) as session:
        futures = [session.submit("meet 20") for _ in range(20)]
        assert {future.result() for future in futures} == {"tr_mmap-loop"}
        assert session.fetch_response("thread") == "MainThread"
        assert session.fetch_response("in_thread") == "said by another thread"
        with pytest.raises(RemoteError) as caught:
            session.fetch_response("async_fail")
        assert caught.value.error_type == "CancelledError"
        with pytest.raises(UnknownCommand):
            session.fetch_response("nothing")


@pytest.mark.parametrize("channel", ["files", "mapped"])
def test_a_channel_of_files_has_the_same_handlers_one_at_a_time(channel: Any) -> None:
    a = np.arange(4.0)
    with session_of(2, channel=channel) as session:
        for _ in range(3):
            assert session.fetch_response("echo x") == "x"
            np.testing.assert_array_equal(session.calculate("async_add", a, a), a + a)
        with pytest.raises(RemoteError, match="as expected") as caught:
            session.fetch_response("fail")
        assert caught.value.remote_traceback.splitlines()[1].endswith("in fail")
        assert session.fetch_response("in_thread") == "said by another thread"


def test_a_request_by_hand_is_the_only_one(new_gate: Callable[[], Gate]) -> None:
    gate = new_gate()
    with session_of(2) as session:
        directory = Path(session.session_dir())
        with held(session, [gate]) as (slow,):
            (directory / "request.json").write_text('{"command": "called", "parameters": ""}')
            gate.let_go("first")
            assert slow.result() == "first"
        at_rest(directory / "response.json", lambda found: found.get("cmd") == "called")
        assert session.fetch_response("echo again") == "again"


def test_the_status_is_busy_until_the_last_request_is_answered(new_gate: Callable[[], Gate]) -> None:
    gate = new_gate()
    with session_of(2) as session, held(session, [gate]) as (slow,):
        assert session.fetch_response("echo x") == "x"
        status = Path(session.session_dir()) / "status.page"
        assert status.read_bytes().startswith(b"busy\n")
        gate.let_go("end")
        assert slow.result() == "end"
        assert status.read_bytes().startswith(b"ok\n")


@pytest.mark.parametrize("threads", [0, -1, 63, True, 1.5, "2"])
def test_what_is_no_number_of_threads_is_refused(threads: Any) -> None:
    with pytest.raises(BadMessage, match="1 to 62"):
        Server(threads=threads)


# -- cancellation ----------------------------------------------------------------------------------------------------


def test_a_request_that_was_cancelled_before_a_thread_was_free_never_reaches_its_handler(
    new_gate: Callable[[], Gate],
) -> None:
    gate = new_gate()
    with session_of(1, "plain") as session, held(session, [gate]):
        cancelled, kept = session.submit("echo cancelled"), session.submit("echo kept")
        assert cancelled.cancel()
        gate.let_go("")
        assert kept.result() == "kept"
        assert session.fetch_response("called") == "kept"


def test_a_request_that_was_cancelled_in_the_workers_queue_never_reaches_its_handler(
    new_gate: Callable[[], Gate],
) -> None:
    gate = new_gate()
    with session_of(1) as session, held(session, [gate]):
        cancelled = session.submit("echo cancelled")
        assert session.fetch_response("async_echo taken") == "taken"  # so the one before it was taken, too
        assert not cancelled.cancel()
        gate.let_go("")
        with pytest.raises(CancelledError):
            cancelled.result()
        assert session.fetch_response("called") == ""


@pytest.mark.parametrize("words", [(0, "plain"), (0,), (2, "plain")])
def test_a_handler_sees_that_its_request_was_cancelled(tmp_path: Path, words: tuple[Any, ...]) -> None:
    mark = tmp_path / "begun"
    with session_of(*words) as session:
        future = session.submit(f"until_cancelled {mark}", timeout_ms=60_000)
        wait_until(mark.exists)
        assert not future.cancel()
        with pytest.raises(CancelledError):
            future.result()
        assert session.fetch_response("echo next") == "next"


def test_a_coroutine_is_cancelled_with_its_request_and_may_clean_up(tmp_path: Path) -> None:
    mark = tmp_path / "begun"
    with session_of(0) as session:
        future = session.submit(f"async_forever {mark}", timeout_ms=60_000)
        wait_until(mark.exists)
        assert not future.cancel()
        with pytest.raises(CancelledError):
            future.result()
        assert (tmp_path / "begun.cleaned").exists()
        assert session.fetch_response("echo next") == "next"


# -- ends ------------------------------------------------------------------------------------------------------------


def test_requests_under_way_are_answered_before_the_worker_exits(new_gate: Callable[[], Gate]) -> None:
    gates = [new_gate(), new_gate()]
    with session_of(2) as session, held(session, gates) as futures:
        waiting = session.submit("meet 2"), session.submit("meet 2")
        ends = threading.Thread(target=session.please_exit)
        ends.start()
        for gate in gates:
            gate.let_go("answered")
        assert [future.result() for future in futures] == ["answered", "answered"]
        assert [future.result() for future in waiting] == ["tr_mmap-loop"] * 2
        ends.join()


@pytest.mark.parametrize("message", ["exit_with 7", "async_exit 7"])
def test_a_handler_that_exits_ends_the_worker_whatever_the_others_do(
    message: str, new_gate: Callable[[], Gate]
) -> None:
    gate = new_gate()
    with session_of(2) as session, held(session, [gate]) as (slow,):
        with pytest.raises(WorkerDied) as caught:
            session.fetch_response(message)
        assert caught.value.exit_code == 7
        with pytest.raises(WorkerDied):
            slow.result()


def test_a_handler_that_says_exiting_ends_the_worker_after_the_answers(new_gate: Callable[[], Gate]) -> None:
    gate = new_gate()
    with session_of(2) as session, held(session, [gate]) as (slow,):
        assert session.fetch_response("say_exiting") == "ok"
        gate.let_go("answered")
        assert slow.result() == "answered"
        with pytest.raises(WorkerDied) as caught:
            session.fetch_response("echo x")
        assert caught.value.exit_code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_worker_although_handlers_run(
    number: int, new_gate: Callable[[], Gate], tmp_path: Path
) -> None:
    gate = new_gate()
    with session_of(2) as session:
        pid = worker_of(session)
        with held(session, [gate]) as (slow,):
            mark = tmp_path / "begun"
            forever = session.submit(f"async_forever {mark}", timeout_ms=60_000)
            wait_until(mark.exists)
            os.kill(pid, number)
            for future in (slow, forever):
                with pytest.raises((WorkerDied, RequestCancelled)):
                    future.result()
            assert (tmp_path / "begun.cleaned").exists()


CONTROLLER = """
import os, sys
from tr_mmap import PythonSession
session = PythonSession(sys.argv[1], quiet_mode=True, args=["2"])
session.start()
session.wait_until_ready(60_000)
print(session.fetch_response("pid"), flush=True)
session.send_request("gate " + sys.argv[2])
session.send_request("meet 2")
sys.stdin.read()
os._exit(0)
"""


def test_a_worker_whose_controller_dies_ends_although_handlers_run(
    new_gate: Callable[[], Gate], tmp_path: Path
) -> None:
    gate = new_gate()
    command = [sys.executable, script(tmp_path, CONTROLLER), str(TOOLS), str(gate.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as controller:
        assert controller.stdout is not None
        worker = psutil.Process(int(controller.stdout.readline()))
        gate.wait_for_worker()
        controller.kill()
    wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
    gate.close()


@forks
@pytest.mark.parametrize("message", ["fork", "async_fork"])
def test_a_child_that_a_handler_forks_answers_nothing_and_ends(message: str, new_gate: Callable[[], Gate]) -> None:
    gate = new_gate()
    with session_of(2) as session, held(session, [gate]) as (slow,):
        assert session.fetch_response(message, timeout_ms=60_000) == "0"
        assert session.fetch_response("echo next") == "next"
        gate.let_go("answered")
        assert slow.result() == "answered"


# -- progress --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [(0, "plain"), (2,)])
@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_the_status_says_how_far_a_request_is(
    words: tuple[Any, ...], channel: Any, new_gate: Callable[[], Gate]
) -> None:
    gate = new_gate()
    with session_of(*words, channel=channel) as session:
        seen: list[tuple[float, str]] = []
        future = session.submit(f"report {gate.path}", on_progress=lambda *each: seen.append(each))
        gate.wait_for_worker()
        status = Path(session.session_dir()) / "status.txt"
        wait_until(lambda: status.read_text().split("\n")[0] == "busy: 40 % epoch 3")
        wait_until(lambda: seen or channel != "mapped")  # a later report takes the place of one that nobody has read
        gate.let_go("")
        assert future.result() == "reported"
        if channel == "mapped":
            assert seen[0] == (0.4, "epoch 3")
            assert seen[-1] == (1.0, "written")
        wait_until(lambda: session.fetch_response("echo x") and status.read_text().split("\n")[0].startswith("ok"))


@pytest.mark.parametrize("threads", [0, 2])
def test_what_a_handler_says_last_is_told_before_its_answer(threads: int) -> None:
    with session_of(threads, "plain") as session:
        for number in range(100):
            seen: list[tuple[float, str]] = []
            session.calculate(f"report_once {number}", on_progress=lambda *each, seen=seen: seen.append(each))
            assert seen == [(1.0, str(number))]


def test_progress_is_refused_without_a_request() -> None:
    with pytest.raises(SessionNotStarted, match="none now"):
        Server().progress(0.5)
    assert not Server().cancelled()


def test_handlers_that_are_the_first_at_once_get_one_loop() -> None:
    previous_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            for _ in range(50):
                loop = HandlerLoop(lambda _: None)
                barrier = threading.Barrier(4)

                def first(_: int, loop: HandlerLoop = loop, barrier: threading.Barrier = barrier) -> Any:
                    barrier.wait(BOUND_S)
                    return loop.get()

                (found,) = set(threads.map(first, range(4)))
                loop.close()
                found.close()
    finally:
        sys.setswitchinterval(previous_s)
