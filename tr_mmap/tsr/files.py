"""Tensors from files: load, read_header. Reads files through mappings; never writes one, never copies a payload.

A file is a user's: any readable regular file, through symlinks or not. The headers are in :mod:`tr_mmap.tsr.header`,
the conversions of tensors in :mod:`tr_mmap.tsr.tensors`.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar, overload

import numpy as np

from ..base import system
from ..errors import BadMessage, Fault, SystemLimit, TSRFormatError
from ..native import quick_load
from ..wire.header import (
    FLAG_SEGMENT,
    GUEST_WORD,
    MAX_HEADER_NBYTES,
    V2_HEADER_NBYTES,
)
from ..wire.segments import GIVEN_NBYTES
from . import sealed
from .dtypes import TABLE, by_code, import_torch
from .framework_names import check_framework_name
from .header import Header, decode
from .loaded import LoadedFile
from .tensors import from_buffer, unguarded_torch

if TYPE_CHECKING:
    import torch

    from .tensors import Tensor

__all__ = [
    "TRANSIENT_FAULTS",
    "BeingChanged",
    "Mode",
    "StrOrBytesPath",
    "check_mode",
    "check_payload",
    "load",
    "opened",
    "read_header",
    "until_settled",
]

_T = TypeVar("_T")
StrOrBytesPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
Mode: TypeAlias = Literal["r", "c"]

_ITEMSIZES: Final = bytes([0, *(each.itemsize for each in TABLE)])  # by code; the table has them in order, from 1 on

# The faults of a live segment while its owner publishes it. To fill 64 MiB takes 15 ms.
TRANSIENT_FAULTS: Final = frozenset({Fault.UNPUBLISHED, Fault.TORN, Fault.HEADER_CHECKSUM})
_WAITS_S: Final = (0.0, 0.001, 0.004, 0.016, 0.064)


class BeingChanged(Exception):
    """A live segment was read while its owner changed it."""

    def __init__(self, fault: TSRFormatError) -> None:
        super().__init__(fault)
        self.fault = fault


@overload
def load(
    path: StrOrBytesPath,
    *,
    framework: Literal["numpy"] = "numpy",
    mode: Mode | None = None,
    verify: bool = False,
    key: bytes | None = None,
) -> np.ndarray[Any, Any]: ...
@overload
def load(
    path: StrOrBytesPath,
    *,
    framework: Literal["torch"],
    mode: Mode | None = None,
    verify: bool = False,
    key: bytes | None = None,
) -> torch.Tensor: ...
@overload
def load(
    path: StrOrBytesPath,
    *,
    framework: str,
    mode: Mode | None = None,
    verify: bool = False,
    key: bytes | None = None,
) -> Tensor: ...
def load(
    path: StrOrBytesPath,
    *,
    framework: str = "numpy",
    mode: Mode | None = None,
    verify: bool = False,
    key: bytes | None = None,
) -> Tensor:
    """A tensor in the file's pages; the cost does not depend on its size.

    With ``mode="r"`` the pages are shared and read-only, with ``mode="c"`` they are copy-on-write: what you write stays
    in this process and never reaches the file. A v0 payload that is not aligned for its dtype is copied for torch, and
    an array with ``flags.aligned`` False in numpy. Do not truncate a file that is loaded (touching the lost pages is
    SIGBUS); replacing it, as ``save`` does, is safe.

    A live segment of a session gets the guest mark, so that its owner never fills it again; that needs write
    permission.

    ``load`` maps the file itself: numpy's ``memmap`` keeps a descriptor open for each array, torch's ``from_file``
    knows no offset and no read-only tensors, and neither checks that the file is what it was when its header was read.
    :func:`tr_mmap.memmap` and :func:`tr_mmap.from_file` give you theirs where you need that type.

    Args:
        path: of a file of any layout, ``str``, ``bytes`` or path-like; a symlink is followed.
        framework: ``"numpy"`` or ``"torch"``.
        mode: ``"r"``, the default for numpy, or ``"c"``, the default for torch. numpy refuses to write to an array
            of mode ``"r"``. torch has no read-only tensors: a store into a torch tensor of mode ``"r"``, and into
            everything that shares its memory, ends the process with SIGSEGV.
        verify: compare the payload with its CRC-32. Reads all of it. A sealed file needs no CRC-32 for that.
        key: of a sealed file. The file is decrypted into memory of this process, which costs more than a copy. With a
            key, a file that is not sealed is refused, because any program may have written it. A tensor that was
            sealed has memory of its own in either mode; numpy makes it read-only with ``"r"``.

    Returns:
        The tensor, of the shape and dtype in the header; a v0 file has four dimensions.

    Raises:
        TSRFormatError: any defect of the file; ``fault`` says which one. SEALED: a key is needed; SEAL_BROKEN: it is
            another key, or the file was changed. NO_CHECKSUM: there is none to verify.
        BadKey, MissingPackage: as in :func:`save`; MissingPackage also if torch or ``ml_dtypes`` is needed.
        BadMessage: no such framework or mode, or ``verify`` is neither True nor False.
        HostilePath: not a regular file.
        SystemLimit: a limit of the system forbids to open or to map it; ``limit`` says which one.
        UnsupportedTensor: the framework lacks the dtype.
    """
    check_framework_name(framework)
    if type(verify) is not bool and not isinstance(verify, np.bool_):
        raise BadMessage(f"verify is {verify!r:.80}; it is True or False", detail="verify")
    if mode is None:
        is_private = framework == "torch"
    else:
        check_mode(mode)
        is_private = mode == "c"
    if framework == "torch":
        import_torch()  # first: if this failed later, a live segment would keep a guest mark without a guest
    name = path if type(path) is str else os.fsdecode(path)  # fsdecode takes half a microsecond
    if key is not None:
        return sealed.load(name, sealed.check_key(key), framework, is_private, verify)
    quick = None if verify else quick_load(name, _ITEMSIZES, is_private)
    if quick is not None:
        mapping, code, shape, offset, inode = quick
        if inode and not is_private:
            mapping.kept = LoadedFile(name, inode)
        if is_private or framework == "numpy":
            return from_buffer(mapping, by_code(code), shape, offset, framework)
        return unguarded_torch(mapping, by_code(code), shape, offset)

    def once() -> Tensor:
        with opened(name) as (fd, header):
            return _view(fd, header, name, framework, is_private, verify)

    return until_settled(once)


def load_view(path: str) -> np.ndarray[Any, Any]:
    """The same as ``load(path)``, without the time that it takes to check the other arguments."""
    quick = quick_load(path, _ITEMSIZES, False)
    if quick is None:
        return load(path)
    mapping, code, shape, offset, inode = quick
    if inode:
        mapping.kept = LoadedFile(path, inode)
    return from_buffer(mapping, by_code(code), shape, offset, "numpy")


def read_header(path: StrOrBytesPath, *, key: bytes | None = None) -> Header:
    """The checked header of a file of any layout; the payload is not touched.

    Args:
        path: ``str``, ``bytes`` or path-like; a symlink is followed.
        key: of a sealed file. Only its first chunk is decrypted and authenticated.

    Raises:
        TSRFormatError: any defect; ``fault`` says which one.
        HostilePath: not a regular file.
        BadKey, MissingPackage: as in :func:`save`.
    """
    name = os.fsdecode(path)
    if key is not None:
        return sealed.read_header(name, sealed.check_key(key))

    def once() -> Header:
        fd = system.open_path(name)
        try:
            return _header_of(fd, name)
        finally:
            system.close(fd)

    return until_settled(once)


def until_settled(action: Callable[[], _T]) -> _T:
    """Try again while a live segment's owner changes it; at last raise the fault."""
    for wait_s in _WAITS_S:
        try:
            return action()
        except BeingChanged:
            time.sleep(wait_s)
    try:
        return action()
    except BeingChanged as last:
        raise last.fault from None


