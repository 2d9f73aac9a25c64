"""Descriptors that are taken early and given back when something fails, so that cleaning up can open files then."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

from ...errors import SystemLimit
from .files import open_dir
from .own_file import OwnFile

__all__ = ["SpareDescriptors"]

_COUNT: Final = 4  # to remove a session takes three at a time


class SpareDescriptors:
    """A few descriptors that are held only to be given back; a ``with`` block does so at its end."""

    def __init__(self) -> None:
        self._files: list[OwnFile] = []

    def take(self) -> None:
        """Take them, if they are not taken yet.

        Raises:
            SystemLimit: there are not as many left. None is taken then.
        """
        try:
            while len(self._files) < _COUNT:
                self._files.append(OwnFile(open_dir("/")))
        except SystemLimit as error:
            self.free()
            error.message = f"a session's start: {error.message.partition(': ')[2]}"
            raise
        except BaseException:
            self.free()
            raise

    def free(self) -> None:
        """Give them back. May be called again, and raises nothing."""
        files, self._files = self._files, []
        for each in files:
            each.close()

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.free()
