"""The filter of system calls: which ones a contained process may make, as a program for the kernel.

A call that is not allowed fails with EPERM, so that the algorithm's own error says what it tried. ``clone3`` fails with
ENOSYS, because its flags are in memory, which a filter cannot read: the C library then uses ``clone``, whose flags the
filter sees. Only builds the filter; ``layers.py`` installs it.
"""

from __future__ import annotations

import errno
import signal
import struct
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

__all__ = ["ALLOWED", "FilterProgram", "build_filter"]

# -- what is allowed --------------------------------------------------------------------------------------------------

# Left out, because Landlock does not check them: calls that change a file's mode, owner, times or attributes. Left out
# too: sendfile, splice, tee and vmsplice. They give pages, not copies, to pipes and sockets that may outlive the
# process, and would show what later users of these pages write there. Callers of sendfile copy when it is refused.
_FILES: Final = (
    "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range open openat "
    "openat2 creat stat fstat lstat newfstatat statx readlink readlinkat access faccessat faccessat2 getdents "
    "getdents64 getcwd chdir fchdir dup dup2 dup3 pipe pipe2 truncate ftruncate fallocate fadvise64 fsync fdatasync "
    "mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 umask copy_file_range statfs fstatfs "
    "readahead "
)
# Landlock does not check these either, so they would reveal files that were not granted. They fail with EOPNOTSUPP, as
# on a file system without attributes, which shutil handles.
_ATTRIBUTES: Final = ["getxattr", "lgetxattr", "fgetxattr", "listxattr", "llistxattr", "flistxattr"]
# Left out: mbind, whose policy stays with shared memory that other processes get later.
_MEMORY: Final = "munmap mremap mprotect madvise brk msync mincore membarrier get_mempolicy set_mempolicy "
_THREADS: Final = (
    "futex futex_waitv set_robust_list rseq set_tid_address sched_yield "
    "sched_get_priority_max sched_get_priority_min getcpu exit exit_group "
    "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack "
    "restart_syscall pause arch_prctl "
)
# Left out: timer_create, whose timers may send SIGCONT to a process that its host has stopped.
_TIME: Final = (
    "nanosleep gettimeofday time times getrusage getitimer setitimer alarm "
    "timerfd_create timerfd_settime timerfd_gettime "
)
_WAITING: Final = (
    "poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd "
    "eventfd2 sendmsg recvmsg sendto recvfrom shutdown getsockopt getsockname getpeername "
)
# Left out: capget, because the pid that it asks about is in memory, which a filter cannot read.
_SELF: Final = (
    "uname sysinfo getrandom getpid gettid getppid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp "
    "getrlimit "
)
ALLOWED: Final = frozenset((_FILES + _MEMORY + _THREADS + _TIME + _WAITING + _SELF).split())
"""Allowed with any arguments. Measured with CPython 3.11 to 3.13, numpy, torch, scikit-learn and pandas."""

_FREQUENT: Final = frozenset({"futex", "read", "munmap", "write"})
_SHARED_ANONYMOUS: Final = 0x21
_GROWS_DOWN: Final = 0x100  # the kernel counts such memory as a stack, and so for no limit
_O_TRUNC, _O_ACCMODE = 0x200, 0x3  # an access mode of 3 allows neither reading nor writing, but O_TRUNC works with it
_OPENING: Final = (("open", 1), ("openat", 2))  # each with the index of its argument that has the flags
_HIDDEN_FLAGS: Final = ("openat2",)  # its flags are in memory, which a filter cannot read
_NETWORK: Final = (
    "bind connect listen accept accept4 sendmmsg recvmmsg "  # beside socket() and setsockopt(), see build_filter
)
_SO_ZEROCOPY: Final = 60  # lets sockets send pages, not copies
_FAMILIES: Final = (2, 10)  # AF_INET, AF_INET6
_CLONE_THREAD: Final = 0x00010000
_NEW_NAMESPACES: Final = 0x7E020080  # CLONE_NEWNS to CLONE_NEWNET and CLONE_NEWTIME
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_HARMLESS_IOCTLS: Final = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_GET_SEALS. None of them makes the kernel signal
# another process, or locks a file that others use.
_HARMLESS_FCNTLS: Final = (0, 1, 2, 3, 4, 1030, 1034)
_HARMLESS_PRCTLS: Final = (15, 16, 0x53564D41)  # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA
# These ask about one process: the index of the argument with its pid, and the error if that is another process. ENOSYS
# for sched_getaffinity, because C libraries call it for threads and can do without it.
_OF_ONE_PROCESS: Final = {
    "getpgid": (0, errno.EPERM),
    "getsid": (0, errno.EPERM),
    "getpriority": (1, errno.EPERM),
    "sched_getparam": (0, errno.EPERM),
    "sched_getscheduler": (0, errno.EPERM),
    "sched_getaffinity": (0, errno.ENOSYS),
}
_OF_A_CLOCK: Final = ("clock_gettime", "clock_getres", "clock_nanosleep")  # the first argument is a clock; see _clocks

