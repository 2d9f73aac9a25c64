"""A map over arrays by pools of two processes: ours, and those that programs use, each with its own defaults.

Every item is a new array, and every result is looked at and let go. What is given is the time of a whole map by the
number of its items, in turns. Peers that are not installed are left out. Beside that: one tensor to four workers, and
results of one worker in requests to another.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from tr_mmap import PythonSession, SessionPool

from ..stats import summarise

__all__ = ["run", "square"]

Mapper: TypeAlias = Callable[[Iterable[Any], int], Iterable[Any]]  # of items, and how many there are

_WORKERS: Final = 2
_SIZES: Final = {1 << 10: 4000, 1 << 20: 200}  # bytes of an array, and how many
_ROUNDS: Final = 7
_READERS: Final = 4
_BROADCAST_NBYTES: Final = 64 << 20
_WORKER: Final = str(Path(__file__).parents[1] / "peers" / "ours_worker.py")
_HANDED_NBYTES: Final = (1 << 10, 64 << 20)
_HAND_OVERS: Final = 30  # in each round
_WARM: Final = 20


def square(x: Any) -> Any:
    """What each worker computes."""
    return x * x


def _items(nbytes: int, count: int) -> Iterator[Any]:
    for number in range(count):
        yield np.full(nbytes // 8, float(number))


def _ours(stack: ExitStack) -> Mapper:
    pool = stack.enter_context(SessionPool("default", _WORKERS, quiet_mode=True))
    return lambda items, _: pool.map("square", items)


def _standard(stack: ExitStack) -> Mapper:
    pool = stack.enter_context(ProcessPoolExecutor(_WORKERS, get_context("spawn")))
    return lambda items, _: pool.map(square, items)


def _imap(stack: ExitStack) -> Mapper:
    pool = stack.enter_context(get_context("spawn").Pool(_WORKERS))
    return lambda items, _: pool.imap(square, items)


def _loky(stack: ExitStack) -> Mapper:
    import loky

    pool = loky.ProcessPoolExecutor(_WORKERS)
    stack.callback(pool.shutdown)
    return lambda items, _: pool.map(square, items)


def _joblib(stack: ExitStack) -> Mapper:
    import joblib

    call, pool = joblib.delayed(square), stack.enter_context(joblib.Parallel(_WORKERS, return_as="generator"))
    return lambda items, _: pool(call(each) for each in items)


def _mpire(stack: ExitStack) -> Mapper:
    import mpire

    pool = stack.enter_context(mpire.WorkerPool(_WORKERS, start_method="spawn", keep_alive=True))
    # A tuple, because mpire spreads an array over the parameters.
    return lambda items, count: pool.imap(square, ((each,) for each in items), iterable_len=count)


def _ray(stack: ExitStack) -> Mapper:
    import ray
    from ray.util import ActorPool

    ray.init(num_cpus=_WORKERS, log_to_driver=False, include_dashboard=False, logging_level="error")
    stack.callback(ray.shutdown)
    actor = ray.remote(_Actor)
    pool = ActorPool([actor.remote() for _ in range(_WORKERS)])
    return lambda items, _: pool.map(lambda each, x: each.square.remote(x), items)


class _Actor:
    def square(self, x: Any) -> Any:
        return square(x)


_WAYS: Final[dict[str, tuple[str, Callable[[ExitStack], Mapper]]]] = {  # the package, if it is not Python's own
    "ours": ("", _ours),
    "standard": ("", _standard),
    "imap": ("", _imap),
    "loky": ("loky", _loky),
    "joblib": ("joblib", _joblib),
    "mpire": ("mpire", _mpire),
    "ray": ("ray", _ray),
}


def _time_of(mapper: Mapper, nbytes: int, count: int) -> int:
    """Nanoseconds for each item."""
    began, total = time.perf_counter_ns(), 0.0
    for result in mapper(_items(nbytes, count), count):
        total += result[-1]
    took = time.perf_counter_ns() - began
    if total != sum(float(number) ** 2 for number in range(count)):
        raise RuntimeError("a result is wrong")
    return took // count


def _broadcasts(rounds: int) -> dict[str, Any]:
    """The time until all workers have a tensor, and that of one copy of it in this process; memory is warm."""
    source = np.ones(_BROADCAST_NBYTES, np.uint8)
    target = np.zeros_like(source)
    samples: dict[str, list[int]] = {"memcpy": [], "ours": []}
    with SessionPool("default", _READERS, quiet_mode=True) as pool:
        pool.wait_until_ready()
        for number in range(rounds + 2):
            for name, action in (
                ("memcpy", lambda: np.copyto(target, source)),
                ("ours", lambda: pool.broadcast(source, "tensor")),
            ):
                began = time.perf_counter_ns()
                action()
                took = time.perf_counter_ns() - began
                if number >= 2:  # the tensor before the last one lies in memory that is used again
                    samples[name].append(took)
            sums = {float(pool.submit("sum tensor").result()) for _ in range(_READERS)}
            if sums != {float(_BROADCAST_NBYTES)}:
                raise RuntimeError("a worker has another tensor")
    return {name: summarise(each).to_json() for name, each in samples.items()}


def _hand_overs(rounds: int) -> dict[str, Any]:
    """The time of a request to a second worker with a result of a first one, which makes a new one each time."""
    samples: dict[int, list[int]] = {nbytes: [] for nbytes in _HANDED_NBYTES}
    with ExitStack() as stack:
        names = [f"bench-{os.getpid()}-{name}" for name in ("first", "second")]
        first, second = (stack.enter_context(PythonSession(_WORKER, name, quiet_mode=True)) for name in names)
        sources = {nbytes: first.empty(nbytes // 4, "float32") for nbytes in samples}
        for source in sources.values():
            source[...] = 1.0
        for number in range(_WARM + rounds * _HAND_OVERS):
            for nbytes, times in samples.items():
                result = first.calculate("ends", sources[nbytes])
                began = time.perf_counter_ns()
                ends = second.calculate("ends", result)
                took = time.perf_counter_ns() - began
                if ends.shape != result.shape or ends[0] != 3.0 or ends[-1] != 3.0:  # each worker adds 1
                    raise RuntimeError("a worker was given another result")
                if number >= _WARM:
                    times.append(took)
    return {str(nbytes): summarise(each).to_json() for nbytes, each in samples.items()}


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    rounds = 2 if quick else _ROUNDS
    found: dict[str, Any] = {"workers": _WORKERS, "absent": []}
    with ExitStack() as stack:
        mappers: dict[str, Mapper] = {}
        for name, (package, start) in _WAYS.items():
            if package and importlib.util.find_spec(package) is None:
                found["absent"].append(name)
                continue
            say(f"pool: {name} starts")
            mappers[name] = start(stack)
            _time_of(mappers[name], 1 << 10, 10)
        for nbytes, most in _SIZES.items():
            count = most // 4 if quick else most
            samples: dict[str, list[int]] = {name: [] for name in mappers}
            for mapper in mappers.values():
                _time_of(mapper, nbytes, count)  # processes and memory are warm then
            for number in range(rounds):
                say(f"pool: arrays of {nbytes} bytes, round {number + 1} of {rounds}")
                for name, mapper in mappers.items():
                    samples[name].append(_time_of(mapper, nbytes, count))
            found[str(nbytes)] = {name: summarise(each).to_json() for name, each in samples.items()}
    say(f"pool: one tensor to {_READERS} workers")
    found["broadcast"] = _broadcasts(rounds)
    say("pool: results of one worker in requests to another")
    found["handed_on"] = _hand_overs(rounds)
    return found
