"""The one module that makes system calls on files and mappings.

Everything else opens, maps, names and removes files through here, so that the rules hold everywhere (no symlink is
followed, descriptors are not inherited, files are 0600 and directories 0700) and so that a test can make any call
fail. Never decides anything: policy lives with the callers.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import stat

from .errors import HostilePath, OutOfSpace

__all__ = [
    "MADV_POPULATE_READ",
    "MADV_POPULATE_WRITE",
    "advise",
    "allocate",
    "close",
    "create_file",
    "file_nbytes",
    "free_nbytes",
    "link",
    "make_dir",
    "map_private",
    "map_read",
    "map_write",
    "open_file",
    "open_private_file",
    "read_all",
    "remove_dir",
    "remove_tree",
    "rename",
    "unlink",
    "write_all",
]

MADV_POPULATE_READ = 22  # linux/mman.h, 5.14; Python's mmap does not name them yet
MADV_POPULATE_WRITE = 23

_ALWAYS = os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)


def open_file(path: str, *, write: bool = False) -> int:
    """Open an existing file; a symlink in the last place is refused by the kernel (ELOOP)."""
    return os.open(path, (os.O_RDWR if write else os.O_RDONLY) | _ALWAYS)


def open_private_file(path: str, *, write: bool = False) -> int:
    """Open a session's file, refusing what only an attacker would have put there.

    Raises:
        HostilePath: a symlink, FIFO, device or directory, another user's file, or one that others may write.
        FileNotFoundError: it is not there.
    """
    try:
        # O_NONBLOCK: a FIFO in the file's place must not make us wait for its other end.
        fd = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | _ALWAYS | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise _hostile(path, "is a symlink, FIFO or directory") from error
        raise
    info = os.fstat(fd)
    reason = ""
    if not stat.S_ISREG(info.st_mode):
        reason = "is not a regular file"
    elif info.st_uid != os.geteuid():
        reason = f"belongs to user {info.st_uid}"
    elif info.st_mode & 0o022:
        reason = "may be written by group or others"
    if reason:
        os.close(fd)
        raise _hostile(path, reason)
    return fd


def _hostile(path: str, reason: str) -> HostilePath:
    return HostilePath(f"{path} {reason}; a session only uses its owner's own files", path=path, reason=reason)


def create_file(path: str) -> int:
    """Create a file that must not exist, 0600, open for reading and writing."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _ALWAYS, 0o600)


def close(fd: int) -> None:
    os.close(fd)


def file_nbytes(fd: int) -> int:
    return os.fstat(fd).st_size


def free_nbytes(path: str) -> int:
    """Bytes that an unprivileged user may still write on the file system of ``path``."""
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize


def allocate(fd: int, nbytes: int, *, directory: str) -> None:
    """Give the file its blocks now: touching a mapping of a full tmpfs is SIGBUS, this is an exception.

    Raises:
        OutOfSpace: there is not room for ``nbytes``.
    """
    if nbytes == 0:
        return
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, nbytes)
        else:  # pragma: no cover - macOS, Windows
            _fill_with_zeros(fd, nbytes)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = free_nbytes(directory)
            raise OutOfSpace(
                f"{nbytes} bytes are needed in {directory}, {free} are free; drop tensors, free space, "
                "or set TR_WORKSPACE to a larger file system",
                needed_nbytes=nbytes,
                free_nbytes=free,
            ) from error
        raise


def _fill_with_zeros(fd: int, nbytes: int) -> None:  # pragma: no cover - macOS, Windows
    block = bytes(1 << 20)
    os.lseek(fd, 0, os.SEEK_SET)
    while nbytes > 0:
        nbytes -= os.write(fd, block[:nbytes])


def map_read(fd: int, nbytes: int, offset: int = 0) -> mmap.mmap:
    """Map for reading, shared: what the writer stores is seen, and a store of ours is a TypeError."""
    return mmap.mmap(fd, nbytes, access=mmap.ACCESS_READ, offset=offset)


def map_write(fd: int, nbytes: int, offset: int = 0) -> mmap.mmap:
    """Map for reading and writing, shared."""
    return mmap.mmap(fd, nbytes, access=mmap.ACCESS_WRITE, offset=offset)


def map_private(fd: int, nbytes: int, offset: int = 0) -> mmap.mmap:
    """Map copy-on-write: stores stay in this process."""
    return mmap.mmap(fd, nbytes, access=mmap.ACCESS_COPY, offset=offset)


def advise(mapping: mmap.mmap, advice: int) -> bool:
    """``madvise`` over the whole mapping; False where this kernel does not know the advice."""
    try:
        mapping.madvise(advice)
    except (OSError, AttributeError):
        return False
    return True


def read_all(fd: int, limit_nbytes: int) -> bytes:
    """Up to ``limit_nbytes`` bytes from the start of the file."""
    parts: list[bytes] = []
    position = 0
    while position < limit_nbytes:
        part = os.pread(fd, limit_nbytes - position, position)
        if not part:
            break
        parts.append(part)
        position += len(part)
    return b"".join(parts)


def write_all(fd: int, data: bytes | memoryview, offset: int = 0) -> None:
    """Write all of ``data`` at ``offset``.

    Raises:
        OutOfSpace: the file system is full.
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
            free = info.f_bavail * info.f_frsize
            raise OutOfSpace(
                f"{nbytes} bytes were to be written, {free} are free; free space or choose another place",
                needed_nbytes=nbytes,
                free_nbytes=free,
            ) from error
        raise


def link(source: str, target: str) -> None:
    os.link(source, target, follow_symlinks=False)


def rename(source: str, target: str) -> None:
    """Atomic; replaces ``target``, whose old readers keep what they have mapped."""
    os.replace(source, target)


def unlink(path: str) -> None:
    """Remove a name; it may be gone already."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def make_dir(path: str) -> None:
    """Make one directory, 0700. FileExistsError if it is there."""
    os.mkdir(path, 0o700)


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
