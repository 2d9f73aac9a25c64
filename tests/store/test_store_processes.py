"""Many processes at one store: nothing acknowledged is lost, nothing is half there, whoever is killed at any moment."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from children import Mother
from store_support import embed
from support import ROOT, environment, forks
from writer import Ledger, fields_of, is_whole

from tr_mmap.store import SnapshotExpired, Store
from tr_mmap.store.environment import MOST_READERS

KEPT_ROUNDS = 10  # after which the records of dead writers are deleted, so that a look at all of them stays short


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_a_killed_writer_loses_nothing_that_was_acknowledged_and_leaves_nothing_half_done(
    root: Path, is_full: bool, figures: Callable[[str], None]
) -> None:
    """A third of the kills come at any moment; the others are aimed at a write, from its begin to its commit."""
    kills = 2000 if is_full else 20
    inside = changes = 0
    chance = random.Random(15)
    ledger = Ledger()
    with Mother() as mother:
        for number in range(kills):
            if number % 3:
                aim = (2 + chance.randrange(9), chance.random())
                said, status = mother.run("writer.work_and_die_inside", str(root), f"w{number}", *aim)
                assert status == -signal.SIGALRM
                inside += [line for line in said if line[0] in ("inside", "outside")][-1] == ["inside"]
            else:
                pid = mother.start("writer.work", str(root), f"w{number}")
                assert mother.hear() == ["begun"]
                heard = [mother.hear() for _ in range(chance.randrange(20))]
                time.sleep(chance.random() * 0.003)  # any moment of the next change, or of one after it
                os.kill(pid, signal.SIGKILL)
                said, status = mother.end()
                said = heard + said
                assert status == -signal.SIGKILL
            ledger.take(said)
            changes += sum(line[0] == "done" for line in said)
            with Store("shared", root, indexed=("version",)) as store:
                assert store.check() == []
                ledger.check(store)
                if number % KEPT_ROUNDS == KEPT_ROUNDS - 1:
                    found = store.get_all()
                    assert {record.id for record in found} == set(ledger.known)
                    for record in found[:20]:
                        assert store.search(record.vector, limit=1)[0].distance == pytest.approx(0, abs=1e-6)
                    assert store.clear() == len(ledger.known)
                    ledger.known.clear()
                    store.compact()
                    assert list((root / "tr_store_shared" / "tensors").iterdir()) == []
                    assert store.check() == []
    figures(f"{kills} kills, {inside} of them seen inside a write, {changes} changes acknowledged")
    assert inside >= (0.3 if is_full else 0.1) * kills  # of few, chance may have it that fewer hit


@pytest.mark.long
@pytest.mark.timeout(900)
def test_writers_that_are_killed_hold_up_no_other(root: Path, is_full: bool) -> None:
    rounds = 60 if is_full else 2
    chance = random.Random(16)
    ledgers = [Ledger() for _ in range(4)]
    with ExitStack() as stack:
        mothers = [stack.enter_context(Mother()) for _ in ledgers]
        for number in range(rounds):
            pids = [mother.start("writer.work", str(root), f"{who}-{number}") for who, mother in enumerate(mothers)]
            for mother in mothers:
                assert mother.hear() == ["begun"]
            heard = []
            for mother, pid in zip(mothers, pids, strict=True):
                heard.append([mother.hear() for _ in range(chance.randrange(16))])
                time.sleep(chance.random() * 0.003)
                os.kill(pid, signal.SIGKILL)
            for mother, ledger, first in zip(mothers, ledgers, heard, strict=True):
                ledger.take(first + mother.end()[0])
            with Store("shared", root) as store:
                assert store.check() == []
                for ledger in ledgers:
                    ledger.check(store)


def test_increments_of_eight_processes_sum_up(root: Path, is_full: bool) -> None:
    times = 1000 if is_full else 12
    with Store("shared", root) as store, ExitStack() as stack:
        store.add(id="counter", metadata={"n": 0})
        mothers = [stack.enter_context(Mother()) for _ in range(8)]
        for mother in mothers:
            mother.start("writer.count", str(root), times)
        assert [mother.end() for mother in mothers] == [([], 0)] * 8
        found = store.get("counter")
        assert found is not None
        assert found.metadata == {"n": 8 * times}
        assert found.version == 8 * times + 1


def test_readers_see_whole_versions_while_others_write(root: Path, is_full: bool) -> None:
    wanted = 20_000 if is_full else 300
    with Store("shared", root, indexed=("version",)) as store, ExitStack() as stack:
        mothers = [stack.enter_context(Mother()) for _ in range(3)]
        pids = [mother.start("writer.work", str(root), f"w{number}") for number, mother in enumerate(mothers)]
        for mother in mothers:
            assert mother.hear() == ["begun"]
        readers = [threading.Thread(target=mother.end) for mother in mothers]  # or their pipes would be full
        for reader in readers:
            reader.start()
        count = 0
        while count < wanted:
            for record in store.get_all(limit=20):
                assert is_whole(record), record
                count += 1
            for hit in store.search(np.ones(16), limit=5):
                assert is_whole(hit.record), hit
            with store.snapshot() as then:
                ids = [record.id for record in then.get_all(limit=50)]
                assert ids == [record.id for record in then.get_all(limit=50)]
                assert all(is_whole(then.get(each)) for each in ids[-10:])
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for reader in readers:
            reader.join()
        assert store.check() == []


@pytest.mark.long
@pytest.mark.timeout(900)
def test_killed_readers_hold_up_nobody(root: Path, is_full: bool) -> None:
    processes = 5000 if is_full else 25
    with Store("shared", root) as store, Mother() as mother:
        ids = store.add_many({"content": "x", "vector": np.ones(64), "tensors": {"t": np.ones(9)}} for _ in range(50))
        for number in range(processes):
            assert mother.run("writer.hold", str(root), 1 + number % 3) == ([["holding", 1 + number % 3]], -9)
        for each in ids:
            store.delete(each)
        store.compact()
        assert list((root / "tr_store_shared" / "tensors").iterdir()) == []
        nbytes = (root / "tr_store_shared" / "catalogue" / "data.mdb").stat().st_size
        for _ in range(20):
            store.clear()
            store.add_many({"content": "x"} for _ in range(50))
        assert (root / "tr_store_shared" / "catalogue" / "data.mdb").stat().st_size < nbytes + (256 << 10)
        assert store.check() == []


def test_a_long_writer_meets_readers_that_die_meanwhile(root: Path) -> None:
    """It looks after them itself: nobody opens the store again, or compacts it."""
    with Store("shared", root) as store, Mother() as mother:
        record_id = store.add("x", tensors={"t": np.ones(9)})
        mother.run("writer.hold", str(root), 3)
        store.delete(record_id)
        for number in range(40):
            store.add(f"{number}")
        assert list((root / "tr_store_shared" / "tensors").iterdir()) == []


def test_a_table_that_is_full_of_dead_readers_is_emptied(root: Path) -> None:
    with Store("shared", root) as store, Mother() as mother:
        record_id = store.add("x")
        said, status = mother.run("writer.hold", str(root), MOST_READERS - 10)
        assert status == -signal.SIGKILL
        assert said == [["holding", MOST_READERS - 10]]
        held = [store.snapshot() for _ in range(100)]
        assert all(each.get(record_id) is not None for each in held)
        for each in held:
            each.close()


@forks
def test_a_forked_child_uses_the_store_as_its_own(store: Store) -> None:
    store.add(id="before", **fields_of("before", 1))
    held = store.get("before")
    with store.snapshot() as then:
        for number in range(5):
            pid = os.fork()
            if pid == 0:
                try:
                    with pytest.raises(SnapshotExpired, match="forked"):
                        then.get("before")
                    assert is_whole(store.get("before"))
                    assert np.array_equal(held.vector, store.get("before").vector)
                    store.add(id=f"child {number}", **fields_of(f"child {number}", 1))
                    with store.snapshot() as own:
                        assert own.get(f"child {number}") is not None
                    then.close()
                    if number % 2:
                        store.close()
                    os._exit(0)
                except BaseException as error:
                    os.write(2, repr(error).encode())
                    os._exit(1)
            assert os.waitpid(pid, 0)[1] == 0
        assert [record.id for record in then.get_all()] == ["before"]
    assert len(store.get_all()) == 6
    assert all(is_whole(record) for record in store.get_all())


@forks
def test_a_child_that_forgets_its_parents_snapshot_gives_away_nothing(store: Store) -> None:
    """Its place in the table of readers is the parent's: what that shows is not freed."""
    ids = store.add_many({"content": f"old {number}" * 50, "tensors": {"t": np.ones(9)}} for number in range(20))
    snapshots = [store.snapshot()]
    pid = os.fork()
    if pid == 0:
        snapshots.clear()
        gc.collect()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    store.clear()
    for number in range(60):
        store.add(f"new {number}" * 50)
    store.compact()
    (then,) = snapshots
    assert [record.id for record in reversed(then.get_all())] == ids
    for number, record in enumerate(reversed(then.get_all())):
        assert record.content == f"old {number}" * 50
        assert record.tensors["t"].tolist() == [1] * 9
    then.close()


