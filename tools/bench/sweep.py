"""The comparison: all peers in small batches in turn, for one size after another, so that drift hits all alike."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import psutil

from .peers import PEERS, LoanedPeer, Peer, TimedPeer
from .peers.base import FULL_PASS, Array
from .stats import format_nbytes, format_us, summarise

__all__ = ["FULL_SIZES", "QUICK_SIZES", "Limits", "Sweep", "pack", "stages"]

FULL_SIZES: Final = tuple(4**power << 10 for power in range(11))  # 1 KiB to 1 GiB
QUICK_SIZES: Final = (1 << 10, 1 << 20, 64 << 20)

_ANCHORS: Final = ("semaphore", "passes", "ours", "ours-loaned")  # in every group: what the others are compared with
_ALONE: Final = 12  # payloads that the anchors and the hungriest peer hold together
_MEMORY_SHARE: Final = 0.7  # of what is available
_STUCK_S: Final = 120.0
_CHECK_COUNT: Final = 1 << 20  # elements compared at a time
_SEED: Final = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to measure.

    Attributes:
        rounds: turns that each peer gets for a size.
        peer_s: seconds for one peer and size, warm-up included; a peer that has spent them takes no more turns.
        most: the most measurements for one peer and size.
        least: the fewest measurements for one peer and size, whatever ``peer_s`` says.
        slow_s: a peer that would need more seconds than this for ``least`` measurements is not run at that size.
    """

    rounds: int
    peer_s: float
    most: int
    least: int
    slow_s: float

    @classmethod
    def quick(cls) -> Limits:
        return cls(rounds=4, peer_s=0.25, most=1200, least=3, slow_s=6.0)

    @classmethod
    def full(cls) -> Limits:
        return cls(rounds=10, peer_s=0.8, most=4000, least=4, slow_s=15.0)


