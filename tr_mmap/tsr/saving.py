"""Tensors to files: save. Replaces a file whole, in one step; overwrites in place only a file that has no name.

The headers are in :mod:`tr_mmap.tsr.header`, the conversions of tensors in :mod:`tr_mmap.tsr.tensors`.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
import zlib
from typing import Any, Final

import numpy as np

from ..base import system
from ..base.atomic import replacement
from ..errors import BadMessage, Fault, OutOfSpace, SystemLimit, TSRFormatError
from ..wire.header import (
    PAYLOAD_ALIGNMENT_NBYTES,
    V0_HEADER_NBYTES,
    V1_HEADER_NBYTES,
    V2_HEADER_NBYTES,
)
from . import sealed
from .dtypes import DType
from .files import StrOrBytesPath
from .header import encode_v0, encode_v1, encode_v2
from .tensors import copy_into, is_little_endian, to_array

__all__ = ["save", "write_new"]

_PAYLOAD_OFFSETS: Final = {0: V0_HEADER_NBYTES, 1: V1_HEADER_NBYTES, 2: V2_HEADER_NBYTES}
_MOST_OFFSET: Final = 2**32 - PAYLOAD_ALIGNMENT_NBYTES  # what v2 has room for


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
    be replaced. It is overwritten in place. So whoever has it loaded, this process included, sees its elements change;
    another reader may see a part; and a save that fails in the middle leaves no tensor there. The tensor to save may be
    a view of that very file, because it is copied first. The file loses no page, so no view of it becomes a bus error:
    before a shorter tensor of version 2 there is a gap, and other layouts have none and are refused.

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
        TSRFormatError: UNREPRESENTABLE in that layout, or, in a file without a name, shorter than what is there;
            BAD_VERSION.
        BadMessage: ``checksum`` is neither True nor False.
        OutOfSpace: the file system is full.
        SystemLimit: the file may not be that large (RLIMIT_FSIZE), or there are too many open files.
        HostilePath: ``path`` is a directory, FIFO or device.
        IsADirectoryError: ``path`` ends in a slash, and there is nothing of that name.
        NotADirectoryError: ``path`` ends in a slash, and there is a file of that name.
        PermissionError: the directory may not be written, or the memfd is sealed.
        FileNotFoundError: the directory does not exist, or ``path`` is empty.
        BadKey: the key is not 32 bytes.
        MissingPackage: a key is given, and ``cryptography`` is not installed.
    """
    name = system.fixed(os.fsdecode(path))
    if type(version) is not int:
        version = _version_of(version)
    if type(checksum) is not bool and not isinstance(checksum, np.bool_):
        raise BadMessage(f"checksum is {checksum!r:.80}; it is True or False", detail="checksum")
    if key is not None:
        key = sealed.check_key(key)
        if version != 2:
            raise TSRFormatError(f"v{version} has no sealed form; use version=2", fault=Fault.UNREPRESENTABLE)
    dtype, array = to_array(tensor)
    header = _encode(dtype, array.shape, version, checksum=0 if checksum else None)  # refuses before a file exists
    target, mode = system.replacement_of(name)
    try:
        if target is None:
            _overwrite(name, dtype, array, version, checksum, key)
            return
        directory = os.path.dirname(target)
        with replacement(target, 0o666 if mode is None else mode, is_exact=mode is not None) as fd:
            _write(fd, directory, header, dtype, array, version, checksum, key)
    except FileNotFoundError:
        if target is None:
            raise
        # A directory that takes no files is below /proc, say; or it is the current directory, and was removed.
        is_there = os.path.isdir(directory or ".")
        why = "no file can be made in this directory" if is_there else "no such directory"
        raise FileNotFoundError(errno.ENOENT, f"cannot save a tensor: {why}", directory or name) from None
    except (SystemLimit, OutOfSpace) as error:  # a call that has only a descriptor cannot name the file
        if name not in error.message:
            error.message = f"{name}: {error.message}"
        raise


def write_new(fd: int, directory: str, dtype: DType, array: np.ndarray[Any, Any], *, checksum: bool) -> None:
    """Write an array into an empty file that is open, as :func:`save` does; ``directory`` is the file's.

    Raises:
        OutOfSpace, SystemLimit: as in :func:`save`; what was written stays.
    """
    header = _encode(dtype, array.shape, 2, checksum=0 if checksum else None)
    _write(fd, directory, header, dtype, array, 2, checksum, None)


