"""What the hot path does to mapped memory and semaphores: the few things that Python does slowly, or cannot do.

``Line``
    the words of a segment's header that owner and reader coordinate through, with the right memory order.
``Owned``, ``Leased``
    a segment as its owner and as its reader sees it: arrays are lent out, and looked at through views that hold the
    lease. ``loan_of`` and ``seal`` recognise an array that was lent, and make it read-only.
``dead``, ``bury``
    ends of views and loans that are still to be seen to: in plain Python that is done when a session works next.
``Shelves``
    a pool's free segments, and the short cuts for what is like the last tensor.
``Asker``, ``Answerer``
    the two sides' short cuts: a request, or an answer, that is like most in one call. The extension's alone; None in
    plain Python.
``Page``
    a mapped message file: a message is stored and taken whole.
``Bell``
    an open semaphore: ring it, or sleep until it is rung.
``has_as_many_colons``
    the quick look at a message that finds most of them in order.
``map_file``
    part of a file in memory, without the descriptor that Python's ``mmap`` keeps.
``open_usual``
    a TSR file that is as most are, checked and mapped.
``copy``
    an array's bytes into mapped memory, in one pass.

There are two implementations, with one suite of tests. The C one (``*.c``) is built on installation where there is a
compiler. ``plain`` and ``plain_arrays`` do the same in Python: small messages take five to ten times as long, and its
memory order is right on x86 only, which keeps plain stores in order by itself. ``TR_MMAP_PURE=1`` in the environment
chooses it.

What is like the last needs no thought, and most requests are like the last. So there are short cuts, which do in one
call of C what else takes many steps of Python: ``Asker``, ``Answerer``, ``publish_again``, ``lend_again``,
``fetch_again``, ``open_usual``. Each does just what the long way does, or nothing at all and says so; whatever is
unusual, wrong, or new is the long way's business. ``tests/test_short_cuts.py`` compares the two.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

__all__ = [
    "IS_COMPILED",
    "Answerer",
    "Asker",
    "Bell",
    "Leased",
    "Line",
    "Owned",
    "Page",
    "Shelves",
    "bury",
    "copy",
    "dead",
    "has_as_many_colons",
    "loan_of",
    "map_file",
    "open_usual",
    "seal",
]

IS_COMPILED = os.environ.get("TR_MMAP_PURE", "") in ("", "0")
if IS_COMPILED:
    try:
        from ._native import (
            Answerer,
            Asker,
            Bell,
            Leased,
            Line,
            Owned,
            Page,
            Shelves,
            bury,
            copy,
            dead,
            has_as_many_colons,
            loan_of,
            map_file,
            open_usual,
            seal,
        )
    except ImportError:
        IS_COMPILED = False
if not IS_COMPILED and not TYPE_CHECKING:
    from .plain import Bell, Line, Page, copy, has_as_many_colons, map_file, open_usual
    from .plain_arrays import Leased, Owned, Shelves, bury, dead, loan_of, seal

    Answerer = Asker = None
