"""Our worker: what a user would write. Run by a PythonSession."""

import numpy as np

from bench.peers.base import answer_ends
from tr_mmap import Server

server = Server(framework="numpy")


LOAN_NBYTES = 64 << 10  # what is smaller costs as little to copy as to lend


@server.command("increment")
def increment(x):
    out = server.empty(x.shape, x.dtype) if x.nbytes >= LOAN_NBYTES else np.empty_like(x)
    np.add(x, 1, out=out)
    return out


@server.command("ends")
def ends(x):
    out = server.empty(x.shape, x.dtype)
    answer_ends(x, out)
    return out


if __name__ == "__main__":
    server.run()
