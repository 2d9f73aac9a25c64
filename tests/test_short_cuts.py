"""The short cuts do what the long way does, byte for byte, or leave everything to it: messages, loans, files."""

from __future__ import annotations

import itertools
import mmap
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import arrays, bits
from support import TOOLS, Gate

from tr_mmap import PythonSession, load, native, save, short_cuts
from tr_mmap.answers import Answer
from tr_mmap.channel import MappedChannel
from tr_mmap.channel.mapped import PAGE_NBYTES
from tr_mmap.errors import BadMessage, RemoteError, SessionNotStarted, UnsupportedTensor, WorkerDied
from tr_mmap.manifest import StoreOptions
from tr_mmap.protocol import (
    Failure,
    FailureKind,
    Request,
    Response,
    Status,
    TensorRef,
    decode_request,
    decode_response,
    encode,
    parse_command,
)
from tr_mmap.stores.segments import SegmentControllerStore, SegmentWorkerStore
from tr_mmap.tsr import files
from tr_mmap.tsr import header as codec

pytestmark = pytest.mark.skipif(not native.IS_COMPILED, reason="the short cuts are the extension's")

FLOATS = np.arange(8, dtype=np.float32)
OPTIONS = StoreOptions()
MOST_TENSORS = 16  # that a message of the usual form names


def never() -> bool:
    return False


class Handler:
    """What a server is to the short cut."""

    def __init__(self, handle: Callable[[Any], object]) -> None:
        self._answer: Any = None
        self._handle = handle
        self.asked: list[tuple[str, str]] = []

    def main_logic(self, command: str, parameters: str) -> object:
        self.asked.append((command, parameters))
        return self._handle(self._answer)


