"""What the gateway does, as plain functions over types: registers, executes, starts tasks. Knows no HTTP.

To be used in the thread of one event loop. What may take long goes to other threads.
"""

from __future__ import annotations

import asyncio
import binascii
import dataclasses
import time
from collections.abc import Callable
from typing import Any, Final

from ..base.delays import Delay
from ..sandbox import Algorithm, Limits, Sandbox
from .api import (
    AlgorithmInfo,
    AlgorithmList,
    ExecuteBody,
    RegisterBody,
    Requirements,
    SchedulerStatus,
    TaskInfo,
    TaskStarted,
)
from .boxes import Boxes, BoxKey
from .config import Config
from .dependencies import IMPORTED, Dependencies
from .environments import Lease
from .errors import BadRequest, Conflict, Forbidden, NotFound
from .interpreters import check_interpreter
from .model_loading import ModelLoader
from .models import MODEL, Models
from .payloads import Done, TensorForm, body_nbytes, decode_inputs
from .registry import Registered, Registry, version_of
from .runs import SandboxRun
from .scheduler import Job, Scheduler
from .stores import Stores
from .tasks import Task, Tasks
from .tokens import Principal
from .workers import Workers

__all__ = ["Service"]

_BOX_KINDS: Final = {"python": "contained", "wasm": "wasm", "native": "native", "torch": "torch"}
_WATCHED_S: Final = 0.02  # after which a run is worth a task that waits for its client to hang up
_CODE_FIELDS: Final = {"python": "code", "torch": "code", "wasm": "wasm", "native": "library"}


