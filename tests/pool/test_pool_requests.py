"""Requests to a pool, and maps: the same for ``SessionPool`` and ``aio.SessionPool``."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interrupts import PACKAGE, interrupted_at
from pool_ways import POOL_TOOLS, Way
from support import BOUND_S, Gate, wait_until

from tr_mmap import (
    BadMessage,
    MissingTag,
    RemoteError,
    UnknownCommand,
    UnsupportedTensor,
    aio,
)
from tr_mmap.aio.pool import _Calls


def test_each_request_has_its_own_result(shared: Way) -> None:
    tokens = [shared.submit("twice", np.full(3, number)) for number in range(100)]
    assert [int(shared.result(each)[0]) for each in tokens] == [2 * number for number in range(100)]
    tokens = [shared.submit("say", number) for number in range(300)]
    assert [shared.result(each) for each in tokens] == [str(number) for number in range(300)]


def test_both_workers_are_used(shared: Way, gate: Gate) -> None:
    held = shared.submit(gate.message)
    gate.wait_for_worker()
    assert int(shared.ask("pid"))  # while one of them is at the gate
    gate.let_go("through")
    assert shared.result(held) == "through"


@pytest.mark.parametrize(
    ("command", "arguments", "result"),
    [
        ("say a  b", (), "a  b"),
        ("say", ("a b", 1, 2.5, True), "a b 1 2.5 True"),
        ("say", (Path("/tmp/x y"),), "/tmp/x y"),
        ("say", ("  kept  ",), "  kept  "),
        ("scale 2", (np.ones(2),), [2.0, 2.0]),
        ("scale", (np.ones(2), 3), [3.0, 3.0]),
        ({"cmd": "say", "params": "x"}, (), "x"),
        ("scale", ({"values": np.array([1.0, 2.0]), "factor": 2},), [2.0, 4.0]),
    ],
)
def test_arguments_are_words_tensors_or_named(
    shared: Way, command: Any, arguments: tuple[Any, ...], result: Any
) -> None:
    found = shared.ask(command, *arguments)
    assert (found if isinstance(found, str) else found.tolist()) == result


@pytest.mark.parametrize(
    ("command", "arguments", "error", "text"),
    [
        ("fail", ("why",), RemoteError, "failed in the worker"),
        ("no_such", (), UnknownCommand, "no_such"),
        ("twice", (object(),), UnsupportedTensor, "is not a tensor"),
        ("twice", (np.array([object()]),), UnsupportedTensor, ""),
        ("bad_result", (), RemoteError, "what the function returned cannot be sent"),
        ("fail_strangely", (), RemoteError, ""),
    ],
)
def test_an_error_is_that_requests_own_and_the_pool_goes_on(
    shared: Way, command: str, arguments: tuple[Any, ...], error: type[Exception], text: str
) -> None:
    good = [shared.submit("say", number) for number in range(20)]
    found = shared.ask(command, *arguments)
    assert isinstance(found, error)
    assert text in str(found)
    assert [shared.result(each) for each in good] == [str(number) for number in range(20)]


@pytest.mark.parametrize("command", [print, 5, None, "", "  ", {"x": 1}])
def test_what_is_no_command_is_refused_at_once(shared: Way, command: Any) -> None:
    with pytest.raises(BadMessage):
        shared.submit(command)
    with pytest.raises(BadMessage):
        shared.mapped(command, ["say a", "starts"], chunksize=2)


def test_a_function_is_refused_with_words_that_help(shared: Way) -> None:
    with pytest.raises(BadMessage, match="runs commands of its workers' script, not functions"):
        shared.submit(print, 1)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("chunksize", ["auto", 1, 7])
def test_a_map_has_one_result_for_each_item(shared: Way, ordered: bool, chunksize: Any) -> None:
    results = shared.mapped("twice", (np.full(3, n) for n in range(200)), ordered=ordered, chunksize=chunksize)
    values = [int(each[0]) for each in results]
    assert (values if ordered else sorted(values)) == [2 * number for number in range(200)]


def test_a_map_of_several_iterables_ends_with_the_shortest(shared: Way) -> None:
    found = shared.mapped("scale", (np.ones(2) for _ in itertools.count()), [1, 2, 3])
    assert [each.tolist() for each in found] == [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]


def test_a_map_of_nothing_is_empty(shared: Way) -> None:
    assert shared.mapped("twice", []) == []


@pytest.mark.parametrize("chunksize", ["auto", 1, 5])
def test_a_map_reads_no_further_ahead_than_it_may(shared: Way, chunksize: Any) -> None:
    read: list[int] = []

    def endless() -> Iterator[np.ndarray[Any, Any]]:
        for number in itertools.count():
            read.append(number)
            yield np.full(8000, number)  # 64 KB: too large to be in a batch by itself

    assert len(shared.mapped("twice", endless(), most=20, buffersize=3, chunksize=chunksize)) == 20
    assert len(read) <= 20 + 3 * (5 if chunksize == 5 else 1) + 5


@pytest.mark.parametrize("chunksize", ["auto", 1, 7])
def test_an_items_error_is_raised_in_its_place(shared: Way, chunksize: Any) -> None:
    items = [np.ones(3) for _ in range(30)]
    bad = [*items, np.ones((3, 3), dtype=object), *items]
    taken: list[Any] = []
    with pytest.raises(UnsupportedTensor):
        taken += shared.mapped("twice", bad, chunksize=chunksize)
    shared.mapped("twice", bad, chunksize=chunksize, most=30)  # those before it have their results


def test_an_iterable_that_fails_ends_the_map_with_its_error(shared: Way) -> None:
    def broken() -> Iterator[np.ndarray[Any, Any]]:
        yield np.ones(3)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        shared.mapped("twice", broken())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"buffersize": 0}, "buffersize"),
        ({"chunksize": 0}, "chunksize"),
        ({"chunksize": "x"}, "chunksize"),
        ({"timeout_ms": -1}, "timeout_ms"),
        ({"progress": 5}, "progress"),
    ],
)
def test_a_maps_options_are_checked_at_once(shared: Way, options: dict[str, Any], name: str) -> None:
    with pytest.raises(BadMessage) as caught:
        shared.mapped("twice", [np.ones(1)], **options)
    assert caught.value.detail == name


def test_progress_is_told_of_every_result(shared: Way) -> None:
    told: list[tuple[int, int | None]] = []
    shared.mapped("say", list(range(50)), progress=lambda done, total: told.append((done, total)))
    assert told == [(number, 50) for number in range(1, 51)]
    told.clear()
    shared.mapped("say", iter(range(0)), (n for n in range(3)), progress=lambda done, total: told.append((done, total)))
    assert told == []


def test_a_bar_of_tqdm_is_closed_at_the_end(shared: Way, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    shared.mapped("say", list(range(5)), progress="words")
    assert "words: 100%" in capsys.readouterr().err


def test_the_handlers_progress_is_told(open_pool: Callable[..., Way], tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "from tr_mmap import Server\nserver = Server()\n"
        "@server.command('work')\ndef work():\n    server.progress(1.0, 'done')\nserver.run()\n"
    )
    told: list[tuple[float, str]] = []
    way = open_pool(1, script=script)
    assert way.ask("work", on_progress=lambda *said: told.append(said)) == "ok"
    wait_until(lambda: told == [(1.0, "done")])


def test_what_no_handler_has_can_be_cancelled(open_pool: Callable[..., Way], gate: Gate, tmp_path: Path) -> None:
    way = open_pool(1)
    running = way.submit(gate.message)
    gate.wait_for_worker()
    mark = tmp_path / "mark"
    waiting = [way.submit("append", mark, number) for number in range(10)]  # some in the worker's ring, some not
    assert all(way.cancel(each) for each in waiting)
    gate.let_go("through")
    assert way.result(running) == "through"
    assert way.ask("say x") == "x"
    assert not mark.exists()


def test_a_broadcast_tensor_is_known_to_all_workers_and_to_those_that_come(open_pool: Callable[..., Way]) -> None:
    way = open_pool(2)
    way.call("broadcast", np.full(2, 10.0), "weights")
    assert {way.result(each)[0] for each in [way.submit("apply weights", np.ones(2)) for _ in range(20)]} == {10.0}
    way.call("broadcast", np.full(2, 20.0), "weights")
    way.call("resize", 3)
    assert way.call("wait_until_ready")
    assert {way.result(each)[0] for each in [way.submit("apply weights", np.ones(2)) for _ in range(30)]} == {20.0}
    way.call("drop_tensor", "weights")
    assert isinstance(way.ask("apply weights", np.ones(2)), RemoteError)
    with pytest.raises(MissingTag):
        way.call("drop_tensor", "weights")


def test_a_pool_is_resized_while_it_works(open_pool: Callable[..., Way]) -> None:
    way = open_pool(1)
    tokens = [way.submit("say", number) for number in range(100)]
    way.call("resize", 3)
    tokens += [way.submit("say", number) for number in range(100, 200)]
    assert way.call("wait_until_ready")
    way.call("resize", 1)
    tokens += [way.submit("say", number) for number in range(200, 300)]
    assert [way.result(each) for each in tokens] == [str(number) for number in range(300)]
    wait_until(lambda: len(way.stats().workers) == 1)
    assert way.stats().died == 0
    with pytest.raises(BadMessage):
        way.call("resize", 0)


def test_a_worker_is_warmed_up_once(open_blocking: Callable[..., Way]) -> None:
    way = open_blocking(1)
    assert [way.ask("starts") for _ in range(3)] == ["1", "1", "1"]


def test_stats_count_what_was_done(open_pool: Callable[..., Way]) -> None:
    way = open_pool(1)
    way.mapped("twice", [np.ones(2)] * 50)
    way.ask("fail why")
    stats = way.stats()
    assert (stats.max_workers, stats.done, stats.failed, stats.retried, stats.died, stats.waiting) == (
        1,
        51,
        0,
        0,
        0,
        0,
    )
    assert [each.state for each in stats.workers] == ["ready"]
    assert stats.workers[0].pid == int(way.ask("pid"))


def test_a_function_that_fails_in_the_loop_takes_no_result_from_others() -> None:
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        failed: list[Any] = []
        loop.set_exception_handler(lambda _, context: failed.append(context["exception"]))
        async with aio.SessionPool(POOL_TOOLS, 1, quiet_mode=True) as pool:
            calls = pool._calls_of_loop()
            calls.post(lambda: 1 / 0)  # type: ignore[arg-type,return-value] # as an on_progress may be
            found = [pool.submit("say", number) for number in range(3)]
            wait_until(lambda: all(each._future.done() for each in found))  # the loop is busy meanwhile
            return [*await asyncio.wait_for(asyncio.gather(*found), BOUND_S), *map(type, failed)]

    assert asyncio.run(main()) == ["0", "1", "2", ZeroDivisionError]


def test_no_step_at_which_a_handler_raises_keeps_the_loop_from_later_results() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        step, is_interrupted = 1, True
        while is_interrupted:
            calls = _Calls(loop)
            is_interrupted = interrupted_at(step, lambda: calls.post(list), (PACKAGE, asyncio.__file__[:-11]))  # noqa: B023
            done = asyncio.Event()
            calls.post(done.set)
            await asyncio.wait_for(done.wait(), BOUND_S)
            step += 1
        assert step > 3

    asyncio.run(main())
