"""A power cut at any moment: with ``fsync``, all that was acknowledged is there; with ``os``, nothing that is wrong."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from children import Mother
from power import Disk, keepers, trace
from strace import strace
from writer import fields_of, is_whole

from tr_mmap.store import OptionMismatch, Store, StoreCorrupt


@pytest.fixture
def reboot(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The machine starts again."""
    boots = iter(range(100))

    def start() -> None:
        name = f"boot-{next(boots)}"
        monkeypatch.setattr("tr_mmap.processes.identity._boot_id", lambda: name)

    return start


def replay(
    mother: Mother, root: Path, durability: str, steps: int, every: int
) -> tuple[Counter[str], int, list[list[object]]]:
    """Cut the power after each call of a trace, or each nth: outcomes, moments, and what the program has said."""
    (root / "disk").mkdir()
    disk, outcomes, moments = Disk(root / "disk"), Counter[str](), 0
    for line in trace(root, durability, steps):
        if not disk.take(line):
            continue
        moments += 1
        if moments % every:
            continue
        for how, keep in keepers(moments):
            shutil.rmtree(root / "after", ignore_errors=True)
            disk.write(root / "after", keep)
            arguments = (str(root / "after"), disk.said, durability == "fsync")
            said, status = mother.run("power.look", *arguments)
            assert status == 0, f"moment {moments}, {how} of what was not synced: {line[:300]}"
            outcomes[str(said[-1][0])] += 1
    return outcomes, moments, disk.said


@strace
@pytest.mark.long
@pytest.mark.timeout(3000)
def test_with_fsync_a_power_cut_at_any_moment_takes_nothing_that_was_acknowledged(
    mother: Mother, root: Path, is_full: bool, figures: Callable[[str], None]
) -> None:
    steps, every = (60, 1) if is_full else (12, 20)
    outcomes, moments, said = replay(mother, root, "fsync", steps, every)
    figures(f"{moments} moments, {sum(outcomes.values())} power cuts, {steps} changes: {dict(outcomes)}")
    assert outcomes.keys() == {"sound"}
    assert said.count(["done"]) == steps


@strace
@pytest.mark.long
@pytest.mark.timeout(3000)
def test_without_it_a_power_cut_may_take_changes_and_never_shows_wrong_ones(
    mother: Mother, root: Path, is_full: bool, figures: Callable[[str], None]
) -> None:
    steps, every = (40, 2) if is_full else (10, 25)
    outcomes, moments, _ = replay(mother, root, "os", steps, every)
    figures(f"{moments} moments, {sum(outcomes.values())} power cuts, {steps} changes: {dict(outcomes)}")
    assert outcomes["sound"] > 0


IDS = [f"r{number}" for number in range(12)]


def make(root: Path, durability: str = "os") -> Path:
    with Store("shared", root, indexed=("version",), durability=durability) as store:
        store.add_many({"id": each, **fields_of(each, 1)} for each in IDS)
        store.update("r3", **fields_of("r3", 2))
        store.update("r3", **fields_of("r3", 3))  # with a large tensor
    return root / "tr_store_shared"


def test_after_another_boot_a_sound_store_is_as_it_was(
    root: Path, reboot: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder = make(root)
    noted = (folder / "catalogue" / "boot").read_text()
    reboot()
    with caplog.at_level(logging.WARNING), Store("shared", root) as store:
        assert {record.id for record in store.get_all() if is_whole(record)} == set(IDS)
        assert store.check() == []
    assert not caplog.records
    assert (folder / "catalogue" / "boot").read_text() == "boot-0 os\n" != noted


def lose_tensor(folder: Path) -> set[str]:
    large = max((folder / "tensors").iterdir(), key=lambda path: path.stat().st_size)
    large.unlink()
    return {"r3"}


def shorten_tensor(folder: Path) -> set[str]:
    large = max((folder / "tensors").iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(large, 5000)
    return {"r3"}


def empty_tensor(folder: Path) -> set[str]:
    """Its size was on the disk, its bytes were not."""
    large = max((folder / "tensors").iterdir(), key=lambda path: path.stat().st_size)
    large.write_bytes(large.read_bytes()[:4096] + bytes(large.stat().st_size - 4096))
    return {"r3"}


def zero_rows(folder: Path) -> set[str]:
    (vectors,) = (folder / "vec").glob("v-*")
    (norms,) = (folder / "vec").glob("n-*")
    for path, width in ((vectors, 64), (norms, 8)):
        content = bytearray(path.read_bytes())
        content[256 + 2 * width : 256 + 4 * width] = bytes(2 * width)
        path.write_bytes(content)
    return {"r2"}  # and a row of r3, that has another by now


def lose_slab(folder: Path) -> set[str]:
    for path in (folder / "vec").iterdir():
        path.unlink()
    return set(IDS)


def shorten_norms(folder: Path) -> set[str]:
    (norms,) = (folder / "vec").glob("n-*")
    os.truncate(norms, 300)
    return set(IDS)


@pytest.mark.parametrize("damage", [lose_tensor, shorten_tensor, empty_tensor, zero_rows, lose_slab, shorten_norms])
def test_after_another_boot_a_record_whose_bytes_are_not_there_is_removed_and_named(
    root: Path,
    reboot: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], set[str]],
) -> None:
    lost = damage(make(root))
    reboot()
    with caplog.at_level(logging.WARNING), Store("shared", root) as store:
        (line,) = [record.getMessage() for record in caplog.records]
        assert f"lost {len(lost)} records" in line
        assert "\n" not in line
        assert repr(min(lost)) in line
        assert {record.id for record in store.get_all() if is_whole(record)} == set(IDS) - lost
        assert store.history(min(lost))[-1].event == "lost"
        assert store.check() == []
        store.add(id="later", **fields_of("later", 1))
        assert store.search(fields_of("later", 1)["vector"], limit=1)[0].record.id == "later"
    caplog.clear()
    with Store("shared", root) as store:
        assert store.check() == []
    assert not caplog.records


