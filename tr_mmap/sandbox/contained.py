"""The contained executor: each run in a process of its own, which the kernel restricts. Trusts none of them.

A process gets its inputs as sealed memory and writes its outputs into memory that the host has made. So neither side
can disturb the other through that memory.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from .. import __version__
from ..errors import TRException
from . import memory
from .areas import Area, Pool, open_areas
from .errors import AlgorithmError, LimitExceeded, NotAllowed, SandboxBroken
from .host import Host, Process, close_surplus
from .inputs import Inputs, Shared
from .interface import COPIED, IN_PLACE, Algorithm, ComputeRequest, ComputeResponse, Health, Resources
from .layers import can_give_files
from .messages import Ahead, Answer, Job, Work
from .orphans import MAKERS
from .outputs import end_of, end_of_all, open_outputs
from .placement import LostInput, SharedFile
from .process import Used
from .running import Run, Runs
from .steps import SLOW, Later, Steps, finish
from .verdicts import Died, forged

__all__ = ["ContainedExecutor", "Done", "Inputs"]

_MAX_PRINTED_NBYTES: Final = 1 << 20
_TRIES: Final = 4  # how often a run whose algorithm may have begun is tried, if its processes are killed from outside
_MAX_TRIES: Final = 12  # in all: a process may also be killed before it gets the job
_SMALL_NBYTES: Final = 64 << 10  # copying this much takes less time than stopping a process
_SIGNALS: Final = (
    "timer_create kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal fcntl prctl mq_notify"
)
_BY_PAGE: Final = "sendfile splice tee vmsplice"  # give pages, not copies, to files and pipes that outlive the process
_UNSURE: Final = MAKERS | frozenset(f"{_SIGNALS} {_BY_PAGE} ptrace io_submit io_uring_setup process_vm_writev".split())
_RUNS_AHEAD: Final = 4  # the next run is expected to need as much memory as the largest of so many last ones
_MAX_NOTE: Final = 2000
_LEAST_AHEAD_NBYTES: Final = 1 << 20  # from this size on, mapping memory takes longer than the message about it
_MOST_AHEAD_NBYTES: Final = 256 << 20  # of inputs, and of results, that are mapped ahead: they may never be needed


class Done(NamedTuple):
    """The result of a process's job.

    Attributes:
        answer: its answer.
        buffer: the results that it has written; bytes if they were copied.
        printed: the text that it has printed.
    """

    answer: Answer
    buffer: Any
    printed: str


class ContainedExecutor:
    """See the module's docstring. Threads may use it at once.

    Args:
        name: of the kind.
        runner: the module of ``runners/`` that runs it.
        host: makes its processes; closed with it.
    """

    maps_ahead = True
    """Whether its processes can use memory that they get before their job."""

    takes_bundles = True
    """Whether its algorithms can get bundles of tensors, and be one."""

    keeps_failed = True
    """Whether a process can take the next run after its algorithm has raised an exception."""

    def __init__(self, name: str, runner: str, host: Host) -> None:
        # Sizes of the last runs' inputs, and of their results in numpy's arena: the next run is likely to need as much.
        self._input_nbytes: deque[int] = deque([0], _RUNS_AHEAD)
        self._output_nbytes: deque[int] = deque([0], _RUNS_AHEAD)
        self.name = name
        self.version = f"tr_mmap {__version__}"
        self.layers = host.layers
        self._runs = Runs()
        self._runner = runner
        self._host = host
        # A socket outlives its process, and may still have pages of its memory; so no other process gets that memory.
        self._inputs = Pool(is_input=True, is_kept=not host.allow.net)
        self._outputs = Pool(is_input=False, is_kept=not host.allow.net)
        # A process that may fork leaves children that have its memory. One that may send signals can continue another
        # one that was stopped.
        self._must_copy = "seccomp" not in host.layers or bool(_UNSURE & set(host.allow.syscalls))
        self._may_give_files = not self._must_copy and can_give_files(host.layers)
        # A run may be repeated if it cannot change anything but its own memory, and cannot have killed itself.
        may_change = host.allow.net or not all(each.readonly for each in host.allow.mounts)
        self._is_repeatable = not may_change and not self._must_copy

    def prepare(self, algorithm: Algorithm) -> Algorithm:
        """Check an algorithm; nothing of it is executed, and its parser is contained."""
        options = self._check_options(algorithm)
        done = finish(self._do(Run(), algorithm, Inputs({}), 0, is_check=True, options=options))
        return dataclasses.replace(algorithm, function=done.answer.function)

    def execute(self, request: ComputeRequest) -> ComputeResponse:
        """Run it."""
        return finish(self.steps(request))

    def steps(self, request: ComputeRequest) -> Steps[ComputeResponse]:
        """As :meth:`execute`, in steps."""
        limit = self._host.limits.output_nbytes
        run = self._runs.begin(request)
        try:
            with self._open_request(request) as inputs:
                options = self._runner_options(request.algorithm, inputs)
                done = yield from self._do(run, request.algorithm, inputs, limit, is_check=False, options=options)
                return self._respond(request, open_outputs(done.answer, done.buffer), done, inputs)
        finally:
            self._runs.end(request)

    def _runner_options(self, algorithm: Algorithm, inputs: Inputs) -> dict[str, Any] | None:  # noqa: ARG002 - those of kinds
        """Options for the runner of this kind; may add to the inputs."""
        return None

    def _check_options(self, algorithm: Algorithm) -> dict[str, Any] | None:  # noqa: ARG002 - those of kinds
        """Options for the runner of this kind when it checks an algorithm."""
        return None

    def _open(self, inputs: Mapping[str, Any], algorithm: Algorithm) -> Inputs:
        # A process that is kept would still have the file when its content has changed.
        return Inputs(inputs, may_give_files=self._may_give_files and not algorithm.is_reused)

    def _open_request(self, request: ComputeRequest) -> Inputs:
        """The inputs of a request, or the arguments that it has instead."""
        if request.arguments is None:
            return self._open(request.inputs, request.algorithm)
        named = {str(number): value for number, value in enumerate(request.arguments)}
        inputs = self._open(named, request.algorithm)
        inputs.arguments = len(named)
        return inputs

    def _respond(self, request: ComputeRequest, outputs: dict[str, Any], done: Done, inputs: Inputs) -> ComputeResponse:
        limits = self._host.limits
        place = COPIED if isinstance(done.buffer, bytes) else IN_PLACE
        places, nbytes = {}, 0
        for name, value in outputs.items():
            if isinstance(value, np.ndarray):
                places[name] = place
                nbytes += value.nbytes
        if nbytes > limits.output_nbytes:
            raise forged(ValueError("more results than its limit"))
        elapsed_ms = min(max(done.answer.execution_time_ms, 0.0), limits.wall_ms)
        return ComputeResponse(request.id, outputs, done.printed, elapsed_ms, inputs.nbytes, inputs.places, places)

    def health(self) -> Health:
        """State."""
        if self._host.is_closed:
            return Health("closed", self.layers, "it was closed; make a new sandbox")
        if not self._host.is_alive():
            return Health("broken", self.layers, "its zygote has ended; make a new sandbox")
        return Health("ready", self.layers)

    def requirements(self) -> Resources:
        """What one run takes at most."""
        limits = self._host.limits
        return Resources(
            limits.memory_nbytes + self._host.margin.memory_nbytes + memory.area_nbytes(limits.output_nbytes),
            limits.cpu_cores or os.cpu_count() or 1,
            self._host.disk_nbytes if "mount_namespace" in self.layers else 0,
        )

    def cancel(self, request_id: str) -> bool:
        """End a run; returns whether it went on."""
        return self._runs.cancel(request_id)

    def forget(self, algorithm: Algorithm) -> None:
        """End the processes that are kept for an algorithm."""
        its = dataclasses.replace(algorithm, function=None)  # whichever function was called
        self._host.drop(lambda key: isinstance(key, Algorithm) and dataclasses.replace(key, function=None) == its)

    def close(self) -> None:
        """End all processes. Idempotent."""
        self._inputs.close()
        self._outputs.close()
        self._host.close()

    def _key(self, algorithm: Algorithm) -> Hashable:
        """The key under which an algorithm's processes are kept."""
        return algorithm

    def _do(
        self,
        run: Run,
        algorithm: Algorithm,
        inputs: Inputs,
        output_nbytes: int,
        *,
        is_check: bool,
        options: dict[str, Any] | None = None,
    ) -> Steps[Done]:
        """Give the work to a process; if something outside kills it, to another one."""
        if not self.takes_bundles and (inputs.bundles or algorithm.bundle is not None):
            raise TypeError(f"kind {self.name!r} takes no Bundle; give its tensors one by one")
        code_area, code_offset, code_nbytes = inputs.add_code(algorithm)
        work = Work(
            self._runner,
            algorithm.name,
            code_offset,
            code_nbytes,
            algorithm.function,
            inputs.values,
            inputs.specs,
            inputs.bundles,
            code_area,
            inputs.arguments,
            options or {},
        )
        text = msgspec.json.encode(work)
        job = Job(inputs.add(text), len(text), output_nbytes, is_check)
        key = self._key(algorithm) if algorithm.is_reused and not is_check else None
        begun, used = 0, Used()
        for number in range(_MAX_TRIES):
            try:
                return (yield from self._do_once(run, key, inputs, job, used))
            except Died as error:
                run.check()
                may_retry = not error.had_job or (key is None and self._is_repeatable)
                begun += error.had_job
                if begun == _TRIES or number == _MAX_TRIES - 1 or not may_retry or not self._host.is_alive():
                    raise self._host.broken(error) from None
            except LostInput:
                raise _lost("an input") from None
            except TRException as error:  # the cause may be a file that was truncated: reading it is SIGBUS
                lost = inputs.truncated()
                if lost is not None:
                    raise _lost(lost.path) from error
                raise
        raise AssertionError

    def _do_once(self, run: Run, key: Hashable, inputs: Inputs, job: Job, used: Used) -> Steps[Done]:
        process = self._host.take_kept(key)
        if process is None or inputs.end > _SMALL_NBYTES:
            yield SLOW
        process = process or self._host.take(key, run.check)
        done: Done | AlgorithmError
        try:
            done = yield from self._use(process, key, inputs, job, used, run)
        except BaseException as error:
            if key is not None and self.keeps_failed and isinstance(error, AlgorithmError) and process.has_told_fault:
                done = error
            else:
                try:
                    if not isinstance(error, GeneratorExit):
                        yield SLOW  # its end is waited for
                finally:
                    self._end(process)
                    self._host.refill()
                raise
        surplus = None if key is None else self._host.keep(process, key, lambda: run.is_registered)
        self._host.refill()
        if key is not None:
            yield Later(functools.partial(self._host.stop_kept, process, key))
        if surplus is not None:
            try:
                yield SLOW
            finally:
                close_surplus(surplus)
        if isinstance(done, AlgorithmError):
            try:
                raise done
            finally:
                del done  # its traceback has this frame
        return done

    def _use(self, process: Process, key: Hashable, inputs: Inputs, job: Job, used: Used, run: Run) -> Steps[Done]:
        if process.printed_fd < 0:
            process.printed_fd = memory.make_area(min(self._host.limits.output_nbytes, _MAX_PRINTED_NBYTES))
        else:
            os.lseek(process.printed_fd, 0, os.SEEK_SET)
        self._give_areas(process, inputs.end, job.output_nbytes)
        process.areas[0].fill(inputs.pieces)
        if key is None and not job.is_check:
            self._give_ahead(inputs.end)
        nbytes = process.areas[0].nbytes + sum(each.nbytes for each in inputs.loans)
        private_nbytes = inputs.private_nbytes() if self._host.margin.has_private_inputs else 0
        run.enter(process)
        try:
            opened, fds = _open_for(process, inputs.loans)
            try:
                answer = yield from process.run(job, fds, nbytes, private_nbytes, used, run.deadline_s)
            finally:
                for fd in opened:
                    os.close(fd)
                run.leave()
        except (AlgorithmError, LimitExceeded, NotAllowed) as error:
            _tell_printed(error, _printed(process.printed_fd))
            raise
        printed = _printed(process.printed_fd)
        if key is None:
            return Done(answer, self._take_results(process, answer), printed)
        end = end_of_all(answer)
        if end > _SMALL_NBYTES:
            yield SLOW  # stopping the process, or copying so much, takes long
        return Done(answer, _lend(process, end, must_copy=self._must_copy), printed)

    def _take_results(self, process: Process, answer: Answer) -> Any:
        """End a process, and return what it has written, as a buffer."""
        if self._must_copy:
            process.kill()
            buffer = _copy(process.areas[1], end_of_all(answer))
            process.close()
        else:
            buffer = self._adopt(process, answer)
            self._host.end(process)  # from here on another thread may release it
        return buffer

    def _end(self, process: Process) -> None:
        """End a process that has not finished its job."""
        areas, process.areas = process.areas, []
        try:
            process.close()
        except BaseException:
            for area in areas:
                area.close()
            raise
        self._take_back(areas)

    def _give_areas(self, process: Process, input_nbytes: int, output_nbytes: int) -> None:
        """Make sure that a process has areas of at least these sizes."""
        wanted = ((self._inputs, input_nbytes), (self._outputs, memory.area_nbytes(output_nbytes)))
        for index, (pool, size) in enumerate(wanted):
            if index == len(process.areas):
                process.areas.append(pool.take(size))
                continue
            area = process.areas[index]
            if area.nbytes >= size:
                continue
            process.areas[index] = pool.take(size)
            if process.is_new:
                area.clear()  # it was given ahead and is still mapped there, with the results of former runs
                area.is_held = lambda: not process.is_over
                pool.give(area)
            else:
                area.close()  # arrays that the kept algorithm holds may lie there

    def _give_ahead(self, input_nbytes: int) -> None:
        """Let the next process map memory for a run of this size, while this run goes on."""
        self._input_nbytes.append(input_nbytes)
        input_nbytes, expected_nbytes = max(self._input_nbytes), max(self._output_nbytes)
        largest = max(input_nbytes, expected_nbytes)
        if not self.maps_ahead or self._must_copy or not _LEAST_AHEAD_NBYTES <= largest <= _MOST_AHEAD_NBYTES:
            return
        output_nbytes = self._host.limits.output_nbytes

        def take() -> list[Area]:
            inputs = self._inputs.take(input_nbytes)
            try:
                return [inputs, self._outputs.take(memory.area_nbytes(output_nbytes), is_clear=False)]
            except BaseException:
                inputs.close()
                raise

        self._host.give_ahead(take, Ahead(output_nbytes, expected_nbytes))

    def _adopt(self, process: Process, answer: Answer) -> Any:
        """What a process that is about to end has written, as a buffer. Its areas are used again after its end."""
        areas, process.areas = process.areas, []
        for area in areas:
            area.is_held = lambda: not process.is_over
        start = memory.arena_start(self._host.limits.output_nbytes)
        self._output_nbytes.append(max([0, *[end_of(spec) - start for spec in answer.tensors]]))
        self._inputs.give(areas[0])
        return self._outputs.view(areas[1])

    def _take_back(self, areas: list[Area]) -> None:
        """Keep areas for later runs, unless another process may still have them."""
        for pool, area in zip((self._inputs, self._outputs), areas, strict=False):
            if self._must_copy:
                area.close()
            else:
                pool.give(area)


