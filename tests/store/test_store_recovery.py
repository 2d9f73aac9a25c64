"""Several processes look after a store at once when the machine has started again: none takes from another."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import Mother

from tr_mmap.store import Store, recovery

IDS = ("a", "b", "k")


def recover_and_add(path: str) -> None:
    """In another process."""
    with Store("shared", path) as store:
        assert store.get("k") is None
        store.add("anew", id="k", tensors={"t": np.ones(9)})


def recover(path: str) -> None:
    Store("shared", path).close()


@pytest.fixture
def damaged(root: Path) -> Path:
    """The folder of a store that lost a file of the record ``k``, last opened under another boot."""
    with Store("shared", root, durability="os") as store:
        for each in IDS:
            store.add("old", id=each, tensors={"t": np.arange(9.0)})
        (part,) = store.get("k")._parts
        store._catalogue.write(lambda transaction: transaction.put(b"boot", b"another", db=transaction.meta))
    os.truncate(root / "tr_store_shared" / "tensors" / part.file, 10)
    return root


@pytest.mark.parametrize("other", ["recover_and_add", "recover"])
def test_what_was_added_after_another_process_had_recovered_the_store_stays(
    mother: Mother, damaged: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, other: str
) -> None:
    original, met = recovery.find_lost, []

    def find_lost(*arguments: Any) -> Any:
        judged = original(*arguments)
        if not met:
            met.append(1)
            assert mother.run(f"test_store_recovery.{other}", str(damaged)) == ([], 0)
        return judged

    monkeypatch.setattr(recovery, "find_lost", find_lost)
    with caplog.at_level(logging.WARNING), Store("shared", damaged) as store:
        assert met
        added = store.get("k")
        if other == "recover_and_add":
            assert added.tensors["t"].tolist() == [1.0] * 9
            assert [event.event for event in store.history("k")] == ["add", "lost", "add"]
        else:
            assert added is None
        assert {record.id for record in store.get_all()} >= {"a", "b"}
        assert store.check() == []
    assert not caplog.records  # the other process has said what is lost


def test_a_record_that_has_changed_since_it_was_judged_stays(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever let somebody change it before the store was looked after."""
    with monkeypatch.context() as patch:
        patch.setattr("tr_mmap.processes.identity._boot_id", lambda: "another")
        early = Store("shared", damaged)
    original = recovery.find_lost

    def find_lost(*arguments: Any) -> Any:
        judged = original(*arguments)
        early.update("k", tensors={"t": np.ones(9)})
        return judged

    monkeypatch.setattr(recovery, "find_lost", find_lost)
    with Store("shared", damaged) as store:
        assert store.get("k").tensors["t"].tolist() == [1.0] * 9
        assert store.check() == []
    early.close()
