"""Helpers of the extras: interleaved timing, children, what the kernel says about a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..stats import Summary, summarise

__all__ = ["cpu_ns", "fd_count", "interleave", "run_child", "status_nbytes"]

_CHILD_TIMEOUT_S = 300


def interleave(
    actions: dict[str, Callable[[], object]], *, rounds: int, batch: int, warm: int = 2
) -> dict[str, Summary]:
    """Time actions in turn: ``rounds`` times ``batch`` of each, after ``warm`` untimed ones."""
    samples: dict[str, list[int]] = {name: [] for name in actions}
    clock = time.perf_counter_ns
    for _ in range(rounds):
        for name, action in actions.items():
            for _ in range(warm):
                action()
            for _ in range(batch):
                began = clock()
                action()
                samples[name].append(clock() - began)
    return {name: summarise(each) for name, each in samples.items()}


def run_child(module: str, *arguments: str) -> dict[str, Any]:
    """Run ``python -m module`` in a process of its own, where nothing of ours disturbs; it prints JSON.

    Raises:
        RuntimeError: it failed; the message has what it printed.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=_CHILD_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process, in nanoseconds. Better than ticks: 10 ms of them is 0.1 % of 10 s."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        total += int(path.read_text().split()[0])
    return total


def status_nbytes(pid: int, field: str) -> int:
    """A field of ``/proc/PID/status`` that is given in kB, such as ``RssAnon``."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def fd_count(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
