"""Promises of save, load and read_header, and of the conversions beneath them."""

from __future__ import annotations

import gc
import mmap
import os
import struct
import tempfile
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strategies as own
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import bits
from support import FRAMEWORKS, ROOT, open_files
from tsr_files import ARRAY, F32, fault_of, names

from tr_mmap.base import system
from tr_mmap.errors import BadMessage, Fault, HostilePath, OutOfSpace, TSRFormatError, UnsupportedTensor
from tr_mmap.tsr import load, read_header, save, tensors
from tr_mmap.tsr.dtypes import TABLE, DType, by_name, from_numpy, from_torch
from tr_mmap.tsr.header import decode, encode_v2
from tr_mmap.tsr.tensors import copy_into, from_buffer, to_array


@given(own.tensors(), st.sampled_from(("numpy", "torch")), st.booleans())
@settings(deadline=None, max_examples=500)
def test_every_tensor_comes_back_bit_for_bit(tensor: Any, framework: str, checksum: bool) -> None:
    dtype = from_torch(tensor.dtype) if isinstance(tensor, torch.Tensor) else from_numpy(tensor.dtype)
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "x.tsr")
        save(path, tensor, checksum=checksum)
        loaded = load(path, framework=framework, verify=checksum)
        assert own.shape_of(loaded) == own.shape_of(tensor)
        assert (from_torch if framework == "torch" else from_numpy)(loaded.dtype) is dtype
        assert bits(loaded) == bits(tensor)
        assert Path(path).read_bytes()[256:] == bits(tensor)
        assert (read_header(path).payload_checksum is not None) is checksum


@pytest.mark.parametrize("version", [0, 1, 2])
@FRAMEWORKS
@pytest.mark.parametrize("dtype", TABLE, ids=lambda d: d.name)
def test_every_dtype_in_every_layout_that_holds_it(path: Path, dtype: DType, framework: str, version: int) -> None:
    raw = np.random.default_rng(1).bytes(6 * dtype.itemsize)
    array = np.frombuffer(raw if dtype.name != "bool" else bytes(6), dtype.numpy).reshape(2, 3)
    if version < 2 and dtype.code > 8:
        assert fault_of(lambda: save(path, array, version=version)) is Fault.UNREPRESENTABLE
        return
    save(path, array, version=version)
    loaded = load(path, framework=framework)
    assert own.shape_of(loaded) == ((1, 1, 2, 3) if version == 0 else (2, 3))
    assert bits(loaded) == bits(array)


@given(own.tensors(st.sampled_from(TABLE[:8]), own.shapes(max_ndim=4)), st.sampled_from((0, 1)))
@settings(deadline=None, max_examples=100)
def test_older_layouts_come_back_bit_for_bit(tensor: Any, version: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "x.tsr")
        save(path, tensor, version=version)
        for framework in ("numpy", "torch"):
            assert bits(load(path, framework=framework)) == bits(tensor)


@given(own.tensors(), st.sampled_from(("numpy", "torch")), st.integers(0, 3))
@settings(deadline=None, max_examples=300)
def test_copy_into_then_from_buffer_is_the_identity(tensor: Any, framework: str, steps: int) -> None:
    dtype, array = to_array(tensor)
    offset = steps * 256
    buffer = memoryview(mmap.mmap(-1, offset + array.nbytes + 8))
    copy_into(buffer, offset, array)
    view = from_buffer(buffer, dtype, array.shape, offset, framework)
    assert bits(view) == bits(tensor)
    assert own.shape_of(view) == own.shape_of(tensor)
    assert not any(buffer[:offset]), "bytes before the payload are left alone"
    assert not any(buffer[offset + array.nbytes :]), "bytes after the payload are left alone"


def test_the_other_frameworks_file_is_read_right_and_written_the_same(path: Path) -> None:
    shared = ROOT.parent / "shared" / "data"
    if not shared.is_dir():
        pytest.skip(f"NO FOREIGN FILE TO COMPARE WITH: {shared} is absent, v1 is only tested against ourselves")
    original = shared / "mnist_test_labels.v1.tsr"
    labels = load(original)
    assert (labels.dtype, labels.shape) == (np.int32, (10000,))
    assert labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert int(labels.sum()) == 44434
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    save(path, labels, version=1)
    assert path.read_bytes() == original.read_bytes()


def test_numpy_scalars_are_0d_tensors(path: Path) -> None:
    for scalar in (np.float32(1.5), np.bool_(True), by_name("bfloat16").numpy.type(2.0)):
        save(path, scalar)
        assert load(path).shape == ()
        assert bits(load(path)) == scalar.tobytes()


