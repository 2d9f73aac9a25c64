"""Registers algorithms, and forgets them again. Knows no HTTP, and runs none.

To be used in the thread of one event loop. Code is decoded and parsed in two threads of its own, so that many
registrations keep nothing else waiting.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from ..errors import TRException
from ..sandbox import Algorithm
from .algorithm_kinds import KINDS, check_enabled, key_of
from .api import AlgorithmInfo, AlgorithmList, RegisterBody, Requirements
from .base64_text import from_base64
from .boxes import Boxes, BoxKey
from .config import Config
from .dependencies import Dependencies
from .environments import Lease
from .errors import BadRequest, Conflict, NotFound, Overloaded
from .functions_of_code import check_choice
from .models import Models
from .registry import Registered, Registry, version_of
from .requirements import read_requirements
from .tokens import Principal
from .workers import Workers

__all__ = ["Registration"]

_THREADS: Final = 2


class Registration:
    """See the module's docstring.

    Args:
        config: of the gateway.
        registry: what is registered.
        boxes: whose sandboxes parse code.
        models: of which some are algorithms.
        workers: whose names are taken.
        dependencies: packages of algorithms.
        on_change: is told the name of an algorithm that is another one now, or gone.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry,
        boxes: Boxes,
        models: Models,
        workers: Workers,
        dependencies: Dependencies,
        on_change: Callable[[str], None],
    ) -> None:
        self._config = config
        self._registry = registry
        self._boxes = boxes
        self._models = models
        self._workers = workers
        self._dependencies = dependencies
        self._on_change = on_change
        self._is_closed = False
        self._threads = ThreadPoolExecutor(_THREADS, "tr_mmap-register")

    async def register(self, body: RegisterBody, principal: Principal) -> AlgorithmInfo:
        """Register an algorithm, in the place of one of the same name and owner. Nothing of it is executed.

        Raises:
            BadRequest: its code is missing, or of another kind.
            Forbidden: the name is another subject's, or its kind is not enabled.
            Conflict: a model of that name is an algorithm itself.
            RegistryFull: there are too many.
            AlgorithmError: it cannot be parsed, or no function of several is named.
            BadDependency: a package that it declares may not, or cannot, be installed.
            Busy: not now.
        """
        self._workers.check_free(body.name)
        self._registry.check_owner(body.name, principal)
        if self._models.algorithm(body.name) is not None:
            raise Conflict(f"the model {body.name!r} is an algorithm itself; take another name")
        if body.model is not None:
            self._models.check(body.model, body.kind)
        check_enabled(self._config, body.kind)
        text = _code_of(body)
        self._registry.check_room(body.name, principal.subject, _nbytes_of(body, text))
        needed = read_requirements(body.dependencies)
        key_of(self._config, body.kind, body.resource_requirements, body.timeout_ms)  # whether it may have that
        environment = await self._dependencies.get(body.kind, body.dependencies)
        try:
            if self._is_closed:  # its body has come after the gateway's end began
                raise Overloaded("the gateway is about to end; try again", retry_after_s=1.0)
            loop = asyncio.get_running_loop()
            registered = await loop.run_in_executor(
                self._threads, self._registered, body, text, needed, environment, principal
            )
            self._registry.check_owner(body.name, principal)  # somebody else may have been faster
            former = self._registry.put(registered)
        except BaseException:
            if environment is not None:
                environment.close()
            raise
        if former is not None:
            self._replace(former, registered)
        return _info(registered)

    def unregister(self, name: str, principal: Principal) -> AlgorithmInfo:
        """Forget one; its runs that go on end well.

        Raises:
            NotFound: there is none of that name.
            Conflict: it is a model, or a worker.
            Forbidden: it is another subject's.
        """
        try:
            self._registry.get(name)
        except NotFound:
            self._check_registered_by_nobody(name)
            raise
        self._registry.check_owner(name, principal, "it can be forgotten by that subject, or by an administrator")
        removed = self._registry.remove(name)
        self._forget(removed)
        return _info(removed)

    def _check_registered_by_nobody(self, name: str) -> None:
        """
        Raises:
            Conflict: it can be executed nevertheless, because the configuration says so.
        """
        if self._models.algorithm(name) is not None:
            raise Conflict(
                f"{name!r} is a model, which nobody has registered: to have it gone, remove its directory from "
                "[python.models] model_dir"
            )
        if name in self._workers:
            raise Conflict(
                f"{name!r} is a trusted worker, which nobody has registered: to have it gone, remove the section "
                f"[workers.{name}]"
            )

    def all(self) -> AlgorithmList:
        """All that are registered, and the models that are algorithms."""
        found = {each.name: each for each in (*self._registry.all(), *self._models.algorithms())}
        return AlgorithmList([_info(found[name]) for name in sorted(found)])

    def info(self, name: str) -> AlgorithmInfo:
        """One of them.

        Raises:
            NotFound: there is none of that name.
        """
        return _info(self.find(name))

    def find(self, name: str) -> Registered:
        """One of them, to run it.

        Raises:
            NotFound: there is none of that name.
            BadModel, Overloaded: it is a model that cannot be executed.
        """
        found = self._models.algorithm(name)
        if found is not None:
            return found
        try:
            return self._registry.get(name)
        except NotFound:
            self._models.check_algorithm(name)
            raise

    def close(self) -> None:
        """Refuse what comes from now on. What the threads still have to do ends with the sandboxes. Idempotent."""
        self._is_closed = True
        self._threads.shutdown(wait=False)

    def _replace(self, former: Registered, registered: Registered) -> None:
        if (former.algorithm, former.box) != (registered.algorithm, registered.box):
            self._forget(former)
        elif former.environment is not None:
            former.environment.close()

    def _forget(self, registered: Registered) -> None:
        if registered.environment is not None:
            registered.environment.close()
        self._on_change(registered.name)
        if registered.algorithm.is_reused:
            asyncio.get_running_loop().run_in_executor(None, self._end_kept, registered)

    def _end_kept(self, registered: Registered) -> None:
        self._boxes.unregister([(registered.box, registered.algorithm)])
        if registered.model is not None:
            self._models.end_kept(registered)

    # -- in a thread of the registrations -----------------------------------------------------------------------------

    def _registered(
        self,
        body: RegisterBody,
        text: str,
        needed: tuple[str, ...],
        environment: Lease | None,
        principal: Principal,
    ) -> Registered:
        code = text.encode() if KINDS[body.kind].field == "code" else _decoded(KINDS[body.kind].field, text)
        packages = () if environment is None else (environment.packages,)
        parts = [*body.dependencies, *([environment.environment.hash] if environment is not None else [])]
        # Parsing depends on none of its limits: a sandbox that has them is made by the first run that needs it.
        algorithm = self._prepare(key_of(self._config, body.kind), code, body, needed)
        return Registered(
            body.name,
            version_of(body.kind.encode(), code, *(each.encode() for each in parts)),
            body.kind,
            dataclasses.replace(algorithm, is_reused=body.reuse, owner=principal.subject),
            key_of(self._config, body.kind, body.resource_requirements, body.timeout_ms, packages),
            principal.subject,
            time.time(),
            body.idempotent,
            body.model,
            body.dependencies,
            environment=environment,
            nbytes=_nbytes_of(body, text),
        )

    def _prepare(self, key: BoxKey, code: bytes, body: RegisterBody, needed: tuple[str, ...]) -> Algorithm:
        with self._boxes.using(key) as box:
            try:
                algorithm = box.register(
                    body.name,
                    code,
                    body.function,
                    sha256=body.sha256,
                    outputs=body.outputs,
                    dependencies=() if self._dependencies.sees_to(body.kind) else needed,
                )
            except (TypeError, ValueError) as error:
                if isinstance(error, TRException):
                    raise
                raise BadRequest(str(error)) from error
            box.unregister(algorithm)  # runs have the object; the sandbox need not know it by name
            if KINDS[body.kind].field == "code" and algorithm.function is None:
                check_choice(body.name, code, box)
        return dataclasses.replace(algorithm, dependencies=body.dependencies)


def _code_of(body: RegisterBody) -> str:
    wanted = KINDS[body.kind].field
    given = [each for each in ("code", "wasm", "library") if getattr(body, each) is not None]
    if given != [wanted]:
        raise BadRequest(f"an algorithm of kind {body.kind!r} has its code in {wanted!r}, and in no other field")
    text: str = getattr(body, wanted)
    return text


def _nbytes_of(body: RegisterBody, text: str) -> int:
    """Of memory that it keeps: its code, of base64 perhaps two bytes less, and its texts."""
    code = len(text) if KINDS[body.kind].field == "code" else len(text) * 3 // 4
    return code + sum(map(len, (*body.dependencies, *body.outputs)))


def _decoded(field: str, text: str) -> bytes:
    try:
        return from_base64(text)
    except ValueError:
        raise BadRequest(f"{field} is no base64") from None


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
        is_model=registered.is_model,
        owner=registered.owner,
        registered_at=registered.registered_s,
    )
