"""One real session against a small model: requests of each kind in flight, in any order with all that may happen.

The model knows for each request which outcomes there may be. A gate holds the worker, so that it knows also which
requests wait in the ring.
"""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from support import BOUND_S, FOREVER_MS, TOOLS, Gate, forks, wait_until

from tr_mmap import PythonSession, ResponseTimeout, SessionNotStarted, WorkerDied

SHORT_MS = 5.0  # for a request that cannot be answered
MOST = 20  # in flight; the session would wait at 32
COUNT = 1000  # elements of a tag's tensor


@dataclass
class Sent:
    """A request, and what may come of it.

    Attributes:
        may: the outcomes that there may be: its text, or names of errors.
        settled: how often its future's callbacks were called.
    """

    future: Future[Any]
    wanted: str
    may: set[str] = field(default_factory=set)
    name: str = ""
    settled: int = 0

    def __post_init__(self) -> None:
        self.may.add(self.wanted)
        self.future.add_done_callback(self._count)

    def _count(self, _: object) -> None:
        self.settled += 1

    def outcome(self) -> str:
        try:
            return str(self.future.result(BOUND_S))
        except (Exception, CancelledError) as error:
            return type(error).__name__


numbers = itertools.count(1)


class FlowMachine(RuleBasedStateMachine):
    """See the module's docstring. The worker answers in order; ``held`` is the request that is at the gate."""

    def __init__(self, session: PythonSession, directory: Path) -> None:
        super().__init__()
        self.session = session
        self.directory = directory
        self.is_alive = True
        self.sent: list[Sent] = []  # since the last rest
        self.public: list[str] = []  # the texts of requests whose results nobody has taken yet
        self.gate: Gate | None = None
        self.held: Sent | None = None
        self.tags: dict[str, int] = {}
        self.refused: set[str] = set()  # notes whose cancel has succeeded, of this worker
        self.number = 0

    def text(self) -> str:
        """One that no request had before: an earlier run of the machine may have had the same worker."""
        return f"t{next(numbers)}"

    def submit(self, message: str, wanted: str, *tensors: Any, timeout_ms: float = FOREVER_MS, name: str = "") -> Sent:
        sent = Sent(self.session.submit(message, *tensors, timeout_ms=timeout_ms), wanted, name=name)
        self.sent.append(sent)
        return sent

    def is_room(self) -> bool:
        return self.is_alive and len(self.sent) + len(self.public) < MOST

    def is_idle(self) -> bool:
        return self.is_alive and self.held is None

    def queued(self) -> list[Sent]:
        """The requests behind the one at the gate."""
        return [] if self.held is None else self.sent[self.sent.index(self.held) + 1 :]

    # -- requests ----------------------------------------------------------------------------------------------------

    @precondition(is_room)
    @rule(count=st.integers(1, 4), length=st.sampled_from([0, 0, 0, 5000]))
    def submit_texts(self, count: int, length: int) -> None:
        for _ in range(count):
            text = self.text() + "x" * length  # too long for a slot
            self.submit(f"say {text}", text)

    @precondition(is_room)
    @rule()
    def submit_note(self) -> None:
        name = self.text()
        self.submit(f"note {name}", name, name=name)

    @precondition(is_room)
    @rule(count=st.sampled_from([1, 1000, 5000]))
    def submit_tensor(self, count: int) -> None:
        self.number += 1
        self.submit("total", str(self.number * count), np.full(count, self.number))

    @precondition(is_room)
    @rule()
    def submit_what_fails(self) -> None:
        self.submit("no_such_command", "UnknownCommand")

    @precondition(is_room)
    @rule(tag=st.sampled_from("ab"))
    def send_tag(self, tag: str) -> None:
        self.number += 1
        self.session.send_tensor(np.full(COUNT, self.number), tag)
        self.tags[tag] = self.number

    @precondition(lambda self: self.is_room() and self.tags)
    @rule(data=st.data())
    def submit_tag(self, data: st.DataObject) -> None:
        """It sees what the tag has now, also if the tag is sent again while it waits."""
        tag = data.draw(st.sampled_from(sorted(self.tags)))
        self.submit(f"total {tag}", str(self.tags[tag] * COUNT))

    @precondition(lambda self: self.is_alive and self.tags)
    @rule(data=st.data())
    def drop_tag(self, data: st.DataObject) -> None:
        tag = data.draw(st.sampled_from(sorted(self.tags)))
        self.session.drop_tensor(tag)
        del self.tags[tag]

    @precondition(is_idle)
    @rule()
    def ask(self) -> None:
        text = self.text()
        assert self.session.fetch_response(f"say {text}", FOREVER_MS) == text

    @precondition(is_room)
    @rule()
    def send_public(self) -> None:
        text = self.text()
        self.session.send_request(f"say {text}")
        self.public.append(text)

    @precondition(lambda self: self.is_idle() and self.public)
    @rule()
    def take_public(self) -> None:
        assert self.session.wait_for_response(FOREVER_MS) == self.public.pop(0)

    # -- a worker that is held ---------------------------------------------------------------------------------------

    @precondition(lambda self: self.is_room() and self.held is None)
    @rule()
    def hold(self) -> None:
        self.gate = Gate(self.directory)
        self.held = self.submit(self.gate.message, self.text())
        self.gate.wait_for_worker()

    @precondition(lambda self: self.held)
    @rule()
    def let_go(self) -> None:
        assert self.gate is not None
        assert self.held is not None
        self.gate.let_go(self.held.wanted)
        self.held = self.gate = None

    @precondition(lambda self: self.held and self.is_room())
    @rule(is_blocking=st.booleans())
    def run_out_of_time(self, is_blocking: bool) -> None:
        text = self.text()
        if is_blocking:
            with pytest.raises(ResponseTimeout):
                self.session.fetch_response(f"say {text}", SHORT_MS)
        else:
            sent = self.submit(f"say {text}", "ResponseTimeout", timeout_ms=SHORT_MS)
            assert sent.outcome() == "ResponseTimeout"

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def wait_in_vain(self, data: st.DataObject) -> None:
        assert self.held is not None
        sent = data.draw(st.sampled_from([self.held, *self.queued()]))
        if not sent.future.done():
            with pytest.raises(TimeoutError):
                sent.future.result(timeout=0.001)
            assert not sent.future.done()

    # -- cancels -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        sent = data.draw(st.sampled_from(self.sent))
        was_done, was_cancelled = sent.future.done(), sent.future.cancelled()
        is_cancelled = sent.future.cancel()
        if was_done:
            assert is_cancelled == was_cancelled
        elif is_cancelled:
            assert sent is not self.held
            sent.may = {"CancelledError"}
            if sent.name:
                self.refused.add(sent.name)
        else:
            assert sent not in self.queued(), "its handler cannot have been called"
            if sent is not self.held:
                sent.may.add("CancelledError")  # the worker may have seen it just before the handler

    @precondition(lambda self: self.held and not self.public)
    @rule()
    def kill_running(self) -> None:
        assert self.held is not None
        self._lose("WorkerDied")
        assert isinstance(self.held.future.cancel(kill_running=True), bool)  # type: ignore[call-arg] # a RequestFuture
        self.held.may = {"CancelledError"}
        assert self.session.wait_until_ready(FOREVER_MS)
        self._forget_worker()
        self.rest()

    # -- ends --------------------------------------------------------------------------------------------------------

    def _lose(self, error: str) -> None:
        """The worker ends: what it has not answered has this error."""
        queued = self.queued()
        for sent in self.sent:
            if not sent.future.done():
                sent.may = {error} if sent in queued or sent is self.held else {*sent.may, error}

    def _forget_worker(self) -> None:
        if self.gate is not None:
            self.gate.close()
        self.held = self.gate = None
        self.refused.clear()

    @precondition(lambda self: self.is_alive)
    @rule()
    def kill(self) -> None:
        pid = self.session.pid
        assert pid is not None
        self._lose("WorkerDied")
        os.kill(pid, signal.SIGKILL)
        for sent in self.sent:
            assert sent.outcome() in sent.may
        while self.public:
            text = self.public.pop(0)
            try:
                assert self.session.wait_for_response(FOREVER_MS) == text
            except WorkerDied:
                pass
        wait_until(lambda: not self.session.is_alive())
        self._forget_worker()
        self.is_alive = False

    @precondition(lambda self: not self.is_alive)
    @rule()
    def ask_nobody(self) -> None:
        for action in (lambda: self.session.submit("say x").result(BOUND_S), lambda: self.session.fetch_response("x")):
            with pytest.raises((WorkerDied, SessionNotStarted)):
                action()

    @precondition(lambda self: not self.is_alive)
    @rule()
    def start(self) -> None:
        self.session.start()
        assert self.session.wait_until_ready(FOREVER_MS)
        self.is_alive = True

    @precondition(lambda self: self.is_alive)
    @rule()
    def close(self) -> None:
        self._lose("SessionNotStarted")
        self.session.close()
        for sent in self.sent:
            assert sent.outcome() in sent.may
        self.public.clear()
        self.tags.clear()
        self._forget_worker()
        self.is_alive = False

    # -- forks and signals -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.is_alive)
    @rule()
    def fork(self) -> None:
        actions: list[Callable[[], object]] = [
            lambda: self.session.fetch_response("say x"),
            lambda: self.session.submit("say x"),
            lambda: self.session.send_tensor(np.ones(3), "child"),
            lambda: self.session.wait_for_response(SHORT_MS),
            *[lambda sent=sent: sent.future.result(SHORT_MS) for sent in self.queued() if not sent.future.done()][:1],
        ]
        pid = os.fork()
        if pid == 0:
            place = 0
            try:
                for place, action in enumerate(actions, 1):  # noqa: B007 - tells which one has failed
                    try:
                        action()
                    except SessionNotStarted:
                        continue
                    break
                else:
                    place = 0
            finally:
                os._exit(place)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    @precondition(is_room)
    @rule(delay_us=st.integers(1, 400))
    def use_in_a_signal_handler(self, delay_us: int) -> None:
        """The handler runs in the middle of requests."""
        inner: list[Sent] = []

        def handle(*_: object) -> None:
            text = self.text()
            inner.append(Sent(self.session.submit(f"say {text}", timeout_ms=FOREVER_MS), text))
            if self.held is None:
                assert inner[0].outcome() == text

        before = signal.signal(signal.SIGALRM, handle)
        try:
            signal.setitimer(signal.ITIMER_REAL, delay_us * 1e-6)
            if self.held is not None:
                for _ in range(3):  # a fixed number: what rules there are next must not depend on the time
                    self.submit_note()
            while not inner:
                if self.held is None:
                    self.ask()
        finally:
            signal.signal(signal.SIGALRM, before)
        self.sent += inner

    # -- what is always so, and what is so at rest -------------------------------------------------------------------

    @invariant()
    def what_is_done_is_right(self) -> None:
        for sent in self.sent:
            if sent.future.done():
                assert sent.outcome() in sent.may

    @precondition(is_idle)
    @rule()
    def rest(self) -> None:
        for sent in self.sent:
            assert sent.outcome() in sent.may, sent
        while self.public:
            self.take_public()
        assert self.refused.isdisjoint(self.session.fetch_response("noted", FOREVER_MS).split())
        assert {sent.settled for sent in self.sent} <= {1}
        self.sent.clear()
        dispatcher = self.session._dispatcher
        assert dispatcher is not None
        assert not dispatcher.in_flight
        assert not self.session.is_busy()
        left = [(each.message, each.seq, str(each.outcome), each.is_lost) for each in dispatcher._claims]
        assert not self.session.new_response(), left
        stats = self.session.stats()
        held = {segment.name for segment in dispatcher.transfer._tags.segments()}  # type: ignore[attr-defined]
        assert len(held) == len(self.tags)
        if not self.tags:
            assert stats.free_nbytes == stats.nbytes

    def teardown(self) -> None:
        if self.held is not None:
            self.let_go()
        if not self.is_alive:
            self.start()
        for tag in sorted(self.tags):
            self.session.drop_tensor(tag)
        self.tags.clear()
        self.rest()


@pytest.mark.long
@pytest.mark.timeout(0)
@forks
@pytest.mark.parametrize("options", [{}, {"auth": True}], ids=["plain", "auth"])
def test_each_request_has_one_outcome_and_the_right_one(options: dict[str, Any], is_full: bool) -> None:
    with (
        PythonSession(TOOLS, "machine", quiet_mode=True, **options) as session,
        tempfile.TemporaryDirectory() as directory,
    ):
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            lambda: FlowMachine(session, Path(directory)),
            settings=settings(
                max_examples=1500 if is_full else 6,
                stateful_step_count=60 if is_full else 25,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
