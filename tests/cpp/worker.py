"""The worker of the C++ suite: every kind of answer, and every way to misbehave. Run by a PythonSession."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import stat
import subprocess
import sys
import threading
import time

import numpy as np

from tr_mmap import Server

server = Server(framework="numpy", threads=int(os.environ.get("TR_TEST_THREADS", "0")) or None)
kept: list[np.ndarray] = []


@server.command("echo")
def echo(*tensors):
    return tensors


@server.command("lend")
def lend(x):
    """The same numbers, in a loan of this side."""
    out = server.empty(x.shape, x.dtype)
    out[...] = x
    return out


@server.command("ends")
def ends(x):
    """A loan of the same size, of which only the ends are touched: what it costs to pass one."""
    out = server.empty(x.shape, x.dtype)
    out[0], out[-1] = x[0], x[-1]
    return out


@server.command("count")
def count(n: int):
    return [np.full(3, i, np.float32) for i in range(n)]


@server.command("is")
def is_full(x, value: float):
    return str(bool((x == value).all()))


@server.command("keep")
def keep(x):
    kept.append(x)
    return "kept"


@server.command("kept")
def sum_kept():
    return " ".join(str(float(x.sum())) for x in kept)


@server.command("forget")
def forget():
    kept.clear()
    return "forgotten"


@server.command("text")
def text(n: int):
    return "é" * n


@server.command("named")
def named(**values):
    """The same values by name, and what they are here."""
    return {**values, "kinds": " ".join(type(each).__name__ for each in values.values())}


@server.command("scaled")
def scaled(points: np.ndarray, factor: float = 1):
    return (points * factor).astype(points.dtype)


@server.command("scaled_sum")
def scaled_sum(points: np.ndarray, factor: float = 1):
    return str(float(points.sum() * factor))


@server.command("summary")
def summary(x):
    return {"count": x.size, "x": x}


@server.command("length")
def length(message: str):
    return str(len(message))


@server.command("say_back")
def say_back(word: str):
    return word


@server.command("is_first")
def is_first(value: float, x):
    return str(bool(x[0] == value and x[-1] == value))


@server.command("wait_for")
def wait_for(path: str):
    while not os.path.exists(path):
        time.sleep(0.01)
    return "there"


@server.command("sleep")
def sleep(seconds: float):
    time.sleep(seconds)
    return "slept"


@server.command("write")
def write(path: str):
    with open(path, "w") as file:
        file.write("written")
    return "written"


@server.command("fail")
def fail(message: str):
    raise ValueError(message)


@server.command("abort")
def abort(threads: int):
    """End by a fatal error whose dump has the frames of so many threads."""
    begun = threading.Barrier(threads + 1)
    for _ in range(threads):
        threading.Thread(target=lambda: (begun.wait(), threading.Event().wait()), daemon=True).start()
    begun.wait()
    print("these are my last words", flush=True)
    os.abort()


@server.command("die")
def die(status: int):
    print("these are my last words", flush=True)
    os._exit(status)


@server.command("leave")
def leave():
    threading.Thread(target=time.sleep, args=(120,)).start()  # for which Python waits before the process ends
    sys.exit(3)


@server.command("kill")
def kill():
    os.kill(os.getpid(), signal.SIGKILL)


@server.command("child")
def child(has_own_session: bool):
    """A grandchild that ignores SIGTERM."""
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=has_own_session)
    process.stdout.readline()
    return str(process.pid)


@server.command("pid")
def pid():
    return str(os.getpid())


@server.command("look")
def look(present: str, absent: str):
    """What this process was started with."""
    return f"{sys.argv[2:]} {os.getcwd()} {os.environ.get(present)} {os.environ.get(absent)}"


@server.command("signals")
def signals():
    """Those that are blocked, and those that are ignored and are not by Python itself."""
    ignored = [n for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN]
    by_python = {signal.SIGPIPE, signal.SIGXFSZ}
    return f"{sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))} {sorted(set(ignored) - by_python)}"


@server.command("lifeline")
def lifeline():
    """Whether the pipe is there whose end of life is this process's."""
    return str(stat.S_ISFIFO(os.fstat(3).st_mode) and bool(fcntl.fcntl(3, fcntl.F_GETFL) & fcntl.FASYNC))


@server.command("stuck")
def stuck():
    """Native code that keeps Python from running."""
    print("stuck", flush=True)
    sum(range(10**15))


@server.command("say")
def say(words: str):
    print(words, flush=True)
    return "said"


if __name__ == "__main__":
    gc.freeze()  # as in workers/tools.py
    server.run()
