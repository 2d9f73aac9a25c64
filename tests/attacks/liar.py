"""A worker that lies: answers with tensors that are not its own. For the tests of hostile responses."""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tr_mmap import Server

server = Server(framework="numpy")


@server.command("point")
def point(where: str) -> None:
    """Answer with a tensor that is said to be in that segment, under that number."""
    segment, seq = json.loads(where)
    server._shared.transfer._segments.append(SimpleNamespace(name=segment, seq=seq, release=lambda: None))


@server.command("echo")
def echo(*tensors):
    return tensors


@server.command("rejected")
def rejected() -> str:
    return str(server.rejected)


@server.command("environment")
def environment() -> str:
    """What a process that can read this one's /proc entries sees."""
    with open("/proc/self/environ", "rb") as environ, open("/proc/self/cmdline", "rb") as arguments:
        return (environ.read() + arguments.read()).hex() + " " + ",".join(sorted(os.listdir("/proc/self/fd")))


@server.command("wait")
def wait(path: str) -> str:
    """Until somebody has written to a FIFO and closed it."""
    with open(path) as gate:
        return gate.read()


if __name__ == "__main__":
    server.run()
