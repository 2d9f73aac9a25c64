"""The errors of a request that gets no answer: the worker has died, or works on. Ends no request, forgets no worker."""

from __future__ import annotations

from ..errors import ResponseTimeout, WorkerDied
from ..protocol.status import Status
from ..wire.words import (
    ABORT_ADVICE,
    BUSY_WITH_OTHER,
    LAST_OUTPUT,
    NO_OUTPUT,
    NO_OUTPUT_SINCE,
    NOT_SENT,
    NOT_TAKEN_UP,
    PROCESS_STOPPED,
    STILL_STARTING,
    STOPPED_ADVICE,
    TAKEN_UP,
    WAIT_ADVICE,
)
from .launch import advice_on
from .options import shown_ms
from .stats import worker_state
from .worker_handle import WorkerHandle

__all__ = ["died", "unanswered"]


def unanswered(
    worker: WorkerHandle,
    command: str,
    timeout_s: float,
    *,
    order: int | None = None,
    other: str | None = None,
    place: str = "",
) -> ResponseTimeout:
    """The error for a response that has not come. It says what the worker does.

    Args:
        worker: which was to respond.
        command: of the request; "" if the caller has made none.
        timeout_s: what the user said.
        order: how many requests were sent to the worker before; None if it was not sent.
        other: the command of the request that is under way, for which this one waits; "" if that is unknown; None if it
            waits for none.
        place: what to say of a worker that may look for its session elsewhere.
    """
    state = worker_state(worker)
    status = worker.channel.read_status().status
    is_taken_up = order is not None and worker.channel.is_taken_up(order)
    if is_taken_up:
        other = None
    taken = TAKEN_UP if is_taken_up else NOT_TAKEN_UP
    if status is Status.BUSY and not is_taken_up and other is None:
        taken += BUSY_WITH_OTHER
    if status is Status.STARTING:
        taken = STILL_STARTING
    advice = WAIT_ADVICE
    if state.process == PROCESS_STOPPED:
        advice = f"{STOPPED_ADVICE}{state.pid}"
    elif is_taken_up:
        advice += f"{ABORT_ADVICE}{state.pid}"
    what = f"no response to {command!r}" if command else "no response"
    why = "" if other is None else f"{NOT_SENT} ({other!r})" if other else NOT_SENT
    return ResponseTimeout(
        f"{what} within {shown_ms(timeout_s * 1000)} ms{why}: {taken}; {state}; {advice}{'' if is_taken_up else place}",
        timeout_ms=timeout_s * 1000,
        command=command,
        pid=state.pid,
        state=state.process,
        is_taken_up=is_taken_up,
        last_moved_ms=state.last_moved_ms,
    )


def died(worker: WorkerHandle, session_id: str) -> WorkerDied:
    """The error for those that wait for a worker that has ended, or serves no more.

    Args:
        worker: the worker.
        session_id: of its session.
    """
    end = worker.how_it_ended()
    code, tail = end.exit_code, end.log_tail
    how = "with status unknown" if code is None else f"killed by signal {-code}" if code < 0 else f"status {code}"
    output = f"{LAST_OUTPUT}{tail}" if tail else NO_OUTPUT_SINCE if end.has_printed else NO_OUTPUT
    is_killed = code is not None and code < 0
    interpreter = "" if end.was_ready or is_killed else worker.process.program
    advice = f"\n{found}" if (found := advice_on(tail, interpreter)) else ""
    what = f"ended ({how})"
    if end.lives_on:
        pid = worker.process.pid
        what = f"has ended its service, and its process {pid} waits for its own threads or processes"
    return WorkerDied(f"the worker of session {session_id!r} {what}{output}{advice}", exit_code=code, log_tail=tail)
