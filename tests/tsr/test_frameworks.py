"""memmap and from_file give numpy's and torch's own kind of mapping, of files and of live segments."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strategies as own
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import bits
from support import open_files
from tsr_files import ARRAY, fault_of, names

import tr_mmap
from tr_mmap import PythonSession
from tr_mmap.base import system
from tr_mmap.errors import BadMessage, Fault, HostilePath, SystemLimit, UnsupportedTensor
from tr_mmap.tsr import frameworks, from_file, load, memmap, read_header, save
from tr_mmap.tsr.dtypes import TABLE

BOTH = pytest.mark.parametrize("give", [memmap, from_file])


def is_mapped_by(tensor: torch.Tensor, path: Path) -> bool:
    """Whether the kernel says that the tensor's memory is a private mapping of that file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(each, 16) for each in line.split()[0].split("-"))
        if first <= tensor.untyped_storage().data_ptr() < last:
            return line.split()[1] == "rw-p" and line.endswith(str(path))
    return False


@given(own.tensors(), st.sampled_from("rc"), st.booleans())
@settings(deadline=None, max_examples=80)
def test_every_tensor_is_a_true_memmap_bit_for_bit(tensor: Any, mode: Any, checksum: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "x.tsr")
        save(path, tensor, checksum=checksum)
        header = read_header(path)
        array = memmap(path, mode)
        assert type(array) is np.memmap
        assert bits(array) == bits(tensor)
        numpys_own = np.memmap(path, header.dtype.numpy, mode, header.payload_offset, header.shape)
        for attribute in ("filename", "offset", "mode", "shape", "dtype"):
            assert getattr(array, attribute) == getattr(numpys_own, attribute)
        assert array.strides == load(path).strides  # without elements, numpy's memmap has others than its arrays
        assert array.flags.writeable is (mode == "c")
        assert array.flags.aligned
        assert names(Path(directory)) == ["x.tsr"]


@given(own.tensors(), st.booleans())
@settings(deadline=None, max_examples=80)
def test_every_tensor_is_a_true_mapping_of_torch_bit_for_bit(tensor: Any, checksum: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "x.tsr"
        save(path, tensor, checksum=checksum)
        header = read_header(path)
        size = path.stat().st_size
        mapped = from_file(path)
        assert is_mapped_by(mapped, path)
        assert (mapped.dtype, tuple(mapped.shape)) == (header.dtype.torch, header.shape)
        assert mapped.stride() == torch.zeros(header.shape).stride()
        assert mapped.storage_offset() * header.dtype.itemsize == header.payload_offset
        assert mapped.untyped_storage().nbytes() == header.file_nbytes == size
        assert bits(mapped) == bits(tensor)
        assert (path.stat().st_size, names(Path(directory))) == (size, ["x.tsr"])


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("dtype", TABLE[:8], ids=lambda d: d.name)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 3)])
def test_older_layouts_are_mapped_where_they_lie(path: Path, version: int, dtype: Any, shape: Any) -> None:
    count = int(np.prod(shape))
    array = np.frombuffer(np.random.default_rng(1).bytes(count * dtype.itemsize), dtype.numpy).reshape(shape)
    save(path, array, version=version)
    offset = {0: 28, 1: 64, 2: 256}[version]
    found = memmap(path)
    assert (type(found), found.offset) == (np.memmap, offset)
    is_aligned = offset % dtype.itemsize == 0 or count == 0
    assert found.flags.aligned is is_aligned
    assert (bits(found), found.shape[-len(shape) :] if shape else ()) == (bits(array), shape)
    if not is_aligned:
        with pytest.raises(UnsupportedTensor, match=r"byte 28.*use load"):
            from_file(path)
    else:
        assert bits(from_file(path)) == bits(array)


def test_what_is_written_to_a_copy_on_write_memmap_or_a_torch_mapping_stays_here(path: Path) -> None:
    save(path, ARRAY)
    before = path.read_bytes()
    array, tensor = memmap(path, "c"), from_file(path)
    array[:] = 7
    tensor.fill_(8)
    assert (array == 7).all()
    assert (tensor == 8).all()
    assert path.read_bytes() == before
    assert bits(memmap(path)) == bits(from_file(path)) == bits(load(path)) == bits(ARRAY)


def test_a_read_only_memmap_cannot_be_written(path: Path) -> None:
    save(path, ARRAY)
    array = memmap(path)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


@BOTH
def test_a_mapping_stays_whole_when_the_file_is_replaced_or_removed(path: Path, give: Callable[..., Any]) -> None:
    save(path, ARRAY)
    found = give(path)
    save(path, -ARRAY)
    assert bits(found) == bits(ARRAY)
    path.unlink()
    gc.collect()
    assert bits(found) == bits(ARRAY)


