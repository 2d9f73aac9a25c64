"""A message that interrupted code has taken is taken again after ``put_back``, and no other message is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from channel_ends import Ends
from support import never

from tr_mmap.base import system
from tr_mmap.channel.authenticated import RejectionCounter, protect
from tr_mmap.channel.interface import Role
from tr_mmap.protocol.messages import Request, Response, decode_response
from tr_mmap.wire.messages import EXIT_COMMAND, RING_SLOT_NBYTES

LENGTHS = [3, 2 * RING_SLOT_NBYTES]  # the second is a spill


@pytest.fixture(params=["plain", "signed"])
def any_ends(request: pytest.FixtureRequest, ends: Ends) -> Ends:
    secret = b"s" * 32 if request.param == "signed" else None
    controller = protect(ends.controller, Role.CONTROLLER, secret, RejectionCounter())
    return Ends(ends.directory, controller, protect(ends.worker, Role.WORKER, secret, RejectionCounter()))


def answer(ends: Ends, seq: int, length: int = 3) -> str:
    """Ask and answer; the controller has not taken the answer yet."""
    ends.ask(seq, "x")
    assert ends.asked().seq == seq
    text = f"{seq}".ljust(length, ".")
    ends.worker.send(Response(seq, "x", text))
    return text


def answered(ends: Ends) -> str | None:
    raw = ends.controller.receive(0, never)
    return None if raw is None else decode_response(raw).result


@pytest.mark.parametrize("length", LENGTHS)
def test_a_response_that_was_taken_and_put_back_comes_once_more(any_ends: Ends, length: int) -> None:
    for seq in (1, 2):
        text = answer(any_ends, seq, length)
        assert answered(any_ends) == text
        any_ends.controller.put_back()
        assert any_ends.controller.has_message()
        assert answered(any_ends) == text
        assert not any_ends.controller.has_message()
        assert answered(any_ends) is None


@pytest.mark.parametrize("length", LENGTHS)
def test_the_response_to_an_earlier_request_is_not_put_back(any_ends: Ends, length: int) -> None:
    text = answer(any_ends, 1, length)
    assert answered(any_ends) == text
    any_ends.ask(2, "x")
    any_ends.controller.put_back()  # as after Ctrl-C in the wait for the second response
    assert not any_ends.controller.has_message()
    assert any_ends.asked().seq == 2
    any_ends.worker.send(Response(2, "x", "second"))
    assert any_ends.controller.has_message()
    assert answered(any_ends) == "second"


@pytest.mark.parametrize("length", LENGTHS)
def test_a_response_that_was_put_back_is_gone_when_the_next_request_is_sent(any_ends: Ends, length: int) -> None:
    answer(any_ends, 1, length)
    assert answered(any_ends) is not None
    any_ends.controller.put_back()
    any_ends.ask(2, "x")
    assert not any_ends.controller.has_message()


@pytest.mark.parametrize("length", LENGTHS)
def test_after_a_response_that_was_put_back_the_next_one_is_seen_and_comes_second(any_ends: Ends, length: int) -> None:
    first = answer(any_ends, 1, length)
    assert answered(any_ends) == first
    any_ends.controller.put_back()
    second = answer(any_ends, 2, length)
    assert any_ends.controller.has_message()
    assert second in (answered(any_ends), answered(any_ends))  # the first may come again; its number is an earlier one
    assert answered(any_ends) is None


def test_before_the_first_response_there_is_nothing_to_put_back(any_ends: Ends) -> None:
    any_ends.controller.put_back()
    assert not any_ends.controller.has_message()
    any_ends.ask(1, "x")
    any_ends.controller.put_back()
    assert not any_ends.controller.has_message()


def test_a_request_to_exit_takes_no_response_away(connect: Callable[[str], Ends]) -> None:
    ends = connect("files")
    text = answer(ends, 1)
    assert answered(ends) == text
    ends.controller.send(Request(2, EXIT_COMMAND))
    ends.controller.put_back()
    assert answered(ends) == text


@pytest.mark.parametrize("length", LENGTHS)
def test_a_handler_that_takes_the_response_during_a_receive_leaves_none_to_it(
    ends: Ends, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler runs while the outer call has the message's file open."""
    read_all, seen = system.read_all, []

    def read_and_interrupt(fd: int, limit_nbytes: int) -> bytes:
        text = read_all(fd, limit_nbytes)
        if not seen:
            seen.append("the outer call")
            ends.controller.put_back()
            seen.append(answered(ends) or "")
        return text

    wanted = [answer(ends, 1, length)]
    monkeypatch.setattr(system, "read_all", read_and_interrupt)
    outer = answered(ends)
    if seen:  # else a message in a slot, which is taken without a file
        assert seen[1:] == wanted
        assert outer is None or length > RING_SLOT_NBYTES
    else:
        assert outer == wanted[0]
    assert answered(ends) is None


def test_a_handler_that_takes_a_spill_and_the_next_one_leaves_no_error(
    mapped_ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outer call has taken the line that names the first spill, and has not opened the spill."""
    ends, (_, length) = mapped_ends, LENGTHS
    open_private_file, nested = system.open_private_file, []

    def interrupt_and_open(path: str, **options: Any) -> int:
        if not nested:
            nested.append("")
            ends.controller.put_back()
            nested.append(answered(ends))
            answer(ends, 2, length)
            nested.append(answered(ends))
        return open_private_file(path, **options)

    first = answer(ends, 1, length)
    monkeypatch.setattr(system, "open_private_file", interrupt_and_open)
    assert answered(ends) is None
    assert nested[1] == first
    assert str(nested[2]).startswith("2.")
    assert not list(Path(ends.directory).glob("*.spill"))
