"""What one tensor of 1 GiB takes beyond itself: anonymous memory of each side, and shared memory on tmpfs."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

from .common import run_child, status_nbytes

__all__ = ["run"]

_NBYTES: Final = 1 << 30
_PAUSE_S: Final = 0.002


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    if quick:
        return {"skipped": "needs the full run"}
    say("peak memory of one 1 GiB tensor")
    return run_child(__name__, str(_NBYTES))


def _tmpfs_nbytes(directory: str) -> int:
    found = os.statvfs(directory)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


class _Peaks(threading.Thread):
    """Watches the largest values of some figures, beyond those at its start."""

    def __init__(self, figures: dict[str, Callable[[], int]]) -> None:
        super().__init__(daemon=True)
        self._figures = figures
        self._before = {name: read() for name, read in figures.items()}
        self.peaks = dict.fromkeys(figures, 0)
        self._has_to_end = threading.Event()

    def _look(self) -> None:
        for name, read in self._figures.items():
            self.peaks[name] = max(self.peaks[name], read() - self._before[name])

    def run(self) -> None:
        while not self._has_to_end.wait(_PAUSE_S):
            self._look()

    def end(self) -> dict[str, int]:
        self._look()
        self._has_to_end.set()
        self.join()
        return self.peaks


def _child(nbytes: int) -> dict[str, Any]:
    import numpy as np

    from tr_mmap import PythonSession

    with PythonSession("default", f"bench-{os.getpid()}-memory", quiet_mode=True) as session:
        worker = json.loads(session.fetch_response("info"))["pid"]
        x = np.ones(nbytes // 4, np.float32)
        session.calculate("sum", x[:256])  # what is needed once, whatever the size
        figures = {
            "controller_anon_nbytes": lambda: status_nbytes(os.getpid(), "RssAnon"),
            "worker_anon_nbytes": lambda: status_nbytes(worker, "RssAnon"),
            "tmpfs_nbytes": lambda: _tmpfs_nbytes(session.session_dir()),
        }
        watch = _Peaks(figures)
        watch.start()
        total = session.calculate("sum", x, timeout_ms=60_000)
        peaks = watch.end()
        if float(total) != x.size:
            raise RuntimeError(f"the worker's sum is {total}")
    return {"payload_nbytes": nbytes, **peaks}


if __name__ == "__main__":
    print(json.dumps(_child(int(sys.argv[1]))))
