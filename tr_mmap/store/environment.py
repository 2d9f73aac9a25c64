"""Opens the LMDB environment of a catalogue, or makes it, whole or not at all. Knows no transactions and no records.

LMDB's locks belong to a process, so a process opens an environment once, whatever the number of its handles. A forked
child opens its own. The table of readers gets all its blocks before it is used. After a boot of the machine the file is
checked first.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from ..base import system
from ..base.fork_safety import at_fork
from ..errors import MissingPackage, SystemLimit
from .errors import StoreBusy, StoreClosed, StoreCorrupt
from .files import new_file_name
from .options import DURABILITIES
from .soundness import check_length, corrupt, look_after_boot, note_boot, translated

try:
    import lmdb
    import lmdb._envid
except ModuleNotFoundError as missing:
    raise MissingPackage("stores need lmdb: pip install 'tr_mmap[store]'", package="lmdb") from missing

__all__ = [
    "BUSY",
    "DATABASES",
    "MOST_READERS",
    "Environment",
    "is_in_place",
    "keep_for_ever",
    "lmdb",
    "registry",
    "share",
]

# Address space, not memory: the file is only as large as what was written. Smaller sizes are tried under a limit.
_MAP_NBYTES: Final = (1 << 40, 1 << 36, 1 << 33, 1 << 30, 1 << 27)
MOST_READERS: Final = 8192
_SPARE_READERS: Final = 64
_LONGEST_CALL_S: Final = 60.0
_LOCK_NBYTES: Final = (MOST_READERS + 64) * 64  # LMDB has a cache line for each reader, and a few for itself

_IN_ORDER: Final = {"dupsort": True, "dupfixed": True}
DATABASES: Final[dict[str, dict[str, bool]]] = {
    "meta": {},
    "records": {},  # id: record
    "sums": {},  # id: checksums of the record and of its vector
    "rows": {},  # row: id
    "order": {},  # number of creation: id
    "slabs": {},  # first row: slab
    "live": {},  # row // ROWS_OF_CHUNK: a bit for each row that has a vector and was not replaced
    "fields": _IN_ORDER,  # field and value: rows
    "postings": _IN_ORDER,  # word: row, how often, length of the text
    "expiry": {},  # moment and row: id
    "worth": {},  # user (or all), importance, moment and row: id
    "history": {},  # id and version: event
    "graves": {},  # number of deletion: key of the last event in the history
    "files": {},  # file of tensors: nothing
    "garbage": {},  # transaction and file: nothing
    "reserve": {},  # number: a page of nothing
}
_DURABILITY_KEY: Final = b"durability"


BUSY: Final = (
    "this thread is in the middle of another change of the store, or opens or closes it, which a signal handler or a "
    "destructor has interrupted; set a flag there, and use the store when the interrupted call has ended"
)


class Environment:
    """The LMDB environment of one directory in this process: opened by its first user, closed after its last.

    Its users are the handles. Each call is counted while it lasts, because LMDB must not be closed during one.

    Args:
        path: its directory.

    Attributes:
        path: its directory.
        durability: what the store was made with.
        calls: the threads that are in a call. Changed without a lock: a list's own methods are atomic.
        is_closing: no call may begin in it: it will be closed, or it belongs to the parent of this forked child.
        writing: taken before LMDB's own lock for writers, for which a thread must not wait while it holds the
            interpreter's lock. Reentrant, as all locks here: a signal handler must not wait for the thread that it
            interrupts.
        is_writing: whether the thread that has ``writing`` is in a transaction.
        raw: what LMDB calls the environment.
        databases: by name.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.durability = ""
        self.calls: list[int] = []
        self.is_closing = False
        self.writing = threading.RLock()
        self.is_writing = False
        self.raw: Any = None
        self.databases: dict[str, Any] = {}
        self._pid = os.getpid()
        self._users = 0
        self._is_broken = False
        self._is_open = False
        self._is_changing = False
        self._changing = threading.RLock()  # held to open it, to close it, and to change its users
        self._closed = threading.Event()

    # -- calls --------------------------------------------------------------------------------------------------------

    def enter(self) -> bool:
        """Begin a call, to be ended by :meth:`leave`; False if it is closing. Takes no lock."""
        # In this order: the closing thread sets is_closing first and then looks for calls, so one sees the other.
        self.calls.append(threading.get_ident())
        if not self.is_closing:
            return True
        self.leave()
        return False

    def leave(self) -> None:
        """End a call. The last one closes what is closing."""
        self.calls.remove(threading.get_ident())
        if self.is_closing:
            self.close_if_unused()

    # -- users --------------------------------------------------------------------------------------------------------

    def join(self, durability: str) -> bool:
        """Become a user; the first one opens it. False if it was closed meanwhile.

        Args:
            durability: the one that the caller expects; the environment's own is read when it is opened.

        Raises:
            StoreBusy: a signal handler has interrupted the thread that opens or closes it.
            StoreClosed: it must be closed and opened again, and a call that does not end prevents that.
        """
        with self._changing:
            if self._is_changing:
                raise StoreBusy(BUSY)
            if self._closed.is_set():
                return False
            if not self._is_broken:
                if not self._is_open:
                    try:
                        self._is_changing = True
                        self._open(durability)
                        self._is_open = True
                    except BaseException:
                        self._forget()
                        raise
                    finally:
                        self._is_changing = False
                self._users += 1
                self.is_closing = False
                return True
        if threading.get_ident() in self.calls or not self._closed.wait(_LONGEST_CALL_S):
            raise StoreClosed(f"{self.path}: a write has failed, and reads of this process are to end first; try again")
        return False

    def release(self) -> None:
        """Stop being a user. Does nothing in a forked child, because the environment is the parent's."""
        if self._pid != os.getpid():
            return
        with self._changing:
            self._users -= 1
            if not self._users:
                self.is_closing = True
        self.close_if_unused()

    def give_up(self) -> None:
        """Close it although it has users, because LMDB refuses to do anything in it. The users open it again."""
        with self._changing:
            self._is_broken = self.is_closing = True
        self.close_if_unused()

    def close_if_unused(self) -> None:
        """Close it if it is closing, and no call is in it."""
        if self._pid != os.getpid():
            return  # it is the parent's, and a thread of the parent may have had the lock at the fork
        with self._changing:
            if self.is_closing and not self.calls and not self._closed.is_set():
                self._is_open = False  # first: if a signal handler raises before _forget, the next user opens it
                try:
                    self._is_changing = True
                    self.raw.close()
                finally:
                    try:
                        self._forget()
                    finally:
                        self._is_changing = False

    def _forget(self) -> None:
        self._closed.set()
        with registry:
            for key in [key for key, each in _open_ones.items() if each is self]:
                _open_ones.pop(key, None)

    # -- opening ------------------------------------------------------------------------------------------------------

    def _open(self, durability: str) -> None:
        look_after_boot(self.path)
        check_length(self.path)
        self.durability = durability
        self._begin()
        if self.durability != durability:
            self.raw.close()
            self._begin()
        try:
            note_boot(self.path, self.durability)
        except BaseException:
            self.raw.close()
            raise

    def _begin(self) -> None:
        """Open it with the durability that is expected, and read the one that it has."""
        self.raw = _open(self.path, is_synced=self.durability == "fsync")
        try:
            # The package lmdb keeps databases open only if a writing transaction has opened them; so this waits for
            # another writer.
            with self.raw.begin(write=True) as transaction:
                self.databases = _databases(self.raw, transaction)
                found = transaction.get(_DURABILITY_KEY, db=self.databases["meta"])
            self.raw.reader_check()
            said = b"" if found is None else found
            if (durability := said.decode("ascii", "replace")) not in DURABILITIES:
                raise corrupt(self.path, "it does not say how durable it is")
            self.durability = durability
        except BaseException as error:
            self.raw.close()
            if isinstance(error, lmdb.Error):
                raise translated(error, self.path) from error
            raise


