"""A worker's promises: by subclass as the original framework has it, by decorator, and the one that ships."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strategies import bits
from support import TOOLS, run_script, script

from tr_mmap import (
    BadMessage,
    PythonSession,
    RemoteError,
    Server,
    SessionNotStarted,
    TechRenaissanceServer,
    UnexpectedResponse,
    UnknownCommand,
)

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.arange(6, 12, dtype=np.float32).reshape(2, 3)

# Word for word what the requirements ask for.
MATRIX_MATH_SERVER = """
class MatrixMathServer(TechRenaissanceServer):
    def main_logic(self, command, parameters):
        if command.lower() == 'matmul':
            tensors = self.get_tensors(parameters, 2)
            if tensors is None:
                self.write_response('', 'invalid')
            else:
                self.send_tensors(torch.mm(tensors[0], tensors[1]))
                self.write_response('', 'ok')
        elif command.lower() == 'hello':
            self.write_response('', f'Hello {parameters.title()}')
        else:
            return False
        return True

if __name__ == "__main__":
    MatrixMathServer(debug=False).run(sys.argv[1])
"""


# -- by subclass -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "channel"), [("tr_mmap", "mapped"), ("tech_renaissance", "files")])
def test_matrix_math_server_runs_as_it_stands(tmp_path: Path, module: str, channel: str) -> None:
    script = tmp_path / "matrix_math_server.py"
    script.write_text(f"import sys\n\nimport torch\nfrom {module} import TechRenaissanceServer\n\n{MATRIX_MATH_SERVER}")
    a, b = torch.rand(5, 7), torch.rand(7, 3)
    with PythonSession(str(script), quiet_mode=True, framework="torch", channel=channel) as session:
        assert session.fetch_response("hello matrix world") == "Hello Matrix World"
        session.send_tensor(a, "a")
        session.send_tensor(b, "b")
        for message in ("matmul a b", "MatMul a,b", '{"cmd": "matmul", "params": "a,b"}'):
            product = session.fetch_tensor(message)
            assert isinstance(product, torch.Tensor)
            torch.testing.assert_close(product, a @ b)
        session.send_request("matmul a b")
        assert session.wait_for_response() == "ok"
        assert session.fetch_response("matmul a") == "invalid"
        assert session.fetch_response("matmul a nowhere") == "invalid"
        with pytest.raises(UnexpectedResponse) as caught:
            session.fetch_tensor("matmul a nowhere")
        assert caught.value.result == "invalid"
        with pytest.raises(UnknownCommand):
            session.fetch_response("transpose a")
        with pytest.raises(RemoteError) as failed:  # sizes do not fit
            session.fetch_tensor("matmul a a")
        assert "torch.mm" in failed.value.remote_traceback
        product = session.calculate("matmul", a.numpy(), b.numpy())
        assert isinstance(product, np.ndarray)
        np.testing.assert_allclose(product, (a @ b).numpy(), rtol=1e-5)


@pytest.mark.parametrize("parameters", ["a b", "a,b", "a, b", " a  ,b "])
def test_get_tensors_gives_torch_tensors_of_tags_apart_by_spaces_or_commas(
    torch_session: PythonSession, parameters: str
) -> None:
    torch_session.send_tensor(A, "a")
    torch_session.send_tensor(B.astype(np.int16), "b")
    message = {"cmd": "two", "params": parameters}
    assert torch_session.fetch_response(message) == "Tensor:torch.float32 Tensor:torch.int16"


@pytest.mark.parametrize("parameters", ["", "a", "a b a", "a nowhere", "nowhere a"])
def test_get_tensors_gives_none_for_a_wrong_count_or_a_missing_tag(
    torch_session: PythonSession, parameters: str
) -> None:
    torch_session.send_tensor(A, "a")
    torch_session.send_tensor(B, "b")
    assert torch_session.fetch_response({"cmd": "two", "params": parameters}) == "None"
    assert torch_session.fetch_response("two a b") == "Tensor:torch.float32 Tensor:torch.float32"


@pytest.mark.parametrize("tag", ["../request", "/etc/passwd", ".", "$0", "result_0", "segment_0", "session.json"])
def test_get_tensors_cannot_be_made_to_open_what_is_no_tag(torch_session: PythonSession, tag: str) -> None:
    assert torch_session.fetch_response({"cmd": "bad_tag", "params": tag}) == "None"


def test_why_get_tensors_gave_none_reaches_whoever_wants_a_tensor(torch_session: PythonSession) -> None:
    with pytest.raises(UnexpectedResponse, match="nowhere"):
        torch_session.fetch_tensor("two nowhere nowhere")


def test_text_and_tensors_make_one_response_in_either_order(torch_session: PythonSession) -> None:
    torch_session.send_tensor(A, "a")
    torch_session.send_tensor(B, "b")
    first, second = torch_session.fetch_tensor("text_then_tensors a b")
    assert bits(first) == bits(A)
    assert bits(second) == bits(B)
    assert torch_session.fetch_response("text_then_tensors a b") == "first the text"
    assert not torch_session.new_response()


def test_the_last_text_of_a_request_is_its_answer(torch_session: PythonSession) -> None:
    assert torch_session.fetch_response("twice") == "two"
    assert not torch_session.new_response()


def test_main_logic_that_returns_false_means_unknown_command(torch_session: PythonSession) -> None:
    with pytest.raises(UnknownCommand, match="nonsense") as caught:
        torch_session.fetch_response("nonsense a b")
    assert caught.value.command == "nonsense"
    assert isinstance(caught.value, RemoteError)


def test_a_failing_main_logic_gives_its_traceback(torch_session: PythonSession) -> None:
    with pytest.raises(RemoteError, match="by zero") as caught:
        torch_session.fetch_response("fail by zero")
    assert caught.value.error_type == "ZeroDivisionError"
    assert "do_fail" in caught.value.remote_traceback
    assert torch_session.fetch_response("hello after") == "Hello After"


def test_a_subclass_knows_its_session(torch_session: PythonSession) -> None:
    is_going_on, directory, _threads = json.loads(torch_session.fetch_response("state"))
    assert is_going_on is True
    assert directory == torch_session.session_dir()


def test_debug_messages_go_to_the_log(torch_session: PythonSession) -> None:
    torch_session.fetch_response("debug find this")
    assert "find this" in (Path(torch_session.session_dir()) / "worker.log").read_text()


@pytest.mark.parametrize("status", ["busy: epoch 3", "running", "busy: " + "x" * 5000])
def test_a_handler_may_say_what_it_is_at(torch_session: PythonSession, status: str) -> None:
    assert torch_session.fetch_response({"cmd": "status", "params": status}) == "ok"
    assert torch_session.is_ready()
    assert torch_session.fetch_response("hello after") == "Hello After"


def test_a_status_that_is_none_is_the_handlers_error(torch_session: PythonSession) -> None:
    with pytest.raises(RemoteError) as caught:
        torch_session.fetch_response("status dancing")
    assert caught.value.error_type == "BadMessage"
    assert torch_session.is_ready()


def test_outside_of_a_session_a_server_says_what_it_needs(tmp_path: Path) -> None:
    server = TechRenaissanceServer()
    with pytest.raises(SessionNotStarted):
        server.run("no_such_session")
    with pytest.raises(SessionNotStarted):
        server.send_tensors(A)
    with pytest.raises(SessionNotStarted):
        server.write_response("", "x")
    with pytest.raises(SessionNotStarted):
        server.empty(3)
    with pytest.raises(SessionNotStarted):
        server.process_request()
    for arguments in ([], ["nowhere"]):
        ended = run_script(TOOLS, *arguments)
        assert ended.returncode != 0
        assert "SessionNotStarted" in ended.stderr


# -- by decorator ----------------------------------------------------------------------------------------------------


def test_a_function_may_answer_a_tensor_several_a_text_or_nothing(mapped: PythonSession) -> None:
    x = np.arange(10.0)
    assert bits(mapped.calculate("scale 2.5", x)) == bits(x * 2.5)
    first, second = mapped.calculate("halves", x)
    assert bits(first) == bits(x[:5])
    assert bits(second) == bits(x[5:])
    assert mapped.calculate("hello ann") == "Hello Ann"
    assert isinstance(mapped.calculate("nothing"), str)


def test_words_that_are_tags_become_tensors_and_the_others_go_to_the_parameters(mapped: PythonSession) -> None:
    mapped.send_tensor(A, "a")
    assert bits(mapped.fetch_tensor("scale a 2.5")) == bits(A * np.float32(2.5))
    assert bits(mapped.fetch_tensor("scale 2.5 a")) == bits(A * np.float32(2.5))
    assert bits(mapped.fetch_tensor({"cmd": "scale", "params": "a,2.5"})) == bits(A * np.float32(2.5))
    assert mapped.fetch_response("repeat ab 3") == "ababab"


def test_an_unknown_command_names_those_that_there_are(mapped: PythonSession) -> None:
    with pytest.raises(UnknownCommand, match="scale"):
        mapped.fetch_response("scael a")


@pytest.mark.parametrize("name", ["", "two words", "exit", "taken", " x"])
def test_a_name_that_cannot_be_a_command_is_refused(name: str) -> None:
    server = Server()
    server.command("taken")(lambda: None)
    with pytest.raises(BadMessage):
        server.command(name)


def test_a_function_stays_what_it_was_under_its_decorator() -> None:
    server = Server(framework="torch")

    @server.command("double")
    def double(x: Any) -> Any:
        return 2 * x

    assert double(4) == 8


def test_received_arrays_may_be_kept_from_one_request_to_the_next(mapped: PythonSession) -> None:
    for number in range(10):
        mapped.send_tensor(np.full(1000, number), "turn")
        mapped.fetch_response(f"keep turn kept{number}")
    for number in range(10):
        assert np.array_equal(mapped.fetch_tensor(f"kept kept{number}"), np.full(1000, number))
        mapped.fetch_response(f"forget kept{number}")


# -- the worker that ships -------------------------------------------------------------------------------------------


def test_the_default_worker_knows_its_ten_commands() -> None:
    square = np.arange(9.0).reshape(3, 3) - 4
    with PythonSession(quiet_mode=True) as session:
        assert session.fetch_response("hello world") == "Hello World"
        assert bits(session.calculate("echo", square)) == bits(square)
        assert bits(session.calculate("add", square, square.T)) == bits(square + square.T)
        assert bits(session.calculate("sub", square, square.T)) == bits(square - square.T)
        assert bits(session.calculate("mul", square, square.T)) == bits(square * square.T)
        np.testing.assert_allclose(session.calculate("matmul", square, square.T), square @ square.T)
        assert bits(session.calculate("square", square)) == bits(square**2)
        assert bits(session.calculate("relu", square)) == bits(np.maximum(square, 0))
        total = session.calculate("sum", square)
        assert total.shape == ()
        assert total == square.sum()
        info = json.loads(session.fetch_response("info"))
        assert info["numpy"] == np.__version__
        assert "torch" not in info  # the default worker needs none
        with pytest.raises(UnknownCommand, match="matmul"):
            session.fetch_response("divide a b")
        for name in ("add", "sub", "mul", "matmul"):
            with pytest.raises(RemoteError):
                session.calculate(name, square)
            with pytest.raises(RemoteError):
                session.calculate(name, square, np.ones((2, 5)))
        product = session.calculate("matmul", torch.ones(2, 3), torch.ones(3, 2))
        assert isinstance(product, torch.Tensor)
        assert torch.equal(product, torch.full((2, 2), 3.0))
        half = torch.tensor([-1.5, 2.5], dtype=torch.bfloat16)
        assert torch.equal(session.calculate("relu", half), torch.relu(half))
        assert torch.equal(session.calculate("add", half, half), half + half)
        assert session.calculate("relu", np.array([-1, 2], np.int8)).dtype == np.int8


def test_a_worker_may_be_a_dataclass() -> None:
    """It compares by value then, and so has no hash."""

    @dataclass
    class Scaling(TechRenaissanceServer):
        scale: float = 1.0

        def __post_init__(self) -> None:
            super().__init__(framework="numpy")

    assert Scaling(2.0) == Scaling(2.0)
    assert Scaling(2.0).framework == "numpy"


TEXTS = """
import enum
from tr_mmap import Server, TechRenaissanceServer
import sys

class Colour(str, enum.Enum):
    RED = "#f00"

class Loud(str):
    def __str__(self):
        return self.upper() + "!"

if sys.argv[2] == "functions":
    server = Server()
    server.command("enum")(lambda: Colour.RED)
    server.command("own")(lambda: Loud("loud"))
else:
    class Old(TechRenaissanceServer):
        def main_logic(self, command, parameters):
            self.write_response(command, Colour.RED if command == "enum" else Loud("loud"))
            return True

    server = Old(framework="numpy")
server.run()
"""


@pytest.mark.parametrize("kind", ["functions", "old"])
def test_a_text_of_a_class_of_its_own_arrives_as_what_it_equals(tmp_path: Path, kind: str) -> None:
    with PythonSession(script(tmp_path, TEXTS), quiet_mode=True, args=[kind]) as session:
        assert session.fetch_response("enum") == "#f00"
        assert session.fetch_response("own") == "loud"
