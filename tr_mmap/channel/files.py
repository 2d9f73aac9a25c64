"""The portable channel: JSON files put in place by rename, polled at a falling rate. Never uses semaphores or mappings.

A message is there when its file is there; its reader removes the file. A writer waits until its previous message is
gone. The reader polls every 32 ms. After each 8 empty polls it halves that rate, down to one poll in 1024 ms. The first
message brings it back to 32 ms.

A person or another program may write a request in place. Then the worker may find a part of it, and waits for the rest.
"""

from __future__ import annotations

import codecs
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import ClassVar, Final

from ..base import system
from ..base.atomic import replacement
from ..base.fork_safety import this_process
from ..base.wakes import Wakes
from ..errors import BadMessage, HostilePath, ResponseTimeout, SystemLimit
from ..protocol.legacy import silence_of
from ..protocol.messages import Request, Response, encode
from ..protocol.status import Status, StatusLine, parse_status
from ..wire.messages import MAX_MESSAGE_NBYTES, MAX_MESSAGE_SEQ, STATUS_FILE
from ..wire.waits import DEFAULT_TIMEOUT_MS
from .interface import Channel, Overtaken, Role, check_bounds, never

__all__ = ["SEND_TIMEOUT_MS", "FileChannel", "PollRate", "signature_of"]

SEND_TIMEOUT_MS: Final = DEFAULT_TIMEOUT_MS  # how long the peer may leave our previous message unread


def signature_of(path: str) -> tuple[int, int, int] | None:
    """Identifies the file of a name, and its present content; None if there is none."""
    try:
        info = os.lstat(path)
    except OSError:
        return None
    return info.st_ino, info.st_mtime_ns, info.st_size


class PollRate:
    """How long to sleep before the next poll, in milliseconds."""

    FIRST_MS: Final = 32.0
    LAST_MS: Final = 1024.0
    POLLS_PER_RATE: Final = 8

    def __init__(self) -> None:
        self.interval_ms = self.FIRST_MS
        self._empty_polls = 0

    def found_nothing(self) -> float:
        """Count an empty poll. Returns the pause before the next one, in milliseconds."""
        interval_ms = self.interval_ms
        self._empty_polls += 1
        if self._empty_polls == self.POLLS_PER_RATE:
            self._empty_polls = 0
            self.interval_ms = min(self.interval_ms * 2, self.LAST_MS)
        return interval_ms

    def found_one(self) -> None:
        """Go back to the first rate."""
        self.interval_ms = self.FIRST_MS
        self._empty_polls = 0


