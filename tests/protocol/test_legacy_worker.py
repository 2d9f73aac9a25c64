"""The legacy dialect's promises with a worker that speaks nothing else: our controller drives it.

The worker is a program of its own in ``tests/peers``, written from the dialect's description alone.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from legacy_peers import OLD_WORKER
from strategies import bits
from support import BOUND_S, FOREVER_MS, TOOLS, empty_place, wait_until

from tr_mmap import (
    BadMessage,
    MissingTag,
    OutOfSpace,
    PythonSession,
    RemoteError,
    ResponseTimeout,
    TSRFormatError,
    UnexpectedResponse,
    UnknownCommand,
    UnsupportedTensor,
    WorkerDied,
)

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.arange(6, 18, dtype=np.float32).reshape(3, 4)


@pytest.fixture(scope="module")
def shared_legacy() -> Iterator[PythonSession]:
    with empty_place() as path, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TR_WORKSPACE", str(path))
        with PythonSession(OLD_WORKER, quiet_mode=True, channel="legacy") as session:
            patch.undo()
            yield session
            assert session.please_exit(5000)


@pytest.fixture
def legacy(shared_legacy: PythonSession) -> Iterator[PythonSession]:
    """A session with an older worker, which must be usable after the test."""
    yield shared_legacy
    assert shared_legacy.is_alive()
    assert shared_legacy.fetch_response("say still here") == "still here"


def files_of(session: PythonSession) -> list[str]:
    """What the older worker sees."""
    return session.fetch_response("files").split()


def test_an_old_worker_multiplies_for_our_session(legacy: PythonSession) -> None:
    legacy.send_tensor(A, "a")
    legacy.send_tensor(B, "b")
    for message in (
        "matmul a b",
        "matmul a,b",
        '{"cmd": "matmul", "params": "a,b"}',
        {"cmd": "matmul", "params": "a b"},
    ):
        product = legacy.fetch_tensor(message)
        assert product.dtype == np.float32
        assert np.array_equal(product, A @ B)


def test_a_tag_outlives_an_old_worker_that_deletes_it(legacy: PythonSession) -> None:
    legacy.send_tensor(A, "a")
    for _ in range(3):
        assert bits(legacy.fetch_tensor("echo a")) == bits(A)
    legacy.send_tensor(B, "a")
    assert bits(legacy.fetch_tensor("echo a")) == bits(B)
    legacy.drop_tensor("a")
    with pytest.raises(RemoteError, match=r"a\.tsr"):
        legacy.fetch_tensor("echo a")
    with pytest.raises(MissingTag):
        legacy.drop_tensor("a")


def test_only_the_tags_that_a_request_names_are_put_in_its_place_and_none_stays(legacy: PythonSession) -> None:
    legacy.send_tensor(A, "one")
    legacy.send_tensor(B, "other")
    legacy.fetch_tensor("echo one")
    left = legacy.fetch_response("files one").split()
    assert "one.tsr" in left
    assert "other.tsr" not in left
    assert not [name for name in files_of(legacy) if name.endswith(".tsr") and not name.startswith(".")]


def test_results_stay_right_when_the_worker_writes_the_next_one_in_their_place(legacy: PythonSession) -> None:
    first = legacy.calculate("echo", np.float32([1, 2]))
    second = legacy.calculate("echo", np.float32([3, 4]))
    legacy.send_tensor(np.float32([5, 6]), "x")
    legacy.send_request("echo x")
    legacy.send_request("ends x")
    third = legacy.wait_for_tensor()
    assert [float(each[0]) for each in legacy.wait_for_tensor()] == [5, 6]
    assert (first.tolist(), second.tolist(), third.tolist()) == ([1, 2], [3, 4], [5, 6])
    assert not first.flags.writeable


def test_several_results_arrive_in_order(legacy: PythonSession) -> None:
    first, last = legacy.calculate("ends", np.int32([3, 4, 5]))
    assert (first.tolist(), last.tolist()) == ([3], [5])
    assert [bits(each) for each in legacy.calculate("echo", A, B)] == [bits(A), bits(B)]


def test_text_goes_to_an_old_worker_as_it_is(legacy: PythonSession) -> None:
    legacy.send_tensor(A, "a")
    for text in ("this is a text, with a tag", "zażółć 😀", '"quoted" \\ and {braces}', "1", ""):
        assert legacy.fetch_response({"cmd": "say", "params": text}) == text
    with pytest.raises(UnexpectedResponse) as caught:
        legacy.fetch_tensor("say no tensor")
    assert caught.value.result == "no tensor"


def test_the_text_of_an_answer_that_is_tensors_is_ok_and_its_files_go(legacy: PythonSession) -> None:
    legacy.send_tensor(A, "a")
    assert legacy.fetch_response("echo a") == "ok"
    assert not [name for name in files_of(legacy) if "taken" in name or name == "r.tsr"]


def test_torch_tensors_go_to_an_old_worker_and_come_back(legacy: PythonSession) -> None:
    tensor = torch.arange(6, dtype=torch.float32).reshape(3, 2).T
    back = legacy.calculate("echo", tensor)
    assert isinstance(back, torch.Tensor)
    assert torch.equal(back, tensor)
    back[0, 0] = 7  # its own


def test_any_layout_is_sent_as_an_exact_v1_file(legacy: PythonSession) -> None:
    for array in (A.T, A[:, ::2], A.astype(">f4"), np.float32(3), np.zeros((0, 2), np.int8), np.int32(5)):
        back = legacy.calculate("echo", array)
        assert bits(back) == bits(
            np.ascontiguousarray(array).astype(array.dtype.newbyteorder("=")).reshape(array.shape)
        )


@pytest.mark.parametrize("dtype", ["int64", "float64", "float16", "int16", "uint8", "bool"])
def test_a_dtype_that_the_original_does_not_read_is_refused_with_advice(legacy: PythonSession, dtype: str) -> None:
    tensor = np.zeros(3, dtype)
    for send in (lambda: legacy.send_tensor(tensor, "x"), lambda: legacy.calculate("echo", A, tensor)):
        with pytest.raises(UnsupportedTensor, match=f"no {dtype}: convert the tensor to float32"):
            send()
    assert not [name for name in files_of(legacy) if name.endswith(".tsr")]
    assert legacy.calculate("echo", tensor.astype("float32")).tolist() == [0, 0, 0]


@pytest.mark.parametrize("tensor", [np.arange(3), np.zeros(2, bool), np.zeros((1,) * 5, np.float32), "text"], ids=repr)
def test_what_v1_cannot_hold_is_refused_before_it_is_sent(legacy: PythonSession, tensor: Any) -> None:
    with pytest.raises(UnsupportedTensor):
        legacy.send_tensor(tensor, "x")
    with pytest.raises(UnsupportedTensor):
        legacy.calculate("echo", A, tensor)
    assert "arg_0.tsr" not in files_of(legacy)


def test_empty_gives_a_plain_array_that_stays_writable(legacy: PythonSession) -> None:
    array = legacy.empty((2, 2), "float32")
    array[...] = 4
    legacy.send_tensor(array, "loan")
    array[...] = 5
    assert legacy.fetch_tensor("echo loan").tolist() == [[4, 4], [4, 4]]
    assert isinstance(legacy.empty(3, "int16", "torch"), torch.Tensor)
    assert legacy.stats().free_nbytes == 0


def test_a_tag_named_as_an_old_workers_result_is_safe(legacy: PythonSession) -> None:
    legacy.send_tensor(np.float32([1, 2]), "r")
    for _ in range(2):
        assert legacy.fetch_tensor("echo r").tolist() == [1, 2]
    assert [each.tolist() for each in legacy.fetch_tensor("ends r")] == [[1], [2]]
    assert legacy.fetch_tensor("echo r").tolist() == [1, 2]
    legacy.drop_tensor("r")


def test_what_goes_wrong_in_an_old_worker_is_an_error_here_and_only_once(legacy: PythonSession) -> None:
    with pytest.raises(UnknownCommand, match="unheard_of"):
        legacy.fetch_response("unheard_of")
    legacy.send_request("say fine")
    assert legacy.wait_until_ok()
    assert legacy.wait_for_response() == "fine"
    legacy.send_request("unheard_of")
    assert not legacy.wait_until_ok()
    with pytest.raises(UnknownCommand):
        legacy.wait_for_response()
    with pytest.raises(TSRFormatError):
        legacy.calculate("bad", A)  # a header that claims more than there is


def test_responses_are_taken_once_and_in_order(legacy: PythonSession) -> None:
    assert legacy.read_response() is None
    for number in range(3):
        legacy.send_request(f"say {number}")
    assert [legacy.wait_for_response() for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(ResponseTimeout):
        legacy.wait_for_response(1)
    assert not legacy.new_response()
    assert legacy.is_ready()
    assert not legacy.is_busy()


def test_an_answer_to_a_call_that_gave_up_is_never_taken_for_the_next(legacy: PythonSession, tmp_path: Path) -> None:
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    with pytest.raises(ResponseTimeout):
        legacy.fetch_response(f"wait {fifo}", 5)
    with fifo.open("w") as file:
        file.write("late")
    assert legacy.fetch_response("say next") == "next"


def write_by_hand(session: PythonSession, command: str, params: str) -> None:
    directory = Path(session.session_dir())
    new = directory / "new"
    new.write_text(json.dumps({"cmd": command, "params": params}))
    new.rename(directory / "request.json")


def lay_response(session: PythonSession, text: str | None) -> None:
    """Let a response lie there that answers no request of the controller's; None for one to a request by hand."""
    response = Path(session.session_dir()) / "response.json"
    if text is None:
        write_by_hand(session, "say", "by hand")
        wait_until(response.exists)
    else:
        response.write_text(text)