def check_mode(mode: object) -> None:
    """Refuse a mode that is neither ``"r"`` nor ``"c"``.

    Raises:
        BadMessage: it is neither.
    """
    if mode not in ("r", "c"):
        raise BadMessage(
            f'mode {mode!r} is unknown; "r" (read-only) and "c" (copy-on-write) are supported; to change a file, '
            "save it again",
            detail=str(mode)[:80],
        )


def _header_of(fd: int, path: str) -> Header:
    try:
        raw = system.read_all(fd, MAX_HEADER_NBYTES)
    except OSError as error:
        error.filename = path
        raise
    try:
        return decode(raw, file_nbytes=system.file_nbytes(fd), path=path)
    except TSRFormatError as error:
        if error.fault in TRANSIENT_FAULTS and raw[12] & FLAG_SEGMENT:
            raise BeingChanged(error) from None
        raise


@contextmanager
def opened(path: str) -> Iterator[tuple[int, Header]]:
    """An open file and its checked header, for use under :func:`until_settled`. A live segment has the guest mark."""
    fd = system.open_path(path)
    try:
        header = _header_of(fd, path)
        if header.is_segment:
            system.close(fd)
            fd = -1
            fd = system.open_path(path, write=True)
            header = _header_of(fd, path)  # the name may lead to another file by now
            if header.is_segment:
                _mark_visited(fd, header, path)
        yield fd, header
    finally:
        if fd >= 0:
            system.close(fd)


