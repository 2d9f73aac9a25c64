"""TSR files by the original framework's functions, and its errors. The formats themselves are in ``tr_mmap.tsr``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import BadMessage, Fault, TRException, TSRFormatError, UnsupportedTensor
from ..tsr import read_header
from ..tsr.header import Header
from ..worker import tensor_files

__all__ = ["ServerError", "TSRError", "export_tsr", "get_tsr_info", "import_tsr", "read_tsr_file", "write_tsr_file"]

ServerError = TRException  # a program that catches it catches whatever a server raises


class TSRError(TRException):
    """A TSR file that cannot be read or written. A program may raise it too, with any text."""

    def __init__(self, message: str = "", **fields: Any) -> None:
        super().__init__(message, **fields)


class _Missing(TSRError, FileNotFoundError):
    """There is no such file."""


class _Unreadable(TSRError, OSError):
    """The system does not let us read or write the file."""


class _Defect(TSRError, TSRFormatError):
    """The file holds no tensor. Attributes: fault, path."""

    def __init__(self, message: str, *, fault: Fault, path: str | None = None) -> None:
        TRException.__init__(self, message, fault=fault, path=path)


class _Unsupported(TSRError, UnsupportedTensor):
    """The value is no tensor that a file can hold."""


@contextmanager
def _as_tsr_error() -> Iterator[None]:
    try:
        yield
    except TSRError:
        raise
    except TSRFormatError as error:
        raise _Defect(str(error), fault=error.fault, path=error.path) from error
    except UnsupportedTensor as error:
        raise _Unsupported(str(error)) from error
    except BadMessage as error:
        raise TSRError(str(error)) from error
    except OSError as error:
        kind = _Missing if isinstance(error, FileNotFoundError) else _Unreadable
        raised = kind(str(error))
        raised.errno, raised.filename = error.errno, error.filename
        raise raised from error


def import_tsr(path: Any, framework: str = "torch") -> Any:
    """The tensor of a TSR file, in memory of its own.

    Args:
        path: of the file.
        framework: ``"torch"`` or ``"numpy"``.

    Raises:
        TSRError: there is no such file, or it holds no tensor.
    """
    with _as_tsr_error():
        return tensor_files.read_tsr_file(path, framework)


def export_tsr(tensor: Any, path: Any) -> None:
    """Write a tensor to a TSR file: v1, which the original reads, or v2 if v1 cannot hold the tensor.

    Args:
        tensor: torch or numpy.
        path: of the file. The two may come in either order.

    Raises:
        TSRError: it is not a tensor that TSR can hold, or the file cannot be written.
    """
    with _as_tsr_error():
        tensor_files.write_tsr_file(path, tensor)


def read_tsr_file(path: Any, framework: str = "torch") -> Any:
    """The same as :func:`import_tsr`."""
    return import_tsr(path, framework)


def write_tsr_file(path: Any, tensor: Any) -> None:
    """The same as :func:`export_tsr`, with the arguments in either order, too."""
    export_tsr(tensor, path)


def get_tsr_info(path: Any) -> dict[str, Any]:
    """What a TSR file says of its tensor; reads none of its elements.

    Returns:
        ``path``, ``version``, ``dtype`` (``"float32"``), ``shape`` and ``dims`` (the same tuple), ``ndim``,
        ``num_elements`` and ``total_elements`` (the same number), ``element_size``, ``header_size``, ``data_size`` and
        ``file_size`` (bytes).

    Raises:
        TSRError: there is no such file, or it holds no tensor.
    """
    with _as_tsr_error():
        return _described(os.fsdecode(path), read_header(path))


def _described(path: str, header: Header) -> dict[str, Any]:
    nbytes, itemsize = header.payload_nbytes, header.dtype.itemsize
    return {
        "path": path,
        "version": header.version,
        "dtype": header.dtype.name,
        "shape": header.shape,
        "dims": header.shape,
        "ndim": len(header.shape),
        "num_elements": nbytes // itemsize,
        "total_elements": nbytes // itemsize,
        "element_size": itemsize,
        "header_size": header.payload_offset,
        "data_size": nbytes,
        "file_size": os.stat(path).st_size,
    }
