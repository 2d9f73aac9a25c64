"""What all methods of a store use: its options, one commit, one snapshot, vectors in the store's shape and dtype."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar

import msgspec
import numpy as np

from ..errors import BadMessage, OutOfSpace, TRException
from ..tsr.dtypes import by_name, import_torch
from ..tsr.framework_names import check_framework_name
from .arguments import Fresh, check_scopes, checked_scope
from .catalogue import Catalogue, Transaction
from .changes import Changes, NoSlab, UnknownWords, last_slab, room_of_slabs
from .errors import EmbedderMismatch, NoSuchRecord, WrongShape
from .filters import Filter, parse
from .options import Embedder, Options, Wanted, embedder_name
from .places import Places, find_store, no_store, root_of
from .records import Record, decode_record
from .recovery import recover
from .reserve import fill, release
from .slabs import FIRST_ROWS, MOST_ROWS, SlabEntry, SlabFiles, make_slab
from .turns import give_way
from .upkeep import Upkeep
from .vectors import Vectors, as_rows, check_shapes
from .views import Live, View
from .words import Words, words_in

__all__ = ["BATCH", "StoreCore"]

_T = TypeVar("_T")
BATCH: Final = 64  # records that one commit of clear() removes: other writers wait a few milliseconds for it
_BATCH_LETTERS: Final = 16 << 10  # of their texts: taking their words out of the index takes some 20 ms
_OPTIONS_KEY: Final = b"options"
_decode_options: Final = msgspec.msgpack.Decoder(Options).decode


class StoreCore:
    """See :class:`tr_mmap.store.Store`, which has the arguments.

    Attributes:
        scope: the only user whose records this handle shows; None for all.
    """

    def __init__(
        self,
        wanted: Wanted,
        path: str | os.PathLike[str] | None,
        embedder: Embedder | None,
        scope: str | None,
        framework: str,
        create: bool,
    ) -> None:
        self.scope = checked_scope(scope)
        self._embedder = embedder
        check_framework_name(framework)
        if framework == "torch":
            import_torch()  # now: it takes seconds, and an event loop may ask for the first record
        if type(create) is not bool:
            raise BadMessage(f"create is {create!r:.40}; it is True or False", detail="create")
        durability = wanted.of_new().durability
        known = find_store(wanted.name, path) if wanted.durability is None else None
        self._places = Places(known or root_of(path, durability), wanted.name, framework)
        if not create and not self._places.exists():
            raise no_store(wanted.name, os.path.dirname(self._places.directory) if wanted.durability else path)
        self._places.make(durability)
        self._catalogue = Catalogue(self._places.catalogue, durability)
        try:
            self._options = self._settle(wanted)
            self._places.durability = self._options.durability
            self._live = Live()
            self._files: SlabFiles | None = None
            self._upkeep = Upkeep(self._places, self._catalogue)
            if self._options.durability != "fsync":  # "fsync" loses nothing in a power cut
                write: Any = partial(self._write, count=0, is_deletion=True)
                recover(self._catalogue, self._places, self._options, self._slabs, write)
            self._upkeep.sweep()
        except BaseException:
            self._catalogue.close()
            raise

    def _settle(self, wanted: Wanted) -> Options:
        """The options that the store was made with; ``wanted`` if it is new."""
        with self._catalogue.read() as transaction:
            raw = transaction.get(_OPTIONS_KEY, db=transaction.meta)
        options = None if raw is None else _decode_options(raw)
        if options is None or (options.dim is None and wanted.dim is not None):

            def settle(transaction: Transaction) -> Options:
                raw = transaction.get(_OPTIONS_KEY, db=transaction.meta)
                options = wanted.of_new() if raw is None else _decode_options(raw)
                options.durability = self._catalogue.durability  # type: ignore[assignment]
                options.check_same(wanted)
                options.dim = options.dim or wanted.dim
                transaction.put(_OPTIONS_KEY, msgspec.msgpack.encode(options), db=transaction.meta)
                return options

            options = self._catalogue.write(settle)
        self._places.write_note(_as_note(options))
        options.check_same(wanted)
        if wanted.budget_nbytes is not None:
            options.budget_nbytes = wanted.budget_nbytes
        return options

    def _learn(self, transaction: Transaction, vectors: Vectors | None) -> Options:
        """The options, with the ``dim`` and the ``embedder`` of the store's first vectors.

        Both are stored in the commit that stores these vectors.

        Raises:
            WrongShape, EmbedderMismatch: another process has stored the first vectors, and these do not fit them.
        """
        known = self._options
        if vectors is None or (known.dim is not None and (vectors.embedder is None or known.embedder is not None)):
            return known
        stored = _decode_options(transaction.get(_OPTIONS_KEY, db=transaction.meta))
        check_shapes(vectors.rows, stored.dim or vectors.dim)
        if vectors.embedder is not None:
            self._check_embedder(stored.embedder)
        stored.dim, stored.embedder = vectors.dim, stored.embedder or vectors.embedder
        transaction.put(_OPTIONS_KEY, msgspec.msgpack.encode(stored), db=transaction.meta)
        return msgspec.structs.replace(known, dim=stored.dim, embedder=stored.embedder)

    def _has_learned(self, options: Options, files: SlabFiles | None) -> None:
        """After a commit that stored ``dim`` or ``embedder``: take them over, and write them to ``store.json``."""
        if options is self._options:
            return
        self._options.dim, self._options.embedder = options.dim, options.embedder
        self._files = files
        try:
            self._places.write_note(_as_note(self._look_again()))
        except (OSError, TRException):
            pass  # the commit is made; the next process that opens the store writes the note

    def _look_again(self) -> Options:
        """Read ``dim`` and ``embedder``, which others may have set since the store was opened. Returns the options."""
        with self._catalogue.read() as transaction:
            stored = _decode_options(transaction.get(_OPTIONS_KEY, db=transaction.meta))
        self._options.dim, self._options.embedder = stored.dim, stored.embedder
        return stored

    def _known_dim(self) -> int | None:
        if self._options.dim is None:
            self._look_again()
        return self._options.dim

    def _slabs(self) -> SlabFiles | None:
        if self._files is None and (dim := self._known_dim()) is not None:
            self._files = SlabFiles(self._places.vectors, by_name(self._options.dtype), dim)
        return self._files

    def _view(self, transaction: Any, *moment: Any) -> View:
        """A view of a transaction; ``moment`` are the last arguments of :class:`View`, ``now_s`` and ``aside``."""
        files = self._files or self._slabs()
        return View(transaction, self._options, self._places, files, self._live, self.scope, *moment)

    def _read(self, action: Callable[[View], _T]) -> _T:
        with self._catalogue.read() as transaction:
            return action(self._view(transaction))

    def _write(
        self,
        change: Callable[[Changes], _T],
        count: int,
        texts: Iterable[str | None] = (),
        vectors: Vectors | None = None,
        *,
        is_deletion: bool = False,
    ) -> _T:
        """Make one commit of changes.

        Args:
            change: what to do. It may be called several times, each time in a new transaction.
            count: how many rows of vectors it needs at most.
            texts: of records that come or go, as far as they are known: their words are found before the transaction,
                so that other writers do not wait for that.
            vectors: the new ones.
            is_deletion: whether it may use the pages that are reserved for deletions.
        """
        words: dict[str, Words] = {}
        _find_words(texts, words)
        spares: list[SlabEntry] = []
        made: list[SlabEntry] = []
        left: list[SlabEntry] | None = None  # of the spares, after the commit
        files = self._slabs()
        if files is None and vectors is not None:
            files = SlabFiles(self._places.vectors, by_name(self._options.dtype), vectors.dim)
        is_second = False  # whether this is the second try, after there was no room

        def apply(rest: list[SlabEntry], transaction: Transaction) -> tuple[_T, Options]:
            options = self._learn(transaction, vectors)
            changes = Changes(transaction, options, files, rest, words)
            if not is_second:
                changes.remove_expired()
            result = change(changes)
            if not is_deletion:
                fill(transaction, changes.state)
            changes.finish()
            return result, options

        try:
            if vectors is not None and count > FIRST_ROWS:
                used, room = self._room()
                spares += self._make_slabs(vectors.dim, used, count - room, made)
            while True:
                rest = list(spares)
                try:
                    result, options = self._catalogue.write(partial(apply, rest))
                    left = rest
                    break
                except NoSlab as none:
                    assert vectors is not None
                    spares += self._make_slabs(vectors.dim, none.rows, count - none.placed, made)
                except UnknownWords as unknown:
                    _find_words(unknown.texts, words)
                except OutOfSpace as full:
                    if full.is_budget or is_second:
                        raise
                    is_second = True
                    is_removed = self._remove_garbage() > 0
                    if is_deletion:
                        release(self._catalogue)
                    elif not is_removed:
                        raise
        finally:
            unused = [name for entry in (made if left is None else left) for name in (entry.file, entry.norms)]
            if unused:
                self._upkeep.remove_new("vec", unused)
        self._has_learned(options, files)
        try:
            self._upkeep.after_commit()
        except (OSError, TRException):
            pass  # the commit is made; a later one frees what this one did not
        return result

    def _room(self) -> tuple[int, int]:
        """For how many rows there are slabs, and how many rows of the last one are unused."""
        with self._catalogue.read() as transaction:
            used, in_slabs = transaction.state().next_row, room_of_slabs(transaction)
            last = last_slab(transaction)
        if last is None:
            return 0, 0
        return in_slabs, 0 if last.rows else max(0, last.first + last.span - used)

    def _make_slabs(self, dim: int, used: int, needed: int, made: list[SlabEntry]) -> list[SlabEntry]:
        """Make slabs for all rows of a commit in advance, so that the commit need not start again for each.

        Args:
            dim: numbers of a vector.
            used: for how many rows there are slabs.
            needed: for how many more rows there must be room.
            made: each new slab is appended here at once, so that the caller can remove it after an error.
        """
        dtype, new = by_name(self._options.dtype), []
        while needed > 0:
            span = min(max(FIRST_ROWS, used, needed), MOST_ROWS)
            is_synced = self._places.is_synced
            entry = self._with_room(partial(make_slab, self._places.vectors, dtype, dim, span, is_synced=is_synced))
            made.append(entry)
            new.append(entry)
            used, needed = used + span, needed - span
        return new

    def _with_room(self, make: Callable[[], _T]) -> _T:
        """Call a function that makes files; if there is no room, remove files of deleted records and call it again."""
        try:
            return make()
        except OutOfSpace:
            if not self._remove_garbage():
                raise
        except FileNotFoundError:
            self._catalogue.check_place()
            raise
        return make()

    def _remove_garbage(self) -> int:
        """Remove files of deleted records now. Returns how many; after an error 0, and a later call tries again."""
        try:
            return self._upkeep.remove_garbage()
        except (OSError, TRException):
            return 0

    def _text_of(self, record_id: str) -> str | None:
        """The text of a record; None if there is no such record, or it has no text."""
        raw = self._catalogue.value("records", record_id.encode())
        with self._catalogue.telling():
            return None if raw is None else decode_record(raw).content

    def _batches(self, ids: Iterable[str]) -> Iterator[tuple[list[str], list[str | None]]]:
        """Split ids into batches, each with the texts of its records; one commit removes one batch."""
        batch: list[str] = []
        texts: list[str | None] = []
        letters = 0
        for each in ids:
            text = self._text_of(each)
            if batch and (len(batch) == BATCH or letters + len(text or "") > _BATCH_LETTERS):
                yield batch, texts
                batch, texts, letters = [], [], 0
            batch.append(each)
            texts.append(text)
            letters += len(text or "")
        if batch:
            yield batch, texts

    def _has_embedder(self, changes: Changes) -> bool:
        """Whether an embedder makes the store's vectors, that of this handle or of another one."""
        if self._options.embedder is not None:
            return True
        noted = changes.noted(_OPTIONS_KEY)
        return noted is not None and _decode_options(noted).embedder is not None

    def _own(self, changes: Changes, record_id: str) -> Record:
        record = changes.find(record_id)
        if record is None or (self.scope is not None and record.user_id != self.scope):
            raise NoSuchRecord(f"there is no record {record_id!r}", id=record_id)
        return record

    def _filter(self, filters: Any, user_id: str | None, agent_id: str | None, run_id: str | None) -> Filter | None:
        parsed = parse(filters, check_scopes(user_id=user_id, agent_id=agent_id, run_id=run_id))
        if self.scope is None:
            return parsed
        own = parse(None, {"user_id": self.scope})
        assert own is not None
        return own if parsed is None else own & parsed

    def _new_record(self, given: dict[str, Any]) -> Fresh:
        give_way()
        return Fresh(given, self.scope)

    @contextmanager
    def _tensor_files(self, fresh: Sequence[Fresh]) -> Any:
        """Write the tensors of new records into files before the block; remove the files if the block raises."""
        try:
            for each in fresh:
                if each.tensors:
                    write = partial(self._places.write_tensors, each.tensors)
                    each.parts, each.nbytes = self._with_room(write)
            yield
        except BaseException:
            self._upkeep.remove_new("tensors", {part.file for each in fresh for part in each.parts})
            raise

    # -- vectors ------------------------------------------------------------------------------------------------------

    @property
    def has_embedder(self) -> bool:
        """Whether this handle makes vectors of texts."""
        return self._embedder is not None

    def _embed_missing(self, fresh: Sequence[Fresh]) -> bool:
        """Make the vectors of new records that have a text and no vector. Returns whether the embedder was called."""
        missing = [each for each in fresh if each.vector is None and each.record.content]
        if self._embedder is None or not missing:
            return False
        vectors = self._embed(self._embedder, [each.record.content or "" for each in missing])
        for each, vector in zip(missing, vectors, strict=True):
            each.vector = vector
        return True

    def _embed(self, embedder: Embedder, texts: list[str]) -> Any:
        """Call the embedder. Its own errors reach the caller unchanged.

        Raises:
            EmbedderMismatch: the store's vectors are from another embedder.
            WrongShape: it has not made one vector for each text.
        """
        if self._options.embedder is None:
            self._look_again()
        self._check_embedder(self._options.embedder)
        vectors = embedder(texts)
        try:
            count = len(vectors)
        except TypeError:
            count = -1
        if count != len(texts):
            made = type(vectors).__name__ if count < 0 else f"{count} vectors"
            raise WrongShape(
                f"the embedder {embedder_name(self._embedder)!r} made {made} of {len(texts)} texts; it returns an "
                "array of shape (texts, dim)",
                expected=self._options.dim,
                found=(max(count, 0),),
            )
        return vectors

    def _check_embedder(self, known: str | None) -> None:
        """Refuse to mix vectors of this handle's embedder with those of ``known``, the store's."""
        own = embedder_name(self._embedder)
        if known not in (None, own):
            raise EmbedderMismatch(
                f"another process has begun to use this store with the embedder {known!r}, and this "
                f"handle has {own!r}; open it with that one, or make another store",
                option="embedder",
                expected=known,
                found=own,
            )

    def _query_vector(self, query: Any) -> np.ndarray[Any, Any] | None:
        """The vector to search for: the given one, or the embedder's for a text; None if the store has no vectors."""
        if isinstance(query, str):
            assert self._embedder is not None
            query = next(iter(self._embed(getattr(self._embedder, "query", self._embedder), [query])))
        rows = as_rows([query], self._known_dim(), np.dtype(np.float64))
        return None if self._options.dim is None else rows[0]

    def _as_vectors(self, given: Sequence[Any], *, is_embedded: bool) -> Vectors | None:
        """New vectors as rows in the store's shape and dtype; None if there are none."""
        embedder = embedder_name(self._embedder) if is_embedded else None
        return Vectors.of(given, self._known_dim(), self._options.numpy_dtype, embedder)


def _find_words(texts: Iterable[str | None], words: dict[str, Words]) -> None:
    for text in texts:
        give_way()
        if text:
            words[text] = words_in(text)


def _as_note(options: Options) -> str:
    return msgspec.json.format(msgspec.json.encode(options).decode()) + "\n"
