"""A session's directory, told from another one of the same path. Opens and removes nothing.

Somebody may remove the directory of a living session: by hand, or a cleaner of temporary files does. Then another
session may take the name. What this session opened or made by path from then on would be that session's.
"""

from __future__ import annotations

from ...errors import SessionNotStarted
from ...native.directory_key import directory_key

__all__ = ["KnownDir"]


class KnownDir:
    """The directory that a path leads to now.

    Args:
        path: of the directory. If nothing is there, any later directory of that path counts as it.
    """

    __slots__ = ("_key", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._key = self._key_now()

    def is_there(self) -> bool:
        """Whether the path still leads to that directory."""
        return self._key is None or self._key_now() == self._key

    def check(self) -> None:
        """Raise SessionNotStarted if the path does not lead to that directory any more.

        Call it before something is made there, and after something was opened there: what was opened before a check
        that succeeds was in the directory.
        """
        if not self.is_there():
            raise SessionNotStarted(
                f"the session's directory, {self.path}, was removed or replaced by another session's while the session "
                "lived; close() this session, and start another"
            )

    def _key_now(self) -> tuple[int, ...] | None:
        try:
            return directory_key(self.path)
        except OSError:
            return None
