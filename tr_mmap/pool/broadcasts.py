"""The tensors that every worker of a pool has, by tag. Starts no worker.

A worker is admitted when it has the present version of each tag. That is looked at under the lock under which a new
version is registered, so a worker either has the version, or is among those that are sent it.

A large tensor is copied once, into memory that all workers of this process read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ..base.identifiers import check_tag
from ..errors import MissingTag, SessionNotStarted, WorkerDied
from .staging import large_tensor
from .worker import State, Worker

__all__ = ["Broadcasts"]


class _Tagged:
    """What a tag names.

    Args:
        version: never comes again.
        tensor: of the program.
    """

    def __init__(self, version: int, tensor: Any) -> None:
        self.version = version
        self._tensor = tensor
        self._place = ""  # the directory of the memory in which the tensor is a loan
        self._lock = threading.RLock()  # held for the copy

    def of_version(self, version: int) -> _Tagged:
        """The same tensor, to be sent anew."""
        made = _Tagged(version, self._tensor)
        made._place = self._place
        return made

    def for_worker(self, worker: Worker) -> Any:
        """What to send to a worker: a loan that is there already, if that is of use."""
        with self._lock:
            place = worker.place_of_loans()
            # If all workers have ended, the next one begins a new place.
            if place and place != self._place and (known := large_tensor(self._tensor)) is not None:
                self._tensor = worker.loaned_copy(*known)
                self._place = place
            return self._tensor


class Broadcasts:
    """The tags of one pool."""

    def __init__(self) -> None:
        self._tensors: dict[str, _Tagged] = {}
        self._version = 0
        self._lock = threading.RLock()  # held for a look
        self._sending = threading.RLock()  # held while workers that serve are sent a tensor: one tensor at a time

    def admit(self, worker: Worker) -> bool:
        """Let a worker serve, if it has all tags. Returns whether it has."""
        with self._lock:
            if worker.tags != self._versions():
                return False
            worker.advance(State.READY)
            return True

    def bring(self, worker: Worker) -> None:
        """Send a worker the tensors that it lacks.

        Raises:
            SessionNotStarted, WorkerDied: it has ended.
            UnsupportedTensor, OutOfSpace: of a tensor.
        """
        # Again, as long as somebody changes what it should have: a signal handler, in the middle of this.
        while worker.tags != self._versions():
            for tag in list(worker.tags):
                if tag not in self._tensors:
                    with suppress(MissingTag):  # an exception has come before the next line could note it
                        worker.session.drop_tensor(tag)
                    worker.tags.pop(tag, None)
            for tag in self._versions():
                tagged = self._tensors.get(tag)
                if tagged is not None and worker.tags.get(tag) != tagged.version:
                    worker.session.send_tensor(tagged.for_worker(worker), tag)
                    worker.tags[tag] = tagged.version

    def _versions(self) -> dict[str, int]:
        """The tags that every worker is to have."""
        with self._lock:
            return {tag: tagged.version for tag, tagged in self._tensors.items()}

    def send(self, tensor: Any, tag: str, workers: Iterable[Worker]) -> None:
        """Give a tensor to all workers, also to those that are started later.

        Args:
            tensor: must not be changed any more.
            tag: names it from now on.
            workers: all that there are; read when the tag is registered.

        Raises:
            BadTag, UnsupportedTensor, OutOfSpace: the tag names what it named before, or nothing.
        """
        check_tag(tag)
        with self._sending:
            before = self._tensors.get(tag)
            serving: list[Worker] = []
            try:
                with self._lock:
                    self._version += 1
                    self._tensors[tag] = _Tagged(self._version, tensor)
                    serving = [each for each in list(workers) if each.state is State.READY]
                self._bring_all(serving)
            except BaseException:
                with self._lock:
                    self._version += 1
                    if before is None:
                        self._tensors.pop(tag, None)
                    else:
                        self._tensors[tag] = before.of_version(self._version)
                self._bring_all(serving)
                raise

    def drop(self, tag: str, workers: Iterable[Worker]) -> None:
        """Forget a tag everywhere.

        Raises:
            MissingTag: there is no such tag.
        """
        with self._sending:
            with self._lock:
                serving = [each for each in list(workers) if each.state is State.READY]
                # After an exception in the middle, the next call drops the rest.
                is_known = tag in self._tensors or any(tag in each.tags for each in serving)
                self._tensors.pop(tag, None)
                if not is_known:
                    raise MissingTag(f"there is no broadcast tensor with the tag {tag!r}", tag=tag)
            self._bring_all(serving)

    def _bring_all(self, workers: list[Worker]) -> None:
        for worker in workers:
            try:
                self.bring(worker)
            except (SessionNotStarted, WorkerDied):
                worker.tags.clear()  # it has died; the one that takes its place is sent everything
