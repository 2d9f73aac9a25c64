"""The host's side of one contained process: gives it jobs, enforces its limits, ends it. Does not trust its answers."""

from __future__ import annotations

import contextlib
import math
import os
import re
import resource
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ..base.unpatched import unpatched
from ..errors import TRException
from .areas import Area
from .cores import cores
from .errors import DeadlineExceeded, SandboxBroken
from .interface import Limits
from .messages import Answer, Job, decode, receive, send
from .runner import MAX_MAPPINGS
from .running import deadline_exceeded
from .steps import LOOK_MS, Steps, Wait
from .verdicts import Died, ending, exceeded, forged, told
from .zygote import STATUS

__all__ = ["NO_MARGIN", "START_S", "Margin", "Process", "Spare", "Used"]

START_S: Final = 60.0  # enough for a zygote that imports torch on a busy machine
_STOP_S: Final = 0.5
_SILENT_S: Final = 2.0  # after a process's socket was closed, the zygote reports its end within this time
_EXITING: Final = 0x4  # PF_EXITING, of the flags in /proc/PID/stat
_FREE_INPUT_NBYTES: Final = 1 << 30  # inputs up to this size fit into the limit on addresses as it is
_poll: Final = unpatched("select", "poll")
_READABLE: Final = select.POLLIN
_USED: Final = re.compile(rb"^(Threads|RssAnon|VmSwap):\s+(\d+)", re.MULTILINE)  # in /proc/PID/status, in KiB
_UNCOUNTED_NBYTES: Final = 32 << 20  # for memory of loaded libraries that the loader makes read-only


class Margin(NamedTuple):
    """What the processes of a kind have beyond the limits and grants of the user.

    Attributes:
        memory_nbytes, stack_nbytes, address_nbytes, wall_ms: for an engine that runs the algorithm and enforces the
            limits itself.
        limits: limits that the engine enforces and reports, beside those that every process reports.
        has_descriptors: a process finds its own descriptors in ``/dev/fd``, because it loads a library from one.
        has_private_inputs: a process maps its inputs privately, so that a store changes a copy of the page; the mapping
            counts for the limit on memory, which is raised by as much.
    """

    memory_nbytes: int = 0
    stack_nbytes: int = 0
    address_nbytes: int = 0
    wall_ms: float = 0.0
    limits: tuple[str, ...] = ()
    has_descriptors: bool = False
    has_private_inputs: bool = False


NO_MARGIN: Final = Margin()


@dataclass
class Used:
    """What a run has used in processes that were killed from outside; it counts for the limits of the next try."""

    wall_ms: float = 0.0
    cpu_ms: float = 0.0


@dataclass
class Spare:
    """A process that the zygote was asked for: our ends of its socket and pipe, and areas that it was given ahead."""

    end: socket.socket
    status: int
    areas: list[Area] = field(default_factory=list)

    def close(self) -> None:
        """Release them."""
        self.end.close()
        os.close(self.status)
        for area in self.areas:
            area.close()


