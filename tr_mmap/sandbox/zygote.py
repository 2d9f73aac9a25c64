"""The process from which contained processes are forked, and what each of those does. Runs no algorithm itself.

Started by the host as a program of its own, with its end of a socket pair. It has imported what the algorithms need, so
a fork of it is ready at once. It ends when the host has ended or closed its end, and its children end with it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import resource
import select
import signal
import socket
import struct
import sys
import sysconfig
import time
import traceback
from typing import Final, NamedTuple

import msgspec

from . import faults, namespaces, orphans, runner
from .layers import Paths, contain, die_with_parent, watch_stack
from .messages import MAX_PACKET_NBYTES, Ahead, Answer, Fault, Job, Ready, Spawned, receive, send

__all__ = ["STACK_STATUS", "STATUS", "Settings", "main"]

STATUS: Final = struct.Struct("=i")  # how a process has ended: its exit code, or minus the signal
STACK_STATUS: Final = 113  # with which a process exits whose stack is full

_ADDRESSES_NBYTES: Final = 4 << 30  # beyond the limit on memory: libraries, reserved and not used, and mapped tensors
_MAX_FDS: Final = 256
_MAX_SIGNALS: Final = 1024  # queued, of timers


class Settings(msgspec.Struct):
    """What the zygote's children are to be.

    Attributes:
        host_pid: of the process that started it.
        layers: to put on.
        grants: what they see of the file system: path there, path here, whether only to read it.
        syscalls: allowed beside the usual ones.
        preload: modules to import first.
        has_network: whether they may use it.
        memory_nbytes, stack_nbytes, output_nbytes, disk_nbytes: limits.
        address_nbytes: beyond what others may reserve.
        has_descriptors: whether they find their descriptors by path.
        has_private_inputs: whether the host makes room, in the limit on memory, for private mappings of the inputs.
        env: variables that they have beside the interpreter's own; nothing that is not contained sees them.
        module_paths: where to find modules.
        packages: directories where algorithms find more of them; no process that is not contained imports from there.
    """

    host_pid: int
    layers: list[str]
    grants: list[namespaces.Grant]
    syscalls: list[str]
    preload: list[str]
    has_network: bool
    memory_nbytes: int
    stack_nbytes: int
    output_nbytes: int
    address_nbytes: int
    disk_nbytes: int
    has_descriptors: bool = False
    has_private_inputs: bool = False
    env: dict[str, str] = {}
    module_paths: list[str] = []
    packages: list[str] = []


class _Child(NamedTuple):
    pid: int
    status: int  # a pipe to the host, which no child has


def main() -> None:
    """Serve the host until it is gone."""
    _reset_signals()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the terminal is the host's
    host = socket.socket(fileno=int(sys.argv[1]))
    settings = _take_settings(int(sys.argv[2]))
    parent = os.pidfd_open(settings.host_pid)
    if os.getppid() != settings.host_pid:
        return  # it has ended before it could be watched
    children: dict[int, _Child] = {}  # by pidfd
    proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)  # while there is one
    try:
        _prepare(settings)
        if _makes_processes(settings):
            orphans.adopt()
        send(host, Ready(settings.layers))
        _fork_for(host, parent, proc, settings, children)
    finally:
        for child in children.values():
            os.kill(child.pid, signal.SIGKILL)
        for child in children.values():  # else they become zombies of a host that is the first process of a container
            os.waitpid(child.pid, 0)
        if _makes_processes(settings):
            orphans.end_all(proc, ())


def _makes_processes(settings: Settings) -> bool:
    return not orphans.MAKERS.isdisjoint(settings.syscalls)


def _reset_signals() -> None:
    """Ignore and hold back none that the host does: the kernel reaps the children of those that ignore SIGCHLD."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for each in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # of which Python makes exceptions
        if signal.getsignal(each) is signal.SIG_IGN:
            signal.signal(each, signal.SIG_DFL)


def _take_settings(fd: int) -> Settings:
    """What the file says that the host has passed; the file is gone then."""
    with open(fd, "rb") as file:
        file.seek(0)
        return msgspec.json.decode(file.read(), type=Settings)


