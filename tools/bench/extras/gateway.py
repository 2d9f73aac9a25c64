"""Algorithms over HTTP: the rate and latency of requests, beside other servers; and the cost of a gateway alone."""

from __future__ import annotations

import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..load import Load, exchange
from ..peers.servers import SERVERS, ServerPeer
from ..peers.servers.base import COUNT
from ..peers.servers.ours import Ours
from ..stats import summarise
from .common import cpu_ns

__all__ = ["run"]

_CONNECTIONS: Final = 8
_LARGE_COUNT: Final = 16 << 20  # of float32: 64 MiB
_ROOM_NBYTES: Final = (64 << 20) + (64 << 10)  # for the answer
_WARM_S: Final = 1.0
_SETTLE_S: Final = 1.0
_AT_ONCE: Final = 16
_STARTS: Final = 3


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """
    Args:
        quick: fewer and shorter rounds.
        say: called with the step that begins.
    """
    absent = {key: reason for key, peer in SERVERS.items() if (reason := peer().unavailable()) is not None}
    found: dict[str, Any] = {"absent": absent, "failed": {}}
    with tempfile.TemporaryDirectory(prefix="tr_bench_gateway_") as name:
        say("a gateway alone")
        found["alone"] = _alone(Path(name), 3 if quick else 10)
        with ExitStack() as stack:
            rows: dict[str, ServerPeer] = {}
            for key, kind in SERVERS.items():
                if key in absent:
                    continue
                say(f"a server starts: {key}")
                peer = kind()
                folder = Path(name) / key
                folder.mkdir()
                stack.callback(peer.close)
                try:
                    peer.start(folder)
                except (OSError, RuntimeError) as error:
                    found["failed"][key] = f"{type(error).__name__}: {error}"
                    continue
                rows |= dict.fromkeys(kind.rows, peer)
            found["json"] = _json(rows, 3 if quick else 9, 1.0 if quick else 3.0, say)
            found["large"] = _large(rows, 5 if quick else 15, say)
    return found


# -- small requests ----------------------------------------------------------------------------------------------------


