"""Whatever a handler raises, and whatever it does to its streams, the error arrives and the worker goes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import WORKERS, script, wait_until

from tr_mmap import OutOfSpace, PythonSession, RemoteError, RemoteOutOfSpace, WorkerDied

sys.path.insert(0, str(WORKERS))

from saboteur import ERRORS, SABOTAGES

SABOTEUR = WORKERS / "saboteur.py"
SLOW_MS = 60_000.0
LIBRARY = os.path.join("tr_mmap", "")


@contextmanager
def _saboteur(channel: str) -> Iterator[PythonSession]:
    with PythonSession(SABOTEUR, quiet_mode=True, channel=channel) as session:
        pid = session.fetch_response("pid")
        yield session
        assert session.fetch_response("pid") == pid


@pytest.fixture
def saboteur() -> Iterator[PythonSession]:
    with _saboteur("mapped") as session:
        yield session


@pytest.mark.parametrize("name", SABOTAGES)
def test_an_error_arrives_whatever_its_handler_did_to_the_streams(saboteur: PythonSession, name: str) -> None:
    for _ in range(2):
        with pytest.raises(RemoteError, match=f"after {name}|Error") as caught:
            saboteur.fetch_response(f"sabotage {name}")
        assert "Traceback" in caught.value.remote_traceback
        assert saboteur.fetch_response("hello") == "here"


def test_all_sabotages_one_after_another_over_a_channel_of_files() -> None:
    with _saboteur("files") as session:
        for name in SABOTAGES:
            with pytest.raises(RemoteError):
                session.fetch_response(f"sabotage {name}")
            assert session.fetch_response("hello") == "here"


TYPES = {
    "long_key": "KeyError",
    "long_zeros": "ValueError",
    "interrupting_text": "Hostile",
    "exiting_text": "Exiting",
    "no_text": "NoText",
    "odd_text": "OddText",
    "surrogates": "ValueError",
    "broken_meta": "BrokenMeta",
    "broken_cause": "BrokenCause",
    "no_class": "NoClass",
    "no_attributes": "NoAttributes",
    "pretends_to_exit": "PretendsToExit",
    "no_space_of_user": "NoSpaceOfUser",
    "group_of_no_class": "ExceptionGroup",
    "group": "ExceptionGroup",
    "base_group": "BaseExceptionGroup",
    "nested_group": "ExceptionGroup",
    "cancelled": "CancelledError",
    "generator_exit": "GeneratorExit",
    "stop_iteration": "StopIteration",
    "interrupt": "KeyboardInterrupt",
    "base": "BaseException",
    "memory": "MemoryError",
    "syntax": "SyntaxError",
    "os_error": "FileNotFoundError",
    "unicode": "UnicodeDecodeError",
    "bare_out_of_space": "SpaceOfUser",
    "out_of_space": "OutOfSpace",
}


@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_whatever_a_handler_raises_arrives_and_is_bounded(channel: str) -> None:
    with _saboteur(channel) as session:
        log = Path(session.session_dir()) / "worker.log"
        for name in ERRORS:
            before = log.stat().st_size
            with pytest.raises(RemoteError) as caught:
                session.fetch_response(f"raise {name}", SLOW_MS)
            wanted = "N" * 50 if name == "long_name" else TYPES.get(name, "ValueError")
            assert caught.value.error_type.startswith(wanted), name
            assert len(str(caught.value)) < 1 << 20, name
            assert 0 < len(caught.value.remote_traceback) < 1 << 20, name
            assert log.stat().st_size - before < 1 << 20, name
            assert session.is_ready(), name


@pytest.mark.parametrize("name", ["no_class", "no_attributes", "pretends_to_exit"])
def test_an_exception_that_cannot_be_asked_for_its_class_arrives_with_its_frames(
    saboteur: PythonSession, name: str
) -> None:
    with pytest.raises(RemoteError) as caught:
        saboteur.fetch_response(f"raise {name}")
    assert "in raise_it" in caught.value.remote_traceback


def test_a_text_that_is_cut_keeps_its_beginning_and_its_end_and_says_so(saboteur: PythonSession) -> None:
    with pytest.raises(RemoteError, match="characters are left out") as caught:
        saboteur.fetch_response("raise long_key")
    trace = caught.value.remote_traceback
    assert "raise_it" in trace
    assert "KeyError: 'xxx" in trace
    assert trace.endswith("xxx'\n")


@pytest.mark.parametrize("name", ["causes", "contexts", "group"])
def test_of_many_linked_exceptions_some_are_shown(saboteur: PythonSession, name: str) -> None:
    with pytest.raises(RemoteError) as caught:
        saboteur.fetch_response(f"raise {name}", SLOW_MS)
    assert "linked to ValueError" in caught.value.remote_traceback
    assert "left out" in caught.value.remote_traceback
    assert "raise_it" in caught.value.remote_traceback


@pytest.mark.parametrize("message", ["recursion 20000", "endless"])
def test_of_a_deep_traceback_both_ends_are_shown(saboteur: PythonSession, message: str) -> None:
    with pytest.raises(RemoteError, match=r"deep|recursion") as caught:
        saboteur.fetch_response(message, SLOW_MS)
    assert len(caught.value.remote_traceback.splitlines()) < 500
    assert "in the middle of the traceback are left out" in caught.value.remote_traceback


def test_an_exception_class_without_an_instance_arrives(saboteur: PythonSession) -> None:
    with pytest.raises(RemoteError) as caught:
        saboteur.fetch_response("raise_class")
    assert caught.value.error_type == "CancelledError"


# -- whose frames a traceback shows ----------------------------------------------------------------------------------


@pytest.mark.each_value
@pytest.mark.parametrize("channel", ["mapped", "files"])
@pytest.mark.parametrize("message", ["raise cancelled", "nested", "bad_dtype", "too_large", "recursion 3"])
def test_a_traceback_has_the_handlers_frames_and_none_of_ours(channel: str, message: str) -> None:
    with _saboteur(channel) as session, pytest.raises(RemoteError) as caught:
        session.fetch_response(message)
    trace = caught.value.remote_traceback
    assert "saboteur.py" in trace
    assert f"{os.sep}{LIBRARY}" not in trace
    assert trace.startswith("Traceback (most recent call last):\n")


def test_a_handlers_cause_is_shown_as_python_does(saboteur: PythonSession) -> None:
    with pytest.raises(RemoteError, match="outer") as caught:
        saboteur.fetch_response("nested")
    assert "KeyError: 'inner'" in caught.value.remote_traceback
    assert "direct cause" in caught.value.remote_traceback


def test_a_traceback_without_a_handlers_frames_keeps_ours(tmp_path: Path) -> None:
    text = "from tr_mmap import TechRenaissanceServer\nTechRenaissanceServer(framework='numpy').run()\n"
    with PythonSession(script(tmp_path, text), quiet_mode=True) as session:
        with pytest.raises(RemoteError, match="does not define main_logic") as caught:
            session.fetch_response("anything")
        assert f"{os.sep}{LIBRARY}" in caught.value.remote_traceback


# -- before the handler's first line and after its last --------------------------------------------------------------

LIMITED = """
import functools
import resource
import numpy as np
from tr_mmap import Server

