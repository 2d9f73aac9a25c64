# ruff: noqa: E501 - each line is a program
"""Attacks of shared libraries, in C++. Each returns 0 if it has worked, and says why not if it was denied."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from native_libraries import library

HEAD = """
#include <csignal>
#include <cstdint>
#include <ctime>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#define TRY(call) do { errno = 0; if ((long)(call) < 0) return tr_fail_system(error, error_nbytes, #call, errno ? errno : EPERM); } while (0)
static int worked(tr_tensor *out) {
    const int64_t one = 1;
    if (out != nullptr) *static_cast<int8_t *>(tr_make(out, TR_INT8, 1, &one)) = 1;
    return 0;
}
static volatile int never;
static int ends[2];
static long gone(long code, const char *path) { // without what was made
    const int before = errno;
    unlink(path);
    errno = before;
    return code;
}
static int area(int number) { // the number-th descriptor of a file: inputs, outputs, what is printed, ...
    struct stat about;
    for (int fd = 3; fd < 64; fd++)
        if (fstat(fd, &about) == 0 && S_ISREG(about.st_mode) && number-- == 0) return fd;
    return -1;
}
static int socket_of_host() {
    struct stat about;
    for (int fd = 3; fd < 64; fd++)
        if (fstat(fd, &about) == 0 && S_ISSOCK(about.st_mode)) return fd;
    return -1;
}
static std::string again(int fd) {
    const std::string path = "/dev/fd/" + std::to_string(fd);
    return access(path.c_str(), F_OK) == 0 ? path : "/proc/self/fd/" + std::to_string(fd);
}
static int exits_as_child(long pid) { // of a fork: the child ends, the parent gets its number
    if (pid == 0) _exit(0);
    return static_cast<int>(pid);
}
static int recurse(int n) { volatile char page[4096]; page[0] = static_cast<char>(n); return n < 0 ? 0 : recurse(n + 1) + page[0]; }
"""


@dataclass(frozen=True)
class NativeAttack:
    """One attack.

    Attributes:
        number: the kind, see the README.
        name: what it tries.
        body: of the function.
        error: name of the class of what its user gets.
        field: of that error: name and value; the name is empty for any.
        has_control: whether it works as a plain program; bombs would hurt the machine.
        is_hidden: whether a file system of its own hides what it opens, which is then an ordinary error of its own.
        is_for_root: whether the plain program works for root only.
        without_mounts: the error where algorithms have no private directory, if it is another.
    """

    number: int
    name: str
    body: str
    error: str = "NotAllowed"
    field: tuple[str, object] = ("rule", "syscalls")
    has_control: bool = True
    is_hidden: bool = False
    is_for_root: bool = False
    without_mounts: tuple[str, tuple[str, object]] | None = None

    @property
    def id(self) -> str:
        return f"{self.number:02} {self.name}"

    def denial(self, layers: list[str]) -> tuple[str, tuple[str, object]]:
        """What its user gets where these layers are active."""
        if self.is_hidden and "mount_namespace" in layers:
            return "AlgorithmError", ("type", "FileNotFoundError")
        if self.without_mounts and "mount_namespace" not in layers:
            return self.without_mounts
        return self.error, self.field


def _try(number: int, name: str, call: str, *denial: object, **options: object) -> NativeAttack:
    return NativeAttack(number, name, f"TRY({call}); return worked(out);", *denial, **options)  # type: ignore[arg-type]


def _file(number: int, name: str, call: str, **options: object) -> NativeAttack:
    return _try(number, name, call, field=("rule", "read"), is_hidden=True, **options)


def _bomb(number: int, name: str, body: str, limit: str, **options: object) -> NativeAttack:
    return NativeAttack(number, name, body, "LimitExceeded", ("limit", limit), has_control=False, **options)  # type: ignore[arg-type]


def _crash(number: int, name: str, body: str) -> NativeAttack:
    return NativeAttack(number, name, body, "AlgorithmError", ("type", "ProcessEnded"), has_control=False)


READ_ONLY: tuple[str, tuple[str, object]] = ("NotAllowed", ("rule", "read"))
FOR_READING: tuple[str, tuple[str, object]] = ("AlgorithmError", ("type", "OSError"))  # what the descriptor is open for

ATTACKS = [
    _file(1, "read the password file", 'open("/etc/passwd", O_RDONLY)'),
    _file(1, "read another process's environment", 'open(("/proc/" + std::to_string(getppid()) + "/environ").c_str(), O_RDONLY)'),
    _file(1, "read its own environment by path", 'open("/proc/self/environ", O_RDONLY)'),
    _file(1, "go up from an allowed directory", 'open("/usr/lib/../../etc/passwd", O_RDONLY)'),
    _file(1, "go up from its descriptors", 'open("/dev/fd/../environ", O_RDONLY)'),
    _try(1, "read through a symbolic link", 'gone(symlink("/etc/passwd", "/tmp/escaped-s"), "/tmp/escaped-s")'),
    _try(1, "read through a hard link", 'link("/proc/self/exe", "/tmp/escaped-l") < 0 && errno != EXDEV ? -1 : 0'),
    _file(1, "read a program", 'open("/bin/true", O_RDONLY)'),
    _file(2, "write a file", 'gone(open("/var/tmp/escaped", O_CREAT | O_WRONLY, 0600), "/var/tmp/escaped")'),
    _file(2, "write into shared memory", 'gone(open("/dev/shm/escaped", O_CREAT | O_WRONLY, 0600), "/dev/shm/escaped")'),
    _try(2, "change a file's mode", 'chmod("/usr/lib", 0755)', is_for_root=True),
    _try(2, "make a device", 'gone(mknod("/tmp/escaped-n", 020600, 0x103), "/tmp/escaped-n")', is_for_root=True),
    _try(3, "TCP", "socket(AF_INET, SOCK_STREAM, 0)"),
    _try(3, "UDP", "socket(AF_INET, SOCK_DGRAM, 0)"),
    _try(3, "unix socket", "socket(AF_UNIX, SOCK_STREAM, 0)"),
    _try(3, "abstract socket", "socket(AF_UNIX, SOCK_DGRAM, 0)"),
    _try(3, "netlink", "socket(AF_NETLINK, SOCK_RAW, 0)"),
    _try(3, "a pair of sockets", "socketpair(AF_UNIX, SOCK_STREAM, 0, ends)"),
    _try(4, "fork", "exits_as_child(fork())"),
    _try(4, "vfork", "exits_as_child(vfork())"),
    _try(4, "clone as a process", "exits_as_child(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0))"),
    NativeAttack(4, "clone3 as a process", "uint64_t a[11] = {0, 0, 0, 0, SIGCHLD}; TRY(exits_as_child(syscall(SYS_clone3, a, sizeof a))); return worked(out);",
                 "AlgorithmError", ("type", "OSError")),  # ENOSYS
    _try(4, "become another program", 'execl("/bin/true", "true", nullptr)'),
    _try(4, "a process group of its own", "setpgid(0, 0)"),
    _try(5, "signal the parent", "kill(getppid(), 0)"),
    _try(5, "signal all", "kill(0, 0)"),
    _try(5, "signal a thread of another process", "syscall(SYS_tgkill, getppid(), getppid(), 0)"),
    _try(5, "open a process by pidfd", "syscall(SYS_pidfd_open, getppid(), 0)"),
    _try(5, "ptrace", "ptrace(PTRACE_TRACEME, 0, 0, 0)"),
    NativeAttack(5, "read another process's memory", "char b[8]; iovec v = {b, 8}; TRY(process_vm_readv(getpid(), &v, 1, &v, 1, 0)); return worked(out);"),
    NativeAttack(5, "limits of another process", "rlimit l; TRY(prlimit(getppid(), RLIMIT_NOFILE, nullptr, &l)); return worked(out);"),
    NativeAttack(5, "raise its own limits", "rlimit l; TRY(getrlimit(RLIMIT_NOFILE, &l)); TRY(setrlimit(RLIMIT_NOFILE, &l)); return worked(out);"),
    NativeAttack(5, "raise its limit on memory", "rlimit l; TRY(getrlimit(RLIMIT_DATA, &l)); TRY(setrlimit(RLIMIT_DATA, &l)); return worked(out);"),
    NativeAttack(5, "cores that it was not given", "cpu_set_t s; TRY(sched_getaffinity(0, sizeof s, &s)); TRY(sched_setaffinity(0, sizeof s, &s)); return worked(out);"),
    _try(5, "ask for the session of another process", "getsid(getppid())"),
    NativeAttack(5, "ask for the processor time of another process", "clockid_t clock; timespec t; clock = static_cast<clockid_t>(~getppid()) << 3 | 2; TRY(clock_gettime(clock, &t)); return worked(out);"),
    NativeAttack(5, "ask for the cores of another process", "cpu_set_t s; TRY(sched_getaffinity(getppid(), sizeof s, &s)); return worked(out);",
                 "AlgorithmError", ("type", "OSError")),  # ENOSYS
    NativeAttack(6, "a policy for memory, which stays with it", "void *p = mmap(nullptr, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); unsigned long mask = 1; TRY(syscall(SYS_mbind, p, 4096, 1, &mask, 64, 0)); return worked(out);"),
    NativeAttack(6, "give pages by vmsplice", 'char c = 0; iovec v = {&c, 1}; TRY(pipe(ends)); TRY(vmsplice(ends[1], &v, 1, 0)); return worked(out);'),
    _try(6, "new namespaces", "unshare(CLONE_NEWUSER)"),
    _try(6, "mount", 'unshare(CLONE_NEWNS) < 0 ? -1 : mount("x", "/mnt", "tmpfs", 0, "")', is_for_root=True),
    _try(6, "unmount", 'umount("/dev/fd") < 0 && errno != EINVAL && errno != ENOENT ? -1 : 0', is_for_root=True),
    NativeAttack(6, "io_uring", "uint32_t p[30] = {}; TRY(syscall(SYS_io_uring_setup, 4, p)); return worked(out);"),
    NativeAttack(6, "bpf", "uint32_t a[18] = {2, 4, 8, 1}; TRY(syscall(SYS_bpf, 0, a, 72)); return worked(out);", is_for_root=True),
    _try(6, "keys", "syscall(SYS_keyctl, 0, -5, 1)"),
    _try(6, "userfaultfd", "syscall(SYS_userfaultfd, 1)"),
    _try(6, "another personality", "syscall(SYS_personality, 0x40000)"),
    _try(6, "System V memory", "shmget(IPC_PRIVATE, 4096, 01600)"),
    _try(6, "new privileges", "prctl(PR_SET_DUMPABLE, 1)"),
    NativeAttack(6, "a filter of its own", "struct { uint16_t n; uint64_t *p; } f = {1, nullptr}; uint64_t w = 0x7FFF000000000006; f.p = &w; TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)); TRY(syscall(SYS_seccomp, 1, 0, &f)); return worked(out);"),
    _bomb(8, "memory", "for (;;) { void *p = malloc(1 << 20); if (p == nullptr) return tr_fail_system(error, error_nbytes, \"malloc\", ENOMEM); memset(p, 1, 1 << 20); }", "memory_nbytes"),
    _bomb(8, "memory by a mapping", "TRY(mmap(nullptr, size_t{1} << 33, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0); return worked(out);", "memory_nbytes"),
    _try(8, "memory that counts as a stack", "mmap(nullptr, 1 << 30, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN, -1, 0) == MAP_FAILED ? -1 : 0"),
    _try(8, "shared memory without a file", "mmap(nullptr, 1 << 20, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0"),
    _try(8, "a memory file", 'memfd_create("x", 0)'),
    _bomb(8, "stack", "return recurse(0);", "stack_nbytes"),
    NativeAttack(8, "descriptors", "for (;;) TRY(dup(0)); return 0;", "AlgorithmError", ("type", "OSError"), has_control=False),
    _bomb(8, "threads", "pthread_attr_t small; pthread_attr_init(&small); pthread_attr_setstacksize(&small, 65536); pthread_t t; for (;;) pthread_create(&t, &small, [](void *) -> void * { for (;;) pause(); }, nullptr); return 0;", "threads"),
    _bomb(8, "files", 'for (int n = 0;; n++) { int fd; TRY(fd = open(("/tmp/" + std::to_string(n)).c_str(), O_CREAT | O_WRONLY, 0600)); close(fd); } return 0;',
          "disk_nbytes", without_mounts=READ_ONLY),
    _bomb(8, "disk", 'int fd; TRY(fd = open("/tmp/escaped", O_CREAT | O_WRONLY, 0600)); static char block[1 << 20]; for (;;) TRY(write(fd, block, sizeof block)); return 0;',
          "disk_nbytes", without_mounts=READ_ONLY),
    _crash(8, "an output behind its room", "memset(out[0].data, 1, out[0].nbytes * 64); return worked(out);"),
    _bomb(9, "busy for ever", "while (!never) {} return 0;", "cpu_ms"),
    _bomb(9, "asleep for ever", "for (;;) pause(); return 0;", "wall_ms"),
    _bomb(9, "a read that never ends", "TRY(pipe(ends)); char c; TRY(read(ends[0], &c, 1)); return worked(out);", "wall_ms"),
    _bomb(9, "signals held back", "sigset_t all; sigfillset(&all); sigprocmask(SIG_BLOCK, &all, nullptr); while (!never) {} return 0;", "cpu_ms"),
    _bomb(9, "a thread that is busy for ever", "std::thread([] { while (!never) {} }).join(); return 0;", "cpu_ms"),
    _crash(10, "store into an input", "*static_cast<volatile char *>(in[0].data) = 1; return worked(out);"),
    NativeAttack(10, "make an input's memory writable", "TRY(mprotect((void *)((uintptr_t)in[0].data & ~4095), 4096, 3)); return worked(out);",
                 field=("rule", "read"), has_control=False),
    _try(10, "write an input by its descriptor", 'pwrite(area(0), "x", 1, 0)', *FOR_READING, has_control=False),
    _try(10, "map an input to write", "mmap(nullptr, 4096, 3, MAP_SHARED, area(0), 0) == MAP_FAILED ? -1 : 0", *READ_ONLY, has_control=False),
    _try(12, "truncate the inputs", "ftruncate(area(0), 0)", *FOR_READING, has_control=False),
    _try(12, "truncate the outputs", "ftruncate(area(1), 0)", has_control=False),
    _try(12, "grow the outputs", "ftruncate(area(1), 200 << 20)", has_control=False),
    _try(12, "truncate its library", "ftruncate(area(3), 0)", *FOR_READING, has_control=False),
    *[
        NativeAttack(13, f"open {what} again and write", f'int fd; TRY(fd = open(again(area({number})).c_str(), O_RDWR)); TRY(pwrite(fd, "x", 1, 0)); return worked(out);',
                     field=("", None), has_control=False)
        for number, what in ((0, "an input"), (3, "its library"))
    ],
    _try(13, "write its library by its descriptor", 'pwrite(area(3), "x", 1, 0)', *FOR_READING, has_control=False),
    NativeAttack(11, "answer for the runner with a shape that overflows",
                 'const char *a = "{\\"type\\":\\"answer\\",\\"tensors\\":[[\\"y\\",\\"float64\\",[4611686018427387904,4611686018427387904],0]]}"; send(socket_of_host(), a, strlen(a), 0); for (;;) pause(); return 0;',
                 "AlgorithmError", ("type", "ForgedAnswer"), has_control=False),
    NativeAttack(11, "answer for the runner with what is no message", 'send(socket_of_host(), "x", 1, 0); for (;;) pause(); return 0;',
                 "AlgorithmError", ("type", "ForgedAnswer"), has_control=False),
]  # fmt: skip

if platform.machine() == "x86_64":
    RUN = 'void *p = mmap(nullptr, 4096, 7, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); memcpy(p, "{code}", {size}); long r = reinterpret_cast<long (*)()>(p)(); if (r == 0) _exit(0); if (r < 0) return tr_fail_system(error, error_nbytes, "code of its own", -r); return worked(out);'
    for name, code, has_control in (
        ("code of its own makes a process", "b8390000000f05c3", True),
        ("32-bit system calls", "b802000000cd804898c3", True),
        ("x32 system calls", "b8390000400f05c3", False),
    ):
        body = RUN.format(code="".join(f"\\x{code[at : at + 2]}" for at in range(0, len(code), 2)), size=len(code) // 2)
        ATTACKS.append(NativeAttack(7, name, body, has_control=has_control))


def attack_library() -> bytes:
    """A library of all attacks, by their place in the list."""
    functions = [f"FUNCTION(attack_{number}) {{ {each.body} }}" for number, each in enumerate(ATTACKS)]
    return library("\n".join([HEAD, *functions, "FUNCTION(well) { return worked(out); }"]), "-ldl")


def write_library(path: Path) -> Path:
    """The same, in a file."""
    path.write_bytes(attack_library())
    return path