def test_matrix_memmap_and_parameter_are_taken_for_their_data(path: Path) -> None:
    backing = path.with_suffix(".raw")
    for tensor in (
        np.asarray(ARRAY).view(np.matrix),
        np.memmap(backing, np.float32, "w+", shape=(3, 5)),
        torch.nn.Parameter(torch.from_numpy(ARRAY.copy())),
    ):
        save(path, tensor)
        assert bits(load(path)) == bits(tensor)


# No copies ---------------------------------------------------------------------------------------------------------


def test_to_array_shares_memory_whatever_the_layout() -> None:
    big = np.arange(64, dtype=">f8").reshape(8, 8)
    for view in (big, big.T, big[::2, 1::3], big[::-1]):
        assert to_array(view)[1] is view
    base = torch.arange(64.0).reshape(8, 8)
    for tensor in (base, base.t(), base[::2, 1::3], base.to(torch.bfloat16)[1:]):
        array = to_array(tensor)[1]
        assert array.__array_interface__["data"][0] == tensor.data_ptr()
    assert to_array(base.to(torch.bfloat16))[1].dtype == np.uint16


@FRAMEWORKS
def test_from_buffer_copies_nothing(framework: str) -> None:
    buffer = bytearray(256 + 60)
    view = from_buffer(buffer, F32, (3, 5), 256, framework)
    struct.pack_into("<f", buffer, 256, 7.0)
    assert float(view[0, 0]) == 7.0
    view[2, 4] = 9.0
    assert struct.unpack_from("<f", buffer, 256 + 56) == (9.0,)


def test_a_numpy_view_is_as_writable_as_its_buffer() -> None:
    assert from_buffer(bytearray(8), F32, (2,), 0, "numpy").flags.writeable
    for shape in ((2,), (1, 2), (), (0, 3)):
        assert not from_buffer(bytes(8), F32, shape, 0, "numpy").flags.writeable


def test_the_last_base_of_a_numpy_view_is_a_memoryview() -> None:
    for shape in ((2, 1), (2,), ()):
        base: Any = from_buffer(bytearray(8), F32, shape, 0, "numpy")
        while isinstance(base, np.ndarray):
            base = base.base
        assert type(base) is memoryview


def test_torch_refuses_a_read_only_buffer() -> None:
    with pytest.raises(UnsupportedTensor, match="no read-only tensors"):
        from_buffer(bytes(8), F32, (2,), 0, "torch")


def test_torch_gets_an_aligned_copy_of_a_misaligned_payload(path: Path) -> None:
    array = np.arange(3.0)
    save(path, array, version=0)
    assert not load(path).flags.aligned
    tensor = load(path, framework="torch")
    assert tensor.data_ptr() % 8 == 0
    assert bits(tensor) == bits(array)


def test_loading_takes_neither_memory_nor_descriptors(path: Path) -> None:
    save(path, np.zeros(1 << 20))
    before = open_files().total()
    tracemalloc.start()
    try:
        views = [load(path), load(path, framework="torch")]
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert open_files().total() == before
    assert len(views) == 2


# Writing through views ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 5), (), (0, 5)])
def test_a_loaded_numpy_array_cannot_be_written(path: Path, shape: tuple[int, ...]) -> None:
    save(path, np.zeros(shape))
    loaded = load(path)
    with pytest.raises(ValueError, match="read-only"):
        loaded[...] = 1


def test_a_loaded_numpy_array_cannot_be_made_writable(path: Path) -> None:
    save(path, ARRAY)
    with pytest.raises(ValueError, match="WRITEABLE"):
        load(path).flags.writeable = True


@pytest.mark.parametrize("version", [0, 1, 2])
def test_writing_to_a_loaded_torch_tensor_leaves_the_file_alone(path: Path, version: int) -> None:
    save(path, ARRAY, version=version)
    before = path.read_bytes()
    seen_by_others = load(path)
    tensor = load(path, framework="torch")
    tensor.fill_(7.0)
    assert bool((tensor == 7.0).all())
    assert path.read_bytes() == before
    assert bits(seen_by_others) == bits(ARRAY)


