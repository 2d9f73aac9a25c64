"""A request that waits behind a long one, while another worker has none, is taken back and done there; each once."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_ways import Way
from support import FOREVER_MS, Gate, script, wait_until

from tr_mmap import RequestCancelled, WorkerDied
from tr_mmap.pool.worker import Worker

WORKER = """
import os, time
import numpy as np
from tr_mmap import RequestCancelled, Server

server = Server(framework="numpy")
server_log = os.open(os.environ["TEST_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@server.command("nap")
def nap(seconds: float, name: str):
    dream(seconds, name)
    if server.cancelled():
        raise RequestCancelled("nobody has asked for that")
    return name


@server.command("dream")
def dream(seconds: float, name: str):
    os.write(server_log, f"{name}\\n".encode())
    time.sleep(seconds)
    return name


@server.command("give_up")
def give_up(path: str):
    os.write(server_log, b"give_up\\n")
    gate(path)
    raise RequestCancelled("by itself")


@server.command("nap_with")
def nap_with(x, seconds: float):
    time.sleep(seconds)
    return x + 1


@server.command("gate")
def gate(path: str):
    with open(path) as file:
        return file.read()


server.run()
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEST_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def test_what_waits_behind_a_long_request_is_done_by_a_worker_that_has_none(shared: Way, gate: Gate) -> None:
    for _ in range(3):
        shared.ask("say", "warm")
    held = shared.submit(gate.message)
    gate.wait_for_worker()
    tokens = [shared.submit("say", number) for number in range(40)]
    tokens += [shared.submit("twice", np.full(3, number)) for number in range(4)]
    results = [shared.result(each) for each in tokens]
    assert results[:40] == [str(number) for number in range(40)]
    assert [each[0] for each in results[40:]] == [0, 2, 4, 6]
    gate.let_go("through")
    assert shared.result(held) == "through"


def test_a_map_does_not_wait_for_what_is_behind_a_long_request(shared: Way, gate: Gate) -> None:
    held = shared.submit(gate.message)
    gate.wait_for_worker()
    assert shared.mapped("say", range(50)) == [str(number) for number in range(50)]
    gate.let_go("through")
    assert shared.result(held) == "through"


def test_each_request_is_handled_once_however_often_it_is_taken_back(
    open_blocking: Callable[..., Way], tmp_path: Path, log: Path
) -> None:
    pool = open_blocking(3, script=script(tmp_path, WORKER))
    pool.call("wait_until_ready", FOREVER_MS)
    source = random.Random(1)
    naps = [source.choice([0, 0, 0.001, 0.03, 0.06]) for _ in range(300)]
    tokens = []
    for number, seconds in enumerate(naps):
        tokens.append(pool.submit("nap", seconds, number))
        if number % 10 == 9:  # so that workers have none, while others have two
            assert pool.result(tokens[-1]) == str(number)
    assert [pool.result(each) for each in tokens] == [str(number) for number in range(len(naps))]
    assert sorted(log.read_text().split(), key=int) == [str(number) for number in range(len(naps))]
    assert pool.call("stats").done == len(naps)


def test_what_is_cancelled_while_it_may_be_taken_back_is_not_handled(
    open_blocking: Callable[..., Way], tmp_path: Path, log: Path
) -> None:
    """A future that says it is cancelled tells the truth, whatever the dispatcher does with its request meanwhile."""
    pool = open_blocking(2, script=script(tmp_path, WORKER))
    pool.call("wait_until_ready", FOREVER_MS)
    cancelled: set[int] = set()
    tokens: list[Any] = []
    source = random.Random(2)
    for begin in range(0, 240, 6):
        batch = [pool.submit("dream", source.choice([0, 0.03]), begin + place) for place in range(6)]
        tokens += batch
        later = [threading.Timer(source.choice([0, 0.02, 0.021, 0.03]), pool.cancel, [each]) for each in batch[1::2]]
        for each in later:
            each.start()
        for each in later:
            each.join()
        pool.outcome(batch[0])
    for number, token in enumerate(tokens):
        found = pool.outcome(token)
        if token.cancelled():
            cancelled.add(number)
        else:
            assert found == str(number)
    handled = Counter(map(int, log.read_text().split()))
    assert set(handled.values()) == {1}
    assert handled.keys() == set(range(len(tokens))) - cancelled


def test_a_worker_that_dies_with_what_was_taken_back_from_it_takes_only_its_own_with_it(
    open_blocking: Callable[..., Way], tmp_path: Path, gate: Gate, log: Path
) -> None:
    pool = open_blocking(2, script=script(tmp_path, WORKER))
    pool.call("wait_until_ready", FOREVER_MS)
    for _ in range(3):
        held = pool.submit(gate.message, timeout_ms=300)
        gate.wait_for_worker()
        tokens = [pool.submit("nap_with", np.full(70_000, number), 0.001) for number in range(10)]
        assert [pool.result(each)[0] for each in tokens] == list(range(1, 11))
        assert isinstance(pool.outcome(held), WorkerDied)
        gate.close()
    assert pool.call("stats").failed == 3


def test_a_shutdown_that_cancels_leaves_alone_what_another_worker_has_begun(
    open_blocking: Callable[..., Way], tmp_path: Path, gate: Gate, log: Path
) -> None:
    pool = open_blocking(2, script=script(tmp_path, WORKER))
    pool.call("wait_until_ready", FOREVER_MS)
    held = pool.submit(gate.message)
    gate.wait_for_worker()
    first, second = Gate(tmp_path), Gate(tmp_path)
    tokens = [pool.submit(each.message) for each in (first, second)]  # the second one waits where the gate is
    first.let_go("first")
    second.wait_for_worker()  # by the other worker
    pool.call("shutdown", wait=False, cancel_futures=True)
    second.let_go("second")
    assert [pool.outcome(each) for each in tokens] == ["first", "second"]
    gate.let_go("through")
    assert pool.result(held) == "through"


def test_what_was_cancelled_there_is_not_looked_for_again_and_again(
    open_blocking: Callable[..., Any], tmp_path: Path, gate: Gate, log: Path
) -> None:
    way = open_blocking(2, script=script(tmp_path, WORKER))
    way.call("wait_until_ready", FOREVER_MS)
    dispatcher = way.pool._dispatcher
    held = way.submit(gate.message)
    gate.wait_for_worker()
    other = Gate(tmp_path)
    busy, behind = way.submit(other.message), way.submit("dream", 0, "behind")
    other.wait_for_worker()
    wait_until(lambda: len(dispatcher._could_be_taken_back()) == 0)  # no worker is idle
    assert behind.cancel()
    other.let_go("done")
    assert way.result(busy) == "done"
    wait_until(lambda: way.pool.stats().workers[1].in_flight == 0)
    assert dispatcher._could_be_taken_back() == []
    gate.let_go("through")
    assert way.result(held) == "through"


def test_a_signal_handler_in_a_cancel_may_wait_for_another_result(
    open_blocking: Callable[..., Way], tmp_path: Path, gate: Gate, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the dispatcher has something to say to the future that is being cancelled."""
    pool = open_blocking(2, script=script(tmp_path, WORKER))
    pool.call("wait_until_ready", FOREVER_MS)
    cancel, inside = Worker.cancel, []
    held = pool.submit(gate.message)
    gate.wait_for_worker()

    def interrupted(worker: Worker, attempt: Any) -> bool:
        monkeypatch.undo()
        gate.let_go("done")  # the dispatcher takes this answer, for the future that is being cancelled
        inside.append(pool.result(pool.submit("dream", 0, "inside")))
        return cancel(worker, attempt)

    monkeypatch.setattr(Worker, "cancel", interrupted)
    assert not held.cancel()
    assert (inside, pool.result(held)) == (["inside"], "done")


def test_a_handler_that_gives_up_by_itself_is_not_called_again_after_a_late_withdrawal(
    open_blocking: Callable[..., Way], tmp_path: Path, gate: Gate, log: Path
) -> None:
    pool = open_blocking(1, script=script(tmp_path, WORKER))
    pool.call("wait_until_ready", FOREVER_MS)
    future = pool.submit("give_up", str(gate.path))
    gate.wait_for_worker()
    attempt = future._task.attempt
    assert not attempt.can_be_withdrawn()
    assert not attempt.withdraw()  # as if the handler had begun just before this
    gate.let_go("now")
    assert isinstance(pool.outcome(future), RequestCancelled)
    assert log.read_text() == "give_up\n"