server = Server()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

def returning(value):
    def returns_it():
        return value
    return returns_it

class Odd:
    def __array__(self, *_, **__):
        raise LookupError("no array today")

VALUES = dict(
    number=1.5, several=[1.5, 2.0], table={"a": {1}}, mixed=(np.ones(3), "text"), objects=np.array([None]),
    masked=np.ma.array([1.0, 2.0], mask=[0, 1]), steps=map(abs, [1]), some_bytes=b"abc", odd=[np.ones(3), Odd()],
)
for name, value in VALUES.items():
    server.command(name)(returning(value))
server.command("partial")(functools.partial(lambda value: value, 1.5))

@server.command("starve")
def starve():
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))

@server.command("feed")
def feed():
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

@server.command("total")
def total(x):
    return str(x.sum())

@server.command("ones")
def ones(count: int):
    return np.ones(count)

server.run()
"""


@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_an_error_of_what_a_function_returned_says_so_and_names_the_function(tmp_path: Path, channel: Any) -> None:
    path = script(tmp_path, LIMITED)
    names = ["number", "several", "table", "mixed", "objects", "masked", "steps", "some_bytes", "odd", "partial"]
    with PythonSession(path, quiet_mode=True, channel=channel) as session:
        for name in names:
            with pytest.raises(
                RemoteError, match=f"^'{name}' failed in the worker: .*returned cannot be sent"
            ) as caught:
                session.fetch_response(name)
            assert caught.value.error_type == "UnsupportedTensor", name
            trace = caught.value.remote_traceback.splitlines()
            assert trace[0] == "Traceback (most recent call last):"
            assert f'File "{path}", line ' in trace[1], name
            assert trace[1].endswith("<lambda>" if name == "partial" else "returns_it")
            assert f"{os.sep}{LIBRARY}" not in caught.value.remote_traceback
            with pytest.raises(RemoteError, match="cannot be sent"):
                session.calculate(name)
        assert session.calculate("ones 3").sum() == 3


def test_a_limit_of_the_worker_is_told_as_the_workers(tmp_path: Path) -> None:
    path = script(tmp_path, LIMITED)
    with PythonSession(path, quiet_mode=True) as session:
        x = np.ones(100_000)
        session.fetch_response("starve")
        with pytest.raises(RemoteError, match=r"^'total' failed in the worker: SystemLimit: .*RLIMIT_NOFILE") as caught:
            session.calculate("total", x)
        assert (caught.value.command, caught.value.error_type) == ("total", "SystemLimit")
        with pytest.raises(
            RemoteError, match=r"^'ones' failed in the worker: SystemLimit: what the function"
        ) as caught:
            session.fetch_tensor("ones 100000")
        assert f'File "{path}", line ' in caught.value.remote_traceback
        assert f"{os.sep}{LIBRARY}" not in caught.value.remote_traceback
        session.fetch_response("feed")
        session.send_tensor(x, "x")
        assert session.fetch_response("total x") == "100000.0"
        with pytest.raises(RemoteError, match=r"^total: there is no tensor with the tag 'y'"):
            session.fetch_response("total y")


BUILTINS = """
import math
import numpy as np
from tr_mmap import Server
server = Server()
server.command("root")(lambda x: math.sqrt(-1))
for name, function in {"length": len, "float": float, "product": np.dot}.items():
    try:
        server.command(name)(function)
    except Exception as error:
        print(name, error)
