"""``PyTorchSession``, and results that are taken by their names."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import run_python, script

from tr_mmap import (
    BadMessage,
    BadTag,
    MissingTag,
    PythonSession,
    PyTorchSession,
    RemoteError,
    ResponseTimeout,
    StaleTensor,
    TSRFormatError,
    UnknownCommand,
    WorkerDied,
)

WORKER = """
import os, sys
import numpy as np
from tr_mmap import TechRenaissanceServer
class Worker(TechRenaissanceServer):
    def main_logic(self, command, parameters):
        words = parameters.split()
        if command == "make":                      # make 3 5: two results, full of 3 and of 5
            self.send_tensors(*(np.full(4, int(word), "int32") for word in words))
        elif command == "write":                   # write name 3: a file, full of 3
            self.write_tsr_file(words[0], np.full(4, int(words[1]), "int32"))
        elif command == "spoil":
            with open(os.path.join(self.session_dir, words[0] + ".tsr"), "wb") as file:
                file.write(b"no tensor")
        elif command == "say":
            self.write_response("", parameters)
        elif command == "fail":
            raise ValueError(parameters)
        elif command == "die":
            os._exit(3)
        else:
            return False
        return True
Worker(framework="numpy").run(sys.argv[1])
"""
SOON_MS = 30_000.0


@pytest.fixture(params=["mapped", "files", "legacy"])
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PythonSession]:
    with PythonSession(script(tmp_path, WORKER), "named", quiet_mode=True, channel=request.param) as made:
        yield made


def recv(session: PythonSession, tag: str) -> list[int]:
    return [int(each) for each in session.recv_tensor(tag, SOON_MS)]


def full(value: int) -> list[int]:
    return [value] * 4


# -- by name ---------------------------------------------------------------------------------------------------------


def test_a_result_is_taken_by_its_name_in_any_order(session: PythonSession) -> None:
    session.send_request("make 3 5 7")
    assert recv(session, "result_1") == full(5)
    assert recv(session, "result_0") == full(3)
    assert recv(session, "result_2") == full(7)


def test_the_one_result_has_a_short_name_too(session: PythonSession) -> None:
    session.send_request("make 3")
    assert recv(session, "result") == full(3)


def test_answers_are_taken_in_the_order_of_their_requests(session: PythonSession) -> None:
    for value in (1, 2, 3):
        session.send_request(f"make {value} {value + 10}")
    for value in (1, 2, 3):
        assert recv(session, "result_1") == full(value + 10)


def test_what_was_left_of_an_answer_is_not_taken_for_the_next_one(session: PythonSession) -> None:
    session.send_request("make 1 2")
    assert recv(session, "result_0") == full(1)
    session.send_request("make 3")
    with pytest.raises(MissingTag):
        session.recv_tensor("result_1", SOON_MS)
    assert recv(session, "result_0") == full(3)


def test_it_is_not_there_after_the_next_request_either(session: PythonSession) -> None:
    session.send_request("make 1 2")
    assert recv(session, "result_0") == full(1)
    session.send_request("say nothing")
    assert session.wait_for_response(SOON_MS) == "nothing"
    with pytest.raises(ResponseTimeout):
        session.recv_tensor("result_1", 50)


def test_a_name_that_the_answer_lacks_loses_nothing(session: PythonSession) -> None:
    session.send_request("make 3 5")
    for name in ("weights", "result_2", "result"):
        with pytest.raises(MissingTag, match="result_0, result_1") as caught:
            session.recv_tensor(name, SOON_MS)
        assert caught.value.tag == name
    assert session.new_response()
    assert [each.tolist() for each in session.wait_for_tensor(SOON_MS)] == [full(3), full(5)]


def test_a_text_in_place_of_the_tensor_is_not_lost(session: PythonSession) -> None:
    session.send_request("say no such matrix")
    with pytest.raises(MissingTag, match="no such matrix"):
        session.recv_tensor("result_0", SOON_MS)
    assert session.read_response() == "no such matrix"


def test_an_answer_without_the_name_is_never_that_to_the_next_request(session: PythonSession) -> None:
    for value in range(5):
        session.send_request("say nothing here")
        with pytest.raises(MissingTag):
            session.recv_tensor("result_0", SOON_MS)
        session.send_request(f"say {value}")
        assert session.wait_for_response(SOON_MS) == str(value)
        session.send_request(f"make {value}")
        assert recv(session, "result_0") == full(value)


@pytest.mark.each_value
@pytest.mark.parametrize("how", ["wait", "read"])
def test_after_the_text_of_an_answer_its_tensors_can_still_be_taken(session: PythonSession, how: str) -> None:
    for value in range(5):  # first by the slow path, and then by the fast one
        session.send_request(f"make {value} 5")
        if how == "wait":
            assert session.wait_for_response(SOON_MS) == "ok"
        else:
            assert session.wait_until_ok(SOON_MS)
            assert session.read_response() == "ok"
        assert recv(session, "result_1") == full(5)
        assert recv(session, "result_0") == full(value)


def test_a_request_under_way_comes_before_what_is_left_of_an_answer(session: PythonSession) -> None:
    session.send_request("make 3 5")
    session.send_request("make 4 6")
    assert session.wait_for_response(SOON_MS) == "ok"
    assert recv(session, "result_1") == full(6)


def test_what_a_later_answer_has_overwritten_is_an_error_and_no_wrong_tensor(session: PythonSession) -> None:
    session.send_request("make 3")
    assert session.wait_for_response(SOON_MS) == "ok"
    for value in range(10, 20):
        session.calculate(f"make {value}")
    try:
        assert recv(session, "result_0") == full(3)
    except (MissingTag, StaleTensor):
        assert int(session.calculate("make 30")[0]) == 30


def test_the_error_of_a_request_is_raised_where_its_tensor_is_taken(session: PythonSession) -> None:
    session.send_request("fail today")
    with pytest.raises(RemoteError, match="today"):
        session.recv_tensor("result_0", SOON_MS)
    assert session.fetch_response("say on", SOON_MS) == "on"
    session.send_request("unknown_word")
    with pytest.raises((UnknownCommand, RemoteError)):
        session.recv_tensor("result_0", SOON_MS)


def test_a_tag_of_the_controllers_own_is_no_result(session: PythonSession) -> None:
    session.send_tensor(np.arange(3, dtype="int32"), "own")
    session.send_request("make 7")
    with pytest.raises(MissingTag):
        session.recv_tensor("own", SOON_MS)
    assert session.fetch_tensor("make 8", SOON_MS).tolist() == [8] * 4
    session.drop_tensor("own")


def test_threads_take_the_results_of_their_own_requests(session: PythonSession) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        for each in range(10):
            value = 100 * number + each
            session.send_request(f"make {value} {value + 50}", SOON_MS)
            if recv(session, "result_1") != full(value + 50) or recv(session, "result_0") != full(value):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_file_of_the_worker_is_taken_once_and_by_its_name(session: PythonSession) -> None:
    session.send_request("write weights 4")
    assert recv(session, "weights") == full(4)
    assert not Path(session.session_dir(), "weights.tsr").exists()
    session.send_request("make 5")
    with pytest.raises(MissingTag):
        session.recv_tensor("weights", SOON_MS)


def test_a_file_may_have_the_name_of_a_tag(session: PythonSession) -> None:
    session.send_tensor(np.zeros(4, "int32"), "x")
    session.send_request("write x 4")
    assert recv(session, "x") == full(4)


def test_a_file_that_is_no_tensor_is_a_typed_error_and_stays(session: PythonSession) -> None:
    session.send_request("spoil weights")
    with pytest.raises(TSRFormatError):
        session.recv_tensor("weights", SOON_MS)
    assert Path(session.session_dir(), "weights.tsr").read_bytes() == b"no tensor"
    assert session.fetch_response("say on", SOON_MS) == "on"


def test_the_next_result_may_be_written_by_its_name(session: PythonSession) -> None:
    session.send_request("write result_0 4")
    assert recv(session, "result_0") == full(4)
    with pytest.raises(RemoteError) as caught:
        session.fetch_response("write result_1 4", SOON_MS)
    assert caught.value.error_type == "BadTag"


def test_without_a_request_the_wait_for_a_name_ends_in_time(session: PythonSession) -> None:
    with pytest.raises(ResponseTimeout):
        session.recv_tensor("weights", 50)


def test_a_bad_name_is_refused(session: PythonSession) -> None:
    for name in ("", "../x", "a b", ".hidden"):
        with pytest.raises(BadTag):
            session.recv_tensor(name, 0)


def test_the_workers_death_ends_the_wait(session: PythonSession) -> None:
    session.send_request("die now")
    with pytest.raises(WorkerDied):
        session.recv_tensor("result_0", SOON_MS)


# -- the session of torch --------------------------------------------------------------------------------------------


def test_a_pytorch_session_gives_torch_tensors(tmp_path: Path) -> None:
    import torch

    with PyTorchSession(script(tmp_path, WORKER), "torch", True) as session:
        assert isinstance(session, PythonSession)
        session.send_request("make 3")
        assert torch.equal(session.recv_tensor("result_0", SOON_MS), torch.full((4,), 3, dtype=torch.int32))
        for value in range(4):
            session.send_request(f"make {value}")
            assert session.wait_for_response(SOON_MS) == "ok"
            found = session.recv_tensor("result_0", SOON_MS)
            assert torch.equal(found, torch.full((4,), value, dtype=torch.int32))
            found += 1  # it is the program's own
        session.send_request("write w 5")
        assert torch.equal(session.recv_tensor("w", SOON_MS), torch.full((4,), 5, dtype=torch.int32))


def test_a_pytorch_session_has_no_other_framework() -> None:
    assert PyTorchSession(framework="torch").session_id() == "default"
    with pytest.raises(BadMessage, match="PythonSession"):
        PyTorchSession(framework="numpy")
    with pytest.raises(TypeError, match="PyTorchSession has no option 'speed'"):
        PyTorchSession(speed=9)


def test_its_name_is_there_without_torch() -> None:
    ended = run_python("-c", "import sys; from tr_mmap import PyTorchSession; print('torch' in sys.modules)")
    assert ended.stdout.strip() == "False", ended.stderr
