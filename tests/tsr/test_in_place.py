"""A save over a file that has no name: never other data than was given, never a bus error, and as before if refused."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strategies import bits
from tsr_files import ARRAY

from tr_mmap.base import system
from tr_mmap.errors import Fault, SystemLimit, TSRFormatError
from tr_mmap.tsr import from_file, load, memmap, read_header, save

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfd and /proc are Linux's")

PAGE = resource.getpagesize()
READERS = pytest.mark.parametrize("read", [load, lambda name: load(name, mode="c"), memmap, from_file])
OTHER_FORMS: list[dict[str, Any]] = [{"version": 1}, {"version": 0}, {"key": bytes(32)}]


@pytest.fixture(params=["memfd", "removed file"])
def name(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "memfd":
        fd = os.memfd_create("weights", os.MFD_ALLOW_SEALING)
    else:
        fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
        (tmp_path / "x").unlink()
    yield f"/proc/self/fd/{fd}"
    os.close(fd)


def with_key(options: dict[str, Any]) -> dict[str, Any]:
    if "key" in options:
        pytest.importorskip("cryptography")
        return {"key": options["key"]}
    return {}


@pytest.mark.parametrize("options", [{}, {"checksum": True}, *OTHER_FORMS], ids=str)
@pytest.mark.parametrize("tensor", [ARRAY, ARRAY.T, ARRAY.astype(">f4")], ids=["whole", "strided", "big-endian"])
def test_a_memory_file_is_overwritten_in_place(options: dict[str, Any], tensor: Any) -> None:
    key = with_key(options)
    fd = os.memfd_create("weights")
    try:
        for folder in (f"/proc/self/fd/{fd}", f"/dev/fd/{fd}", f"/proc/{os.getpid()}/fd/{fd}"):
            os.ftruncate(fd, 0)
            for content in (tensor, np.zeros(5000, np.float32), np.ones(4900, np.float32)):  # longer, then shorter
                save(folder, content, **options)
                assert bits(load(folder, **key)) == bits(content)
                assert os.fstat(fd).st_size == os.stat(folder).st_size > 0
    finally:
        os.close(fd)
    assert not [name for name in os.listdir("/") if "weights" in name]


@READERS
def test_a_view_of_the_file_can_be_saved_over_it(name: str, read: Any) -> None:
    for source in (np.arange(4.0), np.arange(100_000.0), np.arange(60.0).reshape(3, 4, 5)):
        save(name, source)
        view = read(name)
        wanted = np.array(np.flip(np.asarray(view)).T)
        save(name, np.flip(np.asarray(view)).T)
        assert bits(load(name)) == bits(wanted)


@pytest.mark.parametrize("options", [{}, {"checksum": True}, *OTHER_FORMS], ids=str)
@pytest.mark.parametrize("part", [slice(None, None, -1), slice(500, None), slice(100, 100), slice(3, 900, 2)], ids=str)
def test_a_part_of_the_file_can_be_saved_over_it(name: str, part: slice, options: dict[str, Any]) -> None:
    key = with_key(options)
    save(name, np.arange(1000, dtype=np.int16))  # one page, which every layout may fill in part
    wanted = np.arange(1000, dtype=np.int16)[part]
    save(name, load(name)[part], **options)
    assert load(name, **key).reshape(-1).tolist() == wanted.tolist()


def test_a_torch_view_of_the_file_can_be_saved_over_it(name: str) -> None:
    save(name, torch.arange(5000, dtype=torch.bfloat16))
    wanted = load(name, framework="torch").flip(0)
    save(name, load(name, framework="torch", mode="r")[1:].flip(0))
    assert torch.equal(load(name, framework="torch"), wanted[:-1])


@READERS
def test_a_shorter_tensor_takes_no_page_from_a_view(name: str, read: Any) -> None:
    save(name, np.ones(1 << 17))
    view = np.asarray(read(name))
    fd = int(name.rsplit("/", 1)[1])
    pages = -(-os.fstat(fd).st_size // PAGE)
    for shape in (1 << 17, 3 * PAGE - 7, 511, 1, (0, 3), (), (1 << 16) + 1):
        for dtype in (np.uint8, np.float64):
            wanted = np.full(shape, 7, dtype)
            save(name, wanted, checksum=True)
            view.sum()  # touches all its pages
            for each in (load(name, verify=True), memmap(name), np.asarray(from_file(name))):
                assert bits(np.asarray(each)) == bits(wanted)
            assert -(-os.fstat(fd).st_size // PAGE) == pages, "and the file does not grow either"


@pytest.mark.parametrize("options", OTHER_FORMS, ids=str)
def test_a_layout_without_a_gap_is_refused_where_a_view_would_lose_a_page(name: str, options: dict[str, Any]) -> None:
    key = with_key(options)
    save(name, np.arange(5000.0))
    view = load(name)
    with pytest.raises(TSRFormatError, match="truncate the file first if nothing has it mapped") as caught:
        save(name, ARRAY, **options)
    assert (caught.value.fault, caught.value.path) == (Fault.UNREPRESENTABLE, name)
    assert view.tolist() == load(name).tolist() == np.arange(5000.0).tolist()
    del view
    os.truncate(name, 0)
    save(name, ARRAY, **options)
    assert bits(load(name, **key).reshape(ARRAY.shape)) == bits(ARRAY)


def test_a_gap_that_the_header_cannot_express_is_refused(name: str) -> None:
    os.truncate(name, (1 << 32) + 4 * PAGE)
    with pytest.raises(TSRFormatError, match="truncate the file first"):
        save(name, ARRAY)
    assert os.stat(name).st_size == (1 << 32) + 4 * PAGE
    assert os.stat(name).st_blocks == 0


def test_at_the_limit_of_a_files_size_the_old_tensor_stays(name: str) -> None:
    save(name, ARRAY)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(SystemLimit):
            save(name, np.zeros(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert bits(load(name)) == bits(ARRAY)


@pytest.mark.parametrize(
    ("seal", "tensor"),
    [
        (fcntl.F_SEAL_WRITE, np.ones(4096)),
        (fcntl.F_SEAL_WRITE, np.ones(4095)),
        (fcntl.F_SEAL_WRITE, np.ones(1)),
        (0x10, np.ones(4096)),  # F_SEAL_FUTURE_WRITE
        (fcntl.F_SEAL_GROW, np.ones(5000)),
        (fcntl.F_SEAL_SHRINK, np.ones(4095)),
    ],
    ids=str,
)
def test_a_sealed_memory_file_is_refused_by_name_and_keeps_its_tensor(seal: int, tensor: Any) -> None:
    fd = os.memfd_create("weights", os.MFD_ALLOW_SEALING)
    name = f"/proc/self/fd/{fd}"
    save(name, np.arange(4096.0))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seal)
    with pytest.raises(PermissionError, match="the memfd is sealed") as caught:
        save(name, tensor)
    assert (caught.value.filename, caught.value.errno) == (name, errno.EPERM)
    assert load(name).tolist() == np.arange(4096.0).tolist()
    os.close(fd)


def test_a_copy_that_fails_leaves_the_old_tensor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    save(name, ARRAY)
    with monkeypatch.context() as patch:
        patch.setattr("tr_mmap.tsr.saving.copy_into", fail)
        with pytest.raises(KeyboardInterrupt):
            save(name, -ARRAY)
    assert bits(load(name)) == bits(ARRAY)


def test_a_write_that_fails_leaves_no_tensor_that_could_be_taken_for_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(name, ARRAY)
    real = system.write_all
    with monkeypatch.context() as patch:
        patch.setattr(system, "write_all", lambda fd, data, offset=0: fail() if offset else real(fd, data, offset))
        with pytest.raises(KeyboardInterrupt):
            save(name, -ARRAY)
    with pytest.raises(TSRFormatError) as caught:
        read_header(name)
    assert caught.value.fault is Fault.BAD_MAGIC


def fail(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt
