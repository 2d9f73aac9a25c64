"""Small items of a map go in one message; their handlers and their callers notice nothing of that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_ways import POOL_TOOLS, Way
from support import TORCH_TOOLS, script

from tr_mmap import PythonSession, RemoteError, SessionPool, UnknownCommand
from tr_mmap.pool.chunks import Chunk


def one_by_one_and_together(pool: SessionPool, command: str, *iterables: list[Any]) -> tuple[list[Any], list[Any]]:
    return tuple(list(pool.map(command, *iterables, chunksize=size)) for size in (1, 5))  # type: ignore[return-value]


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return (str(value.dtype), value.shape, value.tolist()) if hasattr(value, "tolist") else value


@pytest.mark.parametrize(
    ("command", "items"),
    [
        ("twice", [np.full(3, number, dtype="float16") for number in range(12)]),
        ("twice", [np.array(number) for number in range(12)]),  # no dimensions
        ("twice", [np.zeros((0, 2)) for _ in range(7)]),
        ("twice", [np.full(3 + number // 4, number) for number in range(12)]),  # shapes change
        ("twice", [np.asfortranarray(np.arange(6.0).reshape(2, 3)) for _ in range(7)]),
        ("scale 3", [np.full(2, number) for number in range(12)]),
        ("odd", [np.full(2, number) for number in (0, 1, 2, 3, 5, 0, 0, 6, 1, 1, 12)]),
        ("odd", [np.full(2, 1) for _ in range(10)]),
        ("swapped", [np.full(2, number) for number in range(1, 9)]),
        ("twice", [np.full(2, number, dtype=">i4") for number in range(8)]),
        ("direct", [np.full(2, number) for number in range(7)]),
        ("both", [np.full(2, number) for number in range(7)]),
        ("same", [np.full(1, number) for number in range(12)]),
        ("say", ["a", "b c", "", " d ", 5, "ü", "e,f"]),
        ("twice", [np.full((1,) * 16, number) for number in range(6)]),  # as many dimensions as a tensor may have
        ("deepest", [np.full(1, number) for number in range(6)]),
        ("nothing", None),
    ],
)
def test_a_batch_has_the_results_that_its_items_have_alone(pool: SessionPool, command: str, items: Any) -> None:
    if items is None:
        items = [{} for _ in range(5)]  # by name: never in a batch
    alone, together = one_by_one_and_together(pool, command, items)
    assert plain(together) == plain(alone)
    assert len(alone) == len(items)


def test_a_batch_is_one_request(pool: SessionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    init = Chunk.__init__

    def note(self: Chunk, items: list[Any], tell: Callable[[Chunk], None]) -> None:
        sizes.append(len(items))
        init(self, items, tell)

    monkeypatch.setattr(Chunk, "__init__", note)
    list(pool.map("twice", [np.ones(128)] * 50, chunksize=20))
    assert sizes == [20, 20, 10]
    sizes.clear()
    list(pool.map("twice", [np.ones(1 << 17)] * 10))  # 1 MiB each
    assert sizes == [1] * 10
    sizes.clear()
    list(pool.map("say", ["x"] * 2000))
    assert sum(sizes) == 2000
    assert max(sizes) > 1


def test_an_item_that_fails_leaves_the_others_of_its_batch_alone(pool: SessionPool) -> None:
    items = [np.full(2, number) for number in (0, 6, 12, 4, 18, 0)]
    results = pool.map("odd", items, chunksize=6)
    assert [int(next(results)[0]) for _ in range(3)] == [0, 6, 12]
    with pytest.raises(RemoteError, match="ZeroDivisionError") as caught:
        next(results)
    assert caught.value.command == "odd"
    assert "raise ZeroDivisionError(number)" in caught.value.remote_traceback
    with pytest.raises(StopIteration):
        next(results)


FAILING = """
import numpy as np
from tr_mmap import OutOfSpace, RequestCancelled, Server

server = Server()


def command(function):
    server.command(function.__name__)(function)


@command
def raises(x):
    def inner(count):
        return inner(count - 1) if count else {}["key"]
    inner(3)


@command
def raises_from(x):
    try:
        x[9]
    except IndexError as error:
        raise ValueError("of x") from error


@command
def cancels(x):
    raise RequestCancelled("by itself")


@command
def lacks_room(x):
    raise OutOfSpace("full", needed_nbytes=5, free_nbytes=3)


@command
def lacks_tag(x):
    server.get_tensors("none", 1)
    return server.get_tensor("none")


@command
def sends_object(x):
    server.send_tensors(x, object())


@command
def scales(x, factor: float):
    return x * factor


@command
def adds(x, y):
    return x + y


RESULTS = {
    "object": object(),
    "number": 5,
    "list": [np.zeros(1), object()],
    "named": {"x": object()},
    "numbered": {1: np.zeros(1)},
    "words": np.array(["a"]),
    "objects": np.array([object()]),
    "fields": np.zeros(1, [("a", "i4")]),
    "masked": np.ma.array([1, 2], mask=[0, 1]),
    "dimensions": np.zeros((1,) * 17),
    "surrogate": "\\ud800",
    "named_surrogate": {"text": "\\ud800"},
}
for name, value in RESULTS.items():
    server.command(f"returns_{name}")(lambda x, value=value: value)
