"""Who runs when: a queue for each kind, bounded, with priorities, deadlines, quotas, retries and breakers.

All of it is used in the thread of one event loop; only the runs themselves are done by other threads. It does not know
what a run is: a job brings a function that does it and one that ends it.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from ..base.delays import Delay
from ..errors import WorkerDied
from ..sandbox import AlgorithmError, DeadlineExceeded, LimitExceeded, RunCancelled, SandboxBroken
from ..sandbox.steps import InLoop, Turns, slow
from .breakers import Breaker
from .errors import Overloaded, QuotaExceeded
from .jobs import Job, JobState
from .logs import log
from .queues import FairQueue
from .sections import SchedulerConfig

__all__ = ["Job", "JobState", "Scheduler"]

_RETRIED: Final = (SandboxBroken, WorkerDied)
_LEAST_RETRY_S: Final = 0.1
_SOON_S: Final = 0.05
_BACK_OFF_S: Final = 0.02  # before the first retry, and four times that before each next: what has died may be ending
_GRACE_S: Final = 1.0  # in which a run ends by itself that was told to, or whose deadline has come
_RECENT: Final = 64  # runs of a kind whose times say how long a queue takes
_END_S: Final = 5.0  # in which a run ends that was told to, on a busy machine
_ENDERS: Final = 8  # runs that are being ended at once: each takes until its process is gone


class _Lane:
    """One kind's queue, and what goes on of it, in threads of its own: no other kind can take them."""

    def __init__(self, kind: str, ageing_s: float, workers: int, loop: asyncio.AbstractEventLoop) -> None:
        self.waiting: FairQueue[Job] = FairQueue(ageing_s)
        self.running: set[Job] = set()
        self.workers = workers
        self.threads = ThreadPoolExecutor(workers, thread_name_prefix=f"tr_mmap-{kind}")
        self.turns = Turns(loop, self.threads)
        self.times_s: deque[float] = deque(maxlen=_RECENT)
        self.counts: Counter[str] = Counter()