def _open_for(process: Process, loans: Sequence[Shared]) -> tuple[list[int], list[int]]:
    """Open descriptors for a job: those to close after it, and those to send with it.

    None are sent if the process has them all from its last job.
    """
    if not loans and process.given == process.areas:
        return [], []
    opened = open_areas(process.areas)
    try:
        fds = [*opened, process.printed_fd]
        for each in loans:
            if isinstance(each, SharedFile):  # its descriptor was opened for this run, and is closed with the inputs
                fds.append(each.fd)
            else:
                opened.append(memory.open_again(each.fd, is_input=True))
                fds.append(opened[-1])
    except BaseException:
        for fd in opened:
            os.close(fd)
        raise
    process.given = [] if loans else process.areas[:]
    return opened, fds


def _lend(process: Process, end: int, *, must_copy: bool) -> Any:
    """What a process that is kept has written, as a buffer that does not change.

    It is copied; or the process is stopped until the last view of the buffer is gone.
    """
    area = process.areas[1]
    if must_copy or end <= _SMALL_NBYTES:
        return _copy(area, end)
    process.stop_or_kill()
    return area.view()


def _lost(what: str) -> SandboxBroken:
    return SandboxBroken(
        f"{what} lies in a file that was truncated while the algorithm ran; give a copy if others may truncate it, or "
        "run it again"
    )


def _copy(area: Area, end: int) -> bytes:
    return area.memory[:end]


def _printed(fd: int) -> str:
    nbytes = os.lseek(fd, 0, os.SEEK_CUR)  # the process has written through the same open file
    if not nbytes:
        return ""
    return os.pread(fd, min(nbytes, os.fstat(fd).st_size), 0).decode("utf-8", "replace")


def _tell_printed(error: AlgorithmError | LimitExceeded | NotAllowed, printed: str) -> None:
    error.stdout = printed
    if isinstance(error, AlgorithmError) and error.type == "ProcessEnded" and printed:
        error.add_note(f"it printed last: {printed[-_MAX_NOTE:]}")  # the text of a failed assertion, say