@pytest.mark.parametrize("text", [None, '{"params": "stray"}', "{garbled", "", "[1]"], ids=repr)
def test_a_response_that_lies_there_is_never_taken_for_that_to_a_later_request(
    legacy: PythonSession, text: str | None
) -> None:
    lay_response(legacy, text)
    assert [legacy.fetch_response(f"say {number}") for number in range(3)] == ["0", "1", "2"]
    lay_response(legacy, text)
    assert legacy.calculate("echo", A).tolist() == A.tolist()


@pytest.mark.each_value
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("worker", [OLD_WORKER, TOOLS], ids=["old", "ours"])
def test_a_request_waits_while_the_worker_is_in_one_by_hand_and_gets_its_own_response(
    tmp_path: Path, worker: Path, is_first: bool
) -> None:
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    answers: list[str] = []
    with PythonSession(worker, quiet_mode=True, channel="legacy") as session:
        if not is_first:
            assert session.fetch_response("say before") == "before"
        write_by_hand(session, "wait" if worker is OLD_WORKER else "gate", str(fifo))
        with fifo.open("w") as file:  # it is in the middle of that request now
            with pytest.raises(ResponseTimeout, match="somebody wrote by hand") as caught:
                session.fetch_response("say late", 5)
            assert caught.value.is_taken_up is False
            waiting = threading.Thread(
                target=lambda: answers.extend(session.fetch_response(f"say {i}", FOREVER_MS) for i in range(3))
            )
            waiting.start()
            file.write("by hand")
        waiting.join(BOUND_S)
        assert answers == ["0", "1", "2"]


