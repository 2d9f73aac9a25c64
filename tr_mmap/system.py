"""The one module that makes system calls on files and mappings.

Everything else opens, maps, names and removes files through here, so that the rules hold everywhere (no symlink is
followed, descriptors are not inherited, files are 0600 and directories 0700) and so that a test can make any call
fail. Never decides anything: policy lives with the callers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import sys
import weakref

from .errors import HostilePath, OutOfSpace

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "MADV_DONTNEED",
    "MADV_POPULATE_READ",
    "MADV_POPULATE_WRITE",
    "MADV_REMOVE",
    "address_of",
    "advise",
    "allocate",
    "close",
    "create_file",
    "exchange",
    "exists",
    "file_nbytes",
    "free_nbytes",
    "is_same_file",
    "is_sparse",
    "is_usable_dir",
    "link",
    "link_target",
    "list_dir",
    "make_dir",
    "make_pipe",
    "map_again",
    "map_private",
    "map_read",
    "map_write",
    "open_dir",
    "open_file",
    "open_path",
    "open_private_file",
    "read_all",
    "read_into",
    "read_pipe",
    "remove_dir",
    "remove_tree",
    "rename",
    "replacement_of",
    "status",
    "try_lock_dir",
    "unlink",
    "unlock_and_close_dir",
    "write_all",
    "write_pipe",
]

MADV_DONTNEED = 4  # linux/mman.h: on a private mapping, forget our stores and look at the file again
MADV_REMOVE = 9  # give the pages back to the file system now
MADV_POPULATE_READ = 22  # linux/mman.h, 5.14; Python's mmap does not name them yet
MADV_POPULATE_WRITE = 23

_PROT_READ, _PROT_WRITE = 1, 2  # sys/mman.h, the same on Linux and macOS
_MAP_SHARED, _MAP_PRIVATE = 1, 2
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000 if sys.platform.startswith("linux") else 0  # asm-generic/mman.h
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_NAME_NBYTES = 1  # what one more name takes at least; no file system says how much
_TMPFS_MAGIC = 0x01021994  # linux/magic.h
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,  # off_t on every 64-bit platform
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

_ALWAYS = os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)


def open_file(path: str, *, write: bool = False) -> int:
    """Open an existing file; a symlink in the last place is refused by the kernel (ELOOP)."""
    return os.open(path, (os.O_RDWR if write else os.O_RDONLY) | _ALWAYS)


def open_private_file(path: str, *, write: bool = False, forbidden_mode: int = 0o022) -> int:
    """Open a session's file, refusing what only an attacker would have put there.

    Args:
        path: the file.
        write: for writing too.
        forbidden_mode: permissions that it must not have; a program that is not ours makes files by its umask, which
            may let its group write.

    Raises:
        HostilePath: a symlink, FIFO, device or directory, another user's file, or one that others may write.
        FileNotFoundError: it is not there.
    """
    try:
        # O_NONBLOCK: a FIFO in the file's place must not make us wait for its other end.
        fd = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | _ALWAYS | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EISDIR):
            raise _hostile(path, "is a symlink, FIFO, device or directory") from error
        if error.errno == errno.EACCES:
            raise _hostile(path, "may not be opened by this user") from error
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
            raise _hostile(path, reason)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_path(path: str, *, write: bool = False) -> int:
    """Open a regular file that the user named: symlinks are followed, other owners are fine, nothing hangs.

    Raises:
        HostilePath: a directory, FIFO, socket or device.
    """
    try:
        fd = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.EISDIR):
            raise _not_regular(path) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _not_regular(path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def replacement_of(path: str) -> tuple[str, int]:
    """What a rename must replace so that the user's ``path`` has new content, and the mode for the new file.

    Symlinks are followed, so that they survive; a new file gets what the umask allows, as from ``open``.

    Raises:
        HostilePath: what is there is not a regular file.
    """
    target = os.path.realpath(path)
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return target, 0o666
    if not stat.S_ISREG(mode):
        raise _not_regular(path)
    return target, mode & 0o777


def _not_regular(path: str) -> HostilePath:
    reason = "is not a regular file"
    return HostilePath(f"{path} {reason}; a tensor file is one", path=path, reason=reason)


def _hostile(path: str, reason: str) -> HostilePath:
    return HostilePath(f"{path} {reason}; a session only uses its owner's own files", path=path, reason=reason)


def open_dir(path: str) -> int:
    """Open a directory itself, to lock or to examine it; a symlink in its place is refused (ELOOP or ENOTDIR)."""
    return os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _ALWAYS)


def try_lock_dir(fd: int) -> bool:
    """Take the exclusive lock of an open directory; False while another has it."""
    if fcntl is None:  # pragma: no cover - Windows
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock_and_close_dir(fd: int) -> None:
    """Give the lock back first: a child forked meanwhile has the descriptor too, and would keep it."""
    try:
        if fcntl is not None:
            fcntl.flock(fd, fcntl.LOCK_UN)
    except OSError:
        pass  # closing gives it back too
    finally:
        os.close(fd)


def status(path: str) -> os.stat_result:
    """What the name itself is: a symlink is not followed."""
    return os.lstat(path)


def exists(path: str) -> bool:
    """Whether the name is taken, be it by a symlink that leads nowhere."""
    return os.path.lexists(path)


def is_usable_dir(path: str) -> bool:
    """Whether it leads to a directory in which we may make files."""
    return os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)


def is_same_file(fd: int, path: str) -> bool:
    """Whether the name still means what is open."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def list_dir(path: str) -> list[str]:
    return os.listdir(path)


