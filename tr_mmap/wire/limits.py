"""How much Python and C++ read, at most, of what another process wrote."""

from __future__ import annotations

from typing import Final

LOG_TAIL_NBYTES: Final = 16 << 10  # of a dead worker's output in an error: a traceback or two
# When a signal ends a process, Python's faulthandler writes a dump: 100 KiB with many threads. An error shows only the
# last lines before it, and the innermost frames of threads.
DUMP_NBYTES: Final = 256 << 10  # of the log's end, in which the dump's beginning is looked for
DUMP_LEAST_LINES: Final = 12  # in fewer, a dump is not shortened
DUMP_LINES_BEFORE: Final = 3  # shown of what comes before the dump
DUMP_FRAMES: Final = 4  # of a thread
DUMP_LINE_CHARS: Final = 400  # of each of these lines
MAX_ENVIRON_NBYTES: Final = 8 << 20  # of a process whose mark is read: more than a process can start with
MAX_MANIFEST_NBYTES: Final = 64 << 10  # a real one is under 1 KiB; a reader must not read an endless file
