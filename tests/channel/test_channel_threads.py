"""Several threads at one end of a channel, and sends that have to wait for the peer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from channel_ends import Ends, Stop
from support import BOUND_S, never

from tr_mmap.channel import mapped
from tr_mmap.channel.authenticated import AuthenticatedChannel, RejectionCounter
from tr_mmap.channel.files import FileChannel, PollRate
from tr_mmap.channel.interface import Channel, Role
from tr_mmap.errors import ResponseTimeout
from tr_mmap.protocol.messages import Request, Response, decode_request
from tr_mmap.protocol.status import Status, StatusLine

SECRET = bytes(range(32))
KINDS = ["files", "legacy", "mapped"]


@pytest.fixture(params=KINDS)
def any_ends(request: pytest.FixtureRequest, connect: Callable[[str], Ends]) -> Ends:
    return connect(str(request.param))


@pytest.fixture(params=["files", "legacy"])
def slow_ends(request: pytest.FixtureRequest, connect: Callable[[str], Ends]) -> Ends:
    return connect(str(request.param))


# -- a ring for one thread is not lost to another --------------------------------------------------------------------


@pytest.mark.parametrize("is_status_first", [False, True])
def test_a_message_reaches_its_waiter_while_another_thread_waits_for_a_status(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, is_status_first: bool
) -> None:
    monkeypatch.setattr(mapped, "WAIT_SLICE_S", 2.0 * BOUND_S)  # a ring that is lost is never made good
    monkeypatch.setattr(PollRate, "FIRST_MS", 2000.0 * BOUND_S)
    monkeypatch.setattr(PollRate, "LAST_MS", 2000.0 * BOUND_S)
    ends.worker.write_status(Status.READY)
    for number in range(1, 30):
        of_message, of_status = Stop(), Stop()
        with ThreadPoolExecutor(2) as threads:

            def receive(stop: Stop = of_message) -> bytes | None:
                return ends.controller.receive(1000 * BOUND_S, stop)

            def wait_status(stop: Stop = of_status) -> StatusLine | None:
                return ends.controller.wait_status(lambda line: line.status is Status.OK, 1000 * BOUND_S, stop)

            first, second = (wait_status, receive) if is_status_first else (receive, wait_status)
            futures = [threads.submit(first)]
            (of_status if is_status_first else of_message).wait_until_asked()
            futures.append(threads.submit(second))
            (of_message if is_status_first else of_status).wait_until_asked()
            ends.worker.send(Response(number, "x"))
            ends.controller.wake()
            message = futures[is_status_first].result(BOUND_S)
            assert message is not None
            ends.worker.write_status(Status.OK, f"number {number}")
            ends.worker.ring()
            ends.controller.wake()
            assert futures[not is_status_first].result(BOUND_S) == StatusLine(Status.OK, f"number {number}")
        ends.worker.write_status(Status.READY)


def test_a_wake_ends_the_waits_of_all_threads(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "WAIT_SLICE_S", 2.0 * BOUND_S)
    monkeypatch.setattr(PollRate, "FIRST_MS", 2000.0 * BOUND_S)
    stops = [Stop(), Stop()]
    with ThreadPoolExecutor(2) as threads:
        futures = [
            threads.submit(ends.controller.receive, 1000 * BOUND_S, stops[0]),
            threads.submit(ends.controller.wait_status, lambda _: False, 1000 * BOUND_S, stops[1]),
        ]
        for stop in stops:
            stop.wait_until_asked()
        for stop in stops:
            stop.is_set = True
        ends.controller.wake()  # once, as a watch that has seen a death
        assert [future.result(BOUND_S) for future in futures] == [None, None]


# -- a send that waits -----------------------------------------------------------------------------------------------


def test_a_send_waits_no_longer_than_its_caller_says(slow_ends: Ends) -> None:
    slow_ends.ask(1, "first")
    with pytest.raises(ResponseTimeout) as caught:
        slow_ends.controller.send(Request(2, "second"), time.monotonic() + 0.005)
    assert caught.value.command == "second"
    assert caught.value.timeout_ms <= 5.0
    with pytest.raises(ResponseTimeout):
        slow_ends.controller.send(Request(2, "second"), time.monotonic() - 1.0)  # its time was over before
    assert slow_ends.asked().command == "first"
    slow_ends.controller.send(Request(3, "third"), time.monotonic() - 1.0)  # but there is nothing to wait for
    assert slow_ends.asked().command == "third"


def test_a_send_ends_when_there_is_a_reason_to_stop(slow_ends: Ends, background: Callable[..., Future[Any]]) -> None:
    slow_ends.ask(1, "first")
    stop = Stop()
    waiting = background(slow_ends.controller.send, Request(2, "second"), None, stop)
    stop.wait_until_asked()
    stop.is_set = True
    slow_ends.controller.wake()
    with pytest.raises(ResponseTimeout):
        waiting.result(BOUND_S)
    assert slow_ends.asked().command == "first"
    assert not slow_ends.worker.has_message()


def test_a_ring_is_never_waited_for(connect: Callable[[str], Ends]) -> None:
    ends = connect("mapped")
    ends.ask(1, "first")
    ends.controller.send(Request(2, "second"), time.monotonic() - 1.0, lambda: True)
    assert [ends.asked().command for _ in range(2)] == ["first", "second"]


def test_a_request_to_exit_waits_no_longer_than_its_caller_says(connect: Callable[[str], Ends]) -> None:
    ends = connect("files")
    ends.ask(1, "first")
    with pytest.raises(ResponseTimeout):
        ends.controller.request_exit(Request(2, "exit"), time.monotonic() + 0.005)


# -- two threads that send -------------------------------------------------------------------------------------------


def seqs_received(worker: Channel, count: int, is_over: threading.Event) -> list[str]:
    """The commands that come, each from its sender."""
    found = []
    while len(found) < count and not (is_over.is_set() and not worker.has_message()):
        raw = worker.receive(5.0, never)
        if raw is not None:
            found.append(decode_request(raw).command)
    return found


def test_two_threads_that_send_over_files_lose_no_message(slow_ends: Ends) -> None:
    is_over = threading.Event()
    with ThreadPoolExecutor(3) as threads:
        received = threads.submit(seqs_received, slow_ends.worker, 40, is_over)

        def send(name: str) -> None:
            for number in range(20):
                slow_ends.controller.send(Request(number + 1, f"{name}{number}"), time.monotonic() + BOUND_S)

        for sent in [threads.submit(send, name) for name in "ab"]:
            sent.result(BOUND_S)
        is_over.set()
        found = received.result(BOUND_S)
    assert sorted(found) == sorted(f"{name}{number}" for name in "ab" for number in range(20))
    for name in "ab":
        assert [each for each in found if each[0] == name] == [f"{name}{number}" for number in range(20)]


def test_two_threads_that_send_over_a_page_mix_no_message(connect: Callable[[str], Ends]) -> None:
    ends = connect("mapped")
    is_over = threading.Event()

    def send(name: str, first: int) -> None:
        for number in range(2000):
            ends.controller.send(Request(first + number, name, name * (number % 3000)))
        is_over.set()

    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(send, "a", 1), threads.submit(send, "b", 1_000_001)]
        while not is_over.is_set():
            raw = ends.worker.receive(1.0, never)
            if raw is not None:
                request = decode_request(raw)
                assert request.parameters == request.command * ((request.seq % 1_000_000 - 1) % 3000)
        for future in futures:
            future.result(BOUND_S)


@pytest.mark.parametrize("kind", ["files"])
def test_signed_messages_of_two_threads_are_all_accepted(kind: str, connect: Callable[[str], Ends]) -> None:
    ends = connect(kind)
    counter = RejectionCounter()
    controller = AuthenticatedChannel(ends.controller, Role.CONTROLLER, SECRET, RejectionCounter())
    worker = AuthenticatedChannel(ends.worker, Role.WORKER, SECRET, counter)
    is_over = threading.Event()
    with ThreadPoolExecutor(3) as threads:
        received = threads.submit(seqs_received, worker, 40, is_over)

        def send(name: str) -> None:
            for number in range(20):
                controller.send(Request(number + 1, f"{name}{number}"), time.monotonic() + BOUND_S)

        for sent in [threads.submit(send, name) for name in "ab"]:
            sent.result(BOUND_S)
        is_over.set()
        assert len(received.result(BOUND_S)) == 40
    assert counter.rejected == 0


def test_a_signed_message_waits_for_another_threads_no_longer_than_its_caller_says(
    connect: Callable[[str], Ends], background: Callable[..., Future[Any]]
) -> None:
    ends = connect("files")
    controller = AuthenticatedChannel(ends.controller, Role.CONTROLLER, SECRET, RejectionCounter())
    controller.send(Request(1, "first"))
    stop = Stop()
    waiting = background(controller.send, Request(2, "second"), None, stop)
    stop.wait_until_asked()
    with pytest.raises(ResponseTimeout):
        controller.send(Request(3, "exit"), time.monotonic() + 0.005)
    with pytest.raises(ResponseTimeout):
        controller.send(Request(3, "exit"), None, lambda: True)
    stop.is_set = True
    controller.wake()
    with pytest.raises(ResponseTimeout):
        waiting.result(BOUND_S)


# -- the heartbeat ---------------------------------------------------------------------------------------------------


def test_a_heartbeat_is_read_at_both_ends(connect: Callable[[str], Ends]) -> None:
    ends = connect("mapped")
    assert ends.controller.heartbeat_age_ms() is None
    began_s = time.monotonic()
    ends.worker.touch()
    for end in (ends.controller, ends.worker):
        age_ms = end.heartbeat_age_ms()
        assert age_ms is not None
        assert 0 <= age_ms <= (time.monotonic() - began_s) * 1000 + 50  # the clock of a touch lags a little


def test_no_status_writes_over_the_heartbeat(connect: Callable[[str], Ends]) -> None:
    ends = connect("mapped")
    ends.worker.touch()
    word = (ends.directory / "status.page").read_bytes()[-8:]
    for status in Status:
        for detail in ("", "short", "\U0001f642" * 5000):
            ends.worker.write_status(status, detail)
            assert (ends.directory / "status.page").read_bytes()[-8:] == word


def test_a_response_touches_the_heartbeat_and_a_request_does_not(connect: Callable[[str], Ends]) -> None:
    ends = connect("mapped")
    ends.ask(1, "x")
    assert ends.controller.heartbeat_age_ms() is None
    ends.worker.send(Response(1, "x"))
    assert ends.controller.heartbeat_age_ms() is not None


def test_a_channel_of_files_has_the_age_of_its_status(connect: Callable[[str], Ends]) -> None:
    ends = connect("files")
    assert isinstance(ends.controller, FileChannel)
    ends.worker.write_status(Status.BUSY)
    age_ms = ends.controller.heartbeat_age_ms()
    assert age_ms is not None
    assert age_ms >= 0
    (ends.directory / "status.txt").unlink()
    assert ends.controller.heartbeat_age_ms() is None
