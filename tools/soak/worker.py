"""The worker of the soak: gives back what it gets, sleeps, fails, and keeps views for a while.

The framework of its tensors is the second word of its command line; numpy if there is none.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from frameworks import bytes_of, scribble

from tr_mmap import Server

server = Server(framework=sys.argv[2] if len(sys.argv) > 2 else "numpy")
_kept: list[Any] = []


@server.command("echo")
def echo(*tensors):
    return tensors


@server.command("loan")
def loan(x):
    """The same bytes, in a loan."""
    result = server.empty(x.shape, x.dtype)
    result[...] = x
    return result


@server.command("infer")
def infer(x):
    """The same, by torch in inference mode; and a store into what came, which must stay here."""
    import torch

    with torch.inference_mode():
        result = loan(x)
    scribble(x)
    return result


@server.command("say")
def say(text: str = "") -> str:
    return text


@server.command("nap")
def nap(ms: float) -> str:
    time.sleep(ms / 1000)
    return "awake"


@server.command("keep")
def keep(x) -> str:
    """Hold a view of this and of the last 20 kept."""
    _kept.append(x)
    del _kept[:-20]
    return str(int(bytes_of(x).view(np.uint8).sum(dtype=np.int64)))


@server.command("forget")
def forget() -> str:
    _kept.clear()
    return "forgotten"


@server.command("fail")
def fail(text: str) -> str:
    raise ArithmeticError(text)


@server.command("pid")
def pid() -> str:
    return str(os.getpid())


if __name__ == "__main__":
    server.run()