def test_a_response_by_hand_that_comes_long_after_its_status_is_not_the_next_ones(tmp_path: Path) -> None:
    """The worker writes the status first; a busy machine may let it stand still then."""
    script, fifo = tmp_path / "worker.py", tmp_path / "gate"
    os.mkfifo(fifo)
    slow = OLD_WORKER.read_text().replace(
        "    def respond(self, command, params):", "    def respond(self, command, params):\n        time.sleep(0.3)"
    )
    script.write_text(slow)
    with PythonSession(script, quiet_mode=True, channel="legacy") as session:
        assert session.fetch_response("say before") == "before"
        write_by_hand(session, "wait", str(fifo))
        with fifo.open("w") as file:
            with pytest.raises(ResponseTimeout, match="somebody wrote by hand"):
                session.fetch_response("say late", 5)
            file.write("by hand")
        assert [session.fetch_response(f"say {i}", FOREVER_MS) for i in range(3)] == ["0", "1", "2"]


def test_a_worker_that_never_says_that_a_request_has_ended_is_given_the_next_one(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(OLD_WORKER.read_text().replace('self.write_status("ok")', "pass"))
    with PythonSession(script, quiet_mode=True, channel="legacy") as session:
        assert [session.fetch_response(f"say {number}") for number in range(3)] == ["0", "1", "2"]


@pytest.mark.parametrize("option", ["auth", "checksum"])
def test_what_the_legacy_dialect_has_not_is_refused(option: str) -> None:
    with pytest.raises(BadMessage, match=option):
        PythonSession(OLD_WORKER, channel="legacy", **{option: True})


def test_a_budget_holds_for_kept_files() -> None:
    with PythonSession(OLD_WORKER, quiet_mode=True, channel="legacy", budget_nbytes=1000) as session:
        session.send_tensor(np.zeros(200, np.float32), "a")
        with pytest.raises(OutOfSpace):
            session.send_tensor(np.zeros(200, np.float32), "b")
        session.send_tensor(np.ones(200, np.float32), "a")
        assert session.fetch_tensor("echo a").sum() == 200


def test_an_old_worker_that_dies_ends_the_wait_and_the_next_one_knows_the_same_tags() -> None:
    with PythonSession(OLD_WORKER, quiet_mode=True, channel="legacy") as session:
        session.send_tensor(A, "a")
        view = session.fetch_tensor("echo a")
        with pytest.raises(WorkerDied, match="my last words") as caught:
            session.fetch_response("die 7")
        assert caught.value.exit_code == 7
        session.start()
        assert session.wait_until_ready()
        assert bits(session.fetch_tensor("echo a")) == bits(A)
        session.send_request("hang a")
        session.terminate()
        with pytest.raises(WorkerDied):
            session.wait_for_response()
        assert bits(view) == bits(A)


def test_an_old_worker_is_asked_to_exit_again_when_it_writes_over_the_wish(tmp_path: Path) -> None:
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    with PythonSession(OLD_WORKER, quiet_mode=True, channel="legacy") as session:
        session.send_request(f"wait {fifo}")
        with fifo.open("w"):  # it is in the middle of a request now
            assert not session.please_exit(50, ensure=False)
            assert session.is_alive()
            status = Path(session.session_dir()) / "status.txt"
            assert status.read_text().strip() == "exit"
        assert session.please_exit(5000)  # it has written "ok" since, without looking
        assert not session.is_alive()


def test_an_old_worker_that_does_not_want_to_end_is_ended() -> None:
    with PythonSession(OLD_WORKER, quiet_mode=True, channel="legacy") as session:
        session.send_request("hang")
        assert not session.please_exit(50)
        assert not session.is_alive()


def test_our_worker_speaks_the_legacy_dialect_to_our_own_session() -> None:
    with PythonSession(TOOLS, quiet_mode=True, channel="legacy") as session:
        session.send_tensor(A, "a")
        assert bits(session.fetch_tensor("echo a")) == bits(A)
        assert bits(session.calculate("scale 2", A)) == bits(A * np.float32(2))
        assert session.fetch_response("hello my world") == "Hello My World"
        with pytest.raises(UnknownCommand):
            session.fetch_response("unheard_of")
        with pytest.raises(RemoteError, match="ZeroDivisionError: badly") as caught:
            session.fetch_response("fail badly")
        assert "Traceback" in caught.value.remote_traceback
        assert session.fetch_response("both a") == "two tensors"
        assert session.please_exit()
