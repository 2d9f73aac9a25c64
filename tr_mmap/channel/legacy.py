"""The channel of the legacy dialect: files put in place by rename, whose existence is the state. Needs no manifest.

``tr_mmap.protocol.legacy`` has the messages. A legacy peer differs from ours in three ways. It makes files by its
umask. It writes ``ready`` and ``exit`` into the status, which the worker writes too, each over what is there. It may
leave a response unread for any time.

A response has no number. So before the controller puts a request in place, it waits until the worker has ended what
somebody else has asked, and removes a response that lies there: it would be taken for that to the new request, and each
later one for that to the request after its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import ClassVar, Final

from ..base import system
from ..errors import BadMessage, OutOfSpace, SystemLimit
from ..protocol.legacy import LEGACY_FORBIDDEN_MODE, decode_legacy_response, encode_legacy
from ..protocol.messages import Failure, Request, Response, encode
from ..protocol.status import Status, StatusLine, parse_status
from ..wire.messages import STATUS_EXIT
from .files import FileChannel, PollRate
from .interface import Role, check_bounds, never

__all__ = ["LegacyChannel"]

# How long a worker that says "busy" is taken to be in somebody else's request: one that has never said that it ended a
# request, and any other, whose handler may have left that status behind.
_PATIENCE_S: Final = 2.0
_LONG_PATIENCE_S: Final = 60.0


class LegacyChannel(FileChannel):
    """See the module's docstring."""

    FIRST_STATUS: ClassVar[Status] = Status.READY  # a legacy worker may wait for its controller to say so
    FORBIDDEN_MODE: ClassVar[int] = LEGACY_FORBIDDEN_MODE

    def __init__(self, directory: str, role: Role) -> None:
        super().__init__(directory, role)
        self._is_controller = role is Role.CONTROLLER
        self._sent_request = Request()  # the last one that was sent
        self._outcome: Status | None = None  # OK or ERROR, when the response to that request is there
        self._line = StatusLine(Status.STARTING)  # the last status that was read
        self._is_in_own_words = False  # that one is none of ours
        # Whether the worker waits for a request, as the controller finds before it sends one.
        self._ends_busy = False  # this worker writes another status when a request has ended
        self._busy_mark = self._answered_mark = (0, 0)  # of the status file, when it said so, and at our last response
        self._busy_since_s = 0.0
        self._is_quiet = True  # the last look found no response to anybody else's request, nor that one was to come

    # -- messages -------------------------------------------------------------------------------------------------

    def send(
        self, message: Request | Response, deadline_s: float | None = None, stop: Callable[[], bool] = never
    ) -> None:
        data = check_bounds(encode_legacy(message))
        if isinstance(message, Request):
            self._put_in_turn(message, data, deadline_s, stop)
            return
        timeout_ms = None if deadline_s is None else max(0.0, (deadline_s - time.monotonic()) * 1000)
        try:
            self._wait(
                lambda: self._try_put(message, data),
                timeout_ms,
                lambda: self.is_exit_requested() or stop(),
                PollRate(),
            )
        except FileNotFoundError:
            pass  # the directory is gone, so the controller is gone too

    def _may_put(self, message: Request | Response) -> bool:
        if not isinstance(message, Request):
            return True
        if self._is_in_another():
            self._is_quiet = False
            return False
        was_quiet, self._is_quiet = self._is_quiet, True
        if not os.path.lexists(self._in):
            return was_quiet  # else look once more: a response follows the status, or the one that was removed
        try:
            system.unlink(self._in)
        except OSError:
            return True  # a directory; the next receive() says so
        self._is_quiet = False
        return False

    def _is_in_another(self) -> bool:
        """Whether the worker is in a request that somebody else has written: ours has been answered."""
        line = self.read_status()
        if line.status is not Status.BUSY or self._is_in_own_words:
            self._ends_busy = self._ends_busy or line.status in (Status.OK, Status.ERROR)
            return False
        mark, now_s = self._mark_of_status(), time.monotonic()
        if mark == self._answered_mark:
            return False  # that status was of our own request: the next one could not be written, or is still to come
        if mark != self._busy_mark:
            self._busy_mark, self._busy_since_s = mark, now_s
        return now_s - self._busy_since_s < (_LONG_PATIENCE_S if self._ends_busy else _PATIENCE_S)

    def _mark_of_status(self) -> tuple[int, int]:
        """Tells one written status from another."""
        try:
            info = system.status(self._status)
        except OSError:
            return 0, 0
        return info.st_ino, info.st_mtime_ns

    def _why_not_put(self) -> str:
        if self._is_controller and not os.path.lexists(self._out):
            return "the worker has been in a request that somebody else wrote"
        return super()._why_not_put()

    def _note_sent(self, message: Request | Response) -> None:
        if isinstance(message, Request):
            if self.read_status().status is Status.ERROR:
                self.write_status(Status.READY)  # the worker is idle; its old ERROR is not the next outcome
            self._sent_request, self._outcome = message, None

    def reply_unreadable(self, failure: Failure) -> None:
        try:
            self.send(Response(result="error", error=failure))
        except (OutOfSpace, SystemLimit):
            pass  # the status could not be written either

    def receive(self, timeout_ms: float | None, stop: Callable[[], bool]) -> bytes | None:
        raw = super().receive(timeout_ms, stop)
        if raw is None or not self._is_controller:
            return raw
        line = self.read_status()
        self._ends_busy = self._ends_busy or line.status is not Status.BUSY
        self._answered_mark = self._mark_of_status()
        response = decode_legacy_response(raw, self._sent_request.seq, self._sent_request.command, line)
        self._outcome = Status.OK if response.error is None else Status.ERROR
        return encode(response)

    # -- status ---------------------------------------------------------------------------------------------------

    def read_status(self) -> StatusLine:
        data = self._get(self._status)
        # A legacy worker truncates the file, then writes it; in between, its last status is still right.
        if data and (text := data.decode("utf-8", "replace").strip("\0 \r\n")):
            try:
                self._line, self._is_in_own_words = parse_status(text), False
            except BadMessage:  # the worker's own words for what it is doing
                self._line, self._is_in_own_words = StatusLine(Status.BUSY, text), True
        if self._is_controller and self._outcome is not None and self._line.status is Status.READY:
            return StatusLine(self._outcome)  # READY says that the worker waits again, not how the request ended
        return self._line

    def is_exit_requested(self) -> bool:
        return super().is_exit_requested() or not os.path.isdir(self._directory)

    def write_status(self, status: Status, detail: str = "") -> None:
        try:
            if self._is_controller or status.is_over:
                super().write_status(status, detail)
            else:
                self._write_unless_exit(status, detail)
        except FileNotFoundError:
            if os.path.isdir(self._directory):
                raise
            # Else the controller has removed the directory, and no process reads the status any more.

    def _write_unless_exit(self, status: Status, detail: str) -> None:
        """Replace the status, but never an ``exit`` that has just been written."""
        new = f"{self._status}.{os.getpid()}.own"
        self._put(new, StatusLine(status, detail).to_text().encode("utf-8", "replace") + b"\n")
        if not system.exchange(new, self._status) or (self._get(new) or b"").strip() == STATUS_EXIT.encode():
            system.rename(new, self._status)  # ours over the earlier status; or the ``exit`` over ours again
        else:
            system.unlink(new)

    def request_exit(
        self,
        request: Request,  # noqa: ARG002 - the status is what a legacy worker reads
        deadline_s: float | None = None,  # noqa: ARG002 - this waits for nothing
        stop: Callable[[], bool] = never,  # noqa: ARG002
    ) -> bool:
        status = self.read_status().status
        if status is not Status.EXIT and not status.is_over:
            self.write_status(Status.EXIT)
        return False  # the worker may write its own status over it at any moment
