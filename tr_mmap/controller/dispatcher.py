"""The controller's requests to its worker, one at a time, and the results that wait to be taken.

Not safe for threads by itself: its session holds a lock around every call. Never starts or ends processes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from ..errors import (
    BadMessage,
    ResponseTimeout,
    SessionNotStarted,
    WorkerDied,
)
from ..protocol.commands import UserMessage, parse_command
from ..protocol.messages import Request, Response, now_ms
from ..protocol.status import StatusLine
from ..wire.messages import EXIT_COMMAND, MAX_MESSAGE_SEQ
from .resources import SessionResources
from .results import Result, remote_error
from .worker_handle import WorkerHandle

__all__ = ["Dispatcher", "StatusTest"]

_COLLECT_MS: Final = 20.0  # how often to release the leases of views that have ended, while a worker may wait for them
_REPEAT_EXIT_S: Final = 0.1  # how often to repeat a request to exit that the worker may overwrite

StatusTest = Callable[[StatusLine], bool]


class Dispatcher:
    """Requests, results and tags of one session.

    Args:
        resources: what the session owns; requests go to its worker.
        lock: the session's; a wait for another thread's request releases it.
        framework: of the tensors in results that are kept until a caller takes them.
    """

    def __init__(self, resources: SessionResources, lock: threading.RLock, framework: str) -> None:
        self.resources = resources
        self.transfer = resources.transfer
        self._changed = threading.Condition(lock)  # a request was sent, or the session is closed
        self._is_closed = False
        self._framework = framework
        self._seq = 0
        self._pending: Request | None = None  # sent and not answered
        self._is_private = False  # only the caller that sent the pending request may take its result
        self._unclaimed: deque[Result] = deque()  # results with views, which hold the leases

    def worker(self) -> WorkerHandle:
        """The running worker.

        Raises:
            SessionNotStarted: there is none, or this process is a forked child of the session's.
        """
        worker = self.resources.worker
        self.check_own()
        if worker is None:
            raise SessionNotStarted(
                f"session {self.resources.session_id!r} has no worker; call start(), or use it as a context manager"
            )
        return worker

    def check_own(self) -> None:
        """Refuse to work in a forked child of the session's process.

        Raises:
            SessionNotStarted: this process is such a child.
        """
        if self.resources.is_foreign:
            raise SessionNotStarted(
                f"session {self.resources.session_id!r} is that of the process that this one was forked from; views of "
                "its tensors are good here, requests are not: start a session of this process's own"
            )

    def has_result(self) -> bool:
        """Whether :meth:`take` would find a result at once."""
        if self._unclaimed:
            return True
        worker = self.resources.worker
        return worker is not None and self._has_public_request() and worker.channel.has_message()

    # -- requests -------------------------------------------------------------------------------------------------

    def call(self, message: UserMessage, tensors: tuple[Any, ...], timeout_ms: float, framework: str | None) -> Result:
        """Send a request and take its result; no other caller can take it.

        Args:
            message: the command, and words for it.
            tensors: for this request only; their tags follow the words.
            timeout_ms: how long to wait for the response.
            framework: of the result's tensors; None to receive none.

        Returns:
            The response and its tensors.

        Raises:
            BadMessage: there is no command in the message.
            UnsupportedTensor, OutOfSpace: of the tensors to send.
            RemoteError, ResponseTimeout, WorkerDied: there is no result.
        """
        began_s = time.monotonic()
        worker, pending, may_use_fast_path = self.resources.worker, None, False
        fast_path = None if worker is None else worker.fast_path  # does nothing in a forked child
        if fast_path is not None and self._pending is None and framework != "torch" and not self.transfer.unannounced:
            self._seq = seq = self._seq % MAX_MESSAGE_SEQ + 1
            # Set before the call, because a signal handler may send and drop tags during it.
            self.transfer.has_request_in_flight = True
            try:
                result = fast_path.call(seq, message, tensors, timeout_ms / 1000)
            except BaseException:  # Ctrl-C too
                if fast_path.sent_seq == seq:
                    self._begin(Request(seq, *parse_command(message)), is_private=True)
                else:
                    self.transfer.withdraw()
                raise
            if result:
                self.transfer.has_request_in_flight = False
                return result
            if result is None:  # the time is over, or the response needs the slow path
                pending = Request(seq, *parse_command(message))
                if fast_path.sent_seq != seq:  # a signal handler has sent another request, and skipped our response
                    raise self._unanswered(pending, timeout_ms)
                self._begin(pending, is_private=True)
            else:
                self.transfer.withdraw()  # nothing was sent
        else:
            may_use_fast_path = True
        if pending is None:
            pending = self._send(message, tensors, timeout_ms, is_private=True, may_use_fast_path=may_use_fast_path)
        return self._await(pending, timeout_ms, began_s, framework)

    def send(self, message: UserMessage, timeout_ms: float) -> None:
        """Send a request. Waits first for the response to an earlier one; its result can still be taken.

        Args:
            message: the command, and words for it.
            timeout_ms: how long to wait for the response to an earlier request.

        Raises:
            BadMessage: there is no command in the message.
            ResponseTimeout: there is no response to the earlier request.
            WorkerDied: the worker ended.
        """
        self._send(message, (), timeout_ms, is_private=False, may_use_fast_path=True)
        self._changed.notify_all()

    def _send(
        self,
        message: UserMessage,
        tensors: tuple[Any, ...],
        timeout_ms: float,
        *,
        is_private: bool,
        may_use_fast_path: bool,
    ) -> Request:
        """Send a request.

        Args:
            message: the command, and words for it.
            tensors: for this request only.
            timeout_ms: how long to wait for the response to an earlier one.
            is_private: only the caller may take the result.
            may_use_fast_path: whether the fast path is worth a try.
        """
        command, parameters = parse_command(message)
        worker = self.worker()
        if self._pending is not None:
            self.settle(timeout_ms)
        if worker.is_over():
            raise self.worker_died()
        transfer, fast_path = self.transfer, worker.fast_path
        self._seq = seq = self._seq % MAX_MESSAGE_SEQ + 1
        try:
            is_tried = may_use_fast_path and not transfer.unannounced
            if is_tried and fast_path is not None and fast_path.send(seq, message, tensors):
                request = Request(seq, command, parameters)
            else:
                request = transfer.prepare(seq, command, parameters, tensors)
                worker.channel.send(request)
        except BaseException:
            if fast_path is not None and fast_path.sent_seq == seq:  # it was sent, and no caller waits for a response
                self._begin(Request(seq, command, parameters), is_private=True)
            else:
                transfer.withdraw()
            raise
        return self._begin(request, is_private=is_private)

    def _begin(self, request: Request, *, is_private: bool) -> Request:
        """Note that a request was sent; its result is for the caller alone, or for any thread that waits."""
        self._pending = request
        self._is_private = is_private
        self.transfer.has_request_in_flight = True
        return request

    def request_exit(self, timeout_ms: float) -> bool:
        """Send the request to exit, even in the middle of another request. Returns whether the worker ended in time."""
        worker = self.worker()
        if not worker.process.is_alive() or worker.is_over():
            return True
        deadline_s = time.monotonic() + timeout_ms / 1000
        try:
            # A worker that is still starting will find the request later.
            self._seq = seq = self._seq % MAX_MESSAGE_SEQ + 1
            request = Request(seq=seq, command=EXIT_COMMAND, timestamp=now_ms())
            while True:
                stands = worker.channel.request_exit(request)
                remaining_s = max(0.0, deadline_s - time.monotonic())
                if worker.process.wait(remaining_s if stands else min(remaining_s, _REPEAT_EXIT_S)):
                    return True
                if time.monotonic() >= deadline_s:
                    return False
        except ResponseTimeout:
            return False

    # -- results --------------------------------------------------------------------------------------------------

    def settle(self, timeout_ms: float) -> None:
        """Wait for the response to the pending request, and keep its result for the caller that will take it.

        Raises:
            ResponseTimeout: there is no response in time.
            WorkerDied: the worker ended.
        """
        pending = self._pending
        if pending is None:
            return
        is_private = self._is_private
        response = self._await_response(pending, timeout_ms, time.monotonic())
        if not is_private:
            # Now, because after the next request the worker may reuse the segment of a result that has no view.
            self._unclaimed.append((response, self._receive_all(response, self._framework)))

    def take(self, timeout_ms: float, *, has_tensors: bool) -> Result:
        """Take the oldest result. If there is no request, waits for one that another thread may send.

        Args:
            timeout_ms: how long to wait.
            has_tensors: whether to receive the tensors.

        Raises:
            SessionNotStarted: there is no worker, or the session was closed meanwhile.
            RemoteError, ResponseTimeout, WorkerDied: there is no result.
        """
        self.worker()
        began_s = time.monotonic()
        if not self._can_take():
            self._changed.wait_for(lambda: self._can_take() or self._is_closed, timeout_ms / 1000)
            if self._is_closed:
                self.worker()  # raises
        if self._unclaimed:
            response, held = self._unclaimed.popleft()
            if response.error is not None:
                raise remote_error(response.command, response.error)
            return response, held
        if self._pending is None or self._is_private:
            raise ResponseTimeout(
                f"no request was made, so no response came within {timeout_ms:.0f} ms; call send_request first",
                timeout_ms=timeout_ms,
                command="",
            )
        return self._await(self._pending, timeout_ms, began_s, self._framework if has_tensors else None)

    def wait_status(self, until: StatusTest, timeout_ms: float, *, of_request: bool) -> StatusLine | None:
        """Wait for a status; None when the time is over.

        Args:
            until: tells whether a status is the one.
            timeout_ms: how long to wait.
            of_request: whether to wait first for the response to the request in flight, so that the status is not that
                of an earlier request.

        Raises:
            WorkerDied: the worker ended.
        """
        worker = self.worker()
        deadline_s = time.monotonic() + timeout_ms / 1000
        if of_request and self._pending is not None:
            try:
                self.settle(timeout_ms)
            except ResponseTimeout:
                return None
        remaining_ms = max(0.0, (deadline_s - time.monotonic()) * 1000)
        line = worker.channel.wait_status(until, remaining_ms, worker.is_over)
        if line is None and worker.is_over():
            raise self.worker_died()
        return line

    def _can_take(self) -> bool:
        return bool(self._unclaimed) or self._has_public_request()

    def _has_public_request(self) -> bool:
        return self._pending is not None and not self._is_private

    def _await(self, pending: Request, timeout_ms: float, began_s: float, framework: str | None) -> Result:
        """The result of a request, with its tensors unless ``framework`` is None. The time counts from ``began_s``."""
        worker = self.resources.worker or self.worker()
        if worker.fast_path is not None and framework != "torch":
            try:
                remaining_s = timeout_ms / 1000 - (time.monotonic() - began_s)
                result: Result | None = worker.fast_path.receive(pending.seq, remaining_s)
                if result is not None:
                    self._pending = None
                    self.transfer.acknowledged(pending)
                    return result
            except BaseException:  # for example Ctrl-C after the response was taken
                worker.channel.put_back()
                raise
        response = self._await_response(pending, timeout_ms, began_s)
        if response.error is not None:
            raise remote_error(response.command, response.error)
        return response, [] if framework is None else self._receive_all(response, framework)

    def _await_response(self, pending: Request, timeout_ms: float, began_s: float) -> Response:
        worker = self.resources.worker or self.worker()
        receive = self._receive if self.resources.options.transfer.block_ms else worker.channel.receive
        while True:
            remaining_ms = max(0.0, timeout_ms - (time.monotonic() - began_s) * 1000)
            try:
                raw = receive(remaining_ms, worker.is_over)
                response = None if raw is None else self.transfer.decode(raw)
            except BadMessage:
                self._end_request()  # there will be no other response to it
                raise
            except BaseException:  # for example Ctrl-C after the response was taken
                worker.channel.put_back()
                raise
            if response is None:
                raise self._unanswered(pending, timeout_ms)
            if response.seq == pending.seq:
                self._pending = None
                self.transfer.acknowledged(pending)
                return response
            # Else it is a response that no caller waits for.

    def _unanswered(self, request: Request, timeout_ms: float) -> WorkerDied | ResponseTimeout:
        if self.worker().is_over():
            return self.worker_died()
        return ResponseTimeout(
            f"no response to {request.command!r} within {timeout_ms:.0f} ms; give it more time, or "
            "terminate() and start() the worker",
            timeout_ms=timeout_ms,
            command=request.command,
        )

    def _receive(self, timeout_ms: float, stop: Callable[[], bool]) -> bytes | None:
        """As the channel's ``receive``, but releases leases meanwhile.

        The worker may wait for a lease of a view that another thread here has dropped.
        """
        channel = self.worker().channel
        deadline_s = time.monotonic() + timeout_ms / 1000
        while True:
            self.transfer.collect()
            remaining_ms = (deadline_s - time.monotonic()) * 1000
            raw = channel.receive(max(0.0, min(remaining_ms, _COLLECT_MS)), stop)
            if raw is not None or remaining_ms <= _COLLECT_MS or stop():
                return raw

    def _end_request(self) -> None:
        self._pending = None
        self.transfer.withdraw()

    def _receive_all(self, response: Response, framework: str) -> list[Any]:
        receive = self.transfer.receive
        return [receive(ref, framework) for ref in response.tensors]

    # -- the worker's end -----------------------------------------------------------------------------------------

    def worker_died(self) -> WorkerDied:
        """Build the error for a dead worker, and forget the worker, so that start() works again."""
        worker = self.worker()
        worker.process.wait(1.0)  # the watch may know it before the exit code is there
        code, tail = worker.process.exit_code, worker.process.log_tail()
        how = "with status unknown" if code is None else f"killed by signal {-code}" if code < 0 else f"status {code}"
        self.forget_worker()
        output = f"; its last output:\n{tail}" if tail else "; it printed nothing"
        return WorkerDied(
            f"the worker of session {self.resources.session_id!r} ended ({how}){output}", exit_code=code, log_tail=tail
        )

    def forget_worker(self) -> None:
        """Forget a worker that has ended. Tags stay, for the next worker."""
        self.resources.forget_worker()
        self.forget()
        self.transfer.worker_ended()

    def forget(self) -> None:
        """Forget the request in flight and all results."""
        self._end_request()
        self._is_private = False
        self._unclaimed.clear()

    def close(self) -> None:
        """Release the session; threads that wait for a request get SessionNotStarted."""
        self.forget()
        try:
            self.resources.release()
        finally:
            self._is_closed = True
            self._changed.notify_all()
