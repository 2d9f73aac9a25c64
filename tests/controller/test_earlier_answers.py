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
        wait_until(session.new_response)
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


@pytest.mark.parametrize("ask", ["next request", "take"])
def test_an_answer_that_cannot_be_received_for_want_of_descriptors_is_not_lost(workspace: Path, ask: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with PythonSession(TOOLS, "limited", quiet_mode=True) as session:
        session.send_tensor(A, "x")
        session.send_request("echo x")
        wait_until(session.new_response)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(SystemLimit) as caught:
                session.wait_for_tensor(FOREVER_MS) if ask == "take" else session.send_request("say a")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert caught.value.limit == "RLIMIT_NOFILE"
        assert session.wait_for_tensor(FOREVER_MS).tolist() == A.tolist()
        assert session.fetch_response("say b") == "b"
