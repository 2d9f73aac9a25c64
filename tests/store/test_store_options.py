"""What a store is, its first opening and its first vectors say: in one commit with these, and to all that open it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_support import embed

from tr_mmap import OutOfSpace
from tr_mmap.store import (
    EmbedderMismatch,
    NoSuchRecord,
    OptionMismatch,
    RecordExists,
    Store,
    VersionConflict,
    WrongShape,
)
from tr_mmap.store.embedders import Named

UNUSUAL: dict[str, Any] = {
    "metric": "l2",
    "dtype": "float16",
    "at_budget": "evict",
    "indexed": ("kind", "size"),
    "durability": "os",
}
USUAL: dict[str, Any] = {
    "metric": "cosine",
    "dtype": "float32",
    "at_budget": "fail",
    "indexed": (),
    "durability": "memory",
}


def note_of(root: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / f"tr_store_{name}" / "store.json").read_text())
    return found


@pytest.mark.parametrize("option", UNUSUAL)
def test_an_option_that_is_said_is_compared_also_if_it_is_what_a_new_store_would_have(root: Path, option: str) -> None:
    Store("options", root, dim=3, **UNUSUAL).close()
    with pytest.raises(OptionMismatch, match=f"open it without {option}") as caught:
        Store("options", root, **{option: USUAL[option]})
    assert caught.value.option == option
    assert isinstance(caught.value, EmbedderMismatch)  # which programs caught before there was a name for it
    Store("options", root, **{option: UNUSUAL[option]}).close()


def test_what_is_not_said_is_as_the_store_has_it(root: Path) -> None:
    Store("options", root, dim=3, **UNUSUAL).close()
    with Store("options", root) as store:
        store.add(vector=[3, 4, 0])
        assert store.search([0, 0, 0])[0].distance == 5
        assert store.get_all()[0].vector.dtype == np.float16
    assert note_of(root, "options") == {
        "name": "options",
        "dim": 3,
        "embedder": None,
        "budget_nbytes": None,
        **UNUSUAL,
        "indexed": ["kind", "size"],
    }
    Store("options", root, indexed=("size", "kind")).close()  # in whatever order


def test_a_new_store_that_is_told_nothing_has_the_usual_options(root: Path) -> None:
    Store("plain", root).close()
    Store("plain", root, **USUAL).close()


def add_taken(store: Store) -> None:
    store.add(id="it", vector=[1, 2, 3])


def add_some_taken(store: Store) -> None:
    store.add_many([{"vector": [1, 2, 3]}, {"id": "it"}])


def update_missing(store: Store) -> None:
    store.update("nobody", vector=[1, 2, 3])


def update_other_version(store: Store) -> None:
    store.update("it", vector=[1, 2, 3], if_version=7)


def add_too_much(store: Store) -> None:
    store.add(vector=[1, 2, 3], tensors={"t": np.zeros(10_000)})


REFUSED: list[tuple[Callable[[Store], None], type[Exception]]] = [
    (add_taken, RecordExists),
    (add_some_taken, RecordExists),
    (update_missing, NoSuchRecord),
    (update_other_version, VersionConflict),
    (add_too_much, OutOfSpace),
]


@pytest.mark.parametrize(("action", "error"), REFUSED)
def test_a_vector_that_was_refused_says_nothing_of_the_store(
    root: Path, action: Callable[[Store], None], error: type[Exception]
) -> None:
    with Store("learns", root, budget_nbytes=20_000) as store:
        store.add("x", id="it")
        epoch = store.stats().epoch
        with pytest.raises(error):
            action(store)
        assert store.stats().epoch == epoch
        assert note_of(root, "learns")["dim"] is None
        assert not list((root / "tr_store_learns" / "vec").iterdir())
        record_id = store.add(vector=np.ones(8))
        assert store.search(np.ones(8))[0].record.id == record_id
        assert note_of(root, "learns")["dim"] == 8
        assert store.check() == []


def test_an_embedder_whose_vector_was_refused_is_not_the_store_s(root: Path) -> None:
    with Store("learns", root) as store:
        store.add("x", id="it")
    with Store("learns", root, embedder=Named("a", embed)) as store, pytest.raises(RecordExists):
        store.add("y", id="it")
    with Store("learns", root, embedder=Named("b", embed)) as store:
        store.add("y")
    assert note_of(root, "learns")["embedder"] == "b"


@pytest.mark.parametrize(("other", "error"), [(8, WrongShape), (3, None)])
def test_first_vectors_of_two_handles_at_once_are_of_one_kind(root: Path, other: int, error: Any) -> None:
    """One of them has made its rows, and its slab, when the other one commits."""
    with Store("learns", root) as one, Store("learns", root) as two:
        original, met = one._catalogue.write, []

        def write(action: Any) -> Any:
            if not met:
                met.append(two.add(vector=np.ones(other)))
            return original(action)

        one._catalogue.write = write  # type: ignore[method-assign]
        if error is None:
            added = one.add(vector=[1, 2, 3])
            assert one.get(added).vector.tolist() == [1, 2, 3]
        else:
            with pytest.raises(error) as caught:
                one.add(vector=[1, 2, 3])
            assert (caught.value.expected, caught.value.found) == (8, (3,))
        assert one.get(met[0]).vector.tolist() == [1] * other
        assert one.search(np.ones(other), limit=1)[0].record.id == met[0]
        assert len(list((root / "tr_store_learns" / "vec").iterdir())) == 2  # a slab, and its lengths
        assert one.check() == two.check() == []


def test_first_texts_of_two_embedders_at_once_are_not_mixed(root: Path) -> None:
    with Store("learns", root, dim=26) as plain:
        plain.add("no vector")
    with (
        Store("learns", root, embedder=Named("a", embed)) as a,
        Store("learns", root, embedder=Named("b", embed)) as b,
    ):
        a._options.embedder = b._options.embedder = None
        original, met = a._catalogue.write, []

        def write(action: Any) -> Any:
            if not met:
                met.append(b.add("from b"))
            return original(action)

        a._catalogue.write = write  # type: ignore[method-assign]
        with pytest.raises(EmbedderMismatch):
            a.add("from a")
        assert a.stats().records == 2


def test_a_dim_that_a_later_opening_says_first_holds_for_all(root: Path) -> None:
    Store("learns", root).close()
    with Store("learns", root) as early, Store("learns", root, dim=3) as store:
        for each in (early, store):
            with pytest.raises(WrongShape):
                each.add(vector=np.ones(4))
        early.add(vector=np.ones(3))
    with pytest.raises(OptionMismatch, match="dim"):
        Store("learns", root, dim=4)


def test_the_note_of_a_store_is_put_right_when_it_is_opened(root: Path) -> None:
    """A process may be killed between the commit and the note."""
    with Store("noted", root) as store:
        before = (root / "tr_store_noted" / "store.json").read_bytes()
        store.add(vector=[1, 2, 3])
    for stale in (before, b"", b"{", None):
        path = root / "tr_store_noted" / "store.json"
        path.unlink()
        if stale is not None:
            path.write_bytes(stale)
        Store("noted", root).close()
        assert note_of(root, "noted")["dim"] == 3
