"""The default channel: JSON in mapped files, semaphores as doorbells. Never needs a lock between the processes.

``requests.ring`` and ``responses.ring`` carry the messages. A ring is ``RING_WORDS_NBYTES`` bytes of words and then
``RING_SLOTS`` slots of ``RING_SLOT_NBYTES``. One side appends: its n-th message, counted from 0, goes into slot n
modulo ``RING_SLOTS``. The other side takes the messages in that order. A slot holds one line, which begins with the
message's number in a fixed place::

    offset 0  {"seq":␠
    offset 8  the number, 8 ASCII characters, spaces first      <- stored last, as one aligned 8-byte word
    offset 16 the other members, }, newline, and whatever was there before

A response has the number of its request. A writer stores ``BLANK_NUMBER`` (seven spaces, ``0``), then the rest, then
the number. So a reader that sees the same new number before and after it copied the line has a whole message, at
whatever moment its doorbell rang. No writer comes to a slot whose message was not taken: of at most ``RING_SLOTS``
requests the controller has not taken the response. A message that is too long for its slot is a spill: a file of its
own, which the slot names under ``"spill"``. Each start of a worker makes new rings.

A controller whose loop sleeps on descriptors is woken by ``responses.bell``, a FIFO, which it lets the worker write for
one message at a time (``RING_BELL_OFFSET``).

``status.page`` has the status and the worker's heartbeat (``status_page.py``).

``request.json``, ``response.json`` and ``status.txt`` mirror the latest messages and the status for people: one line
and then spaces, so ``cat`` and ``json.load`` work on them. A side that has waited for ``MIRROR_DELAY_S`` writes what
the mirrors lack. So a burst of requests writes none but ``status.txt``, which says ``busy`` from the second request on;
after the burst the mirrors are right. When a worker is busy with a single request, the controller writes ``busy``:
after it has waited, or at once if it does not wait. So nothing delays the handler. No process maps a mirror: to
truncate a mapped file is SIGBUS for all that map it. ``by_hand.py`` notices what somebody writes into a mirror.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import ClassVar, Final

from ..base import system
from ..base.fork_safety import this_process
from ..base.identifiers import is_doorbell_name
from ..errors import BadMessage, TRException
from ..native import IS_COMPILED, ChannelParts, Mirror, Ring
from ..protocol.legacy import encode_legacy
from ..protocol.messages import Request, Response, encode
from ..protocol.status import Status, StatusLine
from ..wire.messages import (
    BELL_FILE,
    BUSY_BY_HAND,
    EMPTY_SLOT,
    EXIT_COMMAND,
    HAND_ANSWER_S,
    MAX_MESSAGE_SEQ,
    MOST_IN_FLIGHT,
    REQUEST_FILE,
    REQUEST_RING_FILE,
    RESPONSE_FILE,
    RESPONSE_RING_FILE,
    RING_NBYTES,
    RING_SLOT_NBYTES,
    RING_SLOTS,
    RING_WORDS_NBYTES,
    STATUS_FILE,
    STATUS_NBYTES,
    STATUS_PAGE_FILE,
    STATUS_STARTING,
)
from ..wire.names import DOORBELL_PREFIX
from ..wire.waits import STATUS_SLICE_S, WAIT_SLICE_S
from .by_hand import MOST_WAITING, HandWatch
from .control_files import SPILL_KEY, Spills, close_all, create_file, open_file
from .doorbell import Doorbell
from .interface import Channel, Overtaken, Role, check_bounds, never
from .status_page import StatusPage

__all__ = ["MappedChannel"]

_EMPTY_RING: Final = bytes(RING_WORDS_NBYTES) + RING_SLOTS * EMPTY_SLOT.encode().ljust(RING_SLOT_NBYTES)


class MappedChannel(Channel):
    """See the module's docstring.

    Attributes:
        status: the status page, mapped.
    """

    has_bell: ClassVar[bool] = True
    capacity: ClassVar[int] = MOST_IN_FLIGHT

    def __init__(self, directory: str, role: Role, fds: list[int], doorbells: list[Doorbell]) -> None:
        self._directory = directory
        self._owner = this_process.mark
        self._role = role
        request_fd, response_fd, status_fd = fds
        self._request_file = system.map_write(request_fd, RING_NBYTES)
        request = Ring(self._request_file)
        response = Ring(system.map_write(response_fd, RING_NBYTES))
        self.status = system.map_write(status_fd, STATUS_NBYTES)
        self._status = StatusPage(self.status, directory, role)
        self._status_mirror = self._status.mirror
        self.touch = self._status.heartbeat.touch  # type: ignore[method-assign]  # as fast as it can be
        self._doorbells = doorbells
        request_doorbell, response_doorbell = doorbells
        if role is Role.CONTROLLER:
            self._out, self._in = request, response
            self._peer_doorbell, self._own_doorbell = request_doorbell, response_doorbell
        else:
            self._out, self._in = response, request
            self._peer_doorbell, self._own_doorbell = response_doorbell, request_doorbell
        self._request_mirror = Mirror(request, os.path.join(directory, REQUEST_FILE), b"")
        self._response_mirror = Mirror(response, os.path.join(directory, RESPONSE_FILE), b"")
        # The worker shows all that happened in a burst of requests; the controller, what a busy worker has not shown.
        self._mirrors: tuple[Mirror, ...] = (self._request_mirror, self._status_mirror)
        if role is Role.WORKER:
            self._mirrors = (self._request_mirror, self._response_mirror, self._status_mirror)
            self._request_mirror.mark_shown()  # what somebody has written there by hand must not be written over
        self._in.set_mirrors(self._mirrors)
        self._status.shown_with = self._mirrors
        self._by_hand: list[bytes] = []  # the fast path looks whether it is empty
        self._hand_watch: HandWatch | None = None
        self._is_serving_by_hand = False
        self._sending = threading.RLock()  # reentrant, because a signal handler may send too
        self._spills = Spills(directory, role)
        self._bell: system.OwnFile | None = None  # the worker's
        self._is_closed = False

    # -- the bell --------------------------------------------------------------------------------------------------

    def arm(self) -> bool:
        return self._in.arm()

    def cancel(self, order: int) -> bool:
        return self._out.cancel(order)

    def withdraw(self, order: int) -> bool:
        return self._out.withdraw(order)

    def is_cancelled(self, order: int) -> bool:
        return self._in.is_cancelled(order)

    def is_withdrawn(self, order: int) -> bool:
        return self._in.is_withdrawn(order)

    def fast_path_parts(self) -> ChannelParts | None:
        if not IS_COMPILED:
            return None
        peer, own = self._peer_doorbell.semaphore, self._own_doorbell.semaphore
        endpoint = (self._out, self._in, peer, own, WAIT_SLICE_S)
        return ChannelParts(endpoint, self.status, self._status_mirror, self._by_hand)

    @classmethod
    def new_doorbells(cls) -> list[str]:
        token = os.urandom(8).hex()
        return [f"{DOORBELL_PREFIX}{os.getpid()}_{token}_{end}" for end in "qr"]

    @classmethod
    def create(cls, directory: str, doorbells: Sequence[str] = ()) -> MappedChannel:
        opened: list[Doorbell] = []
        fds: list[int] = []
        try:
            for name in doorbells or cls.new_doorbells():
                opened.append(Doorbell.create(name))
            for name in (REQUEST_RING_FILE, RESPONSE_RING_FILE):
                fds.append(create_file(directory, name, _EMPTY_RING, RING_NBYTES))
            fds.append(create_file(directory, STATUS_PAGE_FILE, STATUS_STARTING.encode() + b"\n", STATUS_NBYTES))
            channel = cls(directory, Role.CONTROLLER, fds, opened)
            channel._create_mirrors()
            return channel
        except BaseException:
            for doorbell in opened:
                doorbell.unlink()
                doorbell.close()
            raise
        finally:
            close_all(fds)

    @classmethod
    def attach(cls, directory: str, doorbells: Sequence[str]) -> MappedChannel:
        fds: list[int] = []
        try:
            for name in (REQUEST_RING_FILE, RESPONSE_RING_FILE):
                fds.append(open_file(directory, name, RING_NBYTES))
            fds.append(open_file(directory, STATUS_PAGE_FILE, STATUS_NBYTES))
            if len(doorbells) != 2 or not all(map(is_doorbell_name, doorbells)):
                raise BadMessage("the manifest names no two doorbells", detail=repr(doorbells)[:200])
            channel = cls(directory, Role.WORKER, fds, [Doorbell.open(name) for name in doorbells])
        finally:
            close_all(fds)
        channel._bell = system.open_fifo(os.path.join(directory, BELL_FILE))
        if channel._bell is not None:
            channel._out.set_bell(channel._bell.fd)
        channel.unlink()  # both sides have the semaphores open now: from here on no death can leave them behind
        return channel

    @property
    def doorbells(self) -> list[str]:
        return [doorbell.name for doorbell in self._doorbells]

    def _create_mirrors(self) -> None:
        """Put new mirrors in place of an earlier worker's; a name that cannot be freed stays without a mirror."""
        for name in (REQUEST_FILE, RESPONSE_FILE, STATUS_FILE):
            try:
                system.unlink(os.path.join(self._directory, name))
            except (OSError, TRException):
                pass  # a directory, say
        for mirror in (self._request_mirror, self._response_mirror, self._status_mirror):
            mirror.create()
        self._response_mirror.close()  # it is the worker's from here on

    def send(
        self, message: Request | Response, deadline_s: float | None = None, stop: Callable[[], bool] = never
    ) -> None:
        del deadline_s, stop  # there is room at any time
        text = encode(message)
        with self._sending:
            try:
                # The encoder writes "seq" first; the slot has its own place for it.
                is_stored = self._out.store(message.seq, text)
            except ValueError:
                is_stored = self._send_apart(message.seq, text)
        if not is_stored:
            raise Overtaken
        self.ring()
        if self._role is Role.WORKER:
            self.touch()
        else:
            self._status_mirror.forget()  # the worker may have written it since

    def show(self) -> None:
        if self._role is Role.WORKER:
            self._show_all()
            return
        self._request_mirror.update()
        self._status_mirror.foretell_busy()
        if self._is_answered():
            # The worker may have written its mirror before ours. If it answers later, it also writes later.
            self._status_mirror.forget()
            self._status_mirror.update()

    def _send_apart(self, seq: int, text: bytes) -> bool:
        """Send a message as a spill, because no slot can hold it."""
        if not 0 < seq <= MAX_MESSAGE_SEQ:
            raise BadMessage(f"a message's number is 1 to {MAX_MESSAGE_SEQ}, not {seq}", detail=str(seq))
        return self._out.store(seq, b'{"seq":0,"spill":"%b"}' % self._spills.write(check_bounds(text)))

    def has_just_sent(self, seq: int) -> bool:
        return self._out.has_stored(seq)

    def _is_answered(self) -> bool:
        """Whether the worker has answered the last request."""
        return not self._out.stored_seq or self._in.newest_seq() == self._out.stored_seq

    def is_taken_up(self, order: int | None = None) -> bool:
        if self._out.done_by_peer <= (self._out.stored - 1 if order is None else order):
            return False
        return super().is_taken_up() and not self._status.last.detail.startswith(BUSY_BY_HAND)

    def keep_order(self) -> None:
        self._out.is_ordered = True

    def set_spin(self, us: float) -> None:
        self._in.set_spin(us)

    def has_message(self) -> bool:
        return self._in.has_message()

    def peek(self) -> bytes | None:
        position = self._in.taken
        try:
            line = self._in.peek()
        except ValueError as error:
            why = "the peer's message has no end; it does not speak this protocol"
            raise BadMessage(why, detail="newline") from error
        if line is None or line[17:25] != SPILL_KEY:
            return line
        try:
            return self._spills.read(line)
        except TRException:
            if self._in.taken != position:
                return None  # a signal handler has taken this line meanwhile, and has read the spill
            raise

    @property
    def position(self) -> int:
        return self._in.taken

    def next_seq(self) -> int | None:
        return self._in.next_seq()

    def advance(self, position: int, *, is_consumed: bool = True) -> bool:
        spill, self._spills.looked_at = self._spills.looked_at, ""
        is_taken = self._in.advance(position, is_consumed)
        if is_taken and spill:
            self._spills.remove(spill)
        return is_taken

    def all_consumed(self) -> None:
        self._in.all_done()

    def wait(self, timeout_ms: float, stop: Callable[[], bool]) -> bool:
        return self._in.sleep(self._own_doorbell.semaphore, timeout_ms / 1000, WAIT_SLICE_S, stop)

    @property
    def requests_sent(self) -> int:
        return self._out.stored

    @property
    def requests_taken(self) -> int:
        return self._in.taken

    @property
    def responses_sent(self) -> int:
        return self._out.stored

    def responses_consumed(self) -> int:
        return self._out.done_by_peer

    def reject(self) -> None:
        self._in.reject()

    def _sleep(self, deadline_s: float) -> bool:
        """Wait a little for the doorbell, or only a little if another thread waits there. False when the time is over.

        A ring wakes one of two threads. So the one that waits for a message keeps the doorbell for itself, and this one
        looks again by itself.
        """
        remaining_s = min(deadline_s - time.monotonic(), STATUS_SLICE_S)
        if remaining_s <= 0:
            return False
        if self._in.waiters:
            time.sleep(remaining_s)
        elif self._own_doorbell.wait(remaining_s) and self._in.waiters:
            self.wake()  # another thread has begun to wait meanwhile, and the ring may have been for it
        return True

    def read_status(self) -> StatusLine:
        return self._status.read()

    def says_farewell(self) -> bool:
        return self._status.may_say_farewell() and super().says_farewell()

    def is_exit_requested(self) -> bool:
        return self._status.may_say_exit() and self.read_status().status is Status.EXIT

    def write_status(self, status: Status, detail: str = "") -> None:
        if self._is_serving_by_hand and status is Status.BUSY:  # the controller's own request is not taken up
            detail = f"{BUSY_BY_HAND}: {detail}" if detail else BUSY_BY_HAND
        self._status.write(status, detail)

    def _show_all(self) -> None:
        for mirror in self._mirrors:
            mirror.update()

    def advance_status(self, status: Status, detail: str = "") -> bool:
        if self._status.may_say_exit():
            return super().advance_status(status, detail)
        self.write_status(status, detail)
        return True

    def wait_status(
        self, until: Callable[[StatusLine], bool], timeout_ms: float, stop: Callable[[], bool]
    ) -> StatusLine | None:
        deadline_s = time.monotonic() + timeout_ms / 1000
        while True:
            line = self.read_status()
            if until(line):
                return line
            if stop() or not self._sleep(deadline_s):
                return None

    def heartbeat_age_ms(self) -> float | None:
        return self._status.heartbeat.age_ms()

    # -- what somebody writes by hand ------------------------------------------------------------------------------

    def watch_by_hand(self, *, may_exit: bool = True) -> HandWatch | None:
        restore_request, restore_status = self._request_mirror.restore, self._status_mirror.restore
        exit_by_hand = self._exit_by_hand if may_exit else restore_status
        self._hand_watch = HandWatch(
            self._directory, self._hold_by_hand, exit_by_hand, restore_request, restore_status, self._in.newest
        )
        return self._hand_watch

    def _hold_by_hand(self, text: bytes) -> None:
        """Keep a request until the worker's main thread takes it. Runs in the watch's thread."""
        if len(self._by_hand) < MOST_WAITING:
            self._by_hand.append(text)
        self.wake()

    def _exit_by_hand(self) -> None:
        """Say ``exit`` on the page, and as a request too: the main thread may be about to write over the status."""
        if not self.read_status().status.is_ending:
            self.write_status(Status.EXIT)
            self._by_hand.append(b'{"command":"%b"}' % EXIT_COMMAND.encode())
        self.wake()

    def has_by_hand(self) -> bool:
        return bool(self._by_hand)

    def take_by_hand(self) -> bytes | None:
        self._is_serving_by_hand = bool(self._by_hand)
        return self._by_hand.pop(0) if self._by_hand else None

    def reply_by_hand(self, response: Response) -> None:
        self._response_mirror.write(encode_legacy(response), HAND_ANSWER_S)
        self._is_serving_by_hand = False
        self._status_mirror.forget()  # a waiting controller may have written the mirror: write the next status again

    # -- doorbells ------------------------------------------------------------------------------------------------

    def ring(self) -> None:
        try:
            self._peer_doorbell.ring()
        except OSError:
            pass  # it was rung 2**31 times since the peer last waited: the next wait returns at once
        self._out.ring_bell()

    def wake(self) -> None:
        try:
            self._own_doorbell.ring()
        except OSError:
            pass  # it is closed, so no thread waits any more; or it is full, so the next wait returns at once

    def unlink(self) -> None:
        for doorbell in self._doorbells:
            doorbell.unlink()

    def close(self) -> None:
        if not self._is_closed and this_process.mark is self._owner:  # in a forked child it is the parent's
            self._is_closed = True
            self.unlink()
            for doorbell in self._doorbells:
                doorbell.close()
            self._status_mirror.forget()
            self._show_all()
            for mirror in self._mirrors:
                mirror.close()
            if self._bell is not None:
                self._out.set_bell(-1)
                self._bell.close()
            if self._hand_watch is not None:
                self._hand_watch.close()
