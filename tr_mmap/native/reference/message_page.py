"""A mapped message page: one side stores a message whole, the other takes it whole. Never knows what a message means.

``tr_mmap.channel.mapped`` describes the bytes of a page.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final

from ...wire.messages import (
    BLANK_NUMBER,
    MAX_MESSAGE_SEQ,
    MESSAGE_NUMBER_OFFSET,
    MESSAGE_REST_OFFSET,
    MIRROR_DELAY_S,
    NUMBER_DIGITS,
)
from ...wire.waits import MAX_SPIN_US
from .mirror import Mirror
from .semaphore import Semaphore, check_slice, check_time, longest_sleep_s

__all__ = ["MessagePage", "has_as_many_colons"]

_BLANK_WORD: Final = int.from_bytes(BLANK_NUMBER.encode(), "little")
_NUMBER_WORD: Final = MESSAGE_NUMBER_OFFSET // 8


class MessagePage:
    """A message file that is mapped as a writable buffer.

    Args:
        buffer: the mapping of the whole page.

    Attributes:
        waiters: how many threads are in :meth:`wait`.
        is_ordered: no number may be below that of the last store.
    """

    __slots__ = (
        "_buffer",
        "_mirrors",
        "_owner_pid",
        "_previous_nbytes",
        "_rejected",
        "_seen",
        "_should_spin",
        "_since_s",
        "_spin_s",
        "_stored_seq",
        "_stores",
        "_taken",
        "_words",
        "is_ordered",
        "waiters",
    )

    def __init__(self, buffer: Any) -> None:
        self._buffer = memoryview(buffer)
        self._words = self._buffer.cast("Q")
        self._owner_pid = os.getpid()
        self._previous_nbytes = 0
        self._stores = 0  # how many stores have begun
        self._seen = _BLANK_WORD
        self._taken = b""  # the last line that was taken
        self._rejected: bytes | None = None  # a line on the page that the peer has not signed
        self._spin_s = 0.0  # how long wait() polls for a message before it sleeps, at most
        self._since_s = 0.0  # when the wait for the next message began; 0 while there is none
        self._should_spin = False  # the last message came within that time, so wait() polls for the next one
        self._stored_seq = 0  # the number of the last store
        self.is_ordered = False
        self.waiters = 0
        self._mirrors: tuple[Mirror, ...] = ()

    def store(self, seq: int, text: bytes) -> bool:
        """Replace the message by a JSON object, whose first member is its number.

        Returns:
            False, and nothing was stored, if ``is_ordered`` and the number is below that of the last store, or if this
            is a forked child of the process that made the page.

        Raises:
            ValueError: the number has more than 8 digits, or the text is longer than the page.
        """
        comma = text.find(b",")
        text = text[comma:] + b"\n" if comma >= 0 else b"}\n"
        nbytes = len(text)
        if not 1 <= seq <= MAX_MESSAGE_SEQ or nbytes > len(self._buffer) - MESSAGE_REST_OFFSET:
            raise ValueError("the number has more than 8 digits, or the message is longer than the page")
        words = self._words
        word = int.from_bytes(b"%*d" % (NUMBER_DIGITS, seq), "little")
        while True:
            if os.getpid() != self._owner_pid:  # a signal handler may have forked while the message was prepared
                return False
            if (
                self.is_ordered
                and self._stored_seq
                and 0 < (self._stored_seq - seq) % MAX_MESSAGE_SEQ < MAX_MESSAGE_SEQ // 2
            ):
                return False
            self._stores = store = self._stores + 1
            padded = text.ljust(self._previous_nbytes) if nbytes < self._previous_nbytes else text
            self._previous_nbytes = max(nbytes, self._previous_nbytes)
            words[_NUMBER_WORD] = _BLANK_WORD
            self._buffer[MESSAGE_REST_OFFSET : MESSAGE_REST_OFFSET + len(padded)] = padded
            if self._stores == store:  # else a signal handler has stored another message meanwhile: store it again
                self._previous_nbytes, self._stored_seq = nbytes, seq
                words[_NUMBER_WORD] = word
                return True

    def has_message(self) -> bool:
        """Whether a message waits to be taken."""
        word = self._words[_NUMBER_WORD]
        return word != self._seen and word != _BLANK_WORD

    def take(self) -> bytes | None:
        """The next message's line without its newline; None if there is none, or if it is being replaced.

        Raises:
            ValueError: the message has no end; it counts as taken.
        """
        word = self._words[_NUMBER_WORD]
        if word == self._seen or word == _BLANK_WORD:
            return None
        line = self._buffer[:1024].tobytes()  # most messages; a longer one is copied again, whole
        end = line.find(b"\n")
        if end < 0:
            line = self._buffer.tobytes()
            end = line.find(b"\n")
        if self._words[_NUMBER_WORD] != word:
            return None  # being replaced; a ring follows
        if end >= 0:
            line = line[:end]
        if self._rejected is not None and line == self._rejected:
            return None
        self._seen = word
        self._taken = line
        if end < 0:
            raise ValueError("the message has no end")
        return line

    def set_spin(self, us: float) -> None:
        """Let :meth:`wait` poll for a message before it sleeps, except after a message that took longer to come.

        Args:
            us: for how many microseconds at most; values above 1000 count as 1000.

        Raises:
            ValueError: it is NaN.
        """
        self._spin_s = min(max(check_time(us), 0.0), MAX_SPIN_US) / 1e6
        self._should_spin = True

    def _spin(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while not self.has_message() and time.monotonic() < until_s:
            pass

    def _take_and_adapt(self) -> bytes | None:
        """Take the next message. If the wait for it was long, do not poll for the one after it."""
        line = self.take()
        if self._spin_s:
            self._should_spin = time.monotonic() - self._since_s <= self._spin_s
            if line is not None:
                self._since_s = 0.0
        return line

    def set_mirrors(self, mirrors: tuple[Mirror, ...]) -> None:
        """Let :meth:`wait` keep mirrors up to date while no message comes."""
        self._mirrors = mirrors

    def _sleep(self, semaphore: Semaphore, sleep_s: float) -> None:
        """Sleep until the semaphore is posted.

        A sleep that lasts shows first what the mirrors lack; a burst of messages writes none of them.
        """
        if sleep_s > MIRROR_DELAY_S and any(mirror.is_stale for mirror in self._mirrors):
            if semaphore.sleep(MIRROR_DELAY_S):
                return
            for mirror in self._mirrors:
                mirror.update()
            sleep_s -= MIRROR_DELAY_S
        semaphore.sleep(sleep_s)

    def wait(self, semaphore: Semaphore, timeout_s: float, slice_s: float, stop: Callable[[], bool]) -> bytes | None:
        """Take the next message's line. While there is none, sleep until the semaphore is posted.

        Args:
            semaphore: the peer posts it after each message.
            timeout_s: how long to wait, in seconds.
            slice_s: the longest single sleep in seconds, because a ring may be lost.
            stop: called before each sleep; True ends the wait.

        Returns:
            The line; None when the time is over, or when ``stop`` returned True.

        Raises:
            ValueError: as :meth:`take`; or a time is NaN, or ``slice_s`` is no positive number.
        """
        check_time(timeout_s)
        slice_s = check_slice(slice_s)
        self.waiters += 1
        try:
            return self._wait(semaphore, timeout_s, slice_s, stop)
        finally:
            self.waiters -= 1

    def _wait(self, semaphore: Semaphore, timeout_s: float, slice_s: float, stop: Callable[[], bool]) -> bytes | None:
        line = self.take()
        if line is not None:
            self._since_s = 0.0
            return line
        began_s, waited_s, left_s = time.monotonic(), 0.0, timeout_s
        if not self._since_s:
            self._since_s = began_s
        while left_s > 0 and not stop():
            if self._spin_s and self._should_spin:
                self._spin(min(self._spin_s, left_s))
                line = self._take_and_adapt()
                if line is not None:
                    return line
            self._sleep(semaphore, min(left_s, longest_sleep_s(slice_s, waited_s)))
            line = self._take_and_adapt()
            if line is not None:
                return line
            waited_s = time.monotonic() - began_s
            left_s = timeout_s - waited_s
        return self.take()  # it may have come just before the reason to stop

    def put_back(self) -> None:
        """Let the line just taken be taken again."""
        self._seen = _BLANK_WORD

    def reject(self) -> None:
        """Ignore the line just taken. The peer's own line can still be taken, even if it has the same number."""
        self._rejected = self._taken
        self._seen = _BLANK_WORD


def has_as_many_colons(line: bytes, values: tuple[object, ...]) -> bool:
    """Whether a message's line has as many colons as a tuple has true values; ``protocol/messages.py`` says why."""
    return line.count(b":") == sum(map(bool, values))
