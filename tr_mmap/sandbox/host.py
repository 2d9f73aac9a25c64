"""Makes contained processes of one kind: starts their zygote, asks it for spares, keeps processes for reuse.

Knows neither tensors nor kinds of algorithms.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Final

from ..base.fork_safety import at_fork
from .areas import Area, open_areas
from .errors import SandboxBroken
from .grants import grants_of
from .interface import DISK_NBYTES, Allow, Limits
from .layers import active_layers, check_names
from .messages import Ahead, Spawned, decode, pair, receive, send
from .process import NO_MARGIN, START_S, Margin, Process, Spare
from .starting import end_zygote, expect_ready, find_interpreter, module_paths, start_zygote
from .zygote import Settings

__all__ = ["NO_MARGIN", "Host", "Margin", "Process", "close_surplus"]

_MAX_KEPT: Final = 4  # processes of one key; when one is ended, its results stay as they are
_MAX_KEPT_IN_ALL: Final = 16
_MAX_ENDING: Final = 4  # processes that were killed and may not be gone yet; beyond, a run waits for the oldest
_LOOK_S: Final = 0.05  # how often a run that waits for a process checks whether it was cancelled
_hosts: weakref.WeakSet[Host] = weakref.WeakSet()


class Host:
    """Makes contained processes of one kind. Threads may use it at once.

    Args:
        limits: of each run.
        allow: what the algorithms are granted.
        required_layers: layers without which it refuses to start.
        preload: modules that the zygote imports.
        spares: how many processes to keep ready.
        margin: what the processes get beyond limits and grants.
        packages: directories of packages that the algorithms can import.
        python: the interpreter of the processes; None for the usual one.

    Raises:
        SandboxBroken: a required layer is missing, or a process could not be started.
        ValueError: a grant cannot be given.

    Attributes:
        layers: the active layers.
        limits, allow, margin: as given.
        disk_nbytes: size of each process's private ``/tmp``.
    """

    def __init__(
        self,
        limits: Limits,
        allow: Allow,
        required_layers: Iterable[str],
        preload: Sequence[str],
        spares: int,
        margin: Margin = NO_MARGIN,
        packages: Sequence[str] = (),
        python: str | None = None,
    ) -> None:
        self.limits = limits
        self.margin = margin
        self.disk_nbytes = DISK_NBYTES if limits.disk_nbytes is None else limits.disk_nbytes
        self.allow = allow
        self.layers = active_layers()
        required = _all_required(required_layers, limits, allow)
        self._require({each: why for each, why in required.items() if not each.endswith("_namespace")})
        grants = grants_of(allow, packages)
        check_names(allow.syscalls)
        interpreter = find_interpreter(python)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._numbers = 0
        self._spares = spares
        self._waiting: dict[int, Spare] = {}  # by number, the next one first
        self._made: weakref.WeakSet[Process] = weakref.WeakSet()
        self._ending: list[Process] = []
        self._kept: dict[Hashable, list[Process]] = {}  # the key that was kept last is last; no list is empty
        self._is_closed = False
        self._end, theirs = pair()
        settings = Settings(
            self._pid,
            sorted({*self.layers, "mount_namespace"}),
            grants,
            list(allow.syscalls),
            list(preload),
            allow.net,
            limits.memory_nbytes + margin.memory_nbytes,
            limits.stack_nbytes + margin.stack_nbytes,
            limits.output_nbytes,
            margin.address_nbytes,
            self.disk_nbytes,
            margin.has_descriptors,
            margin.has_private_inputs,
            dict(allow.env),
            module_paths(interpreter),
            list(packages),
        )
        try:
            self._zygote = start_zygote(interpreter, theirs, settings, limits.cpu_cores)
        except BaseException:
            self._end.close()
            raise
        finally:
            theirs.close()
        _hosts.add(self)
        try:
            self._end.settimeout(START_S)
            self.layers = frozenset(expect_ready(self._end).layers)
            self._require(required)
            self._end.setblocking(False)
            for _ in range(spares):
                self._ask()
        except BaseException:
            self.close()
            raise

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._is_closed

    def is_alive(self) -> bool:
        """Whether it can make processes."""
        return not self._is_closed and self._zygote.poll() is None

    def take(self, key: Hashable = None, check: Callable[[], None] = lambda: None) -> Process:
        """Take a process: one that was kept under this key, else a new one.

        Args:
            key: None for a new process.
            check: called while this waits for a process; raises if the run was cancelled.

        Raises:
            SandboxBroken: the host was closed, or its zygote has ended or does not answer.
        """
        kept = self.take_kept(key)
        if kept is not None:
            return kept
        end_s = time.monotonic() + START_S
        while True:
            with self._lock:
                self._check()
                made = self._make()
                if made is not None:
                    return made
                poll = select.poll()
                poll.register(self._end, select.POLLIN)
            check()
            if time.monotonic() > end_s:
                raise SandboxBroken(f"the sandbox's zygote does not answer in {START_S:g} s; make a new sandbox")
            poll.poll(_LOOK_S * 1000)  # without the lock: others may close the sandbox, or take what was kept

    def take_kept(self, key: Hashable) -> Process | None:
        """Take a process that was kept under this key; None if there is none.

        Raises:
            SandboxBroken: the host was closed.
        """
        self._check()  # before the lock: in a forked child, a thread that does not exist there may hold it
        with self._lock:
            self._release_ended()
            return self._take_kept(key)

    def _take_kept(self, key: Hashable) -> Process | None:
        while True:
            if self._is_closed:
                self._check()
            kept = self._kept.get(key) if key is not None else None
            process = next((each for each in reversed(kept) if not each.is_lent), None) if kept else None
            if kept is None or process is None:
                return None
            kept.remove(process)
            if not kept:
                del self._kept[key]
            if process.is_alive() and not process.is_inherited:
                return process
            process.close()

    def refill(self) -> None:
        """Ask for as many spares as were taken. Called after a run, because a fork takes longer than some runs."""
        with self._lock:
            try:
                while not self._is_closed and len(self._waiting) < self._spares:
                    self._ask()
            except OSError:
                pass  # the zygote has ended; the next take() raises

    def give_ahead(self, take: Callable[[], list[Area]], ahead: Ahead) -> None:
        """Let the next process map memory before it gets a job, which may need other memory.

        Args:
            take: returns the areas.
            ahead: the message about them.
        """
        with self._lock:
            self._release_ended()
            spare = next(iter(self._waiting.values()), None)
            if spare is None or spare.areas or self._is_closed:
                return
            areas: list[Area] = []
            try:
                areas += take()
                fds = open_areas(areas)
                try:
                    send(spare.end, ahead, fds)
                finally:
                    for fd in fds:
                        os.close(fd)
                spare.areas, areas = areas, []
            except OSError:
                pass  # no descriptor is left, or the process has ended; the run that takes it finds out
            finally:  # areas that the process was not told to clear must not be used again
                for area in areas:
                    area.close()

    def end(self, process: Process) -> None:
        """End a process that has finished its job; its results stay as they are."""
        process.end_soon()
        surplus = process
        with self._lock:
            if not self._is_closed:
                self._ending.append(process)
                if len(self._ending) <= _MAX_ENDING:
                    return
                surplus = self._ending.pop(0)
        close_surplus(surplus)

    def _release_ended(self) -> None:
        if self._is_closed or not self._ending:
            return  # after close(), that releases them
        going = [each for each in self._ending if each.is_alive()]
        for process in self._ending:
            if process not in going:
                process.forget()
        self._ending = going

    def keep(self, process: Process, key: Hashable, is_wanted: Callable[[], bool] = lambda: True) -> Process | None:
        """Keep a process for the next run of the same key. :meth:`stop_kept` stops it until then.

        Args:
            process: the process.
            key: of its runs.
            is_wanted: whether there may be a next run; asked with the lock held, so that a process is not kept after
                :meth:`drop`.

        Returns:
            A process for which there is no room, this one or another; end it by :func:`close_surplus`. None if there
            is none.
        """
        surplus = process
        with self._lock:
            if not self._is_closed and is_wanted():
                kept = self._kept.pop(key, [])
                self._kept[key] = kept
                kept.append(process)
                if len(kept) > _MAX_KEPT:
                    surplus = kept.pop(0)
                elif len(self._kept) > 1 and sum(map(len, self._kept.values())) > _MAX_KEPT_IN_ALL:
                    oldest = next(iter(self._kept))
                    surplus = self._kept[oldest].pop(0)
                    if not self._kept[oldest]:
                        del self._kept[oldest]
                else:
                    return None
        return surplus

    def stop_kept(self, process: Process, key: Hashable) -> None:
        """Stop a kept process, unless its next run has begun."""
        with self._lock:
            if process in self._kept.get(key, ()):
                process.stop()

    def drop(self, is_dropped: Callable[[Hashable], bool]) -> None:
        """End the processes that are kept under some keys."""
        with self._lock:
            dropped = [each for key in list(self._kept) if is_dropped(key) for each in self._kept.pop(key)]
        _close_all(dropped)

    def broken(self, reason: object) -> SandboxBroken:
        """The error for a run that could not be done."""
        if self._is_closed:
            return SandboxBroken("the sandbox was closed while the algorithm ran")
        if not self.is_alive():
            return SandboxBroken("the sandbox's zygote has ended; make a new sandbox")
        return SandboxBroken(f"a process of the sandbox was ended from outside: {reason}; the run may be tried again")

    def close(self) -> None:
        """End all processes; runs that go on in other threads get SandboxBroken. Idempotent."""
        if os.getpid() != self._pid:
            return  # they are not ours
        with self._lock:
            self._is_closed = True  # runs that wait for a process see it
            self._ending += [each for kept in self._kept.values() for each in kept]
            self._kept.clear()
        try:
            _close_all(self._ending)  # first: close() makes sure that their results stay as they are
        finally:
            with self._lock:
                self._let_go()  # the zygote ends its children, and itself
            end_zygote(self._zygote)
            _hosts.discard(self)

    def forget(self) -> None:
        """In a forked child: release everything, but end no process, because they belong to the parent."""
        self._is_closed = True
        for process in [each for each in self._made if not each.is_over]:  # also those whose runs go on in the parent
            process.part()  # the parent may let it go on, or end it, and it may write its memory then
            process.forget()
        self._let_go()
        self._zygote.returncode = 0  # so that nothing waits for it

    def _let_go(self) -> None:
        """Forget all processes, and close the connection to the zygote."""
        self._kept.clear()
        self._ending.clear()
        self._end.close()
        self._drop_waiting()

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise SandboxBroken("the sandbox belongs to the process that made it; make a new one after a fork")
        if self._is_closed:
            raise SandboxBroken("the sandbox was closed; make a new one")

    def _require(self, required: Mapping[str, str]) -> None:
        missing = tuple(sorted(set(required) - self.layers))
        if missing:
            raise SandboxBroken(
                f"this machine lacks {', '.join(missing)}; it has {', '.join(sorted(self.layers))}: "
                + "; ".join(sorted({required[each] for each in missing})),
                layers=missing,
            )

    def _make(self) -> Process | None:
        """The next process that the zygote has made; None if it has not made it yet."""
        try:
            if len(self._waiting) < 2:  # this one, and one for the next run; refill() asks for more
                self._ask()
        except BlockingIOError:  # the socket to the zygote is full
            pass
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise SandboxBroken(f"a process of the sandbox could not be had: {error}; try again") from error
            raise SandboxBroken(f"the sandbox's zygote does not answer: {error}; make a new sandbox") from error
        try:
            return self._receive()
        except BlockingIOError:
            return None
        except BaseException as error:
            # A packet may be lost, because no descriptor was left or a signal handler has raised. It is not known for
            # which process it was, so all are asked for again. The former ones end when our ends are closed.
            self._drop_waiting()
            if isinstance(error, ValueError):
                raise SandboxBroken(f"a process of the sandbox could not be had: {error}; try again") from error
            raise

    def _receive(self) -> Process | None:
        data, fds = receive(self._end)
        if not data:
            raise SandboxBroken("the sandbox's zygote has ended; make a new sandbox")
        spawned = decode(data, Spawned)
        spare = self._waiting.pop(spawned.number, None)
        if spare is None or not fds:
            for fd in fds:
                os.close(fd)
            if spare is None:
                return None  # it was dropped
            spare.close()
            raise SandboxBroken("a process of the sandbox could not be had: the zygote could not make it; try again")
        process = Process(spare.end, spare.status, spawned.pid, fds[0], self.limits, self.margin)
        process.areas = spare.areas
        self._made.add(process)
        return process

    def _drop_waiting(self) -> None:
        while self._waiting:
            self._waiting.popitem()[1].close()

    def _ask(self) -> None:
        """Ask the zygote to fork a process."""
        ours, theirs = pair()
        try:
            status, their_status = os.pipe2(os.O_CLOEXEC)
        except OSError:
            ours.close()
            theirs.close()
            raise
        self._numbers += 1
        self._waiting[self._numbers] = Spare(ours, status)
        try:
            send(self._end, str(self._numbers).encode(), [theirs.fileno(), their_status])
        except BaseException:
            self._waiting.pop(self._numbers).close()
            raise
        finally:
            theirs.close()
            os.close(their_status)


def _close_all(processes: list[Process]) -> None:
    """Close all processes, and empty the list. If one does not end, close the others, then raise its error."""
    found = None
    while True:
        try:
            processes.pop().close()
        except IndexError:  # another thread may close them, too
            break
        except SandboxBroken as error:
            found = error
    if found is not None:
        raise found


def close_surplus(process: Process) -> None:
    """End a process for which there is no room."""
    with contextlib.suppress(SandboxBroken):  # if it does not end, the run's result is still good
        process.close()


def _forget_all() -> None:
    while _hosts:
        _hosts.pop().forget()  # each once: after that its descriptors' numbers may belong to other files


at_fork(after_in_child=_forget_all)


def _all_required(required_layers: Iterable[str], limits: Limits, allow: Allow) -> dict[str, str]:
    """The required layers, each with the advice for an error."""
    required = dict.fromkeys(
        required_layers,
        "'tr-mmap sandbox doctor' says why; name fewer required_layers if you trust the algorithms so far",
    )
    for mount in allow.mounts:
        if mount.path != mount.host_path:
            required["mount_namespace"] = (
                f"Mount({mount.host_path!r}, {mount.path!r}) cannot be granted; give both the same path"
            )
    if limits.disk_nbytes:
        required["mount_namespace"] = (
            f"disk_nbytes={limits.disk_nbytes} cannot be kept; leave it out, and the algorithms have no /tmp"
        )
    return required
