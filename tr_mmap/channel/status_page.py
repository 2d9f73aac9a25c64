"""``status.page``: what the worker does, as a line; the worker's heartbeat; and the mirror for people, ``status.txt``.

It has ``STATUS_NBYTES``: one line and then spaces; the last word is the heartbeat.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Final

from ..errors import BadMessage
from ..native import Heartbeat, Mirror
from ..protocol.status import Status, StatusLine, parse_status
from ..wire.messages import HEARTBEAT_OFFSET, STATUS_EXIT, STATUS_FILE, STATUS_TERMINATED
from ..wire.waits import STATUS_RETRIES, STATUS_RETRY_S
from .interface import Role

__all__ = ["StatusPage"]

_EXIT_START: Final = int.from_bytes(STATUS_EXIT.encode(), sys.byteorder)
_FAREWELL_START: Final = int.from_bytes(STATUS_TERMINATED.encode()[:4], sys.byteorder)
_OUTCOMES: Final = (Status.OK, Status.ERROR)
_WORD_NBYTES: Final = 8
# Most statuses without a detail fit into one word. A store of one word is never torn.
_SHORT_LINES: Final[dict[Status, int]] = {
    status: int.from_bytes(f"{status.value}\n".encode().ljust(_WORD_NBYTES), sys.byteorder)
    for status in Status
    if len(status.value) < _WORD_NBYTES
}


class StatusPage:
    """One end of the page.

    Args:
        page: mapped and writable.
        directory: of the session.
        role: the side whose end this is.

    Attributes:
        page: what was given.
        mirror: the status, for people.
        heartbeat: of the worker.
        last: the last status that could be read.
        shown_with: the mirrors that are to be right where this one is.
    """

    def __init__(self, page: memoryview, directory: str, role: Role) -> None:
        self.page = page
        self._line = page[:HEARTBEAT_OFFSET]
        self._start = page.cast("I")
        self._words = page.cast("Q")
        self._role = role
        self._is_long = True  # the other side may have written a line that has more than a word
        self.last = StatusLine(Status.STARTING)
        self.heartbeat = Heartbeat(page)
        # Nobody must write over an ``exit`` by hand that the worker has not noticed yet.
        self.mirror = Mirror(self._line, os.path.join(directory, STATUS_FILE), STATUS_EXIT.encode())
        self.shown_with: tuple[Mirror, ...] = ()

    def read(self) -> StatusLine:
        """The status; the last one while no status can be read."""
        for is_last in [False] * STATUS_RETRIES + [True]:
            try:
                self.last = self._read_once()
                break
            except BadMessage:  # the read may have been torn
                if not is_last:
                    time.sleep(STATUS_RETRY_S)
        return self.last

    def _read_once(self) -> StatusLine:
        line = self._line.tobytes()
        end = line.find(b"\n")
        return parse_status(line[: end if end >= 0 else 80].decode("utf-8", "replace").strip("\0 "))

    def may_say_farewell(self) -> bool:
        """Whether it begins as the worker's last status does."""
        return self._start[0] == _FAREWELL_START

    def may_say_exit(self) -> bool:
        """Whether it begins as the request to exit does."""
        return self._start[0] == _EXIT_START

    def write(self, status: Status, detail: str = "") -> None:
        """Write a status, and show it to people where the next wait does not."""
        is_exit = self.may_say_exit()  # the controller's: an ``exit`` in the mirror is no news then
        word = None if detail or self._is_long else _SHORT_LINES.get(status)
        if word is not None:
            self._words[0] = word
        else:
            line = StatusLine(status, detail).to_text().encode("utf-8", "replace") + b"\n"
            self._line[:] = line.ljust(HEARTBEAT_OFFSET)
            # The worker writes nearly every status, so it knows what is there; the controller rarely writes one.
            self._is_long = len(line) > _WORD_NBYTES or self._role is Role.CONTROLLER
        if is_exit:
            self.mirror.restore()
        elif status is Status.BUSY and not detail:
            self._show_busy()
        elif status not in _OUTCOMES:  # the next wait shows these
            self.mirror.show()
        if status is Status.READY:
            self.mirror.forget()  # its controller may have waited for long: the worker itself shows that it is busy

    def _show_busy(self) -> None:
        """Show ``busy`` from a burst's second request on, as the fast path does. The controller shows a single one."""
        if self.mirror.is_forgotten:
            for each in self.shown_with:
                each.update()
        elif self.mirror.is_stale:
            self.mirror.forget()
