"""A usual file is opened by the fast path just as it is; every other one is left to the slow path."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import arrays, bits
from support import open_files

from tr_mmap import load, native, save
from tr_mmap.tsr import files
from tr_mmap.tsr import header as codec

pytestmark = pytest.mark.skipif(not native.IS_COMPILED, reason="the fast paths are the extension's")


FLOATS = np.arange(8, dtype=np.float32)
ITEMSIZES = files._ITEMSIZES


@given(array=arrays(), checksum=st.booleans())
def test_a_usual_file_is_opened_by_the_fast_path_just_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, checksum: bool
) -> None:
    path = str(tmp_path_factory.getbasetemp() / "usual.tsr")
    save(path, array, checksum=checksum)
    header = codec.decode(Path(path).read_bytes(), file_nbytes=os.path.getsize(path))
    for is_private in (False, True):
        found = native.quick_load(path, ITEMSIZES, is_private)
        if array.size == 0:
            assert found is None
            continue
        assert found is not None
        mapping, *layout = found
        assert layout[:3] == [header.dtype.code, header.shape, header.payload_offset]
        assert layout[3:] in ([0], [os.stat(path).st_ino])
        assert len(memoryview(mapping)) == header.file_nbytes
        assert memoryview(mapping).readonly is not is_private
    assert bits(load(path)) == bits(array)


@given(st.data())
def test_a_changed_file_is_never_opened_by_the_fast_path_unless_the_slow_path_would(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(files.TABLE))
    shape = data.draw(st.sampled_from([(), (3,), (2, 2), (1,) * 16]))
    raw = bytearray(
        codec.encode_v2(
            dtype,
            shape,
            created_ns=5,
            seq=data.draw(st.sampled_from([1, 7])),
            payload_checksum=data.draw(st.sampled_from([None, 9])),
            is_segment=data.draw(st.booleans()),
        )
    )
    offsets = st.sampled_from([0, 4, 8, 12, 16, 20, 24, 32, 48, 52, 56, 64, 72, 80, 88, 96, 120, 128, 136, 248])
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(offsets)
        raw[at : at + 4] = data.draw(
            st.sampled_from([0, 1, 2, 3, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
        ).to_bytes(4, "little")
    if data.draw(st.booleans()):  # so that the checksum does not hide what else is wrong
        raw[60:64] = files.zlib.crc32(raw[128:256], files.zlib.crc32(raw[:60])).to_bytes(4, "little")
    raw += bytes(
        data.draw(st.sampled_from([0, 16, 64])) if data.draw(st.booleans()) else int(np.prod(shape)) * dtype.itemsize
    )
    path = tmp_path_factory.getbasetemp() / "changed.tsr"
    path.write_bytes(raw)
    found = native.quick_load(str(path), ITEMSIZES, False)
    if found is not None:
        header = codec.decode(bytes(raw), file_nbytes=len(raw))
        assert not header.is_segment
        assert found[1:4] == (header.dtype.code, header.shape, header.payload_offset)


@dataclass(frozen=True)
class Wrong:
    """A path that leads to no usual file."""

    name: str

    def make(self, directory: Path) -> str:
        path = directory / self.name
        if self.name == "directory":
            path.mkdir()
        elif self.name == "fifo":
            os.mkfifo(path)
        elif self.name == "short":
            path.write_bytes(b"TSR!\2\0\0\0")
        elif self.name == "v1":
            save(path, FLOATS, version=1)
        return str(path)


@pytest.mark.parametrize("wrong", [Wrong(name) for name in ("missing", "directory", "fifo", "short", "v1")])
def test_a_path_to_no_usual_file_keeps_nothing_open(tmp_path: Path, wrong: Wrong) -> None:
    path = wrong.make(tmp_path)
    fds = open_files()
    assert native.quick_load(path, ITEMSIZES, False) is None
    assert native.quick_load(os.fsencode(path), ITEMSIZES, True) is None
    assert open_files() == fds


def test_a_fast_path_that_the_system_refuses_is_left_to_the_slow_path(tmp_path: Path) -> None:
    path = str(tmp_path / "x.tsr")
    save(path, FLOATS)
    os.close(lowest := os.open(path, os.O_RDONLY))  # the next one that there is
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        assert native.quick_load(path, ITEMSIZES, False) is None
        with pytest.raises(OSError, match="Too many open files"):
            load(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert load(path).tolist() == FLOATS.tolist()
