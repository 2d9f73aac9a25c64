"""The zygote: the process from which contained processes are forked; and what each of those does. Runs no algorithm.

The host starts it as a program of its own, with one end of a socket pair. It imports what the algorithms need, so that
a fork of it is ready at once. It ends when the host ends or closes its end, and its children end with it.
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
STACK_STATUS: Final = 113  # the exit status of a process whose stack has overflowed

_ADDRESSES_NBYTES: Final = 4 << 30  # beyond the limit on memory: for libraries, unused reservations, mapped tensors
_MAX_FDS: Final = 256
_MAX_SIGNALS: Final = 1024  # queued signals, which timers may send


class Settings(msgspec.Struct):
    """The settings of a zygote and its children.

    Attributes:
        host_pid: of the process that started the zygote.
        layers: layers to apply.
        grants: what the children see of the file system.
        syscalls: system calls to allow beside the usual ones.
        preload: modules that the zygote imports.
        has_network: whether the children may use the network.
        memory_nbytes, stack_nbytes, output_nbytes, disk_nbytes: limits.
        address_nbytes: addresses that the kind's engine reserves beyond the usual.
        has_descriptors: whether the children find their own descriptors in ``/dev/fd``.
        has_private_inputs: whether the host raises the limit on memory for private mappings of the inputs.
        env: variables for the children; set after they are contained, so that no other process sees them.
        module_paths: where the zygote finds modules.
        packages: directories where the children find more modules; the zygote does not import from there.
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
    status: int  # our end of a pipe to the host; each child closes its copy


def main() -> None:
    """Serve the host until it ends or closes its end."""
    _reset_signals()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the terminal is for the host
    host = socket.socket(fileno=int(sys.argv[1]))
    settings = _take_settings(int(sys.argv[2]))
    parent = os.pidfd_open(settings.host_pid)
    if os.getppid() != settings.host_pid:
        return  # it has ended before it could be watched
    children: dict[int, _Child] = {}  # by pidfd
    proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)  # now: the new root may have none
    try:
        _prepare(settings)
        if _makes_processes(settings):
            orphans.adopt()
        send(host, Ready(settings.layers))
        _fork_for(host, parent, proc, settings, children)
    finally:
        for child in children.values():
            os.kill(child.pid, signal.SIGKILL)
        for child in children.values():  # else they stay zombies, if the host is the first process of a container
            os.waitpid(child.pid, 0)
        if _makes_processes(settings):
            orphans.end_all(proc, ())


def _makes_processes(settings: Settings) -> bool:
    return not orphans.MAKERS.isdisjoint(settings.syscalls)


