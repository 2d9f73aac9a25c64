"""Copies a worker's log to this process's stderr as it grows, in the background. Never writes to the log."""

from __future__ import annotations

import codecs
import sys
from typing import Any, Final

from ..base import system
from ..base.background import Background
from ..wire.limits import LOG_TAIL_NBYTES
from ..wire.waits import POLL_S
from .worker_log import log_head

__all__ = ["LogForwarder"]

_PIECE_CHARS: Final = 1024  # at most 4096 bytes, which a pipe takes at once if it takes any (pipe(7), PIPE_BUF)


class LogForwarder:
    """Copies what is appended to a log to this process's stderr, until stopped.

    Args:
        path: of the log.
        from_start: whether to copy also what is there already.
    """

    def __init__(self, path: str, *, from_start: bool) -> None:
        self._fd = system.open_private_file(path)
        # Positions count all output that there ever was, including what the worker has dropped from the log.
        self._position = 0
        if not from_start:
            dropped, head_nbytes, _ = log_head(self._fd)
            self._position = dropped + system.file_nbytes(self._fd) - head_nbytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pending = ""  # read, and not written yet
        self._is_stopped = False
        try:
            self._background = Background(self._run)
        except BaseException:
            self._close()
            raise

    def stop(self, join_s: float = 0.0) -> None:
        """Copy what is there, then end; waits up to ``join_s`` seconds for that. In a forked child, only forget it."""
        self._is_stopped = True
        self._background.stop(join_s)
        if not self._background.is_running():
            self._close()

    def _run(self, background: Background) -> bool:
        is_writable = True
        try:
            has_to_return = False
            while is_writable := self._copy(background):
                if has_to_return:
                    return False
                background.sleep(POLL_S)
                has_to_return = background.has_to_return  # before the copy, or what was written meanwhile would be lost
            return True
        finally:
            if self._is_stopped or not is_writable:
                self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            system.close(fd)

    def _copy(self, background: Background) -> bool:
        """Copy what is there, or as much as can be before a fork. Returns whether stderr takes it."""
        while self._pending or (data := self._read()):
            if not self._pending:
                self._pending = self._decoder.decode(data)
            piece = self._pending[:_PIECE_CHARS]
            try:
                # A blocked write would be a deadlock if the thread that reads our stderr forks: its fork waits for us.
                fd = _fileno(sys.stderr)
                if fd >= 0 and not self._is_stopped and not background.wait_writable(fd) and not self._is_stopped:
                    return True
                sys.stderr.write(piece)
                sys.stderr.flush()
            except (OSError, ValueError, AttributeError):  # stderr is closed, or None under pythonw
                return False
            self._pending = self._pending[len(piece) :]
        return True

    def _read(self) -> bytes:
        """The output that comes next, or a remark that some is gone; b"" if there is no more."""
        while True:
            dropped, head_nbytes, is_in_cut = head = log_head(self._fd)
            if is_in_cut:
                return b""  # the next look finds the cut done
            position = max(self._position, dropped)
            data = system.read_all(self._fd, LOG_TAIL_NBYTES, position - dropped + head_nbytes)
            if log_head(self._fd) != head:
                continue  # the worker has just cut the log, and the data may be from any place
            if not data:
                return b""
            missed, self._position = position - self._position, position + len(data)
            if missed:
                return b"\n[tr_mmap: %d bytes of output were dropped]\n" % missed + data
            return data


def _fileno(stream: Any) -> int:
    """The descriptor of a stream; -1 if it has none."""
    try:
        return int(stream.fileno())
    except (OSError, ValueError, AttributeError, TypeError):
        return -1
