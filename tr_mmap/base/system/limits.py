"""Says which limit of the system made a call fail, as a typed error. Reads ``/proc``; never opens a file of ours."""

from __future__ import annotations

import errno
import os
from typing import Final

from ...errors import SystemLimit, TRException

try:
    import resource
except ImportError:  # pragma: no cover - Windows
    resource = None  # type: ignore[assignment]

__all__ = [
    "check_descriptors",
    "check_file_size",
    "check_import",
    "check_limit",
    "check_processes",
    "file_size_limit",
    "mapping_refused",
    "require_memory",
    "thread_refused",
]

# How far below vm.max_map_count a call may fail: it may cut one mapping into three, and the kernel counts a few
# mappings in another way than /proc shows them.
_MAPS_MARGIN: Final = 4
_UNCLEAR: Final = ("address space", "memory")  # what is said of memory if no limit explains a refusal
_LEAST_NBYTES: Final = 4096  # assumed for a call that does not say how much it needed
_THREAD_NBYTES: Final = 8 << 20  # of a thread's stack, if no limit says otherwise


def check_limit(error: OSError, what: str) -> None:
    """Raise SystemLimit if a call failed because it met a limit of open files or of memory.

    Args:
        error: of the call; one that is typed already says all there is to say.
        what: what was tried, for the message.
    """
    if isinstance(error, TRException):
        return
    check_descriptors(error, what)
    if error.errno == errno.ENOMEM:
        raise _memory_limit(f"{what}: {error.strerror}", _LEAST_NBYTES, is_private=False) from error


def check_descriptors(error: OSError, what: str) -> None:
    """Raise SystemLimit if a call failed because there are too many open files.

    Args:
        error: of the call.
        what: what was to be opened, for the message.
    """
    if isinstance(error, SystemLimit):
        return
    if error.errno == errno.EMFILE:
        limit = "RLIMIT_NOFILE"
        advice = f"this process may have {_soft(limit)}; close files, or raise the limit ({limit}, ulimit -n)"
    elif error.errno == errno.ENFILE:
        limit = "fs.file-max"
        advice = "the whole system has as many as it may; close files, or raise the limit (sysctl fs.file-max)"
    else:
        return
    raise SystemLimit(f"{what}: {error.strerror}: {advice}", limit=limit, code=error.errno) from error


def check_import(error: ImportError | OSError, what: str) -> None:
    """Raise SystemLimit if a package could not be imported because of a limit of open files or of memory.

    Args:
        error: of the import. The dynamic linker's are an ImportError, whose text alone says what the system said.
        what: what was tried, for the message.
    """
    if isinstance(error, OSError):
        check_limit(error, what)
        return
    for code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        if str(error).endswith(os.strerror(code)):
            cause = OSError(code, os.strerror(code))
            cause.__cause__ = error
            check_limit(cause, what)


def check_processes(error: OSError, what: str) -> None:
    """Raise SystemLimit if no process could be started because there are too many.

    Args:
        error: of the call.
        what: what was to be started, for the message.
    """
    if error.errno == errno.EAGAIN and not isinstance(error, TRException):
        raise _task_limit(f"{what}: {error.strerror}") from error


def thread_refused() -> SystemLimit:
    """The error to raise when a thread could not be started; the system does not say why."""
    what = "no thread can be started"
    nbytes = _soft("RLIMIT_STACK") or _THREAD_NBYTES
    found = _memory_limit(what, nbytes, is_private=True)
    return _task_limit(what) if found.limit in _UNCLEAR else found


def _task_limit(what: str) -> SystemLimit:
    """Which limit makes the system refuse a process or a thread."""
    allowed = _soft("RLIMIT_NPROC")
    if allowed is not None and os.getuid() and _count_tasks() >= allowed:  # root may have more
        advice = f"this user may have {allowed} processes and threads; end some, or raise it (RLIMIT_NPROC, ulimit -u)"
        return SystemLimit(f"{what}: {advice}", limit="RLIMIT_NPROC", code=errno.EAGAIN)
    advice = (
        "there are as many processes and threads as there may be; end some, or raise the limit (pids.max of the "
        "control group, docker run --pids-limit; sysctl kernel.pid_max, kernel.threads-max)"
    )
    return SystemLimit(f"{what}: {advice}", limit="pids", code=errno.EAGAIN)


