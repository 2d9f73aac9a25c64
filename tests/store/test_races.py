"""What another process does just then: it takes nothing from a writer, and nothing that was committed is taken back."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from children import Mother
from moments import act, prepare
from writer import fields_of, is_whole

from tr_mmap import OutOfSpace
from tr_mmap.store import Store, StoreClosed, StoreCorrupt, core, files
from tr_mmap.store.slabs import SlabFiles
from tr_mmap.store.upkeep import Upkeep


def sweep(path: str) -> None:
    """In another process."""
    with Store("shared", path) as store:
        store.compact()


def compact(path: str) -> None:
    act("compact", path).close()


def test_a_sweep_takes_nothing_from_a_writer_in_the_middle(
    mother: Mother, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, swept = files.write_new, []

    def write_new(*arguments: Any, **options: Any) -> None:
        assert mother.run("test_races.sweep", str(root)) == ([], 0)  # the file is there, and empty
        original(*arguments, **options)
        assert mother.run("test_races.sweep", str(root)) == ([], 0)
        swept.append(1)

    monkeypatch.setattr(files, "write_new", write_new)
    with Store("shared", root) as store:
        store.add(id="it", **fields_of("it", 1))
        assert swept
        assert is_whole(store.get("it"))
        assert store.check() == []


@pytest.mark.parametrize("error", [OutOfSpace("none", needed_nbytes=1, free_nbytes=0), OSError(5, "broken")])
def test_what_fails_after_a_commit_is_no_error_of_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_: Any) -> None:
        raise error

    monkeypatch.setattr(Upkeep, "after_commit", fail)
    with Store("shared", root) as store:
        store.add(id="it", **fields_of("it", 1))
        assert is_whole(store.update("it", **fields_of("it", 2)))
        assert store.check() == []


def test_an_interrupt_after_a_commit_takes_nothing_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the tensors, nor the slab that was made for it."""

    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    with Store("shared", root) as store:
        with monkeypatch.context() as patch:
            patch.setattr(Upkeep, "after_commit", interrupt)
            with pytest.raises(KeyboardInterrupt):
                store.add(id="it", **fields_of("it", 1))
        assert is_whole(store.get("it"))
        with monkeypatch.context() as patch:
            original = store._catalogue.write

            def write(action: Any) -> None:
                original(action)
                raise KeyboardInterrupt

            patch.setattr(store._catalogue, "write", write)
            patch.setattr(core, "FIRST_ROWS", 1)
            for number in range(3):
                with pytest.raises(KeyboardInterrupt):
                    store.add(id=f"n{number}", **fields_of(f"n{number}", 1))
        assert all(is_whole(store.get(f"n{number}")) for number in range(3))
        assert store.check() == []


def test_two_processes_compact_at_once(mother: Mother, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = prepare("compact", root)
    original, met = SlabFiles.open, []

    def open_(self: SlabFiles, entries: Any) -> Any:
        if not met:
            met.append(1)
            assert mother.run("test_races.compact", str(root)) == ([], 0)
        return original(self, entries)

    with Store("shared", root) as store:
        monkeypatch.setattr(SlabFiles, "open", open_)
        assert store.compact() == 0  # the other one has done it
        assert met
        assert all(is_whole(store.get(each)) for each in known)
        assert store.check() == []


def test_a_handle_that_is_closed_under_a_method_says_so(root: Path) -> None:
    store = Store("shared", root)
    store.add(id="it")
    with store._catalogue.read():
        store.close()
    with pytest.raises(StoreClosed):
        store.get("it")
    with pytest.raises(StoreClosed):
        store.add("x")


def make_and_leave(path: str) -> None:
    """Make a store, and end: a sweep may remove what its catalogue does not name."""
    store = Store("shared", path)
    store.add(id="it", **fields_of("it", 1))
    os._exit(0)


@pytest.mark.parametrize("place", ["root", "tmp_path"])  # in memory, and on a disk, which numbers files otherwise
def test_a_handle_whose_folder_was_made_anew_takes_nothing_from_the_new_store(
    mother: Mother, place: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(place)
    with Store("shared", path) as old:
        old.add(id="old", **fields_of("old", 1))
        shutil.rmtree(path / "tr_store_shared")
        with pytest.raises(StoreCorrupt, match="removed"):
            old.compact()
        assert mother.run("test_races.make_and_leave", str(path)) == ([], 0)
        with pytest.raises(StoreCorrupt, match="removed"):
            old.compact()
        with Store("shared", path) as new:
            assert is_whole(new.get("it"))
            assert new.get("old") is None
            assert new.check() == []
            new.compact()
            assert is_whole(new.get("it"))
        with pytest.raises(StoreCorrupt, match="removed"):
            old.compact()
