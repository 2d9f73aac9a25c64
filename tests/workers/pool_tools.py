"""A worker for the tests of pools: the commands of ``tools.py``, and what a pool's batches may meet."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

from tools import server

starts: list[int] = []
buffer = np.zeros(3)


@server.on_start
def warm_up() -> None:
    starts.append(os.getpid())


@server.command("starts")
def count_starts() -> str:
    return str(len(starts))


@server.command("twice")
def twice(x):
    return x * 2


@server.command("kill_me")
def kill_me(x=None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@server.command("kill_once")
def kill_once(path: str) -> str:
    """Die the first time, and answer the second time: the file says which one it is."""
    try:
        os.mkdir(path)
    except FileExistsError:
        return "survived"
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


@server.command("sleep")
def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


@server.command("apply")
def apply(weights, x):
    return weights * x


@server.command("same")
def same(x):
    """Returns one array again and again."""
    buffer[:] = x[0]
    return buffer


@server.command("odd")
def odd(x):
    """A result of another kind for each item."""
    number = int(x[0])
    if number % 6 == 0:
        return x
    if number % 6 == 1:
        return str(number)
    if number % 6 == 2:
        return {"number": number, "x": x}
    if number % 6 == 3:
        return [x, x + 1]
    if number % 6 == 4:
        raise ZeroDivisionError(number)
    return None


@server.command("deepest")
def deepest(x):
    """As many dimensions as a tensor may have."""
    return x.reshape((1,) * 16)


@server.command("unsendable")
def unsendable(x):
    """A result that no message can hold, for one item."""
    return x if x[0] else np.array(["no number"])


@server.command("swapped")
def swapped(x):
    """A result in a byte order of its own, for some of the items."""
    return x.astype(">f8") if x[0] % 3 else x.astype("<f8")


@server.command("direct")
def direct(x):
    server.send_tensors(x, x + 1)


@server.command("poison")
def poison(x):
    """Kills its worker for one value."""
    if x[0] == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


@server.command("poison_once")
def poison_once(path: str, x):
    """Dies the first time."""
    if kill_once(path) == "survived":
        return x
    return None


@server.command("hold")
def hold(path: str, x) -> str:
    """Passes the gate, with an array."""
    with open(path) as fifo:
        return fifo.read()


@server.command("append")
def append(path: str, word: str) -> str:
    """Leave a mark that says that the handler was called."""
    with open(path, "a") as file:
        file.write(f"{word}\n")
    return word


if __name__ == "__main__":
    server.run()
