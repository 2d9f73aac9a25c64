"""A worker that handles several requests at once. The word after the session is how many threads it has; 0 is none.

With ``plain`` after it, it has no ``async def`` handlers.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from tr_mmap import RequestCancelled, Server

Array = np.ndarray[Any, Any]

server = Server(threads=int(sys.argv[2]) or None)
called: list[str] = []


@server.command("pid")
def pid() -> str:
    return str(os.getpid())


@server.command("echo")
def echo(text: str) -> str:
    called.append(text)
    return text


@server.command("called")
def have_been_called() -> str:
    return " ".join(called)


@server.command("gate")
def gate(path: str) -> str:
    return Path(path).read_text()


@server.command("add")
def add(a: Array, b: Array) -> Any:
    return a + b


@server.command("thread")
def thread() -> str:
    return threading.current_thread().name


@server.command("names")
def names(word: str, path: str) -> None:
    """Say a word, pass the gate, and say another."""
    server.write_response(word, word, Path(path).read_text())


@server.command("until_cancelled")
def until_cancelled(path: str) -> str:
    Path(path).touch()
    while not server.cancelled():
        time.sleep(0.001)
    raise RequestCancelled


@server.command("fail")
def fail() -> str:
    raise ValueError("as expected")


@server.command("exit_with")
def exit_with(code: int) -> None:
    sys.exit(code)


@server.command("say_exiting")
def say_exiting() -> None:
    server.write_status("exiting")


@server.command("fork")
def fork() -> str:
    pid = os.fork()
    if not pid:
        return "no answer of a child's"
    return str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


@server.command("report")
def report(path: str) -> str:
    server.progress(0.4, "epoch 3")
    Path(path).read_text()
    for number in range(1000):
        server.progress(number / 1000)
    server.progress(1.0, "written")
    return "reported"


@server.command("report_once")
def report_once(text: str) -> None:
    server.progress(1.0, text)


def define_coroutines() -> None:
    @server.command("async_echo")
    async def async_echo(text: str) -> str:
        return text

    @server.command("async_add")
    async def async_add(a: Array, b: Array) -> Any:
        await asyncio.sleep(0)
        return a + b

    @server.command("meet")
    async def meet(count: int) -> str:
        """Answer when so many requests are in this handler."""
        waiting.append(asyncio.get_running_loop().create_future())
        mine = waiting[-1]
        if len(waiting) == count:
            for future in waiting:
                future.set_result(threading.current_thread().name)
            waiting.clear()
        return str(await mine)

    @server.command("async_forever")
    async def async_forever(path: str) -> None:
        Path(path).touch()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)  # a clean-up may await
            Path(f"{path}.cleaned").touch()

    @server.command("in_thread")
    async def in_thread() -> None:
        await asyncio.to_thread(server.write_response, "in_thread", "said by another thread")

    @server.command("async_fail")
    async def async_fail() -> None:
        raise asyncio.CancelledError

    @server.command("async_exit")
    async def async_exit(code: int) -> None:
        sys.exit(code)

    @server.command("async_fork")
    async def async_fork() -> str:
        never = asyncio.get_running_loop().create_future()
        pid = os.fork()
        if not pid:
            await never
        return str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


waiting: list[asyncio.Future[str]] = []
if "plain" not in sys.argv:
    define_coroutines()

if __name__ == "__main__":
    gc.freeze()  # as in tools.py
    server.run()