def test_a_view_outlives_everything_and_keeps_its_data_when_the_file_is_replaced_or_removed(path: Path) -> None:
    save(path, ARRAY)
    views = [load(path), load(path, framework="torch")]
    save(path, -ARRAY)
    gc.collect()
    assert all(bits(view) == bits(ARRAY) for view in views)
    assert bits(load(path)) == bits(-ARRAY)
    path.unlink()
    assert all(bits(view) == bits(ARRAY) for view in views)


def test_a_tensor_can_be_saved_over_the_file_it_was_loaded_from(path: Path) -> None:
    save(path, ARRAY)
    save(path, load(path).T)
    assert bits(load(path)) == bits(ARRAY.T)


# Atomic saving -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["write_all", "allocate", "map_write", "rename", "close"])
@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt()], ids=["OSError", "KeyboardInterrupt"])
def test_a_failed_save_leaves_the_previous_file_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    save(path, ARRAY)
    before = path.read_bytes()
    original = getattr(system, call)

    def fail(*args: Any, **kwargs: Any) -> None:
        if call == "close":
            original(*args, **kwargs)
        raise error

    monkeypatch.setattr(system, call, fail)
    with pytest.raises(type(error)):
        save(path, ARRAY.T)  # strided: allocate and map_write are used too
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert names(path.parent) == ["x.tsr"]


def test_a_full_file_system_is_told_before_anything_is_written(path: Path) -> None:
    room = os.statvfs(path.parent)
    # More than root may take, too: what only the call itself can reject fills the file system of everybody meanwhile.
    giant = np.broadcast_to(np.float64(0), (2 * room.f_bfree * room.f_frsize // 8 + (1 << 27),))
    with pytest.raises(OutOfSpace):
        save(path, giant)
    assert names(path.parent) == []


def test_the_name_leads_to_the_old_file_until_the_new_one_is_complete(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(path, ARRAY)
    original = system.rename
    seen: list[bytes] = []

    def watch(source: str, target: str, **options: Any) -> None:
        seen.append(bits(load(path)))
        seen.append(bits(load(source)))
        original(source, target, **options)

    monkeypatch.setattr(system, "rename", watch)
    save(path, -ARRAY)
    assert seen == [bits(ARRAY), bits(-ARRAY)]


def test_saving_through_a_symlink_keeps_the_symlink(path: Path) -> None:
    link = path.with_name("link.tsr")
    link.symlink_to("x.tsr")
    save(link, ARRAY)
    assert link.is_symlink()
    assert bits(load(link)) == bits(load(path)) == bits(ARRAY)


def test_a_saved_file_has_the_permissions_of_any_other_new_file_and_keeps_those_it_had(path: Path) -> None:
    path.with_name("other").touch()
    save(path, ARRAY)
    assert path.stat().st_mode == path.with_name("other").stat().st_mode
    path.chmod(0o600)
    save(path, -ARRAY)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", [str, Path, os.fspath], ids=["str", "Path", "fspath"])
def test_paths_are_strings_or_path_likes_and_may_be_relative(
    path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    save(kind(Path("x.tsr")), ARRAY)
    assert bits(load(kind(path))) == bits(ARRAY)


# Refusals ----------------------------------------------------------------------------------------------------------


def _masked() -> Any:
    return np.ma.masked_array(ARRAY, ARRAY > 3)


def _meta() -> Any:
    return torch.zeros(3, device="meta")


def _sparse() -> Any:
    return torch.eye(3).to_sparse()


def _nested() -> Any:
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)


def _fake() -> Any:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return torch.zeros(3)


class _Refusing(torch.Tensor):
    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        raise KeyError("not today")


def _refusing() -> Any:
    return torch.zeros(3).as_subclass(_Refusing)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: None, "NoneType is not a tensor"),
        (lambda: [1, 2], "list is not a tensor; give a numpy array"),
        (lambda: [np.zeros(2), np.zeros(3)], "list is not a tensor, but has several: give each by itself"),
        (lambda: {"a": torch.zeros(2)}, "dict is not a tensor, but has several: give each by itself"),
        (lambda: 1.0, "float is not a tensor"),
        (lambda: b"abc", "bytes is not a tensor"),
        (lambda: np.array([None]), "object has no TSR form"),
        (lambda: np.array(["a"]), "<U1 has no TSR form"),
        (lambda: np.array([1], "M8[s]"), "datetime64"),
        (lambda: np.datetime64(1, "s"), "datetime64"),
        (lambda: np.zeros(2, np.longdouble), "float128|longdouble"),
        (lambda: np.zeros(2, [("a", "f4")]), "has no TSR form"),
        (lambda: np.zeros((1,) * 17), "17 dimensions, TSR holds at most 16"),
        (lambda: torch.zeros((1,) * 17), "17 dimensions, TSR holds at most 16"),
        (_masked, "masked array"),
        (_meta, "meta device"),
        (torch.nn.UninitializedParameter, "UninitializedParameter"),
        (lambda: torch.nn.LazyLinear(3).weight, "uninitialized"),
        (torch.nn.UninitializedBuffer, "UninitializedBuffer"),
        (_refusing, "cannot give the data of a _Refusing: 'not today'"),
        (_sparse, "layout torch.sparse_coo"),
        (_nested, "nested"),
        (_fake, "FakeTensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_a_tensor_is_refused_before_a_file_exists(path: Path, make: Any, text: str) -> None:
    with pytest.raises(UnsupportedTensor, match=text):
        save(path, make())
    assert names(path.parent) == []


CUT_OFF: dict[str, Any] = {
    "plain": lambda: torch.ones(4),
    "transposed": lambda: torch.ones(4, 4).T,
    "a part": lambda: torch.ones(8)[2:6],
    "expanded": lambda: torch.ones(2, 3).expand(4, 2, 3),
    "bfloat16": lambda: torch.ones(4, dtype=torch.bfloat16),
    "conjugated": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "parameter": lambda: torch.nn.Parameter(torch.ones(4)),
}


@pytest.mark.parametrize("nbytes", [0, 5])
@pytest.mark.parametrize("kind", CUT_OFF)
def test_a_torch_tensor_whose_memory_was_freed_is_refused(path: Path, kind: str, nbytes: int) -> None:
    save(path, CUT_OFF[kind]())
    before = path.read_bytes()
    tensor = CUT_OFF[kind]()  # another one: numpy's view of a storage forbids to resize it
    tensor.untyped_storage().resize_(nbytes)
    with pytest.raises(UnsupportedTensor, match=f"its storage holds {nbytes} bytes"):
        save(path, tensor)
    assert path.read_bytes() == before
    assert names(path.parent) == [path.name]


def test_a_torch_tensor_without_elements_needs_no_memory(path: Path) -> None:
    tensor = torch.zeros(3, 0, 2)
    tensor.untyped_storage().resize_(0)
    save(path, tensor)
    assert load(path).shape == (3, 0, 2)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch warns of every quantized tensor that is made
def test_quantized_tensors_are_refused(path: Path) -> None:
    with pytest.raises(UnsupportedTensor, match="quantized"):
        save(path, torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"version": 3}, Fault.BAD_VERSION),
        ({"version": 1, "checksum": True}, Fault.UNREPRESENTABLE),
        ({"version": 0, "checksum": True}, Fault.UNREPRESENTABLE),
    ],
)
def test_layouts_that_cannot_hold_the_wish_are_refused(path: Path, options: Any, fault: Fault) -> None:
    assert fault_of(lambda: save(path, ARRAY, **options)) is fault
    assert names(path.parent) == []


