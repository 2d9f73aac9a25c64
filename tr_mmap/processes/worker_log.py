"""A worker's log: where it is, how it stays bounded, how its newest lines are found. Knows nothing of sessions.

The worker's stdout and stderr are the file itself, opened for appending; there is no pipe that could fill up. When the
file has grown beyond :func:`most_log_nbytes`, the worker cuts it to its newest part, and its first line then says how
much was dropped in all. Readers count the dropped bytes as read. ``worker/log.py`` says when the worker looks.

A session's directory is usually on tmpfs. Then the log is in the directory for temporary files instead, so that it
takes no shared memory.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Final, NamedTuple

from ..base import system
from ..base.fork_safety import this_process
from ..wire.limits import DUMP_LEAST_LINES, DUMP_LINE_CHARS, DUMP_LINES_BEFORE, DUMP_NBYTES, LOG_TAIL_NBYTES
from ..wire.words import ANSWERED_LINE
from .fatal_dump import shown_dump

__all__ = [
    "MAX_LOG_NBYTES",
    "LogHead",
    "LogSize",
    "create_log",
    "cut_log",
    "log_head",
    "log_size",
    "log_tail",
    "most_log_nbytes",
    "new_log_path",
    "remove_log",
]

MAX_LOG_NBYTES: Final = 8 << 20
KEPT_NBYTES: Final = MAX_LOG_NBYTES // 2  # after a cut; so the next one comes only after as much again

_HEAD: Final = "[tr_mmap: {} bytes of older output were dropped{}]"
_HEAD_PATTERN: Final = re.compile(rb"\[tr_mmap: ([0-9]{1,19}) bytes of older output were dropped( now)?\] *\n")
_DROPPED_LINE_NBYTES: Final = 80  # padded with spaces, so that it can be overwritten in place
_MOST_ROUNDS: Final = 8  # in which a cut takes along what comes meanwhile
_FATAL: Final = b"Fatal Python error"  # with which faulthandler begins
_LEFT_OUT: Final = "[...]"
_NAME_PATTERN: Final = re.compile(r"tr_mmap-log-[0-9a-f]{32}")


class LogHead(NamedTuple):
    """What a log's first line says.

    Attributes:
        dropped_nbytes: how many bytes the log had before, and has no longer.
        nbytes: how many bytes the line takes; 0 if there is none.
        is_in_cut: the log is being cut, so what follows may be from any place.
    """

    dropped_nbytes: int
    nbytes: int
    is_in_cut: bool


class LogSize(NamedTuple):
    """How large a log is.

    Attributes:
        nbytes: of the file.
        dropped_nbytes: how many bytes it had before, and has no longer.
    """

    nbytes: int
    dropped_nbytes: int


def new_log_path(directory: str) -> str:
    """Where a worker's log should be so that it takes no shared memory; "" if the session's directory is right.

    Args:
        directory: of the session.
    """
    import tempfile  # here, because workers need no place

    try:
        if not system.is_dir_on_tmpfs(directory):
            return ""
        place = system.absolute(tempfile.gettempdir())
        if place == os.getcwd() or not system.is_usable_dir(place) or _are_on_one_file_system(place, directory):
            return ""  # gettempdir() falls back to the current directory: there is no place for temporary files
    except OSError:
        return ""
    return os.path.join(place, f"tr_mmap-log-{os.urandom(16).hex()}")


def _are_on_one_file_system(first: str, second: str) -> bool:
    return system.status(os.path.realpath(first)).st_dev == system.status(second).st_dev


def create_log(path: str, link: str = "") -> tuple[str, int]:
    """Create a log, 0600, in place of an older one.

    Args:
        path: of the file.
        link: a symlink to the file is made here. If the file cannot be made at ``path``, it is made here instead.

    Returns:
        The file's path, and its descriptor.

    Raises:
        OSError: it cannot be made.
    """
    owner = this_process.mark
    if not link:
        system.unlink(path)
        return path, system.create_file(path)
    system.unlink(link)
    try:
        fd = system.create_file(path)
    except OSError:
        return link, system.create_file(link)
    try:
        system.symlink(path, link)
    except BaseException:
        system.close(fd)
        system.unlink(path, owner=owner)
        raise
    return path, fd


def remove_log(path: str) -> None:
    """Remove the log that a manifest names, but nothing that is not certainly a log of this user's.

    A process that may write a manifest must not make us remove other files.
    """
    if not os.path.isabs(path) or "\0" in path or not _NAME_PATTERN.fullmatch(os.path.basename(path)):
        return
    try:
        info = system.status(path)
        if stat.S_ISREG(info.st_mode) and (os.name != "posix" or info.st_uid == os.geteuid()):
            system.unlink(path)
    except OSError:
        pass  # it is gone, or we may not remove it: it is small, and in a directory that the system cleans


def log_head(fd: int) -> LogHead:
    """What the first line of a log says; zeros if the log was never cut."""
    found = _HEAD_PATTERN.match(system.read_all(fd, _DROPPED_LINE_NBYTES))
    return LogHead(int(found[1]), found.end(), found[2] is not None) if found else LogHead(0, 0, False)


def _write_head(fd: int, dropped: int, *, is_in_cut: bool) -> None:
    line = _HEAD.format(dropped, " now" if is_in_cut else "").ljust(_DROPPED_LINE_NBYTES - 1) + "\n"
    system.write_all(fd, line.encode())


def most_log_nbytes() -> int:
    """How large a log may be in this process: far less than what it may write to a file, if that is limited."""
    allowed = system.file_size_limit()
    return MAX_LOG_NBYTES if allowed is None else min(MAX_LOG_NBYTES, allowed // 2)


def cut_log(fd: int, most_nbytes: int = MAX_LOG_NBYTES) -> bool:
    """Keep only the newest part of a log, if it is too large. Returns whether it was.

    The log always has its newest part, so a kill at any moment loses nothing of it. What others append meanwhile stays
    in order; only what comes between our last look and the cut itself is lost, and not counted.

    Args:
        fd: of the file, for reading and writing, and not for appending: each part has its place. Whoever else writes to
            the file must append. Only one cut at a time.
        most_nbytes: what is too large; half of it is kept, so that the next cut comes only after as much again.

    Raises:
        OSError: a system call failed; the next call begins anew.
    """
    nbytes = system.file_nbytes(fd)
    if nbytes <= most_nbytes:
        return False
    head = log_head(fd)
    taken = nbytes - most_nbytes // 2
    kept = system.read_all(fd, MAX_LOG_NBYTES, taken)  # and what came since
    line_start = kept.find(b"\n", 0, LOG_TAIL_NBYTES) + 1  # 0 if no line begins near
    dropped = head.dropped_nbytes + taken - head.nbytes + line_start
    taken += len(kept)
    kept = kept[line_start:]
    _write_head(fd, dropped, is_in_cut=True)
    end = _DROPPED_LINE_NBYTES
    for _ in range(_MOST_ROUNDS):
        system.write_all(fd, kept, end)
        end += len(kept)
        kept = system.read_all(fd, MAX_LOG_NBYTES, taken)  # what was appended meanwhile
        taken += len(kept)
        if not kept:
            break
    dropped += len(kept)
    system.truncate(fd, end)
    _write_head(fd, dropped, is_in_cut=False)
    return True


def log_size(path: str) -> LogSize:
    """How large a log is; zeros if it is gone."""
    try:
        fd = system.open_private_file(path)
    except OSError:
        return LogSize(0, 0)
    try:
        return LogSize(system.file_nbytes(fd), log_head(fd).dropped_nbytes)
    finally:
        system.close(fd)


def _after_last_answer(data: bytes) -> bytes:
    """The output of a worker since the last error that it has answered; all of it, if there is none."""
    line = ANSWERED_LINE.encode()
    at = (b"\n" + data).rfind(b"\n" + line + b"\n")
    return data if at < 0 else data[at + len(line) + 1 :]


def log_tail(path: str, lines: int) -> str:
    """The last ``lines`` lines of a log, from its last 16 KiB; "" if the log is gone.

    What is before an error that a request has got as its answer is left out, and so is that error's traceback: the
    request's caller has it, and in the error of a worker that dies later it would be taken for the cause.

    If there is a longer dump of Python's at a fatal error, these are the last lines before it and what
    :func:`~.fatal_dump.shown_dump` shows of it.
    """
    try:
        fd = system.open_private_file(path)
    except OSError:
        return ""
    try:
        nbytes = system.file_nbytes(fd)
        dump = _after_last_answer(system.read_all(fd, DUMP_NBYTES, max(0, nbytes - DUMP_NBYTES)))
    finally:
        system.close(fd)
    found = dump[-LOG_TAIL_NBYTES:].decode("utf-8", errors="replace").splitlines()
    fatal = dump.rfind(b"\n" + _FATAL) + 1 or (0 if dump.startswith(_FATAL) else -1)
    if lines < DUMP_LEAST_LINES or fatal < 0 or dump.count(b"\n", fatal) <= lines - DUMP_LINES_BEFORE:
        return "\n".join(found[-lines:]) if lines > 0 else ""
    before = dump[:fatal].decode("utf-8", errors="replace").splitlines()[-DUMP_LINES_BEFORE:]
    first = [line[-DUMP_LINE_CHARS:] for line in before]
    shown = shown_dump(dump[fatal:].decode("utf-8", errors="replace").splitlines(), lines - len(first) - 1)
    return "\n".join([*first, *shown, _LEFT_OUT])
