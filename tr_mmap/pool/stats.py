"""What a pool does at one moment. Changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["PoolWorkerStats", "SessionPoolStats", "WorkerPhase"]

WorkerPhase: TypeAlias = Literal["starting", "ready", "retiring", "dead"]


@dataclass(frozen=True, slots=True)
class PoolWorkerStats:
    """One worker of a pool.

    Attributes:
        session_id: of its session.
        pid: its process; None before it was started.
        state: ``"starting"``: it takes no request yet; ``"ready"``; ``"retiring"``: it gets no more requests, and ends
            when it has answered those that it has.
        in_flight: requests that it has.
        done: requests that it has answered; each item of a batch counts.
    """

    session_id: str
    pid: int | None
    state: WorkerPhase
    in_flight: int
    done: int


@dataclass(frozen=True, slots=True)
class SessionPoolStats:
    """A pool. All counts are since its start; each item of a batch counts as one request.

    Attributes:
        max_workers: how many workers it is to have.
        workers: those that it has.
        waiting: requests that no worker has yet.
        done: requests that were answered, with a result or with an error of their handler.
        failed: requests that failed because their workers died, or could not be started.
        retried: attempts that were made again after a worker's death.
        started: workers that were started.
        died: workers that ended without being asked to, or that were ended because they hung.
        spare_workers: processes that could become workers now, see the option of that name.
    """

    max_workers: int
    workers: tuple[PoolWorkerStats, ...]
    waiting: int
    done: int
    failed: int
    retried: int
    started: int
    died: int
    spare_workers: int
