"""A process is killed at every moment of what it does to a store: what was acknowledged is there, the rest is there
whole or not at all, and nothing is left.

There is no index of neighbours yet. What is renamed is the catalogue, when a store is made, and the notes beside it.
"""

from __future__ import annotations

import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from children import Mother
from moments import CHANGES, KINDS, act, copy_of, files_in, named_by, prepare
from strace import INJECTED, run_injected, strace
from writer import is_whole

from tr_mmap.store import RecordExists, Store


def check(kind: str, root: Path, known: dict[str, int], *, is_done: bool = False) -> bool:
    """Whether what was begun has been done; fails if it was done in part, or if something is left."""
    with Store("shared", root, indexed=("version",)) as store:
        assert store.check() == []
        wanted = CHANGES[kind]
        found = {record.id: record for record in store.get_all() if record.metadata}
        assert all(is_whole(record) for record in found.values())
        now = {each: record.version for each, record in found.items()}
        after = {each: version for each, version in {**known, **wanted}.items() if version is not None}
        assert now == after or (now == known and not is_done)
        store.compact()
        assert files_in(root) == named_by(store)
        store.add(id="later", content="x")
        assert store.check() == []
        return now == after


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_any_moment_leaves_all_or_nothing_of_what_was_begun(
    mother: Mother, root: Path, prepared: Path, kind: str, is_full: bool
) -> None:
    known = prepare(kind, prepared)
    outcomes = []
    nth, step = 1, 1 if is_full else 9 if kind in ("clear", "compact", "seal") else 5
    while True:
        copy_of(prepared, root)
        _, status = mother.run("moments.die", kind, str(root), nth)
        if status == 7:
            break
        assert status == -signal.SIGKILL
        outcomes.append(check(kind, root, known))
        nth += step
    assert nth > 10
    assert outcomes == sorted(outcomes)  # at one moment it is done, and from then on
    if CHANGES[kind]:
        assert not outcomes[0]
    assert check(kind, root, known, is_done=True)


@pytest.mark.parametrize("kind", ["create", "seal", "compact"])
@strace
def test_a_kill_at_any_system_call_of_lmdb_too_leaves_all_or_nothing(
    root: Path, prepared: Path, kind: str, is_full: bool
) -> None:
    """The kernel kills it, at the nth call of one kind."""
    known = prepare(kind, prepared)
    for call in INJECTED if is_full else ("writev",):
        nth = 1
        while True:
            copy_of(prepared, root)
            status = run_injected(kind, root, f"{call}:signal=KILL:when={nth}")
            if status == 7:
                break
            assert status == -signal.SIGKILL
            check(kind, root, known)
            nth += 1 if is_full else 7


def test_what_a_killed_maker_of_a_store_has_left_is_swept(mother: Mother, root: Path) -> None:
    """Its half catalogue and notes are in the way of nobody; and the store is made again."""
    nth = 1
    while True:
        shutil.rmtree(root / "tr_store_shared", ignore_errors=True)
        _, status = mother.run("moments.die", "create", str(root), nth)
        if status == 7:
            break
        if nth % 2:
            with suppress(RecordExists):  # it was killed after its commit
                act("create", str(root)).close()
        with Store("shared", root) as store:
            assert files_in(root) == named_by(store)
        nth += 9
