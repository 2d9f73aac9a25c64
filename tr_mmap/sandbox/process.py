"""One contained process, as its host sees it: gives it a job, keeps its limits, ends it. Believes nothing it says."""

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

START_S: Final = 60.0  # a zygote that imports torch on a busy machine
_STOP_S: Final = 0.5
_SILENT_S: Final = 2.0  # in which the zygote tells the end of a process whose socket is closed
_EXITING: Final = 0x4  # PF_EXITING, of the flags in /proc/PID/stat
_FREE_INPUT_NBYTES: Final = 1 << 30  # for which the limit on addresses has room
_poll: Final = unpatched("select", "poll")
_READABLE: Final = select.POLLIN
_USED: Final = re.compile(rb"^(Threads|RssAnon|VmSwap):\s+(\d+)", re.MULTILINE)  # in /proc/PID/status, in KiB
_UNCOUNTED_NBYTES: Final = 32 << 20  # that the loader makes read-only, of libraries that an algorithm loads


class Margin(NamedTuple):
    """What the processes of a kind have beyond the limits and grants of the user.

    Attributes:
        memory_nbytes, stack_nbytes, address_nbytes, wall_ms: for what runs the algorithm and keeps the limits itself.
        limits: that it keeps and reports itself, beside those that every process does.
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
    """What a run has used in processes that were ended from outside; it counts for the limits of the next."""

    wall_ms: float = 0.0
    cpu_ms: float = 0.0


@dataclass
class Spare:
    """Our ends of a process that the zygote was asked for, and the memory that it was given ahead."""

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
        end: of the socket pair whose other end it has.
        status: a pipe from the zygote, which says how it has ended.
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
        self._data_nbytes = 0  # its limit on memory without inputs
        self._address_nbytes = 0  # and that on addresses
        # Of the last runs, whose inputs it may have mapped still: never more, see mapped() in runner.py.
        self._input_nbytes: deque[int] = deque(maxlen=MAX_MAPPINGS)
        self._cores: tuple[int, ...] = ()  # on which it runs; empty for all
        self.is_over = False  # the kernel has taken it apart, and nothing has its memory any more
        self.areas: list[Area] = []  # that it has: of inputs, of outputs
        self.printed_fd = -1  # of the file to which it prints
        self.given: list[Area] = []  # those of its areas that it was given with its last job

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
            job: what to do.
            fds: that it gets with it.
            input_nbytes: that it maps.
            private_nbytes: of them, that a process of a kind with private inputs may have as memory of its own.
            used: by former tries; what this one uses is added.
            deadline_s: by the monotonic clock.

        Raises:
            LimitExceeded, NotAllowed, AlgorithmError: it did not end well.
            Died: it was ended from outside.
        """
        if not self.is_alive():  # its number may be another's
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
            """Until a limit may have been reached."""
            limits = self._limits
            now_s = time.monotonic()
            used.wall_ms = wall_before_ms + (now_s - began_s) * 1000
            wall_left_ms = limits.wall_ms + self._margin.wall_ms - used.wall_ms
            if wall_left_ms <= 0:
                raise exceeded(limits, "wall_ms")
            # Where its clock is gone, what it used is as much as was seen.
            used.cpu_ms = max(used.cpu_ms, cpu_before_ms + (self._cpu_s() - cpu_before_s) * 1000)
            cpu_left_ms = limits.cpu_ms - used.cpu_ms
            if cpu_left_ms <= 0:
                raise exceeded(limits, "cpu_ms")
            if now_s - self._looked_s >= LOOK_MS / 1000:  # it may be of the run before
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
            # All its threads together use at most the time that passes, times the cores.
            return min(wall_left_ms, max(cpu_left_ms / (limits.cpu_cores or os.cpu_count() or 1), 1.0), LOOK_MS)

        try:
            answer = decode((yield from self._await(left_ms)), Answer)
        except ValueError as error:
            raise forged(error) from None
        except Died:
            left_ms()
            raise
        if answer.fault is not None:
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
        """Whether somebody looks at results in its memory."""
        for each in self.areas:  # noqa: SIM110 - a generator takes longer than that, and each run asks
            if each.is_viewed:
                return True
        return False

    @property
    def is_inherited(self) -> bool:
        """Whether a forked child of this process may look at results in its memory, so that it must do nothing more."""
        for each in self.areas:  # noqa: SIM110 - the same
            if each.is_inherited:
                return True
        return False

    @property
    def is_new(self) -> bool:
        """Whether it has had no job yet."""
        return not self._is_ready

    def stop(self) -> None:
        """Let it do nothing until its next job."""
        self._signal(signal.SIGSTOP)
        self._is_stopped = True

    def stop_or_kill(self) -> None:
        """The same, and wait until none of its threads runs; if that does not come, end it."""
        self.stop()
        end_s = time.monotonic() + _STOP_S
        pause_s = 20e-6
        while time.monotonic() < end_s:
            tasks = self._tasks()
            # The second look finds a thread that one of these has started meanwhile.
            if self._states(tasks) == {b"T"} and self._tasks() == tasks:
                return
            time.sleep(pause_s)  # it has to run to stop
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
        """End it, and wait for its end. Results of it that somebody looks at stay as they are.

        Raises:
            SandboxBroken: the kernel does not end it.
        """
        # The kernel writes into a thread's memory as it ends, where the thread has told it to: see futex(2).
        self.part()
        self._signal(signal.SIGKILL)
        if not _wait_for(self._pidfd, START_S * 1000):
            raise SandboxBroken(f"process {self.pid} of the sandbox does not end, though it was killed")

    def part(self) -> None:
        """Let results of it that somebody looks at stay as they are in this process, whatever writes its memory."""
        for area in self.areas:
            if area.is_viewed:
                with contextlib.suppress(OSError):  # without memory for it, it is better to go on
                    area.part()

    def end_soon(self) -> None:
        """End it, and wait until nothing writes its memory again. Then the kernel frees it; see :attr:`is_over`.

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
        """Whether its other threads are gone, and its first one has left its code and its memory for good.

        A thread that ends wakes those that wait for its locks, for which the kernel writes its memory; it leaves its
        memory after that, and then has no addresses.
        """
        try:
            fields = self._stat("stat")
            return int(fields[17]) <= 1 and bool(int(fields[6]) & _EXITING) and int(fields[20]) == 0
        except (OSError, IndexError):
            return False

    def close(self) -> None:
        """End it, and release it. Idempotent."""
        if self.is_over:
            return
        try:
            self.kill()
        finally:
            self.forget()

    def forget(self) -> None:
        """Release it, but do not end it: that was done, or it belongs to the process that this one was forked from."""
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
        """Its next packet.

        Args:
            left_ms: gives how long to wait until it is asked again, and raises when that was enough.
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
                    # Its end was closed: by its death, of which the zygote tells us; or by itself, or the packet is
                    # empty.
                    fds, silent_s = (self._status,), time.monotonic()
                    continue
            if _wait_for(self._status, 0):
                raise self._ended()
            if time.monotonic() > silent_s + _SILENT_S:
                raise forged(ValueError("nothing"))

    def _ended(self) -> Exception:
        """How it has ended, for its user."""
        data = os.read(self._status, STATUS.size)
        if len(data) != STATUS.size:
            return Died("its zygote has ended")
        (status,) = STATUS.unpack(data)
        return ending(status, self._limits)

    def _cpu_s(self) -> float:
        """The processor time that it has used."""
        try:
            return time.clock_gettime((~self.pid << 3) | 2)  # the clock of a process, see clock_getcpuclockid(3)
        except OSError:
            return 0.0

    def _threads_and_memory(self) -> tuple[int, int]:
        """Its threads, and the memory that it alone has, as far as it was touched: inputs, results and /tmp are shared.

        The kernel's own limit forgets what was made read-only, and what was moved out of a stack. What was paged out
        is memory, too.
        """
        try:
            with open(f"/proc/{self.pid}/status", "rb") as file:
                found = {name: int(value) for name, value in _USED.findall(file.read())}
        except OSError:
            return 0, 0
        return found.get(b"Threads", 0), (found.get(b"RssAnon", 0) + found.get(b"VmSwap", 0)) << 10

    def _most_nbytes(self) -> float:
        """How much of that it may have: what the kernel's limits allow, and what they do not count."""
        try:
            counted, _ = resource.prlimit(self.pid, resource.RLIMIT_DATA)
            stack, _ = resource.prlimit(self.pid, resource.RLIMIT_STACK)
        except OSError:
            return math.inf
        return counted + stack + _UNCOUNTED_NBYTES if resource.RLIM_INFINITY not in (counted, stack) else math.inf


def _wait_for(fd: int, ms: float) -> bool:
    poll = _poll()  # not select(), which knows no high numbers of descriptors
    poll.register(fd, _READABLE)
    return bool(poll.poll(ms))