def link_target(path: str) -> str:
    return os.readlink(path)


def create_file(path: str, mode: int = 0o600) -> int:
    """Create a file that must not exist, 0600 unless a user's own file is made, open for reading and writing."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _ALWAYS, mode)
    except OSError as error:
        _check_room(error, path)
        raise


def _check_room(error: OSError, path: str) -> None:
    """Raise OutOfSpace if a name could not be made because the file system has no room for one more."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return
    directory = os.path.dirname(path)
    try:
        free = free_nbytes(directory)
    except OSError:
        free = 0
    raise OutOfSpace(
        f"there is no room for another file in {directory}, {free} bytes are free (it may be the number of files that "
        "is limited); remove some, or choose another place",
        needed_nbytes=_NAME_NBYTES,
        free_nbytes=free,
    ) from error


def close(fd: int) -> None:
    os.close(fd)


def file_nbytes(fd: int) -> int:
    return os.fstat(fd).st_size


def is_sparse(fd: int) -> bool:
    """Whether a file on tmpfs lacks pages: looking at one takes memory then, and is SIGBUS when there is none left.

    False on other file systems, where a hole costs a reader nothing, and where compression looks the same.
    """
    info = os.fstat(fd)
    return info.st_blocks * 512 < info.st_size and _is_on_tmpfs(fd)


