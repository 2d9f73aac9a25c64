"""What ``tech_renaissance`` has, each made when a program first asks for it. Computes nothing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .. import PythonSession, PyTorchSession, Server, TRException
    from .files import ServerError, TSRError, export_tsr, get_tsr_info, import_tsr, read_tsr_file, write_tsr_file
    from .server import TechRenaissanceServer

__all__ = [
    "PyTorchSession",
    "PythonSession",
    "Server",
    "ServerError",
    "TRException",
    "TSRError",
    "TechRenaissanceServer",
    "export_tsr",
    "get_tsr_info",
    "import_tsr",
    "read_tsr_file",
    "write_tsr_file",
]

_HOMES: Final = {
    "TechRenaissanceServer": "tr_mmap.compat.server",
    "export_tsr": "tr_mmap.compat.files",
    "get_tsr_info": "tr_mmap.compat.files",
    "import_tsr": "tr_mmap.compat.files",
    "read_tsr_file": "tr_mmap.compat.files",
    "write_tsr_file": "tr_mmap.compat.files",
    "TSRError": "tr_mmap.compat.files",
    "ServerError": "tr_mmap.compat.files",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tech_renaissance' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "tr_mmap")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
