"""A worker's life: connects to its session, watches the controller and the worker's log, cleans up. Serves nothing."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from ..base.fork_safety import ForkAware
from ..channel.authenticated import RejectionCounter
from ..channel.interface import Channel
from ..errors import SessionNotStarted
from ..native import WorkerFastPath
from ..processes.watch import PeerWatch
from ..protocol.status import Status
from ..transfer.kinds import Device, Views, check_device, check_views
from ..wire.names import SESSION_PREFIX
from ..wire.waits import ORPHAN_GRACE_S
from .attach import Attachment, attach
from .context import RequestContext
from .fast_path import worker_fast_path
from .log import WorkerLog, log
from .responder import RETRY_S, Responder

__all__ = ["WorkerLife"]

_LOOK_REQUESTS: Final = 64  # until the log's size is looked at: native code and children write to it uncounted


def _do_nothing() -> None:
    """Stands for the heartbeat before there is a session."""


class WorkerLife(ForkAware):
    """The part of ``TechRenaissanceServer`` that begins and ends with the session. Its docstring has the arguments.

    Attributes:
        session_id: the session's name; before there is a session, what a program has stored here, see
            :meth:`setup_session_dir`.
        session_dir: path of the session's directory; "" before there is a session.
    """

    session_id = ""  # of the class, so that __init__ keeps what a subclass has stored
    _shared: RequestContext  # of the request at hand, where there is one at a time; else of what is between requests

    def __init__(self, debug: bool, views: Views | None, device: Device | None = None) -> None:
        self._fast_path: WorkerFastPath | None = None
        super().__init__()  # now: its hook uses the fast path
        check_views(views)
        check_device(device)
        self.debug = debug
        self.session_dir = ""
        self._channel: Channel | None = None
        self._rejections = RejectionCounter()
        self._attachment: Attachment | None = None
        self._views, self._device = views, device
        self._watch: PeerWatch | None = None
        self._touch: Callable[[], None] = _do_nothing  # the session's heartbeat
        self._responder = Responder(self._has_to_stop)
        self._is_stopping = False
        self._has_signal = False
        self._is_orphan = False
        self._has_ended = threading.Event()
        self._log: WorkerLog | None = None
        self._requests_until_look = _LOOK_REQUESTS

    def setup_session_dir(self, session_id: str | None = None) -> None:
        """Find the session and connect to it; see the override in ``service.py``."""
        if session_id is None:
            session_id = self._named_session()
        self.is_foreign = False  # a child that was forked before this is a worker of its own
        attachment = self._attachment = attach(session_id, self._rejections, self._views, self._device)
        self.session_dir = attachment.directory
        self.session_id = os.path.basename(attachment.directory).removeprefix(SESSION_PREFIX)
        self._shared.channel, self._shared.transfer = attachment.channel, attachment.transfer
        self._channel = attachment.channel
        self._touch = attachment.channel.touch
        self._log = WorkerLog.keep(*attachment.log_paths)
        if attachment.peer is not None:
            self._watch = PeerWatch(
                attachment.peer,
                self._controller_died,
                attachment.channel.watch_by_hand(),
                each_second=None if self._log is None else self._look_each_second,
                lock_path=attachment.peer_lock,
                next_peer=attachment.next_peer,
            )
        deaths = [] if self._watch is None else self._watch.deaths
        self._fast_path = worker_fast_path(attachment.channel, attachment.transfer, deaths)

    def _named_session(self) -> str:
        """The session that the program has named, or else the command line."""
        if self.session_id:
            return str(self.session_id)
        if len(sys.argv) < 2:
            raise SessionNotStarted(f"usage: {sys.argv[0]} SESSION_ID_OR_DIRECTORY (a PythonSession starts it)")
        return sys.argv[1]

    def cleanup_session_dir(self) -> None:
        """Disconnect from the session. Removes its directory if the controller is dead."""
        if self.is_foreign:
            return
        if self._channel is not None:
            self._end_requests()
        channel, self._channel = self._channel, None
        self._fast_path = None
        attachment = self._attachment
        if channel is None or attachment is None:
            return
        attachment.end()
        self._has_ended.set()  # first, because to stop the watch waits for its thread
        self._advance_status(channel, Status.EXITING)
        if self._watch is not None and not self._is_orphan:
            self._watch.stop()
        attachment.close_transfers(is_orphan=self._is_orphan)
        self._advance_status(channel, Status.TERMINATED)
        channel.ring()
        channel.close()
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._is_orphan:
            attachment.remove()

    def _end_requests(self) -> None:
        """Wait for the requests that are under way, or abandon them."""

    def _controller_died(self) -> None:
        """Runs in the watch's thread: ends the loop; if a handler does not end in time, ends the process."""
        self._is_orphan = True
        channel = self._channel
        if channel is not None:
            channel.wake()
        if not self._has_ended.wait(ORPHAN_GRACE_S):
            try:
                if self._attachment is not None:
                    self._attachment.remove(is_last=True)
            finally:
                os._exit(1)

    # -- whether to go on ---------------------------------------------------------------------------------------------

    def should_continue(self) -> bool:
        """Whether to go on serving."""
        return not self._is_stopping

    def _has_to_stop(self) -> bool:
        channel = self._channel
        return self._is_stopping or self._is_orphan or channel is None or channel.is_exit_requested()

    def _stop_once(self) -> bool:
        """Note that a signal came that ends the worker. Returns whether it is the first one."""
        self._has_signal = True
        is_first, self._is_stopping = not self._is_stopping, True
        return is_first

    def _pause(self, error: Exception) -> None:
        """Wait before the next try, so that the cause of an error may pass; not if the worker has to stop."""
        self.debug_message(error)
        self._is_stopping = self._is_stopping or self._has_to_stop()
        if not self._is_stopping:
            time.sleep(RETRY_S)

    # -- what others see of the worker --------------------------------------------------------------------------------

    @property
    def rejected(self) -> int:
        """In a session with ``auth=True``: how many messages the controller had not signed; they were ignored."""
        return self._rejections.rejected

    def debug_message(self, *args: Any) -> None:
        """Print to the worker's log, if ``debug``."""
        if self.debug:
            log("[worker]", *args)

    def _advance_status(self, channel: Channel, status: Status, detail: str = "") -> None:
        self._responder.advance_status(channel, status, detail)

    def _look_each_second(self) -> None:
        """Runs in the watch's thread."""
        log, transfer = self._log, self._shared.transfer
        if log is not None:
            log.look_from_thread()
        if transfer is not None:
            transfer.look_from_thread()

    def _look_at_log(self) -> None:
        self._requests_until_look = _LOOK_REQUESTS
        if self._log is not None:
            self._log.look()

    # -- forks --------------------------------------------------------------------------------------------------------

    def forked_in_child(self) -> None:
        """Called in a child that a handler forks: the request is the parent's to answer."""
        if self._fast_path is not None:
            self._fast_path.is_foreign = True

    def _refuse_in_child(self) -> None:
        if self.is_foreign:
            raise SessionNotStarted("this process was forked by the worker; only the worker itself answers requests")

    def _open_channel(self) -> Channel:
        if self._channel is None:
            raise SessionNotStarted("the server does not run; call run(session_id)")
        return self._channel
