"""Trusted workers: programs of whoever runs the gateway, in plain sessions. Nothing contains them. Knows no HTTP.

A worker answers commands, see ``docs/workers.md``; a request names one as its function. Each session takes one request
at a time, so there are as many as requests that go on at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np

from ..controller.session import PythonSession
from ..errors import (
    BadMessage,
    RemoteError,
    ResponseTimeout,
    SessionNotStarted,
    TRException,
    UnknownCommand,
    WorkerDied,
)
from ..sandbox import DeadlineExceeded, RunCancelled
from .api import ExecuteBody, WorkerInfo
from .config_checks import is_reserved
from .errors import BadConfig, BadRequest, Conflict, Forbidden
from .logs import frames_of, log
from .payloads import Done, TensorForm, encode_results
from .scheduler import Job
from .sections import WorkerConfig

__all__ = ["Workers"]

_WORD: Final = re.compile(r"[^\s,]+")  # of a message, which a space or a comma would end
_EXIT_MS: Final = 5_000.0  # in which a worker ends by itself, before it is ended


class _Slot:
    """One process of a worker, and its successors.

    Attributes:
        session: that starts them.
    """

    def __init__(self, name: str, config: WorkerConfig) -> None:
        self._name = name
        self.session = PythonSession(
            config.script,
            f"gateway-{os.getpid()}-{secrets.token_hex(6)}",
            True,
            framework="numpy",
            python=config.python or None,
            start_timeout_ms=1000 * config.start_timeout_s,
        )
        self._starting = threading.Lock()
        self._is_ready = False  # once it is, only its end changes that
        self._is_closed = False

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        self.session.__enter__()
        self._is_ready = True

    def revive(self) -> None:
        """Start the next process if this one has ended; does not wait until it is ready.

        Raises:
            WorkerDied: the gateway ends.
        """
        with self._starting:
            if self._is_closed:
                raise WorkerDied(f"the worker {self._name!r} was ended with the gateway", exit_code=None, log_tail="")
            if not self.session.is_alive():
                self._is_ready = False
                self.session.start()

    def revive_soon(self) -> None:
        """The same, so that the next request need not wait so long; one that does not start tells that one why."""
        try:
            self.revive()
        except TRException as error:
            log.error("a worker does not start again", extra={"worker": self._name, "reason": str(error)})

    def is_ready_within(self, timeout_ms: float) -> bool:
        """Wait until it can be asked."""
        if not self._is_ready:
            self._is_ready = self.session.wait_until_ready(timeout_ms)
        return self._is_ready

    def close(self) -> None:
        """End it; if it does not end by itself, by force."""
        with self._starting:
            self._is_closed = True
        try:
            self.session.please_exit(_EXIT_MS)
        except TRException as error:  # it keeps no other from its end
            log.error("a worker does not end", extra={"worker": self._name, "reason": str(error)})


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
        self.slots = [_Slot(name, config) for _ in range(config.count)]
        self._free = list(self.slots)

    def take(self) -> _Slot:
        """One that nobody uses. The scheduler begins no more jobs than there are."""
        with self._lock:
            return self._free.pop()

    def give(self, slot: _Slot) -> None:
        """It may be used again."""
        with self._lock:
            self._free.append(slot)


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
                alive=sum(slot.session.is_alive() for slot in each.slots),
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
        each_of = [(worker.name, slot) for worker in self._workers.values() for slot in worker.slots]
        if each_of:
            with ThreadPoolExecutor(len(each_of)) as threads:
                starts = [threads.submit(_start, *each) for each in each_of]
            for start in starts:
                start.result()

    def close(self) -> None:
        """End all. Idempotent."""
        slots = [slot for worker in self._workers.values() for slot in worker.slots]
        if slots:
            with ThreadPoolExecutor(len(slots)) as threads:
                list(threads.map(_Slot.close, slots))

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
        if is_reserved(body.function):
            raise Forbidden(f"{body.function!r:.80} is a word of the worker's own protocol, and no command")
        if commands and body.function not in commands:
            raise Forbidden(f"the worker {worker.name!r} offers {', '.join(commands)}, and not {body.function!r:.80}")
        run = _WorkerRun(worker, body.function, inputs, deadline_s, form, request_id)
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
            has_begun=lambda: run.has_begun,
        )


class _WorkerRun:
    """One request to a worker, which another thread may end at every moment, by the end of its process.

    Attributes:
        has_begun: whether the worker may have got it.
    """

    def __init__(
        self,
        worker: _Worker,
        command: str,
        inputs: Mapping[str, Any],
        deadline_s: float,
        form: TensorForm,
        request_id: str,
    ) -> None:
        self._worker = worker
        self._message = {"cmd": command, "params": [_word(name, each) for name, each in inputs.items() if _is(each)]}
        self._tensors = [each for each in inputs.values() if not _is(each)]
        self._made_s = time.monotonic()
        self._deadline_s = deadline_s
        self._form = form
        self._request_id = request_id
        self._lock = threading.Lock()
        self._slot: _Slot | None = None  # while nobody else can have it
        self.has_begun = False
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
        slot = self._worker.take()
        try:
            with self._lock:
                self._slot = slot
            return self._ask(slot)
        except (WorkerDied, SessionNotStarted):
            self._check()  # then that is why
            raise
        finally:
            with self._lock:  # from here on nobody ends it for this run's sake
                self._slot = None
            if not slot.session.is_alive():
                slot.revive_soon()
            self._worker.give(slot)

    def _ask(self, slot: _Slot) -> Done:
        self._check()
        slot.revive()
        self._check()  # an end() that came before has found no process
        is_ready = slot.is_ready_within(self._left_ms())
        if not is_ready or not self._left_ms():
            self._check()
            raise self._too_late("before the worker was ready")  # it goes on with its start
        began_s = time.monotonic()
        self.has_begun = True
        try:
            found: Any = slot.session.calculate(self._message, *self._tensors, timeout_ms=self._left_ms())
        except ResponseTimeout:
            slot.session.terminate()  # it would go on, and the next request wait for it
            self._check()
            raise self._too_late("before the worker's answer, and its process was ended") from None
        except BadMessage as error:
            raise BadRequest(f"the worker {self._worker.name!r} cannot be asked that: {error}") from error
        except UnknownCommand as error:
            raise self._unknown(error) from error
        except RemoteError as error:
            self._tell_failure(error)
            raise
        outputs = {"output": found}
        if isinstance(found, list):
            outputs = {f"result_{number}": each for number, each in enumerate(found)}
        return encode_results(outputs, "", 1000 * (time.monotonic() - began_s), self._form)

    def _unknown(self, error: UnknownCommand) -> UnknownCommand:
        """The error for a command that the worker lacks, without the names of those that are not offered."""
        name, offered = self._worker.name, self._worker.config.commands
        if not offered:
            return error
        log.warning(
            "[workers.NAME] commands has one that the worker lacks", extra={"worker": name, "what": error.command}
        )
        text = f"the worker {name!r} knows no command {error.command[:80]!r}, though its section offers it"
        return UnknownCommand(text, command=error.command, error_type=error.error_type, remote_traceback="")

    def _tell_failure(self, error: RemoteError) -> None:
        """Say in the log where a command has failed."""
        log.warning(
            "a worker's command failed",
            extra={
                "request_id": self._request_id,
                "worker": self._worker.name,
                "command": error.command[:80],
                "error_type": error.error_type,
                "frames": frames_of(error.remote_traceback),
            },
        )

    def _left_ms(self) -> float:
        return max(0.0, 1000 * (self._deadline_s - time.monotonic()))

    def _too_late(self, when: str) -> DeadlineExceeded:
        text = f"the request's deadline came {when}; give it more time"
        return DeadlineExceeded(text, limit="deadline_s", value=time.monotonic() - self._made_s)

    def _check(self) -> None:
        if self._is_cancelled:
            raise RunCancelled("the run was cancelled", request_id="")

    def end(self) -> None:
        """End it, whether or not it has begun. From any thread."""
        with self._lock:
            self._is_cancelled = True  # first, see _ask()
            if self._slot is not None:
                self._slot.session.terminate()


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
    if isinstance(value, str) and not _WORD.fullmatch(value):
        raise BadRequest(
            f"the input {name!r}: {value!r:.80} is not one word, as a worker gets them: it is empty, or has a space, a "
            "line break or a comma; give its words as inputs of their own, or a tensor of its bytes"
        )
    if isinstance(value, str | int | float):
        return value
    raise BadRequest(f"the input {name!r}: a worker gets tensors, texts and numbers, and no {type(value).__name__}")


def _start(name: str, slot: _Slot) -> None:
    with _told(name):
        slot.start()


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Errors of a start are those of the configuration."""
    try:
        yield
    except TRException as error:
        log.error("a worker does not start", extra={"worker": name, "reason": str(error)})
        first = str(error).partition("\n")[0]
        raise BadConfig(f"workers.{name}: it does not start: {first}", key=f"workers.{name}") from error
