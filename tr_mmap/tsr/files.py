"""Tensors in files: save, load, read_header. Replaces files whole, reads them through mappings; never copies a payload.

A file is a user's: any readable regular file, through symlinks or not. The headers are in :mod:`tr_mmap.tsr.header`,
the conversions of tensors in :mod:`tr_mmap.tsr.tensors`.
"""

from __future__ import annotations

import errno
import os
import time
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload

import numpy as np

from ..base import system
from ..base.atomic import replacement
from ..errors import Fault, TSRFormatError
from ..native import quick_load
from ..wire.header import (
    FLAG_SEGMENT,
    GUEST_WORD,
    MAX_HEADER_NBYTES,
    V0_HEADER_NBYTES,
    V1_HEADER_NBYTES,
    V2_HEADER_NBYTES,
)
from . import sealed
from .dtypes import TABLE, DType, by_code
from .header import Header, decode, encode_v0, encode_v1, encode_v2
from .tensors import check_framework, copy_into, from_buffer, is_little_endian, to_array

if TYPE_CHECKING:
    import torch

    from .tensors import Tensor

__all__ = ["load", "read_header", "save"]

_T = TypeVar("_T")

_ITEMSIZES: Final = bytes([0, *(each.itemsize for each in TABLE)])  # by code; the table has them in order, from 1 on
_PAYLOAD_OFFSETS: Final = {0: V0_HEADER_NBYTES, 1: V1_HEADER_NBYTES, 2: V2_HEADER_NBYTES}

# The faults of a live segment while its owner publishes it. To fill 64 MiB takes 15 ms.
_TRANSIENT: Final = frozenset({Fault.UNPUBLISHED, Fault.TORN, Fault.HEADER_CHECKSUM})
_WAITS_S: Final = (0.0, 0.001, 0.004, 0.016, 0.064)


class _BeingChanged(Exception):
    """A live segment was read while its owner changed it."""

    def __init__(self, fault: TSRFormatError) -> None:
        super().__init__(fault)
        self.fault = fault


def save(
    path: str | os.PathLike[str],
    tensor: object,
    *,
    version: int = 2,
    checksum: bool = False,
    key: bytes | None = None,
) -> None:
    """Write a tensor to a file, atomically: readers see the old file or the new one, and old views stay whole.

    The bytes go to a new file in the same directory, which is then renamed. If anything fails, the new file is removed
    and ``path`` is as before. (Nothing is flushed to disk: after a power cut the file may be incomplete, as its header
    then shows. A process that is killed in the middle leaves a file ``.tr_mmap-*.tmp``.)

    Args:
        path: a symlink is followed; an existing file's permissions are kept.
        tensor: numpy array or scalar, or torch tensor.
        version: of the layout: 2; or 1 or 0 for programs that read only these (dtype codes 1 to 8, at most four
            dimensions).
        checksum: store the payload's CRC-32; version 2 only.
        key: 32 bytes; seals the file, that is, encrypts and authenticates all of it (AES-256-GCM); version 2 only.
            A reader needs the same key. Needs ``cryptography`` (``tr_mmap[crypto]``).

    Raises:
        UnsupportedTensor: not a tensor, or without a TSR form.
        TSRFormatError: UNREPRESENTABLE in that layout; BAD_VERSION.
        OutOfSpace: the file system is full.
        HostilePath: ``path`` is a directory, FIFO or device.
        FileNotFoundError: the directory does not exist.
        BadKey: the key is not 32 bytes.
        MissingPackage: a key is given, and ``cryptography`` is not installed.
    """
    name = os.fspath(path)
    if key is not None:
        key = sealed.check_key(key)
        if version != 2:
            raise TSRFormatError(f"v{version} has no sealed form; use version=2", fault=Fault.UNREPRESENTABLE)
    dtype, array = to_array(tensor)
    header = _encode(dtype, array.shape, version, checksum=0 if checksum else None)  # refuses before a file exists
    target, mode = system.replacement_of(name)
    directory = os.path.dirname(target)
    try:
        with replacement(target, mode) as fd:
            if key is not None:
                payload = _payload_of(array)
                if checksum:
                    header = _encode(dtype, array.shape, version, checksum=zlib.crc32(payload))
                sealed.write(fd, key, header, payload)
            else:
                crc = _write_payload(fd, array, len(header), directory, want_crc=checksum)
                if crc is not None:
                    header = _encode(dtype, array.shape, version, checksum=crc)
                system.write_all(fd, header)
    except FileNotFoundError:
        if os.path.isdir(directory or "."):
            raise
        raise FileNotFoundError(errno.ENOENT, "cannot save a tensor: no such directory", directory) from None


