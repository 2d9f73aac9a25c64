"""``Task``: a run of a gateway whose result is asked for later, by a program that waits for each response."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx

from .. import api
from . import messages
from .answers import Answer
from .attempts import Send
from .results import EventReader, Framework, Result

if TYPE_CHECKING:
    from .sync_client import Client

__all__ = ["Task"]


class Task:
    """A run whose result is asked for later; :meth:`Client.submit` makes one.

    Attributes:
        id: by which the gateway knows it.
    """

    def __init__(self, client: Client, task_id: str, framework: Framework) -> None:
        self.id = task_id
        self._client = client
        self._framework = framework

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r})"

    def status(self) -> str:
        """``"queued"``, ``"running"``, ``"success"``, ``"failed"`` or ``"cancelled"``."""
        return self.info().status

    def info(self) -> api.TaskInfo:
        """All that the gateway knows of it."""
        return self._client._call(messages.task_info(self.id, self._framework))

    def result(self, timeout_s: float | None = None) -> Result:
        """Wait for its end, and return its result.

        Args:
            timeout_s: how long to wait; None for as long as it takes.

        Raises:
            ResponseTimeout: it has not ended by then; it goes on.
            RunCancelled: it was cancelled.
            AlgorithmError, LimitExceeded, NotAllowed, DeadlineExceeded: it did not end well.
        """
        bound_s = math.inf if timeout_s is None else timeout_s
        return self._client._call(messages.follow_to_end(self.id, self._framework), bound_s)

    def cancel(self) -> api.TaskInfo:
        """End it.

        Raises:
            AlreadyDone: it has ended.
        """
        return self._client._call(messages.cancel(self.id, self._framework))

    def events(self) -> Iterator[api.TaskInfo]:
        """Its state now, and after each change, until it has ended."""
        ask = messages.follow(self.id)
        reader = EventReader(self._framework)
        try:
            with self._client._open(ask, math.inf) as response:
                if response.status_code != 200:
                    raise Answer(response.status_code, response.headers, memoryview(response.read())).error()
                for line in response.iter_lines():
                    info = reader.take(line)
                    if info is not None:
                        yield info
        except httpx.HTTPError as error:
            raise self._client._settings.failure(ask, error, Send(math.inf, math.inf), has_begun=True) from error
