"""Loads the package posix_ipc, or says why it cannot be used. Needs no package itself."""

from __future__ import annotations

import importlib
from typing import Any, Final

__all__ = ["load_posix_ipc"]

_NEEDED: Final = ("Semaphore", "unlink_semaphore", "Error", "PermissionsError", "ExistentialError", "BusyError")


def load_posix_ipc() -> Any:
    """The package.

    Raises:
        ImportError: it is not installed, cannot be loaded, or is another module of that name.
    """
    try:
        found = importlib.import_module("posix_ipc")
    except ModuleNotFoundError as error:
        if error.name == "posix_ipc":
            raise ImportError("posix_ipc is not installed", name="posix_ipc") from error
        raise ImportError(f"posix_ipc is installed, but cannot be loaded: {error}", name="posix_ipc") from error
    except Exception as error:  # whatever a broken one, or another module of that name, raises
        why = f"{type(error).__name__}: {error}"
        raise ImportError(f"posix_ipc is installed, but cannot be loaded: {why}", name="posix_ipc") from error
    if not all(hasattr(found, name) for name in _NEEDED):
        where = getattr(found, "__file__", None) or "a program"
        raise ImportError(f"the module posix_ipc of {where} is not the package posix_ipc", name="posix_ipc")
    return found
