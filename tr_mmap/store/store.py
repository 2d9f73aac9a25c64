"""``Store``: a memory of records that processes share. Slow work happens before or after a transaction, never in it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from types import EllipsisType
from typing import Any, Literal

import msgspec

from ..errors import BadMessage, OutOfSpace
from .arguments import Fresh, check_id, check_ttl, check_version, checked_scope
from .changes import Changes
from .checking import check
from .core import BATCH
from .errors import NoSuchRecord, RecordExists, VersionConflict
from .filters import Filter
from .options import AtBudget, Durability, Embedder, Wanted
from .reads import StoreReads
from .records import Record
from .upkeep import Upkeep

__all__ = ["Store"]


class Store(StoreReads):
    """A handle on a store. Threads may share it. A forked child may use it too: it opens the store's files again.

    For a store that exists, each option that is given must equal the store's own; an option that is left out is taken
    from the store. Only ``budget_nbytes`` and ``scope`` may differ.

    Args:
        name: of the store; 1 to 100 letters, digits, ``_``, ``-`` and ``.``.
        path: the folder for the store's own folder; None for this user's. To keep records of two users apart, give
            each user a folder.
        dim: numbers of a vector; None to take it from the first vector.
        dtype: of the vectors: any of TSR's except bool and complex. A new store has ``"float32"`` by default.
        metric: ``"cosine"`` (default of a new store), ``"dot"`` or ``"l2"``.
        embedder: makes vectors of texts: called with a list of texts, returns an array of shape ``(texts, dim)``; see
            :mod:`tr_mmap.store.embedders`. The store keeps its ``name``, or its qualified name, and cannot be opened
            with another embedder.
        indexed: fields of the metadata by which filters find records without reading all.
        durability: what a commit outlives. ``"memory"`` (default of a new store): the death of processes; the files lie
            on tmpfs by default. ``"os"``: the same, on a disk. ``"fsync"``: also a power cut. After a power cut, a
            store without ``"fsync"`` is checked when it is opened: records that are not wholly on the disk are removed,
            and logged.
        budget_nbytes: how many bytes all records may count for; None for no limit.
        at_budget: ``"fail"`` (default of a new store) refuses a change that does not fit. ``"evict"`` removes the
            records of the lowest importance, of these the oldest first; through a handle with a scope, only that
            user's.
        scope: a user's id: this handle shows and changes only that user's records. It is a filter, not a boundary:
            other handles see all records. The boundary between users is the folder.
        framework: of the tensors that this handle gives: ``"numpy"``, read-only, or ``"torch"``; what is written into a
            torch tensor stays in this process. Vectors are numpy arrays in both cases.
        create: False to open only a store that is there.

    Raises:
        BadMessage: an option is wrong; ``detail`` says which.
        UnsupportedTensor: there is no such dtype.
        NoSuchStore: there is none, and ``create`` is False.
        OptionMismatch: the store has another option.
        EmbedderMismatch: the store's vectors were made by another embedder.
        HostilePath: other users may write in the store's folder.
        OutOfSpace: there is no room.
        StoreCorrupt: the store's files are damaged.
        MissingPackage: ``tr_mmap[store]`` is not installed, or torch for ``framework="torch"``.
    """

    def __init__(
        self,
        name: str = "default",
        path: str | os.PathLike[str] | None = None,
        *,
        dim: int | None = None,
        dtype: Any = None,
        metric: str | None = None,
        embedder: Embedder | None = None,
        indexed: Iterable[str] | None = None,
        durability: Durability | None = None,
        budget_nbytes: int | None = None,
        at_budget: AtBudget | None = None,
        scope: str | None = None,
        framework: Literal["numpy", "torch"] = "numpy",
        create: bool = True,
    ) -> None:
        wanted = Wanted.checked(name, dim, dtype, metric, embedder, indexed, durability, budget_nbytes, at_budget)
        super().__init__(wanted, path, embedder, scope, framework, create)

    @classmethod
    def open(cls, name: str = "default", path: str | os.PathLike[str] | None = None, **options: Any) -> Store:
        """The same as the constructor."""
        return cls(name, path, **options)

    def clone(self, *, scope: str | None = None) -> Store:
        """Another handle on the same store; cheap.

        Args:
            scope: of the new handle; None for the same as this one's.

        Raises:
            BadMessage: this handle has another scope.
        """
        if scope is not None and self.scope is not None and scope != self.scope:
            raise BadMessage(f"this handle is bound to the user {self.scope!r}", detail="scope")
        twin = object.__new__(Store)
        twin.__dict__.update(self.__dict__)
        if scope is not None:
            twin.scope = checked_scope(scope)
        twin._catalogue = self._catalogue.twin()
        twin._upkeep = Upkeep(self._places, twin._catalogue)
        return twin

    # -- changes ------------------------------------------------------------------------------------------------------

    def add(
        self,
        content: str | None = None,
        *,
        vector: Any = None,
        tensors: Mapping[str, Any] | None = None,
        id: str | None = None,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        importance: float = 0.5,
        ttl_s: float | None = None,
    ) -> str:
        """Add a record.

        Args:
            content: its text. Searches find its words, and the embedder makes its vector.
            vector: of shape ``(dim,)``; None to let the embedder make it.
            tensors: numpy arrays or torch tensors, by name.
            id: 1 to 255 bytes of UTF-8; None for a new random one.
            user_id: whose it is.
            agent_id: which agent's.
            run_id: which run's.
            metadata: JSON values by name.
            importance: 0 to 1.
            ttl_s: seconds until it expires; None for never.

        Returns:
            Its id.

        Raises:
            BadMessage: an argument is wrong; ``detail`` says which.
            WrongShape: the vector does not fit the store.
            RecordExists: there is a record of that id, in this scope or another one.
            OutOfSpace: there is no room, or the budget is used up.
        """
        given = {
            "content": content,
            "vector": vector,
            "tensors": tensors,
            "id": id,
            "user_id": user_id,
            "agent_id": agent_id,
            "run_id": run_id,
            "metadata": metadata,
            "importance": importance,
            "ttl_s": ttl_s,
        }
        return self._add_all([self._new_record(given)])[0]

    def add_many(self, records: Iterable[Mapping[str, Any]]) -> list[str]:
        """Add records in one commit: all of them, or none.

        Args:
            records: mappings with the parameters of :meth:`add`.

        Returns:
            Their ids, in the same order.

        Raises:
            BadMessage, WrongShape, RecordExists, OutOfSpace: as :meth:`add`.
        """
        if isinstance(records, str | bytes | Mapping) or not isinstance(records, Iterable):
            raise BadMessage(f"records is {records!r:.40}; it lists mappings with the names of add()", detail="records")
        fresh = []
        for number, each in enumerate(records):
            if not isinstance(each, Mapping):
                raise BadMessage(
                    f"record {number} is {each!r:.40}; it is a mapping with the names of add()", detail="records"
                )
            try:
                fresh.append(self._new_record(dict(each)))
            except BadMessage as error:
                raise BadMessage(f"record {number}: {error}", detail=error.detail) from error
        return self._add_all(fresh)

    def _add_all(self, fresh: Sequence[Fresh]) -> list[str]:
        if not fresh:
            return []
        is_embedded = self._embed_missing(fresh)
        vectors = self._as_vectors([each.vector for each in fresh], is_embedded=is_embedded)
        ids = [each.record.id for each in fresh]
        with self._tensor_files(fresh):
            row_of = {}
            for number, each in enumerate(index for index, one in enumerate(fresh) if one.vector is not None):
                row_of[each] = number

            def change(changes: Changes) -> None:
                for index, each in enumerate(fresh):
                    if changes.find(each.record.id) is not None:
                        advice = "use another id" if self.scope is not None else "use update(), or another id"
                        raise RecordExists(f"there is a record {each.record.id!r}; {advice}", id=each.record.id)
                    record = msgspec.structs.replace(each.record, _parts=each.parts, _nbytes=each.nbytes)
                    if each.ttl_s is not None:
                        record.expires_at = changes.now_s + each.ttl_s
                    row = row_of.get(index)
                    if row is None or vectors is None:
                        changes.add(record, None, None)
                    else:
                        changes.add(record, vectors.rows[row], vectors.lengths[row])
                changes.make_room(ids, self.scope)

            self._write(change, len(row_of), [each.record.content for each in fresh], vectors)
        return ids

    def update(
        self,
        id: str,
        *,
        content: str | EllipsisType | None = ...,
        vector: Any = ...,
        tensors: Mapping[str, Any] | EllipsisType | None = ...,
        metadata: Mapping[str, Any] | EllipsisType | None = ...,
        importance: float | EllipsisType = ...,
        ttl_s: float | EllipsisType | None = ...,
        if_version: int | None = None,
    ) -> Record:
        """Change a record. What is not given stays.

        Args:
            id: of the record.
            content: its new text; None removes the text. If this handle has an embedder, that makes the new vector, or
                removes the vector if there is no text. If only the store has one, the old text's vector is removed. If
                neither has one, the vector stays.
            vector: its new vector; None for none.
            tensors: all its tensors; None for none.
            metadata: all its metadata.
            importance: 0 to 1.
            ttl_s: seconds from now; None for never.
            if_version: change it only if it is of that version.

        Returns:
            The record after the change, or after a later change by somebody else; without vector and tensors if it was
            deleted meanwhile.

        Raises:
            NoSuchRecord: there is none.
            VersionConflict: it has another version than ``if_version``.
            BadMessage, WrongShape, OutOfSpace: as :meth:`add`.
        """
        check_id(id)
        given: dict[str, Any] = {"content": content, "metadata": metadata, "importance": importance, "tensors": tensors}
        fresh = self._new_record({name: value for name, value in given.items() if value is not ...} | {"id": id})
        check_version(if_version)
        is_embedded = False
        if vector is not ...:
            fresh.vector = vector
        elif content is not ...:
            is_embedded = self._embed_missing([fresh])
        # A removed text takes its vector with it. A new text does so too if the store has an embedder and this handle
        # has none (is_stale below): else searches would find the record by the vector of its old text.
        has_new_vector = vector is not ... or (content is not ... and self._embedder is not None)
        vectors = self._as_vectors([fresh.vector], is_embedded=is_embedded)
        if ttl_s is not ... and ttl_s is not None:
            check_ttl(ttl_s)
        has_other_words = has_new_vector or content is not ...
        with self._tensor_files([fresh]):

            def change(changes: Changes) -> Record:
                old = self._own(changes, id)
                if if_version is not None and old.version != if_version:
                    raise VersionConflict(
                        f"the record {id!r} is of version {old.version}, not {if_version}: read it again",
                        id=id,
                        expected=if_version,
                        found=old.version,
                    )
                new = msgspec.structs.replace(old)
                if content is not ...:
                    new.content = content
                if metadata is not ...:
                    new.metadata = fresh.record.metadata
                if importance is not ...:
                    new.importance = fresh.record.importance
                if ttl_s is not ...:
                    new.expires_at = None if ttl_s is None else changes.now_s + ttl_s
                if tensors is not ...:
                    new._parts, new._nbytes = fresh.parts, fresh.nbytes
                else:
                    new._nbytes = changes.tensors_nbytes(old)
                is_stale = vector is ... and new.content != old.content and self._has_embedder(changes)
                changes.replace(
                    old,
                    new,
                    None if vectors is None else vectors.rows[0],
                    None if vectors is None else vectors.lengths[0],
                    has_new_vector=has_new_vector or is_stale,
                )
                changes.make_room([id], self.scope)
                return new

            # A new text also takes the words of the old one out of the index.
            texts = [fresh.record.content, self._text_of(id) if has_other_words else None]
            changed = self._write(change, 1, texts, vectors)
        found = self.get(id)
        return changed if found is None else found

    def delete(self, id: str) -> bool:
        """Delete a record. Returns whether there was one."""
        check_id(id)

        def change(changes: Changes) -> bool:
            try:
                changes.remove(self._own(changes, id))
            except NoSuchRecord:
                return False
            return True

        return self._write(change, 0, [self._text_of(id)], is_deletion=True)

    def clear(
        self,
        *,
        filters: Mapping[str, Any] | None = None,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
    ) -> int:
        """Delete all records, or those that pass a filter. Makes several commits, so that other writers wait little.

        Returns:
            How many were deleted.

        Raises:
            BadMessage: a filter is wrong.
            OutOfSpace: there is no room to delete more; the message says how many were deleted.
        """
        wanted = self._filter(filters, user_id, agent_id, run_id)
        ids = self._read(lambda view: view.ids(wanted))
        total = 0
        try:
            for batch, texts in self._batches(ids):
                try:
                    total += self._remove(batch, texts, wanted)
                except OutOfSpace:  # one record in a commit needs less room
                    for each in batch:
                        total += self._remove([each], [self._text_of(each)], wanted)
        except OutOfSpace as full:
            raise OutOfSpace(
                f"{total} of {len(ids)} records were deleted, and then: {full}",
                needed_nbytes=full.needed_nbytes,
                free_nbytes=full.free_nbytes,
            ) from full
        self._remove_garbage()
        return total

    def _remove(self, ids: Sequence[str], texts: Iterable[str | None], wanted: Filter | None) -> int:
        def change(changes: Changes) -> int:
            count = 0
            for each in ids:
                record = changes.find(each)
                if record is not None and (wanted is None or wanted.test(record)):
                    changes.remove(record)
                    count += 1
            return count

        return self._write(change, 0, texts, is_deletion=True)

    # -- its life -----------------------------------------------------------------------------------------------------

    def compact(self) -> int:
        """Remove expired records, unused rows of vectors, and files that dead processes have left.

        Arrays that the store has handed out keep their content.

        Returns:
            How many rows were freed.
        """
        self._upkeep.sweep()  # first: it frees room, which the rest needs
        while self._write(lambda changes: changes.remove_expired(BATCH), 0, is_deletion=True):
            pass
        files = self._slabs()
        freed = 0
        if files is not None:
            freed = self._upkeep.compact(files, self._live, lambda change: self._write(change, 0, is_deletion=True))
        self._upkeep.remove_garbage()
        return freed

    def check(self) -> list[str]:
        """Check everything that the store holds.

        Returns:
            The faults, a line each; an empty list if the store is sound.
        """
        return check(self._catalogue, self._places, self._options, self._slabs())

    def close(self) -> None:
        """Release the handle. Records and arrays that it has handed out stay valid. Idempotent."""
        self._catalogue.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Store {self._options.name!r} in {self._places.directory}>"