def _mark_visited(fd: int, header: Header, path: str) -> None:
    """Store the guest mark, then check that the owner had not begun to reuse the segment before it saw the mark."""
    words = np.frombuffer(system.map_write(fd, V2_HEADER_NBYTES), "<u8")
    words[GUEST_WORD] = 1  # one aligned 8-byte store
    # We store the mark, then read seq. The owner clears seq, then reads the mark. So at least one of us sees the store
    # of the other. The system call in between also keeps the processor from reading before it has stored.
    if _header_of(fd, path) != header:
        raise BeingChanged(
            TSRFormatError(f"{path}: replaced again and again while it was opened", fault=Fault.TORN, path=path)
        )


def check_payload(header: Header, payload: memoryview, path: str) -> None:
    """Refuse data that does not match the header's checksum. A header without a checksum accepts any data.

    Raises:
        TSRFormatError: PAYLOAD_CHECKSUM.
    """
    if header.payload_checksum is not None and (found := zlib.crc32(payload)) != header.payload_checksum:
        raise TSRFormatError(
            f"{path}: payload checksum {found:#010x}, the header says {header.payload_checksum:#010x}: "
            "the data has changed since it was saved",
            fault=Fault.PAYLOAD_CHECKSUM,
            path=path,
        )


def _view(fd: int, header: Header, path: str, framework: str, is_private: bool, verify: bool) -> Tensor:
    buffer: bytearray | memoryview
    offset = header.payload_offset
    if verify and header.payload_checksum is None:
        raise TSRFormatError(
            f"{path}: there is no checksum to verify; save the tensor with checksum=True, or load it without verify",
            fault=Fault.NO_CHECKSUM,
            path=path,
        )
    if header.payload_nbytes == 0:
        buffer, offset = bytearray(), 0
        if not is_private and framework == "numpy":
            buffer = memoryview(buffer).toreadonly()
    else:
        try:
            buffer = (system.map_private if is_private else system.map_read)(fd, header.file_nbytes)
            inode = 0 if is_private or header.is_segment else system.inode_on_tmpfs(fd)
            if inode and header.payload_nbytes >= GIVEN_NBYTES:
                system.keep(buffer, LoadedFile(path, inode))
        except SystemLimit as error:
            if error.limit != "address space":
                raise
            raise TSRFormatError(
                f"{path}: {header.file_nbytes} bytes, more than this process can map", fault=Fault.TOO_LARGE, path=path
            ) from error
    if verify:
        with memoryview(buffer)[offset : offset + header.payload_nbytes] as payload:
            check_payload(header, payload, path)
    if is_private or framework == "numpy" or header.payload_nbytes == 0:
        return from_buffer(buffer, header.dtype, header.shape, offset, framework)
    return unguarded_torch(buffer, header.dtype, header.shape, offset)
