"""``Sandbox``: runs algorithms that are not trusted, by an executor of one kind."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from ..errors import TRException
from .areas import loan
from .async_runs import AsyncRuns
from .bundles import Bundle
from .checks import (
    bytes_of,
    check_inputs,
    check_layers,
    check_modules,
    check_packages,
    check_paths,
    check_request,
    check_sizes,
    check_text,
    check_texts,
    check_types,
)
from .errors import AlgorithmError, SandboxBroken
from .inspection import Inspection, check_installed, inspect
from .interface import (
    Algorithm,
    Allow,
    ComputeRequest,
    ComputeResponse,
    Executor,
    Health,
    Limits,
    Resources,
    replace_limits,
)
from .kept import Kept
from .kinds import find_kind
from .steps import Steps
from .waiting import WaitingRuns, closed

__all__ = ["REQUIRED_LAYERS", "Sandbox"]

REQUIRED_LAYERS: Final = ("landlock", "seccomp", "rlimits", "no_new_privs")
_SPARES: Final = 2


class Sandbox:
    """A sandbox. Threads may use it at once.

    Args:
        kind: ``"contained"`` for Python source, ``"wasm"`` for WebAssembly modules, ``"native"`` for shared libraries,
            ``"torch"`` for models of torch and Python source on torch tensors; ``docs/sandbox.md`` has all.
        limits: of each run.
        allow: what the algorithms are granted beside their inputs.
        required_layers: layers without which it refuses to start; see :attr:`layers`, and ``tr-mmap sandbox doctor``.
        preload: modules to import once, before any algorithm runs.
        packages: directories of packages, as ``pip install --target`` makes them. The algorithms can import these
            packages; they come before installed ones. No process but the algorithms' imports anything from there.
        max_workers: how many submitted runs go on at once.
        python: the interpreter of its processes, by path or by its name on ``PATH``, which must have ``tr_mmap`` of
            this version; None for that of ``TR_PYTHON``, or else for this program's.

    Raises:
        SandboxBroken: a required layer is missing, or a process could not be started.
        MissingPackage: the kind, or ``preload``, needs a package that is not installed.
        TypeError: an argument is of another type.
        ValueError: there is no such kind or layer; the kind cannot keep one of the limits, or give one of the grants;
            ``packages`` names something that is not a directory; or the kind imports no packages.
    """

    def __init__(
        self,
        kind: str = "contained",
        *,
        limits: Limits | None = None,
        allow: Allow | None = None,
        required_layers: Iterable[str] = REQUIRED_LAYERS,
        preload: Iterable[str] = ("numpy",),
        packages: Iterable[str | os.PathLike[str]] = (),
        max_workers: int = 4,
        python: str | os.PathLike[str] | None = None,
    ) -> None:
        check_types(limits, allow)
        self.kind = kind
        self._kind = find_kind(kind)
        self._kept = Kept()
        self._limits = limits or Limits()
        self._allow = allow or Allow()
        self._required_layers = check_layers(required_layers)
        self._python = None if python is None else os.fspath(python)
        self._preload = check_texts("preload", preload) if self._python is not None else check_modules(preload)
        self._packages = check_packages(packages)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._setting = threading.Lock()  # one change at a time
        self._users: Counter[Executor] = Counter()  # runs that go on, by executor
        self._is_closed = False
        self._waiting: WaitingRuns[ComputeResponse] = WaitingRuns(max_workers)
        self._executors: set[Executor] = set()  # all that are not closed
        finalizer = weakref.finalize(self, _end_all, os.getpid(), self._executors, self._waiting)
        finalizer.atexit = False  # its processes end with this one
        self._executor = self._make_executor()
        self._algorithms: dict[str, Algorithm] = {}
        self._requests: dict[str, tuple[ComputeRequest, Future[ComputeResponse] | None]] = {}  # running or waiting

    def _make_executor(self) -> Executor:
        check_paths(self._allow)
        check_packages(self._packages)
        with _typed():
            made = self._kind.make(
                self._limits,
                self._allow,
                self._required_layers,
                self._preload,
                self._packages,
                _SPARES,
                self._kept,
                self._python,
            )
        self._executors.add(made)
        return made

    def _close_executor(self, executor: Executor) -> None:
        executor.close()
        self._executors.discard(executor)

    def _end_former(self, executor: Executor) -> None:
        """Close an executor that was replaced. If a process of it does not end, the caller's own run is still good."""
        with contextlib.suppress(SandboxBroken):
            self._close_executor(executor)

    def _check_process(self) -> None:
        """Call this before taking a lock: in a forked child, a thread that does not exist there may hold it."""
        if os.getpid() != self._pid:
            raise SandboxBroken("the sandbox belongs to the process that made it; make a new one after a fork")

    def _check_open(self) -> None:
        self._check_process()
        if self._is_closed:
            raise closed()

    @property
    def layers(self) -> frozenset[str]:
        """The layers that are active."""
        return self._executor.layers

    @property
    def version(self) -> str:
        """The version of what runs the algorithms; another version may give other results."""
        return self._executor.version

    @property
    def limits(self) -> Limits:
        """The limits of each run."""
        return self._limits

    def set_limits(self, **changes: Any) -> None:
        """Change some limits, for the runs that begin from now on; see :class:`Limits`.

        Processes that are kept for algorithms with ``reuse=True`` have the former limits. They end, and what the
        algorithms have left in them is lost.

        Raises:
            TypeError: there is no such limit.
            SandboxBroken: the sandbox was closed.
        """
        self._check_process()
        with self._setting:
            self._check_open()
            former_limits, self._limits = self._limits, replace_limits(self._limits, changes)
            try:
                executor = self._make_executor()
            except BaseException:
                self._limits = former_limits
                raise
            with self._lock:
                is_closed = self._is_closed
                if not is_closed:
                    former, self._executor = self._executor, executor
                    is_idle = not self._users[former]
        if is_closed:  # another thread has closed the sandbox meanwhile
            self._close_executor(executor)
            raise closed()
        if is_idle:
            self._end_former(former)

    @contextmanager
    def _using(self) -> Iterator[Executor]:
        """The present executor, counted as in use during the block."""
        executor = self._enter()
        try:
            with _typed():
                yield executor
        finally:
            self._leave(executor)

    def _enter(self) -> Executor:
        """The present executor; counted as in use until :meth:`_leave`."""
        self._check_process()
        with self._lock:
            executor = self._executor
            self._users[executor] += 1
        return executor

    def _leave(self, executor: Executor) -> None:
        """End a use. An executor that set_limits() has replaced is closed after its last use."""
        with self._lock:
            self._users[executor] -= 1
            is_last = not self._users[executor]
            if is_last:
                del self._users[executor]
            is_over = is_last and executor is not self._executor
        if is_over:
            self._end_former(executor)

    def _execute(self, request: ComputeRequest) -> ComputeResponse:
        with self._using() as executor:
            return executor.execute(request)

    def _run(self, request: ComputeRequest, check: Callable[[], None] | None = None) -> ComputeResponse:
        """Note a request, so that it can be cancelled, and execute it."""
        self._note(request, None)
        try:
            if check is not None:
                check()
            return self._execute(request)
        finally:
            self._forget(request)

    def _submit(self, request: ComputeRequest) -> Future[ComputeResponse]:
        self._note(request, None)  # first: it may be cancelled as soon as it waits
        try:
            future = self._waiting.submit(lambda: self._execute(request), request.priority, request.deadline_s)
        except BaseException:
            self._forget(request)
            raise
        self._note(request, future)
        future.add_done_callback(lambda _: self._forget(request))
        return future

    def _note(self, request: ComputeRequest, future: Future[ComputeResponse] | None) -> None:
        self._check_process()
        with self._lock:
            if self._requests.get(request.id, (request,))[0] is not request:
                raise ValueError(f"a run of the id {request.id!r} goes on; give each request an id of its own")
            self._requests[request.id] = request, future

    def _forget(self, request: ComputeRequest) -> None:
        with self._lock:
            self._requests.pop(request.id, None)

    def _request(self, algorithm: Algorithm | str, inputs: Mapping[str, Any] | None, **fields: Any) -> ComputeRequest:
        check_inputs(inputs)
        check_request(**fields)
        if fields.get("id", "") is None:
            del fields["id"]
        return ComputeRequest(self._find(algorithm), inputs or {}, **fields)

    def empty(self, shape: int | Sequence[int], dtype: Any = np.float64) -> np.ndarray[Any, Any]:
        """An array of zeros to be filled, which algorithms read in place, without a copy. A part of it is copied.

        An algorithm with ``reuse=True`` that got it can also see what you write there after its run.

        Args:
            shape: sizes in elements, outermost first.
            dtype: of its elements.

        Raises:
            TypeError: a size is not a whole number.
            ValueError: a size is negative, or the elements would be objects.
            OutOfSpace: the machine has less memory than that.
            SandboxBroken: the sandbox was closed.
        """
        self._check_open()
        sizes = check_sizes(shape)
        if np.dtype(dtype).hasobject:
            raise ValueError(f"there is no array of dtype {np.dtype(dtype)} to lend: its elements would be objects")
        return loan(sizes, np.dtype(dtype))

    def register(
        self,
        name: str,
        code: str | bytes | os.PathLike[str] | Bundle,
        function: str | None = None,
        *,
        reuse: bool = False,
        sha256: str | None = None,
        outputs: Iterable[str] = ("output",),
        dependencies: Iterable[str] = (),
    ) -> Algorithm:
        """Register an algorithm. Its code is parsed, and nothing of it is executed.

        If another algorithm has this name, its processes that are kept end, as by :meth:`unregister`.

        Args:
            name: the algorithm's name, for :meth:`run` and :meth:`unregister`.
            code: the Python source as a text; or the bytes of a WebAssembly module, a shared library or a torch model.
                Or a ``Path`` of a file that has one of these; for a library, a text is a path too. Or a bundle of one
                array of uint8, which no run copies, with Python source or a torch model; a model is opened once to
                check it.
            function: the function to call with the inputs, as a dictionary. If left out: the function with the
                algorithm's name, else ``process``, else the only function; if there is none, the code itself reads
                ``inputs`` and sets ``output``.
            reuse: whether its process may serve the next run too, which then finds what this run has left there.
            sha256: of the code, in hexadecimal; code with another one is refused.
            outputs: names of the tensors that a compiled algorithm or a model returns, in their order.
            dependencies: packages that it imports, perhaps with versions (``"humanize==4.17.0"``). They must be
                installed here, or in one of the sandbox's ``packages``.

        Raises:
            MissingPackage: a dependency is not installed, or in another version.
            AlgorithmError: it has a syntax error, or no such function, or its SHA-256 is not ``sha256``.
            ValueError: ``sha256`` is given with a bundle, or the bundle is not one array of uint8.
            OSError: the file cannot be read.
        """
        check_text("an algorithm's name", name)
        for what, text in (("function", function), ("sha256", sha256)):
            if text is not None:
                check_text(what, text)
        names, needed = check_texts("outputs", outputs), check_texts("dependencies", dependencies)
        if isinstance(code, Bundle):
            bundle, data = code, b""
            code.check_code()
            if sha256 is not None:
                raise ValueError("sha256 is of code that is given as bytes, and this is a bundle; leave it out")
        else:
            bundle, data = None, self._bytes_of(code)
        check_installed(needed, self._packages)
        if sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != sha256.lower():
            raise AlgorithmError(f"the code of {name!r} is another: its sha256 is {found}", type="DigestMismatch")
        with self._using() as executor:
            algorithm = executor.prepare(Algorithm(name, data, function, reuse, names, needed, bundle=bundle))
        with self._lock:
            former = self._algorithms.get(name, algorithm)
            self._algorithms[name] = algorithm
        if former != algorithm:
            self._end_kept(former)
        return algorithm

    def unregister(self, algorithm: Algorithm | str) -> None:
        """Forget an algorithm, and end the processes that are kept for it. Its runs that go on are not disturbed.

        Args:
            algorithm: the algorithm, or its name.

        Raises:
            KeyError: there is no algorithm of that name.
            SandboxBroken: the sandbox was closed.
        """
        self._check_open()
        found = self._find(algorithm)
        if self._algorithms.get(found.name) in (found, None) or isinstance(algorithm, str):
            self._algorithms.pop(found.name, None)
        self._end_kept(found)

    def _end_kept(self, algorithm: Algorithm) -> None:
        """End the processes that are kept for an algorithm; runs that go on or wait will keep none either."""
        its = dataclasses.replace(algorithm, function=None)  # whichever function was called
        with self._lock:
            for request, _ in self._requests.values():
                if dataclasses.replace(request.algorithm, function=None) == its:
                    request.is_unregistered = True
        with self._using() as executor:
            executor.forget(algorithm)

    def run(
        self,
        algorithm: Algorithm | str,
        inputs: Mapping[str, Any] | None = None,
        *,
        arguments: Sequence[Any] | None = None,
        deadline_s: float | None = None,
        request_id: str | None = None,
        check: Callable[[], None] | None = None,
    ) -> ComputeResponse:
        """Run a registered algorithm.

        Args:
            algorithm: the algorithm, or its name.
            inputs: by name: JSON values, numpy arrays, torch tensors, bundles of tensors.
            arguments: what its function gets instead of the inputs; see :meth:`call`.
            deadline_s: a moment by ``time.monotonic``: a run that goes on then is ended.
            request_id: an id for :meth:`cancel`, which no other run has at the same time. None for a new one.
            check: called before the run begins, when :meth:`cancel` can find it already; if it raises, the run does
                not begin. Let it check a flag that another thread sets before it calls ``cancel``: so no cancellation
                is lost.

        Raises:
            LimitExceeded, NotAllowed, AlgorithmError: the algorithm failed.
            DeadlineExceeded: its deadline came first.
            RunCancelled: :meth:`cancel` ended it.
            SandboxBroken: it could not be run.
            KeyError: there is no algorithm of that name.
            ValueError: another run has this id; or an input has a value that JSON lacks.
            TypeError: an input is of a type that JSON lacks.
        """
        given = None if arguments is None else tuple(arguments)
        request = self._request(algorithm, inputs, arguments=given, deadline_s=deadline_s, id=request_id)
        return self._run(request, check)

    def steps(
        self,
        algorithm: Algorithm | str,
        inputs: Mapping[str, Any] | None = None,
        *,
        deadline_s: float | None = None,
        request_id: str | None = None,
        check: Callable[[], None] | None = None,
    ) -> Steps[ComputeResponse]:
        """As :meth:`run`, in steps, for an event loop that waits for many runs at once; see ``steps.py``.

        A run with ``reuse=True`` has no slow step if a process is kept for it and its inputs and results are small.
        """
        request = self._request(algorithm, inputs, deadline_s=deadline_s, id=request_id)
        self._note(request, None)
        try:
            if check is not None:
                check()
            executor = self._enter()
            try:
                return (yield from executor.steps(request))
            except TRException:
                raise
            except OSError as error:
                raise _broken(error) from error
            finally:
                self._leave(executor)
        finally:
            self._forget(request)

    def submit(
        self,
        algorithm: Algorithm | str,
        inputs: Mapping[str, Any] | None = None,
        *,
        priority: int = 0,
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> Future[ComputeResponse]:
        """As :meth:`run`, in the background. The inputs are read when the run begins; do not change them before.

        Args:
            algorithm: the algorithm, or its name.
            inputs: by name.
            priority: runs of a higher priority begin first.
            deadline_s: a moment by ``time.monotonic``: a run that waits or goes on then gets DeadlineExceeded.
            request_id: as for :meth:`run`.

        Raises:
            SandboxBroken: the sandbox was closed.
            KeyError: there is no algorithm of that name.
        """
        return self._submit(self._request(algorithm, inputs, priority=priority, deadline_s=deadline_s, id=request_id))

    def cancel(self, request_id: str) -> bool:
        """End a run that another thread waits for; that thread gets RunCancelled or CancelledError.

        Returns:
            Whether there was such a run; it may have ended just then.
        """
        self._check_process()
        check_text("request_id", request_id)
        with self._lock:
            request, _ = self._requests.get(request_id, (None, None))
        return request is not None and self._cancel(request)

    def _cancel(self, request: ComputeRequest) -> bool:
        """As :meth:`cancel`, for a request; not for a later one with the same id."""
        request.is_cancelled = True  # first: an executor that has not begun it yet checks this
        with self._lock:
            noted, future = self._requests.get(request.id, (None, None))
            executors = {self._executor, *self._users}
        if noted is not request:
            return False
        if future is None or not future.cancel():
            for executor in executors:
                executor.cancel(request.id)
        return True

    def execute(self, code: str | bytes | os.PathLike[str], inputs: Mapping[str, Any] | None = None) -> ComputeResponse:
        """Run code that is not registered; see :meth:`register`."""
        return self.run(Algorithm("code", self._bytes_of(code), None), inputs)

    def call(self, algorithm: Algorithm | str, function: str, *arguments: Any) -> Any:
        """Call a function of an algorithm with arguments, and return what it returns.

        If it returns a dictionary of results by name, so does this; unless the only name is ``output``. Tensors are as
        in :class:`ComputeResponse`.

        Args:
            algorithm: the algorithm, or its name.
            function: one of its functions; of a WebAssembly module, one that it exports.
            arguments: JSON values and tensors; for a WebAssembly module, numbers.

        Raises:
            LimitExceeded, NotAllowed, AlgorithmError, SandboxBroken, KeyError: as :meth:`run`.
        """
        outputs = self._run(self._call(algorithm, function, arguments)).outputs
        return outputs["output"] if outputs.keys() == {"output"} else outputs

    def _call(self, algorithm: Algorithm | str, function: str, arguments: tuple[Any, ...]) -> ComputeRequest:
        check_text("function", function)
        found = dataclasses.replace(self._find(algorithm), function=function)
        return ComputeRequest(found, {}, arguments=arguments)

    def health(self) -> Health:
        """Whether it can run algorithms now, and why not."""
        return self._executor.health()

    def requirements(self) -> Resources:
        """What one run takes at most."""
        return self._executor.requirements()

    def inspect(self, code: str, dependencies: Iterable[str] = ()) -> Inspection:
        """List what Python source imports and calls, for a person to look at. Nothing is executed.

        Raises:
            SyntaxError: it is not Python.
            AlgorithmError: it is too long, or too deeply nested, to be parsed in this process.
        """
        return inspect(code, check_texts("dependencies", dependencies))

    @property
    def aio(self) -> AsyncRuns:
        """The same runs as coroutines."""
        return AsyncRuns(self)

    def close(self) -> None:
        """End all processes; runs that go on in other threads get SandboxBroken. Idempotent."""
        if os.getpid() != self._pid:
            return  # the processes are the parent's
        with self._lock:
            self._is_closed = True
        try:
            _close_all(self._executors)
        finally:
            self._waiting.close()

    def __enter__(self) -> Sandbox:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> str:
        raise TypeError("a sandbox has processes, and cannot be copied; make another one")

    def _bytes_of(self, code: str | bytes | os.PathLike[str]) -> bytes:
        return bytes_of(code, has_source=self._kind.has_source)

    def _find(self, algorithm: Algorithm | str) -> Algorithm:
        if isinstance(algorithm, Algorithm):
            return algorithm
        try:
            return self._algorithms[algorithm]
        except KeyError:
            known = ", ".join(sorted(self._algorithms)) or "none"
            raise KeyError(f"no algorithm is registered as {algorithm!r}; known: {known}; see register()") from None


@contextmanager
def _typed() -> Iterator[None]:
    """Turn errors of system calls into SandboxBroken, so that callers need not know them all."""
    try:
        yield
    except TRException:
        raise
    except OSError as error:
        raise _broken(error) from error


def _broken(error: OSError) -> SandboxBroken:
    return SandboxBroken(f"this process could not do its part: {error}; end what it has too much of, and try again")


def _end_all(pid: int, executors: set[Executor], waiting: WaitingRuns[ComputeResponse]) -> None:
    """The finalizer of a sandbox that was not closed: end its processes. None of its runs goes on."""
    if os.getpid() != pid:
        return  # they belong to the process that this one was forked from
    waiting.end()
    _close_all(executors)


def _close_all(executors: set[Executor]) -> None:
    """Close all executors, also if a process of one does not end; then raise that error."""
    found = None
    for executor in list(executors):
        try:
            executor.close()
        except SandboxBroken as error:
            found = error
        executors.discard(executor)
    if found is not None:
        raise found
