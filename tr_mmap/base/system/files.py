"""System calls that open files, and on open files and pipes: bytes, size, room. Never renames or removes a file."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import stat
import struct
import sys
import time
from collections.abc import Callable

from ...errors import OutOfSpace
from ..unpatched import unpatched
from .limits import check_descriptors, check_file_size
from .memory import libc
from .refusals import check_room, free_nbytes, hostile, not_regular, too_little

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "allocate",
    "append_always",
    "close",
    "create_file",
    "file_nbytes",
    "file_time_ns",
    "has_open_locks",
    "inode_on_tmpfs",
    "is_dir_on_tmpfs",
    "is_on",
    "is_sealed_against_writing",
    "is_sparse",
    "make_pipe",
    "open_dir",
    "open_file",
    "open_or_create",
    "open_path",
    "open_private_file",
    "peek",
    "read_all",
    "read_into",
    "read_pipe",
    "set_mode",
    "set_size",
    "signal_on_hangup",
    "sync",
    "truncate",
    "try_lock_byte",
    "try_lock_open_byte",
    "unlock_open_byte",
    "write_all",
    "write_pipe",
]

_ALWAYS = os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
_poll = unpatched("select", "poll")
_SEALS_AGAINST_WRITING = 0x8 | 0x10  # linux/fcntl.h: F_SEAL_WRITE, F_SEAL_FUTURE_WRITE
_TMPFS_MAGIC = 0x01021994  # linux/magic.h


def open_file(path: str, *, write: bool = False) -> int:
    """Open an existing file; the kernel refuses a symlink as the last part of the path (ELOOP).

    Raises:
        SystemLimit: too many open files. Every function that opens something raises it.
    """
    return _open(path, (os.O_RDWR if write else os.O_RDONLY) | _ALWAYS)


def _open(path: str, flags: int, mode: int = 0, *, told_as: str | None = None) -> int:
    fds: list[int] = []
    try:
        _open_into(fds, path, flags, mode, told_as)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return fds[0]


def _open_into(fds: list[int], path: str, flags: int, mode: int = 0, told_as: str | None = None) -> None:
    """Open a file and append its descriptor by one call: a signal handler that raises after os.open() would lose it."""
    try:
        fds.extend(map(os.open, (path,), (flags,), (mode,)))
    except OSError as error:
        if told_as is not None:
            error.filename = told_as
        check_descriptors(error, told_as or path)
        raise


def open_private_file(path: str, *, write: bool = False, forbidden_mode: int = 0o022) -> int:
    """Open a session's file; refuse one that only an attacker would have put there.

    Args:
        path: the file.
        write: for writing too.
        forbidden_mode: permissions that it must not have; a legacy program makes files by its umask, which may let its
            group write.

    Raises:
        HostilePath: a symlink, FIFO, device or directory, another user's file, or one that others may write.
        FileNotFoundError: it is not there.
    """
    try:
        # O_NONBLOCK: a FIFO in place of the file must not make us wait for its other end.
        fd = _open(path, (os.O_RDWR if write else os.O_RDONLY) | _ALWAYS | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EISDIR):
            raise hostile(path, "is a symlink, FIFO, device or directory") from error
        if error.errno == errno.EACCES:
            raise hostile(path, "may not be opened by this user") from error
        raise
    try:
        info = os.fstat(fd)
        reason = ""
        if not stat.S_ISREG(info.st_mode):
            reason = "is not a regular file"
        elif info.st_uid != os.geteuid():
            reason = f"belongs to user {info.st_uid}"
        elif info.st_mode & forbidden_mode:
            reason = "may be written by group or others"
        if reason:
            raise hostile(path, reason)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_path(path: str, *, write: bool = False) -> int:
    """Open a regular file that the user named. Follows symlinks, accepts other owners, never blocks.

    Raises:
        HostilePath: a directory, FIFO, socket or device.
    """
    try:
        fd = _open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.EISDIR):
            raise not_regular(path, is_dir=error.errno == errno.EISDIR) from error
        raise
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise not_regular(path, is_dir=stat.S_ISDIR(mode))
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_dir(path: str) -> int:
    """Open a directory itself, to lock or to examine it; a symlink in place of it is refused (ELOOP or ENOTDIR)."""
    return _open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _ALWAYS)


def create_file(path: str, mode: int = 0o600, *, told_as: str | None = None) -> int:
    """Create a file that must not exist yet, and open it for reading and writing.

    Args:
        path: of the new file.
        mode: its permissions, less the umask; others than 0600 only for a user's own file.
        told_as: the path that errors name, if that of the new file says nothing to the user.

    Raises:
        FileExistsError: the name is taken.
        OutOfSpace: no room for another file.
    """
    try:
        return _open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _ALWAYS, mode, told_as=told_as)
    except OSError as error:
        check_room(error, path)
        raise


def open_or_create(path: str) -> int:
    """Open a file for reading and writing; it is made, and empty, if it is missing.

    Raises:
        OutOfSpace: no room for another file.
    """
    while True:
        try:
            return open_file(path, write=True)
        except FileNotFoundError:
            pass
        try:
            return create_file(path)
        except FileExistsError:
            pass  # another process was faster


def try_lock_byte(fd: int) -> bool:
    """Take the exclusive lock of a file's first byte; False if another process has a lock of it.

    The lock belongs to the process. It ends when the process closes this or any other descriptor of the file.
    """
    if fcntl is None:  # pragma: no cover - Windows
        return False
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
    except (BlockingIOError, PermissionError):  # POSIX allows both
        return False
    return True


def try_lock_open_byte(fd: int, offset: int) -> bool:
    """Take the exclusive lock of one byte for an open file description; False if another one has a lock of it.

    The lock ends with the description: when no process has a descriptor or a mapping of it any more. So it outlives a
    process that has forked, and :func:`close` does not release it while the file is mapped through this descriptor.

    Raises:
        OSError: the system has no such locks.
    """
    return _lock_open_byte(fd, offset, 1)


@functools.cache
def has_open_locks() -> bool:
    """Whether this system has the locks of :func:`try_lock_open_byte`."""
    try:
        fd = os.memfd_create("tr_mmap-lock", os.MFD_CLOEXEC)
    except AttributeError:
        return False
    try:
        return try_lock_open_byte(fd, 0)
    except OSError:
        return False
    finally:
        close(fd)


def unlock_open_byte(fd: int, offset: int) -> None:
    """Release the lock of :func:`try_lock_open_byte`."""
    _lock_open_byte(fd, offset, 2)


def _lock_open_byte(fd: int, offset: int, kind: int) -> bool:
    command = getattr(fcntl, "F_OFD_SETLK", None)
    if command is None or not sys.platform.startswith("linux"):
        raise OSError(errno.ENOSYS, "no locks of open file descriptions")
    try:
        # struct flock of 64-bit Linux: type (1 is F_WRLCK, 2 is F_UNLCK), whence, start, length, pid
        fcntl.fcntl(fd, command, struct.pack("@hhqqi4x", kind, os.SEEK_SET, offset, 1, 0))
    except (BlockingIOError, PermissionError):  # POSIX allows both
        return False
    return True


def set_mode(fd: int, mode: int) -> None:
    """Give an open file these permissions, whatever the umask."""
    # A file system without permissions of its own refuses every change, and gives all files the same ones.
    if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        os.fchmod(fd, mode)


def set_size(fd: int, nbytes: int) -> None:
    """Cut an open file off at that size, or let it grow to it.

    Raises:
        SystemLimit: a file may not be that large (RLIMIT_FSIZE).
    """
    try:
        os.ftruncate(fd, nbytes)
    except OSError as error:
        check_file_size(error, nbytes)
        raise


def is_sealed_against_writing(fd: int) -> bool:
    """Whether an open memfd refuses every write (F_SEAL_WRITE, F_SEAL_FUTURE_WRITE); False for other files."""
    get_seals = getattr(fcntl, "F_GET_SEALS", None)  # Linux
    if get_seals is None:
        return False
    try:
        seals: int = fcntl.fcntl(fd, get_seals)
    except OSError:  # no memfd, and no file of tmpfs
        return False
    return bool(seals & _SEALS_AGAINST_WRITING)


# Closes a descriptor, even if it raises. It is no function of ours: a signal handler could raise in its first step, and
# the descriptor that the caller's ``finally`` closes would stay open.
close = os.close


def file_nbytes(fd: int) -> int:
    """The size of an open file in bytes."""
    return os.fstat(fd).st_size


def is_sparse(fd: int) -> bool:
    """Whether a file on tmpfs lacks pages. To read such a page takes memory, and is SIGBUS when no memory is left.

    False on other file systems: there a hole costs a reader nothing, and a compressed file seems to have holes too.
    """
    info = os.fstat(fd)
    return info.st_blocks * 512 < info.st_size and _is_on_tmpfs(fd)


def is_dir_on_tmpfs(path: str) -> bool:
    """Whether the files of a directory are kept in memory (Linux; False where there is no telling)."""
    fd = open_dir(path)
    try:
        return _is_on_tmpfs(fd)
    finally:
        os.close(fd)


def inode_on_tmpfs(fd: int) -> int:
    """The inode of an open file that is kept in memory; 0 for any other."""
    return os.fstat(fd).st_ino if _is_on_tmpfs(fd) else 0


def _is_on_tmpfs(fd: int) -> bool:
    return is_on(fd, _TMPFS_MAGIC)


def is_on(fd: int, magic: int) -> bool:
    """Whether an open file is on a file system of that kind, by its number in linux/magic.h."""
    if not sys.platform.startswith("linux"):
        return False
    # struct statfs begins with f_type, a long; 120 bytes on 64-bit machines.
    found = (ctypes.c_long * 32)()
    return bool(libc.fstatfs(fd, found) == 0 and found[0] == magic)


def allocate(fd: int, nbytes: int, *, directory: str, first: Callable[[], object] | None = None) -> None:
    """Give the file its blocks now. On a full tmpfs this raises an error; a store into a mapping would be SIGBUS.

    Args:
        fd: the file, open for writing.
        nbytes: its size.
        directory: where it is; for the error.
        first: called when there seems to be room, and before any block is made.

    Raises:
        OutOfSpace: there is not room for ``nbytes``.
        SystemLimit: a file may not be that large (RLIMIT_FSIZE).
    """
    if nbytes == 0:
        return
    _check_possible(fd, nbytes, directory)
    if first is not None:
        first()
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, nbytes)
        else:  # pragma: no cover - macOS, Windows
            _fill_with_zeros(fd, nbytes)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise too_little(nbytes, free_nbytes(directory), directory) from error
        check_file_size(error, nbytes)
        raise


def _check_possible(fd: int, nbytes: int, directory: str) -> None:
    """Raise OutOfSpace if the file cannot grow to that. tmpfs would fill up first, and others would get ENOSPC."""
    if not hasattr(os, "fstatvfs"):  # pragma: no cover - Windows
        return
    room = os.fstatvfs(fd)
    if room.f_blocks == 0:  # a tmpfs without a limit says 0 of 0
        return
    # f_bfree includes what is kept for root (f_bfree - f_bavail); the call itself refuses that to other users.
    if nbytes - os.fstat(fd).st_blocks * 512 > room.f_bfree * room.f_frsize:
        raise too_little(nbytes, room.f_bavail * room.f_frsize, directory)


def _fill_with_zeros(fd: int, nbytes: int) -> None:  # pragma: no cover - macOS, Windows
    block = bytes(1 << 20)
    os.lseek(fd, 0, os.SEEK_SET)
    while nbytes > 0:
        nbytes -= os.write(fd, block[:nbytes])


def file_time_ns() -> int:
    """The modification time, in ns since 1970, of a file that would be written now.

    It is that of a new file. No clock that Linux lets a program read is the one of files: ``CLOCK_REALTIME`` is ahead
    of it by up to 10 ms, and since Linux 6.13 it may be ahead of ``CLOCK_REALTIME_COARSE``.
    """
    try:
        fd = os.memfd_create("tr_mmap-time", os.MFD_CLOEXEC)
        try:
            return os.fstat(fd).st_mtime_ns
        finally:
            close(fd)
    except (AttributeError, OSError):  # no such system call, or no descriptor is left
        return time.time_ns()


def read_all(fd: int, limit_nbytes: int, offset: int = 0) -> bytes:
    """Up to ``limit_nbytes`` bytes of the file, from ``offset`` on."""
    parts: list[bytes] = []
    position = 0
    while position < limit_nbytes:
        part = os.pread(fd, limit_nbytes - position, offset + position)
        if not part:
            break
        parts.append(part)
        position += len(part)
    return b"".join(parts)


def peek(path: str, limit_nbytes: int) -> bytes:
    """The first bytes of a small file, by one read, whatever the file is: for a first look, never to trust.

    Args:
        path: of the file; a symlink is refused (ELOOP), and a FIFO gives nothing.
        limit_nbytes: most bytes to read.
    """
    fds: list[int] = []
    try:
        _open_into(fds, path, os.O_RDONLY | _ALWAYS | os.O_NONBLOCK)
        return os.read(fds[0], limit_nbytes)
    finally:
        for fd in fds:
            os.close(fd)


def read_into(fd: int, target: memoryview, offset: int) -> int:
    """Fill ``target`` with the file's bytes from ``offset`` on. Returns how many bytes there were."""
    position = 0
    while position < len(target):
        nbytes = os.preadv(fd, [target[position:]], offset + position)
        if nbytes == 0:
            break
        position += nbytes
    return position


