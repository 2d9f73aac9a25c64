"""A signal handler that raises, Ctrl-C say, may come between any two steps: nothing is lost with what it interrupts."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType

import numpy as np
import psutil
import pytest
from interrupts import PACKAGE, Stop, interrupted_at
from support import TOOLS, open_files, wait_until

from tr_mmap import PythonSession, RemoteError, ResponseTimeout
from tr_mmap.native import drain
from tr_mmap.shm.pool import SegmentPool
from tr_mmap.shm.reader import SegmentReader
from tr_mmap.transfer.options import TransferOptions
from tr_mmap.transfer.segments import SegmentWorkerTransfer
from tr_mmap.wire.header import LEASE_FREE, LEASE_WORD


class Alarm:
    """Interrupts what runs under it, once, after a random time of microseconds."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._is_armed = False
        self.count = 0

    def ring(self, _: int, frame: FrameType | None) -> None:
        # Only between steps of ours: in a callback of the garbage collector, say, nobody could catch it.
        if self._is_armed and frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
            self._is_armed = False
            raise Stop

    def interrupt(self, action: Callable[[], None], most_s: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, self._random.uniform(1e-6, most_s))
        try:
            self._is_armed = True
            action()
            self._is_armed = False
        except Stop:
            self.count += 1
        self._is_armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.fixture
def alarm() -> Iterator[Alarm]:
    made = Alarm(7)
    previous = signal.signal(signal.SIGALRM, made.ring)
    yield made
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.long
@pytest.mark.parametrize("spin_us", [0, 200])
def test_no_interrupt_of_a_request_costs_a_later_one(alarm: Alarm, spin_us: float, is_full: bool) -> None:
    def ask() -> None:
        for number in range(50):
            assert session.fetch_response(f"say {number}") == str(number)
            with pytest.raises(RemoteError):
                session.fetch_response("missing")

    with PythonSession(TOOLS, "interrupts", quiet_mode=True, spin_us=spin_us) as session:
        while alarm.count < (1500 if is_full else 400):
            alarm.interrupt(ask, 300e-6)
            assert session.fetch_response("say on", 20_000) == "on"
        for number in range(20):
            assert session.calculate("echo", np.full(9, number)).tolist() == [number] * 9


@pytest.mark.parametrize("options", [{}, {"auth": True}], ids=["plain", "signed"])
def test_no_interrupt_with_many_in_flight_costs_another_request(alarm: Alarm, options: dict[str, bool]) -> None:
    def ask() -> None:
        futures = [session.submit(f"say {number}", timeout_ms=20_000) for number in range(32)]
        sums = [session.submit("total", np.full(9, number), timeout_ms=20_000) for number in range(4)]
        assert [future.result() for future in futures] == [str(number) for number in range(32)]
        assert [future.result() for future in sums] == [str(9 * number) for number in range(4)]

    with PythonSession(TOOLS, "many", quiet_mode=True, **options) as session:  # type: ignore[misc] # mypy knows no names
        while alarm.count < 300:
            alarm.interrupt(ask, 2e-3)
            assert session.fetch_response("say on", 20_000) == "on"
        assert session._dispatcher is not None
        assert not session._dispatcher.in_flight
        assert not session.is_busy()
        assert session.stats().segments < 40  # an exception between two steps of Python's may lose one
        ask()


@pytest.mark.long
def test_no_interrupt_of_a_calculation_costs_its_segments(alarm: Alarm, is_full: bool) -> None:
    def ask() -> None:
        for number in range(30):
            x = np.full(9, number)
            loan = session.empty(9, "int64")
            loan[:] = number + 1
            for tensor in (x, loan):
                assert session.calculate("echo", tensor).tolist() == tensor.tolist()

    with PythonSession(TOOLS, "interrupts", quiet_mode=True) as session:
        while alarm.count < (600 if is_full else 200):
            alarm.interrupt(ask, 600e-6)
            assert session.calculate("echo", np.arange(4)).tolist() == [0, 1, 2, 3]
        assert session.stats().segments < 20  # an exception between two steps of Python's may lose one


@pytest.mark.long
def test_no_interrupt_of_a_receive_costs_a_lease(alarm: Alarm, tmp_path: Path, is_full: bool) -> None:
    pool, receiver = SegmentPool(str(tmp_path), "segment"), SegmentReader(str(tmp_path))
    tensors = [np.arange(16, dtype=np.float32), np.arange(16), np.arange(16).reshape(4, 4)]
    files = open_files()

    def pass_on() -> None:
        for number in range(50):
            segment = pool.publish(tensors[number % 3])
            view = receiver.receive(segment.name, segment.seq, "numpy")
            assert np.array_equal(view, tensors[number % 3])
            del view
            segment.release()

    while alarm.count < (3000 if is_full else 800):
        alarm.interrupt(pass_on, 60e-6)
        drain()
        for mapped in list(receiver.mapped.values()):
            assert not mapped.views
            assert mapped.words[LEASE_WORD] == LEASE_FREE
    pool.close()
    receiver.close()
    assert not open_files() - files


def test_no_interrupt_of_a_large_copy_costs_its_segment(alarm: Alarm, tmp_path: Path) -> None:
    pool, tensor = SegmentPool(str(tmp_path), "segment"), np.zeros(4 << 20, np.uint8)

    def pass_on() -> None:
        for _ in range(50):
            pool.publish(tensor).release()

    while alarm.count < 100:
        alarm.interrupt(pass_on, 5e-3)
    assert pool.stats().segments < 10  # an exception between two steps of Python's may lose one
    pool.close()


