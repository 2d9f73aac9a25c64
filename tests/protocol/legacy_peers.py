"""Programs of ``tests/peers``, and a legacy controller that runs with a worker of ours."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from support import ROOT, TOOLS, json_line

OLD_WORKER = ROOT / "tests" / "peers" / "old_worker.py"
OLD_CONTROLLER = ROOT / "tests" / "peers" / "old_controller.py"


def environment(**more: str) -> dict[str, str]:
    """Nothing of a session of ours: an older controller knows only where the package is."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def ends(pid: int) -> bool:
    """Wait for the end of a process, be it that its parent has not looked yet."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], 10)[0])
    finally:
        os.close(fd)


class OldController:
    """peers/old_controller.py, running, with a worker of ours."""

    def __init__(self, directory: Path, *worker: object, python: str = sys.executable) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            [python, str(OLD_CONTROLLER), str(directory), *map(str, worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self.worker_pid = self._line()["worker"]

    def _line(self) -> dict[str, Any]:
        return json_line(self.process, "the old controller")

    def begin(self, **step: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(step) + "\n")
        self.process.stdin.flush()

    def do(self, **step: Any) -> dict[str, Any]:
        self.begin(**step)
        return self._line()

    def write(self, tag: str, array: np.ndarray[Any, Any]) -> None:
        self.do(tensor=tag, dtype=array.dtype.name, shape=list(array.shape), values=array.ravel().tolist())

    def text(self, command: str, params: str = "") -> str:
        found: str = self.do(cmd=command, params=params, want="text")["params"]
        return found

    def tensors(self, command: str, params: str) -> list[np.ndarray[Any, Any]]:
        answer = self.do(cmd=command, params=params, want="tensors")
        return [np.array(each["values"], each["dtype"]).reshape(each["shape"]) for each in answer["tensors"]]


@contextmanager
def old_controller(directory: Path, *worker: object, python: str = sys.executable) -> Iterator[OldController]:
    running = OldController(directory, *(worker or (sys.executable, TOOLS, directory)), python=python)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGKILL)
        running.process.communicate()
        assert ends(running.worker_pid)
