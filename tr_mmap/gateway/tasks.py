"""Tasks: runs whose results are asked for later. To be used in the loop's thread."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator

from .api import TaskInfo
from .errors import AlreadyDone, NotFound, Overloaded
from .payloads import Done
from .problems import describe
from .scheduler import Job, Scheduler
from .tokens import Principal

__all__ = ["Task", "Tasks"]

_ENDED = ("success", "failed", "cancelled")


class Task:
    """One task.

    Attributes:
        id: by which clients know it.
        subject: whose it is.
        job: the scheduler's.
    """

    def __init__(self, job: Job, algorithm: str | None) -> None:
        self.id = uuid.uuid4().hex
        self.subject = job.subject
        self.job = job
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
            error = job.future.exception()
            if error is None:
                done: Done = job.future.result()
                info.result, info.stdout, info.execution_time_ms = done.result, done.stdout, done.execution_time_ms
            else:
                info.error = describe(error, job.request_id)
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class Tasks:
    """The tasks of a gateway.

    Args:
        scheduler: that runs them.
        most: how many are kept.
        keep_s: how long one is kept that has ended.
    """

    def __init__(self, scheduler: Scheduler, most: int, keep_s: float) -> None:
        self._scheduler = scheduler
        self._most = most
        self._keep_s = keep_s
        self._tasks: OrderedDict[str, Task] = OrderedDict()  # in the order of their arrival

    def start(self, job: Job, algorithm: str | None) -> Task:
        """Queue a job as a task.

        Raises:
            Overloaded: there are too many tasks that have not ended; and as :meth:`Scheduler.submit`.
        """
        self._forget_old()
        if len(self._tasks) >= self._most:
            ended = next((each for each in self._tasks.values() if each.is_ended), None)
            if ended is None:
                raise Overloaded(f"{self._most} tasks wait or go on already", retry_after_s=1.0)
            del self._tasks[ended.id]
        task = Task(job, algorithm)
        self._scheduler.submit(job)
        self._tasks[task.id] = task
        return task

    def get(self, task_id: str, principal: Principal) -> Task:
        """
        Raises:
            NotFound: there is none of that id, any more, or it is another subject's.
        """
        self._forget_old()
        task = self._tasks.get(task_id)
        if task is None or (task.subject != principal.subject and not principal.is_admin):
            raise NotFound(f"there is no task {task_id!r:.80}; those that have ended are kept for {self._keep_s:g} s")
        return task

    def cancel(self, task: Task) -> None:
        """
        Raises:
            AlreadyDone: it has ended.
        """
        if not self._scheduler.cancel(task.job):
            raise AlreadyDone(f"the task has ended already: {task.info.status}")

    async def events(self, task: Task, every_s: float = 15.0) -> AsyncIterator[TaskInfo | None]:
        """Its state now, and after each change, until it has ended; None when there was none for so many seconds."""
        while True:
            changed = task.changed
            yield task.info
            if task.is_ended:
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

    def _forget_old(self) -> None:
        now_s = time.monotonic()
        while self._tasks:
            oldest = next(iter(self._tasks.values()))
            if not oldest.is_ended or now_s - oldest.ended_s < self._keep_s:
                return
            del self._tasks[oldest.id]
