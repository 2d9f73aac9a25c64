"""A signal handler that forks in the middle of a request: the parent gets its answer, and the child none of it."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import FOREVER_MS, TOOLS, Gate, forks, wait_until

from tr_mmap import PythonSession, SessionNotStarted

A = np.arange(9)
OPTIONS: dict[str, dict[str, Any]] = {
    "mapped": {},
    "signed": {"auth": True},
    "files": {"channel": "files"},
    "blocking": {"budget_nbytes": 1 << 24, "at_budget": "block"},
}
CALLS: dict[str, Callable[[PythonSession, str], Any]] = {
    "text": lambda session, message: session.fetch_response(message, FOREVER_MS),
    "tensor": lambda session, message: session.calculate(message, timeout_ms=FOREVER_MS),
    "steps": lambda session, message: (session.send_request(message), session.wait_for_response(FOREVER_MS))[1],
    "status": lambda session, message: (
        session.send_request(message),
        session.wait_until_ok(FOREVER_MS),
        session.wait_for_response(FOREVER_MS),
    )[2],
}


class Forks:
    """A handler that forks, and what its child does then.

    Attributes:
        child: 0 in the child; in the parent its pid, or None before the fork.
    """

    def __init__(self) -> None:
        self.child: int | None = None

    def fork(self) -> None:
        if self.child is None:
            self.child = os.fork()

    def outcome_of(self, call: Callable[[], Any]) -> Any:
        """What the call returns in the parent. The child ends here: with 0 if it was told whose session it is."""
        try:
            returned = call()
        except SessionNotStarted as error:
            if self.child != 0:
                raise
            os._exit(0 if "forked from" in str(error) else 3)
        except BaseException:
            if self.child != 0:
                raise
            os._exit(2)
        if self.child == 0:
            os._exit(1)
        return returned

    def exit_of_child(self) -> int:
        assert self.child
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])


@pytest.mark.each_value
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("call", CALLS)
def test_a_child_that_comes_back_into_a_request_is_told_that_the_session_is_its_parents(
    workspace: Path, gate: Gate, options: str, call: str
) -> None:
    forks = Forks()
    with PythonSession(TOOLS, "forks", quiet_mode=True, **OPTIONS[options]) as session:
        session.calculate("echo", A)

        def handle(*_: object) -> None:
            forks.fork()
            if forks.child == 0:
                signal.alarm(20)  # a child that waits for ever must not outlive the test
                gate.close()
            else:
                gate.let_go("parent's")

        def signal_when_the_worker_has_it() -> None:
            gate.wait_for_worker()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

        before = signal.signal(signal.SIGUSR1, handle)
        thread = threading.Thread(target=signal_when_the_worker_has_it, daemon=True)
        thread.start()
        try:
            assert forks.outcome_of(lambda: CALLS[call](session, gate.message)) == "parent's"
        finally:
            thread.join()
            signal.signal(signal.SIGUSR1, before)
        assert forks.exit_of_child() == 0
        assert session.fetch_response("say next") == "next"
        assert session.calculate("echo", A).tolist() == A.tolist()


@pytest.mark.parametrize("options", ["mapped", "signed"])
def test_a_child_that_is_forked_at_any_moment_of_a_request_disturbs_none_of_its_parents(
    workspace: Path, options: str
) -> None:
    large, is_asking = np.arange(200_000), False

    def handle(*_: object) -> None:
        if is_asking:  # else the child would come out of this test
            forks.fork()

    with PythonSession(TOOLS, "forks", quiet_mode=True, **OPTIONS[options]) as session:
        for number in range(60):
            forks = Forks()
            before = signal.signal(signal.SIGALRM, handle)
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + number * 1e-5)
                for each in range(5):  # the handler comes in the first or the second one
                    wanted = large + each
                    try:
                        is_asking = True
                        found = session.calculate("echo", wanted, timeout_ms=FOREVER_MS)
                        is_asking = False
                    except BaseException as error:
                        if forks.child != 0:
                            raise
                        if not isinstance(error, SessionNotStarted):
                            traceback.print_exc()  # where -s shows it
                        os._exit(0 if isinstance(error, SessionNotStarted) else 5)
                    if forks.child == 0:
                        os._exit(0 if np.array_equal(found, wanted) else 4)  # it had the answer before the fork
                    assert np.array_equal(found, wanted)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)
            if forks.child is not None:
                assert forks.exit_of_child() == 0
        assert session.fetch_response("say next") == "next"


def test_a_child_that_exits_in_its_handler_in_the_middle_of_a_copy_gets_just_that_exception(workspace: Path) -> None:
    large, parent, children, is_asking = np.zeros(1 << 21), os.getpid(), [], False

    def handle(*_: object) -> None:
        if not is_asking:
            return
        child = os.fork()
        if child == 0:
            raise SystemExit
        children.append(child)

    with PythonSession(TOOLS, "forks", quiet_mode=True) as session:
        session.calculate("total", large, timeout_ms=FOREVER_MS)
        before = signal.signal(signal.SIGALRM, handle)
        try:
            for number in range(30):
                signal.setitimer(signal.ITIMER_REAL, 2e-4 + number * 1e-4)
                try:
                    is_asking = True
                    session.calculate("total", large, timeout_ms=FOREVER_MS)
                    is_asking = False
                except BaseException as error:
                    if os.getpid() == parent:
                        raise
                    os._exit(0 if type(error) is SystemExit else 2)
                if os.getpid() != parent:
                    os._exit(3)
                signal.setitimer(signal.ITIMER_REAL, 0)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * len(children)
        assert children


@forks
@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_a_forked_child_finds_no_answer_and_ends_no_worker(channel: str) -> None:
    with PythonSession(TOOLS, "forked", quiet_mode=True, channel=channel) as session:
        session.send_request("say kept")
        wait_until(session.new_response)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                found = (session.new_response(), session.join(), session.please_exit(), session.is_alive())
                os.write(writer, f"{found} {session!r}".encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            found = pipe.read()
        assert found.startswith("(False, False, False, False) <PythonSession 'forked'")
        assert "of the parent process" in found
        os.waitpid(child, 0)
        assert session.wait_for_response(FOREVER_MS) == "kept"
