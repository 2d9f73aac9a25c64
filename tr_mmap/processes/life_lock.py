"""A lock that a process holds for life, on a file that others can see. Never judges by a pid.

A pid says nothing in another namespace of pids, where containers that share a directory live. So controller and worker
each hold the ``flock`` of a file of their own in the session's directory. The lock is there before the manifest names
the process, and the kernel releases it when the process ends. So who can take the lock knows that it has ended.

The lock belongs to the open file, so a forked child would hold it too. A child of ``os.fork`` closes it at once. A
child that native code forks holds it until that child ends or runs another program; until then, the process counts as
alive. A lock of the process (``fcntl``) would not have this flaw, but any code that reads the file in the same process,
to copy the directory say, would release it.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Final

from ..base import system
from ..base.fork_safety import at_fork, for_each
from ..errors import HostilePath
from ..wire.names import LOCK_FD_VARIABLE
from .identity import Identity

__all__ = ["LifeLock", "LifeProbe", "handed_over", "hold_inherited", "is_alive", "is_held"]


class LifeLock:
    """This process's lock. Is released by :meth:`drop`, by the object's own end, and by the end of the process."""

    def __init__(self) -> None:
        self._file: system.OwnFile | None = None
        _members.add(self)

    @property
    def is_held(self) -> bool:
        """Whether this process holds it."""
        return self._file is not None

    def take(self, path: str) -> None:
        """Create the file, in place of an earlier one, and lock it. No other process may know the new file yet.

        Raises:
            OutOfSpace: no room for a file.
            OSError: a system call failed; the lock is not held.
        """
        self.drop()
        fd = _locked_file(path)
        try:
            self._file = system.OwnFile(fd)
        except BaseException:  # a signal handler's
            system.close(fd)
            raise

    def hold(self, fd: int) -> None:
        """Take over the descriptor of a locked file."""
        self.drop()
        self._file = system.OwnFile(fd)

    def is_at(self, path: str) -> bool:
        """Whether the locked file has that name still."""
        return self._file is not None and system.is_same_file(self._file.fd, path)

    def drop(self) -> None:
        """Release the lock. A process that has the descriptor too still holds it."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def __del__(self) -> None:
        self.drop()


def _locked_file(path: str) -> int:
    """A new file, locked. It replaces one of that name."""
    system.unlink(path)
    fd = system.create_file(path)
    try:
        if not system.try_lock_dir(fd):  # nobody can have found it
            raise BlockingIOError(f"another process holds the lock of {path}, which was made for this one")
    except BaseException:
        system.close(fd)
        raise
    return fd


@contextmanager
def handed_over(path: str) -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
    """What a worker that is started in this block needs to hold its lock: environment variables, descriptors to pass.

    The worker has the lock from its first moment on, and this process gives it up at the end of the block.

    Args:
        path: of the worker's lock file; a new file replaces that of an earlier worker.
    """
    fd = _locked_file(path)  # no LifeLock: a child that os.fork makes for a worker must not close it
    try:
        yield {LOCK_FD_VARIABLE: str(fd)}, (fd,)
    finally:
        try:
            system.close(fd)
        except OSError:
            pass  # it is closed all the same


def hold_inherited(environ: MutableMapping[str, str] = os.environ) -> LifeLock | None:
    """The lock that this process was started with; None if there is none. Works once. The caller keeps the object."""
    number = environ.pop(LOCK_FD_VARIABLE, "")  # our children must not hold it
    if not re.fullmatch("[0-9]{1,9}", number):
        return None
    try:
        os.set_inheritable(int(number), False)
    except OSError:
        return None
    lock = LifeLock()
    lock.hold(int(number))
    return lock


class LifeProbe:
    """Looks at another process's lock; sees it also when the file has lost its name.

    Args:
        path: of the lock file. If there is none, the process never counts as ended: it may be of an older version.
    """

    def __init__(self, path: str) -> None:
        try:
            self._fd = system.open_private_file(path)
        except (OSError, HostilePath):
            self._fd = -1

    def is_free(self) -> bool:
        """Whether the process has certainly ended."""
        if self._fd < 0:
            return False
        try:
            return system.is_lock_free(self._fd)
        except OSError:
            return False

    def close(self) -> None:
        """Release the descriptor."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                system.close(fd)
            except OSError:
                pass  # it is closed all the same


def is_held(path: str) -> bool:
    """Whether some process holds the lock of that file, this one too; False if there is no such file of this user's."""
    try:
        fd = system.open_private_file(path)
    except (FileNotFoundError, HostilePath):
        return False
    try:
        return not system.is_lock_free(fd)
    finally:
        system.close(fd)


def is_alive(process: Identity, lock_path: str) -> bool:
    """False only if exactly this process has certainly ended: judged by its pid, or by its lock if that says nothing.

    Args:
        process: from the session's manifest.
        lock_path: of the lock that it holds for life; the file may be missing.
    """
    if process.is_judgeable() or not process.is_alive():
        return process.is_alive()
    probe = LifeProbe(lock_path)
    try:
        return not probe.is_free()
    finally:
        probe.close()


_members: Final[weakref.WeakSet[LifeLock]] = weakref.WeakSet()


def _in_child() -> None:
    for_each(list(_members), LifeLock.drop)  # closes only our descriptor: the parent's holds the lock on


at_fork(after_in_child=_in_child)
