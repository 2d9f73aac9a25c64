"""A search of texts finds by words, the best first, in languages with and without spaces."""

from __future__ import annotations

import pytest

from tr_mmap.store import Store
from tr_mmap.store.words import words_in


def test_a_rare_word_counts_more_than_a_common_one_and_a_short_text_more_than_a_long_one(store: Store) -> None:
    store.add_many({"content": "common words " + "filler " * (n % 5)} for n in range(50))
    rare = store.add("common rare")
    hits = store.search("common rare", limit=3)
    assert hits[0].record.id == rare
    assert hits[0].score > hits[1].score
    assert all(hit.distance is None for hit in hits)


def test_a_changed_text_is_found_by_its_new_words_only(store: Store) -> None:
    record_id = store.add("old words here")
    store.update(record_id, content="something new")
    assert store.search("old") == []
    assert [hit.record.id for hit in store.search("new")] == [record_id]
    store.update(record_id, importance=0.9)
    assert [hit.record.id for hit in store.search("new")] == [record_id]
    store.delete(record_id)
    assert store.search("new") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop!", ["don", "t", "stop"]),
        (
            "l'\u00e9t\u00e9 \u00e0 l\u2019op\u00e9ra, dell'arte",
            ["l", "\u00e9t\u00e9", "\u00e0", "l", "op\u00e9ra", "dell", "arte"],
        ),
        ("O'Brien's 'quoted' sun's\u2019s", ["o", "brien", "quoted", "sun"]),
        ("it's 'so'", ["it", "so"]),
        ("the dog's bone", ["the", "dog", "bone"]),
        ("\uff21\uff22\uff23 \ufb01ne", ["abc", "fine"]),
        ("STRASSE straße", ["strasse", "strasse"]),
        ("東京都", ["東京", "京都"]),
        ("a 漢 b", ["a", "漢", "b"]),
        ("x_y-z 3.14", ["x", "y", "z", "3", "14"]),
        ("", []),
        ("!?", []),
    ],
)
def test_the_words_of_a_text(text: str, words: list[str]) -> None:
    assert sorted(word.decode() for word in words_in(text).elements()) == sorted(words)
