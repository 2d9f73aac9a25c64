"""Answers by the fast path do what the slow path does, byte for byte, or are left to it."""

from __future__ import annotations

import itertools
import threading

import pytest
from fast_path_pair import FLOATS, Pair, in_a_slot, refs, texts, words
from hypothesis import given
from hypothesis import strategies as st
from support import never

from tr_mmap import native
from tr_mmap.protocol.messages import Failure, FailureKind, Response, TensorRef, decode_response
from tr_mmap.protocol.status import Status
from tr_mmap.worker.reply import Reply

pytestmark = pytest.mark.skipif(not native.IS_COMPILED, reason="the fast paths are the extension's")


@given(command=texts, result=texts, message=texts)
def test_an_answer_by_the_fast_path_is_what_the_slow_path_sends(
    shared: Pair, command: str, result: str, message: str
) -> None:
    seq = next(shared.seq)
    shared.receive_late()
    shared.worker.write_status(Status.READY)
    assert shared.controller_path.send(seq, "asked", ())
    before = shared.sent("response")

    def handle(answer: Reply) -> bool:
        answer.command, answer.result, answer.message, answer.complaint = command, result, message, "complaint"
        return True

    left = shared.serve(handle)
    if left is not True:
        request, answer, is_known, error = left
        assert (request.seq, request.command, is_known, error) == (seq, "asked", True, None)
        assert answer == Reply(command, result, message, "complaint")
        assert shared.sent("response") == before
        assert shared.worker.read_status().status is Status.BUSY
        return
    line = shared.sent("response")
    response = decode_response(line)
    assert response == Response(seq, command or "asked", result, message or "complaint", response.timestamp)
    assert line == in_a_slot(response)
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
def test_any_answer_is_heard_by_the_fast_path_as_by_the_slow_path(
    shared: Pair, response: Response, is_awaited: bool
) -> None:
    response.seq = wanted = next(shared.seq)
    if not is_awaited:
        wanted = next(shared.seq)
    shared.receive_late()
    shared.worker.send(response)
    heard = shared.controller_path.receive(wanted, 0.0)
    if heard is not None:
        assert heard == (response, [])
        assert heard[0] == decode_response(shared.sent("response"))
        assert shared.controller.receive(0, never) is None
    elif is_awaited:
        assert shared.controller.receive(0, never) is not None  # it waits to be taken


def test_an_answer_to_an_earlier_request_is_passed_over(pair: Pair) -> None:
    pair.worker.send(Response(1, "late"))
    later = threading.Timer(0.05, pair.worker.send, [Response(2, "right")])
    later.start()
    heard = pair.controller_path.receive(2, 60.0)
    later.join()
    assert heard == (Response(2, "right"), [])


def test_tensors_go_there_and_back_without_the_slow_path(pair: Pair) -> None:
    pair.pass_by_slow_path((FLOATS,))
    for number in itertools.islice(pair.seq, 50):
        loan = pair.asking.quick_loan((8,), "float32") if number % 2 else None
        loan = pair.asking.empty((8,), "float32", "numpy") if loan is None else loan
        loan[:] = number
        assert pair.controller_path.send(number, "echo", (loan,))
        del loan

        def handle(_: Reply, number: int = number) -> bool:
            (view,) = pair.worker_path.quick_fetch("$0") or [pair.answering.fetch("$0", "numpy")]
            assert view.tolist() == [number] * 8
            assert not view.flags.writeable
            pair.answering.publish((view,))
            return True

        assert pair.serve(handle) is True
        assert pair.answering.tags == {}
        heard = pair.controller_path.receive(number, 0.0)
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
def test_tags_that_need_thought_are_left_to_the_slow_path(pair: Pair, words: str) -> None:
    pair.pass_by_slow_path((FLOATS,))
    assert pair.controller_path.send(next(pair.seq), "echo", (FLOATS,))
    request = pair.listen()
    assert request is not None
    (ref,) = request.tensors
    pair.answering.tags |= {"a": ref, "b": ref, "gone": TensorRef("gone", ref.segment, ref.seq + 1)}
    pair.answering.tags |= {"liar": TensorRef("liar", ref.segment, 2**80), "unmapped": TensorRef("x", "x.tsr", 1)}
    assert pair.worker_path.quick_fetch(words) is None
    found = pair.worker_path.quick_fetch(" a  b a ")
    assert found is not None
    assert [each.tolist() for each in found] == [FLOATS.tolist()] * 3
    assert pair.worker_path.quick_fetch("") == pair.worker_path.quick_fetch("  ") == []
