"""Pages of the catalogue that only a deletion may use, so that a full store can be emptied.

LMDB never overwrites a page that a snapshot may show, so even a deletion needs free pages. The database ``reserve`` of
the catalogue holds pages of zeros for that. Each commit that adds something refills the reserve, and fails if there is
no room for it. A deletion that finds no room frees the reserve's pages, and is tried again. Knows no records.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from .catalogue import Catalogue, State, Transaction, key_of

__all__ = ["fill", "release"]

_PAGE: Final = bytes(3500)  # as a value, so large that LMDB gives it a page of its own
_LEAST: Final = 64  # pages: a deletion changes a few in each database
_MOST: Final = 4096
_RECORDS_OF_PAGE: Final = 128  # one more page for each so many records, because several may be deleted at once
_WORDS_OF_PAGE: Final = 40  # fewer than a page of LMDB has; each word of a text may be in another page
_FIRST: Final = 32  # pages to free at first: freeing many pages needs pages, too
_NEXT: Final = 400  # then: LMDB would need adjacent free pages to free more at once


def fill(transaction: Transaction, state: State) -> None:
    """Make the reserve as large as the store needs now; if there is no room, the caller's transaction fails."""
    words = min(state.longest, state.words // _WORDS_OF_PAGE)
    wanted = min(_LEAST + state.records // _RECORDS_OF_PAGE + words, _MOST)
    while state.reserve < wanted:
        transaction.put(key_of(state.reserve), _PAGE, db=transaction.reserve)
        state.reserve += 1


def release(catalogue: Catalogue) -> None:
    """Give the reserve's pages back to LMDB. Pages that a present snapshot may show become free when it has ended.

    Raises:
        OutOfSpace: there is no room even for that.
    """
    left = catalogue.write(partial(_give_back, count=_FIRST))
    while True:
        catalogue.write(partial(_give_back, count=0))  # LMDB uses pages again in the second commit after they are freed
        if not left:
            return
        left = catalogue.write(partial(_give_back, count=_NEXT))


def _give_back(transaction: Transaction, count: int) -> int:
    """Free up to ``count`` pages. Returns how many are left."""
    state = transaction.state()
    for _ in range(min(count, state.reserve)):
        state.reserve -= 1
        transaction.pop("reserve", key_of(state.reserve))
    transaction.put_state(state)
    return state.reserve