def test_after_another_boot_no_page_of_the_catalogue_is_believed_that_is_older_than_the_others(
    mother: Mother, root: Path, is_full: bool
) -> None:
    """Its newest bytes did not reach the disk: what it shows was right once, or is of another tree."""
    folder = make(root)
    before = (folder / "catalogue" / "data.mdb").read_bytes()
    with Store("shared", root) as store:
        for _ in range(6):
            for each in IDS[:4]:
                store.update(each, **fields_of(each, store.get(each).version + 1))
        known = {record.id: record.version for record in store.get_all()}
    after = (folder / "catalogue" / "data.mdb").read_bytes()
    said = [["trying", known], ["done"]]
    outcomes = Counter[str]()
    shutil.copytree(folder, root / "kept" / "tr_store_shared")
    for page in range(2, min(len(before), len(after)) // 4096, 1 if is_full else 5):
        at = slice(page * 4096, (page + 1) * 4096)
        if before[at] == after[at]:
            continue
        shutil.rmtree(folder)
        shutil.copytree(root / "kept" / "tr_store_shared", folder)
        (folder / "catalogue" / "data.mdb").write_bytes(after[: at.start] + before[at] + after[at.stop :])
        result, status = mother.run("power.look", str(root), said, False)
        assert status == 0, f"page {page}"
        outcomes[str(result[-1][0])] += 1
    assert outcomes["refused"] > 0


def test_after_another_boot_a_broken_catalogue_is_refused_before_anybody_maps_it(
    root: Path, reboot: Callable[[], None]
) -> None:
    folder = make(root)
    path = folder / "catalogue" / "data.mdb"
    content = path.read_bytes()
    reboot()
    for broken in (content[: len(content) // 2], content[:8192] + bytes(len(content) - 8192), b"", content[:100]):
        path.write_bytes(broken)
        with pytest.raises(StoreCorrupt) as caught:
            Store("shared", root)
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == broken
    path.write_bytes(content)
    with Store("shared", root) as store:
        assert store.check() == []


def test_a_store_stays_as_durable_as_it_was_made(root: Path) -> None:
    folder = make(root, "fsync")
    with Store("shared", root) as store:
        assert store._options.durability == "fsync"
        with store._catalogue.read() as transaction:
            assert transaction.environment.raw.flags()["sync"]
        with store.clone() as twin, twin._catalogue.read() as transaction:
            assert transaction.environment.raw.flags()["sync"]
    with pytest.raises(OptionMismatch, match="durability"):
        Store("shared", root, durability="os")
    with Store("plain", root) as store, store._catalogue.read() as transaction:
        assert not transaction.environment.raw.flags()["sync"]
    assert (folder / "catalogue" / "boot").read_text().endswith(" fsync\n")


def test_a_lost_catalogue_is_an_error_and_no_new_store(root: Path) -> None:
    """Or all files that it named would be swept."""
    folder = make(root)
    files = sorted(os.listdir(folder / "tensors"))
    shutil.rmtree(folder / "catalogue")
    for _ in range(2):
        with pytest.raises(StoreCorrupt, match="is gone"):
            Store("shared", root)
    assert sorted(os.listdir(folder / "tensors")) == files


def test_what_is_no_store_file_stays_where_it_is(root: Path) -> None:
    folder = make(root, "memory")
    for place in (folder, folder / "vec", folder / "tensors"):
        (place / "notes.txt").write_text("mine")
    with Store("shared", root) as store:
        store.compact()
    assert len(list(folder.rglob("notes.txt"))) == 3
    assert np.ones(1).all()
