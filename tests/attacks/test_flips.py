"""Payloads can be checked: with ``checksum=True`` a bit that flips on the way is an error on receipt, on both sides."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import TOOLS, TORCH_TOOLS, empty_place, wait_until

from tr_mmap import BadMessage, Fault, PythonSession, RemoteError, TSRFormatError, read_header
from tr_mmap.native import drain
from tr_mmap.protocol.messages import TensorRef
from tr_mmap.shm.pool import SegmentPool
from tr_mmap.shm.reader import SegmentReader


@pytest.fixture(scope="module", params=["mapped", "files"])
def shared(request: pytest.FixtureRequest) -> Iterator[PythonSession]:
    with empty_place() as path, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TR_WORKSPACE", str(path))
        with PythonSession(TOOLS, quiet_mode=True, checksum=True, channel=request.param) as session:
            patch.undo()
            yield session


def flip(path: Path, bit: int) -> None:
    """Change one bit of a file's payload, behind everybody's back."""
    offset = read_header(path).payload_offset + bit // 8
    fd = os.open(path, os.O_RDWR)
    try:
        os.pwrite(fd, bytes([os.pread(fd, 1, offset)[0] ^ 1 << bit % 8]), offset)
    finally:
        os.close(fd)


def results(session: PythonSession) -> dict[Path, int]:
    """The worker's segments that hold a tensor, and under which number each was published."""
    found = {}
    for path in Path(session.session_dir()).glob("result_*.tsr"):
        seq = int.from_bytes(path.read_bytes()[64:72], "little")
        if 0 < seq < 2**64 - 1:
            found[path] = seq
    return found


# -- every bit ------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> tuple[SegmentPool, SegmentReader]:
    return SegmentPool(str(tmp_path), "segment", checksum=True), SegmentReader(str(tmp_path), verify=True)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_every_bit_of_a_payload_is_guarded(pair: tuple[SegmentPool, SegmentReader], framework: str) -> None:
    pool, receiver = pair
    array = np.arange(24, dtype="<f4").reshape(2, 3, 4)
    segment = pool.publish(array)
    ref = TensorRef("a", segment.name, segment.seq)
    for bit in range(8 * array.nbytes):
        flip(Path(segment.path), bit)
        with pytest.raises(TSRFormatError) as caught:
            receiver.receive(ref.segment, ref.seq, framework, ref.tag)
        assert caught.value.fault is Fault.PAYLOAD_CHECKSUM
        flip(Path(segment.path), bit)
    assert np.array_equal(np.asarray(receiver.receive(ref.segment, ref.seq, framework, ref.tag)), array)


def test_flips_all_over_a_large_payload_are_found(pair: tuple[SegmentPool, SegmentReader]) -> None:
    pool, receiver = pair
    segment = pool.publish(np.zeros(1 << 20, np.uint8))
    ref = TensorRef("a", segment.name, segment.seq)
    for bit in [0, 8 * (1 << 20) - 1, *random.Random(3).sample(range(8 << 20), 50)]:
        flip(Path(segment.path), bit)
        with pytest.raises(TSRFormatError):
            receiver.receive(ref.segment, ref.seq, "numpy", ref.tag)
        flip(Path(segment.path), bit)
    assert not receiver.receive(ref.segment, ref.seq, "numpy", ref.tag).any()


def test_a_refused_payload_leaves_no_lease(pair: tuple[SegmentPool, SegmentReader]) -> None:
    pool, receiver = pair
    segment = pool.publish(np.zeros(10))
    flip(Path(segment.path), 0)
    with pytest.raises(TSRFormatError):
        receiver.receive(segment.name, segment.seq, "numpy")
    segment.release()
    assert pool.publish(np.ones(10)) is segment


