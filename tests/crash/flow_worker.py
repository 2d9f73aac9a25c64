"""The worker of the kill harness: checks what it is given, answers with what can be checked."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from content import BOARD_VARIABLE, MIRROR, Board, Word, fault_of, framework

from tr_mmap import Server

server = Server(framework=framework())
board = Board(os.environ[BOARD_VARIABLE])
board.mark_publishes(Word.WORKER_INSIDE)


@server.command("turn")
def turn(x, n: int):
    if fault := fault_of(x, n):
        board.problem(Word.WRONG_THERE, fault)
    board.add(Word.DELIVERED_THERE)
    if framework() == "torch":
        return mirrored_in_torch(x, n)
    if n % 8:
        return np.bitwise_xor(x, MIRROR)
    loan = server.empty(x.shape, x.dtype)  # a result that is filled where it lies
    return np.bitwise_xor(x, MIRROR, out=loan)


def mirrored_in_torch(x, n: int):
    """A new tensor, a loan, a loan made for inference, or what was received itself, stored into."""
    import torch

    with torch.inference_mode(n % 8 == 4):
        result = server.empty(x.shape, x.dtype) if n % 4 == 0 else x if n % 4 == 1 else torch.empty_like(x)
        torch.bitwise_xor(x.view(torch.int64), int(MIRROR.view(np.int64)), out=result.view(torch.int64))
    return result


@server.command("count")
def count(n: int) -> str:
    return str(-n)


if __name__ == "__main__":
    server.run()