def check_file_size(error: OSError, end_nbytes: int) -> None:
    """Raise SystemLimit if a call failed because a file would be larger than a limit allows.

    Args:
        error: of the call.
        end_nbytes: the size that the file was to have.
    """
    if error.errno != errno.EFBIG:
        return
    limit, allowed = "RLIMIT_FSIZE", _soft("RLIMIT_FSIZE")
    if allowed is not None and end_nbytes > allowed:
        advice = f"this process may write {allowed}; raise the limit ({limit}, ulimit -f)"
    else:
        limit, advice = "file size", "the file system has no files of that size; choose another place"
    raise SystemLimit(
        f"a file of {end_nbytes} bytes: {error.strerror}: {advice}", limit=limit, code=errno.EFBIG
    ) from error


def file_size_limit() -> int | None:
    """The most bytes that this process may write to a file (RLIMIT_FSIZE); None if there is no such limit."""
    return _soft("RLIMIT_FSIZE")


def mapping_refused(error: OSError, nbytes: int, *, is_private: bool) -> OSError:
    """The error to raise for a failed ``mmap``: SystemLimit if a limit is the cause.

    Args:
        error: of the call.
        nbytes: that were to be mapped.
        is_private: whether the mapping was to be copy-on-write.
    """
    what = f"mmap of {nbytes} bytes: {error.strerror}"
    if error.errno != errno.ENOMEM:
        return OSError(error.errno, what)
    return _memory_limit(what, nbytes, is_private=is_private)


def require_memory(nbytes: int, what: str) -> None:
    """Refuse in time what would need more memory than this process may have.

    Args:
        nbytes: that are needed at once.
        what: what needs them, for the message.

    Raises:
        SystemLimit: this process cannot have so many.
    """
    try:
        bytearray(nbytes)  # which the kernel promises and does not give: nothing is stored there
    except MemoryError:
        raise _memory_limit(f"{nbytes} bytes for {what}", nbytes, is_private=True) from None


def _memory_limit(what: str, nbytes: int, *, is_private: bool) -> SystemLimit:
    """Which limit makes the system refuse memory.

    Counting the mappings takes some 20 ms if there are 65,000, so it comes last.
    """
    try:
        used = _memory_nbytes()
        for limit, field, counts in (("RLIMIT_AS", "VmSize", True), ("RLIMIT_DATA", "VmData", is_private)):
            allowed = _soft(limit)
            if counts and allowed is not None and used[field] + nbytes > allowed:
                advice = (
                    f"this process has {used[field]} bytes mapped and may have {allowed}; raise the limit ({limit})"
                )
                return SystemLimit(f"{what}: {advice}", limit=limit, code=errno.ENOMEM)
        count, most = _count_maps(), int(_read("/proc/sys/vm/max_map_count"))
        overcommit = int(_read("/proc/sys/vm/overcommit_memory"))
    except (OSError, ValueError, KeyError, MemoryError):  # no Linux, or nothing may be opened now
        advice = "the system refuses, and its limits cannot be read now; let go of tensors that you keep"
        return SystemLimit(f"{what}: {advice}", limit="memory", code=errno.ENOMEM)
    if count >= most - _MAPS_MARGIN:
        limit = "vm.max_map_count"
        advice = (
            f"this process has {count} mappings and may have {most}; let go of tensors that you keep, or raise the "
            f"limit (sysctl {limit})"
        )
    elif overcommit == 2 and is_private:
        limit = "vm.overcommit_memory"
        advice = f"the system promises no more memory than it has (sysctl {limit}=2); free memory, or ask for numpy"
    else:
        limit, advice = "address space", "more than this process can map"
    return SystemLimit(f"{what}: {advice}", limit=limit, code=errno.ENOMEM)


def _count_tasks() -> int:
    """The processes and threads of this user, as far as /proc shows them."""
    count = 0
    try:
        names = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return 0
    for name in names:
        try:
            fields = dict(line.partition(b":")[::2] for line in _read(f"/proc/{name}/status").splitlines())
            if int(fields[b"Uid"].split()[0]) == os.getuid():
                count += int(fields[b"Threads"])
        except (OSError, KeyError):
            pass  # it has ended
    return count


def _soft(name: str) -> int | None:
    """What this process may have by that limit; None if it has none."""
    if resource is None:  # pragma: no cover - Windows
        return None
    soft, _ = resource.getrlimit(getattr(resource, name))
    return None if soft == resource.RLIM_INFINITY else soft


def _memory_nbytes() -> dict[str, int]:
    lines = [line.split() for line in _read("/proc/self/status").splitlines()]
    return {line[0][:-1].decode(): int(line[1]) * 1024 for line in lines if line[0].startswith(b"Vm")}


def _count_maps() -> int:
    part = bytearray(4096)  # a larger one may itself need a mapping, and there can be none left
    with open("/proc/self/maps", "rb", buffering=0) as file:
        count = 0
        while nbytes := file.readinto(part):
            count += part.count(b"\n", 0, nbytes)
        return count


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()
