"""The targets that the project has set itself, and what a run says about each. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from .stats import format_ratio

__all__ = ["Verdict", "judge"]

_MIB: Final = 1 << 20
_ANON_NBYTES: Final = 8 * _MIB
_FLAT_NBYTES: Final = _MIB  # "flat": less than the allocator's own noise
_DIM: Final = 384  # of the vectors of stores
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


def _within(what: str, limit: float, unit: str, value: float | None) -> Verdict:
    target = f"≤ {limit:g} {unit}"
    if value is None:
        return Verdict(what, target, "not measured", None)
    return Verdict(what, target, f"{value:.3g} {unit}", value <= limit)


def _pool(found: dict[str, Any]) -> list[Verdict]:
    small, large, sent = (found.get(name, {}) for name in (str(1 << 10), str(_MIB), "broadcast"))
    handed = found.get("handed_on", {})
    others = [each for name, each in large.items() if name != "ours"]
    best = min(others, key=lambda each: each["median_us"], default=None)
    what = "a map over new arrays, 2 processes"
    return [
        _at_least(f"{what}, 1 MiB", 15, "the best of the other pools", _quotient(best, large.get("ours"))),
        _at_least(f"{what}, 1 KiB", 1, "joblib", _quotient(small.get("joblib"), small.get("ours"))),
        _at_least(f"{what}, 1 KiB", 3, "mp.Pool.imap", _quotient(small.get("imap"), small.get("ours"))),
        _bound("one 64 MiB tensor to 4 workers", 1.5, "one memcpy", _quotient(sent.get("ours"), sent.get("memcpy"))),
        _bound(
            "a result of one worker into another, 64 MiB",
            1.5,
            "a 1 KiB hand-over",
            _quotient(handed.get(str(64 * _MIB)), handed.get(str(1 << 10))),
        ),
    ]


def _calls(found: dict[str, Any]) -> list[Verdict]:
    small, plain = found.get("small", {}), found.get("plain", {})
    ours, numpys = small.get("torch decorator", {}), small.get("numpy decorator", {})
    torch = [
        _bound(f"torch, {what}", 1.5, "numpy's", _quotient(ours.get(kind), numpys.get(kind)))
        for kind, what in (
            ("copied", "1 KiB, copied"),
            ("loaned", "1 KiB, loaned"),
            ("loaned_large", "64 MiB, loaned on both sides"),
        )
    ]
    loaned = _quotient(numpys.get("loaned_large"), numpys.get("loaned"))
    torch.append(_bound("64 MiB, loaned on both sides", 1.2, "its own 1 KiB", loaned))
    grown = [
        _bound(
            f"`x * 1.5`, 64 MiB, {framework}, {how}",
            limit,
            "computing it in the caller",
            _quotient(of.get(call), of.get("here")),
        )
        for framework, of in ((each, plain.get(each, {})) for each in ("numpy", "torch"))
        for call, how, limit in (("tag", "input under a tag", 1.1), ("calculate", "by calculate", 1.4))
    ]
    return torch + grown


def _in_flight(found: dict[str, Any]) -> list[Verdict]:
    count = found.get("awaits", 10_000)

    def faster(name: str, than: str) -> float | None:
        return _quotient(found.get(than), found.get(name))

    pool = "asyncio over ProcessPoolExecutor"
    return [
        _at_least("32 texts in flight, requests a second", 2.5, "one at a time", faster("submit", "one_by_one")),
        _bound("an await of a text", 2.5, "a blocking round trip", faster("blocking", "await")),
        _at_least(f"{count:,} awaits at once over one session", 5, f"{pool}, one process", faster("gather", "pool")),
        _at_least(
            f"{count:,} awaits at once over {found.get('many', 4)} sessions",
            5,
            f"{pool}, as many processes",
            faster("gather_many", "pool_many"),
        ),
    ]


def _sandbox(found: dict[str, Any]) -> list[Verdict]:
    contained, wasm, held = (found.get(name, {}) for name in ("contained", "wasm", "held"))

    def ratio(cells: dict[str, Any], name: str) -> float | None:
        return _quotient(cells.get(name), cells.get("numpy"))

    def ms(cells: dict[str, Any], name: str) -> float | None:
        return cells[name]["median_us"] / 1000 if name in cells else None

    numpy = "numpy here"
    return [
        _within("contained: a fresh process from a spare", 15, "ms", ms(contained, "start")),
        _within("contained: a run in a process that is kept", 1, "ms", ms(contained, "warm")),
        _within("wasm: a module starts, in its process", 5, "ms", ms(wasm, "engine_start")),
        _within("wasm: a call, in its process", 0.1, "ms", ms(wasm, "engine_call")),
        _bound("contained: 64 MiB in and out, fresh process", 2, numpy, ratio(contained, "fresh")),
        _bound("contained: the same, one right after another", 2, numpy, ratio(contained, "fresh_in_a_row")),
        _bound("contained: 64 MiB in and out, fresh process, a loan", 2, numpy, ratio(contained, "fresh_loan")),
        _bound("contained: 64 MiB in and out, kept process", 1.2, numpy, ratio(contained, "reused")),
        _bound("contained: 64 MiB in and out, kept process, a loan", 1.2, numpy, ratio(contained, "reused_loan")),
        _bound("wasm: 64 MiB in and out, kept mapping", 1.5, numpy, ratio(wasm, "kept")),
        _bound("wasm: 64 MiB in and out, kept mapping, a loan", 1.5, numpy, ratio(wasm, "kept_loan")),
        _within("contained: beyond a limit on time", 100, "ms", contained.get("overrun_ms")),
        _within("wasm: beyond a limit on time", 50, "ms", wasm.get("overrun_ms")),
        _within("memory of an open sandbox", 512, "MiB", held["nbytes"] / _MIB if "nbytes" in held else None),
        _within("idle CPU of an open sandbox", 1, "% of one core", held.get("idle_percent")),
        Verdict(
            "10 sandboxes at once",
            "all right",
            f"{held['right']} of {held['boxes']}" if "right" in held else "not measured",
            held["right"] == held["boxes"] if "right" in held else None,
        ),
    ]


def _at_least(what: str, limit: float, of: str, ratio: float | None) -> Verdict:
    target = f"≥ {limit:g} × {of}"
    if ratio is None:
        return Verdict(what, target, "not measured", None)
    return Verdict(what, target, f"{format_ratio(ratio)} ×", ratio >= limit)


def _store(found: dict[str, Any]) -> list[Verdict]:
    get, top, tensor, filtered = (found.get(name, {}) for name in ("get", "top", "tensor", "filter"))
    readers, writers, visible, loop = (found.get(name, {}) for name in ("readers", "writers", "visible", "loop"))

    def ratio(cells: dict[str, Any], under: str, over: str = "ours") -> float | None:
        return _quotient(cells.get(over), cells.get(under))

    record = f"store: get of a record with {_DIM} numbers"
    nearest = f"store: exact top 10 of {top.get('records', 100_000):,} × {_DIM}"
    latest_us = [each["held_p99_us"] for each in loop.values()]
    return [
        _bound(record, 1.5, "bare lmdb + msgspec", ratio(get, "lmdb")),
        _bound(record, 0.2, "Redis", ratio(get, "redis")),
        _bound(record, 0.05, "chromadb", ratio(get, "chroma")),
        _bound(record, 0.05, "lancedb", ratio(get, "lance")),
        _bound("store: get of a 64 MiB tensor", 1.3, "tr_mmap.load", ratio(tensor, "load")),
        _bound(nearest, 1.15, "bare numpy", ratio(top, "numpy")),
        _bound(nearest, 0.5, "sqlite-vec", ratio(top, "sqlite-vec")),
        Verdict(
            "store: recall with a filter that leaves 1 %",
            "1.0",
            f"{filtered['recall']:.4g}" if filtered else "not measured",
            filtered["recall"] == 1 if filtered else None,
        ),
        _bound("store: such a search", 0.3, "the unfiltered one", ratio(filtered, "unfiltered", "filtered")),
        _bound(
            f"store: memory of {readers.get('count', 8)} readers",
            1.1,
            "that of one",
            readers["many_nbytes"] / readers["one_nbytes"] if readers else None,
        ),
        _at_least(
            f"store: records a second of {writers.get('count', 8)} writers",
            0.8,
            "those of one",
            writers["many_rate"] / writers["one_rate"] if writers else None,
        ),
        Verdict(
            "store: records that these have lost",
            "0",
            str(writers["lost"]) if writers else "not measured",
            writers["lost"] == 0 and not writers["wrong"] if writers else None,
        ),
        _within(
            "store: a commit is seen by another process, p99",
            1,
            "ms",
            visible["from_call"]["p99_us"] / 1000 if visible else None,
        ),
        _within("store: an empty one", 1, "MiB", found["empty"]["nbytes"] / _MIB if "empty" in found else None),
        _within("store: asyncio's loop waits for a method, p99", 5, "ms", max(latest_us) / 1000 if latest_us else None),
    ]


def _gateway(found: dict[str, Any]) -> list[Verdict]:
    cells, alone = found.get("json", {}), found.get("alone", {})
    ours = cells.get("ours", {})

    def rate(peer: str) -> float | None:
        theirs = cells.get(peer, {}).get("rate")
        return ours["rate"] / theirs if ours and theirs else None

    times = cells.get("triton", {}).get("p99_us")
    right = alone.get("at_once_right")
    return [
        _at_least("gateway: JSON requests a second, 8 connections, with a token", 3, "LitServe", rate("litserve")),
        _at_least("gateway: the same", 3, "BentoML", rate("bentoml")),
        _at_least("gateway: the same", 1, "Triton's Python backend, without a token", rate("triton")),
        _bound(
            "gateway: p99 at half of the saturating rate",
            1,
            "Triton's",
            ours["p99_us"] / times if times and "p99_us" in ours else None,
        ),
        _within("gateway: its start", 2000, "ms", alone.get("start_ms")),
        _within("gateway: a sandbox for one run", 100, "ms", alone.get("sandbox_ms")),
        _within("gateway: a sandbox of other limits, with Python and numpy", 500, "ms", alone.get("python_ms")),
        _within("gateway: simple code", 50, "ms", alone.get("code_ms")),
        _within("gateway: memory of all its processes", 512, "MiB", alone["nbytes"] / _MIB if alone else None),
        _within("gateway: idle CPU", 1, "% of one core", alone.get("idle_percent")),
        Verdict(
            f"gateway: {alone.get('at_once', 16)} connections with fresh processes at once",
            "all right",
            f"{right} right, {alone['at_once_bad']} not" if right is not None else "not measured",
            bool(right) and not alone["at_once_bad"] if right is not None else None,
        ),
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


def _startup(startup: dict[str, Any]) -> Verdict:
    ours = startup.get("ours_spare")
    return _within("a later start, with a spare worker", 40, "ms", ours["median_us"] / 1000 if ours else None)


def judge(rows: list[dict[str, Any]], extras: dict[str, dict[str, Any]]) -> list[Verdict]:
    """All targets, in the order of the project's table.

    Args:
        rows: of the sweep.
        extras: what each extra returned.
    """
    text = extras.get("text", {})
    return [
        _bound("text round trip", 1.8, "semaphore ping-pong", _quotient(text.get("ours"), text.get("semaphore"))),
        *_echo(rows),
        *_calls(extras.get("calls", {})),
        *_in_flight(extras.get("in_flight", {})),
        *_pool(extras.get("pool", {})),
        *_load(extras.get("files", {})),
        _startup(extras.get("startup", {})),
        *_sandbox(extras.get("sandbox", {})),
        *_store(extras.get("store", {})),
        *_gateway(extras.get("gateway", {})),
        _idle(extras.get("idle", {})),
        _memory(extras.get("memory", {})),
        _flood(extras.get("flood", {})),
    ]
