"""Sessions by the fast paths: what needs thought takes the slow path, and neither does a thing twice."""

from __future__ import annotations

import mmap
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fast_path_pair import FLOATS
from rings import slot_at
from support import TOOLS, Gate, never

from tr_mmap import PythonSession, native
from tr_mmap.errors import BadMessage, RemoteError, SessionNotStarted, UnsupportedTensor, WorkerDied
from tr_mmap.native import Pending
from tr_mmap.protocol.messages import decode_request
from tr_mmap.protocol.status import Status
from tr_mmap.wire.messages import EMPTY_SLOT, RING_NBYTES, RING_SLOT_NBYTES

pytestmark = pytest.mark.skipif(not native.IS_COMPILED, reason="the fast paths are the extension's")


def test_a_session_that_goes_on_as_before_takes_no_slow_path(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("the slow path")

    x = np.arange(100.0)
    with PythonSession(TOOLS, "usual", quiet_mode=True) as session:

        def work() -> None:
            assert session.fetch_response("hello you") == "Hello You"
            assert session.calculate("echo", x, x).__class__ is list
            loan = session.empty(100, "float64")
            loan[:] = 3
            assert session.calculate("echo", loan).tolist() == [3.0] * 100
            session.send_request("hello again")
            assert session.wait_for_response() == "Hello Again"

        for _ in range(5):
            work()
        dispatcher: Any = session._dispatcher
        with monkeypatch.context() as patch:
            for owner, name in (
                (dispatcher.transfer, "prepare"),
                (dispatcher.transfer, "decode"),
                (dispatcher.transfer, "receive"),
                (dispatcher.transfer, "empty"),
                (dispatcher.transfer._pool, "publish"),
                (dispatcher.resources.worker.channel, "send"),
                (dispatcher.resources.worker.channel, "peek"),
            ):
                patch.setattr(owner, name, forbidden)
            for _ in range(5):
                work()


def test_an_unusual_answer_that_nobody_waits_for_costs_the_next_request_no_time(workspace: Path, gate: Gate) -> None:
    with PythonSession(TOOLS, "orphan", quiet_mode=True) as session:
        session.fetch_response("hello you")
        dispatcher: Any = session._dispatcher
        run = dispatcher.resources.worker
        lost: Pending = Pending("fail on purpose", "numpy")
        assert run.fast_path.send(lost, ())
        dispatcher.abandon(lost)  # as when an interrupt ends the wait
        assert run.channel.wait_status(lambda line: line.status is Status.ERROR, 60_000, never) is not None
        later = threading.Timer(0.2, gate.let_go, ["late"])
        later.start()
        assert session.fetch_response(gate.message) == "late"
        later.join()
        assert not session.new_response()


@pytest.mark.parametrize("is_short", [True, False])
def test_a_handler_that_asks_something_itself_has_no_request_sent_twice(
    workspace: Path, gate: Gate, tmp_path: Path, is_short: bool
) -> None:
    asked: list[str] = []
    with PythonSession(TOOLS, "nested", quiet_mode=True) as session:
        session.fetch_response("hello you")
        if not is_short:
            session._dispatcher.resources.worker.fast_path = None  # type: ignore[union-attr]

        def handle(*_: Any) -> None:
            gate.let_go("late")
            asked.append(session.fetch_response("say from the handler"))

        previous = signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            assert session.fetch_response(gate.message, 60_000) == "late"
        finally:
            signal.signal(signal.SIGALRM, previous)
        assert asked == ["from the handler"]
        assert session.fetch_response("say on") == "on"  # the gate would hold it up if it were asked for again


def test_a_handler_that_ends_the_session_in_a_copy_gets_no_freed_memory_sent(workspace: Path) -> None:
    large = np.zeros(64 << 20, np.uint8)
    with PythonSession(TOOLS, "ended", quiet_mode=True) as session:
        for _ in range(3):
            session.calculate("echo", FLOATS, large)
        path = workspace / "python_session" / "tr_session_ended" / "requests.ring"
        with open(path, "rb") as file:
            ring = mmap.mmap(file.fileno(), RING_NBYTES, prot=mmap.PROT_READ)

        def echo_for_ever() -> None:
            while True:
                session.calculate("echo", FLOATS, large)

        previous = signal.signal(signal.SIGALRM, lambda *_: session.close())
        signal.setitimer(signal.ITIMER_REAL, 0.002)  # a copy takes longer
        try:
            with pytest.raises((SessionNotStarted, WorkerDied)):
                echo_for_ever()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        for start in range(slot_at(0), RING_NBYTES, RING_SLOT_NBYTES):
            line = ring[start : start + RING_SLOT_NBYTES].partition(b"\n")[0]
            assert line == EMPTY_SLOT.encode().strip() or decode_request(line).command == "echo"
        ring.close()


@pytest.mark.parametrize("other", [np.zeros((300, 3)).T, np.float64(3), "text", np.arange(7)])
def test_a_request_that_takes_the_slow_path_copies_each_tensor_once(workspace: Path, other: Any) -> None:
    x = np.arange(1000.0)
    with PythonSession(TOOLS, "copies", quiet_mode=True) as session:
        for _ in range(3):
            session.calculate("echo", x)
        before = session.stats()
        try:
            session.calculate("echo", x, other)
        except UnsupportedTensor:
            pass
        after = session.stats()
        assert after.copied_nbytes - before.copied_nbytes <= x.nbytes + getattr(other, "nbytes", 0)
        assert after.published - before.published <= 2
        with pytest.raises(RemoteError):  # too long for the fast path
            session.calculate("digest " + "x" * 5000, x)
        assert session.stats().copied_nbytes - after.copied_nbytes == x.nbytes


KEEPER = """
from tr_mmap import Server
server = Server()
kept = []
@server.command("add")
def add(*arrays):
    return sum(array.astype("int64") for array in arrays)
@server.command("keep")
def keep(*arrays):
    kept.append(arrays[-1])
    return add(*arrays)
server.run()
"""


@pytest.mark.parametrize("command", ["add", "keep"])
@pytest.mark.parametrize("is_one_free", [False, True])
@pytest.mark.parametrize("is_one_loaned", [False, True])
def test_each_tensor_of_a_request_is_copied_once(
    workspace: Path, tmp_path: Path, command: str, is_one_free: bool, is_one_loaned: bool
) -> None:
    script = tmp_path / "keeper.py"
    script.write_text(KEEPER)
    x, y, z = np.full(1 << 17, 1, np.uint8), np.full(1 << 17, 2, np.uint8), np.full(1 << 16, 3, np.uint16)
    with PythonSession(str(script), "copies", quiet_mode=True) as session:
        if is_one_free:
            session.send_tensor(x, "t")
            session.drop_tensor("t")
        for tensors in ((x, y), (x, x), (x, y, x), (y, x, y)):
            for _ in range(6):
                given = list(tensors)
                if is_one_loaned:
                    given[0] = session.empty(x.shape, x.dtype)
                    given[0][:] = tensors[0]
                before = session.stats().copied_nbytes
                result = session.calculate(command, *given)
                assert result[5] == sum(int(each[5]) for each in tensors)
                wanted = sum(each.nbytes for each in tensors[is_one_loaned:])
                assert session.stats().copied_nbytes - before == wanted
        before = session.stats().copied_nbytes
        assert session.calculate(command, z, z)[5] == 6  # of another dtype
        assert session.stats().copied_nbytes - before == 2 * z.nbytes


@pytest.mark.parametrize("message", ["", '{"cmd": 3}', "fail on purpose", "nothing", "hello \n"])
def test_after_any_request_what_tags_let_go_of_is_used_again(workspace: Path, message: str) -> None:
    with PythonSession(TOOLS, "tags", quiet_mode=True) as session:
        session.fetch_response("hello you")
        try:
            session.fetch_response(message)
        except (BadMessage, RemoteError):
            pass
        for number in range(30):
            session.send_tensor(np.full(9, number), "tag")
        assert session.stats().segments < 5
        assert session.fetch_tensor("echo tag").tolist() == [29] * 9


def test_a_late_answer_is_not_taken_for_the_next_ones(workspace: Path, gate: Gate) -> None:
    with PythonSession(TOOLS, "late", quiet_mode=True) as session:
        for _ in range(3):
            session.calculate("echo", FLOATS)
        with pytest.raises(TimeoutError, match=r"within 20 ms"):
            session.fetch_response(gate.message, 20)
        segments = session.stats().segments
        with pytest.raises(BadMessage, match="timeout_ms"):
            session.fetch_response("hello you", "soon")  # type: ignore[arg-type]
        gate.let_go("late")
        for _ in range(3):
            assert session.calculate("echo", FLOATS).tolist() == FLOATS.tolist()
        assert not session.new_response()
        assert session.stats().segments <= segments + 1