def _make(path: str, durability: str) -> None:
    """Make an environment in a new directory, then rename that: others see the environment whole, or not at all.

    Raises:
        StoreCorrupt: there was one, and its file is gone.
    """
    # In this order: a process that is just making the store writes the catalogue before store.json.
    was_made = system.exists(os.path.join(os.path.dirname(path), "store.json"))
    if was_made and not system.exists(os.path.join(path, "data.mdb")):
        raise StoreCorrupt(
            f"{path}/data.mdb is gone, and with it what the store knows; restore it from a copy, or remove the "
            f"folder {os.path.dirname(path)} to begin anew",
            path=path,
        )
    new = os.path.join(os.path.dirname(path), new_file_name(os.path.basename(path), ""))
    is_synced = durability == "fsync"
    system.make_dir(new)
    try:
        raw = _open(new, is_synced=is_synced)
        try:
            with raw.begin(write=True) as transaction:
                databases = _databases(raw, transaction, may_make=True)
                transaction.put(_DURABILITY_KEY, durability.encode(), db=databases["meta"])
        except lmdb.Error as error:
            raise translated(error, path) from error
        finally:
            raw.close()
        note_boot(new, durability)
        if is_synced:
            system.sync_dir(new)
        try:
            system.rename(new, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            system.remove_tree(new)  # another process was faster
        if is_synced:
            system.sync_dir(os.path.dirname(path))
    except BaseException:
        system.remove_tree(new)
        raise


def _databases(raw: Any, transaction: Any, *, may_make: bool = False) -> dict[str, Any]:
    return {
        name: raw.open_db(name.encode(), txn=transaction, create=may_make, **flags) for name, flags in DATABASES.items()
    }


def _open(path: str, *, is_synced: bool) -> Any:
    _make_room_for_readers(path)
    for nbytes in _MAP_NBYTES:
        try:
            with _known_as_own():
                return lmdb.open(
                    path,
                    map_size=nbytes,
                    max_dbs=len(DATABASES),
                    max_readers=MOST_READERS,
                    max_spare_txns=_SPARE_READERS,
                    sync=is_synced,
                    metasync=is_synced,
                    mode=0o600,
                    subdir=True,
                    readahead=False,
                    meminit=False,
                )
        except (lmdb.MemoryError, MemoryError):
            continue
        except lmdb.Error as error:
            raise translated(error, path) from error
    raise SystemLimit("the address space is too small for a store", limit="address space", code=errno.ENOMEM)


def _make_room_for_readers(path: str) -> None:
    """Allocate the blocks of the table of readers.

    LMDB leaves holes in it and stores through a mapping, which is SIGBUS when the file system is full.

    Raises:
        OutOfSpace: there is no room.
    """
    # Before LMDB opens the file, never after: closing any descriptor of it releases LMDB's locks on it.
    fd = system.open_or_create(os.path.join(path, "lock.mdb"))
    try:
        system.allocate(fd, _LOCK_NBYTES, directory=path)
    finally:
        system.close(fd)


# -- one per process ---------------------------------------------------------------------------------------------------

_open_ones: dict[tuple[int, int], Environment] = {}
# Guards _open_ones, and which environment a handle has; never held while an environment is opened or closed.
registry = threading.RLock()
_is_child = False


def share(path: str, durability: str) -> Environment:
    """The environment of this process, with one more user; made and opened if necessary.

    Raises:
        StoreCorrupt: the files are not what LMDB has written.
        OutOfSpace: there is no room.
        SystemLimit: the address space is too small, or too many open files.
        StoreClosed: a write has failed, and a call that does not end keeps it from being opened again.
    """
    while True:
        if not system.exists(os.path.join(path, "data.mdb")):
            _make(path, durability)
        key = _key_of(path)
        with registry:
            found = _open_ones.get(key) or _open_ones.setdefault(key, Environment(path))
        if found.join(durability):
            return found
        with registry:
            if _open_ones.get(key) is found:  # a signal handler raised before it was removed
                del _open_ones[key]


def is_in_place(environment: Environment) -> bool:
    """Whether the open file still lies in its directory; False if the directory was removed, or made again."""
    return _open_ones.get(_key_of(environment.path)) is environment


def _key_of(path: str) -> tuple[int, int]:
    """Device and inode of its file. No other file gets that number while this one is open.

    The directory is not open, so its number may be given to another one once it is removed.
    """
    try:
        info = system.status(os.path.join(path, "data.mdb"))
    except FileNotFoundError:
        return 0, 0
    return info.st_dev, info.st_ino


def keep_for_ever(thing: object) -> None:
    """Never free an object, also not at the end of the interpreter: that would free a place that the parent uses."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


@contextmanager
def _known_as_own() -> Iterator[None]:
    """Let a forked child open what its parent has open.

    The package lmdb refuses to open a file twice in one process, because that would break LMDB's locks. It cannot tell
    a forked child from its parent, so the child's environments get keys of their own.
    """
    if not _is_child:
        yield
        return
    identities = lmdb._envid
    of_files: Any = identities.env_keys
    identities.env_keys = lambda *arguments: tuple(("child", os.getpid(), *key) for key in of_files(*arguments))
    try:
        yield
    finally:
        identities.env_keys = of_files


def _after_in_child() -> None:
    global _is_child, registry
    _is_child, registry = True, threading.RLock()
    for each in _open_ones.values():
        each.is_closing = True
        keep_for_ever(each.raw)
    _open_ones.clear()


at_fork(after_in_child=_after_in_child)
