"""Operations on mapped memory, arrays and semaphores that plain Python does too slowly, or cannot do.

There are two implementations, with one suite of tests. The extension (``*.c``) is built on installation where there is
a compiler. :mod:`.reference` does the same in plain Python, and says what each operation means. ``TR_MMAP_PURE=1`` in
the environment chooses the reference; ``WHY_NOT_COMPILED`` says that, or what the import of the extension raised. This
room knows bytes, arrays and semaphores; it never knows sessions.

``LeaseWords``
    the words of a segment's header that coordinate its owner and its reader, in the right memory order.
``OwnerSegment``, ``ReaderSegment``
    a segment on its owner's side and on its reader's side: loans, and views that hold the lease. ``loan_of`` finds the
    segment of a loan; ``freeze`` makes a loan read-only. ``view_of`` finds the segment of a view.
``set_member``
    says that a lease line has a reader, or none, in the right memory order.
``finished``, ``drain``
    views and loans that have ended and whose leases and holds are still to be released (plain Python only).
``FreeLists``
    a pool's free segments, and the fast paths that publish a tensor of a known layout and loan one.
``Ring``
    a mapped ring of messages: one side appends a message whole, the other takes it whole.
``Mirror``
    a file for people that shows a page's line, or a ring's latest; not mapped, so whoever writes it cannot hurt us.
``Heartbeat``
    the word of the status page that says when the worker last worked.
``Semaphore``
    an open semaphore: post, or sleep until it is posted.
``learn_torch``
    tells the fast paths how torch's tensors of a dtype cross; until then these take the slow path.
``has_as_many_colons``
    the quick check that shows for most messages that no key is there twice.
``make_twin``
    the copy-on-write mapping that comes to the place of a loan when it was published; None in plain Python.
``map_file``, ``copy``
    map part of a file, without the descriptor that Python's ``mmap`` keeps; copy bytes into mapped memory in one pass.
``quick_load``
    the fast path of ``load``: a plain file, checked and mapped.
``ControllerFastPath``, ``WorkerFastPath``
    a request and its response, on each side, in a single call. Only the extension has them; None in plain Python.

The fast paths are ``ControllerFastPath``, ``WorkerFastPath`` and all functions named ``quick_…``. Each does exactly
what the slow path in Python does, or does nothing and says so. All that is new, rare or wrong takes the slow path.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .parts import ChannelParts, TensorParts

__all__ = [
    "IS_COMPILED",
    "KEEPS_STORES_IN_ORDER",
    "WHY_NOT_COMPILED",
    "ChannelParts",
    "ControllerFastPath",
    "Counters",
    "FreeLists",
    "Heartbeat",
    "LeaseWords",
    "Mirror",
    "OwnerSegment",
    "Pending",
    "ReaderSegment",
    "Ring",
    "Semaphore",
    "SentResults",
    "TensorParts",
    "TurnWords",
    "WorkerFastPath",
    "copy",
    "drain",
    "finished",
    "freeze",
    "has_as_many_colons",
    "learn_torch",
    "loan_of",
    "make_twin",
    "map_file",
    "quick_load",
    "set_member",
    "view_of",
]

# Whether a segment may be filled again, and a mapped page may carry messages: always, through the extension.
KEEPS_STORES_IN_ORDER = True
IS_COMPILED = os.environ.get("TR_MMAP_PURE", "") in ("", "0")
WHY_NOT_COMPILED = "" if IS_COMPILED else "TR_MMAP_PURE is set"
if IS_COMPILED:
    try:
        from ._native import (
            ControllerFastPath,
            Counters,
            FreeLists,
            Heartbeat,
            LeaseWords,
            Mirror,
            OwnerSegment,
            Pending,
            ReaderSegment,
            Ring,
            Semaphore,
            SentResults,
            TurnWords,
            WorkerFastPath,
            copy,
            drain,
            finished,
            freeze,
            has_as_many_colons,
            learn_torch,
            loan_of,
            make_twin,
            map_file,
            quick_load,
            set_member,
            view_of,
        )
    except ImportError as error:
        IS_COMPILED = False
        WHY_NOT_COMPILED = f"{type(error).__name__}: {error}"
if not IS_COMPILED and not TYPE_CHECKING:
    from .reference import (
        KEEPS_STORES_IN_ORDER,
        Counters,
        FreeLists,
        Heartbeat,
        LeaseWords,
        Mirror,
        OwnerSegment,
        Pending,
        ReaderSegment,
        Ring,
        Semaphore,
        SentResults,
        TurnWords,
        copy,
        drain,
        finished,
        freeze,
        has_as_many_colons,
        learn_torch,
        loan_of,
        make_twin,
        map_file,
        quick_load,
        set_member,
        view_of,
    )

    ControllerFastPath = WorkerFastPath = None
