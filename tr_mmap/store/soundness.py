"""Checks the file of an LMDB environment, and translates LMDB's errors into ours. Opens no environment.

LMDB trusts what it maps: reading a broken file may end the process by a signal. So the file is checked before LMDB
opens it: its length always, and all of it after a boot of the machine.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from ..base import system
from ..base.fork_safety import this_process
from ..errors import MissingPackage, OutOfSpace, SystemLimit
from ..processes.identity import Identity
from .errors import StoreClosed, StoreCorrupt
from .files import replace_file
from .options import DURABILITIES

try:
    import lmdb
    from lmdb.verify import VerifyError, _Verifier
except ModuleNotFoundError as missing:
    raise MissingPackage("stores need lmdb: pip install 'tr_mmap[store]'", package="lmdb") from missing

__all__ = ["Inconsistent", "check_file", "check_length", "corrupt", "look_after_boot", "note_boot", "translated"]

_PAGE_NBYTES: Final = 4096
_COMMIT_NBYTES: Final = 1 << 20  # more than LMDB writes in one call
_LOOKS: Final = 3  # times to read the first pages, because another process may be writing them
_BOOT: Final = "boot"  # the file that names the boot in which the environment was last found to be sound


class Inconsistent(Exception):
    """An entry of the catalogue refers to one that is missing, or has an impossible size."""


def look_after_boot(path: str) -> None:
    """Check the whole file, if the machine was started since the last check.

    After a power cut any part of what was written and not synced may be missing.

    Raises:
        StoreCorrupt: the file is not sound.
    """
    boot_id = Identity.current().boot_id
    if not boot_id or _boot_of(path)[0] == boot_id:
        return
    owner = this_process.mark
    fd = system.open_dir(path)
    try:
        system.lock_dir(fd)  # other processes wait for the result
        noted, durability = _boot_of(path)
        if noted == boot_id:
            return
        if durability != "fsync":
            with _alone(path) as is_alone:
                if is_alone:  # if others have it open, one of them has checked it, and they may be writing
                    check_file(path)
        if durability:
            note_boot(path, durability)
    finally:
        system.unlock_and_close_dir(fd, owner)


@contextmanager
def _alone(path: str) -> Iterator[bool]:
    """Whether no process has the environment open. If none has, none can open it in the block.

    This process must not have it open: closing the descriptor would release LMDB's locks.
    """
    fd = system.open_or_create(os.path.join(path, "lock.mdb"))
    try:
        yield system.try_lock_byte(fd)  # each process holds a shared lock of this byte while LMDB has the file open
    finally:
        system.close(fd)


def check_length(path: str) -> None:
    """Refuse a file that was truncated: reading a page behind its end is SIGBUS.

    Raises:
        StoreCorrupt: it is not sound.
    """
    for _ in range(_LOOKS):
        try:
            with _opened(path) as head:
                head.detect_engine()
                head.load_metas()
                if head.next_pgno * head.psize <= head.filesize:
                    return
        except (VerifyError, OSError):
            pass
    check_file(path)  # pages at its end may be free, and then they may be missing


def check_file(path: str) -> None:
    """Check all pages of an environment's file.

    No page of the last commit may be overwritten meanwhile: have a snapshot open, or let no process have the file open.

    Raises:
        StoreCorrupt: it is not sound.
    """
    try:
        with _opened(path) as whole:
            wrong = whole.verify()
    except (VerifyError, OSError) as error:
        wrong = [str(error)]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise corrupt(path, f"{wrong[0]}{more}")


class _Growing(_Verifier):
    """Verifies a file that others write. It grows before its first pages say so; so this reads its size after them."""

    def load_metas(self) -> None:
        super().load_metas()  # type: ignore[no-untyped-call]
        self.filesize = system.file_nbytes(self.f.fileno())


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    with os.fdopen(system.open_file(os.path.join(path, "data.mdb")), "rb") as file:
        yield _Growing(file, system.file_nbytes(file.fileno()))  # type: ignore[no-untyped-call]


def _boot_of(path: str) -> tuple[str, str]:
    """The boot in which the environment was last found to be sound, and its durability; both "" if not known."""
    try:
        words = system.peek(os.path.join(path, _BOOT), 200).decode("ascii", "replace").split()
    except OSError:
        words = []
    return (words[0], words[1]) if len(words) == 2 and words[1] in DURABILITIES else ("", "")


def note_boot(path: str, durability: str) -> None:
    """Note that it was found to be sound in this boot, unless that is noted already."""
    noted = Identity.current().boot_id, durability
    if _boot_of(path) != noted:
        replace_file(os.path.join(path, _BOOT), " ".join(noted).encode() + b"\n")


def corrupt(path: str, why: str) -> StoreCorrupt:
    return StoreCorrupt(f"{path}: {why}; restore it from a copy, or export what can be read", path=path)


def _free_nbytes(path: str) -> int:
    """Free bytes of the file system of a path, which may not exist yet, or no longer."""
    while True:
        try:
            return system.free_nbytes(path)
        except (FileNotFoundError, NotADirectoryError):
            path = os.path.dirname(path)


def translated(error: Exception, path: str) -> Exception:
    """Translate an error of LMDB, or of an entry that cannot be decoded, into one of ours."""
    if isinstance(error, msgspec.DecodeError | Inconsistent | UnicodeDecodeError):
        return corrupt(path, f"an entry cannot be read ({error})")
    text, code = str(error), getattr(error, "code", 0)
    free = _free_nbytes(path)
    limit = system.file_size_limit()
    if limit is not None and code in (errno.EFBIG, errno.EIO):
        return SystemLimit(
            f"the catalogue in {path} would be too large: this process may write files of {limit} bytes; raise the "
            "limit (RLIMIT_FSIZE, ulimit -f)",
            limit="RLIMIT_FSIZE",
            code=errno.EFBIG,
        )
    # LMDB reports EIO for a write that had room for only a part of its bytes.
    is_full = code in (errno.ENOSPC, errno.EDQUOT) or (code == errno.EIO and free < _COMMIT_NBYTES)
    if isinstance(error, lmdb.MapFullError) or is_full:
        return OutOfSpace(
            f"the catalogue in {path} has no room ({free} bytes are free); free space, or delete records",
            needed_nbytes=_PAGE_NBYTES,
            free_nbytes=free,
        )
    if code == errno.EAGAIN:  # LMDB locks the byte of its pid to show that it lives; another process holds that lock
        return SystemLimit(
            f"{path}: a process with the same pid ({os.getpid()}), of another PID namespace, has the store open; let "
            "containers that share a store share their pids too",
            limit="pid",
            code=errno.EAGAIN,
        )
    if isinstance(error, lmdb.MapResizedError):
        return SystemLimit(f"{path}: {text}: the address space is too small", limit="address space", code=errno.ENOMEM)
    if code < 0:  # LMDB's own codes: the file has content that LMDB does not write
        return corrupt(path, text)
    if code > 0:  # an errno
        return OSError(code, os.strerror(code), path)
    return StoreClosed(f"{path}: the store was closed meanwhile")
