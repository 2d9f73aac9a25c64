"""Both ends of a channel, in this process or with one in another, and what the tests of channels wait for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import BOUND_S, environment, never, semaphores_of

from tr_mmap.channel.interface import Channel
from tr_mmap.protocol.messages import Request, decode_request
from tr_mmap.wire.messages import MIRROR_DELAY_S

SHM = "/dev/shm"


def semaphores() -> list[str]:
    """Names of this process's semaphores that a death would leave behind."""
    return semaphores_of({os.getpid()})


@dataclass
class Ends:
    """Both ends of a channel, in this process."""

    directory: Path
    controller: Channel
    worker: Channel

    def ask(self, *fields: Any, **more: Any) -> Request:
        request = Request(*fields, **more)
        self.controller.send(request)
        return request

    def asked(self) -> Request:
        raw = self.worker.receive(0, never)
        assert raw is not None
        return decode_request(raw)


def rest(*ends: Channel) -> None:
    """Let each wait for a message that does not come, until it has shown people what there is to show."""
    for end in ends:
        assert end.receive(2000 * MIRROR_DELAY_S, never) is None


class Stop:
    """A reason to stop that lets the test know when it is asked about."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.is_set = False

    def __call__(self) -> bool:
        answer = self.is_set
        self.asked.release()
        return answer

    def wait_until_asked(self) -> None:
        assert self.asked.acquire(timeout=BOUND_S)


class Peer:
    """A real process, whose end is waited for and must be a good one."""

    def __init__(self, script: str, *arguments: object) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
        )

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if error is None:
                assert self.popen.wait(BOUND_S) == 0
        finally:
            self.kill()

    def is_fine(self) -> bool:
        return self.popen.poll() in (None, 0)

    def wait_up(self) -> None:
        assert self.popen.stdout is not None
        assert self.popen.stdout.readline() == b"up\n"

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(BOUND_S)
        for stream in (self.popen.stdin, self.popen.stdout):
            assert stream is not None
            stream.close()