server.run()
"""


def test_the_traceback_of_a_builtin_has_no_frames_of_the_library(tmp_path: Path) -> None:
    with PythonSession(script(tmp_path, BUILTINS), quiet_mode=True) as session:
        for name, tensors in (
            ("length", [np.float64(1)]),
            ("float", [np.ones(2)]),
            ("product", [np.ones(2), np.ones(3)]),
        ):
            with pytest.raises(RemoteError, match=f"^'{name}' failed in the worker: (Type|Value)Error") as caught:
                session.calculate(name, *tensors)
            assert "File " not in caught.value.remote_traceback
            assert caught.value.error_type in caught.value.remote_traceback
        with pytest.raises(RemoteError, match="math domain error") as caught:
            session.calculate("root", np.ones(1))
        assert "in <lambda>" in caught.value.remote_traceback  # a frame of the user's stays


# -- no room in the worker -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_no_room_in_the_worker_is_an_out_of_space_here(channel: str) -> None:
    with _saboteur(channel) as session:
        with pytest.raises(OutOfSpace) as caught:
            session.fetch_response("too_large")
        assert isinstance(caught.value, RemoteOutOfSpace)
        assert caught.value.needed_nbytes >= 1 << 45
        assert 0 <= caught.value.free_nbytes < 1 << 45
        assert caught.value.command == "too_large"
        with pytest.raises(RemoteOutOfSpace) as none_free:
            session.fetch_response("raise out_of_space")
        assert (none_free.value.needed_nbytes, none_free.value.free_nbytes) == (100, 0)
        with pytest.raises(RemoteError) as users_own:
            session.fetch_response("raise bare_out_of_space")
        assert not isinstance(users_own.value, OutOfSpace)


# -- what ends a worker ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_sys_exit_in_a_handler_still_ends_the_worker(channel: str) -> None:
    with PythonSession(SABOTEUR, quiet_mode=True, channel=channel) as session:
        with pytest.raises(WorkerDied) as caught:
            session.fetch_response("quit 3")
        assert caught.value.exit_code in (
            3,
            None,
        )  # None: a busy machine has not ended its process yet
        wait_until(lambda: not session.is_alive())


# -- by subclass -----------------------------------------------------------------------------------------------------

SUBCLASS = """
import asyncio, sys
import numpy as np
from tr_mmap import TechRenaissanceServer

class Worker(TechRenaissanceServer):
    def main_logic(self, command, parameters):
        if command == "raise":
            sys.stderr = None
            raise asyncio.CancelledError("by subclass")
        if command == "array":
            return np.ones(3)
        if command == "odd":
            self.write_response(5, np.str_("text"), 7)
            return True
        return False

Worker(framework="numpy").run()
"""


@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_a_subclass_may_raise_and_return_anything_too(tmp_path: Path, channel: str) -> None:
    path = tmp_path / "worker.py"
    path.write_text(SUBCLASS)
    with PythonSession(path, quiet_mode=True, channel=channel) as session:
        with pytest.raises(RemoteError, match="by subclass") as caught:
            session.fetch_response("raise")
        assert caught.value.error_type == "CancelledError"
        assert "main_logic" in caught.value.remote_traceback
        with pytest.raises(RemoteError, match="truth value"):  # neither true nor false
            session.fetch_response("array")
        assert session.fetch_response("odd") == "text"
