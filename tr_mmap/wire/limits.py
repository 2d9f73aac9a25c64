"""How much is read at most of what another process wrote, where both languages do."""

from __future__ import annotations

from typing import Final

LOG_TAIL_NBYTES: Final = 16 << 10  # of a dead worker's output in an error: a traceback or two
# What Python's faulthandler writes when a signal ends a process: with many threads 100 KiB. Of its beginning, and of
# the lines before it, an error shows a few.
DUMP_NBYTES: Final = 256 << 10
DUMP_LINES: Final = 9
DUMP_LINES_BEFORE: Final = 3  # which are among those
DUMP_LINE_NBYTES: Final = 400  # as many as these lines may have together, for each
MAX_ENVIRON_NBYTES: Final = 8 << 20  # of a process whose mark is read: more than a process can start with
MAX_MANIFEST_NBYTES: Final = 64 << 10  # a real one is under 1 KiB; a reader must not read an endless file
