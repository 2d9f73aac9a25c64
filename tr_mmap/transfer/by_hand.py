"""The tensors of a request that somebody wrote by hand into a session's files. Never touches the session's own results.

A tag of the session means its tensor, any other tag means a file ``<tag>.tsr``. The results are plain files
``by_hand_<i>.tsr``, which stay until the next such request.
"""

from __future__ import annotations

from typing import Any

from ..wire.names import HAND_RESULT_PREFIX
from .interface import WorkerTransfer
from .legacy_files import LegacyWorkerTransfer

__all__ = ["HandTransfer"]


class HandTransfer(LegacyWorkerTransfer):
    """See the module's docstring.

    Args:
        directory: the session directory.
        session: the session's own transfer, of which only tags are read.
    """

    def __init__(self, directory: str, session: WorkerTransfer) -> None:
        super().__init__(directory, HAND_RESULT_PREFIX)
        self._session = session

    def fetch(self, tag: str, framework: str) -> Any:
        return self._session.fetch(tag, framework) if tag in self._session.tags else super().fetch(tag, framework)
