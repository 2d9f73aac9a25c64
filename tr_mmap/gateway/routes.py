"""The table of all routes, and the functions that answer those of algorithms, runs and tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import msgspec
from starlette.responses import Response, StreamingResponse

from . import api
from .aside import aside
from .asked import Asked
from .calls import Call, decode_body, done_response, json_response
from .dependency_routes import DEPENDENCY_ROUTES
from .model_routes import MODEL_ROUTES
from .payloads import BINARY, Done, TensorForm
from .route import PREFIX, Route
from .scheduler import Job
from .service import Service
from .store_routes import STORE_ROUTES
from .worker_routes import WORKER_ROUTES

__all__ = ["ROUTES"]


async def _list_algorithms(service: Service, call: Call) -> Response:
    return json_response(call, service.registration.all())


async def _register(service: Service, call: Call) -> Response:
    body, _ = await call.body(api.RegisterBody)
    call.what = body.name
    return json_response(call, await service.registration.register(body, call.who), 201)


async def _get_algorithm(service: Service, call: Call) -> Response:
    return json_response(call, service.registration.info(call.part("name")))


async def _delete_algorithm(service: Service, call: Call) -> Response:
    return json_response(call, service.registration.unregister(call.part("name"), call.who))


async def _asked(call: Call) -> Asked:
    body, binary = await call.body(api.ExecuteBody)
    return await aside(lambda: Asked.of(body, binary), len(await call.read()))


async def _execute(service: Service, call: Call) -> Response:
    asked = await _asked(call)
    is_binary = BINARY in (call.header(b"accept") or "")
    form: TensorForm = "binary" if is_binary else asked.body.tensors
    job = service.begin(asked, call.who, call.id, form)
    return _executed(call, await _unless_gone(call, job, service), is_binary=is_binary)


def _begin_execute(service: Service, call: Call, text: bytes) -> Job:
    body = decode_body(text, api.ExecuteBody)
    return service.begin(Asked.of(body, memoryview(b"")), call.who, call.id, body.tensors)


def _executed(call: Call, done: Done, *, is_binary: bool = False) -> Response:
    result = api.ExecuteResult(
        result=done.result, stdout=done.stdout, execution_time_ms=done.execution_time_ms, request_id=call.id
    )
    return done_response(call, done, result, is_binary=is_binary)


async def _unless_gone(call: Call, job: Job, service: Service) -> Done:
    """What a run gives. It is cancelled when the client hangs up; of a short one, nobody looks whether it has.

    A run that must not be done twice goes on, if it has begun, and the client can ask for its result again by its key.
    """
    watching: list[asyncio.Task[None]] = []

    async def watch() -> None:
        while (await call.receive())["type"] != "http.disconnect":
            pass
        if not (job.is_final and call.has_key):
            service.scheduler.cancel(job)

    look = service.watches.add(lambda: watching.append(asyncio.ensure_future(watch())))
    try:
        return await service.end_of(job)
    finally:
        call.is_final = job.is_final
        look.call = None
        for each in watching:
            each.cancel()


async def _compute(service: Service, call: Call) -> Response:
    started = service.compute(await _asked(call), call.who, call.id)
    where = {"location": f"{call.scope.get('root_path', '')}{PREFIX}/task/{started.task_id}"}
    return json_response(call, started, 202, where)


async def _get_task(service: Service, call: Call) -> Response:
    return json_response(call, service.task(call.part("task_id"), call.who))


async def _cancel_task(service: Service, call: Call) -> Response:
    return json_response(call, service.cancel(call.part("task_id"), call.who), 202)


async def _follow_task(service: Service, call: Call) -> Response:
    task = service.find_task(call.part("task_id"), call.who)

    async def events() -> AsyncIterator[bytes]:
        async for info in service.tasks.events(task):
            if info is None:
                yield b": still there\n\n"  # a comment, so that nobody in between thinks the connection dead
            else:
                yield b"event: " + info.status.encode() + b"\ndata: " + msgspec.json.encode(info) + b"\n\n"

    headers = {"x-request-id": call.id, "cache-control": "no-store"}
    return StreamingResponse(events(), 200, headers, "text/event-stream")


async def _scheduler_status(service: Service, call: Call) -> Response:
    return json_response(call, service.status())


_DOUBLE: Final = "def double(inputs):\n    return {'output': inputs['x'] * 2}\n"

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        f"{PREFIX}/python/algorithms",
        "execute",
        _list_algorithms,
        "List the algorithms that are registered, and the models that can be executed.",
        result=api.AlgorithmList,
    ),
    Route(
        "POST",
        f"{PREFIX}/python/algorithms",
        "register",
        _register,
        "Register an algorithm. Nothing of it is executed.",
        api.RegisterBody,
        api.AlgorithmInfo,
        201,
        (404, 409, 422, 503),
        {
            "python": {"name": "double", "code": _DOUBLE, "dependencies": []},
            "limits": {
                "name": "double",
                "code": _DOUBLE,
                "resource_requirements": {"cpu_cores": 1, "memory_mb": 256},
                "timeout_ms": 1000,
                "reuse": True,
            },
            "wasm": {"name": "answer", "kind": "wasm", "wasm": "AGFzbQEAAAA="},
        },
        takes_key=True,
    ),
    Route(
        "GET",
        f"{PREFIX}/python/algorithms/{{name}}",
        "execute",
        _get_algorithm,
        "Describe one algorithm.",
        result=api.AlgorithmInfo,
        errors=(404,),
    ),
    Route(
        "DELETE",
        f"{PREFIX}/python/algorithms/{{name}}",
        "register",
        _delete_algorithm,
        "Forget an algorithm; its runs that go on end well.",
        result=api.AlgorithmInfo,
        errors=(404, 409),
    ),
    Route(
        "POST",
        f"{PREFIX}/python/execute",
        "execute",
        _execute,
        "Run an algorithm, or code, and wait for its result.",
        api.ExecuteBody,
        api.ExecuteResult,
        200,
        (404, 409, 422, 503, 504),
        {
            "algorithm": {"algorithm": "double", "inputs": {"x": 21}},
            "code": {"code": "output = inputs['a'] + inputs['b']", "inputs": {"a": 1, "b": 2}},
            "tensor": {
                "algorithm": "double",
                "inputs": {"x": {"dtype": "float32", "shape": [2], "data": [1, 2]}},
            },
            "worker": {
                "algorithm": "linear",
                "function": "scale",
                "inputs": {"x": {"dtype": "float32", "shape": [2], "data": [1, 2]}, "factor": 2.5},
            },
        },
        is_hot=True,
        takes_binary=True,
        gives_binary=True,
        begin=_begin_execute,
        end=_executed,
        takes_key=True,
    ),
    Route(
        "POST",
        f"{PREFIX}/compute",
        "execute",
        _compute,
        "Start a task that runs an algorithm, or code.",
        api.ExecuteBody,
        api.TaskStarted,
        202,
        (404, 503, 504),
        {"algorithm": {"algorithm": "double", "inputs": {"x": 21}, "priority": 5}},
        takes_key=True,
        takes_binary=True,
    ),
    Route(
        "GET",
        f"{PREFIX}/task/{{task_id}}",
        "execute",
        _get_task,
        "The state of a task, and its result.",
        result=api.TaskInfo,
        errors=(404,),
    ),
    Route(
        "PUT",
        f"{PREFIX}/task/{{task_id}}/cancel",
        "execute",
        _cancel_task,
        "Cancel a task.",
        result=api.TaskInfo,
        status=202,
        errors=(404, 409),
    ),
    Route(
        "GET",
        f"{PREFIX}/task/{{task_id}}/events",
        "execute",
        _follow_task,
        "Follow a task: server-sent events, one for each change of its state, until it has ended.",
        result=api.TaskInfo,
        errors=(404,),
        is_stream=True,
    ),
    Route(
        "GET",
        f"{PREFIX}/scheduler/status",
        "execute",
        _scheduler_status,
        "What waits, and what goes on.",
        result=api.SchedulerStatus,
    ),
    *MODEL_ROUTES,
    *DEPENDENCY_ROUTES,
    *STORE_ROUTES,
    *WORKER_ROUTES,
)