def _is_on_tmpfs(fd: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    # struct statfs begins with f_type, a long; 120 bytes on 64-bit machines.
    found = (ctypes.c_long * 32)()
    return bool(_libc.fstatfs(fd, found) == 0 and found[0] == _TMPFS_MAGIC)


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


def map_read(fd: int, nbytes: int, offset: int = 0) -> memoryview:
    """Map for reading, shared: what the writer stores is seen, and a store of ours is a TypeError."""
    return _map(fd, nbytes, offset, _PROT_READ, _MAP_SHARED).toreadonly()


def map_write(fd: int, nbytes: int, offset: int = 0) -> memoryview:
    """Map for reading and writing, shared."""
    return _map(fd, nbytes, offset, _PROT_READ | _PROT_WRITE, _MAP_SHARED)


def map_private(fd: int, nbytes: int, offset: int = 0) -> memoryview:
    """Map copy-on-write: stores stay in this process. A file larger than the memory is fine: few store all over it."""
    return _map(fd, nbytes, offset, _PROT_READ | _PROT_WRITE, _MAP_PRIVATE | _MAP_NORESERVE)


def map_again(mapping: memoryview, fd: int, offset: int, *, private: bool) -> None:
    """Replace a writable mapping in place, in one step: who looks at it now looks at the file through the new one.

    Args:
        mapping: whole pages.
        fd: the file, open for writing.
        offset: where in the file the mapping begins.
        private: whether stores stay in this process from here on.
    """
    flags = _MAP_FIXED | (_MAP_PRIVATE if private else _MAP_SHARED)
    address = _libc.mmap(address_of(mapping), len(mapping), _PROT_READ | _PROT_WRITE, flags, fd, offset)
    if address in (None, _MAP_FAILED):
        code = ctypes.get_errno()
        raise OSError(code, f"mmap of {len(mapping)} bytes: {os.strerror(code)}")


def address_of(mapping: memoryview) -> int:
    """Where a writable mapping begins in this process's address space."""
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


def advise(mapping: memoryview, advice: int) -> bool:
    """``madvise`` over a whole writable mapping; False where this kernel does not know the advice."""
    return bool(_libc.madvise(address_of(mapping), len(mapping), advice) == 0)


def _map(fd: int, nbytes: int, offset: int, protection: int, flags: int) -> memoryview:
    """Map part of a file; unmapped when the last view of it is gone.

    ``mmap.mmap`` keeps a duplicate of the descriptor for as long as it lives (until Python 3.13), so a thousand
    live views would be a thousand descriptors. This keeps none.
    """
    address = _libc.mmap(None, nbytes, protection, flags, fd, offset)
    if address in (None, _MAP_FAILED):
        code = ctypes.get_errno()
        raise OSError(code, f"mmap of {nbytes} bytes: {os.strerror(code)}")
    block = (ctypes.c_char * nbytes).from_address(address)
    # The views hold the block, so this runs when nobody can touch the memory any more, and not at exit.
    weakref.finalize(block, _libc.munmap, address, nbytes).atexit = False
    return memoryview(block).cast("B")


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
            free = info.f_bavail * info.f_frsize + written  # as it was before we began
            raise OutOfSpace(
                f"{nbytes} bytes were to be written, {free} were free; free space or choose another place",
                needed_nbytes=nbytes,
                free_nbytes=free,
            ) from error
        raise


def make_pipe() -> tuple[int, int]:
    """A new pipe: the end to read from, the end to write to. Neither is inherited unless it is passed on."""
    return os.pipe()


def write_pipe(fd: int, data: bytes) -> None:
    """Write what the pipe has room for, at once."""
    if os.write(fd, data) != len(data):
        raise OSError(errno.EPIPE, "a pipe has no room for a few bytes")


def read_pipe(fd: int, limit_nbytes: int) -> bytes:
    """All that was written to a pipe whose other end is closed, up to a limit; closes it."""
    with os.fdopen(fd, "rb", buffering=0) as pipe:
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, f"descriptor {fd} is no pipe")
        data = b""
        while len(data) < limit_nbytes and (part := pipe.read(limit_nbytes - len(data))):
            data += part
        return data


def read_into(fd: int, target: memoryview, offset: int) -> int:
    """Fill ``target`` with the file's bytes from ``offset`` on; how many there were."""
    position = 0
    while position < len(target):
        nbytes = os.preadv(fd, [target[position:]], offset + position)
        if nbytes == 0:
            break
        position += nbytes
    return position


def link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        _check_room(error, target)
        raise


def rename(source: str, target: str) -> None:
    """Atomic; replaces ``target``, whose old readers keep what they have mapped.

    Raises:
        HostilePath: a directory is in the place of a file.
    """
    try:
        os.replace(source, target)
    except IsADirectoryError as error:
        raise _hostile(target, "is a directory") from error


def exchange(first: str, second: str) -> bool:
    """Let two names mean each other's file, in one step; False where that cannot be, or one is not there."""
    renameat2 = getattr(_libc, "renameat2", None)  # Linux
    if renameat2 is None:
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0)


def unlink(path: str) -> None:
    """Remove a name; it may be gone already.

    Raises:
        HostilePath: it is a directory's.
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except IsADirectoryError as error:
        raise _hostile(path, "is a directory") from error


def make_dir(path: str) -> None:
    """Make one directory, 0700. FileExistsError if it is there."""
    try:
        os.mkdir(path, 0o700)
    except OSError as error:
        _check_room(error, path)
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
