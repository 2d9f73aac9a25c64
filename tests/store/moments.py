"""What a process does to a store when it is to be killed, or refused a system call, at a chosen moment of it.

Moments are the system calls that the library makes on files, and three of each transaction: before it, before its
commit, after its commit.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import Faults, Plan
from writer import fields_of, is_whole

from tr_mmap.store import Store
from tr_mmap.store.catalogue import Catalogue
from tr_mmap.store.changes import slabs_of
from tr_mmap.store.slabs import FIRST_ROWS

NAME = "shared"
FOLDER = f"tr_store_{NAME}"


class Killer(Faults):
    """Kills this process at the nth moment."""

    def __init__(self, nth: int) -> None:
        self._left = nth
        patch = pytest.MonkeyPatch()
        super().__init__(patch)
        original, pass_ = Catalogue.write, self._is_due

        def write(catalogue: Catalogue, action: Any) -> Any:
            def moved(transaction: Any) -> Any:
                result = action(transaction)
                pass_("commit")
                return result

            pass_("begin")
            result = original(catalogue, moved)
            pass_("committed")
            return result

        patch.setattr(Catalogue, "write", write)

    def _is_due(self, name: str) -> bool:  # noqa: ARG002 - any call
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return False


# -- stores, each about to do something --------------------------------------------------------------------------------


def prepare(kind: str, root: Path) -> dict[str, int]:
    """Make a store; the versions of its records by id."""
    known: dict[str, int] = {}
    if kind == "create":
        return known
    with Store(NAME, root, indexed=("version",)) as store:
        several = [f"r{number}" for number in range(6)]
        store.add_many({"id": each, **fields_of(each, 1)} for each in several)
        known = dict.fromkeys(several, 1)
        rest = {"seal": FIRST_ROWS - 8, "compact": FIRST_ROWS}.get(kind, 0)
        if rest:
            ids = store.add_many({"vector": np.ones(16, np.float32)} for _ in range(rest))
            assert store.clear(filters={"id": {"in": ids}}) == rest
        if kind == "sweep":
            with store.snapshot():  # so that its files wait
                for each in ("r4", "r5"):
                    store.delete(each)
                    del known[each]
    return known


def act(kind: str, root: str) -> Store:
    """Do it, in a process that has not used the store yet."""
    store = Store(NAME, root, indexed=("version",))
    if kind in ("create", "add"):
        store.add(id="new", **fields_of("new", 1))
    elif kind == "again":  # what the first one may have met is over
        try:
            store.add(id="first", **fields_of("first", 1))
        except OSError:
            assert store.get("first") is None
        store.add(id="new", **fields_of("new", 1))
        assert is_whole(store.get("new"))
        assert store.check() == []
    elif kind == "seal":
        store.add_many({"id": f"new{number}", **fields_of(f"new{number}", 1)} for number in range(4))
    elif kind == "update":
        store.update("r1", **fields_of("r1", 2))
    elif kind == "delete":
        assert store.delete("r1")
    elif kind == "clear":
        assert store.clear() == 6
    elif kind == "compact":
        assert store.compact() > 0
    elif kind == "sweep":
        store.compact()
    return store


KINDS = ("create", "add", "seal", "update", "delete", "clear", "compact", "sweep")
CHANGES: dict[str, dict[str, int | None]] = {  # what each is to do, all of it or nothing
    "create": {"new": 1},
    "add": {"new": 1},
    "seal": {f"new{number}": 1 for number in range(4)},
    "update": {"r1": 2},
    "delete": {"r1": None},
    "clear": {f"r{number}": None for number in range(6)},
    "compact": {},
    "sweep": {},
}


def die(kind: str, root: str, nth: int) -> None:
    """Do it, and be killed at the nth moment; or come to the end, and say so by the exit status."""
    Killer(nth)
    act(kind, root)
    os._exit(7)


def copy_of(prepared: Path, root: Path) -> None:
    """The store again, before anything was done to it."""
    shutil.rmtree(root / FOLDER, ignore_errors=True)
    if (prepared / FOLDER).exists():
        shutil.copytree(prepared / FOLDER, root / FOLDER)


def files_in(root: Path) -> set[str]:
    """Files whose names tell who has made them, and files in the making."""
    folder = root / FOLDER
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.name not in ("store.json", "data.mdb", "lock.mdb", "boot", "vec", "tensors", "catalogue")
    }


def named_by(store: Store) -> set[str]:
    """Files that the catalogue names."""
    with store._catalogue.read() as transaction:
        named = {f"tensors/{key.decode()}" for key, _ in transaction.items("files")}
        named |= {key[8:].decode() for key, _ in transaction.items("garbage")}
        slabs = slabs_of(transaction)
    return named | {f"vec/{name}" for each in slabs for name in (each.file, each.norms, each.rows) if name}


# -- no room -----------------------------------------------------------------------------------------------------------


def refuse(kind: str, root: str, nth: int, number: int, is_forever: bool) -> str:
    """Do it while system calls fail; what came of it."""
    faults = Faults(pytest.MonkeyPatch())
    faults.arm(Plan(nth, number, is_forever))
    try:
        act(kind, root).close()
        outcome = "done"
    except Exception as error:
        outcome = type(error).__name__
    fired = faults.disarm()
    return json.dumps([outcome, fired[:1]])
