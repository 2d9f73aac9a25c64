"""A TSR file as numpy's and torch's own kind of mapping: memmap, from_file. Never writes one, never copies a payload.

numpy gets the open file whose header was checked. torch opens files by name only. It gets the name of the open
descriptor below ``/proc``; where there is no ``/proc``, it gets the file's own name, which may lead to another file by
then, so the header of what torch mapped is compared with the one that was checked.
"""

from __future__ import annotations

import errno
import os
import re
from mmap import ALLOCATIONGRANULARITY
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, overload

import numpy as np

from ..base import system
from ..errors import Fault, TSRFormatError, UnsupportedTensor
from .dtypes import import_torch
from .files import BeingChanged, Mode, StrOrBytesPath, check_mode, opened, until_settled
from .header import Header, decode

if TYPE_CHECKING:
    import torch

__all__ = ["from_file", "memmap"]

_SYSTEM_ERROR: Final = re.compile(r"\((\d+)\)\s*$", re.MULTILINE)  # how torch's texts end: "Too many open files (24)"


@overload
def memmap(path: StrOrBytesPath, mode: Literal["r"] = "r") -> np.memmap[Any, Any]: ...
@overload
def memmap(path: StrOrBytesPath, mode: Literal["c"]) -> np.memmap[Any, Any]: ...
def memmap(path: StrOrBytesPath, mode: Mode = "r") -> np.memmap[Any, Any]:
    """A tensor as a ``numpy.memmap``, for programs that need that type; else use :func:`load`.

    It has ``filename``, ``offset`` and ``mode`` as numpy sets them. numpy keeps a descriptor of the file open for as
    long as the array lives, and computes with a memmap more slowly than with a plain array. A tensor without elements
    is a memmap too, because numpy maps the header before it.

    Args:
        path: of a file of any layout that is not sealed; or of a live segment of a session, which gets the guest mark,
            as from :func:`load`.
        mode: ``"r"``: read-only; ``"c"``: copy-on-write. Others would change the file.

    Returns:
        The tensor, of the shape and dtype in the header; ``flags.aligned`` may be False for a v0 file.

    Raises:
        TSRFormatError: any defect of the file; ``fault`` says which one.
        BadMessage: no such mode.
        HostilePath: not a regular file.
        SystemLimit: a limit of the system forbids to open or to map it; ``limit`` says which one.
        MissingPackage: ``ml_dtypes`` is needed and not installed.
    """
    check_mode(mode)
    name = os.fsdecode(path)

    def once() -> np.memmap[Any, Any]:
        with opened(name) as (fd, header), os.fdopen(fd, "rb", closefd=False) as file:
            try:
                return np.memmap(
                    file, dtype=header.dtype.numpy, mode=mode, offset=header.payload_offset, shape=header.shape
                )
            except OSError as error:
                _refuse(error, name, header, is_private=mode == "c")

    array = _with_numpys_strides(until_settled(once))
    # As numpy sets it for a file that it opens by its name.
    filename: Any = os.path.abspath(name)
    if isinstance(path, os.PathLike):
        from pathlib import Path  # here, because who has such a path has imported it

        filename = Path(name).resolve()
    array.filename = filename
    return array


def _with_numpys_strides(array: np.memmap[Any, Any]) -> np.memmap[Any, Any]:
    """The same memmap; without elements it has the strides that numpy gives every other such array."""
    if array.size:
        return array
    mapping: Any = array
    strides = np.empty(array.shape, array.dtype).strides
    result: Any = np.ndarray.__new__(
        np.memmap,
        array.shape,
        array.dtype,
        buffer=mapping._mmap,
        offset=mapping.offset % ALLOCATIONGRANULARITY,
        strides=strides,
    )
    result._mmap, result.offset, result.mode = mapping._mmap, mapping.offset, mapping.mode
    return result  # type: ignore[no-any-return]


def from_file(path: StrOrBytesPath) -> torch.Tensor:
    """A tensor over a storage of ``torch.UntypedStorage.from_file``, for programs that need one; else use ``load``.

    The mapping is copy-on-write: what you write stays in this process. ``torch.from_file`` knows no offset and maps a
    file from its first byte on. So the storage holds the header too, and the tensor has a ``storage_offset()``.

    Args:
        path: of a file of any layout that is not sealed; or of a live segment of a session, which gets the guest mark,
            as from :func:`load`.

    Returns:
        The tensor, of the shape and dtype in the header.

    Raises:
        TSRFormatError: any defect of the file; ``fault`` says which one.
        UnsupportedTensor: torch lacks the dtype; or the payload does not begin at a multiple of the item size, which
            is so in a v0 file of float64, and which a torch tensor cannot express.
        HostilePath: not a regular file.
        SystemLimit: a limit of the system forbids to open or to map it; ``limit`` says which one.
        MissingPackage: torch is not installed.
    """
    import_torch()
    name = os.fsdecode(path)

    def once() -> torch.Tensor:
        with opened(name) as (fd, header):
            return _torch_file(fd, name, header)

    return until_settled(once)


def _torch_file(fd: int, name: str, header: Header) -> torch.Tensor:
    import torch

    dtype = header.dtype.torch
    itemsize = header.dtype.itemsize
    if header.payload_offset % itemsize and header.payload_nbytes:
        raise UnsupportedTensor(
            f"{name}: the payload begins at byte {header.payload_offset}, and torch has no tensor of "
            f"{header.dtype.name} there; use load, which copies it, or save it as version 2"
        )
    by_descriptor = f"/proc/self/fd/{fd}"  # the very file; its name may lead to another one by now
    has_proc = system.exists(by_descriptor)
    try:
        # Never shared=True: that would make the file, or let it grow, if it is not as large.
        storage: Any = torch.UntypedStorage.from_file(
            by_descriptor if has_proc else name, shared=False, nbytes=header.file_nbytes
        )
    except RuntimeError as error:
        code = _SYSTEM_ERROR.search(str(error))
        if code is not None and int(code[1]) != errno.ENOENT:
            _refuse(OSError(int(code[1]), os.strerror(int(code[1]))), name, header, is_private=True)
        raise _replaced(name) from error
    if not has_proc and _header_in(storage, header, name) != header:
        raise _replaced(name)
    shape = header.shape
    stride = torch.empty(shape, dtype=dtype, device="meta").stride()
    return torch.empty(0, dtype=dtype, device="cpu").set_(storage, header.payload_offset // itemsize, shape, stride)


def _refuse(error: OSError, name: str, header: Header, *, is_private: bool) -> NoReturn:
    """Raise the typed error for what the framework's own open or mmap said."""
    system.check_descriptors(error, name)
    raise system.mapping_refused(error, header.file_nbytes, is_private=is_private) from error


def _replaced(name: str) -> BeingChanged:
    return BeingChanged(
        TSRFormatError(f"{name}: replaced again and again while it was opened", fault=Fault.TORN, path=name)
    )


def _header_in(storage: Any, header: Header, name: str) -> Header | None:
    import torch

    head = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage, 0, (min(256, header.payload_offset),), (1,))
    try:
        return decode(head.numpy().tobytes(), path=name)
    except TSRFormatError:
        return None  # another file by now
