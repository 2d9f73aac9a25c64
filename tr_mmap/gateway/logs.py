"""Lines of JSON: the log of a gateway, and the audit log. Neither ever has what was sent, or a token."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any, Final

import msgspec

__all__ = ["AuditLog", "JsonFormatter", "RequestLog", "log"]

log: Final = logging.getLogger("tr_mmap.gateway")

_FLUSH_S: Final = 0.05
_PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class RequestLog:
    """A line for each request: records of the log, or, in the same form, straight to a file.

    A record passes locks, handlers and a formatter, and takes ten times as long. To be used in the loop's thread.
    """

    def __init__(self) -> None:
        self._descriptor = -1
        self._lines: list[bytes] = []
        self._second = -1  # of the last line, and its text
        self._text = ""

    def write_to(self, descriptor: int) -> None:
        """Write to a file, several lines at once, within a twentieth of a second."""
        self._descriptor = descriptor

    def note(self, **fields: Any) -> None:
        """Add a line."""
        if not log.isEnabledFor(logging.INFO):
            return
        if self._descriptor < 0:
            log.info("request", extra=fields)
            return
        now_s = time.time()
        second = int(now_s)
        if second != self._second:
            self._second, self._text = second, _text_of(second)
        said = {
            "time": f"{self._text}.{int(1000 * (now_s - second)):03d}Z",
            "level": "info",
            "logger": log.name,
            "message": "request",
            **fields,
        }
        self._lines.append(msgspec.json.encode(said))
        if len(self._lines) == 1:
            asyncio.get_running_loop().call_later(_FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write what waits."""
        lines, self._lines = self._lines, []
        left = b"".join([each + b"\n" for each in lines])
        while left:
            left = left[os.write(self._descriptor, left) :]


def _text_of(second: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


class JsonFormatter(logging.Formatter):
    """One object a line, with the record's extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": f"{_text_of(record.created)}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        said.update({name: value for name, value in vars(record).items() if name not in _PLAIN})
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(said, enc_hook=str).decode()


class AuditLog:
    """Who changed what, and who was refused: a file that is only added to, or nothing.

    Args:
        path: of the file, which only this user can read; None for no file.
    """

    def __init__(self, path: str | None) -> None:
        self._descriptor = -1
        if path is not None:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def note(self, **fields: Any) -> None:
        """Add a line: one write, so that lines of several processes do not mix."""
        if self._descriptor >= 0:
            os.write(self._descriptor, msgspec.json.encode({"time": round(time.time(), 3), **fields}) + b"\n")

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
