"""Pages of the catalogue that only a deletion may use, so that a full store can be emptied.

LMDB never writes over a page that somebody may read: to delete, too, it needs free pages. So a database of the
catalogue holds some pages of nothing. A commit that adds something fills it up, or has no room. A deletion that has no
room gives its pages back first, and then has them. Knows no records.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from .catalogue import Catalogue, State, Transaction, key_of

__all__ = ["fill", "release"]

_PAGE: Final = bytes(3500)  # as a value of LMDB: a page of its own
_LEAST: Final = 64  # pages: a deletion changes some in each database
_MOST: Final = 4096
_RECORDS_OF_PAGE: Final = 128  # for each so many there is one page more: of several records that go at once, say
_WORDS_OF_PAGE: Final = 40  # fewer than LMDB has in one; each word of a text may be in another page
_FIRST: Final = 32  # pages to give back at first: to give back many takes pages, too
_NEXT: Final = 400  # more would need free pages that lie side by side


def fill(transaction: Transaction, state: State) -> None:
    """Make the reserve as large as it has to be for what the store holds now."""
    words = min(state.longest, state.words // _WORDS_OF_PAGE)
    wanted = min(_LEAST + state.records // _RECORDS_OF_PAGE + words, _MOST)
    while state.reserve < wanted:
        transaction.put(key_of(state.reserve), _PAGE, db=transaction.reserve)
        state.reserve += 1


def release(catalogue: Catalogue) -> None:
    """Give the pages back to LMDB; what a reader of now may still read comes later.

    Raises:
        OutOfSpace: there is no room even for that.
    """
    left = catalogue.write(partial(_give_back, count=_FIRST))
    while True:
        catalogue.write(partial(_give_back, count=0))  # pages serve again in the second commit after they were freed
        if not left:
            return
        left = catalogue.write(partial(_give_back, count=_NEXT))


def _give_back(transaction: Transaction, count: int) -> int:
    """Returns how many are left."""
    state = transaction.state()
    for _ in range(min(count, state.reserve)):
        state.reserve -= 1
        transaction.pop("reserve", key_of(state.reserve))
    transaction.put_state(state)
    return state.reserve
