"""Notices what a person or another program writes by hand into ``request.json`` and ``status.txt`` of a mapped channel.

These two files only mirror the pages. A request that somebody writes there is taken all the same, and ``exit`` in the
status ends the worker. Whatever else is written there is ignored, and the mirror of the status is written again. The
mirror of the request is written again if its name leads to no file of this user's own: to a symlink, say. Never answers
a request.

A mirror of ours has a size of its own (``MIRROR_NBYTES``) and a number in a fixed place, and is written through a
descriptor that stays open, which is no event for inotify. So an event, or a file that looks different, shows that
somebody else has written. If somebody has edited the mirror itself, the page has the same number and another line. If
the mirror's number is not the page's any more, an edit cannot be recognised, and the mirror counts as ours.

A request that is whole is taken before its writer has closed the file. The same text in the same file is a request
again when a writer has closed that once more.
"""

from __future__ import annotations

import codecs
import math
import os
import stat
import time
from collections.abc import Callable
from typing import Final

from ..base import system
from ..errors import HostilePath, TRException
from ..protocol.legacy import LEGACY_FORBIDDEN_MODE, silence_of
from ..protocol.status import Status, parse_status
from ..wire.messages import (
    MAX_MESSAGE_NBYTES,
    MESSAGE_NUMBER_OFFSET,
    MESSAGE_REST_OFFSET,
    MIRROR_NBYTES,
    REQUEST_FILE,
    STATUS_FILE,
    STATUS_NBYTES,
)

__all__ = ["MOST_WAITING", "HandWatch"]

MOST_WAITING: Final = 64  # requests by hand; more of them that come faster than they are served are lost

_Signature = tuple[int, int, int, int, int, int]
_NO_FILE: Final[_Signature] = (0, 0, 0, 0, 0, 0)
_BLANK: Final = b"\0 \r\n\t"


