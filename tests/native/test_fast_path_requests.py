"""Requests by the fast path do what the slow path does, byte for byte, or are left to it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from fast_path_pair import FLOATS, MAX_TENSORS, Handler, Pair, forms, in_a_slot, named, refs, texts, words
from hypothesis import given
from hypothesis import strategies as st
from support import never

from tr_mmap import native
from tr_mmap.errors import BadMessage
from tr_mmap.native import Pending
from tr_mmap.protocol.commands import parse_command
from tr_mmap.protocol.messages import Request, decode_request
from tr_mmap.protocol.named_values import FORM_NAMED, pack
from tr_mmap.protocol.status import Status
from tr_mmap.wire.messages import MAX_MESSAGE_SEQ, RING_SLOTS

pytestmark = pytest.mark.skipif(not native.IS_COMPILED, reason="the fast paths are the extension's")


@given(command=texts, parameters=texts)
def test_a_request_by_the_fast_path_is_what_the_slow_path_sends(shared: Pair, command: str, parameters: str) -> None:
    message = f"{command} {parameters}"
    shared.receive_late()
    before = shared.sent("request")
    pending = shared.send(message)
    if pending is None:
        assert shared.sent("request") == before
        return
    line = shared.sent("request")
    request = decode_request(line)
    assert (request.seq, request.command, request.parameters) == (pending.seq, *parse_command(message))
    assert line == in_a_slot(request)
    assert line == shared.worker.receive(0, never)


@given(values=named, count=st.integers(0, 3), words=st.just("") | texts)
def test_values_by_name_by_the_fast_path_are_what_the_slow_path_sends(
    shared: Pair, values: dict[str, Any], count: int, words: str
) -> None:
    shared.receive_late()
    shared.pass_by_slow_path((FLOATS,) * 3)
    values |= {f"tensor {number}": FLOATS + number for number in range(count)}
    before = shared.sent("request")
    pending = shared.send(f"take {words}" if words else "take", (values,))
    if pending is None:
        assert shared.sent("request") == before
        return
    assert not words
    text, tensors = pack(values)
    line = shared.sent("request")
    request = decode_request(line)
    assert (request.command, request.parameters, request.form) == ("take", text, FORM_NAMED)
    assert line == in_a_slot(request)
    assert [ref.tag for ref in request.tensors] == [f"${number}" for number in range(count)]
    shared.worker.write_status(Status.READY)
    handler = Handler(lambda _: None)
    assert shared.serve(handler)[0] == request
    assert (handler.is_named, handler.seen, handler.asked) == (True, [("take", text)], [request])
    assert [shared.answering.fetch(ref.tag, "numpy").tolist() for ref in request.tensors] == list(
        map(np.ndarray.tolist, tensors)
    )
    shared.answering.end(request, is_kept=False)


@pytest.mark.parametrize("values", [{"x": {}}, {3: 1}, {"x": 2**70}])
def test_values_that_no_message_holds_are_the_same_error_by_either_path(pair: Pair, values: dict[Any, Any]) -> None:
    errors = []
    for send in (pair.send, pair.send_slowly):
        with pytest.raises(BadMessage) as raised:
            send("take", (values,))
        errors.append(str(raised.value))
    assert errors[0] == errors[1]
    assert (pair.in_flight, pair.counters.sent, pair.asking._fast_held) == ({}, 0, [])


@pytest.mark.parametrize("count", [1, MAX_TENSORS - 1, MAX_TENSORS])
def test_tags_are_announced_by_the_fast_path_as_by_the_slow_path(pair: Pair, count: int) -> None:
    tags = [f"t{number}" for number in range(count)]
    pair.pass_by_slow_path((FLOATS,) * (count + 1))
    for number, tag in enumerate(tags):
        pair.asking.put(tag, FLOATS + number)
    pending = pair.send("echo", (FLOATS,))
    if count == MAX_TENSORS:  # the message has no place for one more
        assert pending is None
        assert list(pair.asking.unannounced) == tags
        assert pair.send("echo")
        return
    assert pending
    assert pair.asking.unannounced == {}
    request = decode_request(pair.sent("request"))
    assert pair.sent("request") == in_a_slot(request)
    assert pair.listen() == request
    assert [ref.tag for ref in request.tensors] == ["$0", *tags]
    assert [pair.answering.fetch(tag, "numpy")[0] for tag in tags] == list(range(count))
    pair.answering.end(request, is_kept=False)
    assert list(pair.answering.tags) == tags
    pair.worker.write_status(Status.READY)
    for tag in tags[1:]:
        pair.asking.drop(tag)
    pair.asking.put(tags[0], FLOATS + 100)
    assert pair.send("echo")
    request = decode_request(pair.sent("request"))
    assert pair.sent("request") == in_a_slot(request)
    assert (request.drops, [ref.tag for ref in request.tensors]) == (tags[1:], tags[:1])
    assert pair.listen() == request
    assert list(pair.answering.tags) == tags[:1]
    assert pair.answering.fetch(tags[0], "numpy")[0] == 100
    assert pair.asking.unannounced == {}


def test_a_tag_that_another_thread_is_about_to_change_is_left_to_the_slow_path(pair: Pair) -> None:
    pair.asking.put("a", FLOATS)
    pair.asking.unannounced["a"] = 0  # in the middle of a drop
    assert not pair.send("echo")
    pair.asking.unannounced["a"] = 1  # in the middle of the next put: what is announced is what carries the tag now
    assert pair.send("echo")
    (ref,) = decode_request(pair.sent("request")).tensors
    assert ref.seq == pair.asking.tagged["a"].seq
    del pair.asking.tagged["a"]
    pair.asking.unannounced["a"] = 1  # in the middle of the next drop
    assert not pair.send("echo")
    draft = pair.asking.prepare(None, "echo", "", ())
    assert pair.asking.request(1, draft).tensors == []


ESCAPED = ['x "', "x \\", 'say "a\\b"\tc\nd\x08\x0c\re', "x aé\n🙂."]


@pytest.mark.parametrize("message", ["echo", "hello world", "f a b  c", "_x9 {} [1,2]", "say grüße x", *ESCAPED])
def test_most_messages_take_the_fast_path(pair: Pair, message: str) -> None:
    assert pair.send(message)
    assert pair.listen() == Request(1, *parse_command(message), decode_request(pair.sent("request")).timestamp)


def test_texts_alike_in_length_and_end_are_told_apart(pair: Pair) -> None:
    """The fast path keeps recent texts by these two."""
    for message in ["ab_1 wxyz", "cd_1 axyz", "ab_1 xüz", "cd_1 wxyz", "ab_1 wxyz", "ab_1 wxyz"]:
        assert pair.send(message)
        asked = pair.listen()
        assert asked is not None
        assert f"{asked.command} {asked.parameters}" == message
        pair.worker.write_status(Status.READY)


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
            "x \n",
            "x \x01y",
            "1x y",
            "x.y z",
            "ü x",
        ),
        *("x \u2003y", "x y\xa0", "x " + "y" * 4096, "x \ud800", b"x", None, 3, {"cmd": "x"}, '{"cmd": "x"}'),
    ],
)
def test_a_message_that_needs_thought_is_left_to_the_slow_path(pair: Pair, message: Any) -> None:
    before = pair.sent("request")
    assert not pair.send(message)
    assert pair.counters.sent == len(pair.in_flight) == 0
    assert pair.sent("request") == before


def test_tensors_are_lent_with_a_request_or_none_of_them_is(pair: Pair) -> None:
    pair.pass_by_slow_path((FLOATS, FLOATS + 1))
    pool = pair.asking._pool
    other = np.arange(3)
    for tensors in ((FLOATS, other), (other, FLOATS), (FLOATS, "text"), (FLOATS,) * (MAX_TENSORS + 1), [FLOATS], None):
        assert not pair.send("echo", tensors)
        assert pair.asking._fast_held == []
        assert pool.stats().free_nbytes == pool.stats().nbytes
    pending = pair.send("echo 2.5", (FLOATS, FLOATS + 1))
    request = pair.listen()
    assert pending is not None
    assert request is not None
    assert request.parameters == "2.5 $0 $1"
    assert [ref.tag for ref in request.tensors] == ["$0", "$1"]
    assert [pair.answering.fetch(tag, "numpy").tolist() for tag in ("$0", "$1")] == [
        FLOATS.tolist(),
        (FLOATS + 1).tolist(),
    ]
    assert [segment.name for segment in pending.held] == [ref.segment for ref in request.tensors]
    assert pair.asking._fast_held == []


def test_nothing_is_asked_of_a_worker_that_has_ended(pair: Pair) -> None:
    pair.deaths.append(1)
    assert not pair.send("echo")
    assert pair.controller_path.call("echo", (), 60.0, "numpy") is None
    assert pair.counters.sent == 0


def test_as_many_requests_are_sent_as_may_be_in_flight(pair: Pair) -> None:
    pair.counters.limit = 3
    sent = [pair.send(f"echo {number}") for number in range(5)]
    assert [each is not None for each in sent] == [True] * 3 + [False] * 2
    assert list(pair.in_flight.values()) == sent[:3]
    pair.counters.limit = RING_SLOTS
    pair.counters.blocked += 1  # the session is about to end, say
    assert not pair.send("echo")
    pair.counters.blocked -= 1


def test_a_number_that_is_in_use_is_not_used_again(pair: Pair) -> None:
    """As when the numbers begin again while an old request is in flight."""
    taken = pair.expect(2)
    assert pair.send("echo 1")
    pending: Pending = Pending("echo 2", "numpy")
    assert not pair.controller_path.send(pending, ())
    assert pair.in_flight[2] is taken
    pair.counters.seq = MAX_MESSAGE_SEQ
    pair.in_flight.pop(1)
    assert pair.controller_path.send(pending, ())
    assert (pending.seq, pending.order, pair.counters.seq) == (1, 1, 1)


def test_a_childs_fast_path_sends_nothing(pair: Pair) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(bool(pair.controller_path.send(Pending("echo"), ())))
    assert os.waitpid(pid, 0)[1] == 0


requests = st.builds(
    Request,
    command=texts,
    parameters=texts,
    timestamp=st.integers(0, 2**62),
    tensors=st.lists(refs, max_size=20),
    drops=st.just([]) | st.lists(texts, max_size=20),
    form=forms,
    mac=st.just("") | words,
)


@given(requests)
def test_any_request_is_heard_by_the_fast_path_as_by_the_slow_path(shared: Pair, request: Request) -> None:
    request.seq = shared.next_seq()
    shared.worker.write_status(Status.READY)
    shared.controller.send(request)
    heard = shared.listen()
    line = shared.worker.receive(0, never)
    if heard is None:
        assert line is not None  # it waits to be taken
        assert shared.worker.read_status().status is Status.READY
        return
    assert line is None
    assert heard == decode_request(shared.sent("request")) == request
    assert shared.worker.read_status().status is Status.BUSY
    left = {ref.tag: ref for ref in request.tensors if ref.tag not in request.drops}
    assert left.items() <= shared.answering.tags.items()
    assert shared.answering.tags.keys().isdisjoint(request.drops)
    shared.answering.end(request, is_kept=False)
    shared.answering.tags.clear()
