"""A transfer's pool is put right after a method that failed, and never takes anything from another thread's request."""

from __future__ import annotations

import math
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tr_mmap import MissingTag, OutOfSpace, PythonSession, SessionNotStarted
from tr_mmap.native import Pending, drain
from tr_mmap.shm.reader import SegmentReader
from tr_mmap.transfer.options import TransferOptions
from tr_mmap.transfer.segments import SegmentControllerTransfer

MIB = 1 << 20


class Interrupt(BaseException):
    """What a signal handler raises."""


class _Interrupting:
    """A tag whose use raises as a signal handler would."""

    def __hash__(self) -> int:
        raise Interrupt


def fail(transfer: SegmentControllerTransfer) -> None:
    tag: Any = _Interrupting()
    with pytest.raises(Interrupt):
        transfer.drop(tag)


@pytest.fixture
def blocking(tmp_path: Path) -> Iterator[SegmentControllerTransfer]:
    """A transfer with room for two tensors of a MiB, in which a third one waits."""
    transfer = SegmentControllerTransfer(str(tmp_path), TransferOptions(budget_nbytes=2 * MIB, block_ms=600_000))
    yield transfer
    transfer.close()


def wait_until_paused(transfer: SegmentControllerTransfer) -> None:
    limit = threading.Event()
    for _ in range(10_000):
        if transfer.access.paused:
            return
        limit.wait(0.001)
    pytest.fail("the other thread does not wait for room")


@pytest.mark.parametrize("call", ["drop", "put", "stats", "empty"])
def test_a_request_that_waits_for_room_keeps_what_it_has_when_another_threads_call_fails(
    blocking: SegmentControllerTransfer, tmp_path: Path, call: str
) -> None:
    blocking.put("held", np.zeros(MIB, np.uint8))
    blocking.put("small", np.zeros(3))
    blocking.drop("small")
    requests = []

    def prepare() -> None:
        requests.append(
            blocking.prepare(Pending("add", "numpy"), "add", "", [np.full(9, 1.0), np.full(MIB, 2, np.uint8)], math.inf)
        )

    thread = threading.Thread(target=prepare)
    thread.start()
    wait_until_paused(blocking)
    fail(blocking)
    if call == "put":
        blocking.put("next", np.full(9, 5.0))
    elif call == "empty":
        blocking.empty((9,), "float64", "numpy")[:] = 5.0
    elif call == "stats":
        blocking.stats()
    blocking.drop("held")
    thread.join()
    reader = SegmentReader(str(tmp_path))
    first, second = (reader.receive(ref.segment, ref.seq, "numpy") for ref in requests[0].tensors[-2:])
    assert first.tolist() == [1.0] * 9
    assert set(second.tolist()) == {2}


def test_a_pool_is_put_right_after_two_threads_have_waited_for_room(blocking: SegmentControllerTransfer) -> None:
    blocking.put("held", np.zeros(2 * MIB, np.uint8))
    threads = [
        threading.Thread(target=blocking.put, args=(f"t{number}", np.zeros(MIB, np.uint8))) for number in range(2)
    ]
    for thread in threads:
        thread.start()
    wait_until_paused(blocking)
    blocking.drop("held")
    for thread in threads:
        thread.join()
    assert blocking.access.paused == blocking.access.depth == 0
    fail(blocking)
    assert blocking.access.has_failed
    blocking.drop("t0")
    assert not blocking.access.has_failed


def test_a_failed_call_takes_nothing_from_a_request_of_another_thread(mapped: PythonSession) -> None:
    """The fast path has no lock, and copies without the interpreter's."""
    transfer = mapped._open().transfer
    is_over = threading.Event()

    def go_on_failing() -> None:
        while not is_over.is_set():
            fail(transfer)
            mapped.send_tensor(np.full(MIB, -1.0), "a")

    thread = threading.Thread(target=go_on_failing)
    thread.start()
    try:
        for number in range(60):
            result = mapped.calculate("echo", np.full(MIB, float(number)))
            assert result[0] == result[-1] == number
    finally:
        is_over.set()
        thread.join()


def test_a_request_that_waits_for_room_ends_with_the_session(blocking: SegmentControllerTransfer) -> None:
    blocking.put("held", np.zeros(2 * MIB, np.uint8))
    errors: list[BaseException] = []

    def put() -> None:
        try:
            blocking.put("more", np.zeros(MIB, np.uint8))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=put)
    thread.start()
    wait_until_paused(blocking)
    blocking.close()
    thread.join()
    assert [type(each) for each in errors] == [SessionNotStarted]


def test_what_never_fits_the_budget_is_not_waited_for(blocking: SegmentControllerTransfer) -> None:
    with pytest.raises(OutOfSpace) as caught:
        blocking.put("huge", np.zeros(2 * MIB + 1, np.uint8))
    assert caught.value.needed_nbytes > 2 * MIB


def test_an_error_that_changed_nothing_needs_no_repair_and_names_a_few_of_many_tags(tmp_path: Path) -> None:
    transfer = SegmentControllerTransfer(str(tmp_path), TransferOptions())
    for number in range(50):
        transfer.put(f"tag_{number:02}", np.zeros(2))
    with pytest.raises(MissingTag, match=r"tag_00, .*tag_19 and 30 more$"):
        transfer.drop("nope")
    assert not transfer.access.has_failed
    transfer.close()


def test_a_session_whose_directory_is_gone_can_be_closed_after_a_call_that_failed(own: PythonSession) -> None:
    own.send_tensor(np.zeros(9), "a")
    fail(own._open().transfer)
    shutil.rmtree(own.session_dir())
    own.close()
    assert not own.is_alive()


def test_stats_can_be_asked_for_while_another_thread_sends(mapped: PythonSession) -> None:
    is_over = threading.Event()

    def send() -> None:
        views = []
        number = 0
        while not is_over.is_set():
            number += 1
            views.append(mapped.calculate("echo", np.zeros(number % 700 + 1)))
            del views[:-5]

    thread = threading.Thread(target=send)
    thread.start()
    try:
        for _ in range(3000):
            mapped.stats()
    finally:
        is_over.set()
        thread.join()
        drain()
