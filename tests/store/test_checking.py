"""``check()`` finds whatever of a catalogue is not as records have it; what upkeep cannot do leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import Mother
from lmdb.verify import _Verifier
from moments import act, files_in, named_by, prepare
from writer import fields_of, is_whole

from tr_mmap import OutOfSpace
from tr_mmap.store import RecordExists, Store, StoreClosed, VersionConflict
from tr_mmap.store.catalogue import Catalogue
from tr_mmap.store.changes import Changes
from tr_mmap.store.environment import DATABASES

OPTIONS: dict[str, Any] = {"indexed": ("version",), "at_budget": "evict", "budget_nbytes": 1 << 30}


@pytest.fixture
def filled(root: Path) -> Store:
    """A store with entries in all databases."""
    store = Store("shared", root, **OPTIONS)
    for number in range(4):
        store.add(id=f"r{number}", **fields_of(f"r{number}", 1), user_id="u", ttl_s=3600)
    store.update("r1", **fields_of("r1", 2))
    store.delete("r3")
    assert store.check() == []
    return store


def first(transaction: Any, name: str) -> tuple[bytes, bytes]:
    found: tuple[bytes, bytes] = next(iter(transaction.items(name)))
    return found


FOUND = (
    "sums",
    "rows",
    "order",
    "fields",
    "postings",
    "expiry",
    "worth",
    "history",
    "files",
    "live",
    "records",
    "slabs",
)


@pytest.mark.parametrize("name", FOUND)
def test_a_check_misses_no_entry_that_is_gone(filled: Store, name: str) -> None:
    def damage(transaction: Any) -> None:
        key, value = first(transaction, name)
        assert transaction.pop(name, key, value if DATABASES[name] else b"")

    filled._catalogue.write(damage)
    assert filled.check()
    filled.close()


@pytest.mark.parametrize("name", [*FOUND[:-3], "records"])
def test_a_check_finds_each_entry_that_nothing_has(filled: Store, name: str) -> None:
    def damage(transaction: Any) -> None:
        key, value = first(transaction, name)
        new = b"ghost" if name in ("records", "sums", "files") else key[:-1] + bytes([key[-1] ^ 0x41])
        transaction.put(new, value, db=getattr(transaction, name))

    filled._catalogue.write(damage)
    assert filled.check()
    filled.close()


@pytest.mark.parametrize("name", ["rows", "order", "expiry", "worth", "sums", "records"])
def test_a_check_finds_an_entry_that_is_another_ones(filled: Store, name: str) -> None:
    def damage(transaction: Any) -> None:
        (key, _), (_, other), *_ = transaction.items(name)
        transaction.put(key, other, db=getattr(transaction, name))

    filled._catalogue.write(damage)
    assert filled.check()
    filled.close()


@pytest.mark.parametrize("count", ["records", "vectors", "texts", "words", "nbytes", "reserve"])
def test_a_check_compares_what_the_catalogue_counts(filled: Store, count: str) -> None:
    def damage(transaction: Any) -> None:
        state = transaction.state()
        setattr(state, count, getattr(state, count) + 1)
        transaction.put_state(state)

    filled._catalogue.write(damage)
    assert len(filled.check()) in (1, 2)
    filled.close()


def test_a_check_is_right_while_the_file_grows(root: Path, mother: Mother, monkeypatch: pytest.MonkeyPatch) -> None:
    """It grows before its first pages say so: whoever read its size before these would find pages behind its end."""
    original, grown = _Verifier.load_metas, []
    path = root / "tr_store_shared" / "catalogue" / "data.mdb"

    def load_metas(self: Any) -> Any:
        before = path.stat().st_size
        assert mother.run("test_checking.grow", str(root)) == ([], 0)
        grown.append(path.stat().st_size - before)
        return original(self)

    with Store("shared", root) as store:
        store.add("x")
        monkeypatch.setattr(_Verifier, "load_metas", load_metas)
        assert store.check() == []
    assert min(grown) > 1 << 16


def grow(root: str) -> None:
    """In another process."""
    with Store("shared", root) as store:
        store.add_many({"content": f"{number} " * 500} for number in range(200))


# -- what cannot be done -----------------------------------------------------------------------------------------------


def refusing(monkeypatch: pytest.MonkeyPatch, error: BaseException, *, when: str) -> None:
    """Let each commit of a compaction fail, before or after it is made."""
    original = Changes.replace_slab

    def replace_slab(self: Changes, *arguments: Any) -> bool:
        if when == "before":
            raise error
        return original(self, *arguments)

    monkeypatch.setattr(Changes, "replace_slab", replace_slab)
    if when == "after":
        write = Catalogue.write

        def failing(self: Catalogue, action: Any) -> None:
            write(self, action)
            raise error

        monkeypatch.setattr(Catalogue, "write", failing)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", [OutOfSpace("none", needed_nbytes=1, free_nbytes=0), KeyboardInterrupt()])
def test_a_compaction_that_fails_leaves_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, when: str
) -> None:
    known = prepare("compact", root)
    with Store("shared", root) as store:
        files = store._slabs()
        assert files is not None
        with monkeypatch.context() as patch:
            refusing(patch, error, when=when)
            for _ in range(1 if when == "after" else 3):
                with pytest.raises(type(error)):
                    store._upkeep.compact(files, store._live, lambda change: store._write(change, 0))
        assert files_in(root) == named_by(store)
        assert all(is_whole(store.get(each)) for each in known)
        assert store.check() == []
    act("compact", str(root)).close() if when == "before" else None


def test_a_compaction_removes_what_dead_processes_have_left_before_it_needs_room(
    root: Path, mother: Mother, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare("compact", root)
    with Store("shared", root) as store:
        assert mother.run("test_checking.leave_files", str(root)) == ([], 0)
        assert files_in(root) != named_by(store)
        with monkeypatch.context() as patch:
            refusing(patch, OutOfSpace("none", needed_nbytes=1, free_nbytes=0), when="before")
            with pytest.raises(OutOfSpace):
                store.compact()
        assert files_in(root) == named_by(store)


def leave_files(root: str) -> None:
    """In a process that dies in the middle of an add."""
    store = Store("shared", root)
    store._places.write_tensors({"t": np.ones(9)})


def test_a_refused_change_leaves_no_files_and_reads_no_others(filled: Store, root: Path) -> None:
    read: list[str] = []
    original = Catalogue.read

    class _Noted:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __enter__(self) -> Any:
            transaction = self._inner.__enter__()
            items = transaction.items
            transaction.items = lambda name, *rest, **options: (read.append(name), items(name, *rest, **options))[1]
            return transaction

        def __exit__(self, *error: Any) -> Any:
            return self._inner.__exit__(*error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Catalogue, "read", lambda self: _Noted(original(self)))
        with pytest.raises(VersionConflict):
            filled.update("r1", tensors={"t": np.ones(9)}, if_version=77)
        with pytest.raises(RecordExists):
            filled.add(id="r1", tensors={"t": np.ones(9)})
    assert "files" not in read
    assert files_in(root) == named_by(filled)
    filled.close()


@pytest.mark.parametrize("action", ["add", "update"])
def test_a_handle_that_is_closed_before_the_commit_leaves_no_files(
    filled: Store, root: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    original = Catalogue.write

    def write(self: Catalogue, action: Any) -> Any:
        filled.close()
        return original(self, action)

    monkeypatch.setattr(Catalogue, "write", write)
    tensors = {"t": np.ones(9)}
    with pytest.raises(StoreClosed):
        filled.add(tensors=tensors) if action == "add" else filled.update("r1", tensors=tensors)
    monkeypatch.undo()
    with Store("shared", root) as store:
        assert files_in(root) == named_by(store)
        assert store.check() == []
