"""Arrays that JSON gives as lists of numbers. Opens nothing, runs nothing.

numpy is shown no list before each of its elements was looked at: of a list with one long text it would make an array
in which every element takes as many bytes.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Final

import numpy as np

__all__ = ["NotNumbers", "are_numbers", "array_of_lists", "shaped"]

_NUMBERS: Final = frozenset({int, float, bool})
_NUMBERS_OR_NULL: Final = _NUMBERS | {type(None)}
_PIECE: Final = 1 << 16  # numbers that are converted in one call, in which no other thread comes to run
_UNLIKE: Final = "its data are not lists of numbers, or not all of one length"


class NotNumbers(Exception):
    """What is no array of the dtype and shape that it should be; the message says why."""


def are_numbers(data: Any) -> bool:
    """Whether this is a list of numbers, and of nothing else."""
    return type(data) is list and _NUMBERS.issuperset(map(type, data))


def array_of_lists(data: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The array that lists within lists say. It takes no more memory than the lists do.

    Args:
        data: what JSON has; null is NaN where the dtype is one of floats.
        dtype: whole numbers, floats or bool.
        shape: that it must have.

    Raises:
        NotNumbers: it is none.
    """
    found, numbers = _flat(data, len(shape))
    if not numbers and math.prod(shape) == 0:  # lists cannot say every shape without an element
        found = shape
    if found != shape:
        raise NotNumbers(f"its data have the shape {list(found)}, and not {list(shape)}")
    allowed = _NUMBERS_OR_NULL if dtype.kind == "f" else _NUMBERS
    array = np.empty(len(numbers), dtype)
    for begin in range(0, len(numbers), _PIECE):
        piece = numbers[begin : begin + _PIECE]
        if not allowed.issuperset(map(type, piece)):
            raise NotNumbers(_UNLIKE)
        array[begin : begin + _PIECE] = _converted(piece, dtype)
    return shaped(array, shape)


def shaped(array: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """An array of as many elements as a shape has, in that shape.

    Raises:
        NotNumbers: beside a 0, a shape may have sizes that no array has.
    """
    try:
        return array.reshape(shape)
    except ValueError:
        raise NotNumbers(f"no array has the shape {list(shape)}") from None


def _flat(data: Any, most_ndim: int) -> tuple[tuple[int, ...], list[Any]]:
    """The shape of lists, and what is in the innermost ones."""
    if type(data) is not list:
        return (), [data]
    level, found = data, [len(data)]
    while level and type(level[0]) is list:
        if len(found) > most_ndim:
            raise NotNumbers(_UNLIKE)
        size = len(level[0])
        if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
            raise NotNumbers(_UNLIKE)
        found.append(size)
        level = list(itertools.chain.from_iterable(level))
    return tuple(found), level


def _converted(numbers: list[Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """
    Raises:
        NotNumbers: one of them is none of the dtype.
    """
    try:
        if dtype.kind == "f":
            return np.array(numbers, np.float64).astype(dtype)  # null becomes NaN
        given = np.array(numbers)
        if given.dtype.kind not in "biuf":
            raise NotNumbers(f"a number of it is none of {dtype}")
        # numpy takes whole numbers for floats, and rounds them, if some are small and some above 2**63.
        array = np.array(numbers, dtype) if given.dtype.kind == "f" and dtype.kind in "iu" else given.astype(dtype)
    except OverflowError:
        raise NotNumbers(f"a number of it is none of {dtype}") from None
    if dtype.kind in "iu" and not np.array_equal(array, given):
        raise NotNumbers(f"a number of it is none of {dtype}")
    return array