def publish_a_loan(pool: SegmentPool, _: SegmentReader) -> None:
    loan = pool.empty(3000, "float32", "torch")
    pool.publish(loan).release()


def publish_a_viewed_loan(pool: SegmentPool, _: SegmentReader) -> None:
    loan = pool.empty(3000, "float32", "torch")
    view = loan[5:]
    pool.publish(loan).release()
    del view


def publish_a_new_size(pool: SegmentPool, _: SegmentReader) -> None:
    pool.publish(np.zeros(5000 + 2000 * pool.stats().segments)).release()


def receive_two(pool: SegmentPool, reader: SegmentReader) -> None:
    segment = pool.publish(np.arange(3000))
    views = [reader.receive(segment.name, segment.seq, "torch") for _ in range(2)]
    segment.release()
    assert len(views) == 2


@pytest.mark.parametrize("action", [publish_a_loan, publish_a_viewed_loan, publish_a_new_size, receive_two])
def test_no_step_at_which_a_handler_raises_costs_a_descriptor(
    tmp_path: Path, action: Callable[[SegmentPool, SegmentReader], None]
) -> None:
    pytest.importorskip("torch")
    pool, reader = SegmentPool(str(tmp_path), "segment"), SegmentReader(str(tmp_path))
    action(pool, reader)
    files = open_files()
    step = 1
    while interrupted_at(step, partial(action, pool, reader)):
        assert not open_files() - files, step
        step += 1
    assert step > 20
    pool.close()
    reader.close()


def calculate_anew(session: PythonSession) -> None:
    session.calculate("echo", np.zeros(3000 + 1000 * session.stats().segments))


def calculate_with_torch(session: PythonSession) -> None:
    session.calculate("echo", pytest.importorskip("torch").ones(5))


def fetch_what_was_sent(session: PythonSession) -> None:
    session.send_tensor(np.ones(4), "t")
    session.fetch_tensor("echo t")


def send_only(session: PythonSession) -> None:
    session.send_request("say on")


def fail(session: PythonSession) -> None:
    with pytest.raises(RemoteError):
        session.fetch_response("missing")


@pytest.mark.each_value
@pytest.mark.parametrize("options", [{}, {"auth": True}], ids=["mapped", "signed"])
@pytest.mark.parametrize("ask", [calculate_anew, calculate_with_torch, fetch_what_was_sent, send_only, fail])
def test_no_step_at_which_a_handler_raises_leaves_a_session_busy(
    workspace: Path, options: dict[str, bool], ask: Callable[[PythonSession], None]
) -> None:
    with PythonSession(TOOLS, "idle", quiet_mode=True, **options) as session:  # type: ignore[misc] # mypy knows no names
        ask(session)
        step, is_interrupted = 1, True
        while is_interrupted:
            is_interrupted = interrupted_at(step, partial(ask, session))
            assert session.wait_until_ready(10_000), step
            assert not session.is_busy(), step
            while session.new_response():
                session.read_response()
            assert session.fetch_response("say on", 10_000) == "on"
            step += 1
        assert step > 20


@pytest.mark.parametrize("options", [{}, {"auth": True}], ids=["mapped", "signed"])
def test_no_step_at_which_a_handler_raises_costs_the_segments_of_an_answer_that_nobody_waits_for(
    workspace: Path, options: dict[str, bool]
) -> None:
    with PythonSession(TOOLS, "late", quiet_mode=True, **options) as session:  # type: ignore[misc] # mypy knows no names

        def held_nbytes() -> int:
            stats = session.stats()
            return stats.nbytes - stats.free_nbytes

        def ask() -> None:
            assert session.fetch_response("say on", 10_000) == "on"

        ask()
        before, step, is_interrupted = held_nbytes(), 1, True
        while is_interrupted:
            assert session.pid is not None
            worker = psutil.Process(session.pid)
            worker.suspend()
            wait_until(lambda worker=worker: worker.status() == psutil.STATUS_STOPPED)
            with pytest.raises(ResponseTimeout):
                session.calculate("echo", np.ones(64), timeout_ms=0)
            worker.resume()
            is_interrupted = interrupted_at(step, ask)
            ask()
            assert held_nbytes() == before, step
            step += 1
        assert step > 20


def test_threads_of_a_handler_may_publish_and_lend_at_once(workspace: Path) -> None:
    store, receiver = SegmentWorkerTransfer(str(workspace), TransferOptions()), SegmentReader(str(workspace))
    wrong: list[str] = []

    def work(value: int, make: Callable[[int], np.ndarray]) -> None:
        for _ in range(40):
            store.publish([make(value)])

    def copied(value: int) -> np.ndarray:
        return np.full(1 << 17, value, np.int64)  # 1 MiB: copied without the interpreter's lock

    def lent(value: int) -> np.ndarray:
        loan: np.ndarray = store.empty((1 << 17,), "int64", "numpy")
        loan[...] = value
        return loan

    for _ in range(3):
        threads = [threading.Thread(target=work, args=(number, (copied, lent)[number % 2])) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(store.results) == 160
        sums = sorted(int(receiver.receive(ref.segment, ref.seq, "numpy", ref.tag).sum()) for ref in store.results)
        assert sums == sorted((number << 17) for number in range(4) for _ in range(40))
        for ref in store.results:
            view = receiver.receive(ref.segment, ref.seq, "numpy", ref.tag)
            if view.min() != view.max():
                wrong.append(ref.segment)
            del view
        drain()
        store.withdraw()
    assert wrong == []
    store.close(is_orphan=True)
    receiver.close()