def write_all(fd: int, data: bytes | memoryview, offset: int = 0) -> None:
    """Write all of ``data`` at ``offset``.

    Raises:
        OutOfSpace: the file system is full.
        SystemLimit: a file may not be that large (RLIMIT_FSIZE).
    """
    view = memoryview(data).cast("B")
    nbytes = len(view)
    written = 0
    try:
        while written < nbytes:
            written += os.pwrite(fd, view[written:], offset + written)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            info = os.fstatvfs(fd)
            free = info.f_bavail * info.f_frsize + written  # as it was before we began
            raise OutOfSpace(
                f"{nbytes} bytes were to be written, {free} were free; free space, or choose another place "
                "(that of sessions with TR_WORKSPACE)",
                needed_nbytes=nbytes,
                free_nbytes=free,
            ) from error
        check_file_size(error, offset + nbytes)
        raise


def sync(fd: int, *, is_dir: bool = False) -> None:
    """Wait until an open file's bytes, or an open directory's names, are on the disk.

    Raises:
        OutOfSpace: the file system finds only now that it is full.
    """
    try:
        if is_dir or not hasattr(os, "fdatasync"):
            os.fsync(fd)
        else:
            os.fdatasync(fd)  # the size too, where it is needed to find the bytes again
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            info = os.fstatvfs(fd)
            raise too_little(os.fstat(fd).st_size or 1, info.f_bavail * info.f_frsize, "a directory") from error
        if error.errno != errno.EINVAL:  # a file system that cannot, and so has nothing to wait for
            raise


