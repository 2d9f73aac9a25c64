"""What a session holds, and what its worker does. Changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from ..processes.state import ProcessState, state_of
from ..protocol.status import Status
from ..shm.stats import PoolStats, ReaderStats
from ..wire.words import LAST_MOVED, PROCESS_IS
from .worker_handle import WorkerHandle

__all__ = ["Activity", "SessionStats", "WorkerState", "ended_state", "worker_state"]

Activity: TypeAlias = Literal["starting", "idle", "busy", "hung", "stopped", "ended"]

_STILL_MS: Final = 1000.0  # a worker that neither runs nor has moved for so long, in the middle of a request, is hung


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What the worker does at one moment.

    Attributes:
        pid: its process.
        process: what the process does: ``"running"`` on a processor, ``"waiting"`` for something, ``"stopped"`` by a
            signal, ``"ended"``; ``"unknown"`` where the system does not say, or this process has no
            descriptor left to ask it.
        activity: ``"starting"``; ``"idle"``: it waits for a request; ``"busy"`` with one, from the moment it was sent;
            ``"hung"``: in the middle of a request it neither runs nor has moved for a second (a handler that waits for
            something else looks the same); ``"stopped"``; ``"ended"``, also if only its service has ended, and its
            process waits for threads or processes of its own.
        last_moved_ms: milliseconds since it last took a request, used a tensor or answered; None if it does not say.
    """

    pid: int
    process: ProcessState
    activity: Activity
    last_moved_ms: float | None

    def __str__(self) -> str:
        moved = "" if self.last_moved_ms is None else f"{LAST_MOVED}{self.last_moved_ms / 1000:.1f} s ago"
        return f"process {self.pid}{PROCESS_IS}{self.process}{moved}"


@dataclass(frozen=True, slots=True)
class SessionStats(PoolStats):
    """What both sides of a session hold in shared memory, and what its worker does.

    The sessions of a process share one pool of segments, and then each of them gives the numbers of all of it. A
    session with ``auth``, ``checksum`` or ``budget_nbytes`` has its own.

    Attributes:
        results: the worker's segments that are mapped here, and which of them have views in this process.
        log_nbytes: bytes of the worker's log now; it is outside shared memory.
        log_dropped_nbytes: bytes that were cut off the beginning of the log, because it had become too large.
        is_compiled: whether this process has tr_mmap's extension; ``tr_mmap.native.WHY_NOT_COMPILED`` says why not.
        spare_workers: how many processes could become the worker now, see the option of that name.
        worker: what the worker does. Once it has ended, its activity stays ``"ended"`` until the next start.
    """

    results: ReaderStats
    log_nbytes: int
    log_dropped_nbytes: int
    is_compiled: bool
    spare_workers: int
    worker: WorkerState


def worker_state(worker: WorkerHandle, *, is_asked: bool = False) -> WorkerState:
    """What a worker does now.

    Args:
        worker: the worker.
        is_asked: whether a request to it is under way, which it may not have taken up yet.
    """
    identity = worker.process.identity
    process: ProcessState = state_of(identity) if worker.process.is_alive() else "ended"
    moved_ms = worker.channel.heartbeat_age_ms()
    return WorkerState(identity.pid, process, _activity(worker, process, moved_ms, is_asked), moved_ms)


def ended_state(pid: int) -> WorkerState:
    """The state of a worker that has ended and whose handle was released.

    Args:
        pid: of the process that it had.
    """
    return WorkerState(pid, "ended", "ended", None)


def _activity(worker: WorkerHandle, process: ProcessState, moved_ms: float | None, is_asked: bool) -> Activity:
    if process == "ended" or worker.lives_on:
        return "ended"
    if process == "stopped":
        return "stopped"
    status = worker.channel.read_status().status
    if status is Status.STARTING:
        return "starting"
    if status is not Status.BUSY:
        return "busy" if is_asked else "idle"
    return "hung" if process == "waiting" and moved_ms is not None and moved_ms > _STILL_MS else "busy"
