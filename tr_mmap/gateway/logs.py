"""Lines of JSON: the log of a gateway, and the audit log. Neither ever has what was sent, or a token."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import stat
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from ..errors import HostilePath
from .errors import BadConfig

__all__ = ["AuditLog", "JsonFormatter", "RequestLog", "frames_of", "log"]

log: Final = logging.getLogger("tr_mmap.gateway")

_FRAME: Final = re.compile(r'^  (File "[^"\n]+", line [0-9]+, in \S+)$', re.MULTILINE)
_FLUSH_S: Final = 0.05
_PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def frames_of(traceback: str) -> list[str]:
    """Where a traceback leads, without the exception's text, which may have what was sent."""
    return _FRAME.findall(traceback)


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

    A line that the file cannot take, because its disk is full say, is counted and lost: the gateway goes on. The log
    says so once, until a line is taken again.

    Args:
        path: of the file, which only this user can read; None for no file.
        missed: is called for each line that is lost.

    Raises:
        BadConfig: the file cannot be opened.
        HostilePath: it is another user's, or others can read or write it.
    """

    def __init__(self, path: str | None, missed: Callable[[], None]) -> None:
        self._missed = missed
        self._is_whole = True  # the last line is
        self._is_failing = False
        self._descriptor = -1 if path is None else _open(path)

    def note(self, **fields: Any) -> None:
        """Add a line: one write, so that lines of several processes do not mix."""
        if self._descriptor < 0:
            return
        line = msgspec.json.encode({"time": round(time.time(), 3), **fields}) + b"\n"
        if not self._is_whole:
            line = b"\n" + line
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            self._fail(error.strerror or "")
            return
        self._is_whole = written == len(line)
        if self._is_whole:
            self._is_failing = False
        else:
            self._fail("the disk is full")

    def _fail(self, why: str) -> None:
        self._missed()
        if not self._is_failing:
            self._is_failing = True
            log.error("the audit log takes no lines", extra={"why": why})

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _open(path: str) -> int:
    # O_NONBLOCK: a pipe that nobody reads would hold the start up; files know no difference.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise BadConfig(f"the audit log {path} cannot be opened: {error.strerror}", key="auth.audit_log") from error
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and (status.st_mode & 0o077 or status.st_uid != os.geteuid()):
        os.close(descriptor)
        raise HostilePath(
            f"the audit log {path} is another user's, or others can read or write it; chmod 600 {path} keeps them out",
            path=path,
            reason="others have rights",
        )
    return descriptor
