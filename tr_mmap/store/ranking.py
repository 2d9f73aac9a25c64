"""Exact search: the nearest of all rows to a vector, or of some. Opens nothing.

Quick products give a lower and an upper bound of the nearness of each row. Rows that cannot be among the nearest are
left out; all others are compared again in float64. So the result is that of a comparison of all rows in float64, and
the search takes as long as the quick products, unless very many rows are about equally near.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from .closeness import Closeness
from .filters import Rows
from .products import blocks_of, products, share
from .slabs import Slab

__all__ = ["Ranking"]

Array = np.ndarray[Any, Any]

_LOWEST: Final = float(np.finfo(np.float64).min)
_STEP: Final = 16_384  # rows whose bounds are made at once: they stay in the processor's cache


@dataclass(slots=True)
class _Part:
    """The rows of one slab that a search looks at.

    Attributes:
        vectors: the rows.
        lengths: of the vectors.
        first: the number of the first row.
        rows: the numbers of the rows; None if they follow the first one.
        alive: which of them are live (and pass the filter); None for all.
        products: of the vectors with the query.
        places: indices, ascending, of the rows that were compared in float64.
        keys: their keys, see :mod:`tr_mmap.store.closeness`.
    """

    vectors: Array
    lengths: Array
    first: int
    rows: Array | None
    alive: Array | None
    products: Array = field(default_factory=lambda: np.zeros(0))
    places: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    keys: Array = field(default_factory=lambda: np.zeros(0))

    def numbers(self) -> Array:
        """The numbers of the rows at ``places``."""
        return self.places + self.first if self.rows is None else self.rows[self.places].astype(np.int64)


def _part_of(slab: Slab, count: int, live: Array, allowed: Rows | None) -> _Part | None:
    first = slab.entry.first
    if count <= 0:
        return None
    if allowed is None:
        rows = None if slab.rows is None else slab.rows[:count]
        alive = live[first : first + count] if rows is None else live[rows.astype(np.int64)]
        return _Part(slab.vectors[:count], slab.norms[:count], first, rows, None if alive.all() else alive)
    inside = allowed[np.searchsorted(allowed, first) : np.searchsorted(allowed, first + slab.entry.span)]
    inside = inside[live[inside.astype(np.int64)]]
    if slab.rows is None:
        places = (inside - np.uint64(first)).astype(np.int64)
    else:
        places = np.minimum(np.searchsorted(slab.rows, inside), len(slab.rows) - 1)
        found = slab.rows[places] == inside
        places, inside = places[found], inside[found]
    return _Part(slab.vectors[places], slab.norms[places], first, inside, None) if places.size else None


def _highest(values: Array, count: int) -> Array:
    """The ``count`` highest values, in any order; all if there are fewer."""
    return np.partition(values, values.size - count)[values.size - count :] if values.size > count else values


class Ranking:
    """The rows by their nearness to a vector, nearest first; of equally near ones, the one that was stored first.

    Args:
        slabs: of a snapshot, each with the number of rows that the snapshot has of it.
        live: by row, whether it may be found; for all rows of the snapshot.
        query: of shape ``(dim,)``.
        metric: one of METRICS.
        allowed: only these rows, ascending; None for all.
    """

    def __init__(
        self, slabs: Sequence[tuple[Slab, int]], live: Array, query: Array, metric: str, allowed: Rows | None
    ) -> None:
        self._parts = [part for slab, count in slabs if (part := _part_of(slab, count, live, allowed)) is not None]
        if self._parts:
            self._closeness = Closeness(query, metric, self._parts[0].vectors.dtype)
            found = products([part.vectors for part in self._parts], self._closeness.query)
            for part, each in zip(self._parts, found, strict=True):
                part.products = each

    def best(self, limit: int) -> Iterator[tuple[int, float, float]]:
        """Row, score and distance of at most ``limit`` rows, nearest first."""
        if not self._parts:
            return
        self._compare(self._near(limit))
        keys = np.concatenate([part.keys for part in self._parts])
        rows = np.concatenate([part.numbers() for part in self._parts])
        if keys.size > limit:
            kept = keys >= _highest(keys, limit).min()
            keys, rows = keys[kept], rows[kept]
        order = np.lexsort((rows, -keys))[:limit]
        scores, distances = self._closeness.scores(keys[order])
        yield from zip(rows[order].tolist(), scores.tolist(), distances.tolist(), strict=True)

    def _near(self, limit: int) -> list[Array]:
        """For each part the places of the rows that may be among the ``limit`` nearest."""
        maybe: list[list[tuple[Array, Array]]] = []  # of each part, places and upper bounds
        highest: list[Array] = []  # the highest lower bounds so far
        bound = _LOWEST  # at least ``limit`` rows are known to reach it, or it is _LOWEST; dead rows are below
        for part in self._parts:
            maybe.append([])
            for start in range(0, len(part.products), _STEP):
                step = slice(start, start + _STEP)
                lower, upper = self._closeness.bounds(part.products[step], part.lengths[step])
                if part.alive is not None:
                    dead = ~part.alive[step]
                    lower[dead] = upper[dead] = -np.inf
                highest.append(_highest(lower, limit))
                if sum(map(len, highest)) >= 2 * limit:
                    highest = [_highest(np.concatenate(highest), limit)]
                    bound = max(float(highest[0].min()), _LOWEST)
                places = np.flatnonzero(upper >= bound)
                maybe[-1].append((places + start, upper[places]))
        last = np.concatenate(highest)
        if last.size >= limit:
            bound = max(float(_highest(last, limit).min()), _LOWEST)
        return [np.concatenate([places[upper >= bound] for places, upper in several]) for several in maybe]

    def _compare(self, near: Sequence[Array]) -> None:
        """Compare some rows of each part in float64, block by block, unless they already were."""
        blocks: list[tuple[_Part, Array]] = []
        for part, places in zip(self._parts, near, strict=True):
            keys = np.full(places.size, np.nan)
            _, old, same = np.intersect1d(part.places, places, assume_unique=True, return_indices=True)
            keys[same] = part.keys[old]
            part.places, part.keys = places, keys
            new = np.flatnonzero(np.isnan(keys))
            blocks += [(part, new[block]) for block in blocks_of(new.size, part.vectors.shape[1])]

        def compare(number: int) -> None:
            part, new = blocks[number]
            part.keys[new] = self._closeness.keys(part.vectors[part.places[new]])

        share(compare, len(blocks))
