"""What one request is promised, many at once are promised too, by whatever way they are sent."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import wait
from itertools import cycle

import numpy as np
import pytest
from rings import poke
from support import BOUND_S, FOREVER_MS, Gate, wait_until
from ways import Awaits, Futures, Way

from tr_mmap.controller.dispatcher import Dispatcher
from tr_mmap.wire.messages import RESPONSE_RING_FILE, RING_BELL_OFFSET

Open = Callable[..., Way]


@pytest.mark.parametrize("auth", [False, True], ids=["plain", "auth"])
def test_each_answer_is_that_to_its_own_request(open_way: Open, auth: bool) -> None:
    check_answers(open_way(auth=auth), 900)


def test_a_channel_of_files_carries_them_one_by_one(open_in_python: Open) -> None:
    check_answers(open_in_python(channel="files"), 12)


def check_answers(way: Way, count: int) -> None:
    expected: list[tuple[str, tuple[np.ndarray, ...], object]] = []
    for number in range(count // 3):
        array = np.full(number % 7 * 1000 + 1, float(number))
        expected += [
            (f"say {number}", (), str(number)),
            ("scale", (array,), None),
            (f"say {'x' * 5000}{number}", (), f"{'x' * 5000}{number}"),  # too long for a slot
        ]
    futures = [way.submit(message if message != "scale" else "echo", *arrays) for message, arrays, _ in expected]
    for (_, arrays, text), future in zip(expected, futures, strict=True):
        result = way.outcome(future)
        assert np.array_equal(result, arrays[0]) if arrays else result == text


def test_an_error_is_that_of_its_own_request(open_way: Open) -> None:
    way = open_way()
    messages = ["say 1", "no_such_command", "bad_result", "fail oops", "echo missing", "say 2"] * 20
    wanted = cycle(["1", "UnknownCommand", "RemoteError", "RemoteError", "RemoteError", "2"])
    for future, expected in zip([way.submit(each) for each in messages], wanted, strict=False):
        assert way.outcome(future) == expected


def test_more_requests_than_may_be_in_flight_wait_their_turn(open_way: Open, gate: Gate) -> None:
    way = open_way(max_in_flight=62)  # as many as there may be: both rings are full at once
    held = way.submit(gate.message)
    gate.wait_for_worker()
    first = [way.submit(f"say {number}") for number in range(61)]
    gate.let_go("gone")
    rest = [way.submit(f"say {number}") for number in range(61, 200)]
    assert way.outcome(held) == "gone"
    assert [way.outcome(each) for each in first + rest] == [str(number) for number in range(200)]


def test_one_request_too_many_is_refused_where_the_session_shall_not_wait(open_way: Open, gate: Gate) -> None:
    way = open_way(max_in_flight=2, at_limit="fail")
    futures = [way.submit(gate.message)]
    gate.wait_for_worker()
    futures.append(way.submit("say 1"))

    assert way.ask("say 2") == "Busy"
    gate.let_go("gone")
    assert [way.outcome(each) for each in futures] == ["gone", "1"]
    assert way.ask("say 3") == "3"


def test_an_answer_that_comes_too_late_is_dropped(open_way: Open, gate: Gate) -> None:
    way = open_way()
    late = way.submit(gate.message, timeout_ms=50)
    others = [way.submit(f"say {number}") for number in range(10)]
    assert way.outcome(late) == "ResponseTimeout"
    gate.let_go("late")
    assert [way.outcome(each) for each in others] == [str(number) for number in range(10)]


def test_requests_with_a_worker_that_dies_fail_and_the_next_worker_serves(open_way: Open, gate: Gate) -> None:
    way = open_way()
    done = [way.submit(f"say {number}") for number in range(5)]
    assert [way.outcome(each) for each in done] == [str(number) for number in range(5)]
    futures = [way.submit(gate.message), *(way.submit(f"say {number}") for number in range(20))]
    gate.wait_for_worker()
    os.kill(way.pid(), signal.SIGKILL)
    assert {way.outcome(each) for each in futures} == {"WorkerDied"}
    gate.close()
    way.restart()
    assert [way.outcome(way.submit(f"say {number}")) for number in range(40)] == [str(number) for number in range(40)]


def test_a_worker_that_stops_reading_delays_its_requests_and_loses_none(open_way: Open) -> None:
    way = open_way(max_in_flight=8)
    way.ask("say ready")
    os.kill(way.pid(), signal.SIGSTOP)
    try:
        futures = [way.submit(f"say {number}") for number in range(8)]
        assert not any(way.is_done(each) for each in futures)
    finally:
        os.kill(way.pid(), signal.SIGCONT)
    assert [way.outcome(each) for each in futures] == [str(number) for number in range(8)]


def test_every_future_of_a_session_that_is_closed_has_an_outcome(open_way: Open, gate: Gate) -> None:
    way = open_way()
    answered = [way.submit(f"say {number}") for number in range(4)]
    assert way.outcome(answered[-1]) == "3"
    futures = [way.submit(gate.message), *(way.submit(f"say {number}") for number in range(4))]
    gate.wait_for_worker()
    way.close()
    assert {way.outcome(each) for each in futures} == {"SessionNotStarted"}
    assert [way.outcome(each) for each in answered[:-1]] == ["0", "1", "2"]


def test_tensors_in_flight_keep_the_budget(open_way: Open, is_full: bool) -> None:
    count, nbytes = (32, 64 << 20) if is_full else (32, 1 << 20)
    way = open_way(budget_nbytes=6 * nbytes, at_budget="block")
    sent = np.arange(nbytes // 8, dtype=np.float64)
    futures = []
    for number in range(count):
        futures.append(way.submit("total", sent + number))
    totals = [float(way.outcome(each)) for each in futures]
    assert totals == [float((sent + number).sum()) for number in range(count)]


def dispatcher_of(way: Way) -> Dispatcher:
    assert isinstance(way, Futures | Awaits)
    session = way.session if isinstance(way, Futures) else way.session._session
    assert session._dispatcher is not None
    return session._dispatcher


@pytest.mark.parametrize("taken_first", [True, False])
def test_a_request_that_is_cancelled_before_its_handler_was_called_never_is_called(
    open_way: Open, gate: Gate, taken_first: bool
) -> None:
    way = open_way()
    held = way.submit(gate.message)
    if taken_first:
        gate.wait_for_worker()
    victims = [way.submit(f"note {number}") for number in range(5)]
    follower = way.submit("say after")
    wait_until(lambda: way.in_flight() == 7)
    assert all(way.cancel(each) for each in victims)
    assert all(way.cancel(each) for each in victims)  # it stays so
    way.flush()
    assert {way.outcome(each) for each in victims} == {way.cancelled}  # with no answer of the worker
    gate.let_go("gone")
    assert way.outcome(held) == "gone"
    assert way.outcome(follower) == "after"
    assert way.ask("note last") == "last"
    assert way.ask("noted") == "last"
    assert not way.in_flight()  # what answers a cancelled one was taken, too


def test_a_cancelled_request_keeps_its_place_until_the_worker_has_come_to_it(open_way: Open, gate: Gate) -> None:
    way = open_way(max_in_flight=2, at_limit="fail")
    held = way.submit(gate.message)
    gate.wait_for_worker()
    victim = way.submit("say 1")
    wait_until(lambda: way.in_flight() == 2)
    assert way.cancel(victim)
    assert way.ask("say 2") == "Busy"
    gate.let_go("gone")
    assert way.outcome(held) == "gone"
    assert way.ask("say 3") == "3"


@pytest.mark.parametrize("kill_running", [False, True])
def test_a_request_with_an_outcome_is_not_cancelled(open_with_futures: Open, gate: Gate, kill_running: bool) -> None:
    way = open_with_futures()
    first = way.pid()
    running, waiting = way.submit(gate.message), way.submit("say x")
    gate.wait_for_worker()
    assert not way.cancel(running)
    gate.let_go("through")
    assert [way.outcome(running), way.outcome(waiting)] == ["through", "x"]
    assert not way.cancel(running, kill_running=kill_running)
    assert not way.cancel(waiting, kill_running=kill_running)
    assert way.pid() == first


def test_kill_running_ends_the_worker_and_starts_another(open_with_futures: Open, gate: Gate) -> None:
    way = open_with_futures()
    first = way.pid()
    running = way.submit(gate.message)
    gate.wait_for_worker()
    other = way.submit("say x")
    assert way.cancel(running, kill_running=True)
    assert way.outcome(running) == way.cancelled
    assert way.outcome(other) == "WorkerDied"
    assert way.ask("say again") == "again"
    assert way.pid() != first


def test_kill_running_kills_nobody_for_a_request_that_waits(open_with_futures: Open, gate: Gate) -> None:
    way = open_with_futures()
    first = way.pid()
    running = way.submit(gate.message)
    gate.wait_for_worker()
    assert way.cancel(way.submit("say x"), kill_running=True)
    gate.let_go("through")
    assert way.outcome(running) == "through"
    assert way.pid() == first


def test_a_lost_ring_costs_a_moment_and_no_answer(
    open_in_python: Open, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = open_in_python()
    way.ask("say ready")
    resources = dispatcher_of(way).resources
    worker = resources.worker
    assert worker is not None
    channel = worker.channel
    arm = channel.arm
    answers = os.path.join(resources.directory, RESPONSE_RING_FILE)

    def arm_in_vain() -> bool:
        is_there: bool = arm()
        poke(answers, RING_BELL_OFFSET, bytes(8))  # as if the worker had seen nobody sleep
        sleeps.append(is_there)
        return is_there

    sleeps: list[bool] = []
    monkeypatch.setattr(channel, "arm", arm_in_vain)
    future = way.submit(gate.message)
    gate.wait_for_worker()
    wait_until(lambda: False in sleeps)
    gate.let_go("through")
    assert wait([future], BOUND_S).done  # nobody is in result(), which needs no bell
    assert way.outcome(future) == "through"


def test_time_for_an_answer_counts_from_the_request_also_while_it_waits_for_room(open_way: Open, gate: Gate) -> None:
    way = open_way(max_in_flight=1)
    held = way.submit(gate.message)
    gate.wait_for_worker()
    assert way.outcome(way.submit("say 1", timeout_ms=50)) == "ResponseTimeout"
    gate.let_go("gone")
    assert way.outcome(held) == "gone"
    assert way.ask("say 2") == "2"


def test_no_timeout_is_no_limit(open_way: Open) -> None:
    way = open_way()
    assert way.outcome(way.submit("say x", timeout_ms=None)) == "x"
    assert way.outcome(way.submit("say x", timeout_ms=FOREVER_MS)) == "x"
