"""The channel of the older dialect: files put in place by rename, whose existence is the state; no manifest needed.

``tr_mmap.dialect`` has the messages. Otherwise as :mod:`.files`, but for what an older peer does and does not do: it
makes files by its umask, writes ``ready`` and ``exit`` into the status that the worker writes too, each over whatever
is there, and leaves a response lying for as long as it likes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from .. import system
from ..dialect import OLDER_FORBIDDEN_MODE, decode_older_response, encode_older
from ..errors import BadMessage, OutOfSpace, ResponseTimeout
from ..protocol import Failure, Request, Response, Status, StatusLine, encode, parse_status
from .base import MAX_MESSAGE_NBYTES, Role, check_bounds
from .files import FileChannel, PollRate

__all__ = ["OlderChannel"]

_SEND_TIMEOUT_MS: Final = 10_000.0  # how long a worker may leave a request lying


class OlderChannel(FileChannel):
    """See the module's docstring."""

    def __init__(self, directory: str, role: Role) -> None:
        super().__init__(directory, role)
        self._is_controller = role is Role.CONTROLLER
        self._asked = Request()  # the last one sent
        self._outcome: Status | None = None  # of that, once it is answered
        self._line = StatusLine(Status.STARTING)  # the last one seen

    @classmethod
    def create(cls, directory: str, doorbells: list[str] | None = None) -> OlderChannel:  # noqa: ARG003 - it has none
        channel = cls(directory, Role.CONTROLLER)
        for path in (channel._out, channel._in):
            system.unlink(path)
        channel.write_status(Status.READY)  # an older worker may wait for its controller to say so
        return channel

    @classmethod
    def attach(cls, directory: str, doorbells: list[str]) -> OlderChannel:  # noqa: ARG003 - it has none
        return cls(directory, Role.WORKER)

    def _get(self, path: str) -> bytes | None:
        try:
            fd = system.open_private_file(path, forbidden_mode=OLDER_FORBIDDEN_MODE)
        except FileNotFoundError:
            return None
        try:
            if system.file_nbytes(fd) > MAX_MESSAGE_NBYTES:
                raise BadMessage(f"{path} is longer than a message may be", detail=path)
            return system.read_all(fd, MAX_MESSAGE_NBYTES)
        finally:
            system.close(fd)

    # -- messages -------------------------------------------------------------------------------------------------

    def send(self, message: Request | Response) -> None:
        data = check_bounds(encode_older(message))
        if isinstance(message, Request):
            self._send_request(message, data)
        elif self._wait(self._is_out_free, None, self.is_exit_asked, PollRate()):
            try:
                self._put(self._out, data)
            except FileNotFoundError:
                pass  # the directory is gone, and so is whoever asked

    def _is_out_free(self) -> bool:
        return not os.path.lexists(self._out)

    def _send_request(self, request: Request, data: bytes) -> None:
        if not self._wait(self._is_out_free, _SEND_TIMEOUT_MS, lambda: False, PollRate()):
            raise ResponseTimeout(
                f"the worker has left {self._out} lying for {_SEND_TIMEOUT_MS:.0f} ms",
                timeout_ms=_SEND_TIMEOUT_MS,
                command=request.command,
            )
        if self.read_status().status is Status.ERROR:
            self.write_status(Status.READY)  # the worker is idle; what comes next must not be taken for an error
        self._asked, self._outcome = request, None
        self._put(self._out, data)

    def answer_unreadable(self, failure: Failure) -> None:
        try:
            self.send(Response(result="error", error=failure))
        except OutOfSpace:
            pass  # the status could not be written either

    def receive(self, timeout_ms: float | None, stop: Callable[[], bool]) -> bytes | None:
        raw = super().receive(timeout_ms, stop)
        if raw is None or not self._is_controller:
            return raw
        response = decode_older_response(raw, self._asked.seq, self._asked.command, self.read_status())
        self._outcome = Status.OK if response.error is None else Status.ERROR
        return encode(response)

    # -- status ---------------------------------------------------------------------------------------------------

    def read_status(self) -> StatusLine:
        data = self._get(self._status)
        # An older worker truncates, then writes; what it said last holds in between.
        if data and (text := data.decode("utf-8", "replace").strip("\0 \r\n")):
            try:
                self._line = parse_status(text)
            except BadMessage:
                self._line = StatusLine(Status.BUSY, text)  # words of its own, for what it is doing
        if self._is_controller and self._outcome is not None and self._line.status is Status.READY:
            return StatusLine(self._outcome)  # it waits again, and does not say how it went
        return self._line

    def is_exit_asked(self) -> bool:
        return super().is_exit_asked() or not os.path.isdir(self._directory)

    def write_status(self, status: Status, detail: str = "") -> None:
        try:
            if self._is_controller or status.is_over:
                super().write_status(status, detail)
            else:
                self._write_unless_exit(status, detail)
        except FileNotFoundError:
            if os.path.isdir(self._directory):
                raise
            # Else the controller has removed it, and nobody reads the status any more.

    def _write_unless_exit(self, status: Status, detail: str) -> None:
        """Replace the status, but never a wish that has just been written."""
        new = f"{self._status}.{os.getpid()}.own"
        self._put(new, StatusLine(status, detail).to_text().encode("utf-8", "replace") + b"\n")
        if not system.exchange(new, self._status) or (self._get(new) or b"").strip() == b"exit":
            system.rename(new, self._status)  # over what there was, or the wish over ours again
        else:
            system.unlink(new)

    def ask_to_exit(self, request: Request) -> bool:  # noqa: ARG002 - the status is what an older worker looks at
        status = self.read_status().status
        if status is not Status.EXIT and not status.is_over:
            self.write_status(Status.EXIT)
        return False  # the worker may write its own status over it at any moment
