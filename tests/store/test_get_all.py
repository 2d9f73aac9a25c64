"""Pages of records: complete, in order, and found without looking at what came on earlier pages."""

from __future__ import annotations

from typing import Any

import pytest

from tr_mmap.store import Record, Store, views


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the records that a view has looked at, in their order."""
    found: list[str] = []
    original = views.decode_record

    def noting(raw: bytes) -> Record:
        record = original(raw)
        found.append(record.id)
        return record

    monkeypatch.setattr(views, "decode_record", noting)
    return found


def test_pages_lead_to_each_other_and_never_leave_out_a_record(store: Store) -> None:
    ids = store.add_many({"content": str(number), "metadata": {"size": number % 3}} for number in range(25))
    for filters in (None, {"size": 1}, {"content": {"contains": "1"}}):
        whole = [record.id for record in store.get_all(filters=filters)]
        paged, cursor = [], None
        while True:
            page = store.get_all(filters=filters, limit=4, cursor=cursor)
            assert len(page) <= 4
            paged += [record.id for record in page]
            cursor = page.cursor
            if cursor is None:
                break
            store.add("newer than the pages", metadata={"size": 1})
        assert paged == whole
    assert [record.id for record in store.get_all()][-25:] == ids[::-1]


@pytest.mark.parametrize(
    ("filters", "most"),
    [
        (None, 11),
        ({"colour": "red"}, 12),  # half of all, by reading all from where the last page has ended
        ({"size": {"lt": 50}}, 22),  # half of all, by an index that finds them in no order
        ({"size": 7}, 22),  # few, by that index
    ],
)
def test_a_page_costs_no_more_the_later_it_comes(
    store: Store, looked_at: list[str], filters: dict[str, Any] | None, most: int
) -> None:
    store.add_many({"metadata": {"colour": "red" if n % 2 else "blue", "size": n * 7 % 100}} for n in range(1000))
    found = [record.id for record in store.get_all(filters=filters)]
    paged: list[str] = []
    cursor = None
    while True:
        looked_at.clear()
        page = store.get_all(filters=filters, limit=10, cursor=cursor)
        assert len(looked_at) <= 2 * most
        paged += [record.id for record in page]
        if (cursor := page.cursor) is None:
            break
    assert paged == found


def test_a_page_of_few_among_many_does_not_look_at_the_many(store: Store, looked_at: list[str]) -> None:
    store.add_many({"metadata": {"size": n % 500}} for n in range(1000))
    assert len(store.get_all(filters={"size": 3}, limit=10)) == 2
    assert len(looked_at) <= 4


@pytest.mark.parametrize("filters", [None, {"colour": "red"}, {"size": {"gte": 0}}])
def test_a_cursor_leads_on_although_its_record_is_changed_or_gone(store: Store, filters: dict[str, Any] | None) -> None:
    ids = store.add_many({"metadata": {"size": n, "colour": "red"}} for n in range(9))[::-1]
    cursor = store.get_all(filters=filters, limit=3).cursor
    for change in (lambda: store.update(ids[2], content="changed"), lambda: store.delete(ids[2])):
        change()
        assert [each.id for each in store.get_all(filters=filters, limit=3, cursor=cursor)] == ids[3:6]
