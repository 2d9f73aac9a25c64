"""What the outcome of each attempt means: a result, an error, or another attempt. Sends nothing.

A worker that dies takes with it what its handlers had begun: that counts as an attempt. What only waited in its ring
was not begun, goes to another worker, and does not count. So does what was taken back from a worker (``sending.py``). A
batch that was begun does not count either: it is split, so that the item that is to blame is judged alone.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Final

from ..controller.results import Result
from ..errors import OutOfSpace, RequestCancelled, SessionNotStarted, WorkerDied
from ..wire.messages import WITHDRAWN_TYPE
from ..wire.words import LAST_OUTPUT
from .places import Places
from .staff import Staff
from .staging import Staging
from .tasks import Attempt, Task
from .worker import State, Worker

__all__ = ["Outcomes"]

_DEPTH: Final = 2  # requests in a worker's ring: one that runs, and the next
_MOST_DEPTH: Final = 16
_GAP_S: Final = 0.001  # what a worker's ring is to hold, so that it is not empty before the dispatcher comes again


class Outcomes:
    """The requests of one pool, as far as their outcomes go. Only the dispatcher's thread changes anything.

    Args:
        staff: starts and ends the workers.
        depth: requests that are with one worker; None to choose by how long they take.

    Attributes:
        queue: the requests that no worker has, the first one first.
        outcomes: attempts that were answered or have failed, and how. Any thread may append.
        places: where results lie.
        staging: copies large tensors of requests into shared memory.
        answered, failed, retried: counts.
    """

    def __init__(self, staff: Staff, depth: int | None) -> None:
        self.staff = staff
        self.queue: deque[Task] = deque()
        self.outcomes: deque[tuple[Attempt, Result | Exception]] = deque()
        self.places = Places()
        self.staging = Staging(staff.workers, self.queue)
        self.answered = self.failed = self.retried = 0
        self._returned: list[Task] = []  # that have to be sent again
        self._fixed_depth = depth
        self._depth = depth or _DEPTH
        self._task_s = 0.001  # how long a request takes, about
        self._is_short_of_room = False  # the file system is full: no tensors are sent until something is answered
        self._stuck = 0  # requests at the head of the queue that wait for room

    def _put_back(self, task: Task) -> None:
        task.wait_again()
        self.queue.appendleft(task)

    def _take_outcomes(self) -> None:
        counts: dict[Worker, int] = {}
        while self.outcomes:
            attempt, outcome = self.outcomes.popleft()
            worker = attempt.worker
            worker.in_flight.pop(attempt, None)
            self._is_short_of_room = worker.is_short = False
            if not worker.in_flight and (worker.state is State.RETIRING or worker.left <= 0):
                self.staff.is_changed = True
            if attempt.is_withdrawn:
                continue
            counts[worker] = counts.get(worker, 0) + 1
            task = attempt.task
            if isinstance(outcome, Exception):
                self._take_error(attempt, outcome)
            else:
                self._count(worker, task)
                if outcome[1]:
                    self.places.note(outcome[1], worker)
                task.finish(outcome)
            task.attempt = None  # no cycle keeps the result alive
        if self._returned:
            self.queue.extendleft(reversed(self._returned))  # in the order in which they were sent
            self._returned.clear()
        if counts:
            self._learn(counts)

    def _count(self, worker: Worker, task: Task) -> None:
        """A worker has answered a task."""
        self.staff.note_answer(worker, task.count)
        self.answered += task.count

    def _learn(self, counts: dict[Worker, int]) -> None:
        """How long requests take, from how many were answered since the last look."""
        now_s = time.monotonic()
        for worker, count in counts.items():
            each_s = (now_s - worker.mark_s) / count
            worker.mark_s = now_s
            self._task_s += (min(each_s, 1.0) - self._task_s) * (0.5 if each_s > self._task_s else 0.1)
        if self._fixed_depth is None:
            self._depth = min(_MOST_DEPTH, _DEPTH + int(_GAP_S / max(self._task_s, 1e-6)))

    def _take_error(self, attempt: Attempt, error: Exception) -> None:
        worker, task = attempt.worker, attempt.task
        if isinstance(error, WorkerDied | SessionNotStarted):
            self._take_death(attempt, error)
            return
        if getattr(error, "error_type", "") == WITHDRAWN_TYPE and not attempt.is_unwanted:
            worker.left += task.count
            task.wait_again()
            self._returned.append(task)
            return
        self._count(worker, task)
        if isinstance(error, RequestCancelled) and attempt.is_unwanted:  # else its handler has raised that by itself
            task.cancel()
        elif task.is_batch and self._may_split(error):
            self._returned += task.split()
        else:
            self._fail(task, error, is_answered=True)

    def _may_split(self, error: Exception) -> bool:
        """Whether the worker has refused a batch as such, so that its items are sent one by one."""
        return not getattr(error, "remote_traceback", "") and not isinstance(error, OutOfSpace)

    def _take_death(self, attempt: Attempt, error: Exception) -> None:
        task, worker = attempt.task, attempt.worker
        is_guilty = attempt.was_begun and not task.is_batch  # of a batch, nobody knows which item it is
        task.attempts += is_guilty
        if (is_guilty and task.attempts > task.retries) or self.staff.is_ending:
            self._fail(task, self._died(task, worker, error))
            return
        if attempt.was_begun:
            self.retried += 1
        for each in task.split() if attempt.was_begun else [task]:
            each.attempts = task.attempts
            each.wait_again()
            self._returned.append(each)

    def _died(self, task: Task, worker: Worker, error: Exception) -> WorkerDied:
        code = getattr(error, "exit_code", None)
        tail = getattr(error, "log_tail", "")
        command = task.message if isinstance(task.message, str) else str(dict(task.message))
        count = max(task.attempts, 1)
        tried = "" if count == 1 else f" after {count} attempts"
        why = str(error)
        if worker.culprit is task:
            why = worker.ended_for + (LAST_OUTPUT + tail if tail else "")
        return WorkerDied(
            f"there is no answer to {command[:80]!r}{tried}: {why}", exit_code=code, log_tail=tail, attempts=count
        )

    def _fail(self, task: Task, error: BaseException, *, is_answered: bool = False) -> None:
        if not is_answered:
            self.failed += task.count
        task.fail(error)

    def _give_up_waiting(self, error: Exception) -> None:
        """No worker can be started: what waits for one fails."""
        self.staff.error = None
        while self.queue:
            task = self.queue.popleft()
            if not task.begin():
                continue
            if isinstance(error, WorkerDied):
                self._fail(
                    task,
                    WorkerDied(
                        f"no worker could be started: {error}",
                        exit_code=error.exit_code,
                        log_tail=error.log_tail,
                        attempts=task.attempts,
                    ),
                )
            else:
                self._fail(task, error)