def _version_of(version: Any) -> int:
    """Convert a numpy integer to ``int``. Anything else that is not an ``int`` is refused, ``True`` and ``"2"`` too."""
    if isinstance(version, np.integer):
        return int(version)
    raise TSRFormatError(f"version {version!r:.80} is unknown; 0, 1 and 2 can be written", fault=Fault.BAD_VERSION)


def _overwrite(
    name: str, dtype: DType, array: np.ndarray[Any, Any], version: int, checksum: bool, key: bytes | None
) -> None:
    """Write a tensor over what is in a file that has no name to rename another one to."""
    payload = bytearray(array.nbytes)  # a copy in any case: the tensor may be a view of this file
    copy_into(payload, 0, array)
    crc = zlib.crc32(payload) if checksum else None
    fd = system.open_path(name, write=True)
    try:
        if system.is_sealed_against_writing(fd):
            raise PermissionError(errno.EPERM, "cannot save a tensor: the memfd is sealed against writing", name)
        if key is None:
            offset = _offset_in_place(system.file_nbytes(fd), len(payload), version, name)
            nbytes = offset + len(payload)
        else:
            offset, nbytes = V2_HEADER_NBYTES, sealed.sealed_nbytes(V2_HEADER_NBYTES + len(payload))
            _check_pages(system.file_nbytes(fd), nbytes, "a sealed file", name)
        header = _encode(dtype, array.shape, version, checksum=crc, offset=offset)
        try:
            system.allocate(fd, nbytes, directory=name)  # if this fails, the file is as before
            system.set_size(fd, nbytes)
        except PermissionError as error:  # F_SEAL_GROW, F_SEAL_SHRINK
            why = f"cannot save a tensor: the memfd is sealed, and would have {nbytes} bytes"
            raise PermissionError(error.errno, why, name) from error
        system.write_all(fd, bytes(8))  # clears the magic: from here on no reader takes it for the old tensor
        if key is None:
            system.write_all(fd, memoryview(payload), offset)
            system.write_all(fd, header)
        else:
            sealed.write(fd, key, header, memoryview(payload))
    finally:
        system.close(fd)


def _offset_in_place(old_nbytes: int, nbytes: int, version: int, name: str) -> int:
    """Where the payload goes so that a file which somebody may have mapped keeps all its pages.

    To touch a page that a file has lost is SIGBUS. A file of tensors ends with the payload, so a shorter payload of v2
    begins later.
    """
    offset = _PAYLOAD_OFFSETS[version]
    whole_nbytes = (_pages(old_nbytes) - 1) * mmap.PAGESIZE  # all pages but the last, which may be used in part
    if offset + nbytes > whole_nbytes:
        return offset
    if version == 2:
        offset = ((whole_nbytes - nbytes) // PAYLOAD_ALIGNMENT_NBYTES + 1) * PAYLOAD_ALIGNMENT_NBYTES
        if offset <= _MOST_OFFSET:
            return offset
    _check_pages(old_nbytes, _PAYLOAD_OFFSETS[version] + nbytes, f"a file of version {version}", name)
    return offset


def _check_pages(old_nbytes: int, nbytes: int, what: str, name: str) -> None:
    if _pages(nbytes) < _pages(old_nbytes):
        raise TSRFormatError(
            f"{name}: {what} would have {nbytes} bytes, and the file has {old_nbytes}; it has no name, so it is "
            "overwritten in place, and who has mapped it would get a bus error if it became shorter; save the tensor "
            "to another file, or as version 2 without a key, or truncate the file first if nothing has it mapped",
            fault=Fault.UNREPRESENTABLE,
            path=name,
        )


def _pages(nbytes: int) -> int:
    return -(-nbytes // mmap.PAGESIZE)


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


def _encode(
    dtype: DType, shape: tuple[int, ...], version: int, *, checksum: int | None, offset: int = V2_HEADER_NBYTES
) -> bytes:
    """A header; ``offset`` is that of a v2 payload."""
    if version == 2:
        return encode_v2(dtype, shape, payload_offset=offset, created_ns=time.time_ns(), payload_checksum=checksum)
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
