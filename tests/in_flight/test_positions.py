"""Each request keeps its place among those in flight: what it was sent with, and what is said about it by its place."""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest
from support import FOREVER_MS, TOOLS, Gate

from tr_mmap import PythonSession, UnsupportedTensor
from tr_mmap.channel.mapped import MappedChannel


class Interrupt(Exception):
    """Of a signal handler."""


@pytest.mark.parametrize("options", [{}, {"auth": True}], ids=["plain", "auth"])
def test_a_queued_request_sees_the_tensor_that_its_tag_had_when_it_was_sent(
    gate: Gate, options: dict[str, Any]
) -> None:
    with PythonSession(TOOLS, "tags", quiet_mode=True, **options) as session:
        session.send_tensor(np.zeros(1000), "flow")
        assert session.fetch_response("total flow") == "0"
        session.fetch_response("say x")
        session.submit(gate.message)
        gate.wait_for_worker()
        futures = [session.submit("total flow")]
        for number in range(1, 8):
            session.send_tensor(np.full(1000, number), "flow")  # releases what the tag had, when nobody needs it
            futures.append(session.submit("total flow"))
            with pytest.raises(UnsupportedTensor):  # and looks what can be released
                session.submit("total", np.array([object()]))
            session.send_tensor(np.full(1000, -1.0), f"other{number}")  # takes a segment that is free
        session.drop_tensor("flow")
        gate.let_go("x")
        assert [future.result() for future in futures] == [str(1000 * number) for number in range(8)]


@pytest.mark.parametrize("options", [{}, {"auth": True}], ids=["plain", "auth"])
def test_an_interrupted_send_moves_no_later_request_from_its_place(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """``cancel`` names a request to the worker by its place in the ring."""
    with PythonSession(TOOLS, "places", quiet_mode=True, **options) as session:
        with monkeypatch.context() as patch:

            def interrupt(_: MappedChannel) -> None:
                patch.undo()
                raise Interrupt

            patch.setattr(MappedChannel, "ring", interrupt)
            with pytest.raises(Interrupt):
                session.submit("say lost\x01")  # not by the fast path
        held = session.submit(gate.message)
        gate.wait_for_worker()
        kept = session.submit("say kept")
        gone = session.submit("note gone")
        assert gone.cancel()
        gate.let_go("x")
        assert (held.result(), kept.result()) == ("x", "kept")
        with pytest.raises(CancelledError):
            gone.result()
        assert session.fetch_response("noted", FOREVER_MS) == ""
