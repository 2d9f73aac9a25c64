"""What is wrong with one answer is said to whoever takes that answer, and the next request goes on."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import FOREVER_MS, TOOLS, wait_until

from tr_mmap import PythonSession, RemoteError, StaleTensor, SystemLimit, TSRFormatError

A = np.arange(5000.0)  # too large for a slab, so its file is its own


def flip(path: str) -> None:
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff")


@pytest.mark.each_value
@pytest.mark.parametrize("next_request", ["send_request", "fetch_response", "calculate"])
@pytest.mark.parametrize(
    ("damage", "checksum", "error"), [(flip, True, TSRFormatError), (os.unlink, False, StaleTensor)]
)
def test_the_error_of_one_answer_never_becomes_that_of_the_next_request(
    workspace: Path, damage: Callable[[str], None], checksum: bool, error: type[Exception], next_request: str
) -> None:
    with PythonSession(TOOLS, "damaged", quiet_mode=True, checksum=checksum) as session:
        session.send_tensor(A, "x")
        session.send_request("echo x")
        wait_until(session._dispatcher.resources.worker.channel.has_message)  # type: ignore[union-attr] # it is started
        damage(os.path.join(session.session_dir(), "result_0.tsr"))
        if next_request == "send_request":
            session.send_request("say a")
        elif next_request == "fetch_response":
            assert session.fetch_response("say a") == "a"
        else:
            assert session.calculate("say a") == "a"
        with pytest.raises(error):
            session.wait_for_tensor(FOREVER_MS)
        if next_request == "send_request":
            assert session.wait_for_response(FOREVER_MS) == "a"
        assert session.fetch_response("say b") == "b"


def test_a_failed_handler_is_the_error_of_its_own_request(workspace: Path) -> None:
    with PythonSession(TOOLS, "failed", quiet_mode=True) as session:
        session.send_request("missing")
        session.send_request("say a")
        with pytest.raises(RemoteError):
            session.wait_for_response(FOREVER_MS)
        assert session.wait_for_response(FOREVER_MS) == "a"


@pytest.mark.parametrize("is_taken", [True, False])
def test_an_answer_that_cannot_be_received_for_want_of_descriptors_is_not_lost(workspace: Path, is_taken: bool) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with PythonSession(TOOLS, "limited", quiet_mode=True) as session:
        session.send_tensor(A, "x")
        session.send_request("echo x")
        wait_until(session._dispatcher.resources.worker.channel.has_message)  # type: ignore[union-attr] # it is started
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            if is_taken:
                with pytest.raises(SystemLimit) as caught:
                    session.wait_for_tensor(FOREVER_MS)
                assert caught.value.limit == "RLIMIT_NOFILE"
            assert session.fetch_response("say a") == "a"  # it waits for none of the others
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in range(3):  # whose results take no memory of the one that was not received
            assert session.calculate("echo", A + number).tolist() == (A + number).tolist()
        assert session.wait_for_tensor(FOREVER_MS).tolist() == A.tolist()
        assert session.fetch_response("say b") == "b"


def test_a_call_that_finds_no_descriptor_for_its_result_keeps_none_of_the_workers_memory(workspace: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with PythonSession(TOOLS, "limited", quiet_mode=True) as session:
        session.send_tensor(A, "x")
        assert session.fetch_response("say a") == "a"
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(SystemLimit):
                session.fetch_tensor("echo x")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert not session.is_busy()
        for number in range(100):
            assert session.calculate("echo", A + number).tolist() == (A + number).tolist()
        assert len(list(Path(session.session_dir()).glob("result_*"))) < 5
