"""Which file an array was loaded from, so that a session can name the file instead of copying it. Opens nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import TSRFormatError
from ..wire.header import MAX_HEADER_NBYTES
from .header import Header, decode

__all__ = ["LoadedFile", "loaded_file"]


class LoadedFile:
    """A file on tmpfs that is mapped for reading; its mapping keeps this object.

    Attributes:
        path: as the program named it.
        inode: of the file.
        header: None until it is asked for.
    """

    __slots__ = ("__weakref__", "header", "inode", "path")

    def __init__(self, path: str, inode: int) -> None:
        self.path = path
        self.inode = inode
        self.header: Header | None = None


def loaded_file(array: np.ndarray[Any, Any]) -> LoadedFile | None:
    """The file that an array is the whole tensor of, as it lies there; None for every other array."""
    root: Any = array
    while isinstance(root, np.ndarray):
        root = root.base
    mapping = root.obj if isinstance(root, memoryview) else root
    file = getattr(mapping, "kept", None)
    if not isinstance(file, LoadedFile) or array.flags.writeable or not array.flags.c_contiguous:
        return None
    buffer = memoryview(mapping).cast("B")
    try:
        file.header = file.header or decode(bytes(buffer[:MAX_HEADER_NBYTES]), file_nbytes=len(buffer), path=file.path)
    except TSRFormatError:
        return None  # somebody has written into it since
    header = file.header
    if array.shape != header.shape or array.dtype != header.dtype.numpy:
        return None
    begin = np.frombuffer(buffer, np.uint8, 1).__array_interface__["data"][0] + header.payload_offset
    return file if array.__array_interface__["data"][0] == begin else None
