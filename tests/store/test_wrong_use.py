"""What is asked wrongly is refused by name, says what is wrong and what to do, and changes nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import Mother

from tr_mmap import BadMessage, HostilePath, OutOfSpace, TRException
from tr_mmap.store import RecordExists, Store, StoreCorrupt, WrongShape
from tr_mmap.store.compat import Memory
from tr_mmap.store.embedders import Named

WRONG_OPTIONS: dict[str, dict[str, Any]] = {
    "a budget of True": {"budget_nbytes": True},
    "a budget of no 64 bits": {"budget_nbytes": 2**63},
    "an embedder that cannot be called": {"embedder": 5},
    "half a character": {"indexed": ("\ud800",)},
}


@pytest.mark.parametrize("options", WRONG_OPTIONS.values(), ids=list(WRONG_OPTIONS))
def test_a_wrong_option_makes_no_store(root: Path, options: dict[str, Any]) -> None:
    with pytest.raises(BadMessage):
        Store("new", root, **options)
    assert list(root.iterdir()) == []


def test_a_named_embedder_can_be_called() -> None:
    for functions in ((5,), (len, 5)):
        with pytest.raises(BadMessage, match="no callable"):
            Named("x", *functions)  # type: ignore[arg-type]


WRONG_CALLS: dict[str, tuple[Callable[[Any], Any], type[TRException], str]] = {
    "a text as records": (lambda store: store.add_many("abc"), BadMessage, "lists mappings"),
    "a record as records": (lambda store: store.add_many({"content": "x"}), BadMessage, "lists mappings"),
    "a number as records": (lambda store: store.add_many(5), BadMessage, "lists mappings"),
    "a number as a record": (lambda store: store.add_many([{}, 5]), BadMessage, "record 1 is 5"),
    "a wrong record": (lambda store: store.add_many([{}, {}, {"content": 5}]), BadMessage, "^record 2: content is 5"),
    "no id": (lambda store: store.update(None), BadMessage, "an id is a text"),
    "no query": (lambda store: store.search(None), BadMessage, "query is None"),
    "no numbers": (lambda store: store.add(vector=[]), WrongShape, "a number at least"),
    "a zero in an id": (lambda store: store.add(id="a\0"), BadMessage, "none of them zero"),
    "a threshold that is no number": (
        lambda store: store.search("x", threshold=np.nan),
        BadMessage,
        "threshold is nan",
    ),
}


@pytest.mark.parametrize("what", WRONG_CALLS)
def test_a_wrong_argument_is_named(root: Path, what: str) -> None:
    action, error, text = WRONG_CALLS[what]
    with Store("it", root) as store:
        epoch = store.stats().epoch
        with pytest.raises(error, match=text):
            action(store)
        assert store.stats().epoch == epoch


@pytest.mark.parametrize("messages", [None, 5, [5], [None]])
def test_a_memory_is_made_of_messages(root: Path, messages: Any) -> None:
    memory = Memory("it", root)
    with pytest.raises(BadMessage, match="messages"):
        memory.add(messages, user_id="ada")
    memory.close()


# -- where a store is --------------------------------------------------------------------------------------------------


def test_a_store_on_a_disk_is_found_by_its_name_from_then_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(root / "home"))
    monkeypatch.setenv("TR_WORKSPACE", str(root / "workspace"))
    with Store("it", durability="os") as store:
        store.add("kept", id="kept")
    with Store("it") as store, Store("new") as new:
        assert store.get("kept") is not None
        assert str(root / "home") in repr(store)
        assert str(root / "workspace") in repr(new)
    with Store("it", durability="memory") as other:  # said, so it is another one
        assert other.get("kept") is None


def listing(path: Path) -> list[str]:
    return [str(each) for each in path.rglob("*")]


def test_a_link_in_the_place_of_a_store_is_refused_and_followed_by_nobody(root: Path) -> None:
    (root / "target").mkdir(mode=0o700)
    (root / "tr_store_it").symlink_to(root / "target")
    with pytest.raises(HostilePath, match="is a link"):
        Store("it", root)
    assert listing(root / "target") == []


def test_a_folder_that_others_may_write_is_refused_and_left_as_it_is(root: Path) -> None:
    (root / "tr_store_it").mkdir()
    (root / "tr_store_it").chmod(0o770)
    with pytest.raises(HostilePath, match="written by others"):
        Store("it", root)
    assert listing(root / "tr_store_it") == []


def open_as_another(path: str) -> None:
    """In a child: as a user who may not even look into it."""
    os.setuid(65534)
    with pytest.raises(HostilePath, match="is another user's"):
        Store("it", path)


def test_another_user_s_store_is_refused_by_name(root: Path, mother: Mother) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: another user's store (only root can be another user)")
    root.chmod(0o755)
    Store("it", root).close()
    assert mother.run("test_wrong_use.open_as_another", str(root)) == ([], 0)


# -- budgets -----------------------------------------------------------------------------------------------------------


def test_a_budget_that_was_lowered_lets_records_become_smaller(root: Path) -> None:
    with Store("it", root) as store:
        store.add("x" * 5000, id="it")
    with Store("it", root, budget_nbytes=2000) as store:
        with pytest.raises(OutOfSpace, match="raise budget_nbytes") as caught:
            store.add("y")
        assert caught.value.is_budget
        assert store.update("it", content="x" * 3000).content == "x" * 3000  # still too much, and less than before
        with pytest.raises(OutOfSpace):
            store.update("it", content="x" * 3001)


# -- a folder that is gone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_made_anew", [False, True])
def test_no_change_goes_into_a_folder_that_was_removed(root: Path, is_made_anew: bool) -> None:
    store = Store("it", root, dim=3)
    store.add("seen", id="it")
    shutil.rmtree(root / "tr_store_it")
    anew = Store("it", root) if is_made_anew else None
    for change in (
        lambda: store.add("lost"),
        lambda: store.add(tensors={"t": np.ones(9)}),
        lambda: store.add(vector=np.ones(3)),
        lambda: store.update("it", content="lost"),
        lambda: store.delete("it"),
        store.clear,
        store.compact,
    ):
        with pytest.raises(StoreCorrupt, match="was removed while"):
            change()
    store.close()
    if anew is not None:
        assert anew.get_all() == []
        assert anew.check() == []
        anew.close()
    with Store("it", root) as store:
        store.add("there again")


def test_a_handle_with_a_scope_is_not_told_to_update_what_it_does_not_see(root: Path) -> None:
    with Store("it", root) as store, store.clone(scope="ada") as ada:
        store.add("x", id="taken", user_id="ben")
        with pytest.raises(RecordExists, match="use another id"):
            ada.add("y", id="taken")
        with pytest.raises(RecordExists, match="update"):
            store.add("y", id="taken")
