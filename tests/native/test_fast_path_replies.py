"""Answers by the fast path do what the slow path does, byte for byte, or are left to it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from fast_path_pair import FLOATS, Pair, forms, in_a_slot, refs, texts, words
from hypothesis import given
from hypothesis import strategies as st

from tr_mmap import native
from tr_mmap.protocol.messages import Failure, FailureKind, Response, TensorRef, decode_response
from tr_mmap.protocol.status import Status
from tr_mmap.worker.reply import Reply

pytestmark = pytest.mark.skipif(not native.IS_COMPILED, reason="the fast paths are the extension's")


@given(command=texts, result=texts, message=texts, form=forms)
def test_an_answer_by_the_fast_path_is_what_the_slow_path_sends(
    shared: Pair, command: str, result: str, message: str, form: str
) -> None:
    shared.receive_late()
    shared.worker.write_status(Status.READY)
    pending = shared.send("asked")
    assert pending is not None
    seq = pending.seq
    before = shared.sent("response")

    def handle(answer: Reply) -> bool:
        answer.command, answer.result, answer.message, answer.complaint = command, result, message, "complaint"
        answer.form = form
        return True

    left = shared.serve(handle)
    if left is not True:
        request, answer, is_known, error = left
        assert (request.seq, request.command, is_known, error) == (seq, "asked", True, None)
        assert answer == Reply(command, result, message, "complaint", form=form)
        assert shared.sent("response") == before
        assert shared.worker.read_status().status is Status.BUSY
        return
    line = shared.sent("response")
    response = decode_response(line)
    said = seq, command or "asked", result, message or "complaint", response.timestamp
    assert response == Response(*said, form=form)
    assert form != "other"
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
    form=forms,
    mac=st.just("") | words,
)


@given(responses, st.booleans())
def test_any_answer_is_heard_by_the_fast_path_as_by_the_slow_path(
    shared: Pair, response: Response, is_awaited: bool
) -> None:
    shared.receive_late()
    response.seq = shared.next_seq()
    pending = shared.expect(response.seq if is_awaited else shared.next_seq())
    shared.worker.send(response)
    if shared.hear():
        assert (pending.outcome, list(shared.in_flight.values())) == (None, [pending])
        assert shared.answer() is not None  # it waits to be taken
        return
    assert is_awaited
    assert pending.outcome == (response, [])
    assert pending.outcome[0] == decode_response(shared.sent("response"))
    assert (shared.answer(), shared.in_flight) == (None, {})


def test_answers_reach_their_requests_in_whatever_order_they_come(pair: Pair) -> None:
    sent = [pair.send(f"echo {number}") for number in range(5)]
    done: list[Any] = []
    for number in (2, 0, 4, 1, 3):
        pending = sent[number]
        assert pending is not None
        pending.on_done = done.append
        pair.worker.send(Response(pending.seq, "echo", str(number)))
    assert not pair.hear()
    assert [each.outcome[0].result for each in done] == ["2", "0", "4", "1", "3"]
    assert [each.outcome[0].result for each in sent if each is not None] == ["0", "1", "2", "3", "4"]
    assert pair.in_flight == {}


def test_a_call_takes_the_answers_to_other_requests_until_its_own_comes(pair: Pair) -> None:
    other = pair.expect(pair.next_seq())
    pair.worker.send(Response(other.seq, "early"))
    later = threading.Timer(0.05, pair.worker.send, [Response(other.seq + 1, "right")])
    later.start()
    heard = pair.controller_path.call("echo", (), 60.0, "numpy")
    later.join()
    assert heard == (Response(other.seq + 1, "right"), [])
    assert other.outcome == (Response(other.seq, "early"), [])


def test_threads_that_wait_for_an_answer_are_woken_by_the_one_that_consumes_it(pair: Pair) -> None:
    for message in ("echo 1", "echo 2"):
        pending = pair.send(message)
        assert pending is not None
        pair.worker.send(Response(pending.seq, "echo"))
    pair.consuming.queue.append(None)  # type: ignore[arg-type] # one that waits
    assert not pair.hear()
    assert pair.consuming.wakes == 1
    assert not pair.hear()
    assert pair.consuming.wakes == 1  # there was nothing for it
    pair.consuming.queue.clear()
    other = pair.expect(pair.next_seq())
    other.on_done = lambda _: pair.consuming.queue.append(None)  # type: ignore[arg-type] # it has begun to wait
    pair.worker.send(Response(other.seq, "early"))
    assert pair.controller_path.call("echo", (), 0.0, "numpy").seq == other.seq + 1
    assert pair.consuming.wakes == 3  # when the answer of the other is there, and at the end
    pair.consuming.queue.clear()


def test_a_call_leaves_what_needs_thought_and_its_own_request_to_the_slow_path(pair: Pair) -> None:
    pair.worker.send(Response(pair.next_seq(), "late"))  # nobody waits for it
    pending = pair.controller_path.call("echo", (), 60.0, "numpy")
    assert list(pair.in_flight.values()) == [pending]
    assert decode_response(pair.answer() or b"").command == "late"
    pair.worker.send(Response(pending.seq, "right"))
    assert not pair.hear()
    assert pending.outcome == (Response(pending.seq, "right"), [])


@pytest.mark.parametrize("is_abandoned", [False, True])
def test_an_answer_that_nobody_can_use_is_left_to_the_slow_path(pair: Pair, is_abandoned: bool) -> None:
    pending = pair.send("echo")
    assert pending is not None
    pending.is_abandoned = is_abandoned
    if not is_abandoned:
        pair.asking.left.append((0, None))  # a tag has left a segment, which this answer may release
    pair.worker.send(Response(pending.seq, "echo"))
    assert pair.hear()
    pair.asking.left.clear()
    assert pending.outcome is None
    assert pair.answer() is not None


def test_tensors_go_there_and_back_without_the_slow_path(pair: Pair) -> None:
    pair.pass_by_slow_path((FLOATS,))
    for number in range(50):
        loan = pair.asking.quick_loan((8,), "float32", "numpy") if number % 2 else None
        loan = pair.asking.empty((8,), "float32", "numpy") if loan is None else loan
        loan[:] = number
        pending = pair.send("echo", (loan,))
        assert pending is not None
        del loan

        def handle(_: Reply, number: int = number) -> bool:
            (view,) = pair.worker_path.quick_fetch("$0", "numpy") or [pair.answering.fetch("$0", "numpy")]
            assert view.tolist() == [number] * 8
            assert not view.flags.writeable
            assert pair.worker_path.quick_send(view) is True
            return True

        assert pair.serve(handle) is True
        assert pair.answering.tags == {}
        if pair.hear():  # the first times, for the controller does not know that segment yet
            assert number < 6
            pair.asking.receive(decode_response(pair.answer() or b"").tensors[0], "numpy")
            pair.forget()
            continue
        assert pending.outcome[1][0].tolist() == [number] * 8
        assert (pending.held, pair.in_flight, pair.asking._fast_held) == (None, {}, [])
        del pending
    stats = pair.asking.stats()
    assert stats.free_nbytes == stats.nbytes
    assert stats.segments <= 3


@pytest.mark.parametrize("words", ["a,b", "a missing", "a\tb", "ä", "a b\u2003", "gone", "liar", "unmapped"])
def test_tags_that_need_thought_are_left_to_the_slow_path(pair: Pair, words: str) -> None:
    pair.pass_by_slow_path((FLOATS,))
    assert pair.send("echo", (FLOATS,))
    request = pair.listen()
    assert request is not None
    (ref,) = request.tensors
    pair.answering.tags |= {"a": ref, "b": ref, "gone": TensorRef("gone", ref.segment, ref.seq + 1)}
    pair.answering.tags |= {"liar": TensorRef("liar", ref.segment, 2**80), "unmapped": TensorRef("x", "x.tsr", 1)}
    assert pair.worker_path.quick_fetch(words, "numpy") is None
    found = pair.worker_path.quick_fetch(" a  b a ", "numpy")
    assert found is not None
    assert [each.tolist() for each in found] == [FLOATS.tolist()] * 3
    assert pair.worker_path.quick_fetch("", "numpy") == pair.worker_path.quick_fetch("  ", "numpy") == []


@pytest.mark.parametrize("is_tuple", [False, True])
def test_results_of_a_known_layout_are_added_in_one_call(pair: Pair, is_tuple: bool) -> None:
    pair.pass_by_slow_path((FLOATS,))
    result = (FLOATS + 1,) if is_tuple else FLOATS + 1
    assert pair.worker_path.quick_send(result) is True
    (ref,) = pair.answering.results
    assert pair.asking.receive(ref, "numpy").tolist() == (FLOATS + 1).tolist()
    pair.answering.withdraw()


class Several(tuple[Any, ...]):
    """A tuple that may do anything when it is read."""


@pytest.mark.parametrize(
    "result",
    [
        *(None, "text", 1.5, {"a": FLOATS}, [FLOATS], Several((FLOATS,)), np.float32(1)),
        *(FLOATS[::2], FLOATS.reshape(2, 4), FLOATS.view(np.matrix)),
        *((FLOATS, "text"), (FLOATS, None), (FLOATS, FLOATS.reshape(2, 4))),
    ],
    ids=str,
)
def test_results_that_need_thought_are_left_to_the_slow_path_as_a_whole(pair: Pair, result: object) -> None:
    pair.pass_by_slow_path((FLOATS,))
    assert pair.worker_path.quick_send(result) is None
    assert pair.answering.results == []


def test_what_a_forked_child_returns_goes_nowhere(pair: Pair) -> None:
    pair.pass_by_slow_path((FLOATS,))
    pair.worker_path.is_foreign = True
    assert pair.worker_path.quick_send(FLOATS) is None
    assert pair.answering.results == []