def _json(rows: dict[str, ServerPeer], rounds: int, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """First the rate of each row with all connections busy, then its latency at half of that rate; rows take turns."""
    x = np.arange(COUNT, dtype=np.float32)
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        loads: dict[str, Load] = {}
        for row, peer in rows.items():
            load = _load_of(peer, row, x)
            stack.callback(load.close)
            loads[row] = load
            load.run(_WARM_S)
        rates: dict[str, list[float]] = {row: [] for row in loads}
        bad = dict.fromkeys(loads, 0)
        for number in range(rounds):
            for row, load in loads.items():
                say(f"requests a second: {row}, round {number + 1} of {rounds}")
                measured = load.run(seconds)
                rates[row].append(measured.rate)
                bad[row] += measured.wrong + measured.broken
        halves = {row: statistics.median(each) / 2 for row, each in rates.items()}
        samples: dict[str, list[int]] = {row: [] for row in loads}
        for number in range(rounds):
            for row, load in loads.items():
                say(f"times at half of that: {row}, round {number + 1} of {rounds}")
                if halves[row]:
                    measured = load.run(seconds, halves[row])
                    samples[row] += measured.latencies_ns
                    bad[row] += measured.wrong + measured.broken
    for row, each in rates.items():
        times = summarise(samples[row]).to_json() if samples[row] else {}
        rate = statistics.median(each)
        found[row] = {"rate": round(rate, 1), "rates": [round(one, 1) for one in each], "bad": bad[row], **times}
    return found


def _load_of(peer: ServerPeer, row: str, x: np.ndarray[Any, Any]) -> Load:
    """A load that sends one and the same request again and again."""
    sent, wanted = peer.request(row, x), (2 * x).tolist()
    return Load(peer.address, lambda _: sent, lambda _, status, body: peer.is_right(wanted, status, body), _CONNECTIONS)


# -- large ones --------------------------------------------------------------------------------------------------------


def _large(rows: dict[str, ServerPeer], rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    x = np.arange(_LARGE_COUNT, dtype=np.float32)
    wanted = x * 2
    room = bytearray(_ROOM_NBYTES)
    samples: dict[str, list[int]] = {}
    failed: dict[str, str] = {}
    ready = {row: (peer, peer.large_request(row, x)) for row, peer in rows.items() if peer.takes_bytes}
    for number in range(1 + rounds):  # the first is a warm-up
        for row, (peer, sent) in ready.items():
            if row in failed:
                continue
            say(f"64 MiB there and back: {row}, round {number} of {rounds}")
            try:
                took = _timed_exchange(peer, sent, room, wanted)
            except (OSError, ValueError, KeyError, StopIteration) as error:
                failed[row] = f"{type(error).__name__}: {error}"
                continue
            if number:
                samples.setdefault(row, []).append(took)
    return {row: summarise(each).to_json() for row, each in samples.items()} | ({"failed": failed} if failed else {})


def _timed_exchange(peer: ServerPeer, sent: bytes, room: bytearray, wanted: np.ndarray[Any, Any]) -> int:
    """Nanoseconds of one request; the time to connect is not counted."""
    with socket.create_connection(peer.address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.perf_counter_ns()
        head, body = exchange(connection, sent, room)
        took = time.perf_counter_ns() - began
    if not np.array_equal(peer.large_result(head, body)[: len(wanted)], wanted):
        raise ValueError(f"the answer is wrong: {head[:200]!r} {bytes(body[:300])!r}")
    return took


# -- a gateway alone ---------------------------------------------------------------------------------------------------


def _alone(parent: Path, idle_s: float) -> dict[str, Any]:
    """How long a gateway takes to start and to run its first code, and the processor time and memory of an idle one."""
    times: dict[str, list[float]] = {}
    found: dict[str, Any] = {}
    for number in range(_STARTS):
        peer = Ours()
        folder = parent / f"alone{number}"
        folder.mkdir()
        try:
            steps = _steps(peer, folder)
            if number == _STARTS - 1:
                found = _held(peer, idle_s)
        finally:
            peer.close()
        for name, ms in steps.items():
            times.setdefault(name, []).append(ms)
    return {**{name: round(statistics.median(each), 2) for name, each in times.items()}, **found}


def _steps(peer: Ours, folder: Path) -> dict[str, float]:
    def timed(action: Callable[[], object]) -> float:
        began = time.perf_counter_ns()
        action()
        return (time.perf_counter_ns() - began) / 1e6

    def ask(path: str, **body: Any) -> Any:
        status, answer = peer.ask(path, body)
        if status not in (200, 201):
            raise RuntimeError(f"{path} was answered by {status}: {answer}")
        return answer.get("result")

    execute, algorithms = "/api/v1/python/execute", "/api/v1/python/algorithms"
    own = {"resource_requirements": {"memory_mb": 300}}  # other limits than the usual: a sandbox of its own
    steps = {"start_ms": timed(lambda: peer.start(folder))}
    steps["first_ms"] = timed(lambda: ask(execute, code="output = 1 + 1"))
    steps["python_ms"] = timed(lambda: ask(algorithms, name="own", code="output = 1 + 1", **own))
    codes = [timed(lambda: ask(execute, code="output = 1 + 1")) for _ in range(20)]
    steps["code_ms"] = statistics.median(codes)
    sandboxes = []
    for _ in range(20):
        time.sleep(0.1)  # a spare gets ready meanwhile, as between the requests of a service
        sandboxes.append(timed(lambda: ask(execute, algorithm="own")))
    steps["sandbox_ms"] = statistics.median(sandboxes)
    return steps


def _held(peer: Ours, seconds: float) -> dict[str, Any]:
    """Send many requests at once and count the right answers; then measure processor time and memory without any."""
    requests = [peer.request("ours-fresh", np.full(COUNT, number, np.float32)) for number in range(_AT_ONCE)]
    load = Load(
        peer.address,
        lambda number: requests[number % _AT_ONCE],
        lambda number, status, body: peer.is_right([2.0 * (number % _AT_ONCE)] * COUNT, status, body),
        _AT_ONCE,
    )
    measured = load.run(1.0)
    load.close()
    time.sleep(_SETTLE_S)
    processes = peer.processes()
    used = [cpu_ns(each.pid) for each in processes]
    began = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    cpu = sum(cpu_ns(each.pid) for each in processes) - sum(used)
    return {
        "at_once": _AT_ONCE,
        "at_once_right": len(measured.latencies_ns),
        "at_once_bad": measured.wrong + measured.broken,
        "seconds": round(took, 2),
        "idle_percent": round(100 * cpu / 1e9 / took, 4),
        "nbytes": sum(each.memory_full_info().pss for each in processes),
        "processes": len(processes),
    }


if __name__ == "__main__":
    print(json.dumps(run(os.environ.get("QUICK", "1") == "1", print), indent=1))
