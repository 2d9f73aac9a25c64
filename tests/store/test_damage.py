"""Files of a store that somebody has changed: an error that names the file, or the right answer; what is known to be
wrong is said, and no process dies of it.

What is not known: LMDB has no checksums, so a bit that flips in the catalogue while the machine runs is found by
``check()``, and by the first to open the store after another boot, but not by every read.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import damage
import pytest
from children import Mother
from moments import copy_of
from writer import fields_of

from tr_mmap.store import Store, StoreCorrupt

READS = ("get", "list", "filter", "near", "words", "history", "snapshot")


@pytest.fixture
def prepared(prepared: Path) -> Path:
    damage.prepare(prepared, "os")
    return prepared


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 4))):
        at = chance.randrange(len(content))
        if chance.random() < 0.6 and path.name == "data.mdb":
            at = at // 4096 * 4096 + chance.randrange(80)  # of the head of a page
        content[at] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def cut(path: Path, chance: random.Random) -> None:
    nbytes = path.stat().st_size
    os.truncate(path, chance.choice((0, nbytes // 2, nbytes // 2, nbytes - 1, chance.randrange(nbytes))))


def attempts(
    mother: Mother, root: Path, prepared: Path, pattern: str, hurt: Callable[[Path, random.Random], None], count: int
) -> Iterator[tuple[Path, dict[str, str]]]:
    """Hurt a file; what a process meets then, method by method. No process dies, and all errors are ours."""
    for number in range(count):
        copy_of(prepared, root)
        chance = random.Random(number)
        path = chance.choice(sorted((root / "tr_store_shared").glob(pattern)))
        hurt(path, chance)
        said, status = mother.run("damage.look", str(root), True)
        outcomes = {str(name): str(outcome) for name, outcome in said}
        assert status == 0, f"{number}: {path.name}: signal {-status} after {outcomes}"
        assert not [each for each in outcomes.values() if each.startswith("stray")], f"{number}: {outcomes}"
        yield path, outcomes


def test_a_catalogue_that_was_cut_is_refused(mother: Mother, root: Path, prepared: Path, is_full: bool) -> None:
    for _, outcomes in attempts(mother, root, prepared, "catalogue/data.mdb", cut, 200 if is_full else 4):
        assert set(outcomes.values()) <= {"StoreCorrupt"} or outcomes["check"] == "right"


@pytest.mark.parametrize("raw", [b"", b"\x93", b"\xff" * 10, "cut"], ids=["nothing", "begun", "no entry", "cut"])
def test_a_record_that_cannot_be_read_is_one_of_our_errors_by_every_method(
    mother: Mother, root: Path, prepared: Path, raw: bytes | str
) -> None:
    copy_of(prepared, root)

    def spoil(transaction: Any) -> None:
        found = transaction.get(b"r1", db=transaction.records)
        transaction.put(b"r1", found[:-3] if raw == "cut" else raw, db=transaction.records)

    with Store("shared", root) as store:
        store._catalogue.write(spoil)
    said, status = mother.run("damage.look", str(root), True)
    assert status == 0
    outcomes = {str(name): str(outcome) for name, outcome in said}
    assert not [each for each in outcomes.values() if each.startswith("stray")], outcomes
    assert {outcomes[each] for each in ("get", "list", "clear")} == {"StoreCorrupt"}, outcomes


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_after_another_boot_a_flipped_bit_of_the_catalogue_is_refused_or_harms_nothing(
    mother: Mother, root: Path, prepared: Path, is_full: bool, figures: Callable[[str], None]
) -> None:
    found = Counter[str]()

    def hurt(path: Path, chance: random.Random) -> None:
        flip(path, chance)
        (path.parent / "boot").write_text("another-boot os\n")

    for _, outcomes in attempts(mother, root, prepared, "catalogue/data.mdb", hurt, 1500 if is_full else 16):
        answers = set(outcomes.values())
        found["refused" if answers == {"StoreCorrupt"} else "harmless" if answers == {"right"} else "repaired"] += 1
        if outcomes["check"] == "right" and "wrong" in answers:  # a record that was wrong is gone, and was named
            assert outcomes["get"] == "wrong"
    figures(str(dict(found)))
    assert found["refused"]


@pytest.mark.parametrize("pattern", ["vec/v-*", "vec/n-*", "tensors/*"])
@pytest.mark.parametrize("hurt", [flip, cut])
def test_a_hurt_file_of_vectors_or_tensors_is_found(
    mother: Mother,
    root: Path,
    prepared: Path,
    pattern: str,
    hurt: Callable[[Path, random.Random], None],
    is_full: bool,
) -> None:
    for path, outcomes in attempts(mother, root, prepared, pattern, hurt, 150 if is_full else 2):
        if any(outcome == "wrong" for name, outcome in outcomes.items() if name in READS):
            assert outcomes["check"] in ("wrong", "StoreCorrupt"), path
        if hurt is cut:
            assert "StoreCorrupt" in outcomes.values()


def test_a_flipped_bit_of_a_record_is_found_by_a_check(root: Path, prepared: Path) -> None:
    path = prepared / "tr_store_shared" / "catalogue" / "data.mdb"
    content = path.read_bytes()
    with Store("shared", prepared) as store:
        assert store.check() == []
    found = content.replace(b"r7 in version 1", b"r7 in versiom 1")
    assert found != content
    path.write_bytes(found)
    with Store("shared", prepared) as store:
        assert any("r7" in line and "not what was written" in line for line in store.check())


def test_a_check_reads_tensors_and_vectors_bit_for_bit(root: Path) -> None:
    with Store("shared", root, durability="os") as store:
        store.add(id="it", **fields_of("it", 3))
    folder = root / "tr_store_shared"
    for pattern, width in (("tensors/*", 100), ("vec/v-*", 300), ("vec/n-*", 257)):
        for path in folder.glob(pattern):
            content = path.read_bytes()
            at = -width if pattern == "tensors/*" else width
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + (content[at:][1:]))
            with Store("shared", root) as store:
                assert [line for line in store.check() if "'it'" in line], path
            path.write_bytes(content)
    with Store("shared", root) as store:
        assert store.check() == []


def test_a_file_that_is_gone_is_an_error_that_says_what_to_do(root: Path) -> None:
    with Store("shared", root) as store:
        for each in ("a", "b"):
            store.add(id=each, **fields_of(each, 3))
        for path in (root / "tr_store_shared" / "tensors").iterdir():
            path.unlink()
        for action in (lambda: store.get("a"), store.get_all, lambda: store.search("version")):
            with pytest.raises(StoreCorrupt, match=r"is gone; restore the file .* or delete it") as caught:
                action()
            assert caught.value.path.startswith(str(root))
        assert len(store.check()) == 2
        assert store.delete("a")
        assert store.clear() == 1
        assert store.check() == []


def test_a_note_that_is_gone_is_written_again(root: Path) -> None:
    Store("shared", root).close()
    note = root / "tr_store_shared" / "store.json"
    text = note.read_text()
    note.unlink()
    Store("shared", root).close()
    assert note.read_text() == text


def test_a_lock_file_that_is_gone_is_made_again(root: Path) -> None:
    with Store("shared", root) as store:
        store.add(id="it", content="x")
    shutil.copytree(root / "tr_store_shared", root / "copy" / "tr_store_shared")
    (root / "copy" / "tr_store_shared" / "catalogue" / "lock.mdb").unlink()
    with Store("shared", root / "copy") as store:
        assert store.get("it") is not None
        assert store.check() == []
