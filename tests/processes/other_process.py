"""Another process, for the tests of processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable

from support import BOUND_S

from tr_mmap.processes.identity import Identity

PEER_SCRIPT = """
import sys
print('up', flush=True)
for name in sys.stdin:
    open('/proc/self/comm', 'w').write(name.rstrip())
    print('up', flush=True)
"""


class Peer:
    """A process that lives until it is killed, and takes any name it is told."""

    def __init__(self) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-S", "-c", PEER_SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.wait_up()
        identity = Identity.of(self.popen.pid)
        assert identity is not None
        self.identity = identity

    def wait_up(self) -> None:
        assert self.popen.stdout is not None
        assert self.popen.stdout.readline() == b"up\n"

    def rename(self, name: bytes) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(name + b"\n")
        self.popen.stdin.flush()
        self.wait_up()

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(BOUND_S)

    def close(self) -> None:
        self.kill()
        for stream in (self.popen.stdin, self.popen.stdout):
            assert stream is not None
            stream.close()


def wait_until_zombie(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def in_forked_child(body: Callable[[], None]) -> int:
    """The exit status of a fork's child that runs ``body``; a child that hangs is killed by its alarm."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(BOUND_S))
            body()
            code = 0
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
