"""The targets that the project has set itself, and what a run says about each. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from .stats import format_ratio

__all__ = ["Verdict", "judge"]

_MIB: Final = 1 << 20
_ANON_NBYTES: Final = 8 * _MIB
_FLAT_NBYTES: Final = _MIB  # "flat": less than the allocator's own noise
_HEAD_NBYTES: Final = _MIB  # what a segment may have beside its payload


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target.

    Attributes:
        what: what is measured.
        target: the bound, as text.
        measured: the figure, as text; why there is none, if there is none.
        is_met: None if it was not measured.
    """

    what: str
    target: str
    measured: str
    is_met: bool | None

    def to_json(self) -> dict[str, Any]:
        return {"what": self.what, "target": self.target, "measured": self.measured, "is_met": self.is_met}


def _bound(what: str, limit: float, of: str, ratio: float | None) -> Verdict:
    target = f"≤ {limit:g} × {of}"
    if ratio is None:
        return Verdict(what, target, "not measured", None)
    return Verdict(what, target, f"{format_ratio(ratio)} ×", ratio <= limit)


def _cell(rows: list[dict[str, Any]], peer: str, nbytes: int) -> dict[str, Any] | None:
    return next((row for row in rows if row["peer"] == peer and row["nbytes"] == nbytes), None)


def _quotient(over: dict[str, Any] | None, under: dict[str, Any] | None) -> float | None:
    if not over or not under:
        return None
    return over["median_us"] / under["median_us"]


def _inverse(ratio: float | None) -> float | None:
    return 1 / ratio if ratio else None


def _echo(rows: list[dict[str, Any]]) -> list[Verdict]:
    def ratio(peer: str, nbytes: int, field: str = "ours_ratio") -> float | None:
        cell = _cell(rows, peer, nbytes)
        return None if cell is None else cell[field]

    small, large = 1024, 64 * _MIB
    loaned = "64 MiB loaned on both sides"
    return [
        _bound("1 KiB, copied in and out", 0.5, "pyzmq ipc", ratio("zmq", small)),
        _bound("1 KiB, copied in and out", 0.6, "iceoryx2", ratio("iceoryx2", small)),
        _bound("1 MiB", 0.4, "pyzmq ipc", ratio("zmq", _MIB)),
        _bound("1 MiB", 0.9, "iceoryx2", ratio("iceoryx2", _MIB)),
        _bound("64 MiB, one copy a side", 1.25, "the two passes over memory in it", ratio("passes", large)),
        _bound("64 MiB, one copy a side", 0.3, "pyzmq ipc", ratio("zmq", large)),
        _bound("64 MiB, one copy a side", 1.0, "iceoryx2", ratio("iceoryx2", large)),
        _bound(loaned, 5, "semaphore ping-pong", ratio("semaphore", large, "loaned_ratio")),
        _bound(
            loaned,
            1.5,
            "its own 1 KiB",
            _quotient(_cell(rows, "ours-loaned", large), _cell(rows, "ours-loaned", small)),
        ),
        _bound(loaned, 0.6, "iceoryx2 loaned", ratio("iceoryx2-loaned", large, "loaned_ratio")),
        _bound(
            "C++ controller, 64 MiB loaned on both sides",
            2,
            "the Python controller's",
            _inverse(ratio("cpp-loaned", large, "loaned_ratio")),
        ),
    ]


def _load(files: dict[str, Any]) -> list[Verdict]:
    what = "load a 256 MiB file, first element"
    return [
        _bound(what, 0.5, "safetensors, as numpy", _quotient(files.get("ours"), files.get("safetensors_numpy"))),
        _bound(what, 0.5, "safetensors, as torch", _quotient(files.get("ours_torch"), files.get("safetensors_torch"))),
        _bound(what, 1.0, 'numpy.load(mmap_mode="r")', _quotient(files.get("ours"), files.get("numpy_mmap"))),
    ]


def _idle(idle: dict[str, Any]) -> Verdict:
    what, target = "idle pair", "≤ 0.5 % of one core, both processes together"
    if "controller_percent" not in idle:
        return Verdict(what, target, "not measured", None)
    percent = idle["controller_percent"] + idle["worker_percent"]
    return Verdict(what, target, f"{percent:.2f} % over {idle['seconds']:.0f} s", percent <= 0.5)


def _memory(memory: dict[str, Any]) -> Verdict:
    what, target = "peak extra memory for one 1 GiB tensor", "one payload on tmpfs, < 8 MiB anonymous on each side"
    if "tmpfs_nbytes" not in memory:
        return Verdict(what, target, memory.get("skipped", "not measured"), None)
    tmpfs, payload = memory["tmpfs_nbytes"], memory["payload_nbytes"]
    sides = [memory["controller_anon_nbytes"], memory["worker_anon_nbytes"]]
    text = f"{tmpfs / payload:.3f} payloads, {sides[0] / _MIB:.2f} and {sides[1] / _MIB:.2f} MiB"
    return Verdict(what, target, text, tmpfs <= payload + _HEAD_NBYTES and max(sides) < _ANON_NBYTES)


def _flood(flood: dict[str, Any]) -> Verdict:
    count = flood.get("messages", 100_000)
    what, target = f"{count:,} small messages", "flat RSS, flat fd count"
    if "messages" not in flood:
        return Verdict(what, target, "not measured", None)
    rss = [flood[f"{side}_rss_growth_nbytes"] for side in ("controller", "worker")]
    fds = [flood[f"{side}_fd_growth"] for side in ("controller", "worker")]
    text = f"RSS {rss[0] / 1024:+.0f} and {rss[1] / 1024:+.0f} KiB, fds {fds[0]:+d} and {fds[1]:+d}"
    return Verdict(what, target, text, max(rss) < _FLAT_NBYTES and max(fds) <= 0)


def judge(rows: list[dict[str, Any]], extras: dict[str, dict[str, Any]]) -> list[Verdict]:
    """All targets, in the order of the project's table.

    Args:
        rows: of the sweep.
        extras: what each extra returned.
    """
    text = extras.get("text", {})
    return [
        _bound("text round trip", 2.5, "semaphore ping-pong", _quotient(text.get("ours"), text.get("semaphore"))),
        *_echo(rows),
        *_load(extras.get("files", {})),
        _idle(extras.get("idle", {})),
        _memory(extras.get("memory", {})),
        _flood(extras.get("flood", {})),
    ]