class Process:
    """See the module's docstring. One thread uses it at a time.

    Args:
        end: our end of the socket pair.
        status: our end of a pipe from the zygote, which writes there how the process has ended.
        pid, pidfd: of the process.
        limits: of each run.
    """

    def __init__(
        self, end: socket.socket, status: int, pid: int, pidfd: int, limits: Limits, margin: Margin = NO_MARGIN
    ) -> None:
        self._margin = margin
        self.pid = pid
        self._end = end
        end.setblocking(False)
        self._status = status
        self._pidfd = pidfd
        self._limits = limits
        self._is_ready = False
        self._is_stopped = False
        self._looked_s = -math.inf  # when its threads and memory were counted last
        self._data_nbytes = 0  # RLIMIT_DATA without inputs; 0 if not known yet
        self._address_nbytes = 0  # RLIMIT_AS without inputs; 0 if not known yet
        # Input sizes of the last runs: it may still have so many mappings, and not more, see mapped() in runner.py.
        self._input_nbytes: deque[int] = deque(maxlen=MAX_MAPPINGS)
        self._cores: tuple[int, ...] = ()  # the cores that it runs on; empty for all
        self.has_told_fault = False  # of its last job: it is ready for another one
        self.is_over = False  # it has ended and was released, so nothing has its memory mapped any more
        self.areas: list[Area] = []  # its area for inputs, its area for outputs
        self.printed_fd = -1  # the file to which it prints
        self.given: list[Area] = []  # the areas that came with its last job

    def run(
        self,
        job: Job,
        fds: list[int],
        input_nbytes: int,
        private_nbytes: int,
        used: Used,
        deadline_s: float | None = None,
    ) -> Steps[Answer]:
        """Give it a job, and wait for its answer, within the limits.

        Args:
            job: the job.
            fds: descriptors to send with it.
            input_nbytes: bytes of inputs that it maps.
            private_nbytes: how many of these a process with private inputs may turn into memory of its own.
            used: what former tries of this run have used; this try adds its own use.
            deadline_s: a moment by ``time.monotonic``; None for none.

        Raises:
            LimitExceeded, NotAllowed, AlgorithmError: the algorithm failed.
            DeadlineExceeded: the deadline came first.
            Died: it was killed from outside.
        """
        if not self.is_alive():  # its pid may belong to another process by now
            raise Died("it has ended", had_job=False)
        if self._limits.cpu_cores is None:
            return (yield from self._run(job, fds, input_nbytes, private_nbytes, used, deadline_s))
        self._cores = cores.give(self.pid, self._limits.cpu_cores, self._cores)
        try:
            return (yield from self._run(job, fds, input_nbytes, private_nbytes, used, deadline_s))
        finally:
            cores.take_back(self._cores)

    def _run(
        self, job: Job, fds: list[int], input_nbytes: int, private_nbytes: int, used: Used, deadline_s: float | None
    ) -> Steps[Answer]:
        if self._is_stopped:
            self._signal(signal.SIGCONT)
            self._is_stopped = False
        if not self._is_ready:
            yield from self._wait_until_ready(deadline_s)
            if not self.is_alive():
                raise Died("it has ended", had_job=False)
        self.has_told_fault = False
        try:
            self._input_nbytes.append(input_nbytes)
            if self._address_nbytes or input_nbytes > _FREE_INPUT_NBYTES:
                soft, hard = resource.prlimit(self.pid, resource.RLIMIT_AS)
                self._address_nbytes = self._address_nbytes or soft
                resource.prlimit(self.pid, resource.RLIMIT_AS, (self._address_nbytes + sum(self._input_nbytes), hard))
            if self._margin.has_private_inputs:
                soft, hard = resource.prlimit(self.pid, resource.RLIMIT_DATA)
                self._data_nbytes = self._data_nbytes or soft
                resource.prlimit(self.pid, resource.RLIMIT_DATA, (self._data_nbytes + private_nbytes, hard))
            send(self._end, job, fds)
        except OSError as error:
            raise Died(f"it takes no job: {error}", had_job=False) from error
        wall_before_ms, cpu_before_ms = used.wall_ms, used.cpu_ms
        began_s, cpu_before_s = time.monotonic(), self._cpu_s()

        def left_ms() -> float:
            """Milliseconds until a limit may be reached. Raises the error of a limit that was reached."""
            limits = self._limits
            now_s = time.monotonic()
            used.wall_ms = wall_before_ms + (now_s - began_s) * 1000
            wall_left_ms = limits.wall_ms + self._margin.wall_ms - used.wall_ms
            if wall_left_ms <= 0:
                raise exceeded(limits, "wall_ms")
            # When the process has ended, its clock is gone: then the last reading counts.
            used.cpu_ms = max(used.cpu_ms, cpu_before_ms + (self._cpu_s() - cpu_before_s) * 1000)
            cpu_left_ms = limits.cpu_ms - used.cpu_ms
            if cpu_left_ms <= 0:
                raise exceeded(limits, "cpu_ms")
            if now_s - self._looked_s >= LOOK_MS / 1000:  # the last look may have been in the run before
                self._looked_s = now_s
                threads, own_nbytes = self._threads_and_memory()
                if threads > limits.threads:
                    raise exceeded(limits, "threads")
                if own_nbytes > self._most_nbytes():
                    raise exceeded(limits, "memory_nbytes")
            if deadline_s is not None:
                wall_left_ms = min(wall_left_ms, (deadline_s - now_s) * 1000)
                if wall_left_ms <= 0:
                    raise deadline_exceeded(deadline_s, "while it ran, and it was ended")
            # In a time t, its threads together use at most t times the number of cores.
            return min(wall_left_ms, max(cpu_left_ms / (limits.cpu_cores or os.cpu_count() or 1), 1.0), LOOK_MS)

        try:
            answer = decode((yield from self._await(left_ms)), Answer)
        except ValueError as error:
            raise forged(error) from None
        except Died:
            left_ms()
            raise
        if answer.fault is not None:
            self.has_told_fault = True
            raise told(answer.fault, self._limits, self._margin.limits)
        return answer

    def _wait_until_ready(self, deadline_s: float | None) -> Steps[None]:
        end_s = time.monotonic() + START_S

        def left_ms() -> float:
            now_s = time.monotonic()
            if deadline_s is not None and now_s >= deadline_s:
                raise deadline_exceeded(deadline_s, "before its process was ready")
            if now_s >= end_s:
                raise SandboxBroken(f"process {self.pid} of the sandbox was not ready in {START_S:g} s; try again")
            return (min(end_s, deadline_s or end_s) - now_s) * 1000

        try:
            if (yield from self._await(left_ms)) != b"ready":
                raise Died("it did not become ready", had_job=False)
        except (DeadlineExceeded, SandboxBroken):
            raise
        except (TRException, Died) as error:
            raise Died(f"it did not become ready: {error}", had_job=False) from error
        self._is_ready = True

    @property
    def is_lent(self) -> bool:
        """Whether this process has views of its results."""
        for each in self.areas:  # noqa: SIM110 - a generator takes longer than that, and each run asks
            if each.is_viewed:
                return True
        return False

    @property
    def is_inherited(self) -> bool:
        """Whether a forked child of this process may have views of its results; then it must not run again."""
        for each in self.areas:  # noqa: SIM110 - the same
            if each.is_inherited:
                return True
        return False

    @property
    def is_new(self) -> bool:
        """Whether it has had no job yet."""
        return not self._is_ready

    def stop(self) -> None:
        """Stop it (SIGSTOP) until its next job."""
        self._signal(signal.SIGSTOP)
        self._is_stopped = True

    def stop_or_kill(self) -> None:
        """Stop it, and wait until none of its threads runs; if that takes too long, kill it."""
        self.stop()
        end_s = time.monotonic() + _STOP_S
        pause_s = 20e-6
        while time.monotonic() < end_s:
            tasks = self._tasks()
            # The second list shows whether one of the threads has started another meanwhile.
            if self._states(tasks) == {b"T"} and self._tasks() == tasks:
                return
            time.sleep(pause_s)  # a thread stops only when it gets a processor
            pause_s = min(2 * pause_s, 1e-3)
        self.kill()

    def _tasks(self) -> list[str]:
        try:
            return os.listdir(f"/proc/{self.pid}/task")
        except OSError:
            return []

    def _states(self, tasks: list[str]) -> set[bytes]:
        try:
            return {self._stat(f"task/{each}/stat")[0] for each in tasks}
        except (OSError, IndexError):
            return set()

    def _stat(self, name: str) -> list[bytes]:
        with open(f"/proc/{self.pid}/{name}", "rb") as file:
            return file.read().rpartition(b")")[2].split()

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return not _wait_for(self._pidfd, 0)

    def kill(self) -> None:
        """Kill it, and wait for its end. Its results of which there are views do not change.

        Raises:
            SandboxBroken: the kernel does not end it.
        """
        # As a thread ends, the kernel writes to addresses that the thread has chosen (its robust futexes, futex(2)).
        self.part()
        self._signal(signal.SIGKILL)
        if not _wait_for(self._pidfd, START_S * 1000):
            raise SandboxBroken(f"process {self.pid} of the sandbox does not end, though it was killed")

    def part(self) -> None:
        """Copy its results of which there are views, so that nothing that it writes later changes them."""
        for area in self.areas:
            if area.is_viewed:
                with contextlib.suppress(OSError):  # there is no memory for a copy: go on without one
                    area.part()

    def end_soon(self) -> None:
        """Kill it, and wait until nothing can write its memory any more. It is released later; see :attr:`is_over`.

        Raises:
            SandboxBroken: the kernel does not end it.
        """
        self._signal(signal.SIGKILL)
        end_s = time.monotonic() + START_S
        pause_s = 20e-6
        while not self._is_exiting() and not _wait_for(self._pidfd, 0):
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 1e-3)
            if time.monotonic() > end_s:
                raise SandboxBroken(f"process {self.pid} of the sandbox does not end, though it was killed")

    def _is_exiting(self) -> bool:
        """Whether its other threads have ended, and its first one has given up its memory.

        When a thread ends, the kernel wakes those that wait for its locks, and writes to its memory for that. After
        that it gives up its memory; then the size of its address space is 0.
        """
        try:
            fields = self._stat("stat")
            return int(fields[17]) <= 1 and bool(int(fields[6]) & _EXITING) and int(fields[20]) == 0
        except (OSError, IndexError):
            return False

    def close(self) -> None:
        """Kill it, and release it. Idempotent."""
        if self.is_over:
            return
        try:
            self.kill()
        finally:
            self.forget()

    def forget(self) -> None:
        """Release it without killing it: it has ended, or it belongs to the parent of this forked process."""
        if self.is_over:
            return
        self.is_over = True
        for area in self.areas:
            area.close()
        self._end.close()
        for fd in (self._status, self._pidfd, self.printed_fd):
            if fd >= 0:
                os.close(fd)

    def _signal(self, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass

    def _await(self, left_ms: Callable[[], float]) -> Steps[bytes]:
        """Wait for its next packet.

        Args:
            left_ms: returns how many milliseconds to wait before it is called again; raises to end the wait.
        """
        fds: tuple[int, ...] = self._end.fileno(), self._status
        silent_s = math.inf  # when its end was closed
        while True:
            yield Wait(fds, min(left_ms(), _SILENT_S * 1000) + 0.5)
            if silent_s == math.inf:
                try:
                    data, received = receive(self._end)
                except BlockingIOError:
                    pass
                except ValueError as error:
                    raise forged(error) from None
                else:
                    for fd in received:
                        os.close(fd)
                    if data:
                        return data
                    # It has died, and the zygote will report that; or it has closed its socket or sent an empty packet.
                    fds, silent_s = (self._status,), time.monotonic()
                    continue
            if _wait_for(self._status, 0):
                raise self._ended()
            if time.monotonic() > silent_s + _SILENT_S:
                raise forged(ValueError("nothing"))

    def _ended(self) -> Exception:
        """The error for a process that has ended, by what the zygote reports."""
        data = os.read(self._status, STATUS.size)
        if len(data) != STATUS.size:
            return Died("its zygote has ended")
        (status,) = STATUS.unpack(data)
        return ending(status, self._limits)

    def _cpu_s(self) -> float:
        """The processor time that it has used, in seconds; 0 if it has ended."""
        try:
            return time.clock_gettime((~self.pid << 3) | 2)  # the clock of a process, see clock_getcpuclockid(3)
        except OSError:
            return 0.0

    def _threads_and_memory(self) -> tuple[int, int]:
        """How many threads it has, and how many bytes of private memory it has touched, swapped out ones included.

        Inputs, results and /tmp are shared memory, and not counted. The kernel's own limit (RLIMIT_DATA) does not count
        memory that was made read-only, or moved out of a stack.
        """
        try:
            with open(f"/proc/{self.pid}/status", "rb") as file:
                found = {name: int(value) for name, value in _USED.findall(file.read())}
        except OSError:
            return 0, 0
        return found.get(b"Threads", 0), (found.get(b"RssAnon", 0) + found.get(b"VmSwap", 0)) << 10

    def _most_nbytes(self) -> float:
        """How much private memory it may have: what the kernel's limits allow, plus what they do not count."""
        try:
            counted, _ = resource.prlimit(self.pid, resource.RLIMIT_DATA)
            stack, _ = resource.prlimit(self.pid, resource.RLIMIT_STACK)
        except OSError:
            return math.inf
        return counted + stack + _UNCOUNTED_NBYTES if resource.RLIM_INFINITY not in (counted, stack) else math.inf


def _wait_for(fd: int, ms: float) -> bool:
    poll = _poll()  # not select(), which takes only descriptors below 1024
    poll.register(fd, _READABLE)
    return bool(poll.poll(ms))