server.command("sized")(len)
server.run()
"""
FAILURES = [
    *["raises", "raises_from", "cancels", "lacks_room", "lacks_tag", "sends_object", "scales", "scales x", "adds"],
    *[f"returns_{name}" for name in ("object", "number", "list", "named", "numbered", "words", "objects", "fields")],
    *[f"returns_{name}" for name in ("masked", "dimensions", "surrogate", "named_surrogate")],
    *["sized", "no_such"],
]


def error_of(ask: Callable[[], object]) -> tuple[type, str, dict[str, Any]]:
    with pytest.raises(RemoteError) as caught:
        ask()
    return type(caught.value), str(caught.value), vars(caught.value)


def test_an_error_in_a_batch_is_that_of_a_request_alone(tmp_path: Path) -> None:
    path, x = script(tmp_path, FAILING), np.ones(3)
    with PythonSession(path, quiet_mode=True) as session, SessionPool(path, 1, quiet_mode=True) as pool:
        for command in FAILURES:
            expected = error_of(lambda command=command: session.calculate(command, x))  # type: ignore[misc]
            for size in (1, 4):
                results = pool.map(command, [x] * 4, chunksize=size)
                assert (size, error_of(lambda results=results: next(results))) == (size, expected)  # type: ignore[misc]
            assert error_of(lambda command=command: pool.calculate(command, x)) == expected  # type: ignore[misc]


def test_a_result_that_cannot_be_sent_leaves_the_others_of_its_batch_alone(pool: SessionPool) -> None:
    results = pool.map("unsendable", [np.full(2, number) for number in (1, 2, 0, 4)], chunksize=4)
    assert [int(next(results)[0]) for _ in range(2)] == [1, 2]
    with pytest.raises(RemoteError, match="what the function returned cannot be sent: numpy dtype"):
        next(results)


def test_words_that_do_not_fit_are_that_items_error(pool: SessionPool) -> None:
    results = pool.map("scale", [np.ones(2)] * 4, [1, 2, "x", 4], chunksize=4)
    assert [next(results).tolist() for _ in range(2)] == [[1.0, 1.0], [2.0, 2.0]]
    with pytest.raises(RemoteError, match="x"):
        next(results)


def test_an_unknown_command_is_that_of_every_item(pool: SessionPool) -> None:
    with pytest.raises(UnknownCommand):
        list(pool.map("no_such", [np.ones(1)] * 6, chunksize=3))


def test_broadcast_tags_are_known_in_a_batch(open_blocking: Callable[..., Way]) -> None:
    way = open_blocking(1)
    way.call("broadcast", np.full(2, 10.0), "weights")
    found = way.mapped("apply weights", [np.full(2, number) for number in range(6)], chunksize=3)
    assert [each[0] for each in found] == [10.0 * number for number in range(6)]


def test_a_worker_that_takes_no_batches_gets_the_items_one_by_one(tmp_path: Path) -> None:
    text = """
from tr_mmap import TechRenaissanceServer
class Own(TechRenaissanceServer):
    def main_logic(self, command, parameters):
        self.send_tensors(self.get_tensors(parameters, 1)[0] * 2)
Own(framework="numpy").run()
"""
    with SessionPool(script(tmp_path, text), 1, quiet_mode=True) as pool:
        found = list(pool.map("twice", [np.full(2, number) for number in range(9)], chunksize=4))
    assert [int(each[0]) for each in found] == [2 * number for number in range(9)]


def test_a_coroutine_gets_the_items_one_by_one(tmp_path: Path) -> None:
    text = """
from tr_mmap import Server
server = Server()
@server.command("twice")
async def twice(x):
    return x * 2
server.run()
"""
    with SessionPool(script(tmp_path, text), 1, quiet_mode=True) as pool:
        found = list(pool.map("twice", [np.full(2, number) for number in range(9)], chunksize=4))
    assert [int(each[0]) for each in found] == [2 * number for number in range(9)]


def test_torch_tensors_go_in_batches_too() -> None:
    import torch

    with SessionPool(TORCH_TOOLS, 1, quiet_mode=True, framework="torch") as pool:
        items = [torch.full((2,), number, dtype=torch.bfloat16) for number in range(9)]
        alone, together = one_by_one_and_together(pool, "echo", items)
    assert all(isinstance(each, torch.Tensor) and each.dtype is torch.bfloat16 for each in together)
    assert plain(together) == plain(alone) == plain(items)


def test_no_worker_answers_more_than_it_may_whatever_the_batches(tmp_path: Path) -> None:
    with SessionPool(POOL_TOOLS, 1, quiet_mode=True, max_tasks_per_child=3) as pool:
        assert len(list(pool.map("say", range(7), chunksize=2))) == 7
        assert pool.stats().started >= 3  # two, two, and two and one
        pids = [pool.calculate("pid") for _ in range(7)]
    assert max(pids.count(each) for each in pids) <= 3