class FileChannel(Channel):
    """See the module's docstring.

    Attributes:
        FIRST_STATUS: what the controller writes before it starts the worker.
        FORBIDDEN_MODE: permissions that a file of the peer's must not have.
    """

    may_carry_legacy: ClassVar[bool] = True
    FIRST_STATUS: ClassVar[Status] = Status.STARTING
    FORBIDDEN_MODE: ClassVar[int] = 0o022

    def __init__(self, directory: str, role: Role) -> None:
        self._directory = directory
        self._known_dir = system.KnownDir(directory)
        self._is_worker = role is Role.WORKER
        self._owner_pid = os.getpid()
        self._owner = this_process.mark
        self._out = os.path.join(directory, f"{role.value}.json")
        self._in = os.path.join(directory, f"{role.peer.value}.json")
        self._status = os.path.join(directory, STATUS_FILE)
        self._rate = PollRate()
        self._is_hasty = role is Role.CONTROLLER  # our worker puts its messages in place whole
        self._unsettled: tuple[tuple[int, int, int] | None, float] = (None, 0.0)  # a message's file; when it was found
        self._is_ordered = False
        self._sent_seq = 0  # the number of the last message that was put in place
        self._held: bytes | None = None  # the message that is there, if it was looked at
        self._messages_taken = 0
        self._putting = threading.RLock()  # reentrant, because a signal handler may send too
        self._woken = Wakes()
        self._wakes = 0  # each thread that waits compares it, so no thread takes a wake from another
        self._last_status = StatusLine(Status.STARTING)  # the last that could be read

    @classmethod
    def new_doorbells(cls) -> list[str]:
        return []

    @classmethod
    def create(cls, directory: str, doorbells: Sequence[str] = ()) -> FileChannel:  # noqa: ARG003 - it has none
        channel = cls(directory, Role.CONTROLLER)
        for path in (channel._out, channel._in):
            system.unlink(path)
        channel.write_status(channel.FIRST_STATUS)
        return channel

    @classmethod
    def attach(cls, directory: str, doorbells: Sequence[str] = ()) -> FileChannel:  # noqa: ARG003 - it has none
        return cls(directory, Role.WORKER)

    @property
    def doorbells(self) -> list[str]:
        return []

    def _is_there(self) -> bool:
        """Whether the session's directory is. Without it, the controller raises SessionNotStarted; the worker ends."""
        if not self._is_worker:
            self._known_dir.check()
        return self._known_dir.is_there()

    def _put(self, path: str, data: bytes) -> None:
        if self._is_there():
            with replacement(path, owner=self._owner) as fd:
                system.write_all(fd, data)

    def _get(self, path: str) -> bytes | None:
        """The content of a file; None if it is not there, or is another session's."""
        try:
            fd = system.open_private_file(path, forbidden_mode=self.FORBIDDEN_MODE)
        except FileNotFoundError:
            return None
        try:
            if not self._known_dir.is_there():  # now: what was opened before this is in our directory
                return None
            if system.file_nbytes(fd) > MAX_MESSAGE_NBYTES:
                raise BadMessage(f"{path} is longer than a message may be", detail=path)
            return system.read_all(fd, MAX_MESSAGE_NBYTES).removeprefix(codecs.BOM_UTF8)  # of Windows
        finally:
            system.close(fd)

    def send(
        self, message: Request | Response, deadline_s: float | None = None, stop: Callable[[], bool] = never
    ) -> None:
        self._put_in_turn(message, check_bounds(encode(message)), deadline_s, stop)

    def _put_in_turn(
        self, message: Request | Response, data: bytes, deadline_s: float | None, stop: Callable[[], bool]
    ) -> None:
        """Put a message in place when the peer has taken the previous one; another thread may do the same.

        Raises:
            ResponseTimeout: the peer has not taken it in time, or ``stop`` said so.
        """
        began_s = time.monotonic()
        timeout_ms = SEND_TIMEOUT_MS if deadline_s is None else max(0.0, (deadline_s - began_s) * 1000)
        if not self._wait(lambda: self._try_put(message, data), timeout_ms, stop, self._rate_of_sending()):
            waited_ms = (time.monotonic() - began_s) * 1000
            raise ResponseTimeout(
                f"{self._why_not_put()} for {waited_ms:.0f} ms; it takes one message after another",
                timeout_ms=timeout_ms,
                command=message.command,
                is_taken_up=False,
            )

    def _rate_of_sending(self) -> PollRate:
        """How often to look whether the peer has taken the previous message."""
        return PollRate()

    def _try_put(self, message: Request | Response, data: bytes) -> bool:
        """Put a message in place if none is there."""
        with self._putting:
            if os.path.lexists(self._out):
                return False
            if self._is_ordered and os.getpid() != self._owner_pid:  # a signal handler has forked meanwhile
                raise Overtaken
            ahead = (self._sent_seq - message.seq) % MAX_MESSAGE_SEQ if self._sent_seq else 0
            if self._is_ordered and 0 < ahead < MAX_MESSAGE_SEQ // 2:
                raise Overtaken
            if not self._may_put(message):
                return False
            self._note_sent(message)
            self._put(self._out, data)
            self._sent_seq = message.seq
            return True

    def keep_order(self) -> None:
        self._is_ordered = True

    def has_just_sent(self, seq: int) -> bool:
        return self._sent_seq == seq

    def _may_put(self, message: Request | Response) -> bool:  # noqa: ARG002 - a response of this channel has a number
        """Whether the message may be put in place now, as no earlier one lies there."""
        return True

    def _why_not_put(self) -> str:
        """What has kept a message from being put in place, as far as can be told afterwards."""
        return f"the peer has not taken {self._out}"

    def is_taken_up(self, order: int | None = None) -> bool:
        return super().is_taken_up(order) and not os.path.lexists(self._out)

    def _note_sent(self, message: Request | Response) -> None:
        """The message is put in place now."""

    def has_message(self) -> bool:
        return self._held is not None or (os.path.lexists(self._in) and self._known_dir.is_there())

    def _is_settled(self) -> bool:
        """Whether a message lies there, and its writer has finished it."""
        signature = signature_of(self._in)
        if signature is None or self._is_hasty:
            return signature is not None
        now_s = time.monotonic()
        if signature != self._unsettled[0]:
            self._unsettled = signature, now_s
        try:
            text = self._get(self._in)
        except (BadMessage, HostilePath, SystemLimit):
            return True  # whoever takes it says so
        if text is not None and now_s - self._unsettled[1] >= silence_of(text):
            return True
        self._rate.found_one()  # look again soon
        return False

    def _is_receivable(self) -> bool:
        return self._held is not None or self._is_settled()

    def peek(self) -> bytes | None:
        if self._held is None and self._is_receivable():
            self._held = self._get(self._in)
        return self._held

    def reject(self) -> None:
        self.advance(self._messages_taken)

    @property
    def position(self) -> int:
        return self._messages_taken

    def advance(self, position: int, *, is_consumed: bool = True) -> bool:  # noqa: ARG002 - there is one at a time
        if self._messages_taken != position or os.getpid() != self._owner_pid:  # a signal handler has forked
            return False
        self._messages_taken, self._held = position + 1, None
        self._rate.found_one()
        try:
            system.unlink(self._in, owner=self._owner)
        except OSError:
            pass  # a directory; the error of peek() has said so
        return True

    def wait(self, timeout_ms: float, stop: Callable[[], bool]) -> bool:
        return self._wait(self._is_receivable, timeout_ms, stop, self._rate)

    def _wait(
        self, until: Callable[[], bool], timeout_ms: float | None, stop: Callable[[], bool], rate: PollRate
    ) -> bool:
        deadline_s = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        wakes = self._wakes
        while True:
            if until():
                rate.found_one()
                return True
            remaining_ms = None if deadline_s is None else (deadline_s - time.monotonic()) * 1000
            if stop() or (remaining_ms is not None and remaining_ms <= 0) or not self._is_there():
                return until()
            pause_ms = rate.found_nothing()
            if remaining_ms is not None:
                pause_ms = min(pause_ms, remaining_ms)
            self._woken.wait(pause_ms / 1000, lambda before=wakes: self._wakes != before)  # type: ignore[misc]
            wakes = self._wakes

    def read_status(self) -> StatusLine:
        try:
            data = self._get(self._status)
            self._last_status = parse_status((data or b"starting").decode("utf-8", "replace").strip("\0 \r\n"))
        except (BadMessage, SystemLimit):
            pass  # a file that somebody writes by hand; or no descriptor is left to read it
        return self._last_status

    def is_exit_requested(self) -> bool:
        try:
            return self.read_status().status is Status.EXIT or not self._known_dir.is_there()
        except (HostilePath, SystemLimit):
            return False  # a directory in its place, say; or no descriptor is left

    def write_status(self, status: Status, detail: str = "") -> None:
        self._put(self._status, StatusLine(status, detail).to_text().encode("utf-8", "replace") + b"\n")

    def wait_status(
        self, until: Callable[[StatusLine], bool], timeout_ms: float, stop: Callable[[], bool]
    ) -> StatusLine | None:
        found: list[StatusLine] = []

        def look() -> bool:
            line = self.read_status()
            if until(line):
                found.append(line)
            return bool(found)

        self._wait(look, timeout_ms, stop, PollRate())
        return found[0] if found else None

    def heartbeat_age_ms(self) -> float | None:
        """Since the status was last written."""
        try:
            written_s = system.status(self._status).st_mtime
        except OSError:
            return None
        return max(0.0, (time.time() - written_s) * 1000)

    def ring(self) -> None:
        """Does nothing: the peer polls."""

    def wake(self) -> None:
        self._wakes += 1
        self._woken.wake()

    def unlink(self) -> None:
        """Does nothing: no resource has a name outside the directory."""

    def close(self) -> None:
        """Does nothing: this end holds nothing open."""
