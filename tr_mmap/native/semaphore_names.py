"""Makes and removes named POSIX semaphores. Never waits for one. Needs no package on Linux, posix_ipc elsewhere."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from typing import Final

from .libc import libc
from .posix_ipc_package import load_posix_ipc

__all__ = ["create_semaphore", "unlink_semaphore"]

_MODE: Final = 0o600
_ON_LINUX: Final = sys.platform.startswith("linux")  # elsewhere ctypes may pass sem_open's optional arguments wrongly

if _ON_LINUX:
    libc.sem_open.restype = ctypes.c_void_p
    libc.sem_close.argtypes = [ctypes.c_void_p]
    libc.sem_unlink.argtypes = [ctypes.c_char_p]


def create_semaphore(name: str) -> None:
    """Make a semaphore with no posts, 0600.

    Raises:
        FileExistsError: the name is taken.
        ImportError: this system needs posix_ipc for it.
        OSError: the system cannot make it.
    """
    if _ON_LINUX:
        mode, posts = ctypes.c_uint(_MODE), ctypes.c_uint(0)
        opened = libc.sem_open(name.encode(), ctypes.c_int(os.O_CREAT | os.O_EXCL), mode, posts)
        if not opened:
            raise _last_error()
        libc.sem_close(opened)
        return
    posix_ipc = load_posix_ipc()
    try:
        posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=_MODE, initial_value=0).close()
    except posix_ipc.PermissionsError as error:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES)) from error
    except posix_ipc.ExistentialError as error:
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST)) from error


def unlink_semaphore(name: str) -> None:
    """Remove the name of a semaphore; those who have it open go on with it.

    Raises:
        FileNotFoundError: there is none.
        ImportError: this system needs posix_ipc for it.
        OSError: it cannot be removed.
    """
    if _ON_LINUX:
        if libc.sem_unlink(name.encode()) != 0:
            raise _last_error()
        return
    posix_ipc = load_posix_ipc()
    try:
        posix_ipc.unlink_semaphore(name)
    except posix_ipc.PermissionsError as error:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES)) from error
    except posix_ipc.ExistentialError as error:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT)) from error


def _last_error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