@pytest.mark.parametrize("kind", [str, Path, os.fsencode], ids=["str", "Path", "bytes"])
def test_a_memmap_names_its_file_as_numpy_does(path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    save(path, ARRAY)
    monkeypatch.chdir(path.parent)
    found = memmap(kind(Path("x.tsr"))).filename
    if kind is bytes or kind is os.fsencode:
        assert found == str(path)  # numpy forgets such a name
    else:
        expected = np.memmap(kind(Path("x.tsr")), np.float32, "r", 256, (3, 5)).filename
        assert (type(found), found) == (type(expected), expected)
    assert bits(from_file(kind(Path("x.tsr")))) == bits(ARRAY)


def test_a_name_that_is_no_text_is_mapped(path: Path) -> None:
    name = os.fsencode(path.parent) + b"/\xff\xfe.tsr"
    save(name, ARRAY)
    assert bits(load(name)) == bits(memmap(name)) == bits(from_file(name)) == bits(ARRAY)


def test_parts_and_pickles_of_a_memmap_are_those_of_numpy(path: Path) -> None:
    save(path, ARRAY)
    array = memmap(path)
    assert isinstance(array[1:], np.memmap)
    assert array[1:].filename == array.filename
    assert bits(pickle.loads(pickle.dumps(array))) == bits(ARRAY)


@pytest.mark.parametrize("mode", ["r+", "w+", "w", "", None, "readonly", "copyonwrite", "C", 1])
def test_a_mode_that_would_change_the_file_is_refused_by_name(path: Path, mode: Any) -> None:
    save(path, ARRAY)
    before = path.read_bytes()
    with pytest.raises(BadMessage, match=r'"r" \(read-only\) and "c"') as caught:
        memmap(path, mode)
    assert str(mode) in str(caught.value)
    if mode is not None:
        for framework in ("numpy", "torch"):
            with pytest.raises(BadMessage, match="is unknown"):
                load(path, framework=framework, mode=mode)
    assert path.read_bytes() == before


@BOTH
def test_what_holds_no_tensor_is_refused_and_stays_as_it_is(path: Path, give: Callable[..., Any]) -> None:
    save(path, ARRAY)
    good = path.read_bytes()
    for raw, fault in [
        (good[:-1], Fault.TRUNCATED),
        (good[:100], Fault.TOO_SHORT),
        (good + b"x", Fault.TRAILING_BYTES),
        (b"XXXX" + good[4:], Fault.BAD_MAGIC),
        (good[:40] + b"\1" + good[41:], Fault.HEADER_CHECKSUM),
        (b"", Fault.TOO_SHORT),
    ]:
        path.write_bytes(raw)
        assert fault_of(lambda: give(path)) is fault
        assert path.read_bytes() == raw
    path.unlink()
    with pytest.raises(FileNotFoundError):
        give(path)
    with pytest.raises(HostilePath, match="directory"):
        give(path.parent)
    assert names(path.parent) == []


@BOTH
def test_a_sealed_file_is_refused(path: Path, give: Callable[..., Any]) -> None:
    pytest.importorskip("cryptography")
    save(path, ARRAY, key=bytes(32))
    assert fault_of(lambda: give(path)) is Fault.SEALED


@BOTH
def test_a_limit_of_open_files_is_told_by_name(path: Path, give: Callable[..., Any]) -> None:
    save(path, ARRAY)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for more in (0, 1):  # numpy and torch need a second one
        os.close(lowest := os.open(path, os.O_RDONLY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + more, hard))
        try:
            with pytest.raises(SystemLimit) as caught:
                give(path)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (caught.value.limit, caught.value.errno) == ("RLIMIT_NOFILE", errno.EMFILE)
    assert bits(give(path)) == bits(ARRAY)


def test_only_a_memmap_keeps_a_descriptor(path: Path) -> None:
    save(path, ARRAY)
    before = open_files().total()
    kept = [load(path), load(path, mode="c"), from_file(path)]
    assert open_files().total() == before
    kept.append(memmap(path))
    assert open_files().total() == before + 1
    kept.clear()
    gc.collect()
    assert open_files().total() == before


@pytest.mark.parametrize("change", ["shorter", "other", "gone"])
def test_without_proc_a_file_that_is_replaced_meanwhile_is_never_mistaken(
    path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    save(path, ARRAY)
    monkeypatch.setattr(system, "exists", lambda _: False)
    original = frameworks._torch_file
    looks: list[str] = []

    def replace(fd: int, name: str, header: Any) -> Any:
        if not looks:
            save(path, -ARRAY if change == "other" else np.float32(2))
        if change == "gone":
            path.unlink(missing_ok=True)
        looks.append(name)
        return original(fd, name, header)

    monkeypatch.setattr(frameworks, "_torch_file", replace)
    if change == "gone":
        with pytest.raises(FileNotFoundError):
            from_file(path)
    else:
        assert bits(from_file(path)) == bits(-ARRAY if change == "other" else np.float32(2))
        assert len(looks) == 2


# -- live segments ----------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("shape", [(1000,), (), (0, 3), (7, 11)], ids=str)
def test_a_live_segment_is_mapped_and_never_filled_again(
    mapped: PythonSession, give: Callable[..., Any], shape: tuple[int, ...]
) -> None:
    original = np.arange(int(np.prod(shape)), dtype=np.float64).reshape(shape)
    mapped.send_tensor(original, "a")
    (segment,) = Path(mapped.session_dir()).glob("a.tsr")
    found = give(segment)
    if isinstance(found, torch.Tensor):
        assert is_mapped_by(found, segment.resolve())
    else:
        assert type(found) is np.memmap
    for number in range(5):
        mapped.send_tensor(np.full(shape, -number, np.float64), "a")
    mapped.drop_tensor("a")
    for number in range(5):
        mapped.calculate("echo", np.full(shape, -number, np.float64))
    assert bits(found) == bits(original)


@BOTH
def test_a_mapping_of_a_live_segment_is_whole_after_the_session(workspace: Path, give: Callable[..., Any]) -> None:
    del workspace
    with PythonSession(session_id="mapped", quiet_mode=True) as session:
        loan = session.empty(5000)
        loan[:] = 3
        session.send_tensor(loan, "a")
        found = give(Path(session.session_dir()) / "a.tsr")
    assert float(found.sum()) == 15000


def test_the_names_are_at_the_front_door() -> None:
    assert tr_mmap.memmap is memmap
    assert tr_mmap.from_file is from_file
