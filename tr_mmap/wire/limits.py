"""How much Python and C++ read, at most, of what another process wrote."""

from __future__ import annotations

from typing import Final

LOG_TAIL_NBYTES: Final = 16 << 10  # of a dead worker's output in an error: a traceback or two
# When a signal ends a process, Python's faulthandler writes a dump: 100 KiB with many threads. An error shows only the
# dump's first lines and the last lines before it.
DUMP_NBYTES: Final = 256 << 10  # of the log's end, in which the dump's beginning is looked for
DUMP_LINES: Final = 9  # shown in all
DUMP_LINES_BEFORE: Final = 3  # of these, how many come from before the dump
DUMP_LINE_NBYTES: Final = 400  # of a line on average: bounds the lines shown together, not each one
MAX_ENVIRON_NBYTES: Final = 8 << 20  # of a process whose mark is read: more than a process can start with
MAX_MANIFEST_NBYTES: Final = 64 << 10  # a real one is under 1 KiB; a reader must not read an endless file
