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
            only_null = _NUMBERS_OR_NULL.issuperset(map(type, piece))
            raise NotNumbers(f"null is NaN, which {dtype} does not have" if only_null else _UNLIKE)
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
            with np.errstate(over="ignore"):
                floats = np.array(numbers, np.float64).astype(dtype)  # null becomes NaN
            if np.isinf(floats).any():  # JSON has no infinity
                raise NotNumbers(_why_none(numbers, dtype))
            return floats
        given = np.array(numbers)
        if given.dtype.kind not in "biuf":
            raise NotNumbers(_why_none(numbers, dtype))
        # numpy takes whole numbers for floats, and rounds them, if some are small and some above 2**63.
        array = np.array(numbers, dtype) if given.dtype.kind == "f" and dtype.kind in "iu" else given.astype(dtype)
    except OverflowError:
        raise NotNumbers(_why_none(numbers, dtype)) from None
    if not np.array_equal(array, given):
        raise NotNumbers(_why_none(numbers, dtype))
    return array


def _why_none(numbers: list[Any], dtype: np.dtype[Any]) -> str:
    """Which of the numbers is none of the dtype, and why."""
    if dtype.kind in "iu":
        least, most = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        for each in numbers:
            if each != each or each in (math.inf, -math.inf) or each != int(each):
                return f"{each!r} is no whole number, and {dtype} has no others"
            if not least <= each <= most:
                return f"{_shown(each)} is not in the range of {dtype}, {least} to {most}"
    if dtype.kind == "b":
        wrong = next(each for each in numbers if each not in (0, 1))
        return f"{_shown(wrong)} is none of bool, which has true and false"
    largest = max((each for each in numbers if each is not None), key=abs)
    return f"{_shown(largest)} is not in the range of {dtype}"


def _shown(number: float) -> str:
    """A number of any size, in few characters."""
    return repr(number) if isinstance(number, float) or abs(number) < 1 << 128 else "a number of more than 38 digits"
