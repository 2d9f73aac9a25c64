"""Parts of pools by themselves: no process is started here, but for where results lie."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tr_mmap import BadMessage, MissingPackage, SessionPool
from tr_mmap.pool import progress
from tr_mmap.pool.arguments import message_of
from tr_mmap.pool.batches import ITEM_NBYTES, kind_of
from tr_mmap.pool.chunks import Chunk, ChunkTask
from tr_mmap.pool.mapping import Feed, MapResults
from tr_mmap.pool.pace import Pace
from tr_mmap.pool.places import Places


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("scale", (), "scale"),
        ("scale", (1, "a b", Path("/x/y"), True, None), "scale 1 a b /x/y True"),
        ("scale 1", (2.5,), "scale 1 2.5"),
        ("say", (" x",), {"command": "say", "parameters": " x"}),
        ({"cmd": "say"}, (), {"cmd": "say"}),
    ],
)
def test_words_go_into_the_message_and_all_else_does_not(command: Any, arguments: Any, message: Any) -> None:
    assert message_of(command, arguments) == (message, tuple(each for each in arguments if each is None))


def test_a_dict_beside_words_is_refused() -> None:
    with pytest.raises(BadMessage, match="is the only argument"):
        message_of("fit", ({"x": 1}, "word"))


def test_paths_by_name_are_texts() -> None:
    path = Path("/a b")
    assert message_of("load", ({"path": path, "size": 3},)) == ("load", ({"path": "/a b", "size": 3},))


def test_a_path_with_blanks_is_the_last_word_or_is_refused_with_words_that_help() -> None:
    assert message_of("load", (3, Path("/a b"))) == ("load 3 /a b", ())
    with pytest.raises(BadMessage, match="would be 2 words: give it as the last argument, or all by name"):
        message_of("load", (Path("/a b"), 3))


def test_numpy_scalars_are_tensors() -> None:
    message, tensors = message_of("scale", (np.float64(2.0),))
    assert (message, len(tensors)) == ("scale", 1)


def feed_of(items: Iterator[tuple[Any, ...]], size: int | None = None) -> Feed:
    return Feed("twice", items, size, lambda _: "numpy", 1.0, 0, lambda tensors: (tensors, None), lambda _: None)


def sizes_of(feed: Feed, item_s: float, count: int) -> list[int]:
    """How many items each chunk has, if each item takes that long."""
    sizes = []
    while len(sizes) < count:
        chunk = feed.next_chunk()
        assert chunk is not None
        assert feed.next_chunk() is chunk
        feed.made = None
        sizes.append(len(chunk.items))
        chunk.seconds = item_s * len(chunk.items) + 0.0001
        chunk.handlers_s = item_s * len(chunk.items) if len(chunk.items) > 1 else 0.0
        feed.learn(chunk)
    return sizes


def small() -> Iterator[tuple[Any, ...]]:
    return ((np.ones(2),) for _ in itertools.count())


def test_quick_items_go_together_and_slow_ones_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)  # no iterable is slow
    quick = sizes_of(feed_of(small()), 0.000_001, 8)
    assert quick[0] == 1
    assert quick == sorted(quick)
    assert quick[-1] == 256
    slow = sizes_of(feed_of(small()), 1.0, 8)
    assert slow == [1] * 8
    between = sizes_of(feed_of(small()), 0.001, 8)  # after a try, two that take two milliseconds
    assert between[-1] == 2


def test_a_batch_may_take_the_time_of_one_item_and_a_little_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    for size in (None, 50):
        feed = feed_of(small(), size)
        if size:
            first = feed.next_chunk()
            assert first is not None
            assert first.tasks[0].limit_s == 50.0  # nothing is known yet
            feed.made = None
            first.handlers_s = 0.001 * 50
            feed.learn(first)
        else:
            sizes_of(feed, 0.000_01, 8)
        chunk = feed.next_chunk()
        assert chunk is not None
        assert chunk.count >= 50
        assert 1.0 < chunk.tasks[0].limit_s < 1.3
        assert [each.limit_s for each in chunk.tasks[0].split()] == [1.0] * chunk.count


def test_large_items_go_alone_and_a_chunk_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    large = feed_of((np.ones(ITEM_NBYTES // 8 + 1),) for _ in itertools.count())
    assert sizes_of(large, 0.0, 6) == [1] * 6
    medium = feed_of(((np.ones(ITEM_NBYTES // 8),) for _ in itertools.count()), 100)
    assert sizes_of(medium, 0.0, 2) == [8, 8]  # 256 KiB


def test_only_items_that_are_alike_go_together() -> None:
    arrays = [np.ones(2), np.ones(2), np.ones(3), np.ones(3, "f4"), np.ones(3, "f4"), np.array(["x"]), np.ones(2)]
    feed = feed_of(((each,) for each in arrays), 10)
    found: list[int] = []
    while (chunk := feed.next_chunk()) is not None:
        found.append(len(chunk.items))
        feed.made = None
    assert found == [2, 1, 2, 1, 1]


def test_an_iterable_that_is_slow_gives_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    feed = feed_of(small())
    feed._size = 100
    chunk = feed.next_chunk()
    assert chunk is not None
    assert len(chunk.items) < 5


@pytest.mark.parametrize(
    ("message", "tensors"),
    [({"cmd": "x"}, ()), ('{"cmd": "x"}', ()), ("x", ({"a": 1},)), ("x", ([1, 2],)), ("x", (np.ma.masked_array([1]),))],
)
def test_what_fits_into_no_batch(message: Any, tensors: Any) -> None:
    assert kind_of(message, tensors) is None


def test_a_chunk_tells_once_all_its_items_are_known() -> None:
    told: list[Chunk] = []
    chunk = Chunk([("x", ())] * 3, told.append)
    chunk.note(1, ["b", "c"])
    assert not told
    chunk.note(0, ["a"])
    assert told == [chunk]
    assert chunk.values == ["a", "b", "c"]


def test_places_know_the_memory_of_large_results_and_their_parts() -> None:
    places, worker = Places(), object()
    large, smaller = np.zeros(1 << 16), np.zeros(4)
    places.note([large, smaller], worker)  # type: ignore[arg-type] # any object
    assert places.home_of([smaller[1:]]) is None
    assert places.home_of([large[100:]]) is worker
    assert places.home_of([large.reshape(256, -1).T, np.ones(1 << 16)]) is worker
    assert places.home_of([np.ones(1 << 16), "x", None, object()]) is None


def test_a_bar_without_tqdm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tqdm.auto", None)
    with pytest.raises(MissingPackage, match="pip install tqdm") as caught:
        progress.progress_of(True, 5)
    assert caught.value.package == "tqdm"
    assert progress.progress_of(False, 5) == (None, None)


def paused(pace: Pace, was_ready: bool, has_others: bool, count: int) -> tuple[list[float], list[bool]]:
    """The pauses after so many starts that have failed, and whether requests were told."""
    pauses, told = [], []
    for _ in range(count):
        told.append(pace.note_failed(100.0, was_ready, has_others))
        pauses.append(max(0.0, pace.next_start_s - 100.0))
    return pauses, told


def test_the_pauses_between_starts_that_fail_grow_up_to_a_limit() -> None:
    pauses, told = paused(Pace(), was_ready=False, has_others=False, count=20)
    assert pauses == sorted(pauses)
    assert (round(pauses[0], 6), pauses[-1]) == (0.05, 30.0)
    assert told == [False, False] + [True] * 18
    pauses, _ = paused(Pace(), was_ready=True, has_others=False, count=20)
    assert (pauses[0], pauses[-1]) == (0.0, 2.0)  # it may have been killed


def test_a_pool_with_a_worker_that_serves_goes_on_to_start_others() -> None:
    pace = Pace()
    _, told = paused(pace, was_ready=False, has_others=True, count=20)
    assert not any(told)
    assert not pace.may_start(129.0, has_work=False)
    assert pace.when_next(129.0, has_work=False) == 130.0
    assert pace.may_start(130.0, has_work=False)


def test_a_pool_that_can_start_none_waits_for_a_request() -> None:
    pace = Pace()
    paused(pace, was_ready=False, has_others=False, count=3)
    assert not pace.may_start(1000.0, has_work=False)
    assert pace.when_next(100.0, has_work=False) == math.inf
    assert pace.may_start(1000.0, has_work=True)
    pace.note_useful()
    assert pace.may_start(0.0, has_work=False)


@pytest.mark.parametrize("is_ordered", [True, False])
def test_a_slow_consumer_does_not_let_the_workers_run_dry(monkeypatch: pytest.MonkeyPatch, is_ordered: bool) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)  # no iterable is slow
    submitted: list[ChunkTask] = []

    def make_feed(tell: Callable[[Chunk], None]) -> Feed:
        return Feed("say", small(), 1, lambda _: "numpy", 1.0, 0, lambda tensors: (tensors, None), tell)

    results = MapResults(make_feed, submitted.append, lambda: None, 4, None, None, is_ordered, 1.0)  # type: ignore[arg-type]
    for taken in range(6):
        assert len(submitted) == 4 + taken
        for task in submitted[taken:]:  # all that was submitted is done before the next result is taken
            if task._chunk.missing:
                task._chunk.note(0, ["x"])
        assert next(results) == "x"
    results.close()


def test_a_request_goes_where_its_argument_lies(pool: SessionPool) -> None:
    for _ in range(4):
        results = [pool.submit("twice", np.ones(1 << 16)) for _ in range(4)]
        for each in results:
            home = pool._dispatcher.places.home_of([each.result()[5:]])
            assert home is not None
            future = pool.submit("twice", each.result()[5:])
            assert future._task.home is home
            future.result()