def _prepare(settings: Settings) -> None:
    """Enter the namespaces that can be had, and import. Corrects ``settings.layers``."""
    wanted = "mount_namespace" in settings.layers
    is_entered = wanted and namespaces.enter(has_network=settings.has_network)
    for name in settings.preload:
        importlib.import_module(name)
    _hide_modules(settings)
    _start_of_installed()
    # What is there stays: a collection in a child need not look at it, nor write to its pages, which all share.
    gc.collect()
    gc.freeze()
    if is_entered:
        namespaces.make_root(settings.grants, has_descriptors=settings.has_descriptors)
        if not settings.has_network:
            settings.layers.append("net_namespace")
    elif wanted:
        settings.layers.remove("mount_namespace")


def _hide_modules(settings: Settings) -> None:
    """Name the places of modules no more that nothing can be read from."""
    granted = tuple(f"{each.path}/" for each in settings.grants)
    hidden = {each for each in settings.module_paths if not f"{each}/".startswith(granted)}
    sys.path[:] = [each for each in sys.path if each not in hidden]
    for each in hidden:
        sys.path_importer_cache.pop(each, None)


def _fork_for(host: socket.socket, parent: int, proc: int, settings: Settings, children: dict[int, _Child]) -> None:
    poll = select.poll()
    poll.register(host, select.POLLIN)
    poll.register(parent, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == parent:
                return
            if fd != host.fileno():
                poll.unregister(fd)
                child = children.pop(fd)
                status = _bury(fd, child)
                if _makes_processes(settings):
                    orphans.end_all(proc, {each.pid for each in children.values()})
                _tell(child, status)
                continue
            try:
                data = host.recv(MAX_PACKET_NBYTES, socket.MSG_PEEK)  # the number, whatever comes of its descriptors
            except ConnectionResetError:
                return
            if not data:
                return
            try:
                pid, pidfd = _fork(host, parent, proc, settings, children)
                poll.register(pidfd, select.POLLIN)
            except (OSError, ValueError):  # there is no room for a process or a descriptor; the others go on
                pid, pidfd = 0, -1
            try:
                send(host, Spawned(pid, int(data)), [pidfd] if pid else [])
            except OSError:
                return  # the host has closed its end


def _fork(
    host: socket.socket, parent: int, proc: int, settings: Settings, children: dict[int, _Child]
) -> tuple[int, int]:
    """Fork the process that the host asks for next.

    Returns:
        Its pid and pidfd.

    Raises:
        OSError, ValueError: it cannot be had, and nothing is left of it.
    """
    _, (end, status) = receive(host)
    try:
        pid = os.fork()
        if not pid:
            statuses = [each.status for each in children.values()]
            _live(end, settings, proc, [host.detach(), parent, status, *children, *statuses])
    except OSError:
        os.close(status)
        raise
    finally:  # not in the child, which does not come here
        os.close(end)
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(status)
        raise
    children[pidfd] = _Child(pid, status)
    return pid, pidfd


def _bury(pidfd: int, child: _Child) -> int:
    """Take the remains of a child. Returns how it has ended, as waitpid says it."""
    try:
        os.killpg(child.pid, signal.SIGKILL)  # what it has forked, where that was granted
    except ProcessLookupError:
        pass  # it had no group yet
    _, status = os.waitpid(child.pid, 0)
    os.close(pidfd)
    return status


def _tell(child: _Child, status: int) -> None:
    """Tell the host how a child has ended, where the child could not have said it itself."""
    try:
        os.write(child.status, STATUS.pack(os.waitstatus_to_exitcode(status)))
    except OSError:
        pass  # the host waits for it no more
    os.close(child.status)


def _live(fd: int, settings: Settings, proc: int, fds: list[int]) -> None:
    """The life of a contained process; all descriptors but the first are the zygote's."""
    try:
        for each in fds:
            os.close(each)
        memory = _memory_nbytes(proc)
        _end_before_others(proc)
        os.close(proc)
        try:
            _contain(settings, *memory)
        except BaseException:
            traceback.print_exc()
            raise
        os.environ.update(settings.env)  # only now: the loader and others obey some of them
        time.tzset()
        _add_packages(settings.packages)
        for name in settings.__struct_fields__:
            setattr(settings, name, None)  # algorithms find it in the frames
        end = socket.socket(fileno=fd)
        send(end, b"ready")
        _serve(end)
    finally:
        os._exit(0)


def _contain(settings: Settings, data_nbytes: int, all_nbytes: int) -> None:
    die_with_parent()
    os.setsid()
    if _makes_processes(settings):
        orphans.adopt()
    _seed()
    read = [each.path for each in settings.grants if each.is_readonly]
    write = [each.path for each in settings.grants if not each.is_readonly]
    if "mount_namespace" in settings.layers:
        namespaces.mount_temporary(settings.disk_nbytes, settings.grants, has_descriptors=settings.has_descriptors)
        (write if settings.disk_nbytes else read).append(namespaces.TEMPORARY)
        faults.see_only([*read, *write])
    allowed = all_nbytes + settings.memory_nbytes + 2 * settings.output_nbytes + _ADDRESSES_NBYTES
    allowed += settings.address_nbytes
    resource.setrlimit(resource.RLIMIT_AS, (allowed, resource.RLIM_INFINITY))  # the host raises it for large inputs
    limits = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_STACK, settings.stack_nbytes),
        (resource.RLIMIT_NOFILE, _MAX_FDS),
        (resource.RLIMIT_FSIZE, max(settings.memory_nbytes, 2 * settings.output_nbytes)),
        (resource.RLIMIT_SIGPENDING, _MAX_SIGNALS),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ]
    data_nbytes += settings.memory_nbytes
    if settings.has_private_inputs:  # the host raises it; a process that could would have to make a forbidden call
        resource.setrlimit(resource.RLIMIT_DATA, (data_nbytes, resource.RLIM_INFINITY))
    else:
        limits.append((resource.RLIMIT_DATA, data_nbytes))
    watch_stack(STACK_STATUS)
    paths = Paths(tuple(read), tuple(write))
    contain(settings.layers, paths, limits, settings.syscalls, has_network=settings.has_network)


