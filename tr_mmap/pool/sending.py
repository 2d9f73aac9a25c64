"""Which worker gets a request, and its way there. Starts no process; how it ends is said in ``outcomes.py``.

A request for whose tensors there is no room waits for an answer, which makes room. It does not hold up those behind it
that have no tensors.
"""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Final, cast

from ..errors import OutOfSpace, SessionNotStarted, WorkerDied
from .outcomes import Outcomes
from .staff import Staff
from .tasks import Attempt, Hub, Task
from .worker import State, Worker

__all__ = ["PATIENCE_S", "Sending"]

PATIENCE_S: Final = 0.02  # how long a request may run before those behind it go to workers that have none
_MOST_PASSED: Final = 64  # requests without room that others may pass: each one costs a look


class Sending(Outcomes):
    """The requests of one pool, as far as they are given to workers. Only the dispatcher's thread calls anything.

    Args:
        staff: starts and ends the workers.
        depth: requests that are with one worker; None to choose by how long they take.

    The dispatcher, which is of this class, is the hub of the attempts.
    """

    def __init__(self, staff: Staff, depth: int | None) -> None:
        super().__init__(staff, depth)
        self._next_look_s = math.inf

    def _has_room(self) -> bool:
        """Whether a worker could take a request now, if there is room for its tensors."""
        return any(
            each.state is State.READY and len(each.in_flight) < self._depth and each.left > 0
            for each in self.staff.workers
        )

    def _process(self, worker: Worker) -> bool:
        """Take a worker's answers, and notice its end. Returns whether it lives."""
        if worker.state is State.DEAD or not worker.is_started:
            return False
        worker.futures.process()
        if worker.is_over():
            self._bury(worker)
            return False
        return True

    def _bury(self, worker: Worker) -> None:
        """A worker has ended: what it had goes to others, and another one takes its place."""
        if worker.state is State.DEAD:
            return
        worker.futures.process()  # what it has answered before its end, and the rest as errors
        self.staff.note_dead(worker)
        self._take_outcomes()
        self.places.forget(worker)
        for attempt in list(worker.in_flight):  # not to be expected: each has its outcome now
            attempt.settle(SessionNotStarted("the worker has ended"))

    def _pick(self, task: Task) -> Worker | None:
        """The worker that has the fewest requests; of several, the one in whose memory the arguments lie."""
        best, fewest, needs_room = None, self._depth, bool(task.tensors)
        if needs_room and self._is_short_of_room:
            return None
        for worker in self.staff.workers:
            if worker.state is State.READY and worker.left >= task.count and len(worker.in_flight) < fewest:
                if needs_room and worker.is_short:
                    continue
                best, fewest = worker, len(worker.in_flight)
                if not fewest and task.home is None:
                    break
        home = task.home
        if home is None or best is None or home.state is not State.READY or home.left < task.count or home.is_short:
            return best
        return home if len(home.in_flight) <= fewest else best

    def _dispatch(self) -> None:
        """Give requests to workers, as many as they may have."""
        queue, passed = self.queue, 0
        rung: set[Worker] = set()
        while passed < min(len(queue), _MOST_PASSED):
            try:
                task = queue[passed]
            except IndexError:  # a submit that came too late has just withdrawn it
                break
            worker = self._pick(task)
            if worker is None:
                if not (self._waits_for_room(task) and self._has_room()):
                    self._pass_by(task.count)
                    break
                passed += 1  # those behind it may need no room
            elif self._take_out(passed, task) and task.begin() and self._send(worker, task):
                rung.add(worker)
        self._stuck = passed if passed < _MOST_PASSED else len(queue)
        for worker in rung:
            worker.futures.ring()

    def _take_back(self, now_s: float) -> None:
        """Give requests that wait behind a long one to workers that have none."""
        taken = []
        for attempt in self._could_be_taken_back():
            worker, task = attempt.worker, attempt.task
            if now_s - worker.mark_s >= PATIENCE_S and task.take_back(attempt):
                worker.left += task.count
                taken.append(task)
        self.queue.extendleft(reversed(taken))

    def _could_be_taken_back(self) -> list[Attempt]:
        """What waits in rings behind other requests, and could be begun by workers that have none; one for each."""
        ready = () if self.queue else [each for each in self.staff.workers if each.state is State.READY]
        idle = sorted(each.left for each in ready if not each.in_flight and each.left > 0 and not each.is_short)
        serving = (each for each in self.staff.workers if each.state in (State.READY, State.RETIRING))
        found: list[Attempt] = []
        for attempt in (each for worker in serving for each in list(worker.in_flight)[1:]) if idle else ():
            if idle and attempt.task.count <= idle[-1] and attempt.can_be_withdrawn():
                idle.pop()
                found.append(attempt)
        return found

    def _take_out(self, place: int, task: Task) -> bool:
        """Take a request out of the queue. Returns False if it is not there: its submit came too late."""
        queue = self.queue
        try:
            if queue[place] is task:
                del queue[place]  # no call in between, so that no other thread changes the queue
                return True
        except IndexError:
            pass
        return False

    def _waits_for_room(self, task: Task) -> bool:
        """Whether only a lack of room may keep a request from a worker."""
        return bool(task.tensors) and (
            self._is_short_of_room or any(each.is_short for each in self.staff.workers if each.state is State.READY)
        )

    def _pass_by(self, count: int) -> None:
        """A batch is larger than what some workers may still get: these go."""
        for worker in self.staff.workers:
            if worker.state is State.READY and 0 < worker.left < count:
                worker.left = 0
                self.staff.is_changed = True
                self._next_look_s = 0.0

    def _send(self, worker: Worker, task: Task) -> bool:
        """Send a request. Returns whether it was sent; if not, it waits again, or has failed."""
        try:
            attempt = worker.futures.send(
                task.message,
                task.tensors,
                math.inf,
                task.framework,
                partial(Attempt, cast(Hub, self), worker, task),
                task.on_progress,
                is_quiet=True,
            )
        except (WorkerDied, SessionNotStarted):
            self._put_back(task)
            self._bury(worker)
            return False
        except OutOfSpace as error:
            # An answer makes room: one of that worker if its budget is used up, else one of any.
            is_own = error.is_budget and not task.was_taken_back
            waits_for = [worker] if is_own else self.staff.workers
            if not any(each.in_flight for each in waits_for):
                self._fail(task, error)
                return False
            self._put_back(task)
            if is_own:
                worker.is_short = True
            else:
                self._is_short_of_room = True
            return False
        except BaseException as error:  # of the arguments, which may be objects of any class: its caller gets it
            self._fail(task, error)
            return False
        if not worker.in_flight:
            worker.mark_s = time.monotonic()
        worker.in_flight[attempt] = None
        worker.left -= task.count
        task.attempt = attempt
        if task.limit_s < math.inf:
            self._next_look_s = 0.0
        return True
