"""The catalogue: an LMDB environment that says which records there are. Its commit is the only moment of change.

Readers never wait. Writers of all processes wait for each other; if a writer is killed, the next one gets its lock.
Knows no vectors, no texts and no filters.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from types import EllipsisType
from typing import Any, Final, TypeVar

import msgspec
import numpy as np

from ..errors import SystemLimit
from . import environment as environments
from .environment import BUSY, DATABASES, MOST_READERS, Environment, keep_for_ever, lmdb
from .errors import StoreBusy, StoreClosed, StoreCorrupt
from .soundness import Inconsistent, check_file, translated

__all__ = ["Catalogue", "Inconsistent", "State", "Transaction", "key_of", "number_of"]

_WRONG: Final = (lmdb.Error, msgspec.DecodeError, Inconsistent, UnicodeDecodeError)
_T = TypeVar("_T")
_STATE_KEY: Final = b"state"
key_of = struct.Struct(">Q").pack


def number_of(key: bytes) -> int:
    """The number that :func:`key_of` has packed."""
    return int.from_bytes(key, "big")


class State(msgspec.Struct, array_like=True):
    """What the catalogue counts.

    Attributes:
        epoch: how many commits there were.
        next_row: the first row of vectors that was never used.
        next_number: the next number of creation; it orders the records by age.
        next_grave: the next number of deletion; it orders the deleted records.
        records: how many there are.
        vectors: how many rows are live.
        nbytes: what the records count for in the budget.
        texts: how many records have a text.
        words: how many words these texts have.
        forgotten_version: the highest version of any record whose history was forgotten; a new id begins above it.
        bare_rows: how many rows were ever given to records without a vector.
        longest: the most different words that a text ever had.
        reserve: pages that only a deletion may use; see :mod:`tr_mmap.store.reserve`.
    """

    epoch: int = 0
    next_row: int = 0
    next_number: int = 0
    next_grave: int = 0
    records: int = 0
    vectors: int = 0
    nbytes: int = 0
    texts: int = 0
    words: int = 0
    forgotten_version: int = 0
    bare_rows: int = 0
    longest: int = 0
    reserve: int = 0


_decode_state: Final = msgspec.msgpack.Decoder(State).decode
_encode: Final = msgspec.msgpack.Encoder().encode


class Transaction:
    """One transaction: a consistent view; in a writer's, its own changes too.

    Attributes:
        get: the value of a key in a database: ``get(key, db=transaction.records)``.
        environment: the one in which it was begun.
    """

    def __init__(self, raw: Any, environment: Environment) -> None:
        self.raw = raw
        self.environment = environment
        self._pid = os.getpid()
        self.get = raw.get
        self.put = raw.put
        self.delete = raw.delete
        self.__dict__.update(environment.databases)

    def __getattr__(self, name: str) -> Any:  # the databases, for the type checker
        raise AttributeError(name)

    def end(self) -> None:
        """End a snapshot; call it between ``enter()`` and ``leave()``.

        A forked child leaves the snapshot's place in LMDB's table of readers to its parent.
        """
        if self._pid == os.getpid():
            self.raw.abort()
        else:
            keep_for_ever(self.raw)

    def state(self) -> State:
        """What the catalogue counts."""
        raw = self.get(_STATE_KEY, db=self.meta)
        return State() if raw is None else _decode_state(raw)

    def put_state(self, state: State) -> None:
        """Store it."""
        self.put(_STATE_KEY, _encode(state), db=self.meta)

    def items(self, name: str, start: bytes = b"", *, is_reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of a database in their order, from the first key that is not below ``start``."""
        with self.raw.cursor(db=self.__dict__[name]) as cursor:
            if is_reverse:
                if not start or cursor.set_range(start) or cursor.last():
                    yield from cursor.iterprev()
            elif cursor.set_range(start) if start else cursor.first():
                yield from cursor.iternext()

    def items_with(self, name: str, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys that begin with ``prefix``, and their values, in the order of the database."""
        for key, value in self.items(name, prefix):
            if not key.startswith(prefix):
                break
            yield key, value

    def values_of(self, name: str, key: bytes, nbytes: int) -> bytes:
        """All values of one key in a database of values of that size, one after the other, in their order."""
        with self.raw.cursor(db=self.__dict__[name]) as cursor:
            found = cursor.getmulti([key], dupdata=True, dupfixed_bytes=nbytes, keyfixed=True)
        rows = np.frombuffer(found, np.uint8).reshape(-1, len(key) + nbytes)  # each value after its key
        return rows[:, len(key) :].tobytes()

    def has(self, name: str, key: bytes, value: bytes) -> bool:
        """Whether a key has that value; in a database with several values for a key, whether it is one of them."""
        if not DATABASES[name]:
            return bool(self.get(key, db=self.__dict__[name]) == value)
        with self.raw.cursor(db=self.__dict__[name]) as cursor:
            return bool(cursor.set_key_dup(key, value))

    def count(self, name: str) -> int:
        """How many values a database has."""
        return int(self.raw.stat(self.__dict__[name])["entries"])

    def put_all(self, name: str, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Store several keys with their values."""
        with self.raw.cursor(db=self.__dict__[name]) as cursor:
            cursor.putmulti(items)

    def pop(self, name: str, key: bytes, value: bytes = b"") -> bool:
        """Remove a key; in a database with several values for a key, one value. Returns whether it was there."""
        return bool(self.delete(key, value, db=self.__dict__[name]))


class Catalogue:
    """A handle on the catalogue. Threads may use it at once; a forked child opens its own when it first uses it.

    Args:
        path: the directory of the environment; made if it is missing.
        durability: of the store, if it is made now.

    Attributes:
        durability: what the store was made with.

    Raises:
        StoreCorrupt: the files are not what LMDB has written.
        OutOfSpace: there is no room.
        SystemLimit: the address space is too small, or too many open files.
    """

    def __init__(self, path: str, durability: str) -> None:
        self.path = path
        self.durability = durability
        self._environment: Environment | None = None
        self._is_closed = False
        self.durability = self._open().durability

    def twin(self) -> Catalogue:
        """Another handle, also of one that was closed."""
        return Catalogue(self.path, self.durability)

    # -- calls: LMDB is not closed while a call is under way -----------------------------------------------------------

    def _open(self) -> Environment:
        """The environment, for this process."""
        new = environments.share(self.path, self.durability)
        with environments.registry:
            found = self._environment
            if self._is_closed:
                found = None
            elif found is None or found.is_closing:
                self._environment = found = new
        if found is not new:  # the handle was closed, or another thread was faster
            new.release()
        if found is None:
            raise StoreClosed("the store was closed")
        return found

    def _enter(self) -> Environment:
        """Begin a call; its user ends it by ``leave()``."""
        while True:
            environment = self._environment
            if self._is_closed:
                raise StoreClosed("the store was closed")
            if environment is None or environment.is_closing:
                environment = self._open()
            if environment.enter():
                return environment

    @contextmanager
    def _call(self) -> Iterator[Environment]:
        environment = self._enter()
        try:
            yield environment
        finally:
            environment.leave()

    # -- reads --------------------------------------------------------------------------------------------------------

    def value(self, name: str, key: bytes) -> bytes | None:
        """The value of a key as of the last commit: a snapshot for one look-up, which costs no more than that."""
        environment = self._environment
        if environment is not None:  # enter() and leave(), without the time that they take
            calls, thread = environment.calls, get_ident()
            calls.append(thread)
            try:
                if not environment.is_closing:
                    with environment.raw.begin(environment.databases[name]) as raw:
                        found: bytes | None = raw.get(key)
                        return found
            except lmdb.Error:
                pass  # read() knows what to do, or what to say
            finally:
                calls.remove(thread)
                if environment.is_closing:
                    environment.close_if_unused()
        with self.read() as transaction:
            return transaction.get(key, db=getattr(transaction, name))  # type: ignore[no-any-return]

    @contextmanager
    def telling(self) -> Iterator[None]:
        """A block that decodes a value which was read before; its errors become ours.

        Raises:
            StoreCorrupt: the value is not what was written.
        """
        try:
            yield
        except _WRONG as error:
            raise translated(error, self.path) from error

    def short_value(self, name: str, key: bytes, most_nbytes: int) -> bytes | EllipsisType | None:
        """As :meth:`value`; ``...`` for a value of more than ``most_nbytes`` bytes, which is not copied."""
        transaction = self._begin(is_buffered=True)
        try:
            found = transaction.get(key, db=getattr(transaction, name))
            if found is None or len(found) > most_nbytes:
                return None if found is None else ...
            return bytes(found)
        except lmdb.Error as error:
            raise translated(error, self.path) from error
        finally:
            transaction.end()
            transaction.environment.leave()

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A snapshot. Nobody waits for it, and it waits for nobody.

        Raises:
            StoreCorrupt: what is read is not what was written.
            StoreClosed: the handle was closed.
        """
        transaction = self._begin()
        try:
            yield transaction
        except _WRONG as error:
            raise translated(error, self.path) from error
        finally:
            transaction.end()
            transaction.environment.leave()

    def begin(self) -> Transaction:
        """A snapshot that outlives this call. Read it and end it in :meth:`use`.

        It ends when this process closes its last handle on the store, so its user keeps a handle open.
        """
        transaction = self._begin()
        transaction.environment.leave()
        return transaction

    @contextmanager
    def use(self, transaction: Transaction) -> Iterator[Transaction]:
        """A block in which a snapshot of :meth:`begin` may be read or ended.

        Raises:
            StoreCorrupt: what is read is not what was written.
            StoreClosed: the snapshot has ended, because its environment was closed.
        """
        if not transaction.environment.enter():
            raise StoreClosed(f"{self.path}: the store was closed meanwhile")
        try:
            with self.telling():
                yield transaction
        finally:
            transaction.environment.leave()

    def _begin(self, *, is_buffered: bool = False) -> Transaction:
        """Begin a call and a snapshot in it; the caller ends the snapshot and leaves the call.

        Args:
            is_buffered: whether values are views of LMDB's pages, which are valid only until the snapshot ends.
        """
        for is_last in (False, True):
            environment = self._enter()
            transaction = None
            try:
                transaction = Transaction(environment.raw.begin(buffers=is_buffered), environment)
                return transaction
            except lmdb.ReadersFullError as error:
                if is_last:
                    raise SystemLimit(
                        f"{MOST_READERS} readers use the store at this moment; close snapshots that are not needed",
                        limit="readers of a store",
                        code=errno.EAGAIN,
                    ) from error
                environment.raw.reader_check()  # of processes that were killed
            except lmdb.PanicError as error:
                environment.give_up()
                if is_last:
                    raise translated(error, self.path) from error
            except lmdb.Error as error:
                raise translated(error, self.path) from error
            finally:
                if transaction is None:
                    environment.leave()
        raise AssertionError

    # -- writes -------------------------------------------------------------------------------------------------------

    def write(self, action: Callable[[Transaction], _T]) -> _T:
        """Run a function in a writing transaction: what it does is committed, or undone if it raises.

        Waits until the previous writer has finished, so the function must not be slow. A signal handler may raise at
        any step of Python; the lock must be given back then too. So no step lies between taking a lock and its block.

        Args:
            action: what to do in the transaction.

        Raises:
            OutOfSpace: there is no room; nothing has changed.
            StoreBusy: this thread is in another change, which a signal handler has interrupted.
            StoreClosed: the handle was closed; nothing has changed.
            StoreCorrupt: the file is broken, or the folder was removed.
        """
        environment = self._enter()
        try:
            self._check_place(environment)  # a change to a removed file would be visible to nobody else
            with environment.writing:
                if environment.is_writing:
                    raise StoreBusy(BUSY)
                try:
                    environment.is_writing = True
                    with environment.raw.begin(write=True) as raw:
                        transaction = Transaction(raw, environment)
                        result = action(transaction)
                        state = transaction.state()
                        state.epoch += 1
                        transaction.put_state(state)
                    return result
                finally:
                    environment.is_writing = False
        except _WRONG as error:
            if isinstance(error, lmdb.PanicError):
                environment.give_up()
            raise translated(error, self.path) from error
        finally:
            environment.leave()

    # -- upkeep -------------------------------------------------------------------------------------------------------

    def oldest_reader(self) -> int | None:
        """The number of the oldest transaction that a snapshot shows now; None if there is no snapshot."""
        return min(self._readers(), default=None)

    def count_readers(self) -> int:
        """How many snapshots are open now, in all processes."""
        return len(self._readers())

    def _readers(self) -> list[int]:
        """The numbers of the transactions that snapshots show now, one for each snapshot of any process."""
        with self._call() as environment:
            lines = environment.raw.readers().splitlines()[1:]
        return [int(words[2]) for words in map(str.split, lines) if len(words) == 3 and words[2].isdigit()]

    def last_transaction(self) -> int:
        """The number of the last commit."""
        with self._call() as environment:
            return int(environment.raw.info()["last_txnid"])

    def check_readers(self) -> int:
        """Free the places of dead readers. Returns how many."""
        with self._call() as environment:
            return int(environment.raw.reader_check())

    def check_place(self) -> None:
        """Make sure that the open file still lies in the folder, before files that it does not name are removed there.

        Raises:
            StoreCorrupt: the folder was removed; there may be another store in its place.
        """
        with self._call() as environment:
            self._check_place(environment)

    def _check_place(self, environment: Environment) -> None:
        if not environments.is_in_place(environment):
            raise StoreCorrupt(
                f"{self.path}: the store's folder was removed while this handle had it open; what it still shows is "
                "nowhere else. Close the handle, and open the store again",
                path=self.path,
            )

    def check_file(self) -> None:
        """Check all pages of the file, without a lock.

        Raises:
            StoreCorrupt: it is not sound.
        """
        with self.read():  # until this snapshot ends, LMDB overwrites no page of its moment or of a later one
            check_file(self.path)

    def close(self) -> None:
        """Release the handle. Calls of other threads that have begun still finish. Idempotent."""
        with environments.registry:
            environment, self._environment = self._environment, None
            self._is_closed = True
        if environment is not None:
            environment.release()
