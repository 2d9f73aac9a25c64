"""Whether this installation has compiled code, and if not: why, what that means, and what to do. Loads no extension."""

from __future__ import annotations

import importlib.util
import logging
import os
from typing import Final

from . import IS_COMPILED, WHY_NOT_COMPILED

__all__ = ["EXTENSIONS", "MEANING", "REMEDY", "missing", "warn_once"]

EXTENSIONS: Final = {  # by module: what it is for
    "tr_mmap.native._native": "the fast path of messages",
    "tr_mmap.sandbox._kernel": "what contains a sandbox's processes",
    "tr_mmap.sandbox._arena": "a sandbox's memory",
}
MEANING: Final = (
    "sessions, files and the store work, in plain Python; small messages take five to ten times as long; a sandbox, "
    "and a gateway's algorithms, refuse to start"
)
REMEDY: Final = (
    "install a C compiler and Python's headers (Debian and Ubuntu: apt install gcc libc6-dev python3-dev), and install "
    "tr_mmap again without pip's cache: pip install --force-reinstall --no-cache-dir --no-deps ..."
)

_log = logging.getLogger("tr_mmap")
_has_warned = False


def missing() -> list[str]:
    """Which of the extensions were not built, by the names of their modules."""
    return [name for name in EXTENSIONS if importlib.util.find_spec(name) is None]


def warn_once() -> None:
    """Log one warning per process if there is no fast path. ``TR_MMAP_PURE`` says that this is meant so."""
    global _has_warned
    if IS_COMPILED or _has_warned:
        return
    _has_warned = True
    if "TR_MMAP_PURE" not in os.environ:
        _log.warning(
            "tr_mmap %s, so small messages take five to ten times as long; "
            "'tr-mmap doctor' says what to do, and TR_MMAP_PURE=1 in the environment silences this line",
            "was installed without compiled code"
            if "tr_mmap.native._native" in missing()
            else f"cannot load its compiled code ({WHY_NOT_COMPILED})",
        )
