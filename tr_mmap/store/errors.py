"""The errors of stores. Like all errors of the library, each is also the standard exception that fits."""

from __future__ import annotations

from typing import Any

from ..errors import TRException

__all__ = [
    "EmbedderMismatch",
    "NoSuchRecord",
    "NoSuchStore",
    "OptionMismatch",
    "RecordExists",
    "SnapshotExpired",
    "StoreBusy",
    "StoreClosed",
    "StoreCorrupt",
    "VersionConflict",
    "WrongShape",
]


class NoSuchRecord(TRException, KeyError):
    """There is no record of that id, in the scope of the handle.

    Attributes:
        id: the id.
    """

    id: str

    def __init__(self, message: str, *, id: str) -> None:
        super().__init__(message, id=id)


class NoSuchStore(TRException, FileNotFoundError):
    """There is no store of that name, and none was to be made.

    Attributes:
        name: the name.
        path: the folder, or the first of the folders, where it was looked for.
    """

    name: str
    path: str

    def __init__(self, message: str, *, name: str, path: str) -> None:
        super().__init__(message, name=name, path=path)


class RecordExists(TRException, FileExistsError):
    """A record was to be added under an id that another one has.

    Attributes:
        id: the id.
    """

    id: str

    def __init__(self, message: str, *, id: str) -> None:
        super().__init__(message, id=id)


class VersionConflict(TRException, RuntimeError):
    """The record has another version than ``if_version``: it was changed meanwhile.

    Attributes:
        id: of the record.
        expected: ``if_version``.
        found: the version that it has.
    """

    id: str
    expected: int
    found: int

    def __init__(self, message: str, *, id: str, expected: int, found: int) -> None:
        super().__init__(message, id=id, expected=expected, found=found)


class WrongShape(TRException, ValueError):
    """A vector that does not fit the store.

    Attributes:
        expected: numbers that a vector of this store has; None if the store has no vectors.
        found: the shape that was given.
    """

    expected: int | None
    found: tuple[int, ...]

    def __init__(self, message: str, *, expected: int | None, found: tuple[int, ...]) -> None:
        super().__init__(message, expected=expected, found=found)


class EmbedderMismatch(TRException, ValueError):
    """The store's vectors were made by another embedder. Vectors of two embedders cannot be compared.

    Attributes:
        option: ``"embedder"``; a subclass has others.
        expected: what the store has.
        found: what was given.
    """

    option: str
    expected: Any
    found: Any

    def __init__(self, message: str, *, option: str, expected: Any, found: Any) -> None:
        super().__init__(message, option=option, expected=expected, found=found)


class OptionMismatch(EmbedderMismatch):
    """The store was made with another option than it is opened with.

    It is an :class:`EmbedderMismatch` because programs that were written before it had a name catch that.

    Attributes:
        option: ``"dim"``, ``"dtype"``, ``"metric"``, ``"indexed"``, ``"at_budget"`` or ``"durability"``.
        expected: what the store has.
        found: what was given.
    """


class StoreCorrupt(TRException, OSError):
    """A file of the store is not what the store has written.

    Attributes:
        path: of the file.
    """

    path: str

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message, path=path)


class StoreBusy(TRException, RuntimeError):
    """A signal handler, or a destructor, used the store in the middle of a change by the same thread.

    The interrupted change goes on when the handler returns. Set a flag in the handler, and use the store later.
    """


class StoreClosed(TRException, ValueError):
    """The handle was closed."""


class SnapshotExpired(TRException, TimeoutError):
    """The snapshot is older than ``max_age_s``: what it would show may have been freed."""
