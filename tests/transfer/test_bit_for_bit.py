"""Every tensor comes back bit for bit, through either worker and over either channel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strategies as own
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import bits, shape_of
from support import TOOLS, at_rest, wait_until

from tr_mmap import PythonSession, UnsupportedTensor
from tr_mmap.tsr.dtypes import TABLE, DType

A = np.arange(6, dtype=np.float32).reshape(2, 3)
EXAMPLES = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def _ids(kind: DType) -> str:
    return kind.name


@pytest.mark.parametrize("kind", TABLE, ids=_ids)
@given(data=st.data())
@EXAMPLES
def test_every_tensor_comes_back_bit_for_bit_through_a_numpy_worker(
    shared_mapped: PythonSession, kind: DType, data: st.DataObject
) -> None:
    _round_trip(shared_mapped, data.draw(own.tensors(st.just(kind))))


@pytest.mark.parametrize("kind", TABLE, ids=_ids)
@given(data=st.data())
@EXAMPLES
def test_every_tensor_comes_back_bit_for_bit_through_a_torch_worker(
    torch_session: PythonSession, kind: DType, data: st.DataObject
) -> None:
    _round_trip(torch_session, data.draw(own.tensors(st.just(kind))))


def _round_trip(session: PythonSession, tensor: Any) -> None:
    """By calculate, in the tensor's framework; by tag, in the session's. And twice: results must not be mixed up."""
    wanted, shape = bits(tensor), shape_of(tensor)
    answer = session.calculate("echo", tensor)
    assert isinstance(answer, torch.Tensor if isinstance(tensor, torch.Tensor) else np.ndarray)
    session.send_tensor(tensor, "x")
    other = session.fetch_tensor("echo x")
    assert isinstance(other, np.ndarray)
    for each in (answer, other):
        assert bits(each) == wanted
        assert shape_of(each) == shape
    if isinstance(answer, torch.Tensor):
        assert answer.dtype == tensor.dtype
    else:
        assert answer.dtype == other.dtype == tensor.dtype.newbyteorder("<")


@given(tensor=own.tensors())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_tensors_come_back_bit_for_bit_over_the_portable_channel(shared_files: PythonSession, tensor: Any) -> None:
    answer = shared_files.calculate("echo", tensor)
    assert bits(answer) == bits(tensor)
    assert shape_of(answer) == shape_of(tensor)


def _special(kind: DType) -> np.ndarray[Any, Any]:
    """Every bit pattern of a small type; NaNs of both kinds and signs, -0.0, infinities, subnormals of a large one."""
    if kind.itemsize <= 2 and kind.name != "bool":
        return np.arange(1 << (8 * kind.itemsize), dtype=f"<u{kind.itemsize}").view(kind.numpy)
    if kind.name == "float32" or kind.name == "complex64":
        words = [0x7FC00000, 0x7F800001, 0xFFC12345, 0xFF800001, 0x80000000, 0, 1, 0x807FFFFF, 0x7F800000, 0xFF800000]
        return np.array(words, "<u4").view(kind.numpy)
    if kind.name in ("float64", "complex128"):
        words = [0x7FF8 << 48, (0x7FF0 << 48) + 1, (0xFFF8 << 48) + 0x123456789A, 1 << 63, 0, 1, (0x800F << 48) + 7]
        return np.array([*words, 0x7FF0 << 48], "<u8").view(kind.numpy)
    if kind.name == "bool":
        return np.array([True, False])
    if kind.numpy.kind not in "iu":
        return np.arange(1 << 16, dtype="<u2").view(kind.numpy)  # each number is made of smaller ones
    info = np.iinfo(kind.numpy)
    return np.array([info.min, info.max, 0, 1], kind.numpy)


@pytest.mark.parametrize("kind", TABLE, ids=_ids)
def test_nan_payloads_negative_zeros_and_subnormals_survive(
    shared_mapped: PythonSession, torch_session: PythonSession, kind: DType
) -> None:
    array = _special(kind)
    tensor = torch.from_numpy(array.view(np.uint8).copy()).view(kind.torch)
    for session in (shared_mapped, torch_session):
        assert bits(session.calculate("echo", array)) == bits(array)
        assert bits(session.calculate("echo", tensor)) == bits(array)
        assert bits(session.calculate("echo", array[::-1])) == bits(array[::-1])
        big = array.astype(array.dtype.newbyteorder(">")) if kind.itemsize > 1 and array.dtype.kind in "iuf" else array
        assert bits(session.calculate("echo", big)) == bits(big)


def test_sixteen_dimensions_scalars_and_empty_tensors_cross(session: PythonSession) -> None:
    for array in (
        np.zeros((1,) * 15 + (3,), np.int16),
        np.float64(2.5),
        np.array(7, np.uint8),
        np.empty((0,), np.float32),
        np.empty((3, 0, 2), np.complex64),
    ):
        answer = session.calculate("echo", array)
        assert answer.shape == array.shape
        assert answer.dtype == array.dtype
        assert bits(answer) == bits(array)


def test_seventeen_dimensions_are_refused(mapped: PythonSession) -> None:
    with pytest.raises(UnsupportedTensor, match="17"):
        mapped.send_tensor(np.zeros((1,) * 17), "x")


def test_a_torch_session_gives_torch_tensors_also_from_its_queue() -> None:
    with PythonSession(TOOLS, quiet_mode=True, framework="torch") as session:
        for number in range(20):
            session.send_tensor(np.full(1000, number), "number")
            session.send_request("echo number")
        for number in range(20):
            tensor = session.wait_for_tensor()
            assert isinstance(tensor, torch.Tensor)
            assert torch.equal(tensor, torch.full((1000,), number))
        session.send_tensor(torch.ones(3, dtype=torch.bfloat16), "x")
        assert session.fetch_tensor("echo x").dtype == torch.bfloat16
        assert isinstance(session.calculate("echo x"), torch.Tensor)
        assert isinstance(session.calculate("echo", np.ones(3)), np.ndarray)
        assert isinstance(session.empty(3), torch.Tensor)
        assert isinstance(session.empty(3, framework="numpy"), np.ndarray)


def test_a_view_of_a_result_may_be_sent_on(mapped: PythonSession) -> None:
    x = np.arange(10_000)
    for _ in range(30):
        x = mapped.calculate("echo", x)
    assert np.array_equal(x, np.arange(10_000))
    mapped.send_tensor(x[10:20], "part")
    assert np.array_equal(mapped.fetch_tensor("echo part"), np.arange(10, 20))


def test_status_and_messages_can_be_read_by_anybody(session: PythonSession) -> None:
    """The session's files are JSON and words, as the older protocol has them."""
    directory = Path(session.session_dir())
    session.fetch_response("hello reader")
    wait_until(lambda: (directory / "status.txt").read_text().split("\n")[0].split(":")[0] in ("ok", "ready", "done"))
    manifest = json.loads((directory / "session.json").read_text())
    assert manifest["session_id"] == session.session_id()
    if manifest["channel"] == "mapped":
        request = at_rest(directory / "request.json", lambda fields: fields.get("parameters") == "reader")
        assert (request["command"], request["parameters"]) == ("hello", "reader")
        response = at_rest(directory / "response.json", lambda fields: fields.get("result") == "Hello Reader")
        assert response["result"] == "Hello Reader"
        assert response["timestamp"] >= request["timestamp"] > 1_600_000_000_000


def test_the_files_of_tags_and_results_are_tsr_files(mapped: PythonSession) -> None:
    import tr_mmap

    mapped.send_tensor(A, "filed")
    view = mapped.fetch_tensor("echo filed")
    path = Path(mapped.session_dir()) / "filed.tsr"
    assert tr_mmap.read_header(path).shape == A.shape
    assert bits(tr_mmap.load(path)) == bits(A)
    assert bits(view) == bits(A)
