"""The tables of what a call costs, by kind. Pure: results in, text out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from .stats import format_ratio, format_us

__all__ = ["CALLS", "calls"]

CALLS: Final = {
    "text": "a text",
    "copied": "`calculate`, 1 KiB, copied",
    "loaned": "`calculate`, 1 KiB, loaned on both sides",
    "loaned_large": "the same, 64 MiB",
    "tag": "a result of 1 KiB from a tag",
    "new_tag": "the same from a new tag each time",
    "three": "three results of 1 KiB",
    "named": "by name: a dict there and a dict back",
    "error": "an error in the handler",
}
_PLAIN: Final = {
    "here": "in the caller",
    "tag": "in the worker, input under a tag",
    "calculate": "the same, `calculate`",
}


def calls(found: dict[str, Any], table: Callable[[Sequence[str], Iterable[Sequence[str]]], str]) -> list[str]:
    """What a run says of them: a row for each kind, a column for each framework and way to write a worker."""
    small, plain = found.get("small", {}), found.get("plain", {})
    if not small:
        return []

    def median(of: dict[str, Any], call: str) -> str:
        return format_us(of[call]["median_us"]) if call in of else ""

    def beside(of: dict[str, Any], call: str) -> str:
        return f"{median(of, call)} ({format_ratio(of[call]['median_us'] / of['here']['median_us'])} ×)"

    return [
        "## What a call costs, by kind",
        "Medians, by framework and by the way to write the worker.",
        table(["", *small], [[label, *(median(of, call) for of in small.values())] for call, label in CALLS.items()]),
        "## Plain code: `x * 1.5` of 64 MiB",
        table(["", *plain], [[label, *(beside(of, call) for of in plain.values())] for call, label in _PLAIN.items()]),
    ]