class Pair:
    """Both ends of a session in one process, by either way."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.controller = MappedChannel.create(directory)
        self.worker = MappedChannel.attach(directory, self.controller.doorbells)
        self.asking = SegmentControllerStore(directory, OPTIONS)
        self.answering = SegmentWorkerStore(directory, OPTIONS)
        self.asking.begin_run(never)
        self.ends: list[int] = []
        asker = short_cuts.asker(self.controller, self.asking, self.ends)
        answerer = short_cuts.answerer(self.worker, self.answering, self.ends)
        assert asker is not None
        assert answerer is not None
        self.asker, self.answerer = asker, answerer
        self.seq = itertools.count(1)
        self.worker.write_status(Status.READY)

    def page(self, name: str) -> bytes:
        return Path(self.directory, f"{name}.json").read_bytes().partition(b"\n")[0]

    def write(self, name: str, line: bytes) -> None:
        """As a peer that stores what it likes."""
        with open(os.path.join(self.directory, f"{name}.json"), "r+b") as file, mmap.mmap(file.fileno(), 0) as page:
            page[:] = (line[:PAGE_NBYTES] + b"\n").ljust(PAGE_NBYTES)[:PAGE_NBYTES]

    def hear_late(self) -> None:
        """Take what is there the long way."""
        self.controller.receive(0, never)
        self.worker.receive(0, never)

    def serve(self, handle: Callable[[Any], object]) -> Any:
        """As the answerer, but without waiting for what does not come."""
        self.ends.append(1)
        handler = Handler(handle)
        try:
            return self.answerer.serve(handler)
        finally:
            self.ends.clear()
            assert handler._answer is None

    def listen(self) -> Request | None:
        """What is asked, if it comes by the short cut; it is left to be finished."""
        left = self.serve(lambda _: None)
        if left is None:
            return None
        request, answer, is_known, error = left
        assert (answer, is_known, error) == (Answer(), None, None)
        return request

    def pass_by_long_way(self, tensors: tuple[Any, ...]) -> None:
        """So that both sides know how such tensors lie."""
        seq = next(self.seq)
        request = self.asking.prepare(seq, "echo", "", tensors)
        self.controller.send(request)
        self.answering.begin(request)
        self.worker.enter(Status.BUSY)
        views = [self.answering.fetch(tag, "numpy") for tag in request.parameters.split()]
        self.answering.publish(views)
        del views
        refs = self.answering.end(request, True)
        self.worker.enter(Status.OK)
        self.worker.send(Response(seq, "echo", "ok", "", 1, refs))
        response = decode_response(self.controller.receive(0, never) or b"")
        for ref in response.tensors:
            self.asking.receive(ref, "numpy")
        self.asking.withdraw()
        self.answering.withdraw()
        self.worker.receive(0, never)

    def close(self) -> None:
        self.answering.close(is_orphan=True)
        self.asking.close()
        self.worker.close()
        self.controller.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Pair(str(tmp_path_factory.mktemp("pair")))
    yield made
    made.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(str(tmp_path))
    yield made
    made.close()


def on_the_page(message: Request | Response) -> bytes:
    """The line that a channel makes of a message: its number in 8 places."""
    return b'{"seq":%9d,' % message.seq + encode(message).partition(b",")[2]


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
plain_words = st.text("abcXYZ_0189.-/{}[]:,ü漢🙂", max_size=30)
texts = (
    words | plain_words | st.just("x" * 5000) | st.sampled_from(['"', "\\", "\n", "\x7f", "\x00", "a\x1fb", "ready"])
)


# -- requests ----------------------------------------------------------------------------------------------------------


@given(command=texts, parameters=texts)
def test_a_request_by_the_short_cut_is_what_the_long_way_sends(shared: Pair, command: str, parameters: str) -> None:
    message, seq = f"{command} {parameters}", next(shared.seq)
    shared.hear_late()
    before = shared.page("request")
    if not shared.asker.ask(seq, message, ()):
        assert shared.page("request") == before
        return
    assert shared.asker.asked == seq
    line = shared.page("request")
    request = decode_request(line)
    assert (request.command, request.parameters) == parse_command(message)
    assert line == on_the_page(request)
    assert line == shared.worker.receive(0, never)


@pytest.mark.parametrize("message", ["echo", "hello world", "f a b  c", "_x9 {} [1,2]", "grüß" * 0 + "say grüße x"])
def test_most_messages_take_the_short_cut(pair: Pair, message: str) -> None:
    assert pair.asker.ask(1, message, ())
    assert pair.listen() == Request(1, *parse_command(message), decode_request(pair.page("request")).timestamp)


@pytest.mark.parametrize(
    "message",
    [
        *(
            "",
            " ",
            "two  spaces",
            " before",
            "after ",
            "tab\tx",
            "x \ty",
            'x "',
            "x \\",
            "x \n",
            "1x y",
            "x.y z",
            "ü x",
        ),
        *("x \u2003y", "x y\xa0", "x " + "y" * 4096, "x \ud800", b"x", None, 3, {"cmd": "x"}, '{"cmd": "x"}'),
    ],
)
def test_a_message_that_needs_thought_is_left_to_the_long_way(pair: Pair, message: Any) -> None:
    before = pair.page("request")
    assert not pair.asker.ask(1, message, ())
    assert pair.asker.asked == 0
    assert pair.page("request") == before


def test_tensors_are_lent_with_a_request_or_none_of_them_is(pair: Pair) -> None:
    pair.pass_by_long_way((FLOATS, FLOATS + 1))
    pool = pair.asking._pool
    other = np.arange(3)
    for tensors in ((FLOATS, other), (other, FLOATS), (FLOATS, "text"), (FLOATS,) * (MOST_TENSORS + 1), [FLOATS], None):
        assert not pair.asker.ask(1, "echo", tensors)
        assert pair.asking._in_flight == []
        assert pool.stats().free_nbytes == pool.stats().nbytes
    assert pair.asker.ask(next(pair.seq), "echo 2.5", (FLOATS, FLOATS + 1))
    request = pair.listen()
    assert request is not None
    assert request.parameters == "2.5 $0 $1"
    assert [ref.tag for ref in request.tensors] == ["$0", "$1"]
    assert [pair.answering.fetch(tag, "numpy").tolist() for tag in ("$0", "$1")] == [
        FLOATS.tolist(),
        (FLOATS + 1).tolist(),
    ]
    assert len(pair.asking._in_flight) == 2


def test_nothing_is_asked_of_a_worker_that_has_ended(pair: Pair) -> None:
    pair.ends.append(1)
    assert not pair.asker.ask(1, "echo", ())
    assert pair.asker.call(1, "echo", (), 60.0) is False
    assert pair.asker.asked == 0


def test_a_childs_asker_asks_nothing(pair: Pair) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(bool(pair.asker.ask(1, "echo", ())))
    assert os.waitpid(pid, 0)[1] == 0


refs = st.builds(TensorRef, st.sampled_from(["a", "$0", "", 'q"']) | words, texts, st.integers(0, 2**63 - 1))
requests = st.builds(
    Request,
    command=texts,
    parameters=texts,
    timestamp=st.integers(0, 2**62),
    tensors=st.lists(refs, max_size=20),
    drops=st.just([]) | st.lists(words, max_size=2),
    mac=st.just("") | words,
)


@given(requests)
def test_any_request_is_heard_by_the_short_cut_as_by_the_long_way(shared: Pair, request: Request) -> None:
    request.seq = next(shared.seq)
    shared.worker.write_status(Status.READY)
    shared.controller.send(request)
    heard = shared.listen()
    line = shared.worker.receive(0, never)
    if heard is None:
        assert line is not None  # it waits to be taken
        assert shared.worker.read_status().status is Status.READY
        return
    assert line is None
    assert heard == decode_request(shared.page("request")) == request
    assert shared.worker.read_status().status is Status.BUSY
    assert {ref.tag: ref for ref in request.tensors}.items() <= shared.answering.tags.items()
    shared.answering.end(request, is_kept=False)
    shared.answering.tags.clear()


# -- answers -----------------------------------------------------------------------------------------------------------


@given(command=texts, result=texts, message=texts)
def test_an_answer_by_the_short_cut_is_what_the_long_way_sends(
    shared: Pair, command: str, result: str, message: str
) -> None:
    seq = next(shared.seq)
    shared.hear_late()
    shared.worker.write_status(Status.READY)
    assert shared.asker.ask(seq, "asked", ())
    before = shared.page("response")

    def handle(answer: Answer) -> bool:
        answer.command, answer.result, answer.message, answer.complaint = command, result, message, "complaint"
        return True

    left = shared.serve(handle)
    if left is not True:
        request, answer, is_known, error = left
        assert (request.seq, request.command, is_known, error) == (seq, "asked", True, None)
        assert answer == Answer(command, result, message, "complaint")
        assert shared.page("response") == before
        assert shared.worker.read_status().status is Status.BUSY
        return
    line = shared.page("response")
    response = decode_response(line)
    assert response == Response(seq, command or "asked", result, message or "complaint", response.timestamp)
    assert line == on_the_page(response)
    assert shared.controller.read_status().status is Status.OK


responses = st.builds(
    Response,
    command=texts,
    result=texts,
    message=texts,
    timestamp=st.integers(0, 2**62),
    tensors=st.lists(refs, max_size=2),
    error=st.none() | st.builds(Failure, st.sampled_from(FailureKind), words, words),
    mac=st.just("") | words,
)


@given(responses, st.booleans())
def test_any_answer_is_heard_by_the_short_cut_as_by_the_long_way(
    shared: Pair, response: Response, is_awaited: bool
) -> None:
    response.seq = wanted = next(shared.seq)
    if not is_awaited:
        wanted = next(shared.seq)
    shared.hear_late()
    shared.worker.send(response)
    heard = shared.asker.hear(wanted, 0.0)
    if heard is not None:
        assert heard == (response, [])
        assert heard[0] == decode_response(shared.page("response"))
        assert shared.controller.receive(0, never) is None
    elif is_awaited:
        assert shared.controller.receive(0, never) is not None  # it waits to be taken


def test_an_answer_to_an_earlier_request_is_passed_over(pair: Pair) -> None:
    pair.worker.send(Response(1, "late"))
    later = threading.Timer(0.05, pair.worker.send, [Response(2, "right")])
    later.start()
    heard = pair.asker.hear(2, 60.0)
    later.join()
    assert heard == (Response(2, "right"), [])


def test_tensors_go_there_and_back_without_the_long_way(pair: Pair) -> None:
    pair.pass_by_long_way((FLOATS,))
    for number in itertools.islice(pair.seq, 50):
        loan = pair.asking.lend_again((8,), "float32") if number % 2 else None
        loan = pair.asking.empty((8,), "float32", "numpy") if loan is None else loan
        loan[:] = number
        assert pair.asker.ask(number, "echo", (loan,))
        del loan

        def handle(_: Answer, number: int = number) -> bool:
            (view,) = pair.answerer.fetch_again("$0") or [pair.answering.fetch("$0", "numpy")]
            assert view.tolist() == [number] * 8
            assert not view.flags.writeable
            pair.answering.publish((view,))
            return True

        assert pair.serve(handle) is True
        assert pair.answering.tags == {}
        heard = pair.asker.hear(number, 0.0)
        if heard is None:  # the first time, for the controller does not know that segment yet
            assert number < 6
            raw = pair.controller.receive(0, never)
            pair.asking.receive(decode_response(raw or b"").tensors[0], "numpy")
            pair.asking.withdraw()
            continue
        assert heard[1][0].tolist() == [number] * 8
        assert pair.asking._in_flight == []
        del heard
    stats = pair.asking.stats()
    assert stats.free_nbytes == stats.nbytes
    assert stats.segments <= 3


@pytest.mark.parametrize("words", ["a,b", "a missing", "a\tb", "ä", "a b\u2003", "gone", "liar", "unmapped"])
def test_tags_that_need_thought_are_left_to_the_long_way(pair: Pair, words: str) -> None:
    pair.pass_by_long_way((FLOATS,))
    assert pair.asker.ask(next(pair.seq), "echo", (FLOATS,))
    request = pair.listen()
    assert request is not None
    (ref,) = request.tensors
    pair.answering.tags |= {"a": ref, "b": ref, "gone": TensorRef("gone", ref.segment, ref.seq + 1)}
    pair.answering.tags |= {"liar": TensorRef("liar", ref.segment, 2**80), "unmapped": TensorRef("x", "x.tsr", 1)}
    assert pair.answerer.fetch_again(words) is None
    found = pair.answerer.fetch_again(" a  b a ")
    assert found is not None
    assert [each.tolist() for each in found] == [FLOATS.tolist()] * 3
    assert pair.answerer.fetch_again("") == pair.answerer.fetch_again("  ") == []


# -- the status --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["exit\n", "busy: epoch 3 of 900\n", "starting\n", "error: x\n"])
def test_a_status_that_a_word_cannot_replace_is_left_to_the_long_way(pair: Pair, text: str) -> None:
    pair.worker.status[:] = text.encode().ljust(len(pair.worker.status))
    pair.controller.send(Request(1, "echo"))
    assert pair.listen() is None
    assert bytes(pair.worker.status).rstrip() == text.strip().encode()
    assert pair.worker.receive(0, never) is not None


def test_the_wish_that_the_worker_end_is_heard_without_a_message(pair: Pair) -> None:
    later = threading.Timer(0.05, lambda: (pair.controller.write_status(Status.EXIT), pair.controller.ring()))
    later.start()
    assert pair.answerer.serve(Handler(lambda _: True)) is None
    later.join()


@pytest.mark.parametrize("status", [Status.EXITING, Status.TERMINATED])
def test_a_worker_that_says_that_it_ends_while_it_waits_ends(pair: Pair, status: Status) -> None:
    later = threading.Timer(0.05, lambda: (pair.worker.write_status(status), pair.worker.wake()))
    later.start()
    assert pair.answerer.serve(Handler(lambda _: True)) is None
    later.join()


@pytest.mark.parametrize("status", [Status.EXIT, Status.EXITING, Status.READY, Status.ERROR])
def test_what_a_handler_says_of_its_status_is_left_to_the_long_way(pair: Pair, status: Status) -> None:
    pair.controller.send(Request(1, "echo"))
    left = pair.serve(lambda _: pair.worker.write_status(status) or True)
    assert left[2:] == (True, None)
    assert pair.worker.read_status().status is status
    assert decode_response(pair.page("response")).seq == 0


def test_what_a_handler_raises_is_left_to_the_long_way_with_all_that_it_holds(pair: Pair) -> None:
    def fail(_: Answer) -> bool:
        raise ZeroDivisionError("by hand")

    def stop(_: Answer) -> bool:
        raise KeyboardInterrupt

    pair.controller.send(Request(1, "echo"))
    request, _, is_known, error = pair.serve(fail)
    assert (request.seq, is_known) == (1, None)
    with pytest.raises(ZeroDivisionError, match="by hand") as caught:
        raise error
    assert caught.traceback[-1].name == "fail"
    pair.worker.write_status(Status.ERROR)
    pair.controller.send(Request(2, "echo"))
    with pytest.raises(KeyboardInterrupt):
        pair.serve(stop)


@pytest.mark.parametrize("is_known", [False, None, 1, "yes"])
def test_a_handler_that_does_not_say_true_is_left_to_the_long_way(pair: Pair, is_known: object) -> None:
    pair.controller.send(Request(1, "echo"))
    assert pair.serve(lambda _: is_known)[2] is is_known
    assert decode_response(pair.page("response")).seq == 0


# -- what others store -------------------------------------------------------------------------------------------------

USUAL_REQUEST = b'{"seq":       3,"command":"echo","parameters":"a $0","timestamp":17,"tensors":[["$0","s_1.tsr",5]]}'
USUAL_RESPONSE = (
    b'{"seq":       3,"command":"echo","result":"ok","message":"m","timestamp":17,"tensors":[["","r_1.tsr",5]]}'
)


@st.composite
def changed(draw: st.DrawFn, line: bytes) -> bytes:
    """A line with a few bytes replaced, removed, doubled or put in."""
    data = bytearray(line)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(16, len(data) - 1))
        length = draw(st.integers(0, 8))
        part = bytes(data[at : at + length])
        new = draw(
            st.just(b"") | st.just(part * 2) | st.binary(max_size=2) | st.sampled_from([b"\\", b'"', b"0", b" ", b"}"])
        )
        data[at : at + length] = new
        data = data or bytearray(b"}")
    return bytes(data).replace(b"\n", b"?")


@given(changed(USUAL_REQUEST))
def test_a_garbled_request_is_never_taken_for_another_than_the_long_way_makes_of_it(shared: Pair, line: bytes) -> None:
    shared.hear_late()
    shared.worker.write_status(Status.READY)
    shared.write("request", b'{"seq":       2}')
    shared.hear_late()
    shared.write("request", line)
    heard = shared.listen()
    shared.hear_late()
    if heard is not None:
        assert heard == decode_request(line)
        shared.answering.end(heard, is_kept=False)
        shared.answering.tags.clear()


@given(changed(USUAL_RESPONSE))
def test_a_garbled_answer_is_never_taken_for_another_than_the_long_way_makes_of_it(shared: Pair, line: bytes) -> None:
    shared.write("response", b'{"seq":       2}')
    shared.hear_late()
    shared.write("response", line)
    heard = shared.asker.hear(3, 0.0)
    shared.hear_late()
    if heard is not None:
        response = decode_response(line)
        assert response.tensors == []  # there is no such segment
        assert heard == (response, [])


@pytest.mark.parametrize(
    "rest",
    [
        *(
            b',"command":"echo"} ',
            b',"command":"echo"}x',
            b',"command":"echo"}}',
            b',"command":"echo"',
            b',"command":"echo",}',
        ),
        *(
            b',"command":"echo","timestamp":017}',
            b',"command":"echo","timestamp":-1}',
            b',"command":"echo","timestamp":}',
        ),
        *(b',"command":"echo","timestamp":1e3}', b',"command":"echo","timestamp":1234567890123456789}'),
        *(
            b',"command":"e\x01o"}',
            b',"command":"e\xffo"}',
            b',"command":"e\\u0041"}',
            b',"command":"echo","command":"x"}',
        ),
        *(
            b',"command":"echo","tensors":[]}',
            b',"command":"echo","tensors":[["a","b",05]]}',
            b',"tensors":[["a","b",5]]}',
        ),
        *(b',"command":"echo","tensors":[["a","b"]]}', b',"command":"echo","tensors":[["a","b",5],]}'),
        *(b',"command":"echo","tensors":[["a","b",5,6]]}', b',"command":"echo","tensors":[["a",5,"b"]]}'),
        *(b',"command":"exit"}', b',"command":""}', b',"cmd":"echo"}', b',"timestamp":5,"command":"echo"}', b"}"),
    ],
)
def test_a_line_in_any_other_form_than_the_usual_one_is_left_to_the_long_way(pair: Pair, rest: bytes) -> None:
    pair.write("request", b'{"seq":       3' + rest)
    pair.write("response", (b'{"seq":       3' + rest).replace(b'"exit"', b"exit").replace(b'""', b'"\\n"'))
    assert pair.listen() is None
    assert pair.worker.receive(0, never) is not None
    if rest != b"}":  # an answer may be empty
        assert pair.asker.hear(3, 0.0) is None
        assert pair.controller.receive(0, never) is not None


def test_what_a_signal_handler_raises_comes_through_whatever_it_is(pair: Pair) -> None:
    def raise_it(*_: Any) -> None:
        raise ValueError("from the handler")

    previous = signal.signal(signal.SIGUSR1, raise_it)
    try:
        for wait in (lambda: pair.asker.hear(3, 60.0), lambda: pair.answerer.serve(Handler(lambda _: True))):
            later = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
            later.start()
            with pytest.raises(ValueError, match="from the handler"):
                wait()
            later.join()
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_a_message_without_an_end_is_left_to_the_long_way(pair: Pair) -> None:
    endless = b'{"seq":       3,"command":"' + b"x" * PAGE_NBYTES
    pair.write("response", endless)
    pair.write("request", endless)
    assert pair.asker.hear(3, 0.0) is None
    assert pair.listen() is None
    for channel in (pair.controller, pair.worker):
        with pytest.raises(BadMessage, match="no end"):
            channel.receive(0, never)


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_a_session_that_goes_on_as_before_takes_no_long_way(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("the long way")

    x = np.arange(100.0)
    with PythonSession(TOOLS, "usual", quiet_mode=True) as session:

        def work() -> None:
            assert session.fetch_response("hello you") == "Hello You"
            assert session.calculate("echo", x, x).__class__ is list
            loan = session.empty(100, "float64")
            loan[:] = 3
            assert session.calculate("echo", loan).tolist() == [3.0] * 100
            session.send_request("hello again")
            assert session.wait_for_response() == "Hello Again"

        for _ in range(5):
            work()
        exchange: Any = session._exchange
        with monkeypatch.context() as patch:
            for owner, name in (
                (exchange.store, "prepare"),
                (exchange.store, "decode"),
                (exchange.store, "receive"),
                (exchange.store, "empty"),
                (exchange.store._pool, "publish"),
                (exchange.place.run.channel, "send"),
                (exchange.place.run.channel, "receive"),
            ):
                patch.setattr(owner, name, forbidden)
            for _ in range(5):
                work()


def test_an_unusual_answer_that_nobody_waits_for_costs_the_next_request_no_time(workspace: Path, gate: Gate) -> None:
    with PythonSession(TOOLS, "orphan", quiet_mode=True) as session:
        session.fetch_response("hello you")
        exchange: Any = session._exchange
        run = exchange.place.run
        exchange._seq += 1
        assert run.asker.ask(exchange._seq, "fail on purpose", ())  # as if an interrupt had lost track of it
        assert run.channel.wait_status(lambda line: line.status is Status.ERROR, 60_000, never) is not None
        later = threading.Timer(0.2, gate.let_go, ["late"])
        later.start()
        assert session.fetch_response(gate.message) == "late"
        later.join()
        assert not session.new_response()


@pytest.mark.parametrize("is_short", [True, False])
def test_a_handler_that_asks_something_itself_has_no_request_sent_twice(
    workspace: Path, gate: Gate, tmp_path: Path, is_short: bool
) -> None:
    asked: list[str] = []
    with PythonSession(TOOLS, "nested", quiet_mode=True) as session:
        session.fetch_response("hello you")
        if not is_short:
            session._exchange.place.run.asker = None  # type: ignore[union-attr]

        def handle(*_: Any) -> None:
            gate.let_go("late")
            asked.append(session.fetch_response("say from the handler"))

        previous = signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            with pytest.raises(TimeoutError):
                session.fetch_response(gate.message, 1000)
        finally:
            signal.signal(signal.SIGALRM, previous)
        assert asked == ["from the handler"]
        assert session.fetch_response("say on") == "on"  # the gate would hold it up if it were asked for again


def test_a_handler_that_ends_the_session_in_a_copy_gets_no_freed_memory_sent(workspace: Path) -> None:
    large = np.zeros(64 << 20, np.uint8)
    with PythonSession(TOOLS, "ended", quiet_mode=True) as session:
        for _ in range(3):
            session.calculate("echo", FLOATS, large)
        pages = workspace / "python_session" / "tr_session_ended" / "request.json"
        with open(pages, "rb") as file:
            page = mmap.mmap(file.fileno(), PAGE_NBYTES, prot=mmap.PROT_READ)

        def echo_for_ever() -> None:
            while True:
                session.calculate("echo", FLOATS, large)

        previous = signal.signal(signal.SIGALRM, lambda *_: session.close())
        signal.setitimer(signal.ITIMER_REAL, 0.002)  # a copy takes longer
        try:
            with pytest.raises((SessionNotStarted, WorkerDied)):
                echo_for_ever()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        decode_request(page[:].partition(b"\n")[0])
        page.close()


@pytest.mark.parametrize("other", [np.zeros((300, 3)).T, np.float64(3), "text", np.arange(7)])
def test_a_request_that_takes_the_long_way_copies_each_tensor_once(workspace: Path, other: Any) -> None:
    x = np.arange(1000.0)
    with PythonSession(TOOLS, "copies", quiet_mode=True) as session:
        for _ in range(3):
            session.calculate("echo", x)
        before = session.stats()
        try:
            session.calculate("echo", x, other)
        except UnsupportedTensor:
            pass
        after = session.stats()
        assert after.copied_nbytes - before.copied_nbytes <= x.nbytes + getattr(other, "nbytes", 0)
        assert after.published - before.published <= 2
        with pytest.raises(RemoteError):  # too long for the short cut
            session.calculate("digest " + "x" * 5000, x)
        assert session.stats().copied_nbytes - after.copied_nbytes == x.nbytes


@pytest.mark.parametrize("message", ["", '{"cmd": 3}', "fail on purpose", "nothing", "hello \n"])
def test_after_any_request_what_tags_let_go_of_is_used_again(workspace: Path, message: str) -> None:
    with PythonSession(TOOLS, "tags", quiet_mode=True) as session:
        session.fetch_response("hello you")
        try:
            session.fetch_response(message)
        except (BadMessage, RemoteError):
            pass
        for number in range(30):
            session.send_tensor(np.full(9, number), "tag")
        assert session.stats().segments < 5
        assert session.fetch_tensor("echo tag").tolist() == [29] * 9


def test_a_late_answer_is_not_taken_for_the_next_ones(workspace: Path, gate: Gate) -> None:
    with PythonSession(TOOLS, "late", quiet_mode=True) as session:
        for _ in range(3):
            session.calculate("echo", FLOATS)
        with pytest.raises(TimeoutError, match=r"within 20 ms"):
            session.fetch_response(gate.message, 20)
        segments = session.stats().segments
        with pytest.raises(TypeError):
            session.fetch_response("hello you", "soon")  # type: ignore[arg-type]
        gate.let_go("late")
        for _ in range(3):
            assert session.calculate("echo", FLOATS).tolist() == FLOATS.tolist()
        assert not session.new_response()
        assert session.stats().segments <= segments + 1


# -- files -------------------------------------------------------------------------------------------------------------

ITEMSIZES = files._ITEMSIZES


@given(array=arrays(), checksum=st.booleans())
def test_a_usual_file_is_opened_by_the_short_cut_just_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, checksum: bool
) -> None:
    path = str(tmp_path_factory.getbasetemp() / "usual.tsr")
    save(path, array, checksum=checksum)
    header = codec.decode(Path(path).read_bytes(), file_nbytes=os.path.getsize(path))
    for is_private in (False, True):
        found = native.open_usual(path, ITEMSIZES, is_private)
        if array.size == 0:
            assert found is None
            continue
        assert found is not None
        mapping, *layout = found
        assert layout == [header.dtype.code, header.shape, header.payload_offset]
        assert len(memoryview(mapping)) == header.file_nbytes
        assert memoryview(mapping).readonly is not is_private
    assert bits(load(path)) == bits(array)


@given(st.data())
def test_a_changed_file_is_never_opened_by_the_short_cut_unless_the_long_way_would(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(files.TABLE))
    shape = data.draw(st.sampled_from([(), (3,), (2, 2), (1,) * 16]))
    raw = bytearray(
        codec.encode_v2(
            dtype,
            shape,
            created_ns=5,
            seq=data.draw(st.sampled_from([1, 7])),
            payload_checksum=data.draw(st.sampled_from([None, 9])),
            is_segment=data.draw(st.booleans()),
        )
    )
    offsets = st.sampled_from([0, 4, 8, 12, 16, 20, 24, 32, 48, 52, 56, 64, 72, 80, 88, 96, 120, 128, 136, 248])
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(offsets)
        raw[at : at + 4] = data.draw(
            st.sampled_from([0, 1, 2, 3, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
        ).to_bytes(4, "little")
    if data.draw(st.booleans()):  # so that the checksum does not hide what else is wrong
        raw[60:64] = files.zlib.crc32(raw[128:256], files.zlib.crc32(raw[:60])).to_bytes(4, "little")
    raw += bytes(
        data.draw(st.sampled_from([0, 16, 64])) if data.draw(st.booleans()) else int(np.prod(shape)) * dtype.itemsize
    )
    path = tmp_path_factory.getbasetemp() / "changed.tsr"
    path.write_bytes(raw)
    found = native.open_usual(str(path), ITEMSIZES, False)
    if found is not None:
        header = codec.decode(bytes(raw), file_nbytes=len(raw))
        assert not header.is_segment
        assert found[1:] == (header.dtype.code, header.shape, header.payload_offset)


@dataclass(frozen=True)
class Wrong:
    """A path that leads to no usual file."""

    name: str

    def make(self, directory: Path) -> str:
        path = directory / self.name
        if self.name == "directory":
            path.mkdir()
        elif self.name == "fifo":
            os.mkfifo(path)
        elif self.name == "short":
            path.write_bytes(b"TSR!\2\0\0\0")
        elif self.name == "v1":
            save(path, FLOATS, version=1)
        return str(path)


@pytest.mark.parametrize("wrong", [Wrong(name) for name in ("missing", "directory", "fifo", "short", "v1")])
def test_a_path_to_no_usual_file_keeps_nothing_open(tmp_path: Path, wrong: Wrong) -> None:
    path = wrong.make(tmp_path)
    fds = os.listdir("/proc/self/fd")
    assert native.open_usual(path, ITEMSIZES, False) is None
    assert native.open_usual(os.fsencode(path), ITEMSIZES, True) is None
    assert os.listdir("/proc/self/fd") == fds


def test_a_short_cut_that_the_system_refuses_is_left_to_the_long_way(tmp_path: Path) -> None:
    path = str(tmp_path / "x.tsr")
    save(path, FLOATS)
    os.close(lowest := os.open(path, os.O_RDONLY))  # the next one that there is
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        assert native.open_usual(path, ITEMSIZES, False) is None
        with pytest.raises(OSError, match="Too many open files"):
            load(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert load(path).tolist() == FLOATS.tolist()
