"""The C++ suite's own tests, and C++ controllers that are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import support
from cpp_programs import SOURCES
from support import leftovers

import tr_mmap

pytestmark = pytest.mark.timeout(400)  # the first test that needs the suite compiles it


def test_formats_in_cpp(ask: Any) -> None:
    assert " 0 failed" in ask("test", "format")


def test_sessions_from_cpp(ask: Any) -> None:
    assert " 0 failed" in ask("test", "session")


@pytest.mark.parametrize(
    ("stage", "delay_s"),
    [
        *(("started", 0.0), ("started", 0.1), ("ready", 0.0), ("sent", 0.0), ("holding", 0.0), ("asking", 0.1)),
        *(("answered", 0.0), ("busy", 0.01), ("busy", 0.0173), ("busy", 0.0311)),
    ],
)
def test_a_killed_controller_leaves_nothing(
    suite: Path, stage: str, delay_s: float, workspace: Path, tmp_path: Path
) -> None:
    environment = {**support.environment(), "TR_PYTHON": sys.executable, "TR_TEST_FOLDER": str(tmp_path)}
    environment["TR_TEST_WORKER"] = str(SOURCES / "worker.py")
    process = subprocess.Popen([str(suite), "stage", stage], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == f"{stage}\n"
        time.sleep(delay_s)  # which moment of it is hit does not matter, as long as it is not always the same
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    deadline = time.monotonic() + 20
    while (left := leftovers(workspace) + _semaphores_of(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


@pytest.mark.long
def test_controllers_killed_at_random_moments_leave_nothing(
    suite: Path, workspace: Path, tmp_path: Path, is_full: bool
) -> None:
    """From before the session exists to the middle of its work; a worker ends by itself, a sweep finds the rest."""
    environment = {**support.environment(), "TR_PYTHON": sys.executable, "TR_TEST_FOLDER": str(tmp_path)}
    environment["TR_TEST_WORKER"] = str(SOURCES / "worker.py")
    source = random.Random(5)
    for _ in range(200 if is_full else 6):
        process = subprocess.Popen([str(suite), "stage", "busy"], env=environment, stdout=subprocess.DEVNULL)
        try:
            time.sleep(source.uniform(0.0, 0.9))
        finally:
            process.send_signal(signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 20
        # Again and again: a process that is at exec(2) has no environment to be known by.
        while left := leftovers(workspace) + _semaphores_of(process.pid):
            assert time.monotonic() < deadline, left
            if not support.processes_of(workspace):
                tr_mmap.sweep()
            time.sleep(0.02)


def _semaphores_of(pid: int) -> list[str]:
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"sem.tr_{pid}_")]
