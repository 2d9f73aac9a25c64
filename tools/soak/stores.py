"""The soak of a store: records are added, changed, found, held and deleted, while writers and readers are killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import stat
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from measures import files_of

from tr_mmap.store import RecordExists, Store, StoreClosed
from tr_mmap.store.environment import DATABASES

DIM: Final = 32
MAX_IDS: Final = 300
MAX_VIEWS: Final = 20
MAX_VALUES: Final = 20_000  # of a tensor
_WORDS: Final = ("red", "green", "blue", "house", "tree", "river", "mountain", "cloud")


def fields_of(number: int) -> dict[str, Any]:
    """The fields of record ``number``, all of which follow from the number."""
    own = np.random.default_rng(number)
    sizes = own.integers(1, MAX_VALUES, int(own.integers(0, 4)))
    return {
        "content": " ".join(own.choice(_WORDS, 12)),
        "vector": own.random(DIM).astype(np.float32),
        "tensors": {f"t{each}": own.random(int(size)) for each, size in enumerate(sizes)},
        "metadata": {"number": number, "kind": number % 5},
    }


class StoreSoak:
    """Deeds on one store.

    Attributes:
        deeds: how many of each kind.
        wrong: what was not as it should be.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root / "stores"
        self.random = random.Random(seed)
        self.deeds: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._known: dict[str, int] = {}
        self._views: list[tuple[Any, int]] = []
        self._snapshots: list[tuple[Any, dict[str, int]]] = []
        self._number = 0
        self._store = self._open()

    def _open(self) -> Store:
        return Store("soak", self.root, dim=DIM, indexed=("kind",))

    def _new(self) -> tuple[int, dict[str, Any]]:
        self._number += 1
        return self._number, fields_of(self._number)

    def check(self, record: Any, number: int | None, what: str) -> None:
        """Note a record that is lost, or of which a field does not follow from its number."""
        if record is None:
            self.wrong.append(f"{what}: a record is lost")
            return
        found = record.metadata["number"]
        wanted = fields_of(found)
        if (
            (number is not None and found != number)
            or record.content != wanted["content"]
            or record.vector.tobytes() != wanted["vector"].tobytes()
            or record.tensors.keys() != wanted["tensors"].keys()
            or any(record.tensors[name].tobytes() != each.tobytes() for name, each in wanted["tensors"].items())
        ):
            self.wrong.append(f"{what}: record {record.id} is not what was written (number {found}, {number})")

    # -- deeds --------------------------------------------------------------------------------------------------------

    def put(self) -> None:
        number, fields = self._new()
        record_id = f"r{self.random.randrange(MAX_IDS)}"
        try:
            self._store.add(id=record_id, **fields)
        except RecordExists:
            if record_id not in self._known:
                self.wrong.append(f"put: {record_id} is there")
            self._store.update(record_id, **fields)
        self._known[record_id] = number

    def put_many(self) -> None:
        free = [each for each in (f"r{n}" for n in range(MAX_IDS)) if each not in self._known]
        chosen = self.random.sample(free, min(len(free), 20))
        new = {each: self._new() for each in chosen}
        self._store.add_many({"id": each, **fields} for each, (_, fields) in new.items())
        self._known.update({each: number for each, (number, _) in new.items()})

    def get(self) -> None:
        if self._known:
            record_id = self.random.choice(list(self._known))
            found = self._store.get(record_id)
            self.check(found, self._known[record_id], "get")
            if self.random.random() < 0.2:
                self._views.append((found, self._known[record_id]))
                del self._views[:-MAX_VIEWS]

    def delete(self) -> None:
        for _ in range(3):
            if self._known:
                record_id = self.random.choice(list(self._known))
                if not self._store.delete(record_id):
                    self.wrong.append(f"delete: {record_id} is lost")
                del self._known[record_id]

    def search(self) -> None:
        query: Any = self.random.choice([*_WORDS, np.random.default_rng(self._number).random(DIM)])
        kind = self.random.choice([None, {"kind": self.random.randrange(5)}])
        for hit in self._store.search(query, limit=10, filters=kind):
            self.check(hit.record, self._known.get(hit.record.id, -1), "search")

    def pages(self) -> None:
        kind = self.random.randrange(5)
        found = {record.id for record in self._store.get_all(filters={"kind": kind})}
        if found != {each for each, number in self._known.items() if number % 5 == kind}:
            self.wrong.append("pages: not the records of that kind")

    def pass_away(self) -> None:
        _, fields = self._new()
        self._store.add(ttl_s=1e-6, **fields)

    def begin_snapshot(self) -> None:
        self._snapshots.append((self._store.snapshot(), dict(self._known)))
        for old, _ in self._snapshots[:-3]:
            old.close()
        del self._snapshots[:-3]

    def look(self) -> None:
        for record, number in self._views:
            self.check(record, number, "held view")
        for then, known in self._snapshots:
            for record_id in self.random.sample(list(known), min(5, len(known))):
                self.check(then.get(record_id), known[record_id], "snapshot")

    def compact(self) -> None:
        self._store.compact()

    def clear(self) -> None:
        kind = self.random.randrange(5)
        gone = [each for each, number in self._known.items() if number % 5 == kind]
        there = {record.id for record in self._store.get_all(filters={"kind": kind})}
        found = self._store.clear(filters={"kind": kind})
        if found != len(gone) or there != set(gone):
            odd = sorted(there.symmetric_difference(gone))
            self.wrong.append(f"clear: {found} of kind {kind} were deleted, {len(gone)} are known; just before: {odd}")
        for each in gone:
            del self._known[each]

    def reopen(self) -> None:
        former, self._store = self._store, self._open()
        former.close()
        try:
            former.stats()
            self.wrong.append("reopen: the closed handle still works")
        except StoreClosed:
            pass

    def kill(self) -> None:
        """Kill a process that writes and holds snapshots, at a random moment; what it leaves must be whole."""
        first = self._number + 1
        self._number += 1000
        pid = os.fork()
        if pid == 0:
            try:
                held = [self._store.snapshot() for _ in range(3)]
                for number in range(first, first + 1000):
                    self._store.add(id=f"victim{number}", **fields_of(number))
                del held
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.random.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for record in self._store.get_all():
            if record.id not in self._known:
                self.check(record, int(record.id.removeprefix("victim")), "kill")
                self._store.delete(record.id)

    # -- rounds -------------------------------------------------------------------------------------------------------

    def deed(self) -> None:
        usual: list[Callable[[], None]] = [self.put, self.put, self.get, self.get, self.search, self.delete]
        rare = [self.put_many, self.pages, self.pass_away, self.begin_snapshot, self.look, self.compact]
        faults = [self.kill, self.clear, self.reopen]
        chosen = self.random.choice(self.random.choices([usual, rare, faults], [85, 13, 2])[0])
        self.deeds[f"store.{chosen.__name__}"] += 1
        chosen()

    def quiet(self) -> None:
        """Let everything go, so that samples can be compared."""
        for then, _ in self._snapshots:
            then.close()
        self._snapshots.clear()
        self._views.clear()
        if self._store.clear() != len(self._known):
            self.wrong.append("quiet: not as many records as there should be")
        self._known.clear()
        self._store.compact()
        self.wrong += self._store.check()
        self._store.compact()  # what the first one gave up
        left = list((self.root / "tr_store_soak" / "tensors").iterdir())
        if left:
            self.wrong.append(f"quiet: {len(left)} files of tensors are left")

    def count_files(self) -> int:
        """The number of files that the store has."""
        return sum(stat.S_ISREG(info.st_mode) for _, info in files_of(self.root))

    def nbytes(self) -> int:
        """The bytes of the store's files, as the file system counts them; of the catalogue, only the pages in use.

        The catalogue's file never shrinks: lmdb keeps the pages of deleted records for later ones, and can reuse none
        of them while a snapshot lives. So the size of that file would say nothing of a leak.
        """
        with self._store._catalogue.read() as transaction:
            trees = [transaction.raw.stat(getattr(transaction, name)) for name in DATABASES]
        kinds = ("branch_pages", "leaf_pages", "overflow_pages")
        in_use = sum(each["psize"] * sum(each[kind] for kind in kinds) for each in trees)
        return in_use + sum(info.st_blocks * 512 for path, info in files_of(self.root) if path.name != "data.mdb")

    def close(self) -> None:
        self._store.close()
        shutil.rmtree(self.root)
