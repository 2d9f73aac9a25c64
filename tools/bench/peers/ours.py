"""tr_mmap itself: copied from the client's own memory, and loaned on both sides; asleep or looking while it waits."""

from __future__ import annotations

import os
from pathlib import Path

from tr_mmap import PythonSession

from .base import Array, LoanedPeer, Peer

__all__ = ["SPIN_US", "Ours", "OursLoaned", "OursLoanedSpinning", "OursSpinning"]

SPIN_US = 100.0
_TIMEOUT_MS = 120_000.0
_WORKER = Path(__file__).with_name("ours_worker.py")


_NOTE = f"both sides look for a message for up to {SPIN_US:.0f} µs before they sleep; users have to ask for that"


def _open_session(name: str, spin_us: float) -> PythonSession:
    session = PythonSession(str(_WORKER), f"bench-{os.getpid()}-{name}", quiet_mode=True, spin_us=spin_us)
    return session.__enter__()


class Ours(Peer):
    key = "ours"
    label = "tr_mmap"
    spin_us = 0.0

    def __init__(self) -> None:
        self._session: PythonSession | None = None

    def start(self, max_nbytes: int) -> None:  # noqa: ARG002 - segments are made as they are needed
        self._session = _open_session(self.key, self.spin_us)

    def roundtrip(self, x: Array) -> Array:
        return self._session.calculate("increment", x, timeout_ms=_TIMEOUT_MS)

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.please_exit()


class OursLoaned(LoanedPeer):
    key = "ours-loaned"
    label = "tr_mmap, loaned"
    payloads = 3
    spin_us = 0.0

    def __init__(self) -> None:
        self._session: PythonSession | None = None

    def start(self, max_nbytes: int) -> None:  # noqa: ARG002
        self._session = _open_session(self.key, self.spin_us)

    def loan(self, count: int) -> Array:
        return self._session.empty(count, "float32")

    def roundtrip(self, x: Array) -> Array:
        return self._session.calculate("ends", x, timeout_ms=_TIMEOUT_MS)

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.please_exit()


class OursSpinning(Ours):
    key = "ours-spin"
    label = "tr_mmap, spinning"
    note = _NOTE
    spin_us = SPIN_US


class OursLoanedSpinning(OursLoaned):
    key = "ours-loaned-spin"
    label = "tr_mmap, loaned, spinning"
    note = _NOTE
    spin_us = SPIN_US