class Service:
    """A gateway's state, and what can be done with it. Make it in a running event loop.

    Args:
        config: of the gateway.
        observe: is told of each run that has ended, for metrics.
    """

    def __init__(self, config: Config, observe: Callable[[Job, BaseException | None], None]) -> None:
        self.config = config
        self.registry = Registry()
        self.boxes = Boxes(self._make_box, config.sandbox.max_sandboxes)
        self.dependencies = Dependencies(config.python.dependencies, self._imported, self._drop_boxes)
        self.workers = Workers(config.workers)
        self.scheduler = Scheduler(config.scheduler, observe, self.workers.lanes())
        models, self._loop = config.python.models, asyncio.get_running_loop()
        self.models = Models(
            models,
            self.boxes,
            ModelLoader(
                models.model_dir, self.boxes, lambda kind: self._limits(kind, None, None), is_reused=models.reuse
            )
            if models.model_dir is not None and config.python.enabled
            else None,
            self._saw_model,
        )
        self.stores = Stores(config.store)
        self.watches = Delay(self._loop, _WATCHED_S)
        kept = config.scheduler
        self.tasks = Tasks(self.scheduler, kept.max_tasks, kept.keep_tasks_mb << 20, kept.keep_tasks_s)

    async def warm(self) -> None:
        """Start the workers, and the sandbox that code without wishes of its own runs in, so that no request waits.

        Raises:
            SandboxBroken: this machine lacks a required layer.
            BadConfig: the interpreter, or a worker's script, cannot be used.
        """
        await asyncio.to_thread(check_interpreter, self.config.python)
        await asyncio.to_thread(self.workers.start)
        if self.config.python.enabled:
            await asyncio.to_thread(self._warm, BoxKey("contained", self._limits("python", None, None)))
        await self.models.start()

    def _warm(self, key: BoxKey) -> None:
        with self.boxes.using(key) as box:
            box.execute("output = 1")

    async def close(self) -> None:
        """Let go on what runs, for a while; then end all."""
        await self.scheduler.drain(self.config.server.drain_s)
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
        with self.boxes.using(BoxKey(_BOX_KINDS[kind], self._limits(kind, None, None))) as box:
            found: list[str] = box.execute(IMPORTED).outputs["output"]
        return found

    def _drop_boxes(self, packages: str) -> None:
        self.boxes.drop(lambda key: packages in key.packages)

    # -- algorithms -----------------------------------------------------------------------------------------------

    async def register(self, body: RegisterBody, principal: Principal) -> AlgorithmInfo:
        """Register an algorithm, in the place of one of the same name and owner. Nothing of it is executed.

        Raises:
            BadRequest: its code is missing, or of another kind.
            Forbidden: the name is another subject's, or its kind is not enabled.
            Conflict: a model of that name is an algorithm itself.
            AlgorithmError: it cannot be parsed.
            BadDependency: a package that it declares may not, or cannot, be installed.
            Busy: not now.
        """
        self.workers.check_free(body.name)
        self.registry.check_owner(body.name, principal)
        if self.models.algorithm(body.name) is not None:
            raise Conflict(f"the model {body.name!r} is an algorithm itself; take another name")
        if body.model is not None:
            self.models.check(body.model, body.kind)
        code = self._code_of(body)
        limits = self._limits(body.kind, body.resource_requirements, body.timeout_ms)
        environment = await self.dependencies.get(body.kind, body.dependencies)
        try:
            registered = await self._registered(body, code, limits, environment, principal)
            self.registry.check_owner(body.name, principal)  # somebody else may have been faster
        except BaseException:
            if environment is not None:
                environment.close()
            raise
        former = self.registry.put(registered)
        if former is not None:
            self._replace(former, registered)
        return _info(registered)

    async def _registered(
        self, body: RegisterBody, code: bytes, limits: Limits, environment: Lease | None, principal: Principal
    ) -> Registered:
        packages = () if environment is None else (environment.packages,)
        key = BoxKey(_BOX_KINDS[body.kind], limits, packages=packages)
        needed = [*body.dependencies, *([environment.environment.hash] if environment is not None else [])]
        version = version_of(body.kind.encode(), code, *(each.encode() for each in needed))
        algorithm = await asyncio.to_thread(self._prepare, key, code, body)
        return Registered(
            body.name,
            version,
            body.kind,
            dataclasses.replace(algorithm, is_reused=body.reuse, owner=principal.subject),
            key,
            principal.subject,
            time.time(),
            body.idempotent,
            body.model,
            body.dependencies,
            environment=environment,
        )

    def _prepare(self, key: BoxKey, code: bytes, body: RegisterBody) -> Algorithm:
        with self.boxes.using(key) as box:
            algorithm = box.register(
                body.name,
                code,
                body.function,
                sha256=body.sha256,
                outputs=body.outputs,
                dependencies=() if self.dependencies.sees_to(body.kind) else body.dependencies,
            )
            box.unregister(algorithm)  # runs have the object; the sandbox need not know it by name
        return dataclasses.replace(algorithm, dependencies=body.dependencies)

    def _code_of(self, body: RegisterBody) -> bytes:
        python = self.config.python
        is_enabled = {"wasm": python.wasm.enabled}.get(body.kind, python.enabled)
        if not is_enabled:
            raise Forbidden(f"algorithms of kind {body.kind!r} are not enabled here")
        wanted = _CODE_FIELDS[body.kind]
        given = [each for each in ("code", "wasm", "library") if getattr(body, each) is not None]
        if given != [wanted]:
            raise BadRequest(f"an algorithm of kind {body.kind!r} has its code in {wanted!r}, and in no other field")
        text: str = getattr(body, wanted)
        if wanted == "code":
            return text.encode()
        try:
            return binascii.a2b_base64(text, strict_mode=True)
        except (ValueError, binascii.Error):
            raise BadRequest(f"{wanted} is no base64") from None

    def algorithms(self) -> AlgorithmList:
        """All that are registered."""
        found = {each.name: each for each in (*self.registry.all(), *self.models.algorithms())}
        return AlgorithmList([_info(found[name]) for name in sorted(found)])

    def algorithm(self, name: str) -> AlgorithmInfo:
        """One of them.

        Raises:
            NotFound: there is none of that name.
        """
        return _info(self._find(name))

    def _find(self, name: str) -> Registered:
        found = self.models.algorithm(name)
        if found is not None:
            return found
        try:
            return self.registry.get(name)
        except NotFound:
            self.models.check_algorithm(name)
            raise

    def unregister(self, name: str, principal: Principal) -> AlgorithmInfo:
        """Forget one; its runs that go on end well.

        Raises:
            NotFound: there is none of that name.
            Forbidden: it is another subject's.
        """
        self.registry.get(name)
        self.registry.check_owner(name, principal)
        removed = self.registry.remove(name)
        self._forget(removed)
        return _info(removed)

    def _replace(self, former: Registered, registered: Registered) -> None:
        if (former.algorithm, former.box) != (registered.algorithm, registered.box):
            self._forget(former)
        elif former.environment is not None:
            former.environment.close()

    def _forget(self, registered: Registered) -> None:
        if registered.environment is not None:
            registered.environment.close()
        self.scheduler.forget(registered.name)
        if registered.algorithm.is_reused:
            asyncio.get_running_loop().run_in_executor(None, self._end_kept, registered)

    def _end_kept(self, registered: Registered) -> None:
        for key, box in self.boxes.open_boxes():
            if key == registered.box:
                box.unregister(registered.algorithm)
        if registered.model is not None:
            self.models.end_kept(registered)

    def _saw_model(self, name: str) -> None:
        """Another version of a model is served. To be called from any thread."""
        self._loop.call_soon_threadsafe(self._forget_failures, name)

    def _forget_failures(self, model: str) -> None:
        for name in (model, *[each.name for each in self.registry.all() if each.model == model]):
            self.scheduler.forget(name)

    # -- runs -----------------------------------------------------------------------------------------------------

    async def execute(
        self, body: ExecuteBody, binary: memoryview, principal: Principal, request_id: str, form: TensorForm
    ) -> Done:
        """Run an algorithm, or code, and wait for it. If who waits is cancelled, so is the run.

        Raises:
            BadRequest, NotFound, Busy: it is not begun.
            LimitExceeded, NotAllowed, AlgorithmError, SandboxBroken: it does not end well.
        """
        return await self.end_of(self.begin(body, binary, principal, request_id, form))

    def begin(
        self, body: ExecuteBody, binary: memoryview, principal: Principal, request_id: str, form: TensorForm
    ) -> Job:
        """Begin a run, or let it wait for its turn; see :meth:`execute`."""
        job = self._job(body, binary, principal, request_id, form)
        self.scheduler.submit(job)
        return job

    async def end_of(self, job: Job) -> Done:
        """Wait for a run that was begun; see :meth:`execute`."""
        try:
            done: Done = await job.future
        except asyncio.CancelledError:
            self.scheduler.cancel(job)
            raise
        return done

    def compute(self, body: ExecuteBody, binary: memoryview, principal: Principal, request_id: str) -> TaskStarted:
        """Start a task that runs an algorithm, or code."""
        job = self._job(body, binary, principal, request_id, body.tensors)
        task = self.tasks.start(job, body.algorithm)
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

    def _job(
        self, body: ExecuteBody, binary: memoryview, principal: Principal, request_id: str, form: TensorForm
    ) -> Job:
        if (body.algorithm is None) == (body.code is None):
            raise BadRequest("give either the name of an algorithm, or code")
        inputs = decode_inputs(body.inputs, binary)
        nbytes = body_nbytes(binary)
        timeout_s = self.config.scheduler.default_deadline_s if body.timeout_ms is None else body.timeout_ms / 1000
        deadline_s = time.monotonic() + timeout_s
        if body.algorithm in self.workers:
            return self.workers.job(body, inputs, principal.subject, request_id, deadline_s, form, nbytes)
        if body.algorithm is not None:
            registered = self._find(body.algorithm)
            if body.function is not None:
                raise BadRequest("the function of an algorithm is chosen when it is registered")
            algorithm = registered.algorithm
            if algorithm.is_reused and registered.owner != principal.subject and not registered.is_model:
                registered = dataclasses.replace(registered, algorithm=dataclasses.replace(algorithm, is_reused=False))
            if registered.model is not None and MODEL in inputs:
                raise BadRequest(f"the input {MODEL!r} of {registered.name!r} is its model; leave it out")
        else:
            assert body.code is not None
            if not self.config.python.enabled:
                raise Forbidden("algorithms of kind 'python' are not enabled here")
            key = BoxKey("contained", self._limits("python", None, None))
            algorithm = Algorithm("code", body.code.encode(), body.function)
            registered = Registered("", "", "python", algorithm, key, principal.subject, 0.0)
        lease = registered.environment.again() if registered.environment is not None else None
        run = SandboxRun(
            self.boxes,
            lambda: self.models.lent(registered, principal.subject),
            inputs,
            deadline_s,
            form,
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
            nbytes=nbytes,
            steps=run.steps,
            on_end=lease.close if lease is not None else None,
        )

    def _limits(self, kind: str, requirements: Requirements | None, timeout_ms: float | None) -> Limits:
        sandbox, wasm = self.config.sandbox, self.config.python.wasm
        cores = sandbox.cpu_cores
        if kind == "wasm":
            memory_mb, wall_ms, most_mb = wasm.max_memory_mb, 1000 * wasm.max_execution_time, wasm.max_memory_mb
        else:
            memory_mb, wall_ms, most_mb = sandbox.memory_mb, sandbox.wall_ms, sandbox.most_memory_mb
        if requirements is not None:
            memory_mb = requirements.memory_mb or memory_mb
            cores = requirements.cpu_cores or cores
        if memory_mb > most_mb or cores > sandbox.most_cpu_cores:
            raise BadRequest(
                f"an algorithm of kind {kind!r} may have {most_mb} MiB and {sandbox.most_cpu_cores} cores here, and "
                f"not {memory_mb} MiB and {cores} cores"
            )
        if timeout_ms is not None and timeout_ms > wall_ms:
            raise BadRequest(f"a run of kind {kind!r} may take timeout_ms={wall_ms:g} here, and not {timeout_ms:g}")
        wall = timeout_ms or wall_ms
        options: dict[str, Any] = {"stack_nbytes": wasm.max_stack_size_mb << 20} if kind == "wasm" else {}
        return Limits(
            memory_nbytes=memory_mb << 20,
            wall_ms=wall,
            cpu_ms=min(sandbox.cpu_ms, wall) * cores if kind != "wasm" else wall,
            output_nbytes=sandbox.output_mb << 20,
            cpu_cores=cores,
            **options,
        )


def _info(registered: Registered) -> AlgorithmInfo:
    limits = registered.box.limits
    return AlgorithmInfo(
        name=registered.name,
        version=registered.version,
        kind=registered.kind,
        function=registered.algorithm.function,
        dependencies=registered.dependencies,
        environment=registered.environment.environment.hash if registered.environment is not None else None,
        resource_requirements=Requirements(cpu_cores=limits.cpu_cores, memory_mb=limits.memory_nbytes >> 20),
        timeout_ms=limits.wall_ms,
        reuse=registered.algorithm.is_reused,
        idempotent=registered.is_idempotent,
        model=registered.model,
        owner=registered.owner,
        registered_at=registered.registered_s,
    )