@pytest.mark.parametrize("version", [True, False, 2.0, "2", None, [2], -1, np.float32(1)])
def test_a_version_is_a_whole_number_that_is_known(path: Path, version: Any) -> None:
    for key in (None, bytes(32)):
        assert fault_of(lambda key=key: save(path, ARRAY, version=version, key=key)) in (
            Fault.BAD_VERSION,
            Fault.UNREPRESENTABLE,
        )
    assert fault_of(lambda: save(path, ARRAY, version=version)) is Fault.BAD_VERSION
    assert names(path.parent) == []
    for right in (np.int64(1), np.uint8(2), 0):
        save(path, ARRAY, version=right)  # type: ignore[arg-type] # numpy's numbers are numbers
        assert read_header(path).version == right


@pytest.mark.parametrize("wrong", ["yes", "", 1, 0, None, np.ones(2)])
def test_what_is_on_or_off_is_true_or_false(path: Path, wrong: Any) -> None:
    with pytest.raises(BadMessage, match="True or False") as caught:
        save(path, ARRAY, checksum=wrong)
    assert caught.value.detail == "checksum"
    assert names(path.parent) == []
    save(path, ARRAY, checksum=np.True_)  # type: ignore[arg-type] # as True
    assert load(path, verify=np.True_).tolist() == ARRAY.tolist()  # type: ignore[call-overload]
    with pytest.raises(BadMessage, match="True or False") as caught:
        load(path, verify=wrong)
    assert caught.value.detail == "verify"