class Scheduler:
    """The scheduler of one gateway. Make it in a running event loop.

    Args:
        config: its section of the configuration.
        observe: is told of each job that has ended, for metrics.
        workers: how many runs go on at once, of kinds that have a number of their own.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        observe: Callable[[Job, BaseException | None], None],
        workers: Mapping[str, int] | None = None,
    ) -> None:
        self._config = config
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._workers = config.max_workers or max(2, len(os.sched_getaffinity(0)))
        self._lanes: dict[str, _Lane] = {}
        self._breakers: dict[str, dict[str, Breaker]] = {}  # by algorithm, then by the subject of the runs
        self._by_subject: Counter[str] = Counter()
        self._jobs: set[Job] = set()  # that wait or go on
        self._waiting_nbytes = 0
        self._enders = ThreadPoolExecutor(_ENDERS, thread_name_prefix="tr_mmap-ender")
        self._is_draining = False
        for kind, count in (workers or {}).items():
            self._lanes[kind] = _Lane(kind, config.ageing_s, count, self._loop)
        self._looks = Delay(self._loop, _SOON_S)
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(self, job: Job) -> asyncio.Future[Any]:
        """Queue a job. Its future gets what ``run`` returns or raises.

        Raises:
            Overloaded: the queue is full, or the gateway is about to end.
            QuotaExceeded: its subject has too many already.
            CircuitOpen: its algorithm has failed too often.
            DeadlineExceeded: its deadline is over.
        """
        try:
            return self._submit(job)
        except BaseException:
            if job.on_end is not None:
                job.on_end()
            raise

    def _submit(self, job: Job) -> asyncio.Future[Any]:
        now_s = time.monotonic()
        if self._is_draining:
            raise Overloaded("the gateway is about to end; try again", retry_after_s=1.0)
        lane = self._lanes.get(job.kind)
        if lane is None:
            lane = self._lanes[job.kind] = _Lane(job.kind, self._config.ageing_s, self._workers, self._loop)
        if len(lane.waiting) >= self._config.queue_size:
            wait_s = self._expected_wait_s(lane)
            raise Overloaded(
                f"{len(lane.waiting)} runs of kind {job.kind!r} wait already, as many as [scheduler] queue_size "
                f"lets; try again in {wait_s:.1f} s",
                retry_after_s=wait_s,
            )
        if self._waiting_nbytes and self._waiting_nbytes + job.nbytes > self._config.queue_mb << 20:
            wait_s = self._expected_wait_s(lane)
            raise Overloaded(
                f"the requests that wait would have more than [scheduler] queue_mb, {self._config.queue_mb} MiB; try "
                f"again in {wait_s:.1f} s",
                retry_after_s=wait_s,
            )
        if self._by_subject[job.subject] >= self._config.max_per_token:
            raise QuotaExceeded(
                f"{self._config.max_per_token} runs of the subject {job.subject!r} wait or go on already, as many as "
                "[scheduler] max_per_token lets all its tokens have together; wait for one to end",
                retry_after_s=self._expected_wait_s(lane),
            )
        if job.deadline_s <= now_s:
            raise DeadlineExceeded("the deadline was over before the run could wait", limit="deadline_s", value=0.0)
        if job.name:
            job.breaker = self._breaker(job.name, job.subject)
            job.is_trial = job.breaker.check(job.name, now_s)
        job.arrived_s = now_s
        job.future = self._loop.create_future()
        self._by_subject[job.subject] += 1
        self._jobs.add(job)
        self._idle.clear()
        lane.waiting.push(job, job.subject, job.priority, now_s)
        self._waiting_nbytes += job.nbytes
        self._begin_some(lane)
        if job.state == "queued":
            self._watch(job)
        return job.future

    def cancel(self, job: Job) -> bool:
        """End a job. Returns whether it waited or went on; one that goes on may still end well."""
        if self._take_out(job):
            self._finish(job, None, _cancelled(job))
            return True
        if job.state != "running":
            return False
        if not job.is_cancelled:
            job.is_cancelled = True
            self._enders.submit(_end, job)
            job.watch_no_more()
            job.timer = self._loop.call_later(_GRACE_S, self._give_up, job)
        return True

    def forget(self, name: str) -> None:
        """An algorithm is another one from now on: what was counted of it is not that one's."""
        self._breakers.pop(name, None)

    async def drain(self, most_s: float) -> None:
        """Refuse what comes from now on; let go on what is there for so many seconds, then end it."""
        self._is_draining = True
        if not await self._is_idle_within(most_s):
            for job in list(self._jobs):
                self.cancel(job)
            await self._is_idle_within(_END_S)

    async def close(self) -> None:
        """End the threads; to be called when what the runs use was closed. No job waits for its end any more."""
        self._is_draining = True
        await self._is_idle_within(_END_S)
        for job in list(self._jobs):
            self._take_out(job)
            self._lanes[job.kind].running.discard(job)
            if job.state in ("queued", "running"):
                self._finish(job, None, Overloaded("the gateway has ended; try again", retry_after_s=1.0))
            else:
                self._release(job)
        for threads in (self._enders, *[each.threads for each in self._lanes.values()]):
            threads.shutdown(wait=False, cancel_futures=True)

    async def _is_idle_within(self, most_s: float) -> bool:
        try:
            await asyncio.wait_for(self._idle.wait(), most_s)
        except TimeoutError:
            return False
        return True

    def status(self) -> dict[str, Any]:
        """How it is: by kind, and the breakers that are open."""
        return {
            "is_draining": self._is_draining,
            "queues": {
                kind: {
                    "waiting": len(lane.waiting),
                    "running": len(lane.running),
                    "workers": lane.workers,
                    "queue_size": self._config.queue_size,
                    "expected_wait_ms": round(1000 * self._expected_wait_s(lane), 1) if lane.waiting else 0.0,
                    **{f"{state}_total": lane.counts[state] for state in ("success", "failed", "cancelled", "retried")},
                }
                for kind, lane in sorted(self._lanes.items())
            },
            "open_breakers": sorted(
                name for name, found in self._breakers.items() if any(each.is_open for each in found.values())
            ),
        }

    # -- the steps of a job ---------------------------------------------------------------------------------------

    def _begin_some(self, lane: _Lane) -> None:
        while lane.waiting and len(lane.running) < lane.workers:
            job = lane.waiting.pop()
            self._waiting_nbytes -= job.nbytes
            lane.running.add(job)
            job.began_s = time.monotonic()
            job.watch_no_more()
            job.change("running")
            self._watch(job)
            self._start(lane, job)

    def _start(self, lane: _Lane, job: Job) -> None:
        job.tries += 1
        steps = slow(job.run) if job.steps is None else job.steps()
        InLoop(lane.turns, steps, functools.partial(self._ended, job)).begin()

    def _ended(self, job: Job, result: Any, error: BaseException | None) -> None:
        lane = self._lanes[job.kind]
        if job not in lane.running:  # close() has given it up
            return
        if job.state != "running":  # it was answered before
            lane.running.discard(job)
            try:
                self._release(job)
            finally:
                self._begin_some(lane)
            return
        if isinstance(error, _RETRIED) and self._may_retry(job):
            self._loop.call_later(_BACK_OFF_S * 4 ** (job.tries - 1), self._try_again, lane, job, error)
            return
        if job.is_cancelled and isinstance(error, (*_RETRIED, RunCancelled)):
            error = _cancelled(job)  # it is the reason, however the run has noticed
        lane.running.discard(job)
        lane.times_s.append(time.monotonic() - job.began_s)
        try:
            self._finish(job, result, error)
        finally:  # whatever they raise who are told, the others go on
            self._begin_some(lane)

    def _try_again(self, lane: _Lane, job: Job, error: BaseException) -> None:
        if job in lane.running and job.state == "running" and self._may_retry(job):
            lane.counts["retried"] += 1
            self._start(lane, job)
        else:
            self._ended(job, None, error)

    def _may_retry(self, job: Job) -> bool:
        return (
            job.is_idempotent
            and not job.is_cancelled
            and not self._is_draining
            and job.tries <= self._config.retries
            and time.monotonic() < job.deadline_s
        )

    def _watch(self, job: Job) -> None:
        """See to its deadline. Few jobs are there for long, and most need no timer of their own."""
        if self._left_s(job) > _SOON_S:
            job.look = self._looks.add(lambda: self._set_timer(job))
        else:
            self._set_timer(job)

    def _set_timer(self, job: Job) -> None:
        job.timer = self._loop.call_later(max(0.0, self._left_s(job)), self._pass_deadline, job)

    def _left_s(self, job: Job) -> float:
        # A run that goes on sees to its deadline itself, and says more of it; unless something else keeps its thread.
        grace_s = _GRACE_S if job.state == "running" else 0.0
        return job.deadline_s + grace_s - time.monotonic()

    def _pass_deadline(self, job: Job) -> None:
        waited_s = time.monotonic() - job.arrived_s
        if self._take_out(job):
            text = f"the deadline came after {waited_s:.1f} s, before the run's turn; give it more time, or a priority"
            self._finish(job, None, DeadlineExceeded(text, limit="deadline_s", value=waited_s))
        elif job.state == "running":
            self._enders.submit(_end, job)
            self._give_up(job)

    def _give_up(self, job: Job) -> None:
        """Answer a job whose run should have ended by now: its model is being loaded, say. That thread may go on."""
        if job.state != "running":
            return
        if job.is_cancelled:
            self._answer(job, None, _cancelled(job))
            return
        waited_s = time.monotonic() - job.arrived_s
        text = f"the deadline came after {waited_s:.1f} s, and what the run needs was not there; give it more time"
        self._answer(job, None, DeadlineExceeded(text, limit="deadline_s", value=waited_s))

    def _take_out(self, job: Job) -> bool:
        """Out of the queue. Returns whether it waited."""
        if job.state != "queued" or not self._lanes[job.kind].waiting.remove(job):
            return False
        self._waiting_nbytes -= job.nbytes
        return True

    def _finish(self, job: Job, result: Any, error: BaseException | None) -> None:
        """The end of a job that nothing goes on of."""
        try:
            self._release(job)
        finally:
            self._answer(job, result, error)

    def _release(self, job: Job) -> None:
        """Nothing goes on of it any more."""
        self._by_subject[job.subject] -= 1
        if not self._by_subject[job.subject]:
            del self._by_subject[job.subject]
        self._jobs.discard(job)
        if not self._jobs:
            self._idle.set()
        if job.on_end is not None:
            job.on_end()

    def _answer(self, job: Job, result: Any, error: BaseException | None) -> None:
        """Tell what has come of it: once, of every job."""
        now_s = job.ended_s = time.monotonic()
        job.watch_no_more()
        if isinstance(error, DeadlineExceeded):
            error.value = job.deadline_s - job.arrived_s  # whoever has noticed it, and by which clock
        if job.breaker is not None:
            _note(job.breaker, error, now_s, is_trial=job.is_trial)
        if error is None:
            state: JobState = "success"
        else:
            state = "cancelled" if isinstance(error, RunCancelled) else "failed"
        self._lanes[job.kind].counts[state] += 1
        if not job.future.done():
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(error)
                job.future.exception()  # of a task, which nobody may ask for
        try:
            job.change(state)
        finally:
            self._observe(job, error)

    def _breaker(self, name: str, subject: str) -> Breaker:
        """One subject's of an algorithm: inputs with which it fails open nobody else's."""
        of_name = self._breakers.setdefault(name, {})
        found = of_name.get(subject)
        if found is None:
            found = of_name[subject] = Breaker(self._config.breaker_failures, self._config.breaker_s)
        return found

    def _expected_wait_s(self, lane: _Lane) -> float:
        """How long until one that comes now would begin."""
        mean_s = sum(lane.times_s) / len(lane.times_s) if lane.times_s else _LEAST_RETRY_S
        return max(_LEAST_RETRY_S, mean_s * (len(lane.waiting) + 1) / lane.workers)


def _cancelled(job: Job) -> RunCancelled:
    return RunCancelled("the run was cancelled", request_id=job.request_id)


def _end(job: Job) -> None:
    """In another thread."""
    try:
        job.end()
    except Exception as error:  # nobody waits for this thread's answer
        log.error("a run does not end", extra={"request_id": job.request_id}, exc_info=error)


def _note(breaker: Breaker, error: BaseException | None, now_s: float, *, is_trial: bool) -> None:
    """Only what says that an algorithm cannot work: an exception of its own may be its answer to wrong inputs."""
    if isinstance(error, RunCancelled | DeadlineExceeded | Overloaded):
        breaker.left(is_trial=is_trial)
    elif isinstance(error, (*_RETRIED, LimitExceeded)) or (
        isinstance(error, AlgorithmError) and error.type == "ProcessEnded"
    ):
        breaker.failed(now_s, is_trial=is_trial)
    else:
        breaker.succeeded(is_trial=is_trial)
