"""The controller's conversation with its worker: one request at a time, and the answers that wait to be taken.

Not safe for threads by itself: its session holds a lock around every call. Never starts or ends processes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from .errors import BadMessage, RemoteError, ResponseTimeout, SessionNotStarted, UnknownCommand, WorkerDied
from .place import Place, Run
from .protocol import EXIT_COMMAND, MAX_SEQ, Failure, FailureKind, Message, Request, Response, now_ms, parse_command

__all__ = ["Exchange"]

_COLLECT_MS: Final = 20.0  # how often to look for views that are gone while a worker waits for their memory
_ASK_AGAIN_S: Final = 0.1  # for the end, where the worker may overwrite the wish

Answer = tuple[Response, list[Any]]


class Exchange:
    """Requests, answers and tags over a place.

    Args:
        place: where the worker runs.
        lock: the session's; waiting for another thread's request lets go of it.
        framework: what the tensors of answers come as that are kept until somebody takes them.
    """

    def __init__(self, place: Place, lock: threading.RLock, framework: str) -> None:
        self.place = place
        self.store = place.store
        self._asked = threading.Condition(lock)
        self._framework = framework
        self._seq = 0
        self._pending: Request | None = None  # asked and not answered
        self._is_own = False  # the pending answer is one caller's, who may have given up; nobody else takes it
        self._answers: deque[Answer] = deque()  # answered and not taken, with views that hold the leases

    def run(self) -> Run:
        """The worker's run.

        Raises:
            SessionNotStarted: there is none, or it is another process's.
        """
        run = self.place.run
        self.check_own()
        if run is None:
            raise SessionNotStarted(
                f"session {self.place.session_id!r} has no worker; call start(), or use it as a context manager"
            )
        return run

    def check_own(self) -> None:
        """Refuse to work in another process than the session's own.

        Raises:
            SessionNotStarted: this is a child of that.
        """
        if self.place.is_foreign:
            raise SessionNotStarted(
                f"session {self.place.session_id!r} is that of the process that this one was forked from; views of its "
                "tensors are good here, requests are not: start a session of this process's own"
            )

    @property
    def has_pending(self) -> bool:
        """Whether a request is under way."""
        return self._pending is not None

    def has_answer(self) -> bool:
        """Whether :meth:`take` would find an answer at once."""
        if self._answers:
            return True
        run = self.place.run
        return run is not None and self._is_asked() and run.channel.has_message()

    # -- asking ---------------------------------------------------------------------------------------------------

    def call(self, message: Message, tensors: tuple[Any, ...], timeout_ms: float, framework: str | None) -> Answer:
        """Ask, and take the answer to just that; nobody else can.

        Args:
            message: the command, and words for it.
            tensors: lent for this request only; their tags follow the words.
            timeout_ms: how long to wait for the answer.
            framework: what the answer's tensors come as; None to leave them.
        """
        began_s = time.monotonic()
        run, pending, is_usual = self.place.run, None, False
        asker = None if run is None else run.asker  # which gives way in a child
        if asker is not None and self._pending is None and framework != "torch" and not self.store.news:
            self._seq = seq = self._seq % MAX_SEQ + 1
            self.store.is_asked = True  # now, for a signal handler may send and drop tags meanwhile
            try:
                answer = asker.call(seq, message, tensors, timeout_ms / 1000)
            except BaseException:  # Ctrl-C too
                if asker.asked == seq:
                    self._begin(Request(seq, *parse_command(message)), is_own=True)
                else:
                    self.store.withdraw()
                raise
            if answer:
                self.store.is_asked = False
                return answer
            if answer is None:  # the time is over, or what came needs more thought
                pending = Request(seq, *parse_command(message))
                if asker.asked != seq:  # a signal handler has asked something itself, and passed over our answer
                    raise self._unanswered(pending, timeout_ms)
                self._begin(pending, is_own=True)
            else:
                self.store.withdraw()  # nothing was sent
        else:
            is_usual = True
        if pending is None:
            pending = self._ask(message, tensors, timeout_ms, is_own=True, is_usual=is_usual)
        return self._await(pending, timeout_ms, began_s, framework)

    def ask(self, message: Message, timeout_ms: float) -> None:
        """Send a request; waits first for the answer to an earlier one, which can still be taken.

        Raises:
            BadMessage: there is no command in the message.
        """
        self._ask(message, (), timeout_ms, is_own=False, is_usual=True)
        self._asked.notify_all()

    def _ask(
        self, message: Message, tensors: tuple[Any, ...], timeout_ms: float, *, is_own: bool, is_usual: bool
    ) -> Request:
        """Send a request.

        Args:
            message: the command, and words for it.
            tensors: lent for this request only.
            timeout_ms: how long to wait for the answer to an earlier one.
            is_own: nobody but the caller may take the answer.
            is_usual: whether the short cut is worth a try.
        """
        command, parameters = parse_command(message)
        run = self.run()
        if self._pending is not None:
            self.settle(timeout_ms)
        if run.is_over():
            raise self.worker_died()
        store, asker = self.store, run.asker
        self._seq = seq = self._seq % MAX_SEQ + 1
        try:
            if is_usual and asker is not None and not store.news and asker.ask(seq, message, tensors):
                request = Request(seq, command, parameters)
            else:
                request = store.prepare(seq, command, parameters, tensors)
                run.channel.send(request)
        except BaseException:
            if asker is not None and asker.asked == seq:  # it is sent, and nobody will wait for it
                self._begin(Request(seq, command, parameters), is_own=True)
            else:
                store.withdraw()
            raise
        return self._begin(request, is_own=is_own)

    def _begin(self, request: Request, *, is_own: bool) -> Request:
        """A request was sent, the answer to which is the caller's own, or anybody's who waits."""
        self._pending = request
        self._is_own = is_own
        self.store.is_asked = True
        return request

    def ask_to_exit(self, timeout_ms: float) -> bool:
        """Ask the worker to end, even in the middle of a request; whether it has ended in time."""
        run = self.run()
        if not run.process.is_alive() or run.is_over():
            return True
        deadline_s = time.monotonic() + timeout_ms / 1000
        try:
            # A worker that is not there yet finds the wish when it is.
            self._seq = seq = self._seq % MAX_SEQ + 1
            wish = Request(seq=seq, command=EXIT_COMMAND, timestamp=now_ms())
            while True:
                stands = run.channel.ask_to_exit(wish)
                remaining_s = max(0.0, deadline_s - time.monotonic())
                if run.process.wait(remaining_s if stands else min(remaining_s, _ASK_AGAIN_S)):
                    return True
                if time.monotonic() >= deadline_s:
                    return False
        except ResponseTimeout:
            return False

    # -- answers --------------------------------------------------------------------------------------------------

    def settle(self, timeout_ms: float) -> None:
        """Let the pending request be answered, and keep the answer for whoever asks for it."""
        pending = self._pending
        if pending is None:
            return
        is_own = self._is_own
        response = self._await_response(pending, timeout_ms, time.monotonic())
        if not is_own:
            # Now, for with the next request the worker may take a result back that nobody holds.
            self._answers.append((response, self._receive_all(response, self._framework)))

    def take(self, timeout_ms: float, *, has_tensors: bool) -> Answer:
        """The oldest answer that nobody has taken; waits for a request too, which another thread may make."""
        self.run()
        began_s = time.monotonic()
        if not self._answers and (self._pending is None or self._is_own):
            self._asked.wait_for(lambda: self._answers or self._is_asked(), timeout_ms / 1000)
        if self._answers:
            response, held = self._answers.popleft()
            if response.error is not None:
                raise _remote_error(response.command, response.error)
            return response, held
        if self._pending is None or self._is_own:
            raise ResponseTimeout(
                f"no request was made, so no response came within {timeout_ms:.0f} ms; call send_request first",
                timeout_ms=timeout_ms,
                command="",
            )
        return self._await(self._pending, timeout_ms, began_s, self._framework if has_tensors else None)

    def _is_asked(self) -> bool:
        return self._pending is not None and not self._is_own

    def _await(self, pending: Request, timeout_ms: float, began_s: float, framework: str | None) -> Answer:
        """The answer to a request, with its tensors if a framework is named; the time counts from ``began_s`` on."""
        run = self.place.run or self.run()
        if run.asker is not None and framework != "torch":
            try:
                answer: Answer | None = run.asker.hear(pending.seq, timeout_ms / 1000 - (time.monotonic() - began_s))
                if answer is not None:
                    self._pending = None
                    self.store.answered(pending)
                    return answer
            except BaseException:  # Ctrl-C, say, when the answer was taken already
                run.channel.put_back()
                raise
        response = self._await_response(pending, timeout_ms, began_s)
        if response.error is not None:
            raise _remote_error(response.command, response.error)
        return response, [] if framework is None else self._receive_all(response, framework)

    def _await_response(self, pending: Request, timeout_ms: float, began_s: float) -> Response:
        run = self.place.run or self.run()
        receive = self._receive if self.place.options.block_ms else run.channel.receive
        while True:
            remaining_ms = max(0.0, timeout_ms - (time.monotonic() - began_s) * 1000)
            try:
                raw = receive(remaining_ms, run.is_over)
                response = None if raw is None else self.store.decode(raw)
            except BadMessage:
                self._end_request()  # there will be no other answer to it
                raise
            except BaseException:  # Ctrl-C, say, when the answer was taken already
                run.channel.put_back()
                raise
            if response is None:
                raise self._unanswered(pending, timeout_ms)
            if response.seq == pending.seq:
                self._pending = None
                self.store.answered(pending)
                return response
            # Else an answer that nobody waits for.

    def _unanswered(self, request: Request, timeout_ms: float) -> WorkerDied | ResponseTimeout:
        if self.run().is_over():
            return self.worker_died()
        return ResponseTimeout(
            f"no response to {request.command!r} within {timeout_ms:.0f} ms; give it more time, or "
            "terminate() and start() the worker",
            timeout_ms=timeout_ms,
            command=request.command,
        )

    def _receive(self, timeout_ms: float, stop: Callable[[], bool]) -> bytes | None:
        """As the channel's, but the worker may be waiting for views that other threads here have dropped meanwhile."""
        channel = self.run().channel
        deadline_s = time.monotonic() + timeout_ms / 1000
        while True:
            self.store.collect()
            remaining_ms = (deadline_s - time.monotonic()) * 1000
            raw = channel.receive(max(0.0, min(remaining_ms, _COLLECT_MS)), stop)
            if raw is not None or remaining_ms <= _COLLECT_MS or stop():
                return raw

    def _end_request(self) -> None:
        self._pending = None
        self.store.withdraw()

    def _receive_all(self, response: Response, framework: str) -> list[Any]:
        receive = self.store.receive
        return [receive(ref, framework) for ref in response.tensors]

    # -- ends -----------------------------------------------------------------------------------------------------

    def worker_died(self) -> WorkerDied:
        """Build the error, and put the session where start() works again."""
        run = self.run()
        run.process.wait(1.0)  # the watch may be faster than the kernel's bookkeeping
        code, tail = run.process.exit_code, run.process.log_tail()
        how = "with status unknown" if code is None else f"killed by signal {-code}" if code < 0 else f"status {code}"
        self.end_run()
        output = f"; its last output:\n{tail}" if tail else "; it printed nothing"
        return WorkerDied(
            f"the worker of session {self.place.session_id!r} ended ({how}){output}", exit_code=code, log_tail=tail
        )

    def end_run(self) -> None:
        """Forget a worker that has ended; tags stay, for the next one."""
        self.place.end_run()
        self.forget()
        self.store.end_run()

    def forget(self) -> None:
        """Forget the request under way and all answers."""
        self._end_request()
        self._is_own = False
        self._answers.clear()


def _remote_error(command: str, failure: Failure) -> RemoteError:
    fields = {"command": command, "error_type": failure.type, "remote_traceback": failure.traceback}
    if failure.kind is FailureKind.UNKNOWN_COMMAND:
        return UnknownCommand(failure.message, **fields)
    if failure.kind is FailureKind.BAD_INPUT:
        return RemoteError(failure.message, **fields)
    trace = f"\n\n{failure.traceback}" if failure.traceback else ""
    return RemoteError(f"{command!r} failed in the worker: {failure.type}: {failure.message}{trace}", **fields)
