"""From nothing to a worker that is ready, and what of that is Python's and numpy's; a later start, with a spare."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from tr_mmap import PythonSession

from ..stats import summarise

__all__ = ["run"]


def _start_ours() -> int:
    """Nanoseconds until the worker is ready; ending it is not counted."""
    began = time.perf_counter_ns()
    session = PythonSession("default", f"bench-{os.getpid()}-startup", quiet_mode=True)
    try:
        session.start()
        if not session.wait_until_ready(60_000):
            raise RuntimeError("the worker did not become ready")
        return time.perf_counter_ns() - began
    finally:
        session.close()


def _start_python(code: str) -> int:
    began = time.perf_counter_ns()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter_ns() - began


def _start_again(session: PythonSession[Any]) -> int:
    """Nanoseconds until another worker is ready; to end the one before, and to wait for a spare, is not counted."""
    while session.stats().spare_workers < 1:
        time.sleep(0.01)
    session.terminate()
    began = time.perf_counter_ns()
    session.start()
    if not session.wait_until_ready(60_000):
        raise RuntimeError("the worker did not become ready")
    return time.perf_counter_ns() - began


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    say("start-up")
    starts: dict[str, Callable[[], int]] = {
        "python": lambda: _start_python("pass"),
        "python_numpy": lambda: _start_python("import numpy"),
        "ours": _start_ours,
    }
    samples: dict[str, list[int]] = {name: [] for name in starts}
    with PythonSession("default", f"bench-{os.getpid()}-spare", quiet_mode=True, spare_workers=1) as session:
        starts["ours_spare"] = lambda: _start_again(session)
        samples["ours_spare"] = []
        for _ in range(5 if quick else 15):
            for name, start in starts.items():
                samples[name].append(start())
    return {name: summarise(each).to_json() for name, each in samples.items()}
