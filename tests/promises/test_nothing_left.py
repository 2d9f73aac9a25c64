"""Whoever ends, and however, nothing is left."""

from __future__ import annotations

import gc
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
from strategies import bits
from support import TOOLS, Gate, controller, has_ended, leftovers, run_python, script, worker_of

from tr_mmap import PythonSession, SessionNotStarted

A = np.arange(1000.0)
CHANNELS = pytest.mark.parametrize("channel", ["mapped", "files"])


@CHANNELS
def test_nothing_is_left_after_the_with_block(workspace: Path, channel: str) -> None:
    with PythonSession(TOOLS, quiet_mode=True, channel=channel) as session:
        result = session.calculate("echo", A)
        session.send_tensor(A, "a")
        worker = worker_of(session)
    assert not leftovers(workspace)
    assert not psutil.pid_exists(worker)
    assert not session.is_alive()
    assert bits(result) == bits(A)


@CHANNELS
def test_nothing_is_left_after_an_exception_in_the_with_block(workspace: Path, channel: str) -> None:
    workers = []

    def body() -> None:
        with PythonSession(TOOLS, quiet_mode=True, channel=channel) as session:
            session.send_tensor(A, "a")
            workers.append(worker_of(session))
            raise ArithmeticError("in the body")

    with pytest.raises(ArithmeticError, match="body"):
        body()
    assert not leftovers(workspace)
    assert not psutil.pid_exists(workers[0])


def test_nothing_is_left_after_an_exception_while_the_worker_is_busy(workspace: Path, gate: Gate) -> None:
    def body() -> None:
        with PythonSession(TOOLS, quiet_mode=True) as session:
            session.send_request(gate.message)
            gate.wait_for_worker()
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        body()
    assert not leftovers(workspace)


def test_nothing_is_left_of_a_session_whose_body_closed_it(workspace: Path) -> None:
    with PythonSession(TOOLS, quiet_mode=True) as session:
        assert session.please_exit()
        assert not leftovers(workspace)
        with pytest.raises(SessionNotStarted):
            session.fetch_response("hello")
    session.close()
    session.close()


def test_nothing_is_left_of_a_session_that_was_forgotten(workspace: Path) -> None:
    session = PythonSession(TOOLS, quiet_mode=True)
    session.start()
    assert session.wait_until_ready()
    del session
    gc.collect()
    assert not leftovers(workspace)


def test_a_session_may_be_entered_again_and_knows_no_old_tags(workspace: Path) -> None:
    session = PythonSession(TOOLS, quiet_mode=True)
    for _ in range(2):
        with session:
            with pytest.raises(Exception, match="'a'"):
                session.fetch_tensor("echo a")
            session.send_tensor(A, "a")
            assert bits(session.fetch_tensor("echo a")) == bits(A)
        assert not leftovers(workspace)


@pytest.mark.parametrize("mode", ["raise", "exit", "no_with", "plain"])
def test_nothing_is_left_after_a_controller_that_ends_by_itself(workspace: Path, mode: str) -> None:
    with controller(mode) as running:
        worker = running.line()["worker"]
        said = running.end()
    assert running.returncode == {"raise": 1, "exit": 7, "no_with": 0, "plain": 0}[mode], said
    assert ("ArithmeticError: in the body" in said) == (mode == "raise")
    assert has_ended(worker)
    assert not leftovers(workspace)


@pytest.mark.parametrize("mode", ["wait", "fetch"])
def test_nothing_is_left_after_ctrl_c_in_a_wait(workspace: Path, gate: Gate, mode: str) -> None:
    with controller(mode, gate.path) as running:
        worker = running.line()["worker"]
        gate.wait_for_worker()
        said = running.end(signal.SIGINT)
    assert running.returncode == -signal.SIGINT, said
    assert "KeyboardInterrupt" in said
    assert said.count("Traceback") == 1
    assert not psutil.pid_exists(worker)
    assert not leftovers(workspace)


def test_nothing_is_left_after_ctrl_c_before_the_worker_is_ready(workspace: Path, tmp_path: Path, gate: Gate) -> None:
    never = script(tmp_path, f"import signal\nopen({str(gate.path)!r}).close()\nsignal.pause()")
    with controller("never_ready", never) as running:
        gate.wait_for_worker()  # it runs, and will never be ready
        said = running.end(signal.SIGINT)
    assert running.returncode == -signal.SIGINT, said
    assert not leftovers(workspace)


@pytest.mark.each_value
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("mode", ["plain", "no_with"])
def test_nothing_is_left_after_the_controller_was_killed(workspace: Path, mode: str, number: int) -> None:
    with controller(mode) as running:
        worker = running.line()["worker"]
        running.end(number)
    assert running.returncode == -number
    assert has_ended(worker)
    assert not leftovers(workspace)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_nothing_is_left_after_the_controller_was_killed_during_a_long_command(
    workspace: Path, gate: Gate, number: int
) -> None:
    with controller("wait", gate.path) as running:
        worker = running.line()["worker"]
        gate.wait_for_worker()
        running.end(number)
    assert has_ended(worker)
    assert not leftovers(workspace)


def test_a_second_ctrl_c_does_not_keep_the_worker_alive(workspace: Path, gate: Gate) -> None:
    with controller("wait", gate.path) as running:
        worker = running.line()["worker"]
        gate.wait_for_worker()
        running.process.send_signal(signal.SIGINT)
        running.end(signal.SIGINT)
    assert has_ended(worker)
    sweep = run_python("-c", "import tr_mmap; print(tr_mmap.sweep())")
    assert sweep.returncode == 0, sweep.stderr
    assert not leftovers(workspace)