def append_always(fd: int) -> None:
    """Have every write to this open file, also by processes that share it, go to the file's end at that moment."""
    if fcntl is not None:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)


def truncate(fd: int, nbytes: int = 0) -> None:
    """Cut an open file that nothing maps."""
    os.ftruncate(fd, nbytes)


def make_pipe() -> tuple[int, int]:
    """A new pipe: the end to read from, the end to write to. Neither is inherited unless it is passed on."""
    try:
        return os.pipe()
    except OSError as error:
        check_descriptors(error, "a pipe")
        raise


def write_pipe(fd: int, data: bytes) -> None:
    """Write a few bytes to a pipe, in one call.

    Raises:
        OSError: the pipe had no room for all of them.
    """
    if os.write(fd, data) != len(data):
        raise OSError(errno.EPIPE, "a pipe has no room for a few bytes")


def read_pipe(fd: int, limit_nbytes: int) -> bytes:
    """All that was written to a pipe whose other end is closed, up to a limit. Closes ``fd``.

    Raises:
        OSError: ``fd`` is no pipe.
    """
    with os.fdopen(fd, "rb", buffering=0) as pipe:
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, f"descriptor {fd} is no pipe")
        data = b""
        while len(data) < limit_nbytes and (part := pipe.read(limit_nbytes - len(data))):
            data += part
        return data


def signal_on_hangup(fd: int, number: int) -> bool:
    """Have the kernel send this process a signal when the last write end of a pipe is closed (Linux).

    Args:
        fd: the read end; stays open, and is not inherited by children.
        number: of the signal.

    Returns:
        Whether the last write end is closed already.

    Raises:
        OSError: ``fd`` is no pipe.
    """
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, f"descriptor {fd} is no pipe")
    fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETSIG, number)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_RDONLY | os.O_NONBLOCK | os.O_ASYNC)
    poller = _poll()
    poller.register(fd, 0)
    return bool(poller.poll(0))
