"""Numbers: what is kept of many measurements, and how one is written. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["Summary", "format_nbytes", "format_ratio", "format_us", "summarise"]


@dataclass(frozen=True, slots=True)
class Summary:
    """Many measurements of one thing.

    Attributes:
        median_us, p99_us, least_us: microseconds. With fewer than 100 measurements, p99 is near the worst.
        n: how many.
    """

    median_us: float
    p99_us: float
    least_us: float
    n: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(samples_ns: Sequence[int]) -> Summary:
    """Raises ValueError if there are none."""
    if not len(samples_ns):
        raise ValueError("there is nothing to summarise")
    values = np.asarray(samples_ns, np.float64) / 1000
    median, p99 = np.quantile(values, [0.5, 0.99])
    return Summary(round(float(median), 3), round(float(p99), 3), round(float(values.min()), 3), len(values))


def format_us(us: float) -> str:
    """``"8.42 µs"``, ``"131 µs"``, ``"13.4 ms"``, ``"2.31 s"``: three digits, the unit that fits."""
    value, unit = (us, "µs") if us < 999.5 else (us / 1e3, "ms") if us < 999.5e3 else (us / 1e6, "s")
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def format_nbytes(nbytes: int) -> str:
    """``"1 KiB"``, ``"64 MiB"``, ``"1 GiB"``; bytes if it is no whole number of those."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if nbytes >= 1 << shift and nbytes % (1 << shift) == 0:
            return f"{nbytes >> shift} {unit}"
    return f"{nbytes} B"


def format_ratio(ratio: float) -> str:
    """A ratio of ours to another's: ``"0.42"``, ``"0.0031"``, ``"1.7"``, ``"12"``."""
    digits = 0 if ratio >= 9.95 else 1 if ratio >= 0.995 and ratio > 1.995 else 2 if ratio >= 0.0995 else 3
    return f"{ratio:.{digits}f}" if ratio >= 0.00995 else f"{ratio:.2g}"
