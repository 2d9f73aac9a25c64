"""Functions of the standard library as Python ships them, also where a program has replaced them. Replaces nothing.

gevent and eventlet put functions of their own in place of threads, locks and ``poll``. Theirs run only while the main
thread lets them, and it does not while it waits in the C library for a message. So whatever must work during such a
wait uses the functions from here. A module takes them when it is imported, because a program may replace them later.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

__all__ = ["is_builtin", "unpatched"]


def unpatched(module: str, name: str) -> Any:
    """A module's function or class as Python ships it; the replacement if the library that made it keeps no original.

    Args:
        module: of the standard library.
        name: of the function or class.
    """
    if (gevent := sys.modules.get("gevent.monkey")) is not None and gevent.is_module_patched(module):
        return gevent.get_original(module, name)
    if (eventlet := sys.modules.get("eventlet.patcher")) is not None and not is_builtin(_present(module, name)):
        return getattr(eventlet.original(module), name, None) or _present(module, name)
    return _present(module, name)


def is_builtin(function: Any) -> bool:
    """Whether it is a function in C, and so no replacement in Python."""
    return isinstance(function, types.BuiltinFunctionType)


def _present(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name, None)
