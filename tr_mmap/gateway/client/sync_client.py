"""``Client``: a gateway, asked by a program that waits for each response."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx

from ...errors import TRException
from .. import api
from ..model_api import ModelInfo
from . import messages
from .answers import Answer, Inbox
from .asks import Ask
from .attempts import Done, Pause, Send, advance, attempts
from .messages import Algorithm, Code, Inputs
from .results import Framework, Result
from .settings import Settings, Verify
from .store_messages import StoreAsks
from .sync_store import RemoteStore
from .sync_task import Task

__all__ = ["Client"]

_T = TypeVar("_T")


class Client:
    """A client of a gateway. Threads may share it; close it, or use it as a context manager.

    ::

        with Client(token=TOKEN) as client:
            client.register("double", "def double(inputs):\\n    return inputs['x'] * 2")
            client.run("double", {"x": numpy.arange(3.0)}).value  # array([0., 2., 4.])

    Every call raises what the gateway raises: ``NotFound``, ``LimitExceeded``, ``AlgorithmError`` with the algorithm's
    traceback, ``Busy`` and so on; ``Unauthorized`` or ``Forbidden`` if the token does not grant it; ``Unreachable`` if
    there is no gateway; ``ResponseTimeout`` if it does not answer in time.

    Args:
        url: of the gateway; else the environment's ``TR_MMAP_URL``, else ``http://127.0.0.1:3000``.
        token: as ``tr-mmap token`` prints it; else the environment's ``TR_MMAP_TOKEN``.
        timeout_s: how long a call may take, all tries together.
        retry: whether a request is sent again that the gateway refuses for now, or whose response was lost. One that
            changes something then has an idempotency key, so that it does so once.
        framework: of the tensors in results; else torch's where an input is torch's, and numpy's everywhere else.
        verify: of the gateway's certificate, as httpx takes it: a context of ``ssl`` for one of your own.
        transport: of httpx, for other ways to a gateway: a unix socket, say.

    Raises:
        BadRequest: an argument is wrong.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout_s: float = 60.0,
        retry: bool = True,
        framework: Framework | None = None,
        verify: Verify = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._settings = Settings.of(url, token, timeout_s, retry, framework)
        self._http = httpx.Client(**self._settings.options(verify), transport=transport)

    @property
    def url(self) -> str:
        """The gateway's address."""
        return self._settings.url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    # -- algorithms -----------------------------------------------------------------------------------------------

    def register(
        self,
        name: str | Callable[..., Any],
        code: Code | None = None,
        *,
        kind: str | None = None,
        wasm: bytes | Path | None = None,
        library: bytes | Path | None = None,
        function: str | None = None,
        dependencies: tuple[str, ...] | list[str] | None = None,
        memory_mb: int | None = None,
        cpu_cores: int | None = None,
        timeout_ms: float | None = None,
        reuse: bool | None = None,
        idempotent: bool | None = None,
        outputs: tuple[str, ...] | list[str] | None = None,
        model: str | None = None,
        sha256: str | None = None,
    ) -> api.AlgorithmInfo:
        """Register an algorithm, in the place of your former one of that name. Nothing of it is executed.

        What is left out is as the gateway has it.

        Args:
            name: of the algorithm; or a function, which has a name.
            code: Python: a text, the path of a file, or a function. A function's source is sent, with imports of the
                modules that it uses; it must not use anything else of its surroundings.
            kind: ``"python"``, ``"wasm"``, ``"native"`` or ``"torch"``; else what fits the code.
            wasm: a module of WebAssembly, or the path of its file.
            library: a shared library, or the path of its file.
            function: which is called; else the one of the algorithm's name, ``process``, or the only one.
            dependencies: packages that it imports, perhaps with versions.
            memory_mb: that one run may allocate.
            cpu_cores: on how many cores its threads run.
            timeout_ms: of one run.
            reuse: whether its process may serve your next run too.
            idempotent: whether the gateway may repeat a run that failed without a fault of its own.
            outputs: names of the tensors that a library or a module gives, in their order.
            model: the name of a model, which it gets as the input ``model``.
            sha256: of its code, in hexadecimal; the gateway refuses another.

        Raises:
            AlgorithmError: it cannot be parsed.
            Forbidden: the name is another subject's.
        """
        return self._call(
            messages.register(
                name,
                code,
                kind=kind,
                wasm=wasm,
                library=library,
                memory_mb=memory_mb,
                cpu_cores=cpu_cores,
                with_key=self._settings.retry,
                function=function,
                dependencies=dependencies,
                timeout_ms=timeout_ms,
                reuse=reuse,
                idempotent=idempotent,
                outputs=outputs,
                model=model,
                sha256=sha256,
            )
        )

    def algorithms(self) -> list[api.AlgorithmInfo]:
        """The algorithms that are registered."""
        return self._call(messages.algorithms())

    def algorithm(self, name: str) -> api.AlgorithmInfo:
        """One of them.

        Raises:
            NotFound: there is none of that name.
        """
        return self._call(messages.algorithm_named(name))

    def unregister(self, name: Algorithm) -> api.AlgorithmInfo:
        """Forget one; its runs that go on end well.

        Raises:
            NotFound: there is none of that name.
            Forbidden: it is another subject's.
        """
        return self._call(messages.unregister(name))

    # -- runs -----------------------------------------------------------------------------------------------------

    def run(
        self,
        algorithm: Algorithm,
        inputs: Inputs = None,
        *,
        function: str | None = None,
        timeout_ms: float | None = None,
        priority: int | None = None,
        framework: Framework | None = None,
    ) -> Result:
        """Run an algorithm, and wait for its result.

        Args:
            algorithm: its name, or what :meth:`register` returned.
            inputs: by name: values as JSON has them, arrays of numpy, tensors of torch. Tensors are sent as bytes.
            function: of a trusted worker, whose name is the algorithm's then: its command. Of no other algorithm.
            timeout_ms: from the request's arrival to the run's end, waiting included.
            priority: the higher, the sooner; from -100 to 100.
            framework: of the tensors in this result.

        Returns:
            The result; its arrays lie in the memory that the response was received into.

        Raises:
            NotFound: there is no such algorithm.
            AlgorithmError, LimitExceeded, NotAllowed: it did not end well.
            DeadlineExceeded: it did not end in time.
            Busy: there is no room for it, until the call's time is over.
        """
        return self._execute(
            algorithm, None, inputs, framework, timeout_ms=timeout_ms, priority=priority, function=function
        )

    def execute(
        self,
        code: Code,
        inputs: Inputs = None,
        *,
        function: str | None = None,
        timeout_ms: float | None = None,
        priority: int | None = None,
        framework: Framework | None = None,
    ) -> Result:
        """Run code that is not registered, and wait for its result; as :meth:`run`.

        Args:
            code: Python, as :meth:`register` takes it.
            function: of it, which is called.
        """
        return self._execute(None, code, inputs, framework, timeout_ms=timeout_ms, priority=priority, function=function)

    def _execute(
        self, algorithm: Algorithm | None, code: Code | None, inputs: Inputs, framework: Framework | None, **fields: Any
    ) -> Result:
        settings = self._settings
        framework = framework or settings.framework
        return self._call(
            messages.execute(algorithm, code, inputs, framework=framework, with_key=settings.retry, **fields)
        )

    # -- tasks ----------------------------------------------------------------------------------------------------

    def submit(
        self,
        algorithm: Algorithm | None = None,
        inputs: Inputs = None,
        *,
        code: Code | None = None,
        function: str | None = None,
        timeout_ms: float | None = None,
        priority: int | None = None,
        framework: Framework | None = None,
    ) -> Task:
        """Start a run without waiting for it; as :meth:`run`, or with ``code`` as :meth:`execute`."""
        settings = self._settings
        ask, kind = messages.compute(
            algorithm,
            code,
            inputs,
            framework=framework or settings.framework,
            with_key=settings.retry,
            timeout_ms=timeout_ms,
            priority=priority,
            function=function,
        )
        return Task(self, self._call(ask), kind)

    def task(self, task_id: str, *, framework: Framework | None = None) -> Task:
        """A task that was started before, perhaps by another program of the same subject."""
        return Task(self, task_id, framework or self._settings.framework or "numpy")

    # -- stores ---------------------------------------------------------------------------------------------------

    def store(self, name: str, *, scope: str | None = None, framework: Framework | None = None) -> RemoteStore:
        """A store of the gateway, as :class:`tr_mmap.store.Store` is one of this machine. Asks nothing.

        Args:
            name: of the store.
            scope: a user, whose records alone are seen and changed; None for all that the token grants.
            framework: of vectors and tensors in its records; else the client's, or numpy's.
        """
        asks = StoreAsks(name, scope, framework or self._settings.framework or "numpy")
        return RemoteStore(self._call, asks)

    # -- the gateway ----------------------------------------------------------------------------------------------

    def models(self) -> list[ModelInfo]:
        """The models that the gateway has."""
        return self._call(messages.models())

    def load_model(self, name: str, version: int | None = None) -> ModelInfo:
        """Load a model before it is first used, and serve it.

        Args:
            name: of the model.
            version: of it; None for the greatest that there is.
        """
        return self._call(messages.load_model(name, version))

    def dependencies(self) -> api.DependencyList:
        """The packages that algorithms may depend on."""
        return self._call(messages.dependencies())

    def make_environment(
        self, packages: tuple[str, ...] | list[str], *, timeout_s: float | None = None
    ) -> api.EnvironmentInfo:
        """Install packages before an algorithm that declares them is registered. Nothing of them is executed.

        Args:
            packages: as an algorithm would declare them.
            timeout_s: how long it may take; None for as long as every call. The installation goes on after that.

        Raises:
            BadDependency: a package may not be installed, or cannot be.
            Forbidden: the token is no administrator's, or nothing is installed there.
            InstallFailed: not now.
        """
        return self._call(messages.make_environment(packages), timeout_s)

    def workers(self) -> list[api.WorkerInfo]:
        """The trusted workers that the gateway has; :meth:`run` asks one for a command."""
        return self._call(messages.workers())

    def scheduler_status(self) -> api.SchedulerStatus:
        """What waits, and what goes on."""
        return self._call(messages.scheduler_status())

    def health(self) -> api.Health:
        """Whether the gateway serves. Needs no token, and is asked once."""
        return self._call(messages.health())

    # -- how it asks ----------------------------------------------------------------------------------------------

    def _call(self, ask: Ask[_T], timeout_s: float | None = None) -> _T:
        settings = self._settings
        may_retry = settings.retry and ask.may_retry
        steps = attempts(ask, settings.time_of(ask, timeout_s), may_retry=may_retry, clock=time.monotonic)
        step = advance(steps, None)
        while not isinstance(step, Done):
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                step = advance(steps, None)
            else:
                step = advance(steps, self._exchange(ask, step))
        return step.value

    def _exchange(self, ask: Ask[Any], step: Send) -> Answer | TRException:
        settings = self._settings
        end_s = time.monotonic() + step.timeout_s
        has_begun = False
        try:
            with self._open(ask, step.timeout_s) as response:
                has_begun = True
                inbox = Inbox(response.status_code, response.headers)
                for chunk in response.iter_bytes():
                    inbox.take(chunk)
                    if time.monotonic() > end_s:
                        return settings.late(ask, step, has_begun=True)
        except httpx.HTTPError as error:
            return settings.failure(ask, error, step, has_begun=has_begun)
        return inbox.answer()

    @contextmanager
    def _open(self, ask: Ask[Any], timeout_s: float) -> Iterator[httpx.Response]:
        response = self._http.send(self._settings.request(self._http, ask, timeout_s), stream=True)
        try:
            yield response
        finally:
            response.close()

    def close(self) -> None:
        """Close its connections. Idempotent."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
