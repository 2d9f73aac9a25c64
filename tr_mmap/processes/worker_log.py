"""Reads a worker's log: copies it to this process's stderr as it grows, finds its last lines. Never writes to it."""

from __future__ import annotations

import codecs
import sys
import threading

from ..base import system
from ..wire.limits import LOG_TAIL_NBYTES
from ..wire.waits import POLL_S

__all__ = ["LogForwarder", "log_tail"]


class LogForwarder:
    """Copies what is appended to a log to this process's stderr, from a thread, until stopped.

    Args:
        path: of the log.
        from_start: whether to copy also what is there already.
    """

    def __init__(self, path: str, *, from_start: bool) -> None:
        self._fd = system.open_private_file(path)
        self._position = 0 if from_start else system.file_nbytes(self._fd)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tr_mmap-log", daemon=True)
        self._thread.start()

    def stop(self, join_s: float = 0.0) -> None:
        """Copy what is there, then end; waits up to ``join_s`` seconds for that."""
        self._is_stopped.set()
        if join_s and threading.current_thread() is not self._thread:
            self._thread.join(join_s)

    def _run(self) -> None:
        try:
            is_last = False
            while self._copy() and not is_last:
                is_last = self._is_stopped.wait(POLL_S)
        finally:
            system.close(self._fd)

    def _copy(self) -> bool:
        while data := system.read_all(self._fd, LOG_TAIL_NBYTES, self._position):
            self._position += len(data)
            try:
                sys.stderr.write(self._decoder.decode(data))
                sys.stderr.flush()
            except (OSError, ValueError, AttributeError):  # stderr is closed, or None under pythonw
                return False
        return True


def log_tail(path: str, lines: int) -> str:
    """The last ``lines`` lines of a log, from its last 16 KiB; "" if the log is gone."""
    try:
        fd = system.open_private_file(path)
    except OSError:
        return ""
    try:
        data = system.read_all(fd, LOG_TAIL_NBYTES, max(0, system.file_nbytes(fd) - LOG_TAIL_NBYTES))
    finally:
        system.close(fd)
    return "\n".join(data.decode("utf-8", errors="replace").splitlines()[-lines:]) if lines > 0 else ""
