"""Finds the files in which arrays lie: received tensors and loans of sessions, loaded TSR files, arrays over ``mmap``.

A contained process may read such a file in place, by a read-only descriptor, if the file has nothing but the tensor and
a header. If a file is truncated while it is copied, that is an error, and does not end this process by SIGBUS.
"""

from __future__ import annotations

import mmap
import os
import stat
from typing import Any, Final, NamedTuple

import numpy as np

from ..tsr.tensors import copy_into, is_little_endian
from ..wire.header import MAGIC
from .room import check_room

try:
    from . import _kernel
except ImportError:  # there was no compiler
    _kernel = None  # type: ignore[assignment]

__all__ = ["LostInput", "SharedFile", "copy_from_file", "may_be_in_file", "open_file_of"]

_MAX_HEAD_NBYTES: Final = 64 << 10
_MAX_SEGMENT_HEAD_NBYTES: Final = 4096
_NPY_MAGIC: Final = b"\x93NUMPY"
_CHUNK_NBYTES: Final = 1 << 20
_MOST_BETWEEN: Final = 16  # an array with gaps is copied with them if it spans at most so many times its own size


class LostInput(Exception):
    """The file of an input was truncated."""


class SharedFile:
    """A file that contained processes read in place.

    Attributes:
        fd: its descriptor, read-only.
        nbytes: its size when it was opened.
        path: its path.
    """

    def __init__(self, fd: int, nbytes: int, path: str) -> None:
        self.fd = fd
        self.nbytes = nbytes
        self.path = path

    def is_truncated(self) -> bool:
        """Whether the file is shorter than when it was opened."""
        return os.fstat(self.fd).st_size < self.nbytes

    def close(self) -> None:
        """Release the descriptor."""
        os.close(self.fd)


class _Mapping(NamedTuple):
    start: int
    end: int
    is_shared: bool
    offset: int
    device: int
    inode: int
    path: str


def may_be_in_file(array: np.ndarray[Any, Any]) -> bool:
    """Whether an array may lie in a file; False for memory that numpy has allocated."""
    root: Any = array
    while isinstance(root, np.ndarray):
        if root.flags.owndata:
            return False
        root = root.base
    return not isinstance(root, bytes | bytearray)


def open_file_of(array: np.ndarray[Any, Any]) -> tuple[SharedFile, int] | None:
    """Open the file in which an array lies; None if there is none, or the file also has other data.

    Args:
        array: contiguous.

    Returns:
        The file, and the array's offset in it.
    """
    address = array.ctypes.data
    found = _mapping_of(address)
    if found is None or not found.is_shared or not found.inode or address + array.nbytes > found.end:
        return None
    try:
        fd = os.open(found.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError):  # its name is gone or leads elsewhere, or this process may not read it
        return None
    try:
        status = os.fstat(fd)
        start = found.offset + address - found.start
        if (
            stat.S_ISREG(status.st_mode)
            and (status.st_dev, status.st_ino) == (found.device, found.inode)
            and start + array.nbytes <= status.st_size
            and _is_alone(fd, start, start + array.nbytes, status.st_size)
        ):
            shared = SharedFile(fd, status.st_size, found.path)
            fd = -1
            return shared, start
        return None
    finally:
        if fd >= 0:
            os.close(fd)


def copy_from_file(buffer: mmap.mmap, offset: int, array: np.ndarray[Any, Any]) -> None:
    """As ``copy_into``, for an array in a file that others may truncate meanwhile.

    Raises:
        LostInput: the file was truncated.
        OutOfSpace: the machine has no memory for a copy of the array's span, which this needs if it has gaps.
    """
    if array.flags.c_contiguous and is_little_endian(array):
        _copy(buffer, offset, array.ctypes.data, array.nbytes)
        return
    low, high = np.lib.array_utils.byte_bounds(array)
    if high - low <= _MOST_BETWEEN * array.nbytes + _CHUNK_NBYTES:
        check_room(high - low, "a copy of what an array spans in its file")
        between = np.empty(high - low, np.uint8)
        _copy(between.data, 0, low, high - low)
        array = np.ndarray(array.shape, array.dtype, between, array.ctypes.data - low, array.strides)
    copy_into(buffer, offset, array)


def _copy(buffer: mmap.mmap | memoryview, offset: int, address: int, nbytes: int) -> None:
    if _kernel is not None:
        is_whole = _kernel.copy_guarded(buffer, offset, address, nbytes)
    else:
        is_whole = _read(memoryview(buffer)[offset : offset + nbytes], address)
    if not is_whole:
        raise LostInput


def _read(target: memoryview, address: int) -> bool:
    """Copy memory of this process by a system call, which fails where the file was truncated. Slower than _kernel's."""
    fd = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while target:
            done = os.preadv(fd, [target], address)
            target, address = target[done:], address + done
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _is_alone(fd: int, start: int, end: int, size: int) -> bool:
    """Whether a file has only a header (or zeros) before a range, and only zeros after it."""
    if start > _MAX_HEAD_NBYTES or size - end > max((end - start) // 4, _CHUNK_NBYTES):
        return False
    head = os.pread(fd, start, 0)
    is_header = head.startswith(_NPY_MAGIC) or (start <= _MAX_SEGMENT_HEAD_NBYTES and head.startswith(MAGIC))
    if not is_header and any(head):
        return False
    while end < size:
        chunk = os.pread(fd, min(_CHUNK_NBYTES, size - end), end)
        if not chunk or np.frombuffer(chunk, np.uint8).any():
            return False
        end += len(chunk)
    return True


def _mapping_of(address: int) -> _Mapping | None:
    with open("/proc/self/maps", "rb") as file:
        for line in file:
            start, _, rest = line.partition(b"-")
            if int(start, 16) > address:
                return None
            end = rest[: rest.index(b" ")]
            if address < int(end, 16):
                return _parse(line)
    return None


def _parse(line: bytes) -> _Mapping:
    span, flags, offset, device, inode, *path = line.rstrip(b"\n").split(None, 5)
    start, end = (int(each, 16) for each in span.split(b"-"))
    major, minor = (int(each, 16) for each in device.split(b":"))
    return _Mapping(
        start,
        end,
        flags[3:] == b"s",
        int(offset, 16),
        os.makedev(major, minor),
        int(inode),
        os.fsdecode(path[0]) if path else "",
    )
