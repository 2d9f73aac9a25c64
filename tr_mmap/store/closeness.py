"""How near vectors are to a query: quickly and within proven bounds, or in float64. Opens nothing.

A *key* is a float64: the higher, the nearer the vector. Hits are sorted by it, and scores are computed from it. It is
computed for each vector alone, always in the same way, so that equal vectors have equal keys.

A quick product of a vector ``x`` with the query ``q``, of ``n`` numbers in a kind whose unit roundoff is ``u``, differs
from the true one by at most ``g |x| |q|``, where ``g = ku / (1 - ku)`` and ``k = n + 3``: ``n`` for the product and the
sum, in whatever order and with or without fused operations, and 3 for what the conversion of both rounds (Higham,
Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1, and the Cauchy-Schwarz inequality). Numbers that
underflow, or are flushed to zero, add at most ``2n`` times the smallest normal number. The lengths, the arithmetic with
them, and the key are computed in float64, which rounds too: together below ``8 (n + 8)`` units, relative to the
lengths.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from .products import product_dtype

__all__ = ["METRICS", "Closeness", "has_length", "lengths_of"]

Array = np.ndarray[Any, Any]

METRICS: Final = ("cosine", "dot", "l2")
_UNIT: Final = 2.0**-53  # the unit roundoff of float64
_LEAST_SQUARES: Final = 1e-280  # below it, a sum of squares may have lost some of them
_LEAST: Final = 2.0**-1000  # far above what underflows in float64, and far below all that matters
_HEADROOM: Final = 9  # the query's length is about 2**-9, so that no product with a finite vector overflows


def _tame(rows: Array) -> tuple[Array, Array]:
    """The sums of the squares of float64 rows, and powers of two.

    A row whose squares leave the range of float64 is divided by its power of two, in place. Other rows have power 0.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = np.vecdot(rows, rows)
        powers = np.zeros(len(rows), np.int64)
        odd = np.flatnonzero(~((squares > _LEAST_SQUARES) & (squares < np.inf)))
        if odd.size:
            powers[odd] = np.frexp(np.abs(rows[odd]).max(axis=1))[1]
            rows[odd] = np.ldexp(rows[odd], -powers[odd][:, np.newaxis])
            squares[odd] = np.vecdot(rows[odd], rows[odd])
    return squares, powers


def _lengths(rows: Array) -> Array:
    """The Euclidean lengths of float64 rows, which may be changed."""
    squares, powers = _tame(rows)
    with np.errstate(over="ignore", under="ignore"):
        lengths: Array = np.ldexp(np.sqrt(squares), powers)
    return lengths


def lengths_of(vectors: Array) -> Array:
    """The Euclidean length of each row, as float64; infinite only if it is beyond the range of float64."""
    return _lengths(vectors.astype(np.float64))


def has_length(vector: Array, length: float) -> bool:
    """Whether a vector has that length, as :func:`lengths_of` may make it on any machine."""
    found = float(lengths_of(vector[np.newaxis])[0])
    return found == length or abs(found - length) <= 2 * (vector.size + 8) * _UNIT * found


class Closeness:
    """How near vectors of a dtype are to a query by a metric.

    Args:
        query: of shape ``(dim,)``, finite.
        metric: one of METRICS.
        dtype: of the vectors.

    Attributes:
        query: multiply vectors with this for :meth:`bounds`: the query, scaled by a power of two.
    """

    def __init__(self, query: Array, metric: str, dtype: np.dtype[Any]) -> None:
        self._metric = metric
        self._exact_query = query.astype(np.float64)
        scaled = self._exact_query.copy()[np.newaxis]
        power = int(np.frexp(np.abs(scaled).max())[1])
        scaled = np.ldexp(scaled, -power)
        more = int(np.frexp(_lengths(scaled.copy())[0])[1]) + _HEADROOM
        self._power = power + more
        self.query: Array = np.ldexp(scaled[0], -more)
        self._length = float(_lengths(self.query[np.newaxis].copy())[0])  # of the scaled query
        kind = np.finfo(product_dtype(dtype))
        rounded = (query.size + 3) * float(kind.eps) / 2
        self._product_error = rounded / (1 - rounded)
        self._other_error = 8 * (query.size + 8) * _UNIT
        self._underflow = 2 * query.size * float(kind.tiny)

    def bounds(self, products: Array, lengths: Array) -> tuple[Array, Array]:
        """Lower and upper bounds of the keys of vectors, on a scale of their own; infinite where nothing is known.

        Args:
            products: of the vectors with ``query``, as :func:`.products.products` makes them.
            lengths: of the vectors.
        """
        with np.errstate(all="ignore"):
            if self._metric == "cosine":
                middle = products / lengths
                error = self._underflow / lengths
                error += (self._product_error + self._other_error) * self._length
                error[np.isinf(lengths)] = np.inf
            elif self._metric == "dot":
                middle = products.astype(np.float64)
                error = lengths * ((self._product_error + self._other_error) * self._length)
                error += self._underflow
            else:  # the square of the query's length, less that of the distance
                scale = np.ldexp(2.0, self._power)
                length = np.ldexp(self._length, self._power)
                squares = lengths * lengths
                middle = products * scale
                middle -= squares
                error = lengths * (2 * (self._product_error + self._other_error) * length)
                squares *= self._other_error
                error += squares
                error += self._underflow * scale + self._other_error * length * length + _LEAST
            lower = middle - error
            upper = np.add(middle, error, out=middle)
        odd = np.flatnonzero(~np.isfinite(lower))
        lower[odd] = -np.inf
        upper[odd] = np.inf
        return lower, upper

    def keys(self, vectors: Array) -> Array:
        """The keys of vectors, computed in float64."""
        wide = vectors.astype(np.float64)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            if self._metric == "l2":
                wide -= self._exact_query
                keys = -_lengths(wide)
            elif self._metric == "dot":
                keys = np.vecdot(wide, self.query)
            else:
                lengths = np.sqrt(_tame(wide)[0]) * self._length
                keys = np.vecdot(wide, self.query)
                keys = np.divide(keys, lengths, out=np.zeros_like(keys), where=lengths > 0)
        return np.where(np.isnan(keys), -np.inf, keys)  # a file that was damaged may have anything in it

    def scores(self, keys: Array) -> tuple[Array, Array]:
        """The scores and distances of keys."""
        if self._metric == "dot":
            with np.errstate(over="ignore", under="ignore"):
                keys = np.ldexp(keys, self._power)
        return keys, 1 - keys if self._metric == "cosine" else -keys
