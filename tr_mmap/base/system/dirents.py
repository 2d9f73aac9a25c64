"""System calls on names and directories: read, make, rename, link, remove, lock. Never reads a file's content."""

from __future__ import annotations

import errno
import os
import stat
import sys

from ..fork_safety import this_process
from .files import is_on, open_dir, sync
from .limits import check_descriptors
from .memory import libc
from .refusals import check_room, hostile, not_regular

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "absolute",
    "exchange",
    "fixed",
    "exists",
    "is_lock_free",
    "is_same_file",
    "is_usable_dir",
    "lock_dir",
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
    "sync_dir",
    "try_lock_dir",
    "unlink",
    "unlock_and_close_dir",
]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_MOST_LINKS = 40  # what Linux follows too
_PROC_MAGIC = 0x9FA0  # linux/magic.h


def absolute(path: str) -> str:
    """The path from the root, without ``.``. Every ``..`` stays: after a symlink, only the kernel knows where it is.

    Raises:
        FileNotFoundError: it is relative, and the current directory has been removed.
    """
    if sys.platform == "win32":  # pragma: no cover
        from pathlib import Path

        return str(Path(path).absolute())
    whole = path if path.startswith("/") else f"{os.getcwd()}/{path}"
    root = "//" if whole.startswith("//") and not whole.startswith("///") else "/"  # POSIX leaves open what // is
    return root + "/".join(each for each in whole.split("/") if each not in ("", "."))


def fixed(path: str) -> str:
    """The absolute path, for several calls that must mean one place: another thread may change the current directory.

    The path stays as it is if its directory cannot be reached from the root: it does not exist, or a directory above
    the current one was removed or is closed to this user.
    """
    if path.startswith("/") or not path:
        return path
    try:
        whole = f"{os.getcwd()}/{path}"
    except OSError:
        return path
    return whole if os.path.exists(os.path.dirname(whole)) else path


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
    try:
        return os.listdir(path)
    except OSError as error:
        check_descriptors(error, path)
        raise


def link_target(path: str) -> str:
    """The text of a symlink."""
    return os.readlink(path)


def replacement_of(path: str) -> tuple[str | None, int | None]:
    """The path that a rename must replace to give the user's ``path`` new content, and the permissions to keep.

    A symlink in the last part of the path is followed, so that it survives; the kernel follows all others. So a path
    means what it means to ``open``, also below ``/proc/PID/root``.

    Returns:
        The path, or None for a file that no path leads to: a link of ``/proc/PID/fd`` leads to a memfd, to a file that
        was removed, or to one that has another name here. And the permissions, or None if there is no such file yet.

    Raises:
        HostilePath: there is something else than a regular file.
        IsADirectoryError: nothing is there, and the path ends in a slash.
        FileNotFoundError: nothing is there, and nothing can be.
    """
    try:
        info = os.stat(path)  # first: the kernel may forbid to follow a link of another user
    except FileNotFoundError:
        target, _ = _follow(path)
        if os.path.basename(target):
            return target, None
        if not target or not os.path.isdir(os.path.dirname(target.rstrip("/")) or "."):
            raise
        where = "" if target == path else f"the symlink leads to {target!r}, and "
        raise IsADirectoryError(errno.EISDIR, f"{where}a file's name cannot end in a slash", path) from None
    if not stat.S_ISREG(info.st_mode):
        raise not_regular(path, is_dir=stat.S_ISDIR(info.st_mode))
    target, link_dirs = _follow(path)
    mode = info.st_mode & 0o777
    try:
        is_found = os.path.samestat(info, os.lstat(target))
    except FileNotFoundError:
        is_found = False
    if not is_found and any(map(_is_on_proc, link_dirs)):
        return None, mode
    return target, mode  # if it is another file, somebody has replaced it since


def _follow(path: str) -> tuple[str, list[str]]:
    """Where the symlinks in the last part of a path lead, and the directories in which they are."""
    link_dirs: list[str] = []
    while len(link_dirs) < _MOST_LINKS:
        try:
            text = os.readlink(path)
        except OSError:  # no symlink, or nothing there
            return path, link_dirs
        link_dirs.append(os.path.dirname(path) or ".")
        path = os.path.join(os.path.dirname(path), text)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _is_on_proc(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_on(fd, _PROC_MAGIC)
    finally:
        os.close(fd)


def link(source: str, target: str, *, owner: object = None) -> None:
    """Give the file ``source`` a second name; a symlink is not followed.

    Args:
        source: the file.
        target: its second name.
        owner: the mark of the process that does so; does nothing in a child that was forked since. None for any.

    Raises:
        FileExistsError: the name ``target`` is taken.
        OutOfSpace: no room for another name.
    """
    try:
        if owner is None or owner is this_process.mark:
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


def rename(source: str, target: str, *, owner: object = None) -> None:
    """Atomic; replaces ``target``. A process that has the old file mapped keeps it.

    Args:
        source: the present name.
        target: the new one.
        owner: the mark of the process whose file it is; does nothing in a child that was forked since. None for any.

    Raises:
        HostilePath: a directory is in the place of a file.
    """
    try:
        if owner is None or owner is this_process.mark:
            os.replace(source, target)
    except IsADirectoryError as error:
        raise hostile(target, "is a directory") from error


def exchange(first: str, second: str) -> bool:
    """Swap the files of two names, in one step; False if the system cannot, or if one name does not exist."""
    renameat2 = getattr(libc, "renameat2", None)  # Linux
    if renameat2 is None:
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0)


def unlink(path: str, *, owner: object = None) -> None:
    """Remove a name; it may be gone already.

    Args:
        path: the name.
        owner: the mark of the process whose file it is; does nothing in a child that was forked since. None for any.

    Raises:
        HostilePath: it is a directory.
    """
    try:
        if owner is None or owner is this_process.mark:
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
    import shutil  # here: with what it imports, it takes a tenth of a worker's imports, and workers do not need it

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


def lock_dir(fd: int) -> None:
    """Wait for the exclusive lock of an open directory."""
    if fcntl is not None:
        fcntl.flock(fd, fcntl.LOCK_EX)


def sync_dir(path: str) -> None:
    """Wait until the names in a directory are on the disk."""
    fd = open_dir(path)
    try:
        sync(fd, is_dir=True)
    finally:
        os.close(fd)


def is_lock_free(fd: int) -> bool:
    """Whether no process holds the exclusive lock of an open file. Takes a shared one for a moment, so any may ask."""
    if fcntl is None:  # pragma: no cover - Windows
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return True


def unlock_and_close_dir(fd: int, owner: object) -> None:
    """Release the lock first: a child forked meanwhile has the descriptor too, and would keep the lock.

    Args:
        fd: of the directory.
        owner: the mark of the process that took the lock. In a child that was forked since, this only closes.
    """
    try:
        if fcntl is not None and owner is this_process.mark:
            fcntl.flock(fd, fcntl.LOCK_UN)
    except OSError:
        pass  # closing releases it too
    finally:
        os.close(fd)
