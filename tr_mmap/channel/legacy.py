"""The channel of the legacy dialect: files put in place by rename, whose existence is the state. Needs no manifest.

``tr_mmap.protocol.legacy`` has the messages. A legacy peer differs from ours in three ways. It makes files by its
umask. It writes ``ready`` and ``exit`` into the status, which the worker writes too, each over what is there. It may
leave a response unread for any time.

A response has no number. So before the controller puts a request in place, it waits until the worker has ended what
somebody else has asked, and removes a response that lies there. Otherwise that would count as the response to the new
request, and each later response as the one to the request after its own.

**Several responses to one request.** A worker of the original framework writes one for the tensors and one more for the
text. It waits each time until the last one is gone, and removes the request when its handler has returned. So while the
controller's request lies there, the controller takes every response:

- The first one whose words are names of files is the answer, at once. If there is none, the very first one is.
- That one is given to the caller when the request is gone; when the worker has ended; after ``_GRACE_S``, because a
  handler may go on for long after its answer; or when the caller's own time is over.
- Later ones are discarded, when the next request or a request to exit is to be put in place.

Of a worker that removes the request before it answers, the controller takes one response. If the status was ``busy``
then, the next request waits until the worker writes another status, and responses that come until then are discarded. A
worker that never writes one delays one request by ``_GRACE_S``, and no further one.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import ClassVar, Final, TypeAlias

from ..base import system
from ..base.identifiers import tensor_file
from ..errors import BadMessage, HostilePath, OutOfSpace, SystemLimit
from ..protocol.commands import split_words
from ..protocol.legacy import LEGACY_FORBIDDEN_MODE, decode_legacy_response, encode_legacy, results_of
from ..protocol.messages import Failure, Request, Response, encode
from ..protocol.status import Status, StatusLine, parse_status
from ..wire.messages import STATUS_EXIT
from .files import FileChannel, PollRate, signature_of
from .interface import Role, check_bounds, never

__all__ = ["LegacyChannel"]

# For how long "busy" is taken to mean that the worker is in somebody else's request: the short time if this worker has
# never written another status at a request's end; the long one if it has, for a handler may have left "busy" behind.
_PATIENCE_S: Final = 2.0
_LONG_PATIENCE_S: Final = 60.0
_GRACE_S: Final = 1.0  # how long to wait for a better response than the first one while the handler goes on

_Signature: TypeAlias = tuple[int, int, int] | None


class _Haste(PollRate):
    """For waits that are mostly short: looks again after an eighth of the time that it has waited; 1 to 32 ms."""

    def __init__(self) -> None:
        super().__init__()
        self._began_s = time.monotonic()

    def found_nothing(self) -> float:
        return min(max(1.0, (time.monotonic() - self._began_s) * 125), 32.0)


class _AnswerRate(PollRate):
    """The usual rate; faster once a first response is there, because the request's removal mostly follows at once."""

    haste: _Haste | None = None

    def found_nothing(self) -> float:
        return super().found_nothing() if self.haste is None else self.haste.found_nothing()

    def found_one(self) -> None:
        super().found_one()
        self.haste = None


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
        self._is_in_own_words = False  # and whether it is none of our status words
        # Whether the worker waits for a request, as the controller finds before it sends one.
        self._ends_busy = False  # this worker writes another status when a request has ended
        self._busy_mark = self._answered_mark = (0, 0)  # of the status file, when it said so, and at our last response
        self._busy_since_s = 0.0
        self._is_hasty = False  # either peer may write in place
        self._rate = self._rate_of_answers = _AnswerRate()
        self._own: _Signature = None  # of our request's file, until it is gone
        self._removes_late = False  # this worker has written a response before it removed the request
        self._answer: bytes | Exception | None = None  # to our request, or the error that kept it from being read
        self._candidate: bytes | None = None  # the first response to it, as long as a better one may follow
        self._candidate_until_s = 0.0
        self._state = 0  # changes with each of the last three
        self._is_after_busy = False  # the worker has not said yet that it has ended the request that it has answered
        self._answered_s = 0.0
        self._stays_busy = False  # this worker never says so
        self._left: tuple[_Signature, float] = (None, 0.0)  # a response to somebody else's request; when it was found
        self._looking = threading.RLock()  # reentrant, because a signal handler may look too
        self._is_quiet = True  # the last look found no response to anybody else's request, and none was due
        self._was_in_another = False  # somebody else's request, whose response has not been seen yet
        self._another_ended_s = 0.0

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

    def _rate_of_sending(self) -> PollRate:
        return _Haste() if self._is_controller else super()._rate_of_sending()

    def _put(self, path: str, data: bytes) -> None:
        super()._put(path, data)
        if self._is_controller and path == self._out:
            self._own = signature_of(path)

    def _try_put(self, message: Request | Response, data: bytes) -> bool:
        if self._is_controller:
            self._discard_late()
        return super()._try_put(message, data)

    def _discard_late(self) -> None:
        """Remove what keeps the worker from ending a request that has been answered, or given up by its writer."""
        if self._is_own_there():
            self._discard()
        elif os.path.lexists(self._out):  # by hand: who wrote it takes the answer, and perhaps no second one
            signature, now_s = signature_of(self._in), time.monotonic()
            if signature is None or signature != self._left[0]:
                self._left = signature, now_s
            elif now_s - self._left[1] > _PATIENCE_S:
                self._discard()

    def _discard(self) -> None:
        try:
            system.unlink(self._in, owner=self._owner)
        except OSError:
            pass  # a directory; the next receive() says so

    def _is_own_there(self) -> bool:
        """Whether the controller's last request still lies there."""
        if self._own is not None and signature_of(self._out) != self._own:
            self._own = None
        return self._own is not None

    def _may_put(self, message: Request | Response) -> bool:
        if not isinstance(message, Request):
            return True
        if self._is_still_answering() or self._is_in_another():
            self._is_quiet = False
            return False
        was_quiet, self._is_quiet = self._is_quiet, True
        if not os.path.lexists(self._in):
            # Else look once more: a response follows the status, or the one that was removed.
            return was_quiet and not self._is_another_s_response_due()
        self._was_in_another = False
        try:
            system.unlink(self._in, owner=self._owner)
        except OSError:
            return True  # a directory; the next receive() says so
        self._is_quiet = False
        return False

    def _is_still_answering(self) -> bool:
        """Whether more may come in response to the answered request, which the worker removed before it answered."""
        if not self._is_after_busy:
            return False
        self.read_status()
        if self._mark_of_status() == self._answered_mark:
            if os.path.lexists(self._in):
                self._discard()
                self._answered_s = time.monotonic()
            if time.monotonic() - self._answered_s < _GRACE_S:
                return True
            self._stays_busy = not self._ends_busy
        self._is_after_busy = False
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
        if now_s - self._busy_since_s >= (_LONG_PATIENCE_S if self._ends_busy else _PATIENCE_S):
            return False
        self._was_in_another, self._another_ended_s = True, now_s
        return True

    def _is_another_s_response_due(self) -> bool:
        """Whether the worker has ended somebody else's request a moment ago, and may still write the response."""
        if time.monotonic() - self._another_ended_s >= _GRACE_S:
            self._was_in_another = False  # there is none, or who asked has taken it
        return self._was_in_another

    def _mark_of_status(self) -> tuple[int, int]:
        """Tells one written status from another."""
        try:
            info = system.status(self._status)
        except OSError:
            return 0, 0
        return info.st_ino, info.st_mtime_ns

    def _why_not_put(self) -> str:
        if self._is_controller and self._is_own_there():
            return "the worker's handler has not ended the last request, though it has answered it,"
        if self._is_controller and not os.path.lexists(self._out):
            return "the worker has been in a request that somebody wrote by hand"
        return super()._why_not_put()

    def _note_sent(self, message: Request | Response) -> None:
        if isinstance(message, Request):
            if self.read_status().status is Status.ERROR:
                self.write_status(Status.READY)  # the worker is idle; its old ERROR is not the next outcome
            self._sent_request, self._outcome = message, None
            self._own = self._answer = self._candidate = None
            self._state += 1

    def reply_unreadable(self, failure: Failure) -> None:
        try:
            self.send(Response(result="error", error=failure))
        except (OutOfSpace, SystemLimit):
            pass  # the status could not be written either

    # -- the controller's side of responses -----------------------------------------------------------------------

    def has_message(self) -> bool:
        if not self._is_controller:
            return super().has_message()
        try:
            return self._is_receivable()
        except SystemLimit:
            return True  # it can be read later

    def is_taken_up(self, order: int | None = None) -> bool:
        if self._removes_late and self._is_own_there():
            return self.read_status().status is Status.BUSY
        return super().is_taken_up(order)

    def peek(self) -> bytes | None:
        if not self._is_controller:
            return super().peek()
        if self._held is None and self._is_receivable():
            answer = self._answer
            if isinstance(answer, Exception):
                raise answer
            self._held = None if answer is None else self._as_own(answer)
        return self._held

    def advance(self, position: int, *, is_consumed: bool = True) -> bool:
        if not self._is_controller:
            return super().advance(position, is_consumed=is_consumed)
        if self._messages_taken != position:
            return False
        self._messages_taken += 1
        self._answer = self._candidate = self._held = None
        self._state += 1
        return True

    def hurry(self) -> None:
        if self._candidate is not None:
            self._candidate_until_s = 0.0

    def _is_receivable(self) -> bool:
        if not self._is_controller:
            return super()._is_receivable()
        if self._held is not None or self._answer is not None:
            return True
        if not self._looking.acquire(blocking=False):
            return False  # another thread looks
        try:
            return self._look()
        finally:
            self._looking.release()

    def _look(self) -> bool:
        """Take the responses that lie there. Returns whether the answer to our request is known."""
        while True:
            # Asked first: then the look below finds all that the worker wrote before it removed the request.
            is_gone = not self._is_own_there()
            state = self._state
            raw: bytes | None = None
            try:
                if self._is_settled():
                    raw = self._get(self._in)
            except (BadMessage, HostilePath) as error:
                if self._state == state:
                    self._answer = error
                self._discard()
                return True
            is_better = raw is not None and self._has_results(raw)
            until_s, haste = time.monotonic() + _GRACE_S, _Haste()
            is_coming = raw is None and os.path.lexists(self._in)  # it is still being written
            is_late = time.monotonic() >= self._candidate_until_s
            if self._state != state or os.getpid() != self._owner_pid:
                return self._answer is not None  # a signal handler has taken it meanwhile, or has forked
            # No call from here to the last store: a signal handler finds all of this or nothing.
            self._state = state + 1
            if is_better:
                self._answer = raw
            elif raw is not None and self._candidate is None:
                self._candidate, self._candidate_until_s, self._rate_of_answers.haste = raw, until_s, haste
            is_over = (is_gone and not is_coming) or (is_late and raw is None)
            if self._answer is None and is_over:
                self._answer = self._candidate
            if raw is None:
                return self._answer is not None
            self._removes_late = self._removes_late or not is_gone
            self._discard()
            if self._answer is not None:
                return True

    def _has_results(self, raw: bytes) -> bool:
        """Whether a response names files that are not the request's own."""
        words = results_of(raw)
        own = split_words(self._sent_request.parameters)
        return bool(words) and all(
            word not in own and os.path.lexists(os.path.join(self._directory, tensor_file(word))) for word in words
        )

    def _as_own(self, raw: bytes) -> bytes:
        """The answer as one of our responses."""
        line = self.read_status()
        is_busy = line.status is Status.BUSY and not self._is_in_own_words
        self._ends_busy = self._ends_busy or not is_busy
        self._answered_mark, self._answered_s = self._mark_of_status(), time.monotonic()
        self._is_after_busy = is_busy and not self._stays_busy and not self._is_own_there()
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
        self.ring()
        status = self.read_status().status
        if status is not Status.EXIT and not status.is_over:
            self.write_status(Status.EXIT)
        return False  # the worker may write its own status over it at any moment

    def ring(self) -> None:
        """Take the response that the worker's handler waits to be rid of, so that the worker sees ``exit``. Keep it."""
        if self._is_controller and self._is_own_there() and (self._outcome is not None or self._is_receivable()):
            self._discard_late()
