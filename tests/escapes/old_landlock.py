"""Imported, it lets the sandbox find an old Landlock, of version 2, as of Linux 6.1: its rules know no truncation."""

from __future__ import annotations

from typing import Any

import tr_mmap.sandbox.layers as layers
from tr_mmap.sandbox import _kernel


class _Old:
    def __getattr__(self, name: str) -> Any:
        return getattr(_kernel, name)

    def landlock_abi(self) -> int:
        return 2


layers._kernel = _Old()  # type: ignore[assignment]