def test_a_segment_that_is_filled_again_has_its_new_checksum(pair: tuple[SegmentPool, SegmentReader]) -> None:
    pool, receiver = pair
    names = set()
    for value in range(50):
        segment = pool.publish(np.full(10, value))
        names.add(segment.name)
        assert receiver.receive(segment.name, segment.seq, "numpy").tolist() == [value] * 10
        header = read_header(segment.path)
        assert header.payload_checksum == zlib.crc32(np.full(10, value).tobytes())
        segment.release()
        drain()
    assert len(names) < 5


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_loans_views_of_loans_and_empty_tensors_have_checksums(
    pair: tuple[SegmentPool, SegmentReader], framework: str
) -> None:
    pool, receiver = pair
    loan = pool.empty((4, 64), "float32", framework)
    loan[...] = 3
    for tensor in (loan, loan[1:], loan):
        segment = pool.publish(tensor)
        array = receiver.receive(segment.name, segment.seq, "numpy")
        assert array.shape == tuple(tensor.shape)
        assert (array == 3).all()
    for shape in ((), (0,), (3, 0, 2)):
        segment = pool.publish(np.zeros(shape, "<i2"))
        assert receiver.receive(segment.name, segment.seq, "numpy").shape == shape


def test_a_tensor_without_a_checksum_is_refused_by_who_wants_one(tmp_path: Path) -> None:
    segment = SegmentPool(str(tmp_path), "segment").publish(np.zeros(3))
    with pytest.raises(TSRFormatError, match="no checksum") as caught:
        SegmentReader(str(tmp_path), verify=True).receive(segment.name, segment.seq, "numpy")
    assert caught.value.fault is Fault.PAYLOAD_CHECKSUM


# -- through a session ----------------------------------------------------------------------------------------------


def test_a_flip_on_the_way_to_the_worker_is_an_error_there(shared: PythonSession) -> None:
    shared.send_tensor(np.arange(1000.0), "a")
    assert shared.fetch_response("total a") == str(sum(range(1000)))
    path = Path(shared.session_dir()) / "a.tsr"
    flip(path, 12345)
    with pytest.raises(RemoteError, match="checksum") as caught:
        shared.fetch_response("total a")
    assert caught.value.error_type == "TSRFormatError"
    flip(path, 12345)
    assert shared.fetch_response("total a") == str(sum(range(1000)))
    shared.drop_tensor("a")


def test_a_flip_on_the_way_back_is_an_error_here_and_the_session_goes_on(shared: PythonSession) -> None:
    shared.send_tensor(np.arange(1000.0), "a")
    before = results(shared)
    shared.send_request("echo a")
    worker = shared._open().worker()
    wait_until(lambda: worker.channel.peek() is not None)  # it is there, and was not received
    (changed,) = (path for path, seq in results(shared).items() if before.get(path) != seq)
    flip(changed, 63_999)
    with pytest.raises(TSRFormatError) as caught:
        shared.wait_for_tensor()
    assert caught.value.fault is Fault.PAYLOAD_CHECKSUM
    assert shared.calculate("echo", np.arange(3.0)).tolist() == [0, 1, 2]


def test_checksums_are_stored_only_where_they_are_wanted(shared: PythonSession, mapped: PythonSession) -> None:
    for session, is_wanted in ((shared, True), (mapped, False)):
        kept = session.calculate("echo", np.arange(5.0))
        headers = [read_header(path) for path in results(session)]
        assert headers
        assert all((header.payload_checksum is not None) is is_wanted for header in headers)
        del kept


def test_torch_on_both_sides_with_checksums(workspace: Path) -> None:
    import torch

    with PythonSession(TORCH_TOOLS, quiet_mode=True, checksum=True, auth=True, framework="torch") as session:
        x = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
        assert torch.equal(session.calculate("echo", x), x)


@pytest.mark.parametrize("option", ["auth", "checksum"])
def test_an_older_peer_cannot_be_asked_for_either(option: str) -> None:
    options: dict[str, Any] = {option: True}
    with pytest.raises(BadMessage, match=option):
        PythonSession(channel="legacy", **options)
