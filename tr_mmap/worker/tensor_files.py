"""A tensor read from a TSR file whole, and written to one, as programs of the original framework do it. Maps nothing.

Whoever wrote such a file may overwrite it in place, and a mapping would not survive that. The files of a session that
a worker knows by tags are the business of its transfer.
"""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np

from ..base import system
from ..errors import BadMessage, Fault, TSRFormatError
from ..tsr import save
from ..tsr.dtypes import import_torch
from ..tsr.files import StrOrBytesPath, check_payload
from ..tsr.framework_names import check_framework_name
from ..tsr.header import decode, encode_v1
from ..tsr.tensors import from_buffer, to_array
from ..wire.header import MAX_HEADER_NBYTES

__all__ = ["path_and_tensor", "read_tsr_file", "write_tsr_file"]

_PATHS: Final = (str, bytes, os.PathLike)


def read_tsr_file(path: StrOrBytesPath, framework: str = "torch") -> Any:
    """The tensor of a TSR file, in memory of its own.

    Args:
        path: of the file.
        framework: ``"torch"`` or ``"numpy"``.

    Raises:
        TSRFormatError: the file is none, or not whole; ``fault`` says why.
        OSError: it cannot be opened.
        BadMessage: no such framework.
    """
    check_framework_name(framework)
    if framework == "torch":
        import_torch()
    name = os.fsdecode(path)
    fd = system.open_path(name)
    try:
        header = decode(system.read_all(fd, MAX_HEADER_NBYTES), file_nbytes=system.file_nbytes(fd), path=name)
        payload = np.empty(header.payload_nbytes, np.uint8).data
        if system.read_into(fd, payload, header.payload_offset) != header.payload_nbytes:
            raise TSRFormatError(f"{name} became shorter while it was read", fault=Fault.TRUNCATED, path=name)
    finally:
        system.close(fd)
    check_payload(header, payload, name)
    return from_buffer(payload, header.dtype, header.shape, 0, framework)


def write_tsr_file(path: Any, tensor: Any) -> None:
    """Write a tensor to a TSR file, whole: whoever reads sees the old file or the new one.

    The file is in layout v1, which the original framework reads, if that can hold the tensor, else in v2.

    Args:
        path: of the file. It may also come second: a tensor is no path.
        tensor: numpy or torch.

    Raises:
        UnsupportedTensor: it is not a tensor that TSR can hold.
        BadMessage: neither of the two is a path.
        OSError: the file cannot be written.
    """
    path, tensor = path_and_tensor(path, tensor)
    dtype, array = to_array(tensor)
    try:
        encode_v1(dtype, array.shape)
        version = 1
    except TSRFormatError:
        version = 2
    save(path, tensor, version=version)


def path_and_tensor(one: Any, other: Any) -> tuple[Any, Any]:
    """A path and a tensor that were given in either order.

    Raises:
        BadMessage: neither of the two is a path, or both are.
    """
    is_first, is_second = isinstance(one, _PATHS), isinstance(other, _PATHS)
    if is_first == is_second:
        raise BadMessage(
            f"a path and a tensor are needed, not {type(one).__name__} and {type(other).__name__}", detail="path"
        )
    return (one, other) if is_first else (other, one)