def _reset_signals() -> None:
    """Reset signals that the host ignores or blocks. With SIGCHLD ignored, for example, waitpid would find no child."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for each in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # Python ignores these itself
        if signal.getsignal(each) is signal.SIG_IGN:
            signal.signal(each, signal.SIG_DFL)


def _take_settings(fd: int) -> Settings:
    """Read the settings from the file that the host has passed, and close it."""
    with open(fd, "rb") as file:
        file.seek(0)
        return msgspec.json.decode(file.read(), type=Settings)


def _prepare(settings: Settings) -> None:
    """Enter namespaces, if they can be made, and import modules. Corrects ``settings.layers``."""
    wanted = "mount_namespace" in settings.layers
    is_entered = wanted and namespaces.enter(has_network=settings.has_network)
    gc.disable()  # the imports of torch would otherwise be interrupted by collections for a tenth of their time
    for name in settings.preload:
        importlib.import_module(name)
    _hide_modules(settings)
    _start_of_installed()
    # Freeze all objects: a garbage collection in a child would write to their pages, which all children share.
    gc.collect()
    gc.freeze()
    gc.enable()
    if is_entered:
        namespaces.make_root(settings.grants, has_descriptors=settings.has_descriptors)
        if not settings.has_network:
            settings.layers.append("net_namespace")
    elif wanted:
        settings.layers.remove("mount_namespace")


def _hide_modules(settings: Settings) -> None:
    """Remove paths from ``sys.path`` that the children cannot read."""
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
                data = host.recv(MAX_PACKET_NBYTES, socket.MSG_PEEK)  # the number, also if its descriptors get lost
            except ConnectionResetError:
                return
            if not data:
                return
            try:
                pid, pidfd = _fork(host, parent, proc, settings, children)
                poll.register(pidfd, select.POLLIN)
            except (OSError, ValueError):  # no process or descriptor is left: only this request fails
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
        OSError, ValueError: it cannot be made; nothing is left of it.
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
    """Kill what a child that has ended has forked, and reap the child. Returns its status of waitpid."""
    try:
        os.killpg(child.pid, signal.SIGKILL)  # its process group
    except ProcessLookupError:
        pass  # it ended before it had a group
    _, status = os.waitpid(child.pid, 0)
    os.close(pidfd)
    return status


def _tell(child: _Child, status: int) -> None:
    """Report to the host how a child has ended, through a pipe that the child does not have."""
    try:
        os.write(child.status, STATUS.pack(os.waitstatus_to_exitcode(status)))
    except OSError:
        pass  # the host has closed its end, and does not wait any more
    os.close(child.status)


def _live(fd: int, settings: Settings, proc: int, fds: list[int]) -> None:
    """What a contained process does, from the fork to its end.

    Args:
        fd: its end of the socket pair.
        settings: of the zygote.
        proc: a descriptor of /proc.
        fds: the zygote's descriptors, to be closed.
    """
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
        os.environ.update(settings.env)  # only now: some variables change what programs do before they are contained
        time.tzset()
        _add_packages(settings.packages)
        for name in settings.__struct_fields__:
            setattr(settings, name, None)  # an algorithm could read the settings from the frames
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
    if settings.has_private_inputs:  # the host raises it later; the filter does not allow the process to do so
        resource.setrlimit(resource.RLIMIT_DATA, (data_nbytes, resource.RLIM_INFINITY))
    else:
        limits.append((resource.RLIMIT_DATA, data_nbytes))
    watch_stack(STACK_STATUS)
    paths = Paths(tuple(read), tuple(write))
    contain(settings.layers, paths, limits, settings.syscalls, has_network=settings.has_network)


def _add_packages(packages: list[str]) -> None:
    """Add directories of packages to ``sys.path``: after the standard library, before installed packages."""
    start = _start_of_installed()
    sys.path[start:start] = packages


@functools.cache  # in the zygote, for all its children
def _start_of_installed() -> int:
    installed = {sysconfig.get_paths()[each] for each in ("purelib", "platlib")}
    return next((index for index, each in enumerate(sys.path) if each in installed), len(sys.path))


def _seed() -> None:
    """Seed random numbers, which would be the same in all forks. Python's ``random`` does this itself after a fork."""
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()
    if (torch := sys.modules.get("torch")) is not None:
        torch.seed()


def _end_before_others(proc: int) -> None:
    """Let the kernel kill this process before the host, if the machine runs out of memory."""
    with contextlib.suppress(OSError):  # /proc may be read-only
        fd = os.open("self/oom_score_adj", os.O_WRONLY, dir_fd=proc)
        try:
            os.write(fd, b"1000")
        finally:
            os.close(fd)


def _memory_nbytes(proc: int) -> tuple[int, int]:
    """Bytes that count for RLIMIT_DATA already (private writable memory), and for RLIMIT_AS."""
    fd = os.open("self/statm", os.O_RDONLY, dir_fd=proc)
    pages = [int(each) for each in os.read(fd, 4096).split()]
    os.close(fd)
    return pages[5] * resource.getpagesize(), pages[0] * resource.getpagesize()


def _serve(end: socket.socket) -> None:
    given: list[int] = []  # descriptors of the last job; a job without descriptors uses the same again
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
        except (OSError, TypeError, ValueError):  # the answer is too long for a packet, say
            text = (
                "the results cannot be described: too many of them, or too long names; names, dtypes and shapes of all "
                f"tensors have {MAX_PACKET_NBYTES} bytes: join tensors into fewer"
            )
            send(end, Answer(fault=Fault("algorithm", "ValueError", text)))
