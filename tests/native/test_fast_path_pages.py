"""What the fast paths find in a ring or on the status page: a line or a status that needs thought is left to the slow
path.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
from fast_path_pair import Handler, Pair
from hypothesis import given
from hypothesis import strategies as st
from support import never

from tr_mmap import native
from tr_mmap.errors import BadMessage
from tr_mmap.protocol.messages import Request, decode_request, decode_response
from tr_mmap.protocol.status import Status
from tr_mmap.wire.messages import RING_SLOT_NBYTES
from tr_mmap.worker.reply import Reply

pytestmark = pytest.mark.skipif(not native.IS_COMPILED, reason="the fast paths are the extension's")


@pytest.mark.parametrize("text", ["exit\n", "busy: epoch 3 of 900\n", "starting\n", "error: x\n"])
def test_a_status_that_a_word_cannot_replace_is_left_to_the_slow_path(pair: Pair, text: str) -> None:
    pair.worker.status[:] = text.encode().ljust(len(pair.worker.status))
    pair.controller.send(Request(1, "echo"))
    assert pair.listen() is None
    assert bytes(pair.worker.status).rstrip() == text.strip().encode()
    assert pair.worker.receive(0, never) is not None


def test_the_wish_that_the_worker_end_is_heard_without_a_message(pair: Pair) -> None:
    later = threading.Timer(0.05, lambda: (pair.controller.write_status(Status.EXIT), pair.controller.ring()))
    later.start()
    assert pair.worker_path.serve(Handler(lambda _: True)) is None
    later.join()


@pytest.mark.parametrize("status", [Status.EXITING, Status.TERMINATED])
def test_a_worker_that_says_that_it_ends_while_it_waits_ends(pair: Pair, status: Status) -> None:
    later = threading.Timer(0.05, lambda: (pair.worker.write_status(status), pair.worker.wake()))
    later.start()
    assert pair.worker_path.serve(Handler(lambda _: True)) is None
    later.join()


@pytest.mark.parametrize("status", [Status.EXIT, Status.EXITING, Status.READY, Status.ERROR])
def test_what_a_handler_says_of_its_status_is_left_to_the_slow_path(pair: Pair, status: Status) -> None:
    pair.controller.send(Request(1, "echo"))
    left = pair.serve(lambda _: pair.worker.write_status(status) or True)
    assert left[2:] == (True, None)
    assert pair.worker.read_status().status is status
    assert decode_response(pair.sent("response")).seq == 0


def test_what_a_handler_raises_is_left_to_the_slow_path_with_all_that_it_holds(pair: Pair) -> None:
    def fail(_: Reply) -> bool:
        raise ZeroDivisionError("by hand")

    def stop(_: Reply) -> bool:
        raise KeyboardInterrupt

    pair.controller.send(Request(1, "echo"))
    request, _, is_known, error = pair.serve(fail)
    assert (request.seq, is_known) == (1, None)
    with pytest.raises(ZeroDivisionError, match="by hand") as caught:
        raise error
    assert caught.traceback[-1].name == "fail"
    pair.worker.write_status(Status.ERROR)
    pair.controller.send(Request(2, "echo"))
    assert isinstance(pair.serve(stop)[3], KeyboardInterrupt)  # the slow path decides whether that ends the worker


@pytest.mark.parametrize("is_known", [False, None, 1, "yes"])
def test_a_handler_that_does_not_say_true_is_left_to_the_slow_path(pair: Pair, is_known: object) -> None:
    pair.controller.send(Request(1, "echo"))
    assert pair.serve(lambda _: is_known)[2] is is_known
    assert decode_response(pair.sent("response")).seq == 0


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


def numbered(line: bytes, seq: int) -> bytes:
    """The line with another number: two messages in one slot never have the same."""
    return line[:8] + b"%8d" % seq + line[16:]


@given(changed(USUAL_REQUEST))
def test_a_garbled_request_is_never_taken_for_another_than_the_slow_path_makes_of_it(shared: Pair, line: bytes) -> None:
    shared.receive_late()
    shared.worker.write_status(Status.READY)
    line = numbered(line, shared.next_seq())
    shared.write("request", line)
    heard = shared.listen()
    if heard is not None:
        assert heard == decode_request(line)
        shared.answering.end(heard, is_kept=False)
        shared.answering.tags.clear()


@given(changed(USUAL_RESPONSE))
def test_a_garbled_answer_is_never_taken_for_another_than_the_slow_path_makes_of_it(shared: Pair, line: bytes) -> None:
    shared.receive_late()
    pending = shared.expect(shared.next_seq())
    line = numbered(line, pending.seq)
    shared.write("response", line)
    is_left = shared.hear()
    assert is_left == (pending.outcome is None)
    if not is_left:
        response = decode_response(line)
        assert response.tensors == []  # there is no such segment
        assert pending.outcome == (response, [])


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
        *(b',"command":"e\\"', b',"command":"e\\x"}', b',"command":"e\\/"}', b',"command":"e\\', b',"command":"e\t"}'),
        *(b',"command":"echo","form":""}', b',"command":"echo","form":"other"}', b',"command":"echo","form":"named",}'),
        *(b',"command":"echo","drops":[]}', b',"command":"echo","drops":["a",]}', b',"command":"echo","drops":[1]}'),
        *(b',"command":"exit"}', b',"command":""}', b',"cmd":"echo"}', b',"timestamp":5,"command":"echo"}', b"}"),
    ],
)
def test_a_line_in_any_other_form_than_the_usual_one_is_left_to_the_slow_path(pair: Pair, rest: bytes) -> None:
    pair.write("request", b'{"seq":       3' + rest)
    pair.write("response", (b'{"seq":       3' + rest).replace(b'"exit"', b"exit").replace(b'""', b'"\\u000a"'))
    assert pair.listen() is None
    assert pair.worker.receive(0, never) is not None
    if rest != b"}":  # an answer may be empty
        pending = pair.expect(3)
        assert pair.hear()
        assert pending.outcome is None
        assert pair.answer() is not None


def test_what_a_signal_handler_raises_comes_through_whatever_it_is(pair: Pair) -> None:
    def raise_it(*_: Any) -> None:
        raise ValueError("from the handler")

    previous = signal.signal(signal.SIGUSR1, raise_it)
    try:
        for wait in (
            lambda: pair.worker_path.serve(Handler(lambda _: True)),
            lambda: pair.controller_path.call("echo", (), 60.0, "numpy"),
        ):
            later = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
            later.start()
            with pytest.raises(ValueError, match="from the handler"):
                wait()
            later.join()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert [each.is_abandoned for each in pair.in_flight.values()] == [True]
    assert pair.send("echo")  # whoever is next has its turn


def test_a_message_without_an_end_is_left_to_the_slow_path(pair: Pair) -> None:
    endless = b'{"seq":       3,"command":"' + b"x" * RING_SLOT_NBYTES
    pair.write("response", endless)
    pair.write("request", endless)
    pair.expect(3)
    assert pair.hear()
    assert pair.listen() is None
    for take in (pair.answer, lambda: pair.worker.receive(0, never)):
        with pytest.raises(BadMessage, match="no end"):
            take()
