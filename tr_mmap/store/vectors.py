"""Vectors as they are given to a store, made rows of its kind, or refused. Opens nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from ..errors import BadMessage
from .arguments import array_of
from .closeness import lengths_of
from .errors import WrongShape

__all__ = ["Vectors", "as_rows", "check_shapes"]

_MOST: Final = 2**64 - 1
_OF_ML_DTYPES: Final = 2  # what numpy's ``isbuiltin`` says of a small float


class Vectors(NamedTuple):
    """Vectors that are to be kept.

    Attributes:
        rows: of shape ``(vectors, dim)``, as the store keeps them.
        lengths: of each.
        embedder: the name of what has made some of them of texts; None if all were given.
    """

    rows: np.ndarray[Any, Any]
    lengths: np.ndarray[Any, Any]
    embedder: str | None

    @classmethod
    def of(cls, given: Sequence[Any], dim: int | None, dtype: np.dtype[Any], embedder: str | None) -> Vectors | None:
        """Those of a commit, in their order, without those that are None; None if there are none.

        Raises:
            WrongShape, BadMessage: as :func:`as_rows`.
        """
        found = [each for each in given if each is not None]
        if not found:
            return None
        rows = as_rows(found, dim, dtype)
        return cls(rows, lengths_of(rows), embedder)

    @property
    def dim(self) -> int:
        """Numbers of each."""
        return int(self.rows.shape[1])


def as_rows(given: Sequence[Any], dim: int | None, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Vectors as rows of a dtype.

    Args:
        given: arrays, tensors or lists; at least one.
        dim: numbers that each has; None if the first one says it.
        dtype: of the rows. A float is rounded to it; a whole number is kept as it is, or refused.

    Raises:
        WrongShape: one has another shape.
        BadMessage: it holds no numbers, or some that the dtype does not have.
    """
    found = [_numbers_of(each) for each in given]
    if dim is None and (found[0].ndim != 1 or not found[0].size):
        raise WrongShape(
            f"a vector has shape {found[0].shape}; it has one dimension, and a number at least",
            expected=None,
            found=found[0].shape,
        )
    check_shapes(found, dim or int(found[0].size))
    if dtype.kind in "iu":
        found = [_exact(each, vector) for each, vector in zip(found, given, strict=True)]
        for each in found:
            _check_whole(each, dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        rows = np.stack([each.astype(dtype) for each in found])
    if not np.isfinite(rows.astype(np.float64)).all():
        raise BadMessage(f"a vector has a number that is not finite, as {dtype.name}", detail="vector")
    return np.ascontiguousarray(rows)


def _numbers_of(vector: Any) -> np.ndarray[Any, Any]:
    try:
        found = np.asarray(array_of(vector))
        if found.dtype.kind in "biuf" or found.dtype.isbuiltin == _OF_ML_DTYPES:
            return found
        what = found.dtype.name
    except (TypeError, ValueError):
        what = type(vector).__name__
    raise BadMessage(f"a vector is an array of real numbers, not of {what}", detail="vector")


def _exact(found: np.ndarray[Any, Any], given: Any) -> np.ndarray[Any, Any]:
    """numpy takes a list of whole numbers for floats, and rounds them, if some are small and some above 2**63."""
    if found.dtype.kind != "f" or not isinstance(given, list | tuple):
        return found
    is_whole = all(isinstance(number, int) and 0 <= number <= _MOST for number in given)
    return np.array(given, np.uint64) if is_whole else found


def check_shapes(vectors: Iterable[np.ndarray[Any, Any]], dim: int | None) -> None:
    """Refuse vectors that have not so many numbers.

    Raises:
        WrongShape: one of them.
    """
    for each in vectors:
        if each.shape != (dim,):
            raise WrongShape(
                f"a vector has shape {each.shape}; those of this store have {(dim,)}", expected=dim, found=each.shape
            )


def _check_whole(vector: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> None:
    """Refuse what a dtype of whole numbers would round or wrap: 300 becomes 44 as int8."""
    if vector.dtype.kind == "b" or np.can_cast(vector.dtype, dtype):
        return
    if vector.dtype.kind not in "iu":
        vector = vector.astype(np.float64)  # a longer float than that is rounded; no more than a vector may be
        if not np.isfinite(vector).all():
            raise BadMessage("a vector has a number that is not finite", detail="vector")
        if not (whole := vector == np.rint(vector)).all():
            raise _unfit(vector[~whole][0], dtype)
    limits = np.iinfo(dtype)
    for extreme in (vector.min(), vector.max()):
        if not limits.min <= extreme.item() <= limits.max:  # Python compares them exactly
            raise _unfit(extreme, dtype)


def _unfit(number: Any, dtype: np.dtype[Any]) -> BadMessage:
    limits = np.iinfo(dtype)
    return BadMessage(
        f"a vector has the number {number}; as {dtype.name} the store keeps whole numbers from {limits.min} to "
        f"{limits.max}",
        detail="vector",
    )
