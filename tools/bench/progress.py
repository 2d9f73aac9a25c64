"""A bar that shows what is measured and how much is left; plain lines where rich is not installed."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

__all__ = ["Progress"]


class Progress:
    """The bar of one run, as a context manager.

    Args:
        total: the number of steps that make the whole, in the caller's unit.
    """

    def __init__(self, total: float) -> None:
        self._total = total
        self._bar: Any = None
        self._task: Any = None
        self._last = ""

    def __enter__(self) -> Progress:
        self._began_s = time.monotonic()
        try:
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress
        except ImportError:
            return self
        self._bar = RichProgress(
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
            refresh_per_second=2,  # drawing takes time from the measurements, on two cores
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=self._total)
        return self

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=text)
        elif text.partition(":")[0] != self._last:
            self._last = text.partition(":")[0]
            print(f"{time.monotonic() - self._began_s:5.0f} s  {text}", file=sys.stderr, flush=True)

    def advance(self, steps: float) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, steps)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