# -- the program ------------------------------------------------------------------------------------------------------

_LOAD, _AND, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST, _JUMP_IF_ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_X32: Final = 0x40000000  # numbers from here on are those of the x32 ABI on x86-64, which would bypass the list

_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


class FilterProgram(NamedTuple):
    """A filter in the kernel's form.

    Attributes:
        code: struct sock_filter, one after another.
        unknown: names that are allowed and that this machine's kernel headers do not know.
    """

    code: bytes
    unknown: frozenset[str]


class _Assembler:
    def __init__(self) -> None:
        self._words: list[bytes] = []

    def add(self, code: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        self._words.append(struct.pack("=HBBI", code, if_true, if_false, value & 0xFFFFFFFF))

    def load(self, offset: int) -> None:
        self.add(_LOAD, offset)

    def give(self, action: int) -> None:
        self.add(_RETURN, action)

    def allow_if(self, number: int, argument: int, tests: Iterable[tuple[int, int]], otherwise: int) -> None:
        """For one call: allow it if one of the tests of an argument's low 32 bits is true; else do ``otherwise``."""
        checks = list(tests)
        self.add(_JUMP_IF_EQUAL, number, 0, len(checks) + 3)
        self.load(_ARGUMENTS + 8 * argument)
        for index, (code, value) in enumerate(checks):
            self.add(code, value, len(checks) - index, 0)
        self.give(otherwise)
        self.give(_ALLOW)

    def code(self) -> bytes:
        return b"".join(self._words)


def build_filter(
    machine: int,
    numbers: dict[str, int],
    pid: int,
    more: Collection[str] = (),
    *,
    has_network: bool = False,
    guards_sizes: bool = False,
) -> FilterProgram:
    """The filter for one process.

    Args:
        machine: AUDIT_ARCH of this machine.
        numbers: of the system calls, by name.
        pid: of the process. It may signal only itself, and neither kill nor stop itself.
        more: names of further calls to allow.
        has_network: whether it may make IPv4 and IPv6 sockets. Other sockets are never allowed.
        guards_sizes: whether to refuse calls that truncate a file, because no other layer does.
    """
    denied = _ERRNO | errno.EPERM
    program = _Assembler()
    program.load(_ARCH)
    program.add(_JUMP_IF_EQUAL, machine, 1, 0)
    program.give(_KILL)
    program.load(_NUMBER)
    program.add(_JUMP_IF_AT_LEAST, _X32, 0, 1)
    program.give(_KILL)
    # Shared memory without a file would not count for the limit on memory.
    program.add(_JUMP_IF_EQUAL, numbers["mmap"], 0, 7)
    program.load(_ARGUMENTS + 8 * 3)
    program.add(_JUMP_IF_ANY_BIT, _GROWS_DOWN, 0, 1)
    program.give(denied)
    program.add(_AND, _SHARED_ANONYMOUS)
    program.add(_JUMP_IF_EQUAL, _SHARED_ANONYMOUS, 0, 1)
    program.give(denied)
    program.give(_ALLOW)
    allowed = {*ALLOWED, *more, *(_NETWORK.split() if has_network else ())}
    if guards_sizes:
        allowed -= {"truncate", *_HIDDEN_FLAGS, *[name for name, _ in _OPENING]}
        for name, argument in _OPENING:
            if name in numbers:
                program.add(_JUMP_IF_EQUAL, numbers[name], 0, 6)
                program.load(_ARGUMENTS + 8 * argument)
                program.add(_AND, _O_TRUNC | _O_ACCMODE)
                program.add(_JUMP_IF_EQUAL, _O_TRUNC, 1, 0)
                program.add(_JUMP_IF_EQUAL, _O_TRUNC | _O_ACCMODE, 0, 1)
                program.give(denied)
                program.give(_ALLOW)
        for name in _HIDDEN_FLAGS:
            if name in numbers:
                program.add(_JUMP_IF_EQUAL, numbers[name], 0, 1)
                program.give(_ERRNO | errno.ENOSYS)
    for name in sorted(allowed & numbers.keys(), key=lambda each: (each not in _FREQUENT, each)):
        program.add(_JUMP_IF_EQUAL, numbers[name], 0, 1)
        program.give(_ALLOW)
    if "clone" not in allowed:
        # A thread, and no new namespace.
        program.add(_JUMP_IF_EQUAL, numbers["clone"], 0, 5)
        program.load(_ARGUMENTS)
        program.add(_JUMP_IF_ANY_BIT, _NEW_NAMESPACES & ~0x80, 1, 0)
        program.add(_JUMP_IF_ANY_BIT, _CLONE_THREAD, 1, 0)
        program.give(denied)
        program.give(_ALLOW)
    for name in sorted((set(_ATTRIBUTES) - allowed) & numbers.keys()):
        program.add(_JUMP_IF_EQUAL, numbers[name], 0, 1)
        program.give(_ERRNO | errno.EOPNOTSUPP)
    if "clone3" in numbers and "clone3" not in allowed:
        program.add(_JUMP_IF_EQUAL, numbers["clone3"], 0, 1)
        program.give(_ERRNO | errno.ENOSYS)
    # A signal to itself. Not SIGKILL, after which it would look as if killed from outside; not SIGSTOP, which only the
    # host could undo.
    program.add(_JUMP_IF_EQUAL, numbers["tgkill"], 0, 7)
    program.load(_ARGUMENTS)
    program.add(_JUMP_IF_EQUAL, pid, 0, 3)
    program.load(_ARGUMENTS + 8 * 2)
    program.add(_JUMP_IF_EQUAL, signal.SIGKILL, 1, 0)
    program.add(_JUMP_IF_EQUAL, signal.SIGSTOP, 0, 1)
    program.give(denied)
    program.give(_ALLOW)
    for name in sorted((_OF_ONE_PROCESS.keys() - allowed) & numbers.keys()):
        argument, code = _OF_ONE_PROCESS[name]
        program.allow_if(numbers[name], argument, [(_JUMP_IF_EQUAL, 0), (_JUMP_IF_EQUAL, pid)], _ERRNO | code)
    for name in _OF_A_CLOCK:
        program.allow_if(numbers[name], 0, _clocks(pid), denied)
    if has_network and "socket" not in allowed:
        program.allow_if(numbers["socket"], 0, [(_JUMP_IF_EQUAL, each) for each in _FAMILIES], denied)
    if has_network and "setsockopt" not in allowed:
        program.add(_JUMP_IF_EQUAL, numbers["setsockopt"], 0, 4)
        program.load(_ARGUMENTS + 8 * 2)
        program.add(_JUMP_IF_EQUAL, _SO_ZEROCOPY, 0, 1)
        program.give(denied)
        program.give(_ALLOW)
    for name, argument, harmless in (
        ("prctl", 0, _HARMLESS_PRCTLS),
        ("ioctl", 1, _HARMLESS_IOCTLS),
        ("fcntl", 1, _HARMLESS_FCNTLS),
    ):
        program.allow_if(numbers[name], argument, [(_JUMP_IF_EQUAL, each) for each in harmless], denied)
    # It may only read limits (the third argument, a 64-bit address of new limits, is 0), and only its own.
    program.add(_JUMP_IF_EQUAL, numbers["prlimit64"], 0, 9)
    program.load(_ARGUMENTS)
    program.add(_JUMP_IF_EQUAL, 0, 1, 0)
    program.add(_JUMP_IF_EQUAL, pid, 0, 4)
    program.load(_ARGUMENTS + 16)
    program.add(_JUMP_IF_EQUAL, 0, 0, 2)
    program.load(_ARGUMENTS + 20)
    program.add(_JUMP_IF_EQUAL, 0, 1, 0)
    program.give(denied)
    program.give(_ALLOW)
    program.give(denied)
    return FilterProgram(program.code(), frozenset(ALLOWED - numbers.keys()))


def _clocks(pid: int) -> list[tuple[int, int]]:
    """Tests of a clock's number: the system's clocks, and those of this process and its threads.

    The number of a process's clock has the complement of its pid, see clock_getcpuclockid(3). Clocks of threads have
    the bit 4; the kernel lets only their own process read them.
    """
    return [
        (_JUMP_IF_ANY_BIT, 4),
        *[(_JUMP_IF_EQUAL, each) for each in (0, 1, 2, 3, 8, 9, 11, ~0 << 3 | 2, ~pid << 3 | 2)],
    ]
