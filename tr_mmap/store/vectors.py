"""Checks the vectors that are given to a store, and converts them to rows of its shape and dtype. Opens nothing."""

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
    """New vectors of a commit.

    Attributes:
        rows: of shape ``(vectors, dim)``, in the store's dtype.
        lengths: the Euclidean length of each row.
        embedder: the name of the embedder that has made some of them; None if all were given.
    """

    rows: np.ndarray[Any, Any]
    lengths: np.ndarray[Any, Any]
    embedder: str | None

    @classmethod
    def of(cls, given: Sequence[Any], dim: int | None, dtype: np.dtype[Any], embedder: str | None) -> Vectors | None:
        """Convert the vectors of a commit, in their order; those that are None are left out. None if none is left.

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
        """How many numbers each has."""
        return int(self.rows.shape[1])


def as_rows(given: Sequence[Any], dim: int | None, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Convert vectors to rows of a dtype.

    Args:
        given: arrays, tensors or lists; at least one.
        dim: how many numbers each must have; None to take the first vector's.
        dtype: of the rows. A float dtype rounds; an integer dtype takes a number exactly, or refuses it.

    Returns:
        An array of shape ``(vectors, dim)``.

    Raises:
        WrongShape: a vector has another shape.
        BadMessage: a vector does not hold numbers, or has some that the dtype cannot hold.
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
    """Undo a rounding: numpy makes floats of a list of integers if some are small and some are 2**63 or more."""
    if found.dtype.kind != "f" or not isinstance(given, list | tuple):
        return found
    is_whole = all(isinstance(number, int) and 0 <= number <= _MOST for number in given)
    return np.array(given, np.uint64) if is_whole else found


def check_shapes(vectors: Iterable[np.ndarray[Any, Any]], dim: int | None) -> None:
    """Refuse vectors that do not have ``dim`` numbers.

    Raises:
        WrongShape: a vector has another shape.
    """
    for each in vectors:
        if each.shape != (dim,):
            raise WrongShape(
                f"a vector has shape {each.shape}; those of this store have {(dim,)}", expected=dim, found=each.shape
            )


def _check_whole(vector: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> None:
    """Refuse numbers that an integer dtype would round or wrap: as int8, 300 would become 44."""
    if vector.dtype.kind == "b" or np.can_cast(vector.dtype, dtype):
        return
    if vector.dtype.kind not in "iu":
        vector = vector.astype(np.float64)  # rounds longdouble only
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
