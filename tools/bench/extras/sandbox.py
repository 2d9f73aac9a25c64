"""Contained runs: their start, 64 MiB in and out against numpy here, limits on time, and what an open sandbox takes."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psutil

from ..stats import Summary, summarise
from .common import cpu_ns, run_child

__all__ = ["run"]

_COUNT: Final = 16 << 20  # of float32: 64 MiB
_DOUBLE: Final = "def process(inputs):\n    return {'output': inputs['x'] * 2}"
_ENDLESS: Final = "while True: output = 0"
_LIMIT_MS: Final = 200
_BOXES: Final = 10
_SETTLE_S: Final = 0.5
_WARM: Final = 2  # rounds that make what the later ones use again
_PAUSE_S: Final = 0.1  # before each run: a spare gets ready, as it would between the requests of a service
_SCALE: Final = Path(__file__).resolve().parents[3] / "examples" / "wasm" / "scale.wasm"
# (module (func (export "process")) ) and the same with an endless loop
_NOTHING: Final = bytes.fromhex("0061736d0100000001040160000003020100070b010770726f6365737300000a040102000b")
_LOOP: Final = bytes.fromhex("0061736d0100000001040160000003020100070b010770726f6365737300000a0901070003400c000b0b")


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    say("contained runs")
    return run_child(__name__, "quick" if quick else "full")


def _child(quick: bool) -> dict[str, Any]:
    from tr_mmap.sandbox import SandboxBroken

    try:
        found = {"contained": _contained(quick), "held": _held(3 if quick else 10)}
        if importlib.util.find_spec("wasmtime") is not None:
            found["wasm"] = _wasm(quick)
    except SandboxBroken as error:
        return {"skipped": str(error)}
    return found


def _contained(quick: bool) -> dict[str, Any]:
    import numpy as np

    from tr_mmap.sandbox import Limits, Sandbox

    x = np.ones(_COUNT, np.float32)
    with Sandbox(limits=Limits(memory_nbytes=1 << 30, output_nbytes=65 << 20)) as box:
        lent = box.empty(x.shape, x.dtype)
        lent[:] = 1
        fresh, reused = box.register("fresh", _DOUBLE), box.register("reused", _DOUBLE, reuse=True)
        nothing, warm = box.register("nothing", "output = 1"), box.register("warm", "output = 1", reuse=True)
        found = _in_turns(
            {
                "numpy": lambda: (x * 2)[-1],
                "fresh": lambda: box.run(fresh, {"x": x}).outputs["output"][-1],
                "fresh_loan": lambda: box.run(fresh, {"x": lent}).outputs["output"][-1],
                "reused": lambda: box.run(reused, {"x": x}).outputs["output"][-1],
                "reused_loan": lambda: box.run(reused, {"x": lent}).outputs["output"][-1],
            },
            7 if quick else 21,
        )
        found["fresh_in_a_row"] = _times(lambda: box.run(fresh, {"x": x}).outputs["output"][-1], 7 if quick else 21)
        found["warm"] = _times(lambda: box.run(warm), 50 if quick else 500)
        found["start"] = _times(lambda: box.run(nothing), 10 if quick else 50, _PAUSE_S)
    found["overrun_ms"] = _overrun_ms("contained", _ENDLESS, 3 if quick else 10)
    return found


def _wasm(quick: bool) -> dict[str, Any]:
    import numpy as np

    from tr_mmap.sandbox import Limits, Sandbox

    x = np.ones(_COUNT, np.float32)
    with Sandbox("wasm", limits=Limits(memory_nbytes=1 << 30, output_nbytes=65 << 20)) as box:
        code = _SCALE.read_bytes()
        kept = box.register("kept", code, reuse=True)
        lent = box.empty(x.shape, x.dtype)
        lent[:] = 1
        found = _in_turns(
            {
                "numpy": lambda: (x * 2)[-1],
                "kept": lambda: box.run(kept, {"x": x}).outputs["output"][-1],
                "kept_loan": lambda: box.run(kept, {"x": lent}).outputs["output"][-1],
            },
            7 if quick else 21,
        )
        start, call = box.register("start", _NOTHING), box.register("call", _NOTHING, reuse=True)
        count = 10 if quick else 50
        found["start"] = _times(lambda: box.run(start), count, _PAUSE_S)
        found["warm"] = _times(lambda: box.run(call), 10 * count)
        # By the clock of its own process: instantiation and the call, and the call alone.
        found["engine_start"] = _own_times(lambda: box.run(start), count)
        found["engine_call"] = _own_times(lambda: box.run(call), 10 * count)
    found["overrun_ms"] = _overrun_ms("wasm", _LOOP, 3 if quick else 10)
    return found


def _in_turns(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
    samples: dict[str, list[int]] = {name: [] for name in actions}
    for number in range(_WARM + rounds):
        for name, action in actions.items():
            time.sleep(_PAUSE_S)
            began = time.perf_counter_ns()
            action()
            if number >= _WARM:
                samples[name].append(time.perf_counter_ns() - began)
    return {name: summarise(each).to_json() for name, each in samples.items()}


def _times(action: Callable[[], object], count: int, pause_s: float = 0.0) -> dict[str, Any]:
    samples = []
    for _ in range(count):
        time.sleep(pause_s)
        began = time.perf_counter_ns()
        action()
        samples.append(time.perf_counter_ns() - began)
    return summarise(samples).to_json()


def _own_times(action: Callable[[], Any], count: int) -> dict[str, Any]:
    found: Summary = summarise([int(action().execution_time_ms * 1e6) for _ in range(count)])
    return found.to_json()


def _overrun_ms(kind: str, code: str | bytes, count: int) -> float:
    """By how much a run that does not end is longer than its limit; the median."""
    from tr_mmap.sandbox import LimitExceeded, Limits, Sandbox

    samples = []
    with Sandbox(kind, limits=Limits(wall_ms=_LIMIT_MS, cpu_ms=60_000)) as box:
        algorithm = box.register("process", code)
        for _ in range(count):
            time.sleep(_PAUSE_S)
            began = time.perf_counter_ns()
            try:
                box.run(algorithm)
            except LimitExceeded:
                samples.append(time.perf_counter_ns() - began - _LIMIT_MS * 1_000_000)
    return summarise(samples).median_us / 1000


def _held(seconds: float) -> dict[str, Any]:
    """What open sandboxes take that do nothing, after each has run something."""
    import numpy as np

    from tr_mmap.sandbox import Sandbox

    before = {each.pid for each in psutil.Process().children(recursive=True)}
    boxes: list[Sandbox] = []
    try:
        right = []
        for number in range(_BOXES):
            box = Sandbox()
            boxes.append(box)
            box.register("process", _DOUBLE, reuse=True)
            right.append(bool(box.run("process", {"x": np.full(9, number)}).outputs["output"].sum() == 18 * number))
        time.sleep(_SETTLE_S)
        processes = [each for each in psutil.Process().children(recursive=True) if each.pid not in before]
        pids = [os.getpid(), *[each.pid for each in processes]]
        used = [cpu_ns(pid) for pid in pids]
        began = time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        cpu = sum(cpu_ns(pid) for pid in pids) - sum(used)
        memory = sum(each.memory_full_info().pss for each in processes)
    finally:
        for box in boxes:
            box.close()
    return {
        "boxes": _BOXES,
        "right": sum(right),
        "seconds": round(took, 2),
        "idle_percent": round(100 * cpu / 1e9 / took / _BOXES, 4),
        "nbytes": memory // _BOXES,
    }


if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1] == "quick")))
