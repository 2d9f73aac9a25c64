"""The progress of a map, shown by tqdm or told to a function. Computes nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeAlias

from ..controller.progress import OnProgress
from ..errors import BadMessage, MissingPackage

__all__ = ["Guarded", "Progress", "progress_of"]

_log = logging.getLogger("tr_mmap")

Progress: TypeAlias = bool | str | Callable[[int, int | None], object] | None


class Guarded:
    """A caller's ``on_progress``, which the pool's thread calls: whatever it raises does not end that thread."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress

    def __call__(self, fraction: float, text: str) -> None:
        """Tell the caller."""
        try:
            self._on_progress(fraction, text)
        except BaseException:  # SystemExit, say
            _log.exception("on_progress has failed; the request goes on")


def progress_of(progress: Any, total: int | None) -> tuple[Callable[[int], object] | None, Callable[[], object] | None]:
    """What to call with the number of new results, and what at the end.

    Args:
        progress: True or a text for a bar, which the text names; a function of how many are done and how many there
            are, or None if that is not known; False or None for nothing.
        total: how many items there are; None if that is not known.

    Raises:
        MissingPackage: there is no tqdm for the bar.
        BadMessage: it is none of these.
    """
    if progress is None or progress is False:
        return None, None
    if callable(progress):
        told = 0

        def tell(count: int) -> None:
            nonlocal told
            told += count
            progress(told, total)

        return tell, None
    if not isinstance(progress, bool | str):
        raise BadMessage(
            f"progress is {progress!r:.80}; it must be True, a text that names the bar, or a function",
            detail="progress",
        )
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore] # it has no types of its own
    except ImportError as error:
        raise MissingPackage(
            "progress=True shows a bar of tqdm, which is not installed: pip install tqdm; or give a function",
            package="tqdm",
        ) from error
    bar: Any = tqdm(total=total, desc=progress if isinstance(progress, str) else None)
    return bar.update, bar.close