@overload
def load(
    path: str | os.PathLike[str],
    *,
    framework: Literal["numpy"] = "numpy",
    verify: bool = False,
    key: bytes | None = None,
) -> np.ndarray[Any, Any]: ...
@overload
def load(
    path: str | os.PathLike[str], *, framework: Literal["torch"], verify: bool = False, key: bytes | None = None
) -> torch.Tensor: ...
@overload
def load(path: str | os.PathLike[str], *, framework: str, verify: bool = False, key: bytes | None = None) -> Tensor: ...
def load(
    path: str | os.PathLike[str], *, framework: str = "numpy", verify: bool = False, key: bytes | None = None
) -> Tensor:
    """A tensor in the file's pages; the cost does not depend on its size.

    numpy gets a read-only array (a plain ``ndarray``) over a shared mapping. torch, which has no read-only tensors,
    gets one over a private copy-on-write mapping: writing to it never reaches the file. A v0 payload that is not
    aligned for its dtype is copied for torch, and an array with ``flags.aligned`` False in numpy. Do not truncate a
    file that is loaded (touching the lost pages is SIGBUS); replacing it, as ``save`` does, is safe.

    A live segment of a session gets the guest mark, so that its owner never fills it again; that needs write
    permission.

    Args:
        path: of a file of any layout; a symlink is followed.
        framework: ``"numpy"`` or ``"torch"``.
        verify: compare the payload with its CRC-32, if the file has one. Reads all of it.
        key: of a sealed file. The file is decrypted into memory of this process, which costs more than a copy. With a
            key, a file that is not sealed is refused, because any program may have written it.

    Returns:
        The tensor, of the shape and dtype in the header; a v0 file has four dimensions.

    Raises:
        TSRFormatError: any defect of the file; ``fault`` says which one. SEALED: a key is needed; SEAL_BROKEN: it is
            another key, or the file was changed.
        BadKey, MissingPackage: as in :func:`save`.
        HostilePath: not a regular file.
        UnsupportedTensor: no such framework, or it lacks the dtype.
    """
    check_framework(framework)
    name = os.fspath(path)
    if key is not None:
        return sealed.load(name, sealed.check_key(key), framework, verify)
    quick = None if verify else quick_load(name, _ITEMSIZES, framework == "torch")
    if quick is not None:
        mapping, code, shape, offset = quick
        return from_buffer(mapping, by_code(code), shape, offset, framework)
    return _until_settled(lambda: _load_once(name, framework, verify))


def read_header(path: str | os.PathLike[str], *, key: bytes | None = None) -> Header:
    """The checked header of a file of any layout; the payload is not touched.

    Args:
        path: a symlink is followed.
        key: of a sealed file. Only its first chunk is decrypted and authenticated.

    Raises:
        TSRFormatError: any defect; ``fault`` says which one.
        HostilePath: not a regular file.
        BadKey, MissingPackage: as in :func:`save`.
    """
    name = os.fspath(path)
    if key is not None:
        return sealed.read_header(name, sealed.check_key(key))

    def once() -> Header:
        fd = system.open_path(name)
        try:
            return _header_of(fd, name)
        finally:
            system.close(fd)

    return _until_settled(once)


def _encode(dtype: DType, shape: tuple[int, ...], version: int, *, checksum: int | None) -> bytes:
    if version == 2:
        return encode_v2(dtype, shape, created_ns=time.time_ns(), payload_checksum=checksum)
    if version not in _PAYLOAD_OFFSETS:
        raise TSRFormatError(f"version {version!r} is unknown; 0, 1 and 2 can be written", fault=Fault.BAD_VERSION)
    if checksum is not None:
        raise TSRFormatError(
            f"v{version} has no place for a checksum; use version=2 or checksum=False", fault=Fault.UNREPRESENTABLE
        )
    return encode_v1(dtype, shape) if version == 1 else encode_v0(dtype, shape)


