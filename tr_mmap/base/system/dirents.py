"""System calls on names and directories: read, make, rename, link, remove, lock. Never reads a file's content."""

from __future__ import annotations

import errno
import os
import shutil
import stat

from .memory import libc
from .refusals import check_room, hostile, not_regular

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "exchange",
    "exists",
    "is_same_file",
    "is_usable_dir",
    "link",
    "link_target",
    "list_dir",
    "make_dir",
    "remove_dir",
    "remove_tree",
    "rename",
    "replacement_of",
    "status",
    "symlink",
    "try_lock_dir",
    "unlink",
    "unlock_and_close_dir",
]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def status(path: str) -> os.stat_result:
    """The status of what has that name; a symlink is not followed.

    Raises:
        FileNotFoundError: there is no such name.
    """
    return os.lstat(path)


def exists(path: str) -> bool:
    """Whether the name is taken, also by a symlink whose target does not exist."""
    return os.path.lexists(path)


def is_usable_dir(path: str) -> bool:
    """Whether the path leads to a directory in which this user may make files."""
    return os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)


def is_same_file(fd: int, path: str) -> bool:
    """Whether ``path`` still names the open file."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def list_dir(path: str) -> list[str]:
    """The names in a directory, in no order."""
    return os.listdir(path)


def link_target(path: str) -> str:
    """The text of a symlink."""
    return os.readlink(path)


def replacement_of(path: str) -> tuple[str, int]:
    """The path that a rename must replace to give the user's ``path`` new content, and the mode for the new file.

    Symlinks are followed, so that they survive; a new file gets what the umask allows, as from ``open``.

    Raises:
        HostilePath: there is something else than a regular file.
    """
    target = os.path.realpath(path)
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return target, 0o666
    if not stat.S_ISREG(mode):
        raise not_regular(path)
    return target, mode & 0o777


def link(source: str, target: str) -> None:
    """Give the file ``source`` a second name; a symlink is not followed.

    Raises:
        FileExistsError: the name ``target`` is taken.
        OutOfSpace: no room for another name.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        check_room(error, target)
        raise


def symlink(target: str, path: str) -> None:
    """Make ``path`` a symlink to ``target``.

    Raises:
        FileExistsError: the name ``path`` is taken.
        OutOfSpace: no room for another name.
    """
    try:
        os.symlink(target, path)
    except OSError as error:
        check_room(error, path)
        raise


def rename(source: str, target: str) -> None:
    """Atomic; replaces ``target``. A process that has the old file mapped keeps it.

    Raises:
        HostilePath: a directory is in the place of a file.
    """
    try:
        os.replace(source, target)
    except IsADirectoryError as error:
        raise hostile(target, "is a directory") from error


def exchange(first: str, second: str) -> bool:
    """Swap the files of two names, in one step; False if the system cannot, or if one name does not exist."""
    renameat2 = getattr(libc, "renameat2", None)  # Linux
    if renameat2 is None:
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0)


def unlink(path: str) -> None:
    """Remove a name; it may be gone already.

    Raises:
        HostilePath: it is a directory.
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except IsADirectoryError as error:
        raise hostile(path, "is a directory") from error


def make_dir(path: str) -> None:
    """Make one directory, 0700. FileExistsError if it is there."""
    try:
        os.mkdir(path, 0o700)
    except OSError as error:
        check_room(error, path)
        raise


def remove_dir(path: str) -> bool:
    """Remove an empty directory; False if it is not empty or not there."""
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
            return False
        raise
    return True


def remove_tree(path: str) -> None:
    """Remove a directory and all in it; symlinks are removed, never followed."""
    shutil.rmtree(path, ignore_errors=True)


def try_lock_dir(fd: int) -> bool:
    """Take the exclusive lock of an open directory; False while another process has it."""
    if fcntl is None:  # pragma: no cover - Windows
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock_and_close_dir(fd: int) -> None:
    """Release the lock first: a child forked meanwhile has the descriptor too, and would keep the lock."""
    try:
        if fcntl is not None:
            fcntl.flock(fd, fcntl.LOCK_UN)
    except OSError:
        pass  # closing releases it too
    finally:
        os.close(fd)