@forks
def test_a_fork_while_other_threads_are_anywhere_in_the_store(store: Store, is_full: bool) -> None:
    store.add(id="it", **fields_of("it", 1))
    is_over = threading.Event()

    def use(number: int) -> None:
        while not is_over.is_set():
            store.add(id=f"of {number}", **fields_of(f"of {number}", 1))
            store._files._known.clear()  # type: ignore[union-attr] - so that slabs are mapped all the time
            store._files._table = ([], [])  # type: ignore[union-attr]
            store.get("it")
            store.search(np.ones(16), limit=2)
            with store.snapshot() as then:
                then.get("it")
            store.delete(f"of {number}")

    threads = [threading.Thread(target=use, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(400 if is_full else 20):
            pid = os.fork()
            if pid == 0:
                try:
                    signal.alarm(30)  # it would wait for ever for a thread that it does not have
                    assert is_whole(store.get("it"))
                    store.add(id=f"child {number}", **fields_of(f"child {number}", 1))
                    assert store.search(np.ones(16), limit=2)
                    os._exit(0)
                except BaseException as error:
                    os.write(2, repr(error).encode())
                    os._exit(1)
            assert os.waitpid(pid, 0)[1] == 0
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert store.check() == []


def test_two_processes_with_two_embedders_never_mix_their_vectors(root: Path) -> None:
    program = (
        "import sys\nfrom store_support import other_embed\nfrom tr_mmap.store import Store, EmbedderMismatch\n"
        "try: Store('shared', sys.argv[1], embedder=other_embed)\nexcept EmbedderMismatch: print('refused')"
    )
    with Store("shared", root, embedder=embed) as store:
        store.add("words")
        ended = subprocess.run(
            [sys.executable, "-c", program, str(root)],
            env={**environment(), "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"},
            capture_output=True,
            check=True,
        )
        assert ended.stdout == b"refused\n"
