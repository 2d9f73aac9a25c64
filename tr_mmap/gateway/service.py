"""What the gateway does, as plain functions over types: executes, starts tasks. Knows no HTTP.

To be used in the thread of one event loop. What may take long goes to other threads.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from typing import Any, Final

from ..base.delays import Delay
from ..errors import MissingPackage, TRException
from ..sandbox import Algorithm, Sandbox, SandboxBroken
from .algorithm_kinds import KINDS, check_enabled, key_of
from .api import SchedulerStatus, TaskInfo, TaskStarted
from .asked import Asked
from .boxes import Boxes, BoxKey
from .config import Config
from .dependencies import IMPORTED, Dependencies
from .errors import BadConfig, BadRequest
from .interpreters import check_interpreter
from .model_loading import ModelLoader
from .models import MODEL, Models
from .payloads import Done, TensorForm
from .registration import Registration
from .registry import Registered, Registry
from .runs import SandboxRun
from .scheduler import Job, Scheduler
from .stores import Stores
from .tasks import Task, Tasks
from .tokens import Principal
from .workers import Workers

__all__ = ["Service"]

_WATCHED_S: Final = 0.02  # after which a run is worth a task that waits for its client to hang up


class Service:
    """A gateway's state, and what can be done with it. Make it in a running event loop.

    Args:
        config: of the gateway.
        observe: is told of each run that has ended, for metrics.
    """

    def __init__(self, config: Config, observe: Callable[[Job, BaseException | None], None]) -> None:
        self.config = config
        self.registry = Registry()
        self._usual: dict[str, BoxKey] = {kind: key_of(config, kind) for kind in KINDS}
        self.boxes = Boxes(self._make_box, config.sandbox.max_sandboxes)
        self.dependencies = Dependencies(
            config.python.dependencies, self._imported, self._drop_boxes, config.python.python_path
        )
        self.workers = Workers(config.workers)
        self.scheduler = Scheduler(config.scheduler, observe, self.workers.lanes())
        models, self._loop = config.python.models, asyncio.get_running_loop()
        self.models = Models(
            models,
            self.boxes,
            ModelLoader(models.model_dir, self.boxes, lambda kind: self._usual[kind].limits, is_reused=models.reuse)
            if models.model_dir is not None and config.python.enabled
            else None,
            self._saw_model,
        )
        self.registration = Registration(
            config, self.registry, self.boxes, self.models, self.workers, self.dependencies, self.scheduler.forget
        )
        self.stores = Stores(config.store)
        self.watches = Delay(self._loop, _WATCHED_S)
        kept = config.scheduler
        self.tasks = Tasks(self.scheduler, kept.max_tasks, kept.keep_tasks_mb << 20, kept.keep_tasks_s)

    async def warm(self) -> None:
        """Start the workers, and the sandbox that code without wishes of its own runs in, so that no request waits.

        Raises:
            SandboxBroken: this machine lacks a required layer.
            BadConfig: the interpreter, a worker's script, or an option of the sandbox cannot be used.
        """
        await asyncio.to_thread(check_interpreter, self.config.python)
        await asyncio.to_thread(self.workers.start)
        if self.config.python.enabled:
            await asyncio.to_thread(self._warm, self._usual["python"])
        await self.models.start()

    def _warm(self, key: BoxKey) -> None:
        try:
            with self.boxes.using(key) as box:
                box.execute("output = 1")
        except MissingPackage as error:
            raise BadConfig(f"sandbox.preload: {error}", key="sandbox.preload") from error
        except SandboxBroken as error:
            text = str(error).replace("required_layers", "[sandbox] required_layers")
            raise SandboxBroken(text, layers=error.layers) from error
        except TRException:
            raise
        except ValueError as error:
            raise BadConfig(f"sandbox.required_layers: {error}", key="sandbox.required_layers") from error

    async def close(self) -> None:
        """Let go on what runs, for a while; then end all."""
        await self.scheduler.drain(self.config.server.drain_s)
        self.registration.close()
        await self.models.close()
        await self.dependencies.close()
        await self.stores.close()
        await asyncio.gather(asyncio.to_thread(self.boxes.close), asyncio.to_thread(self.workers.close))
        await self.scheduler.close()

    def _make_box(self, key: BoxKey) -> Sandbox:
        sandbox = self.config.sandbox
        options: dict[str, Any] = {"required_layers": sandbox.required_layers} if sandbox.required_layers else {}
        if key.kind in ("contained", "torch"):
            options["preload"] = (*sandbox.preload, *key.preload)
            options["packages"] = key.packages
        if self.config.python.python_path:
            options["python"] = self.config.python.python_path
        return Sandbox(key.kind, limits=key.limits, **options)

    def _imported(self, kind: str) -> list[str]:
        """Which modules algorithms of a kind find imported. Takes long."""
        with self.boxes.using(self._usual[kind]) as box:
            found: list[str] = box.execute(IMPORTED).outputs["output"]
        return found

    def _drop_boxes(self, packages: str) -> None:
        self.boxes.drop(lambda key: packages in key.packages)

    def _saw_model(self, name: str) -> None:
        """Another version of a model is served. To be called from any thread."""
        self._loop.call_soon_threadsafe(self._forget_failures, name)

    def _forget_failures(self, model: str) -> None:
        for name in (model, *[each.name for each in self.registry.all() if each.model == model]):
            self.scheduler.forget(name)

    # -- runs -----------------------------------------------------------------------------------------------------

    def begin(self, asked: Asked, principal: Principal, request_id: str, form: TensorForm) -> Job:
        """Begin a run of an algorithm, or of code, or let it wait for its turn; see :meth:`end_of`.

        Raises:
            BadRequest, NotFound, Busy: it is not begun.
        """
        job = self._job(asked, principal, request_id, form)
        self.scheduler.submit(job)
        return job

    async def end_of(self, job: Job) -> Done:
        """Wait for a run that was begun. If who waits is cancelled, so is the run.

        Raises:
            LimitExceeded, NotAllowed, AlgorithmError, SandboxBroken: it does not end well.
        """
        try:
            done: Done = await job.future
        except asyncio.CancelledError:
            self.scheduler.cancel(job)
            raise
        return done

    def compute(self, asked: Asked, principal: Principal, request_id: str) -> TaskStarted:
        """Start a task that runs an algorithm, or code."""
        job = self._job(asked, principal, request_id, asked.body.tensors)
        task = self.tasks.start(job, asked.body.algorithm)
        return TaskStarted(task_id=task.id, status=task.info.status)

    def task(self, task_id: str, principal: Principal) -> TaskInfo:
        """The state of a task, and its result."""
        return self.tasks.get(task_id, principal).info

    def find_task(self, task_id: str, principal: Principal) -> Task:
        """A task, to follow it."""
        return self.tasks.get(task_id, principal)

    def cancel(self, task_id: str, principal: Principal) -> TaskInfo:
        """Cancel a task.

        Raises:
            NotFound: there is none of that id.
            AlreadyDone: it has ended.
        """
        task = self.tasks.get(task_id, principal)
        self.tasks.cancel(task)
        return task.info

    def status(self) -> SchedulerStatus:
        """What waits and goes on."""
        return SchedulerStatus(
            **self.scheduler.status(),
            tasks=self.tasks.counts(),
            sandboxes=[
                {"kind": key.kind, "layers": sorted(box.layers), "state": box.health().state}
                for key, box in self.boxes.open_boxes()
            ],
        )

    def _job(self, asked: Asked, principal: Principal, request_id: str, form: TensorForm) -> Job:
        body, inputs = asked.body, asked.inputs
        if (body.algorithm is None) == (body.code is None):
            raise BadRequest("give either the name of an algorithm, or code")
        timeout_s = self.config.scheduler.default_deadline_s if body.timeout_ms is None else body.timeout_ms / 1000
        deadline_s = time.monotonic() + timeout_s
        if body.algorithm in self.workers:
            return self.workers.job(body, inputs, principal.subject, request_id, deadline_s, form, asked.nbytes)
        if body.algorithm is not None:
            registered = self.registration.find(body.algorithm)
            if body.function is not None:
                raise BadRequest("the function of an algorithm is chosen when it is registered")
            algorithm = registered.algorithm
            if algorithm.is_reused and registered.owner != principal.subject and not registered.is_model:
                registered = dataclasses.replace(registered, algorithm=dataclasses.replace(algorithm, is_reused=False))
            if registered.model is not None and MODEL in inputs:
                raise BadRequest(f"the input {MODEL!r} of {registered.name!r} is its model; leave it out")
        else:
            assert body.code is not None
            check_enabled(self.config, "python")
            algorithm = Algorithm("code", body.code.encode(), body.function)
            registered = Registered("", "", "python", algorithm, self._usual["python"], principal.subject, 0.0)
        lease = registered.environment.again() if registered.environment is not None else None
        run = SandboxRun(
            self.boxes,
            lambda: self.models.lent(registered, principal.subject),
            inputs,
            deadline_s,
            form,
            owner="" if registered.box == self._usual[registered.kind] else registered.owner,
            has_model=registered.model is not None,
        )
        return Job(
            request_id=request_id,
            kind=registered.kind,
            name=registered.name,
            subject=principal.subject,
            run=run.do,
            end=run.end,
            priority=body.priority,
            deadline_s=deadline_s,
            is_idempotent=registered.is_idempotent,
            nbytes=asked.nbytes,
            steps=run.steps,
            on_end=lease.close if lease is not None else None,
            has_begun=lambda: run.has_begun,
        )
