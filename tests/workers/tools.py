"""A worker for the tests: does what a test asks, and says what it sees. numpy only."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from dataclasses import asdict
from typing import Any

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tr_mmap import Server

server = Server(framework="numpy")
kept: dict[str, Any] = {}
noted: list[str] = []


@server.command("hello")
def hello(name: str = "world") -> str:
    return f"Hello {name.title()}"


@server.command("echo")
def echo(*tensors):
    return tensors


@server.command("say")
def say(text: str = "") -> str:
    return text


@server.command("repeat")
def repeat(text: str, count: int) -> str:
    return text * count


@server.command("length")
def length(text: str = "") -> str:
    return str(len(text))


@server.command("scale")
def scale(values, factor: float):
    return values * np.asarray(factor, values.dtype)


@server.command("halves")
def halves(values):
    middle = len(values) // 2
    return [values[:middle], values[middle:]]


@server.command("nothing")
def nothing() -> None:
    return None


@server.command("both")
def both(x):
    server.send_tensors(x, x + 1)
    server.write_response("both", "two tensors", "and a remark")


@server.command("digest")
def digest(x) -> str:
    import hashlib  # here: it takes as long as a request, and few tests need it

    return hashlib.sha256(np.ascontiguousarray(x).view(np.uint8)).hexdigest()


@server.command("total")
def total(x) -> str:
    return str(int(x.sum(dtype=np.int64)))


@server.command("note")
def note(name: str) -> str:
    """So that a test can tell whether the handler was called."""
    noted.append(name)
    return name


@server.command("noted")
def give_noted() -> str:
    return " ".join(noted)


@server.command("keep")
def keep(x, name: str) -> str:
    kept[name] = x
    return "kept"


@server.command("kept")
def give_kept(name: str):
    return kept[name].copy()


@server.command("forget")
def forget(name: str) -> str:
    del kept[name]
    return "forgotten"


@server.command("write")
def write(x) -> str:
    """Try every way to write into a received array."""
    refused = []
    for attempt in (
        lambda: x.__setitem__(..., 7),
        lambda: x.setflags(write=True),
        lambda: np.add(x, 1, out=x),
        lambda: memoryview(x).cast("B").__setitem__(0, 7),
    ):
        try:
            attempt()
            refused.append(False)
        except (ValueError, TypeError):
            refused.append(True)
    return json.dumps(refused)


@server.command("loan")
def loan(count: int, value: int):
    """A result that is filled where it lies."""
    array = server.empty((count,), "uint8")
    array[...] = value
    return array


@server.command("loan_like")
def loan_like(like, count: int, value: int):
    """The same, asked for with a tensor, whose framework the answer comes in."""
    return loan(count, value)


@server.command("loan_and_spoil")
def loan_and_spoil(count: int):
    """Send a loan, then try to change it."""
    array = server.empty((count,), "uint8")
    array[...] = 1
    server.send_tensors(array)
    try:
        array[...] = 2
    except ValueError:
        server.write_response("", "refused")


@server.command("where")
def where(x) -> str:
    from support import mapping_of_tensor

    return json.dumps(asdict(mapping_of_tensor(x)))


@server.command("read_all")
def read_all(x) -> str:
    """Look at every byte; how much anonymous memory that took, in bytes."""
    from support import anonymous_nbytes

    before = anonymous_nbytes()
    largest = int(x.max())
    return json.dumps([largest, anonymous_nbytes() - before])


@server.command("anonymous")
def anonymous() -> str:
    from support import anonymous_nbytes

    return str(anonymous_nbytes())


@server.command("fds")
def fds() -> str:
    return str(len(os.listdir("/proc/self/fd")))


@server.command("modules")
def modules() -> str:
    return " ".join(sys.modules)


@server.command("fail")
def fail(text: str) -> str:
    raise ZeroDivisionError(text)


class StrangeError(Exception):
    """Cannot be made from its message alone, nor printed."""

    def __init__(self, one, two):
        super().__init__(one, two)

    def __str__(self):
        raise RuntimeError("no text")


@server.command("fail_strangely")
def fail_strangely() -> str:
    raise StrangeError(1, 2)


@server.command("fail_surrogate")
def fail_surrogate() -> str:
    raise ValueError("\udc80 is the name of a file")


@server.command("say_surrogate")
def say_surrogate() -> str:
    return "\udc80"


@server.command("bad_result")
def bad_result():
    return np.array([object()])


@server.command("late_failure")
def late_failure(x):
    """Fails when a result has been sent already."""
    server.send_tensors(x)
    server.write_response("", "this must not be taken for the answer")
    raise ValueError("after all")


@server.command("gate")
def gate(path: str) -> str:
    with open(path) as fifo:
        return fifo.read()


@server.command("spin")
def spin(path: str) -> None:
    """Pass the gate and never end. Python looks for signals all the time here, unlike just before a blocking call."""
    with open(path):
        pass
    while True:
        pass


@server.command("hog")
def hog() -> str:
    """Native code that never gives the interpreter's lock back: it waits for a mutex that no signal ends."""
    libc, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
    return "never"


@server.command("pid")
def pid() -> str:
    return str(os.getpid())


@server.command("where_am_i")
def where_am_i() -> str:
    return json.dumps({"cwd": os.getcwd(), "argv": sys.argv, "ppid": os.getppid()})


@server.command("print")
def print_text(text: str) -> str:
    print(text)
    print(text.upper(), file=sys.stderr)
    return "printed"


@server.command("child")
def child() -> str:
    """Start a process that lives until somebody ends it."""
    import subprocess

    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], stdin=subprocess.DEVNULL)
    kept["child"] = process
    return str(process.pid)


@server.command("die")
def die(code: int, text: str) -> str:
    print(text, flush=True)
    os._exit(code)


@server.command("leave")
def leave(code: int) -> str:
    sys.exit(code)


if __name__ == "__main__":
    gc.freeze()  # the interpreter's end looks through all objects, which takes as long as to import numpy
    server.run()
