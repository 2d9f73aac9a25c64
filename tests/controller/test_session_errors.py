"""A session's errors lose nothing: bad input is refused, failing handlers are reported, and the session goes on."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strategies import bits
from support import TOOLS

from tr_mmap import (
    BadMessage,
    PythonSession,
    RemoteError,
    SessionInUse,
    SessionNotStarted,
    TRException,
    UnknownCommand,
    UnsupportedTensor,
)

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.arange(6, 12, dtype=np.float32).reshape(2, 3)


def test_an_unknown_command_is_an_error_and_the_session_goes_on(session: PythonSession) -> None:
    with pytest.raises(UnknownCommand, match="transmogrify") as caught:
        session.fetch_response("transmogrify a")
    assert caught.value.command == "transmogrify"
    with pytest.raises(UnknownCommand):
        session.calculate("transmogrify", A)


@pytest.mark.parametrize("message", ["total", "total a b", "scale a", "scale 2", "scale a two", "digest a a"])
def test_a_wrong_count_is_an_error_and_the_session_goes_on(mapped: PythonSession, message: str) -> None:
    mapped.send_tensor(A, "a")
    mapped.send_tensor(B, "b")
    with pytest.raises(RemoteError):
        mapped.fetch_response(message)


def unsupported() -> dict[str, Any]:
    return {
        "objects": np.array([object(), None]),
        "text": np.array(["a", "b"]),
        "bytes": np.array([b"a"]),
        "dates": np.array(["2020-01-01"], "datetime64[D]"),
        "records": np.zeros(3, [("x", "f4"), ("y", "i4")]),
        "longdouble": np.zeros(3, np.longdouble),
        "masked": np.ma.masked_array([1.0, 2.0], [True, False]),
        "list": [1.0, 2.0],
        "float": 1.5,
        "None": None,
        "bytes object": b"abc",
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.empty(3, device="meta"),
        "dtype": np.float32,
    }


@pytest.mark.parametrize("name", unsupported())
def test_what_is_no_tensor_is_refused_and_the_tag_keeps_what_it_had(mapped: PythonSession, name: str) -> None:
    value = unsupported()[name]
    mapped.send_tensor(A, "safe")
    in_use = mapped.stats().nbytes - mapped.stats().free_nbytes
    with pytest.raises(UnsupportedTensor):
        mapped.send_tensor(value, "safe")
    with pytest.raises(UnsupportedTensor):
        mapped.calculate("echo", A, value)
    assert bits(mapped.fetch_tensor("echo safe")) == bits(A)
    assert mapped.stats().nbytes - mapped.stats().free_nbytes == in_use


def test_a_request_before_start_is_refused() -> None:
    session = PythonSession(TOOLS, "unstarted")
    calls: list[Callable[[], Any]] = [
        lambda: session.send_request("hello"),
        lambda: session.fetch_response("hello"),
        lambda: session.fetch_tensor("hello"),
        lambda: session.calculate("echo", A),
        lambda: session.wait_for_response(1),
        lambda: session.wait_for_tensor(1),
        lambda: session.read_response(),
        lambda: session.wait_until_ready(1),
        lambda: session.wait_until_ok(1),
    ]
    for call in calls:
        with pytest.raises(SessionNotStarted, match="start"):
            call()
    assert not session.is_alive()
    assert not session.is_ready()
    assert not session.is_busy()
    assert not session.new_response()
    assert session.session_id() == "unstarted"
    assert session.session_dir().endswith("/python_session/tr_session_unstarted")
    assert session.join(0)
    session.terminate()
    session.close()
    assert session.please_exit(0)


@pytest.mark.parametrize("session_id", ["", "../x", "a/b", ".x", "x" * 65, "a b", None])
def test_a_bad_session_id_is_refused(session_id: Any) -> None:
    with pytest.raises(BadMessage):
        PythonSession(TOOLS, session_id)


def test_a_bad_framework_or_channel_is_refused() -> None:
    with pytest.raises(BadMessage, match="numpy"):
        PythonSession(framework="tensorflow")
    with pytest.raises(BadMessage, match="mapped"):
        PythonSession(channel="telepathy")


def test_a_second_session_of_the_same_id_is_refused_and_the_first_goes_on(mapped: PythonSession) -> None:
    # The shared session has a workspace of its own, so this one is made there too.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TR_WORKSPACE", str(Path(mapped.session_dir()).parents[1]))
        other = PythonSession(TOOLS, mapped.session_id())
        with pytest.raises(SessionInUse) as caught:
            other.start()
    assert caught.value.session_id == mapped.session_id()
    assert mapped.fetch_response("hello still") == "Hello Still"
    other.close()
    assert mapped.fetch_response("hello still") == "Hello Still"


def test_starting_twice_is_refused_and_the_worker_goes_on(mapped: PythonSession) -> None:
    with pytest.raises(SessionInUse):
        mapped.start()


# -- failing handlers ------------------------------------------------------------------------------------------------


def test_a_failing_handler_gives_its_traceback_and_the_worker_goes_on(session: PythonSession) -> None:
    with pytest.raises(RemoteError) as caught:
        session.fetch_response("fail on purpose")
    error = caught.value
    assert not isinstance(error, UnknownCommand)
    assert error.command == "fail"
    assert error.error_type == "ZeroDivisionError"
    assert "on purpose" in str(error)
    assert "Traceback" in error.remote_traceback
    assert "tools.py" in error.remote_traceback
    assert "raise ZeroDivisionError(text)" in error.remote_traceback


def test_an_exception_without_a_text_is_reported_all_the_same(mapped: PythonSession) -> None:
    with pytest.raises(RemoteError) as caught:
        mapped.fetch_response("fail_strangely")
    assert caught.value.error_type == "StrangeError"
    assert "tools.py" in caught.value.remote_traceback


def test_a_result_that_is_no_tensor_is_the_handlers_error(mapped: PythonSession) -> None:
    with pytest.raises(RemoteError) as caught:
        mapped.fetch_tensor("bad_result")
    assert caught.value.error_type == "UnsupportedTensor"


def test_what_a_handler_sent_before_it_failed_is_not_an_answer(mapped: PythonSession) -> None:
    mapped.send_tensor(A, "a")
    with pytest.raises(RemoteError, match="after all"):
        mapped.fetch_response("late_failure a")
    with pytest.raises(RemoteError, match="after all"):
        mapped.fetch_tensor("late_failure a")


def test_a_handler_that_says_nothing_is_done(mapped: PythonSession) -> None:
    assert isinstance(mapped.fetch_response("nothing"), str)


def test_errors_that_a_session_raises_survive_pickling(mapped: PythonSession) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: mapped.fetch_response("fail on purpose"),
        lambda: mapped.fetch_response("no_such_command"),
        lambda: mapped.fetch_tensor("echo nowhere"),
        lambda: mapped.fetch_tensor("hello you"),
        lambda: mapped.wait_for_response(1),
        lambda: mapped.send_tensor(A, "../x"),
        lambda: mapped.send_tensor(None, "x"),
        lambda: mapped.drop_tensor("nowhere"),
        lambda: mapped.send_request(""),
        lambda: mapped.start(),
        lambda: PythonSession("/nowhere/worker.py").start(),
        lambda: PythonSession().fetch_response("hello"),
    ]
    for call in calls:
        with pytest.raises(TRException) as caught:
            call()
        error = caught.value
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)
