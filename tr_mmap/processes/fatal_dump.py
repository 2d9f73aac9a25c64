"""What Python's faulthandler has written at a fatal error, shortened to the lines that tell where the program was."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from ..wire.limits import DUMP_FRAMES, DUMP_LINE_CHARS
from ..wire.words import DUMP_OF_LIBRARY, DUMP_OF_PYTHON, DUMP_THREAD

__all__ = ["shown_dump"]

_IN_ERROR, _BUSY, _IN_ERROR_AND_IDLE, _IDLE = range(4)
_FILE: Final = re.compile(r'  File "([^"]*)"')


def shown_dump(lines: Sequence[str], most: int) -> list[str]:
    """At most so many lines of a dump: what the error was, and of the threads the innermost frames.

    A thread of the library that waits is left out, and so is one of which there are only frames of the standard
    library: a pool's thread that waits for work, say. The thread in which the error came is shown first, unless it is
    such a one: then last.

    Args:
        lines: of the dump, from "Fatal Python error" on.
        most: how many to return.
    """
    heads = [number for number, line in enumerate(lines) if line.endswith(DUMP_THREAD)]
    shown = [line for line in lines[: heads[0] if heads else most] if line]
    threads = [lines[start:end] for start, end in pairwise([*heads, len(lines)])]
    ranks = [_rank(thread) for thread in threads]
    for rank in (_IN_ERROR, _BUSY, _IN_ERROR_AND_IDLE):
        for thread in [each for each, its in zip(threads, ranks, strict=True) if its == rank]:
            frames = [line for line in thread[1:] if line.startswith("  ")]
            shown += [thread[0], *frames[:DUMP_FRAMES], *(["  ..."] if len(frames) > DUMP_FRAMES else [])]
    return [line[:DUMP_LINE_CHARS] for line in shown[:most]]


def _rank(thread: Sequence[str]) -> int:
    """How much it tells, the less the more."""
    if thread[0].startswith("Thread"):
        return _IDLE if _is_idle(thread) else _BUSY
    return _IN_ERROR_AND_IDLE if _is_idle(thread) else _IN_ERROR


def _is_idle(thread: Sequence[str]) -> bool:
    """Whether it waits in the library, or is nowhere but in the standard library."""
    for line in thread[1:]:
        found = _FILE.match(line)
        if found is not None and not any(each in found[1] for each in DUMP_OF_PYTHON.split()):
            return any(each in found[1] for each in DUMP_OF_LIBRARY.split())
    return True