def test_an_unknown_framework_is_refused_before_the_file_is_looked_at(path: Path) -> None:
    for framework in ("jax", "", "Numpy", None, np):
        with pytest.raises(BadMessage, match="it must be 'numpy' or 'torch'") as caught:
            load(path, framework=framework)  # type: ignore[call-overload]
        assert caught.value.detail == "framework"
    with pytest.raises(BadMessage, match="'jax'"):
        from_buffer(bytes(8), F32, (2,), 0, "jax")


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "no" / "where"
    with pytest.raises(FileNotFoundError, match="no such directory") as caught:
        save(missing / "x.tsr", ARRAY)
    assert caught.value.filename == str(missing)


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load(path)
    assert caught.value.filename == str(path)


@pytest.mark.parametrize("kind", ["directory", "fifo", "device", "socket"])
def test_what_is_not_a_regular_file_is_refused_and_nothing_hangs(path: Path, kind: str) -> None:
    target = path
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        target = Path("/dev/null")
    else:
        os.mknod(path, 0o140600)
    for action in (lambda: load(target), lambda: read_header(target), lambda: save(target, ARRAY)):
        with pytest.raises(HostilePath, match="is not a regular file"):
            action()
    assert kind != "device" or not target.is_file()


@pytest.mark.parametrize("nbytes", [0, 5, 60, 256, 315, 317])
def test_a_file_of_the_wrong_size_is_refused(path: Path, nbytes: int) -> None:
    save(path, ARRAY)
    path.write_bytes((path.read_bytes() + b"\0")[:nbytes])
    with pytest.raises(TSRFormatError, match=str(path)) as caught:
        load(path)
    assert caught.value.fault in (Fault.TOO_SHORT, Fault.TRUNCATED, Fault.TRAILING_BYTES)
    assert caught.value.path == str(path)


def test_a_file_that_claims_a_terabyte_costs_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(encode_v2(by_name("uint8"), (2**40,), created_ns=0) + b"x")
    monkeypatch.setattr(system, "map_read", None)
    monkeypatch.setattr(system, "map_private", None)
    tracemalloc.start()
    try:
        for framework in ("numpy", "torch"):
            assert fault_of(lambda framework=framework: load(path, framework=framework)) is Fault.TRUNCATED
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@FRAMEWORKS
@pytest.mark.parametrize("tensor", [ARRAY, ARRAY.T, ARRAY.astype(">f4")], ids=["plain", "strided", "big-endian"])
def test_a_changed_payload_is_found_by_verify(path: Path, framework: str, tensor: Any) -> None:
    save(path, tensor, checksum=True)
    assert read_header(path).payload_checksum == zlib.crc32(bits(tensor))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    load(path, framework=framework)
    assert fault_of(lambda: load(path, framework=framework, verify=True)) is Fault.PAYLOAD_CHECKSUM


@FRAMEWORKS
@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("tensor", [ARRAY, np.zeros((0, 3), np.float32)], ids=["some", "none"])
def test_nothing_is_verified_where_there_is_no_checksum_and_that_is_said(
    path: Path, framework: str, version: int, tensor: Any
) -> None:
    save(path, tensor, version=version)
    with pytest.raises(TSRFormatError, match="checksum=True") as caught:
        load(path, framework=framework, verify=True)
    assert (caught.value.fault, caught.value.path) == (Fault.NO_CHECKSUM, str(path))
    save(path, tensor, checksum=True)
    assert bits(load(path, framework=framework, verify=True)) == bits(tensor)


def test_a_sealed_file_is_verified_without_a_checksum(path: Path) -> None:
    pytest.importorskip("cryptography")
    save(path, ARRAY, key=bytes(32))
    assert bits(load(path, key=bytes(32), verify=True)) == bits(ARRAY)


def test_a_damaged_plain_file_is_refused_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(path, ARRAY)
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    original = system.open_path
    opened: list[str] = []

    def count(name: str, *, write: bool = False) -> int:
        opened.append(name)
        return original(name, write=write)

    monkeypatch.setattr(system, "open_path", count)
    assert fault_of(lambda: load(path)) is Fault.HEADER_CHECKSUM
    assert opened == [str(path)]


def test_the_module_specification_is_true_of_a_file(path: Path) -> None:
    save(path, ARRAY, checksum=True)
    raw = path.read_bytes()
    assert raw[:8] == b"TSR!\x02\0\0\0"
    assert decode(raw[:256], file_nbytes=len(raw)).payload_offset % 256 == 0
    assert tensors.is_little_endian(load(path))
