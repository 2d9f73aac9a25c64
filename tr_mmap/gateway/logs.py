"""Lines of JSON: the log of a gateway, and the audit log. Neither ever has what was sent, or a token."""

from __future__ import annotations

import logging
import os
import time
from typing import Any, Final

import msgspec

__all__ = ["AuditLog", "JsonFormatter", "log", "log_request"]

log: Final = logging.getLogger("tr_mmap.gateway")

_PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def log_request(**fields: Any) -> None:
    """A line for a request. As ``log.info``, which first looks for the line of code that calls it."""
    if log.isEnabledFor(logging.INFO):
        record = logging.LogRecord(log.name, logging.INFO, __file__, 0, "request", None, None)
        vars(record).update(fields)
        log.handle(record)


class JsonFormatter(logging.Formatter):
    """One object a line, with the record's extra fields."""

    _second = -1  # of the last record, and its text
    _text = ""

    def format(self, record: logging.LogRecord) -> str:
        second = int(record.created)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        said: dict[str, Any] = {
            "time": f"{self._text}.{int(record.msecs):03d}Z",
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
