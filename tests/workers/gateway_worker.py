"""A worker for the tests of the gateway: what a program of its own may do, and what may happen to it."""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tr_mmap import Server

server = Server(framework="numpy")


@server.command("scale")
def scale(x, factor: float):
    return x * np.asarray(factor, x.dtype)


@server.command("halves")
def halves(x):
    return [x[: len(x) // 2], x[len(x) // 2 :]]


@server.command("say")
def say(text: str, loud: bool = False, other: str | None = None) -> str:
    return (text.upper() if loud else text) + ("" if other is None else other)


@server.command("pid")
def pid() -> str:
    return str(os.getpid())


@server.command("fail")
def fail() -> str:
    raise ZeroDivisionError("as was asked")


@server.command("spin")
def spin(path: str = "") -> str:
    """Without end; where it has begun, there is a file."""
    if path:
        Path(path).touch()
    while True:
        time.sleep(0.01)


@server.command("die_once")
def die_once(path: str) -> str:
    """End the first time, answer the next."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "alive"
    os._exit(7)


def note(path: str) -> None:
    """One more line, for each time that it was done."""
    with open(path, "a", encoding="utf-8") as file:
        file.write("done\n")


@server.command("note_and_die")
def note_and_die(path: str) -> str:
    note(path)
    os._exit(7)


@server.command("note_and_wait")
def note_and_wait(path: str, gate: str) -> str:
    note(path)
    while not os.path.exists(gate):
        time.sleep(0.005)
    return "paid"


if __name__ == "__main__":
    gc.freeze()  # as in tools.py
    server.run()
