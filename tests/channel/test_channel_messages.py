"""Messages over either channel: whole, once, in order, and no wait is longer than it should be."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from channel_ends import Ends, Stop
from support import BOUND_S, never

from tr_mmap.base import system
from tr_mmap.channel.files import FileChannel
from tr_mmap.channel.kinds import channel_kind
from tr_mmap.errors import BadMessage, OutOfSpace
from tr_mmap.protocol.messages import Request, Response, TensorRef, decode_request, decode_response
from tr_mmap.wire.messages import MAX_MESSAGE_NBYTES, RING_SLOT_NBYTES

TEXTS = [
    "",
    "plain",
    "newline\nand\ttab",
    'quotes " and \\ and {"spill": "x"}',
    "zero \0 byte",
    "ümläut, 漢字, 🙂, \u2028, \x85",
    "x" * 5000,
]


def test_a_message_arrives_whole_once_and_in_order(ends: Ends) -> None:
    for seq in range(1, 21):
        refs = [TensorRef(f"t{index}", f"segment_{index}.tsr", index + 1) for index in range(seq)]
        sent = ends.ask(seq, f"command{seq}", "p" * seq, 1_700_000_000_000, refs, [f"old{seq}"])
        assert ends.worker.has_message()
        assert ends.asked() == sent
        assert not ends.worker.has_message()
        assert ends.worker.receive(0, never) is None
        answer = Response(seq, f"command{seq}", "r" * (40 - seq), "", 1_700_000_000_001, refs)
        ends.worker.send(answer)
        raw = ends.controller.receive(None, never)
        assert raw is not None
        assert decode_response(raw) == answer
        assert ends.controller.receive(0, never) is None


def test_before_the_first_message_there_is_none(ends: Ends) -> None:
    for end in (ends.controller, ends.worker):
        assert not end.has_message()
        assert end.receive(0, never) is None


def test_an_end_never_receives_what_it_sent_itself(ends: Ends) -> None:
    ends.ask(1, "x")
    assert ends.controller.receive(0, never) is None
    ends.worker.send(Response(1, "x"))
    assert ends.asked().command == "x"
    assert ends.worker.receive(0, never) is None


def test_looking_takes_nothing(ends: Ends) -> None:
    ends.ask(1, "x")
    for _ in range(3):
        assert ends.worker.has_message()
    assert ends.asked().command == "x"


def test_a_timeout_gives_none_and_loses_nothing(ends: Ends) -> None:
    assert ends.worker.receive(1.0, never) is None
    ends.ask(1, "x")
    assert ends.asked().command == "x"


def test_a_waiting_receiver_gets_the_message(ends: Ends, background: Callable[..., Future[Any]]) -> None:
    stop = Stop()
    waiting = background(ends.worker.receive, None, stop)
    stop.wait_until_asked()
    sent = ends.ask(1, "x", "y")
    assert decode_request(waiting.result(BOUND_S)) == sent


@pytest.mark.parametrize("timeout_ms", [None, 1000 * BOUND_S])
def test_wake_and_a_reason_to_stop_end_a_wait(
    ends: Ends, background: Callable[..., Future[Any]], timeout_ms: float | None
) -> None:
    stop = Stop()
    waiting = background(ends.worker.receive, timeout_ms, stop)
    stop.wait_until_asked()
    stop.is_set = True
    ends.worker.wake()
    assert waiting.result(BOUND_S) is None


def test_wake_without_a_reason_to_stop_lets_the_wait_go_on(ends: Ends, background: Callable[..., Future[Any]]) -> None:
    stop = Stop()
    waiting = background(ends.worker.receive, None, stop)
    for _ in range(3):
        stop.wait_until_asked()
        ends.worker.wake()
    sent = ends.ask(1, "x")
    assert decode_request(waiting.result(BOUND_S)) == sent


def test_a_wake_before_the_wait_is_not_lost(ends: Ends) -> None:
    answers = iter([False, True])
    ends.worker.wake()
    assert ends.worker.receive(None, lambda: next(answers)) is None


def test_a_stopped_wait_looks_one_last_time(ends: Ends) -> None:
    def stop() -> bool:
        ends.ask(1, "last")
        return True

    raw = ends.worker.receive(None, stop)
    assert raw is not None
    assert decode_request(raw).command == "last"


def test_a_wait_that_is_over_looks_one_last_time(ends: Ends) -> None:
    sent: list[Request] = []

    def stop() -> bool:
        if not sent:
            sent.append(ends.ask(1, "last"))
        return False

    raw = ends.worker.receive(0.001, stop)
    assert raw is not None
    assert decode_request(raw) == sent[0]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_text_of_any_kind_arrives_as_it_was(ends: Ends, text: str) -> None:
    assert ends.ask(1, text, text, drops=[text]) == Request(1, text, text, drops=[text])
    raw = ends.worker.receive(0, never)
    assert raw is not None
    assert json.loads(raw).get("parameters", "") == text
    ends.worker.send(Response(1, text, text, text))
    raw = ends.controller.receive(0, never)
    assert raw is not None
    assert decode_response(raw) == Response(1, text, text, text)


def test_a_message_that_is_no_text_is_refused_and_the_previous_one_stays(ends: Ends) -> None:
    sent = ends.ask(1, "x")
    with pytest.raises(BadMessage, match="surrogate"):
        ends.ask(2, "x", os.fsdecode(b"\xff"))
    assert ends.asked() == sent
    assert ends.worker.receive(0, never) is None


def test_messages_around_every_limit_arrive(ends: Ends) -> None:
    overhead = len('{"seq":1,"parameters":""}')
    limits = (1024, RING_SLOT_NBYTES, 65536, MAX_MESSAGE_NBYTES)
    sizes = [limit - overhead + delta for limit in limits[:-1] for delta in range(-40, 41, 4)]
    for seq, size in enumerate([*sizes, 1_000_000, 3, MAX_MESSAGE_NBYTES - overhead, 3], 1):
        ends.controller.send(Request(seq % 9 + 1, parameters="p" * size))
        raw = ends.worker.receive(0, never)
        assert raw is not None
        assert json.loads(raw) == {"seq": seq % 9 + 1, "parameters": "p" * size}
    assert not [name for name in os.listdir(ends.directory) if "spill" in name or "tmp" in name]


def test_a_message_that_is_too_long_is_refused_and_the_previous_one_stays(ends: Ends) -> None:
    sent = ends.ask(1, "x")
    names = sorted(os.listdir(ends.directory))
    with pytest.raises(BadMessage, match="send large data as a tensor"):
        ends.ask(2, "x", "p" * MAX_MESSAGE_NBYTES)
    assert sorted(os.listdir(ends.directory)) == names
    assert ends.asked() == sent
    assert ends.worker.receive(0, never) is None
    assert ends.ask(3, "y") == ends.asked()


def test_a_full_file_system_refuses_a_long_message_and_the_previous_one_stays(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = ends.ask(1, "x")

    def write_all(fd: int, data: bytes, offset: int = 0) -> None:
        os.pwrite(fd, data[:10], offset)
        raise OutOfSpace("full", needed_nbytes=len(data), free_nbytes=10)

    names = sorted(os.listdir(ends.directory))
    if isinstance(ends.controller, FileChannel):
        monkeypatch.setattr(ends.controller, "_out", str(ends.directory / "other.json"))  # else it waits for its turn
    with monkeypatch.context() as patch:
        patch.setattr(system, "write_all", write_all)
        with pytest.raises(OutOfSpace):
            ends.ask(2, "x", "p" * 100_000)
    assert sorted(os.listdir(ends.directory)) == names
    assert ends.asked() == sent


def test_what_was_sent_before_the_worker_came_is_found_by_it(kind: str, tmp_path: Path) -> None:
    controller = channel_kind(kind).create(str(tmp_path))
    controller.send(Request(1, "early"))
    worker = channel_kind(kind).attach(str(tmp_path), controller.doorbells)
    raw = worker.receive(None, never)
    assert raw is not None
    assert decode_request(raw).command == "early"
    worker.close()
    controller.close()
