"""Tensors to files: save. Replaces a file whole, in one step; overwrites in place only a file that has no name.

The headers are in :mod:`tr_mmap.tsr.header`, the conversions of tensors in :mod:`tr_mmap.tsr.tensors`.
"""

from __future__ import annotations

import errno
import os
import time
import zlib
from typing import Any, Final

import numpy as np

from ..base import system
from ..base.atomic import overwriting, replacement
from ..errors import Fault, TSRFormatError
from ..wire.header import V0_HEADER_NBYTES, V1_HEADER_NBYTES, V2_HEADER_NBYTES
from . import sealed
from .dtypes import DType
from .files import StrOrBytesPath
from .header import encode_v0, encode_v1, encode_v2
from .tensors import copy_into, is_little_endian, to_array

__all__ = ["save"]

_PAYLOAD_OFFSETS: Final = {0: V0_HEADER_NBYTES, 1: V1_HEADER_NBYTES, 2: V2_HEADER_NBYTES}


def save(
    path: StrOrBytesPath,
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

    The new file belongs to who saves it. Of the old file it keeps the permissions, whatever the umask, but neither
    owner, access control list, nor set-user-id bits. Other hard links of the old file keep the old content.

    A file without a name, which is what ``/proc/self/fd/N`` leads to for a memfd or for a file that was removed, cannot
    be replaced. It is overwritten in place: a reader may see a part, and if that fails the file holds no tensor.

    Args:
        path: ``str``, ``bytes`` or path-like; a symlink is followed, also one to a file that does not exist yet.
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
        SystemLimit: the file may not be that large (RLIMIT_FSIZE), or there are too many open files.
        HostilePath: ``path`` is a directory, FIFO or device.
        IsADirectoryError: ``path`` ends in a slash, and there is nothing of that name.
        FileNotFoundError: the directory does not exist, or ``path`` is empty.
        BadKey: the key is not 32 bytes.
        MissingPackage: a key is given, and ``cryptography`` is not installed.
    """
    name = os.fsdecode(path)
    if key is not None:
        key = sealed.check_key(key)
        if version != 2:
            raise TSRFormatError(f"v{version} has no sealed form; use version=2", fault=Fault.UNREPRESENTABLE)
    dtype, array = to_array(tensor)
    header = _encode(dtype, array.shape, version, checksum=0 if checksum else None)  # refuses before a file exists
    target, mode = system.replacement_of(name)
    if target is None:
        nbytes = len(header) + array.nbytes
        with overwriting(name, nbytes if key is None else sealed.sealed_nbytes(nbytes)) as fd:
            _write(fd, name, header, dtype, array, version, checksum, key)
        return
    directory = os.path.dirname(target)
    try:
        with replacement(target, 0o666 if mode is None else mode, is_exact=mode is not None) as fd:
            _write(fd, directory, header, dtype, array, version, checksum, key)
    except FileNotFoundError:
        if os.path.isdir(directory or "."):
            raise
        raise FileNotFoundError(errno.ENOENT, "cannot save a tensor: no such directory", directory) from None


def _write(
    fd: int,
    place: str,
    header: bytes,
    dtype: DType,
    array: np.ndarray[Any, Any],
    version: int,
    checksum: bool,
    key: bytes | None,
) -> None:
    """Write the payload, then the header; ``place`` is a path on the same file system."""
    if key is not None:
        payload = _payload_of(array)
        if checksum:
            header = _encode(dtype, array.shape, version, checksum=zlib.crc32(payload))
        sealed.write(fd, key, header, payload)
        return
    crc = _write_payload(fd, array, len(header), place, want_crc=checksum)
    if crc is not None:
        header = _encode(dtype, array.shape, version, checksum=crc)
    system.write_all(fd, header)


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
