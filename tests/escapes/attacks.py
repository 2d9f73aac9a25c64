# ruff: noqa: E501 - each line is a program
"""Attacks of Python algorithms. Each sets ``output`` if it has worked, and raises if it was denied."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from textwrap import dedent


@dataclass(frozen=True)
class Denial:
    """What the user gets.

    Attributes:
        error: name of its class.
        field: of that error: name and value; the name is empty for any.
    """

    error: str
    field: tuple[str, object] = ("", None)


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        number: the kind, see the README.
        name: what it tries.
        denial: what its user gets.
        code: the algorithm.
        control: the plain program that shows it working; None for the same code; empty where a bomb would hurt the
            machine, or where there is nothing to attack outside of the sandbox.
        needs: the layer that denies it; where that is missing, the attack works, and finds no more than names and sizes.
        without_mounts: what the user gets instead where algorithms have no private directory.
        is_for_root: whether the plain program works for root only.
    """

    number: int
    name: str
    denial: Denial
    code: str
    control: str | None = None
    needs: str = ""
    without_mounts: Denial | None = None
    is_for_root: bool = False

    @property
    def id(self) -> str:
        return f"{self.number:02} {self.name}"

    def check(self, layers: list[str], found: tuple[str, dict[str, object]] | None) -> None:
        """Fail unless it was denied, with its error, by the layers that are active."""
        if self.needs and self.needs not in layers:
            assert found is None, "denied though its layer is missing: promise it, then"
            return
        assert found is not None, "it works"
        is_without = self.without_mounts is not None and "mount_namespace" not in layers
        denial = self.without_mounts if is_without else self.denial
        (error, fields), (name, value) = found, denial.field
        assert error == denial.error, fields
        assert not name or fields[name] == value, fields


def _attack(number, name, denial, code, **options):
    return Attack(number, name, denial, dedent(code), **options)


READ, WRITE, NET, PROCESSES, SYSCALLS = (
    Denial("NotAllowed", ("rule", each)) for each in ("read", "write", "net", "processes", "syscalls")
)
MEMORY, OUTPUT, CPU, WALL, STACK, DISK, THREADS = (
    Denial("LimitExceeded", ("limit", each))
    for each in ("memory_nbytes", "output_nbytes", "cpu_ms", "wall_ms", "stack_nbytes", "disk_nbytes", "threads")
)
# What a descriptor is open for: the kernel itself refuses the rest.
FOR_READING = Denial("AlgorithmError", ("type", "OSError"))
NONE = ""  # no control

LIBC = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
from tr_mmap.sandbox._kernel import SYSCALLS
def check(code):
    if code is None or code < 0 or code == 2**64 - 1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return code
def call(name, *arguments):
    wide = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return check(libc.syscall(ctypes.c_long(SYSCALLS[name]), *wide, *[ctypes.c_long(0)] * (6 - len(wide))))
"""
AREAS = """
import os, stat
is_open = lambda fd: not isinstance(attempt(fd), OSError)
def attempt(fd):
    try:
        return os.fstat(fd)
    except OSError as error:
        return error
def is_area(fd):
    return not isinstance(attempt(fd), OSError) and stat.S_ISREG(os.fstat(fd).st_mode)
areas = [fd for fd in range(3, 64) if is_area(fd)]
"""
CODE = """
import ctypes, mmap, os
def run_code(code):
    memory = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
    memory.write(code)
    return ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))()
def check(code):
    if code < 0:
        raise OSError(-code, os.strerror(-code))
    return code
