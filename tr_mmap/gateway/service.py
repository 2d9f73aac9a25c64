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
from ..sandbox.steps import Steps
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
from .errors import BadRequest, Forbidden
from .payloads import Done, TensorForm, decode_inputs, encode
from .registry import Registered, Registry, version_of
from .scheduler import Job, Scheduler
from .tasks import Task, Tasks
from .tokens import Principal

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
        self.scheduler = Scheduler(config.scheduler, observe)
        self.watches = Delay(asyncio.get_running_loop(), _WATCHED_S)
        self.tasks = Tasks(self.scheduler, config.scheduler.max_tasks, config.scheduler.keep_tasks_s)

    async def warm(self) -> None:
        """Start the sandbox that code without wishes of its own runs in, so that no request waits for it.

        Raises:
            SandboxBroken: this machine lacks a required layer.
        """
        if self.config.python.enabled:
            await asyncio.to_thread(self._warm, BoxKey("contained", self._limits("python", None, None)))

    def _warm(self, key: BoxKey) -> None:
        with self.boxes.using(key) as box:
            box.execute("output = 1")

    async def close(self) -> None:
        """Let go on what runs, for a while; then end all."""
        await self.scheduler.drain(self.config.server.drain_s)
        await asyncio.to_thread(self.boxes.close)
        self.scheduler.close()

    def _make_box(self, key: BoxKey) -> Sandbox:
        sandbox = self.config.sandbox
        options: dict[str, Any] = {"required_layers": sandbox.required_layers} if sandbox.required_layers else {}
        if key.kind in ("contained", "torch"):
            options["preload"] = sandbox.preload
        return Sandbox(key.kind, limits=key.limits, **options)

    # -- algorithms -----------------------------------------------------------------------------------------------

    async def register(self, body: RegisterBody, principal: Principal) -> AlgorithmInfo:
        """Register an algorithm, in the place of one of the same name and owner. Nothing of it is executed.

        Raises:
            BadRequest: its code is missing, or of another kind.
            Forbidden: the name is another subject's, or its kind is not enabled.
            AlgorithmError: it cannot be parsed.
        """
        self.registry.check_owner(body.name, principal)
        code = self._code_of(body)
        key = BoxKey(_BOX_KINDS[body.kind], self._limits(body.kind, body.resource_requirements, body.timeout_ms))
        version = version_of(body.kind.encode(), code, *(each.encode() for each in body.dependencies))
        algorithm = await asyncio.to_thread(self._prepare, key, code, body)
        registered = Registered(
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
        )
        self.registry.check_owner(body.name, principal)  # somebody else may have been faster
        former = self.registry.put(registered)
        if former is not None and former.algorithm != registered.algorithm:
            self._forget(former)
        return _info(registered)

    def _prepare(self, key: BoxKey, code: bytes, body: RegisterBody) -> Algorithm:
        with self.boxes.using(key) as box:
            algorithm = box.register(
                body.name,
                code,
                body.function,
                sha256=body.sha256,
                outputs=body.outputs,
                dependencies=body.dependencies,
            )
            box.unregister(algorithm)  # runs have the object; the sandbox need not know it by name
        return algorithm

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
        return AlgorithmList([_info(each) for each in self.registry.all()])

    def algorithm(self, name: str) -> AlgorithmInfo:
        """One of them.

        Raises:
            NotFound: there is none of that name.
        """
        return _info(self.registry.get(name))

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

    def _forget(self, registered: Registered) -> None:
        self.scheduler.forget(registered.name)
        if registered.algorithm.is_reused:
            asyncio.get_running_loop().run_in_executor(None, self._end_kept, registered)

    def _end_kept(self, registered: Registered) -> None:
        for key, box in self.boxes.open_boxes():
            if key == registered.box:
                box.unregister(registered.algorithm)

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
        timeout_s = self.config.scheduler.default_deadline_s if body.timeout_ms is None else body.timeout_ms / 1000
        deadline_s = time.monotonic() + timeout_s
        if body.algorithm is not None:
            if body.function is not None:
                raise BadRequest("the function of an algorithm is chosen when it is registered")
            registered = self.registry.get(body.algorithm)
            key, algorithm, name = registered.box, registered.algorithm, registered.name
            if algorithm.is_reused and registered.owner != principal.subject:
                algorithm = dataclasses.replace(algorithm, is_reused=False)
            is_idempotent, kind = registered.is_idempotent, registered.kind
        else:
            assert body.code is not None
            if not self.config.python.enabled:
                raise Forbidden("algorithms of kind 'python' are not enabled here")
            key = BoxKey("contained", self._limits("python", None, None))
            algorithm, name, is_idempotent, kind = (
                Algorithm("code", body.code.encode(), body.function),
                "",
                True,
                "python",
            )
        boxes = self.boxes

        def steps_in(box: Sandbox) -> Steps[Done]:
            response = yield from box.steps(algorithm, inputs, deadline_s=deadline_s, request_id=request_id)
            return encode(response, form)  # of few bytes, or in another thread already

        def end() -> None:
            for each, box in boxes.open_boxes():
                if each == key:
                    box.cancel(request_id)

        return Job(
            id=request_id,
            kind=kind,
            name=name,
            subject=principal.subject,
            steps=lambda: boxes.steps(key, steps_in),
            end=end,
            priority=body.priority,
            deadline_s=deadline_s,
            is_idempotent=is_idempotent,
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
        wall = min(wall_ms, timeout_ms or wall_ms)
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
        resource_requirements=Requirements(cpu_cores=limits.cpu_cores, memory_mb=limits.memory_nbytes >> 20),
        timeout_ms=limits.wall_ms,
        reuse=registered.algorithm.is_reused,
        idempotent=registered.is_idempotent,
        model=registered.model,
        owner=registered.owner,
        registered_at=registered.registered_s,
    )
