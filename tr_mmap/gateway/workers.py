"""Trusted workers: programs of whoever runs the gateway, in plain sessions. Nothing contains them. Knows no HTTP.

A worker answers commands, see ``docs/workers.md``; a request names one as its function. Each session takes one request
at a time, so there are as many as requests that go on at once.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np

from ..controller.session import PythonSession
from ..errors import BadMessage, ResponseTimeout, SessionNotStarted, TRException, WorkerDied
from ..sandbox import DeadlineExceeded, RunCancelled
from .api import ExecuteBody, WorkerInfo
from .config import WorkerConfig
from .errors import BadConfig, BadRequest, Conflict, Forbidden
from .logs import log
from .payloads import Done, TensorForm, encode_results
from .scheduler import Job

__all__ = ["Workers"]

_EXIT_MS: Final = 5_000.0  # in which a worker ends by itself, before it is ended


class _Worker:
    """Those of one section.

    Attributes:
        kind: of their jobs.
        config: the section.
    """

    def __init__(self, name: str, config: WorkerConfig) -> None:
        self.name = name
        self.kind = f"worker:{name}"
        self.config = config
        self._lock = threading.Lock()
        self.sessions = [
            PythonSession(
                config.script,
                f"gateway-{os.getpid()}-{secrets.token_hex(6)}",
                True,
                framework="numpy",
                python=config.python or None,
                start_timeout_ms=1000 * config.start_timeout_s,
            )
            for _ in range(config.count)
        ]
        self._free = list(self.sessions)

    def take(self) -> PythonSession[np.ndarray[Any, Any]]:
        """One that nobody uses. The scheduler begins no more jobs than there are."""
        with self._lock:
            return self._free.pop()

    def give(self, session: PythonSession[np.ndarray[Any, Any]]) -> None:
        """It may be used again."""
        with self._lock:
            self._free.append(session)


class Workers:
    """All of a gateway's. Threads may use it at once.

    Args:
        configs: by name.

    Raises:
        BadConfig: a script or an interpreter cannot be used.
    """

    def __init__(self, configs: Mapping[str, WorkerConfig]) -> None:
        self._workers: dict[str, _Worker] = {}
        for name, config in configs.items():
            with _told(name):
                self._workers[name] = _Worker(name, config)

    def __contains__(self, name: object) -> bool:
        return name in self._workers

    def lanes(self) -> dict[str, int]:
        """How many requests go on at once, by the kind of their jobs."""
        return {each.kind: each.config.count for each in self._workers.values()}

    def check_free(self, name: str) -> None:
        """
        Raises:
            Conflict: a worker has the name.
        """
        if name in self._workers:
            raise Conflict(f"{name!r} is the name of a worker of this gateway; take another")

    def all(self) -> list[WorkerInfo]:
        """What there is."""
        return [
            WorkerInfo(
                name=each.name,
                count=each.config.count,
                alive=sum(session.is_alive() for session in each.sessions),
                commands=each.config.commands,
                idempotent=each.config.idempotent,
            )
            for each in self._workers.values()
        ]

    def start(self) -> None:
        """Start all, and wait until they are ready.

        Raises:
            BadConfig: one does not start; it says why.
        """
        each_of = [(worker, session) for worker in self._workers.values() for session in worker.sessions]
        if not each_of:
            return
        with ThreadPoolExecutor(len(each_of)) as threads:
            starts = [threads.submit(_start, *each) for each in each_of]
        for start in starts:
            start.result()

    def close(self) -> None:
        """End all; one that does not end by itself, by force."""
        sessions = [session for worker in self._workers.values() for session in worker.sessions]
        if sessions:
            with ThreadPoolExecutor(len(sessions)) as threads:
                list(threads.map(_end, sessions))

    def job(
        self,
        body: ExecuteBody,
        inputs: Mapping[str, Any],
        subject: str,
        request_id: str,
        deadline_s: float,
        form: TensorForm,
        nbytes: int,
    ) -> Job:
        """The job of a request whose algorithm is a worker.

        Raises:
            BadRequest: it names no command, or its inputs are none that a worker can get.
            Forbidden: the command is not offered.
        """
        assert body.algorithm is not None
        worker = self._workers[body.algorithm]
        commands = worker.config.commands
        if body.function is None:
            offered = f": {', '.join(commands)}" if commands else ""
            raise BadRequest(f"{worker.name!r} is a worker: name its command as the function{offered}")
        if commands and body.function not in commands:
            raise Forbidden(f"the worker {worker.name!r} offers {', '.join(commands)}, and not {body.function!r:.80}")
        run = _WorkerRun(worker, body.function, inputs, deadline_s, form)
        return Job(
            request_id=request_id,
            kind=worker.kind,
            name=worker.name,
            subject=subject,
            run=run.do,
            end=run.end,
            priority=body.priority,
            deadline_s=deadline_s,
            is_idempotent=worker.config.idempotent,
            nbytes=nbytes,
        )


class _WorkerRun:
    """One request to a worker, which another thread may end at every moment, by the end of its process."""

    def __init__(
        self, worker: _Worker, command: str, inputs: Mapping[str, Any], deadline_s: float, form: TensorForm
    ) -> None:
        self._worker = worker
        self._message = {"cmd": command, "params": [_word(name, each) for name, each in inputs.items() if _is(each)]}
        self._tensors = [each for each in inputs.values() if not _is(each)]
        self._deadline_s = deadline_s
        self._form = form
        self._lock = threading.Lock()
        self._session: PythonSession[np.ndarray[Any, Any]] | None = None  # while nobody else can have it
        self._is_cancelled = False

    def do(self) -> Done:
        """Ask, and wait for the answer. May be called again after an error.

        Raises:
            RunCancelled: :meth:`end` was called.
            DeadlineExceeded: the deadline came; the worker's process was ended.
            RemoteError: the command failed.
            WorkerDied: the process ended.
            BadRequest: the message is none.
        """
        session = self._worker.take()
        try:
            with self._lock:
                self._session = session
            return self._ask(session)
        except (WorkerDied, SessionNotStarted):
            self._check()  # then that is why
            raise
        finally:
            with self._lock:  # from here on nobody ends it for this run's sake
                self._session = None
            self._worker.give(session)

    def _ask(self, session: PythonSession[np.ndarray[Any, Any]]) -> Done:
        self._check()
        if not session.is_alive():
            session.start()
            self._check()  # an end() that came before found no process
            if not session.wait_until_ready(self._left_ms()):
                raise self._too_late(session, "before it was ready")
        began_s = time.monotonic()
        try:
            found: Any = session.calculate(self._message, *self._tensors, timeout_ms=self._left_ms())
        except ResponseTimeout:
            raise self._too_late(session, "before its answer") from None
        except BadMessage as error:
            raise BadRequest(f"{error}; an input of a worker is a tensor, or one word") from error
        outputs = {"output": found}
        if isinstance(found, list):
            outputs = {f"result_{number}": each for number, each in enumerate(found)}
        return encode_results(outputs, "", 1000 * (time.monotonic() - began_s), self._form)

    def _left_ms(self) -> float:
        return max(0.0, 1000 * (self._deadline_s - time.monotonic()))

    def _too_late(self, session: PythonSession[np.ndarray[Any, Any]], when: str) -> DeadlineExceeded:
        session.terminate()  # it would go on, and the next request wait for it
        self._check()
        text = f"the request's deadline came {when}, and the worker {self._worker.name!r} was started anew"
        return DeadlineExceeded(text, limit="deadline_s", value=self._deadline_s)

    def _check(self) -> None:
        if self._is_cancelled:
            raise RunCancelled("the run was cancelled", request_id="")

    def end(self) -> None:
        """End it, whether or not it has begun. From any thread."""
        with self._lock:
            self._is_cancelled = True  # first, see _ask()
            if self._session is not None:
                self._session.terminate()


def _is(value: Any) -> bool:
    """Whether an input is no tensor."""
    return not isinstance(value, np.ndarray)


def _word(name: str, value: Any) -> str | int | float:
    """An input as a word of a message.

    Raises:
        BadRequest: it is none.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "None"
    if isinstance(value, str | int | float):
        return value
    raise BadRequest(f"the input {name!r}: a worker gets tensors, texts and numbers, and no {type(value).__name__}")


def _start(worker: _Worker, session: PythonSession[np.ndarray[Any, Any]]) -> None:
    with _told(worker.name):
        session.__enter__()


def _end(session: PythonSession[np.ndarray[Any, Any]]) -> None:
    try:
        session.please_exit(_EXIT_MS)
    except TRException as error:  # it keeps no other from its end
        log.error("a worker does not end", extra={"reason": str(error)})


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Errors of a start are those of the configuration."""
    try:
        yield
    except TRException as error:
        log.error("a worker does not start", extra={"worker": name, "reason": str(error)})
        first = str(error).partition("\n")[0]
        raise BadConfig(f"workers.{name}: it does not start: {first}", key=f"workers.{name}") from error
