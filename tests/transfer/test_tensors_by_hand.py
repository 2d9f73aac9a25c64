"""Tensors of requests that somebody writes by hand, on each channel: what tags mean, and that results harm no other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support import TOOLS, at_rest

import tr_mmap
from tr_mmap import PythonSession

X = np.arange(3, dtype=np.float32)


@pytest.fixture(params=["mapped", "files", "legacy"])
def session(request: pytest.FixtureRequest) -> Iterator[PythonSession]:
    with PythonSession(TOOLS, "by_hand", quiet_mode=True, channel=request.param) as made:
        yield made


def ask(session: PythonSession, command: str, *words: str) -> str:
    """The params of the answer to a request by hand, which is removed."""
    directory = Path(session.session_dir())
    new = directory / "new"
    new.write_text(json.dumps({"cmd": command, "params": ",".join(words)}))
    new.rename(directory / "request.json")
    params: str = at_rest(directory / "response.json", lambda fields: "params" in fields)["params"]
    (directory / "response.json").unlink()
    return params


def ask_for_tensors(session: PythonSession, *tags: str) -> list[Any]:
    answer = ask(session, "echo", *tags)
    assert not answer.startswith("error"), answer
    return [tr_mmap.load(Path(session.session_dir()) / f"{tag}.tsr").copy() for tag in answer.split(",")]


def test_results_by_hand_and_the_controllers_own_leave_each_other_alone(session: PythonSession) -> None:
    session.send_tensor(X, "x")
    session.send_tensor(X + 1, "y")
    kept: list[Any] = []
    for tags in (["x"], ["x", "y"], ["y"], ["x", "y", "x", "y"], ["x"]):
        by_hand = ask_for_tensors(session, *tags)
        assert [each[0] for each in by_hand] == [0.0 if tag == "x" else 1.0 for tag in tags]
        for _ in range(2):
            kept.append(session.calculate("echo", X + len(kept)))
        kept += session.calculate("echo", X + len(kept), X + len(kept) + 1)
    assert [each[0] for each in kept] == list(range(len(kept)))
    assert session.fetch_tensor("echo x").tolist() == X.tolist()


def test_a_request_by_hand_that_fails_harms_no_later_one(session: PythonSession) -> None:
    session.send_tensor(X, "x")
    assert ask(session, "late_failure", "x").startswith("error: ")
    assert session.calculate("echo", X).tolist() == X.tolist()
    assert ask_for_tensors(session, "x")[0].tolist() == X.tolist()


def test_by_hand_a_tag_means_what_the_controller_sent_last(session: PythonSession) -> None:
    for number in range(6):
        session.send_tensor(X + number, "x")
        assert ask_for_tensors(session, "x")[0].tolist() == (X + number).tolist()
        if number % 3:
            assert session.fetch_tensor("echo x").tolist() == (X + number).tolist()
    session.drop_tensor("x")
    assert "there is no tensor with the tag 'x'" in ask(session, "echo", "x")


def test_by_hand_a_file_that_somebody_puts_there_is_a_tensor(session: PythonSession) -> None:
    tr_mmap.save(os.path.join(session.session_dir(), "own.tsr"), X, checksum=True)
    assert ask_for_tensors(session, "own")[0].tolist() == X.tolist()
    assert session.calculate("echo", X).tolist() == X.tolist()


def test_by_hand_a_result_of_any_kind_is_a_file() -> None:
    for channel in ("mapped", "files"):
        with PythonSession(TOOLS, quiet_mode=True, channel=channel) as session:
            for values in (np.arange(3), np.ones(2, bool), np.ones((1,) * 6, "c8"), np.ones(3, ml_dtypes.bfloat16)):
                session.send_tensor(values, "x")
                (found,) = ask_for_tensors(session, "x")
                assert (found.dtype, found.tolist()) == (values.dtype, values.tolist())


def test_by_hand_no_tensor_is_half_of_one_and_half_of_another(mapped: PythonSession) -> None:
    values = np.zeros(300_000)
    for _ in range(10):
        directory = Path(mapped.session_dir())
        mapped.send_tensor(values, "x")
        (directory / "request.json").write_text('{"cmd": "echo", "params": "x"}')
        for _ in range(20):  # meanwhile segments that the tag had are filled again
            values += 1
            mapped.send_tensor(values, "x")
        at_rest(directory / "response.json", lambda fields: fields.get("params") == "by_hand_0")
        found = tr_mmap.load(directory / "by_hand_0.tsr")
        assert (found == found[0]).all()
        (directory / "response.json").unlink()
    mapped.drop_tensor("x")


def test_by_hand_a_file_that_does_not_fit_its_checksum_is_refused(workspace: Path) -> None:
    with PythonSession(TOOLS, quiet_mode=True, channel="files") as session:
        path = Path(session.session_dir()) / "own.tsr"
        tr_mmap.save(path, X, checksum=True)
        with open(path, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x01")
        assert "checksum" in ask(session, "echo", "own")
        assert session.fetch_response("hello you") == "Hello You"