def _write_payload(fd: int, array: np.ndarray[Any, Any], offset: int, directory: str, *, want_crc: bool) -> int | None:
    """Write the elements at ``offset``, and return their CRC-32 if it is wanted."""
    if array.nbytes == 0:
        return 0 if want_crc else None
    payload: memoryview
    if array.flags.c_contiguous and is_little_endian(array):
        # Twice as fast as a new mapping, because the kernel faults in and zeroes each page of that first.
        payload = _payload_of(array)
        system.write_all(fd, payload, offset)
    else:
        nbytes = offset + array.nbytes
        system.allocate(fd, nbytes, directory=directory)
        mapping = system.map_write(fd, nbytes)
        copy_into(mapping, offset, array)
        payload = mapping[offset:]
    return zlib.crc32(payload) if want_crc else None


def _payload_of(array: np.ndarray[Any, Any]) -> memoryview:
    """The elements as TSR stores them; a copy only if the array stores them differently."""
    if array.nbytes == 0:
        return memoryview(b"")
    if array.flags.c_contiguous and is_little_endian(array):
        return array.reshape(-1).view(np.uint8).data
    copy = bytearray(array.nbytes)
    copy_into(copy, 0, array)
    return memoryview(copy)


def _until_settled(action: Callable[[], _T]) -> _T:
    """Try again while a live segment's owner changes it; at last raise the fault."""
    for wait_s in _WAITS_S:
        try:
            return action()
        except _BeingChanged:
            time.sleep(wait_s)
    try:
        return action()
    except _BeingChanged as last:
        raise last.fault from None


def _header_of(fd: int, path: str) -> Header:
    raw = system.read_all(fd, MAX_HEADER_NBYTES)
    try:
        return decode(raw, file_nbytes=system.file_nbytes(fd), path=path)
    except TSRFormatError as error:
        if error.fault in _TRANSIENT and raw[12] & FLAG_SEGMENT:
            raise _BeingChanged(error) from None
        raise


def _load_once(path: str, framework: str, verify: bool) -> Tensor:
    fd = system.open_path(path)
    try:
        header = _header_of(fd, path)
        if not header.is_segment:
            return _view(fd, header, path, framework, verify)
    finally:
        system.close(fd)
    fd = system.open_path(path, write=True)
    try:
        header = _header_of(fd, path)  # the name may lead to another file by now
        if header.is_segment:
            _mark_visited(fd, header, path)
        return _view(fd, header, path, framework, verify)
    finally:
        system.close(fd)


def _mark_visited(fd: int, header: Header, path: str) -> None:
    """Store the guest mark, then check that the owner had not begun to reuse the segment before it saw the mark."""
    words = np.frombuffer(system.map_write(fd, V2_HEADER_NBYTES), "<u8")
    words[GUEST_WORD] = 1  # one aligned 8-byte store
    # We store the mark, then read seq. The owner clears seq, then reads the mark. So at least one of us sees the store
    # of the other. The system call in between also keeps the processor from reading before it has stored.
    if _header_of(fd, path) != header:
        raise _BeingChanged(
            TSRFormatError(f"{path}: replaced again and again while it was opened", fault=Fault.TORN, path=path)
        )


def _view(fd: int, header: Header, path: str, framework: str, verify: bool) -> Tensor:
    buffer: bytearray | memoryview
    offset = header.payload_offset
    if header.payload_nbytes == 0:
        buffer, offset = bytearray(), 0
        if framework == "numpy":
            buffer = memoryview(buffer).toreadonly()
    else:
        try:
            buffer = (system.map_private if framework == "torch" else system.map_read)(fd, header.file_nbytes)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            raise TSRFormatError(
                f"{path}: {header.file_nbytes} bytes, more than this process can map", fault=Fault.TOO_LARGE, path=path
            ) from error
    if verify and header.payload_checksum is not None:
        with memoryview(buffer)[offset : offset + header.payload_nbytes] as payload:
            found = zlib.crc32(payload)
        if found != header.payload_checksum:
            raise TSRFormatError(
                f"{path}: payload checksum {found:#010x}, the header says {header.payload_checksum:#010x}: "
                "the data has changed since it was saved",
                fault=Fault.PAYLOAD_CHECKSUM,
                path=path,
            )
    return from_buffer(buffer, header.dtype, header.shape, offset, framework)