class HandWatch:
    """Watches both files. One thread may call :meth:`look`, when ``fd`` is readable or, without one, every second;
    and at ``due_s``.

    Args:
        directory: the session directory.
        take: gets the text of each request. Of one that is longer than a message may be, it gets the beginning, which
            is too long as well.
        exit_by_hand: called when somebody has written ``exit`` into the status.
        restore_request: called when the request's mirror is no file that may be read.
        restore_status: called when somebody has written anything else than ``exit`` into the status.
        page_line: gives the line that the request's page has now.

    Attributes:
        fd: becomes readable when there is something to look at; -1 if this system has no inotify, or no more of it.
        due_s: when to look in any case, by the monotonic clock, because a request was not whole yet.
    """

    def __init__(
        self,
        directory: str,
        take: Callable[[bytes], None],
        exit_by_hand: Callable[[], None],
        restore_request: Callable[[], None],
        restore_status: Callable[[], None],
        page_line: Callable[[], bytes] = bytes,
    ) -> None:
        self._directory = directory
        self._known_dir = system.KnownDir(directory)
        self._request = os.path.join(directory, REQUEST_FILE)
        self._status = os.path.join(directory, STATUS_FILE)
        self._take = take
        self._exit_by_hand = exit_by_hand
        self._restore_request = restore_request
        self._restore_status = restore_status
        self._page_line = page_line
        self._taken = 0  # the hash of the last request's text
        self._is_early = False  # that request was taken, and its writer's close has not been seen yet
        self._is_behind_mirror = False  # a mirror was seen in that request's place
        self._is_other_due = False  # what is due is another file; if it came by rename, nobody will close it
        self._watches: dict[str, int] = {}  # by path; of the directory while one of the files is not there
        self._seen: dict[str, _Signature] = {}  # by path: the file that was looked at last
        self.due_s = math.inf
        self.fd = system.open_watches()
        self._arm()
        # What somebody wrote before we came; the status of an earlier moment is the controller's own affair.
        self._look_at_request(is_other=True)
        self._seen[self._status] = self._signature_of(self._status)

    def close(self) -> None:
        """Watch no more. Idempotent; the thread that calls :meth:`look` has ended."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            system.close(fd)

    def look(self) -> None:
        """Look at what has changed. Raises nothing, whatever it finds."""
        if not self._known_dir.is_there():  # it was removed, and another session may have one of that name
            self.due_s = math.inf
            self.close()
            return
        if self.fd < 0:
            self._look_at_request(closes=1)  # nobody tells of one; what is there counts as closed
            self._look_at_status()
            return
        events = list(system.read_watches(self.fd))
        before = dict(self._watches)
        self._arm()  # before the files are read: what is written later is an event again
        changed = {watch for watch, _ in events}
        has_new_entry = before.get(self._directory) in changed
        requests = {before.get(self._request), self._watches.get(self._request)}
        statuses = {before.get(self._status), self._watches.get(self._status)}
        is_other = len(requests) > 1  # another file has the name; its making may be no event
        closes = sum(is_closed and watch in requests for watch, is_closed in events)
        if is_other or changed & requests:
            self._look_at_request(closes, is_other=is_other)
        elif time.monotonic() >= self.due_s:
            self._look_at_request(is_complete=True)
        if has_new_entry or len(statuses) > 1 or changed & statuses:
            self._look_at_status()

    def _arm(self) -> None:
        """Watch the files that the names lead to now; the directory too while one of them is not there."""
        if self.fd < 0:
            return
        paths = self._request, self._status
        is_there = [self._watch(path) for path in paths]
        if not all(is_there):
            watch = self._watches[self._directory] = system.add_watch(self.fd, self._directory, system.ENTRIES)
            if watch < 0:  # no more watches, or no directory any more: look now and then
                self.close()
                return
            for path in paths:  # one may have been made since
                self._watch(path)
        elif (watch := self._watches.pop(self._directory, -1)) >= 0:
            system.remove_watch(self.fd, watch)

    def _watch(self, path: str) -> bool:
        """Watch the file that a name leads to now; returns whether there is one."""
        before = self._watches.pop(path, -1)
        watch = system.add_watch(self.fd, path, system.EACH_WRITE if path == self._request else system.WRITES)
        if watch >= 0:
            self._watches[path] = watch
        if before not in (watch, -1):
            system.remove_watch(self.fd, before)
        return watch >= 0

    def _signature_of(self, file: str | int) -> _Signature:
        """Of the file that a path leads to, or that a descriptor is of."""
        try:
            info = os.fstat(file) if isinstance(file, int) else os.lstat(file)
        except OSError:
            return _NO_FILE
        # The time of change too: ``cp -p`` of the same file again changes nothing else.
        return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_mode

    def _read(self, path: str, limit_nbytes: int) -> tuple[bytes, _Signature]:
        """The file's text, and what the file was before it was read: another one may have the name since a look.

        The text is empty if the file is not there, or cannot be read now.

        Raises:
            HostilePath: it is no file of ours.
        """
        try:
            fd = system.open_private_file(path, forbidden_mode=LEGACY_FORBIDDEN_MODE)
        except HostilePath:
            raise
        except (OSError, TRException):
            return b"", _NO_FILE
        try:
            signature = self._signature_of(fd)
            return system.read_all(fd, limit_nbytes).removeprefix(codecs.BOM_UTF8), signature
        except OSError:
            return b"", _NO_FILE
        finally:
            system.close(fd)

    def _look_at_request(self, closes: int = 0, *, is_complete: bool = False, is_other: bool = False) -> None:
        """Take what somebody has written.

        Args:
            closes: how often a writer has closed the file since the last look.
            is_complete: whether the text's writer has ended, whatever the closes say.
            is_other: whether another file is in its place.
        """
        self.due_s = math.inf
        closes_owed = int(self._is_early)  # the first close that comes is that of the request that was taken early
        is_complete = is_complete or closes > closes_owed
        is_other_due = is_other or (self._is_other_due and not closes)
        self._is_early = self._is_early and not closes
        signature = self._signature_of(self._request)
        seen = self._seen.get(self._request)
        if signature == seen:
            return
        try:
            text, signature = self._read(self._request, MAX_MESSAGE_NBYTES + len(codecs.BOM_UTF8) + 1)
        except HostilePath:
            self._restore_request()
            self._seen[self._request], self._taken = signature, 0  # a directory stays; a new file may get its number
            return
        if not text.strip(_BLANK):
            return
        if _is_mirror(text) and not ((closes or is_other) and self._is_edited(text)):
            self._is_behind_mirror = True
            return
        if seen is not None and signature[:2] == seen[:2] and hash(text) == self._taken:
            # The same file with the same text. (Its size is not compared: the text may be newer than ``seen``.) If it
            # is new only for the watch, or nobody tells of closes, then our mirror may have found it in its place.
            has_mode_of_mirror = seen[5] != signature[5] and stat.S_IMODE(signature[5]) == 0o600
            if has_mode_of_mirror and (self.fd < 0 or (is_other and not closes)):
                self._seen[self._request] = signature
                return
            # It is a request again if somebody has closed it again. A time or a mode alone says nothing: ``cp -p`` sets
            # them, and then closes the file. Behind a mirror any close counts: a writer of the first one who keeps it
            # open would hide the second.
            if not (is_complete or is_other or (closes and self._is_behind_mirror)):
                return  # ``seen`` stays: a close that is still to come, of a file that looks so, is a request's
        is_short = len(text) <= MAX_MESSAGE_NBYTES
        if is_short and not is_complete and (silence_s := silence_of(text)):
            # It is being written, and when its writer closes it, that is an event; or it came whole, by rename.
            self.due_s, self._is_other_due = time.monotonic() + silence_s, is_other_due
            return
        self._seen[self._request], self._taken = signature, hash(text)
        self._is_early = closes <= closes_owed and not is_other_due
        self._is_behind_mirror = self._is_other_due = False
        self._take(text)

    def _is_edited(self, mirror: bytes) -> bool:
        """Whether somebody has changed the mirror of the page's present line, or has written behind it."""
        line = self._page_line()
        if line[:MESSAGE_REST_OFFSET] != mirror[:MESSAGE_REST_OFFSET]:
            return False
        if mirror.startswith(line + b"\n") and not mirror[len(line) :].strip(_BLANK):
            return False
        # Look again: the mirror, or the page, may have been written meanwhile.
        try:
            return self._read(self._request, len(mirror) + 1)[0] == mirror and self._page_line() == line
        except HostilePath:
            return False

    def _look_at_status(self) -> None:
        signature = self._signature_of(self._status)
        if signature in (_NO_FILE, self._seen.get(self._status)):
            return  # the session's directory may be on its way out
        try:
            text = (
                self._read(self._status, STATUS_NBYTES)[0].partition(b"\n")[0].decode("utf-8", "replace").strip("\0 \r")
            )
            is_exit = parse_status(text).status is Status.EXIT
        except TRException:
            is_exit = False
        if is_exit:
            self._exit_by_hand()
        else:
            self._restore_status()
        self._seen[self._status] = self._signature_of(self._status)


def _is_mirror(text: bytes) -> bool:
    """Whether a text may be one that the controller wrote, and not a copy of it by hand."""
    number = text[MESSAGE_NUMBER_OFFSET:MESSAGE_REST_OFFSET]
    return (
        len(text) >= MIRROR_NBYTES
        and text[:MESSAGE_NUMBER_OFFSET] == b'{"seq": '
        and number.lstrip(b" ").isdigit()
        and text[MESSAGE_REST_OFFSET : MESSAGE_REST_OFFSET + 1] in (b",", b"}")
    )
