"""A doorbell: a named semaphore that wakes the side that waits. A hint, never a lock: any count is harmless."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from typing import Any

from ..base import system
from ..base.fork_safety import this_process
from ..errors import HostilePath, MissingPackage, OutOfSpace, SemaphoresUnavailable
from ..native import Semaphore
from ..native.semaphore_names import create_semaphore, unlink_semaphore
from ..wire.names import SHM_DIR

__all__ = ["Doorbell"]

_MIN_SEMAPHORE_NBYTES = 32  # sizeof(sem_t) on 64-bit Linux
# These do not mean that the system has no semaphores for us: the name is taken, or the error may pass.
_OTHER_REASONS = frozenset({errno.EEXIST, errno.EINTR, errno.EIO})


class Doorbell:
    """One semaphore. Two rings before a wait may wake it twice; the second time there is nothing new.

    Attributes:
        name: of the semaphore.
        ring: posts the semaphore.
        wait: waits for a ring, for so many seconds; False when the time is over.
    """

    __slots__ = ("_owner", "name", "ring", "semaphore", "wait")

    def __init__(self, name: str) -> None:
        self.name = name
        self._owner = this_process.mark
        try:
            self.semaphore = semaphore = Semaphore(name)
        except ImportError as error:
            raise _missing(error) from error
        except OSError as error:
            system.check_limit(error, "a semaphore")
            raise
        self.ring: Callable[[], None] = semaphore.post
        self.wait: Callable[[float], bool] = semaphore.wait

    @classmethod
    def create(cls, name: str) -> Doorbell:
        """Make a doorbell.

        Raises:
            OutOfSpace: there is no room where the system keeps semaphores.
            SemaphoresUnavailable: the system has none for this user.
            SystemLimit: no descriptor or mapping can be had.
            MissingPackage: semaphores need the package posix_ipc here, and it is not installed.
        """
        owner = this_process.mark
        try:
            create_semaphore(name)
        except ImportError as error:
            raise _missing(error) from error
        except OSError as error:
            system.check_limit(error, "a semaphore")
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                free = _free_nbytes()
                raise OutOfSpace(
                    f"no room for a semaphore in {SHM_DIR}, {free} bytes are free; free space there, or use "
                    'channel="files" with TR_WORKSPACE in another place',
                    needed_nbytes=_MIN_SEMAPHORE_NBYTES,
                    free_nbytes=free,
                ) from error
            if error.errno in _OTHER_REASONS:
                raise
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise SemaphoresUnavailable(
                f'POSIX semaphores cannot be used here ({reason}; Linux keeps them in {SHM_DIR}); use channel="files", '
                "which needs none",
                reason=reason,
            ) from error
        try:
            return cls(name)
        except BaseException:
            if this_process.mark is owner:  # else a signal handler has forked: it is the parent's
                unlink_semaphore(name)
            raise

    @classmethod
    def open(cls, name: str) -> Doorbell:
        """Open the peer's doorbell.

        Raises:
            HostilePath: another user could change its file, or the file is too short, so that a ring would be SIGBUS.
            OSError: it is gone.
        """
        if sys.platform == "linux":
            path = f"{SHM_DIR}/sem.{name.lstrip('/')}"
            try:
                info = os.lstat(path)
            except FileNotFoundError:
                info = None
            if info is not None and not (
                stat.S_ISREG(info.st_mode)
                and info.st_size >= _MIN_SEMAPHORE_NBYTES
                and info.st_uid == os.geteuid()
                and not info.st_mode & 0o022
            ):
                raise HostilePath(f"{path} is not a semaphore of ours", path=path, reason="kind, size, owner or mode")
        return cls(name)

    def unlink(self) -> None:
        """Remove the name; both open ends go on working, and nothing is left if both die. Not in a forked child."""
        if this_process.mark is not self._owner:
            return
        try:
            unlink_semaphore(self.name)
        except FileNotFoundError:
            pass

    def close(self) -> None:
        """Ring and wait no more. The semaphore is closed when the last object that uses it is gone."""
        self.ring = self.wait = _is_closed


def _missing(error: ImportError) -> MissingPackage:
    return MissingPackage(
        f"the default channel needs the package posix_ipc here, and {error}; install it (pip install posix_ipc), or "
        'use channel="files"',
        package="posix_ipc",
    )


def _free_nbytes() -> int:
    try:
        return system.free_nbytes(SHM_DIR)
    except OSError:
        return 0


def _is_closed(*_: Any) -> Any:
    raise OSError(errno.EBADF, "the doorbell is closed")
