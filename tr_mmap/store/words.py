"""Search of texts by their words: BM25 over an index of words. Opens nothing.

Words are runs of letters and digits, compared without case. A run of Chinese, Japanese or Korean letters has no spaces
between its words, so each pair of adjacent letters counts as a word.
"""

from __future__ import annotations

import itertools
import re
import struct
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, TypeAlias

import numpy as np

from .catalogue import State, Transaction
from .filters import Rows

__all__ = ["Words", "add_text", "postings_of", "remove_text", "search_words", "words_in"]

Words: TypeAlias = "Counter[bytes]"  # each word, and how often it is there

_K1: Final = 1.2  # how much a repeated word counts; this and the next are the usual values of BM25
_B: Final = 0.75  # how much the length of a text counts
_MAX_WORD_NBYTES: Final = 120
_CJK: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_APOSTROPHES: Final = "'\u2019"
_find: Final = re.compile(rf"[{_CJK}]+|[^\W_{_CJK}]+|(?<=[^\W_{_CJK}])['\u2019]s(?![^\W_])").findall
_is_cjk: Final = re.compile(f"[{_CJK}]").match
_POSTING: Final = struct.Struct(">QHI")
_AS_POSTINGS: Final = np.dtype([("row", ">u8"), ("count", ">u2"), ("length", ">u4")])


def words_in(text: str) -> Words:
    """The words of a text, and how often each is there."""
    found: Counter[bytes] = Counter()
    for run in _find(unicodedata.normalize("NFKC", text).casefold()):
        if _is_cjk(run):
            pieces: Iterable[str] = [run] if len(run) == 1 else map("".join, itertools.pairwise(run))
        else:
            pieces = [] if run[0] in _APOSTROPHES else [run]  # the 's of a genitive is not a word
        for piece in pieces:
            found[piece.encode("utf-8", "ignore")[:_MAX_WORD_NBYTES]] += 1
    return found


def postings_of(words: Words, row: int) -> tuple[list[tuple[bytes, bytes]], int]:
    """The index entries of a text (its words, each with a posting), and how many words the text has."""
    length = sum(words.values())
    return [
        (word, _POSTING.pack(row, min(count, 0xFFFF), min(length, 0xFFFFFFFF))) for word, count in words.items()
    ], length


def add_text(transaction: Transaction, state: State, words: Words, row: int) -> None:
    """Put the words of a record's text into the index."""
    found, length = postings_of(words, row)
    transaction.put_all("postings", found)
    state.texts += 1
    state.words += length
    state.longest = max(state.longest, len(words))


def remove_text(transaction: Transaction, state: State, words: Words, row: int) -> None:
    """Take the words of a record's text out of the index."""
    found, length = postings_of(words, row)
    for word, posting in found:
        transaction.pop("postings", word, posting)
    state.texts -= 1
    state.words -= length


def search_words(
    transaction: Transaction, query: str, allowed: Rows | None
) -> tuple[Rows, np.ndarray[Any, np.dtype[np.float64]]]:
    """The rows that have a word of the query, best first, and their scores by BM25.

    Args:
        transaction: a snapshot.
        query: a text.
        allowed: only these rows, ascending; None for all.
    """
    state = transaction.state()
    mean = state.words / state.texts if state.texts else 1.0
    all_rows, all_scores = [], []
    for word in words_in(query):
        postings = np.frombuffer(transaction.values_of("postings", word, _POSTING.size), _AS_POSTINGS)
        if not postings.size:
            continue
        rarity = np.log1p((state.texts - postings.size + 0.5) / (postings.size + 0.5))
        counts = postings["count"].astype(np.float64)
        lengths = postings["length"].astype(np.float64)
        all_scores.append(rarity * counts * (_K1 + 1) / (counts + _K1 * (1 - _B + _B * lengths / mean)))
        all_rows.append(postings["row"].astype(np.uint64))
    if not all_rows:
        return np.zeros(0, np.uint64), np.zeros(0)
    rows, places = np.unique(np.concatenate(all_rows), return_inverse=True)
    scores = np.bincount(places, np.concatenate(all_scores)).astype(np.float64, copy=False)
    if allowed is not None:
        kept = np.isin(rows, allowed, assume_unique=True)
        rows, scores = rows[kept], scores[kept]
    order = np.lexsort((rows, -scores))
    return rows[order], scores[order]
