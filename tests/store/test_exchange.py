"""Records out of a store and into one: of one moment, and a few at a time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tr_mmap import BadMessage
from tr_mmap.store import Store
from tr_mmap.store.exchange import export_to
from tr_mmap.store.incoming import import_from, read_source


def test_an_export_opens_one_record_at_a_time(root: Path) -> None:
    with Store("notes", root) as store, Store("again", root) as again:
        store.add_many({"tensors": {"t": np.full(9, n)}} for n in range(200))
        folder = str(root / "tr_store_notes" / "tensors")
        mapped: list[int] = []

        def count(several: Iterable[Any], _: int) -> Iterator[Any]:
            for each in several:
                yield each
                mapped.append(Path("/proc/self/maps").read_text().count(folder))

        assert export_to(store, root / "out", step=count) == (200, [])
        assert len(mapped) == 2 * 200  # for their lines, and for their tensors
        assert max(mapped) <= 2
        assert import_from(again, read_source(root / "out")) == (200, 0)
        assert [int(record.tensors["t"][0]) for record in again.get_all()] == list(range(200))[::-1]


def test_an_export_is_of_one_moment_whatever_changes_and_expires_meanwhile(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store("notes", root) as store:
        for n in range(6):
            store.add(f"old {n}", id=f"{n}", vector=[n, 1], tensors={"t": np.full(9, n)}, ttl_s=None if n else 1000)
        now_s = time.time()

        def change(several: Iterable[str], _: int) -> Iterator[str]:
            store.update("3", content="new", vector=[9, 9], tensors={"t": np.zeros(2)})
            store.delete("2")
            store.add("new")
            monkeypatch.setattr(time, "time", lambda: now_s + 2000)
            store.compact()
            yield from several

        assert export_to(store, root / "out", step=change) == (6, [])
        monkeypatch.undo()
    with Store("again", root) as store:
        assert import_from(store, read_source(root / "out")) == (6, 0)
        for n in range(6):
            found = store.get(f"{n}")
            assert found is not None
            assert found.content == f"old {n}"
            assert found.vector is not None
            assert found.vector.tolist() == [n, 1]
            assert found.tensors["t"].tolist() == [n] * 9


def test_an_import_names_the_line_that_is_no_record(store: Store, root: Path) -> None:
    for line in ('{"importance": 2}', '{"size": 3}', '{"expires_at": "x"}', "{", '{"content": 3}'):
        (root / "lines.jsonl").write_text('{"content": "one"}\n\n' + line)
        with pytest.raises(BadMessage, match="line 3") as caught:
            import_from(store, read_source(root / "lines.jsonl"))
        assert caught.value.detail == "3"
    assert store.get_all() == []