def _add_packages(packages: list[str]) -> None:
    """Let modules be found in these directories: after the standard library's, and before those that are installed."""
    start = _start_of_installed()
    sys.path[start:start] = packages


@functools.cache  # in the zygote, for all its children
def _start_of_installed() -> int:
    installed = {sysconfig.get_paths()[each] for each in ("purelib", "platlib")}
    return next((index for index, each in enumerate(sys.path) if each in installed), len(sys.path))


def _seed() -> None:
    """No two runs get the same random numbers, as they would after a fork. Python's own module sees to itself."""
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()
    if (torch := sys.modules.get("torch")) is not None:
        torch.seed()


def _end_before_others(proc: int) -> None:
    """Where the machine has no memory left, let the kernel end this process, and not its host."""
    with contextlib.suppress(OSError):  # a /proc that cannot be written
        fd = os.open("self/oom_score_adj", os.O_WRONLY, dir_fd=proc)
        try:
            os.write(fd, b"1000")
        finally:
            os.close(fd)


def _memory_nbytes(proc: int) -> tuple[int, int]:
    """What counts for RLIMIT_DATA already, private memory that may be written; and for RLIMIT_AS."""
    fd = os.open("self/statm", os.O_RDONLY, dir_fd=proc)
    pages = [int(each) for each in os.read(fd, 4096).split()]
    os.close(fd)
    return pages[5] * resource.getpagesize(), pages[0] * resource.getpagesize()


def _serve(end: socket.socket) -> None:
    given: list[int] = []  # descriptors of the last job; one that comes without any has the same
    while True:
        data, fds = receive(end)
        if not data:
            return
        message = msgspec.json.decode(data, type=Ahead | Job)
        if isinstance(message, Ahead):
            runner.get_ahead(message, *fds)
            for fd in fds:
                os.close(fd)
            continue
        if fds:
            for fd in given:
                os.close(fd)
            given = fds
        inputs_fd, outputs_fd, printed_fd, *loans = given
        runner.print_to(printed_fd)
        answer = runner.answer_job(message, inputs_fd, outputs_fd, loans)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        try:
            send(end, answer)
        except (OSError, TypeError, ValueError):  # the results' names are too long for a packet, say
            text = (
                "the results cannot be described: too many of them, or too long names; names, dtypes and shapes of all "
                f"tensors have {MAX_PACKET_NBYTES} bytes: join tensors into fewer"
            )
            send(end, Answer(fault=Fault("algorithm", "ValueError", text)))