class _Stuck(Exception):
    pass


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """A peer that does not answer must not hold up the others for ever. Main thread only."""

    def expire(number: int, frame: Any) -> None:  # noqa: ARG001 - the signature is Python's
        raise _Stuck(f"no answer within {seconds:.0f} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@dataclass(slots=True)
class _Entry:
    """One peer at one size."""

    peer: Peer
    samples: list[int] = field(default_factory=list)
    spent_s: float = 0.0
    latency_s: float = 0.0
    is_done: bool = False


def pack(needs: dict[str, int], room_nbytes: int) -> list[list[str]]:
    """Split peers into groups that fit into memory at once; the anchors are in each.

    Args:
        needs: bytes that each peer holds.
        room_nbytes: bytes there are.
    """
    anchors = [key for key in needs if key in _ANCHORS]
    others = [key for key in needs if key not in _ANCHORS]
    base = sum(needs[key] for key in anchors)
    groups: list[list[str]] = [[]]
    used = base
    for key in others:
        if groups[-1] and used + needs[key] > room_nbytes:
            groups.append([])
            used = base
        groups[-1].append(key)
        used += needs[key]
    return [[key for key in needs if key in anchors or key in group] for group in groups]


def stages(keys: Sequence[str], sizes: Sequence[int], room_nbytes: int) -> list[list[int]]:
    """The sizes in stages; peers are started once a stage.

    All sizes at which every peer fits into memory are one stage; each larger size is a stage of its own.
    """
    needed = sum(PEERS[key].payloads for key in keys) + 1
    together = [nbytes for nbytes in sizes if needed * nbytes <= room_nbytes]
    return [each for each in [together, *([nbytes] for nbytes in sizes if nbytes not in together)] if each]


class Sweep:
    """Measures peers over sizes.

    Args:
        keys: the peers.
        sizes: bytes, ascending.
        limits: how long.
        say: called with the step that begins.
        advance: called with the share of the whole that has just been done; the shares add up to 1.
    """

    def __init__(
        self,
        keys: Sequence[str],
        sizes: Sequence[int],
        limits: Limits,
        say: Callable[[str], None] = lambda _text: None,
        advance: Callable[[float], None] = lambda _share: None,
    ) -> None:
        self._sizes = sizes
        self._limits = limits
        self._say = say
        self._advance = advance
        self.absent: dict[str, str] = {}
        self.skipped: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self._keys = []
        for key in keys:
            reason = PEERS[key]().unavailable()
            if reason is None:
                self._keys.append(key)
            else:
                self.absent[key] = reason
        self._last: dict[str, tuple[int, float]] = {}  # the last size that a peer ran, and its seconds
        self._broken: set[str] = set()
        self._random = random.Random(_SEED)

    def run(self) -> None:
        """Measure everything. A peer that fails is recorded as failed and leaves the run; ours raises."""
        room = int(psutil.virtual_memory().available * _MEMORY_SHARE)
        for sizes in stages(self._keys, self._sizes, room):
            nbytes = sizes[-1]
            if nbytes * _ALONE > room:
                for key in self._keys:
                    self._skip(key, nbytes, f"not run: needs {_ALONE * nbytes / 2**30:.0f} GiB of memory")
                self._advance(1 / len(self._sizes))
                continue
            keys = [key for key in self._keys if key not in self._broken and not self._is_too_slow(key, sizes[0])]
            groups = pack({key: PEERS[key].payloads * nbytes for key in keys}, room - nbytes)
            for group in groups:
                self._run_stage(sizes, group, 1 / len(self._sizes) / len(groups))

    def _run_stage(self, sizes: list[int], group: list[str], share: float) -> None:
        source = np.random.default_rng(_SEED).random(max(sizes) // 4, dtype=np.float32)
        peers: dict[str, Peer] = {}
        try:
            for key in group:
                self._say(f"starting {PEERS[key].label}")
                peers[key] = peer = PEERS[key]()
                self._guard(key, sizes[0], peers, lambda peer=peer: peer.start(max(sizes)))
            for nbytes in sizes:
                self._run_size(nbytes, peers, source[: nbytes // 4], share)
        finally:
            for key in list(peers):
                self._say(f"ending {PEERS[key].label}")
                self._close(key, sizes[-1], peers)

    def _guard(self, key: str, nbytes: int, peers: dict[str, Peer], action: Callable[[], object]) -> bool:
        """Call ``action`` for a peer; return whether it succeeded. A peer that fails is closed and leaves the run."""
        try:
            with _deadline(_STUCK_S):
                action()
            return True
        except Exception as error:
            if key in _ANCHORS:
                raise
            self._skip(key, nbytes, f"failed: {type(error).__name__}: {error}"[:200])
            self._broken.add(key)
            self._close(key, nbytes, peers)
            return False

    def _close(self, key: str, nbytes: int, peers: dict[str, Peer]) -> None:
        """End a peer. If that fails or hangs, record it, so that the other peers are still ended."""
        try:
            with _deadline(_STUCK_S):
                peers.pop(key).close()
        except Exception as error:
            self._skip(key, nbytes, f"failed to end: {type(error).__name__}: {error}"[:200])
            self._broken.add(key)

    def _skip(self, key: str, nbytes: int, reason: str) -> None:
        self.skipped.append({"peer": key, "nbytes": nbytes, "reason": reason})

    def _is_too_slow(self, key: str, nbytes: int, seconds: float | None = None) -> bool:
        if seconds is None:
            if key not in self._last:
                return False
            last_nbytes, last_s = self._last[key]
            # Latency may or may not grow with the size; assume that it does once it is longer than any wake-up.
            seconds = last_s * (nbytes / last_nbytes if last_s > 0.1 else 1)
        if key in _ANCHORS or seconds * (self._limits.least + 1) <= self._limits.slow_s:
            return False
        self._skip(key, nbytes, f"not run: too slow (about {format_us(seconds * 1e6)} each)")
        return True

    def _run_size(self, nbytes: int, peers: dict[str, Peer], x: Array, share: float) -> None:
        entries: dict[str, _Entry] = {}
        for key in list(peers):
            if self._is_too_slow(key, nbytes):
                continue
            self._say(f"{format_nbytes(nbytes)}: checking {PEERS[key].label}")
            entry = _Entry(peers[key])
            if self._guard(key, nbytes, peers, lambda entry=entry: _check(entry, x, self._limits.slow_s)):
                if self._is_too_slow(key, nbytes, entry.latency_s):
                    self._last[key] = (nbytes, entry.latency_s)
                    continue
                entries[key] = entry
        rounds = self._limits.rounds
        for _ in range(rounds):
            order = [key for key, entry in entries.items() if not entry.is_done]
            self._random.shuffle(order)
            for key in order:
                self._say(f"{format_nbytes(nbytes)}: {PEERS[key].label}")
                if not self._guard(key, nbytes, peers, lambda key=key: self._batch(entries[key], x)):
                    del entries[key]
            self._advance(share / rounds)
        self._finish(nbytes, entries)

    def _batch(self, entry: _Entry, x: Array) -> None:
        limits = self._limits
        began_s = time.perf_counter()
        # The peers before have taken the caches, and pollers have dozed off: neither is the next peer's doing.
        for _ in range(2 if entry.latency_s < 0.005 else 1 if entry.latency_s < 0.25 else 0):
            _measure_batch(entry.peer, x, 1, 0.0)
        samples = _measure_batch(entry.peer, x, -(-limits.most // limits.rounds), limits.peer_s / limits.rounds)
        entry.samples += samples
        entry.latency_s = sorted(samples)[len(samples) // 2] / 1e9
        entry.spent_s += time.perf_counter() - began_s
        entry.is_done = entry.spent_s > limits.peer_s and len(entry.samples) >= limits.least

    def _finish(self, nbytes: int, entries: dict[str, _Entry]) -> None:
        medians = {key: summarise(entry.samples).median_us for key, entry in entries.items()}
        for key, entry in entries.items():
            summary = summarise(entry.samples)
            self._last[key] = (nbytes, summary.median_us / 1e6)
            known = [row for row in self.rows if row["peer"] == key and row["nbytes"] == nbytes]
            base = medians.get("ours-loaned" if entry.peer.is_loaned else "ours")
            row = {
                "peer": key,
                "nbytes": nbytes,
                **summary.to_json(),
                "ours_ratio": None if base is None else round(base / summary.median_us, 5),
                "loaned_ratio": None
                if "ours-loaned" not in medians
                else round(medians["ours-loaned"] / summary.median_us, 5),
            }
            if not known:  # an anchor that ran in a group before keeps its first figures; ratios use their own group's
                self.rows.append(row)


def _check(entry: _Entry, x: Array, slow_s: float) -> None:
    """Compare every element of an answer, and set the latency. This also touches all memory for the first time."""
    peer = entry.peer
    for _ in range(2):  # the second time nothing is new
        began_s = time.perf_counter()
        if isinstance(peer, TimedPeer):
            entry.latency_s = peer.check(x.size) / 1e9
            continue
        if isinstance(peer, LoanedPeer):
            loan = peer.loan(x.size)
            np.copyto(loan, x)
            loan[1] = FULL_PASS
            y = peer.roundtrip(loan)
            del loan
            expected_1 = FULL_PASS + 1
        else:
            y = peer.roundtrip(x)
            expected_1 = x[1] + 1
        entry.latency_s = time.perf_counter() - began_s
        if peer.key != "semaphore":
            if y.size != x.size or y[0] != x[0] + 1 or y[1] != expected_1:
                raise ValueError("the answer is wrong")
            for start in range(2, x.size, _CHECK_COUNT):
                part = slice(start, start + _CHECK_COUNT)
                if not np.array_equal(y[part], x[part] + 1):
                    raise ValueError(f"the answer is wrong after element {start}")
        del y
        peer.release()
        if entry.latency_s > slow_s / 2:
            break


def _measure_batch(peer: Peer, x: Array, most: int, quota_s: float) -> list[int]:
    """Nanoseconds of each round trip: at most ``most`` of them, at least one, until ``quota_s`` is spent."""
    if isinstance(peer, TimedPeer):
        return peer.measure(x.size, most, quota_s)
    samples: list[int] = []
    until_s = time.perf_counter() + quota_s
    for number in range(most):
        samples.append(_measure(peer, x, number))
        if time.perf_counter() > until_s:
            break
    return samples


def _measure(peer: Peer, x: Array, number: int) -> int:
    """Nanoseconds of one round trip: fill or send, ask, read the ends, let go."""
    clock = time.perf_counter_ns
    if isinstance(peer, LoanedPeer):
        began = clock()
        loan = peer.loan(x.size)
        loan[0] = number
        loan[1] = 0
        loan[-1] = number
        y = peer.roundtrip(loan)
        del loan
    else:
        x[0] = number
        x[-1] = number
        began = clock()
        y = peer.roundtrip(x)
    first, last = y[0], y[-1]
    del y
    peer.release()
    took = clock() - began
    if not first == last == number + (peer.key != "semaphore"):
        raise ValueError(f"the answer's ends are {first} and {last}, not {number + 1}")
    return took
