"""Readers of one pool, each in a process of its own, which tests tell what to do; some have children, some are killed.

They are forked from a process that was started for this, so that one costs a millisecond, and none has memory of the
owner's. Each keeps views and says whether all of them show what they should.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from support import BOUND_S, ROOT, environment

__all__ = ["ReaderProcess", "ReaderProcesses"]

SCRIPT = """
import json, os, signal, socket, sys
sys.path.insert(0, sys.argv[2])
import numpy as np
from tr_mmap.errors import StaleTensor
from tr_mmap.native import drain
from tr_mmap.shm.reader import SegmentReader

def is_right(view, number, check):
    return check.fault_of(view, number) == "" if check else bool((view == number).all())

def serve(views, directory):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    reader = SegmentReader(directory, shared=directory)
    check = None
    for line in connection.makefile():
        what, *words = json.loads(line)
        answer = True
        if what == "look":
            key, name, seq, number = words
            try:
                views[key] = reader.receive(name, seq, "numpy"), number
                drain()
            except StaleTensor:
                answer = None
        elif what == "content":
            sys.path.insert(0, words[0])
            import content as check
        elif what == "drop":
            views.pop(words[0], None)
            drain()
        elif what == "keep":
            while len(views) > words[0]:
                del views[next(iter(views))]
            drain()
        elif what == "close":
            reader.close()
            drain()
            reader = SegmentReader(directory, shared=directory)
        elif what == "fork":
            answer = os.fork()
            if answer == 0:
                connection.detach()
                if words[0]:
                    os.closerange(0, 200)
                serve(views, directory)
                os._exit(0)
        bad = [key for key, (view, number) in views.items() if not is_right(view, number, check)]
        connection.sendall(json.dumps([answer, bad]).encode() + b"\\n")

def main():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            serve({}, line.strip())
            os._exit(0)
        print(pid, flush=True)

main()
"""


class ReaderProcess:
    """One reader, or a child of one."""

    def __init__(self, pid: int, listener: socket.socket) -> None:
        self.pid = pid
        self._listener = listener
        self._end = os.pidfd_open(pid)
        self._connection, _ = listener.accept()
        self._connection.settimeout(BOUND_S)
        self._lines = self._connection.makefile("rb")

    @property
    def is_killed(self) -> bool:
        return self._end < 0

    def send(self, *words: object) -> None:
        self._connection.sendall(json.dumps(words).encode() + b"\n")

    def answer(self) -> Any:
        """What it says to the last thing that was sent; EOFError if it has died.

        Raises:
            AssertionError: one of its views does not show what it should.
        """
        try:
            line = self._lines.readline()
        except ConnectionResetError:
            line = b""
        if not line:
            raise EOFError
        answer, bad = json.loads(line)
        assert bad == []
        return answer

    def do(self, *words: object) -> Any:
        self.send(*words)
        return self.answer()

    def fork(self, *, closes: bool = False) -> ReaderProcess:
        """A child, with all views of this one; it may close all descriptors that it has."""
        return ReaderProcess(self.do("fork", closes), self._listener)

    def kill(self) -> None:
        """Kill it, and wait until it has ended."""
        if self.is_killed:
            return
        signal.pidfd_send_signal(self._end, signal.SIGKILL)
        assert select.select([self._end], [], [], BOUND_S)[0]
        os.close(self._end)
        self._end = -1
        self._lines.close()
        self._connection.close()


class ReaderProcesses:
    """Makes them. To be closed at last; then none is left, if whoever forked one has killed it."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="tr_readers_")
        address = os.path.join(self._folder, "socket")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen()
        self._listener.settimeout(BOUND_S)
        self._made: list[ReaderProcess] = []
        self._popen = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, address, str(ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
        )

    def start(self, directory: Path) -> ReaderProcess:
        """A new reader of the pool in a directory."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.write(f"{directory}\n".encode())
        self._popen.stdin.flush()
        pid = int(self._popen.stdout.readline())
        self._made = [each for each in self._made if not each.is_killed]
        self._made.append(ReaderProcess(pid, self._listener))
        return self._made[-1]

    def close(self) -> None:
        for each in self._made:
            each.kill()
        self._listener.close()
        shutil.rmtree(self._folder)
        with self._popen:
            pass
        assert self._popen.returncode == 0
