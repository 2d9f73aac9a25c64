"""The words of a segment's live line, by index (byte offset / 8), and what a lease says. Imports nothing of ours.

``tr_mmap.tsr`` specifies the line; ``line.c`` has it as a struct.
"""

from __future__ import annotations

from typing import Final

SEQ: Final = 8
LAYOUT: Final = 9
LEASE: Final = 10
GUEST: Final = 11
SEQ_COPY: Final = 15

LEASE_FREE: Final = 0
LEASE_HELD: Final = 1
LEASE_PINNED: Final = 2  # the reader forked while it held a view: its child may look at it for ever
