"""Tasks: runs whose results are asked for later. To be used in the loop's thread."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec

from .api import TaskInfo
from .errors import AlreadyDone, NotFound, Overloaded
from .payloads import Done
from .problems import describe
from .scheduler import Job, Scheduler
from .tokens import Principal

__all__ = ["Task", "Tasks"]

_ENDED: Final = ("success", "failed", "cancelled")
_BASE_NBYTES: Final = 4096  # of a task without a result


class Task:
    """One task.

    Attributes:
        id: by which clients know it.
        subject: whose it is.
        job: the scheduler's; None once it has ended, because a job has its inputs.
        info: what clients are told.
        nbytes: of memory that it takes once it has ended, about.
        ended_s: when it has, by ``time.monotonic``.
    """

    def __init__(self, job: Job, algorithm: str | None, on_end: Callable[[Task], None]) -> None:
        self.id = uuid.uuid4().hex
        self.subject = job.subject
        self.job: Job | None = job
        self.nbytes = _BASE_NBYTES
        self._on_end = on_end
        self.info = TaskInfo(
            task_id=self.id, status="queued", algorithm=algorithm, priority=job.priority, created_at=time.time()
        )
        self.changed = asyncio.Event()
        self.ended_s = 0.0
        job.on_change = self._change

    @property
    def is_ended(self) -> bool:
        """Whether it has its result, or will never have one."""
        return self.info.status in _ENDED

    def _change(self, job: Job) -> None:
        info = self.info
        info.status = job.state
        if job.state == "running":
            info.started_at = time.time()
        elif job.state in _ENDED:
            info.ended_at = time.time()
            self.ended_s = time.monotonic()
            self.job = None
            error = job.future.exception()
            if error is None:
                done: Done = job.future.result()
                info.result, info.stdout, info.execution_time_ms = done.result, done.stdout, done.execution_time_ms
                self.nbytes += len(done.result) + len(done.stdout)
            else:
                info.error = describe(error, job.request_id)
                self.nbytes += len(msgspec.json.encode(info.error))
            self._on_end(self)
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class Tasks:
    """The tasks of a gateway. Those that have ended are kept for a while, as many as there is room for.

    Where there is not, the oldest goes of the subject that takes most: nobody's results go because of somebody else's.

    Args:
        scheduler: that runs them.
        most: how many are kept, those that have not ended included.
        most_nbytes: of those that have ended; one is kept in any case.
        keep_s: how long one is kept that has ended.
    """

    def __init__(self, scheduler: Scheduler, most: int, most_nbytes: int, keep_s: float) -> None:
        self._scheduler = scheduler
        self._most = most
        self._most_nbytes = most_nbytes
        self._keep_s = keep_s
        self._tasks: dict[str, Task] = {}
        self._ended: OrderedDict[str, Task] = OrderedDict()  # those of them that have, in the order of their ends
        self._nbytes: Counter[str] = Counter()  # of those, by subject

    def start(self, job: Job, algorithm: str | None) -> Task:
        """Queue a job as a task.

        Raises:
            Overloaded: there are too many tasks that have not ended; and as :meth:`Scheduler.submit`.
        """
        self._forget_old()
        if len(self._tasks) >= self._most and not self._ended:
            raise Overloaded(
                f"{self._most} tasks wait or go on already, as many as [scheduler] max_tasks lets; wait for one to end",
                retry_after_s=1.0,
            )
        task = Task(job, algorithm, self._keep)
        self._scheduler.submit(job)
        self._tasks[task.id] = task
        if len(self._tasks) > self._most:
            self._forget_one()
        return task

    def get(self, task_id: str, principal: Principal) -> Task:
        """
        Raises:
            NotFound: there is none of that id, any more, or it is another subject's.
        """
        self._forget_old()
        task = self._tasks.get(task_id)
        if task is None or (task.subject != principal.subject and not principal.is_admin):
            raise NotFound(
                f"there is no task {task_id!r:.80}; those that have ended are kept for {self._keep_s:g} s, or for less "
                "if there are many of them"
            )
        return task

    def cancel(self, task: Task) -> None:
        """
        Raises:
            AlreadyDone: it has ended.
        """
        if task.job is None or not self._scheduler.cancel(task.job):
            raise AlreadyDone(f"the task has ended already: {task.info.status}")

    async def events(self, task: Task, every_s: float = 15.0) -> AsyncIterator[TaskInfo | None]:
        """Its state now, and after each change, until it has ended; None when there was none for so many seconds."""
        while True:
            changed, is_last = task.changed, task.is_ended  # it may end while the client reads
            yield task.info
            if is_last:
                return
            while True:
                try:
                    await asyncio.wait_for(changed.wait(), every_s)
                    break
                except TimeoutError:
                    yield None

    def counts(self) -> dict[str, int]:
        """How many there are, by status."""
        return dict(Counter(each.info.status for each in self._tasks.values()))

    def _keep(self, task: Task) -> None:
        """It has ended."""
        self._ended[task.id] = task
        self._nbytes[task.subject] += task.nbytes
        while self._nbytes.total() > self._most_nbytes and len(self._ended) > 1:
            self._forget_one()

    def _forget_old(self) -> None:
        now_s = time.monotonic()
        while self._ended:
            oldest = next(iter(self._ended.values()))
            if now_s - oldest.ended_s < self._keep_s:
                return
            self._forget(oldest)

    def _forget_one(self) -> None:
        ((subject, _),) = self._nbytes.most_common(1)
        self._forget(next(each for each in self._ended.values() if each.subject == subject))

    def _forget(self, task: Task) -> None:
        del self._tasks[task.id], self._ended[task.id]
        self._nbytes[task.subject] -= task.nbytes
        if not self._nbytes[task.subject]:
            del self._nbytes[task.subject]