"""

ATTACKS = [
    # 1: reading what was not granted
    _attack(1, "read the password file", READ, "output = open('/etc/passwd').read()"),
    _attack(1, "read another process's environment", READ,
            "import os; output = open(f'/proc/{os.getppid()}/environ').read()"),
    _attack(1, "read its own environment by path", READ, "output = open('/proc/self/environ').read()"),
    _attack(1, "go up from an allowed directory", READ,
            "import sysconfig; output = open(sysconfig.get_paths()['stdlib'] + '/../' * 12 + 'etc/passwd').read()"),
    _attack(1, "list the root directory", READ, "import os; output = os.listdir('/')", needs="landlock"),
    _attack(1, "open a directory as a path, then read beneath it", READ,
            "import os; fd = os.open('/', os.O_PATH); output = os.read(os.open('etc/passwd', os.O_RDONLY, dir_fd=fd), 9)"),
    _attack(1, "read through a symbolic link", WRITE,
            "import os; os.symlink('/etc/passwd', '/tmp/escaped-l'); output = open('/tmp/escaped-l').read()\n"
            "os.unlink('/tmp/escaped-l')"),
    _attack(1, "read through a hard link", WRITE,
            "import os, tempfile; open('/tmp/escaped-a', 'w').close(); os.link('/tmp/escaped-a', '/tmp/escaped-h')\n"
            "os.unlink('/tmp/escaped-a'); os.unlink('/tmp/escaped-h'); output = 1"),
    _attack(1, "read by a loader of modules", READ,
            "import importlib.machinery as m; output = len(m.SourceFileLoader('x', '/etc/passwd').get_data('/etc/passwd'))"),
    _attack(1, "ask for a file's size", READ, "import os; output = os.stat('/etc/passwd').st_size", needs="mount_namespace"),
    _attack(1, "ask for a file's attributes", Denial("AlgorithmError", ("type", "OSError")),
            "import os; output = len(os.listxattr('/etc/passwd'))"),
    _attack(1, "load a library from elsewhere", READ, "import os; output = open('/bin/sh', 'rb').read(4).hex()"),
    # 2: writing
    _attack(2, "write a file", WRITE, "import os; open('/var/tmp/escaped', 'w'); os.unlink('/var/tmp/escaped'); output = 1"),
    _attack(2, "write into shared memory", WRITE, "import os; open('/dev/shm/escaped', 'w'); os.unlink('/dev/shm/escaped'); output = 1"),
    _attack(2, "make a directory", WRITE,
            "import os; os.mkdir('/var/tmp/escaped-d'); os.rmdir('/var/tmp/escaped-d'); output = 1"),
    _attack(2, "change a file's mode", WRITE,
            "import os, sysconfig; path = sysconfig.get_paths()['stdlib'] + '/os.py'; os.chmod(path, os.stat(path).st_mode)\n"
            "output = 1", is_for_root=True),
    _attack(2, "change an installed module", WRITE,
            "import sysconfig; open(sysconfig.get_paths()['purelib'] + '/README.txt', 'a').close(); output = 1", is_for_root=True),
    _attack(2, "make a device", SYSCALLS,
            LIBC + "call('mknodat', -100, ctypes.c_char_p(b'/tmp/escaped-n'), 0o20600, 0x103); os.unlink('/tmp/escaped-n')\n"
            "output = 1", is_for_root=True),
    # 3: the network
    _attack(3, "TCP", NET, "import socket; socket.socket(); output = 1"),
    _attack(3, "UDP", NET, "import socket; socket.socket(type=socket.SOCK_DGRAM); output = 1"),
    _attack(3, "unix socket", NET, "import socket; socket.socket(socket.AF_UNIX); output = 1"),
    _attack(3, "abstract socket", NET,
            "import socket; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).bind('\\0escaped'); output = 1"),
    _attack(3, "netlink", NET, "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW); output = 1"),
    _attack(3, "a pair of sockets", SYSCALLS, "import socket; socket.socketpair(); output = 1"),
    _attack(3, "a socket by the system call", SYSCALLS, LIBC + "output = call('socket', 2, 1)"),
    # 4: processes
    _attack(4, "fork", PROCESSES, "import os\nif not os.fork(): os._exit(0)\nos.wait(); output = 1"),
    _attack(4, "fork by libc", SYSCALLS, LIBC + "code = check(libc.fork())\nif code == 0: os._exit(0)\noutput = code"),
    _attack(4, "clone as a process", SYSCALLS, LIBC + "code = call('clone', 17)\nif code == 0: os._exit(0)\noutput = code"),
    _attack(4, "clone3 as a process", SYSCALLS, LIBC + """
            arguments = (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17)
            code = call('clone3', arguments, 88)
            if code == 0: os._exit(0)
            output = code
            """.replace("            ", "")),
    _attack(4, "run a program", PROCESSES, "import subprocess; output = subprocess.run(['/bin/true']).returncode"),
    _attack(4, "spawn a program", PROCESSES, "import os; output = os.posix_spawn('/bin/true', ['true'], {})"),
    _attack(4, "become another program", PROCESSES, "import os; os.execv('/bin/true', ['true'])"),
    _attack(4, "a session of its own", SYSCALLS, LIBC + "libc.setsid(); output = call('setpgid', 0, 0) + 1",
            control=LIBC + "output = call('setpgid', 0, 0) + 1"),
    # 5: other processes
    _attack(5, "signal the parent", SYSCALLS, "import os; os.kill(os.getppid(), 0); output = 1"),
    _attack(5, "signal all", SYSCALLS, "import os; os.kill(0, 0); output = 1"),
    _attack(5, "signal a thread of another process", SYSCALLS,
            LIBC + "output = call('tgkill', os.getppid(), os.getppid(), 0) + 1"),
    _attack(5, "queue a signal", SYSCALLS, LIBC + "info = (ctypes.c_int32 * 32)(10, 0, -1)\noutput = call('rt_sigqueueinfo', os.getpid(), 0, info) + 1"),
    _attack(5, "open a process by pidfd", SYSCALLS, "import os; output = os.pidfd_open(os.getppid())"),
    _attack(5, "take a descriptor of another process", SYSCALLS,
            LIBC + "fd = call('pidfd_open', os.getpid()); output = call('pidfd_getfd', fd, 0)"),
    _attack(5, "ptrace", SYSCALLS, LIBC + "output = call('ptrace', 0) + 1"),
    _attack(5, "read another process's memory", SYSCALLS,
            LIBC + "b = ctypes.create_string_buffer(8); v = (ctypes.c_uint64 * 2)(ctypes.addressof(b), 8)\n"
            "output = call('process_vm_readv', os.getpid(), v, 1, v, 1)"),
    _attack(5, "limits of another process", SYSCALLS, "import os, resource; output = resource.prlimit(os.getppid(), 7)"),
    _attack(5, "raise its own limits", SYSCALLS, "import resource; resource.setrlimit(7, resource.getrlimit(7)); output = 1"),
    _attack(5, "let the kernel signal another process", SYSCALLS,
            "import fcntl, os; fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid()); output = 1"),
    _attack(5, "cores that it was not given", SYSCALLS,
            "import os; os.sched_setaffinity(0, os.sched_getaffinity(0)); output = 1"),
    *[
        _attack(5, f"ask for {what} of another process", SYSCALLS, f"import os, time; pid = os.getppid(); output = 1 + {call}")
        for what, call in (
            ("the session", "os.getsid(pid)"), ("the group", "os.getpgid(pid)"), ("the priority", "os.getpriority(0, pid)"),
            ("the cores", "len(os.sched_getaffinity(pid))"), ("the scheduler", "os.sched_getscheduler(pid)"),
            ("the scheduler's parameters", "os.sched_getparam(pid)[0]"),
            ("the processor time", "time.clock_gettime(~pid << 3 | 2)"), ("the clock", "time.clock_getres(~pid << 3 | 2)"),
        )
    ],
    _attack(5, "wait for another process's clock", SYSCALLS,
            LIBC + "output = 1 + call('clock_nanosleep', ~os.getppid() << 3 | 2, 1, (ctypes.c_long * 2)())"),
    _attack(5, "ask for the rights of another process", SYSCALLS,
            LIBC + "output = 1 + call('capget', (ctypes.c_uint32 * 2)(0x20080522, os.getppid()), (ctypes.c_uint32 * 6)())"),
    # 6: the kernel's other doors
    _attack(6, "new namespaces", SYSCALLS, LIBC + "output = call('unshare', 0x10000000) + 1"),
    _attack(6, "mount", SYSCALLS, LIBC + "call('unshare', 0x10020000)\n"
            "output = call('mount', ctypes.c_char_p(b'x'), ctypes.c_char_p(b'/mnt'), ctypes.c_char_p(b'tmpfs')) + 1"),
    _attack(6, "mount in the open", SYSCALLS, LIBC + "output = call('fsopen', ctypes.c_char_p(b'tmpfs'), 0)", is_for_root=True),
    _attack(6, "io_uring", SYSCALLS, LIBC + "output = call('io_uring_setup', 4, (ctypes.c_uint32 * 30)())"),
    _attack(6, "bpf", SYSCALLS, LIBC + "output = call('bpf', 0, (ctypes.c_uint32 * 18)(2, 4, 8, 1), 72)", is_for_root=True),
    _attack(6, "keys", SYSCALLS, LIBC + "output = call('keyctl', 0, -5, 1)"),
    _attack(6, "userfaultfd", SYSCALLS, LIBC + "output = call('userfaultfd', 1)"),
    _attack(6, "performance events", SYSCALLS,
            LIBC + "output = call('perf_event_open', (ctypes.c_uint32 * 32)(1, 128), 0, -1, -1, 0)", is_for_root=True),
    _attack(6, "another personality", SYSCALLS, LIBC + "output = call('personality', 0x0040000) + 1"),
    _attack(6, "a filter of its own", SYSCALLS, LIBC + "output = call('seccomp', 2, 0, (ctypes.c_uint32 * 1)(0x7FFF0000)) + 1"),
    _attack(6, "System V memory", SYSCALLS, LIBC + "output = call('shmget', 0, 4096, 0o1600)"),
    _attack(6, "an extended socket of Landlock", SYSCALLS, LIBC + "output = call('landlock_create_ruleset', 0, 0, 1)", control=NONE),
    _attack(6, "a handle instead of a path", SYSCALLS,
            LIBC + "h = (ctypes.c_uint32 * 40)(128); m = ctypes.c_int()\n"
            "output = call('name_to_handle_at', -100, ctypes.c_char_p(b'/'), h, ctypes.byref(m)) + 1"),
    _attack(6, "a policy for memory, which stays with it", SYSCALLS,
            LIBC + "p = check(libc.mmap(None, ctypes.c_size_t(4096), 3, 0x22, -1, 0))\n"
            "output = 1 + call('mbind', p, 4096, 1, ctypes.byref(ctypes.c_ulong(1)), 64, 0)"),
    *[
        _attack(6, f"give pages by {name}", SYSCALLS, f"import os\nr, w = os.pipe(); file = os.open(os.__file__, os.O_RDONLY)\n{code}")
        for name, code in (
            ("sendfile", "output = os.sendfile(w, file, 0, 8)"), ("splice", "output = os.splice(file, w, 8)"),
            ("tee", LIBC + "os.write(w, b'x'); output = call('tee', r, os.pipe()[1], 1, 0)"),
            ("vmsplice", LIBC + "b = ctypes.create_string_buffer(8); v = (ctypes.c_uint64 * 2)(ctypes.addressof(b), 8)\n"
             "output = call('vmsplice', w, v, 1, 0)"),
        )
    ],
    # 8: bombs
    _attack(8, "memory", MEMORY, "x = bytearray(1 << 33); output = 1", control=NONE),
    _attack(8, "memory by small pieces", MEMORY, "x = []\nwhile True: x.append(bytearray(1 << 20))", control=NONE),
    _attack(8, "memory of a thread", MEMORY,
            "import threading\nx = []\ndef f():\n  global output\n  try:\n    while True: x.append(bytearray(1 << 20))\n"
            "  except MemoryError as e: x.clear(); failed.append(e)\nfailed = []\n"
            "t = threading.Thread(target=f); t.start(); t.join()\nraise failed[0]", control=NONE),
    _attack(8, "memory that counts as a stack", SYSCALLS,
            LIBC + "check(libc.mmap(None, ctypes.c_size_t(1 << 30), 3, 0x122, -1, 0)); output = 1"),
    _attack(8, "memory that is made read-only", MEMORY,
            LIBC + """
            libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
            for _ in range(64):
                piece = check(libc.mmap(None, ctypes.c_size_t(16 << 20), 3, 0x22, -1, 0))
                ctypes.memset(piece, 1, 16 << 20)
                check(libc.mprotect(piece, 16 << 20, 1))
            while True: pass
            """.replace("            ", ""), control=NONE),
    _attack(8, "memory that is paged out", MEMORY,  # where there is a place for it
            LIBC + """
            for _ in range(64):
                piece = ctypes.c_void_p(check(libc.mmap(None, ctypes.c_size_t(16 << 20), 3, 0x22, -1, 0)))
                ctypes.memset(piece, 1, 16 << 20)
                check(libc.mprotect(piece, ctypes.c_size_t(16 << 20), 1))
                check(libc.madvise(piece, ctypes.c_size_t(16 << 20), 21))
            while True: pass
            """.replace("            ", ""), control=NONE),
    _attack(8, "memory of page tables", MEMORY,
            "import mmap\nm = mmap.mmap(-1, 1 << 40, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)\n"
            "output = len(m)", control=NONE),
    _attack(8, "shared memory without a file", SYSCALLS, "import mmap; output = len(mmap.mmap(-1, 1 << 20))"),
    _attack(8, "a memory file", SYSCALLS, "import os; output = os.memfd_create('x')"),
    _attack(8, "output", OUTPUT, "import numpy as np; output = np.zeros(80 << 20, np.uint8)", control=NONE),
    _attack(8, "output as values", Denial("AlgorithmError", ("type", "ValueError")), "output = 'x' * (80 << 20)", control=NONE),
    _attack(8, "stack", STACK,
            "import sys; sys.setrecursionlimit(10**9)\nclass A:\n  def __repr__(self): return repr([self])\noutput = repr(A())",
            control=NONE),
    _attack(8, "recursion", Denial("AlgorithmError", ("type", "RecursionError")), "def f(): return f()\nf()", control=NONE),
    _attack(8, "descriptors", Denial("AlgorithmError", ("type", "OSError")), "import os\nwhile True: os.dup(0)", control=NONE),
    _attack(8, "pipes", Denial("AlgorithmError", ("type", "OSError")), "import os\nwhile True: os.pipe()", control=NONE),
    _attack(8, "threads", THREADS,
            "import threading, time; threading.stack_size(65536)\n"
            "for _ in range(2000): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\ntime.sleep(1000)",
            control=NONE),
    _attack(8, "files", DISK, "for number in range(100000): open(f'/tmp/{number}', 'w').close()", control=NONE,
            without_mounts=WRITE),
    _attack(8, "disk", DISK,
            "with open('/tmp/escaped', 'wb') as file:\n  for _ in range(1000): file.write(bytes(1 << 20)); file.flush()",
            control=NONE, without_mounts=WRITE),
    _attack(8, "packets without end", Denial("AlgorithmError", ("type", "ForgedAnswer")),
            "import socket, os, stat\nfor fd in range(3, 32):\n  try:\n    if stat.S_ISSOCK(os.fstat(fd).st_mode): s = socket.socket(fileno=fd)\n"
            "  except OSError: pass\ns.setblocking(True)\nwhile True: s.send(b'x' * 60000)", control=NONE),
    # 9: time
    _attack(9, "busy for ever", CPU, "while True: pass", control=NONE),
    _attack(9, "asleep for ever", WALL, "import time; time.sleep(1e6)", control=NONE),
    _attack(9, "a read that never ends", WALL, "import os; os.read(os.pipe()[0], 1)", control=NONE),
    _attack(9, "a lock that is never free", WALL, "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
            control=NONE),
    _attack(9, "signals held back", CPU,
            "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass", control=NONE),
    _attack(9, "a catastrophic regular expression", CPU, "import re; re.match('(a+)+$', 'a' * 60 + 'b'); output = 1", control=NONE),
    # 10: inputs
    _attack(10, "store into an input", Denial("AlgorithmError", ("type", "ValueError")), "inputs['x'][0] = 1; output = 1", control=NONE),
    _attack(10, "make an input writable", Denial("AlgorithmError", ("type", "ValueError")),
            "inputs['x'].flags.writeable = True; output = 1", control=NONE),
    _attack(10, "store into an input behind numpy's back", Denial("AlgorithmError", ("type", "ProcessEnded")),
            "import ctypes; ctypes.memset(inputs['x'].ctypes.data, 1, 8); output = 1", control=NONE),
    _attack(10, "make an input's memory writable", SYSCALLS,
            LIBC + "output = call('mprotect', inputs['x'].ctypes.data & ~4095, 4096, 3) + 1", control=NONE),
    _attack(10, "write an input by its descriptor", FOR_READING, AREAS + "output = os.pwrite(areas[0], b'x', 0)", control=NONE),
    _attack(10, "map an input to write", SYSCALLS, AREAS + "import mmap; output = len(mmap.mmap(areas[0], 4096))", control=NONE),
    # 12: a region truncated, 13: opened again
    _attack(12, "truncate the inputs", FOR_READING, AREAS + "os.ftruncate(areas[0], 0); output = 1", control=NONE),
    _attack(12, "truncate the outputs", SYSCALLS, AREAS + "os.ftruncate(areas[1], 0); output = 1", control=NONE),
    _attack(12, "grow the outputs", SYSCALLS, AREAS + "os.ftruncate(areas[1], 65 << 20); output = 1", control=NONE),
    _attack(13, "open an input again and write", Denial("NotAllowed"),  # seals hold, where its path is not hidden already
            AREAS + "output = os.write(os.open(f'/proc/self/fd/{areas[0]}', os.O_RDWR), b'x')", control=NONE),
    # 15: Python's own back doors
    _attack(15, "a class that was hidden", PROCESSES,
            "import subprocess; del subprocess\n"
            "popen = next(c for c in object.__subclasses__() if c.__name__ == 'Popen')\noutput = popen(['/bin/true']).wait()"),
    _attack(15, "a builtin from a frame", READ,
            "import sys; output = sys._getframe().f_builtins['open']('/etc/passwd').read()"),
    _attack(15, "an object of the garbage collector", READ,
            "import gc, sys\nf = next(o for o in gc.get_referents(sys.modules) if getattr(o, '__name__', '') == 'io')\n"
            "output = f.open('/etc/passwd').read()"),
]  # fmt: skip

if platform.machine() == "x86_64":
    FORK, FORK_OF_32_BITS = "b8390000000f05c3", "b802000000cd80c3"  # mov eax, number; syscall or int 0x80; ret
    STACK_POINTER = "4889e0c3"  # mov rax, rsp; ret
    WIDE = "b839000040" + "0f05c3"  # of the x32 set
    ATTACKS += [
        _attack(7, "code of its own makes a process", SYSCALLS,
                CODE + f"code = check(run_code(bytes.fromhex('{FORK}')))\nif code == 0: os._exit(0)\noutput = code"),
        _attack(7, "32-bit system calls", SYSCALLS,
                CODE + f"code = check(run_code(bytes.fromhex('{FORK_OF_32_BITS}')))\nif code == 0: os._exit(0)\noutput = code",
                needs=""),
        _attack(8, "memory that is moved out of the stack", MEMORY,
                CODE + LIBC + f"""
                libc.mremap.restype, libc.mremap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, *[ctypes.c_size_t] * 3]
                libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
                page, seen = run_code(bytes.fromhex('{STACK_POINTER}')) & ~4095, ctypes.create_string_buffer(1)
                while libc.mincore(page - 4096, 4096, seen) == 0: page -= 4096
                moved = check(libc.mremap(page, 4096, 900 << 20, 1))
                ctypes.memset(moved, 1, 900 << 20)
                while True: pass
                """.replace("                ", ""), control=NONE),
        _attack(7, "x32 system calls", SYSCALLS,
                CODE + f"code = check(run_code(bytes.fromhex('{WIDE}')))\nif code == 0: os._exit(0)\noutput = code",
                control=NONE),
    ]  # fmt: skip
